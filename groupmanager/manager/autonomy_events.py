"""What the manager's autonomy is told, and what it asks of its shell."""

from dataclasses import dataclass

from snooze.common.autonomy import AutonomyRecord
from snooze.scheduling.consolidation import Consolidation
from snooze.scheduling.dump import Prepared
from snooze.scheduling.relocation import Situation
from snooze.scheduling.snapshot import Snapshot
from snooze.scheduling.units import Properties


@dataclass(frozen=True, slots=True)
class AutonomyTicked:
    """Time goes on; ``wall_ms`` for calendars and records."""

    wall_ms: int


@dataclass(frozen=True, slots=True)
class AutonomySet:
    """The leader tells what may be done by itself."""

    record: AutonomyRecord


@dataclass(frozen=True, slots=True)
class ConsolidateAsked:
    """A person wants a consolidation now."""

    request_id: int
    wall_ms: int
    who: str = ""


@dataclass(frozen=True, slots=True)
class HostExplainAsked:
    """A person asks why a host is not emptied; it is one of this manager's."""

    request_id: int
    wall_ms: int
    host_id: str


@dataclass(frozen=True, slots=True)
class DecisionJudged:
    """A person approves or rejects what was proposed."""

    request_id: int
    wall_ms: int
    decision_id: str
    approved: bool
    who: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ConsolidationPlanned:
    """The answer to ``PlanConsolidation``; None: it could not be made, ``error`` says why.

    ``prepared``: its plan, proved; None: that is still to be done. ``inputs``: what replays it, if
    it could not be made.
    """

    token: int
    wall_ms: int
    answer: Consolidation | None
    error: str = ""
    prepared: Prepared | None = None
    inputs: bytes = b""


@dataclass(frozen=True, slots=True)
class LookedOn:
    """Others had their turn: the look that is under way goes on."""

    wall_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class RelocationPlanned:
    """The answer to ``PlanRelocation``; None: it could not be made, ``error`` says why."""

    token: int
    wall_ms: int
    answer: Prepared | None
    error: str = ""


AutonomyEvent = (
    AutonomyTicked
    | AutonomySet
    | ConsolidateAsked
    | HostExplainAsked
    | DecisionJudged
    | ConsolidationPlanned
    | RelocationPlanned
    | LookedOn
)


@dataclass(frozen=True, slots=True, eq=False)
class PlanConsolidation:
    """Have a consolidation planned aside, since it takes long: ``ConsolidationPlanned`` answers."""

    token: int
    snapshot: Snapshot
    options: Properties


@dataclass(frozen=True, slots=True, eq=False)
class PlanRelocation:
    """Have a relocation planned and proved aside: ``RelocationPlanned`` answers."""

    token: int
    situation: Situation
    options: Properties


@dataclass(frozen=True, slots=True)
class LookOn:
    """Let others have their turn, then feed ``LookedOn``."""


AutonomyEffect = PlanConsolidation | PlanRelocation | LookOn

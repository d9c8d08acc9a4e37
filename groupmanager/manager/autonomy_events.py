"""What the manager's autonomy is told, and what it asks of its shell."""

from dataclasses import dataclass

from snooze.common.autonomy import AutonomyRecord
from snooze.scheduling.consolidation import Consolidation, ConsolidationPolicy
from snooze.scheduling.snapshot import Snapshot


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
class DecisionJudged:
    """A person approves or rejects what was proposed."""

    request_id: int
    wall_ms: int
    decision_id: str
    approved: bool
    who: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ConsolidationPlanned:
    """The answer to ``PlanConsolidation``; None: it could not be made, ``error`` says why."""

    token: int
    wall_ms: int
    answer: Consolidation | None
    error: str = ""


AutonomyEvent = (
    AutonomyTicked | AutonomySet | ConsolidateAsked | DecisionJudged | ConsolidationPlanned
)


@dataclass(frozen=True, slots=True, eq=False)
class PlanConsolidation:
    """Have a consolidation planned aside, since it takes long: ``ConsolidationPlanned`` answers."""

    token: int
    snapshot: Snapshot
    policy: ConsolidationPolicy

"""What the drain core is told, and what it orders."""

from collections.abc import Sequence
from dataclasses import dataclass

from snooze.common.api import DrainView
from snooze.common.errors import ErrorReport
from snooze.groupmanager.leader.energy_events import WantRoom
from snooze.groupmanager.leader.membership_core import Announce
from snooze.groupmanager.leader.submission_events import Decided
from snooze.scheduling.drain import Drain, DrainPolicy
from snooze.scheduling.snapshot import BoolArray, Snapshot


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """A person wants hosts empty; ``deadline_s``: give up after so long, 0: never.

    ``plan_only``: show what would be done, and do nothing.
    """

    request_id: int
    task_id: str
    host_ids: Sequence[str]
    deadline_s: float
    plan_only: bool
    now_ms: int


@dataclass(frozen=True, slots=True)
class UndrainAsked:
    """A person gives a host back; ``bring_back``: what the drain moved away returns."""

    request_id: int
    task_id: str
    host_ids: Sequence[str]
    bring_back: bool
    now_ms: int


@dataclass(frozen=True, slots=True)
class MaintenanceWritten:
    """The records of hosts are safe."""

    host_ids: Sequence[str]
    now_ms: int


@dataclass(frozen=True, slots=True)
class MaintenanceFailed:
    """The records of hosts could not be written."""

    host_ids: Sequence[str]
    error: ErrorReport
    now_ms: int


@dataclass(frozen=True, slots=True)
class MoveEnded:
    """A migration ended; ``error`` is empty if the VM is where it was to go."""

    order_id: int
    error: ErrorReport | None
    now_ms: int


@dataclass(frozen=True, slots=True)
class PlanMade:
    """The outcome of ``MakePlan``; no answer: planning failed or took too long.

    ``inputs``: what the plan is made again from.
    """

    number: int
    answer: Drain | None
    now_ms: int
    error: ErrorReport | None = None
    inputs: bytes = b""


@dataclass(frozen=True, slots=True)
class DrainTicked:
    """Time went by; ``settled``: managers have had time to join this leader."""

    now_ms: int
    settled: bool


DrainEvent = (
    DrainAsked
    | UndrainAsked
    | MaintenanceWritten
    | MaintenanceFailed
    | MoveEnded
    | PlanMade
    | DrainTicked
)


@dataclass(frozen=True, slots=True)
class AnswerDrain:
    """Answer the person: the plan, with the task that carries it out, or why not."""

    request_id: int
    view: DrainView | None = None
    error: ErrorReport | None = None


@dataclass(frozen=True, slots=True)
class MakePlan:
    """Have scheduling plan, elsewhere than here: it takes long. Answered by ``PlanMade``.

    ``hosts`` (``bool[H]``) are to be emptied.
    """

    number: int
    snapshot: Snapshot
    hosts: BoolArray
    policy: DrainPolicy


@dataclass(frozen=True, slots=True)
class RecordMaintenance:
    """Write these hosts' records; answered by ``MaintenanceWritten`` or ``MaintenanceFailed``."""

    host_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class DirectHost:
    """Tell the host's manager whether it takes VMs."""

    host_id: str


@dataclass(frozen=True, slots=True)
class OrderMove:
    """Migrate a VM, as a client would; its end is ``MoveEnded``."""

    order_id: int
    vm_id: str
    destination: str
    cause: str


@dataclass(frozen=True, slots=True)
class DrainMoved:
    """A drain's task got on; whoever waits for it may look."""

    task_id: str


DrainEffect = (
    AnswerDrain
    | MakePlan
    | RecordMaintenance
    | DirectHost
    | OrderMove
    | DrainMoved
    | WantRoom
    | Decided
    | Announce
)

"""What the submission core is told, and what it orders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from snooze.common.decisions import DecisionKind, DecisionMode, DecisionState
from snooze.common.errors import ErrorReport, Problem
from snooze.common.records import TaskRecord, VmRecord
from snooze.common.resources import Capacity
from snooze.common.vms import DEFAULT_POLICY, VmPolicy
from snooze.common.wire import PlacementAnswer, PlacementRequest, VmStatus
from snooze.groupmanager.leader.membership_core import Announce


@dataclass(frozen=True, slots=True)
class Candidate:
    """One VM of a submission after its template was read.

    ``problems`` are what is wrong with it by itself; ``host`` is the pin as the client wrote it;
    ``template`` is packed.
    """

    vm_id: str
    name: str
    demand: Capacity
    template: bytes = b""
    image: str = ""
    host: str = ""
    problems: tuple[Problem, ...] = ()
    policy: VmPolicy = DEFAULT_POLICY


@dataclass(frozen=True, slots=True)
class Submitted:
    """A client submits; ``now_ms`` is the time on the wall."""

    request_id: int
    task_id: str
    candidates: Sequence[Candidate]
    now_ms: int
    key: str = ""
    virtual_cluster: str = ""
    partial: bool = False


@dataclass(frozen=True, slots=True)
class RecordWritten:
    """The record of a task is safe."""

    task_id: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class RecordFailed:
    """The record of a task could not be written: it does not exist."""

    task_id: str
    error: ErrorReport


@dataclass(frozen=True, slots=True)
class PlacementAnswered:
    """A manager said which VMs it takes."""

    manager_id: str
    answer: PlacementAnswer
    now_ms: int


@dataclass(frozen=True, slots=True)
class PlacementFailed:
    """A manager refused a request whole, or (``unknown``) did not answer it."""

    manager_id: str
    vm_ids: Sequence[str]
    unknown: bool
    error: ErrorReport
    now_ms: int


@dataclass(frozen=True, slots=True)
class VmsReported:
    """A manager reports VMs. With ``host_id``, these are all the VMs of that host.

    ``moving``: as in ``ManagerHeard``; one of these that the host does not have may have moved.
    """

    manager_id: str
    statuses: Sequence[VmStatus]
    now_ms: int
    host_id: str = ""
    moving: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ManagerHeard:
    """A manager joined, and all it has was reported: what it does not have, it did not place.

    ``moving``: as in ``ManagerHello``; no other VM of it is.
    """

    manager_id: str
    now_ms: int
    moving: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StateLoaded:
    """What the record holds, read when the leader took over.

    ``more``: a part of it, and others follow before anything else; VMs come before their tasks.
    """

    tasks: Sequence[TaskRecord]
    vms: Sequence[VmRecord]
    now_ms: int
    more: bool = False


@dataclass(frozen=True, slots=True)
class Destroyed:
    """A client wants a VM gone that no host has: pending, or failed."""

    vm_id: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class HostDown:
    """A lost host is proven down, as its entry in the registry says; ``proof`` for people."""

    host_id: str
    proof: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class RestartsWritten:
    """The next generations of these VMs are safe."""

    vm_ids: Sequence[str]
    now_ms: int


@dataclass(frozen=True, slots=True)
class RestartsNotWritten:
    """The next generations of these VMs could not be written."""

    vm_ids: Sequence[str]
    reason: str


@dataclass(frozen=True, slots=True)
class RestartAsked:
    """A person wants a VM, which no host in reach has, started on any host."""

    vm_id: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class StartEnded:
    """What became of a ``StartThere``; ``error`` is empty when it was carried out."""

    vm_id: str
    error: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went by; ``settled``: the members have had time to join after a change of leader."""

    now_ms: int
    settled: bool


SubmissionEvent = (
    Submitted
    | RecordWritten
    | RecordFailed
    | PlacementAnswered
    | PlacementFailed
    | VmsReported
    | ManagerHeard
    | StateLoaded
    | Destroyed
    | HostDown
    | RestartsWritten
    | RestartsNotWritten
    | RestartAsked
    | StartEnded
    | Ticked
)


RECOVERY: Final = "recovery"
"""The cause of orders that no task of a client has."""


@dataclass(frozen=True, slots=True)
class AnswerSubmission:
    """Answer the client: the task's id, or why not."""

    request_id: int
    task_id: str = ""
    error: ErrorReport | None = None


@dataclass(frozen=True, slots=True)
class RecordTask:
    """Write a new task with its VMs, in one transaction; answered by RecordWritten or Failed."""

    task: TaskRecord
    vms: Sequence[VmRecord]


@dataclass(frozen=True, slots=True)
class UpdateRecords:
    """Bring records up to date; nobody waits for it. Removed ids are proven gone."""

    tasks: Sequence[TaskRecord] = ()
    vms: Sequence[VmRecord] = ()
    removed_tasks: Sequence[str] = ()
    removed_vms: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class AskManager:
    """Have a manager place VMs, for a task or as ``RECOVERY``."""

    manager_id: str
    cause: str
    vms: Sequence[PlacementRequest]


@dataclass(frozen=True, slots=True)
class RejoinManager:
    """Close a manager's link: it joins again and says what it has."""

    manager_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskMoved:
    """A task got on; whoever waits for it may look."""

    task_id: str


@dataclass(frozen=True, slots=True)
class RecordRestarts:
    """Write VMs with their next generation; answered by ``RestartsWritten`` or ``NotWritten``."""

    vms: Sequence[VmRecord]


@dataclass(frozen=True, slots=True)
class StartThere:
    """Have a manager start a VM that is off on this of its hosts; answered by ``StartEnded``.

    ``resume``: it is paused there, and is to run on.
    """

    manager_id: str
    vm_id: str
    host_id: str
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Crossed:
    """A VM has come to a host from another manager's: tell the host's manager that it moved."""

    host_id: str


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision, or with the same ``key`` what became of it; the shell gives it id and time.

    ``inputs``: what it was made from; of no account once it is known. ``more``: those of a further
    step.
    """

    key: str
    kind: DecisionKind
    state: DecisionState
    subjects: tuple[str, ...]
    reason: str = ""
    actions: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    outcome: str = ""
    inputs: bytes = b""
    mode: DecisionMode = DecisionMode.AUTO
    more: bytes = b""


SubmissionEffect = (
    AnswerSubmission
    | RecordTask
    | UpdateRecords
    | AskManager
    | RejoinManager
    | TaskMoved
    | RecordRestarts
    | StartThere
    | Crossed
    | Decided
    | Announce
)

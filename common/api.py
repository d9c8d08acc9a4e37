"""Our own HTTP API, version 1: the types that its clients send and get.

Every daemon of a cluster answers it: a bootstrap node and a group manager that does not lead pass
the call on to the leader.

=======  ==================================  ===========================  =======================
verb     path                                body                         answer
=======  ==================================  ===========================  =======================
GET      ``/v1/cluster``                                                  ``ClusterView``
POST     ``/v1/virtual-clusters``            ``ClusterRequest``           202 ``TaskView``
GET      ``/v1/tasks``                                                    list of ``TaskView``
GET      ``/v1/tasks/ID?wait_s=N``                                        ``TaskView``
GET      ``/v1/vms``                                                      list of ``VmView``
GET      ``/v1/vms/NAME``                                                 ``VmView`` with ``xml``
POST     ``/v1/vms/NAME/COMMAND?wait_s=N``   ``CommandRequest`` or none   202 ``TaskView``
GET      ``/v1/hosts``, ``/v1/hosts/ID``                                  ``HostView``
POST     ``/v1/hosts/drain``, ``undrain``    ``DrainRequest``             ``DrainView``
POST     ``/v1/hosts/ID/confirm-dead``                                    ``HostView``
POST     ``/v1/hosts/ID/sleep``              ``PowerRequest`` or none     ``PowerAnswer``
POST     ``/v1/hosts/ID/wake``                                            ``PowerAnswer``
GET      ``/v1/energy``                                                   ``EnergyView``
GET      ``/v1/managers``                                                 list of ``ManagerView``
GET      ``/v1/hierarchy``                                                ``HierarchyView``
GET      ``/v1/images``                                                   list of ``ImageView``
GET      ``/v1/events?after=SEQ&limit=N``                                 list of ``EventView``
GET      ``/v1/events`` with                                              server-sent events, one
         ``Accept: text/event-stream``                                    ``EventView`` each
GET      ``/health``, ``/ready``                                          ``HealthView``; ready is
                                                                          503 until it is so
=======  ==================================  ===========================  =======================

``NAME`` is a VM's name or ``vm_id``; ``ID`` of a host is its id or hostname; ``COMMAND`` is a
member of ``VmCommand``. ``wait_s`` (at most 60) holds the answer until the task has ended or the
time is over; a task that has ended answers 200.

Errors have the status of ``common/errors.py`` and the body ``{"error": ErrorReport}``.
Times are milliseconds since 1970. A ``POST`` may carry an ``Idempotency-Key`` header: the same
key gives the same task again.
"""

from enum import StrEnum
from typing import Annotated, Final

import msgspec

from snooze.common.errors import ErrorReport
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import (
    DEFAULT_POLICY,
    FailureAction,
    MigrationProgress,
    SlowMigration,
    VmPolicy,
)

API_PREFIX = "/v1"
MAX_WAIT_S = 60.0


class PolicyRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a VM is to be treated when nobody is looking; what is left out is the cluster's default.

    The fields are those of ``VmPolicy`` (``common/vms.py``).
    """

    on_host_failure: FailureAction | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] | None = None
    max_restarts: Annotated[int, msgspec.Meta(ge=0, le=1000)] | None = None
    start_order: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] | None = None
    movable: bool | None = None
    slow_migration: SlowMigration | None = None
    max_downtime_ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)] | None = None

    def over(self, default: VmPolicy) -> VmPolicy:
        """The policy that comes of it."""
        given = {
            name: value
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None
        }
        return msgspec.structs.replace(default, **given)


class VmRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One VM to start: a libvirt template, or name, vCPUs, memory and image.

    With ``libvirt_xml`` the name, vCPUs and memory are the template's, and the other fields of
    that kind must be left out. ``host`` is where it starts: a host's or group manager's id, or a
    hostname. Later it moves like any other, unless ``policy.movable`` is false.
    """

    name: str = ""
    vcpus: int | None = None
    memory_kib: int | None = None
    image: str = ""
    libvirt_xml: str = ""
    rx_kib_s: float = 0.0
    tx_kib_s: float = 0.0
    host: str = ""
    policy: PolicyRequest = PolicyRequest()


class ClusterRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A virtual cluster: VMs that are validated together and started at once.

    ``partial``: start the valid ones even if others are refused (the original's rule).
    """

    vms: list[VmRequest]
    name: str = ""
    partial: bool = False


class CommandRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a command needs beyond the VM's name.

    ``resize`` takes any of the first four (what is left out stays); ``migrate`` takes ``host``.
    """

    vcpus: int | None = None
    memory_kib: int | None = None
    rx_kib_s: float | None = None
    tx_kib_s: float | None = None
    host: str = ""


class DrainRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Empty hosts, or give them back.

    ``hosts``: ids or hostnames; ``deadline_s``: no move begins after so long, 0: no deadline;
    ``plan_only``: only show what would be done; ``bring_back`` (undrain): what left returns.
    """

    hosts: list[str]
    deadline_s: float = 0.0
    plan_only: bool = False
    bring_back: bool = False


class DrainMove(msgspec.Struct, frozen=True):
    """One migration of a plan; moves of one ``batch`` run at the same time."""

    vm: str
    source: str
    target: str
    batch: int = 0


class DrainStay(msgspec.Struct, frozen=True):
    """A VM that cannot leave, and why."""

    vm: str
    reason: str


class DrainView(msgspec.Struct, frozen=True):
    """What a drain does: names throughout; ``seconds`` of migration in all, estimated.

    ``emptied``: the hosts that carry nothing afterwards; ``task_id``: empty for a plan alone.
    """

    hosts: list[str]
    moves: list[DrainMove] = []
    stays: list[DrainStay] = []
    emptied: list[str] = []
    seconds: float = 0.0
    task_id: str = ""


class TaskState(StrEnum):
    """Where a task is. ``PARTIAL``: it has ended, some VMs well and some not."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    PARTIAL = "partial"
    FAILED = "failed"


TASK_ENDED = frozenset({TaskState.DONE, TaskState.PARTIAL, TaskState.FAILED})


class TaskVm(msgspec.Struct, frozen=True):
    """How far a task is with one VM; ``note``: what it waits for."""

    name: str
    vm_id: str = ""
    state: VmState = VmState.PENDING
    host_id: str = ""
    hostname: str = ""
    ip_address: str = ""
    error: ErrorReport | None = None
    note: str = ""


class TaskView(msgspec.Struct, frozen=True):
    """A task: a submission (``kind`` is ``submit``) or a command on one VM."""

    id: str
    kind: str
    state: TaskState
    created_ms: int
    ended_ms: int = 0
    vms: list[TaskVm] = []
    progress: MigrationProgress | None = None
    error: ErrorReport | None = None


class VmView(msgspec.Struct, frozen=True):
    """One VM. ``managed`` is false for a domain somebody else made: shown and counted only.

    ``restarts``: how often it was restarted of late, because its host failed.
    """

    vm_id: str
    name: str
    state: VmState
    demand: Capacity
    managed: bool = True
    used: Capacity | None = None
    host_id: str = ""
    hostname: str = ""
    manager_id: str = ""
    ip_address: str = ""
    mac_address: str = ""
    image: str = ""
    generation: int = 1
    task_id: str = ""
    virtual_cluster: str = ""
    reason: str = ""
    xml: str = ""
    policy: VmPolicy = DEFAULT_POLICY
    restarts: int = 0


class LooseDiskView(msgspec.Struct, frozen=True):
    """A disk that was made for a VM and lies on a host without it; ``verdict``: is it needed.

    ``orphan``: nobody needs it, which is proven; it is removed when ``recovery.orphan_disk_s`` is
    over since it was written last (``changed_ms``).
    """

    vm_id: str
    size_bytes: int
    changed_ms: int
    verdict: str
    orphan: bool = False


class HostView(msgspec.Struct, frozen=True):
    """One host; ``reserved`` is what its VMs were promised, ``used`` what they consume.

    ``power``: a member of ``HostPower``, since ``power_since_ms`` (0: not known); ``note``: why.
    """

    id: str
    hostname: str
    address: str
    status: str
    capacity: Capacity
    reserved: Capacity
    used: Capacity
    manager_id: str = ""
    hypervisor: str = ""
    vms: int = 0
    power: str = "active"
    power_since_ms: int = 0
    note: str = ""
    loose_disks: list[LooseDiskView] = []


class ManagerView(msgspec.Struct, frozen=True):
    """One group manager; ``address`` is its HTTP ``host:port``."""

    id: str
    hostname: str
    address: str
    leader: bool = False
    hosts: int = 0
    vms: int = 0
    capacity: Capacity = Capacity()
    reserved: Capacity = Capacity()
    used: Capacity = Capacity()


class HierarchyHost(msgspec.Struct, frozen=True):
    """A host with its VMs."""

    host: HostView
    vms: list[VmView] = []


class HierarchyManager(msgspec.Struct, frozen=True):
    """A group manager with its hosts."""

    manager: ManagerView
    hosts: list[HierarchyHost] = []


class HierarchyView(msgspec.Struct, frozen=True):
    """The whole tree, as the leader knows it."""

    leader_id: str
    epoch: int
    managers: list[HierarchyManager] = []
    unplaced: list[VmView] = []


class ClusterView(msgspec.Struct, frozen=True):
    """The cluster in one line; ``reserve``: which host's loss could not be absorbed, or nothing."""

    leader_id: str
    leader_address: str
    epoch: int
    managers: int
    hosts: int
    vms: int
    version: str
    capacity: Capacity = Capacity()
    reserved: Capacity = Capacity()
    reserve: str = ""


class ImageView(msgspec.Struct, frozen=True):
    """A disk image that hosts can start VMs from; sizes in bytes."""

    name: str
    format: str
    capacity_bytes: int = 0
    allocation_bytes: int = 0
    hosts: int = 0


class EventView(msgspec.Struct, frozen=True):
    """Something that happened; ``seq`` rises by one within one leader's epoch.

    ``kind`` is dotted (``vm.running``, ``host.joined``, ``leader.elected``); ``cause`` is the id of
    the task or the request behind it.
    """

    seq: int
    at_ms: int
    kind: str
    subject: str
    message: str
    cause: str = ""


class HealthView(msgspec.Struct, frozen=True):
    """Whether a daemon lives (``/health``) and can serve (``/ready``), and why not."""

    status: str
    role: str
    node_id: str
    reasons: list[str] = []


class EnergyHostView(msgspec.Struct, frozen=True):
    """One host's energy since it is metered.

    ``source`` of ``watts``: ``bmc``, ``rapl`` (processors and memory only), or ``model``.
    ``dead_s``: for so long it was fenced, or had failed to wake.
    """

    id: str
    hostname: str
    power: str = ""
    watts: float = 0.0
    source: str = "model"
    used_kwh: float = 0.0
    saved_kwh: float = 0.0
    up_s: int = 0
    asleep_s: int = 0
    dead_s: int = 0


class EnergySlotView(msgspec.Struct, frozen=True):
    """Five minutes, means: watts drawn, watts if no host slept, hosts up and asleep."""

    at_ms: int
    watts: float
    watts_all_on: float
    up: float
    asleep: float


class EnergyView(msgspec.Struct, frozen=True):
    """What the cluster's hosts used, and what it saved that some slept, since ``began_ms``."""

    enabled: bool
    began_ms: int
    watts: float
    used_kwh: float
    saved_kwh: float
    hosts: list[EnergyHostView] = []
    past: list[EnergySlotView] = []


class PowerRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Put a host to sleep or wake it; ``force`` passes over everything but VMs."""

    force: bool = False


class PowerAnswer(msgspec.Struct, frozen=True):
    """What is done about it; the host's state tells how far it is."""

    message: str


NO_INPUTS: Final = msgspec.Raw(b"null")


class DecisionView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A decision of the cluster; ``inputs``: what replay reads, only of a decision by itself."""

    id: str
    at_ms: int
    kind: str
    mode: str
    state: str
    decider: str
    reason: str
    subjects: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    outcome: str = ""
    ended_ms: int = 0
    replayable: bool = False
    inputs: msgspec.Raw = NO_INPUTS


class DecisionWord(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Who approves or rejects a decision."""

    who: str = ""


class AutonomyChange(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What may be done by itself from now on.

    Attributes:
        scope: ``cluster``, ``manager``, ``host`` or ``vm``; ``target``: its name or id.
        kinds: which decisions; none: all.
        paused: stop, or go on; None: as it is.
        mode: ``auto``, ``advise``, ``dry-run``, ``off``; empty: that of the settings; None: as is.
        windows: only in these (of the cluster); none in the list: at any time; None: as it is.
        zone: of the windows.
        for_s: how long it holds; 0: for ever.
    """

    scope: str = "cluster"
    target: str = ""
    kinds: tuple[str, ...] = ()
    paused: bool | None = None
    mode: str | None = None
    windows: tuple[str, ...] | None = None
    zone: str = "UTC"
    who: str = ""
    why: str = ""
    for_s: float = 0.0


class AutonomyRuleView(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that a person said; ``kind`` empty: of all decisions."""

    scope: str
    target: str = ""
    name: str = ""
    kind: str = ""
    mode: str = ""
    paused: bool = False
    who: str = ""
    why: str = ""
    at_ms: int = 0
    until_ms: int = 0


class ObstacleView(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that stands against emptying a host; ``until_ms``: until then, if that is known.

    ``code`` is for programs: ``switched_off``, ``mode``, ``away``, ``maintenance``, ``empty``,
    ``takes_no_part``, ``samples``, ``not_sleepable``, ``overloaded``, ``not_judged``, ``in_use``,
    ``not_long_enough``, ``held``, ``plan_under_way``, ``proposed``, ``cool_down``, ``vm_stays``,
    ``no_room``, ``no_benefit``, ``ha_reserve``, ``across``, ``plugin``.
    """

    code: str
    message: str
    until_ms: int = 0


class HostWhyView(msgspec.Struct, frozen=True):
    """Why a host is not emptied now; without ``obstacles`` it is, at the next look."""

    id: str
    hostname: str
    obstacles: tuple[ObstacleView, ...] = ()


class AutonomyWindowView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A window that decisions keep to."""

    window: str
    zone: str
    kind: str = ""
    who: str = ""
    why: str = ""


class AutonomyView(msgspec.Struct, frozen=True):
    """What may be done by itself: the mode of each kind at this moment, and what people said."""

    revision: int
    modes: dict[str, str]
    why_off: dict[str, str]
    rules: list[AutonomyRuleView]
    windows: list[AutonomyWindowView]


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: ErrorReport

"""What the leader and a group manager tell each other."""

import msgspec

from snooze.common.api import ImageView, ObstacleView
from snooze.common.decisions import Decision, DecisionKind
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmCommand
from snooze.common.vms import LooseDisk, MigrationProgress, VmReport, VmSpec
from snooze.common.wire.basics import HostDescription, RenewLease, VmStatus
from snooze.common.wire.host_link import HostAnswer, HostOrder
from snooze.common.wire.joining import Assignment, HostState

# ---------------------------------------------------------------- leader to manager


class PlacementRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One VM to place; ``host`` pins it to that host."""

    spec: VmSpec
    host: str = ""


class PlaceVms(msgspec.Struct, frozen=True, tag=True):
    """Reserve hosts for these VMs and start them; answered at once by ``PlacementAnswer``."""

    epoch: int
    cause: str
    vms: list[PlacementRequest]


class PlacedVm(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one VM of a ``PlaceVms``: a host, or why not.

    ``epoch``: the host's assignment in which it is started there (0: a manager that does not say).
    """

    vm_id: str
    host_id: str = ""
    reason: str = ""
    epoch: int = 0


class PlacementAnswer(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Where each VM goes, in the order asked.

    ``inputs``: what places those that are restarted again (``scheduling/dump.py``).
    """

    vms: list[PlacedVm]
    inputs: bytes = b""


class VmOrder(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A client's command on a VM of this manager; answered by ``VmOrderDone`` when done.

    ``demand`` for a resize; ``destination`` (a host's id) for a migration, and for a start that is
    right on that host only.
    """

    epoch: int
    cause: str
    vm_id: str
    command: VmCommand
    demand: Capacity | None = None
    destination: str = ""


class VmOrderDone(msgspec.Struct, frozen=True, tag=True):
    """The command was carried out; the VM as it is now."""

    status: VmStatus


class RelayedOrder(msgspec.Struct, frozen=True, tag=True):
    """A step of a migration whose other end is under another manager."""

    epoch: int
    cause: str
    host_id: str
    order: HostOrder


class RelayedAnswer(msgspec.Struct, frozen=True, tag=True):
    """What the host answered to the relayed order."""

    answer: HostAnswer


class ReleaseHost(msgspec.Struct, frozen=True, tag=True):
    """Send a host to another manager as soon as nothing is under way on it."""

    epoch: int
    cause: str
    host_id: str
    assignment: Assignment


class ForgetHost(msgspec.Struct, frozen=True, tag=True):
    """The host has joined another manager; drop it and its VMs."""

    epoch: int
    host_id: str


class DescribeHosts(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Say all about your hosts, or some, or only some VMs and their hosts.

    ``host_ids``: empty for all.
    ``vm_keys``: ids of managed VMs, ``id@host`` of others; empty for all.
    ``entries``: how many samples of each VM's usage to give, newest first.
    """

    host_ids: tuple[str, ...] = ()
    vm_keys: tuple[str, ...] = ()
    entries: int = 0
    with_vms: bool = True
    with_xml: bool = True


class StaleCopy(msgspec.Struct, frozen=True, array_like=True):
    """A domain that must go: its VM lives elsewhere, with a higher generation.

    ``only_off``: or with the same one, after a migration that stopped half-way; then only if it is
    off.
    """

    vm_id: str
    generation: int
    only_off: bool = False


class VmMoved(msgspec.Struct, frozen=True, array_like=True):
    """A VM left a host alive so long ago, and is on another now."""

    vm_id: str
    left: str
    ago_s: float


class VmStuck(msgspec.Struct, frozen=True, array_like=True):
    """A VM could not be moved, so long ago."""

    vm_id: str
    ago_s: float


class HostDirective(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the leader says of a host that joined, and whenever that changes.

    A host takes no VM before its first directive, while ``stale`` copies are being discarded, and
    while it is not ``schedulable`` (drained, or in maintenance). The others are what a manager that
    is new to the host is to know before it moves anything: ``moved`` of late, of its VMs, or
    ``stuck``, not to be moved; ``relieved_ago_s``: since it took part in relieving an overload.
    """

    host_id: str
    host_epoch: int
    stale: tuple[StaleCopy, ...] = ()
    schedulable: bool = True
    moved: tuple[VmMoved, ...] = ()
    stuck: tuple[VmStuck, ...] = ()
    relieved_ago_s: float | None = None


class DirectHosts(msgspec.Struct, frozen=True, tag=True):
    """Directives for some of the manager's hosts; answered by ``Accepted``."""

    epoch: int
    directives: list[HostDirective]


class SleepHost(msgspec.Struct, frozen=True, tag=True):
    """Send an idle host to sleep; answered when its link closed, or why it stays.

    The manager takes the host out of placement first and refuses if anything is on it or under way.
    """

    epoch: int
    cause: str
    host_id: str
    action: str


class SetAutonomy(msgspec.Struct, frozen=True, tag=True):
    """What the manager may do by itself: an ``AutonomyRecord`` as MessagePack."""

    epoch: int
    control: bytes


class KeepDecisions(msgspec.Struct, frozen=True, tag=True):
    """Keep copies of what the leader decided, for the next one; answered by ``Accepted``."""

    epoch: int
    decisions: list[Decision]


class JudgeDecision(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A person approves or rejects what the manager proposed; answered by ``DecisionMade``."""

    epoch: int
    decision_id: str
    approved: bool
    who: str = ""


class Reconfigure(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Consolidate now, whatever the calendar says; answered by ``DecisionMade``."""

    epoch: int
    who: str = ""


class ExplainHost(msgspec.Struct, frozen=True, tag=True):
    """Say why a host is not emptied now; answered by ``HostExplained``."""

    epoch: int
    host_id: str


LeaderOrder = (
    PlaceVms
    | VmOrder
    | RelayedOrder
    | ReleaseHost
    | ForgetHost
    | DescribeHosts
    | DirectHosts
    | SleepHost
    | SetAutonomy
    | KeepDecisions
    | JudgeDecision
    | Reconfigure
    | ExplainHost
)


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """Heard; nothing more to say."""


class UsageSample(msgspec.Struct, frozen=True, array_like=True):
    """What a VM used at one moment."""

    taken_ms: int
    used: Capacity


class VmDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """A VM with everything its manager knows."""

    report: VmReport
    host_id: str
    usage: list[UsageSample] = []


class HostDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host with everything its manager knows."""

    host: HostDescription
    status: str
    reserved: Capacity
    used: Capacity
    vms: list[VmDetail] = []
    vm_count: int = 0


class HostDetails(msgspec.Struct, frozen=True, tag=True):
    """Answer to ``DescribeHosts``."""

    hosts: list[HostDetail]


class DecisionMade(msgspec.Struct, frozen=True, tag=True):
    """An autonomic decision, or what became of one that was told before."""

    decision: Decision


class BusyVm(msgspec.Struct, frozen=True, array_like=True):
    """A VM whose going would help, and the cores that it uses."""

    vm_id: str
    uses_cores: float


class HostExplained(msgspec.Struct, frozen=True, tag=True):
    """All that stands against emptying a host; nothing: it is emptied at the next look."""

    obstacles: tuple[ObstacleView, ...]


class HostOverloaded(msgspec.Struct, frozen=True, tag=True):
    """A host is overloaded and no host of this manager can help; told again while that is so.

    ``vms``: those that may go, the cheapest that helps first.
    """

    host_id: str
    reason: str
    vms: tuple[BusyVm, ...]


class HostToEmpty(msgspec.Struct, frozen=True, tag=True):
    """A host is worth emptying and no hosts of this manager can take what is on it.

    Told again while that is so. ``kind``: underload or consolidation; ``vms``: all that is on it.
    """

    host_id: str
    kind: DecisionKind
    reason: str
    vms: tuple[BusyVm, ...]


class Held(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """What is not to be forgotten with this manager: ``hosts`` took part in relieving an overload,
    ``vms`` could not be moved; just now."""

    hosts: tuple[str, ...] = ()
    vms: tuple[str, ...] = ()


ManagerAnswer = (
    PlacementAnswer
    | VmOrderDone
    | RelayedAnswer
    | Accepted
    | HostDetails
    | DecisionMade
    | HostExplained
)

# ---------------------------------------------------------------- manager to leader


class VmsChanged(msgspec.Struct, frozen=True, tag=True):
    """These VMs changed."""

    vms: list[VmStatus]


class HostJoined(msgspec.Struct, frozen=True, tag=True):
    """A host joined this manager."""

    state: HostState


class HostGone(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A host's link is closed; ``left``: it was told to go.

    ``silent``: nothing was heard of it for the heartbeat's time-out. Else its side closed the link,
    or ours did: the machine is alive.
    """

    host_id: str
    epoch: int
    reason: str
    left: bool = False
    silent: bool = False


class ManagerSummary(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """What a manager has and what is free, as a histogram of hosts.

    ``room``: packed ``float64[K, R]``, the least free capacity of the hosts of each bucket;
    ``count``: how many hosts each bucket has; ``idle``: hosts without VM or order, and for how
    many seconds; in a ``partial`` one only what changed since the last, below 0: no longer.
    ``cores``: how many each host's CPUs use, and ``watts``: what their RAPL counts, of all hosts,
    in some summaries only; ``stirred``, ``stirred_watts``: the same of hosts that differ much from
    what was told of them (watts below 0: no longer counted).
    """

    taken_ms: int
    capacity: Capacity
    reserved: Capacity
    used: Capacity
    room: bytes
    count: list[int]
    hosts: int
    vms: int
    idle: dict[str, float] = {}
    cores: dict[str, float] = {}
    watts: dict[str, float] = {}
    partial: bool = False
    stirred: dict[str, float] = {}
    stirred_watts: dict[str, float] = {}


class Happened(msgspec.Struct, frozen=True, tag=True):
    """Something for the cluster's list of events."""

    at_ms: int
    kind: str
    subject: str
    message: str
    cause: str = ""


class VmMigrationMoved(msgspec.Struct, frozen=True, tag=True):
    """A migration went on (to the leader, for the task's progress)."""

    cause: str
    progress: MigrationProgress


class HostImages(msgspec.Struct, frozen=True, tag=True):
    """The images of a host are these now."""

    host_id: str
    images: tuple[ImageView, ...]


class HostDisks(msgspec.Struct, frozen=True, tag=True):
    """The disks that are loose on a host."""

    host_id: str
    disks: tuple[LooseDisk, ...]


ManagerNotice = (
    HostImages
    | HostDisks
    | VmsChanged
    | HostJoined
    | HostGone
    | ManagerSummary
    | Happened
    | VmMigrationMoved
    | DecisionMade
    | HostOverloaded
    | HostToEmpty
    | Held
)


class RelayToHost(msgspec.Struct, frozen=True, tag=True):
    """A manager asks the leader to have a host of another manager carry out a step."""

    cause: str
    host_id: str
    order: HostOrder


class PauseEnergy(msgspec.Struct, frozen=True, tag=True):
    """A manager was asked to let its hosts stay up, or to go on; answered by ``Accepted``."""

    manager_id: str
    paused: bool


class AskMoving(msgspec.Struct, frozen=True, tag=True):
    """Are these VMs still on their way? They are awaited; answered by ``NotMoving``."""

    vm_ids: list[str]


class NotMoving(msgspec.Struct, frozen=True, tag=True):
    """Those that are not: a host in reach has them, or they are gone."""

    vm_ids: list[str]


class TellDecisions(msgspec.Struct, frozen=True, tag=True):
    """Copies that were kept of what a former leader decided; answered by ``Accepted``."""

    decisions: list[Decision]


ManagerRequest = RelayToHost | RenewLease | PauseEnergy | AskMoving | TellDecisions

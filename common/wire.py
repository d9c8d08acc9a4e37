"""Messages between daemons, as MessagePack on links (``common/transport/link.py``).

Two kinds of link. A *host link* is opened by a local controller to its group manager; a *manager
link* is opened by a group manager to the leader. Monitoring flows up, orders flow down, on the same
link. Every order carries an ``epoch``: on a host link the host's assignment epoch, on a manager
link the leader's. The receiver refuses an older one with ``StaleEpoch``.

Every order is idempotent: what it names (a VM's id and generation, a ticket's token) makes a repeat
harmless, so a sender that does not know whether an order arrived sends it again.

An assignment epoch is ``leader_epoch << 32 | count``: one leader hands out rising ones, and a
later leader's are higher than any of an earlier one's.
"""

import msgspec
import numpy as np

from snooze.common.api import ImageView
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.vms import MigrationProgress, MigrationTicket, VmReport, VmSpec, VmUsage

PROTOCOL = 1
"""Raised when an older daemon could misread a newer one; a link between two is refused."""


def assignment_epoch(leader_epoch: int, count: int) -> int:
    """The ``count``-th assignment epoch of the leader with ``leader_epoch``."""
    return leader_epoch << 32 | count


class Address(msgspec.Struct, frozen=True, array_like=True):
    """Where a TCP server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class HypervisorSummary(msgspec.Struct, frozen=True, omit_defaults=True):
    """What Snooze's clients are told of a host's hypervisor (``HypervisorSettings``)."""

    driver: str = "qemu"
    transport: str = "tcp"
    port: int = 16509
    method: str = "live"
    timeout_s: int = 60
    description: str = ""


class HostDescription(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host as it presents itself when it joins.

    ``capacity`` is what VMs may use: the machine less what is reserved for the host itself.
    ``lists_images``: ``images`` are all it has, so that another name is a mistake.
    ``wakeup_options`` has its secrets redacted before it leaves the host.
    """

    host_id: str
    hostname: str
    control: Address
    capacity: Capacity
    hypervisor: HypervisorSummary = HypervisorSummary()
    images: tuple[ImageView, ...] = ()
    lists_images: bool = False
    wakeup_driver: str = "test"
    wakeup_options: str = ""


class ManagerDescription(msgspec.Struct, frozen=True, omit_defaults=True):
    """A group manager as it presents itself; also the payload of the leader's record."""

    manager_id: str
    hostname: str
    control: Address
    monitoring: Address


# ---------------------------------------------------------------- joining


class AssignmentRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host asks the leader for a manager (``POST /internal/assignment``).

    ``failed_managers``: the ones it tried since it last had one, and could not reach.
    """

    host: HostDescription
    previous_manager: str = ""
    failed_managers: tuple[str, ...] = ()


class Assignment(msgspec.Struct, frozen=True):
    """The leader's answer."""

    manager: ManagerDescription
    epoch: int


class HostHello(msgspec.Struct, frozen=True, tag="host"):
    """First frame of a host link."""

    host: HostDescription
    vms: list[VmReport]
    epoch: int
    protocol: int = PROTOCOL


class HostWelcome(msgspec.Struct, frozen=True, tag="host-welcome"):
    """The manager's answer."""

    manager: ManagerDescription


class HostState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host and its VMs as its manager tells the leader."""

    host: HostDescription
    epoch: int
    vms: list["VmStatus"]


class ManagerHello(msgspec.Struct, frozen=True, tag="manager"):
    """First frame of a manager link."""

    manager: ManagerDescription
    hosts: list[HostState]
    protocol: int = PROTOCOL


class ManagerWelcome(msgspec.Struct, frozen=True, tag="manager-welcome"):
    """The leader's answer."""

    leader_id: str
    epoch: int


# ---------------------------------------------------------------- manager to host


class StartVm(msgspec.Struct, frozen=True, tag=True):
    """Define and start; answered by a ``VmReport``."""

    epoch: int
    cause: str
    spec: VmSpec


class CommandVm(msgspec.Struct, frozen=True, tag=True):
    """Start again, suspend, resume, shut down, reboot or destroy; answered by ``OrderDone``."""

    epoch: int
    cause: str
    vm_id: str
    command: VmCommand


class ResizeVm(msgspec.Struct, frozen=True, tag=True):
    """Give the running VM these vCPUs and this memory; answered by ``OrderDone``."""

    epoch: int
    cause: str
    vm_id: str
    demand: Capacity


class OfferVm(msgspec.Struct, frozen=True, tag=True):
    """Say what would move if this VM migrated; answered by ``OfferIssued``. Nothing changes."""

    epoch: int
    cause: str
    vm_id: str


class PrepareIncoming(msgspec.Struct, frozen=True, tag=True):
    """Make ready to receive a VM; answered by a ``TicketIssued``.

    ``report``: the VM as it is at the source; ``offer``: what the source's driver issued.
    """

    epoch: int
    cause: str
    report: VmReport
    offer: bytes


class MigrateOut(msgspec.Struct, frozen=True, tag=True):
    """Move the VM to where the ticket says; answered by ``OrderDone`` when it has left."""

    epoch: int
    cause: str
    vm_id: str
    ticket: MigrationTicket


class FinishIncoming(msgspec.Struct, frozen=True, tag=True):
    """The VM has arrived; answered by ``OrderDone`` with its report."""

    epoch: int
    cause: str
    vm_id: str
    ticket: MigrationTicket


class AbortIncoming(msgspec.Struct, frozen=True, tag=True):
    """The VM will not come; answered by ``OrderDone``, with its report if it has come after all."""

    epoch: int
    cause: str
    vm_id: str
    ticket: MigrationTicket | None = None


class TakeInventory(msgspec.Struct, frozen=True, tag=True):
    """Say what is there; answered by ``Inventory``.

    ``vm_id``: after the orders on this VM that came before, so that what they did is seen.
    """

    epoch: int
    cause: str
    vm_id: str = ""


class MoveToManager(msgspec.Struct, frozen=True, tag=True):
    """Leave this manager for another; answered by ``OrderDone`` before the link is closed."""

    epoch: int
    cause: str
    assignment: Assignment


HostOrder = (
    StartVm
    | CommandVm
    | ResizeVm
    | OfferVm
    | PrepareIncoming
    | MigrateOut
    | FinishIncoming
    | AbortIncoming
    | TakeInventory
    | MoveToManager
)


class OrderDone(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """An order was carried out; ``report`` is the VM as it is now, if it still exists."""

    report: VmReport | None = None


class OfferIssued(msgspec.Struct, frozen=True, tag=True):
    """What would move; ``offer`` is for the destination's driver and opaque to managers."""

    report: VmReport
    offer: bytes


class TicketIssued(msgspec.Struct, frozen=True, tag=True):
    """The destination is ready."""

    ticket: MigrationTicket


class Inventory(msgspec.Struct, frozen=True, tag=True):
    """Every domain of a host."""

    vms: list[VmReport]


HostAnswer = OrderDone | OfferIssued | TicketIssued | Inventory

# ---------------------------------------------------------------- host to manager, unasked


class VmChanged(msgspec.Struct, frozen=True, tag=True):
    """A domain changed by itself; ``gone``: it is no longer defined.

    Gone while ``MIGRATING``: it left for another host.
    """

    report: VmReport
    gone: bool = False


class HostSamples(msgspec.Struct, frozen=True, tag=True):
    """One monitoring interval: what each VM and the host itself used.

    ``used`` is packed ``float64[V, R]`` in the order of ``vm_ids``.
    """

    taken_ms: int
    vm_ids: list[str]
    used: bytes
    host_used: Capacity

    @classmethod
    def of(cls, taken_ms: int, usages: list[VmUsage], host_used: Capacity) -> "HostSamples":
        """Pack ``usages``."""
        rows = np.array([usage.used.as_tuple() for usage in usages], dtype="<f8")
        return cls(taken_ms, [usage.vm_id for usage in usages], rows.tobytes(), host_used)

    def rows(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """The samples as ``float64[V, R]``.

        Raises:
            ValueError: if the bytes do not fit the number of VMs, or hold what is no number.
        """
        array = np.frombuffer(self.used, dtype="<f8").reshape(len(self.vm_ids), 4)
        if not np.isfinite(array).all():
            raise ValueError("a sample holds a value that is not a finite number")
        return array


class MigrationMoved(msgspec.Struct, frozen=True, tag=True):
    """A migration went on."""

    cause: str
    progress: MigrationProgress


class ImagesChanged(msgspec.Struct, frozen=True, tag=True):
    """The host's images are these now."""

    images: tuple[ImageView, ...]


HostNotice = VmChanged | HostSamples | MigrationMoved | ImagesChanged

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
    """What became of one VM of a ``PlaceVms``: a host, or why not."""

    vm_id: str
    host_id: str = ""
    reason: str = ""


class PlacementAnswer(msgspec.Struct, frozen=True, tag=True):
    """Where each VM goes, in the order asked."""

    vms: list[PlacedVm]


class VmOrder(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A client's command on a VM of this manager; answered by ``VmOrderDone`` when done.

    ``demand`` for a resize; ``destination`` (a host's id) for a migration.
    """

    epoch: int
    cause: str
    vm_id: str
    command: VmCommand
    demand: Capacity | None = None
    destination: str = ""


class VmOrderDone(msgspec.Struct, frozen=True, tag=True):
    """The command was carried out; the VM as it is now."""

    status: "VmStatus"


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


LeaderOrder = PlaceVms | VmOrder | RelayedOrder | ReleaseHost | ForgetHost | DescribeHosts


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


ManagerAnswer = PlacementAnswer | VmOrderDone | RelayedAnswer | Accepted | HostDetails

# ---------------------------------------------------------------- manager to leader


class VmStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """A VM as the leader needs to know it."""

    vm_id: str
    name: str
    state: VmState
    demand: Capacity
    host_id: str
    generation: int = 1
    managed: bool = True
    ip_address: str = ""
    mac_address: str = ""
    image: str = ""
    reason: str = ""
    cause: str = ""
    error_code: str = ""


class VmsChanged(msgspec.Struct, frozen=True, tag=True):
    """These VMs changed."""

    vms: list[VmStatus]


class HostJoined(msgspec.Struct, frozen=True, tag=True):
    """A host joined this manager."""

    state: HostState


class HostGone(msgspec.Struct, frozen=True, tag=True):
    """A host's link is closed; ``left``: it was told to go."""

    host_id: str
    epoch: int
    reason: str
    left: bool = False


class ManagerSummary(msgspec.Struct, frozen=True, tag=True):
    """What a manager has and what is free, as a histogram of hosts.

    ``room``: packed ``float64[K, R]``, the least free capacity of the hosts of each bucket;
    ``count``: how many hosts each bucket has.
    """

    taken_ms: int
    capacity: Capacity
    reserved: Capacity
    used: Capacity
    room: bytes
    count: list[int]
    hosts: int
    vms: int


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


ManagerNotice = (
    HostImages | VmsChanged | HostJoined | HostGone | ManagerSummary | Happened | VmMigrationMoved
)


class RelayToHost(msgspec.Struct, frozen=True, tag=True):
    """A manager asks the leader to have a host of another manager carry out a step."""

    cause: str
    host_id: str
    order: HostOrder


ManagerRequest = RelayToHost

"""What a group manager and a host tell each other."""

import msgspec

from snooze.common.api import ImageView
from snooze.common.resources import Capacity
from snooze.common.usage import HostSamples
from snooze.common.vm_lifecycle import VmCommand
from snooze.common.vms import LooseDisk, MigrationProgress, MigrationTicket, VmReport, VmSpec
from snooze.common.wire.basics import RenewLease
from snooze.common.wire.joining import Assignment

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


class DiscardVm(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Switch off and undefine a stale copy: the domain of this VM with at most this generation.

    Its disks stay: the living copy may use them. Answered by ``OrderDone``; a domain with a higher
    generation, or none, or with ``only_off`` one that is on, is left alone, and the answer has its
    report if there is one.
    """

    epoch: int
    cause: str
    vm_id: str
    generation: int
    only_off: bool = False


class PowerDown(msgspec.Struct, frozen=True, tag=True):
    """Go down by ``action``; refused while any VM is active here.

    Answered by ``OrderDone`` before it happens; then the link closes.
    """

    epoch: int
    cause: str
    action: str


class DropDisk(msgspec.Struct, frozen=True, tag=True):
    """Remove a disk that was reported loose, if it is still so and ``idle_s`` old.

    Answered by ``OrderDone``; refused if anything about it has changed.
    """

    epoch: int
    cause: str
    disk: LooseDisk
    idle_s: float


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
    | DiscardVm
    | DropDisk
    | PowerDown
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


class MigrationMoved(msgspec.Struct, frozen=True, tag=True):
    """A migration went on."""

    cause: str
    progress: MigrationProgress


class ImagesChanged(msgspec.Struct, frozen=True, tag=True):
    """The host's images are these now."""

    images: tuple[ImageView, ...]


class DisksSeen(msgspec.Struct, frozen=True, tag=True):
    """The disks that are loose on the host; told again and again while there are any."""

    disks: tuple[LooseDisk, ...]


HostNotice = VmChanged | HostSamples | MigrationMoved | ImagesChanged | DisksSeen

HostRequest = RenewLease
"""What a host asks of its manager."""

"""What a local controller asks of a hypervisor: one port, two drivers.

``LibvirtHypervisor`` (``libvirt_driver``) speaks to libvirt; ``SimulatedHypervisor``
(``simulated``) is the shipped fake, with latencies and failures to order. One contract suite
(tests/contract/hypervisor) holds both to what is promised here.

Rules that every driver keeps:

1. Each order is idempotent: given twice, the second finds it done and says so by succeeding.
2. A domain's identity is its libvirt UUID, which is ``vm_id``; it is *managed* if its metadata
   carries our element (``METADATA_NAMESPACE``). Unmanaged domains are reported, never touched:
   an order on one is a ``Conflict``.
3. Errors are those of ``common.errors``: ``NotFound`` (no such VM here), ``Conflict`` (the VM's
   state or another VM forbids it), ``InvalidRequest`` (the template can not run here; every
   problem is named), ``ExecutionError`` (the hypervisor refused or failed; nothing is left unless
   the message says so), ``RemoteError`` (no connection; nothing was asked), ``RemoteTimeout``
   (asked, and no answer: it may have happened).
4. Callbacks are called on the event loop's thread, in the order in which things happened, and must
   not block.

A live migration takes five steps, each idempotent, so that it also works between drivers that do
not reach each other (libvirt's test driver) and after a crash of either agent::

    source.offer(vm_id, options)          -> MigrationOffer    what would move; nothing changes
    destination.prepare_incoming(offer)   -> MigrationTicket   room is made (definition, images)
    source.migrate_out(vm_id, ticket, options, on_progress)    the guest moves and leaves
    destination.finish_incoming(vm_id, ticket) -> VmReport     it is proven to run here
    destination.abort_incoming(vm_id, ticket)                  ... or the room is given back

``destination.arrival(vm_id)`` then tells the downtime that the guest really had.

If ``migrate_out`` raises ``ExecutionError`` the guest still runs at the source. If it raises
``RemoteTimeout`` or ``RemoteError`` nobody knows: ask both sides' ``inventory()``.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from snooze.common.resources import Capacity
from snooze.common.usage import HostUsage
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import (
    LooseDisk,
    MigrationProgress,
    MigrationTicket,
    SlowMigration,
    VmPolicy,
    VmReport,
    VmSpec,
)

METADATA_NAMESPACE: Final = "https://snooze/xmlns/vm/1"
"""Namespace of our element in a domain's ``<metadata>``."""


class Feature(StrEnum):
    """What a driver can do, where drivers differ; the contract suite asks for each."""

    LIVE_MIGRATION = "live migration"
    """The running guest moves; without it its definition moves and the guest starts anew."""
    MEASURED_USAGE = "measured usage"
    """``usage()`` measures; without it a plain model says what a VM of that size would use."""
    REAL_DISKS = "real disks"
    """Disk images have to exist and are opened."""
    SHARED_STATE = "shared state"
    """Domains live in the hypervisor, not in this connection: a new driver object finds them."""


class GuestSupport(msgspec.Struct, frozen=True):
    """One kind of guest that runs here.

    Attributes:
        arch: ``x86_64`` and its like.
        os_type: ``hvm``, ``xen``, ...
        domain_types: ``kvm``, ``qemu``, ``test``, best first.
        emulator: path of the default emulator, or empty.
        machines: names that ``<type machine=...>`` may have; the first is the default.
    """

    arch: str
    os_type: str = "hvm"
    domain_types: tuple[str, ...] = ()
    emulator: str = ""
    machines: tuple[str, ...] = ()


class HypervisorDescription(msgspec.Struct, frozen=True):
    """What the hypervisor is.

    Attributes:
        kind: ``qemu``, ``test``, ``simulated`` or what libvirt calls its driver.
        version: of the hypervisor, for people.
        uri: by which this driver reaches it.
        host_uuid: of the machine, as the hypervisor says; the same after a restart.
        guests: the native architecture first.
    """

    kind: str
    version: str
    uri: str
    hostname: str
    host_uuid: str = ""
    guests: tuple[GuestSupport, ...] = ()
    features: frozenset[Feature] = frozenset()

    @property
    def live_migration(self) -> bool:
        """Whether running guests move, or only their definitions."""
        return Feature.LIVE_MIGRATION in self.features


class ChangeKind(StrEnum):
    """What happened to a domain."""

    STARTED = "started"
    PAUSED = "paused"
    RESUMED = "resumed"
    STOPPED = "stopped"
    CRASHED = "crashed"
    MIGRATED_AWAY = "migrated away"
    GONE = "gone"


class VmChange(msgspec.Struct, frozen=True):
    """Something that happened to a domain, by order or by itself.

    ``state`` is the VM's state on this host after it (``DESTROYED``: it is not here any more);
    ``reason`` is the hypervisor's word.
    """

    vm_id: str
    name: str
    kind: ChangeKind
    state: VmState
    managed: bool = True
    reason: str = ""


class ConnectionChange(msgspec.Struct, frozen=True):
    """The connection to the hypervisor was lost, or is back.

    After ``connected`` the caller takes a new ``inventory()``: changes in between were not heard.
    """

    connected: bool
    reason: str = ""


class MigrationMethod(StrEnum):
    """How a guest travels. Source: Snooze's ``hypervisor.migration.method``; ``auto`` is ours."""

    AUTO = "auto"
    """Storage is copied if, and only if, the destination is proven not to share it."""
    LIVE = "live"
    """The storage is shared and libvirt agrees that it is safe."""
    NO_SHARED_FULL = "nosharedfull"
    """Copy each disk in full."""
    NO_SHARED_INCREMENTAL = "nosharedincremental"
    """Copy what lies above a backing image that both hosts have."""
    FORCE_UNSAFE = "forceunsafe"
    """The storage is shared, whatever libvirt thinks of it."""


class MigrationOptions(msgspec.Struct, frozen=True):
    """How to migrate.

    Attributes:
        timeout_s: after this the migration is aborted and the guest stays where it is.
        bandwidth_mib_s: limit of the stream, 0 for none.
        max_downtime_ms: the longest pause at the end, 0 for the hypervisor's default.
        auto_converge: whether ``SlowMigration.CONVERGE`` may slow the guest down.
        slow: what is done once ``slow_after`` of ``timeout_s`` is over and it still has not ended.
        slow_after: a fraction of ``timeout_s``.
        pause_ms: the longest pause that ``SlowMigration.PAUSE`` then allows.
        progress_period_s: time between two calls of ``on_progress``.
    """

    method: MigrationMethod = MigrationMethod.AUTO
    timeout_s: float = 60.0
    bandwidth_mib_s: int = 0
    max_downtime_ms: int = 0
    auto_converge: bool = True
    slow: SlowMigration = SlowMigration.CONVERGE
    slow_after: float = 0.5
    pause_ms: int = 5000
    progress_period_s: float = 0.2

    def for_vm(self, policy: VmPolicy) -> "MigrationOptions":
        """As the host's settings and the VM's own policy say together."""
        slow, wanted_ms = policy.slow_migration, policy.max_downtime_ms
        if slow is SlowMigration.PAUSE:
            return msgspec.structs.replace(self, slow=slow, pause_ms=wanted_ms or self.pause_ms)
        downtime_ms = wanted_ms or self.max_downtime_ms
        return msgspec.structs.replace(self, slow=slow, max_downtime_ms=downtime_ms)


class DiskOffer(msgspec.Struct, frozen=True):
    """One writable disk of a VM that is about to move.

    Attributes:
        path: of the file at the source; it will have the same path at the destination.
        format: ``qcow2``, ``raw``, ...
        virtual_size_bytes: as the guest sees it.
        backing_path, backing_format: of its copy-on-write master, or empty.
        proof: name of a file beside it; who sees that file shares the storage.
    """

    path: str
    format: str
    virtual_size_bytes: int
    backing_path: str = ""
    backing_format: str = ""
    proof: str = ""


class MigrationOffer(msgspec.Struct, frozen=True):
    """All a destination has to know to make room for a VM.

    Attributes:
        report: the VM as it is at the source; ``report.xml`` is its full definition.
        token: names this attempt.
        source_uuid: ``host_uuid`` of the source: a destination refuses its own.
    """

    report: VmReport
    token: str
    method: MigrationMethod = MigrationMethod.AUTO
    source_uuid: str = ""
    disks: tuple[DiskOffer, ...] = ()


ChangeCallback = Callable[[VmChange], None]
ConnectionCallback = Callable[[ConnectionChange], None]
ProgressCallback = Callable[[MigrationProgress], None]


class Hypervisor(Protocol):
    """One host's hypervisor. All methods are safe to call at the same time."""

    async def open(self) -> None:
        """Connect and start to listen; from then on the driver reconnects by itself.

        Raises:
            RemoteError: if the first connection fails; the driver stays closed.
        """
        ...

    async def close(self) -> None:
        """Let go of the connection and all threads; VMs keep running. Never raises."""
        ...

    async def describe(self) -> HypervisorDescription:
        """What this hypervisor is and which guests run here."""
        ...

    async def capacity(self) -> Capacity:
        """Cores and memory of the machine; network is 0, libvirt does not know it."""
        ...

    async def inventory(self) -> list[VmReport]:
        """Every domain of the host, managed or not, except those still arriving."""
        ...

    async def start(self, spec: VmSpec) -> VmReport:
        """Define the VM and start it.

        Already running with this generation: its report. Defined by an earlier try that died: it
        is completed. On failure nothing is left, unless the message says so.

        Raises:
            InvalidRequest: its template can not run here, or is not allowed to.
            Conflict: the name belongs to another domain, or this VM is here with another
                generation that is running, or with a higher one.
        """
        ...

    async def start_again(self, vm_id: str) -> VmReport:
        """Start a VM that is defined and off."""
        ...

    async def suspend(self, vm_id: str) -> VmReport:
        """Stop its processors; its memory stays."""
        ...

    async def resume(self, vm_id: str) -> VmReport:
        """Let its processors run again."""
        ...

    async def shutdown(self, vm_id: str) -> VmReport:
        """Press its power button; whether the guest obeys, ``on_change`` will tell."""
        ...

    async def reboot(self, vm_id: str) -> VmReport:
        """Restart the guest: by its power button, or by a reset where it has none."""
        ...

    async def destroy(self, vm_id: str) -> None:
        """Switch it off, undefine it and remove the disks made for it. Unknown: already done."""
        ...

    async def power_off(self, vm_id: str) -> VmReport:
        """Switch it off at once; it stays defined, its disks stay. Off: already done."""
        ...

    async def discard(
        self, vm_id: str, generation: int, *, only_off: bool = False
    ) -> VmReport | None:
        """Switch off and undefine a stale copy; its disks stay: the living VM may use them.

        Args:
            generation: the highest that is stale.
            only_off: leave a guest alone that is on.

        Returns:
            What is left here: a domain with a higher generation, or with ``only_off`` one that is
            on; None if there is none (any more).

        Raises:
            Conflict: it is not managed, or is arriving by a migration.
        """
        ...

    async def resize(self, vm_id: str, demand: Capacity) -> VmReport:
        """Give it so many whole vCPUs and so much memory, live and for its next start.

        What it may use of the network is noted with it.

        Raises:
            InvalidRequest: more than the maximum with which it was started.
        """
        ...

    async def offer(self, vm_id: str, options: MigrationOptions) -> MigrationOffer:
        """What would move. Source side, step 1."""
        ...

    async def prepare_incoming(self, offer: MigrationOffer) -> MigrationTicket:
        """Make room. Destination side, step 2.

        Raises:
            Conflict: the VM or its name is already here, or a file is where its disk would go.
            InvalidRequest: it can not run here (type, bridge, missing backing image).
        """
        ...

    async def migrate_out(
        self,
        vm_id: str,
        ticket: MigrationTicket,
        options: MigrationOptions,
        on_progress: ProgressCallback,
    ) -> None:
        """Move the guest. Source side, step 3. Returns when it has left; a repeat then succeeds.

        Cancelling the call aborts the migration and waits until the guest is known to have stayed.
        """
        ...

    async def finish_incoming(self, vm_id: str, ticket: MigrationTicket) -> VmReport:
        """Make sure that it runs here for good. Destination side, step 4.

        Raises:
            ExecutionError: it did not arrive.
        """
        ...

    async def abort_incoming(self, vm_id: str, ticket: MigrationTicket) -> None:
        """Give the room back. Destination side. Never touches a guest that has arrived."""
        ...

    async def arrival(self, vm_id: str) -> MigrationProgress | None:
        """How the migration went by which this VM came: its real downtime is known only here.

        None if the driver does not say.
        """
        ...

    async def loose_disks(self) -> list[LooseDisk]:
        """The disks that we made for VMs of which no domain is here, defined or on.

        One on which no guest was ever started is removed by the way: a start of here died. Those of
        domains that are here are noted as this host's.
        """
        ...

    async def drop_disk(self, disk: LooseDisk, idle_s: float) -> None:
        """Remove a loose disk that is still as it was reported; already gone is fine.

        Args:
            idle_s: it has to have been left alone for so long.

        Raises:
            Conflict: its VM is here, or it changed, or was written of late; it stays.
            ExecutionError: a guest has it open, somewhere, or it cannot be removed; it stays.
        """
        ...

    async def usage(self) -> HostUsage:
        """What the host and each running VM used since the call before.

        One bulk call of the hypervisor. The first call has no rates, nor has the first one that
        sees a new run of a VM. A VM that is still arriving is left out.
        """
        ...

    def on_change(self, callback: ChangeCallback) -> None:
        """Call ``callback`` for every change of a domain. Register before ``open``."""
        ...

    def on_connection(self, callback: ConnectionCallback) -> None:
        """Call ``callback`` when the connection is lost or back. Register before ``open``."""
        ...

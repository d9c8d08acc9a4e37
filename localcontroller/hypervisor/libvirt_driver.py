"""The port on libvirt: ``qemu:///system`` and its remote forms, and libvirt's test driver.

This class only orders: each call is one piece of blocking work (``libvirt_domains``,
``libvirt_migration``, ``libvirt_usage``) in a bounded thread (``libvirt_connection``). Orders on
one VM wait for each other. An order that timed out may still be running in its thread: until it
has returned, further orders on that VM are refused, not run beside it, and a VM that it starts is
among the inventory, though it may have no domain yet.
"""

import asyncio
import contextlib
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Final, TypeVar

import libvirt
import msgspec

from snooze.common.clock import SYSTEM_CLOCK, Clock
from snooze.common.errors import ExecutionError, RemoteError, RemoteTimeout, SnoozeError, TooBusy
from snooze.common.resources import Capacity
from snooze.common.usage import HostUsage
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import (
    LooseDisk,
    MigrationProgress,
    MigrationTicket,
    SlowMigration,
    VmReport,
    VmSpec,
    being_started,
)
from snooze.localcontroller.hypervisor import (
    libvirt_disks,
    libvirt_domains,
    libvirt_events,
    libvirt_migration,
    libvirt_usage,
)
from snooze.localcontroller.hypervisor.libvirt_connection import LibvirtConnection
from snooze.localcontroller.hypervisor.libvirt_domains import Workshop
from snooze.localcontroller.hypervisor.libvirt_options import LibvirtOptions
from snooze.localcontroller.hypervisor.libvirt_runtime import WorkerPool
from snooze.localcontroller.hypervisor.libvirt_uri import is_local
from snooze.localcontroller.hypervisor.machine_usage import MachineMeter
from snooze.localcontroller.hypervisor.port import (
    ChangeCallback,
    ChangeKind,
    ConnectionCallback,
    ConnectionChange,
    Feature,
    HypervisorDescription,
    MigrationOffer,
    MigrationOptions,
    ProgressCallback,
    VmChange,
)
from snooze.localcontroller.images import Image, ImageStore

log = logging.getLogger(__name__)

T = TypeVar("T")

ABORT_S: Final = 30.0
"""How long an aborted migration may take to come to its end."""
IMAGES_S: Final = 5.0
"""How long a list of images is waited for: their storage may be a server that does not answer."""
CUT_AFTER_S: Final = 5.0
"""Then its connections are cut: the destination may have died owing an answer."""
_ON: Final = libvirt_domains.ACTIVE_STATES | {VmState.STARTING}


class LibvirtHypervisor:
    """A ``Hypervisor`` on libvirt.

    Args:
        thread_initializer: run first in every thread that calls libvirt or touches images.
    """

    def __init__(
        self,
        options: LibvirtOptions,
        clock: Clock = SYSTEM_CLOCK,
        thread_initializer: Callable[[], None] | None = None,
    ) -> None:
        self.options = options
        self.images = ImageStore(options.images, clock)
        self._clock = clock
        self._initializer = thread_initializer
        self._lister = self._new_lister()
        self._listed: list[Image] = []
        self._connection = LibvirtConnection(
            options, self._hear_lifecycle, self._hear_connection, thread_initializer
        )
        self._workshop: Workshop | None = None
        self._managed: set[str] = set()
        self._migrating: set[str] = set()
        self._leaving: set[str] = set()
        self._arriving: set[str] = set()
        self._busy: set[str] = set()
        self._starting: dict[str, VmReport] = {}
        self._busy_lock = threading.Lock()
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._usage_lock = asyncio.Lock()
        self._meter = libvirt_usage.UsageMeter(clock)
        self._machine = MachineMeter(clock, is_local=is_local(options.uri))
        self._change_callbacks: list[ChangeCallback] = []
        self._connection_callbacks: list[ConnectionCallback] = []

    def on_change(self, callback: ChangeCallback) -> None:
        """See the port."""
        self._change_callbacks.append(callback)

    def on_connection(self, callback: ConnectionCallback) -> None:
        """See the port."""
        self._connection_callbacks.append(callback)

    async def open(self) -> None:
        """See the port."""
        await self._connection.open()
        self._lister = self._new_lister()
        try:
            await self._make_workshop()
            await self.inventory()
        except BaseException:
            await self._connection.close()
            raise

    async def close(self) -> None:
        """See the port."""
        self._lister.close()
        await self._connection.close()

    def _new_lister(self) -> WorkerPool:
        return WorkerPool("images", 1, 4, self._initializer)

    async def list_images(self) -> list[Image]:
        """The masters of this host; those found last while their storage does not answer.

        Raises:
            OSError, SnoozeError: they cannot be listed.
        """
        if not self._lister.is_exhausted:
            try:
                self._listed = await self._lister.run(
                    "list images", self.images.list_images, IMAGES_S
                )
            except (RemoteTimeout, TooBusy) as error:
                log.warning("images were not listed in time", extra={"reason": error.message})
        return self._listed

    async def describe(self) -> HypervisorDescription:
        """See the port."""
        return (await self._make_workshop()).description

    async def capacity(self) -> Capacity:
        """See the port."""
        return await self._connection.call("learn the capacity", libvirt_domains.capacity)

    async def inventory(self) -> list[VmReport]:
        """See the port."""
        starting = dict(self._starting)  # before the domains: what ends meanwhile is among them
        reports = await self._connection.call("list domains", libvirt_domains.inventory)
        self._managed |= {report.vm_id for report in reports if report.managed}
        on = [r for r in reports if r.vm_id not in starting or r.state in _ON]
        present = {report.vm_id for report in on}
        on += [report for vm_id, report in starting.items() if vm_id not in present]
        return [self._as_migrating(report) for report in on]

    async def start(self, spec: VmSpec) -> VmReport:
        """See the port."""
        workshop = await self._make_workshop()
        self._managed.add(spec.vm_id)
        report = await self._order(
            spec.vm_id,
            f"start VM {spec.name!r}",
            lambda connection: self._start(connection, workshop, spec),
            self.options.start_timeout_s,
        )
        self._managed.add(spec.vm_id)
        return report

    def _start(self, connection: libvirt.virConnect, workshop: Workshop, spec: VmSpec) -> VmReport:
        """In a worker: a disk that is copied for long outlives the caller's patience."""
        self._starting[spec.vm_id] = being_started(spec)
        try:
            return libvirt_domains.start(connection, workshop, spec)
        except libvirt.libvirtError as error:
            if libvirt_domains.is_off(connection, spec.vm_id):
                raise
            raise RemoteTimeout(f"VM {spec.name!r} may be on: {error}") from error
        finally:
            del self._starting[spec.vm_id]

    async def start_again(self, vm_id: str) -> VmReport:
        """See the port."""
        workshop = await self._make_workshop()
        return await self._order(
            vm_id,
            f"start VM {vm_id}",
            lambda connection: libvirt_domains.start_again(connection, workshop, vm_id),
            self.options.start_timeout_s,
        )

    async def suspend(self, vm_id: str) -> VmReport:
        """See the port."""
        return await self._order(
            vm_id, f"suspend VM {vm_id}", lambda c: libvirt_domains.suspend(c, vm_id)
        )

    async def resume(self, vm_id: str) -> VmReport:
        """See the port."""
        return await self._order(
            vm_id, f"resume VM {vm_id}", lambda c: libvirt_domains.resume(c, vm_id)
        )

    async def shutdown(self, vm_id: str) -> VmReport:
        """See the port."""
        return await self._order(
            vm_id, f"shut VM {vm_id} down", lambda c: libvirt_domains.shutdown(c, vm_id)
        )

    async def reboot(self, vm_id: str) -> VmReport:
        """See the port."""
        return await self._order(
            vm_id, f"reboot VM {vm_id}", lambda c: libvirt_domains.reboot(c, vm_id)
        )

    async def destroy(self, vm_id: str) -> None:
        """See the port."""
        workshop = await self._make_workshop()
        await self._order(
            vm_id,
            f"destroy VM {vm_id}",
            lambda connection: libvirt_domains.destroy(connection, workshop, vm_id),
            self.options.start_timeout_s,
        )

    async def power_off(self, vm_id: str) -> VmReport:
        """See the port."""
        return await self._order(
            vm_id, f"switch VM {vm_id} off", lambda c: libvirt_domains.power_off(c, vm_id)
        )

    async def discard(
        self, vm_id: str, generation: int, *, only_off: bool = False
    ) -> VmReport | None:
        """See the port."""
        return await self._order(
            vm_id,
            f"discard a stale copy of VM {vm_id}",
            lambda c: libvirt_domains.discard(c, vm_id, generation, only_off=only_off),
        )

    async def resize(self, vm_id: str, demand: Capacity) -> VmReport:
        """See the port."""
        return await self._order(
            vm_id,
            f"resize VM {vm_id}",
            lambda connection: libvirt_domains.resize(connection, vm_id, demand),
        )

    async def offer(self, vm_id: str, options: MigrationOptions) -> MigrationOffer:
        """See the port."""
        workshop = await self._make_workshop()
        return await self._order(
            vm_id,
            f"offer VM {vm_id}",
            lambda connection: libvirt_migration.offer(connection, workshop, vm_id, options),
        )

    async def prepare_incoming(self, offer: MigrationOffer) -> MigrationTicket:
        """See the port."""
        workshop = await self._make_workshop()
        vm_id = offer.report.vm_id
        ticket = await self._order(
            vm_id,
            f"make room for VM {offer.report.name!r}",
            lambda connection: libvirt_migration.prepare_incoming(connection, workshop, offer),
            self.options.start_timeout_s,
        )
        self._managed.add(vm_id)
        self._arriving.add(vm_id)
        return ticket

    async def migrate_out(
        self,
        vm_id: str,
        ticket: MigrationTicket,
        options: MigrationOptions,
        on_progress: ProgressCallback,
    ) -> None:
        """See the port."""
        workshop = await self._make_workshop()
        began_s = self._clock.monotonic_s()
        migration = asyncio.ensure_future(
            self._order(
                vm_id,
                f"migrate VM {vm_id}",
                lambda connection: libvirt_migration.migrate_out(
                    connection, workshop, vm_id, ticket, options
                ),
                options.timeout_s + 2 * ABORT_S,
                migrating=True,
            )
        )
        self._migrating.add(vm_id)
        self._leaving.add(vm_id)
        try:
            last = await self._follow(migration, vm_id, options, on_progress)
        except BaseException:
            self._leaving.discard(vm_id)
            raise
        finally:
            self._migrating.discard(vm_id)
        on_progress(
            MigrationProgress(
                vm_id,
                elapsed_ms=round((self._clock.monotonic_s() - began_s) * 1000),
                total_bytes=last.total_bytes,
                processed_bytes=last.total_bytes,
                dirty_kib_s=last.dirty_kib_s,
                downtime_ms=last.downtime_ms,
                iteration=last.iteration,
                note=last.note if ticket.live else libvirt_migration.COPY_NOTE,
            )
        )

    async def finish_incoming(self, vm_id: str, ticket: MigrationTicket) -> VmReport:
        """See the port."""
        workshop = await self._make_workshop()
        report = await self._order(
            vm_id,
            f"receive VM {vm_id}",
            lambda connection: libvirt_migration.finish_incoming(
                connection, workshop, vm_id, ticket
            ),
            self.options.start_timeout_s,
        )
        self._arriving.discard(vm_id)
        self._managed.add(vm_id)
        return report

    async def abort_incoming(self, vm_id: str, ticket: MigrationTicket) -> None:
        """See the port."""
        workshop = await self._make_workshop()
        await self._order(
            vm_id,
            f"give the room for VM {vm_id} back",
            lambda connection: libvirt_migration.abort_incoming(
                connection, workshop, vm_id, ticket
            ),
        )
        if ticket.live:  # else its definition is gone, and the event of that is on its way
            self._arriving.discard(vm_id)

    async def arrival(self, vm_id: str) -> MigrationProgress | None:
        """See the port."""
        return await self._connection.call(
            f"ask how VM {vm_id} came", lambda c: libvirt_migration.arrival(c, vm_id)
        )

    async def loose_disks(self) -> list[LooseDisk]:
        """See the port."""
        workshop = await self._make_workshop()
        found = await self._connection.call(
            "look at disks", lambda c: libvirt_disks.loose_disks(c, workshop)
        )
        unborn = [disk for disk in found if self.images.notes.is_unborn(disk)]
        for disk in unborn:
            with contextlib.suppress(SnoozeError):  # it is reported, and looked at again
                await self.drop_disk(disk, 0.0)
                found.remove(disk)
        return found

    async def drop_disk(self, disk: LooseDisk, idle_s: float) -> None:
        """See the port."""
        workshop = await self._make_workshop()
        await self._order(
            disk.vm_id,
            f"remove the disk of VM {disk.vm_id}",
            lambda connection: libvirt_disks.drop_disk(connection, workshop, disk, idle_s),
            self.options.start_timeout_s,
        )

    async def usage(self) -> HostUsage:
        """See the port."""
        description = await self.describe()
        async with self._usage_lock:
            if Feature.MEASURED_USAGE in description.features:
                arriving = frozenset(self._arriving)
                return await self._connection.call(
                    "measure VMs", lambda c: self._measure(c, arriving)
                )
            share, taken_ms = self.options.modelled_cpu_share, self._clock.wall_ms()
            return HostUsage(
                await self._connection.call(
                    "model VMs", lambda c: libvirt_usage.modelled(c, share, taken_ms)
                )
            )

    def _measure(self, connection: libvirt.virConnect, arriving: frozenset[str]) -> HostUsage:
        """In a worker; refused while an earlier one that timed out still runs."""
        return self._alone(
            "",
            "measure VMs",
            lambda: HostUsage(
                self._meter.measure(connection, arriving), self._machine.measure(connection)
            ),
        )

    async def _make_workshop(self) -> Workshop:
        """What this libvirt is; asked once, and again after a connection was lost."""
        if self._workshop is None:
            description = await self._connection.call(
                "describe", lambda c: libvirt_domains.describe(c, self.options.uri)
            )
            self._workshop = Workshop(self.options, description, self.images)
        return self._workshop

    async def _order(
        self,
        vm_id: str,
        what: str,
        work: Callable[[libvirt.virConnect], T],
        timeout_s: float | None = None,
        *,
        migrating: bool = False,
    ) -> T:
        """Run work on one VM, one at a time."""
        lock = self._locks.get(vm_id)
        if lock is None:
            lock = self._locks[vm_id] = asyncio.Lock()
        async with lock:
            return await self._connection.call(
                what,
                lambda connection: self._alone(vm_id, what, lambda: work(connection)),
                timeout_s,
                migrating=migrating,
            )

    def _alone(self, vm_id: str, what: str, work: Callable[[], T]) -> T:
        """In a worker: refuse to run beside an order that timed out and still runs.

        ``vm_id`` is empty for what is about all of them.
        """
        with self._busy_lock:
            if vm_id in self._busy:
                raise TooBusy(f"{what}: an earlier order is still under way", retry_after_s=1.0)
            self._busy.add(vm_id)
        try:
            return work()
        finally:
            with self._busy_lock:
                self._busy.discard(vm_id)

    async def _follow(
        self,
        migration: asyncio.Future[None],
        vm_id: str,
        options: MigrationOptions,
        on_progress: ProgressCallback,
    ) -> MigrationProgress:
        """Report progress until the migration ends, is cancelled, or takes too long."""
        last = MigrationProgress(vm_id)
        began_s = self._clock.monotonic_s()
        note: str | None = None
        # a guest that runs at the destination without all of its memory can not be called back
        is_committed = options.slow is SlowMigration.POSTCOPY
        try:
            while not migration.done():
                await asyncio.wait({migration}, timeout=options.progress_period_s)
                if migration.done():
                    break
                passed_s = self._clock.monotonic_s() - began_s
                if note is None and passed_s >= options.slow_after * options.timeout_s:
                    note = await self._hasten(vm_id, options)
                if passed_s >= options.timeout_s and not (note and is_committed):
                    if not await self._abort(migration, vm_id, cut=True):
                        break
                    raise ExecutionError(
                        f"the migration of VM {vm_id} took longer than {options.timeout_s:g} s "
                        "and was aborted; it still runs here"
                    )
                seen = await self._progress(vm_id)
                if seen is not None:
                    last = msgspec.structs.replace(seen, note=note or seen.note)
                    on_progress(last)
            await migration
        except asyncio.CancelledError:
            await asyncio.shield(self._abort(migration, vm_id, cut=not (note and is_committed)))
            raise
        return last

    async def _hasten(self, vm_id: str, options: MigrationOptions) -> str:
        """Act on a slow migration, once; what was done, empty if nothing."""
        try:
            return await self._connection.call(
                "hasten a migration", lambda c: libvirt_migration.hasten(c, vm_id, options)
            )
        except SnoozeError as error:
            log.warning(
                "a slow migration could not be hastened",
                extra={"vm_id": vm_id, "policy": options.slow.value, "reason": error.message},
            )
            return ""

    async def _progress(self, vm_id: str) -> MigrationProgress | None:
        try:
            return await self._connection.call(
                "ask for progress", lambda c: libvirt_migration.progress(c, vm_id)
            )
        except SnoozeError as error:
            log.info("no progress to report", extra={"vm_id": vm_id, "reason": error.message})
            return None

    async def _abort(self, migration: asyncio.Future[None], vm_id: str, *, cut: bool) -> bool:
        """Stop a migration and wait until it has stopped; False if it was over already.

        ``cut``: its connections may be, if nothing else stops it.

        Raises:
            RemoteTimeout: if it can not be stopped, or the guest left nevertheless.
        """
        try:
            await self._connection.call("abort", lambda c: libvirt_migration.abort_job(c, vm_id))
        except RemoteError as error:
            log.warning("not aborted", extra={"vm_id": vm_id, "reason": error.message})
        await asyncio.wait({migration}, timeout=CUT_AFTER_S)
        if cut and not migration.done():
            await self._cut(vm_id)
        await asyncio.wait({migration}, timeout=ABORT_S - CUT_AFTER_S)
        if not migration.done():
            migration.cancel()
            raise RemoteTimeout(f"the migration of VM {vm_id} can not be stopped")
        failure = migration.exception()
        if failure is None:
            return False
        if not isinstance(failure, ExecutionError):
            raise failure
        return True

    async def _cut(self, vm_id: str) -> None:
        """Have qemu give up the connections of a migration that waits for somebody who is gone."""
        try:
            cut = await self._connection.call(
                "cut a migration", lambda c: libvirt_migration.cut_connections(c, vm_id)
            )
        except (SnoozeError, msgspec.MsgspecError) as error:
            log.warning("not cut", extra={"vm_id": vm_id, "reason": str(error)})
        else:
            log.warning("connections were cut", extra={"vm_id": vm_id, "connections": cut})

    def _as_migrating(self, report: VmReport) -> VmReport:
        """libvirt has no word for a guest that is leaving: it says running."""
        if report.vm_id not in self._migrating or report.state not in libvirt_domains.ACTIVE_STATES:
            return report
        return libvirt_domains.with_state(report, VmState.MIGRATING)

    def _hear_lifecycle(self, vm_id: str, name: str, event: int, detail: int) -> None:
        managed = vm_id in self._managed
        change = libvirt_events.as_change(vm_id, name, event, detail, managed=managed)
        if change is None:
            return
        if change.kind is ChangeKind.STARTED:
            self._arriving.discard(vm_id)
        elif vm_id in self._arriving:
            if change.kind is ChangeKind.GONE:
                self._arriving.discard(vm_id)
            return  # the end of a guest that had not arrived is no news
        if vm_id in self._leaving and change.kind is ChangeKind.STOPPED:
            gone = ChangeKind.MIGRATED_AWAY
            change = msgspec.structs.replace(change, kind=gone, state=VmState.DESTROYED)
        if change.kind is ChangeKind.GONE:
            self._managed.discard(vm_id)
            self._leaving.discard(vm_id)
        self._tell(change)

    def _tell(self, change: VmChange) -> None:
        for callback in self._change_callbacks:
            callback(change)

    def _hear_connection(self, change: ConnectionChange) -> None:
        self._workshop = None
        self._managed.clear()  # the inventory that follows fills it again
        for callback in self._connection_callbacks:
            callback(change)

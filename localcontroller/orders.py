"""Carrying out a manager's orders on the hypervisor, and telling what happens on it.

Rules:

1. One order at a time per VM; different VMs at the same time.
2. An order is carried out to its end even if the link it came by closes: its outcome then reaches
   the next manager as a change of the VM. One to discard or to move a VM that still waits for its
   turn then is refused: the next manager has been told that the VM is here.
3. What is told is what the hypervisor says. Of a VM whose start or move is under way the steps
   tell; one that arrives is told of when it is found here, if no step said so before.
4. A VM is told to be gone only if it is proven not to be here.
5. A host that goes down takes no VM in, and does not go down with one that is on.
"""

import asyncio
import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Final, assert_never

import msgspec

from snooze.common.errors import (
    Conflict,
    InvalidRequest,
    RemoteError,
    SnoozeError,
    StaleEpoch,
)
from snooze.common.logging_setup import caused_by
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.vms import (
    DEFAULT_POLICY,
    LooseDisk,
    MigrationProgress,
    MigrationTicket,
    VmPolicy,
    VmReport,
    without_long_xml,
)
from snooze.common.wire import (
    AbortIncoming,
    CommandVm,
    DiscardVm,
    DisksSeen,
    DropDisk,
    FinishIncoming,
    HostAnswer,
    HostNotice,
    HostOrder,
    Inventory,
    MigrateOut,
    MigrationMoved,
    MoveToManager,
    OfferIssued,
    OfferVm,
    OrderDone,
    PowerDown,
    PrepareIncoming,
    ResizeVm,
    StartVm,
    TakeInventory,
    TicketIssued,
    VmChanged,
)
from snooze.localcontroller.hypervisor.port import (
    ChangeKind,
    Hypervisor,
    MigrationOffer,
    MigrationOptions,
    VmChange,
)
from snooze.localcontroller.lease_port import Lease
from snooze.localcontroller.order_rules import brings_in, differs
from snooze.localcontroller.starts import Starts
from snooze.localcontroller.touched import Touched

logger = logging.getLogger(__name__)

Tell = Callable[[HostNotice], None]

MAX_LOOKS: Final = 5
LOOK_AGAIN_S: Final = 2.0
_QUIET = {ChangeKind.MIGRATED_AWAY}
"""Changes that the steps of a migration already tell."""

_OFF: Final = frozenset({VmState.STOPPED, VmState.FAILED, VmState.DESTROYED})


@dataclass(frozen=True, slots=True)
class _Arriving:
    """A VM that a migration may bring; ``ticket`` once the hypervisor is ready for it."""

    report: VmReport
    ticket: MigrationTicket | None = None


class Orders:
    """The hands of a local controller.

    ``tell`` passes a notice to the manager, if there is one. ``epoch`` is that of the present
    assignment: the outcome of an order with another one is told to the manager unasked.
    ``goes_down``: from ``prepare_to_go_down`` until ``stay_up``.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        migration: MigrationOptions,
        max_migrations: int,
        tell: Tell,
    ) -> None:
        self._hypervisor = hypervisor
        self._migration = migration
        self._migrating = asyncio.Semaphore(max_migrations)
        self._tell = tell
        self.lease: Lease | None = None
        self.epoch = 0
        self._known, self._unsure = dict[str, VmReport](), dict[str, VmReport]()
        self._introduced: tuple[int, dict[str, VmReport]] | None = None
        self._arriving: dict[str, _Arriving] = {}
        self._starts = Starts()
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting, self._moving = Counter[str](), Counter[str]()
        self._touched = Touched()
        self._refreshing = False
        self._loose: tuple[LooseDisk, ...] = ()
        self.goes_down = False
        self._tasks: set[asyncio.Task[object]] = set()

    # ------------------------------------------------------------ what is here

    def names(self) -> dict[str, str]:
        """Of the VMs that were here when we looked last, by id."""
        return {vm_id: report.name for vm_id, report in self._known.items()}

    @property
    def under_way(self) -> int:
        """Orders that are being carried out, or wait for one on the same VM."""
        return len(self._tasks)

    async def inventory(self) -> list[VmReport]:
        """All that is here (``listed``), to be told to a new manager, and taken down as told.

        What changes before the manager can be told is for the next ``reconcile`` to find.

        Raises:
            RemoteError: the hypervisor does not answer, or starts end faster than it answers.
        """
        reports = await self._look()
        self._known = {report.vm_id: report for report in reports}
        for vm_id in self._known:
            self._arriving.pop(vm_id, None)
            self._unsure.pop(vm_id, None)
        listed = reports + self._pending(self._known)
        self._introduced = (self.epoch, {report.vm_id: report for report in listed})
        return listed

    async def listed(self) -> list[VmReport]:
        """Every domain, and the VMs whose start is under way, for who only reads.

        What the manager was told stays as it is: a difference is for ``reconcile`` to tell.

        Raises:
            RemoteError: as ``inventory``.
        """
        reports = await self._look()
        return reports + self._pending({report.vm_id for report in reports})

    async def _look(self) -> list[VmReport]:
        """Every domain; none that is off, or not among them, was started while we looked."""
        for _ in range(MAX_LOOKS):
            with self._starts.ending() as ended:
                reports = await self._list()
            if ended <= {report.vm_id for report in reports if report.state not in _OFF}:
                return reports
        raise RemoteError("the hypervisor's inventory is overtaken by starts; try again")

    async def _list(self) -> list[VmReport]:
        noted = None if self.lease is None else self.lease.noted()
        return self._mark(await self._hypervisor.inventory(), noted)

    def _mark(self, reports: list[VmReport], noted: frozenset[str] | None = None) -> list[VmReport]:
        reports = self._starts.marked(reports)
        return reports if self.lease is None else self.lease.mark(reports, noted)

    async def _require_lease(self, policy: VmPolicy, epoch: int) -> None:
        """Refuse to let a highly available VM run here while nobody vouches for that.

        A lease that has just come may be of another assignment, whose leader has restarted the VM
        elsewhere while the order of the former one waited here (seed 6041).
        """
        if self.lease is not None and policy.is_highly_available:
            ordered_in = epoch or self.epoch  # none: a person's, on this host itself
            await self.lease.require()
            if ordered_in != self.epoch:
                raise StaleEpoch("this host was assigned anew while the order waited for a lease")

    def _pending(self, present: Collection[str]) -> list[VmReport]:
        pending = {**self._unsure, **self._starts.new}
        return [report for vm_id, report in pending.items() if vm_id not in present]

    @property
    def arriving(self) -> list[VmReport]:
        """The VMs that this host is ready to receive, as they are where they come from."""
        return [each.report for each in self._arriving.values()]

    @property
    def vm_ids(self) -> list[str]:
        """The domains known now."""
        return list(self._known)

    async def reconcile(self) -> None:
        """Tell of every difference between what the manager was told and what is there."""
        introduced = self._introduced
        if introduced is not None and introduced[0] == self.epoch:
            introduced = None  # the link by which it is heard does not stand yet
        before = dict(self._known) if introduced is None else introduced[1]
        with self._touched.during([*self._waiting, *self._moving]) as touched:
            reports = await self._look()
        after = {report.vm_id: report for report in reports}
        if introduced is self._introduced:
            self._introduced = None  # not that of a link which has come meanwhile
        # Of a VM that was touched, the manager knows what it was told; the next look compares.
        heard = before | self._known if introduced is None else self._known | before
        told = {vm_id: vm for vm_id, vm in heard.items() if vm_id in touched}
        seen = {vm_id: vm for vm_id, vm in after.items() if vm_id not in touched}
        self._known = {k: vm for k, vm in (seen | told).items() if k not in self._arriving}
        for vm_id, report in after.items():
            former = before.get(vm_id)
            if vm_id not in touched and (former is None or differs(former, report)):
                self._tell(VmChanged(report))
        for vm_id, former in before.items():
            if vm_id not in after and vm_id not in touched:
                self._tell(VmChanged(former, gone=True))
        for vm_id in self._unsure.keys() - touched:
            former = self._unsure.pop(vm_id)
            if vm_id not in after and vm_id not in before:
                self._tell(VmChanged(former, gone=True))

    async def reconcile_vm(self, vm_id: str, *, has_ended: bool = False) -> None:
        """Tell of one VM as it is now, whatever was told before.

        ``has_ended``: an event says so, which may be late, and of an earlier life of it here.
        """
        async with self._turn(vm_id):
            if has_ended and vm_id not in self._known:
                return
            for found in await self._list():
                if found.vm_id == vm_id:
                    # What ends while we look on was not interrupted, whatever the hypervisor says.
                    interrupted = found.interrupted and not has_ended
                    report = msgspec.structs.replace(found, interrupted=interrupted)
                    self._known[vm_id] = report
                    self._tell(VmChanged(report))
                    return
            gone = self._known.pop(vm_id, None) if has_ended else None
            if gone is not None:
                self._tell(VmChanged(gone, gone=True))

    # ------------------------------------------------------------ orders

    async def carry_out(self, order: HostOrder) -> HostAnswer:
        """Do what is ordered, to its end, even if the caller is cancelled meanwhile.

        Raises:
            SnoozeError: as the hypervisor port says; the order's outcome is told by the class.
        """
        with caused_by(order.cause):
            task: asyncio.Task[HostAnswer] = asyncio.ensure_future(self._do(order))
            task.add_done_callback(self._finished)
        self._tasks.add(task)
        return await asyncio.shield(task)

    def _finished(self, task: "asyncio.Task[HostAnswer]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), RemoteError):
            logger.warning("what came of an order is not known: %s", error.message)

    async def prepare_to_go_down(self) -> None:
        """Take no VM in from now on, until ``stay_up``.

        Raises:
            Conflict: a VM is on here, ours or not, or orders are under way; nothing changed.
            RemoteError: the hypervisor does not answer; nothing changed.
        """
        self.goes_down = True
        try:
            if self._tasks or self._starts.new or self._arriving:
                raise Conflict("this host has orders under way")
            on = [each.name for each in await self._look() if each.state not in _OFF]
            if on:
                raise Conflict(f"{len(on)} VMs are on here, {on[0]!r} is one")
        except BaseException:
            self.goes_down = False
            raise

    def stay_up(self) -> None:
        """Take VMs in again."""
        self.goes_down = False

    async def close(self, timeout_s: float) -> None:
        """Let orders under way end, for a bounded time; then let go of them."""
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=timeout_s)

    async def _do(self, order: HostOrder) -> HostAnswer:
        logger.debug("order", extra={"order": type(order).__name__})
        if self.goes_down and brings_in(order):
            raise Conflict("this host is going down")
        match order:
            case StartVm():
                return await self._start(order)
            case CommandVm():
                async with self._turn(order.vm_id):
                    return await self._command(order)
            case ResizeVm():
                async with self._turn(order.vm_id):
                    return await self._resize(order)
            case OfferVm():
                offer = await self._hypervisor.offer(order.vm_id, self._migration)
                return OfferIssued(offer.report, msgspec.msgpack.encode(offer))
            case PrepareIncoming():
                async with self._turn(order.report.vm_id):
                    return await self._prepare(order)
            case MigrateOut():
                return await self._migrate_out(order)
            case FinishIncoming():
                return await self._finish(order)
            case AbortIncoming():
                async with self._turn(order.vm_id):
                    return await self._abort(order)
            case TakeInventory():
                async with self._turn(order.vm_id):
                    return Inventory(without_long_xml(await self.listed()))
            case DiscardVm():
                async with self._turn(order.vm_id):
                    return await self._discard(order)
            case DropDisk():
                async with self._turn(order.disk.vm_id):
                    return await self._drop_disk(order)
            case MoveToManager() | PowerDown():
                raise InvalidRequest("a host moves by its agent, not by its hypervisor")
            case _:
                assert_never(order)

    @contextlib.asynccontextmanager
    async def _turn(self, vm_id: str) -> AsyncGenerator[None]:
        """One order at a time per VM."""
        self._touched.note(vm_id)
        lock = self._locks.setdefault(vm_id, asyncio.Lock())
        self._waiting[vm_id] += 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[vm_id] -= 1
            if not self._waiting[vm_id]:
                del self._waiting[vm_id]
                self._locks.pop(vm_id, None)

    async def _start(self, order: StartVm) -> HostAnswer:
        spec = order.spec
        with self._starts.noting(spec) as pending:
            try:
                async with self._turn(spec.vm_id):
                    await self._require_lease(spec.policy, order.epoch)
                    report = await self._hypervisor.start(spec)
            except RemoteError:
                self._unsure[spec.vm_id] = pending  # until the next look says what came of it
                raise
            except SnoozeError:
                if order.epoch != self.epoch:
                    self._tell(VmChanged(pending, gone=True))
                raise
        return self._note(report, order.epoch)

    async def _command(self, order: CommandVm) -> HostAnswer:
        hypervisor, vm_id = self._hypervisor, order.vm_id
        match order.command:
            case VmCommand.START:
                report = await self._start_again(order)
            case VmCommand.SUSPEND:
                report = await hypervisor.suspend(vm_id)
            case VmCommand.RESUME:
                await self._require_lease(self._policy_of(vm_id), order.epoch)
                report = await hypervisor.resume(vm_id)
                self._arriving.pop(vm_id, None)  # it waited for its source's word, and has it
            case VmCommand.SHUTDOWN:
                report = await hypervisor.shutdown(vm_id)
            case VmCommand.REBOOT:
                report = await hypervisor.reboot(vm_id)
            case VmCommand.DESTROY:
                await hypervisor.destroy(vm_id)
                gone = self._known.pop(vm_id, None)
                if gone is not None and order.epoch != self.epoch:
                    self._tell(VmChanged(gone, gone=True))
                return OrderDone()
            case VmCommand.RESIZE | VmCommand.MIGRATE:
                raise InvalidRequest(f"{order.command.value} is an order of its own")
            case _:
                assert_never(order.command)
        return self._note(report, order.epoch)

    async def _start_again(self, order: CommandVm) -> VmReport:
        """Start a VM that is here and off; a manager that is new meanwhile hears how that ended."""
        vm_id = order.vm_id
        with self._starts.noting_again(vm_id):
            try:
                await self._require_lease(self._policy_of(vm_id), order.epoch)
                return await self._hypervisor.start_again(vm_id)
            except SnoozeError:
                if order.epoch != self.epoch:
                    self._soon(lambda: self.reconcile_vm(vm_id))
                raise

    def _policy_of(self, vm_id: str) -> VmPolicy:
        known = self._known.get(vm_id)
        return known.policy if known is not None else DEFAULT_POLICY

    def _require_current(self, order: HostOrder) -> None:
        """Refuse what waited here while the next manager was told what is here."""
        if order.epoch not in {0, self.epoch}:
            raise StaleEpoch("this host was assigned anew while the order waited")

    async def _discard(self, order: DiscardVm) -> HostAnswer:
        self._require_current(order)
        left = await self._hypervisor.discard(
            order.vm_id, order.generation, only_off=order.only_off
        )
        if left is not None:
            return self._note(left, order.epoch)
        gone = self._known.pop(order.vm_id, None)
        if gone is not None and order.epoch != self.epoch:
            self._tell(VmChanged(gone, gone=True))
        return OrderDone()

    async def _drop_disk(self, order: DropDisk) -> HostAnswer:
        vm_id = order.disk.vm_id
        if any(vm_id in busy for busy in (self._starts.new, self._arriving, self._moving)):
            raise Conflict(f"VM {vm_id} is on its way here")
        await self._hypervisor.drop_disk(order.disk, order.idle_s)
        return OrderDone()

    async def look_at_disks(self) -> None:
        """Tell of the disks that are here without their VM, and once more when none is left.

        Raises:
            SnoozeError: the hypervisor does not answer.
        """
        disks = tuple(await self._hypervisor.loose_disks())
        if disks or self._loose:
            self._tell(DisksSeen(disks))
        self._loose = disks

    async def _resize(self, order: ResizeVm) -> HostAnswer:
        cores = float(max(1, round(order.demand.cpu_cores)))
        demand = msgspec.structs.replace(order.demand, cpu_cores=cores)
        return self._note(await self._hypervisor.resize(order.vm_id, demand), order.epoch)

    # ------------------------------------------------------------ migration

    async def _prepare(self, order: PrepareIncoming) -> HostAnswer:
        try:
            offer = msgspec.msgpack.decode(order.offer, type=MigrationOffer)
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"the source's offer cannot be read: {error}") from None
        vm_id = order.report.vm_id
        await self._require_lease(order.report.policy, order.epoch)
        self._arriving.setdefault(vm_id, _Arriving(order.report))
        try:
            ticket = await self._hypervisor.prepare_incoming(offer)
        except SnoozeError:
            if vm_id in self._arriving and self._arriving[vm_id].ticket is None:
                del self._arriving[vm_id]
            raise
        self._arriving[vm_id] = _Arriving(order.report, ticket)
        return TicketIssued(ticket)

    async def _migrate_out(self, order: MigrateOut) -> HostAnswer:
        """Move a VM out; that it left, or how it stayed, is told besides (rule 2)."""
        vm_id = order.vm_id
        self._touched.note(vm_id)
        self._moving[vm_id] += 1

        def on_progress(progress: MigrationProgress) -> None:
            self._tell(MigrationMoved(order.cause, progress))

        try:
            async with self._migrating:
                self._require_current(order)
                known = self._known.get(vm_id)
                options = self._migration.for_vm(known.policy) if known else self._migration
                await self._hypervisor.migrate_out(vm_id, order.ticket, options, on_progress)
            left = self._known.pop(vm_id, None)
            if left is not None:
                moving = msgspec.structs.replace(left, state=VmState.MIGRATING)
                self._tell(VmChanged(moving, gone=True))
        except SnoozeError:
            self._soon(lambda: self.reconcile_vm(vm_id))
            raise
        finally:
            self._moving -= Counter([vm_id])
        return OrderDone()

    async def _finish(self, order: FinishIncoming) -> HostAnswer:
        self._touched.note(order.vm_id)
        report = await self._hypervisor.finish_incoming(order.vm_id, order.ticket)
        self._arriving.pop(order.vm_id, None)
        with contextlib.suppress(SnoozeError):
            # The real downtime is known only here; without it the migration is as good.
            progress = await self._hypervisor.arrival(order.vm_id)
            if progress is not None:
                self._tell(MigrationMoved(order.cause, progress))
        return self._note(report, order.epoch)

    async def _abort(self, order: AbortIncoming) -> HostAnswer:
        arriving = self._arriving.get(order.vm_id)
        ticket = order.ticket or (arriving.ticket if arriving is not None else None)
        if ticket is not None:
            await self._hypervisor.abort_incoming(order.vm_id, ticket)
        self._arriving.pop(order.vm_id, None)
        for report in await self._hypervisor.inventory():
            if report.vm_id == order.vm_id:
                return self._note(report, order.epoch)
        return OrderDone()

    # ------------------------------------------------------------ what happens by itself

    def _note(self, report: VmReport, epoch: int) -> OrderDone:
        """The outcome of an order of that epoch: told besides, if its manager is not ours now."""
        self._known[report.vm_id] = report
        if epoch != self.epoch:
            self._tell(VmChanged(report))
        return OrderDone(report)

    def on_change(self, change: VmChange) -> None:
        """A domain changed, by an order or by itself (called by the hypervisor's driver)."""
        vm_id = change.vm_id
        self._touched.note(vm_id)
        if change.kind in _QUIET or any(
            vm_id in quiet for quiet in (self._starts.new, self._moving, self._arriving)
        ):
            return
        known = self._known.get(vm_id)
        gone = change.kind is ChangeKind.GONE
        if known is None:
            if not gone:
                self._refresh()
            return
        if gone or (change.state in _OFF and self._starts.ended_lately(vm_id)):
            self._soon(lambda: self.reconcile_vm(vm_id, has_ended=True))
            return
        report = msgspec.structs.replace(
            known,
            state=change.state,
            reason=change.reason,
            fenced=False,
            interrupted=False,
            halted=False,
        )
        (report,) = self._mark([report])
        self._known[vm_id] = report
        self._tell(VmChanged(report))
        if not report.managed and change.state in (VmState.STOPPED, VmState.FAILED):
            self._refresh()  # a transient domain, which ours are not, ends without another word

    def _refresh(self) -> None:
        """Look at everything, once, soon: there is a domain that we do not know."""
        if not self._refreshing:
            self._refreshing = True
            self._soon(self._refreshed)

    async def _refreshed(self) -> None:
        await self.reconcile()
        self._refreshing = False

    def _soon(self, work: Callable[[], Awaitable[None]]) -> None:
        """Look, and again until the hypervisor answers: nobody else tells of what it is about."""

        async def look() -> None:
            for tries in itertools.count():
                try:
                    await work()
                    break
                except SnoozeError as error:
                    if not tries:
                        logger.warning("the hypervisor could not be asked: %s", error.message)
                    await asyncio.sleep(LOOK_AGAIN_S)

        task = asyncio.ensure_future(look())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

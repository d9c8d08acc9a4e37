"""One live migration, step by step; each step is an order, its answer the next decision.

::

    step      order to     done                     refused          not answered
    offer     source       prepare                  look, if it has  it failed
                                                    no such VM;
                                                    else it failed
    prepare   destination  move                     it failed        abort
    move      source       finish                   abort            abort
    finish    destination  it is over               abort            tried again, at most
                                                                     ``MAX_FINISHES`` times; abort
    abort     destination  arrived: it is over;     look             look
                           else look
    look      source       there: it failed;        it is lost       it is lost
                           else it is lost

Rules:

1. From ``prepare`` to the end the VM holds room on both hosts. After an ``abort`` that was answered
   the VM cannot arrive any more: only then is the source asked what it has.
2. A destination under another manager is reached through the leader (*relayed* orders): that
   manager reserves the room at ``prepare`` and takes the VM at ``finish``.
3. While a VM moves, the steps tell how it is. What its source says by itself is said once only, and
   may be newer: "it failed" is not believed before the source was looked at again (seed 40191).
4. "It failed" leaves the VM at the source, as the source says it is. Only if neither side has it,
   or nobody answers, is it lost: ``UNREACHABLE``, on no host if the source does not have it.
5. The receiving end of another manager's migration is ``arrivals_core.py``'s.
6. An ``abort`` that did not reach another manager's host is tried again, with pauses that double,
   until it is answered or the VM migrates anew. Until then the leader takes the VM for one that we
   move; it hears when we do so no more.
7. A source that joins anew (its agent or its link went, its guests did not) does not end the
   migration: the steps go on with the VM as the host tells it, which is ``MIGRATING`` meanwhile.

8. A destination that joins anew says what it is ready to receive, and room for it is kept.
9. A guest that ran, and is paused at the source after a migration that stopped half-way, runs on
   there once the destination has said that it does not have it. Unless it said so, it stays paused:
   it may run there.
10. A guest that moves cold (its ticket is not live) is a definition at the destination alone once
    its source has let it go: that is never taken back. The finish is owed instead (rule 6), and a
    source that did not answer is looked at before the destination is told anything.

Invariant: one migration a VM; a VM that has one is ``MIGRATING``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from snooze.common.errors import Conflict, ErrorReport, ExecutionError, NoCapacity, NotFound
from snooze.common.resources import ZERO, Capacity, FloatArray
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.vms import MigrationTicket, VmReport
from snooze.common.wire import (
    AbortIncoming,
    CommandVm,
    FinishIncoming,
    Inventory,
    MigrateOut,
    OfferIssued,
    OfferVm,
    OrderDone,
    PrepareIncoming,
    TakeInventory,
    TicketIssued,
    VmOrder,
    VmOrderDone,
    VmsChanged,
)
from snooze.groupmanager.manager.arrivals_core import (
    INCOMING_TIMEOUT_S,
    Arrivals,
    Report,
    give_back,
    require_taking,
)
from snooze.groupmanager.manager.directives import promote
from snooze.groupmanager.manager.host_table import HostTable, VmEntry
from snooze.groupmanager.manager.manager_events import (
    AnswerLeader,
    CloseHost,
    ManagerEffect,
    TellLeader,
)
from snooze.groupmanager.manager.ordering import GiveOrder, Outcome

MAX_FINISHES: Final = 3
ABORT_PAUSE_S: Final = 1.0
ABORT_PAUSE_MAX_S: Final = 60.0
"""Pauses, which double, between two tries to take a destination's readiness back."""
Done = Callable[[VmOrderDone | ErrorReport], list[ManagerEffect]]
"""What follows the end of a migration, whoever wanted it."""
Moved = Callable[[str, str, str], None]
"""Told that a VM (by key) has left a host for good, and for which cause."""


@dataclass(slots=True)
class Migration:
    """One migration under way."""

    vm: VmEntry
    source: str
    destination: str
    relayed: bool
    done: Done
    cause: str
    report: VmReport
    ticket: MigrationTicket | None = None
    finishes: int = 0
    promised: Capacity = ZERO
    promised_epoch: int = 0
    taken_back: bool = False
    left_cold: bool = False
    """Rule 10: the source has it no more, and the guest is not on anywhere yet."""
    heard: VmState | None = None


@dataclass(slots=True)
class _Owed:
    """A destination with another manager that was not told that no VM will come."""

    migration: Migration
    pause_s: float = ABORT_PAUSE_S
    due_s: float = math.inf
    since_s: float = math.inf


def _is_settled(outcome: Outcome) -> bool:
    """Whether the destination was told, or there is nobody to tell any more."""
    return isinstance(outcome, OrderDone) or (
        isinstance(outcome, ErrorReport) and outcome.code == Conflict.code
    )


class Migrations:
    """All migrations from this manager's hosts, and the incoming ends of other managers'."""

    def __init__(
        self, table: HostTable, limit: FloatArray, order: GiveOrder, report: Report
    ) -> None:
        self._table = table
        self._limit = limit
        self._order = order
        self._report = report
        self._owed: dict[str, _Owed] = {}
        self._open: dict[str, Migration] = {}
        self.arrivals = Arrivals(table, limit, order, report)
        self.on_moved: Moved = lambda key, source, cause: None

    def under_way(self) -> list[Migration]:
        """Those from this manager's hosts."""
        return list(self._open.values())

    def count(self, host_id: str = "") -> int:
        """How many are under way, at all or with one end at a host; arriving ones included."""
        if not host_id:
            return len(self._open) + self.arrivals.count()
        ends = sum(host_id in {m.source, m.destination} for m in self._open.values())
        return ends + self.arrivals.count(host_id)

    def moves(self, key: str) -> bool:
        """Whether the VM is on its way, out of here or in."""
        return key in self._open or self.arrivals.awaits(key)

    def sees_to(self, key: str) -> bool:
        """Whether the VM's migration is ours, from its first step to its end."""
        return key in self._open

    def heard(self, host_id: str, key: str, state: VmState) -> None:
        """Rule 3: a host says how a VM is which moves; gone: not because it moved."""
        migration = self._open.get(key)
        if migration is not None and migration.source == host_id:
            migration.heard = state

    @property
    def moving(self) -> tuple[str, ...]:
        """The VMs whose migration we see to, and those that may have arrived for all we know.

        Of the latter no leader may have heard: the one to whom it was told may be gone.
        """
        owed = {key for key in self._owed if key not in self._table.vms}
        return tuple(sorted(self._open.keys() | owed))

    def touch(self, host_id: str) -> bool:
        """Whether a migration starts or ends at the host."""
        return self.count(host_id) > 0

    def promised_on(self, host_id: str) -> Capacity:
        """The room that is kept on a host for VMs that have not arrived."""
        host = self._table.hosts[host_id]
        total = ZERO
        for migration in self._open.values():
            if (migration.destination, migration.promised_epoch) == (host_id, host.epoch):
                total = total.plus(migration.promised)
        return total.plus(self.arrivals.promised_on(host_id))

    def rejoined(self, vm: VmEntry) -> None:
        """Rule 7: a migration's source joined anew; ``vm`` is what it says of the VM."""
        migration = self._open.get(vm.key)
        if migration is None or migration.source != vm.host_id:
            return
        if self._table.vms.get(vm.key) is not vm:
            return
        if vm.state is not VmState.MIGRATING:
            migration.report = vm.report
        migration.vm = vm
        self._table.set_state(vm, VmState.MIGRATING)

    def expect(self, host_id: str, reports: Sequence[VmReport], now_s: float) -> None:
        """Rule 8: a host that joined is ready to receive these VMs."""
        host = self._table.hosts[host_id]
        for report in reports:
            vm_id = report.vm_id
            migration = self._open.get(vm_id)
            if migration is not None and migration.destination == host_id:
                migration.promised, migration.promised_epoch = migration.vm.demand, host.epoch
                self._table.promise(host_id, migration.promised, 1.0)
            elif migration is None and vm_id not in host.vms:
                self.arrivals.adopt(host, report, now_s)

    # ------------------------------------------------------------ the steps

    def start(self, request_id: int, vm: VmEntry, order: VmOrder) -> list[ManagerEffect]:
        """Begin what the leader ordered; see ``begin``."""
        return self.begin(
            vm,
            order.destination,
            order.cause,
            lambda answer: [AnswerLeader(request_id, answer)],
        )

    def begin(self, vm: VmEntry, destination: str, cause: str, done: Done) -> list[ManagerEffect]:
        """Begin; ``done`` says what follows its end.

        Raises:
            Conflict: the destination is the host it is on, or is being given away.
            NoCapacity: the destination has no room.
        """
        if destination == vm.host_id:
            raise Conflict(f"VM {vm.report.name!r} is on that host already")
        self.arrivals.end(vm.key)  # a former migration, which left it where it is
        local = destination in self._table.hosts
        if local:
            self._require_room(destination, vm)
        report = msgspec.structs.replace(vm.report, state=vm.state)
        migration = Migration(vm, vm.host_id, destination, not local, done, cause, report)
        self._open[vm.key] = migration
        self._table.set_state(vm, VmState.MIGRATING)
        if local:
            migration.promised = vm.demand
            migration.promised_epoch = self._table.hosts[destination].epoch
            self._table.promise(destination, vm.demand, 1.0)
        return self._report(vm, cause) + self._order(
            vm.host_id,
            lambda epoch: OfferVm(epoch, cause, vm.report.vm_id),
            lambda outcome, unknown: self._offered(migration, outcome),
        )

    def _require_room(self, host_id: str, vm: VmEntry) -> None:
        host = self._table.hosts[host_id]
        require_taking(host)
        if not self._table.fits(host_id, vm.demand, self._limit):
            raise NoCapacity(
                f"host {host.description.hostname} has no room for VM {vm.report.name!r}"
            )

    def _offered(self, migration: Migration, outcome: Outcome) -> list[ManagerEffect]:
        if isinstance(outcome, ErrorReport) and outcome.code == NotFound.code:
            return self._look(migration, outcome)
        if not isinstance(outcome, OfferIssued):
            return self._failed(migration, outcome)
        migration.report = outcome.report
        offer = outcome.offer
        return self._order(
            migration.destination,
            lambda epoch: PrepareIncoming(epoch, migration.cause, migration.report, offer),
            lambda answer, unknown: self._prepared(migration, answer, unknown),
            migration.relayed,
        )

    def _prepared(
        self, migration: Migration, outcome: Outcome, unknown: bool
    ) -> list[ManagerEffect]:
        if not isinstance(outcome, TicketIssued):
            return self._abort(migration, outcome) if unknown else self._failed(migration, outcome)
        migration.ticket = ticket = outcome.ticket
        return self._order(
            migration.source,
            lambda epoch: MigrateOut(epoch, migration.cause, migration.vm.report.vm_id, ticket),
            lambda answer, lost: self._moved(migration, answer),
        )

    def _moved(self, migration: Migration, outcome: Outcome) -> list[ManagerEffect]:
        is_cold = migration.ticket is not None and not migration.ticket.live
        if isinstance(outcome, ErrorReport):
            look = self._look_for_cold if is_cold else self._abort
            return look(migration, outcome)
        migration.left_cold = is_cold
        return self._finish(migration)

    def _look_for_cold(self, migration: Migration, why: Outcome) -> list[ManagerEffect]:
        """Rule 10: whether the source has let it go."""
        vm_id = migration.vm.report.vm_id

        def looked(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if not isinstance(outcome, Inventory):
                return self._lost(migration, why, migration.source)
            if any(report.vm_id == vm_id for report in outcome.vms):
                return self._abort(migration, why)
            migration.left_cold = True
            return self._finish(migration)

        if migration.source not in self._table.hosts:
            return self._lost(migration, why, migration.source)
        return self._order(
            migration.source, lambda epoch: TakeInventory(epoch, migration.cause, vm_id), looked
        )

    def _finish(self, migration: Migration) -> list[ManagerEffect]:
        ticket = migration.ticket
        if ticket is None:
            return self._failed(migration, None)
        migration.finishes += 1
        return self._order(
            migration.destination,
            lambda epoch: FinishIncoming(epoch, migration.cause, migration.vm.report.vm_id, ticket),
            lambda answer, unknown: self._finished(migration, answer, unknown),
            migration.relayed,
        )

    def _finished(
        self, migration: Migration, outcome: Outcome, unknown: bool
    ) -> list[ManagerEffect]:
        if isinstance(outcome, OrderDone) and outcome.report is not None:
            return self._over(migration, outcome.report)
        if unknown and migration.finishes < MAX_FINISHES:
            return self._finish(migration)
        if migration.left_cold:
            self._owed[migration.vm.key] = _Owed(migration)
            return self._lost(migration, outcome, "")
        return self._abort(migration, outcome)

    def _abort(self, migration: Migration, why: Outcome) -> list[ManagerEffect]:
        """Take the destination's readiness back, unless the VM has arrived."""

        def aborted(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if isinstance(outcome, OrderDone) and outcome.report is not None:
                return self._over(migration, outcome.report)
            migration.taken_back = isinstance(outcome, OrderDone)
            if migration.relayed and not migration.taken_back:
                self._owed[migration.vm.key] = _Owed(migration)
            return self._look(migration, why)

        return self._order(
            migration.destination,
            lambda epoch: AbortIncoming(
                epoch, migration.cause, migration.vm.report.vm_id, migration.ticket
            ),
            aborted,
            migration.relayed,
        )

    def _look(self, migration: Migration, why: Outcome | None) -> list[ManagerEffect]:
        """Ask the source what became of the VM."""
        vm_id = migration.vm.report.vm_id

        def looked(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if not isinstance(outcome, Inventory):
                return self._lost(migration, why, migration.source)
            report = next((report for report in outcome.vms if report.vm_id == vm_id), None)
            if report is None:
                return self._lost(migration, why, "")
            halted = report.state is VmState.PAUSED and migration.report.state is VmState.RUNNING
            migration.report = report
            if halted and migration.taken_back:
                return self._go_on(migration, why)
            return self._failed(migration, why)

        if migration.source not in self._table.hosts:
            return self._lost(migration, why, migration.source)
        return self._order(
            migration.source, lambda epoch: TakeInventory(epoch, migration.cause, vm_id), looked
        )

    def _go_on(self, migration: Migration, why: Outcome | None) -> list[ManagerEffect]:
        """Rule 9: let the guest run on at the source."""

        def resumed(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if isinstance(outcome, OrderDone) and outcome.report is not None:
                migration.report = outcome.report
            return self._failed(migration, why)

        return self._order(
            migration.source,
            lambda epoch: CommandVm(
                epoch, migration.cause, migration.vm.report.vm_id, VmCommand.RESUME
            ),
            resumed,
        )

    def _lost(self, migration: Migration, why: Outcome | None, host_id: str) -> list[ManagerEffect]:
        """Nobody knows where the VM is; ``host_id`` may have it, if there is one."""
        vm = migration.vm
        self._close(migration)
        effects: list[ManagerEffect] = []
        # Once the destination has answered that it is not there, it is at the source or nowhere.
        at = host_id if migration.taken_back else ""
        is_known = self._table.vms.get(vm.key) is vm
        if is_known or vm.key not in self._table.vms:
            vm.cause = migration.cause
            vm.reason = f"lost between {migration.source} and {migration.destination}"
        if is_known and at:
            self._table.set_state(vm, VmState.UNREACHABLE)
            effects += self._report(vm, migration.cause)
        elif is_known:
            effects += self.left(vm)
        elif vm.key not in self._table.vms:
            effects.append(_out_of_sight(vm, at))
        if host_id in self._table.hosts:  # it says what it has when it joins again
            effects.append(CloseHost(host_id, "it does not say whether it still has a VM"))
        return [*effects, *migration.done(_error_of(why))]

    def left(self, vm: VmEntry) -> list[ManagerEffect]:
        """The VM left its host for another; we know that it arrived if that is ours and said so."""
        self._table.remove_vm(vm)
        arrived = promote(self._table, vm.key, vm.report.generation)
        if arrived:
            return arrived
        return [_out_of_sight(vm, "")]

    def _over(self, migration: Migration, report: VmReport) -> list[ManagerEffect]:
        """The VM runs at the destination."""
        vm = migration.vm
        self._close(migration)
        if self._table.vms.get(vm.key) is vm:
            self._table.remove_vm(vm)
        moved = VmEntry(report, migration.destination, report.state, report.demand, migration.cause)
        effects: list[ManagerEffect] = []
        if migration.destination in self._table.hosts:
            self._table.put_vm(moved)
            effects += self._report(moved, migration.cause)
        self.on_moved(moved.key, migration.source, migration.cause)
        return [*effects, *migration.done(VmOrderDone(moved.status()))]

    def _failed(self, migration: Migration, error: Outcome | None) -> list[ManagerEffect]:
        """The VM stays at the source as it was seen, unless that has said otherwise meanwhile."""
        heard, migration.heard = migration.heard, None
        if heard not in {None, migration.report.state}:
            return self._look(migration, error)
        vm = migration.vm
        self._close(migration)
        effects: list[ManagerEffect] = []
        if self._table.vms.get(vm.key) is vm:
            self._table.set_state(vm, migration.report.state)
            vm.report = migration.report
            effects += self._report(vm, migration.cause)
        elif vm.key not in self._table.vms:
            # Its host went; that nobody moves it is news all the same.
            effects.append(_out_of_sight(vm, migration.source))
        return [*effects, *migration.done(_error_of(error))]

    def _close(self, migration: Migration) -> None:
        self._open.pop(migration.vm.key, None)
        give_back(self._table, migration.destination, migration.promised_epoch, migration.promised)

    # ------------------------------------------------------------ what is owed

    def expire(self, now_s: float) -> list[ManagerEffect]:
        """Give up VMs that nobody sends any more, and destinations that no VM will reach."""
        effects = self.arrivals.expire(now_s)
        for key in list(self._owed):
            effects += self._abort_again(key, self._owed[key], now_s)
        return effects

    def _abort_again(self, key: str, owed: "_Owed", now_s: float) -> list[ManagerEffect]:
        """Rule 6: a destination that was not told keeps room for nothing, and its host."""
        if self._open.get(key) is owed.migration:
            return []
        if key in self._open:
            del self._owed[key]
            return []
        if now_s - owed.since_s > INCOMING_TIMEOUT_S:
            return self._owes_no_more(key, owed.migration)
        if owed.due_s == math.inf:
            owed.since_s = min(owed.since_s, now_s)
            owed.due_s = now_s + owed.pause_s
        if now_s < owed.due_s:
            return []
        owed.pause_s = min(ABORT_PAUSE_MAX_S, 2 * owed.pause_s)
        owed.due_s = now_s + owed.pause_s
        migration = owed.migration

        def aborted(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if unknown or self._owed.get(key) is not owed or not _is_settled(outcome):
                return []
            if isinstance(outcome, OrderDone) and outcome.report is not None:
                del self._owed[key]  # it has arrived: its manager tells
                return []
            return self._owes_no_more(key, migration)

        def last_word(epoch: int) -> AbortIncoming | FinishIncoming:
            vm_id, ticket = migration.vm.report.vm_id, migration.ticket
            if migration.left_cold and ticket is not None:
                return FinishIncoming(epoch, migration.cause, vm_id, ticket)
            return AbortIncoming(epoch, migration.cause, vm_id, ticket)

        return self._order(migration.destination, last_word, aborted, migration.relayed)

    def _owes_no_more(self, key: str, migration: Migration) -> list[ManagerEffect]:
        """We move it no more: it is on a host of ours, or we cannot say where it is."""
        del self._owed[key]
        if key in self._table.vms:
            return []
        return [_out_of_sight(migration.vm, "")]


def _out_of_sight(vm: VmEntry, host_id: str) -> TellLeader:
    """The leader hears that a VM is not in our table; ``host_id`` may have it, if there is one."""
    vm.state = VmState.UNREACHABLE
    return TellLeader(VmsChanged([vm.status(host_id=host_id)]))


def _error_of(outcome: object) -> ErrorReport:
    if isinstance(outcome, ErrorReport):
        return outcome
    return ErrorReport.of(ExecutionError("the migration stopped half-way"))

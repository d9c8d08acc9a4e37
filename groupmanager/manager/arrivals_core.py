"""The receiving end of migrations that this manager does not see to.

Rules:

1. Another manager's steps come through the leader (*relayed* orders): room is kept from
   ``prepare`` on, and the VM is taken in at ``finish``.
2. It ends by ``finish`` or ``abort``, when the host says that the VM has arrived, when the host
   leaves, or ``INCOMING_TIMEOUT_S`` later.
3. A host that joins says what it is ready to receive. Room is kept for that as well, though nobody
   here ordered it (its manager changed, or died: seed 1076). Such an *adopted* one is over besides
   once its source is seen not to be moving it any more, or ``ADOPTED_TIMEOUT_S`` later if nothing
   is heard of its source.
4. The leader is asked about a VM that is awaited for longer than ``ASK_AFTER_S``. If a host in
   reach has it and does not move it, or there is no such VM, it will not come: its manager died
   before it could say so.
5. An ``abort`` that failed ends nothing: what the host has is not known (seed 1562).

Invariant: one entry a VM; its room is reserved on the host while it is there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from snooze.common.errors import Conflict, ErrorReport, NoCapacity, SnoozeError
from snooze.common.resources import ZERO, Capacity, FloatArray
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmReport
from snooze.common.wire import (
    AbortIncoming,
    FinishIncoming,
    HostOrder,
    OrderDone,
    PrepareIncoming,
    RelayedAnswer,
)
from snooze.groupmanager.manager.host_table import HostEntry, HostTable, VmEntry
from snooze.groupmanager.manager.manager_events import AnswerLeader, ManagerEffect, RelayAsked
from snooze.groupmanager.manager.ordering import GiveOrder, Outcome

INCOMING_TIMEOUT_S: Final = 4000.0
"""Longer than another manager waits for any step of its migration."""
ASK_AFTER_S: Final = 20.0
"""Longer than what is said of a migration takes to the leader."""
ADOPTED_TIMEOUT_S: Final = 120.0
"""A migration whose manager died may go on for so long while we do not hear of its source."""
ADOPTED_PAUSE_S: Final = 5.0
"""What its source says of the VM may be older than the destination's readiness."""
Report = Callable[[VmEntry, str], list[ManagerEffect]]


@dataclass(frozen=True, slots=True)
class Incoming:
    """The receiving end of another manager's migration."""

    host_id: str
    promised_epoch: int
    report: VmReport
    since_s: float
    adopted: bool = False
    """Whether nobody ordered it here: the host said so when it joined (rule 3)."""


class Arrivals:
    """VMs that may arrive on this manager's hosts; see the module's rules."""

    def __init__(
        self, table: HostTable, limit: FloatArray, order: GiveOrder, report: Report
    ) -> None:
        self._table = table
        self._limit = limit
        self._order = order
        self._report = report
        self._expected: dict[str, Incoming] = {}

    def listed(self) -> list[tuple[str, Capacity]]:
        """The hosts that await a VM, and what it asks for."""
        return [(each.host_id, each.report.demand) for each in self._expected.values()]

    def count(self, host_id: str = "") -> int:
        """How many are awaited, at all or on a host."""
        return sum(not host_id or each.host_id == host_id for each in self._expected.values())

    def awaits(self, vm_id: str) -> bool:
        """Whether another manager moves the VM here."""
        incoming = self._expected.get(vm_id)
        return incoming is not None and not incoming.adopted

    def promised_on(self, host_id: str) -> Capacity:
        """The room that is kept on a host."""
        total = ZERO
        for incoming in self._expected.values():
            if incoming.host_id == host_id:
                total = total.plus(incoming.report.demand)
        return total

    def host_dropped(self, host_id: str) -> None:
        """A host is no longer here: what was to arrive on it is heard of when it joins again."""
        for vm_id in [i for i, incoming in self._expected.items() if incoming.host_id == host_id]:
            del self._expected[vm_id]

    def adopt(self, host: HostEntry, report: VmReport, now_s: float) -> None:
        """Rule 3: a host that joined is ready to receive a VM."""
        if report.vm_id not in self._expected:
            incoming = Incoming(host.host_id, host.epoch, report, now_s, adopted=True)
            self._expected[report.vm_id] = incoming
            self._table.promise(host.host_id, report.demand, 1.0)

    def relayed(self, event: RelayAsked, now_s: float) -> list[ManagerEffect]:
        """A step of another manager's migration on a host of ours."""
        request_id, message = event.request_id, event.message
        try:
            return self._step(request_id, message.host_id, message.order, now_s)
        except SnoozeError as error:
            return [AnswerLeader(request_id, ErrorReport.of(error))]

    def _step(
        self, request_id: int, host_id: str, order: HostOrder, now_s: float
    ) -> list[ManagerEffect]:
        if host_id not in self._table.hosts:
            raise Conflict(f"host {host_id} is not with this group manager any more")
        match order:
            case PrepareIncoming():
                self._accept(host_id, order, now_s)
                vm_id = order.report.vm_id
            case FinishIncoming() | AbortIncoming():
                vm_id = order.vm_id
            case _:
                raise Conflict(f"{type(order).__name__} is no step of an incoming migration")

        def make(epoch: int) -> HostOrder:
            match order:
                case PrepareIncoming():
                    return PrepareIncoming(epoch, order.cause, order.report, order.offer)
                case FinishIncoming():
                    return FinishIncoming(epoch, order.cause, order.vm_id, order.ticket)
                case _:
                    return AbortIncoming(epoch, order.cause, vm_id, order.ticket)

        def done(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            effects = self._step_done(vm_id, host_id, order, outcome, unknown)
            answer = outcome if isinstance(outcome, ErrorReport) else RelayedAnswer(outcome)
            return [*effects, AnswerLeader(request_id, answer)]

        return self._order(host_id, make, done)

    def _accept(self, host_id: str, order: PrepareIncoming, now_s: float) -> None:
        vm_id = order.report.vm_id
        former = self._expected.get(vm_id)
        if former is not None and former.host_id == host_id:
            return
        self.end(vm_id)
        host = self._table.hosts[host_id]
        require_taking(host)
        if not self._table.fits(host_id, order.report.demand, self._limit):
            raise NoCapacity(
                f"host {host.description.hostname} has no room for VM {order.report.name!r}"
            )
        self._expected[vm_id] = Incoming(host_id, host.epoch, order.report, now_s)
        self._table.promise(host_id, order.report.demand, 1.0)

    def _step_done(
        self, vm_id: str, host_id: str, order: HostOrder, outcome: Outcome, unknown: bool
    ) -> list[ManagerEffect]:
        failed = isinstance(outcome, ErrorReport)
        match order:
            case PrepareIncoming() if failed and not unknown:
                self.end(vm_id)
            case AbortIncoming() | FinishIncoming() if (
                isinstance(outcome, OrderDone) and outcome.report is not None
            ):
                self.end(vm_id)
                vm = VmEntry(outcome.report, host_id, outcome.report.state, outcome.report.demand)
                if host_id in self._table.hosts:
                    self._table.put_vm(vm)
                    return self._report(vm, order.cause)
            case AbortIncoming() if not failed:
                self.end(vm_id)
            case FinishIncoming() if failed and not unknown:
                self.end(vm_id)
            case _:
                pass
        return []

    def arrived(self, host_id: str, vm_id: str) -> bool:
        """A host says that it has a VM: was it expected there? Then it is not any more."""
        incoming = self._expected.get(vm_id)
        if incoming is None or incoming.host_id != host_id:
            return False
        self.end(vm_id)
        return True

    def expire(self, now_s: float) -> list[ManagerEffect]:
        """Give up VMs that nobody sends any more."""
        late = [i for i, incoming in self._expected.items() if self._is_late(i, incoming, now_s)]
        for vm_id in late:
            self._expected[vm_id] = replace(self._expected[vm_id], since_s=now_s)
        return [effect for vm_id in late for effect in self._give_up(vm_id)]

    def old(self, now_s: float) -> list[str]:
        """Those that are awaited for so long that the leader is asked about them (rule 4)."""
        return [i for i, each in self._expected.items() if now_s - each.since_s > ASK_AFTER_S]

    def ended(self, vm_ids: Sequence[str]) -> list[ManagerEffect]:
        """Rule 4: nobody moves them any more."""
        late = [vm_id for vm_id in vm_ids if vm_id in self._expected]
        return [effect for vm_id in late for effect in self._give_up(vm_id)]

    def _is_late(self, vm_id: str, incoming: Incoming, now_s: float) -> bool:
        passed_s, vm = now_s - incoming.since_s, self._table.vms.get(vm_id)
        if incoming.adopted and vm is None:
            return passed_s > ADOPTED_TIMEOUT_S
        if incoming.adopted and vm is not None and vm.state is not VmState.MIGRATING:
            return passed_s > ADOPTED_PAUSE_S
        return passed_s > INCOMING_TIMEOUT_S

    def _give_up(self, vm_id: str) -> list[ManagerEffect]:
        """Take the host's readiness back; until it has answered, the VM may be there."""
        host_id = self._expected[vm_id].host_id
        order = AbortIncoming(0, "", vm_id)
        return self._order(
            host_id,
            lambda epoch: AbortIncoming(epoch, "", vm_id),
            lambda answer, unknown: self._step_done(vm_id, host_id, order, answer, unknown),
        )

    def end(self, vm_id: str) -> None:
        """The VM has come, or will not: room is kept no longer."""
        incoming = self._expected.pop(vm_id, None)
        if incoming is not None:
            give_back(
                self._table, incoming.host_id, incoming.promised_epoch, incoming.report.demand
            )


def give_back(table: HostTable, host_id: str, promised_epoch: int, demand: Capacity) -> None:
    """End a promise, unless the host has joined anew since: then it is forgotten already."""
    host = table.hosts.get(host_id)
    if host is not None and host.epoch == promised_epoch:
        table.promise(host_id, demand, -1.0)


def require_taking(host: HostEntry) -> None:
    """Refuse what a host cannot take in now. Raises: Conflict."""
    name = host.description.hostname
    if host.leaving is not None:
        raise Conflict(f"host {name} is being given to another group manager; try again")
    if not host.takes_vms:
        raise Conflict(f"host {name} takes no VMs at present; try again")

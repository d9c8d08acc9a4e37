"""A manager's core with hosts by hand; its invariant is checked after every event."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from snooze.common.errors import ErrorReport
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmCommand, VmState
from snooze.common.vms import VmReport, VmSpec
from snooze.common.wire import (
    Address,
    Assignment,
    HostAnswer,
    HostDescription,
    HostDirective,
    HostHello,
    HostOrder,
    Inventory,
    ManagerAnswer,
    ManagerDescription,
    OrderDone,
    PlacedVm,
    PlacementAnswer,
    PlacementRequest,
    PlaceVms,
    RelayedOrder,
    StaleCopy,
    VmChanged,
    VmOrder,
    VmsChanged,
    VmStatus,
)
from snooze.groupmanager.manager.host_table import VmEntry
from snooze.groupmanager.manager.manager_core import ManagerCore
from snooze.groupmanager.manager.manager_events import (
    AnswerLeader,
    Directed,
    HostAnswered,
    HostJoined,
    HostLost,
    ManagerEffect,
    ManagerEvent,
    OrderAsked,
    OrderHost,
    PlaceAsked,
    RelayAsked,
    ReleaseAsked,
    TellLeader,
    VmNoticed,
)
from snooze.scheduling import placement

E = TypeVar("E")
SMALL = Capacity(1.0, 1024.0)
NO_ANSWER = ErrorReport("remote_timeout", "no answer")
REFUSED = ErrorReport("execution_failed", "no disk")


def host_of(host_id: str, cores: float = 4.0) -> HostDescription:
    capacity = Capacity(cores, 65536.0, 100.0, 100.0)
    return HostDescription(host_id, f"name-{host_id}", Address(host_id, 1), capacity)


def report_of(
    vm_id: str,
    state: VmState = VmState.RUNNING,
    demand: Capacity = SMALL,
    *,
    managed: bool = True,
    reason: str = "",
) -> VmReport:
    return VmReport(vm_id, f"name-{vm_id}", state, demand, managed=managed, reason=reason)


def spec_of(vm_id: str, demand: Capacity = SMALL) -> VmSpec:
    return VmSpec(vm_id, f"name-{vm_id}", demand)


def assignment_of(manager_id: str = "gm2", epoch: int = 99) -> Assignment:
    where = Address(manager_id, 1)
    return Assignment(ManagerDescription(manager_id, manager_id, where, where), epoch)


def only(kind: type[E], effects: Iterable[object]) -> E:
    """The one effect of this kind."""
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, found
    return found[0]


def none(kind: type[E], effects: Iterable[object]) -> bool:
    """Whether no effect is of this kind."""
    return not any(isinstance(effect, kind) for effect in effects)


def told(effects: Iterable[ManagerEffect]) -> list[VmStatus]:
    """What the leader is told of VMs."""
    return [
        status
        for effect in effects
        if isinstance(effect, TellLeader) and isinstance(effect.notice, VmsChanged)
        for status in effect.notice.vms
    ]


class Desk:
    """A manager core with hosts ``h1``, ``h2``, ... of four cores each."""

    def __init__(self, hosts: int = 2, cores: float = 4.0) -> None:
        one = Capacity(1.0, 1.0, 1.0, 1.0)
        self.core = ManagerCore(placement.policy_named("first_fit"), one, one)
        self.table = self.core.table
        self.now_s = 100.0
        for number in range(1, hosts + 1):
            self.join(f"h{number}", cores=cores)

    def feed(self, event: ManagerEvent) -> list[ManagerEffect]:
        effects = self.core.handle(event, self.now_s)
        self.check()
        return effects

    def check(self) -> None:
        """``reserved`` is the sum of what holds room; it never exceeds what there is."""
        table = self.table
        assert (table.reserved <= table.capacity * self.core.limit + 1e-6).all()
        for host_id in table.order:
            held = self.core.migrations.promised_on(host_id)
            for vm in table.vms_on(host_id):
                if vm.state in HOLDS_CAPACITY:
                    held = held.plus(vm.demand)
            assert np.allclose(table.reserved_on(host_id).as_array(), held.as_array())

    def cores(self, host_id: str) -> float:
        """Reserved cores of a host."""
        return self.table.reserved_on(host_id).cpu_cores

    def state(self, vm_id: str) -> VmState:
        return self.table.vms[vm_id].state

    def vm(self, vm_id: str) -> VmEntry:
        return self.table.vms[vm_id]

    # -------------------------------- hosts

    def join(
        self,
        host_id: str,
        *vms: VmReport,
        epoch: int = 10,
        cores: float = 4.0,
        arriving: Sequence[VmReport] = (),
    ) -> list[ManagerEffect]:
        """A host joins, and the leader has nothing against it."""
        hello = HostHello(host_of(host_id, cores), list(vms), epoch, arriving=list(arriving))
        effects = self.feed(HostJoined(hello))
        return effects + self.direct(host_id, epoch=epoch)

    def direct(
        self, host_id: str, *stale: StaleCopy, epoch: int = 10, schedulable: bool = True
    ) -> list[ManagerEffect]:
        """The leader says what holds of a host."""
        return self.feed(Directed([HostDirective(host_id, epoch, stale, schedulable)]))

    def lose(self, host_id: str, epoch: int = 10) -> list[ManagerEffect]:
        return self.feed(HostLost(host_id, epoch, "silent"))

    def notice(self, host_id: str, report: VmReport, *, gone: bool = False) -> list[ManagerEffect]:
        return self.feed(VmNoticed(host_id, VmChanged(report, gone)))

    def answer(
        self, order: OrderHost, answer: HostAnswer | ErrorReport, *, unknown: bool = False
    ) -> list[ManagerEffect]:
        return self.feed(HostAnswered(order.order_id, answer, unknown))

    def unanswered(self, order: OrderHost) -> list[ManagerEffect]:
        return self.answer(order, NO_ANSWER, unknown=True)

    def inventory(self, order: OrderHost, *vms: VmReport) -> list[ManagerEffect]:
        return self.answer(order, Inventory(list(vms)))

    # -------------------------------- the leader

    def place(
        self, *vms: VmSpec, host: str = "", request_id: int = 1
    ) -> tuple[list[PlacedVm], list[OrderHost]]:
        """Ask to place; the answer and the orders."""
        requests = [PlacementRequest(spec, host) for spec in vms]
        effects = self.feed(PlaceAsked(request_id, PlaceVms(1, "task", requests)))
        answer = only(AnswerLeader, effects)
        assert isinstance(answer.answer, PlacementAnswer)
        orders = [effect for effect in effects if isinstance(effect, OrderHost)]
        return answer.answer.vms, orders

    def run(self, vm_id: str, host_id: str = "h1", demand: Capacity = SMALL) -> None:
        """Have a VM run on a host."""
        _, orders = self.place(spec_of(vm_id, demand), host=host_id)
        self.answer(orders[0], OrderDone(report_of(vm_id, demand=demand)))

    def command(
        self,
        vm_id: str,
        command: VmCommand,
        *,
        demand: Capacity | None = None,
        destination: str = "",
        request_id: int = 2,
    ) -> list[ManagerEffect]:
        order = VmOrder(1, "cause", vm_id, command, demand, destination)
        return self.feed(OrderAsked(request_id, order))

    def relay(self, host_id: str, order: HostOrder, request_id: int = 3) -> list[ManagerEffect]:
        return self.feed(RelayAsked(request_id, RelayedOrder(1, "cause", host_id, order)))

    def release(self, host_id: str) -> list[ManagerEffect]:
        return self.feed(ReleaseAsked(host_id, assignment_of()))


def answer_of(effects: Iterable[ManagerEffect]) -> ManagerAnswer | ErrorReport:
    """What the leader's request was answered."""
    return only(AnswerLeader, effects).answer


def error_of(effects: Iterable[ManagerEffect]) -> ErrorReport:
    answer = answer_of(effects)
    assert isinstance(answer, ErrorReport)
    return answer

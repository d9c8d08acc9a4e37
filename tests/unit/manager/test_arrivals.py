"""The receiving end of migrations that another manager sees to, rule by rule."""

import pytest

from snooze.common.errors import ErrorReport
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import MigrationTicket
from snooze.common.wire import (
    AbortIncoming,
    FinishIncoming,
    MoveToManager,
    OrderDone,
    PrepareIncoming,
    RelayedAnswer,
    StartVm,
    TicketIssued,
)
from snooze.groupmanager.manager.arrivals_core import (
    ADOPTED_PAUSE_S,
    ADOPTED_TIMEOUT_S,
    ASK_AFTER_S,
    INCOMING_TIMEOUT_S,
)
from snooze.groupmanager.manager.manager_events import (
    ArrivalsEnded,
    ManagerEffect,
    OrderHost,
)
from tests.unit.manager.builders import (
    REFUSED,
    SMALL,
    Desk,
    answer_of,
    error_of,
    none,
    only,
    report_of,
    spec_of,
    told,
)

TICKET = MigrationTicket("a", "uri-of-h2", token="t")
HERE, THERE = "h1", "h2"
NO_ANSWER = ErrorReport("remote_timeout", "no answer")


def prepare(desk: Desk, host_id: str = HERE, demand: Capacity = SMALL) -> list[ManagerEffect]:
    return desk.relay(host_id, PrepareIncoming(0, "cause", report_of("x", demand=demand), b"o"))


FINISH = FinishIncoming(0, "cause", "x", TICKET)
ABORT = AbortIncoming(0, "cause", "x", TICKET)


def test_the_receiving_end_reserves_at_prepare_and_takes_the_vm_at_finish() -> None:
    desk = Desk()
    order = only(OrderHost, prepare(desk))
    assert isinstance(order.order, PrepareIncoming)
    assert (order.order.epoch, order.relayed) == (10, False)
    assert desk.cores(HERE) == 1.0
    assert answer_of(desk.answer(order, TicketIssued(TICKET))) == RelayedAnswer(
        TicketIssued(TICKET)
    )
    finish = only(OrderHost, desk.relay(HERE, FINISH))
    effects = desk.answer(finish, OrderDone(report_of("x")))
    assert isinstance(answer_of(effects), RelayedAnswer)
    assert told(effects)[0].host_id == HERE
    assert desk.cores(HERE) == 1.0
    assert not desk.core.migrations.moves("x")


@pytest.mark.parametrize("unknown", [False, True])
def test_a_prepare_that_may_have_happened_keeps_its_room(unknown: bool) -> None:
    desk = Desk()
    effects = desk.answer(only(OrderHost, prepare(desk)), REFUSED, unknown=unknown)
    assert error_of(effects) == REFUSED
    assert desk.cores(HERE) == (1.0 if unknown else 0.0)
    assert desk.core.migrations.moves("x") is unknown


def test_an_abort_that_comes_too_late_takes_the_vm() -> None:
    desk = Desk()
    desk.answer(only(OrderHost, prepare(desk)), TicketIssued(TICKET))
    abort = only(OrderHost, desk.relay(HERE, ABORT))
    effects = desk.answer(abort, OrderDone(report_of("x")))
    assert told(effects)[0].host_id == HERE
    assert answer_of(effects) == RelayedAnswer(OrderDone(report_of("x")))
    assert desk.cores(HERE) == 1.0


def test_an_abort_gives_the_room_back() -> None:
    desk = Desk()
    desk.answer(only(OrderHost, prepare(desk)), TicketIssued(TICKET))
    desk.answer(only(OrderHost, desk.relay(HERE, ABORT)), OrderDone())
    assert desk.cores(HERE) == 0.0


@pytest.mark.parametrize("unknown", [False, True])
def test_a_finish_that_failed_ends_it_unless_it_may_have_happened(unknown: bool) -> None:
    desk = Desk()
    desk.answer(only(OrderHost, prepare(desk)), TicketIssued(TICKET))
    desk.answer(only(OrderHost, desk.relay(HERE, FINISH)), REFUSED, unknown=unknown)
    assert desk.cores(HERE) == (1.0 if unknown else 0.0)


def test_prepared_twice_is_reserved_once() -> None:
    desk = Desk()
    prepare(desk)
    prepare(desk)
    assert desk.cores(HERE) == 1.0
    prepare(desk, THERE)
    assert (desk.cores(HERE), desk.cores(THERE)) == (0.0, 1.0)


def test_no_room_and_a_leaving_host_and_a_host_of_others_refuse() -> None:
    desk = Desk()
    assert error_of(prepare(desk, demand=Capacity(5.0, 1.0))).code == "no_capacity"
    assert error_of(prepare(desk, "h9")).code == "conflict"
    desk.release(HERE)
    assert error_of(prepare(desk)).code == "conflict"
    assert desk.cores(HERE) == 0.0


def test_other_orders_are_not_relayed() -> None:
    assert error_of(Desk().relay(HERE, StartVm(0, "cause", spec_of("x")))).code == "conflict"


def test_a_vm_that_has_arrived_is_taken_though_nobody_finishes() -> None:
    desk = Desk()
    desk.answer(only(OrderHost, prepare(desk)), TicketIssued(TICKET))
    assert desk.notice(THERE, report_of("x")) == [], "it is not awaited there"
    assert told(desk.notice(HERE, report_of("x")))[0].host_id == HERE
    assert desk.cores(HERE) == 1.0
    assert not desk.core.migrations.moves("x")


def test_a_host_that_leaves_takes_the_promise_with_it() -> None:
    desk = Desk()
    desk.answer(only(OrderHost, prepare(desk)), TicketIssued(TICKET))
    desk.join(HERE, epoch=11)
    assert desk.cores(HERE) == 0.0
    assert not desk.core.migrations.moves("x")
    assert isinstance(only(OrderHost, desk.release(HERE)).order, MoveToManager)


def test_a_vm_that_nobody_sends_any_more_is_given_up() -> None:
    desk = Desk()
    desk.answer(only(OrderHost, prepare(desk)), TicketIssued(TICKET))
    desk.now_s += INCOMING_TIMEOUT_S
    assert desk.notice("h9", report_of("y")) == []
    desk.now_s += 1.0
    order = only(OrderHost, desk.notice("h9", report_of("y")))
    assert order.order == AbortIncoming(10, "", "x")
    assert desk.answer(order, OrderDone()) == []
    assert desk.cores(HERE) == 0.0


def test_a_vm_that_the_leader_knows_elsewhere_is_given_up() -> None:
    """The other manager died before it could say so: its host kept room, and was not released."""
    desk = Desk()
    desk.answer(only(OrderHost, prepare(desk)), TicketIssued(TICKET))
    arrivals = desk.core.migrations.arrivals
    assert arrivals.old(desk.now_s + ASK_AFTER_S) == []
    assert arrivals.old(desk.now_s + ASK_AFTER_S + 1.0) == ["x"]
    order = only(OrderHost, desk.feed(ArrivalsEnded(["x", "unheard of"])))
    assert order.order == AbortIncoming(10, "", "x")
    assert desk.answer(order, OrderDone()) == []
    assert desk.cores(HERE) == 0.0


# ---------------------------------------------------------------- a destination that joins anew


def test_a_host_that_joins_keeps_room_for_what_it_is_ready_to_receive() -> None:
    """Found by ``snooze-sim replay 1076``: the manager died, and others were started there."""
    desk = Desk()
    desk.join(HERE, report_of("x", VmState.MIGRATING), epoch=11)
    desk.join(THERE, epoch=11, arriving=[report_of("x")])
    assert desk.cores(THERE) == 1.0
    assert not desk.core.migrations.moves("x"), "what its source says of it is heard"
    moving = report_of("x", VmState.MIGRATING)
    assert told(desk.notice(HERE, moving, gone=True))[0].state is VmState.UNREACHABLE
    assert desk.cores(THERE) == 1.0
    assert told(desk.notice(THERE, report_of("x")))[0].host_id == THERE
    assert desk.cores(THERE) == 1.0
    assert desk.core.migrations.count() == 0


def test_a_migration_of_a_dead_manager_that_failed_is_taken_back() -> None:
    desk = Desk()
    desk.join(HERE, report_of("x", VmState.MIGRATING), epoch=11)
    desk.join(THERE, epoch=11, arriving=[report_of("x")])
    desk.now_s += INCOMING_TIMEOUT_S - 1
    assert none(OrderHost, desk.notice("h9", report_of("y"))), "it is under way"
    order = only(OrderHost, desk.notice(HERE, report_of("x")))
    assert (order.host_id, order.order) == (THERE, AbortIncoming(11, "", "x"))
    assert desk.answer(order, OrderDone()) == []
    assert desk.cores(THERE) == 0.0


def test_a_readiness_that_is_not_taken_back_keeps_its_room() -> None:
    """Found by ``snooze-sim replay 1562``: the VM had come, and the host could not say so."""
    desk = Desk()
    desk.answer(only(OrderHost, prepare(desk)), TicketIssued(TICKET))
    desk.answer(only(OrderHost, desk.relay(HERE, ABORT)), REFUSED)
    assert desk.cores(HERE) == 1.0
    assert told(desk.notice(HERE, report_of("x")))[0].host_id == HERE
    assert desk.cores(HERE) == 1.0


def test_a_migration_of_which_nothing_is_heard_is_taken_back() -> None:
    desk = Desk()
    desk.join(THERE, epoch=11, arriving=[report_of("x")])
    desk.now_s += ADOPTED_TIMEOUT_S
    assert none(OrderHost, desk.notice("h9", report_of("y")))
    desk.now_s += ADOPTED_PAUSE_S
    order = only(OrderHost, desk.notice("h9", report_of("y")))
    assert order.order == AbortIncoming(11, "", "x")
    (vm,) = told(desk.answer(order, OrderDone(report_of("x"))))
    assert (vm.host_id, vm.state) == (THERE, VmState.RUNNING), "it had come after all"


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize("at_source", [VmState.MIGRATING, VmState.RUNNING])
def test_a_vm_whose_arrival_is_told_before_its_leaving_is_not_lost(
    at_source: VmState, is_new: bool
) -> None:
    """Its manager died, and both hosts came to us."""
    desk = Desk(hosts=0)
    desk.join("h1", report_of("a", at_source))
    if is_new:
        desk.join("h2", report_of("a"))
    else:
        desk.join("h2", arriving=[report_of("a")])
        desk.notice("h2", report_of("a"))
    (status,) = told(desk.notice("h1", report_of("a", VmState.MIGRATING), gone=True))
    assert (status.state, status.host_id) == (VmState.RUNNING, "h2")
    assert (desk.state("a"), desk.vm("a").host_id) == (VmState.RUNNING, "h2")
    assert desk.cores("h2") == 1.0
    assert desk.table.hosts["h2"].copies == {}


def test_nor_is_one_whose_source_is_lost_before_it_tells() -> None:
    desk = Desk(hosts=0)
    desk.join("h1", report_of("a", VmState.MIGRATING))
    desk.join("h2", arriving=[report_of("a")])
    desk.notice("h2", report_of("a"))
    (status,) = told(desk.lose("h1"))
    assert (status.state, status.host_id) == (VmState.RUNNING, "h2")
    assert desk.cores("h2") == 1.0, "nothing else is placed in its room"

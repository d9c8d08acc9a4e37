"""A manager sends a host to sleep only if nothing is on it, and says what came of it."""

import msgspec

from snooze.common.errors import ErrorReport
from snooze.common.vm_lifecycle import VmCommand
from snooze.common.wire import (
    Accepted,
    HostGone,
    MoveToManager,
    OrderDone,
    PowerDown,
    SleepHost,
)
from snooze.groupmanager.manager.manager_events import (
    AnswerLeader,
    ManagerEffect,
    OrderHost,
    SleepAsked,
    TellLeader,
)
from snooze.groupmanager.manager.sleep_core import LEAVE_S
from tests.unit.manager.builders import (
    NO_ANSWER,
    REFUSED,
    Desk,
    answer_of,
    error_of,
    none,
    only,
    report_of,
    spec_of,
)


def ask(desk: Desk, host_id: str = "h1", request_id: int = 7) -> list[ManagerEffect]:
    order = SleepHost(1, "cause", host_id, "shutdown")
    return desk.feed(SleepAsked(request_id, order))


def going(desk: Desk, host_id: str = "h1") -> OrderHost:
    """An empty host that is being sent to sleep."""
    return only(OrderHost, ask(desk, host_id))


def test_an_empty_host_is_told_to_go_and_answered_when_it_has_left() -> None:
    desk = Desk()
    order = going(desk)
    assert isinstance(order.order, PowerDown)
    assert order.order.action == "shutdown"
    assert none(AnswerLeader, desk.answer(order, OrderDone()))
    effects = desk.lose("h1")
    assert answer_of(effects) == Accepted()
    gone = next(e.notice for e in effects if isinstance(e, TellLeader))
    assert isinstance(gone, HostGone)
    assert gone.left, "the leader does not take it for lost"


def test_a_host_with_a_vm_is_refused() -> None:
    desk = Desk()
    desk.run("a")
    assert "VM name-a is on it" in error_of(ask(desk)).message


def test_a_host_with_a_domain_that_is_off_or_not_ours_is_refused() -> None:
    desk = Desk()
    desk.notice("h1", msgspec.structs.replace(report_of("x"), managed=False))
    assert "is on it" in error_of(ask(desk)).message


def test_a_host_on_which_a_vm_is_being_started_is_refused() -> None:
    desk = Desk()
    desk.place(spec_of("a"), host="h1")
    assert error_of(ask(desk)).code == "conflict"


def test_both_ends_of_a_migration_are_refused() -> None:
    desk = Desk()
    desk.run("a")
    desk.command("a", VmCommand.MIGRATE, destination="h2")
    assert error_of(ask(desk, "h1")).code == "conflict"
    assert error_of(ask(desk, "h2")).code == "conflict"


def test_a_host_that_goes_to_another_manager_is_refused() -> None:
    desk = Desk()
    desk.release("h1")
    assert error_of(ask(desk)).code == "conflict"


def test_one_that_is_sent_to_sleep_goes_to_no_other_manager_meanwhile() -> None:
    """It had said that it goes down, and joined the other one as a host that is up (720202)."""
    desk = Desk()
    order = going(desk)
    desk.answer(order, OrderDone())
    assert none(OrderHost, desk.release("h1"))
    desk.now_s += LEAVE_S + 1.0
    move = only(OrderHost, desk.release("h1"))
    assert isinstance(move.order, MoveToManager), "it did not go down: now it may"


def test_an_unknown_host_is_refused() -> None:
    assert error_of(ask(Desk(), "h9")).code == "not_found"


def test_no_vm_is_placed_on_a_host_that_goes_to_sleep() -> None:
    desk = Desk(hosts=1)
    order = going(desk)
    assert desk.place(spec_of("a"))[1] == []
    desk.answer(order, ErrorReport("conflict", "a domain runs here"))
    assert desk.place(spec_of("b"))[1], "it stayed, and serves on"


def test_what_the_host_says_against_it_is_passed_on() -> None:
    desk = Desk()
    assert error_of(desk.answer(going(desk), REFUSED)) == REFUSED


def test_a_repeat_is_answered_with_the_first() -> None:
    desk = Desk()
    order = going(desk)
    assert ask(desk, request_id=8) == []
    desk.answer(order, OrderDone())
    effects = desk.lose("h1")
    answered = [e.request_id for e in effects if isinstance(e, AnswerLeader)]
    assert answered == [7, 8]


def test_a_host_that_is_lost_before_it_answers_may_have_gone() -> None:
    desk = Desk()
    going(desk)
    effects = desk.lose("h1")
    assert error_of(effects).code.startswith("remote")
    gone = next(e.notice for e in effects if isinstance(e, TellLeader))
    assert isinstance(gone, HostGone)
    assert not gone.left


def test_an_order_that_is_not_answered_leaves_the_host_serving() -> None:
    desk = Desk(hosts=1)
    order = going(desk)
    assert error_of(desk.unanswered(order)) == NO_ANSWER
    assert desk.place(spec_of("a"))[1]


def test_a_host_that_says_it_goes_and_does_not_serves_on() -> None:
    desk = Desk(hosts=1)
    desk.answer(going(desk), OrderDone())
    desk.core.handle(SleepAsked(9, SleepHost(1, "c", "h9", "shutdown")), 100.0)
    late = desk.core.handle(SleepAsked(9, SleepHost(1, "c", "h9", "shutdown")), 101.0 + LEAVE_S)
    answers = {e.request_id: e.answer for e in late if isinstance(e, AnswerLeader)}
    assert isinstance(answers[7], ErrorReport)
    assert answers[7].code == "remote_timeout"
    assert desk.place(spec_of("a"))[1]


def test_idle_is_counted_from_the_moment_that_nothing_is_left() -> None:
    desk = Desk()
    idle = desk.core.sleeping.idle
    assert idle(10.0) == {"h1": 0.0, "h2": 0.0}
    desk.run("a")
    assert idle(70.0) == {"h2": 60.0}
    destroy = only(OrderHost, desk.command("a", VmCommand.DESTROY))
    assert idle(71.0) == {"h2": 61.0}
    desk.answer(destroy, OrderDone())
    assert idle(72.0) == {"h1": 0.0, "h2": 62.0}
    going(desk, "h2")
    assert idle(80.0) == {"h1": 8.0}

"""An abort that did not reach another manager's host is tried again."""

import pytest

from snooze.common.errors import Conflict, ErrorReport, TooBusy
from snooze.common.vm_lifecycle import VmCommand
from snooze.common.vms import MigrationTicket
from snooze.common.wire import (
    AbortIncoming,
    FinishIncoming,
    Inventory,
    MigrateOut,
    OfferIssued,
    OrderDone,
    TakeInventory,
    TicketIssued,
)
from snooze.groupmanager.manager.arrivals_core import INCOMING_TIMEOUT_S
from snooze.groupmanager.manager.manager_events import ManagerEffect, OrderHost
from tests.unit.manager.builders import NO_ANSWER, Desk, only, report_of, told

NO_LEADER = ErrorReport.of(TooBusy("there is no leader to reach the other group manager by"))


def aborts(effects: list[ManagerEffect]) -> list[OrderHost]:
    return [e for e in effects if isinstance(e, OrderHost) and isinstance(e.order, AbortIncoming)]


def later(desk: Desk, seconds: float) -> list[OrderHost]:
    """Time goes by; something quite different happens."""
    desk.now_s += seconds
    return aborts(desk.lose("no such host"))


def left_behind() -> Desk:
    """The leader died while the other manager's host prepared, and while it was to be told."""
    desk = Desk(hosts=1)
    desk.run("a")
    effects = desk.command("a", VmCommand.MIGRATE, destination="elsewhere")
    effects = desk.answer(only(OrderHost, effects), OfferIssued(report_of("a"), b"offer"))
    effects = desk.answer(only(OrderHost, effects), NO_ANSWER, unknown=True)
    effects = desk.answer(aborts(effects)[0], NO_LEADER)
    desk.inventory(only(OrderHost, effects), report_of("a"))
    return desk


def ordered_to_move(*, live: bool) -> tuple[Desk, list[ManagerEffect]]:
    """The destination is ready, and the source is ordered to send its guest."""
    desk = Desk(hosts=1)
    desk.run("a")
    effects = desk.command("a", VmCommand.MIGRATE, destination="elsewhere")
    effects = desk.answer(only(OrderHost, effects), OfferIssued(report_of("a"), b"offer"))
    ticket = MigrationTicket("a", "qemu:///system", live=live)
    return desk, desk.answer(only(OrderHost, effects), TicketIssued(ticket))


def test_it_is_tried_again_until_it_is_answered() -> None:
    """Found by ``snooze-sim replay 52``: room was kept for over an hour, and a host not given."""
    desk = left_behind()
    assert later(desk, 0.0) == []
    again = later(desk, 1.5)
    assert [(order.host_id, order.relayed) for order in again] == [("elsewhere", True)]
    desk.answer(again[0], NO_LEADER)
    assert later(desk, 0.5) == [], "with pauses that grow"
    once_more = later(desk, 2.0)
    desk.answer(once_more[0], OrderDone())
    assert later(desk, 500.0) == []


def test_it_is_not_tried_when_the_vm_migrates_anew() -> None:
    desk = left_behind()
    later(desk, 0.0)
    desk.command("a", VmCommand.MIGRATE, destination="elsewhere")
    assert later(desk, 10.0) == []


@pytest.mark.parametrize("is_heard", [True, False])
def test_a_definition_that_is_all_there_is_of_a_vm_is_finished_and_never_taken_back(
    is_heard: bool,
) -> None:
    """Found by an integration test: the leader died between a cold move and its finish."""
    desk, effects = ordered_to_move(live=False)
    move = only(OrderHost, effects)
    assert isinstance(move.order, MigrateOut)
    if is_heard:
        effects = desk.answer(move, OrderDone())
    else:
        look = only(OrderHost, desk.answer(move, NO_ANSWER, unknown=True))
        assert isinstance(look.order, TakeInventory)
        effects = desk.answer(look, Inventory([]))
    finish = only(OrderHost, effects)
    assert isinstance(finish.order, FinishIncoming)
    assert aborts(desk.answer(finish, NO_LEADER)) == []
    assert later(desk, 0.0) == []
    desk.now_s += 1.5
    again = only(OrderHost, desk.lose("no such host"))
    assert isinstance(again.order, FinishIncoming)
    desk.answer(again, OrderDone(report_of("a")))
    desk.now_s += 500.0
    assert not [e for e in desk.lose("no such host") if isinstance(e, OrderHost)]


def maybe_arrived() -> Desk:
    """Its source has let it go, and no leader could be told so, nor its destination be asked."""
    desk, effects = ordered_to_move(live=True)
    assert desk.core.migrations.moving == ("a",)
    effects = desk.answer(only(OrderHost, effects), OrderDone())  # it has moved
    effects = desk.answer(only(OrderHost, effects), NO_LEADER)  # its arrival is not finished
    effects = desk.answer(aborts(effects)[0], NO_LEADER)
    desk.inventory(only(OrderHost, effects))
    assert desk.core.table.find("a") is None
    assert desk.core.migrations.moving == ("a",), "the next leader hears of it"
    later(desk, 0.0)
    return desk


def whereabouts(effects: list[ManagerEffect]) -> list[tuple[str, str, str]]:
    return [(status.vm_id, status.state.value, status.host_id) for status in told(effects)]


def test_a_guest_that_may_have_arrived_and_has_is_its_other_managers() -> None:
    desk = maybe_arrived()
    assert whereabouts(desk.answer(later(desk, 1.5)[0], OrderDone(report_of("a")))) == []
    assert not desk.core.migrations.moving


@pytest.mark.parametrize("answer", [OrderDone(), ErrorReport.of(Conflict("another one is"))])
def test_the_leader_hears_that_nobody_moves_it_any_more(answer: OrderDone | ErrorReport) -> None:
    """Found by ``snooze-sim replay 920054``: until then it takes the VM for one that we move."""
    desk = maybe_arrived()
    assert whereabouts(desk.answer(later(desk, 1.5)[0], answer)) == [("a", "unreachable", "")]
    assert not desk.core.migrations.moving


def test_the_leader_hears_so_too_when_nobody_has_answered_for_ever() -> None:
    desk = maybe_arrived()
    desk.now_s += INCOMING_TIMEOUT_S + 1.0
    assert whereabouts(desk.lose("no such host")) == [("a", "unreachable", "")]


def test_the_leader_hears_of_a_migration_that_was_refused_after_its_source_had_gone() -> None:
    """Else it would take the VM for one that we move, and not start it elsewhere."""
    desk = Desk(hosts=1)
    desk.run("a")
    effects = desk.command("a", VmCommand.MIGRATE, destination="elsewhere")
    effects = desk.answer(only(OrderHost, effects), OfferIssued(report_of("a"), b"offer"))
    prepare = only(OrderHost, effects)
    desk.lose("h1")
    refused = ErrorReport.of(Conflict("it takes none"))
    assert whereabouts(desk.answer(prepare, refused)) == [("a", "unreachable", "h1")]
    assert not desk.core.migrations.moving

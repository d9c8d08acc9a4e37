"""Commands on VMs: ordered, answered, refused, or of unknown outcome."""

import pytest

from snooze.common.errors import ErrorReport
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.wire import (
    CommandVm,
    OrderDone,
    ResizeVm,
    TakeInventory,
    VmOrderDone,
)
from snooze.groupmanager.manager.manager_events import (
    CloseHost,
    HostAnswered,
    OrderHost,
    TellLeader,
)
from snooze.groupmanager.manager.vm_commands import SHUTDOWN_S
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

BIG = Capacity(3.0, 1024.0)

SIMPLE = [
    (VmCommand.SUSPEND, VmState.RUNNING, VmState.PAUSED),
    (VmCommand.RESUME, VmState.PAUSED, VmState.RUNNING),
    (VmCommand.SHUTDOWN, VmState.RUNNING, VmState.STOPPING),
    (VmCommand.REBOOT, VmState.RUNNING, VmState.RUNNING),
]


@pytest.mark.parametrize(("command", "before", "after"), SIMPLE)
def test_a_command_is_ordered_and_takes_its_state(
    command: VmCommand, before: VmState, after: VmState
) -> None:
    desk = Desk(hosts=0)
    desk.join("h1", report_of("a", before))
    order = only(OrderHost, desk.command("a", command))
    assert order.order == CommandVm(10, "cause", "a", command)
    effects = desk.answer(order, OrderDone(report_of("a", after)))
    answer = answer_of(effects)
    assert isinstance(answer, VmOrderDone)
    assert (answer.status.state, desk.state("a")) == (after, after)


@pytest.mark.parametrize(("command", "before", "after"), SIMPLE)
def test_a_refused_command_changes_nothing(
    command: VmCommand, before: VmState, after: VmState
) -> None:
    desk = Desk(hosts=0)
    desk.join("h1", report_of("a", before))
    order = only(OrderHost, desk.command("a", command))
    effects = desk.answer(order, REFUSED)
    assert error_of(effects) == REFUSED
    assert none(OrderHost, effects)
    assert desk.state("a") is before


@pytest.mark.parametrize(("command", "before", "after"), SIMPLE)
def test_after_a_command_without_an_answer_the_host_is_asked(
    command: VmCommand, before: VmState, after: VmState
) -> None:
    desk = Desk(hosts=0)
    desk.join("h1", report_of("a", before))
    order = only(OrderHost, desk.command("a", command))
    effects = desk.unanswered(order)
    assert error_of(effects).code == "remote_timeout"
    look = only(OrderHost, effects)
    assert look.order == TakeInventory(10, "cause", "a")
    desk.inventory(look, report_of("a", after))
    assert desk.state("a") is after


def test_a_command_with_nothing_to_do_is_answered_as_done() -> None:
    desk = Desk(hosts=0)
    desk.join("h1", report_of("a", VmState.PAUSED))
    effects = desk.command("a", VmCommand.SUSPEND)
    assert none(OrderHost, effects)
    assert isinstance(answer_of(effects), VmOrderDone)


@pytest.mark.parametrize(
    ("vm_id", "code"), [("nobody", "not_found"), ("theirs@h1", "conflict"), ("off", "conflict")]
)
def test_what_cannot_be_done_is_refused(vm_id: str, code: str) -> None:
    desk = Desk(hosts=0)
    desk.join("h1", report_of("theirs", managed=False), report_of("off", VmState.STOPPED))
    effects = desk.command(vm_id, VmCommand.SUSPEND)
    assert error_of(effects).code == code
    assert none(OrderHost, effects)


def test_a_newer_state_than_the_answer_is_kept() -> None:
    desk = Desk()
    desk.run("a")
    order = only(OrderHost, desk.command("a", VmCommand.SHUTDOWN))
    desk.notice("h1", report_of("a", VmState.STOPPED))
    desk.answer(order, OrderDone(report_of("a", VmState.STOPPED)))
    assert desk.state("a") is VmState.STOPPED


def test_a_guest_that_does_not_shut_down_is_not_waited_for_for_ever() -> None:
    desk = Desk()
    desk.run("a")
    desk.run("b")
    for vm_id in ("a", "b"):
        order = only(OrderHost, desk.command(vm_id, VmCommand.SHUTDOWN))
        desk.answer(order, OrderDone(report_of(vm_id)))
    desk.notice("h1", report_of("b", VmState.STOPPED))
    desk.now_s += SHUTDOWN_S
    assert none(OrderHost, desk.notice("h1", report_of("a"))), "it may yet"
    assert desk.state("a") is VmState.STOPPING
    desk.now_s += 1.0
    look = only(OrderHost, desk.notice("h1", report_of("a")))
    (status,) = told(desk.inventory(look, report_of("a")))
    assert (status.state, status.reason) == (VmState.RUNNING, "it did not shut down in 300 s")
    assert none(OrderHost, desk.notice("h1", report_of("a")))
    order = only(OrderHost, desk.command("a", VmCommand.SHUTDOWN))
    assert isinstance(order.order, CommandVm), "it may be asked again"


# ---------------------------------------------------------------- destroy


def test_a_vm_holds_its_room_until_it_is_destroyed() -> None:
    desk = Desk()
    desk.run("a")
    effects = desk.command("a", VmCommand.DESTROY)
    assert told(effects)[0].state is VmState.DESTROYING
    assert desk.cores("h1") == 1.0
    done = desk.answer(only(OrderHost, effects), OrderDone())
    assert told(done)[0].state is VmState.DESTROYED
    assert isinstance(answer_of(done), VmOrderDone)
    assert desk.cores("h1") == 0.0
    assert not desk.table.vms


def test_a_vm_that_is_off_needs_no_room_to_be_destroyed() -> None:
    desk = Desk(hosts=0)
    desk.join("h1", report_of("full", demand=Capacity(4.0, 1.0)), report_of("a", VmState.STOPPED))
    order = only(OrderHost, desk.command("a", VmCommand.DESTROY))
    assert desk.state("a") is VmState.STOPPED
    assert told(desk.answer(order, OrderDone()))[0].state is VmState.DESTROYED


def test_a_host_that_tells_of_the_end_first_is_heard() -> None:
    desk = Desk()
    desk.run("a")
    order = only(OrderHost, desk.command("a", VmCommand.DESTROY))
    gone = told(desk.notice("h1", report_of("a"), gone=True))
    assert (gone[0].state, gone[0].cause) == (VmState.DESTROYED, "cause")
    effects = desk.unanswered(order)
    assert isinstance(answer_of(effects), VmOrderDone)
    assert none(TellLeader, effects)


@pytest.mark.parametrize("unknown", [False, True])
def test_a_vm_that_would_not_go_is_what_the_host_says(unknown: bool) -> None:
    desk = Desk()
    desk.run("a")
    order = only(OrderHost, desk.command("a", VmCommand.DESTROY))
    desk.notice("h1", report_of("a", VmState.STOPPED))
    assert desk.state("a") is VmState.DESTROYING, "the order is under way"
    effects = desk.answer(order, REFUSED, unknown=unknown)
    assert error_of(effects) == REFUSED
    desk.inventory(only(OrderHost, effects), report_of("a", VmState.STOPPED))
    assert desk.state("a") is VmState.STOPPED
    assert desk.cores("h1") == 0.0


def test_a_destruction_without_an_answer_that_happened() -> None:
    desk = Desk()
    desk.run("a")
    order = only(OrderHost, desk.command("a", VmCommand.DESTROY))
    look = only(OrderHost, desk.unanswered(order))
    assert told(desk.inventory(look))[0].state is VmState.DESTROYED
    assert not desk.table.vms


def test_a_vm_destroyed_while_it_starts() -> None:
    desk = Desk()
    _, orders = desk.place(spec_of("a"))
    destroy = only(OrderHost, desk.command("a", VmCommand.DESTROY))
    assert desk.answer(orders[0], OrderDone(report_of("a"))) == []
    assert desk.state("a") is VmState.DESTROYING
    desk.answer(destroy, OrderDone())
    assert not desk.table.vms


def test_a_host_that_does_not_say_what_it_has_is_made_to_join_again() -> None:
    desk = Desk()
    desk.run("a")
    look = only(OrderHost, desk.unanswered(only(OrderHost, desk.command("a", VmCommand.SUSPEND))))
    assert only(CloseHost, desk.unanswered(look)).host_id == "h1"


def test_an_answer_about_a_vm_that_has_moved_on_is_not_heard() -> None:
    desk = Desk()
    desk.run("a")
    look = only(OrderHost, desk.unanswered(only(OrderHost, desk.command("a", VmCommand.SUSPEND))))
    desk.notice("h1", report_of("a"), gone=True)
    assert desk.inventory(look, report_of("a")) == []
    assert "a" not in desk.table.vms


# ---------------------------------------------------------------- start again


def off(*, room: float = 4.0) -> Desk:
    """A VM that is off on a host with so many free cores."""
    desk = Desk(hosts=0)
    used = Capacity(4.0 - room, 1024.0)
    desk.join("h1", report_of("a", VmState.STOPPED), report_of("b", demand=used))
    return desk


def test_starting_again_needs_room() -> None:
    desk = off(room=0.5)
    assert error_of(desk.command("a", VmCommand.START)).code == "no_capacity"
    assert desk.state("a") is VmState.STOPPED


def test_starting_again_reserves_first() -> None:
    desk = off(room=1.0)
    effects = desk.command("a", VmCommand.START)
    assert desk.cores("h1") == 4.0
    done = desk.answer(only(OrderHost, effects), OrderDone(report_of("a")))
    assert isinstance(answer_of(done), VmOrderDone)
    assert desk.state("a") is VmState.RUNNING


def test_a_refused_start_again_gives_the_room_back() -> None:
    desk = off()
    order = only(OrderHost, desk.command("a", VmCommand.START))
    assert error_of(desk.answer(order, REFUSED)) == REFUSED
    assert desk.state("a") is VmState.STOPPED


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.STOPPED])
def test_an_unanswered_start_again_keeps_the_room_until_the_host_has_said(state: VmState) -> None:
    desk = off()
    effects = desk.unanswered(only(OrderHost, desk.command("a", VmCommand.START)))
    assert desk.state("a") is VmState.STARTING
    desk.inventory(only(OrderHost, effects), report_of("a", state))
    assert desk.state("a") is state


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.STOPPED])
def test_a_vm_that_is_said_to_stop_while_it_is_started_again_keeps_its_room_until_it_is_looked_at(
    state: VmState,
) -> None:
    """What the host said may be older than its answer, or newer: it alone knows (seed 710118)."""
    desk = off(room=1.0)
    order = only(OrderHost, desk.command("a", VmCommand.START))
    assert told(desk.notice("h1", report_of("a", VmState.STOPPED))) == []
    assert desk.cores("h1") == 4.0
    effects = desk.answer(order, OrderDone(report_of("a")))
    assert desk.cores("h1") == 4.0
    look = only(OrderHost, effects)
    assert isinstance(look.order, TakeInventory)
    desk.inventory(look, report_of("a", state))
    assert desk.state("a") is state
    assert desk.cores("h1") == (4.0 if state is VmState.RUNNING else 3.0)


def test_a_vm_that_is_said_to_run_although_its_start_was_refused_is_looked_at() -> None:
    desk = off()
    order = only(OrderHost, desk.command("a", VmCommand.START))
    desk.notice("h1", report_of("a"))
    effects = desk.answer(order, REFUSED)
    assert error_of(effects) == REFUSED
    desk.inventory(only(OrderHost, effects), report_of("a"))
    assert desk.state("a") is VmState.RUNNING


@pytest.mark.parametrize("outcome", [REFUSED, OrderDone(report_of("a"))])
def test_a_vm_that_is_destroyed_while_it_is_started_again_goes_on_being_destroyed(
    outcome: ErrorReport | OrderDone,
) -> None:
    desk = off()
    order = only(OrderHost, desk.command("a", VmCommand.START))
    desk.command("a", VmCommand.DESTROY)
    desk.answer(order, outcome)
    assert desk.state("a") is VmState.DESTROYING


def test_a_vm_that_vanished_while_it_was_started_again() -> None:
    desk = off()
    order = only(OrderHost, desk.command("a", VmCommand.START))
    assert "vanished" in error_of(desk.lose("h1")).message
    desk.join("h1", epoch=11)
    assert desk.feed(HostAnswered(order.order_id, OrderDone())) == []


# ---------------------------------------------------------------- resize


@pytest.mark.parametrize(
    ("size", "meanwhile", "after"),
    [
        (Capacity(3.0, 1024.0), 3.0, 3.0),
        (Capacity(1.0, 512.0), 2.0, 1.0),
        (Capacity(1.0, 4096.0), 2.0, 1.0),
    ],
    ids=["grow", "shrink", "both"],
)
def test_until_the_host_has_answered_the_larger_of_both_is_reserved(
    size: Capacity, meanwhile: float, after: float
) -> None:
    desk = Desk()
    desk.run("a", demand=Capacity(2.0, 1024.0))
    order = only(OrderHost, desk.command("a", VmCommand.RESIZE, demand=size))
    assert order.order == ResizeVm(10, "cause", "a", size)
    assert desk.cores("h1") == meanwhile
    assert desk.table.reserved_on("h1").memory_kib == max(1024.0, size.memory_kib)
    effects = desk.answer(order, OrderDone(report_of("a", demand=size)))
    assert desk.cores("h1") == after
    assert told(effects)[0].demand == size


def test_a_resize_needs_room_for_what_is_more() -> None:
    desk = Desk()
    desk.run("a", demand=Capacity(3.0, 1024.0))
    effects = desk.command("a", VmCommand.RESIZE, demand=Capacity(5.0, 1.0))
    assert error_of(effects).code == "no_capacity"
    assert desk.cores("h1") == 3.0
    assert error_of(desk.command("a", VmCommand.RESIZE)).code == "conflict"


def test_a_refused_resize_gives_back_what_was_more() -> None:
    desk = Desk()
    desk.run("a")
    order = only(OrderHost, desk.command("a", VmCommand.RESIZE, demand=BIG))
    assert error_of(desk.answer(order, REFUSED)) == REFUSED
    assert desk.cores("h1") == 1.0


@pytest.mark.parametrize("size", [SMALL, BIG])
def test_an_unanswered_resize_is_what_the_host_says(size: Capacity) -> None:
    desk = Desk()
    desk.run("a")
    order = only(OrderHost, desk.command("a", VmCommand.RESIZE, demand=BIG))
    look = only(OrderHost, desk.unanswered(order))
    assert desk.cores("h1") == 3.0
    desk.inventory(look, report_of("a", demand=size))
    assert desk.cores("h1") == size.cpu_cores


def test_a_vm_that_vanished_while_it_was_resized() -> None:
    desk = Desk()
    desk.run("a")
    order = only(OrderHost, desk.command("a", VmCommand.RESIZE, demand=BIG))
    desk.notice("h1", report_of("a"), gone=True)
    assert error_of(desk.answer(order, OrderDone())).code == "conflict"
    assert desk.cores("h1") == 0.0

"""The manager core, rule by rule."""

import pytest

from snooze.common.api import ImageView
from snooze.common.errors import ErrorReport
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.vms import VmErrorCode
from snooze.common.wire import (
    CommandVm,
    HostGone,
    HostImages,
    HostJoined,
    MoveToManager,
    OrderDone,
    ResizeVm,
    StartVm,
    TakeInventory,
    VmOrderDone,
)
from snooze.groupmanager.manager import manager_core
from snooze.groupmanager.manager.manager_core import MAX_TRIES
from snooze.groupmanager.manager.manager_events import (
    AnswerLeader,
    CloseHost,
    HostAnswered,
    ImagesNoticed,
    OrderHost,
    TellLeader,
)
from snooze.scheduling.check import Violation, check_plan
from snooze.scheduling.plans import Plan
from snooze.scheduling.snapshot import Snapshot
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

# ---------------------------------------------------------------- rule 1: hosts


def test_what_a_host_reports_when_it_joins_is_the_truth() -> None:
    desk = Desk(hosts=0)
    off = report_of("b", VmState.STOPPED)
    theirs = report_of("c", managed=False)
    notice = only(TellLeader, desk.join("h1", report_of("a"), off, theirs)).notice
    assert isinstance(notice, HostJoined)
    assert [vm.vm_id for vm in notice.state.vms] == ["a", "b", "c"]
    assert desk.cores("h1") == 2.0, "what is off holds no room; domains of others do"


def test_a_lost_host_is_forgotten_with_its_vms() -> None:
    desk = Desk()
    desk.run("a")
    notice = only(TellLeader, desk.lose("h1")).notice
    assert notice == HostGone("h1", 10, "silent")
    assert "h1" not in desk.table.hosts
    assert not desk.table.vms
    assert desk.lose("h1") == []


def test_the_end_of_a_former_link_is_no_news() -> None:
    desk = Desk(hosts=1)
    desk.join("h1", epoch=11)
    assert desk.lose("h1", epoch=10) == []
    assert "h1" in desk.table.hosts


def test_a_host_that_joins_again_has_what_it_says_now() -> None:
    desk = Desk()
    desk.run("a")
    desk.run("b")
    desk.join("h1", report_of("b", VmState.PAUSED), epoch=11)
    assert {key: vm.state for key, vm in desk.table.vms.items()} == {"b": VmState.PAUSED}
    assert desk.cores("h1") == 1.0


def test_images_are_passed_on() -> None:
    desk = Desk()
    images = (ImageView("debian", "qcow2"),)
    notice = only(TellLeader, desk.feed(ImagesNoticed("h1", images))).notice
    assert notice == HostImages("h1", images)
    assert desk.table.hosts["h1"].description.images == images
    assert desk.feed(ImagesNoticed("nobody", images)) == []


# ---------------------------------------------------------------- rule 2: room first


def test_room_is_reserved_before_the_order_goes_out() -> None:
    desk = Desk()
    placed, orders = desk.place(spec_of("a", BIG), spec_of("b", BIG))
    assert [vm.host_id for vm in placed] == ["h1", "h2"]
    assert [order.host_id for order in orders] == ["h1", "h2"]
    assert desk.cores("h1") == 3.0
    start = orders[0].order
    assert isinstance(start, StartVm)
    assert (start.epoch, start.cause, start.spec.vm_id) == (10, "task", "a")
    effects = desk.answer(orders[0], OrderDone(report_of("a", demand=BIG)))
    assert [(vm.vm_id, vm.state, vm.cause) for vm in told(effects)] == [
        ("a", VmState.RUNNING, "task")
    ]


def test_a_refused_start_gives_its_room_back_and_says_why() -> None:
    desk = Desk()
    _, orders = desk.place(spec_of("a"))
    status = told(desk.answer(orders[0], REFUSED))[0]
    assert (status.state, status.host_id) == (VmState.FAILED, "")
    assert status.reason == "on name-h1: no disk"
    assert status.error_code == VmErrorCode.START_FAILED
    assert desk.cores("h1") == 0.0
    assert not desk.table.vms


def test_who_has_no_room_says_so_and_the_others_start() -> None:
    desk = Desk(hosts=1)
    placed, orders = desk.place(spec_of("a", BIG), spec_of("b", BIG))
    assert [bool(vm.host_id) for vm in placed] == [True, False]
    assert placed[1].reason
    assert len(orders) == 1


def test_a_pin_is_kept_or_refused() -> None:
    desk = Desk()
    placed, _ = desk.place(spec_of("a"), host="h2")
    assert placed[0].host_id == "h2"
    placed, orders = desk.place(spec_of("b"), host="h9")
    assert placed[0].reason == "host h9 is not with this group manager"
    assert orders == []


def test_no_hosts_at_all() -> None:
    placed, orders = Desk(hosts=0).place(spec_of("a"))
    assert placed[0].reason
    assert orders == []


def test_a_leaving_host_gets_no_new_vm() -> None:
    desk = Desk(hosts=1)
    desk.run("a")
    desk.command("a", VmCommand.REBOOT)
    desk.release("h1")
    placed, _ = desk.place(spec_of("b"))
    assert placed[0].host_id == ""


# ---------------------------------------------------------------- rule 3: plans are checked


def test_a_plan_that_the_checker_refutes_is_not_carried_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refute(snapshot: Snapshot, plan: Plan) -> list[Violation]:
        return real(snapshot, Plan(placement=plan.placement + 99))

    real = check_plan
    monkeypatch.setattr(manager_core, "check_plan", refute)
    desk = Desk()
    placed, orders = desk.place(spec_of("a"))
    assert orders == []
    assert placed[0].reason.startswith("the plan is invalid")
    assert desk.cores("h1") == 0.0


# ---------------------------------------------------------------- rule 4: idempotence


def test_a_vm_asked_for_twice_is_started_once() -> None:
    desk = Desk()
    first, _ = desk.place(spec_of("a"))
    again, orders = desk.place(spec_of("a"))
    assert again == first
    assert orders == []


def test_an_unanswered_start_is_ordered_again_and_then_the_host_has_to_say() -> None:
    desk = Desk()
    _, orders = desk.place(spec_of("a"))
    order = orders[0]
    for _ in range(MAX_TRIES - 1):
        order = only(OrderHost, desk.unanswered(order))
        assert order.order == orders[0].order
        assert desk.cores("h1") == 1.0
    assert only(CloseHost, desk.unanswered(order)).host_id == "h1"
    assert desk.state("a") is VmState.STARTING
    desk.lose("h1")
    desk.join("h1", report_of("a"), epoch=11)
    assert desk.state("a") is VmState.RUNNING


def test_a_start_whose_host_is_lost_is_not_ordered_again() -> None:
    desk = Desk()
    desk.place(spec_of("a"))
    assert none(OrderHost, desk.lose("h1"))


def test_an_answer_after_the_host_was_lost_is_not_heard() -> None:
    desk = Desk()
    _, orders = desk.place(spec_of("a"))
    desk.lose("h1")
    desk.join("h1", epoch=11)
    assert desk.answer(orders[0], OrderDone(report_of("a"))) == []
    assert "a" not in desk.table.vms
    assert desk.feed(HostAnswered(999, OrderDone())) == []


# ---------------------------------------------------------------- rule 5: commands

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
    assert look.order == TakeInventory(10, "cause")
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


# ---------------------------------------------------------------- what hosts say by themselves


@pytest.mark.parametrize("state", [VmState.PAUSED, VmState.STOPPED, VmState.FAILED])
def test_a_change_is_taken_and_told(state: VmState) -> None:
    desk = Desk()
    desk.run("a")
    status = told(desk.notice("h1", report_of("a", state, reason="why")))[0]
    assert (status.state, status.reason, status.cause) == (state, "why", "")
    assert desk.state("a") is state


def test_no_change_is_not_told() -> None:
    desk = Desk()
    desk.run("a")
    assert desk.notice("h1", report_of("a")) == []


def test_a_vm_that_was_resized_by_hand_has_its_new_size() -> None:
    desk = Desk()
    desk.run("a")
    desk.notice("h1", report_of("a", demand=BIG))
    assert desk.cores("h1") == 3.0


def test_a_vm_asked_to_shut_down_that_still_runs_is_stopping() -> None:
    desk = Desk()
    desk.run("a")
    desk.answer(only(OrderHost, desk.command("a", VmCommand.SHUTDOWN)), OrderDone())
    assert desk.notice("h1", report_of("a")) == []
    assert desk.state("a") is VmState.STOPPING


def test_somebody_elses_domain_is_shown_and_counted() -> None:
    desk = Desk()
    status = told(desk.notice("h1", report_of("x", managed=False)))[0]
    assert not status.managed
    assert desk.cores("h1") == 1.0
    desk.notice("h1", report_of("x", managed=False), gone=True)
    assert desk.cores("h1") == 0.0


def test_the_end_of_what_was_never_here_is_no_news() -> None:
    desk = Desk()
    assert desk.notice("h1", report_of("x"), gone=True) == []
    assert desk.notice("h9", report_of("x")) == []


def test_what_another_host_says_of_a_vm_is_not_heard() -> None:
    desk = Desk()
    desk.run("a")
    assert desk.notice("h2", report_of("a", VmState.STOPPED)) == []
    assert desk.state("a") is VmState.RUNNING


def test_an_open_start_is_told_by_its_answer_only() -> None:
    desk = Desk()
    _, orders = desk.place(spec_of("a"))
    assert desk.notice("h1", report_of("a")) == []
    assert desk.state("a") is VmState.STARTING
    desk.answer(orders[0], OrderDone(report_of("a")))
    assert desk.state("a") is VmState.RUNNING


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_start_that_a_former_manager_ordered_ends_by_what_the_host_says(is_gone: bool) -> None:
    desk = Desk(hosts=0)
    desk.join("h1", report_of("a", VmState.STARTING))
    status = told(desk.notice("h1", report_of("a"), gone=is_gone))[0]
    assert status.state is (VmState.FAILED if is_gone else VmState.RUNNING)
    assert status.host_id == ("" if is_gone else "h1")


def test_a_vm_that_left_by_a_former_managers_migration_is_not_destroyed() -> None:
    desk = Desk(hosts=0)
    desk.join("h1", report_of("a", VmState.MIGRATING))
    status = told(desk.notice("h1", report_of("a", VmState.MIGRATING), gone=True))[0]
    assert (status.state, status.host_id) == (VmState.UNREACHABLE, "")
    assert not desk.table.vms
    assert desk.cores("h1") == 0.0


# ---------------------------------------------------------------- rule 6: leaving


def test_a_quiet_host_is_sent_away_at_once() -> None:
    desk = Desk()
    desk.run("a")
    order = only(OrderHost, desk.release("h1"))
    assert isinstance(order.order, MoveToManager)
    assert order.order.assignment.epoch == 99
    closed = only(CloseHost, desk.answer(order, OrderDone()))
    assert closed.host_id == "h1"


def test_a_busy_host_leaves_when_it_is_quiet() -> None:
    desk = Desk()
    desk.run("a")
    suspend = only(OrderHost, desk.command("a", VmCommand.SUSPEND))
    resize = only(OrderHost, desk.command("a", VmCommand.RESIZE, demand=BIG))
    assert none(OrderHost, desk.release("h1"))
    assert none(OrderHost, desk.answer(suspend, REFUSED))
    effects = desk.answer(resize, REFUSED)
    assert isinstance(only(OrderHost, effects).order, MoveToManager)


def test_a_host_that_refuses_to_go_stays() -> None:
    desk = Desk(hosts=1)
    order = only(OrderHost, desk.release("h1"))
    assert desk.answer(order, REFUSED) == []
    placed, _ = desk.place(spec_of("a"))
    assert placed[0].host_id == "h1"


def test_a_host_that_may_have_gone_is_let_go() -> None:
    desk = Desk()
    assert only(CloseHost, desk.unanswered(only(OrderHost, desk.release("h1"))))


def test_the_link_of_a_host_that_joined_again_is_not_closed() -> None:
    desk = Desk()
    desk.release("h1")
    assert none(CloseHost, desk.join("h1", epoch=11))
    assert desk.table.hosts["h1"].leaving is None


def test_releasing_a_stranger_changes_nothing() -> None:
    assert Desk().release("h9") == []


def test_an_order_to_a_host_that_is_not_here_counts_on_nobody() -> None:
    desk = Desk()
    desk.run("a")
    order = only(OrderHost, desk.command("a", VmCommand.SUSPEND))
    desk.join("h1", report_of("a"), epoch=11)
    desk.answer(order, OrderDone())
    assert desk.table.hosts["h1"].orders == 0
    assert isinstance(only(OrderHost, desk.release("h1")).order, MoveToManager)


def test_every_request_of_the_leader_is_answered_once() -> None:
    desk = Desk()
    desk.run("a")
    effects = desk.command("a", VmCommand.SUSPEND)
    assert none(AnswerLeader, effects)
    effects = desk.lose("h1")
    assert only(AnswerLeader, effects).answer == ErrorReport(
        "remote_failed", "host h1 is out of reach: silent"
    )

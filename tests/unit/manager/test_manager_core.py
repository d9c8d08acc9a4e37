"""The manager core, rule by rule."""

import msgspec
import pytest

from snooze.common.api import ImageView
from snooze.common.errors import ErrorReport
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.vms import VmErrorCode
from snooze.common.wire import (
    HostGone,
    HostImages,
    HostJoined,
    MoveToManager,
    OrderDone,
    PrepareIncoming,
    StaleCopy,
    StartVm,
    TakeInventory,
)
from snooze.groupmanager.manager import placing
from snooze.groupmanager.manager.manager_events import (
    AnswerLeader,
    CloseHost,
    HostAnswered,
    ImagesNoticed,
    OrderHost,
    TellLeader,
)
from snooze.groupmanager.manager.placing import MAX_TRIES
from snooze.scheduling.check import Violation, check_plan
from snooze.scheduling.plans import Plan
from snooze.scheduling.snapshot import Snapshot
from tests.unit.manager.builders import (
    REFUSED,
    Desk,
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
    assert (status.error_code, status.failed_on) == (VmErrorCode.START_FAILED, "h1")
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
    monkeypatch.setattr(placing, "check_plan", refute)
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


def test_the_answer_names_the_assignment_in_which_it_is_started() -> None:
    """The host may have another by the time the leader reads it."""
    desk = Desk(hosts=0)
    desk.join("h1", epoch=12)
    first, [order] = desk.place(spec_of("a"))
    again, _ = desk.place(spec_of("a"))
    assert isinstance(order.order, StartVm)
    assert [placed.epoch for placed in (*first, *again)] == [order.order.epoch] * 2 == [12, 12]


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


def refused_after_silence(desk: Desk) -> OrderHost:
    """A start is not answered, and its repeat refused; the host is asked what it has."""
    _, orders = desk.place(spec_of("a"))
    again = only(OrderHost, desk.unanswered(orders[0]))
    effects = desk.answer(again, ErrorReport("too_busy", "an earlier order is under way"))
    assert told(effects) == [], "it may be under way: nobody may start it elsewhere"
    look = only(OrderHost, effects)
    assert isinstance(look.order, TakeInventory)
    return look


@pytest.mark.parametrize("state", [VmState.STARTING, VmState.RUNNING])
def test_a_repeat_that_is_refused_says_nothing_of_a_start_that_is_under_way(
    state: VmState,
) -> None:
    desk = Desk()
    look = refused_after_silence(desk)
    (status,) = told(desk.inventory(look, report_of("a", state)))
    assert (status.state, status.host_id) == (state, "h1")
    assert desk.cores("h1") == 1.0
    desk.notice("h1", report_of("a"))
    assert desk.state("a") is VmState.RUNNING


def test_it_has_failed_once_its_host_does_not_have_it() -> None:
    desk = Desk()
    (status,) = told(desk.inventory(refused_after_silence(desk)))
    assert (status.state, status.host_id) == (VmState.FAILED, "")


def test_a_host_that_does_not_say_whether_it_has_it_joins_again() -> None:
    desk = Desk()
    assert only(CloseHost, desk.unanswered(refused_after_silence(desk))).host_id == "h1"
    assert desk.state("a") is VmState.STARTING


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


def test_what_another_host_says_of_a_vm_is_told_as_a_copy_of_it() -> None:
    desk = Desk()
    desk.run("a")
    (status,) = told(desk.notice("h2", report_of("a", VmState.STOPPED)))
    assert (status.host_id, status.state) == ("h2", VmState.STOPPED)
    assert (desk.vm("a").host_id, desk.state("a")) == ("h1", VmState.RUNNING)
    (status,) = told(desk.notice("h2", report_of("a", VmState.STOPPED), gone=True))
    assert (status.host_id, status.state) == ("h2", VmState.DESTROYED)
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


def test_of_two_domains_of_one_vm_the_guest_that_runs_is_the_vm_whatever_its_generation() -> None:
    """An older generation was taken for the VM and started, then the newer one's host came back.

    Found by ``snooze-sim replay 11``: the VM ran twice.
    """
    desk = Desk(hosts=0)
    desk.join("h2", report_of("vm", VmState.RUNNING))
    newer = msgspec.structs.replace(report_of("vm", VmState.STOPPED), generation=2)
    desk.join("h1", newer)
    assert desk.vm("vm").host_id == "h2"
    order = only(OrderHost, desk.direct("h1", StaleCopy("vm", 2)))
    desk.answer(order, OrderDone())
    assert desk.vm("vm").host_id == "h2"
    assert desk.state("vm") is VmState.RUNNING


def test_when_the_domain_taken_for_the_vm_is_discarded_the_one_set_aside_is_the_vm() -> None:
    desk = Desk(hosts=0)
    desk.join("h2", report_of("vm", VmState.STOPPED))
    newer = msgspec.structs.replace(report_of("vm", VmState.STOPPED), generation=2)
    desk.join("h1", newer)
    assert desk.vm("vm").host_id == "h1"
    order = only(OrderHost, desk.direct("h1", StaleCopy("vm", 2)))
    desk.answer(order, OrderDone())
    assert desk.vm("vm").host_id == "h2"


@pytest.mark.parametrize("state", [VmState.STARTING, VmState.PAUSED])
def test_when_the_domain_taken_for_the_vm_ends_by_itself_the_one_set_aside_is_the_vm(
    state: VmState,
) -> None:
    """Found in virtual time, seed 216860: a start of another day displaced a guest that ran."""
    desk = Desk(hosts=0)
    desk.join("h2", report_of("vm", VmState.RUNNING))
    newer = msgspec.structs.replace(report_of("vm", state), generation=2)
    desk.join("h1", newer)
    assert desk.vm("vm").host_id == "h1"
    statuses = told(desk.notice("h1", newer, gone=True))
    assert (desk.vm("vm").host_id, desk.state("vm")) == ("h2", VmState.RUNNING)
    assert (statuses[-1].host_id, statuses[-1].state) == ("h2", VmState.RUNNING)
    assert desk.cores("h1") == 0.0


def test_what_a_host_said_before_its_answer_was_heard_is_not_lost() -> None:
    """Found in virtual time, seed 20747: the guest had crashed, and was shown as running."""
    desk = Desk()
    _, [start] = desk.place(spec_of("a"), host="h1")
    assert not desk.notice("h1", report_of("a"))
    assert not desk.notice("h1", report_of("a", VmState.FAILED))
    effects = desk.answer(start, OrderDone(report_of("a")))
    look = only(OrderHost, effects)
    assert isinstance(look.order, TakeInventory)
    [status] = told(desk.inventory(look, report_of("a", VmState.FAILED)))
    assert status.state is VmState.FAILED

    calm = Desk()
    _, [start] = calm.place(spec_of("a"), host="h1")
    calm.notice("h1", report_of("a"))
    assert none(OrderHost, calm.answer(start, OrderDone(report_of("a"))))


def test_that_a_paused_guest_is_halted_is_told() -> None:
    """Found in virtual time, seed 20315: what is told first is the pause alone."""
    desk = Desk()
    desk.run("a")
    paused = report_of("a", VmState.PAUSED)
    desk.notice("h1", paused)
    [status] = told(desk.notice("h1", msgspec.structs.replace(paused, halted=True)))
    assert status.halted


def test_the_source_of_a_vm_that_is_awaited_here_is_heard_once_it_is_ours() -> None:
    """Found in virtual time, seeds 30710 and 31542: its former manager died during the move."""
    desk = Desk(hosts=1)
    incoming = PrepareIncoming(0, "cause", report_of("a"), b"offer")
    desk.relay("h1", incoming)
    desk.join("h9", report_of("a", VmState.MIGRATING))
    [status] = told(desk.notice("h9", report_of("a", VmState.PAUSED)))
    assert (status.state, status.host_id) == (VmState.PAUSED, "h9")
    assert not desk.notice("h9", report_of("a"), gone=True), "the destination will tell"
    [status] = told(desk.notice("h9", report_of("a", VmState.MIGRATING), gone=True))
    assert (status.state, status.host_id) == (VmState.UNREACHABLE, "")
    assert desk.notice("h1", report_of("a"))
    assert desk.vm("a").host_id == "h1"

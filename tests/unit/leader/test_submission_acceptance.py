"""Submissions: judged whole, recorded before they are answered, dispatched, told of."""

import pytest

from snooze.common.api import TaskState
from snooze.common.errors import ErrorReport
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmErrorCode
from snooze.groupmanager.leader.membership_core import Announce
from snooze.groupmanager.leader.submission_events import (
    AnswerSubmission,
    AskManager,
    Destroyed,
    PlacementFailed,
    RecordFailed,
    RecordTask,
    RecordWritten,
    TaskMoved,
    UpdateRecords,
)
from tests.unit.leader.builders import (
    ROOM,
    SMALL,
    Desk,
    candidate,
    none,
    only,
    status_of,
    summary_of,
)

SUBNET = "10.0.0.0/29"  # .2 to .5

# ---------------------------------------------------------------- rule 1: judged whole


def test_one_wrong_vm_refuses_all_of_it() -> None:
    desk = Desk("gm1", subnets=[SUBNET])
    effects = desk.submitted(candidate("a"), candidate("b", wrong="no memory"), candidate("c"))
    error = only(AnswerSubmission, effects).error
    assert error is not None
    assert error.code == "invalid_request"
    assert error.message.startswith("1 of 3 VMs")
    assert [problem.message for problem in error.problems] == ["no memory"]
    assert effects == [AnswerSubmission(7, error=error)]
    assert not desk.registry.vms
    assert not desk.core.tasks
    assert desk.leases.lease("x", desk.now_s) == "10.0.0.2"


def test_a_partial_one_starts_the_right_ones() -> None:
    desk = Desk("gm1")
    effects = desk.submitted(candidate("a"), candidate("b", wrong="no memory"), partial=True)
    record = only(RecordTask, effects)
    assert [vm.vm_id for vm in record.vms] == ["a"]
    assert [vm.state for vm in record.task.vms] == [VmState.PENDING, VmState.FAILED]
    assert desk.error_of("b").code == VmErrorCode.INVALID_TEMPLATE


def test_a_partial_one_with_nothing_right_ends_at_once() -> None:
    desk = Desk("gm1")
    desk.submitted(candidate("b", wrong="no memory"), partial=True)
    effects = desk.feed(RecordWritten("task", desk.now_ms))
    assert only(AnswerSubmission, effects).task_id == "task"
    assert desk.task().state is TaskState.FAILED


def test_names_are_unique_among_the_living_and_within_the_request() -> None:
    desk = Desk("gm1")
    desk.submit("a")
    effects = desk.submitted(
        candidate("b", name="name-a"), candidate("c", name="x"), candidate("d", name="x")
    )
    error = only(AnswerSubmission, effects).error
    assert error is not None
    assert [(p.where, p.code) for p in error.problems] == [
        ("vms[0].name", VmErrorCode.NAME_TAKEN),
        ("vms[2].name", VmErrorCode.NAME_TAKEN),
    ]
    assert "vms[1]" in error.problems[1].message


@pytest.mark.parametrize("pin", ["gm1-host", "name-gm1-host", "gm1"])
def test_a_pin_is_a_host_by_id_or_name_or_a_manager(pin: str) -> None:
    desk = Desk("gm1")
    assert only(RecordTask, desk.submitted(candidate("a", host=pin)))


def test_a_pin_to_nothing_is_refused() -> None:
    error = only(AnswerSubmission, Desk("gm1").submitted(candidate("a", host="mars"))).error
    assert error is not None
    assert error.problems[0].code == VmErrorCode.INVALID_HOST


def test_every_vm_gets_an_address_and_its_mac() -> None:
    desk = Desk("gm1", subnets=[SUBNET])
    record = only(RecordTask, desk.submitted(candidate("a"), candidate("b")))
    assert [vm.ip_address for vm in record.vms] == ["10.0.0.2", "10.0.0.3"]
    assert record.vms[0].mac_address == "54:56:0a:00:00:02"


def test_the_mac_is_the_templates_unless_encoded() -> None:
    desk = Desk("gm1", subnets=[SUBNET])
    desk.core.encode_mac = False
    assert only(RecordTask, desk.submitted(candidate("a"))).vms[0].mac_address == ""


def test_too_few_addresses_refuse_all_and_use_none_up() -> None:
    desk = Desk("gm1", subnets=[SUBNET])
    effects = desk.submitted(*(candidate(name) for name in "abcde"))
    error = only(AnswerSubmission, effects).error
    assert error is not None
    assert error.code == "no_capacity"
    assert "address" in error.message
    assert not desk.registry.vms
    assert only(RecordTask, desk.submitted(*(candidate(name) for name in "abcd")))


def test_a_partial_one_takes_what_addresses_there_are() -> None:
    desk = Desk("gm1", subnets=[SUBNET])
    effects = desk.submitted(*(candidate(name) for name in "abcde"), partial=True)
    assert len(only(RecordTask, effects).vms) == 4
    assert desk.error_of("e").code == VmErrorCode.NO_ADDRESS


def test_too_many_submissions_under_way_are_told_to_come_back() -> None:
    desk = Desk("gm1", max_pending_tasks=1)
    desk.submit("a")
    error = only(AnswerSubmission, desk.submitted(candidate("b"), task_id="other")).error
    assert error is not None
    assert error.code == "too_busy"
    assert error.retry_after_s


# ---------------------------------------------------------------- rule 2: recorded, then answered


def test_nothing_is_answered_or_asked_before_it_is_recorded() -> None:
    desk = Desk("gm1")
    assert [type(effect) for effect in desk.submitted(candidate("a"))] == [RecordTask]
    assert desk.tick(30.0) == [], "it waits for its record, not for a host"
    effects = desk.feed(RecordWritten("task", desk.now_ms))
    assert only(AnswerSubmission, effects) == AnswerSubmission(7, "task")
    assert only(AskManager, effects).vms[0].spec.vm_id == "a"


def test_what_cannot_be_recorded_has_never_been() -> None:
    desk = Desk("gm1", subnets=[SUBNET])
    desk.submitted(candidate("a"), candidate("b"), key="k")
    error = ErrorReport("not_leader", "somebody else leads")
    assert desk.feed(RecordFailed("task", error)) == [AnswerSubmission(7, error=error)]
    assert not desk.registry.vms
    assert not desk.registry.names
    assert not desk.core.tasks
    assert not desk.core.open_tasks
    assert only(RecordTask, desk.submitted(candidate("c"), key="k")).vms[0].ip_address == "10.0.0.2"


def test_a_failure_to_record_the_unknown_is_no_news() -> None:
    assert Desk().feed(RecordFailed("task", ErrorReport("x", "y"))) == []


def test_a_key_gives_the_same_task_again() -> None:
    desk = Desk("gm1")
    desk.submitted(candidate("a"), key="k")
    again = desk.submitted(candidate("b"), key="k", task_id="other")
    error = only(AnswerSubmission, again).error
    assert error is not None
    assert error.code == "too_busy", "it is not known yet whether it will exist"
    desk.feed(RecordWritten("task", desk.now_ms))
    assert desk.submitted(candidate("b"), key="k", task_id="other") == [AnswerSubmission(7, "task")]
    assert desk.registry.vms.keys() == {"a"}


def test_what_is_being_recorded_cannot_be_destroyed() -> None:
    desk = Desk("gm1")
    desk.submitted(candidate("a"))
    assert desk.feed(Destroyed("a", desk.now_ms)) == []
    assert desk.state("a") is VmState.PENDING
    assert desk.feed(RecordWritten("task", desk.now_ms))
    assert desk.task().state is TaskState.RUNNING


# ---------------------------------------------------------------- rule 3: dispatching


def test_the_order_of_the_request_is_kept() -> None:
    asked = Desk("gm1").submit("c", "a", "b")
    assert [request.spec.vm_id for request in asked[0].vms] == ["c", "a", "b"]
    assert asked[0].cause == "task"


def test_what_is_sent_is_taken_out_of_the_view_until_the_next_summary() -> None:
    desk = Desk()
    desk.add_manager("gm1", SMALL)
    desk.add_manager("gm2", SMALL)
    asked = desk.submit("a", "b", "c")
    assert sorted(ask.manager_id for ask in asked) == ["gm1", "gm2"]
    assert desk.error_of("c").code == VmErrorCode.NO_CAPACITY


@pytest.mark.parametrize("pin", ["gm2", "gm2-host"])
def test_a_pin_leaves_no_choice(pin: str) -> None:
    desk = Desk("gm1", "gm2")
    desk.submitted(candidate("a", host=pin))
    ask = only(AskManager, desk.feed(RecordWritten("task", desk.now_ms)))
    assert ask.manager_id == "gm2"
    assert ask.vms[0].host == ("gm2-host" if pin == "gm2-host" else "")


def test_the_manager_of_the_host_asked_for_says_whether_there_is_room() -> None:
    """The host was handed to it a moment ago: its summary is older."""
    desk = Desk("gm1")
    desk.add_manager("gm2", Capacity(0.0, 0.0, 0.0, 0.0))
    desk.submitted(candidate("a", host="gm2-host"), candidate("b", host="gm2"))
    ask = only(AskManager, desk.feed(RecordWritten("task", desk.now_ms)))
    assert (ask.manager_id, [each.spec.vm_id for each in ask.vms]) == ("gm2", ["a"])
    desk.answered("gm2", "a")
    assert desk.error_of("a").code == VmErrorCode.NO_CAPACITY


def test_a_pin_to_a_host_out_of_reach_fails_and_says_so() -> None:
    desk = Desk("gm1")
    desk.lose_host("gm1-host")
    desk.submitted(candidate("a", host="gm1-host"))
    desk.feed(RecordWritten("task", desk.now_ms))
    desk.tick(11.0)
    desk.tick(0.25)
    assert "out of reach" in desk.error_of("a").message


def test_a_refusal_leads_to_the_next_best_and_never_back() -> None:
    desk = Desk("gm1", "gm2")
    first = desk.submit("a")[0].manager_id
    second = only(AskManager, desk.answered(first, "a")).manager_id
    assert {first, second} == {"gm1", "gm2"}
    effects = desk.answered(second, "a")
    assert none(AskManager, effects)
    assert desk.error_of("a") == ErrorReport(VmErrorCode.NO_CAPACITY, "no room here")
    assert desk.task().state is TaskState.FAILED


def test_a_manager_that_refuses_the_whole_request_is_a_refusal_too() -> None:
    desk = Desk("gm1", "gm2")
    first = desk.submit("a")[0].manager_id
    refusal = ErrorReport("too_busy", "no session")
    effects = desk.feed(PlacementFailed(first, ["a"], False, refusal, desk.now_ms))
    assert only(AskManager, effects).manager_id != first


def test_refusals_for_the_moment_do_not_end_a_vm() -> None:
    """Found by chaos, seed 2: no manager has a session for a second, and six VMs had failed."""
    desk = Desk("gm1", "gm2")
    refusal = ErrorReport("too_busy", "no session")
    first = desk.submit("a")[0].manager_id
    effects = desk.feed(PlacementFailed(first, ["a"], False, refusal, desk.now_ms))
    second = only(AskManager, effects).manager_id
    desk.feed(PlacementFailed(second, ["a"], False, refusal, desk.now_ms))
    assert desk.state("a") is VmState.PENDING
    asked = only(AskManager, desk.tick(1.0)).manager_id
    other = only(AskManager, desk.answered(asked, "a")).manager_id
    assert {asked, other} == {"gm1", "gm2"}
    desk.feed(PlacementFailed(other, ["a"], False, refusal, desk.now_ms))
    for last in (True, False):
        asked = only(AskManager, desk.tick(20.0) if last else effects).manager_id
        effects = desk.feed(PlacementFailed(asked, ["a"], False, refusal, desk.now_ms))
    assert none(AskManager, effects), "not for ever"
    assert desk.error_of("a") == ErrorReport(VmErrorCode.NO_CAPACITY, "no session")


def test_a_refusal_for_good_ends_it_at_once() -> None:
    desk = Desk("gm1")
    manager = desk.submit("a")[0].manager_id
    refusal = ErrorReport("invalid_request", "larger than a frame")
    desk.feed(PlacementFailed(manager, ["a"], False, refusal, desk.now_ms))
    assert desk.error_of("a").code == VmErrorCode.NO_CAPACITY


def test_no_manager_at_all() -> None:
    desk = Desk()
    desk.submit("a")
    assert desk.error_of("a").code == VmErrorCode.NO_MANAGER


def test_what_comes_while_hosts_look_for_another_manager_waits_for_them() -> None:
    """Their manager has just died; they are below the next one in a moment."""
    desk = Desk("gm1")
    desk.add_host("h1", "gm1")
    desk.lose_manager("gm1")
    desk.submit("a")
    assert desk.state("a") is VmState.PENDING
    desk.add_manager("gm2", Capacity(0.5, 65536.0))
    assert none(AskManager, desk.tick(0.25)), "what is there is too small"
    desk.add_manager("gm3")
    assert only(AskManager, desk.tick(0.25)).manager_id == "gm3"


def test_what_waits_for_hosts_fails_when_they_are_given_up() -> None:
    desk = Desk("gm1")
    desk.add_host("h1", "gm1")
    desk.lose_manager("gm1")
    desk.submit("a")
    desk.tick(5.0)
    assert desk.state("a") is VmState.PENDING
    desk.tick(6.0)
    desk.tick(0.25)
    assert desk.error_of("a").code == VmErrorCode.NO_MANAGER


def test_too_large_for_any_host() -> None:
    desk = Desk()
    desk.add_manager("gm1", Capacity(0.5, 65536.0))
    desk.submit("a")
    assert desk.error_of("a").code == VmErrorCode.NO_CAPACITY


def test_what_failed_is_forgotten_but_for_its_task() -> None:
    desk = Desk(subnets=[SUBNET])
    desk.submit("a")
    assert not desk.registry.vms
    assert not desk.registry.names
    assert desk.leases.holder("10.0.0.2") is None


def test_a_new_leader_first_gives_its_members_time_to_join() -> None:
    desk = Desk(settled=False)
    desk.tick(settled=False)
    assert desk.submit("a") == []
    assert desk.state("a") is VmState.PENDING
    desk.add_manager("gm1")
    asked = only(AskManager, desk.tick(0.25, settled=False))
    assert asked.manager_id == "gm1"
    assert none(AskManager, desk.answered("gm1", "a"))
    assert only(AskManager, desk.tick(0.25, settled=False)), "it may have got room meanwhile"
    desk.answered("gm1", "a")
    desk.add_manager("gm1", Capacity(0.1, 1.0))
    desk.tick(3.0)
    assert desk.error_of("a").code == VmErrorCode.NO_CAPACITY


# ---------------------------------------------------------------- rule 5: reports


def test_a_vm_starts_and_runs_and_its_task_is_done() -> None:
    desk = Desk("gm1")
    desk.submit("a", "b")
    assert only(TaskMoved, desk.answered("gm1", "a", "gm1-host"))
    assert desk.task().vms["a"].state is VmState.STARTING
    assert desk.task().vms["a"].host_id == "gm1-host"
    effects = desk.reported("gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    assert only(UpdateRecords, effects).vms[0].host_id == "gm1-host"
    assert only(Announce, effects).kind == "vm.running"
    assert not desk.task().ended
    desk.answered("gm1", "b", "gm1-host")
    effects = desk.reported("gm1", status_of("b", VmState.RUNNING, "gm1-host"))
    assert desk.task().state is TaskState.DONE
    assert desk.task().ended_ms == desk.now_ms
    recorded = [e for e in effects if isinstance(e, UpdateRecords) and e.tasks]
    assert recorded[0].tasks[0].state is TaskState.DONE


def test_a_report_that_overtakes_the_answer_is_right() -> None:
    desk = Desk("gm1")
    desk.submit("a")
    desk.reported("gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    assert desk.task().state is TaskState.DONE
    assert desk.answered("gm1", "a", "gm1-host") == []
    assert desk.state("a") is VmState.RUNNING


def test_a_failed_start_is_told_with_its_reason() -> None:
    desk = Desk("gm1", subnets=[SUBNET])
    desk.submit("a")
    desk.answered("gm1", "a", "gm1-host")
    failed = status_of("a", VmState.FAILED, "", reason="no disk", error_code="start_failed")
    effects = desk.reported("gm1", failed)
    assert desk.error_of("a") == ErrorReport(VmErrorCode.START_FAILED, "no disk")
    assert [e.removed_vms for e in effects if isinstance(e, UpdateRecords) and e.removed_vms]
    assert "a" not in desk.registry.vms


def test_a_failure_told_by_a_manager_that_was_not_asked_is_not_heard() -> None:
    desk = Desk("gm1", "gm2")
    asked = desk.submit("a")[0].manager_id
    other = "gm2" if asked == "gm1" else "gm1"
    desk.answered(asked, "a", f"{asked}-host")
    assert desk.reported(other, status_of("a", VmState.FAILED, "", reason="?")) == []
    assert desk.state("a") is VmState.STARTING


def test_a_vm_destroyed_before_it_ran_has_failed_in_its_task() -> None:
    desk = Desk("gm1")
    desk.submit("a")
    desk.answered("gm1", "a", "gm1-host")
    desk.reported("gm1", status_of("a", VmState.DESTROYED, "gm1-host"))
    assert desk.error_of("a").code == VmErrorCode.DESTROYED


@pytest.mark.parametrize(
    ("state", "is_recorded"),
    [
        (VmState.PAUSED, True),
        (VmState.STOPPED, True),
        (VmState.FAILED, True),
        (VmState.STOPPING, False),
        (VmState.MIGRATING, False),
    ],
)
def test_settled_states_are_recorded_once(state: VmState, is_recorded: bool) -> None:
    desk = Desk("gm1")
    desk.run("a")
    effects = desk.reported("gm1", status_of("a", state, "gm1-host"))
    assert (not none(UpdateRecords, effects)) is is_recorded
    assert none(UpdateRecords, desk.reported("gm1", status_of("a", state, "gm1-host")))


def test_a_manager_that_does_not_have_the_host_is_not_heard() -> None:
    desk = Desk("gm1", "gm2")
    desk.run("a")
    assert desk.reported("gm2", status_of("a", VmState.PAUSED, "gm1-host")) == []
    assert desk.state("a") is VmState.RUNNING


def test_the_higher_generation_is_right() -> None:
    desk = Desk("gm1", "gm2")
    desk.run("a")
    desk.reported("gm2", status_of("a", VmState.RUNNING, "gm2-host", generation=2))
    desk.reported("gm1", status_of("a", VmState.STOPPED, "gm1-host", generation=1))
    vm = desk.registry.vms["a"]
    assert (vm.host_id, vm.state, vm.generation) == ("gm2-host", VmState.RUNNING, 2)


def test_a_vm_that_nobody_knew_is_taken_in_with_its_address() -> None:
    desk = Desk("gm1", subnets=[SUBNET])
    status = status_of("a", VmState.RUNNING, "gm1-host", ip_address="10.0.0.3")
    effects = desk.reported("gm1", status)
    assert only(UpdateRecords, effects).vms[0].vm_id == "a"
    assert desk.leases.holder("10.0.0.3") == "a"
    assert desk.registry.names["name-a"] == "a"


def test_domains_of_others_are_shown_and_nothing_more() -> None:
    desk = Desk("gm1", "gm2", subnets=[SUBNET])
    for host in ("gm1", "gm2"):
        status = status_of("a", VmState.RUNNING, f"{host}-host", managed=False)
        assert desk.reported(host, status) == []
    assert desk.registry.vms.keys() == {"a@gm1-host", "a@gm2-host"}
    gone = status_of("a", VmState.DESTROYED, "gm1-host", managed=False)
    assert desk.reported("gm1", gone) == []
    assert desk.registry.vms.keys() == {"a@gm2-host"}
    desk.rejoin_host("gm2-host", "gm2")
    assert not desk.registry.vms


def test_the_end_of_a_stranger_is_no_news() -> None:
    desk = Desk("gm1")
    assert desk.reported("gm1", status_of("a", VmState.DESTROYED, "gm1-host")) == []


# ---------------------------------------------------------------- rule 6: addresses, records


def test_an_address_rests_only_after_its_vm_is_gone() -> None:
    desk = Desk("gm1", subnets=[SUBNET])
    desk.run("a")
    for state in (VmState.STOPPED, VmState.FAILED, VmState.UNREACHABLE, VmState.DESTROYING):
        desk.reported("gm1", status_of("a", state, "gm1-host"))
        assert desk.leases.holder("10.0.0.2") == "a", state
    effects = desk.reported("gm1", status_of("a", VmState.DESTROYED, "gm1-host"))
    assert only(UpdateRecords, effects).removed_vms == ["a"]
    assert desk.leases.holder("10.0.0.2") is None
    assert "name-a" not in desk.registry.names


def test_a_vm_that_waits_is_destroyed_at_once() -> None:
    desk = Desk(settled=False)
    desk.submit("a")
    effects = desk.feed(Destroyed("a", desk.now_ms))
    assert [e.removed_vms for e in effects if isinstance(e, UpdateRecords) and e.removed_vms]
    assert desk.error_of("a").code == VmErrorCode.DESTROYED
    assert desk.feed(Destroyed("a", desk.now_ms)) == []


def test_a_vm_that_a_manager_was_asked_for_is_not_destroyed_behind_its_back() -> None:
    desk = Desk("gm1")
    desk.submit("a")
    assert desk.feed(Destroyed("a", desk.now_ms)) == []
    desk.answered("gm1", "a", "gm1-host")
    assert desk.feed(Destroyed("a", desk.now_ms)) == []
    assert desk.state("a") is VmState.STARTING


# ---------------------------------------------------------------- retention


def test_ended_tasks_stay_readable_until_retention_is_over() -> None:
    desk = Desk("gm1")
    desk.submitted(candidate("a"), key="k")
    desk.feed(RecordWritten("task", desk.now_ms))
    desk.reported("gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    assert desk.tick(100.0) == []
    assert only(UpdateRecords, desk.tick(0.1)).removed_tasks == ["task"]
    assert not desk.core.tasks
    assert only(RecordTask, desk.submitted(candidate("b"), key="k", task_id="other"))


def test_of_too_many_ended_tasks_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snooze.groupmanager.leader.submission_state_core.MAX_ENDED_TASKS", 1)
    desk = Desk("gm1")
    for name in ("a", "b", "c"):
        desk.run(name, task_id=f"task-{name}")
    assert only(UpdateRecords, desk.tick()).removed_tasks == ["task-a", "task-b"]
    assert desk.core.tasks.keys() == {"task-c"}


def test_room_for_one_is_room_for_one() -> None:
    desk = Desk()
    desk.add_manager("gm1", ROOM)
    asked = desk.submit(*(f"vm{i}" for i in range(5)))
    assert len(asked[0].vms) == 4
    assert desk.error_of("vm4").code == VmErrorCode.NO_CAPACITY


@pytest.mark.parametrize("has_room", [True, False])
def test_what_no_manager_is_known_to_have_room_for_waits_for_those_that_are_about_to_say(
    has_room: bool,
) -> None:
    """After a leader was cut off its managers join again: with hosts first, then with room."""
    desk = Desk()
    desk.add_manager("gm1", hosts=False)
    desk.add_manager("gm2", Capacity())
    desk.registry.managers["gm1"].view = None
    desk.tick()
    desk.add_host("h1", "gm1")
    desk.registry.managers["gm1"].untold = True
    assert desk.submit("a") == []
    assert desk.tick(0.25) == []
    desk.registry.managers["gm1"].take_summary(summary_of(ROOM if has_room else Capacity()), 0.0)
    effects = desk.tick(0.25)
    if has_room:
        assert only(AskManager, effects).manager_id == "gm1"
    else:
        assert none(AskManager, effects)
        assert desk.error_of("a").code == VmErrorCode.NO_CAPACITY

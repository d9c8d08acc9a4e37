"""A new leader resumes from the records, whatever its predecessor was doing when it died."""

import math
from collections.abc import Sequence

import msgspec
import pytest

from snooze.common.api import TaskState
from snooze.common.errors import ErrorReport
from snooze.common.records import TaskRecord, TaskVmRecord, VmRecord
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmErrorCode
from snooze.groupmanager.leader.registry import Down
from snooze.groupmanager.leader.submission_events import (
    AnswerSubmission,
    AskManager,
    Destroyed,
    ManagerHeard,
    RecordTask,
    StartThere,
    StateLoaded,
    SubmissionEffect,
    UpdateRecords,
    VmsReported,
)
from tests.unit.leader.builders import SMALL, Desk, candidate, none, only, status_of

SUBNET = "10.0.0.0/29"


def vm_record(vm_id: str, state: VmState = VmState.PENDING, host_id: str = "") -> VmRecord:
    return VmRecord(
        vm_id, f"name-{vm_id}", SMALL, state, "task", ip_address="10.0.0.4", host_id=host_id
    )


def task_record(
    *vm_ids: str, state: TaskState = TaskState.PENDING, task_id: str = "task", key: str = ""
) -> TaskRecord:
    vms = tuple(TaskVmRecord(vm_id, f"name-{vm_id}", VmState.PENDING) for vm_id in vm_ids)
    ended = state is not TaskState.PENDING
    return TaskRecord(task_id, state, 1000, vms, ended_ms=2000 if ended else 0, key=key)


def heir(*vms: VmRecord, tasks: Sequence[TaskRecord] = ()) -> tuple[Desk, list[SubmissionEffect]]:
    """A new leader of a cluster with host gm1-host, which has not joined it yet."""
    desk = Desk(subnets=[SUBNET], settled=False)
    host = desk.add_host("gm1-host", "gm1", joined=False)
    host.reachable_s = desk.now_s
    host.in_record = True
    effects = desk.feed(StateLoaded(tasks, vms, desk.now_ms))
    return desk, effects


def join(desk: Desk, *found: tuple[str, VmState]) -> list[SubmissionEffect]:
    """The manager joins with its host, and what that has."""
    desk.add_manager("gm1", hosts=False)
    statuses = [status_of(vm_id, state, "gm1-host") for vm_id, state in found]
    effects = desk.rejoin_host("gm1-host", "gm1", *statuses)
    return [*effects, *desk.feed(ManagerHeard("gm1", desk.now_ms))]


# ------------------------------------------------------ every prefix of a submission's way


def test_it_died_after_recording_it_and_before_asking() -> None:
    desk, _ = heir(vm_record("a"), tasks=[task_record("a")])
    assert desk.task().state is TaskState.RUNNING
    assert none(AskManager, join(desk))
    assert none(AskManager, desk.tick(2.0, settled=False)), "more hosts may join and have it"
    assert only(AskManager, desk.tick(1.1)).vms[0].spec.ip_address == "10.0.0.4"


def test_it_died_after_asking_and_the_manager_has_it() -> None:
    desk, _ = heir(vm_record("a"), tasks=[task_record("a")])
    assert none(AskManager, join(desk, ("a", VmState.STARTING)))
    assert none(AskManager, desk.tick(10.0))
    desk.reported("gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    assert desk.task().state is TaskState.DONE


def test_it_died_and_the_manager_too_and_the_host_is_slow_to_come_back() -> None:
    desk, _ = heir(vm_record("a"), tasks=[task_record("a")])
    desk.add_manager("gm2")
    for _ in range(8):
        assert none(AskManager, desk.tick(1.0))
    desk.rejoin_host("gm1-host", "gm2", status_of("a", VmState.RUNNING, "gm1-host"))
    assert none(AskManager, desk.tick(1.0))
    assert desk.task().state is TaskState.DONE


def test_a_host_that_the_record_has_as_away_is_not_waited_for() -> None:
    desk, _ = heir(vm_record("a"), tasks=[task_record("a")])
    desk.registry.hosts["gm1-host"].reachable_s = -math.inf
    desk.add_manager("gm2")
    assert only(AskManager, desk.tick(3.1)).manager_id == "gm2"


def test_it_died_when_the_vm_ran_and_before_the_task_was_recorded_as_done() -> None:
    desk, effects = heir(vm_record("a", VmState.RUNNING, "gm1-host"), tasks=[task_record("a")])
    assert desk.task().state is TaskState.DONE
    assert only(UpdateRecords, effects).tasks[0].state is TaskState.DONE


def test_a_vm_that_its_manager_moves_is_not_gone_where_its_source_comes_back_without_it() -> None:
    """Found by ``snooze-sim replay 920054``: it had arrived, and was forgotten."""
    record = vm_record("a", VmState.RUNNING, "gm1-host")
    record = msgspec.structs.replace(record, manager_id="gm1")
    desk, _ = heir(record)
    desk.add_manager("gm1", hosts=False)
    desk.feed(ManagerHeard("gm1", desk.now_ms, frozenset({"a"})))
    desk.rejoin_host("gm1-host", "gm1")
    vm = desk.registry.vms["a"]
    assert vm.state is VmState.UNREACHABLE
    for _ in range(3):
        assert none(AskManager, desk.tick(100.0))
    assert desk.registry.vms["a"] is vm, "its manager will say"
    desk.reported("gm1", status_of("a", VmState.UNREACHABLE, ""))
    assert none(UpdateRecords, desk.tick(1.0))
    assert only(UpdateRecords, desk.tick(60.0)).removed_vms == ["a"], "it is nowhere"


def test_an_old_copy_is_not_the_vm_while_another_host_may_have_what_was_started_anew() -> None:
    """Found by ``snooze-sim replay 940334``: it ran twice."""
    record = msgspec.structs.replace(vm_record("a"), generation=2, restarts_ms=(1000,))
    desk, _ = heir(record)
    desk.add_host("gm2-host", "gm2", joined=False).reachable_s = desk.now_s
    desk.add_manager("gm3", hosts=False)
    for host in desk.registry.hosts.values():
        host.given_up = True
    desk.tick(10.0)
    vm = desk.registry.vms["a"]
    first, manager_id = vm.host_id, vm.manager_id
    assert first in {"gm1-host", "gm2-host"}, "the first of those that may have it"
    desk.add_manager(manager_id, hosts=False)
    effects = desk.rejoin_host(first, manager_id, status_of("a", VmState.STOPPED, first))
    assert none(StartThere, [*effects, *desk.tick(1.0), *desk.tick(1.0)])
    assert vm.host_id not in {"", first}, "the other may have it, too"
    second, manager_id = vm.host_id, vm.manager_id
    desk.add_manager(manager_id, hosts=False)
    desk.rejoin_host(second, manager_id, status_of("a", VmState.RUNNING, second, generation=2))
    assert (vm.state, vm.host_id, vm.generation) == (VmState.RUNNING, second, 2)


def test_it_died_when_only_some_ran() -> None:
    desk, effects = heir(
        vm_record("a", VmState.RUNNING, "gm1-host"), vm_record("b"), tasks=[task_record("a", "b")]
    )
    assert effects == []
    assert desk.task().open_vms == {"b"}
    join(desk, ("a", VmState.RUNNING), ("b", VmState.RUNNING))
    assert desk.task().state is TaskState.DONE


def test_a_vm_without_a_record_has_failed_while_the_leader_changed() -> None:
    desk, effects = heir(tasks=[task_record("a")])
    assert desk.task().state is TaskState.FAILED
    assert desk.error_of("a").code == VmErrorCode.DESTROYED
    assert only(UpdateRecords, effects).tasks[0].vms[0].error is not None


def test_vms_without_their_task_are_half_a_submission_that_was_never_accepted() -> None:
    desk, _ = heir(vm_record("a"))
    join(desk)
    effects = desk.tick(3.1)
    assert only(UpdateRecords, effects).removed_vms == ["a"]
    assert desk.leases.holder("10.0.0.4") is None


def test_a_vm_that_a_dead_host_may_have_is_remembered_when_it_is_gone() -> None:
    """Seed 80345: the host came back with its copy, whose address was another VM's by then."""
    desk, _ = heir(vm_record("a"))
    dead = desk.add_host("dead", "gm1", joined=False)
    dead.reachable_s, dead.down = desk.now_s, Down.EVERYTHING
    join(desk)
    effects = desk.tick(3.1)
    update = only(UpdateRecords, effects)
    assert update.removed_vms == ()
    assert [(vm.vm_id, vm.state) for vm in update.vms] == [("a", VmState.DESTROYED)]
    assert desk.registry.graves == {"a": 1}
    desk.rejoin_host("dead", "gm1", status_of("a", VmState.STOPPED, "dead"))
    assert "a" not in desk.registry.vms


@pytest.mark.parametrize("moves", [True, False])
def test_what_a_manager_may_have_moved_is_not_gone_because_its_host_has_it_no_more(
    moves: bool,
) -> None:
    """Its destination is another manager's, and late to tell; the former leader is dead."""
    desk, _ = heir(vm_record("a", state=VmState.RUNNING, host_id="gm1-host"))
    desk.add_manager("gm1", hosts=False)
    desk.add_host("gm1-host", "gm1")
    vm = desk.registry.vms["a"]
    vm.manager_id = "gm1"
    moving = frozenset({"a"}) if moves else frozenset[str]()
    desk.feed(VmsReported("gm1", [], desk.now_ms, "gm1-host", moving))
    if not moves:
        assert "a" not in desk.registry.vms
        return
    assert vm.state is VmState.UNREACHABLE
    desk.tick(10.0)
    desk.add_manager("gm2")
    desk.reported("gm2", status_of("a", VmState.RUNNING, "gm2-host"))
    assert (vm.state, vm.host_id) == (VmState.RUNNING, "gm2-host")


# ---------------------------------------------------------------- what it takes over


def test_leases_names_and_keys_are_taken_over() -> None:
    desk, _ = heir(vm_record("a"), tasks=[task_record("a", key="k")])
    assert desk.leases.holder("10.0.0.4") == "a"
    error = only(AnswerSubmission, desk.submitted(candidate("b", name="name-a"))).error
    assert error is not None
    assert desk.submitted(candidate("b"), key="k") == [AnswerSubmission(7, "task")]


def test_ended_tasks_are_readable_and_expire() -> None:
    desk, effects = heir(tasks=[task_record("a", state=TaskState.DONE)])
    assert effects == []
    assert desk.task().view({}).state is TaskState.DONE
    assert only(UpdateRecords, desk.tick(0.0)).removed_tasks == ["task"]


def test_a_vm_where_the_record_says_is_where_it_is() -> None:
    desk, _ = heir(vm_record("a", VmState.RUNNING, "gm1-host"))
    assert none(UpdateRecords, join(desk, ("a", VmState.RUNNING)))
    assert desk.registry.vms["a"].elsewhere_s == math.inf


def test_a_vm_that_its_host_does_not_have_may_have_been_migrating() -> None:
    desk, _ = heir(vm_record("a", VmState.RUNNING, "gm1-host"))
    desk.add_host("other", "gm1", joined=False).reachable_s = desk.now_s
    join(desk)
    assert desk.state("a") is VmState.UNREACHABLE
    assert desk.leases.holder("10.0.0.4") == "a"
    desk.rejoin_host("other", "gm1", status_of("a", VmState.RUNNING, "other"))
    assert (desk.state("a"), desk.registry.vms["a"].host_id) == (VmState.RUNNING, "other")


def test_a_host_that_never_comes_back_has_its_vms_out_of_sight() -> None:
    desk, _ = heir(vm_record("a", VmState.RUNNING, "gm1-host"))
    desk.tick(10.1)
    assert desk.state("a") is VmState.UNREACHABLE


def test_a_vm_that_may_be_anywhere_is_not_destroyed() -> None:
    desk, _ = heir(vm_record("a"), tasks=[task_record("a")])
    assert desk.feed(Destroyed("a", desk.now_ms)) == []
    join(desk)
    desk.tick(3.1)
    desk.answered("gm1", "a")
    assert desk.error_of("a").code == VmErrorCode.NO_CAPACITY


def test_what_members_said_before_the_record_was_read_is_newer() -> None:
    desk = Desk("gm1", subnets=[SUBNET])
    desk.reported("gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    desk.feed(StateLoaded([], [vm_record("a")], desk.now_ms))
    assert desk.state("a") is VmState.RUNNING


@pytest.mark.parametrize("state", [VmState.PENDING, VmState.UNREACHABLE])
def test_the_time_of_a_task_begins_anew_and_ends(state: VmState) -> None:
    host_id = "gm1-host" if state is VmState.UNREACHABLE else ""
    desk, _ = heir(vm_record("a", state, host_id), tasks=[task_record("a")])
    desk.tick(299.0)
    assert not desk.task().ended
    desk.tick(1.1)
    assert desk.error_of("a").code == VmErrorCode.TIMED_OUT
    assert desk.leases.holder("10.0.0.4") == "a"


def test_a_new_submission_is_served_at_once() -> None:
    desk, _ = heir(vm_record("a"), tasks=[task_record("a")])
    join(desk)
    effects = desk.submitted(candidate("b"), task_id="new")
    assert only(RecordTask, effects).vms[0].ip_address == "10.0.0.2"


def test_errors_of_ended_tasks_survive() -> None:
    error = ErrorReport(VmErrorCode.START_FAILED, "no disk")
    vm = TaskVmRecord("a", "name-a", VmState.FAILED, "", "", error)
    record = TaskRecord("task", TaskState.FAILED, 1000, (vm,), ended_ms=999_000)
    desk, _ = heir(tasks=[record])
    assert desk.error_of("a") == error


def test_what_its_manager_saw_end_is_gone_though_another_host_is_not_heard_yet() -> None:
    desk, _ = heir(vm_record("a", VmState.RUNNING, "gm1-host"))
    other = desk.add_host("gm2-host", "gm2", joined=False)
    other.reachable_s = desk.now_s
    other.in_record = True
    join(desk)
    assert desk.state("a") is VmState.UNREACHABLE
    effects = desk.reported("gm1", status_of("a", VmState.DESTROYED, "gm1-host"))
    assert only(UpdateRecords, effects).removed_vms == ["a"]
    assert "a" not in desk.registry.vms
    assert desk.leases.holder("10.0.0.4") is None

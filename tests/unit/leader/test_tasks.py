"""Tasks: how they end, and that their record says it all."""

import pytest

from snooze.common.api import TaskState
from snooze.common.errors import ErrorReport
from snooze.common.records import TaskVmRecord
from snooze.common.vm_lifecycle import VmState
from snooze.groupmanager.leader.registry import VmEntry
from snooze.groupmanager.leader.submission_state_core import outcome_of
from snooze.groupmanager.leader.tasks import SUBMIT, Task, failed_vm
from tests.unit.leader.builders import SMALL

ERROR = ErrorReport("start_failed", "no disk")


def running(vm_id: str) -> TaskVmRecord:
    return TaskVmRecord(vm_id, f"name-{vm_id}", VmState.RUNNING, "h1", "10.0.0.2")


def task_of(*vm_ids: str) -> Task:
    vms = {i: TaskVmRecord(i, f"name-{i}", VmState.PENDING) for i in vm_ids}
    return Task("t", SUBMIT, 1000, vms, TaskState.RUNNING, key="k", open_vms=set(vm_ids))


@pytest.mark.parametrize(
    ("failed", "state"),
    [("", TaskState.DONE), ("b", TaskState.PARTIAL), ("ab", TaskState.FAILED)],
)
def test_a_task_ends_with_its_last_vm(failed: str, state: TaskState) -> None:
    task = task_of("a", "b")
    for vm_id in "ab":
        assert not task.end_if_settled(5)
        task.settle(failed_vm(vm_id, vm_id, ERROR) if vm_id in failed else running(vm_id))
    assert task.end_if_settled(2000)
    assert (task.state, task.ended, task.ended_ms) == (state, True, 2000)
    assert not task.end_if_settled(3000), "only once"
    assert task.ended_ms == 2000


def test_the_order_asked_for_is_kept() -> None:
    task = task_of("b", "a")
    task.settle(running("a"))
    task.settle(running("b"))
    assert list(task.vms) == ["b", "a"]


@pytest.mark.parametrize("is_ended", [False, True])
def test_the_record_gives_the_task_again(is_ended: bool) -> None:
    task = task_of("a", "b")
    task.settle(failed_vm("a", "name-a", ERROR))
    if is_ended:
        task.settle(running("b"))
        task.end_if_settled(2000)
    again = Task.of_record(task.record())
    assert again == task


def test_the_view_names_hosts() -> None:
    task = task_of("a")
    task.settle(running("a"))
    task.end_if_settled(2000)
    view = task.view({"h1": "one"})
    assert (view.id, view.kind, view.state, view.ended_ms) == ("t", SUBMIT, TaskState.DONE, 2000)
    assert (view.vms[0].hostname, view.vms[0].ip_address) == ("one", "10.0.0.2")
    assert task.view({}).vms[0].hostname == ""


def test_a_vm_that_failed_under_a_dead_leader_has_a_reason() -> None:
    """Found by ``snooze-sim replay 1136``: the record keeps the state, not why."""
    vm = VmEntry("v", "vm", SMALL, VmState.FAILED, host_id="h1")
    error = outcome_of(vm).error
    assert error is not None
    assert error.message

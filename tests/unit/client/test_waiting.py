"""How far a task is, in numbers and words."""

import msgspec
import pytest

from snooze.client.waiting import each, measure
from snooze.common.api import TaskState, TaskView, TaskVm
from snooze.common.errors import ErrorReport
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import MigrationProgress

MIB = 1024 * 1024


def test_a_submission_counts_the_vms_that_have_settled() -> None:
    vms = [
        TaskVm("a", state=VmState.RUNNING),
        TaskVm("b", state=VmState.STARTING),
        TaskVm("c", error=ErrorReport("no_capacity", "no room")),
    ]
    task = TaskView("t", "submit", TaskState.RUNNING, 0, vms=vms)
    assert measure(task) == (2, 3, "2/3 VMs")


def test_what_a_vm_waits_for_is_said() -> None:
    waits = TaskVm("b", state=VmState.PENDING, note="waits for host h2 to wake")
    task = TaskView("t", "submit", TaskState.RUNNING, 0, vms=[waits])
    assert measure(task) == (0, None, "waits for host h2 to wake")
    both = msgspec.structs.replace(task, vms=[TaskVm("a", state=VmState.RUNNING), waits])
    assert measure(both) == (1, 2, "1/2 VMs; b waits for host h2 to wake")


def test_a_migration_counts_bytes() -> None:
    moved = MigrationProgress("v", total_bytes=4 * MIB, processed_bytes=MIB, dirty_kib_s=512)
    task = TaskView("t", "migrate", TaskState.RUNNING, 0, vms=[TaskVm("a")], progress=moved)
    assert measure(task) == (MIB, 4 * MIB, "1.0 MiB of 4.0 MiB, dirties 512.0 KiB/s")
    # A guest that dirties memory makes the hypervisor send more than there is.
    over = msgspec.structs.replace(moved, processed_bytes=9 * MIB, dirty_kib_s=0, downtime_ms=12)
    ended = msgspec.structs.replace(task, state=TaskState.DONE, progress=over)
    assert measure(ended) == (4 * MIB, 4 * MIB, "4.0 MiB of 4.0 MiB, down for 12 ms")


def test_a_drain_counts_the_vms_that_have_gone() -> None:
    """They run all the while, and the bytes are those of one of its migrations."""
    began = {"a": "h1", "b": "h1", "c": "h1"}
    vms = [
        TaskVm("a", state=VmState.RUNNING, hostname="h2"),
        TaskVm("b", state=VmState.RUNNING, hostname="h1"),
        TaskVm("c", state=VmState.RUNNING, hostname="h1", error=ErrorReport("conflict", "paused")),
    ]
    moved = MigrationProgress("a", total_bytes=4 * MIB, processed_bytes=MIB)
    task = TaskView("t", "drain", TaskState.RUNNING, 0, vms=vms, progress=moved)
    assert measure(task, began) == (2, 3, "2/3 VMs")


@pytest.mark.parametrize(
    ("state", "expected"),
    [(TaskState.RUNNING, (0, None, "running")), (TaskState.FAILED, (1, 1, "failed"))],
)
def test_any_other_command_is_done_or_not(
    state: TaskState, expected: tuple[int, int | None, str]
) -> None:
    task = TaskView("t", "suspend", state, 0, vms=[TaskVm("a")], progress=MigrationProgress("v"))
    assert measure(task) == expected


async def test_each_keeps_the_order_and_the_bound() -> None:
    running = 0
    most = 0

    async def work(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        running -= 1
        return item * 2

    assert await each(range(100), work) == [item * 2 for item in range(100)]
    assert 1 <= most <= 16

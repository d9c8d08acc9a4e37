"""What the leader writes to the store of record, as operations for its journal."""

from snooze.common import records
from snooze.common.coordination.port import Create, Delete, Operation, Put
from snooze.common.record_layout import task_path, vm_path
from snooze.groupmanager.leader.submission_events import RecordTask, UpdateRecords


def new_task(effect: RecordTask) -> list[Operation]:
    """A task with its VMs; the task last, so that it is not there without them."""
    operations: list[Operation] = [
        Create(vm_path(vm.vm_id), records.encode(vm)) for vm in effect.vms
    ]
    task = effect.task
    return [*operations, Create(task_path(task.task_id), records.encode(task))]


def updates(effect: UpdateRecords) -> list[Operation]:
    """Records brought up to date, and those of what is gone removed."""
    operations: list[Operation] = [Put(vm_path(vm.vm_id), records.encode(vm)) for vm in effect.vms]
    operations += [Put(task_path(task.task_id), records.encode(task)) for task in effect.tasks]
    operations += [Delete(vm_path(vm_id)) for vm_id in effect.removed_vms]
    operations += [Delete(task_path(task_id)) for task_id in effect.removed_tasks]
    return operations

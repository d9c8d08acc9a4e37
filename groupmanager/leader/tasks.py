"""Tasks as the leader keeps them: submissions and commands, readable until retention is over."""

from dataclasses import dataclass, field

from snooze.common.api import TASK_ENDED, TaskState, TaskView, TaskVm
from snooze.common.errors import ErrorReport
from snooze.common.records import TaskRecord, TaskVmRecord
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import MigrationProgress

SUBMIT = "submit"


@dataclass(slots=True)
class Task:
    """A submission (``kind`` is ``SUBMIT``) or a command on one VM.

    ``vms`` keeps the order asked for; each entry is replaced as its VM gets on.
    ``open_vms``: those of which the end is not known yet.
    """

    task_id: str
    kind: str
    created_ms: int
    vms: dict[str, TaskVmRecord]
    state: TaskState = TaskState.PENDING
    ended_ms: int = 0
    key: str = ""
    virtual_cluster: str = ""
    error: ErrorReport | None = None
    progress: MigrationProgress | None = None
    open_vms: set[str] = field(default_factory=set[str])

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in TASK_ENDED

    def settle(self, outcome: TaskVmRecord) -> None:
        """Note the end of one VM."""
        self.vms[outcome.vm_id] = outcome
        self.open_vms.discard(outcome.vm_id)

    def end_if_settled(self, now_ms: int) -> bool:
        """End the task when the last VM has settled; True if that was now."""
        if self.ended or self.open_vms:
            return False
        failed = sum(1 for vm in self.vms.values() if vm.error is not None)
        if failed == 0:
            self.state = TaskState.DONE
        else:
            self.state = TaskState.FAILED if failed == len(self.vms) else TaskState.PARTIAL
        self.ended_ms = now_ms
        return True

    def record(self) -> TaskRecord:
        """What the store keeps of a submission."""
        return TaskRecord(
            task_id=self.task_id,
            state=self.state,
            created_ms=self.created_ms,
            vms=tuple(self.vms.values()),
            ended_ms=self.ended_ms,
            key=self.key,
            virtual_cluster=self.virtual_cluster,
        )

    @classmethod
    def of_record(cls, record: TaskRecord) -> "Task":
        """The task again, as a new leader finds it."""
        ended = record.state in TASK_ENDED
        return cls(
            task_id=record.task_id,
            kind=SUBMIT,
            created_ms=record.created_ms,
            vms={vm.vm_id: vm for vm in record.vms},
            state=record.state,
            ended_ms=record.ended_ms,
            key=record.key,
            virtual_cluster=record.virtual_cluster,
            open_vms=set() if ended else {vm.vm_id for vm in record.vms if vm.error is None},
        )

    def view(self, hostnames: dict[str, str]) -> TaskView:
        """The task as clients see it."""
        return TaskView(
            id=self.task_id,
            kind=self.kind,
            state=self.state,
            created_ms=self.created_ms,
            ended_ms=self.ended_ms,
            vms=[
                TaskVm(
                    name=vm.name,
                    vm_id=vm.vm_id,
                    state=vm.state,
                    host_id=vm.host_id,
                    hostname=hostnames.get(vm.host_id, ""),
                    ip_address=vm.ip_address,
                    error=vm.error,
                    note=vm.note,
                )
                for vm in self.vms.values()
            ],
            progress=self.progress,
            error=self.error,
        )


def failed_vm(vm_id: str, name: str, error: ErrorReport) -> TaskVmRecord:
    """The outcome of a VM that does not run."""
    return TaskVmRecord(vm_id, name, VmState.FAILED, "", "", error)

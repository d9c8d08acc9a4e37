"""From a valid submission to running VMs, and what becomes of every VM afterwards.

Rules:

1. A submission is checked as a whole against what exists (names, pins, addresses) before anything
   of it starts. Unless it is ``partial``, one wrong VM refuses all of it.
2. It is answered with its task's id only after its task and VMs are recorded.
3. Each VM goes to the manager that dispatching names. A manager that refuses is not asked again for
   it; the next best is. When none is left the VM has failed, and the task says why; a new leader
   first gives its members time to join.
4. A VM is placed anew only when nobody can have it: the manager that was asked has answered, or has
   joined again without it, or is gone; and every host that has been away since it was asked has
   come back without it (a host that has a new assignment epoch refuses the old manager's orders,
   and says what it has). No manager is asked twice: it may have forgotten the VM with its host. One
   that does not answer is made to join again.
5. What a manager reports of its VMs is the truth. A settled state is recorded.
6. An address is given back, and a record removed, only when the VM is proven gone.
7. A VM that may be on a host which stays away is ``UNREACHABLE`` there, and recorded so.
8. A task ends in bounded time: a VM that is not known to run by then has failed in its task, and
   keeps its address for as long as rule 4 would not place it anew.

Invariant: a VM is in at most one of: asked of one manager, in doubt about one manager, waiting to
be dispatched.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

from snooze.common.api import TaskState
from snooze.common.errors import ErrorReport
from snooze.common.records import TaskVmRecord
from snooze.common.vm_lifecycle import SETTLED, VmState
from snooze.common.vms import VmErrorCode
from snooze.common.wire import PlacementRequest, VmStatus
from snooze.groupmanager.leader.acceptance import accept, withdraw
from snooze.groupmanager.leader.address_leases import AddressLeases
from snooze.groupmanager.leader.dispatcher import choose
from snooze.groupmanager.leader.membership_core import Announce
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry, vm_key
from snooze.groupmanager.leader.submission_events import (
    AnswerSubmission,
    AskManager,
    Destroyed,
    ManagerHeard,
    PlacementAnswered,
    PlacementFailed,
    RecordFailed,
    RecordTask,
    RecordWritten,
    RejoinManager,
    StateLoaded,
    SubmissionEffect,
    SubmissionEvent,
    Submitted,
    TaskMoved,
    Ticked,
    UpdateRecords,
    VmsReported,
)
from snooze.groupmanager.leader.tasks import SUBMIT, Task, failed_vm
from snooze.groupmanager.leader.vm_views import adopted, entry_of, record_of, spec_of
from snooze.groupmanager.leader.whereabouts import acquit, away, may_be_on, suspect
from snooze.scheduling import dispatching

MAX_ENDED_TASKS: Final = 100_000
"""Beyond this the oldest ended tasks are forgotten before their retention is over."""
LOST_AFTER_S: Final = 60.0
"""A VM that left its host and that no host in reach has told of for so long is gone; hosts look at
what they have twice in this time."""
LONG_AGO: Final = -1e18
"""Earlier than any monotonic time: a VM read from the record may have been asked for at any."""


@dataclass(slots=True)
class SubmissionCore:
    """Decides about tasks and VMs; see the module's rules."""

    registry: Registry
    leases: AddressLeases
    dispatch_policy: dispatching.DispatchPolicy = dispatching.DispatchPolicy.BEST_FIT
    encode_mac: bool = True
    max_pending_tasks: int = 1000
    retention_ms: int = 86_400_000
    start_timeout_s: float = 300.0
    unreachable_after_s: float = 10.0
    cursor: int = 0
    tasks: dict[str, Task] = field(default_factory=dict[str, Task])
    keys: dict[str, str] = field(default_factory=dict[str, str])
    waiting: dict[str, int] = field(default_factory=dict[str, int])
    settled: bool = False
    strays: set[str] = field(default_factory=set[str])
    open_tasks: set[str] = field(default_factory=set[str])
    ended_tasks: deque[str] = field(default_factory=deque[str])

    def handle(self, event: SubmissionEvent, now_s: float) -> list[SubmissionEffect]:
        """Take in one event."""
        match event:
            case Submitted():
                return self._submitted(event, now_s)
            case RecordWritten():
                return self._written(event, now_s)
            case RecordFailed():
                return self._not_written(event)
            case PlacementAnswered():
                return self._answered(event, now_s)
            case PlacementFailed():
                return self._failed(event, now_s)
            case VmsReported():
                return self._reported(event, now_s)
            case ManagerHeard():
                return self._manager_heard(event, now_s)
            case StateLoaded():
                return self._state_loaded(event, now_s)
            case Destroyed():
                return self._destroyed(event, now_s)
            case Ticked():
                return self._ticked(event, now_s)
            case _:
                assert_never(event)

    # ------------------------------------------------------------ submission

    def _submitted(self, event: Submitted, now_s: float) -> list[SubmissionEffect]:
        if event.key and event.key in self.keys:
            task_id = self.keys[event.key]
            if task_id in self.waiting:
                error = ErrorReport("too_busy", "this submission is being recorded", (), 0.1)
                return [AnswerSubmission(event.request_id, error=error)]
            return [AnswerSubmission(event.request_id, task_id)]
        if len(self.open_tasks) >= self.max_pending_tasks:
            error = ErrorReport("too_busy", "too many submissions are under way", (), 1.0)
            return [AnswerSubmission(event.request_id, error=error)]
        accepted = accept(event, self.registry, self.leases, self.encode_mac, now_s)
        if isinstance(accepted, ErrorReport):
            return [AnswerSubmission(event.request_id, error=accepted)]
        task, vms = accepted
        self.tasks[task.task_id] = task
        self.open_tasks.add(task.task_id)
        self.waiting[task.task_id] = event.request_id
        if event.key:
            self.keys[event.key] = task.task_id
        return [RecordTask(task.record(), [record_of(vm) for vm in vms])]

    def _written(self, event: RecordWritten, now_s: float) -> list[SubmissionEffect]:
        request_id = self.waiting.pop(event.task_id, None)
        task = self.tasks[event.task_id]
        effects: list[SubmissionEffect] = []
        if request_id is not None:
            effects.append(AnswerSubmission(request_id, event.task_id))
        task.state = TaskState.RUNNING
        vms = [self.registry.vms[key] for key in task.open_vms if key in self.registry.vms]
        order = {vm_id: index for index, vm_id in enumerate(task.vms)}
        vms.sort(key=lambda vm: order[vm.vm_id])
        effects += self._dispatch(vms, now_s, event.now_ms)
        return effects + self._end_task(task, event.now_ms)

    def _not_written(self, event: RecordFailed) -> list[SubmissionEffect]:
        task = self.tasks.pop(event.task_id, None)
        self.open_tasks.discard(event.task_id)
        request_id = self.waiting.pop(event.task_id, None)
        if task is None:
            return []
        self.keys.pop(task.key, None)
        order = {vm_id: index for index, vm_id in enumerate(task.vms)}
        vms = [self.registry.vms[key] for key in task.open_vms if key in self.registry.vms]
        withdraw(sorted(vms, key=lambda vm: order[vm.vm_id]), self.registry, self.leases)
        if request_id is None:
            return []
        return [AnswerSubmission(request_id, error=event.error)]

    # ------------------------------------------------------------ dispatching

    def _dispatch(
        self, vms: Sequence[VmEntry], now_s: float, now_ms: int
    ) -> list[SubmissionEffect]:
        """Choose managers for VMs that wait for one."""
        groups: dict[frozenset[str], list[VmEntry]] = {}
        for vm in vms:
            groups.setdefault(frozenset(vm.tried), []).append(vm)
        effects: list[SubmissionEffect] = []
        for group in groups.values():
            choice = choose(self.registry, group, self.dispatch_policy, self.cursor)
            self.cursor = choice.cursor
            for left in choice.left:
                effects += self._no_manager(left.vm, left.code, left.message, now_s, now_ms)
            asked: dict[tuple[str, str], list[PlacementRequest]] = {}
            for vm, manager_id in choice.asked:
                vm.manager_id, vm.doubt, vm.elsewhere_s = manager_id, manager_id, now_s
                request = PlacementRequest(spec_of(vm), vm.pin_host)
                asked.setdefault((manager_id, vm.task_id), []).append(request)
            effects += [AskManager(m, task, requests) for (m, task), requests in asked.items()]
        return effects

    def _no_manager(
        self, vm: VmEntry, code: VmErrorCode, message: str, now_s: float, now_ms: int
    ) -> list[SubmissionEffect]:
        if self.settled:
            return self._fail(vm, code, message, now_s, now_ms)
        vm.tried.clear()
        return []

    def _answered(self, event: PlacementAnswered, now_s: float) -> list[SubmissionEffect]:
        again: list[VmEntry] = []
        moved: set[str] = set()
        for placed in event.answer.vms:
            vm = self.registry.vms.get(placed.vm_id)
            if vm is None or vm.doubt != event.manager_id:
                continue
            vm.doubt, vm.elsewhere_s = "", math.inf
            if vm.state is not VmState.PENDING:
                continue
            if placed.host_id:
                vm.state, vm.host_id = VmState.STARTING, placed.host_id
                moved.add(vm.task_id)
                self._note_progress(vm)
            else:
                vm.tried.add(event.manager_id)
                vm.manager_id, vm.reason = "", placed.reason
                again.append(vm)
        effects: list[SubmissionEffect] = [TaskMoved(task_id) for task_id in sorted(moved)]
        return effects + self._dispatch(again, now_s, event.now_ms)

    def _failed(self, event: PlacementFailed, now_s: float) -> list[SubmissionEffect]:
        again: list[VmEntry] = []
        doubtful = False
        for vm_id in event.vm_ids:
            vm = self.registry.vms.get(vm_id)
            if vm is None or vm.doubt != event.manager_id or vm.state is not VmState.PENDING:
                continue
            if not event.unknown:
                vm.doubt, vm.elsewhere_s = "", math.inf
                vm.tried.add(event.manager_id)
                vm.manager_id, vm.reason = "", event.error.message
                again.append(vm)
            else:
                doubtful = event.manager_id in self.registry.managers
        effects = self._dispatch(again, now_s, event.now_ms)
        if doubtful:
            effects.append(RejoinManager(event.manager_id, "it did not answer a placement"))
        return effects

    def _manager_heard(self, event: ManagerHeard, now_s: float) -> list[SubmissionEffect]:
        """What it was asked for on its former link and does not have, it will not place."""
        for vm in self.registry.vms.values():
            if vm.doubt == event.manager_id and vm.state is VmState.PENDING:
                vm.doubt = ""
        return self._settle_strays(now_s, event.now_ms)

    # ------------------------------------------------------------ reports

    def _reported(self, event: VmsReported, now_s: float) -> list[SubmissionEffect]:
        effects: list[SubmissionEffect] = []
        changed: list[VmEntry] = []
        removed: list[str] = []
        for status in event.statuses:
            effects += self._take_status(event, status, changed, removed, now_s)
        if event.host_id:
            effects += self._settle_missing(event, removed, now_s)
        records = [
            record_of(vm) for vm in changed if vm.key in self.registry.vms and _recordable(vm)
        ]
        if records or removed:
            effects.append(UpdateRecords(vms=records, removed_vms=removed))
        return effects

    def _take_status(
        self,
        event: VmsReported,
        status: VmStatus,
        changed: list[VmEntry],
        removed: list[str],
        now_s: float,
    ) -> list[SubmissionEffect]:
        vm = self.registry.entry_of(status)
        if vm is None:
            if status.state is VmState.DESTROYED or not self._is_current(event, status):
                return []
            vm = adopted(status, now_s)
            self.registry.add_vm(vm)
            if vm.ip_address and vm.managed:
                self.leases.claim(vm.ip_address, vm.vm_id)
        elif status.generation < vm.generation or not self._is_current(event, status, vm):
            return []
        before = vm.state
        vm.state, vm.demand, vm.generation = status.state, status.demand, status.generation
        vm.manager_id, vm.host_id, vm.doubt = event.manager_id, status.host_id, ""
        vm.reason = status.reason
        if not vm.ip_address:
            vm.ip_address = status.ip_address
        self._note_whereabouts(vm, now_s)
        if vm.state is VmState.DESTROYED:
            return self._gone(vm, removed, now_s, event.now_ms, status.cause)
        if vm.state is VmState.FAILED and not status.host_id:
            code = VmErrorCode(status.error_code or VmErrorCode.START_FAILED)
            return self._fail(vm, code, status.reason, now_s, event.now_ms)
        effects: list[SubmissionEffect] = []
        marker = (vm.state, vm.host_id, vm.generation)
        if vm.managed and vm.state in SETTLED and vm.recorded != marker:
            vm.recorded = marker
            changed.append(vm)
        if before is not vm.state and vm.managed:
            effects.append(_announce(self.registry, vm, status.cause))
        if before is not vm.state or vm.state in SETTLED:
            effects += self._task_progress(vm, event.now_ms)
        return effects

    def _note_whereabouts(self, vm: VmEntry, now_s: float) -> None:
        """After a report: can the VM be on any other host than the one it names?"""
        unsure = vm.state in {VmState.MIGRATING, VmState.UNREACHABLE}
        vm.elsewhere_s = min(vm.elsewhere_s, now_s) if unsure else math.inf
        if unsure and not vm.host_id:
            vm.waits_s = now_s
            self.strays.add(vm.vm_id)

    def _is_current(self, event: VmsReported, status: VmStatus, vm: VmEntry | None = None) -> bool:
        """Whether the manager that speaks is the one that has the host, or was asked."""
        if not status.host_id:
            return vm is None or vm.manager_id in {"", event.manager_id}
        host = self.registry.hosts.get(status.host_id)
        return host is None or host.manager_id == event.manager_id

    def _settle_missing(
        self, event: VmsReported, removed: list[str], now_s: float
    ) -> list[SubmissionEffect]:
        """VMs that were on the host and that its inventory does not have.

        None is placed anew yet: more hosts of the same manager may be about to be reported.
        """
        host = self.registry.hosts.get(event.host_id)
        if host is not None and host.manager_id != event.manager_id:
            return []
        present = {vm_key(s.vm_id, s.host_id, s.managed) for s in event.statuses}
        effects: list[SubmissionEffect] = []
        for vm in list(self.registry.vms_of_host(event.host_id)):
            if vm.key in present:
                continue
            if not vm.managed:
                self.registry.remove_vm(vm)
            elif vm.state in {VmState.STARTING, VmState.UNREACHABLE} and self._is_awaited(vm):
                # Ordered by a manager whose orders this host refuses from now on.
                vm.state, vm.host_id, vm.manager_id, vm.doubt = VmState.PENDING, "", "", ""
                self._note_progress(vm)
            elif vm.elsewhere_s < math.inf:
                vm.state, vm.host_id, vm.reason = VmState.UNREACHABLE, "", "its host is not known"
                vm.waits_s = now_s
                self.strays.add(vm.vm_id)
                effects.append(_announce(self.registry, vm, ""))
            else:
                effects += self._gone(vm, removed, now_s, event.now_ms, "")
        return effects

    def _gone(
        self, vm: VmEntry, removed: list[str], now_s: float, now_ms: int, cause: str
    ) -> list[SubmissionEffect]:
        vm.state = VmState.DESTROYED
        self.registry.remove_vm(vm)
        self.strays.discard(vm.vm_id)
        if not vm.managed:
            return []
        self.leases.release(vm.vm_id, now_s)
        removed.append(vm.vm_id)
        return [_announce(self.registry, vm, cause), *self._task_progress(vm, now_ms)]

    def _fail(
        self, vm: VmEntry, code: VmErrorCode, message: str, now_s: float, now_ms: int
    ) -> list[SubmissionEffect]:
        """A VM that never ran: its name, address and record are free again, its task keeps why."""
        vm.state, vm.reason, vm.error_code, vm.doubt = VmState.FAILED, message, code, ""
        self.registry.remove_vm(vm)
        self.leases.release(vm.vm_id, now_s)
        self.strays.discard(vm.vm_id)
        effects: list[SubmissionEffect] = [_announce(self.registry, vm, vm.task_id)]
        effects.append(UpdateRecords(removed_vms=[vm.vm_id]))
        return effects + self._task_progress(vm, now_ms)

    def _task_progress(self, vm: VmEntry, now_ms: int) -> list[SubmissionEffect]:
        """Tell the VM's submission how it stands."""
        task = self.tasks.get(vm.task_id)
        if task is None or vm.vm_id not in task.open_vms:
            return []
        if vm.state in {VmState.PENDING, VmState.STARTING, VmState.UNREACHABLE}:
            self._note_progress(vm)
            return [TaskMoved(task.task_id)]
        task.settle(_outcome(vm))
        return self._end_task(task, now_ms) or [TaskMoved(task.task_id)]

    def _is_awaited(self, vm: VmEntry) -> bool:
        """Whether the VM's submission still waits for it: it was never known to run."""
        task = self.tasks.get(vm.task_id)
        return task is not None and vm.vm_id in task.open_vms

    def _note_progress(self, vm: VmEntry) -> None:
        task = self.tasks.get(vm.task_id)
        if task is not None and vm.vm_id in task.open_vms:
            task.vms[vm.vm_id] = TaskVmRecord(
                vm.vm_id, vm.name, vm.state, vm.host_id, vm.ip_address
            )

    def _end_task(self, task: Task, now_ms: int) -> list[SubmissionEffect]:
        if not task.end_if_settled(now_ms):
            return []
        self.note_ended(task)
        return [UpdateRecords(tasks=[task.record()]), TaskMoved(task.task_id)]

    # ------------------------------------------------------------ a new leader, time, removal

    def _state_loaded(self, event: StateLoaded, now_s: float) -> list[SubmissionEffect]:
        """Take over what the record holds; VMs wait until the members have spoken."""
        for record in event.vms:
            if record.vm_id in self.registry.vms:
                continue
            vm = entry_of(record, now_s)
            vm.elsewhere_s = LONG_AGO
            self.registry.add_vm(vm)
            if vm.ip_address:
                self.leases.claim(vm.ip_address, vm.vm_id)
        effects: list[SubmissionEffect] = []
        for task_record in event.tasks:
            task = self.tasks.setdefault(task_record.task_id, Task.of_record(task_record))
            if task.key:
                self.keys.setdefault(task.key, task.task_id)
            if task.ended:
                self.ended_tasks.append(task.task_id)
            else:
                task.state = TaskState.RUNNING
                self.open_tasks.add(task.task_id)
                effects += self._catch_up(task, event.now_ms)
        for vm in self.registry.vms.values():
            if vm.state is VmState.PENDING and not self._is_awaited(vm):
                self.strays.add(vm.vm_id)
        return effects

    def _catch_up(self, task: Task, now_ms: int) -> list[SubmissionEffect]:
        """A task's record is older than those of its VMs: settle what they say."""
        for vm_id in sorted(task.open_vms):
            vm = self.registry.vms.get(vm_id)
            if vm is None:
                message = "it failed or was destroyed while the leader changed"
                error = ErrorReport(VmErrorCode.DESTROYED, message)
                task.settle(failed_vm(vm_id, task.vms[vm_id].name, error))
            elif vm.state in SETTLED:
                task.settle(_outcome(vm))
        return self._end_task(task, now_ms)

    def _destroyed(self, event: Destroyed, now_s: float) -> list[SubmissionEffect]:
        vm = self.registry.vms.get(event.vm_id)
        if vm is None or vm.state not in {VmState.PENDING, VmState.FAILED}:
            return []
        if vm.doubt or vm.elsewhere_s < math.inf or vm.task_id in self.waiting:
            return []
        removed: list[str] = []
        effects = self._gone(vm, removed, now_s, event.now_ms, "")
        return [*effects, UpdateRecords(removed_vms=removed)]

    def _ticked(self, event: Ticked, now_s: float) -> list[SubmissionEffect]:
        self.settled = event.settled
        effects: list[SubmissionEffect] = []
        for host_id, host in self.registry.hosts.items():
            effects += self._watch_host(host_id, host, now_s)
        effects += self._settle_strays(now_s, event.now_ms)
        acquit(self.registry, now_s)
        for vm in self._awaited():
            if now_s - vm.waits_s > self.start_timeout_s:
                effects += self._time_out(vm, now_s, event.now_ms)
        return effects + self._expire(event.now_ms)

    def _awaited(self) -> list[VmEntry]:
        """The VMs that a recorded submission still waits for."""
        return [
            self.registry.vms[vm_id]
            for task_id in sorted(self.open_tasks - self.waiting.keys())
            for vm_id in sorted(self.tasks[task_id].open_vms)
            if vm_id in self.registry.vms
        ]

    def _settle_strays(self, now_s: float, now_ms: int) -> list[SubmissionEffect]:
        """VMs without a host: place those that nobody can have, see to the others."""
        strays = [vm for vm in self._awaited() if vm.state is VmState.PENDING]
        strays += [self.registry.vms[i] for i in sorted(self.strays) if i in self.registry.vms]
        if not strays:
            return []
        hosts_away = away(self.registry)
        again: list[VmEntry] = []
        effects: list[SubmissionEffect] = []
        removed: list[str] = []
        for vm in strays:
            if vm.host_id:
                self.strays.discard(vm.vm_id)
            elif vm.doubt in self.registry.managers or (
                vm.elsewhere_s == LONG_AGO and not self.settled
            ):
                continue
            elif may_be_on(vm, hosts_away):
                effects += self._await_host(vm, suspect(vm, hosts_away))
            elif self._is_awaited(vm):
                vm.doubt, vm.elsewhere_s = "", math.inf
                again.append(vm)
            elif vm.state is VmState.PENDING or now_s - vm.waits_s > LOST_AFTER_S:
                effects += self._gone(vm, removed, now_s, now_ms, "")
        if removed:
            effects.append(UpdateRecords(removed_vms=removed))
        return effects + self._dispatch(again, now_s, now_ms)

    def _await_host(self, vm: VmEntry, host: HostEntry | None) -> list[SubmissionEffect]:
        """The VM may be on a host that is away: say so, once that host was given up."""
        if host is None:
            return []
        vm.host_id, vm.manager_id, vm.doubt = host.description.host_id, host.manager_id, ""
        vm.reason = "it may be on this host, which does not answer"
        self.strays.discard(vm.vm_id)
        return self._unreachable(vm)

    def _watch_host(self, host_id: str, host: HostEntry, now_s: float) -> list[SubmissionEffect]:
        """A host that stays away takes its VMs out of sight, once."""
        if host.joined or host.given_up or now_s - host.seen_s <= self.unreachable_after_s:
            return []
        host.given_up = True
        effects: list[SubmissionEffect] = []
        for vm in self.registry.vms_of_host(host_id):
            if vm.managed and vm.state is not VmState.UNREACHABLE:
                vm.reason = "its host does not answer"
                effects += self._unreachable(vm)
        return effects

    def _unreachable(self, vm: VmEntry) -> list[SubmissionEffect]:
        """The VM is out of sight; the record has to name its host, if it does not yet."""
        vm.state = VmState.UNREACHABLE
        effects: list[SubmissionEffect] = [_announce(self.registry, vm, "")]
        self._note_progress(vm)
        if vm.recorded is None or vm.recorded[1:] != (vm.host_id, vm.generation):
            vm.recorded = (vm.state, vm.host_id, vm.generation)
            effects.append(UpdateRecords(vms=[record_of(vm)]))
        return effects

    def _time_out(self, vm: VmEntry, now_s: float, now_ms: int) -> list[SubmissionEffect]:
        """The submission waits no longer; a VM that some host may have is kept in sight."""
        message = f"no host was known to run it within {self.start_timeout_s:g} s"
        if vm.state is VmState.PENDING and not vm.doubt and vm.elsewhere_s == math.inf:
            return self._fail(vm, VmErrorCode.TIMED_OUT, message, now_s, now_ms)
        if not vm.host_id:
            self.strays.add(vm.vm_id)
        error = ErrorReport(VmErrorCode.TIMED_OUT, f"{message}; it may still come up")
        task = self.tasks[vm.task_id]
        outcome = TaskVmRecord(vm.vm_id, vm.name, VmState.FAILED, vm.host_id, vm.ip_address, error)
        task.settle(outcome)
        return self._end_task(task, now_ms) or [TaskMoved(task.task_id)]

    def note_ended(self, task: Task) -> None:
        """Let the retention of an ended task begin."""
        self.open_tasks.discard(task.task_id)
        self.ended_tasks.append(task.task_id)

    def _expire(self, now_ms: int) -> list[SubmissionEffect]:
        """Forget tasks whose retention is over; the oldest too when there are too many."""
        recorded: list[str] = []
        while self.ended_tasks:
            task = self.tasks[self.ended_tasks[0]]
            fresh = now_ms - task.ended_ms <= self.retention_ms
            if fresh and len(self.ended_tasks) <= MAX_ENDED_TASKS:
                break
            self.ended_tasks.popleft()
            del self.tasks[task.task_id]
            self.keys.pop(task.key, None)
            if task.kind == SUBMIT:
                recorded.append(task.task_id)
        return [UpdateRecords(removed_tasks=recorded)] if recorded else []


def _announce(registry: Registry, vm: VmEntry, cause: str) -> Announce:
    host = registry.hosts.get(vm.host_id)
    name = host.description.hostname if host is not None else vm.host_id
    where = f" on {name}" if name else ""
    why = f": {vm.reason}" if vm.reason else ""
    return Announce(
        f"vm.{vm.state.value}", vm.name, f"VM {vm.name} is {vm.state.value}{where}{why}", cause
    )


def _recordable(vm: VmEntry) -> bool:
    return vm.managed and vm.state in SETTLED


def _outcome(vm: VmEntry) -> TaskVmRecord:
    """What became of a VM, for its submission."""
    error = None
    if vm.state is VmState.FAILED:
        error = ErrorReport(vm.error_code or VmErrorCode.START_FAILED, vm.reason)
    elif vm.state is VmState.DESTROYED:
        error = ErrorReport(VmErrorCode.DESTROYED, "destroyed before it ran")
    return TaskVmRecord(vm.vm_id, vm.name, vm.state, vm.host_id, vm.ip_address, error)

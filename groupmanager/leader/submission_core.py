"""From a valid submission to running VMs, and what becomes of every VM afterwards.

Rules:

1. A submission is checked as a whole against what exists (names, pins, addresses) before anything
   of it starts. Unless it is ``partial``, one wrong VM refuses all of it.
2. It is answered with its task's id only after its task and VMs are recorded.
3. Each VM goes to the manager that dispatching names. A manager that refuses is not asked again for
   it; the next best is. When none is left the VM has failed, and the task says why.
4. A manager that did not answer leaves the VM *in doubt*. It is placed anew only when that manager
   says, on joining, that it does not have it, or when every host of that manager has joined
   another: a host that has a new assignment epoch refuses the old manager's orders.
5. What a manager reports of its VMs is the truth. A settled state is recorded.
6. An address is given back, and a record removed, only when the VM is proven gone.

Invariant: a VM is in at most one of: asked of one manager, in doubt about one manager, waiting to
be dispatched.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

import numpy as np

from snooze.common.api import TaskState
from snooze.common.errors import ErrorReport, Problem
from snooze.common.records import TaskVmRecord
from snooze.common.vm_lifecycle import SETTLED, VmState
from snooze.common.vms import VmErrorCode
from snooze.common.wire import PlacementRequest, VmStatus
from snooze.groupmanager.leader.address_leases import AddressLeases, mac_of
from snooze.groupmanager.leader.membership_core import Announce
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry, vm_key
from snooze.groupmanager.leader.submission_events import (
    AnswerSubmission,
    AskManager,
    Candidate,
    Destroyed,
    ManagerHeard,
    PlacementAnswered,
    PlacementFailed,
    RecordFailed,
    RecordTask,
    RecordWritten,
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
from snooze.scheduling import dispatching

MAX_ASKS: Final = 3
"""How often one manager is asked again after not answering, while its link stands."""
MAX_ENDED_TASKS: Final = 100_000
"""Beyond this the oldest ended tasks are forgotten before their retention is over."""


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
    asks: dict[str, int] = field(default_factory=dict[str, int])
    loaded: set[str] = field(default_factory=set[str])
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
                return self._not_written(event, now_s)
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
        problems = self._problems(event.candidates)
        if any(problems) and not event.partial:
            listed = tuple(problem for found in problems for problem in found)
            error = ErrorReport(
                "invalid_request",
                f"{sum(1 for found in problems if found)} of {len(problems)} VMs cannot be "
                "started; nothing was",
                listed,
            )
            return [AnswerSubmission(event.request_id, error=error)]
        return self._accept(event, problems, now_s)

    def _problems(self, candidates: Sequence[Candidate]) -> list[list[Problem]]:
        """What is wrong with each VM, by itself and beside what exists."""
        seen: dict[str, int] = {}
        result: list[list[Problem]] = []
        for index, candidate in enumerate(candidates):
            found = list(candidate.problems)
            where = f"vms[{index}]"
            if candidate.name:
                if candidate.name in seen:
                    first = seen[candidate.name]
                    found.append(
                        Problem(
                            f"{where}.name",
                            f"{candidate.name!r} is also the name of vms[{first}]",
                            VmErrorCode.NAME_TAKEN,
                        )
                    )
                elif candidate.name in self.registry.names:
                    found.append(
                        Problem(
                            f"{where}.name",
                            f"a VM named {candidate.name!r} exists; destroy it or take another",
                            VmErrorCode.NAME_TAKEN,
                        )
                    )
                seen.setdefault(candidate.name, index)
            if candidate.host and self._pin(candidate.host) is None:
                found.append(
                    Problem(
                        f"{where}.host",
                        f"no host or group manager is called {candidate.host!r}",
                        VmErrorCode.INVALID_HOST,
                    )
                )
            result.append(found)
        return result

    def _pin(self, host: str) -> tuple[str, str] | None:
        """``(host_id, manager_id)`` of a pin, one of them empty; None if there is no such."""
        if not host:
            return ("", "")
        entry = self.registry.find_host(host)
        if entry is not None:
            return (entry.description.host_id, "")
        return ("", host) if host in self.registry.managers else None

    def _accept(
        self, event: Submitted, problems: list[list[Problem]], now_s: float
    ) -> list[SubmissionEffect]:
        task = Task(
            event.task_id,
            SUBMIT,
            event.now_ms,
            {},
            key=event.key,
            virtual_cluster=event.virtual_cluster,
        )
        accepted: list[VmEntry] = []
        for candidate, found in zip(event.candidates, problems, strict=True):
            if found:
                first = found[0]
                error = ErrorReport(first.code, first.message, tuple(found))
                task.settle(failed_vm(candidate.vm_id, candidate.name, error))
                continue
            vm = self._entry(candidate, event, now_s)
            if vm is None:
                error = ErrorReport(
                    VmErrorCode.NO_ADDRESS, "every address of the subnets is leased"
                )
                if not event.partial:
                    return [*self._withdraw(accepted, now_s), _refuse(event, error)]
                task.settle(failed_vm(candidate.vm_id, candidate.name, error))
                continue
            accepted.append(vm)
            self.registry.add_vm(vm)
            task.vms[vm.vm_id] = TaskVmRecord(vm.vm_id, vm.name, VmState.PENDING, "", vm.ip_address)
            task.open_vms.add(vm.vm_id)
        self.tasks[task.task_id] = task
        self.open_tasks.add(task.task_id)
        self.waiting[task.task_id] = event.request_id
        if event.key:
            self.keys[event.key] = task.task_id
        return [RecordTask(task.record(), [record_of(vm) for vm in accepted])]

    def _entry(self, candidate: Candidate, event: Submitted, now_s: float) -> VmEntry | None:
        address = ""
        if self.leases.active:
            leased = self.leases.lease(candidate.vm_id, now_s)
            if leased is None:
                return None
            address = leased
        pin_host, pin_manager = self._pin(candidate.host) or ("", "")
        return VmEntry(
            vm_id=candidate.vm_id,
            name=candidate.name,
            demand=candidate.demand,
            state=VmState.PENDING,
            task_id=event.task_id,
            virtual_cluster=event.virtual_cluster,
            image=candidate.image,
            template=candidate.template,
            ip_address=address,
            mac_address=mac_of(address) if address and self.encode_mac else "",
            pin_host=pin_host,
            pin_manager=pin_manager,
            waits_s=now_s,
        )

    def _withdraw(self, vms: Iterable[VmEntry], now_s: float) -> list[SubmissionEffect]:
        for vm in vms:
            self.registry.remove_vm(vm)
            self.leases.release(vm.vm_id, now_s)
        return []

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

    def _not_written(self, event: RecordFailed, now_s: float) -> list[SubmissionEffect]:
        task = self.tasks.pop(event.task_id, None)
        self.open_tasks.discard(event.task_id)
        request_id = self.waiting.pop(event.task_id, None)
        if task is None:
            return []
        self.keys.pop(task.key, None)
        self._withdraw(
            [self.registry.vms[key] for key in task.open_vms if key in self.registry.vms], now_s
        )
        if request_id is None:
            return []
        return [AnswerSubmission(request_id, error=event.error)]

    # ------------------------------------------------------------ dispatching

    def _dispatch(
        self, vms: Sequence[VmEntry], now_s: float, now_ms: int
    ) -> list[SubmissionEffect]:
        """Choose managers for VMs that wait for one."""
        effects: list[SubmissionEffect] = []
        groups: dict[frozenset[str], list[VmEntry]] = {}
        for vm in vms:
            groups.setdefault(frozenset(vm.tried), []).append(vm)
        for tried, group in groups.items():
            effects += self._dispatch_group(group, tried, now_s, now_ms)
        return effects

    def _dispatch_group(
        self, vms: Sequence[VmEntry], tried: frozenset[str], now_s: float, now_ms: int
    ) -> list[SubmissionEffect]:
        members = sorted(self.registry.managers.values(), key=lambda m: m.manager_id)
        managers = [m for m in members if m.view is not None and m.manager_id not in tried]
        index = {m.manager_id: i for i, m in enumerate(managers)}
        pins = [self._pinned_manager(vm, index) for vm in vms]
        plan = dispatching.plan(
            [m.view for m in managers if m.view is not None],
            np.array([vm.demand.as_tuple() for vm in vms]),
            np.array(pins, dtype=np.int64),
            self.dispatch_policy,
            self.cursor,
        )
        self.cursor = plan.cursor
        why = {reason.vm: reason.message for reason in plan.reasons}
        asked: dict[tuple[str, str], list[PlacementRequest]] = {}
        effects: list[SubmissionEffect] = []
        for i, vm in enumerate(vms):
            if plan.manager[i] < 0:
                effects += self._no_room(vm, why.get(i, ""), bool(managers), now_s, now_ms)
                continue
            manager = managers[int(plan.manager[i])]
            if manager.view is not None:
                manager.view = dispatching.without(manager.view, vm.demand.as_array())
            vm.manager_id, vm.doubt = manager.manager_id, manager.manager_id
            request = PlacementRequest(spec_of(vm), vm.pin_host)
            asked.setdefault((manager.manager_id, vm.task_id), []).append(request)
        effects += [AskManager(m, task, requests) for (m, task), requests in asked.items()]
        return effects

    def _pinned_manager(self, vm: VmEntry, index: dict[str, int]) -> int:
        """Index of the only manager that may have it, -1 for any, a large one for "is away"."""
        pinned = vm.pin_manager
        if vm.pin_host:
            host = self.registry.hosts.get(vm.pin_host)
            pinned = host.manager_id if host is not None else ""
            if not pinned:
                return len(index)
        return index.get(pinned, len(index)) if pinned else -1

    def _no_room(
        self, vm: VmEntry, why: str, any_manager: bool, now_s: float, now_ms: int
    ) -> list[SubmissionEffect]:
        if vm.tried:
            code, message = VmErrorCode.NO_CAPACITY, vm.reason or why
        elif any_manager:
            code, message = VmErrorCode.NO_CAPACITY, why
        else:
            code, message = VmErrorCode.NO_MANAGER, "no group manager with hosts has joined"
        return self._fail(vm, code, message, now_s, now_ms)

    def _answered(self, event: PlacementAnswered, now_s: float) -> list[SubmissionEffect]:
        again: list[VmEntry] = []
        moved: set[str] = set()
        for placed in event.answer.vms:
            vm = self.registry.vms.get(placed.vm_id)
            if vm is None or vm.doubt != event.manager_id:
                continue
            vm.doubt = ""
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
        repeat: dict[str, list[PlacementRequest]] = {}
        for vm_id in event.vm_ids:
            vm = self.registry.vms.get(vm_id)
            if vm is None or vm.doubt != event.manager_id or vm.state is not VmState.PENDING:
                continue
            if not event.unknown:
                vm.doubt = ""
                vm.tried.add(event.manager_id)
                vm.reason = event.error.message
                again.append(vm)
            elif event.manager_id in self.registry.managers:
                asks = self.asks.get(vm_id, 1)
                if asks < MAX_ASKS:
                    self.asks[vm_id] = asks + 1
                    request = PlacementRequest(spec_of(vm), vm.pin_host)
                    repeat.setdefault(vm.task_id, []).append(request)
        effects = self._dispatch(again, now_s, event.now_ms)
        effects += [AskManager(event.manager_id, t, requests) for t, requests in repeat.items()]
        return effects

    def _manager_heard(self, event: ManagerHeard, now_s: float) -> list[SubmissionEffect]:
        again: list[VmEntry] = []
        for vm in self.registry.vms.values():
            if vm.doubt == event.manager_id and vm.state is VmState.PENDING:
                vm.doubt = ""
                again.append(vm)
        return self._dispatch(again, now_s, event.now_ms)

    # ------------------------------------------------------------ reports

    def _reported(self, event: VmsReported, now_s: float) -> list[SubmissionEffect]:
        effects: list[SubmissionEffect] = []
        changed: list[VmEntry] = []
        removed: list[str] = []
        for status in event.statuses:
            effects += self._take_status(event, status, changed, removed, now_s)
        if event.host_id:
            effects += self._settle_missing(event, changed, removed, now_s)
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
        elif status.generation < vm.generation or not self._is_current(event, status):
            return []
        before = vm.state
        vm.state, vm.demand, vm.generation = status.state, status.demand, status.generation
        vm.manager_id, vm.host_id, vm.doubt = event.manager_id, status.host_id, ""
        vm.reason = status.reason
        if not vm.ip_address:
            vm.ip_address = status.ip_address
        self.loaded.discard(vm.vm_id)
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
        if before is not vm.state:
            if vm.managed:
                effects.append(_announce(vm, status.cause))
            effects += self._task_progress(vm, event.now_ms)
        return effects

    def _is_current(self, event: VmsReported, status: VmStatus) -> bool:
        """Whether the manager that speaks is the one that has the host."""
        host = self.registry.hosts.get(status.host_id)
        return not status.host_id or host is None or host.manager_id == event.manager_id

    def _settle_missing(
        self, event: VmsReported, changed: list[VmEntry], removed: list[str], now_s: float
    ) -> list[SubmissionEffect]:
        """VMs that were on the host and that its inventory does not have."""
        present = {vm_key(s.vm_id, s.host_id, s.managed) for s in event.statuses}
        effects: list[SubmissionEffect] = []
        for vm in list(self.registry.vms_of_host(event.host_id)):
            if vm.key in present or vm.state is VmState.PENDING:
                continue
            if vm.state is VmState.STARTING:
                # Ordered by a manager whose orders this host refuses from now on.
                vm.state, vm.host_id, vm.manager_id, vm.doubt = VmState.PENDING, "", "", ""
                effects += self._dispatch([vm], now_s, event.now_ms)
            elif not vm.managed:
                self.registry.remove_vm(vm)
            else:
                effects += self._gone(vm, removed, now_s, event.now_ms, "")
        return effects

    def _gone(
        self, vm: VmEntry, removed: list[str], now_s: float, now_ms: int, cause: str
    ) -> list[SubmissionEffect]:
        vm.state = VmState.DESTROYED
        self.registry.remove_vm(vm)
        if not vm.managed:
            return []
        self.leases.release(vm.vm_id, now_s)
        removed.append(vm.vm_id)
        return [_announce(vm, cause), *self._task_progress(vm, now_ms)]

    def _fail(
        self, vm: VmEntry, code: VmErrorCode, message: str, now_s: float, now_ms: int
    ) -> list[SubmissionEffect]:
        """A VM that never ran: its name, address and record are free again, its task keeps why."""
        vm.state, vm.reason, vm.error_code, vm.doubt = VmState.FAILED, message, code, ""
        self.registry.remove_vm(vm)
        self.leases.release(vm.vm_id, now_s)
        self.asks.pop(vm.vm_id, None)
        effects: list[SubmissionEffect] = [_announce(vm, vm.task_id)]
        effects.append(UpdateRecords(removed_vms=[vm.vm_id]))
        return effects + self._task_progress(vm, now_ms)

    def _task_progress(self, vm: VmEntry, now_ms: int) -> list[SubmissionEffect]:
        """Tell the VM's submission how it stands."""
        task = self.tasks.get(vm.task_id)
        if task is None or vm.vm_id not in task.open_vms:
            return []
        if vm.state in {VmState.PENDING, VmState.STARTING}:
            self._note_progress(vm)
            return [TaskMoved(task.task_id)]
        error = None
        if vm.state is VmState.FAILED:
            error = ErrorReport(vm.error_code or VmErrorCode.START_FAILED, vm.reason)
        elif vm.state is VmState.DESTROYED:
            error = ErrorReport(VmErrorCode.DESTROYED, "destroyed before it ran")
        task.settle(TaskVmRecord(vm.vm_id, vm.name, vm.state, vm.host_id, vm.ip_address, error))
        return self._end_task(task, now_ms) or [TaskMoved(task.task_id)]

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
            self.registry.add_vm(vm)
            self.loaded.add(vm.vm_id)
            if vm.ip_address:
                self.leases.claim(vm.ip_address, vm.vm_id)
        for task_record in event.tasks:
            task = self.tasks.setdefault(task_record.task_id, Task.of_record(task_record))
            if task.ended:
                self.ended_tasks.append(task.task_id)
            else:
                self.open_tasks.add(task.task_id)
            if task.key:
                self.keys.setdefault(task.key, task.task_id)
        return []

    def _destroyed(self, event: Destroyed, now_s: float) -> list[SubmissionEffect]:
        vm = self.registry.vms.get(event.vm_id)
        if vm is None or vm.doubt or vm.state not in {VmState.PENDING, VmState.FAILED}:
            return []
        removed: list[str] = []
        effects = self._gone(vm, removed, now_s, event.now_ms, "")
        return [*effects, UpdateRecords(removed_vms=removed)]

    def _ticked(self, event: Ticked, now_s: float) -> list[SubmissionEffect]:
        effects: list[SubmissionEffect] = []
        again: list[VmEntry] = []
        for vm in self._pending():
            if vm.doubt and self._doubt_is_over(vm):
                vm.doubt = ""
                again.append(vm)
            elif vm.vm_id in self.loaded and event.settled and not vm.doubt:
                self.loaded.discard(vm.vm_id)
                again.append(vm)
            elif now_s - vm.waits_s > self.start_timeout_s:
                message = f"no host ran it within {self.start_timeout_s:g} s"
                effects += self._fail(vm, VmErrorCode.TIMED_OUT, message, now_s, event.now_ms)
        for host_id, host in self.registry.hosts.items():
            effects += self._watch_host(host_id, host, now_s)
        effects += self._dispatch(again, now_s, event.now_ms)
        return effects + self._expire(event.now_ms)

    def _pending(self) -> list[VmEntry]:
        """The recorded VMs that have no host yet."""
        return [
            self.registry.vms[vm_id]
            for task_id in sorted(self.open_tasks - self.waiting.keys())
            for vm_id in sorted(self.tasks[task_id].open_vms)
            if vm_id in self.registry.vms and self.registry.vms[vm_id].state is VmState.PENDING
        ]

    def _doubt_is_over(self, vm: VmEntry) -> bool:
        """Whether the manager in doubt is gone and has no host left that could obey it."""
        if vm.doubt in self.registry.managers:
            return False
        return all(host.manager_id != vm.doubt for host in self.registry.hosts.values())

    def _watch_host(self, host_id: str, host: HostEntry, now_s: float) -> list[SubmissionEffect]:
        """A host that stays away takes its VMs out of sight, once."""
        if host.joined or host.given_up or now_s - host.seen_s <= self.unreachable_after_s:
            return []
        host.given_up = True
        effects: list[SubmissionEffect] = []
        for vm in self.registry.vms_of_host(host_id):
            if vm.managed and vm.state is not VmState.UNREACHABLE:
                vm.state, vm.reason = VmState.UNREACHABLE, "its host does not answer"
                effects.append(_announce(vm, ""))
        return effects

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


def _refuse(event: Submitted, error: ErrorReport) -> AnswerSubmission:
    return AnswerSubmission(event.request_id, error=error)


def _announce(vm: VmEntry, cause: str) -> Announce:
    where = f" on {vm.host_id}" if vm.host_id else ""
    why = f": {vm.reason}" if vm.reason else ""
    return Announce(
        f"vm.{vm.state.value}", vm.name, f"VM {vm.name} is {vm.state.value}{where}{why}", cause
    )


def _recordable(vm: VmEntry) -> bool:
    return vm.managed and vm.state in SETTLED

"""From a valid submission to running VMs, and what becomes of every VM afterwards.

Rules:

1. A submission is checked as a whole against what exists (names, pins, addresses) before anything
   of it starts. Unless it is ``partial``, one wrong VM refuses all of it.
2. It is answered with its task's id only after its task and VMs are recorded.
3. Each VM goes to the manager that dispatching names. A manager that refuses is not asked again for
   it; the next best is. When none is left the VM has failed, and the task says why; a new leader
   first gives its members time to join, and managers that refused for the moment only (no session
   with the store, just left) are asked again for a while.
4. A VM is placed anew only when nobody can have it: the manager that was asked has answered, or has
   joined again without it, or is gone; and every host that has been away since it was asked has
   come back without it (a host that has a new assignment epoch refuses the old manager's orders,
   and says what it has). No manager is asked twice: it may have forgotten the VM with its host. One
   that does not answer is made to join again.
5. What a manager reports of its VMs is the truth. A settled state is recorded.
6. An address is given back, and a record removed, only when the VM is proven gone.
7. A VM that may be on a host which stays away is ``UNREACHABLE`` there, and recorded so.
8. A VM whose host is proven down is dealt with by ``submission_restarts_core.py``.
9. A task ends in bounded time: a VM that is not known to run by then has failed in its task, and
   keeps its address for as long as rule 4 would not place it anew.

Invariant: a VM is in at most one of: asked of one manager, in doubt about one manager, waiting to
be dispatched.
"""

import math
from dataclasses import dataclass
from typing import Final, assert_never

from snooze.common.api import TaskState
from snooze.common.errors import ErrorReport, RemoteError, TooBusy
from snooze.common.records import TaskVmRecord
from snooze.common.vm_lifecycle import SETTLED, VmState
from snooze.common.vms import VmErrorCode
from snooze.common.wire import PlacedVm
from snooze.groupmanager.leader.acceptance import accept, withdraw
from snooze.groupmanager.leader.registry import HostEntry, Plan, VmEntry
from snooze.groupmanager.leader.submission_events import (
    AnswerSubmission,
    Destroyed,
    HostDown,
    ManagerHeard,
    PlacementAnswered,
    PlacementFailed,
    RecordFailed,
    RecordTask,
    RecordWritten,
    RejoinManager,
    RestartAsked,
    RestartsNotWritten,
    RestartsWritten,
    StartEnded,
    StateLoaded,
    SubmissionEffect,
    SubmissionEvent,
    Submitted,
    TaskMoved,
    Ticked,
    UpdateRecords,
    VmsReported,
)
from snooze.groupmanager.leader.submission_reports_core import Reports
from snooze.groupmanager.leader.submission_state_core import (
    LONG_AGO,
    LOST_AFTER_S,
    announce,
    outcome_of,
)
from snooze.groupmanager.leader.tasks import Task, failed_vm
from snooze.groupmanager.leader.vm_views import entry_of, record_of
from snooze.groupmanager.leader.whereabouts import (
    acquit,
    away,
    may_be_defined_on,
    may_be_on,
    suspect,
)

FOR_NOW: Final = frozenset({TooBusy.code, RemoteError.code})
"""Why a whole request is refused by a manager that will take it, or be gone, in a moment."""
FOR_NOW_S: Final = 20.0
"""From the first such refusal on. A suspended session is back or lost within a few seconds; a
manager whose session is lost has left by then."""
GIVEN_UP_AT_ONCE: Final = 10
"""Hosts in one tick: with 100,000 VMs a tenth of a second's work."""


@dataclass(slots=True)
class SubmissionCore(Reports):
    """Decides about tasks and VMs; see the module's rules."""

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
            case HostDown():
                return self._host_down(event, now_s)
            case RestartsWritten():
                return self._restarts_written(event, now_s)
            case RestartsNotWritten():
                return self._restarts_not_written(event, now_s)
            case RestartAsked():
                return self._restart_asked(event, now_s)
            case StartEnded():
                return self._start_ended(event, now_s)
            case Ticked():
                return self._ticked(event, now_s)
            case _:
                assert_never(event)

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
        effects += self.dispatch(vms, now_s, event.now_ms)
        return effects + self.end_task(task, event.now_ms)

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

    def _answered(self, event: PlacementAnswered, now_s: float) -> list[SubmissionEffect]:
        again: list[VmEntry] = []
        moved: set[str] = set()
        effects: list[SubmissionEffect] = []
        for placed in event.answer.vms:
            vm = self.registry.vms.get(placed.vm_id)
            if vm is None or vm.doubt != event.manager_id:
                continue
            vm.doubt, vm.elsewhere_s = "", math.inf
            if vm.state is not VmState.PENDING:
                continue
            if placed.host_id and self._has_joined_since(placed):
                vm.manager_id = ""
                self.note_progress(vm)
            elif placed.host_id:
                effects += self.placed_again(vm, event.answer.inputs)
                vm.state, vm.host_id = VmState.STARTING, placed.host_id
                vm.lacks_room, vm.waits_for, vm.reason = False, None, ""
                vm.was = vm.was if vm.plan is not Plan.NONE else VmState.STARTING
                moved.add(vm.task_id)
                self.note_progress(vm)
            else:
                vm.tried.add(event.manager_id)
                vm.manager_id, vm.reason = "", placed.reason
                again.append(vm)
        effects += [TaskMoved(task_id) for task_id in sorted(moved)]
        return effects + self.dispatch(again, now_s, event.now_ms)

    def _has_joined_since(self, placed: PlacedVm) -> bool:
        """Whether the host has a newer assignment than that of the start, and has told what it has.

        It refuses that start, and it has not said that it has the VM: that would have ended our
        doubt. An answer may come after what was said later, by the same manager even: a leader that
        was frozen takes all of it in at once.
        """
        host = self.registry.hosts.get(placed.host_id)
        return host is not None and host.joined and 0 < placed.epoch < host.epoch

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
                if event.error.code in FOR_NOW and vm.for_now_s == -math.inf:
                    vm.for_now_s = now_s + FOR_NOW_S
                again.append(vm)
            else:
                doubtful = event.manager_id in self.registry.managers
        effects = self.dispatch(again, now_s, event.now_ms)
        if doubtful:
            effects.append(RejoinManager(event.manager_id, "it did not answer a placement"))
        return effects

    def _manager_heard(self, event: ManagerHeard, now_s: float) -> list[SubmissionEffect]:
        """What it was asked for on its former link and does not have, it will not place."""
        for vm in list(self.registry.vms.open.values()):
            if vm.doubt == event.manager_id:
                vm.doubt = ""
            if vm.moving and vm.manager_id == event.manager_id and vm.key not in event.moving:
                vm.moving, vm.waits_s = False, now_s
        for key in event.moving:
            moved = self.registry.vms.get(key)
            if moved is not None and moved.manager_id == event.manager_id and not moved.moving:
                # Its source may be out of reach, and say later that it has it no more: seed 920054.
                moved.moving, moved.elsewhere_s = True, LONG_AGO
        return self._settle_strays(now_s, event.now_ms)

    def _state_loaded(self, event: StateLoaded, now_s: float) -> list[SubmissionEffect]:
        """Take over what the record holds; VMs wait until the members have spoken."""
        for record in event.vms:
            if record.vm_id in self.registry.vms:
                continue
            if record.state is VmState.DESTROYED:
                self.registry.graves[record.vm_id] = record.generation
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
        if event.more:
            return effects
        for vm in self.registry.vms.values():
            if vm.state is VmState.PENDING and not self.is_awaited(vm):
                if vm.restarts_ms:
                    vm.was = VmState.RUNNING
                    begun = self._about(vm, event.now_ms, begun=True)
                    effects += self._want(vm, begun, now_s)
                else:
                    self.strays.add(vm.vm_id)
            elif not self.is_awaited(vm):
                self.take_up(vm)
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
                task.settle(outcome_of(vm))
        return self.end_task(task, now_ms)

    def _destroyed(self, event: Destroyed, now_s: float) -> list[SubmissionEffect]:
        vm = self.registry.vms.get(event.vm_id)
        if vm is None or vm.state not in {VmState.PENDING, VmState.FAILED}:
            return []
        if vm.doubt or vm.elsewhere_s < math.inf or vm.task_id in self.waiting:
            return []
        vm.plan = Plan.NONE
        removed: list[str] = []
        effects = self.gone(vm, removed, now_s, event.now_ms, "")
        return [*effects, UpdateRecords(removed_vms=removed)] if removed else effects

    def _ticked(self, event: Ticked, now_s: float) -> list[SubmissionEffect]:
        self.settled = event.settled
        effects: list[SubmissionEffect] = []
        effects += self._watch_hosts(now_s)
        effects += self._settle_strays(now_s, event.now_ms)
        effects += self._restart_due(now_s, event.now_ms)
        effects += self.let_go_on(now_s) if self.settled else []
        acquit(self.registry, now_s)
        for vm in self._awaited():
            if now_s - vm.waits_s > self.start_timeout_s:
                effects += self._time_out(vm, now_s, event.now_ms)
        return effects + self.expire(event.now_ms)

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
        strays = [vm for vm in strays if vm.plan is Plan.NONE]
        if not strays:
            return []
        hosts_away = away(self.registry)
        again: list[VmEntry] = []
        effects: list[SubmissionEffect] = []
        removed: list[str] = []
        for vm in strays:
            if vm.host_id:
                self.strays.discard(vm.vm_id)
            elif (
                vm.doubt in self.registry.managers
                or (vm.moving and vm.manager_id in self.registry.managers)
                or (vm.elsewhere_s == LONG_AGO and not self.settled)
                or self._may_be_unheard(vm, now_s)
            ):
                continue
            elif may_be_on(vm, hosts_away):
                effects += self._await_host(vm, suspect(vm, hosts_away))
            elif may_be_defined_on(vm, hosts_away) and self.was_started(vm):
                suspected = self._about(vm, now_ms, suspect=True)
                effects += self._want(vm, suspected, now_s)
            elif self.is_awaited(vm):
                vm.doubt, vm.elsewhere_s = "", math.inf
                again.append(vm)
            elif vm.state is VmState.PENDING or now_s - vm.waits_s > LOST_AFTER_S:
                effects += self.gone(vm, removed, now_s, now_ms, "")
        if removed:
            effects.append(UpdateRecords(removed_vms=removed))
        return effects + self.dispatch(again, now_s, now_ms)

    def _may_be_unheard(self, vm: VmEntry, now_s: float) -> bool:
        """Whether a host in reach may be yet to say that the VM has arrived on it.

        What has been started anew nobody has moved.
        """
        settling = vm.state is not VmState.PENDING and now_s - vm.waits_s <= LOST_AFTER_S
        return settling and not self.is_awaited(vm)

    def _await_host(self, vm: VmEntry, host: HostEntry | None) -> list[SubmissionEffect]:
        """The VM may be on a host that is away: say so, once that host was given up."""
        if host is None:
            return []
        vm.host_id, vm.manager_id, vm.doubt = host.description.host_id, host.manager_id, ""
        vm.reason = "it may be on this host, which does not answer"
        self.strays.discard(vm.vm_id)
        return self._unreachable(vm)

    def _watch_hosts(self, now_s: float) -> list[SubmissionEffect]:
        """Give up hosts that stay away, some at a time: for each, all VMs are looked through.

        After a power cut of everything a thousand are due at once, and the leader must not stand
        still for it.
        """
        effects: list[SubmissionEffect] = []
        left = GIVEN_UP_AT_ONCE
        for host in list(self.registry.hosts.unsettled.values()):
            if host.given_up:
                continue
            effects += self._watch_host(host.description.host_id, host, now_s)
            left -= host.given_up
            if left == 0:
                break
        return effects

    def _watch_host(self, host_id: str, host: HostEntry, now_s: float) -> list[SubmissionEffect]:
        """A host that stays away takes its VMs out of sight, once."""
        if host.joined or host.given_up or now_s - host.seen_s <= self.unreachable_after_s:
            return []
        host.given_up = True
        effects: list[SubmissionEffect] = []
        for vm in self.registry.vms_of_host(host_id):
            if vm.managed and vm.state is not VmState.UNREACHABLE:
                vm.reason = vm.reason if vm.plan is not Plan.NONE else "its host does not answer"
                effects += self._unreachable(vm)
        return effects

    def _unreachable(self, vm: VmEntry) -> list[SubmissionEffect]:
        """The VM is out of sight; the record has to name its host, if it does not yet."""
        vm.state = VmState.UNREACHABLE
        effects: list[SubmissionEffect] = [announce(self.registry, vm, "")]
        self.note_progress(vm)
        if vm.recorded is None or vm.recorded[1:] != (vm.host_id, vm.generation):
            vm.recorded = (vm.state, vm.host_id, vm.generation)
            effects.append(UpdateRecords(vms=[record_of(vm)]))
        return effects

    def _time_out(self, vm: VmEntry, now_s: float, now_ms: int) -> list[SubmissionEffect]:
        """The submission waits no longer; a VM that some host may have is kept in sight."""
        message = f"no host was known to run it within {self.start_timeout_s:g} s"
        if vm.state is VmState.PENDING and not vm.doubt and vm.elsewhere_s == math.inf:
            return self.fail(vm, VmErrorCode.TIMED_OUT, message, now_s, now_ms)
        if not vm.host_id:
            self.strays.add(vm.vm_id)
        error = ErrorReport(VmErrorCode.TIMED_OUT, f"{message}; it may still come up")
        task = self.tasks[vm.task_id]
        outcome = TaskVmRecord(vm.vm_id, vm.name, VmState.FAILED, vm.host_id, vm.ip_address, error)
        task.settle(outcome)
        return self.end_task(task, now_ms) or [TaskMoved(task.task_id)]

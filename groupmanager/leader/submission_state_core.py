"""What the submission core's parts share: its state, dispatching, and the end of VMs and tasks.

The rules are those of ``submission_core.py``.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from snooze.common.errors import ErrorReport
from snooze.common.records import HostPower, TaskVmRecord
from snooze.common.resources import FloatArray, R
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmErrorCode
from snooze.common.wire import PlacementRequest
from snooze.groupmanager.leader.address_leases import AddressLeases
from snooze.groupmanager.leader.dispatcher import NoManager, choose
from snooze.groupmanager.leader.energy_rules import SLEEPERS, could_be_woken_for, just_joined
from snooze.groupmanager.leader.membership_core import Announce
from snooze.groupmanager.leader.registry import Plan, Registry, VmEntry
from snooze.groupmanager.leader.submission_events import (
    RECOVERY,
    AskManager,
    SubmissionEffect,
    TaskMoved,
    UpdateRecords,
)
from snooze.groupmanager.leader.tasks import SUBMIT, Task
from snooze.groupmanager.leader.vm_views import spec_of, tombstone_of
from snooze.groupmanager.leader.whereabouts import away, may_be_defined_on, may_be_on
from snooze.scheduling import dispatching

MAX_ENDED_TASKS: Final = 100_000
"""Beyond this the oldest ended tasks are forgotten before their retention is over."""
ASK_AGAIN_S: Final = 1.0
"""A VM that waits for room is offered again to managers that refused it after this."""
LOST_AFTER_S: Final = 60.0
"""A VM that left its host and that no host in reach has told of for so long is gone; hosts look at
what they have twice in this time."""
MAX_GRAVES: Final = 10_000
"""Restarted VMs that are remembered after their end; about 150 bytes of record each."""
LONG_AGO: Final = -1e18
"""Earlier than any monotonic time: a VM read from the record may have been asked for at any."""


@dataclass(slots=True)
class SubmissionState:
    """Tasks and VMs, and what is done about them whatever happened."""

    registry: Registry
    leases: AddressLeases
    dispatch_policy: dispatching.DispatchPolicy = dispatching.DispatchPolicy.BEST_FIT
    encode_mac: bool = True
    max_pending_tasks: int = 1000
    retention_ms: int = 86_400_000
    start_timeout_s: float = 300.0
    unreachable_after_s: float = 10.0
    limit: FloatArray = field(default_factory=lambda: np.ones(R))
    cursor: int = 0
    tasks: dict[str, Task] = field(default_factory=dict[str, Task])
    keys: dict[str, str] = field(default_factory=dict[str, str])
    waiting: dict[str, int] = field(default_factory=dict[str, int])
    settled: bool = False
    strays: set[str] = field(default_factory=set[str])
    open_tasks: set[str] = field(default_factory=set[str])
    ended_tasks: deque[str] = field(default_factory=deque[str])
    dispatched: dict[str, bytes] = field(default_factory=dict[str, bytes])

    def dispatch(self, vms: Sequence[VmEntry], now_s: float, now_ms: int) -> list[SubmissionEffect]:
        """Choose managers for VMs that wait for one."""
        groups: dict[frozenset[str], list[VmEntry]] = {}
        for vm in vms:
            groups.setdefault(frozenset(vm.tried), []).append(vm)
        effects: list[SubmissionEffect] = []
        for group in groups.values():
            choice = choose(self.registry, group, self.dispatch_policy, self.cursor)
            self.cursor = choice.cursor
            moving = bool(choice.left) and self._hosts_are_moving()
            for left in choice.left:
                effects += self._no_manager(left, moving, now_s, now_ms)
            asked: dict[tuple[str, str], list[PlacementRequest]] = {}
            for vm, manager_id in choice.asked:
                vm.manager_id, vm.doubt, vm.elsewhere_s = manager_id, manager_id, now_s
                request = PlacementRequest(spec_of(vm), vm.pin_host)
                cause = vm.task_id
                if vm.plan is not Plan.NONE:
                    # All at once, whatever submitted them: one plan, and one record of it.
                    cause, self.dispatched[vm.vm_id] = RECOVERY, choice.inputs
                asked.setdefault((manager_id, cause), []).append(request)
            effects += [AskManager(m, cause, requests) for (m, cause), requests in asked.items()]
        return effects

    def _no_manager(
        self, left: NoManager, moving: bool, now_s: float, now_ms: int
    ) -> list[SubmissionEffect]:
        vm, code, message = left.vm, left.code, left.message
        if vm.plan is not Plan.NONE:
            woken = could_be_woken_for(self.registry, vm, self.limit, now_s)
            vm.lacks_room = woken is not None
            return self.no_room(vm, message, now_s)
        if not self.settled:
            vm.tried.clear()
            return []
        if moving or now_s < vm.for_now_s:
            if now_s >= vm.ask_again_s:
                vm.tried.clear()
                vm.ask_again_s = now_s + ASK_AGAIN_S
            return []
        if could_be_woken_for(self.registry, vm, self.limit, now_s) is not None:
            return self._await_room(vm, now_s)
        if vm.wake_failed:
            code, message = VmErrorCode.WAKEUP_FAILED, f"{message}; a host did not wake up for it"
        return self.fail(vm, code, message, now_s, now_ms)

    def _hosts_are_moving(self) -> bool:
        """Whether hosts have no manager for the moment, or one that is yet to say what is free."""
        return any(manager.untold for manager in self.registry.managers.values()) or any(
            host.state is HostPower.ACTIVE and not (host.given_up or host.fencing)
            for host in self.registry.hosts.unsettled.values()
        )

    def _await_room(self, vm: VmEntry, now_s: float) -> list[SubmissionEffect]:
        """The VM waits for a host that sleeps; the energy core chooses which and has it woken.

        It is tried again at each tick, so that room that comes up elsewhere is taken, too; managers
        that refused it are asked again once a second, or when its host has just come. What counts
        is the time in which none is to come, not the time until one was looked for.
        """
        host = self.registry.hosts.get(vm.waits_for or "")
        if now_s >= vm.ask_again_s or (host is not None and just_joined(host, now_s)):
            vm.tried.clear()
            vm.ask_again_s = now_s + ASK_AGAIN_S
        vm.lacks_room = True
        if host is not None and host.state in SLEEPERS:
            vm.reason = f"waits for host {host.description.hostname} to wake"
            vm.waits_s = now_s
        else:
            vm.reason = "waits for a host to wake"
            vm.waits_s = now_s if vm.waits_for is None else vm.waits_s
        task = self.tasks.get(vm.task_id)
        if task is None or task.vms[vm.vm_id].note == vm.reason:
            return []
        self.note_progress(vm)
        return [TaskMoved(task.task_id), announce(self.registry, vm, vm.task_id)]

    def no_room(self, vm: VmEntry, message: str, now_s: float) -> list[SubmissionEffect]:
        """No manager takes a VM that is to be restarted."""
        raise NotImplementedError

    def restart_failed(
        self, vm: VmEntry, code: VmErrorCode, message: str, now_s: float, now_ms: int
    ) -> list[SubmissionEffect]:
        """The start of a VM that is to be restarted failed."""
        raise NotImplementedError

    def gone(
        self, vm: VmEntry, removed: list[str], now_s: float, now_ms: int, cause: str
    ) -> list[SubmissionEffect]:
        """The VM is proven gone; ``removed`` collects the records that go with it."""
        vm.state = VmState.DESTROYED
        self.registry.remove_vm(vm)
        self.strays.discard(vm.vm_id)
        if not vm.managed:
            return []
        self.leases.release(vm.vm_id, now_s)
        effects = self._bury(vm, removed)
        return [*effects, announce(self.registry, vm, cause), *self.task_progress(vm, now_ms)]

    def _bury(self, vm: VmEntry, removed: list[str]) -> list[SubmissionEffect]:
        """Let its record go; if it was restarted, or moved, remember that it is gone.

        A host that was lost may come back with a copy of it. So may one that is away, or proven
        down, of a VM of which nobody knew whether it got there (seed 80345).
        """
        highest = max(vm.generation, vm.highest)
        if highest <= 1 and not vm.left and not self._may_come_back(vm):
            removed.append(vm.vm_id)
            return []
        graves = self.registry.graves
        graves[vm.vm_id] = highest
        while len(graves) > MAX_GRAVES:
            oldest = next(iter(graves))
            del graves[oldest]
            removed.append(oldest)
        return [UpdateRecords(vms=[tombstone_of(vm)])]

    def _may_come_back(self, vm: VmEntry) -> bool:
        if vm.elsewhere_s == math.inf:
            return False
        hosts_away = away(self.registry)
        return may_be_on(vm, hosts_away) or may_be_defined_on(vm, hosts_away)

    def fail(
        self, vm: VmEntry, code: VmErrorCode, message: str, now_s: float, now_ms: int
    ) -> list[SubmissionEffect]:
        """A VM that never ran: its name, address and record are free again, its task keeps why.

        Of one that was restarted nonetheless a tombstone stays (seed 1685).
        """
        if vm.plan is not Plan.NONE and not self.is_awaited(vm):
            return self.restart_failed(vm, code, message, now_s, now_ms)
        vm.plan = Plan.NONE
        vm.state, vm.reason, vm.error_code, vm.doubt = VmState.FAILED, message, code, ""
        self.registry.remove_vm(vm)
        self.leases.release(vm.vm_id, now_s)
        self.strays.discard(vm.vm_id)
        effects: list[SubmissionEffect] = [announce(self.registry, vm, vm.task_id)]
        removed: list[str] = []
        effects += self._bury(vm, removed)
        if removed:
            effects.append(UpdateRecords(removed_vms=removed))
        return effects + self.task_progress(vm, now_ms)

    def task_progress(self, vm: VmEntry, now_ms: int) -> list[SubmissionEffect]:
        """Tell the VM's submission how it stands."""
        task = self.tasks.get(vm.task_id)
        if task is None or vm.vm_id not in task.open_vms:
            return []
        if vm.state in {VmState.PENDING, VmState.STARTING, VmState.UNREACHABLE}:
            self.note_progress(vm)
            return [TaskMoved(task.task_id)]
        task.settle(outcome_of(vm))
        return self.end_task(task, now_ms) or [TaskMoved(task.task_id)]

    def is_awaited(self, vm: VmEntry) -> bool:
        """Whether the VM's submission still waits for it: it was never known to run."""
        task = self.tasks.get(vm.task_id)
        return task is not None and vm.vm_id in task.open_vms

    def note_progress(self, vm: VmEntry) -> None:
        """Note in the VM's submission how it stands, if that still waits for it."""
        task = self.tasks.get(vm.task_id)
        if task is not None and vm.vm_id in task.open_vms:
            task.vms[vm.vm_id] = TaskVmRecord(
                vm.vm_id,
                vm.name,
                vm.state,
                vm.host_id,
                vm.ip_address,
                note=vm.reason if vm.state is VmState.PENDING else "",
            )

    def end_task(self, task: Task, now_ms: int) -> list[SubmissionEffect]:
        """End the task if its last VM has settled."""
        if not task.end_if_settled(now_ms):
            return []
        self.note_ended(task)
        return [UpdateRecords(tasks=[task.record()]), TaskMoved(task.task_id)]

    def note_ended(self, task: Task) -> None:
        """Let the retention of an ended task begin."""
        self.open_tasks.discard(task.task_id)
        self.ended_tasks.append(task.task_id)

    def expire(self, now_ms: int) -> list[SubmissionEffect]:
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


def announce(registry: Registry, vm: VmEntry, cause: str) -> Announce:
    """The event that tells how a VM stands."""
    host = registry.hosts.get(vm.host_id)
    name = host.description.hostname if host is not None else vm.host_id
    where = f" on {name}" if name else ""
    why = f": {vm.reason}" if vm.reason else ""
    return Announce(
        f"vm.{vm.state.value}", vm.name, f"VM {vm.name} is {vm.state.value}{where}{why}", cause
    )


NO_REASON: Final = "it failed on its host; why is not recorded, and the host is out of reach"
"""Seed 1136: it had failed under a leader that died before the task had ended."""


def outcome_of(vm: VmEntry) -> TaskVmRecord:
    """What became of a VM, for its submission."""
    error = None
    if vm.state is VmState.FAILED:
        error = ErrorReport(vm.error_code or VmErrorCode.START_FAILED, vm.reason or NO_REASON)
    elif vm.state is VmState.DESTROYED:
        error = ErrorReport(VmErrorCode.DESTROYED, "destroyed before it ran")
    return TaskVmRecord(vm.vm_id, vm.name, vm.state, vm.host_id, vm.ip_address, error)

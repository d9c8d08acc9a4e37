"""What managers report of their VMs, taken in (rules 5 and 6 of ``submission_core.py``)."""

import math
from dataclasses import dataclass
from typing import Final

from snooze.common.vm_lifecycle import SETTLED, VmState
from snooze.common.vms import VmErrorCode
from snooze.common.wire import VmStatus
from snooze.groupmanager.leader.registry import Plan, VmEntry, vm_key
from snooze.groupmanager.leader.submission_events import (
    Crossed,
    SubmissionEffect,
    UpdateRecords,
    VmsReported,
)
from snooze.groupmanager.leader.submission_restarts_core import Restarts
from snooze.groupmanager.leader.submission_state_core import LONG_AGO, announce
from snooze.groupmanager.leader.vm_views import adopted, record_of, status_of
from snooze.groupmanager.leader.whereabouts import away, may_be_on


@dataclass(slots=True)
class Reports(Restarts):
    """The part of the submission core that hears of VMs."""

    def _reported(self, event: VmsReported, now_s: float) -> list[SubmissionEffect]:
        effects: list[SubmissionEffect] = []
        changed: list[VmEntry] = []
        removed: list[str] = []
        if event.host_id:
            self.registry.copies.pop(event.host_id, None)
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
        copy = self.registry.copies.get(status.failed_on, {}).get(status.vm_id)
        if copy is not None and copy.generation == status.generation:
            self._forget_copy(status.failed_on, status.vm_id)  # not one whose guest refused it
        if vm is None:
            if status.state is VmState.DESTROYED:
                self._forget_copy(status.host_id, status.vm_id)
                return []
            if not self._is_current(event, status):
                return []
            if status.managed and status.generation <= self.registry.graves.get(status.vm_id, 0):
                self._note_copy(status)  # of a VM that is gone
                return []
            vm = adopted(status, now_s)
            self.registry.add_vm(vm)
            if vm.ip_address and vm.managed:
                self.leases.claim(vm.ip_address, vm.vm_id)
        elif not self._is_current(event, status, vm):
            return []
        elif not self._is_the_one(vm, status):
            self._note_copy(status)
            if vm.host_id == status.host_id:  # which was suspected only: others are, too
                vm.state, vm.host_id, vm.manager_id = VmState.PENDING, "", ""
            return []
        if status.generation < vm.generation:
            vm.highest = max(vm.highest, vm.generation)
        if status.state is VmState.DESTROYED and self._take_other(vm, status.host_id):
            return []
        before, ran, moved = vm.state, _ran(vm), vm.moving
        self._forget_copy(status.host_id, vm.vm_id)
        self._note_other(vm, status)
        vm.state, vm.demand, vm.generation = status.state, status.demand, status.generation
        vm.manager_id, vm.host_id, vm.doubt = event.manager_id, status.host_id, ""
        vm.heard = True
        vm.reason, vm.moving = status.reason, status.state is VmState.MIGRATING
        self.note_halted(vm, status, now_s)
        if not vm.ip_address:
            vm.ip_address = status.ip_address
        self._note_whereabouts(vm, now_s)
        if moved and vm.state is VmState.UNREACHABLE and vm.host_id:
            # Its manager has taken it back at the destination: it is at the source, or nowhere.
            vm.elsewhere_s = math.inf
        if vm.state is VmState.DESTROYED and status.discarded and self.was_started(vm):
            return self.restart_discarded(vm, now_s, event.now_ms)
        if vm.state is VmState.DESTROYED:
            return self.gone(vm, removed, now_s, event.now_ms, status.cause)
        if vm.state is VmState.FAILED and not status.host_id:
            code = VmErrorCode(status.error_code or VmErrorCode.START_FAILED)
            return self.fail(vm, code, status.reason, now_s, event.now_ms)
        effects: list[SubmissionEffect] = []
        if vm.state not in {VmState.UNREACHABLE, VmState.STARTING}:
            effects += self.restart_ended(vm)
        interrupted = vm.managed and vm.state in _IS_OFF and (ran or vm.revives)
        if interrupted and (status.interrupted or status.fenced):
            # Rule 6 of the restarts: until it runs again the record says that it does.
            return (
                effects
                + self.comes_back(vm, now_s, event.now_ms)
                + self.task_progress(vm, event.now_ms)
            )
        if vm.state not in {VmState.UNREACHABLE, VmState.STARTING}:
            effects += self.revived(vm)
            vm.was = vm.state
        elif vm.state is VmState.STARTING and not vm.revives:
            vm.was = vm.state
        marker = (vm.state, vm.host_id, vm.generation)
        if vm.managed and vm.state in SETTLED and vm.recorded != marker:
            if _note_move(vm, event.now_ms):
                former = self.registry.hosts.get(vm.left)
                if former is not None and former.manager_id != event.manager_id:
                    effects.append(Crossed(vm.host_id))
            vm.recorded = marker
            changed.append(vm)
        if before is not vm.state and vm.managed:
            effects.append(announce(self.registry, vm, status.cause))
        if before is not vm.state or vm.state in SETTLED:
            effects += self.task_progress(vm, event.now_ms)
        return effects

    def _is_the_one(self, vm: VmEntry, status: VmStatus) -> bool:
        """Whether this report is of the VM, not of a copy that was left somewhere."""
        if not status.managed:
            return True
        highest = max(vm.generation, vm.highest)
        if status.host_id == vm.host_id:
            # What is being restarted may be where its last start was ordered: seed 940334.
            older = status.generation < highest and vm.elsewhere_s < math.inf
            return vm.plan is Plan.NONE or not older
        if status.generation > highest:
            return True
        if status.generation != vm.generation:
            # A copy that was left behind is the VM again as long as no other can be. Once it is,
            # what has a generation between its own and the highest is a copy, too.
            nowhere = not vm.host_id and not vm.doubt and vm.elsewhere_s == math.inf
            waits = vm.plan is not Plan.NONE or vm.state is VmState.FAILED
            gone = status.state is VmState.DESTROYED or not status.host_id
            return nowhere and waits and not gone
        host = self.registry.hosts.get(vm.host_id)
        if not status.host_id or vm.moving:
            return True
        if vm.host_id and status.state in _NOT_HERE:
            return False  # where it is not says nothing of where it is: seed 1370
        if host is None or not host.joined or not (vm.state in _HAS_A_GUEST or vm.revives):
            return True
        # Two hosts in reach have it with one generation: it moved and we have not heard all of it
        # yet, or a migration stopped half-way. One guest runs at most, whatever we were told: that
        # one is the VM. If both were said to run, the latest word is, and the other is looked at.
        # A guest that is there says more than a record that its host has not confirmed: seed 1334.
        there = status.state is VmState.PAUSED and not vm.heard
        return there or status.state is VmState.RUNNING

    def adopt(
        self, vm: VmEntry, status: VmStatus, now_s: float, now_ms: int
    ) -> list[SubmissionEffect]:
        """A copy whose guest is on, of a VM that nobody else can have: it is the VM."""
        vm.host_id = vm.manager_id = vm.doubt = ""
        vm.elsewhere_s = math.inf
        manager_id = self.registry.hosts[status.host_id].manager_id
        return self._reported(VmsReported(manager_id, [status], now_ms), now_s)

    def _note_other(self, vm: VmEntry, status: VmStatus) -> None:
        """The VM is elsewhere than we knew: what the host has that we knew it on is a copy."""
        if not vm.managed or not vm.host_id or vm.host_id == status.host_id or vm.moving:
            return
        host = self.registry.hosts.get(vm.host_id)
        both = status.state in _HAS_A_GUEST and vm.state in _HAS_A_GUEST
        if both and status.host_id and host is not None and host.joined:
            self._note_copy(status_of(vm))

    def _note_copy(self, status: VmStatus) -> None:
        if status.state is VmState.DESTROYED:
            self._forget_copy(status.host_id, status.vm_id)
        elif status.host_id in self.registry.hosts:
            self.registry.copies.setdefault(status.host_id, {})[status.vm_id] = status

    def _forget_copy(self, host_id: str, vm_id: str) -> None:
        copies = self.registry.copies.get(host_id)
        if copies is not None:
            copies.pop(vm_id, None)
            if not copies:
                del self.registry.copies[host_id]

    def _take_other(self, vm: VmEntry, gone_from: str) -> bool:
        """The VM is gone from a host, and another has a copy as good: that is the VM now."""
        if not vm.managed:
            return False
        found = [
            copies[vm.vm_id]
            for host_id, copies in sorted(self.registry.copies.items())
            if host_id != gone_from and vm.vm_id in copies
        ]
        same = [status for status in found if status.generation == vm.generation]
        if not same:
            return False
        vm.host_id, vm.state = same[0].host_id, same[0].state
        host = self.registry.hosts[vm.host_id]
        vm.manager_id, vm.was = host.manager_id, vm.state
        self._forget_copy(vm.host_id, vm.vm_id)
        return True

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
            elif vm.plan is not Plan.NONE or self._take_other(vm, event.host_id):
                if vm.plan is not Plan.NONE:  # it is not here: its restart goes on
                    vm.state, vm.host_id, vm.manager_id = VmState.PENDING, "", ""
            elif vm.state in {VmState.STARTING, VmState.UNREACHABLE} and self.is_awaited(vm):
                # Ordered by a manager whose orders this host refuses from now on.
                vm.state, vm.host_id, vm.manager_id, vm.doubt = VmState.PENDING, "", "", ""
                self.note_progress(vm)
            elif self._is_elsewhere(vm, event):
                vm.state, vm.host_id, vm.reason = VmState.UNREACHABLE, "", "its host is not known"
                vm.waits_s = now_s
                self.strays.add(vm.vm_id)
                effects.append(announce(self.registry, vm, ""))
            else:
                effects += self.gone(vm, removed, now_s, event.now_ms, "")
        return effects

    def _is_elsewhere(self, vm: VmEntry, event: VmsReported) -> bool:
        """Whether a VM that its host does not have may be on another one."""
        if vm.key in event.moving:
            vm.elsewhere_s = LONG_AGO
            return True
        if vm.elsewhere_s == math.inf:
            return self._may_have_moved(vm, event)
        if vm.manager_id != event.manager_id or vm.moving or vm.was is VmState.MIGRATING:
            return True
        # The manager was unheard for a while, and has told now what its hosts in reach have.
        return may_be_on(vm, away(self.registry))

    def _may_have_moved(self, vm: VmEntry, event: VmsReported) -> bool:
        """Whether its former manager may have moved it, and gone before it could say so.

        Then every host that is away may have it, and those in reach will say.
        """
        if vm.manager_id in {"", event.manager_id} or vm.state is VmState.DESTROYING:
            return False
        vm.elsewhere_s = LONG_AGO
        return True


_NOT_HERE: Final = frozenset({VmState.UNREACHABLE, VmState.DESTROYED})
_IS_OFF: Final = frozenset({VmState.STOPPED, VmState.FAILED})
_HAS_A_GUEST: Final = frozenset({VmState.STARTING, VmState.RUNNING, VmState.PAUSED})


def _ran(vm: VmEntry) -> bool:
    """Whether the VM was to be running when it was heard of last."""
    return vm.plan is not Plan.NONE or vm.was in {
        VmState.STARTING,
        VmState.RUNNING,
        VmState.PAUSED,
        VmState.MIGRATING,
    }


def _recordable(vm: VmEntry) -> bool:
    return vm.managed and vm.state in SETTLED


def _note_move(vm: VmEntry, now_ms: int) -> bool:
    """A VM that is on, with the generation that it had on another host, has moved: True."""
    if vm.recorded is None or vm.state not in _HAS_A_GUEST:
        return False
    _, host_id, generation = vm.recorded
    if not (host_id and vm.host_id and host_id != vm.host_id and generation == vm.generation):
        return False
    vm.left, vm.moved_ms = host_id, now_ms
    return True

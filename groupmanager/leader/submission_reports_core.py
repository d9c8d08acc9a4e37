"""What managers report of their VMs, taken in (rules 5 and 6 of ``submission_core.py``)."""

import math
from dataclasses import dataclass

from snooze.common.vm_lifecycle import SETTLED, VmState
from snooze.common.vms import VmErrorCode
from snooze.common.wire import VmStatus
from snooze.groupmanager.leader.registry import VmEntry, vm_key
from snooze.groupmanager.leader.submission_events import (
    SubmissionEffect,
    UpdateRecords,
    VmsReported,
)
from snooze.groupmanager.leader.submission_state_core import SubmissionState, announce
from snooze.groupmanager.leader.vm_views import adopted, record_of


@dataclass(slots=True)
class Reports(SubmissionState):
    """The part of the submission core that hears of VMs."""

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
            return self.gone(vm, removed, now_s, event.now_ms, status.cause)
        if vm.state is VmState.FAILED and not status.host_id:
            code = VmErrorCode(status.error_code or VmErrorCode.START_FAILED)
            return self.fail(vm, code, status.reason, now_s, event.now_ms)
        effects: list[SubmissionEffect] = []
        marker = (vm.state, vm.host_id, vm.generation)
        if vm.managed and vm.state in SETTLED and vm.recorded != marker:
            vm.recorded = marker
            changed.append(vm)
        if before is not vm.state and vm.managed:
            effects.append(announce(self.registry, vm, status.cause))
        if before is not vm.state or vm.state in SETTLED:
            effects += self.task_progress(vm, event.now_ms)
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
            elif vm.state in {VmState.STARTING, VmState.UNREACHABLE} and self.is_awaited(vm):
                # Ordered by a manager whose orders this host refuses from now on.
                vm.state, vm.host_id, vm.manager_id, vm.doubt = VmState.PENDING, "", "", ""
                self.note_progress(vm)
            elif vm.elsewhere_s < math.inf:
                vm.state, vm.host_id, vm.reason = VmState.UNREACHABLE, "", "its host is not known"
                vm.waits_s = now_s
                self.strays.add(vm.vm_id)
                effects.append(announce(self.registry, vm, ""))
            else:
                effects += self.gone(vm, removed, now_s, event.now_ms, "")
        return effects


def _recordable(vm: VmEntry) -> bool:
    return vm.managed and vm.state in SETTLED

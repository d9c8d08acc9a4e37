"""How a VM stands now: the table is changed and the leader is told, always both."""

from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmErrorCode, VmReport
from snooze.common.wire import VmsChanged
from snooze.groupmanager.manager.host_table import HostTable, VmEntry
from snooze.groupmanager.manager.manager_events import ManagerEffect, TellLeader


class VmChanges:
    """Changes of the VMs of one manager."""

    def __init__(self, table: HostTable) -> None:
        self._table = table

    def report(self, vm: VmEntry, cause: str) -> list[ManagerEffect]:
        """Tell the leader how a VM stands."""
        vm.cause = cause
        return [TellLeader(VmsChanged([vm.status()]))]

    def start_failed(self, vm: VmEntry, message: str, cause: str) -> list[ManagerEffect]:
        """The VM does not run on the host it was ordered on, nor anywhere."""
        hostname = self._table.hosts[vm.host_id].description.hostname
        self._table.remove_vm(vm)
        vm.state, vm.cause, vm.reason = VmState.FAILED, cause, f"on {hostname}: {message}"
        status = vm.status(VmErrorCode.START_FAILED, host_id="", failed_on=vm.host_id)
        return [TellLeader(VmsChanged([status]))]

    def take_report(self, vm: VmEntry, report: VmReport, cause: str) -> list[ManagerEffect]:
        """A host says how a VM is; the leader is told."""
        self._table.set_state(vm, report.state)
        if report.demand != vm.demand:
            self._table.set_demand(vm, report.demand)
        vm.report, vm.reason = report, report.reason
        return self.report(vm, cause)

    def vanished(self, vm: VmEntry, cause: str) -> list[ManagerEffect]:
        """The VM is no longer on its host, and so nowhere."""
        self._table.remove_vm(vm)
        vm.state = VmState.DESTROYED
        effects = self.report(vm, cause)
        if vm.report.managed:
            self._table.vanished.append(vm.status())
        return effects

"""Snooze's own calls that a group manager answers for itself: its hosts and their VMs."""

from snooze.common.decisions import DecisionState
from snooze.common.errors import Conflict, SnoozeError
from snooze.common.snooze_api import (
    GroupManagerRepositoryInformation,
    LocalControllerDescription,
    NetworkAddress,
    VirtualMachineLocation,
)
from snooze.common.wire import Accepted, DescribeHosts, PauseEnergy
from snooze.groupmanager import legacy_views as views
from snooze.groupmanager.manager.service import ManagerService

MAX_ENTRIES = 100
PAUSE_TIMEOUT_S = 5.0


class LegacyManager:
    """The calls of one group manager."""

    def __init__(self, manager: ManagerService) -> None:
        self._manager = manager

    async def repository(self, entries: int) -> GroupManagerRepositoryInformation:
        """All its hosts with their VMs."""
        request = DescribeHosts(entries=max(0, min(entries, MAX_ENTRIES)))
        return GroupManagerRepositoryInformation(
            [
                views.host_description(detail, self._manager.leader.identity, with_vms=True)
                for detail in self._manager.describe(request)
            ]
        )

    async def host(self, host_id: str) -> LocalControllerDescription | None:
        """One of its hosts, without VMs."""
        for detail in self._manager.describe(DescribeHosts(host_ids=(host_id,), with_vms=False)):
            return views.host_description(detail, self._manager.leader.identity, with_vms=False)
        return None

    async def search_vm(self, vm_id: str) -> str | None:
        """The id of the host that has a VM."""
        vm = self._manager.core.table.find(vm_id)
        return None if vm is None else vm.host_id

    async def has_vm(self, location: VirtualMachineLocation) -> bool:
        """Whether one of its hosts has a VM."""
        return self._manager.core.table.find(location.virtual_machine_id) is not None

    async def has_host(self, address: NetworkAddress) -> str | None:
        """The id of the host that listens at an address."""
        for host_id, host in self._manager.core.table.hosts.items():
            control = host.description.control
            if (control.host, control.port) == (address.address, address.port):
                return host_id
        return None

    async def pause_energy(self, *, paused: bool) -> bool:
        """Let this manager's hosts stay up, or go on putting idle ones to sleep.

        False when the leader did not say that it is so (perhaps it is all the same).
        """
        link = self._manager.leader.link
        if link is None:
            return False
        order = PauseEnergy(self._manager.leader.identity.manager_id, paused)
        try:
            await link.request(order, Accepted, PAUSE_TIMEOUT_S)
        except SnoozeError:
            return False
        return True

    async def start_reconfiguration(self) -> bool:
        """Consolidate now; false if that cannot be begun."""
        try:
            answer = await self._manager.consolidate("startReconfiguration")
        except Conflict:
            return False
        return answer.decision.state is not DecisionState.FAILED

"""Snooze's own calls that the leader answers, on ``/bootstrap`` and on ``/groupmanager``.

What the original got wrong is not repeated: answers stay readable, an unknown task is told from a
pending one (``GENERAL_EXCEPTION`` instead of a silence that clients poll for ever).
"""

import bisect
from collections.abc import Iterable, Sequence
from typing import TypeVar

from snooze.common.api import CommandRequest, VmRequest
from snooze.common.decisions import DecisionState
from snooze.common.errors import Conflict, NotFound
from snooze.common.records import TaskVmRecord
from snooze.common.resources import ZERO, Capacity
from snooze.common.snooze_api import (
    UNKNOWN,
    ClientMigrationRequestSimple,
    GroupLeaderRepositoryInformation,
    GroupManagerDescription,
    GroupManagerSummaryInformation,
    HostListRequest,
    LocalControllerDescription,
    LocalControllerList,
    MetaDataRequest,
    MigrationRequest,
    ResizeRequest,
    VirtualClusterErrorCode,
    VirtualClusterSubmissionRequest,
    VirtualClusterSubmissionResponse,
    VirtualMachineDiscoveryResponse,
    VirtualMachineLocation,
    VirtualMachineMetaData,
    VirtualMachinesList,
    VirtualMachineTemplate,
)
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.wire import DescribeHosts, HostDetail, ManagerDescription
from snooze.groupmanager import legacy_views as views
from snooze.groupmanager.leader.energy_rules import SLEEPERS
from snooze.groupmanager.leader.intake import Intake
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.registry import VmEntry
from snooze.groupmanager.leader.service import LeaderService
from snooze.groupmanager.leader.submit import submit

T = TypeVar("T")

COMMAND_WAIT_S = 30.0
MAX_PAGE = 10_000
MAX_ENTRIES = 100


class LegacyLeader:
    """The calls of one leader.

    What they raise is told as ``None`` or ``False``, the original's only errors, with our reason in
    a header (``common/transport/legacy.py``).
    """

    def __init__(self, leader: LeaderService, intake: Intake) -> None:
        self._leader = leader
        self._registry = leader.registry
        self._intake = intake

    # ------------------------------------------------------------ submissions

    async def start_virtual_cluster(self, request: VirtualClusterSubmissionRequest) -> str:
        """The task's id. Raises: InvalidRequest, TooBusy, NotLeader."""
        requests = [_vm_request(template) for template in request.virtual_machine_templates]
        with self._intake.admission.admit():
            candidates = await self._intake.read(requests)
            task = await submit(self._leader, candidates, partial=True)
        return task.task_id

    async def virtual_cluster_response(
        self, task_id: str
    ) -> VirtualClusterSubmissionResponse | None:
        """What became of a submission; None while it is pending."""
        try:
            task = self._leader.task(task_id)
        except NotFound:
            return VirtualClusterSubmissionResponse([], VirtualClusterErrorCode.GENERAL_EXCEPTION)
        if not task.ended:
            return None
        found = await self._found([vm.vm_id for vm in task.vms.values()])
        error = None
        if not self._registry.managers:
            error = VirtualClusterErrorCode.GROUP_MANAGERS_MISSING
        listed = [found.get(vm.vm_id) or _lost(vm) for vm in task.vms.values()]
        return VirtualClusterSubmissionResponse(listed, error)

    async def _found(
        self, keys: Sequence[str], entries: int = 0
    ) -> dict[str, VirtualMachineMetaData]:
        """The VMs that hosts have, by key."""
        managers = {self._registry.vms[key].manager_id for key in keys if key in self._registry.vms}
        if not managers:
            return {}
        request = DescribeHosts(vm_keys=tuple(keys), entries=entries)
        answers = await self._leader.links.describe(request, list(managers))
        result: dict[str, VirtualMachineMetaData] = {}
        for manager_id, details in answers.items():
            manager = self._manager(manager_id)
            for detail in details:
                for vm in detail.vms:
                    key = vm.report.vm_id
                    if not vm.report.managed:
                        key = f"{key}@{detail.host.host_id}"
                    result[key] = views.vm_metadata(vm, detail.host, manager)
        return result

    def _manager(self, manager_id: str) -> ManagerDescription:
        entry = self._registry.managers.get(manager_id)
        return entry.description if entry is not None else self._leader.identity

    # ------------------------------------------------------------ commands

    async def command(self, vm_id: str, command: VmCommand) -> bool:
        """Carry out a command; True if it was done, or was done already."""
        task = self._leader.command(vm_id, command, CommandRequest())
        await self._leader.wait(task, COMMAND_WAIT_S)
        if task.error is not None:
            raise task.error.as_error()
        return True

    async def command_at(self, location: VirtualMachineLocation, command: VmCommand) -> bool:
        """As ``command``, for calls that name a location."""
        return await self.command(self._named(location), command)

    def _named(self, location: VirtualMachineLocation) -> str:
        """The VM that a location names: of two unmanaged ones, the one on its host."""
        name = location.virtual_machine_id
        if name not in self._registry.names and location.local_controller_id != UNKNOWN:
            for vm in self._registry.vms_of_host(location.local_controller_id):
                if vm.name == name:
                    return vm.key
        return name

    async def migrate_to(self, request: ClientMigrationRequestSimple) -> bool:
        """Set a migration going; True if it was accepted."""
        return self._migrate(request.virtual_machine_id, request.local_controller_id)

    async def migrate(self, request: MigrationRequest) -> bool:
        """Set a migration going; only the VM and the destination's id matter."""
        name = self._named(request.source_virtual_machine_location)
        host = request.destination_virtual_machine_location.local_controller_id
        return self._migrate(name, host)

    def _migrate(self, name: str, host: str) -> bool:
        self._leader.command(name, VmCommand.MIGRATE, CommandRequest(host=host))
        return True

    async def resize(self, request: ResizeRequest) -> VirtualMachineMetaData:
        """Resize; the order here is cpu, memory, tx, rx, and what is not positive stays."""
        wanted = [*request.resized_capacity, -1.0, -1.0, -1.0, -1.0][:4]
        cpu, memory, tx, rx = (value if value > 0 else None for value in wanted)
        change = CommandRequest(
            vcpus=None if cpu is None else round(cpu),
            memory_kib=None if memory is None else round(memory),
            rx_kib_s=rx,
            tx_kib_s=tx,
        )
        name = self._named(request.virtual_machine_location)
        task = self._leader.command(name, VmCommand.RESIZE, change)
        await self._leader.wait(task, COMMAND_WAIT_S)
        if task.error is not None:
            raise task.error.as_error()
        return await self.metadata(MetaDataRequest(request.virtual_machine_location, 0))

    # ------------------------------------------------------------ VMs

    async def metadata(self, request: MetaDataRequest) -> VirtualMachineMetaData:
        """All about a VM; an unknown one is OFFLINE where it was asked for."""
        where = request.virtual_machine_location
        vm = self._registry.find_vm(self._named(where))
        if vm is None:
            return views.unplaced_vm(where.virtual_machine_id, VmState.DESTROYED, where)
        entries = max(0, min(request.number_of_monitoring_entries, MAX_ENTRIES))
        found = await self._found([vm.key], entries)
        return found.get(vm.key) or self._remembered(vm)

    def _remembered(self, vm: VmEntry) -> VirtualMachineMetaData:
        """A VM whose host does not answer."""
        host = self._registry.hosts.get(vm.host_id)
        manager = self._registry.managers.get(vm.manager_id)
        where = views.location(
            vm.name,
            host.description if host is not None else None,
            manager.description if manager is not None else None,
        )
        return views.unplaced_vm(
            vm.name,
            vm.state,
            where,
            code=vm.error_code or "",
            ip_address=vm.ip_address,
            demand=vm.demand,
        )

    async def discover(self, vm_id: str) -> VirtualMachineDiscoveryResponse | None:
        """Who is responsible for a VM."""
        vm = self._registry.find_vm(vm_id)
        if vm is None or vm.manager_id not in self._registry.managers:
            return None
        manager = self._registry.managers[vm.manager_id].description
        return VirtualMachineDiscoveryResponse(
            vm.host_id or UNKNOWN, views.address(manager.control)
        )

    # ------------------------------------------------------------ the tree

    async def hierarchy(self) -> GroupLeaderRepositoryInformation:
        """All group managers with their hosts and VMs."""
        details = await self._leader.links.describe(DescribeHosts())
        sleepers = self._sleepers()
        return GroupLeaderRepositoryInformation(
            [
                views.manager_description(
                    m.description,
                    details.get(m.manager_id, []) + sleepers.get(m.manager_id, []),
                )
                for m in self._managers()
            ]
        )

    async def repository(self, entries: int) -> GroupLeaderRepositoryInformation:
        """All group managers with their latest summary, without hosts."""
        return GroupLeaderRepositoryInformation(
            [self._described(manager, entries) for manager in self._managers()]
        )

    def _managers(self) -> list[ManagerEntry]:
        members = self._registry.managers.values()
        return sorted(members, key=lambda manager: manager.manager_id)

    def _described(self, manager: ManagerEntry, entries: int) -> GroupManagerDescription:
        summary = None
        if entries > 0:
            summary = GroupManagerSummaryInformation(
                time_stamp=self._leader.now_ms(),
                active_capacity=manager.capacity.as_list(),
                passive_capacity=_total(
                    detail.host.capacity for detail in self._sleepers().get(manager.manager_id, [])
                ),
                requested_capacity=manager.reserved.as_list(),
                used_capacity=manager.used.as_list(),
            )
        return views.manager_description(manager.description, summary=summary)

    async def start_reconfiguration(self, manager_id: str) -> bool:
        """Have a group manager consolidate now; false if it is unknown or does not begin."""
        try:
            view = await self._leader.autonomy.reconfigure(manager_id, "startReconfiguration")
        except (NotFound, Conflict):
            return False
        return view.state != DecisionState.FAILED.value

    async def manager(self, manager_id: str) -> GroupManagerDescription | None:
        """One group manager."""
        entry = self._registry.managers.get(manager_id)
        return None if entry is None else self._described(entry, 1)

    async def managers(self, request: HostListRequest) -> list[GroupManagerDescription]:
        """A page of group managers, by id."""
        listed = [self._described(manager, 1) for manager in self._managers()]
        if request.group_manager_id:
            listed = [entry for entry in listed if entry.id == request.group_manager_id]
        return _page(listed, [entry.id for entry in listed], request)

    async def local_controller_list(self) -> LocalControllerList:
        """All hosts, without VMs."""
        return LocalControllerList(await self._hosts(DescribeHosts(with_vms=False), None))

    async def local_controllers(self, request: HostListRequest) -> list[LocalControllerDescription]:
        """A page of hosts with their VMs, by id."""
        entries = max(0, min(request.number_of_monitoring_entries, MAX_ENTRIES))
        only = [request.group_manager_id] if request.group_manager_id else None
        ids = (request.local_controller_id,) if request.local_controller_id else ()
        hosts = await self._hosts(DescribeHosts(host_ids=ids, entries=entries), only)
        return _page(hosts, [host.id for host in hosts], request)

    async def virtual_machines(self, request: HostListRequest) -> VirtualMachinesList:
        """A page of VMs, by name."""
        entries = max(0, min(request.number_of_monitoring_entries, MAX_ENTRIES))
        only = [request.group_manager_id] if request.group_manager_id else None
        ids = (request.local_controller_id,) if request.local_controller_id else ()
        hosts = await self._hosts(DescribeHosts(host_ids=ids, entries=entries), only)
        vms = [vm for host in hosts for vm in host.virtual_machine_meta_data.values()]
        names = [vm.virtual_machine_location.virtual_machine_id for vm in vms]
        order = sorted(range(len(vms)), key=lambda index: names[index])
        listed = [vms[index] for index in order]
        return VirtualMachinesList(_page(listed, [names[index] for index in order], request))

    def _sleepers(self) -> dict[str, list[HostDetail]]:
        """The hosts that sleep, or come or go, by the manager that they had."""
        found: dict[str, list[HostDetail]] = {}
        for _, host in sorted(self._registry.hosts.items()):
            if host.state in SLEEPERS and not host.joined:
                detail = HostDetail(host.description, host.state.value, ZERO, ZERO)
                found.setdefault(host.manager_id, []).append(detail)
        return found

    async def _hosts(
        self, request: DescribeHosts, only: list[str] | None
    ) -> list[LocalControllerDescription]:
        answers = await self._leader.links.describe(request, only)
        found: list[tuple[HostDetail, ManagerDescription]] = [
            (detail, self._manager(manager_id))
            for manager_id, details in answers.items()
            for detail in details
        ]
        found += [
            (detail, self._manager(manager_id))
            for manager_id, details in self._sleepers().items()
            for detail in details
            if (only is None or manager_id in only)
            and (not request.host_ids or detail.host.host_id in request.host_ids)
        ]
        found.sort(key=lambda pair: pair[0].host.host_id)
        return [
            views.host_description(detail, manager, with_vms=request.with_vms)
            for detail, manager in found
        ]


def _total(capacities: Iterable[Capacity]) -> list[float]:
    total = ZERO
    for capacity in capacities:
        total = total.plus(capacity)
    return total.as_list()


def _page(items: list[T], ids: list[str], request: HostListRequest) -> list[T]:
    """Up to ``limit`` items from the first id that is not before ``start``; ids ascend."""
    start = bisect.bisect_left(ids, request.start) if request.start else 0
    limit = request.limit if 0 < request.limit <= MAX_PAGE else MAX_PAGE
    return items[start : start + limit]


def _vm_request(template: VirtualMachineTemplate) -> VmRequest:
    """A template as our own API would have it; with XML, its other fields do not count."""
    demand = template.network_capacity_demand
    host = template.host_id if template.host_id not in {"", UNKNOWN} else ""
    if template.lib_virt_template:
        return VmRequest(
            libvirt_xml=template.lib_virt_template,
            rx_kib_s=demand.rx_bytes,
            tx_kib_s=demand.tx_bytes,
            host=host,
        )
    return VmRequest(
        name=template.name or "",
        vcpus=template.vcpus,
        memory_kib=template.memory,
        image=template.image_id or "",
        rx_kib_s=demand.rx_bytes,
        tx_kib_s=demand.tx_bytes,
        host=host,
    )


def _lost(vm: TaskVmRecord) -> VirtualMachineMetaData:
    """A VM of a task that no host has (any more)."""
    state = VmState.FAILED if vm.error is not None else VmState.DESTROYED
    code = vm.error.code if vm.error is not None else ""
    return views.unplaced_vm(vm.name, state, code=code, ip_address=vm.ip_address)

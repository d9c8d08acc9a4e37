"""What the leader knows, as clients of our own API see it; usage and XML come from the managers."""

from collections.abc import Iterable

import msgspec

from snooze.common.api import (
    ClusterView,
    HierarchyHost,
    HierarchyManager,
    HierarchyView,
    HostView,
    ImageView,
    ManagerView,
    TaskView,
    VmView,
)
from snooze.common.errors import NotFound
from snooze.common.records import HostPower
from snooze.common.resources import ZERO, Capacity
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmState
from snooze.common.wire import DescribeHosts, HostDetail
from snooze.groupmanager.leader.registry import HostEntry, VmEntry
from snooze.groupmanager.leader.service import LeaderService
from snooze.groupmanager.leader.tasks import Task


class Queries:
    """Read-only views of one leader's cluster."""

    def __init__(self, leader: LeaderService) -> None:
        self._leader = leader
        self._registry = leader.registry

    async def _details(self, request: DescribeHosts) -> dict[str, HostDetail]:
        """Each host's details by its id, from the managers that answer."""
        answers = await self._leader.links.describe(request)
        return {detail.host.host_id: detail for details in answers.values() for detail in details}

    def cluster(self, version: str) -> ClusterView:
        """The cluster in one line."""
        self._leader.require()
        identity, managers = self._leader.identity, self._registry.managers.values()
        return ClusterView(
            leader_id=identity.manager_id,
            leader_address=str(identity.control),
            epoch=self._leader.epoch,
            managers=len(managers),
            hosts=sum(1 for host in self._registry.hosts.values() if host.joined),
            vms=len(self._registry.vms),
            version=version,
            capacity=_sum(manager.capacity for manager in managers),
            reserved=_sum(manager.reserved for manager in managers),
            reserve=self._leader.recovery.reserve,
        )

    # ------------------------------------------------------------ VMs

    async def vms(self) -> list[VmView]:
        """All VMs, by name."""
        self._leader.require()
        details = await self._details(DescribeHosts(entries=1, with_xml=False))
        used = _used(details)
        views = [self._vm_view(vm, used) for vm in self._registry.vms.values()]
        return sorted(views, key=lambda view: (view.name, view.vm_id))

    async def vm(self, name: str) -> VmView:
        """One VM with its XML. Raises: NotFound."""
        self._leader.require()
        vm = self._registry.find_vm(name)
        if vm is None:
            raise NotFound(f"no VM is called {name!r}")
        details = await self._leader.links.describe(
            DescribeHosts(vm_keys=(vm.key,), entries=1), [vm.manager_id]
        )
        found = {detail.host.host_id: detail for d in details.values() for detail in d}
        xml = next((v.report.xml for detail in found.values() for v in detail.vms), "")
        view = self._vm_view(vm, _used(found), xml)
        host = self._registry.hosts.get(vm.host_id)
        if vm.state is not VmState.UNREACHABLE or host is None:
            return view
        reason = self._leader.recovery.waits_for(host) or vm.reason
        return msgspec.structs.replace(view, reason=reason)

    def _vm_view(self, vm: VmEntry, used: dict[tuple[str, str], Capacity], xml: str = "") -> VmView:
        host = self._registry.hosts.get(vm.host_id)
        return VmView(
            vm_id=vm.vm_id,
            name=vm.name,
            state=vm.state,
            demand=vm.demand,
            managed=vm.managed,
            used=used.get((vm.host_id, vm.vm_id)),
            host_id=vm.host_id,
            hostname=host.description.hostname if host is not None else "",
            manager_id=vm.manager_id,
            ip_address=vm.ip_address,
            mac_address=vm.mac_address,
            image=vm.image,
            generation=vm.generation,
            task_id=vm.task_id,
            virtual_cluster=vm.virtual_cluster,
            reason=vm.reason,
            xml=xml,
            policy=vm.policy,
            restarts=len(vm.restarts_ms),
        )

    # ------------------------------------------------------------ hosts

    async def hosts(self) -> list[HostView]:
        """All hosts, by hostname."""
        self._leader.require()
        details = await self._details(DescribeHosts(with_vms=False))
        views = [
            self._host_view(host, details.get(host_id))
            for host_id, host in self._registry.hosts.items()
        ]
        return sorted(views, key=lambda view: (view.hostname, view.id))

    async def host(self, id_or_name: str) -> HostView:
        """One host. Raises: NotFound."""
        self._leader.require()
        host = self._registry.find_host(id_or_name)
        if host is None:
            raise NotFound(f"no host is called {id_or_name!r}")
        host_id = host.description.host_id
        details = await self._details(DescribeHosts(host_ids=(host_id,), with_vms=False))
        return self._host_view(host, details.get(host_id))

    def _host_view(self, host: HostEntry, detail: HostDetail | None) -> HostView:
        description = host.description
        if detail is None:
            vms = list(self._registry.vms_of_host(description.host_id))
            reserved = _sum(vm.demand for vm in vms if vm.state in HOLDS_CAPACITY)
            used, count = ZERO, len(vms)
            status = "unreachable" if not host.joined else "joining"
        else:
            reserved, used, count = detail.reserved, detail.used, detail.vm_count
            status = detail.status
        if host.maintenance and host.joined:
            status = "draining" if host.drain_until_ms else "maintenance"
        if host.state is not HostPower.ACTIVE:
            status = host.state.value
        return HostView(
            id=description.host_id,
            hostname=description.hostname,
            address=str(description.control),
            status=status,
            capacity=description.capacity,
            reserved=reserved,
            used=used,
            manager_id=host.manager_id,
            hypervisor=description.hypervisor.description,
            vms=count,
            power=host.state.value,
            power_since_ms=host.state_since_ms,
            note=self._leader.recovery.waits_for(host) or host.note,
            loose_disks=self._leader.disks.of_host(description.host_id),
        )

    # ------------------------------------------------------------ managers and the tree

    def managers(self) -> list[ManagerView]:
        """All group managers, by hostname."""
        self._leader.require()
        count: dict[str, int] = {}
        for vm in self._registry.vms.values():
            count[vm.manager_id] = count.get(vm.manager_id, 0) + 1
        views = [
            ManagerView(
                id=manager.manager_id,
                hostname=manager.description.hostname,
                address=str(manager.description.control),
                leader=manager.manager_id == self._leader.identity.manager_id,
                hosts=len(manager.hosts),
                vms=count.get(manager.manager_id, 0),
                capacity=manager.capacity,
                reserved=manager.reserved,
                used=manager.used,
            )
            for manager in self._registry.managers.values()
        ]
        return sorted(views, key=lambda view: (not view.leader, view.address))

    async def hierarchy(self) -> HierarchyView:
        """The whole tree; hosts out of reach stand under the manager they had last."""
        self._leader.require()
        details = await self._details(DescribeHosts(entries=1, with_xml=False))
        used = _used(details)
        vms: dict[str, list[VmView]] = {}
        unplaced: list[VmView] = []
        for vm in self._registry.vms.values():
            view = self._vm_view(vm, used)
            if vm.host_id in self._registry.hosts:
                vms.setdefault(vm.host_id, []).append(view)
            else:
                unplaced.append(view)
        hosts: dict[str, list[HierarchyHost]] = {}
        for host_id, host in self._registry.hosts.items():
            host_view = self._host_view(host, details.get(host_id))
            branch = sorted(vms.get(host_id, []), key=lambda v: v.name)
            hosts.setdefault(host.manager_id, []).append(HierarchyHost(host_view, branch))
        for branch_hosts in hosts.values():
            branch_hosts.sort(key=lambda entry: (entry.host.hostname, entry.host.id))
        managers = [
            HierarchyManager(manager, hosts.pop(manager.id, [])) for manager in self.managers()
        ]
        for manager_id, left in sorted(hosts.items()):
            managers.append(HierarchyManager(ManagerView(manager_id, "", "", hosts=0), left))
        return HierarchyView(
            leader_id=self._leader.identity.manager_id,
            epoch=self._leader.epoch,
            managers=managers,
            unplaced=sorted(unplaced, key=lambda view: view.name),
        )

    def images(self) -> list[ImageView]:
        """The images that hosts in reach have, by name; ``hosts`` says how many have each."""
        self._leader.require()
        found: dict[str, ImageView] = {}
        for host in self._registry.hosts.values():
            if not host.joined:
                continue
            for image in host.description.images:
                known = found.get(image.name)
                found[image.name] = ImageView(
                    image.name,
                    image.format,
                    max(image.capacity_bytes, known.capacity_bytes if known else 0),
                    max(image.allocation_bytes, known.allocation_bytes if known else 0),
                    (known.hosts if known else 0) + 1,
                )
        return [found[name] for name in sorted(found)]

    def task_view(self, task: Task) -> TaskView:
        """A task with the names of its hosts."""
        hosts = {vm.host_id for vm in task.vms.values()}
        return task.view(
            {
                host_id: self._registry.hosts[host_id].description.hostname
                for host_id in hosts
                if host_id in self._registry.hosts
            }
        )

    def tasks(self, limit: int) -> list[TaskView]:
        """The latest tasks, newest first."""
        self._leader.require()
        tasks = sorted(
            self._leader.tasks.tasks.values(), key=lambda task: task.created_ms, reverse=True
        )
        return [self.task_view(task) for task in tasks[:limit]]


def _sum(capacities: Iterable[Capacity]) -> Capacity:
    total = ZERO
    for capacity in capacities:
        total = total.plus(capacity)
    return total


def _used(details: dict[str, HostDetail]) -> dict[tuple[str, str], Capacity]:
    """The latest usage by host and VM."""
    return {
        (host_id, vm.report.vm_id): vm.usage[0].used
        for host_id, detail in details.items()
        for vm in detail.vms
        if vm.usage
    }

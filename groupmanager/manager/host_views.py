"""All that a manager knows of its hosts and VMs, for people and programs."""

from collections.abc import Mapping

import msgspec

from snooze.common.wire import DescribeHosts, HostDetail, VmDetail
from snooze.groupmanager.manager.host_table import HostTable, VmEntry
from snooze.groupmanager.manager.usage import HostUsage


def describe(
    table: HostTable, usages: Mapping[str, HostUsage], request: DescribeHosts
) -> list[HostDetail]:
    """All about a manager's hosts, or those asked for."""
    if request.vm_keys:
        vms = [table.vms[key] for key in request.vm_keys if key in table.vms]
        by_host: dict[str, list[VmEntry]] = {}
        for vm in vms:
            by_host.setdefault(vm.host_id, []).append(vm)
        return [
            _host_detail(table, usages, host_id, request, by_host[host_id]) for host_id in by_host
        ]
    wanted = request.host_ids or table.order
    return [
        _host_detail(
            table, usages, host_id, request, list(table.vms_on(host_id)) if request.with_vms else []
        )
        for host_id in wanted
        if host_id in table.hosts
    ]


def _host_detail(
    table: HostTable,
    usages: Mapping[str, HostUsage],
    host_id: str,
    request: DescribeHosts,
    vms: list[VmEntry],
) -> HostDetail:
    host, usage = table.hosts[host_id], usages.get(host_id, HostUsage())
    details: list[VmDetail] = []
    for vm in vms:
        report = msgspec.structs.replace(
            vm.report,
            state=vm.state,
            demand=vm.demand,
            reason=vm.reason,
            xml=vm.report.xml if request.with_xml else "",
        )
        details.append(VmDetail(report, host_id, usage.of_vm(report.vm_id, request.entries)))
    return HostDetail(
        host=host.description,
        status="leaving" if host.leaving is not None else "active",
        reserved=table.reserved_on(host_id),
        used=usage.host_used,
        vms=details,
        vm_count=len(host.vms),
    )

"""All that a manager knows of its hosts and VMs, for people and programs."""

import msgspec

from snooze.common.vms import without_long_xml
from snooze.common.wire import DescribeHosts, HostDetail, VmDetail
from snooze.groupmanager.manager.host_table import HostTable, VmEntry
from snooze.groupmanager.manager.monitoring import Monitoring


def describe(table: HostTable, monitoring: Monitoring, request: DescribeHosts) -> list[HostDetail]:
    """All about a manager's hosts, or those asked for; not all of the XML, if it is very long."""
    hosts = _described(table, monitoring, request)
    if not request.with_xml:
        return hosts
    vms = [vm for host in hosts for vm in host.vms]
    shown = iter(without_long_xml([vm.report for vm in vms]))
    return [
        msgspec.structs.replace(
            host, vms=[msgspec.structs.replace(vm, report=next(shown)) for vm in host.vms]
        )
        for host in hosts
    ]


def _described(
    table: HostTable, monitoring: Monitoring, request: DescribeHosts
) -> list[HostDetail]:
    if request.vm_keys:
        vms = [table.vms[key] for key in request.vm_keys if key in table.vms]
        by_host: dict[str, list[VmEntry]] = {}
        for vm in vms:
            by_host.setdefault(vm.host_id, []).append(vm)
        return [
            _host_detail(table, monitoring, host_id, request, vms)
            for host_id, vms in by_host.items()
        ]
    wanted = request.host_ids or table.order
    return [
        _host_detail(
            table,
            monitoring,
            host_id,
            request,
            list(table.vms_on(host_id)) if request.with_vms else [],
        )
        for host_id in wanted
        if host_id in table.hosts
    ]


def _host_detail(
    table: HostTable,
    monitoring: Monitoring,
    host_id: str,
    request: DescribeHosts,
    vms: list[VmEntry],
) -> HostDetail:
    host = table.hosts[host_id]
    details: list[VmDetail] = []
    for vm in vms:
        report = msgspec.structs.replace(
            vm.report,
            state=vm.state,
            demand=vm.demand,
            reason=vm.reason,
            xml=vm.report.xml if request.with_xml else "",
        )
        details.append(VmDetail(report, host_id, monitoring.of_vm(report.vm_id, request.entries)))
    return HostDetail(
        # The leader knows the images; those of all hosts could outgrow a message.
        host=msgspec.structs.replace(host.description, images=()),
        status="leaving" if host.leaving is not None else "active",
        reserved=table.reserved_on(host_id),
        used=monitoring.host_used(host_id),
        vms=details,
        vm_count=len(host.vms),
    )

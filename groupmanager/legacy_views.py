"""The cluster in the words of Snooze's own API (``common/snooze_api``)."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

from snooze.common.api import ImageView
from snooze.common.records import HostPower
from snooze.common.resources import Capacity
from snooze.common.snooze_api import (
    UNKNOWN,
    GroupManagerDescription,
    GroupManagerSummaryInformation,
    HypervisorDriver,
    HypervisorSettings,
    HypervisorTransport,
    ListenSettings,
    LocalControllerDescription,
    LocalControllerLocation,
    LocalControllerStatus,
    MigrationMethod,
    MigrationSettings,
    NetworkAddress,
    VirtualMachineErrorCode,
    VirtualMachineImage,
    VirtualMachineLocation,
    VirtualMachineMetaData,
    VirtualMachineMonitoringData,
    VirtualMachineStatus,
    WakeupDriver,
    WakeupSettings,
)
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmErrorCode
from snooze.common.wire import Address, HostDescription, HostDetail, ManagerDescription, VmDetail

EnumT = TypeVar("EnumT", bound=StrEnum)

STATUS_OF: dict[VmState, VirtualMachineStatus] = {
    VmState.PENDING: VirtualMachineStatus.UNKNOWN,
    VmState.STARTING: VirtualMachineStatus.UNKNOWN,
    VmState.RUNNING: VirtualMachineStatus.RUNNING,
    VmState.MIGRATING: VirtualMachineStatus.RUNNING,
    VmState.PAUSED: VirtualMachineStatus.PAUSED,
    VmState.STOPPING: VirtualMachineStatus.SHUTDOWN_PENDING,
    VmState.DESTROYING: VirtualMachineStatus.SHUTDOWN_PENDING,
    VmState.STOPPED: VirtualMachineStatus.OFFLINE,
    VmState.DESTROYED: VirtualMachineStatus.OFFLINE,
    VmState.FAILED: VirtualMachineStatus.ERROR,
    VmState.UNREACHABLE: VirtualMachineStatus.UNKNOWN,
}

_ERROR_OF: dict[str, VirtualMachineErrorCode] = {
    VmErrorCode.INVALID_TEMPLATE: VirtualMachineErrorCode.INVALID_SUBMISSION_RESPONSE,
    VmErrorCode.NAME_TAKEN: VirtualMachineErrorCode.ALREADY_RUNNING,
    VmErrorCode.INVALID_HOST: VirtualMachineErrorCode.INVALID_HOST_ID,
    VmErrorCode.NO_ADDRESS: VirtualMachineErrorCode.NOT_ENOUGH_IP_ADDRESSES,
    VmErrorCode.NO_MANAGER: VirtualMachineErrorCode.NOT_ENOUGH_GROUP_MANAGER_CAPACITY,
    VmErrorCode.NO_CAPACITY: VirtualMachineErrorCode.NOT_ENOUGH_GROUP_MANAGER_CAPACITY,
    VmErrorCode.START_FAILED: VirtualMachineErrorCode.FAILED_TO_START_ON_HYPERVISOR,
    VmErrorCode.UNREACHABLE: VirtualMachineErrorCode.UNABLE_TO_COLLECT_GROUP_MANAGER_RESPONSE,
    VmErrorCode.WAKEUP_FAILED: VirtualMachineErrorCode.LOCAL_CONTROLLER_WAKEUP_FAILED,
    VmErrorCode.TIMED_OUT: VirtualMachineErrorCode.UNABLE_TO_START_ON_GROUP_MANAGER,
    VmErrorCode.DESTROYED: VirtualMachineErrorCode.UNABLE_TO_START_ON_GROUP_MANAGER,
}

_STATUS_OF_HOST = {
    "active": LocalControllerStatus.ACTIVE,
    "leaving": LocalControllerStatus.ACTIVE,
    HostPower.GOING_DOWN: LocalControllerStatus.PASSIVE,
    HostPower.ASLEEP: LocalControllerStatus.PASSIVE,
    HostPower.WAKING: LocalControllerStatus.WOKENUP,
}


def error_code(code: str) -> VirtualMachineErrorCode:
    """The original's code for one of ours."""
    return _ERROR_OF.get(code, VirtualMachineErrorCode.UNABLE_TO_START_ON_GROUP_MANAGER)


def address(value: Address | None) -> NetworkAddress:
    """An address; None is unknown."""
    return NetworkAddress() if value is None else NetworkAddress(value.host, value.port)


def image(view: ImageView) -> VirtualMachineImage:
    """A disk image."""
    return VirtualMachineImage(
        view.name,
        format=view.format,
        capacity=view.capacity_bytes,
        allocation=view.allocation_bytes,
    )


def location(
    name: str, host: HostDescription | None, manager: ManagerDescription | None
) -> VirtualMachineLocation:
    """Where a VM is."""
    return VirtualMachineLocation(
        virtual_machine_id=name,
        local_controller_id=host.host_id if host is not None else UNKNOWN,
        local_controller_control_data_address=address(host.control if host else None),
        group_manager_id=manager.manager_id if manager is not None else UNKNOWN,
        group_manager_control_data_address=address(manager.control if manager else None),
    )


def vm_metadata(
    detail: VmDetail, host: HostDescription, manager: ManagerDescription
) -> VirtualMachineMetaData:
    """A VM with its samples, newest first."""
    report = detail.report
    return VirtualMachineMetaData(
        ip_address=report.ip_address or UNKNOWN,
        xml_representation=report.xml or UNKNOWN,
        status=STATUS_OF[report.state],
        is_assigned=True,
        virtual_machine_location=location(report.name, host, manager),
        group_manager_control_data_address=address(manager.control),
        image=VirtualMachineImage(name=report.image) if report.image else VirtualMachineImage(),
        used_capacity={
            sample.taken_ms: VirtualMachineMonitoringData(sample.taken_ms, sample.used.as_list())
            for sample in detail.usage
        },
        requested_capacity=report.demand.as_list(),
    )


def unplaced_vm(
    name: str,
    state: VmState,
    where: VirtualMachineLocation | None = None,
    *,
    code: str = "",
    ip_address: str = "",
    demand: Capacity | None = None,
) -> VirtualMachineMetaData:
    """A VM that no host has."""
    return VirtualMachineMetaData(
        ip_address=ip_address or UNKNOWN,
        status=STATUS_OF[state],
        error_code=error_code(code) if code else VirtualMachineErrorCode.UNKNOWN,
        virtual_machine_location=where or location(name, None, None),
        requested_capacity=demand.as_list() if demand is not None else [],
    )


def hypervisor_settings(host: HostDescription) -> HypervisorSettings:
    """How the host's libvirt is reached."""
    summary = host.hypervisor
    return HypervisorSettings(
        driver=_member(HypervisorDriver, summary.driver, HypervisorDriver.QEMU),
        transport=_member(HypervisorTransport, summary.transport, HypervisorTransport.TCP),
        port=summary.port,
        migration=MigrationSettings(
            _member(MigrationMethod, summary.method, MigrationMethod.LIVE), summary.timeout_s
        ),
    )


def _member(kind: type[EnumT], name: str, default: EnumT) -> EnumT:
    return kind(name) if name in {member.value for member in kind} else default


def host_description(
    detail: HostDetail, manager: ManagerDescription, *, with_vms: bool
) -> LocalControllerDescription:
    """A host."""
    host = detail.host
    return LocalControllerDescription(
        id=host.host_id,
        hostname=host.hostname,
        status=_STATUS_OF_HOST.get(detail.status, LocalControllerStatus.UNKNOWN),
        is_assigned=True,
        control_data_address=address(host.control),
        hypervisor_settings=hypervisor_settings(host),
        wakeup_settings=WakeupSettings(
            _member(WakeupDriver, host.wakeup_driver, WakeupDriver.TEST),
            host.wakeup_options or UNKNOWN,
        ),
        location=LocalControllerLocation(
            host.host_id, manager.manager_id, address(manager.control)
        ),
        total_capacity=host.capacity.as_list(),
        virtual_machine_meta_data={
            vm.report.name: vm_metadata(vm, host, manager) for vm in detail.vms
        }
        if with_vms
        else {},
    )


def manager_description(
    manager: ManagerDescription,
    hosts: Sequence[HostDetail] = (),
    *,
    with_vms: bool = True,
    summary: GroupManagerSummaryInformation | None = None,
) -> GroupManagerDescription:
    """A group manager, with hosts if any are given."""
    return GroupManagerDescription(
        id=manager.manager_id,
        hostname=manager.hostname,
        is_assigned=True,
        listen_settings=ListenSettings(address(manager.control), address(manager.monitoring)),
        summary_information={} if summary is None else {summary.time_stamp: summary},
        local_controllers={
            detail.host.host_id: host_description(detail, manager, with_vms=with_vms)
            for detail in hosts
        },
    )

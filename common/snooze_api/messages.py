"""Every data type of Snooze's API, under its original name.

An attribute ``virtual_machine_id`` stands as ``virtualMachineId`` on the wire. What was never set
is ``"UNKNOWN"`` (text), ``-1`` (a port), 0 or empty, as in the original, so that a client finds
every member it looks for. A *capacity* is ``[cpu cores, memory KiB, rx KiB/s, tx KiB/s]`` in
doubles.

Source: reference of Snooze 2.1.x, section 1.1. Aliases that are only read stand in ``ALIASES``.
"""

from collections.abc import Callable
from typing import Final, TypeGuard

import msgspec

from snooze.common.snooze_api.enumerations import (
    HypervisorDriver,
    HypervisorTransport,
    LocalControllerStatus,
    MigrationMethod,
    VirtualClusterErrorCode,
    VirtualMachineErrorCode,
    VirtualMachineStatus,
    WakeupDriver,
)

UNKNOWN: Final = "UNKNOWN"
UNKNOWN_PORT: Final = -1


class _Message(msgspec.Struct, frozen=True, rename="camel"):
    """A JSON object of the API."""


class NetworkAddress(_Message, frozen=True):
    """Where a daemon listens."""

    address: str = UNKNOWN
    port: int = UNKNOWN_PORT


class ListenSettings(_Message, frozen=True):
    """The two addresses of a group manager; clients only use the first."""

    control_data_address: NetworkAddress = NetworkAddress()
    monitoring_data_address: NetworkAddress = NetworkAddress()


class VirtualMachineLocation(_Message, frozen=True):
    """Where a VM is."""

    virtual_machine_id: str = UNKNOWN
    local_controller_id: str = UNKNOWN
    local_controller_control_data_address: NetworkAddress = NetworkAddress()
    group_manager_id: str = UNKNOWN
    group_manager_control_data_address: NetworkAddress = NetworkAddress()


class LocalControllerLocation(_Message, frozen=True):
    """Where a local controller is in the hierarchy."""

    local_controller_id: str = UNKNOWN
    group_manager_id: str = UNKNOWN
    group_manager_control_data_address: NetworkAddress = NetworkAddress()


class NetworkDemand(_Message, frozen=True):
    """Called bytes, meant as KiB/s."""

    rx_bytes: float = 0.0
    tx_bytes: float = 0.0


class VirtualMachineTemplate(_Message, frozen=True):
    """What a VM shall be: a whole libvirt domain, or an image with a size.

    ``memory`` is in KiB; ``host_id`` names a group manager or a local controller to pin the VM to.
    """

    lib_virt_template: str | None = None
    network_capacity_demand: NetworkDemand = NetworkDemand()
    vcpus: int = 1
    memory: int = 131072
    image_id: str | None = None
    name: str | None = None
    host_id: str = UNKNOWN


class VirtualClusterSubmissionRequest(_Message, frozen=True):
    """VMs to be started together."""

    virtual_machine_templates: list[VirtualMachineTemplate] = []


class VirtualMachineImage(_Message, frozen=True):
    """A disk image; sizes in bytes."""

    name: str = UNKNOWN
    path: str = UNKNOWN
    format: str = "raw"
    capacity: int = 0
    allocation: int = 0
    backing_store: str | None = None


class VirtualMachineImageList(_Message, frozen=True):
    """What the image service has."""

    images: list[VirtualMachineImage] = []


class VirtualMachineMonitoringData(_Message, frozen=True):
    """One sample of what a VM uses; ``time_stamp`` in ms since 1970."""

    time_stamp: int = 0
    used_capacity: list[float] = []


class VirtualMachineMetaData(_Message, frozen=True):
    """All that is known of a VM. ``used_capacity`` is keyed by time in ms, newest first."""

    ip_address: str = UNKNOWN
    xml_representation: str = UNKNOWN
    status: VirtualMachineStatus = VirtualMachineStatus.UNKNOWN
    error_code: VirtualMachineErrorCode = VirtualMachineErrorCode.UNKNOWN
    is_assigned: bool = False
    virtual_machine_location: VirtualMachineLocation = VirtualMachineLocation()
    group_manager_control_data_address: NetworkAddress = NetworkAddress()
    image: VirtualMachineImage = VirtualMachineImage()
    used_capacity: dict[int, VirtualMachineMonitoringData] = {}
    requested_capacity: list[float] = []


class VirtualMachineSubmissionRequest(_Message, frozen=True):
    """VMs that a group manager or a local controller shall start."""

    virtual_machine_meta_data: list[VirtualMachineMetaData] = []


class VirtualMachineSubmissionResponse(_Message, frozen=True):
    """What became of each."""

    virtual_machine_meta_data: list[VirtualMachineMetaData] = []


class VirtualClusterSubmissionResponse(_Message, frozen=True):
    """What became of a submission, VM by VM."""

    virtual_machine_meta_data: list[VirtualMachineMetaData] = []
    error_code: VirtualClusterErrorCode | None = None


class MetaDataRequest(_Message, frozen=True):
    """Asks for a VM with its last samples."""

    virtual_machine_location: VirtualMachineLocation = VirtualMachineLocation()
    number_of_monitoring_entries: int = 0


class VirtualMachineDiscoveryResponse(_Message, frozen=True):
    """Who is responsible for a VM."""

    local_controller_id: str = UNKNOWN
    group_manager_address: NetworkAddress = NetworkAddress()


class MigrationSettings(_Message, frozen=True):
    """``timeout`` in seconds."""

    method: MigrationMethod | None = None
    timeout: int = 0


class HypervisorSettings(_Message, frozen=True):
    """How to reach the libvirt of a host."""

    driver: HypervisorDriver | None = None
    transport: HypervisorTransport | None = None
    port: int = UNKNOWN_PORT
    migration: MigrationSettings = MigrationSettings()


class WakeupSettings(_Message, frozen=True):
    """How to wake a host. ``options`` may hold a password: think before sending it."""

    driver: WakeupDriver | None = None
    options: str = UNKNOWN


class MigrationRequest(_Message, frozen=True):
    """Asks to move a VM; clients leave the settings null."""

    source_virtual_machine_location: VirtualMachineLocation = VirtualMachineLocation()
    destination_virtual_machine_location: VirtualMachineLocation = VirtualMachineLocation()
    destination_hypervisor_settings: HypervisorSettings | None = None
    migrated: bool = False


class ClientMigrationRequestSimple(_Message, frozen=True):
    """Asks the bootstrap to move a VM to a host."""

    virtual_machine_id: str = UNKNOWN
    local_controller_id: str = UNKNOWN


class ClientMigrationRequest(_Message, frozen=True):
    """What clients of 1.x send to move a VM; also read as a ``MigrationRequest``."""

    old_location: VirtualMachineLocation = VirtualMachineLocation()
    new_location: VirtualMachineLocation = VirtualMachineLocation()


class ResizeRequest(_Message, frozen=True):
    """Asks for another size: here, and only here, ``[cpu, memory, tx, rx]``; -1.0 leaves it."""

    virtual_machine_location: VirtualMachineLocation = VirtualMachineLocation()
    resized_capacity: list[float] = msgspec.field(default_factory=lambda: [-1.0] * 4)


class HostListRequest(_Message, frozen=True):
    """Asks for a page of group managers, local controllers or VMs."""

    start: str | None = None
    limit: int = 100
    group_manager_id: str | None = None
    local_controller_id: str | None = None
    number_of_monitoring_entries: int = 0


class LocalControllerDescription(_Message, frozen=True):
    """A host and its VMs, keyed by their ids."""

    id: str = UNKNOWN
    hostname: str = UNKNOWN
    status: LocalControllerStatus = LocalControllerStatus.UNKNOWN
    is_assigned: bool = False
    control_data_address: NetworkAddress = NetworkAddress()
    hypervisor_settings: HypervisorSettings = HypervisorSettings()
    wakeup_settings: WakeupSettings = WakeupSettings()
    location: LocalControllerLocation = LocalControllerLocation()
    total_capacity: list[float] = []
    virtual_machine_meta_data: dict[str, VirtualMachineMetaData] = {}
    assigned_virtual_machines: list[VirtualMachineMetaData] = []


class LocalControllerList(_Message, frozen=True):
    """Hosts."""

    local_controllers: list[LocalControllerDescription] = []


class GroupManagerSummaryInformation(_Message, frozen=True):
    """The capacities of a group manager at one time (ms since 1970)."""

    time_stamp: int = 0
    active_capacity: list[float] = []
    passive_capacity: list[float] = []
    requested_capacity: list[float] = []
    used_capacity: list[float] = []
    legacy_ip_addresses: list[str] = []
    local_controllers: list[LocalControllerDescription] = []


class GroupManagerDescription(_Message, frozen=True):
    """A group manager: its summaries by time in ms, newest first; its hosts by their ids."""

    id: str = UNKNOWN
    hostname: str = UNKNOWN
    is_assigned: bool = False
    listen_settings: ListenSettings = ListenSettings()
    heartbeat_address: NetworkAddress = NetworkAddress()
    virtual_machines: list[VirtualMachineMetaData] = []
    summary_information: dict[int, GroupManagerSummaryInformation] = {}
    local_controllers: dict[str, LocalControllerDescription] = {}


class GroupLeaderRepositoryInformation(_Message, frozen=True):
    """All group managers; with their hosts, it is the complete hierarchy."""

    group_manager_descriptions: list[GroupManagerDescription] = []


class GroupManagerRepositoryInformation(_Message, frozen=True):
    """All hosts of a group manager."""

    local_controller_descriptions: list[LocalControllerDescription] = []


class AssignedGroupManager(_Message, frozen=True):
    """Which group manager a joining host belongs to, and under which id it was known before."""

    local_controller_id: str | None = None
    group_manager: GroupManagerDescription | None = None


class VirtualMachinesList(_Message, frozen=True):
    """VMs."""

    virtual_machines: list[VirtualMachineMetaData] = []


def _is_array(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _by_id(array: object) -> object:
    """An array of descriptions as the map it stands for; what is not one is left as it is."""
    if not _is_array(array):
        return array
    by_id: dict[str, object] = {}
    for position, item in enumerate(array):
        ident = item.get("id") if _is_object(item) else None
        by_id[ident if isinstance(ident, str) else str(position)] = item
    return by_id


def _as_it_is(value: object) -> object:
    return value


_Aliases = dict[str, dict[str, Callable[[object], object]]]

_ASSIGNED: _Aliases = {"is_assigned": {"assigned": _as_it_is}}

ALIASES: dict[type[msgspec.Struct], _Aliases] = {
    VirtualMachineTemplate: {
        "lib_virt_template": {"libVirtDescription": _as_it_is},
        # The libcloud driver's version 1.
        "image_id": {"imageIdentifier": _as_it_is},
        "vcpus": {"vcpuDemand": _as_it_is},
        "memory": {"memoryDemand": _as_it_is},
    },
    MigrationRequest: {
        # libcloud drivers of January 2013.
        "source_virtual_machine_location": {"oldLocation": _as_it_is},
        "destination_virtual_machine_location": {"newLocation": _as_it_is},
    },
    VirtualMachineMetaData: _ASSIGNED,
    LocalControllerDescription: _ASSIGNED,
    GroupManagerDescription: {
        **_ASSIGNED,
        "local_controllers": {"localControllersFromArray": _by_id},
    },
}
"""Other names under which a member is read, and what to make of its value; never written."""

"""What Snooze's clients of 2013 send, and what they must read."""

import json

import pytest

from snooze.common.errors import InvalidRequest
from snooze.common.snooze_api import (
    GroupManagerDescription,
    HostListRequest,
    LocalControllerDescription,
    LocalControllerList,
    MetaDataRequest,
    MigrationRequest,
    NetworkAddress,
    NetworkDemand,
    ResizeRequest,
    VirtualClusterSubmissionRequest,
    VirtualClusterSubmissionResponse,
    VirtualMachineMetaData,
    VirtualMachineMonitoringData,
    VirtualMachineStatus,
    VirtualMachineTemplate,
    decode,
    decode_int,
    decode_text,
    encode,
)

SUBMISSION = rb"""{
"virtualMachineTemplates":[
{
"libVirtTemplate":"<?xml version=\"1.0\" encoding=\"UTF-8\"?><domain type=\"kvm\"></domain>",
"networkCapacityDemand":{
"rxBytes":12800.0,
"txBytes":12800.0
}
}
]
}"""

HOSTS = b"""{"localControllers":[{
"id":"f5a4a86a-e83d-4508-9ca5-ff8f5d3724e3",
"controlDataAddress":{"address":"127.0.0.1","port":5005},
"status":"ACTIVE",
"hypervisorSettings":{
"port":16511,"driver":"qemu","transport":"tcp","migration":{"method":"live","timeout":60}
},
"totalCapacity":[4.0,3958348.0,131072.0,131072.0],
"virtualMachineMetaData":{},
"wakeupSettings":{"driver":"IPMI","options":"-I lanplus -H BMC_IP -U user -P password"},
"hostname":"mafalda",
"assignedVirtualMachines":[]
}]}"""


def test_the_documentations_submission() -> None:
    request = decode(VirtualClusterSubmissionRequest, SUBMISSION)
    assert request.virtual_machine_templates == [
        VirtualMachineTemplate(
            lib_virt_template='<?xml version="1.0" encoding="UTF-8"?><domain type="kvm"></domain>',
            network_capacity_demand=NetworkDemand(12800.0, 12800.0),
        )
    ]


def test_the_documentations_list_of_hosts() -> None:
    hosts = decode(LocalControllerList, HOSTS)
    assert hosts.local_controllers[0].control_data_address == NetworkAddress("127.0.0.1", 5005)
    written = json.loads(encode(hosts))["localControllers"][0]
    printed = json.loads(HOSTS)["localControllers"][0]
    assert {name: written[name] for name in printed} == printed
    assert set(written) - set(printed) == {"isAssigned", "location"}


def test_an_answer_gives_every_member_as_java_does() -> None:
    vm = VirtualMachineMetaData(
        status=VirtualMachineStatus.RUNNING,
        used_capacity={
            1385000000123: VirtualMachineMonitoringData(1385000000123, [0.5, 1.0, 2.0, 3.0])
        },
        requested_capacity=[1.0, 200000.0, 12800.0, 12800.0],
    )
    text = encode(VirtualClusterSubmissionResponse([vm])).decode()
    assert '"errorCode":null' in text
    assert '"backingStore":null' in text
    assert '"status":"RUNNING"' in text
    assert '"requestedCapacity":[1.0,200000.0,12800.0,12800.0]' in text
    assert '"usedCapacity":{"1385000000123":{"timeStamp":1385000000123,' in text
    assert '"port":-1' in text
    assert encode([NetworkAddress(), NetworkAddress("a", 1)]) == (
        b'[{"address":"UNKNOWN","port":-1},{"address":"a","port":1}]'
    )


def test_the_libcloud_driver_of_version_1() -> None:
    body = b"""{"virtualMachineTemplates":[{"type":"id_based","name":"debian1",
        "imageIdentifier":"img","vcpuDemand":"1","memoryDemand":"512000",
        "networkCapacityDemand":{"txBytes":"12800","rxBytes":"12800"}}]}"""
    (template,) = decode(VirtualClusterSubmissionRequest, body).virtual_machine_templates
    assert template == VirtualMachineTemplate(
        network_capacity_demand=NetworkDemand(12800.0, 12800.0),
        vcpus=1,
        memory=512000,
        image_id="img",
        name="debian1",
    )


def test_migrations_of_old_and_new_clients_are_the_same_request() -> None:
    new = b"""{"sourceVirtualMachineLocation":{"virtualMachineId":"a"},"migrated":false,
        "destinationVirtualMachineLocation":{"localControllerId":"b"},
        "destinationHypervisorSettings":null}"""
    old = b"""{"oldLocation":{"virtualMachineId":"a"},"newLocation":{"localControllerId":"b"}}"""
    assert decode(MigrationRequest, new) == decode(MigrationRequest, old)
    assert decode(MigrationRequest, new).destination_hypervisor_settings is None


def test_the_web_interface_sends_numbers_as_text() -> None:
    request = decode(HostListRequest, b'{"limit":"5","numberOfMonitoringEntries":"0","start":""}')
    assert (request.limit, request.number_of_monitoring_entries, request.start) == (5, 0, "")


def test_a_members_own_name_goes_before_its_alias() -> None:
    body = b'{"libVirtDescription":"alias","libVirtTemplate":%s}'
    assert decode(VirtualMachineTemplate, body % b'"own"').lib_virt_template == "own"
    assert decode(VirtualMachineTemplate, body % b"null").lib_virt_template == "alias"
    assert decode(LocalControllerDescription, b'{"assigned":true}').is_assigned


def test_hosts_may_come_as_an_array() -> None:
    body = b'{"localControllersFromArray":[{"id":"a","hostname":"h"},{"id":"b"}]}'
    hosts = decode(GroupManagerDescription, body).local_controllers
    assert list(hosts) == ["a", "b"]
    assert hosts["a"].hostname == "h"
    with pytest.raises(InvalidRequest, match=r"localControllersFromArray.*array"):
        decode(GroupManagerDescription, b'{"localControllersFromArray":[[]]}')


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not JSON"),
        (b"null", "expected an object, got None"),
        (b"[]", "expected an object, got an array"),
        (b"{", "not JSON"),
        (b"{}x", "not JSON"),
        (b"{}{}", "not JSON"),
        (b'{"virtualMachineLocation":[]}', "virtualMachineLocation: expected an object"),
        (
            b'{"virtualMachineLocation":{"groupManagerControlDataAddress":{"port":"http"}}}',
            "virtualMachineLocation.groupManagerControlDataAddress.port: expected an integer",
        ),
        (b'{"numberOfMonitoringEntries":1.5}', "expected an integer, got 1.5"),
        (b'{"numberOfMonitoringEntries":true}', "expected an integer, got True"),
        (b'{"numberOfMonitoringEntries":9223372036854775808}', "64 bits"),
        (b'{"numberOfMonitoringEntries":' + b"[" * 100_000, "not JSON: maximum recursion"),
        (b'{"virtualMachineLocation":' * 100_000, "not JSON: maximum recursion"),
        (b'{"virtualMachineLocation":{"virtualMachineId":"\\ud800"}}', "not JSON"),
    ],
)
def test_refusals_name_the_path(body: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(MetaDataRequest, body)
    assert why in refused.value.message
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    "capacity",
    [b"[1e999]", b"[NaN]", b'["Infinity"]', b'["1e400"]', b"[null]", b"[[1]]", b"[true]", b"1"],
)
def test_capacities_are_finite_numbers(capacity: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode(ResizeRequest, b'{"resizedCapacity":%s}' % capacity)


def test_null_elements_are_refused_with_their_place() -> None:
    with pytest.raises(InvalidRequest, match=r"virtualMachineTemplates\[1\]: null"):
        decode(VirtualClusterSubmissionRequest, b'{"virtualMachineTemplates":[{},null]}')
    with pytest.raises(InvalidRequest, match=r"usedCapacity\['12'\]: null"):
        decode(VirtualMachineMetaData, b'{"usedCapacity":{"12":null}}')
    with pytest.raises(InvalidRequest, match=r"usedCapacity\['now'\]: expected an integer"):
        decode(VirtualMachineMetaData, b'{"usedCapacity":{"now":{}}}')
    with pytest.raises(InvalidRequest, match="status: expected one of UNKNOWN, ERROR"):
        decode(VirtualMachineMetaData, b'{"status":"LAUNCHING"}')


def test_a_list_of_messages() -> None:
    addresses = decode(list[NetworkAddress], b'\xef\xbb\xbf[{"port":1},{}]')
    assert addresses == [NetworkAddress(port=1), NetworkAddress()]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"a4fba1c6", "a4fba1c6"),
        (b' "a4fba1c6"\n', "a4fba1c6"),
        (b"\xef\xbb\xbfid\r\n", "id"),
        (b'"b\\u00e9"', "bé"),
        (b"5", "5"),
        (b'"', '"'),
    ],
)
def test_ids(body: bytes, text: str) -> None:
    assert decode_text(body) == text


@pytest.mark.parametrize(
    "body", [b"", b"  ", b'""', b'" "', b"\xff", b'"a"b"', b"x" * 4097, b"x" * 10**6]
)
def test_no_ids(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_text(body)


def test_bare_integers() -> None:
    assert decode_int(b"5") == decode_int(b' "5" ') == 5
    assert decode_int(b"-3") == -3
    for body in (b"", b"five", b"1.5", b"[1]", b"9" * 30, "\u0665".encode()):
        with pytest.raises(InvalidRequest):
            decode_int(body)

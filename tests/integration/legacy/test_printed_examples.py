"""The examples of Snooze's own documentation, by the real curl, byte for byte as printed there.

Only where the printed ports are taken on this machine, others stand in their place.
"""

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from tests.integration.legacy.conftest import Wire

TEMPLATE = r"""{
"virtualMachineTemplates":[
{
"libVirtTemplate":"<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"no\"?><domain type=\"kvm\"> <name>debian1</name> <uuid>0f476e56-67ea-11e1-858e-00216a972a36</uuid> <memory>200000</memory> <currentMemory>200000</currentMemory> <vcpu>1</vcpu> <os> <type arch=\"x86_64\" machine=\"pc-0.12\">hvm</type> <boot dev=\"hd\"/> </os> <features> <acpi/> <apic/> <pae/> </features> <clock offset=\"utc\"/> <on_poweroff>destroy</on_poweroff> <on_reboot>restart</on_reboot> <on_crash>restart</on_crash> <devices> <emulator>/usr/bin/kvm</emulator> <disk device=\"disk\" type=\"file\"> <driver name=\"qemu\" type=\"qcow2\"/> <source file=\"path_to_disk_image\"/> <target bus=\"virtio\" dev=\"vda\"/> <address bus=\"0x00\" domain=\"0x0000\" function=\"0x0\" slot=\"0x05\" type=\"pci\"/> </disk> <controller index=\"0\" type=\"ide\"> <address bus=\"0x00\" domain=\"0x0000\" function=\"0x1\" slot=\"0x01\" type=\"pci\"/> </controller> <interface type=\"bridge\"> <mac address=\"52:54:01:84:26:2c\"/> <source bridge=\"virbr0\"/> </interface> <serial type=\"pty\"> <target port=\"0\"/> </serial> <console type=\"pty\"> <target port=\"0\" type=\"serial\"/> </console> <graphics autoport=\"yes\" listen=\"0.0.0.0\" port=\"-1\" type=\"vnc\"/> <input bus=\"usb\" type=\"tablet\"/> <input bus=\"ps2\" type=\"mouse\"/> <memballoon model=\"virtio\"> <address bus=\"0x00\" domain=\"0x0000\" function=\"0x0\" slot=\"0x06\" type=\"pci\"/> </memballoon> </devices> </domain>",
"networkCapacityDemand":{
"rxBytes":12800.0,
"txBytes":12800.0
}
}
]
}"""  # noqa: E501

START = (
    'curl -H "Content-Type: application/json" -X POST -d "$template" '
    "http://localhost:5001/groupmanager?startVirtualCluster"
)
POLL = (
    'curl -H "Content-Type: application/json" -X POST -d "a4fba1c6-4c8f-4691-a530-01c067e8deb2" '
    "http://localhost:5001/groupmanager?getVirtualClusterResponse"
)
PRINTED_TASK = "a4fba1c6-4c8f-4691-a530-01c067e8deb2"
LIST = "curl localhost:5000/bootstrap?getLocalControllerList"

PRINTED_VM = """{"status":"RUNNING","virtualMachineLocation":{"virtualMachineId":"debian1",
"localControllerId":"ddb07acb-643e-4f9d-87e3-23ae4b629509",
"groupManagerId":"20fb798c-5d72-47d7-b80e-a613a81dc603",
"groupManagerControlDataAddress":{"address":"127.0.0.1","port":5002},
"localControllerControlDataAddress":{"address":"127.0.0.1","port":5003}},"usedCapacity":{},
"requestedCapacity":[1.0,200000.0,12800.0,12800.0],"ipAddress":"192.168.122.6",
"errorCode":"UNKNOWN","groupManagerControlDataAddress":{"address":"127.0.0.1","port":5002},
"xmlRepresentation":"<?xml ..."}"""
"""The answer's VM as printed; its XML is looked at apart."""

PRINTED_HOST = """{"id":"f5a4a86a-e83d-4508-9ca5-ff8f5d3724e3","controlDataAddress":
{"address":"127.0.0.1","port":5005},"status":"ACTIVE","hypervisorSettings":{"port":16511,"driver":
"qemu","transport":"tcp","migration":{"method":"live","timeout":60}},"totalCapacity":[4.0,
3958348.0,131072.0,131072.0],"virtualMachineMetaData":{},"wakeupSettings":{"driver":"IPMI",
"options":"-I lanplus -H BMC_IP -U user -P password"},"hostname":"mafalda",
"assignedVirtualMachines":[]}"""


@pytest.fixture
def run(wire: "Wire") -> Any:
    """Runs a command line of the documentation and gives what it prints."""
    ports = {"5000": wire.front, "5001": wire.leader}

    def shell(line: str) -> str:
        for printed, url in ports.items():
            line = line.replace(f"localhost:{printed}", f"localhost:{urlsplit(url).port}")
        done = subprocess.run(
            ["bash", "-c", f"{line} --silent --show-error --max-time 30"],
            env={**os.environ, "template": TEMPLATE, "no_proxy": "*"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stderr == ""
        return done.stdout

    return shell


def like(printed: object, answer: object, path: str = "") -> list[str]:
    """Where ``answer`` lacks a member of ``printed``, or has another type."""
    if type(printed) is not type(answer):
        return [f"{path}: {answer!r} where {printed!r} is printed"]
    printed_members, members = flat(printed), flat(answer)
    found = [f"{path}.{key}: missing" for key in printed_members if key not in members]
    if isinstance(printed, list) and len(members) > len(printed_members):
        found.append(f"{path}: more than is printed")
    for key in printed_members:
        if key in members:
            found += like(printed_members[key], members[key], f"{path}.{key}")
    return found


def flat(value: object) -> dict[str, Any]:
    """The members of an object or a list."""
    if is_list(value):
        return {str(index): item for index, item in enumerate(value)}
    return value if is_dict(value) else {}


def is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def is_dict(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def test_start_and_poll(wire: "Wire", run: Any) -> None:
    task = run(START)
    try:
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", task)
        poll = POLL.replace(PRINTED_TASK, task)
        text = wire.until(lambda: run(poll), "the response")
        assert run(poll) == text, "it stays readable"
        answer = json.loads(text)
        assert answer["errorCode"] is None
        [vm] = answer["virtualMachineMetaData"]
        assert like(json.loads(PRINTED_VM), vm) == []
        assert vm["status"] == "RUNNING"
        assert vm["errorCode"] == "UNKNOWN"
        assert vm["requestedCapacity"] == [1.0, 200000.0, 12800.0, 12800.0]
        assert vm["virtualMachineLocation"]["virtualMachineId"] == "debian1"
        assert vm["ipAddress"].startswith("192.168.122.")
        last = int(vm["ipAddress"].rpartition(".")[2])
        xml = vm["xmlRepresentation"]
        assert f"54:56:c0:a8:7a:{last:02x}" in xml, "the MAC tells the address"
        for kept in ("<name>debian1</name>", "path_to_disk_image", "pae", "memballoon", "tablet"):
            assert kept in xml
        assert "type='test'" in xml, "it is what really runs"
    finally:
        wire.ask(wire.front, "POST", "/bootstrap?destroyVirtualMachine", "debian1")


def test_the_printed_task_is_not_polled_for_ever(wire: "Wire", run: Any) -> None:
    answer = json.loads(run(POLL))
    assert answer == {"errorCode": "GENERAL_EXCEPTION", "virtualMachineMetaData": []}


def test_the_list_of_local_controllers(wire: "Wire", run: Any) -> None:
    answer = json.loads(run(LIST))
    assert set(answer) == {"localControllers"}
    hosts = answer["localControllers"]
    assert len(hosts) == 3
    for host in hosts:
        assert like(json.loads(PRINTED_HOST), host) == []
        assert host["status"] == "ACTIVE"
        assert host["hypervisorSettings"]["driver"] == "test"
        assert host["totalCapacity"][2:] == [131072.0, 131072.0]
    assert len({host["id"] for host in hosts}) == 3
    assert {host["controlDataAddress"]["port"] for host in hosts} == {
        urlsplit(url).port for url in wire.hosts.values()
    }

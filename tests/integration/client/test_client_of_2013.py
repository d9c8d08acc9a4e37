"""The libcloud driver of 2013, as it was on the wire, against a cluster of today.

``ClientOf2013`` sends what the unmodified driver (libcloud 0.12.1 with Snooze's three files,
revision 8f3cf2de) was seen to send: request targets without a slash, bodies without a Content-Type,
never an Accept, a connection for each request. It reads answers as that driver does, and so fails
where it would fail.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest

Json = Any
"""Whatever the answer holds; the driver looks into it without asking."""

POLLING_INTERVAL_S = 2
POLLING_ATTEMPTS = 20

# As the driver sends it: the newlines of the file are taken out.
TEMPLATE = (
    '<?xml version="1.0" encoding="UTF-8" standalone="no"?><domain type="kvm">'
    "<name>{name}</name><uuid>{uuid}</uuid><memory>131072</memory>"
    "<currentMemory>131072</currentMemory><vcpu>1</vcpu>"
    '<os><type arch="x86_64" machine="pc-0.12">hvm</type><boot dev="hd"/></os>'
    "<features><acpi/><apic/><pae/></features>"
    '<clock offset="utc"/><on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot>'
    "<on_crash>restart</on_crash><devices><emulator>/usr/bin/kvm</emulator>"
    '<disk device="disk" type="file"><driver name="qemu" type="qcow2"/>'
    '<source file="{name}.qcow2"/><target bus="virtio" dev="vda"/></disk>'
    '<interface type="bridge"><mac address="{mac}"/><source bridge="virbr0"/></interface>'
    "</devices></domain>"
)


class LiveCluster(Protocol):
    """What the fixture ``live_cluster`` gives."""

    url: str


class Answer:
    """One answer, read as ``SnoozeResponse`` reads it."""

    def __init__(self, status: int, content_type: str, body: str) -> None:
        self.status = status
        self.content_type = content_type
        self.text = body
        self.object: Json = None if status == 204 or not body else body
        if self.object is not None and "application/json" in content_type:
            with suppress(ValueError):
                self.object = json.loads(body)


class ClientOf2013:
    """The calls of ``SnoozeNodeDriverV0``."""

    def __init__(self, host: str, port: int) -> None:
        self.bootstrap = (host, port)
        self.leader = (host, port)
        self.manager = (host, port)

    def request(
        self,
        address: tuple[str, int],
        method: str,
        target: str,
        body: str = "",
        content_type: str = "",
    ) -> Answer:
        """One request on a connection of its own."""
        host, port = address
        lines = [
            f"{method} {target} HTTP/1.1",
            f"Host: {host}:{port}",
            f"Content-Length: {len(body.encode())}",
            "Accept-Encoding: gzip,deflate",
            "User-Agent: libcloud/0.12.1 (Snooze)",
        ]
        if content_type:
            lines.append(f"Content-type: {content_type}")
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body.encode())
            response = HTTPResponse(connection, method=method)
            response.begin()
            text = response.read().decode()
            answer = Answer(response.status, response.headers.get("Content-Type", ""), text)
            response.close()
        # Driver revisions before HEAD take nothing but these for a success.
        assert answer.status in (200, 201), (method, target, answer.status, text)
        return answer

    def get_and_set_groupleader(self) -> tuple[str, int]:
        answer = self.request(self.bootstrap, "GET", "/bootstrap?getGroupLeaderDescription")
        address = json.loads(answer.text)["listenSettings"]["controlDataAddress"]
        self.leader = (address["address"], int(address["port"]))
        return self.leader

    def get_and_set_assigned_groupmanager(self, node: Json) -> None:
        address = node["groupManagerControlDataAddress"]
        self.manager = (address["address"], int(address["port"]))

    def create_node(self, templates: list[str], tx: int = 12800, rx: int = 12800) -> Json:
        self.get_and_set_groupleader()
        network = {"txBytes": tx, "rxBytes": rx}
        wanted = [
            {"libVirtTemplate": template, "networkCapacityDemand": network}
            for template in templates
        ]
        body = json.dumps({"virtualMachineTemplates": wanted})
        answer = self.request(self.leader, "POST", "groupmanager?startVirtualCluster", body)
        return self.polling_for_response(str(answer.object))

    def polling_for_response(self, task_id: str) -> Json:
        for _ in range(POLLING_ATTEMPTS):
            time.sleep(POLLING_INTERVAL_S)
            answer = self.request(
                self.leader, "POST", "groupmanager?getVirtualClusterResponse", task_id
            )
            if answer.object is not None:
                return answer.object["virtualMachineMetaData"]
        return None

    def list_nodes(self) -> list[Json]:
        self.get_and_set_groupleader()
        json_type = "application/json"
        answer = self.request(
            self.leader,
            "POST",
            "/groupmanager?getGroupLeaderRepositoryInformation",
            "5",
            json_type,
        )
        nodes: list[Json] = []
        for manager in answer.object["groupManagerDescriptions"]:
            address = manager["listenSettings"]["controlDataAddress"]
            answer = self.request(
                (address["address"], int(address["port"])),
                "POST",
                "/groupmanager?getGroupManagerRepositoryInformation",
                "5",
                json_type,
            )
            for controller in answer.object["localControllerDescriptions"]:
                nodes += controller["virtualMachineMetaData"].values()
        return nodes

    def get_info(self, node: Json) -> Json:
        self.get_and_set_assigned_groupmanager(node)
        body = {
            "virtualMachineLocation": node["virtualMachineLocation"],
            "numberOfMonitoringEntries": 10,
        }
        answer = self.request(
            self.manager, "POST", "/groupmanager?getVirtualMachineMetaData", json.dumps(body)
        )
        # A TypeError here, as there, if the answer is labelled application/json.
        return json.loads(answer.object)

    def command(self, name: str, node: Json) -> None:
        self.get_and_set_assigned_groupmanager(node)
        location = json.dumps(node["virtualMachineLocation"])
        self.request(self.manager, "POST", f"groupmanager?{name}VirtualMachine", location)

    def migrate(self, node: Json, destination: Json) -> None:
        self.get_and_set_groupleader()
        body = {
            "sourceVirtualMachineLocation": node["virtualMachineLocation"],
            "destinationVirtualMachineLocation": destination,
            "destinationHypervisorSettings": None,
            "migrated": False,
        }
        self.request(self.leader, "POST", "/groupmanager?migrateVirtualMachine", json.dumps(body))

    def wait_for_status(self, node: Json, *statuses: str) -> Json:
        """Ask until the VM has one of them, as the driver's own live test does."""
        deadline_s = time.monotonic() + 20
        while True:
            info = self.get_info(node)
            if info["status"] in statuses:
                return info
            assert time.monotonic() < deadline_s, info["status"]
            time.sleep(0.1)


def template(name: str) -> str:
    number = os.urandom(3)
    mac = "52:54:01:" + ":".join(f"{byte:02x}" for byte in number)
    return TEMPLATE.format(name=name, uuid=uuid.uuid4(), mac=mac)


def name_of(node: Json) -> str:
    name: str = node["virtualMachineLocation"]["virtualMachineId"]
    return name


@pytest.fixture
def client(live_cluster: LiveCluster) -> ClientOf2013:
    parts = urlsplit(live_cluster.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return ClientOf2013(parts.hostname, parts.port)


@pytest.fixture
def nodes(client: ClientOf2013) -> Iterator[list[Json]]:
    """Two VMs, created in one submission and destroyed in the end."""
    names = [f"old-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    created = client.create_node([template(name) for name in names])
    assert [name_of(node) for node in created] == names
    yield created
    for node in created:
        if client.get_info(node)["status"] != "OFFLINE":
            client.command("destroy", node)


def test_a_life_as_the_old_driver_lives_it(client: ClientOf2013, nodes: list[Json]) -> None:
    node = nodes[0]
    location = node["virtualMachineLocation"]
    assert node["status"] == "RUNNING"
    assert node["errorCode"] == "UNKNOWN"
    assert node["requestedCapacity"] == [1.0, 131072.0, 12800.0, 12800.0]
    assert node["groupManagerControlDataAddress"] == location["groupManagerControlDataAddress"]
    assert f"<name>{name_of(node)}</name>" in node["xmlRepresentation"]

    assert {name_of(node) for node in nodes} <= {name_of(node) for node in client.list_nodes()}

    assert client.get_info(node)["virtualMachineLocation"] == location
    client.command("suspend", node)
    assert client.wait_for_status(node, "PAUSED")["virtualMachineLocation"] == location
    client.command("resume", node)
    assert client.wait_for_status(node, "RUNNING")["virtualMachineLocation"] == location

    client.command("shutdown", node)
    client.wait_for_status(node, "SHUTDOWN_PENDING", "OFFLINE")
    client.wait_for_status(node, "OFFLINE")

    client.command("destroy", nodes[1])
    client.wait_for_status(nodes[1], "OFFLINE")
    assert name_of(nodes[1]) not in {name_of(node) for node in client.list_nodes()}


def test_a_migration_to_where_another_vm_is(client: ClientOf2013, nodes: list[Json]) -> None:
    moving = nodes[0]
    here = moving["virtualMachineLocation"]["localControllerId"]
    controllers = client.request(client.bootstrap, "GET", "/bootstrap?getLocalControllerList")
    other = next(c for c in controllers.object["localControllers"] if c["id"] != here)
    # The driver knows places only by the VMs there: an id of a host is enough.
    destination = dict(nodes[1]["virtualMachineLocation"], localControllerId=other["id"])
    client.migrate(moving, destination)
    deadline_s = time.monotonic() + 20
    while True:
        found = next(n for n in client.list_nodes() if name_of(n) == name_of(moving))
        if found["virtualMachineLocation"]["localControllerId"] == other["id"]:
            break
        assert time.monotonic() < deadline_s, found["virtualMachineLocation"]
        time.sleep(0.1)
    assert client.wait_for_status(found, "RUNNING")


def test_a_vm_that_is_gone_is_offline(client: ClientOf2013, nodes: list[Json]) -> None:
    gone = dict(nodes[0])
    gone["virtualMachineLocation"] = dict(
        gone["virtualMachineLocation"], virtualMachineId="never-was"
    )
    info = client.get_info(gone)
    assert info["status"] == "OFFLINE"
    assert name_of(info) == "never-was"


def test_an_answer_stays_readable(client: ClientOf2013, nodes: list[Json]) -> None:
    client.get_and_set_groupleader()
    body = json.dumps({"virtualMachineTemplates": [{"libVirtTemplate": template("old-again")}]})
    task = client.request(client.leader, "POST", "groupmanager?startVirtualCluster", body)
    first = client.polling_for_response(task.text)
    second = client.polling_for_response(task.text)
    assert [name_of(node) for node in first] == [name_of(node) for node in second] == ["old-again"]
    client.command("destroy", first[0])

"""What the tests of Snooze's own calls share: calls as they are written on the wire, a VM."""

import json
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any, BinaryIO, Protocol, TypeGuard, TypeVar
from urllib.parse import urlsplit

import pytest

T = TypeVar("T")

DOMAIN = (
    "<domain type='kvm'><name>{name}</name><memory unit='KiB'>65536</memory><vcpu>1</vcpu>"
    "<os><type arch='x86_64'>hvm</type></os></domain>"
)
PATIENCE_S = 30.0

ADDRESS: Any = {"address": str, "port": int}
LOCATION: Any = {
    "virtualMachineId": str,
    "localControllerId": str,
    "localControllerControlDataAddress": ADDRESS,
    "groupManagerId": str,
    "groupManagerControlDataAddress": ADDRESS,
}
CAPACITY: Any = [float, float, float, float]
VM_STATUS: Any = {"UNKNOWN", "ERROR", "OFFLINE", "PAUSED", "RUNNING", "SHUTDOWN_PENDING"}
VM_ERROR: Any = {
    "UNKNOWN",
    "NOT_ENOUGH_IP_ADDRESSES",
    "NOT_ENOUGH_LOCAL_CONTROLLER_CAPACITY",
    "UNABLE_TO_START_ON_LOCAL_CONTROLLER",
    "FAILED_TO_UPDATE_REPOSITORY",
    "ALREADY_RUNNING",
    "UNABLE_TO_START_ON_GROUP_MANAGER",
    "UNABLE_TO_COLLECT_GROUP_MANAGER_RESPONSE",
    "NOT_ENOUGH_GROUP_MANAGER_CAPACITY",
    "LOCAL_CONTROLLER_WAKEUP_FAILED",
    "FAILED_TO_START_MONITORING",
    "FAILED_TO_START_ON_HYPERVISOR",
    "INVALID_SUBMISSION_RESPONSE",
    "INVALID_HOST_ID",
}
IMAGE: Any = {
    "name": str,
    "path": str,
    "format": str,
    "capacity": int,
    "allocation": int,
    "backingStore": None,
}
VM: Any = {
    "ipAddress": str,
    "xmlRepresentation": str,
    "status": VM_STATUS,
    "errorCode": VM_ERROR,
    "isAssigned": bool,
    "virtualMachineLocation": LOCATION,
    "groupManagerControlDataAddress": ADDRESS,
    "image": IMAGE,
    "usedCapacity": {int: {"timeStamp": int, "usedCapacity": CAPACITY}},
    "requestedCapacity": CAPACITY,
}
HOST: Any = {
    "id": str,
    "hostname": str,
    "status": {"ACTIVE", "PASSIVE", "WOKENUP", "UNKNOWN"},
    "isAssigned": bool,
    "controlDataAddress": ADDRESS,
    "hypervisorSettings": {
        "driver": {"test", "xen", "uml", "lxc", "vbox", "openvz", "qemu", "kvm", "esx"},
        "transport": {"tcp", "ssh", "tls"},
        "port": int,
        "migration": {
            "method": {"live", "nosharedfull", "nosharedincremental", "forceunsafe"},
            "timeout": int,
        },
    },
    "wakeupSettings": {"driver": {"IPMI", "WOL", "kapower3", "test"}, "options": str},
    "location": {
        "localControllerId": str,
        "groupManagerId": str,
        "groupManagerControlDataAddress": ADDRESS,
    },
    "totalCapacity": CAPACITY,
    "virtualMachineMetaData": {str: VM},
    "assignedVirtualMachines": [],
}
SUMMARY: Any = {
    "timeStamp": int,
    "activeCapacity": CAPACITY,
    "passiveCapacity": CAPACITY,
    "requestedCapacity": CAPACITY,
    "usedCapacity": CAPACITY,
    "legacyIpAddresses": ...,
    "localControllers": [],
}
MANAGER: Any = {
    "id": str,
    "hostname": str,
    "isAssigned": bool,
    "listenSettings": {"controlDataAddress": ADDRESS, "monitoringDataAddress": ADDRESS},
    "heartbeatAddress": ADDRESS,
    "virtualMachines": [],
    "summaryInformation": {int: SUMMARY},
    "localControllers": {str: HOST},
}


class Many:
    """The shape of a list of any length."""

    def __init__(self, shape: object) -> None:
        self.shape = shape


SHAPES: dict[str, object] = {
    "VirtualMachineMetaData": VM,
    "VirtualClusterSubmissionResponse": {
        "virtualMachineMetaData": Many(VM),
        "errorCode": {
            None,
            "GENERAL_EXCEPTION",
            "DISPATCH_PLAN_IS_INVALID",
            "UNABLE_TO_PARSE_VIRTUAL_MACHINE_TEMPLATE",
            "GROUP_MANAGERS_MISSING",
        },
    },
    "VirtualMachinesList": {"virtualMachines": Many(VM)},
    "LocalControllerDescription": HOST,
    "LocalControllerDescriptions": Many(HOST),
    "LocalControllerList": {"localControllers": Many(HOST)},
    "GroupManagerDescription": MANAGER,
    "GroupManagerDescriptions": Many(MANAGER),
    "GroupLeaderRepositoryInformation": {"groupManagerDescriptions": Many(MANAGER)},
    "GroupManagerRepositoryInformation": {"localControllerDescriptions": Many(HOST)},
    "VirtualMachineDiscoveryResponse": {"localControllerId": str, "groupManagerAddress": ADDRESS},
    "VirtualMachines": Many(VM),
}
"""Every answer that is an object: its keys (all of them, no more), types and enumerations.

Source: reference of Snooze 2.1.x, section 1.1.
"""


def is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def is_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict)


def differences(shape: Any, value: object, path: str = "") -> list[str]:
    """Where ``value`` is not of ``shape``."""
    if isinstance(shape, Many):
        if not is_list(value):
            return [f"{path}: {value!r} is no list"]
        return all_of(differences(shape.shape, v, f"{path}[{i}]") for i, v in enumerate(value))
    if is_list(shape):
        if not is_list(value) or (value and len(value) != len(shape)):
            return [f"{path}: {value!r}"]
        return all_of(differences(shape[i], v, f"{path}[{i}]") for i, v in enumerate(value))
    if is_dict(shape):
        if not is_dict(value):
            return [f"{path}: {value!r} is no object"]
        if str in shape or int in shape:
            [(key_type, item)] = shape.items()
            wrong = [f"{path}: key {k!r}" for k in value if key_type is int and not k.isdigit()]
            return wrong + all_of(differences(item, v, f"{path}.{k}") for k, v in value.items())
        if set(value) != set(shape):
            return [f"{path}: has {sorted(value)}"]
        return all_of(differences(shape[k], v, f"{path}.{k}") for k, v in value.items())
    if isinstance(shape, set):
        return [] if value in shape else [f"{path}: {value!r} is no member"]
    if isinstance(shape, type):
        return [] if type(value) is shape else [f"{path}: {value!r} is no {shape.__name__}"]
    return [] if value is shape or shape is ... else [f"{path}: {value!r} instead of {shape!r}"]


def all_of(found: Iterable[list[str]]) -> list[str]:
    return [each for several in found for each in several]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    label: str
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    def of(self, shape: str) -> Any:
        """The object, which is a success labelled as JSON and of that shape."""
        assert (self.status, self.label) == (200, "application/json"), self
        assert differences(SHAPES[shape], self.json) == []
        return self.json


class Cluster(Protocol):
    """What the fixture ``live_cluster`` gives."""

    url: str
    managers: tuple[str, ...]


class Wire:
    """Snooze's calls to any daemon of the cluster."""

    differences = staticmethod(differences)

    def __init__(self, cluster: Cluster) -> None:
        self.front = cluster.url
        self.leader, *self.followers = cluster.managers
        listed = self.ask(self.front, "GET", "/bootstrap?getLocalControllerList")
        self.hosts: dict[str, str] = {
            host["id"]: "http://{address}:{port}".format(**host["controlDataAddress"])
            for host in listed.of("LocalControllerList")["localControllers"]
        }
        self.everybody = {
            "bootstrap node": self.front,
            "leader": self.leader,
            "another manager": self.followers[0],
        }

    def ask(
        self,
        url: str,
        method: str,
        target: str,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One call; ``target`` as ``/bootstrap?getCompleteHierarchy``. Objects are sent as JSON.

        Sends no header but those given: no Accept, no Content-Type.
        """
        parts = urlsplit(url)
        assert parts.hostname
        payload = body if isinstance(body, str | bytes | None) else json.dumps(body)
        raw = payload.encode() if isinstance(payload, str) else payload
        connection = HTTPConnection(parts.hostname, parts.port, timeout=60)
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if raw is not None:
                connection.putheader("Content-Length", str(len(raw)))
            connection.endheaders(raw)
            return read(connection.getresponse())
        finally:
            connection.close()

    def talk(self, url: str, *requests: bytes) -> list[Answer]:
        """Several requests in one go on one connection (pipelined), and their answers."""
        parts = urlsplit(url)
        assert parts.hostname
        with socket.create_connection((parts.hostname, parts.port or 80), timeout=60) as raw:
            raw.sendall(b"".join(requests))
            with raw.makefile("rb") as stream:
                return [read_next(stream) for _ in requests]

    def until(self, condition: Callable[[], T | None], what: str) -> T:
        deadline_s = time.monotonic() + PATIENCE_S
        while not (answer := condition()):
            assert time.monotonic() < deadline_s, f"{what}: not in {PATIENCE_S:g} s"
            time.sleep(0.05)
        return answer

    def start(self, *names: str, url: str = "", **fields: Any) -> Any:
        """Start VMs and poll for the outcome, as clients do."""
        templates = [{"libVirtTemplate": DOMAIN.format(name=name), **fields} for name in names]
        return self.submit(templates, url)["virtualMachineMetaData"]

    def submit(self, templates: list[dict[str, Any]], url: str = "") -> Any:
        url = url or self.leader
        body = {"virtualMachineTemplates": templates}
        answer = self.ask(url, "POST", "/groupmanager?startVirtualCluster", body)
        assert answer.status == 200, answer
        assert uuid.UUID(answer.text)
        return self.outcome(answer.text, url)

    def outcome(self, task: str, url: str = "") -> Any:
        """The response of a submission, when it is there."""

        def poll() -> Answer | None:
            target = "/groupmanager?getVirtualClusterResponse"
            answer = self.ask(url or self.leader, "POST", target, task)
            assert answer.status == 200
            return answer if answer.text else None

        return self.until(poll, "the response").of("VirtualClusterSubmissionResponse")

    def metadata(self, vm: Any, url: str = "") -> Any:
        """All about a VM, by its location."""
        body = {"virtualMachineLocation": vm["virtualMachineLocation"]}
        headers = {"Accept": "application/json"}
        target = "/groupmanager?getVirtualMachineMetaData"
        return self.ask(url or self.leader, "POST", target, body, headers).of(
            "VirtualMachineMetaData"
        )

    def wait_for_status(self, vm: Any, status: str) -> None:
        self.until(lambda: self.metadata(vm)["status"] == status, f"it is {status}")


def read(response: HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return make_answer(response.status, headers, response.read())


def read_next(stream: BinaryIO) -> Answer:
    """The next answer on a connection that stays open."""
    version, status, *_ = stream.readline().split(b" ", 2)
    assert version == b"HTTP/1.1"
    headers: dict[str, str] = {}
    while line := stream.readline().strip().decode():
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    body = stream.read(int(headers.get("content-length", "0")))
    return make_answer(int(status), headers, body)


def make_answer(status: int, headers: dict[str, str], body: bytes) -> Answer:
    label = headers.get("content-type", "").partition(";")[0]
    return Answer(status, label, headers, body.decode())


@pytest.fixture
def wire(live_cluster: Cluster) -> Wire:
    return Wire(live_cluster)


@pytest.fixture
def names(wire: Wire) -> Iterator[Callable[[], str]]:
    """Makes names of VMs; what has one is destroyed in the end."""
    given: list[str] = []

    def fresh() -> str:
        given.append(f"legacy-{uuid.uuid4().hex[:8]}")
        return given[-1]

    yield fresh
    for name in given:
        wire.ask(wire.front, "POST", "/bootstrap?destroyVirtualMachine", name)


@pytest.fixture
def vm(wire: Wire, names: Callable[[], str]) -> Any:
    """A running VM, as the answer to its submission describes it."""
    [running] = wire.start(names())
    assert running["status"] == "RUNNING"
    return running

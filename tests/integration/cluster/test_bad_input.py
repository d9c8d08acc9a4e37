"""Bad input to a living cluster: each a clear refusal, nothing half done, nothing leaked.

``unharmed`` checks after each test that neither a VM nor a lease, a name or a task is left, and
that the daemons are the same processes as before and serve.
"""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from snooze.client.sdk import (
    ClusterRequest,
    CommandRequest,
    TaskState,
    VmCommand,
    VmRequest,
    VmState,
)
from snooze.common.errors import (
    ERRORS_BY_CODE,
    Conflict,
    InvalidRequest,
    NoCapacity,
    NotFound,
)

if TYPE_CHECKING:
    from tests.integration.cluster.conftest import Reply, Rig

CLUSTERS = "/v1/virtual-clusters"
LEGACY = "/groupmanager?startVirtualCluster"
JSON = {"Content-Type": "application/json"}


def xml(name: str, inside: str = "", *, vcpus: object = 1, memory: object = 65536) -> str:
    return (
        f"<domain type='kvm'><name>{name}</name><memory unit='KiB'>{memory}</memory>"
        f"<vcpu>{vcpus}</vcpu><os><type>hvm</type></os>{inside}</domain>"
    )


def one(template: str, **fields: object) -> str:
    return json.dumps({"vms": [{"libvirt_xml": template, **fields}]})


@pytest.fixture(autouse=True)
def unharmed(rig: "Rig") -> Iterator[None]:
    before = rig.client.cluster()
    tasks = {task.id for task in rig.client.tasks()}
    yield
    after = rig.client.cluster()
    assert (after.leader_id, after.epoch) == (before.leader_id, before.epoch)
    assert all(daemon.runs and daemon.is_ready for daemon in rig.cluster)
    left = [vm for vm in rig.living() if vm.state is not VmState.FAILED]
    assert left == []
    assert rig.domains() == []
    assert all(host.reserved.cpu_cores == 0 for host in rig.client.hosts())
    new = [task for task in rig.client.tasks() if task.id not in tasks]
    assert all(task.ended_ms for task in new)
    for daemon in rig.cluster:
        assert "Traceback" not in daemon.log(), daemon.name
    # Names and leases are free: the whole subnet can be taken.
    rig.submit(rig.vms("probe", 1))
    rig.client.wait(rig.client.destroy("probe-0"), check=True)


def refused(reply: "Reply", status: int, code: str) -> str:
    """The sentence of a refusal in our form."""
    assert reply.status == status, reply
    assert reply.headers["content-type"].startswith("application/json")
    error = reply.json["error"]
    assert error["code"] == code
    assert len(error["message"]) > 10
    assert "Traceback" not in reply.text
    sentence: str = error["message"]
    return sentence + "".join(problem["message"] for problem in error.get("problems", ()))


def no_task(rig: "Rig", tasks: int) -> None:
    assert len(rig.client.tasks()) == tasks, "what was refused is no task"


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"vms":' * 5_000,
        b'{"vms": {}}',
        b'{"vms": [5]}',
        b'{"vms": [{"name": ["a"], "image": "tiny"}]}',
        b'{"vms": [{"name": "a", "image": "tiny", "vcpus": "two"}]}',
        b'{"vms": [{"name": "a", "image": "tiny", "memory_kib": 1e400}]}',
        b'{"vms": [{"name": "a", "image": "tiny", "vcpus": 1.5}]}',
        b'{"vms": [{"name": "a", "image": "tiny", "memory_kib": 99999999999999999999999}]}',
        b'{"vms": [{"name": "a", "imgae": "tiny"}]}',
        b'{"vms": [], "extra": 1}',
        b'{"vms": []}',
        b"{'vms': []}",
        b'{"vms": [NaN]}',
    ],
    ids=range(19),
)
def test_bodies_that_are_no_submission(rig: "Rig", body: bytes) -> None:
    tasks = len(rig.client.tasks())
    for daemon in (rig.fronts[0], *rig.managers[:2]):
        refused(rig.call(daemon, "POST", CLUSTERS, body), 422, "invalid_request")
        legacy = rig.call(daemon, "POST", LEGACY, body, JSON)
        assert legacy.status in (200, 415), legacy
        assert legacy.status == 415 or legacy.text == "", "no task id"
    no_task(rig, tasks)


def test_a_body_of_64_mb_is_refused_before_it_is_read(rig: "Rig") -> None:
    size = 64 * 1024 * 1024
    for daemon in (rig.fronts[0], *rig.leaders()):
        for target in (CLUSTERS, LEGACY):
            head = (
                f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {size}\r\n\r\n"
            )
            answer = exchange(daemon.address, head.encode() + b" " * 65536)
            assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]
        head = f"POST {CLUSTERS} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        answer = exchange(daemon.address, head.encode(), *[chunk] * 64)
        assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]


def exchange(address: str, *pieces: bytes) -> bytes:
    """Send pieces until the other side has had enough; what it says until it closes."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        with suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        answer = b""
        with suppress(ConnectionError):
            while b"\r\n\r\n" not in answer:
                received = connection.recv(65536)
                if not received:
                    break
                answer += received
        return answer


def test_100_000_vms_are_too_many(rig: "Rig") -> None:
    tasks = len(rig.client.tasks())
    vms = [{"name": f"many-{n}", "image": "tiny"} for n in range(100_000)]
    reply = rig.call(rig.fronts[0], "POST", CLUSTERS, json.dumps({"vms": vms}))
    assert "100000 VMs in one request; the most is 1000" in refused(reply, 422, "invalid_request")
    templates = [{"name": f"many-{n}", "imageId": "tiny"} for n in range(100_000)]
    body = json.dumps({"virtualMachineTemplates": templates})
    legacy = rig.call(rig.fronts[0], "POST", LEGACY, body, JSON)
    assert (legacy.status, legacy.text) == (200, "")
    assert "the most is 1000" in legacy.headers["x-snooze-error"]
    no_task(rig, tasks)


def test_millions_of_empty_vms_do_not_stop_the_leader(rig: "Rig") -> None:
    """As large as a body may be, of what takes longest to read."""
    listed = b"[" + b"{}," * 5_000_000 + b"{}]"
    reply = rig.call(rig.fronts[0], "POST", CLUSTERS, b'{"vms":' + listed + b"}")
    assert "objects" in refused(reply, 422, "invalid_request")
    body = b'{"virtualMachineTemplates":' + listed + b"}"
    assert rig.call(rig.fronts[0], "POST", LEGACY, body, JSON).status == 415


# ---------------------------------------------------------------- VMs that cannot be


@pytest.mark.parametrize(
    ("vm", "said"),
    [
        ({"name": "a", "image": "tiny", "vcpus": 0}, "vCPU"),
        ({"name": "a", "image": "tiny", "vcpus": -1}, "cpu"),
        ({"name": "a", "image": "tiny", "memory_kib": -5}, "memory"),
        ({"name": "a", "image": "tiny", "memory_kib": 2**62}, "memory"),
        ({"name": "a", "image": "tiny", "vcpus": 2**31}, "cpu"),
        ({"name": "a", "image": "tiny", "rx_kib_s": -1.0}, "rx"),
        ({"name": "", "image": "tiny"}, "name"),
        ({"name": "a/b", "image": "tiny"}, "name"),
        ({"name": "a" * 10_000, "image": "tiny"}, "name"),
        ({"name": "a\nb", "image": "tiny"}, "name"),
        ({"name": "a"}, "image"),
        ({"name": "a", "image": "../../etc/passwd"}, "image"),
        ({"name": "a", "image": "no-such-image"}, "no host has an image called"),
        ({"libvirt_xml": xml("a", memory=-1)}, "memory"),
        ({"libvirt_xml": xml("a", memory="much")}, "memory"),
        ({"libvirt_xml": xml("a", vcpus=0)}, "vCPU"),
        ({"libvirt_xml": xml("")}, "name"),
        ({"libvirt_xml": "<domain"}, "XML"),
        ({"libvirt_xml": "<network><name>a</name></network>"}, "domain"),
        ({"libvirt_xml": xml("a"), "vcpus": 3}, "template"),
        ({"libvirt_xml": xml("a"), "host": "never-was"}, "never-was"),
        (
            {"libvirt_xml": "<!DOCTYPE d [<!ENTITY a 'b'>]>" + xml("a", "<title>&a;</title>")},
            "",
        ),
        (
            {"libvirt_xml": "<!DOCTYPE d SYSTEM 'file:///etc/passwd'>" + xml("a")},
            "",
        ),
        ({"libvirt_xml": xml("a", "<a>" * 50_000 + "</a>" * 50_000)}, ""),
        ({"libvirt_xml": xml("a", "<metadata>" + "x" * 12_000_000 + "</metadata>")}, ""),
        (
            {
                "libvirt_xml": xml(
                    "a",
                    "<devices><disk type='file'><source file='/etc/shadow'/>"
                    "<target dev='vda'/></disk></devices>",
                )
            },
            "/etc/shadow",
        ),
        (
            {"libvirt_xml": xml("a", "<devices><emulator>/bin/sh</emulator></devices>")},
            "/bin/sh",
        ),
        (
            {
                "libvirt_xml": xml(
                    "a",
                    "<devices><hostdev mode='subsystem' type='usb'><source>"
                    "<address bus='1' device='1'/></source></hostdev></devices>",
                )
            },
            "host",
        ),
        (
            {
                "libvirt_xml": "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/"
                "qemu/1.0'><name>a</name><memory>65536</memory><qemu:commandline>"
                "<qemu:arg value='-s'/></qemu:commandline></domain>"
            },
            "command",
        ),
    ],
    ids=range(29),
)
def test_a_bad_vm_spoils_the_cluster_that_it_is_in(
    rig: "Rig", vm: dict[str, Any], said: str
) -> None:
    """Validated as a whole before anything starts; the original's call starts the others."""
    tasks = len(rig.client.tasks())
    good = {"libvirt_xml": xml("good")}
    reply = rig.call(rig.fronts[0], "POST", CLUSTERS, json.dumps({"vms": [good, vm]}))
    status = 422 if reply.status != 404 else 404
    sentence = refused(reply, status, "invalid_request" if status == 422 else "not_found")
    assert said in sentence
    problems = reply.json["error"].get("problems", [])
    assert all(problem["where"].startswith("vms[1]") for problem in problems)
    no_task(rig, tasks)
    assert rig.domains() == []


def test_billion_laughs_cost_nothing(rig: "Rig") -> None:
    levels = "".join(
        f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" if n else "<!ENTITY l0 'ha'>" for n in range(12)
    )
    bomb = f"<!DOCTYPE d [{levels}]>" + xml("bomb", "<title>&l11;</title>")
    started_s = time.monotonic()
    reply = rig.call(rig.fronts[0], "POST", CLUSTERS, one(bomb))
    refused(reply, 422, "invalid_request")
    assert time.monotonic() - started_s < 20, "expanding it would take for ever"
    body = json.dumps({"virtualMachineTemplates": [{"libVirtTemplate": bomb}]})
    task = rig.call(rig.fronts[0], "POST", LEGACY, body, JSON)
    if task.text:  # the original's way: a task, whose VM failed

        def outcome() -> Any:
            poll = "/groupmanager?getVirtualClusterResponse"
            answer = rig.call(rig.fronts[0], "POST", poll, task.text)
            return answer.json if answer.text else None

        [vm] = rig.until(outcome, "the response")["virtualMachineMetaData"]
        assert (vm["status"], vm["errorCode"]) == ("ERROR", "INVALID_SUBMISSION_RESPONSE")


def test_more_than_any_host_has(rig: "Rig") -> None:
    """The task says it, and holds nothing."""
    for vm in (xml("huge", memory=rig.HOST_MEMORY_KIB + 1), xml("wide", vcpus=rig.HOST_CPUS + 1)):
        task = rig.client.submit([VmRequest(libvirt_xml=vm)])
        with pytest.raises(NoCapacity):
            rig.client.wait(task, check=True)


def test_duplicate_names(rig: "Rig") -> None:
    twice = [VmRequest(libvirt_xml=xml("twin")), VmRequest(libvirt_xml=xml("twin"))]
    with pytest.raises(InvalidRequest) as caught:
        rig.client.submit(twice)
    assert "'twin' is also the name of vms[0]" in caught.value.problems[0].message
    rig.submit([VmRequest(libvirt_xml=xml("taken"))])
    with pytest.raises(InvalidRequest) as caught:
        rig.client.submit([VmRequest(libvirt_xml=xml("taken"))])
    assert "'taken' exists" in caught.value.problems[0].message
    rig.client.wait(rig.client.destroy("taken"), check=True)
    rig.submit([VmRequest(libvirt_xml=xml("taken"))])  # free again
    rig.client.wait(rig.client.destroy("taken"), check=True)


def test_more_vms_than_addresses(rig: "Rig") -> None:
    """The subnet has 253: all or nothing, unless the client takes what there is."""
    crowd = rig.vms("crowd", 300, memory_kib=1024)
    with pytest.raises(NoCapacity, match="address"):
        rig.client.submit(crowd)
    assert rig.living() == []
    task = rig.client.wait(rig.client.submit(ClusterRequest(crowd, partial=True)))
    assert task.state is TaskState.PARTIAL or task.state is TaskState.FAILED
    told = [vm.error.message for vm in task.vms if vm.error is not None]
    assert any("every address" in message for message in told)
    ends = [rig.client.destroy(vm.name) for vm in rig.living() if vm.state is VmState.RUNNING]
    for end in ends:
        rig.client.wait(end, check=True)


# ---------------------------------------------------------------- commands


def test_commands_that_cannot_be(rig: "Rig") -> None:
    [vm] = rig.submit([VmRequest(libvirt_xml=xml("subject"))]).vms
    elsewhere = next(host for host in rig.client.hosts() if host.id != vm.host_id)
    rig.client.wait(rig.client.suspend("subject"), check=True)
    resize, migrate = CommandRequest(vcpus=1), CommandRequest(host=elsewhere.id)
    for command, request in (
        (VmCommand.REBOOT, None),
        (VmCommand.SHUTDOWN, None),
        (VmCommand.RESIZE, resize),
        (VmCommand.MIGRATE, migrate),
    ):
        with pytest.raises(Conflict, match="paused"):
            rig.client.command("subject", command, request)
    assert rig.client.vm("subject").state is VmState.PAUSED
    rig.client.wait(rig.client.resume("subject"), check=True)

    with pytest.raises(Conflict):
        rig.client.wait(rig.client.migrate("subject", vm.host_id), check=True)
    with pytest.raises(NotFound, match="never-was"):
        rig.client.wait(rig.client.migrate("subject", "never-was"), check=True)
    for change in ({}, {"vcpus": 0}, {"memory_kib": -1}, {"vcpus": 2**40}, {"rx_kib_s": -2.0}):
        path = "/v1/vms/subject/resize?wait_s=30"
        reply = rig.call(rig.fronts[0], "POST", path, json.dumps(change))
        if reply.status == 200:
            reply_error = reply.json["error"]
            assert reply.json["state"] == TaskState.FAILED
            assert reply_error["code"] in {NoCapacity.code, Conflict.code}
        else:
            refused(reply, 422, "invalid_request")
    now = rig.client.vm("subject")
    assert (now.state, now.host_id, now.demand) == (VmState.RUNNING, vm.host_id, now.demand)
    assert now.demand.cpu_cores == 1

    front = rig.fronts[0]
    for status, code, method, path, body in (
        (404, "not_found", "POST", "/v1/vms/never-was/suspend", None),
        (404, "not_found", "POST", "/v1/vms/subject/explode", None),
        (404, "not_found", "GET", "/v1/vms/never-was", None),
        (404, "not_found", "GET", "/v1/hosts/never-was", None),
        (404, "not_found", "GET", "/v1/tasks/never-was", None),
        (404, "not_found", "GET", "/v1/nothing", None),
        (422, "invalid_request", "POST", "/v1/vms/subject/resize", b"{"),
        (422, "invalid_request", "POST", "/v1/vms/subject/resize", b'{"vcpus":"many"}'),
        (422, "invalid_request", "POST", "/v1/vms/subject/suspend?wait_s=soon", None),
        (422, "invalid_request", "POST", f"{CLUSTERS}?wait_s=1e9", b"{}"),
        (422, "invalid_request", "GET", "/v1/events?after=-1", None),
        (422, "invalid_request", "GET", "/v1/tasks?limit=999999999999", None),
    ):
        assert code in ERRORS_BY_CODE
        refused(rig.call(front, method, path, body), status, code)
    refused(rig.call(front, "DELETE", "/v1/vms/subject"), 405, "invalid_request")
    assert rig.client.vm("subject").state is VmState.RUNNING
    rig.client.wait(rig.client.destroy("subject"), check=True)


# ---------------------------------------------------------------- clients that misbehave


def test_a_client_that_disconnects_gets_what_it_asked_for_once(rig: "Rig") -> None:
    """It cannot know whether it happened; with its key it asks again and learns."""
    body = one(xml("hasty"))
    head = (
        f"POST {CLUSTERS} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: hasty\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )
    host, port = rig.fronts[0].address.split(":")
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(head.encode())
    task = rig.submit([VmRequest(libvirt_xml=xml("hasty"))], key="hasty")
    assert [vm.name for vm in task.vms] == ["hasty"]
    assert [each.name for each in rig.domains()] == ["hasty"]
    rig.client.wait(rig.client.destroy("hasty"), check=True)


def test_half_requests_and_garbage_do_no_harm(rig: "Rig") -> None:
    body = one(xml("half"))
    head = f"POST {CLUSTERS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    everybody = [*rig.fronts, *rig.managers, *rig.hosts]
    for daemon in everybody:
        host, port = daemon.address.split(":")
        for piece in (head + body[:-5], head, "POST", "", "\0" * 1000, "GET / HTTP/9.9\r\n\r\n"):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(piece.encode())
        answer = exchange(daemon.address, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n")
        assert answer[:12] in (
            b"HTTP/1.1 400",
            b"HTTP/1.1 414",
            b"HTTP/1.1 431",
            b"HTTP/1.0 431",
        ), answer[:100]
    assert "half" not in {vm.name for vm in rig.living()}


def test_slow_clients_do_not_hinder_others(rig: "Rig") -> None:
    host, port = rig.fronts[0].address.split(":")
    slow = [socket.create_connection((host, int(port)), timeout=10) for _ in range(200)]
    try:
        for connection in slow:
            connection.sendall(b"POST /v1/virtual-clusters HTTP/1.1\r\nHost: x\r\nContent-Le")
        rig.submit([VmRequest(libvirt_xml=xml("quick"))])
        rig.client.wait(rig.client.destroy("quick"), check=True)
    finally:
        for connection in slow:
            connection.close()


def test_strangers_on_the_ports_between_daemons(rig: "Rig") -> None:
    """The monitoring port speaks frames; whoever speaks anything else is cut off."""
    tree = rig.client.hierarchy()
    for branch in tree.managers:
        description = rig.call(
            rig.fronts[0], "POST", "/groupmanager?getGroupManagerDescription", branch.manager.id
        ).json
        address = description["listenSettings"]["monitoringDataAddress"]
        for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\0" * 64, b""):
            with socket.create_connection((address["address"], address["port"]), 10) as stranger:
                stranger.sendall(noise)
    for body in (b"", b"\xc1", b"\x93" * 1000, b'{"host": 5}'):
        reply = rig.call(rig.fronts[0], "POST", "/internal/assignment", body)
        refused(reply, 422, "invalid_request")
    rig.wait_whole()

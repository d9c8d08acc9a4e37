"""How Snooze's calls are routed, labelled and refused, asked as its clients ask."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from snooze.common.errors import (
    Conflict,
    ExecutionError,
    InvalidRequest,
    NoCapacity,
    NotFound,
    NotLeader,
    RemoteTimeout,
    SnoozeError,
    StaleEpoch,
    TooBusy,
)
from snooze.common.snooze_api import (
    HostListRequest,
    MetaDataRequest,
    NetworkAddress,
    VirtualMachineLocation,
    VirtualMachineMetaData,
    encode,
)
from snooze.common.transport.http_client import HttpClient, HttpReply
from snooze.common.transport.http_server import HttpServer
from snooze.common.transport.legacy import (
    LegacyResource,
    ResultKind,
    get,
    post,
    post_int,
    post_message,
    post_text,
)

ERRORS: dict[str, Exception] = {
    "missing": NotFound("no VM\r\nX-Evil: 1 ü"),
    "conflict": Conflict("it is paused"),
    "full": NoCapacity("no room"),
    "stale": StaleEpoch("deposed"),
    "invalid": InvalidRequest("negative"),
    "half": ExecutionError("half done"),
    "timeout": RemoteTimeout("no answer"),
    "busy": TooBusy("queue full", retry_after_s=2.2),
    "leaderless": NotLeader("no leader yet"),
    "bug": ZeroDivisionError("a bug with a secret in it"),
}


async def nothing() -> None:
    return None


async def address() -> NetworkAddress:
    return NetworkAddress("10.0.0.1", 5000)


async def yes() -> bool:
    return True


async def task_id() -> str:
    return "a4fba1c6-4c8f"


async def addresses(request: HostListRequest) -> list[NetworkAddress]:
    return [NetworkAddress(str(request.start), request.limit)]


async def meta_data(request: MetaDataRequest) -> VirtualMachineMetaData:
    return VirtualMachineMetaData(virtual_machine_location=request.virtual_machine_location)


async def is_a(vm: str) -> bool:
    return vm == "a"


async def twice(number: int) -> str:
    return str(2 * number)


async def raise_text(name: str) -> str:
    raise ERRORS[name]


async def raise_boolean(name: str) -> bool:
    raise ERRORS[name]


async def raise_get() -> None:
    raise NotFound("nobody")


METHODS = [
    get("getNothing", ResultKind.MESSAGE, nothing),
    get("getAddress", ResultKind.MESSAGE, address),
    get("getFailure", ResultKind.MESSAGE, raise_get),
    get("both", ResultKind.TEXT, task_id),
    post("both", ResultKind.BOOLEAN, yes),
    post("postNothing", ResultKind.MESSAGE, nothing),
    post("start", ResultKind.TEXT, task_id),
    post_text("isA", ResultKind.BOOLEAN, is_a),
    post_int("twice", ResultKind.TEXT, twice),
    post_message("list", HostListRequest, ResultKind.MESSAGE, addresses),
    post_message(
        "getVirtualMachineMetaData",
        MetaDataRequest,
        ResultKind.MESSAGE,
        meta_data,
        unlabelled=True,
    ),
    post_text("raiseText", ResultKind.TEXT, raise_text),
    post_text("raiseBoolean", ResultKind.BOOLEAN, raise_boolean),
]


@pytest.fixture
async def port() -> AsyncIterator[int]:
    app = web.Application()
    LegacyResource("/groupmanager", METHODS).add_to(app)
    server = HttpServer(app, "127.0.0.1", 0)
    await server.start()
    yield server.port
    await server.stop()


async def ask(
    port: int,
    verb: str,
    query: str,
    body: bytes = b"",
    target: str = "/groupmanager",
    **headers: str,
) -> tuple[int, str | None, bytes, dict[str, str]]:
    """Status, label, body and headers; sends exactly the headers given and none of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    given = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    writer.write(
        f"{verb} {target}?{query} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{given}"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    found = {line.partition(": ")[0]: line.partition(": ")[2] for line in lines[1:]}
    return int(lines[0].split()[1]), found.get("Content-Type"), content, found


JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


async def test_results(port: int) -> None:
    assert (await ask(port, "GET", "getNothing"))[:3] == (204, None, b"")
    status, _, body, _ = await ask(port, "POST", "postNothing")
    assert (status, body) == (200, b"")
    answer = encode(NetworkAddress("10.0.0.1", 5000))
    assert (await ask(port, "GET", "getAddress"))[:3] == (200, JSON, answer)
    assert (await ask(port, "POST", "both"))[:3] == (200, JSON, b"true")
    assert (await ask(port, "GET", "both"))[2] == b"a4fba1c6-4c8f"
    listed = await ask(port, "POST", "list", b'{"limit":"5","start":"x"}')
    assert listed[:3] == (200, JSON, b'[{"address":"x","port":5}]')


@pytest.mark.parametrize(
    ("accept", "label"),
    [
        ({}, JSON),
        ({"Accept": "*/*"}, JSON),
        ({"Accept": "application/json"}, JSON),
        ({"Accept": "text/plain;q=0.5, application/json"}, JSON),
        ({"Accept": "text/html"}, JSON),
        ({"Accept": "text/plain"}, "text/plain"),
        ({"Accept": "text/html, text/*;q=0.1"}, "text/plain"),
    ],
)
async def test_bare_text_is_labelled_as_the_original_does(
    port: int, accept: dict[str, str], label: str
) -> None:
    status, found, body, _ = await ask(port, "POST", "start", b"", **accept)
    assert (status, body) == (200, b"a4fba1c6-4c8f")
    assert found is not None
    assert found.startswith(label)


async def test_meta_data_is_not_labelled_json_for_who_sends_no_accept(port: int) -> None:
    body = (
        b'{"virtualMachineLocation":{"virtualMachineId":"debian1"},"numberOfMonitoringEntries":10}'
    )
    query = "getVirtualMachineMetaData"
    expected = VirtualMachineMetaData(
        virtual_machine_location=VirtualMachineLocation(virtual_machine_id="debian1")
    )
    status, label, answer, _ = await ask(port, "POST", query, body)
    assert (status, answer) == (200, encode(expected))
    assert label is not None
    assert label.startswith("text/plain")
    assert (await ask(port, "POST", query, body, Accept="*/*"))[1] == JSON
    assert (await ask(port, "POST", query, body, Accept=JSON))[1] == JSON


@pytest.mark.parametrize(
    "query",
    [
        "isA",
        "isA=",
        "isA=yes",
        "x=1&isA&limit=5",
        "twice%3D&isA",
        "%69sA",
        "getAddress&isA",
        "&&isA",
    ],
)
async def test_the_method_is_a_bare_key(port: int, query: str) -> None:
    assert (await ask(port, "POST", query, b"a"))[:3] == (200, JSON, b"true")
    assert (await ask(port, "POST", query, b"b", target="groupmanager"))[2] == b"false"


@pytest.mark.parametrize(
    ("verb", "query"),
    [
        ("POST", ""),
        ("POST", "unknown"),
        ("POST", "isa"),
        ("POST", "x=isA"),
        ("POST", "getAddress"),
        ("GET", "isA"),
        ("PUT", "isA"),
        ("DELETE", "getAddress"),
        ("OPTIONS", "getAddress"),
        ("BREW", "getAddress"),
    ],
)
async def test_no_such_method(port: int, verb: str, query: str) -> None:
    status, _, body, headers = await ask(port, verb, query, b"a")
    assert status == 405
    assert headers["Allow"] == "GET,POST"
    assert body.count(b"\n") == 1


async def test_a_wrong_verb_is_told_the_right_one(port: int) -> None:
    assert b"getAddress is a GET" in (await ask(port, "POST", "x=1&getAddress", b""))[2]
    assert b"no such method" in (await ask(port, "POST", "get%0AAddress", b""))[2]


async def test_other_paths_are_404(port: int) -> None:
    for target in ("/", "/bootstrap", "/groupmanager/x", "/Groupmanager"):
        assert (await ask(port, "POST", "isA", b"a", target=target))[0] == 404


@pytest.mark.parametrize(
    ("label", "status"),
    [
        ({}, 200),
        ({"Content_Type": ""}, 200),
        ({"Content_Type": "application/json"}, 200),
        ({"Content_Type": "Application/JSON; charset=UTF-8"}, 200),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-java-serialized-object"}, 415),
    ],
)
async def test_labels_of_bodies(port: int, label: dict[str, str], status: int) -> None:
    assert (await ask(port, "POST", "list", b"{}", **label))[0] == status
    # A bare text or integer is read under any label: curl's default is a form.
    assert (await ask(port, "POST", "isA", b"a", **label))[2] == b"true"
    assert (await ask(port, "POST", "twice", b"5", **label))[2] == b"10"


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("list", b""),
        ("list", b"null"),
        ("list", b"[]"),
        ("list", b'{"limit":"five"}'),
        ("list", b"{" * 5000),
        ("list", b"\xff"),
        ("isA", b""),
        ("isA", b"\xff"),
        ("isA", b"x" * 10_000),
        ("twice", b""),
        ("twice", b"five"),
        ("twice", b"9" * 100),
    ],
)
async def test_unreadable_bodies(port: int, query: str, body: bytes) -> None:
    status, label, answer, _ = await ask(port, "POST", query, body)
    assert (status, label) == (415, TEXT)
    assert answer.startswith(b"Unsupported Media Type: ")
    assert answer.count(b"\n") == 1


@pytest.mark.parametrize(
    "name", ["missing", "conflict", "full", "stale", "invalid", "half", "timeout"]
)
async def test_failures_are_told_as_the_original_does(port: int, name: str) -> None:
    error = ERRORS[name]
    assert isinstance(error, SnoozeError)
    status, _, body, headers = await ask(port, "POST", "raiseText", name.encode())
    assert (status, body) == (200, b"")
    assert headers["X-Snooze-Error"].startswith(f"{error.code}: ")
    assert "X-Evil" not in headers
    assert (await ask(port, "POST", "raiseBoolean", name.encode()))[:3] == (200, JSON, b"false")
    assert (await ask(port, "GET", "getFailure"))[0] == 204


@pytest.mark.parametrize(
    ("name", "retry_after", "sentence"),
    [("busy", "3", "queue full"), ("leaderless", "1", "no leader yet")],
)
async def test_come_back_later(port: int, name: str, retry_after: str, sentence: str) -> None:
    for query in ("raiseText", "raiseBoolean"):
        status, _, body, headers = await ask(port, "POST", query, name.encode())
        assert status == 503
        assert headers["Retry-After"] == retry_after
        assert body.decode() == f"Service Unavailable: {sentence}\n"


async def test_a_bug_is_logged_and_not_shown(port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    status, _, body, _ = await ask(port, "POST", "raiseText", b"bug", X_Request_Id="id-1")
    assert status == 500
    assert body == b"Internal Server Error: the log has it under id-1\n"
    assert "a secret in it" in caplog.text


def test_a_method_stands_once() -> None:
    with pytest.raises(ValueError, match="GET both twice"):
        LegacyResource("/x", [*METHODS, get("both", ResultKind.TEXT, task_id)])


async def test_the_driver_of_2013_over_one_connection(port: int) -> None:
    """As libcloud 0.12.1 writes it: no slash, no labels, no Accept."""
    async with HttpClient() as client:
        reply: HttpReply = await client.send(
            "POST",
            f"http://127.0.0.1:{port}/groupmanager?isA",
            b"a",
            timeout_s=10,
        )
        assert json.loads(reply.body) is True
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST groupmanager?start HTTP/1.1\r\nHost: 127.0.0.1:5001\r\n"
        b"Accept-Encoding: gzip,deflate\r\nUser-Agent: libcloud/0.12.1 (Snooze)\r\n"
        b"Content-Length: 2\r\n\r\n{}" * 2
    )
    async with asyncio.timeout(20):
        for _ in range(2):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(13) == b"a4fba1c6-4c8f"
    writer.close()

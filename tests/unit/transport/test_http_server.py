"""The HTTP server against raw sockets: odd targets, bad framing, greedy and slow clients."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from snooze.common.errors import Conflict, Problem, TooBusy
from snooze.common.transport.http_server import HttpLimits, HttpServer, current_cause

Start = Callable[..., Awaitable[HttpServer]]


async def echo(request: web.Request) -> web.Response:
    """What arrived: verb, path, query, body."""
    body = await request.read()
    text = f"{request.method} {request.path} {request.query_string} {body.decode()}"
    return web.Response(text=text)


async def fail(request: web.Request) -> web.Response:
    match request.query_string:
        case "conflict":
            raise Conflict("no", problems=[Problem("vm", "gone")])
        case "busy":
            raise TooBusy("later", retry_after_s=2.5)
        case _:
            raise ZeroDivisionError("a bug with a secret in it")


async def cause(request: web.Request) -> web.Response:
    del request
    return web.Response(text=await asyncio.create_task(ask_cause()))


async def ask_cause() -> str:
    return current_cause()


async def hang(request: web.Request) -> web.Response:
    request.app[HANGING].set()
    await request.app[RELEASE].wait()
    return web.Response(text="released")


async def large(request: web.Request) -> web.Response:
    del request
    return web.Response(body=b"x" * 50_000_000)


HANGING = web.AppKey("hanging", asyncio.Event)
RELEASE = web.AppKey("release", asyncio.Event)
CLEANED = web.AppKey("cleaned", asyncio.Event)


@pytest.fixture
async def app() -> web.Application:
    app = web.Application()
    app[HANGING] = asyncio.Event()
    app[RELEASE] = asyncio.Event()
    app[CLEANED] = asyncio.Event()
    for path in ("/groupmanager", "/echo", "/"):
        app.router.add_route("*", path, echo)
    app.router.add_get("/fail", fail)
    app.router.add_get("/cause", cause)
    app.router.add_get("/hang", hang)
    app.router.add_get("/large", large)

    async def cleaned(app: web.Application) -> None:
        app[CLEANED].set()

    app.on_cleanup.append(cleaned)
    return app


@pytest.fixture
async def start(app: web.Application) -> AsyncIterator[Start]:
    servers: list[HttpServer] = []

    async def begin(limits: HttpLimits | None = None) -> HttpServer:
        server = HttpServer(app, "127.0.0.1", 0, limits=limits)
        await server.start()
        servers.append(server)
        return server

    yield begin
    app[RELEASE].set()
    for server in servers:
        await server.stop()
        assert server.connections == 0


class Raw:
    """A client that writes bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body."""
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines[1:] if line)
            }
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return int(lines[0].split()[1]), headers, body

    async def ended(self) -> bytes:
        """All that still comes until the server closes the connection."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@pytest.fixture
async def dial() -> AsyncIterator[Callable[[HttpServer], Awaitable[Raw]]]:
    opened: list[Raw] = []

    async def connect(server: HttpServer) -> Raw:
        raw = Raw(*await asyncio.open_connection("127.0.0.1", server.port))
        opened.append(raw)
        return raw

    yield connect
    for raw in opened:
        raw.writer.close()


Dial = Callable[[HttpServer], Awaitable[Raw]]


def post(target: str, body: str = "", extra: str = "") -> bytes:
    return (
        f"POST {target} HTTP/1.1\r\nHost: h\r\n{extra}Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


# Targets


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        ("/groupmanager?startVirtualCluster", "POST /groupmanager startVirtualCluster"),
        ("groupmanager?startVirtualCluster", "POST /groupmanager startVirtualCluster"),
        ("groupmanager", "POST /groupmanager "),
        ("groupmanager?a=http://x:1/", "POST /groupmanager a=http://x:1/"),
        ("%67roupmanager?a", "POST /groupmanager a"),
        ("http://other:5000/echo?a", "POST /echo a"),
        ("/echo?a#fragment", "POST /echo a"),
    ],
)
async def test_targets(start: Start, dial: Dial, target: str, seen: str) -> None:
    raw = await dial(await start())
    for body in ("first", "second"):
        raw.send(post(target, body))
        status, _, answer = await raw.answer()
        assert (status, answer.decode()) == (200, f"{seen} {body}")


@pytest.mark.parametrize(
    "target",
    [
        "",
        "http:echo",
        "http:///echo",
        "localhost:5000",
        "?startVirtualCluster",
        "*",
        "+x",
        "ü",
        "group\x01manager",
        "a:b",
        "a b",
    ],
)
async def test_other_targets_are_refused(start: Start, dial: Dial, target: str) -> None:
    raw = await dial(await start())
    raw.send(post(target, "body") + post("/echo", "never"))
    status, headers, body = await raw.answer()
    assert status == 400
    assert headers["content-type"].startswith("text/plain")
    assert body.count(b"\n") == 1
    assert b"never" not in await raw.ended()


MIXED = [
    post("groupmanager?a", "one"),
    post("/groupmanager?b", "two"),
    b"GET groupmanager?c HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST groupmanager?d HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nth\r\n3;x=y\r\nree\r\n0\r\nTrailer: t\r\n\r\n",
    post("http://h/groupmanager?e", "POST groupmanager?x HTTP/1.1\r\n\r\n"),
    b"POST groupmanager?f HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nfour",
    b"POST groupmanager?g HTTP/1.0\r\nContent-Length: 4\r\n\r\nlast",
]
MIXED_SEEN = [
    "POST /groupmanager a one",
    "POST /groupmanager b two",
    "GET /groupmanager c ",
    "POST /groupmanager d three",
    "POST /groupmanager e POST groupmanager?x HTTP/1.1\r\n\r\n",
    "POST /groupmanager f four",
    "POST /groupmanager g last",
]


async def test_mixed_pipelined_requests(start: Start, dial: Dial) -> None:
    raw = await dial(await start())
    raw.send(b"".join(MIXED))
    assert [(await raw.answer())[2].decode() for _ in MIXED] == MIXED_SEEN
    assert await raw.ended() == b""


async def test_mixed_requests_cut_at_every_byte(start: Start, dial: Dial) -> None:
    server = await start()
    data = b"".join(MIXED)
    for cut in range(1, len(data)):
        raw = await dial(server)
        raw.send(data[:cut])
        await raw.writer.drain()
        await asyncio.sleep(0)
        raw.send(data[cut:])
        assert [(await raw.answer())[2].decode() for _ in MIXED] == MIXED_SEEN
        raw.writer.close()


async def test_mixed_requests_byte_by_byte(start: Start, dial: Dial) -> None:
    raw = await dial(await start())
    for byte in b"".join(MIXED):
        raw.send(bytes([byte]))
        await raw.writer.drain()
        await asyncio.sleep(0)
    assert [(await raw.answer())[2].decode() for _ in MIXED] == MIXED_SEEN


async def test_many_pipelined_requests(start: Start, dial: Dial) -> None:
    raw = await dial(await start())
    for number in range(500):
        raw.send(post(f"groupmanager?n{number}", str(number)))
    for number in range(500):
        assert (await raw.answer())[2].decode() == f"POST /groupmanager n{number} {number}"


# Framing


SMUGGLING = [
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "Content-Length: 5, 5\r\n\r\nhello",
    "Content-Length: +5\r\n\r\nhello",
    "Content-Length: -5\r\n\r\nhello",
    "Content-Length: 0x5\r\n\r\nhello",
    "Content-Length: \u0665\r\n\r\nhello",
    "Content-Length : 5\r\n\r\nhello",
    "Content-Length: 5\r\n folded: x\r\n\r\nhello",
    " Content-Length: 5\r\n\r\nhello",
    "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: identity\r\n\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
    "X: a\x00b\r\n\r\n",
    "X: a\rb\r\n\r\n",
    "X\x00: a\r\n\r\n",
    "No colon\r\n\r\n",
    ": empty\r\n\r\n",
]


@pytest.mark.parametrize("target", ["/echo", "echo"])
@pytest.mark.parametrize("rest", SMUGGLING)
async def test_ambiguous_framing_is_refused(
    start: Start, dial: Dial, target: str, rest: str
) -> None:
    raw = await dial(await start())
    raw.send(f"POST {target} HTTP/1.1\r\nHost: h\r\n{rest}".encode())
    raw.send(b"GET /echo?smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
    status, _, _ = await raw.answer()
    assert status == 400
    assert b"smuggled" not in await raw.ended()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /echo\r\n\r\n",
        b"GET /echo HTTP/9\r\n\r\n",
        b"GET /echo FTP/1.1\r\n\r\n",
        b"G\x00T /echo HTTP/1.1\r\n\r\n",
        b"GET /echo HTTP/1.1\r\n\r\n",  # No Host.
        b"GET /echo HTTP/1.1\nHost: h\n\n",
        b"\xff\xfe\xfd\r\n\r\n",
        b"{}\r\n\r\n",
    ],
)
async def test_garbage(start: Start, dial: Dial, data: bytes) -> None:
    server = await start()
    raw = await dial(server)
    raw.send(data)
    status, _, body = await raw.answer()
    assert status == 400
    assert body.endswith(b"\n")
    assert await raw.ended() == b""
    raw = await dial(server)
    raw.send(post("/echo", "next"))
    assert (await raw.answer())[0] == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /echo?" + b"x" * 20_000, 431),
        (b"GET /echo?" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 431),
        (b"GET /echo HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 20_000, 431),
        (b"GET /echo HTTP/1.1\r\nHost: h\r\n" + b"X: x\r\n" * 500, 400),
        (
            b"GET /echo HTTP/1.1\r\nHost: h\r\n" + b"".join(b"X%d: x\r\n" % n for n in range(9999)),
            400,
        ),
    ],
)
async def test_header_bombs(start: Start, dial: Dial, data: bytes, status: int) -> None:
    raw = await dial(await start())
    raw.send(data)
    assert (await raw.answer())[0] == status
    assert await raw.ended() == b""


# Bodies


async def test_bodies_beyond_the_bound(start: Start, dial: Dial) -> None:
    server = await start(HttpLimits(max_body_bytes=1000))
    announced = await dial(server)
    announced.send(post("echo", "x" * 1000))
    assert (await announced.answer())[0] == 200
    announced.send(b"POST echo HTTP/1.1\r\nHost: h\r\nContent-Length: 68719476736\r\n\r\nx")
    status, _, body = await announced.answer()
    assert status == 413
    assert b"1000" in body
    chunked = await dial(server)
    chunked.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunked.send(b"400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n")
    assert (await chunked.answer())[0] == 413
    bomb = gzip.compress(b"x" * 10_000_000)[:950]
    packed = await dial(server)
    packed.send(
        b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: %d\r\n\r\n" % len(bomb) + bomb
    )
    assert (await packed.answer())[0] in (400, 413)


async def test_a_large_body_is_answered_while_it_is_still_being_sent(
    start: Start, dial: Dial
) -> None:
    server = await start(HttpLimits(max_body_bytes=1000))
    raw = await dial(server)
    raw.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 67108864\r\n\r\n")
    raw.send(b"x" * 1_000_000)
    assert (await raw.answer())[0] == 413


async def test_an_expected_body_is_asked_for(start: Start, dial: Dial) -> None:
    raw = await dial(await start())
    raw.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    async with asyncio.timeout(20):
        assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    raw.send(b"ok")
    assert (await raw.answer())[2] == b"POST /echo  ok"


# Slow, many and vanishing clients


QUICK = HttpLimits(head_timeout_s=0.3, body_timeout_s=0.3, write_timeout_s=0.3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST gr",
        b"GET / HTTP/1.1\r\nHost: h\r\nX-Slow: ",
        b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nslow",
        b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nslow",
    ],
)
async def test_a_client_that_stops_sending_is_cut(start: Start, dial: Dial, data: bytes) -> None:
    server = await start(QUICK)
    raw = await dial(server)
    raw.send(data)
    assert (await raw.answer())[0] == 408
    assert await raw.ended() == b""
    raw = await dial(server)
    raw.send(post("/echo", "next"))
    assert (await raw.answer())[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\nX-Slow: ",
        b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n",
    ],
)
async def test_a_client_that_drips_is_cut(start: Start, dial: Dial, head: bytes) -> None:
    raw = await dial(await start(QUICK))
    raw.send(head)
    answer = asyncio.create_task(raw.ended())
    async with asyncio.timeout(20):
        while not answer.done():
            raw.send(b"x")
            await asyncio.sleep(0.05)
    assert (await answer).startswith(b"HTTP/1.1 408") or await answer == b""


async def test_a_body_that_keeps_coming_is_not_cut(start: Start, dial: Dial) -> None:
    limits = HttpLimits(head_timeout_s=0.3, body_timeout_s=0.6, min_body_bytes_s=10)
    raw = await dial(await start(limits))
    raw.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(10):
        raw.send(b"x" * 100)
        await asyncio.sleep(0.1)
    assert (await raw.answer())[0] == 200


async def test_a_client_that_does_not_read_is_cut(start: Start, dial: Dial) -> None:
    server = await start(QUICK)
    raw = await dial(server)
    raw.send(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
    async with asyncio.timeout(20):
        while not server.connections:  # noqa: ASYNC110 - belongs to the code under test
            await asyncio.sleep(0.01)
        while server.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_our_own_standstill_is_not_the_clients_slowness(start: Start, dial: Dial) -> None:
    raw = await dial(await start(QUICK))
    raw.send(post("/echo", "x"))
    assert (await raw.answer())[0] == 200
    raw.send(b"POST /echo HTTP/1.1\r\n")
    await asyncio.sleep(0.1)
    time.sleep(1.0)  # noqa: ASYNC251 - the loop stands still: that is what is tested
    await asyncio.sleep(0.05)
    raw.send(b"Host: h\r\nContent-Length: 2\r\n\r\nok")
    assert (await raw.answer())[2] == b"POST /echo  ok"


async def test_an_idle_connection_that_has_asked_once_stays(start: Start, dial: Dial) -> None:
    raw = await dial(await start(QUICK))
    for _ in range(3):
        raw.send(post("/echo", "x"))
        assert (await raw.answer())[0] == 200
        await asyncio.sleep(0.5)


async def test_too_many_connections(start: Start, dial: Dial) -> None:
    server = await start(HttpLimits(max_connections=2))
    first, second = await dial(server), await dial(server)
    for raw in (first, second):
        raw.send(post("/echo", "x"))
        assert (await raw.answer())[0] == 200
    third = await dial(server)
    third.send(post("/echo", "x"))
    status, headers, _ = await third.answer()
    assert status == 503
    assert headers["retry-after"] == "1"
    assert await third.ended() == b""
    assert server.connections == 2
    first.writer.close()
    async with asyncio.timeout(20):
        while server.connections == 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    fourth = await dial(server)
    fourth.send(post("/echo", "x"))
    assert (await fourth.answer())[0] == 200


async def test_a_client_that_goes_away_harms_nobody(
    start: Start, dial: Dial, app: web.Application, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start()
    asking = await dial(server)
    asking.send(b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n")
    await app[HANGING].wait()
    asking.writer.transport.abort()
    sending = await dial(server)
    sending.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf")
    await sending.writer.drain()
    sending.writer.transport.abort()
    async with asyncio.timeout(20):
        while server.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    app[RELEASE].set()
    raw = await dial(server)
    raw.send(post("/echo", "x"))
    assert (await raw.answer())[0] == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# Errors, ids, stopping


async def test_errors_have_one_form(
    start: Start, dial: Dial, caplog: pytest.LogCaptureFixture
) -> None:
    raw = await dial(await start())
    raw.send(b"GET /fail?conflict HTTP/1.1\r\nHost: h\r\n\r\n")
    status, headers, body = await raw.answer()
    assert status == 409
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {
        "error": {
            "code": "conflict",
            "message": "no",
            "problems": [{"where": "vm", "message": "gone"}],
        }
    }
    raw.send(b"GET /fail?busy HTTP/1.1\r\nHost: h\r\n\r\n")
    status, headers, _ = await raw.answer()
    assert (status, headers["retry-after"]) == (503, "3")
    raw.send(b"GET /fail HTTP/1.1\r\nHost: h\r\nX-Request-Id: trace-1\r\n\r\n")
    status, headers, body = await raw.answer()
    assert (status, headers["x-request-id"]) == (500, "trace-1")
    assert b"secret" not in body
    assert "a secret in it" in caplog.text
    raw.send(b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n")
    status, headers, _ = await raw.answer()
    assert status == 404
    assert headers["x-request-id"]


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2:3", True), ("", False), ("x" * 65, False), ("a b", False)]
)
async def test_every_request_has_an_id(start: Start, dial: Dial, given: str, kept: bool) -> None:
    raw = await dial(await start())
    raw.send(f"GET /cause HTTP/1.1\r\nHost: h\r\nX-Request-Id: {given}\r\n\r\n".encode())
    _, headers, body = await raw.answer()
    assert headers["x-request-id"] == body.decode()
    assert (body.decode() == given) is kept
    assert current_cause() == ""


async def test_the_access_log(start: Start, dial: Dial, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "snooze.common.transport.http_server")
    raw = await dial(await start())
    raw.send(b"GET echo?a HTTP/1.1\r\nHost: h\r\nX-Request-Id: one\r\n\r\n")
    await raw.answer()
    (record,) = [record for record in caplog.records if record.message == "request"]
    logged = record.__dict__
    assert (logged["status"], logged["cause"], logged["target"]) == (200, "one", "/echo?a")
    assert logged["duration_ms"] >= 0


async def test_stopping_lets_requests_finish(
    start: Start, dial: Dial, app: web.Application
) -> None:
    server = await start()
    port = server.port
    idle, busy = await dial(server), await dial(server)
    busy.send(b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n")
    await app[HANGING].wait()
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0)
    app[RELEASE].set()
    assert (await busy.answer())[2] == b"released"
    await stopping
    assert await idle.ended() == b""
    assert app[CLEANED].is_set()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    await server.stop()


async def test_stopping_does_not_wait_for_ever(
    start: Start, dial: Dial, app: web.Application
) -> None:
    server = await start(HttpLimits(stop_timeout_s=0.2))
    busy = await dial(server)
    busy.send(b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n")
    await app[HANGING].wait()
    async with asyncio.timeout(10):
        await server.stop()
    assert await busy.ended() == b""
    assert app[CLEANED].is_set()


async def test_an_address_in_use(start: Start) -> None:
    server = await start()
    other = HttpServer(web.Application(), "127.0.0.1", server.port)
    with pytest.raises(OSError, match="in use"):
        await other.start()
    await other.stop()

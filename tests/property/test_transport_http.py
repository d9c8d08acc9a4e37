"""Requests in any mixture, cut anywhere, arrive as they were meant; garbage harms nobody."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from snooze.common.transport.http_server import HttpServer


async def echo(request: web.Request) -> web.Response:
    body = await request.read()
    head = f"{request.method} {request.path} {request.query_string} ".encode()
    return web.Response(body=head + body)


async def converse(talk: Callable[[int], Awaitable[None]]) -> None:
    """Run ``talk(port)`` against a server, which must then still serve and leave nothing behind."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", echo)
    server = HttpServer(app, "127.0.0.1", 0)
    await server.start()
    async with asyncio.timeout(60):
        await talk(server.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET alive HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(b"GET /alive  ")
        writer.close()
        await server.stop()
    assert server.connections == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


BODIES = st.binary(max_size=30) | st.sampled_from(
    [b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", b"0\r\n\r\n", b"\r\n\r\n", b"POST groupmanager?"]
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request, and what the server is to make of it."""
    verb = draw(st.sampled_from(["GET", "POST", "PUT"]))
    prefix = draw(st.sampled_from(["/", "", "http://h:5000/"]))
    path = draw(st.sampled_from(["groupmanager", "bootstrap", "a-b_c.d", "images/x"]))
    query = draw(st.sampled_from(["", "startVirtualCluster", "a=b&c", "url=http://x:1/y"]))
    body = draw(BODIES)
    target = f"{prefix}{path}?{query}" if query else f"{prefix}{path}"
    head = f"{verb} {target} HTTP/1.1\r\nHost: h\r\n".encode()
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(body)))
        pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    else:
        data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return data, f"{verb} /{path} {query} ".encode() + body


@settings(max_examples=60, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=8), st.lists(st.integers(1, 60), max_size=30))
def test_requests_arrive_as_they_were_meant(
    conversation: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = b"".join(request for request, _ in conversation)
        while data:
            size = cuts.pop() if cuts else len(data)
            writer.write(data[:size])
            data = data[size:]
            await writer.drain()
            await asyncio.sleep(0)
        for _, expected in conversation:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert await reader.readexactly(len(expected)) == expected
        writer.close()

    asyncio.run(converse(talk))


FRAGMENTS = st.sampled_from(
    [
        b"GET ",
        b"POST groupmanager?x",
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b"Host: h\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: keep-alive\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b"Content-Encoding: gzip\r\n",
        b"\r\n",
        b"\n",
        b"abc",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"\x00",
        b"CONNECT h:1",
        b"OPTIONS *",
        b"/",
        b"://",
        b":",
        b"\xff",
    ]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(FRAGMENTS | st.binary(max_size=8), max_size=12), min_size=1, max_size=4))
def test_garbage_harms_nobody(conversation: list[list[bytes]]) -> None:
    async def talk(port: int) -> None:
        for fragments in conversation:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(ConnectionError):
                for fragment in fragments:
                    writer.write(fragment)
                    await writer.drain()
                await asyncio.sleep(0)
                writer.write_eof()
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(0.05):
                    while line := await reader.readline():
                        if line.startswith(b"HTTP/1"):
                            assert line.split()[1] in (b"100", b"200", b"400", b"417", b"431"), line
            writer.close()

    asyncio.run(converse(talk))

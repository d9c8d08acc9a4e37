"""The HTTP client against servers that answer well, badly, late or not at all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
from aiohttp import web

from snooze.common.errors import Conflict, InvalidRequest, RemoteError, RemoteTimeout
from snooze.common.transport.codec import ENCODER, decode
from snooze.common.transport.delivery import was_sent
from snooze.common.transport.http_client import (
    JSON,
    MESSAGEPACK,
    HttpClient,
    HttpClientLimits,
    checked,
)
from snooze.common.transport.http_server import HttpLimits, HttpServer


class Order(msgspec.Struct):
    name: str
    size: int = 1


async def echo(request: web.Request) -> web.Response:
    kind = request.headers.get("Content-Type", "")
    body = await request.read()
    if kind == MESSAGEPACK:
        order = decode(Order, body)
        return web.Response(body=ENCODER.encode(order), content_type=MESSAGEPACK)
    order = msgspec.json.decode(body, type=Order)
    return web.Response(body=msgspec.json.encode(order), content_type=JSON)


async def show(request: web.Request) -> web.Response:
    del request
    return web.Response(body=b'{"name":"shown","size":2}', content_type=JSON)


async def refuse(request: web.Request) -> web.Response:
    del request
    raise Conflict("not now", retry_after_s=2)


async def nonsense(request: web.Request) -> web.Response:
    del request
    return web.Response(text="nonsense")


async def proxy_error(request: web.Request) -> web.Response:
    del request
    return web.Response(
        status=503, text="<html>\ntry later", headers={"Retry-After": "7"}, content_type="text/html"
    )


async def large(request: web.Request) -> web.Response:
    del request
    return web.Response(body=b"x" * 10_000)


async def redirect(request: web.Request) -> web.Response:
    del request
    raise web.HTTPFound("/show")


async def slow(request: web.Request) -> web.Response:
    del request
    await asyncio.sleep(60)
    return web.Response()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/echo", echo)
    for handler in (show, refuse, nonsense, proxy_error, large, redirect, slow):
        app.router.add_get(f"/{handler.__name__}", handler)
    server = HttpServer(app, "127.0.0.1", 0, limits=HttpLimits(stop_timeout_s=0.2))
    await server.start()
    yield f"http://127.0.0.1:{server.port}"
    await server.stop()


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    limits = HttpClientLimits(max_reply_bytes=5000, connect_pause_s=0.01)
    async with HttpClient(limits=limits) as client:
        yield client


async def test_messages_in_json_and_messagepack(client: HttpClient, url: str) -> None:
    assert await client.get(f"{url}/show", Order, timeout_s=10) == Order("shown", 2)
    for encoding in (JSON, MESSAGEPACK):
        reply = await client.post(
            f"{url}/echo", Order("a", 3), Order, timeout_s=10, encoding=encoding
        )
        assert reply == Order("a", 3)


async def test_a_reported_error_is_raised_as_its_own(client: HttpClient, url: str) -> None:
    with pytest.raises(Conflict, match="not now") as conflict:
        await client.get(f"{url}/refuse", Order, timeout_s=10)
    assert conflict.value.retry_after_s == 2


async def test_other_failures_are_the_peers(client: HttpClient, url: str) -> None:
    with pytest.raises(RemoteError, match="nonsense"):
        await client.get(f"{url}/nonsense", Order, timeout_s=10)
    with pytest.raises(RemoteError, match="answered 503: <html>") as later:
        await client.get(f"{url}/proxy_error", Order, timeout_s=10)
    assert later.value.retry_after_s == 7
    with pytest.raises(RemoteError, match="404"):
        await client.get(f"{url}/missing", Order, timeout_s=10)
    with pytest.raises(RemoteError, match="302"):
        await client.get(f"{url}/redirect", Order, timeout_s=10)
    with pytest.raises(RemoteError, match="more than 5000 bytes"):
        await client.send("GET", f"{url}/large", timeout_s=10)


async def test_any_status_is_an_answer_to_send(client: HttpClient, url: str) -> None:
    reply = await client.send("GET", f"{url}/missing", timeout_s=10)
    assert (reply.status, reply.content_type) == (404, "text/plain")
    with pytest.raises(RemoteError):
        checked(url, reply)


async def test_a_timeout_says_that_it_may_have_happened(client: HttpClient, url: str) -> None:
    with pytest.raises(RemoteTimeout, match="may have happened") as timeout:
        await client.get(f"{url}/slow", Order, timeout_s=0.1)
    assert was_sent(timeout.value)


@pytest.mark.parametrize(
    "bad", ["", "/show", "ftp://h/", "http://", "http://h:99999/", "http://[::"]
)
async def test_no_url(client: HttpClient, bad: str) -> None:
    with pytest.raises(InvalidRequest):
        await client.send("GET", bad, timeout_s=1)


async def free_port() -> int:
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


async def test_nobody_there_was_certainly_not_asked(client: HttpClient) -> None:
    url = f"http://127.0.0.1:{await free_port()}/show"
    with pytest.raises(RemoteError, match="cannot connect") as error:
        await client.get(url, Order, timeout_s=10)
    assert not was_sent(error.value)
    assert not isinstance(error.value, RemoteTimeout)


async def test_a_server_that_comes_up_in_time_is_reached() -> None:
    port = await free_port()
    app = web.Application()
    app.router.add_get("/show", show)
    server = HttpServer(app, "127.0.0.1", port)
    limits = HttpClientLimits(connect_attempts=200, connect_pause_s=0.01)
    async with HttpClient(limits=limits) as client:
        asked = asyncio.create_task(
            client.get(f"http://127.0.0.1:{port}/show", Order, timeout_s=20)
        )
        await asyncio.sleep(0.05)
        assert not asked.done()
        await server.start()
        assert await asked == Order("shown", 2)
    await server.stop()


Broken = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    ],
)
async def test_a_post_that_broke_off_is_not_repeated(client: HttpClient, answer: bytes) -> None:
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"}")
        asked += 1
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(RemoteError, match="may have happened") as error:
        await client.post(f"http://127.0.0.1:{port}/x", Order("a"), Order, timeout_s=10)
    assert was_sent(error.value)
    assert asked == 1
    server.close()
    await server.wait_closed()


async def test_a_client_that_is_not_started(url: str) -> None:
    with pytest.raises(RuntimeError, match="not started"):
        await HttpClient().send("GET", url, timeout_s=1)


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".example"])
async def test_a_name_that_can_be_none_was_not_asked(client: HttpClient, name: str) -> None:
    """One front door with a slip of the pen must not end the search for another."""
    with pytest.raises(RemoteError, match="cannot connect") as refused:
        await client.send("GET", f"http://{name}:1/", timeout_s=5)
    assert not was_sent(refused.value)

# pyright: reportPrivateUsage=false
"""Calls that a leader does not answer go to the next one, if a repeat does no harm."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.errors import RemoteTimeout
from snooze.common.leader_proxy import LeaderProxy
from snooze.common.transport.proxy import Proxy
from snooze.common.wire import Address


class World:
    """A front door, a leader that may be silent, and the next one."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.speaks = asyncio.Event()
        self.heard: list[str] = []
        self.leader: Address | None = None
        self.former = Address("", 0)
        self.next = Address("", 0)
        self.url = ""

    async def silent(self, request: web.Request) -> web.StreamResponse:
        self.heard.append(f"former {request.method}")
        if request.path == "/stream":
            stream = web.StreamResponse()
            await stream.prepare(request)
            await stream.write(b"one ")
        else:
            stream = None
        self.asked.set()
        await self.speaks.wait()
        if stream is None:
            return web.Response(text="the former leader")
        await stream.write(b"two")
        return stream

    async def speaking(self, request: web.Request) -> web.StreamResponse:
        self.heard.append(f"next {request.method}: {await request.text()}")
        return web.Response(text="the next leader")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    proxy = Proxy()
    calls = LeaderProxy(proxy, lambda: world.leader, SYSTEM_CLOCK)

    async def front(request: web.Request) -> web.StreamResponse:
        try:
            return await calls.pass_on(request)
        except RemoteTimeout as error:
            return web.Response(status=504, text=error.message)

    async with AsyncExitStack() as stack:
        addresses: list[Address] = []
        for handler in (world.silent, world.speaking, front):
            application = web.Application()
            application.router.add_route("*", "/{path:.*}", handler)
            server = await stack.enter_async_context(TestServer(application))
            url = server.make_url("/")
            addresses.append(Address(url.host or "", url.port or 0))
        await proxy.start()
        stack.push_async_callback(proxy.close)
        world.former, world.next, door = addresses
        world.leader = world.former
        world.url = f"http://{door}"
        yield world
        world.speaks.set()


async def changed(world: World) -> None:
    await world.asked.wait()
    world.leader = None  # for a moment nobody leads
    await asyncio.sleep(0.1)
    world.leader = world.next


@pytest.mark.parametrize(
    ("method", "headers", "answer"),
    [
        ("GET", {}, (200, "the next leader")),
        ("POST", {"Idempotency-Key": "k"}, (200, "the next leader")),
        ("POST", {}, (504, "leads no more and is silent; it may have happened")),
    ],
)
async def test_a_silent_leader_is_asked_only_while_it_leads(
    world: World, method: str, headers: dict[str, str], answer: tuple[int, str]
) -> None:
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        group.create_task(changed(world))
        url = f"{world.url}/v1/vms"
        async with session.request(method, url, headers=headers, data=b"body") as reply:
            status, text = reply.status, await reply.text()
    assert status == answer[0]
    assert answer[1] in text
    assert world.heard == [f"former {method}"] + (
        [f"next {method}: body"] if answer[0] == 200 else []
    )


async def test_what_began_to_be_answered_is_answered_to_its_end(world: World) -> None:
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        group.create_task(changed(world))
        async with session.get(f"{world.url}/stream") as reply:
            assert await reply.content.readexactly(4) == b"one "
            await asyncio.sleep(1.0)
            world.speaks.set()
            assert await reply.read() == b"two"
    assert world.heard == ["former GET"]


async def test_a_leader_that_is_only_slow_is_waited_for(world: World) -> None:
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:

        async def later() -> None:
            await world.asked.wait()
            await asyncio.sleep(0.6)
            world.speaks.set()

        group.create_task(later())
        async with session.post(f"{world.url}/v1/vms", data=b"body") as reply:
            assert await reply.text() == "the former leader"


async def test_a_leader_whose_name_can_be_none_was_not_asked(world: World) -> None:
    world.leader = Address("a..b", 1)
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        asked = group.create_task(session.get(f"{world.url}/x"))
        await asyncio.sleep(0.1)
        world.leader = world.next
        assert await (await asked).text() == "the next leader"


async def test_those_who_wait_keep_nobody_from_the_leader() -> None:
    """Seen: with a bound of 512 connections as many calls that wait for a task held up all else."""
    proxy = Proxy()
    await proxy.start()
    assert proxy._session is not None
    assert proxy._session.connector is not None
    assert proxy._session.connector.limit == 0
    await proxy.close()

"""The worlds in which each test of this folder runs."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack

import pytest

from snooze.lab.coordination import MemoryWorld, World, ZooKeeperWorld
from snooze.lab.zookeeper import ZooKeeperServer, zookeeper_server


@pytest.fixture(scope="package")
def server() -> Iterator[ZooKeeperServer]:
    context = zookeeper_server(tick_ms=500)
    with asyncio.Runner() as runner:
        yield runner.run(context.__aenter__())
        runner.run(context.__aexit__(None, None, None))


@pytest.fixture(params=["memory", "zookeeper"])
async def world(
    request: pytest.FixtureRequest, server: ZooKeeperServer
) -> AsyncGenerator[World, None]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield MemoryWorld(stack)
        else:
            yield ZooKeeperWorld(stack, server)

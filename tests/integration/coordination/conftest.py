"""Real ZooKeeper servers, shared by the tests of this folder; each test leaves them serving."""

import asyncio
from collections.abc import Iterator

import pytest

from snooze.lab.zookeeper import (
    ZooKeeperEnsemble,
    ZooKeeperServer,
    zookeeper_ensemble,
    zookeeper_server,
)


@pytest.fixture(scope="package")
def server() -> Iterator[ZooKeeperServer]:
    context = zookeeper_server(tick_ms=500)
    with asyncio.Runner() as runner:
        yield runner.run(context.__aenter__())
        runner.run(context.__aexit__(None, None, None))


@pytest.fixture(scope="package")
def ensemble() -> Iterator[ZooKeeperEnsemble]:
    context = zookeeper_ensemble(3, tick_ms=500)
    with asyncio.Runner() as runner:
        yield runner.run(context.__aenter__())
        runner.run(context.__aexit__(None, None, None))

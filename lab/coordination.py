"""Worlds in which one suite tries whatever stands on a ``Coordinator``: in memory and for real."""

import itertools
from contextlib import AsyncExitStack
from typing import Protocol

from snooze.common.coordination.memory import MemoryCoordinator, MemoryStore
from snooze.common.coordination.port import (
    Coordinator,
    Create,
    SessionState,
    wait_connected,
)
from snooze.common.coordination.zookeeper import ZooKeeperCoordinator
from snooze.lab.recorder import PATIENCE_S, Recorder
from snooze.lab.tcp_link import TcpLink, tcp_link
from snooze.lab.zookeeper import ZooKeeperServer


class World(Protocol):
    """A store, its clients, and what can happen to them."""

    async def connect(self) -> Coordinator:
        """One more client, connected; closed with the world."""
        ...

    def suspend(self, client: Coordinator) -> None:
        """Cut it off from the store."""
        ...

    def resume(self, client: Coordinator) -> None:
        """Let it reach the store again."""
        ...

    async def expire(self, client: Coordinator) -> None:
        """Suspend it, end its session, resume it."""
        ...

    def lose_next_reply(self, client: Coordinator) -> None:
        """What it commits next is applied without its being told."""
        ...


class MemoryWorld:
    """Coordinators on one ``MemoryStore``."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._store = MemoryStore()

    async def connect(self) -> Coordinator:
        """See ``World``."""
        client = MemoryCoordinator(self._store)
        self._stack.push_async_callback(client.close)
        await client.start()
        await wait_connected(client, PATIENCE_S)
        return client

    def suspend(self, client: Coordinator) -> None:
        """See ``World``."""
        self._own(client).suspend()

    def resume(self, client: Coordinator) -> None:
        """See ``World``."""
        self._own(client).resume()

    async def expire(self, client: Coordinator) -> None:
        """See ``World``."""
        self._own(client).suspend()
        self._own(client).expire()
        self._own(client).resume()

    def lose_next_reply(self, client: Coordinator) -> None:
        """See ``World``."""
        self._own(client).faults.lose_replies += 1

    @staticmethod
    def _own(client: Coordinator) -> MemoryCoordinator:
        assert isinstance(client, MemoryCoordinator)
        return client


class ZooKeeperWorld:
    """Coordinators on a running server, each by a TCP link of its own and under one fresh root."""

    _roots = itertools.count()

    def __init__(
        self, stack: AsyncExitStack, server: ZooKeeperServer, session_timeout_s: float = 2.0
    ) -> None:
        self._session_timeout_s = session_timeout_s
        self._stack = stack
        self._server = server
        self._root = f"/world/{next(self._roots)}"
        self._links: dict[Coordinator, TcpLink] = {}

    async def connect(self) -> Coordinator:
        """See ``World``."""
        link = await self._stack.enter_async_context(tcp_link("127.0.0.1", self._server.port))
        client = ZooKeeperCoordinator(
            link.hosts, root=self._root, session_timeout_s=self._session_timeout_s
        )
        self._links[client] = link
        self._stack.push_async_callback(client.close)
        await client.start()
        await wait_connected(client, PATIENCE_S)
        return client

    def suspend(self, client: Coordinator) -> None:
        """See ``World``."""
        self._links[client].cut()

    def resume(self, client: Coordinator) -> None:
        """See ``World``."""
        self._links[client].up()

    async def expire(self, client: Coordinator) -> None:
        """See ``World``."""
        witness = await self.connect()
        await client.commit([Create("/expiry/alive", ephemeral=True)])
        names: Recorder[list[str]] = Recorder()
        witness.watch_children("/expiry", names)
        await names.until(lambda present: present == ["alive"])
        self._links[client].cut()
        await names.until(lambda present: present == [])
        self._links[client].up()

    def lose_next_reply(self, client: Coordinator) -> None:
        """See ``World``."""
        link = self._links[client]
        link.deafen()
        client.on_session(
            lambda session: link.up() if session.state is SessionState.SUSPENDED else None
        )

"""Real ZooKeeper servers that are killed, restarted, frozen, cut off and replaced by noise."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from snooze.common.coordination.port import (
    CommitConflict,
    Create,
    Put,
    Session,
    SessionState,
    Unavailable,
    wait_connected,
)
from snooze.common.coordination.zookeeper import ZooKeeperCoordinator
from snooze.common.errors import RemoteError
from snooze.lab.recorder import PATIENCE_S, Recorder
from snooze.lab.tcp_link import tcp_link
from snooze.lab.zookeeper import ZooKeeperEnsemble, ZooKeeperServer

CONNECTED, SUSPENDED = SessionState.CONNECTED, SessionState.SUSPENDED
LOST, CLOSED = SessionState.LOST, SessionState.CLOSED


@asynccontextmanager
async def client_of(
    hosts: str, session_timeout_s: float
) -> AsyncGenerator[tuple[ZooKeeperCoordinator, Recorder[Session]], None]:
    client = ZooKeeperCoordinator(hosts, session_timeout_s=session_timeout_s)
    sessions: Recorder[Session] = Recorder()
    client.on_session(sessions)
    await client.start()
    await wait_connected(client, PATIENCE_S)
    try:
        yield client, sessions
    finally:
        await client.close()


async def test_a_session_outlives_the_server_process(server: ZooKeeperServer) -> None:
    async with client_of(server.hosts, 10.0) as (client, sessions):
        await client.commit([Create("/outlives", ephemeral=True)])
        names: Recorder[list[str]] = Recorder()
        client.watch_children("/watched", names)
        await server.kill()
        await sessions.until(lambda session: session.state is SUSPENDED)
        with pytest.raises(Unavailable):
            await client.read("/outlives")
        await server.start()
        await sessions.until(lambda session: session == Session(CONNECTED, 1))
        entry = await client.read("/outlives")
        assert entry is not None
        assert entry.mine
        await client.commit([Create("/watched/child")])
        await names.until(lambda present: present == ["child"])


async def test_a_client_may_be_started_before_its_server(server: ZooKeeperServer) -> None:
    await server.stop()
    client = ZooKeeperCoordinator(server.hosts, session_timeout_s=2.0)
    sessions: Recorder[Session] = Recorder()
    client.on_session(sessions)
    await client.start()
    with pytest.raises(Unavailable):
        await client.read("/x")
    await server.start()
    await sessions.until(lambda session: session == Session(CONNECTED, 1))
    assert sessions.values == [Session(SUSPENDED, 0), Session(CONNECTED, 1)]
    await client.close()


async def test_a_client_of_no_server_can_be_closed(unused_tcp_port: int) -> None:
    client = ZooKeeperCoordinator(f"127.0.0.1:{unused_tcp_port}", session_timeout_s=2.0)
    await client.start()
    with pytest.raises(Unavailable, match="no session with the store within"):
        await wait_connected(client, 0.2)
    await client.close()
    assert client.session == Session(CLOSED, 0)


async def test_a_busy_client_notices_a_frozen_server(server: ZooKeeperServer) -> None:
    """kazoo alone goes on as if connected for as long as requests are sent."""
    async with client_of(server.hosts, 2.0) as (client, sessions):
        server.pause()
        calls: set[asyncio.Task[object]] = set()
        try:
            while client.session.state is CONNECTED:
                call = asyncio.create_task(client.read("/x"))
                call.add_done_callback(lambda done: done.exception())
                calls.add(call)
                await asyncio.sleep(0.02)
            assert sessions.values[-1] == Session(SUSPENDED, 1)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert any(isinstance(outcome, Unavailable) for outcome in outcomes)
        finally:
            server.resume()
        await sessions.until(lambda session: session.state is CONNECTED)


async def test_a_silent_connection_is_replaced_in_the_same_session(
    server: ZooKeeperServer,
) -> None:
    async with (
        tcp_link("127.0.0.1", server.port) as one,
        tcp_link("127.0.0.1", server.port) as two,
        client_of(f"{one.hosts},{two.hosts}", 6.0) as (client, sessions),
    ):
        await client.commit([Create("/silent", ephemeral=True)])
        (used,) = (link for link in (one, two) if link.connections)
        used.freeze()
        await sessions.until(lambda session: session.state is SUSPENDED)
        await sessions.until(lambda session: session.state is CONNECTED)
        assert sessions.values[2:] == [Session(SUSPENDED, 1), Session(CONNECTED, 1)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_noise_instead_of_answers_costs_the_session_not_the_client(
    server: ZooKeeperServer,
) -> None:
    """kazoo's thread dies of it and would never connect again."""
    async with (
        tcp_link("127.0.0.1", server.port) as link,
        client_of(link.hosts, 2.0) as (client, sessions),
    ):
        link.garble()
        await sessions.until(lambda session: session.state is not CONNECTED)
        link.up()
        await sessions.until(lambda session: session.state is CONNECTED)
        await client.commit([Create("/noise")])


async def test_an_ensemble_may_lose_any_one_server(ensemble: ZooKeeperEnsemble) -> None:
    async with client_of(ensemble.hosts, 10.0) as (client, sessions):
        await client.commit([Create("/survives", b"0", ephemeral=True)])
        for number, role in enumerate(("leader", "follower", "leader"), start=1):
            victim = await (ensemble.leader() if role == "leader" else a_follower(ensemble))
            await victim.kill()
            await written(client, number)
            await victim.start()
        assert {session.number for session in sessions.values if session.state is CONNECTED} == {1}
        assert LOST not in {session.state for session in sessions.values}
        entry = await client.read("/survives")
        assert entry is not None
        assert (entry.mine, entry.version) == (True, 3)


async def a_follower(ensemble: ZooKeeperEnsemble) -> ZooKeeperServer:
    followers = await ensemble.followers()
    return followers[0]


async def written(client: ZooKeeperCoordinator, version: int) -> None:
    """Write by version until it is known to be written, as a user of the port would."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await wait_connected(client, PATIENCE_S)
                entry = await client.read("/survives")
                assert entry is not None
                if entry.version == version:
                    return
                await client.commit([Put("/survives", b"", version=version - 1)])
            except (RemoteError, CommitConflict):  # Perhaps written, by the call before.
                continue

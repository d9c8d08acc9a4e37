"""A driver with a defect, or a hypervisor that says what nobody expects: the host goes on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import libvirt
import pytest

from snooze.common.errors import ExecutionError
from snooze.localcontroller import agent, service
from snooze.localcontroller.hypervisor.libvirt_connection import LibvirtConnection
from snooze.localcontroller.hypervisor.libvirt_options import LibvirtOptions
from tests.unit.agent.test_going_down import Host, Manager


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    peer = Manager()
    runner = await peer.start()
    yield peer
    await peer.server.close()
    await runner.cleanup()


@pytest.mark.parametrize("method", ["open", "capacity", "inventory", "usage"])
async def test_what_breaks_once_is_done_again(
    method: str, manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "OPEN_RETRY_MAX_S", 0.01)
    host = Host(manager, tmp_path, {})
    whole = getattr(host.daemon.hypervisor, method)
    calls = 0

    async def broken() -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("a defect")
        return await whole()

    monkeypatch.setattr(host.daemon.hypervisor, method, broken)
    monkeypatch.setattr(host.daemon.agent, "_interval_s", 0.05)
    await host.daemon.start()
    try:
        await manager.next_link()
        async with asyncio.timeout(10):
            while not host.daemon.agent.measured or calls < 2:  # noqa: ASYNC110 (no event)
                await asyncio.sleep(0.01)
    finally:
        await host.daemon.close()


@pytest.mark.parametrize("method", ["look", "_look_at_disks"])
async def test_the_look_now_and_then_goes_on(
    method: str, manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "RECONCILE_INTERVAL_S", 0.01)
    host = Host(manager, tmp_path, {})
    calls = 0

    async def broken() -> None:
        nonlocal calls
        calls += 1
        raise KeyError("a defect")

    work = {"look": "reconcile", "_look_at_disks": "look_at_disks"}[method]
    monkeypatch.setattr(host.daemon.orders, work, broken)
    await host.daemon.start()
    try:
        async with asyncio.timeout(10):
            while calls < 3:  # noqa: ASYNC110 (no event)
                await asyncio.sleep(0.01)
    finally:
        await host.daemon.close()


def unheard(*_: object) -> None:
    """Nobody hears it."""


async def test_an_answer_of_libvirt_that_cannot_be_read_is_an_error_of_ours() -> None:
    connection = LibvirtConnection(LibvirtOptions(uri="test:///default"), unheard, unheard)
    await connection.open()

    def read(_: libvirt.virConnect) -> int:
        return int("many")

    with pytest.raises(ExecutionError, match="look: ValueError"):
        await connection.call("look", read)
    assert connection.is_connected
    await connection.close()

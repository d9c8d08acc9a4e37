"""A leader that cannot begin or end as it should: the cluster has one nevertheless."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

from snooze.common import records
from snooze.common.config import parse
from snooze.common.coordination.memory import MemoryCoordinator, MemoryStore
from snooze.common.errors import ExecutionError
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.groupmanager import service
from snooze.groupmanager.leader import service as leader_service
from snooze.groupmanager.leader.recovery import Recovery
from snooze.groupmanager.leader.service import LeaderService
from snooze.groupmanager.service import GroupManager


@contextlib.asynccontextmanager
async def manager_of(store: MemoryStore, name: str, folder: Path) -> AsyncGenerator[GroupManager]:
    tables: dict[str, object] = {
        "node": {"state_directory": str(folder / name), "hostname": name},
        "network": {
            "listen_address": "127.0.0.1",
            "advertised_address": "127.0.0.1",
            "control_port": 0,
            "monitoring_port": 0,
        },
    }
    settings = parse("", GroupManagerSettings, overrides=tables)
    manager = GroupManager(settings, MemoryCoordinator(store), name)
    await manager.start()
    try:
        yield manager
    finally:
        await manager.close()


async def leads(manager: GroupManager) -> None:
    async with asyncio.timeout(10):
        while manager.leading is None:  # noqa: ASYNC110 (no event)
            await asyncio.sleep(0.01)


async def test_a_defect_at_the_beginning_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was elected keeps others from it: it tries again."""
    monkeypatch.setattr(service, "REGISTER_RETRY_S", 0.01)
    whole, calls = LeaderService.start, 0

    async def broken(leader: LeaderService) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("a defect")
        await whole(leader)

    monkeypatch.setattr(LeaderService, "start", broken)
    async with manager_of(MemoryStore(), "gm1", tmp_path) as manager:
        await leads(manager)


async def test_a_defect_at_the_end_does_not_keep_the_next_one_from_leading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = LeaderService.close

    async def broken(leader: LeaderService, *, flush: bool) -> None:
        await whole(leader, flush=flush)
        raise KeyError("a defect")

    store = MemoryStore()
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(manager_of(store, "gm1", tmp_path))
        await leads(first)
        second = await stack.enter_async_context(manager_of(store, "gm2", tmp_path))
        monkeypatch.setattr(LeaderService, "close", broken)
        await first.close()
        await leads(second)


@pytest.mark.parametrize(
    "body",
    [
        msgspec.msgpack.encode({"host_id": "a"}).replace(b"\xa1a", b"\xa1\xff"),
        b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0",
        b"",
    ],
)
def test_a_value_that_is_no_record_is_an_error_of_ours(body: bytes) -> None:
    with pytest.raises(ExecutionError, match="cannot be read"):
        records.decode(bytes([records.SCHEMA]) + body, records.HostRecord)


async def test_a_tick_that_breaks_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that leads and does not tick restarts nothing."""
    monkeypatch.setattr(leader_service, "TICK_S", 0.01)
    calls = 0

    def broken(_recovery: Recovery) -> None:
        nonlocal calls
        calls += 1
        raise KeyError("a defect")

    monkeypatch.setattr(Recovery, "tick", broken)
    async with manager_of(MemoryStore(), "gm1", tmp_path), asyncio.timeout(10):
        while calls < 3:  # noqa: ASYNC110 (no event)
            await asyncio.sleep(0.01)

"""Plans made in a process of their own."""

import asyncio
import os
import time
from multiprocessing.context import SpawnProcess
from typing import NoReturn

import numpy as np
import pytest

from snooze.common.errors import ExecutionError, RemoteTimeout
from snooze.groupmanager.planner import Planner
from snooze.scheduling.drain import DrainPolicy, drain
from snooze.scheduling.snapshot import Snapshot


async def test_a_plan_is_the_same_there_as_here() -> None:
    rng = np.random.default_rng(1)
    snapshot = Snapshot.of(
        [f"h{i}" for i in range(5)],
        np.full((5, 4), 8.0),
        vm_ids=[f"v{i}" for i in range(12)],
        demand=rng.uniform(0.5, 2.0, (12, 4)),
        placement=rng.integers(0, 5, 12),
    )
    hosts = np.array([True, False, False, False, False])
    planner = Planner()
    try:
        there = await planner.call(drain, snapshot, hosts, DrainPolicy())
        again = await planner.call(drain, snapshot, hosts, DrainPolicy())
    finally:
        await planner.close()
    here = drain(snapshot, hosts, DrainPolicy())
    assert there.plan.moves == again.plan.moves == here.plan.moves
    assert there.emptied == here.emptied


async def test_one_process_serves_many_calls_and_ends_when_idle() -> None:
    planner = Planner(idle_s=0.2)
    first, second = await asyncio.gather(planner.call(os.getpid), planner.call(os.getpid))
    assert first == second != os.getpid()
    await asyncio.sleep(0.6)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert await planner.call(os.getpid) != first
    await planner.close()


async def test_a_machine_that_starts_no_process_fails_the_call_and_serves_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(process: SpawnProcess) -> NoReturn:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    planner = Planner()
    with monkeypatch.context() as patched:
        patched.setattr(SpawnProcess, "start", refuse)
        for _ in range(2):
            with pytest.raises(ExecutionError, match="Resource temporarily unavailable"):
                await planner.call(abs, -1)
    with pytest.raises(ExecutionError, match="failed"):
        await planner.call(lambda: 1)
    assert await planner.call(abs, -1) == 1
    await planner.close()


async def test_what_takes_too_long_is_killed_and_the_next_call_is_served() -> None:
    planner = Planner(time_limit_s=8.0)
    slow = await planner.call(os.getpid)
    planner.time_limit_s = 0.3
    with pytest.raises(RemoteTimeout, match="given up"):
        await planner.call(time.sleep, 60.0)
    with pytest.raises(ProcessLookupError):
        os.kill(slow, 0)
    planner.time_limit_s = 30.0
    assert await planner.call(abs, -1) == 1
    await planner.close()


async def test_a_call_that_raises_or_dies_says_so() -> None:
    planner = Planner()
    with pytest.raises(ExecutionError, match="ZeroDivisionError"):
        await planner.call(divmod, 1, 0)
    with pytest.raises(ExecutionError, match="died"):
        await planner.call(os._exit, 3)
    assert await planner.call(abs, -1) == 1
    await planner.close()

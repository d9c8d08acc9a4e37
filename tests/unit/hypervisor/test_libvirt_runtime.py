"""Bounded threads for calls that block, and may never come back."""

import asyncio
import queue
import threading

import pytest

from snooze.common.errors import NotFound, RemoteTimeout, TooBusy
from snooze.localcontroller.hypervisor.libvirt_runtime import WorkerPool


async def test_results_and_errors_come_back() -> None:
    pool = WorkerPool("t", 2, 10)

    def fail() -> None:
        raise NotFound("gone")

    assert await pool.run("x", lambda: 42, 10) == 42
    with pytest.raises(NotFound, match="gone"):
        await pool.run("x", fail, 10)
    pool.close()
    with pytest.raises(TooBusy, match="closing"):
        await pool.run("x", lambda: 42, 10)


async def test_calls_run_beside_each_other_but_not_more_than_threads() -> None:
    pool = WorkerPool("t", 3, 10)
    running = threading.Semaphore(0)
    most, lock, go = [0, 0], threading.Lock(), threading.Event()

    def work() -> None:
        with lock:
            most[0] += 1
            most[1] = max(most)
        running.release()
        go.wait()
        with lock:
            most[0] -= 1

    calls = [asyncio.create_task(pool.run("x", work, 30)) for _ in range(9)]
    for _ in range(3):
        await asyncio.to_thread(running.acquire)
    go.set()
    await asyncio.gather(*calls)
    assert most[1] == 3
    pool.close()


async def test_no_call_waits_behind_another_while_there_may_be_more_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even behind one that a thread has taken this very moment."""
    loop, taken, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    class Slow(queue.SimpleQueue[object]):
        def get(self, block: bool = True, timeout: float | None = None) -> object:
            job = super().get(block, timeout)
            if not go_on.is_set():
                loop.call_soon_threadsafe(taken.set)
                go_on.wait(10.0)
            return job

    monkeypatch.setattr(queue, "SimpleQueue", Slow)
    pool = WorkerPool("t", 2, 10)
    second_ran = threading.Event()
    first = asyncio.create_task(pool.run("x", lambda: second_ran.wait(5.0), 30))
    await taken.wait()
    second = asyncio.create_task(pool.run("x", second_ran.set, 30))
    await asyncio.sleep(0)
    go_on.set()
    assert await first, "the second waited for the first"
    await second
    pool.close()


async def test_a_call_that_began_and_does_not_end_may_have_happened() -> None:
    pool = WorkerPool("t", 1, 10)
    go = threading.Event()
    with pytest.raises(RemoteTimeout, match="may have happened"):
        await pool.run("x", go.wait, 0.05)
    assert pool.lost == 1
    assert pool.is_exhausted
    with pytest.raises(TooBusy, match="all threads were busy"):
        await pool.run("y", lambda: 1, 0.05)
    go.set()
    assert await pool.run("z", lambda: 2, 30) == 2, "a lost thread that comes back works again"
    assert pool.lost == 0
    pool.close()


async def test_what_waits_is_bounded() -> None:
    pool = WorkerPool("t", 1, 2)
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait()

    first = asyncio.create_task(pool.run("x", work, 30))
    await asyncio.to_thread(begun.wait)
    waiting = [asyncio.create_task(pool.run("x", work, 30)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(TooBusy, match="2 calls are waiting"):
        await pool.run("x", work, 30)
    go.set()
    await asyncio.gather(first, *waiting)
    pool.close()


async def test_a_cancelled_call_that_has_not_begun_never_does() -> None:
    pool = WorkerPool("t", 1, 10)
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait()

    first = asyncio.create_task(pool.run("x", work, 30))
    await asyncio.to_thread(begun.wait)
    done: list[int] = []
    second = asyncio.create_task(pool.run("y", lambda: done.append(1), 30))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    go.set()
    await first
    await pool.run("z", lambda: None, 30)
    assert done == []
    pool.close()


async def test_each_thread_is_prepared_first() -> None:
    prepared: list[str] = []
    pool = WorkerPool("t", 1, 10, lambda: prepared.append(threading.current_thread().name))
    names = {await pool.run("x", lambda: threading.current_thread().name, 10) for _ in range(3)}
    assert set(prepared) == names
    assert len(prepared) == 1
    pool.close()

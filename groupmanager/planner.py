"""Long decisions in a process of their own, so that no heartbeat waits for a plan.

Scheduling's optimisers take from milliseconds to seconds, their first call some seconds more to
load and compile. Here one worker process does that: started when first needed, ended when idle,
killed when it takes too long. It gets a function and its arguments by pickle.
"""

import asyncio
import logging
import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Final, ParamSpec, TypeVar, cast

from snooze.common.errors import ExecutionError, RemoteTimeout, TooBusy

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

TIME_LIMIT_S: Final = 60.0
IDLE_S: Final = 120.0
"""After so long without work the process ends, and its memory (about 150 MiB) is free."""
MAX_WAITING: Final = 16
NICENESS: Final = 5
"""Heartbeats come first; with more, a plan gets no time at all on a crowded machine."""


class Planner:
    """Runs pure functions elsewhere, one at a time, in the order asked."""

    def __init__(self, time_limit_s: float = TIME_LIMIT_S, idle_s: float = IDLE_S) -> None:
        self.time_limit_s = time_limit_s
        self._idle_s = idle_s
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``function`` returns; it and its arguments are pickled, and must be pure.

        Raises:
            TooBusy: too much waits already.
            RemoteTimeout: it took longer than the limit, and was killed.
            ExecutionError: it raised, or its process died or did not start.
        """
        if self._waiting >= MAX_WAITING:
            raise TooBusy("too many plans are waited for", retry_after_s=5.0)
        self._waiting += 1
        try:
            async with self._lock:
                self._stay_awake()
                try:
                    return await self._run(function, args, kwargs)
                finally:
                    loop = asyncio.get_running_loop()
                    self._idle = loop.call_later(self._idle_s, self._end)
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """End the process; a plan that is being made is lost."""
        self._stay_awake()
        self._end()

    async def _run(self, function: Callable[..., T], args: object, kwargs: object) -> T:
        try:
            pipe = self._started()
            async with asyncio.timeout(self.time_limit_s):
                answer = await asyncio.to_thread(_exchange, pipe, (function, args, kwargs))
        except TimeoutError:
            self._end()
            raise RemoteTimeout(
                f"planning took longer than {self.time_limit_s:g} s and was given up"
            ) from None
        except EOFError as error:
            self._end()
            raise ExecutionError("the process that plans died") from error
        except Exception as error:
            # whatever it is: who waits for a plan that never comes makes no other
            self._end()
            said = f"the process that plans failed: {type(error).__name__}: {error}"
            raise ExecutionError(said) from error
        except asyncio.CancelledError:
            self._end()
            raise
        if isinstance(answer, _Failure):
            raise ExecutionError(f"planning failed: {answer.story}")
        return cast(T, answer)

    def _started(self) -> Connection:
        """The pipe to the process, which is started if there is none."""
        if self._pipe is not None and self._process is not None and self._process.is_alive():
            return self._pipe
        self._end()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        try:
            process = context.Process(target=_work, args=(theirs,), name="planner", daemon=True)
            process.start()
        finally:
            theirs.close()
        self._process = process
        return self._pipe

    def _stay_awake(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _end(self) -> None:
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        if process is not None:
            process.kill()
            process.join()
        if pipe is not None:
            pipe.close()


@dataclass(frozen=True, slots=True)
class _Failure:
    """What the worker answers when the function raised."""

    story: str


def _exchange(pipe: Connection, work: object) -> object:
    pipe.send(work)
    return pipe.recv()


def _work(pipe: Connection) -> None:
    """The worker: one call after the other until the daemon closes the pipe, or is gone."""
    import os

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  # told to whoever asked
            answer = _Failure(f"{type(error).__name__}: {error}")
        pipe.send(answer)

"""The tasks of a shell: started, kept, their failures told, ended together."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine

logger = logging.getLogger(__name__)


class TaskSet:
    """Background tasks that belong to one owner."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[None], None] = {}  # in the order in which they started

    def spawn(self, work: Coroutine[object, object, None]) -> "asyncio.Task[None]":
        """Start a task; if it fails, the log says how."""
        task = asyncio.create_task(work)
        self._running[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background task failed", exc_info=error)

    async def close(self) -> None:
        """Cancel all and wait until they have ended; the one that calls is left out."""
        caller = asyncio.current_task()
        others = [task for task in self._running if task is not caller]
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)


async def every(period_s: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do something once a period, until cancelled; a time at which it breaks is not the last."""
    while True:
        await asyncio.sleep(period_s)
        try:
            await work()
        except Exception:
            logger.exception("what is done every %g s broke", period_s)

"""Clients that wait for a task to get on."""

import asyncio

from snooze.common.clock import Clock
from snooze.groupmanager.leader.tasks import Task


class TaskWaiters:
    """Who waits for which task."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self.closed = False

    async def wait(self, task: Task, wait_s: float) -> Task:
        """Wait until the task has ended, at most ``wait_s``, or until this is closed."""
        deadline = self._clock.monotonic_s() + wait_s
        while not task.ended:
            left = deadline - self._clock.monotonic_s()
            if left <= 0 or self.closed:
                break
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiters = self._waiters.setdefault(task.task_id, set())
            waiters.add(waiter)
            try:
                await asyncio.wait([waiter], timeout=left)
            finally:
                waiters.discard(waiter)
                if not waiters:
                    self._waiters.pop(task.task_id, None)
        return task

    def wake(self, task_id: str) -> None:
        """The task got on."""
        for waiter in self._waiters.get(task_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Let everybody go."""
        self.closed = True
        for task_id in list(self._waiters):
            self.wake(task_id)

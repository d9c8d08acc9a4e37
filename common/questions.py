"""Questions to a core that one of its later effects answers."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

from snooze.common.errors import ErrorReport, SnoozeError

T = TypeVar("T")


class Questions(Generic[T]):
    """Whoever asks waits; an effect that carries the question's number brings the answer."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[T]] = {}

    async def ask(self, feed: Callable[[int], None]) -> T:
        """Feed an event with a number of its own; the answer to it.

        Raises:
            SnoozeError: the answer is an error, or ``close`` was called meanwhile.
        """
        number = next(self._numbers)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            feed(number)
            return await future
        finally:
            self._waiting.pop(number, None)

    def answer(self, number: int, answer: T) -> None:
        """Answer a question; nothing happens if nobody waits any more."""
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(answer)

    def refuse(self, number: int, error: ErrorReport | SnoozeError) -> None:
        """Likewise, with an error."""
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_exception(error.as_error() if isinstance(error, ErrorReport) else error)

    def close(self, error: SnoozeError) -> None:
        """Whoever still waits gets this error."""
        for number in list(self._waiting):
            self.refuse(number, error)

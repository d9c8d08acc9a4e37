"""The cluster's list of events, and those who follow it."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator

from snooze.common.api import EventView
from snooze.common.clock import Clock

MAX_EVENTS = 10_000
MAX_FOLLOWERS = 256
MAX_KINDS = 100
"""Kinds that are counted each by itself."""


class EventLog:
    """The latest events, numbered from one; older ones are dropped.

    ``counts``: how many there were of each kind since this leader began.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._events: deque[EventView] = deque(maxlen=MAX_EVENTS)
        self._last = 0
        self.counts: Counter[str] = Counter()
        self._grown = asyncio.Event()
        self.followers = 0
        self._closed = False

    def add(
        self, kind: str, subject: str, message: str, cause: str = "", at_ms: int | None = None
    ) -> None:
        """Append an event and wake its followers."""
        self._last += 1
        known = kind in self.counts or len(self.counts) < MAX_KINDS
        self.counts[kind if known else "other"] += 1
        at_ms = self._clock.wall_ms() if at_ms is None else at_ms
        self._events.append(EventView(self._last, at_ms, kind, subject, message, cause))
        self._grown.set()
        self._grown = asyncio.Event()

    def after(self, seq: int, limit: int) -> list[EventView]:
        """Up to ``limit`` events with a number above ``seq``, oldest first."""
        if not self._events or seq >= self._last:
            return []
        first = self._events[0].seq
        start = max(0, seq + 1 - first)
        stop = min(len(self._events), start + limit)
        return [self._events[index] for index in range(start, stop)]

    async def follow(self, seq: int, silence_s: float) -> AsyncIterator[EventView | None]:
        """Every event above ``seq`` as it comes, until the log is closed; None after a silence.

        A follower that is too slow misses what was dropped meanwhile; the numbers show it.
        """
        self.followers += 1
        try:
            while not self._closed:
                grown = self._grown
                batch = self.after(seq, 100)
                for event in batch:
                    seq = event.seq
                    yield event
                if not batch:
                    try:
                        async with asyncio.timeout(silence_s):
                            await grown.wait()
                    except TimeoutError:
                        yield None
        finally:
            self.followers -= 1

    def close(self) -> None:
        """Let every follower end."""
        self._closed = True
        self._grown.set()

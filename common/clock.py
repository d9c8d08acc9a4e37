"""The only place that reads a clock.

Cores never read time: they are handed ``now_s``. Shells get a ``Clock``.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Time as a shell sees it."""

    def monotonic_s(self) -> float:
        """Seconds that never go backwards; only differences mean something."""
        ...

    def boottime_s(self) -> float:
        """Like ``monotonic_s``, and counts on while the machine is suspended: for leases."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC; may jump."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic_s(self) -> float:
        """Seconds from CLOCK_MONOTONIC."""
        return time.monotonic()

    def boottime_s(self) -> float:
        """Seconds from CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ms(self) -> int:
        """Milliseconds from CLOCK_REALTIME."""
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock that a test moves by hand."""

    def __init__(self, start_s: float = 1000.0, wall_start_ms: int = 1_700_000_000_000) -> None:
        self._start_s = start_s
        self._now_s = start_s
        self._wall_start_ms = wall_start_ms

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._now_s += seconds

    def monotonic_s(self) -> float:
        """The time set."""
        return self._now_s

    def boottime_s(self) -> float:
        """The time set: it is never suspended."""
        return self._now_s

    def wall_ms(self) -> int:
        """The time set, on the wall."""
        return self._wall_start_ms + round((self._now_s - self._start_s) * 1000)


SYSTEM_CLOCK = SystemClock()

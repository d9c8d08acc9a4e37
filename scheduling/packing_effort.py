"""How much work an optimiser may do: steps, time, or both.

The scheduler has no clock. Who wants a time limit hands a monotonic one in; who wants the same
answer every time gives steps only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

DEFAULT_STEPS: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Effort:
    """The bound of one optimisation.

    Attributes:
        steps: most search steps; with these alone the answer depends on the seed only.
        time_limit_s: most seconds by ``monotonic``; checked every few milliseconds.
        monotonic: a clock that never goes back, in seconds; without it the limit does not count.
    """

    steps: int = DEFAULT_STEPS
    time_limit_s: float | None = None
    monotonic: Callable[[], float] | None = None


class Meter:
    """Counts the work of one optimisation against its effort."""

    __slots__ = ("_effort", "_start_s", "steps")

    def __init__(self, effort: Effort) -> None:
        self._effort = effort
        self._start_s = 0.0 if effort.monotonic is None else effort.monotonic()
        self.steps = 0

    @property
    def timed(self) -> bool:
        """Whether seconds count."""
        return self._effort.monotonic is not None and self._effort.time_limit_s is not None

    def elapsed_s(self) -> float:
        """Seconds since the start; 0 without a clock."""
        monotonic = self._effort.monotonic
        return 0.0 if monotonic is None else monotonic() - self._start_s

    def left_s(self) -> float:
        """Seconds left; endless without a time limit."""
        limit = self._effort.time_limit_s
        return float("inf") if limit is None or not self.timed else limit - self.elapsed_s()

    def steps_left(self) -> int:
        """Steps left; 0 when the time is over."""
        return 0 if self.left_s() <= 0 else max(0, self._effort.steps - self.steps)

    def over(self) -> bool:
        """Whether nothing is left."""
        return self.steps_left() == 0

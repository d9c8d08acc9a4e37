"""How many calls of one kind may be under way: the surplus is refused at once, and told to return.

What waits in a queue that is longer than its server can clear is late for everybody. A refusal
costs next to nothing, and says when to come back.

Rules:

1. Never more than ``most`` are let in at a time.
2. When those that end took longer than they should, fewer are let in: a third less, at most once in
   that time. When they end in time, one more for each (as TCP finds its window).
3. Never fewer than ``MIN_UNDER_WAY``: a cluster that answers slowly for other reasons is served on.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from snooze.common.clock import SYSTEM_CLOCK, Clock
from snooze.common.errors import TooBusy

MAX_UNDER_WAY: Final = 256
"""At a hundred submissions a second the last one of these is answered within three seconds."""
MIN_UNDER_WAY: Final = 32
LATE_S: Final = 2.0
"""A call that was let in should be answered within this."""
SHRINK: Final = 2 / 3
RETRY_AFTER_S: Final = 1.0


class Admission:
    """Lets in so many at a time."""

    def __init__(
        self, what: str, most: int = MAX_UNDER_WAY, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """``what`` is named in the refusal: "submissions"."""
        self._what = what
        self._most = most
        self._clock = clock
        self._shrunk_s = -LATE_S
        self.limit = float(most)
        self.under_way = 0
        self.refused = 0

    @contextmanager
    def admit(self) -> Generator[None]:
        """Hold a place. Raises: TooBusy: there is none; nothing happened."""
        if self.under_way >= int(self.limit):
            self.refused += 1
            raise TooBusy(
                f"too many {self._what} are under way ({int(self.limit)}); try again",
                retry_after_s=RETRY_AFTER_S,
            )
        self.under_way += 1
        begun_s = self._clock.monotonic_s()
        try:
            yield
        finally:
            self.under_way -= 1
            self._learn(begun_s, self._clock.monotonic_s())

    def _learn(self, begun_s: float, ended_s: float) -> None:
        if ended_s - begun_s <= LATE_S:
            self.limit = min(float(self._most), self.limit + 1.0)
        elif (
            begun_s > self._shrunk_s
        ):  # it came after the limit was last lowered, and is late still
            self._shrunk_s = ended_s
            self.limit = max(float(min(self._most, MIN_UNDER_WAY)), self.limit * SHRINK)

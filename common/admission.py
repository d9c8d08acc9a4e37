"""How many calls of one kind may be under way: the surplus is refused at once, and told to return.

What waits in a queue that is longer than its server can clear is late for everybody. A refusal
costs next to nothing, and says when to come back.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from snooze.common.errors import TooBusy

MAX_UNDER_WAY: Final = 256
"""At a hundred submissions a second the last one of these is answered within three seconds."""
RETRY_AFTER_S: Final = 1.0


class Admission:
    """Lets in so many at a time."""

    def __init__(self, what: str, limit: int = MAX_UNDER_WAY) -> None:
        """``what`` is named in the refusal: "submissions"."""
        self._what = what
        self._limit = limit
        self.under_way = 0
        self.refused = 0

    @contextmanager
    def admit(self) -> Generator[None]:
        """Hold a place. Raises: TooBusy: there is none; nothing happened."""
        if self.under_way >= self._limit:
            self.refused += 1
            raise TooBusy(
                f"too many {self._what} are under way ({self._limit}); try again",
                retry_after_s=RETRY_AFTER_S,
            )
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

"""Between a core and the world: one bounded queue, effects in order, no reentrance.

A core decides in ``handle(event, now_s) -> list[effect]`` and touches nothing else. The runner
feeds it: callbacks only enqueue; while an event is being handled or its effects carried out, what
they cause is queued behind. ``perform`` must not wait: what takes time it starts as a task whose
outcome comes back as an event.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from snooze.common.clock import Clock
from snooze.common.errors import TooBusy

EventT_contra = TypeVar("EventT_contra", contravariant=True)
EffectT_co = TypeVar("EffectT_co", covariant=True)
E = TypeVar("E")
F = TypeVar("F")

MAX_QUEUED = 100_000
"""More events than this waiting means that the process is lost in work."""

logger = logging.getLogger(__name__)


class Core(Protocol[EventT_contra, EffectT_co]):
    """What decides."""

    def handle(self, event: EventT_contra, now_s: float) -> Sequence[EffectT_co]:
        """Take in a fact, give out orders; ``now_s`` is monotonic."""
        ...


class CoreRunner(Generic[E, F]):
    """Feeds one core and has its effects carried out."""

    def __init__(self, core: Core[E, F], perform: Callable[[F], None], clock: Clock) -> None:
        self._core = core
        self._perform = perform
        self._clock = clock
        self._queue: deque[E] = deque()
        self._draining = False
        self._stopped = False
        self.handled = 0

    @property
    def waiting(self) -> int:
        """Events that are queued."""
        return len(self._queue)

    def feed(self, event: E) -> None:
        """Queue ``event``; handled before this returns unless one is being handled already.

        Raises:
            TooBusy: if the queue is full; the event is not taken.
        """
        if self._stopped:
            return
        if len(self._queue) >= MAX_QUEUED:
            raise TooBusy("too many events are waiting to be decided", retry_after_s=1.0)
        self._queue.append(event)
        if not self._draining:
            self._drain()

    def stop(self) -> None:
        """Decide nothing any more: what is told from now on is the end of its own daemon."""
        self._stopped = True
        self._queue.clear()

    def _drain(self) -> None:
        self._draining = True
        try:
            while self._queue:
                event = self._queue.popleft()
                self.handled += 1
                try:
                    effects = self._core.handle(event, self._clock.monotonic_s())
                except Exception:
                    # A defect of the core must not stop the daemon: the event is lost, the rest
                    # goes on, and reconciliation mends what the event would have told.
                    logger.exception("event refused", extra={"event": repr(event)[:2000]})
                    continue
                for effect in effects:
                    self._perform_one(effect)
        finally:
            self._draining = False

    def _perform_one(self, effect: F) -> None:
        try:
            self._perform(effect)
        except Exception:
            logger.exception("effect failed", extra={"effect": repr(effect)[:2000]})

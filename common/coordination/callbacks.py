"""Calling back: in order, never nested, and whatever a callback raises stays here."""

import logging
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from snooze.common.coordination.port import Cancel

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def call_safely(callback: Callable[[_T], None], value: _T) -> None:
    """Call back as the top of a task would: an error is logged and ends there."""
    try:
        callback(value)
    except Exception:  # noqa: BLE001 - the subscriber's error must not stop the driver.
        _log.exception("coordination callback failed", extra={"value": repr(value)[:200]})


class Callbacks(Generic[_T]):
    """Subscribers to a sequence of values: each gets every value, in order."""

    def __init__(self) -> None:
        self._subscribers: dict[object, Callable[[_T], None]] = {}
        self._pending: deque[_T] = deque()
        self._calling = False

    def add(self, callback: Callable[[_T], None]) -> Cancel:
        """Subscribe until the returned function is called."""
        key = object()
        self._subscribers[key] = callback

        def cancel() -> None:
            self._subscribers.pop(key, None)

        return cancel

    def call(self, value: _T) -> None:
        """Hand ``value`` to all, after the values being handed out at this moment."""
        self._pending.append(value)
        if self._calling:
            return
        self._calling = True
        try:
            while self._pending:
                present = self._pending.popleft()
                for key, callback in list(self._subscribers.items()):
                    if key in self._subscribers:
                        call_safely(callback, present)
        finally:
            self._calling = False

    def clear(self) -> None:
        """Forget all subscribers."""
        self._subscribers.clear()


class Level(Generic[_T]):
    """One subscriber to the present value of something: told the first time and on change."""

    def __init__(self, callback: Callable[[_T], None]) -> None:
        self._callback = callback
        self._seen: Hashable = self  # Equal to no stamp.
        self.cancelled = False

    def cancel(self) -> None:
        """Never call back again."""
        self.cancelled = True

    def offer(self, value: _T, stamp: Hashable) -> None:
        """Report ``value`` unless ``stamp``, which stands for it, is the one last reported."""
        if self.cancelled or stamp == self._seen:
            return
        self._seen = stamp
        call_safely(self._callback, value)

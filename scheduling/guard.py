"""Calls into code we do not trust to return.

A call runs on a thread of its own and is waited for at most the time limit. If it does not come
back, an exception is raised inside that thread, which ends loops in Python; a thread stuck in a C
call cannot be ended and is left behind, as a daemon, and nothing is ever asked of that function
again. That is the bound of what one process can do: a plug-in that crashes the interpreter, or
holds its lock for ever, takes the daemon with it. Local controllers and running VMs do not notice.
"""

import ctypes
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from snooze.scheduling.units import UnitFailed

log = logging.getLogger(__name__)

MAX_FAILURES: Final = 5
"""Failures in a row after which a function is not called again."""

GRACE_S: Final = 0.2
"""How long an interrupted call may take to unwind before it is left behind."""


class _Interrupted(BaseException):
    """Raised inside a thread that took too long."""


T = TypeVar("T")


@dataclass(slots=True)
class _Outcome(Generic[T]):
    value: list[T] = field(default_factory=list[T])
    error: BaseException | None = None


@dataclass(slots=True)
class Guard:
    """Runs functions by name, with a time limit, and remembers which are not to be called again.

    Attributes:
        time_limit_s: for each call.
    """

    time_limit_s: float
    _failures: dict[str, int] = field(default_factory=dict[str, int])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, name: str, function: Callable[[], T]) -> T:
        """The value of ``function()``, which also examines what it was answered.

        Raises:
            UnitFailed: it raised, took too long, or has been given up before.
        """
        if self.given_up(name):
            raise UnitFailed("it failed too often and is not called any more")
        outcome = _Outcome[T]()

        def run() -> None:
            try:
                outcome.value.append(function())
            except BaseException as error:  # noqa: BLE001 - the top of this thread
                outcome.error = error

        thread = threading.Thread(target=run, name=f"plug-in {name}", daemon=True)
        thread.start()
        thread.join(self.time_limit_s)
        if thread.is_alive():
            self._interrupt(thread)
            self._failures[name] = MAX_FAILURES
            raise self._failed(name, f"no answer within {self.time_limit_s:g} s")
        if outcome.error is not None:
            with self._lock:
                self._failures[name] = self._failures.get(name, 0) + 1
            raise self._failed(name, _story(outcome.error))
        with self._lock:
            self._failures[name] = 0
        return outcome.value[0]

    def given_up(self, name: str) -> bool:
        """True if ``name`` hung once, or failed ``MAX_FAILURES`` times in a row."""
        return self._failures.get(name, 0) >= MAX_FAILURES

    def _failed(self, name: str, story: str) -> UnitFailed:
        log.warning(
            "plug-in failed", extra={"plugin": name, "why": story, "given_up": self.given_up(name)}
        )
        return UnitFailed(story)

    def _interrupt(self, thread: threading.Thread) -> None:
        if thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(_Interrupted)
            )
            thread.join(min(GRACE_S, self.time_limit_s))


def _story(error: BaseException) -> str:
    text = str(error)[:200]
    return text if isinstance(error, UnitFailed) else f"{type(error).__name__}: {text}"

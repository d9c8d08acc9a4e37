"""Holding a lease from above, and fencing when it is lost: for managers and hosts.

::

    a grant counts from the moment at which it was asked for, by the asker's own clock:

    asked at a ──────────> granted: valid_s ──────────> holds until a + valid_s

Rules:

1. While its link stands the holder asks three times in the length of what it was last granted, and
   every ``ASK_MIN_S`` while it holds nothing. At most ``MAX_OPEN`` questions are open.
2. A grant never shortens what was granted before: each is a promise. One that is not positive
   grants nothing. An answer to a question of a former link is as good as any other: it counts from
   when it was asked.
3. A host that held a lease fences once it has held none for ``grace_s``, and again every
   ``FENCE_EVERY_S``, until it holds one. One that never held any does not: nothing can have been
   started on it under a lease.

4. A host holds only what it has persisted (``forgo``): the guard, and its next agent, know no more.

Invariant: ``until_s`` never decreases, but to what it was before a grant that could not be
persisted. No clock of another machine is read.
"""

import math
from dataclasses import dataclass, field
from typing import Final, assert_never

ASK_MIN_S: Final = 0.2
ASK_MAX_S: Final = 10.0
MAX_OPEN: Final = 8
NEVER: Final = -1e18
"""Earlier than any time: no lease was ever held."""
FENCE_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class LinkOpened:
    """The link to the granter stands."""


@dataclass(frozen=True, slots=True)
class LinkClosed:
    """It does not any more."""


@dataclass(frozen=True, slots=True)
class Granted:
    """Question ``number`` was answered."""

    number: int
    valid_s: float


@dataclass(frozen=True, slots=True)
class NotGranted:
    """Question ``number`` was not answered."""

    number: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went by."""


LeaseEvent = LinkOpened | LinkClosed | Granted | NotGranted | Ticked


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the granter; answered by ``Granted`` or ``NotGranted``."""

    number: int


@dataclass(frozen=True, slots=True)
class Extended:
    """The lease holds until then (to be persisted by a host)."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Fence:
    """The lease is lost: switch off what may run elsewhere from now on."""

    overdue_s: float


LeaseEffect = Ask | Extended | Fence


@dataclass(slots=True)
class LeaseCore:
    """The holder's side of a lease; see the module's rules.

    ``until_s`` may be given from what was persisted: the same clock, the same boot.
    """

    grace_s: float = 0.0
    fences: bool = False
    until_s: float = NEVER
    connected: bool = False
    number: int = 0
    pause_s: float = ASK_MIN_S
    next_s: float = -math.inf
    fenced_s: float = NEVER
    open: dict[int, float] = field(default_factory=dict[int, float])

    def handle(self, event: LeaseEvent, now_s: float) -> list[LeaseEffect]:
        """Take in one event; ``now_s`` is of a clock that counts through suspend."""
        match event:
            case LinkOpened():
                self.connected, self.next_s = True, now_s
                return self._ask(now_s)
            case LinkClosed():
                self.connected = False
                return []
            case Granted():
                return self._granted(event)
            case NotGranted():
                self.open.pop(event.number, None)
                return []
            case Ticked():
                return self._ask(now_s) + self._fence(now_s)
            case _:
                assert_never(event)

    def left_s(self, now_s: float) -> float:
        """How much longer the lease holds; not positive: it does not."""
        return self.until_s - now_s

    def forgo(self, until_s: float) -> None:
        """What was granted last could not be persisted: it holds until then, as before.

        Asked for again, soon.
        """
        self.until_s = until_s
        self.next_s, self.pause_s = self.next_s - self.pause_s + ASK_MIN_S, ASK_MIN_S

    @property
    def is_lost(self) -> bool:
        """Whether it fenced, and has held no lease since."""
        return self.fenced_s > self.until_s

    def _ask(self, now_s: float) -> list[LeaseEffect]:
        if not self.connected or now_s < self.next_s:
            return []
        while len(self.open) >= MAX_OPEN:  # the oldest can grant the least
            del self.open[next(iter(self.open))]
        self.number += 1
        self.open[self.number] = now_s
        self.next_s = now_s + (self.pause_s if self.left_s(now_s) > 0 else ASK_MIN_S)
        return [Ask(self.number)]

    def _granted(self, event: Granted) -> list[LeaseEffect]:
        asked_s = self.open.pop(event.number, None)
        if asked_s is None or not event.valid_s > 0 or not math.isfinite(event.valid_s):
            return []
        self.pause_s = min(ASK_MAX_S, max(ASK_MIN_S, event.valid_s / 3))
        self.next_s = asked_s + self.pause_s
        until_s = asked_s + event.valid_s
        if until_s <= self.until_s:
            return []
        self.until_s = until_s
        return [Extended(until_s)]

    def _fence(self, now_s: float) -> list[LeaseEffect]:
        overdue_s = -self.left_s(now_s) - self.grace_s
        if not self.fences or self.until_s <= NEVER or overdue_s < 0:
            return []
        if now_s - self.fenced_s < FENCE_EVERY_S:
            return []
        self.fenced_s = now_s
        return [Fence(overdue_s)]

"""How much more will be asked for soon, from what the same hours of the past days brought.

Rules:

1. A day is cut into slots. What was used in each slot of the last days is kept (``DayHistory``).
2. What a past day brought after this hour is its *rise* from its own level at this hour: the level
   of today counts, the shape of the past. The rise of a moment is the ``share``-quantile over the
   days.
3. The answer is the highest moment between now and ``ahead_s`` from now, never less than now.
   Without a past day that knows both this hour and what came after, it is *not known*, and what is
   used now.
4. A slot that lies a little off in time is the same hour still: each moment of a past day stands
   for its neighbours within ``BLUR`` slots, the highest of them.

Energy saving wakes hosts for the rise, ``ahead_s`` being the time that waking takes and some.
Bounded: ``days * slots * axes`` numbers. Time is wall time in seconds since 1970: days are UTC's.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from snooze.common.resources import FloatArray, R
from snooze.scheduling.estimation import in_bounds

DAY_S: Final = 86_400.0
SLOT_S: Final = 300.0
DAYS: Final = 7
"""Source: the five-minute step of the PlanetLab traces; a week has every kind of day."""

BLUR: Final = 1
MIN_SHARE_OF_DAY: Final = 0.5
"""A past day of which less than this is known says nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Anticipated:
    """What is coming.

    Attributes:
        now: ``float64[R]``, used in the newest slot; zeros where nothing was ever observed.
        peak: ``float64[R]``, the most expected until then, by axis; at least ``now``.
        in_s: until the CPU's peak begins; 0 if it is now.
        days: past days that had a say; 0 means *not known*: ``peak`` is ``now``.
    """

    now: FloatArray
    peak: FloatArray
    in_s: float
    days: int

    @property
    def rise(self) -> FloatArray:
        """``float64[R]``: how much more than now."""
        more: FloatArray = self.peak - self.now
        return more


class DayHistory:
    """What a cluster used over the last days; row ``d`` is the day ``d`` days before the newest.

    The newest observation's slot is the mean of the observations in it.
    """

    __slots__ = ("_counts", "_newest", "_values", "slot_s")

    def __init__(self, days: int = DAYS, slot_s: float = SLOT_S, axes: int = R) -> None:
        """``days`` kept, today included, at least 2; ``slot_s`` divides a day."""
        slots = round(DAY_S / slot_s)
        self.slot_s = DAY_S / slots
        self._values: FloatArray = np.full((days * slots, axes), np.nan)
        self._counts = np.zeros(days * slots, dtype=np.int64)
        self._newest = -1

    def observe(self, wall_s: float, used: FloatArray) -> bool:
        """Note what is used now, ``float64[R]``; False if that can not be, or is of the past."""
        slot = int(wall_s // self.slot_s)
        if used.shape != self._values.shape[1:] or not in_bounds(used).all():
            return False
        if slot < self._newest:
            return False
        size = len(self._values)
        if self._newest >= 0:
            passed = (self._newest + 1 + np.arange(min(slot - self._newest, size))) % size
            self._values[passed] = np.nan
            self._counts[passed] = 0
        self._newest = slot
        at = slot % size
        count = self._counts[at]
        before = self._values[at] if count else np.zeros_like(used)
        self._values[at] = before + (used - before) / (count + 1)
        self._counts[at] = count + 1
        return True

    def anticipate(self, ahead_s: float, share: float = 0.75) -> Anticipated:
        """The peak between the newest observation and ``ahead_s`` later.

        Args:
            ahead_s: from 0 to a day.
            share: of the past days whose rise is to be covered, 0 to 1; 1 is the worst of them.
        """
        axes = self._values.shape[1]
        if self._newest < 0:
            nothing = np.zeros(axes)
            return Anticipated(nothing, nothing, 0.0, 0)
        slots, size = round(DAY_S / self.slot_s), len(self._values)
        now: FloatArray = self._values[self._newest % size].copy()
        steps = int(np.clip(np.ceil(ahead_s / self.slot_s), 0, slots - 1 - BLUR))
        days = size // slots
        rises: list[FloatArray] = []
        for day in range(1, days):
            rise = self._rise(self._newest - day * slots, steps, slots)
            if rise is not None:
                rises.append(rise)
        if not rises or not steps:
            return Anticipated(now, now.copy(), 0.0, len(rises))
        stacked = np.array(rises)
        with np.errstate(all="ignore"):
            known = ~np.isnan(stacked).all(axis=0)
            usual = np.zeros(stacked.shape[1:])
            usual[known] = np.nanquantile(stacked[:, known], min(max(share, 0.0), 1.0), axis=0)
        coming = np.maximum(now + usual, 0.0)
        peak: FloatArray = np.maximum(coming.max(axis=0), now)
        first = int(np.argmax(coming[:, 0] >= peak[0])) + 1 if peak[0] > now[0] else 0
        return Anticipated(now, peak, first * self.slot_s, len(rises))

    def _rise(self, then: int, steps: int, slots: int) -> FloatArray | None:
        """``float64[steps, R]``: a past day's slots after ``then``, less its level around it.

        None if that day is not known well enough.
        """
        size = len(self._values)
        oldest = self._newest - size + 1
        if then - BLUR < max(oldest, 0):
            return None
        whole = self._values[np.arange(max(oldest, then - slots // 2), then + slots // 2) % size]
        if np.isnan(whole[:, 0]).mean() > 1 - MIN_SHARE_OF_DAY:
            return None
        level = self._values[np.arange(then - BLUR, then + BLUR + 1) % size]
        if np.isnan(level).all(axis=0).any():
            return None
        base = np.nanmean(level, axis=0)
        after = np.arange(1, steps + 1)[:, None] + np.arange(-BLUR, BLUR + 1)
        moments = self._values[(then + after) % size]
        filled = np.where(np.isnan(moments), -np.inf, moments).max(axis=1)
        rise: FloatArray = np.where(np.isfinite(filled), filled - base, np.nan)
        return rise

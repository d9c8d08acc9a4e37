"""Samples of many things over time, each thing at its own pace, read as one aligned window.

Rules:

1. Time is cut into *slots* of ``period_s``. A thing's slots follow its own samples: the next one is
   about a period after the one before, whatever the phase. A sample that comes two periods later
   leaves one slot without a value; that is how a missed interval is seen.
2. Samples that fall into one slot are averaged. A sample of a thing that is measured more rarely
   (``interval_s`` over a period) stands for all the slots that it covers.
3. A window ends now. Its last column holds a thing's newest slot while that is fresh (not older
   than one and a half of its intervals); for a stale thing the last columns are not valid.
4. A sample that is not usable (see ``estimation``) takes its place in time and is not valid.

``push`` and ``window`` work on arrays of rows at once. Memory: ``rows * length * (8 * axes + 9)``
bytes; rows are added by doubling, up to what the owner asks for.
"""

import math
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from snooze.common.resources import FloatArray
from snooze.scheduling.estimation import Window, in_bounds
from snooze.scheduling.snapshot import BoolArray, IntArray

T = TypeVar("T", bound=np.generic)

FOLLOW: Final = 0.25
"""How much of a sample's distance from its slot moves the slots after it: a slow drift is followed,
a jitter of half a period is not. Samples that come more often than twice a slot move nothing."""

JITTER: Final = 0.25
"""In periods: what is longer by no more than this is not longer."""

LATE: Final = 1.5
"""In intervals: a newest sample that is older than this is stale, and its successor was missed."""


class SampleHistory:
    """The last ``length`` slots of each row. Row 0 is nobody's and never has a sample."""

    __slots__ = (
        "_count",
        "_head",
        "_interval_s",
        "_samples",
        "_seen_s",
        "_slot_s",
        "_taken_ms",
        "_valid",
        "length",
        "period_s",
    )

    def __init__(self, length: int, axes: int, period_s: float, rows: int = 64) -> None:
        """``length`` at least 1; ``period_s`` over 0; ``rows`` to begin with, at least 1."""
        self.length = length
        self.period_s = period_s
        self._samples: FloatArray = np.zeros((rows, length, axes))
        self._valid: BoolArray = np.zeros((rows, length), dtype=np.bool_)
        self._taken_ms: IntArray = np.zeros((rows, length), dtype=np.int64)
        self._count: IntArray = np.zeros(rows, dtype=np.int64)
        self._head: IntArray = np.zeros(rows, dtype=np.int64)
        self._slot_s: FloatArray = np.full(rows, -np.inf)
        self._seen_s: FloatArray = np.full(rows, -np.inf)
        self._interval_s: FloatArray = np.full(rows, period_s)

    @property
    def rows(self) -> int:
        """How many rows there are, row 0 included."""
        return len(self._head)

    def grow(self, rows: int) -> None:
        """Have at least so many rows."""
        more = rows - self.rows
        if more <= 0:
            return
        self._samples = _longer(self._samples, more, 0.0)
        self._valid = _longer(self._valid, more, False)
        self._taken_ms = _longer(self._taken_ms, more, 0)
        self._count = _longer(self._count, more, 0)
        self._head = _longer(self._head, more, 0)
        self._slot_s = _longer(self._slot_s, more, -np.inf)
        self._seen_s = _longer(self._seen_s, more, -np.inf)
        self._interval_s = _longer(self._interval_s, more, self.period_s)

    def clear(self, rows: IntArray) -> None:
        """Forget all samples of ``rows``, so that they can be given to other things."""
        self._valid[rows] = False
        self._samples[rows] = 0.0
        self._count[rows] = 0
        self._head[rows] = 0
        self._slot_s[rows] = -np.inf
        self._seen_s[rows] = -np.inf
        self._interval_s[rows] = self.period_s

    def push(
        self,
        rows: IntArray,
        samples: FloatArray,
        now_s: float,
        *,
        interval_s: float,
        usable: BoolArray | None = None,
        taken_ms: int = 0,
    ) -> None:
        """Add ``samples[i]`` to each of ``rows`` (all different, none 0).

        Args:
            now_s: when they arrived; a clock that goes backwards changes nothing before.
            interval_s: how long a sample stands for, in slots that would be empty otherwise.
            usable: ``bool[N]``, False where a sample says nothing.
            taken_ms: handed back by ``newest_first``.
        """
        sound: BoolArray = np.all(in_bounds(samples), axis=1)
        if usable is not None:
            sound &= usable
        follow = FOLLOW if interval_s >= self.period_s / 2 else 0.0
        steps = self._advance(rows, now_s, follow)
        values = samples if sound.all() else np.where(sound[:, None], samples, 0.0)
        at = self._head[rows]
        if steps.all():
            self._samples[rows, at] = values
            self._valid[rows, at] = sound
            self._count[rows] = sound
        else:
            self._blend(rows, at, values, sound, steps)
        self._taken_ms[rows, at] = taken_ms
        self._interval_s[rows] = max(interval_s, self.period_s)
        self._seen_s[rows] = np.maximum(self._seen_s[rows], now_s)
        covered = min(self.length, math.ceil(interval_s / self.period_s - JITTER))
        for back in range(1, covered):
            filled = steps > back
            before = (at[filled] - back) % self.length
            self._samples[rows[filled], before] = values[filled]
            self._valid[rows[filled], before] = sound[filled]
            self._taken_ms[rows[filled], before] = taken_ms

    def _blend(
        self, rows: IntArray, at: IntArray, values: FloatArray, sound: BoolArray, steps: IntArray
    ) -> None:
        """Put values into slots, some of which have one already."""
        counted = np.where(steps > 0, 0, self._count[rows])
        mean = self._samples[rows, at]
        mean += (values - mean) / (counted + 1)[:, None]
        kept = np.where(sound[:, None], mean, self._samples[rows, at])
        self._samples[rows, at] = np.where((counted == 0)[:, None], values, kept)
        self._valid[rows, at] = sound | ((counted > 0) & self._valid[rows, at])
        self._count[rows] = counted + sound

    def _advance(self, rows: IntArray, now_s: float, follow: float) -> IntArray:
        """Move each row on to the slot of ``now_s``; how many slots that was.

        Slots in between are emptied; the one arrived at is not.
        """
        slot_s = self._slot_s[rows]
        fresh = slot_s == -np.inf
        some = bool(fresh.any())
        known_s = np.where(fresh, now_s - self.period_s, slot_s) if some else slot_s
        whole = np.maximum(np.rint((now_s - known_s) / self.period_s), 0.0)
        steps: IntArray = np.minimum(whole, self.length).astype(np.int64)
        due_s = known_s + whole * self.period_s
        moved_s = due_s + follow * (now_s - due_s)
        self._slot_s[rows] = np.where(steps > 0, moved_s, slot_s)
        head = self._head[rows]
        for step in range(1, int(steps.max(initial=0))):
            passed = steps > step
            between = (head[passed] + step) % self.length
            self._valid[rows[passed], between] = False
            self._samples[rows[passed], between] = 0.0
        self._head[rows] = (head + steps) % self.length
        return steps

    def window(self, rows: IntArray, now_s: float) -> Window:
        """The slots of ``rows`` (any order, 0 for a thing that is unknown), ending now."""
        late = self._missed(rows, now_s)
        column = np.arange(self.length) + late[:, None]
        order = (self._head[rows][:, None] + 1 + column) % self.length
        pick = rows[:, None]
        valid: BoolArray = self._valid[pick, order] & (column < self.length)
        samples = self._samples[pick, order]
        samples[~valid] = 0.0
        return Window(samples, valid)

    def recent_mean(self, rows: IntArray, slots: int) -> tuple[FloatArray, BoolArray]:
        """``float64[N, R]``: mean of the valid ones of the newest ``slots``; and where any is."""
        order = (self._head[rows][:, None] - np.arange(min(slots, self.length))) % self.length
        pick = rows[:, None]
        valid: BoolArray = self._valid[pick, order]
        counts = valid.sum(axis=1)
        total = (self._samples[pick, order] * valid[:, :, None]).sum(axis=1)
        return total / np.maximum(counts, 1)[:, None], counts > 0

    def _missed(self, rows: IntArray, now_s: float) -> IntArray:
        """By how many slots each row is behind."""
        age_s = self.age_s(rows, now_s)
        interval_s = self._interval_s[rows]
        periods = np.where(np.isfinite(age_s), age_s / self.period_s, self.length)
        missed = np.clip(np.floor(periods - (LATE - 1.0)), 1, self.length)
        late: IntArray = np.where(age_s > LATE * interval_s, missed, 0).astype(np.int64)
        return late

    def age_s(self, rows: IntArray, now_s: float) -> FloatArray:
        """``float64[N]``: since the newest sample; infinite where there is none."""
        age: FloatArray = np.maximum(now_s - self._seen_s[rows], 0.0)
        return age

    def is_fresh(self, rows: IntArray, now_s: float) -> BoolArray:
        """``bool[N]``: whether the newest sample is no older than ``LATE`` of its intervals."""
        fresh: BoolArray = self.age_s(rows, now_s) <= LATE * self._interval_s[rows]
        return fresh

    def newest_first(self, row: int, entries: int) -> list[tuple[int, FloatArray]]:
        """Up to ``entries`` valid slots of one row as ``(taken_ms, sample)``."""
        found: list[tuple[int, FloatArray]] = []
        for back in range(self.length):
            if len(found) >= entries:
                break
            at = (int(self._head[row]) - back) % self.length
            if self._valid[row, at]:
                found.append((int(self._taken_ms[row, at]), self._samples[row, at].copy()))
        return found


def _longer(array: NDArray[T], more: int, fill: float) -> NDArray[T]:
    return np.concatenate([array, np.full((more, *array.shape[1:]), fill, dtype=array.dtype)])

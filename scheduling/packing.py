"""Vector bin packing: as few equal bins as possible, better the longer it may think.

``pack`` starts from the best of a few greedy packings (``packing_greedy``). Where the lower bound
leaves almost no room to waste it lists the bins that are full enough and covers the items with
them (``packing_patterns``). Then it takes bin after bin away and fits its items into the others by
guided ejection search (``packing_kernels``), until the lower bound is met, the effort is spent, or
further progress is unlikely.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from snooze.common.resources import FloatArray
from snooze.scheduling.bounds import Bound, packing_bound
from snooze.scheduling.packing_effort import Effort, Meter
from snooze.scheduling.packing_greedy import (
    Measure,
    constructions,
    descending,
    first_fit,
    limit_of,
    shares,
    sizes,
)
from snooze.scheduling.snapshot import MAX_VALUE, NONE, BoolArray, IntArray, Problem

SHAKES: Final = 30
"""Random exchanges tried after each ejection."""

WINDOW: Final = 512
"""Bins that one ejection looks at."""

PATIENCE: Final = 8_000
"""Give a bin up after so many steps per item; measured: docs/benchmarks/packing.md."""

CHUNK_S: Final = 0.02
"""About how long the compiled loop runs before the clock is asked again."""

PATTERNS_MOST: Final = 30_000
PATTERN_LENGTH_MOST: Final = 12
NODES_CHUNK: Final = 500_000
NODES_MOST: Final = 250_000_000
"""Sets looked at when patterns are listed: a few seconds."""
PATTERN_SHARE: Final = 0.35
"""The part of the time left that listing patterns may take."""
NODES_PER_STEP: Final = 100
INTERPRETED: Final = 500
"""How much less is done where kernels are not compiled."""
COVER_STEPS: Final = 400_000
COVER_CHUNK: Final = 2_000
WASTE_MOST: Final = 0.5
"""Patterns are listed if some resource may waste at most this part of one bin, over all bins."""


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """The answer.

    Attributes:
        bin_of: ``int64[n]``, the bin of each item from 0 on; -1 for an item that fits no bin.
        bins: how many bins are used.
        bound: how many are needed at least.
        method: what found the last improvement.
        steps: search steps done.
        problems: what was wrong with the input, item by item.
    """

    bin_of: IntArray
    bins: int
    bound: Bound
    method: str
    steps: int = 0
    problems: tuple[Problem, ...] = ()

    @property
    def optimal(self) -> bool:
        """Whether the bound proves that no packing uses fewer bins."""
        return self.bins <= self.bound.count


def pack(
    items: ArrayLike,
    capacity: ArrayLike,
    *,
    effort: Effort | None = None,
    seed: int = 0,
    allow_negative: bool = False,
) -> Packing:
    """Pack ``items[n, R]`` into as few bins of ``capacity[R]`` as the effort allows.

    Never raises on bad values: an item that is not a number, negative, or larger than a bin gets
    bin -1 and a line in ``problems``, and the others are packed.

    Args:
        items: one row per item.
        capacity: of every bin.
        effort: steps and seconds; default a fixed number of steps.
        seed: of the search; the same seed, steps and input give the same answer.
        allow_negative: let parts of an item be negative, giving room back to its bin. A demand of
            a VM never is; some published instances have such items.
    """
    rows, sizes_ok, problems = _validated(items, capacity, allow_negative)
    bin_of = np.full(len(rows), NONE, dtype=np.int64)
    if not sizes_ok.any():
        return Packing(bin_of, 0, Bound(0, "nothing to pack"), "none", problems=problems)
    search = _Search(rows[sizes_ok], np.asarray(capacity, dtype=np.float64), effort, seed)
    search.run()
    bin_of[sizes_ok] = search.best
    return Packing(
        bin_of, search.bins, search.bound, search.method, search.meter.steps, tuple(problems)
    )


def _validated(
    items: ArrayLike, capacity: ArrayLike, allow_negative: bool
) -> tuple[FloatArray, BoolArray, tuple[Problem, ...]]:
    """The items, which of them can be packed, and what is wrong with the others."""
    nothing = np.zeros((0, 0)), np.zeros(0, dtype=np.bool_)
    try:
        rows = np.asarray(items, dtype=np.float64)
        room = np.asarray(capacity, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return *nothing, (Problem("items", "items and capacity must be arrays of numbers"),)
    if room.ndim != 1 or not (np.isfinite(room) & (room >= 0) & (room <= MAX_VALUE)).all():
        return *nothing, (Problem("capacity", "must be a vector of numbers from 0 on"),)
    if rows.size == 0:
        return *nothing, ()
    if rows.ndim != 2 or rows.shape[1] != len(room):
        message = f"shape {rows.shape} does not match {len(room)} resources"
        return *nothing, (Problem("items", message),)
    numbers = np.nan_to_num(rows)
    finite: BoolArray = np.asarray((np.isfinite(rows) & (np.abs(numbers) <= MAX_VALUE)).all(axis=1))
    negative = finite & (numbers < 0).any(axis=1) & (not allow_negative)
    large = finite & ~negative & (numbers > limit_of(room)).any(axis=1)
    problems = [
        Problem(f"items[{item}]", message)
        for wrong, message in (
            (~finite, "not finite numbers"),
            (negative, "negative"),
            (large, "larger than a bin"),
        )
        for item in np.flatnonzero(wrong)
    ]
    packable: BoolArray = np.asarray(finite & ~negative & ~large)
    return rows, packable, tuple(problems)


class _Search:
    """One optimisation in progress: the best packing so far, and what is left to spend."""

    def __init__(
        self, items: FloatArray, capacity: FloatArray, effort: Effort | None, seed: int
    ) -> None:
        useful = np.flatnonzero((items != 0).any(axis=0) & (capacity > 0))
        scarce = items[:, useful].sum(axis=0) / capacity[useful]
        axes = useful[np.argsort(-scarce, kind="stable")]  # what fits not is seen at once
        self.items = np.ascontiguousarray(items[:, axes])
        self.capacity = capacity[axes]
        self.meter = Meter(effort if effort is not None else Effort())
        self.state: IntArray = np.array([seed % 2147483646 + 1, 0], dtype=np.int64)
        self.size = sizes(shares(self.items, self.capacity), Measure.WEIGHTED)
        self.bound = packing_bound(self.items, self.capacity)
        self.best: IntArray = np.arange(len(items))
        self.bins = len(items)
        self.method = "one bin each"
        self._chunk = 64

    def run(self) -> None:
        """Improve until nothing is left to do."""
        if self.items.shape[1] == 0:
            self._offer(np.zeros(len(self.items), dtype=np.int64), "no demand")
            return
        for method, bin_of in constructions(self.items, self.capacity):
            self._offer(bin_of, method)
            if self.bins <= self.bound.count:
                return
        self._cover_tightly()
        while self.bins > self.bound.count and self._drop_a_bin():
            pass

    def _offer(self, bin_of: IntArray, method: str) -> None:
        bins = int(bin_of.max()) + 1
        if bins < self.bins:
            self.best, self.bins, self.method = bin_of, bins, method

    def _cover_tightly(self) -> None:
        """Where little may be wasted: bins that are full enough, found completely."""
        slack = limit_of(self.capacity) - self.capacity
        while self.bins > self.bound.count and not self.meter.over():
            waste = self.bound.count * (self.capacity + slack) - self.items.sum(axis=0)
            if (waste > WASTE_MOST * self.capacity).all():
                return
            patterns, lengths, complete = self._patterns(slack, waste)
            start, of_item = _by_item(patterns, lengths, len(self.items))
            if (np.diff(start) == 0).any():  # an item that no bin so full can hold
                if not complete:
                    return
                self.bound = Bound(self.bound.count + 1, "patterns")
                continue
            if len(patterns) < PATTERNS_MOST:
                self._cover(patterns, lengths, start, of_item)
            return

    def _patterns(self, slack: FloatArray, waste: FloatArray) -> tuple[IntArray, IntArray, bool]:
        """All bins that waste at most ``waste``, as far as the effort goes; whether all."""
        from snooze.scheduling import packing_jit, packing_patterns

        order = descending(sizes(shares(self.items, self.capacity), Measure.MAX))
        listing = packing_patterns.start_listing(
            self.items[order],
            self.capacity + slack,
            self.capacity - waste - slack,
            PATTERNS_MOST,
            PATTERN_LENGTH_MOST,
        )
        nodes = NODES_CHUNK if packing_jit.COMPILED else NODES_CHUNK // INTERPRETED
        until_s = self.meter.left_s() * (1 - PATTERN_SHARE)
        left = NODES_MOST
        while left > 0 and not listing.ended and not self.meter.over():
            packing_patterns.list_patterns(listing, nodes)
            self.meter.steps += nodes // NODES_PER_STEP
            left -= NODES_CHUNK
            if self.meter.timed and self.meter.left_s() < until_s:
                break
        found = listing.found
        return order[listing.patterns[:found]], listing.lengths[:found], listing.complete

    def _cover(
        self, patterns: IntArray, lengths: IntArray, start: IntArray, of_item: IntArray
    ) -> None:
        """Cover the items with disjoint patterns; what stays bare is packed by first fit."""
        from snooze.scheduling import packing_jit, packing_patterns

        seed = int(self.state[0])
        state = packing_patterns.start_cover(patterns, lengths, start, of_item, seed)
        steps, chunk = COVER_STEPS, COVER_CHUNK
        if not packing_jit.COMPILED:
            steps, chunk = steps // INTERPRETED, chunk // INTERPRETED
        until_s = self.meter.left_s() * (1 - PATTERN_SHARE)
        while steps > 0 and state.progress[packing_patterns.BARE] and not self.meter.over():
            done = packing_patterns.cover(state, min(chunk, steps, self.meter.steps_left()))
            self.meter.steps += done
            steps -= done
            if self.meter.timed and self.meter.left_s() < until_s:
                break
        covered = state.best >= 0
        bin_of = np.full(len(self.items), NONE, dtype=np.int64)
        used, bin_of[covered] = np.unique(state.best[covered], return_inverse=True)
        bare = np.flatnonzero(~covered)
        if bare.size:
            order = descending(self.size[bare])
            bin_of[bare] = len(used) + first_fit(self.items[bare], self.capacity, order)
        self._offer(bin_of, "patterns")

    def _drop_a_bin(self) -> bool:
        """Take the emptiest bin away and fit its items elsewhere; whether that worked."""
        from snooze.scheduling import packing_kernels

        if self.meter.over():
            return False
        loads = np.bincount(self.best, weights=self.size, minlength=self.bins)
        dropped = int(loads.argmin())
        bin_of = np.where(self.best == dropped, NONE, self.best)
        bin_of[self.best == self.bins - 1] = NONE if dropped == self.bins - 1 else dropped
        limit = np.repeat(limit_of(self.capacity)[None, :], self.bins - 1, axis=0)
        seed = int(self.state[packing_kernels.RNG])
        bins = packing_kernels.make_bins(self.items, limit, self.size, bin_of, seed)
        patience = PATIENCE * len(self.items)
        while bins.state[packing_kernels.TRASHED] and patience > 0 and not self.meter.over():
            before_s = self.meter.elapsed_s()
            asked = min(self._chunk, patience, self.meter.steps_left())
            done = packing_kernels.search(bins, asked, SHAKES, WINDOW)
            self.meter.steps += done
            patience -= done
            self._pace(done, self.meter.elapsed_s() - before_s)
        self.state[packing_kernels.RNG] = bins.state[packing_kernels.RNG]
        if bins.state[packing_kernels.TRASHED]:
            return False
        self._offer(bins.assign.copy(), "ejection")
        return True

    def _pace(self, done: int, took_s: float) -> None:
        """Set how many steps the loop does at a time; the answer does not depend on it."""
        if not self.meter.timed:
            self._chunk = 1 << 16
        elif took_s > 0 and done:
            self._chunk = max(1, min(1 << 16, math.ceil(done * CHUNK_S / took_s)))


def _by_item(patterns: IntArray, lengths: IntArray, items: int) -> tuple[IntArray, IntArray]:
    """Which patterns each item is in: offsets ``int64[n + 1]`` into a list of patterns."""
    members = patterns[np.arange(patterns.shape[1])[None, :] < lengths[:, None]]
    pattern = np.repeat(np.arange(len(patterns)), lengths)
    order = np.argsort(members, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(members, minlength=items))])
    return start.astype(np.int64), pattern[order]

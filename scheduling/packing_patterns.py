"""Packing when there is no room to waste: list all bins that are full enough, cover the items.

If ``k`` bins are to suffice, all of them together may waste ``k * capacity - sum(items)`` and no
single bin more than that. When that is little, few sets of items fill a bin well enough. They are
listed completely (*patterns*), and disjoint ones are sought that cover all items: by ejection
again, now of whole patterns. If the list is complete and an item is in none, ``k`` bins do not
suffice: the lower bound rises.

Source: the completion of bins under a waste bound is R. Korf, "A new algorithm for optimal bin
packing", AAAI 2002; the search over patterns is the one of ``packing_kernels``.
"""

from typing import Final, NamedTuple

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.packing_jit import compiled
from snooze.scheduling.packing_kernels import draw
from snooze.scheduling.snapshot import NONE, BoolArray, IntArray

DEPTH: Final = 0
FOUND: Final = 1
LONG: Final = 2
"""Where ``Listing.progress`` keeps what."""

BARE: Final = 1
FEWEST: Final = 2
"""Where ``Cover.progress`` keeps what, after the random number generator."""


class Listing(NamedTuple):
    """A listing in progress of all sets of items whose sum is between floor and limit.

    Attributes:
        items: ``float64[n, R]``, in the order in which they are tried; big ones first is quickest.
        limit: ``float64[R]``.
        floor: ``float64[R]``.
        low: ``float64[n + 1, R]``, the smallest item from each on; infinite at the end.
        high: ``float64[n + 1, R]``, the largest from each on.
        slack: ``float64[R]``, what items with negative parts may give back.
        stack: ``int64[L + 1]``, the items of the set at hand; the last is the next to try.
        load: ``float64[L + 2, R]``, its sums.
        patterns: ``int64[P, L]``, the sets found, at most P of at most L items.
        lengths: ``int64[P]``, how many items each has.
        progress: ``int64[3]``: depth of the stack (-1 at the end), sets found, sets too long.
    """

    items: FloatArray
    limit: FloatArray
    floor: FloatArray
    low: FloatArray
    high: FloatArray
    slack: FloatArray
    stack: IntArray
    load: FloatArray
    patterns: IntArray
    lengths: IntArray
    progress: IntArray

    @property
    def found(self) -> int:
        """How many sets were found so far."""
        return int(self.progress[FOUND])

    @property
    def complete(self) -> bool:
        """Whether these are all."""
        return bool(self.progress[DEPTH] < 0 and self.progress[LONG] == 0)

    @property
    def ended(self) -> bool:
        """Whether there is no more to find, or no room for more."""
        return bool(self.progress[DEPTH] < 0) or self.found == len(self.patterns)


def start_listing(
    items: FloatArray, limit: FloatArray, floor: FloatArray, patterns_most: int, length_most: int
) -> Listing:
    """A listing that has found nothing yet."""
    count, axes = items.shape
    low = np.full((count + 1, axes), np.inf)
    low[:count] = np.minimum.accumulate(items[::-1], axis=0)[::-1]
    high = np.zeros((count + 1, axes))
    high[:count] = np.maximum.accumulate(items[::-1], axis=0)[::-1]
    return Listing(
        items=np.ascontiguousarray(items),
        limit=limit,
        floor=floor,
        low=low,
        high=high,
        slack=-np.minimum(items, 0.0).sum(axis=0),
        stack=np.zeros(length_most + 1, dtype=np.int64),
        load=np.zeros((length_most + 2, axes)),
        patterns=np.zeros((patterns_most, length_most), dtype=np.int64),
        lengths=np.zeros(patterns_most, dtype=np.int64),
        progress=np.zeros(3, dtype=np.int64),
    )


@compiled
def list_patterns(listing: Listing, nodes: int) -> None:
    """Go on with a listing for ``nodes`` sets looked at, or to its end."""
    items, limit, floor, low, high, slack, stack, load, patterns, lengths, progress = listing
    n, axes = items.shape
    length_most = patterns.shape[1]
    depth, found = progress[DEPTH], progress[FOUND]
    while depth >= 0 and nodes > 0 and found < patterns.shape[0]:
        i = stack[depth]
        if i >= n:
            depth -= 1
            if depth >= 0:
                stack[depth] += 1
            continue
        nodes -= 1
        possible, full = True, True
        for r in range(axes):
            total = load[depth, r] + items[i, r]
            load[depth + 1, r] = total
            if total > limit[r] + slack[r]:
                possible = False
                break
            if total > limit[r] or total < floor[r]:
                full = False
        if not possible:
            stack[depth] = i + 1
            continue
        if full:
            for t in range(depth + 1):
                patterns[found, t] = stack[t]
            lengths[found] = depth + 1
            found += 1
        more = n - i - 1.0  # items that may still be added
        for r in range(axes):
            if low[i + 1, r] > 0.0:
                more = min(more, (limit[r] + slack[r] - load[depth + 1, r]) // low[i + 1, r])
        if more >= 1.0:
            for r in range(axes):
                if load[depth + 1, r] + more * high[i + 1, r] < floor[r]:
                    possible = False
                    break
        if more < 1.0 or not possible:
            stack[depth] = i + 1
        elif depth + 1 >= length_most:
            progress[LONG] += 1
            stack[depth] = i + 1
        else:
            depth += 1
            stack[depth] = i + 1
    progress[DEPTH], progress[FOUND] = depth, found


class Cover(NamedTuple):
    """A search in progress for disjoint patterns that leave few of ``n`` items uncovered.

    Attributes:
        patterns: ``int64[P, L]``; lengths: ``int64[P]``.
        start: ``int64[n + 1]``; ``of_item[start[v]:start[v + 1]]`` are the patterns with item v.
        of_item: ``int64[...]``.
        owner: ``int64[n]``, the pattern that covers each item, or -1.
        penalty: ``int64[n]``, how often an item was found uncovered, plus one.
        bare: ``int64[n]``, the first ``progress[BARE]`` are the uncovered items.
        place: ``int64[n]``, where in ``bare`` an uncovered item stands.
        marked: ``bool[P]``, all False between steps.
        progress: ``int64[3]``: random number generator, items uncovered, fewest so far.
        best: ``int64[n]``, ``owner`` when the fewest were uncovered.
    """

    patterns: IntArray
    lengths: IntArray
    start: IntArray
    of_item: IntArray
    owner: IntArray
    penalty: IntArray
    bare: IntArray
    place: IntArray
    marked: BoolArray
    progress: IntArray
    best: IntArray


def start_cover(
    patterns: IntArray, lengths: IntArray, start: IntArray, of_item: IntArray, seed: int
) -> Cover:
    """A search that has covered nothing yet; ``seed`` from 1 to 2147483646."""
    count = len(start) - 1
    return Cover(
        patterns=np.ascontiguousarray(patterns),
        lengths=np.ascontiguousarray(lengths),
        start=start,
        of_item=of_item,
        owner=np.full(count, NONE, dtype=np.int64),
        penalty=np.ones(count, dtype=np.int64),
        bare=np.arange(count),
        place=np.arange(count),
        marked=np.zeros(len(patterns), dtype=np.bool_),
        progress=np.array([seed, count, count], dtype=np.int64),
        best=np.full(count, NONE, dtype=np.int64),
    )


@compiled
def _cost(state: Cover, p: int) -> int:
    """Penalties of the items that lose their cover if pattern ``p`` takes its items."""
    patterns, lengths, owner, penalty, marked = (
        state.patterns,
        state.lengths,
        state.owner,
        state.penalty,
        state.marked,
    )
    cost = 0
    for a in range(lengths[p]):
        q = owner[patterns[p, a]]
        if q >= 0:
            cost -= penalty[patterns[p, a]]
            if not marked[q]:
                marked[q] = True
                for b in range(lengths[q]):
                    cost += penalty[patterns[q, b]]
    for a in range(lengths[p]):
        if owner[patterns[p, a]] >= 0:
            marked[owner[patterns[p, a]]] = False
    return int(cost)


@compiled
def cover(state: Cover, steps: int) -> int:
    """Go on for ``steps`` ejections, or until all is covered; how many were done."""
    patterns, lengths, start, owner = state.patterns, state.lengths, state.start, state.owner
    bare, place, progress = state.bare, state.place, state.progress
    for step in range(steps):
        count = progress[BARE]
        if count == 0:
            return step
        v = bare[draw(progress, count)]
        state.penalty[v] += 1
        best_cost, chosen, seen = 1 << 60, -1, 0
        for j in range(start[v], start[v + 1]):
            cost = _cost(state, state.of_item[j])
            if cost < best_cost:
                best_cost, chosen, seen = cost, state.of_item[j], 1
            elif cost == best_cost:
                seen += 1
                if draw(progress, seen) == 0:
                    chosen = state.of_item[j]
        if chosen < 0:
            continue
        for a in range(lengths[chosen]):
            q = owner[patterns[chosen, a]]
            if q >= 0:
                for b in range(lengths[q]):
                    x = patterns[q, b]
                    owner[x] = -1
                    bare[count], place[x] = x, count
                    count += 1
        for a in range(lengths[chosen]):
            x = patterns[chosen, a]
            owner[x] = chosen
            count -= 1
            last = bare[count]
            bare[place[x]], place[last] = last, place[x]
        progress[BARE] = count
        if count < progress[FEWEST]:
            progress[FEWEST] = count
            state.best[:] = owner
    return steps

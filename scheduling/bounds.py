"""Lower bounds: no answer, however clever, can use fewer bins or hosts than these.

Each bound is proven, cheap, and independent of the heuristics it judges.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from snooze.common.resources import TOLERANCE, FloatArray
from snooze.scheduling.snapshot import BoolArray

_EPSILON: Final = 1e-6
"""Taken off before rounding up, so that a sum of floats never claims one bin too many."""

_CLIQUE_MOST: Final = 1_500
"""Items among which conflicts are looked at; the matrix grows with their square."""


@dataclass(frozen=True, slots=True)
class Bound:
    """At least ``count`` bins or hosts are needed; ``by`` names the argument."""

    count: int
    by: str


def packing_bound(items: FloatArray, capacity: FloatArray) -> Bound:
    """How many equal bins are needed at least for ``items[n, R]`` in bins of ``capacity[R]``.

    Items must be finite and fit a bin. Parts may be negative (they give room back); then only the
    bound by sums uses that resource.
    """
    if len(items) == 0:
        return Bound(0, "nothing to pack")
    used = capacity > 0
    share = items[:, used] / capacity[used]
    best = Bound(1, "something to pack")
    if share.shape[1] == 0:
        return best
    best = _better(best, math.ceil(share.sum(axis=0).max() - _EPSILON), "sum")
    positive = share[:, (share >= 0).all(axis=0)]
    for axis in range(positive.shape[1]):
        best = _better(best, _dual_feasible(positive[:, axis]), "dual feasible functions")
    return _better(best, _clique(positive), "items that exclude one another")


def hosts_bound(demand: FloatArray, capacity: FloatArray, kept: BoolArray) -> Bound:
    """How many hosts are needed at least to carry ``demand[V, R]``.

    Args:
        demand: what must be carried.
        capacity: ``float64[H, R]``, room of each host that may be used.
        kept: ``bool[H]``, hosts that cannot be given up, whatever they carry.

    A resource needs the fewest hosts when the largest are filled to the brim; the resource that
    needs most of them counts. With equal hosts the bound is ``packing_bound`` where that is higher.
    """
    forced = int(kept.sum())
    best = Bound(forced, "hosts that cannot be emptied")
    if len(demand) == 0 or len(capacity) == 0:
        return best
    total = demand.sum(axis=0)
    for axis in range(demand.shape[1]):
        free = -np.sort(-capacity[~kept, axis])
        reach = capacity[kept, axis].sum() + np.concatenate([[0.0], np.cumsum(free)])
        enough = reach >= total[axis] * (1 - TOLERANCE) - TOLERANCE
        count = int(np.argmax(enough)) if enough.any() else len(free)
        best = _better(best, forced + count, "sum")
    equal = bool((capacity == capacity[0]).all())
    if equal and bool((demand <= capacity[0]).all()):
        bound = packing_bound(demand, capacity[0])
        best = _better(best, min(bound.count, len(capacity)), bound.by)
    return best


def _better(best: Bound, count: int, by: str) -> Bound:
    return Bound(count, by) if count > best.count else best


def _dual_feasible(share: FloatArray) -> int:
    """The bound of one resource, ``share[n]`` in [0, 1].

    For any threshold t up to a half: items above 1 - t have a bin each, which no item of at least t
    can share; those above a half need different bins; the rest of at least t fills what is left.

    Source: S. Martello, P. Toth, "Lower bounds and reduction procedures for the bin packing
    problem", Discrete Applied Mathematics 28 (1990), bound L2.
    """
    order = np.sort(share)
    sums = np.concatenate([[0.0], np.cumsum(order)])
    thresholds = np.unique(order[order <= 0.5])
    halves = np.searchsorted(order, 0.5 + TOLERANCE, side="right")
    if len(thresholds) == 0:
        return len(order) - int(halves)
    alone = np.searchsorted(order, 1.0 - thresholds + TOLERANCE, side="right")
    alone = np.maximum(alone, halves)
    small = np.searchsorted(order, thresholds, side="left")
    big_count = len(order) - halves
    big_room = (alone - halves) - (sums[alone] - sums[halves])
    rest = sums[halves] - sums[small] - big_room
    counts = big_count + np.maximum(0, np.ceil(rest - _EPSILON))
    return int(counts.max())


def _clique(share: FloatArray) -> int:
    """Items of which no two fit one bin, found greedily: each needs its own."""
    if share.shape[1] == 0:
        return 0
    candidates = np.flatnonzero((share > 1.0 - share.max(axis=0)).any(axis=1))
    order = candidates[np.argsort(-share[candidates].max(axis=1), kind="stable")][:_CLIQUE_MOST]
    points = share[order]
    conflict = np.zeros((len(points), len(points)), dtype=np.bool_)
    for axis in range(points.shape[1]):
        conflict |= points[:, axis, None] + points[None, :, axis] > 1.0 + TOLERANCE
    np.fill_diagonal(conflict, False)
    best = 0
    for turn in (np.arange(len(points)), np.argsort(-conflict.sum(axis=1), kind="stable")):
        best = max(best, _extend(conflict, turn))
    return best


def _extend(conflict: BoolArray, order: np.ndarray[tuple[int], np.dtype[np.intp]]) -> int:
    """The size of a clique built by taking, in ``order``, whatever conflicts with all so far."""
    common = np.ones(len(conflict), dtype=np.bool_)
    size = 0
    for item in order:
        if common[item]:
            common &= conflict[item]
            size += 1
    return size

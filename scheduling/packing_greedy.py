"""Greedy vector bin packing in numpy: starting points of the optimiser, and policies themselves.

All take ``items`` and ``capacity`` in any units; sizes are compared after division by capacity.
"""

from enum import StrEnum
from typing import Final

import numpy as np

from snooze.common.resources import TOLERANCE, FloatArray
from snooze.scheduling.snapshot import NONE, IntArray


class Measure(StrEnum):
    """By which number a vector is called big."""

    MAX = "max"
    SUM = "sum"
    EUCLID = "euclid"
    WEIGHTED = "weighted"
    """Each resource counts as much as it is in demand."""


class Rule(StrEnum):
    """Which item a bin takes next.

    Source: R. Panigrahy, K. Talwar, L. Uyeda, U. Wieder, "Heuristics for vector bin packing",
    Microsoft Research 2011.
    """

    DOT = "dot"
    """The one whose shape is most like the room left."""
    L2 = "l2"
    """The one that leaves the shortest vector of room."""


def limit_of(capacity: FloatArray) -> FloatArray:
    """``capacity`` with the tolerance of every "fits" comparison."""
    return capacity + TOLERANCE * np.maximum(1.0, capacity)


def shares(items: FloatArray, capacity: FloatArray) -> FloatArray:
    """``items`` as parts of ``capacity``; a resource nobody has counts nothing."""
    return items / np.where(capacity > 0, capacity, np.inf)


def sizes(share: FloatArray, measure: Measure) -> FloatArray:
    """``float64[n]``: how big each item is."""
    if share.size == 0:
        return np.zeros(len(share))
    if measure is Measure.MAX:
        return np.asarray(share.max(axis=1))
    if measure is Measure.EUCLID:
        return np.asarray(np.sqrt((share * share).sum(axis=1)))
    weight = np.ones(share.shape[1]) if measure is Measure.SUM else share.mean(axis=0)
    return share @ weight


def descending(size: FloatArray) -> IntArray:
    """Indices from the biggest to the smallest; ties to the lowest index."""
    return np.argsort(-size, kind="stable")


def first_fit(items: FloatArray, capacity: FloatArray, order: IntArray | None = None) -> IntArray:
    """``int64[n]``: each item, in ``order``, into the first bin with room.

    An item that fits no empty bin gets -1.
    """
    limit = limit_of(capacity)
    room = np.repeat(limit[:, None], len(items) + 1, axis=1)  # one bin is always open and empty
    needs = items[:, :, None]
    bin_of = np.full(len(items), NONE, dtype=np.int64)
    opened = 0
    for item in range(len(items)) if order is None else order:
        fits = np.logical_and.reduce(room[:, : opened + 1] >= needs[item])
        target = int(fits.argmax())
        if not fits[target]:
            continue
        if target == opened:
            opened += 1
        room[:, target] -= items[item]
        bin_of[item] = target
    return bin_of


def best_fit(items: FloatArray, capacity: FloatArray, order: IntArray) -> IntArray:
    """``int64[n]``: each item, in ``order``, into the bin it leaves with the least room.

    Room is weighted by how much each resource is in demand.
    """
    limit = limit_of(capacity)
    weight = shares(items, capacity).mean(axis=0) / np.where(capacity > 0, capacity, np.inf)
    room = np.repeat(limit[None, :], max(1, len(items)), axis=0)
    bin_of = np.full(len(items), NONE, dtype=np.int64)
    opened = 0
    for item in order:
        need = items[item]
        fits = np.flatnonzero((room[:opened] >= need).all(axis=1))
        if fits.size:
            target = int(fits[(room[fits] @ weight).argmin()])
        elif (need <= limit).all():
            target = opened
            opened += 1
        else:
            continue
        room[target] -= need
        bin_of[item] = target
    return bin_of


def fill_bins(items: FloatArray, capacity: FloatArray, rule: Rule) -> IntArray:
    """``int64[n]``: one bin after the other, each with the best item by ``rule`` till none fits."""
    share = shares(items, capacity)
    weight = share.mean(axis=0)
    limit = limit_of(np.where(capacity > 0, 1.0, 0.0))
    bin_of = np.full(len(items), NONE, dtype=np.int64)
    todo = np.flatnonzero((share <= limit).all(axis=1))
    weighted = share * weight
    lengths = (share * weighted).sum(axis=1)
    opened = 0
    while todo.size:
        room = limit.copy()
        inside = todo
        while inside.size:
            score = weighted[inside] @ room
            if rule is Rule.L2:
                score = 2 * score - lengths[inside]
            best = int(inside[score.argmax()])
            bin_of[best] = opened
            room = room - share[best]
            left = inside[inside != best]
            inside = left[(share[left] <= room).all(axis=1)]
        todo = todo[bin_of[todo] == NONE]
        opened += 1
    return bin_of


PORTFOLIO_MOST: Final = 2_000
"""Beyond so many items only the quickest constructions are tried."""


def constructions(items: FloatArray, capacity: FloatArray) -> list[tuple[str, IntArray]]:
    """Packings by several greedy rules, named; the quickest first."""
    share = shares(items, capacity)
    found: list[tuple[str, IntArray]] = []
    for measure in Measure:
        order = descending(sizes(share, measure))
        found.append((f"first fit by {measure}", first_fit(items, capacity, order)))
    order = descending(sizes(share, Measure.WEIGHTED))
    found.append(("best fit by weighted", best_fit(items, capacity, order)))
    if len(items) <= PORTFOLIO_MOST:
        found += [(f"fill bins by {rule}", fill_bins(items, capacity, rule)) for rule in Rule]
    return found

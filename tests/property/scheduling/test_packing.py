"""Packings against a naive checker and, where that is possible, against all packings there are."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from snooze.common.resources import FloatArray
from snooze.scheduling.bounds import packing_bound
from snooze.scheduling.colony import pack_by_colony
from snooze.scheduling.packing import Packing, pack
from snooze.scheduling.packing_effort import Effort
from snooze.scheduling.packing_greedy import constructions

RELAXED = settings(max_examples=60, deadline=None, derandomize=True)
CAPACITY = 20


@st.composite
def instances(draw: st.DrawFn, items_most: int = 40, least: int = 0) -> FloatArray:
    """Items in whole numbers, each of which fits a bin of 20."""
    count, axes = draw(st.integers(1, items_most)), draw(st.integers(1, 4))
    largest = draw(st.integers(2, CAPACITY))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(least, largest + 1, size=(count, axes)).astype(np.float64)


def assert_sound(items: FloatArray, bin_of: Sequence[int], bins: int) -> None:
    """Every item is in one of the bins, all of which are used and none overfull."""
    loads = [[0.0] * items.shape[1] for _ in range(bins)]
    assert set(bin_of) == set(range(bins))
    for item, target in zip(items.tolist(), bin_of, strict=True):
        loads[target] = [a + b for a, b in zip(loads[target], item, strict=True)]
    assert all(total <= CAPACITY for load in loads for total in load)


def fewest(items: FloatArray) -> int:
    """The optimum, by trying everything."""
    best = len(items)
    for partition in partitions(list(range(len(items)))):
        if len(partition) < best and all(
            (items[part].sum(axis=0) <= CAPACITY).all() for part in partition
        ):
            best = len(partition)
    return best


def partitions(things: list[int]) -> list[list[list[int]]]:
    if not things:
        return [[]]
    first, rest = things[0], things[1:]
    found: list[list[list[int]]] = []
    for partition in partitions(rest):
        found.append([[first], *partition])
        for i in range(len(partition)):
            found.append([*partition[:i], [first, *partition[i]], *partition[i + 1 :]])
    return found


def room_for(items: FloatArray) -> FloatArray:
    return np.full_like(items[0], CAPACITY)


def solve(items: FloatArray, seed: int = 0, *, negative: bool = False) -> Packing:
    return pack(
        items, room_for(items), effort=Effort(steps=3_000), seed=seed, allow_negative=negative
    )


@RELAXED
@given(instances())
def test_packings_are_sound_and_not_below_the_bound(items: FloatArray) -> None:
    packing = solve(items)
    assert_sound(items, packing.bin_of.tolist(), packing.bins)
    assert packing.bound.count <= packing.bins
    for _, bin_of in constructions(items, room_for(items)):
        assert packing.bins <= bin_of.max() + 1


@RELAXED
@given(instances(items_most=7))
def test_small_packings_are_optimal_and_bounds_true(items: FloatArray) -> None:
    optimum = fewest(items)
    packing = solve(items)
    assert packing.bins == optimum
    assert packing.bound.count <= optimum
    assert packing_bound(items, room_for(items)).count <= optimum


@RELAXED
@given(instances(items_most=30, least=-3))
def test_items_that_give_room_back_are_packed_soundly(items: FloatArray) -> None:
    packing = solve(items, negative=True)
    assert_sound(items, packing.bin_of.tolist(), packing.bins)
    assert packing.bound.count <= packing.bins


@RELAXED
@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_bins_without_any_waste_are_found(bins: int, axes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = []
    for _ in range(bins):
        cuts = np.sort(rng.integers(4, 16, size=(axes, 2)), axis=1)
        parts += np.column_stack([cuts[:, 0], cuts[:, 1] - cuts[:, 0], 20 - cuts[:, 1]]).T.tolist()
    items = np.array(parts, dtype=np.float64)[rng.permutation(3 * bins)]
    packing = pack(items, np.full(axes, 20.0), effort=Effort(steps=200_000))
    assert_sound(items, packing.bin_of.tolist(), packing.bins)
    assert packing.bins == bins
    assert packing.optimal


@RELAXED
@given(instances(), st.integers(0, 9))
def test_the_same_seed_gives_the_same_packing(items: FloatArray, seed: int) -> None:
    first, second = solve(items, seed), solve(items, seed)
    assert first.bin_of.tolist() == second.bin_of.tolist()
    assert (first.bins, first.steps, first.method) == (second.bins, second.steps, second.method)


@RELAXED
@given(instances())
def test_ants_pack_soundly(items: FloatArray) -> None:
    bin_of = pack_by_colony(items, room_for(items), seed=1).tolist()
    used = sorted(set(bin_of))
    assert_sound(items, [used.index(b) for b in bin_of], len(used))


@RELAXED
@given(st.lists(st.lists(st.floats(), min_size=2, max_size=2), max_size=8))
def test_no_number_breaks_it(rows: list[list[float]]) -> None:
    packing = pack(rows, [10.0, 10.0], effort=Effort(steps=200))
    assert len(packing.bin_of) == len(rows)
    for row, target in zip(rows, packing.bin_of.tolist(), strict=True):
        good = all(math.isfinite(value) and 0 <= value <= 10.0 * (1 + 1e-8) for value in row)
        if target < 0:
            assert not all(math.isfinite(value) and 0 <= value <= 10.0 for value in row)
        else:
            assert good
    for _, group in itertools.groupby(
        sorted(range(len(rows)), key=lambda i: int(packing.bin_of[i])),
        key=lambda i: int(packing.bin_of[i]),
    ):
        members = list(group)
        if packing.bin_of[members[0]] >= 0:
            for axis in range(2):
                assert math.fsum(rows[i][axis] for i in members) <= 10.0 * (1 + 1e-8)

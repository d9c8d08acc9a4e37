"""The bound of the linear program of bin packing: column generation, its master solved by HiGHS.

Columns are sets of items that fill a bin; the program covers every item at least once. With prices
``u`` of its dual, and ``z`` the most that any bin is worth at these prices, ``sum(u) / z`` is a
lower bound at every round.

Source: A. Farley, "A note on bounding a class of linear programming problems, including cutting
stock problems", Operations Research 38 (1990). HiGHS comes with scipy, a development dependency.
"""

import importlib
import math
import time
from typing import Any, Final

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.packing import pack
from snooze.scheduling.packing_effort import Effort
from snooze.scheduling.packing_jit import compiled
from snooze.scheduling.snapshot import BoolArray

# scipy has no type hints that both checkers understand; results are converted where they come in.
optimize: Any = importlib.import_module("scipy.optimize")
sparse: Any = importlib.import_module("scipy.sparse")

NODES_MOST: Final = 300_000_000
"""Sets looked at in one search for the best column; a few seconds."""


def covering_bound(items: FloatArray, capacity: FloatArray, time_limit_s: float) -> int:
    """The best proven lower bound found within about ``time_limit_s``; 0 without time."""
    end_s = time.perf_counter() + time_limit_s
    if time_limit_s <= 0:
        return 0
    columns: set[tuple[int, ...]] = {(item,) for item in range(len(items))}
    for seed in range(8):
        packing = pack(items, capacity, effort=Effort(steps=20_000), seed=seed)
        columns |= {
            tuple(np.flatnonzero(packing.bin_of == b).tolist()) for b in range(packing.bins)
        }
    rng = np.random.default_rng(0)
    best = 0
    while time.perf_counter() < end_s:
        prices, value = _prices(columns, len(items))
        found = _greedy_columns(items, capacity, prices, rng)
        if not found - columns:
            column, worth = _best_column(items, capacity, prices, NODES_MOST)
            best = max(best, math.ceil(prices.sum() / max(1.0, worth) - 1e-6))
            found = found if column is None else {column}
            if best >= math.ceil(value - 1e-6) or not found - columns:
                break
        columns |= found
    return best


def _prices(columns: set[tuple[int, ...]], items: int) -> tuple[FloatArray, float]:
    """What each item is worth in the dual, and the value of the program so far."""
    ordered = sorted(columns)
    rows = np.concatenate([np.array(column) for column in ordered])
    starts = np.concatenate([[0], np.cumsum([len(column) for column in ordered])])
    matrix = sparse.csc_matrix((np.ones(len(rows)), rows, starts), shape=(items, len(ordered)))
    answer = optimize.linprog(
        np.ones(len(ordered)), A_ub=-matrix, b_ub=-np.ones(items), method="highs"
    )
    return np.maximum(0.0, -np.asarray(answer.ineqlin.marginals)), float(answer.fun)


def _greedy_columns(
    items: FloatArray, capacity: FloatArray, prices: FloatArray, rng: np.random.Generator
) -> set[tuple[int, ...]]:
    """Bins worth more than 1 at these prices, filled greedily in several orders."""
    found: set[tuple[int, ...]] = set()
    useful = np.flatnonzero(prices > 1e-9)
    for _ in range(40):
        weight = rng.dirichlet(np.ones(len(capacity)))
        size = (items[useful] / capacity) @ weight
        noise = rng.uniform(0.8, 1.2, size=len(useful))
        order = useful[np.argsort(-prices[useful] * noise / np.maximum(size, 1e-9))]
        room = capacity.copy()
        inside: list[int] = []
        for item in order.tolist():
            if (items[item] <= room).all():
                room = room - items[item]
                inside.append(item)
        if prices[inside].sum() > 1 + 1e-6:
            found.add(tuple(sorted(inside)))
    return found


def _best_column(
    items: FloatArray, capacity: FloatArray, prices: FloatArray, nodes_most: int
) -> tuple[tuple[int, ...] | None, float]:
    """The bin worth most; what it is worth, or infinity if the search was given up."""
    order = np.argsort(-prices, kind="stable")
    order = order[prices[order] > 1e-9]
    low = np.minimum.accumulate(items[order][::-1], axis=0)[::-1]
    best = np.zeros(len(order), dtype=np.bool_)
    worth, complete = _search(items[order], capacity, prices[order], low, nodes_most, best)
    column = tuple(sorted(order[best].tolist()))
    return column or None, float(worth) if complete else float("inf")


@compiled
def _search(
    items: FloatArray,
    capacity: FloatArray,
    prices: FloatArray,
    low: FloatArray,
    nodes_most: int,
    best: BoolArray,
) -> tuple[float, bool]:
    """Depth first over items by falling price; a branch ends when what may be added is too little.

    At most as many more items fit as the smallest that are left allow, each worth at most the next.
    """
    n, axes = items.shape
    stack = np.zeros(n + 1, dtype=np.int64)
    room = np.zeros((n + 1, axes))
    value = np.zeros(n + 1)
    for r in range(axes):
        room[0, r] = capacity[r] * (1 + 1e-9)
    depth, nodes, top = 0, 0, 1.0 + 1e-9
    stack[0] = 0
    while depth >= 0:
        i = stack[depth]
        more = float(n - i)
        if i < n:
            for r in range(axes):
                if low[i, r] > 0.0:
                    more = min(more, room[depth, r] // low[i, r])
        if i >= n or value[depth] + more * prices[i] <= top:
            depth -= 1
            if depth >= 0:
                stack[depth] += 1
            continue
        nodes += 1
        if nodes > nodes_most:
            return top, False
        fits = True
        for r in range(axes):
            room[depth + 1, r] = room[depth, r] - items[i, r]
            if room[depth + 1, r] < 0.0:
                fits = False
        if not fits:
            stack[depth] = i + 1
            continue
        depth += 1
        value[depth] = value[depth - 1] + prices[i]
        stack[depth] = i + 1
        if value[depth] > top:
            top = value[depth]
            best[:] = False
            for t in range(depth):
                best[stack[t]] = True
    return top, True

"""The bound of the linear program of bin packing, by column generation with HiGHS.

Columns are sets of items that fill a bin; the program covers every item at least once. With prices
``u`` of its dual, and ``z`` the most that any bin is worth at these prices, ``sum(u) / z`` is a
lower bound at every round.

Source: A. Farley, "A note on bounding a class of linear programming problems, including cutting
stock problems", Operations Research 38 (1990). HiGHS comes with scipy, a development dependency.
"""

import contextlib
import importlib
import math
import os
import sys
import time
from collections.abc import Generator
from typing import Any

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.packing import pack
from snooze.scheduling.packing_effort import Effort
from snooze.scheduling.snapshot import BoolArray

# scipy has no type hints that both checkers understand; results are converted where they come in.
optimize: Any = importlib.import_module("scipy.optimize")
sparse: Any = importlib.import_module("scipy.sparse")


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
            column, worth = _best_column(items, capacity, prices, end_s - time.perf_counter())
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


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Without what HiGHS writes to standard output past every option."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _best_column(
    items: FloatArray, capacity: FloatArray, prices: FloatArray, time_limit_s: float
) -> tuple[tuple[int, ...] | None, float]:
    """The bin worth most, and a proven bound on what any bin is worth."""
    with _quiet():
        answer = optimize.milp(
            -prices,
            constraints=optimize.LinearConstraint(items.T, -np.inf, capacity),
            bounds=optimize.Bounds(0, 1),
            integrality=np.ones(len(prices)),
            options={"time_limit": max(0.1, min(20.0, time_limit_s)), "mip_rel_gap": 1e-4},
        )
    bound = getattr(answer, "mip_dual_bound", None)
    worth = float("inf") if bound is None else -float(bound)
    if answer.x is None:
        return None, worth
    taken: BoolArray = np.asarray(answer.x) > 0.5
    return tuple(np.flatnonzero(taken).tolist()), worth

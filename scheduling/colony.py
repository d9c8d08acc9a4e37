"""Feller's ant colony: a MAX-MIN ant system that packs workloads onto few hosts.

Each ant fills one host after the other: among the items that still fit it takes one at random, the
more likely the more pheromone lies on (item, host) and the fuller the item would make the host. An
ant that needs fewest hosts leaves pheromone on its pairs; all else evaporates; the limits on
pheromone keep every choice possible.

``tau[i, v] <- (1 - rho) tau[i, v] + delta``, where ``delta = 1 / f(best)`` if the best solution so
far has item i on host v, and f is its number of hosts; ``tau_max = 1 / (rho f(best))``,
``tau_min = tau_max / g``; ``eta[i, v] = 1 / |C_v - (b_v + r_i)|_1`` over shares of the host's
capacity; ``p = tau^alpha eta^beta / sum``.

Source: E. Feller, L. Rilling, C. Morin, "Energy-aware ant colony based workload placement in
clouds", GRID 2011 (INRIA RR-7622); T. Stützle, H. Hoos, "MAX-MIN ant system", Future Generation
Computer Systems 16 (2000), whose bound for tau_max is used.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from snooze.common.resources import FloatArray
from snooze.scheduling.packing_effort import Effort, Meter
from snooze.scheduling.packing_greedy import Measure, descending, first_fit, limit_of, shares, sizes
from snooze.scheduling.snapshot import NONE, BoolArray, IntArray

PAIRS_MOST: Final = 60_000_000
"""Largest pheromone table, item by host; 240 MB."""


@dataclass(frozen=True, slots=True)
class ColonySettings:
    """Parameters of the colony; defaults as in the paper's evaluation where it gives them."""

    ants: int = 10
    cycles: int = 5
    alpha: float = 1.0
    beta: float = 2.0
    rho: float = 0.7
    g: float = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Colony:
    """What the ants may do: ``n`` items, ``k`` hosts in the order in which they are filled.

    Attributes:
        items: ``float64[n, R]``.
        limit: ``float64[k, R]``, room of each host.
        capacity: ``float64[k, R]``, by which items are divided to compare them.
        allowed: ``bool[n, k]`` or None: which hosts an item may have.
        groups: offsets and numbers of groups whose items never share a host, or None.
    """

    items: FloatArray
    limit: FloatArray
    capacity: FloatArray
    allowed: BoolArray | None = None
    groups: tuple[IntArray, IntArray] | None = None


def pack_by_colony(
    items: ArrayLike,
    capacity: ArrayLike,
    *,
    settings: ColonySettings | None = None,
    effort: Effort | None = None,
    seed: int = 0,
) -> IntArray:
    """``int64[n]``: a bin for each item, all bins of ``capacity[R]``.

    Items must be finite, not negative, and fit a bin (``packing.pack`` checks that).
    """
    rows = np.asarray(items, dtype=np.float64)
    room = np.asarray(capacity, dtype=np.float64)
    start = first_fit(rows, room, descending(sizes(shares(rows, room), Measure.SUM)))
    bins = int(start.max(initial=-1)) + 1
    colony = Colony(
        rows,
        np.repeat(limit_of(room)[None, :], bins, axis=0),
        np.repeat(room[None, :], bins, axis=0),
    )
    found = forage(colony, settings=settings, effort=effort, seed=seed)
    return start if found is None else found


def forage(
    colony: Colony,
    *,
    settings: ColonySettings | None = None,
    effort: Effort | None = None,
    seed: int = 0,
) -> IntArray | None:
    """``int64[n]``: a host for each item, by the best ant; None if no ant placed them all.

    The effort is counted in items placed; it ends between two ants.
    """
    from snooze.scheduling import colony_kernels

    ant = settings or ColonySettings()
    meter = Meter(effort or Effort(steps=1 << 60))
    n, k = len(colony.items), len(colony.limit)
    if n == 0 or k == 0 or n * k > PAIRS_MOST:
        return np.zeros(0, dtype=np.int64) if n == 0 else None
    none = np.zeros((0, 0), dtype=np.bool_)
    groups = colony.groups or (np.zeros(n + 1, dtype=np.int64), np.zeros(0, dtype=np.int64))
    scale = np.where(colony.capacity > 0, colony.capacity, np.inf)
    state = np.array([seed % 2147483646 + 1], dtype=np.int64)
    tau = np.full((n, k), 1.0, dtype=np.float32)
    best: IntArray | None = None
    best_hosts = k + 1
    for _ in range(ant.cycles):
        for _ in range(ant.ants):
            if meter.over():
                return best
            bin_of = np.full(n, NONE, dtype=np.int64)
            hosts = colony_kernels.walk(
                colony.items,
                colony.limit,
                scale,
                none if colony.allowed is None else colony.allowed,
                groups[0],
                groups[1],
                tau,
                ant.alpha,
                ant.beta,
                best_hosts,
                state,
                bin_of,
            )
            meter.steps += n
            if 0 <= hosts < best_hosts:
                best, best_hosts = bin_of, hosts
        if best is not None:
            tau_max = 1.0 / (ant.rho * max(1, best_hosts))
            tau *= np.float32(1.0 - ant.rho)
            tau[np.arange(n), best] += np.float32(1.0 / max(1, best_hosts))
            np.clip(tau, tau_max / ant.g, tau_max, out=tau)
    return best

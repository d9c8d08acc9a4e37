"""One ant's walk, as a loop that numba can compile."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from snooze.common.resources import FloatArray
from snooze.scheduling.packing_jit import compiled
from snooze.scheduling.packing_kernels import clash, draw
from snooze.scheduling.snapshot import BoolArray, IntArray

ETA_LEAST: Final = 1e-3
"""Room below which a host counts as full, so that eta stays finite."""

_PRECISION: Final = 1 << 30


@compiled
def walk(
    items: FloatArray,
    limit: FloatArray,
    scale: FloatArray,
    allowed: BoolArray,
    group_start: IntArray,
    group: IntArray,
    tau: NDArray[np.float32],
    alpha: float,
    beta: float,
    hosts_most: int,
    state: IntArray,
    bin_of: IntArray,
) -> int:
    """Fill hosts one after the other until all items are placed.

    Args:
        items, limit: see ``colony.Colony``.
        scale: ``float64[k, R]``, capacity; infinite where there is none.
        allowed: ``bool[n, k]``, or empty if all is allowed.
        group_start, group: groups of items that never share a host.
        tau: ``float32[n, k]``, pheromone.
        alpha, beta: weights of pheromone and of eta.
        hosts_most: give up when so many hosts do not suffice: the best ant did better.
        state: random number generator.
        bin_of: ``int64[n]``, receives the host of each item.

    Returns:
        How many hosts carry something, or -1 if not all items were placed.
    """
    n, axes = items.shape
    todo: IntArray = np.arange(n, dtype=np.int64)
    left, used = n, 0
    fitting = np.empty(n, dtype=np.int64)
    chance = np.empty(n)
    room = np.empty(axes)
    inside = np.empty(n, dtype=np.int64)
    for host in range(limit.shape[0]):
        if left == 0 or used >= hosts_most:
            break
        count = 0
        for i in range(left):
            v = int(todo[i])
            if allowed.shape[0] == 0 or allowed[v, host]:
                fitting[count] = v
                count += 1
        members = 0
        for r in range(axes):
            room[r] = limit[host, r]
        while count > 0:
            total, kept = 0.0, 0
            for i in range(count):
                v = int(fitting[i])
                rest = 0.0
                for r in range(axes):
                    gap = room[r] - items[v, r]
                    if gap < 0.0:
                        rest = -1.0
                        break
                    rest += gap / scale[host, r]
                if rest < 0.0:
                    continue
                eta = 1.0 / max(rest, ETA_LEAST)
                trail = tau[v, host] if alpha == 1.0 else tau[v, host] ** alpha
                total += trail * (eta * eta if beta == 2.0 else eta**beta)
                fitting[kept] = v
                chance[kept] = total
                kept += 1
            count = kept
            if count == 0:
                break
            dart = draw(state, _PRECISION) / _PRECISION * total
            low, high = 0, count - 1
            while low < high:
                middle = (low + high) // 2
                if chance[middle] > dart:
                    high = middle
                else:
                    low = middle + 1
            v = int(fitting[low])
            bin_of[v] = host
            inside[members] = v
            members += 1
            for r in range(axes):
                room[r] -= items[v, r]
            kept = 0
            for i in range(count):
                x = int(fitting[i])
                if x != v and not clash(group_start, group, v, x):
                    fitting[kept] = x
                    kept += 1
            count = kept
        if members:
            used += 1
            kept = 0
            for i in range(left):
                if bin_of[todo[i]] < 0:
                    todo[kept] = todo[i]
                    kept += 1
            left = kept
    return used if left == 0 else -1

"""Which manager a host belongs to.

A joining host is assigned to one manager. When a manager joins, or hosts left unevenly, hosts are
moved between managers: as few as possible, and none at all while the managers differ by at most
what one host makes, so that hosts do not wander back and forth.

Source: Snooze's RoundRobin and Random assignment; it ignored load and never rebalanced.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from snooze.common.resources import FloatArray
from snooze.scheduling.snapshot import NONE


class AssignmentPolicy(StrEnum):
    """How a joining host's manager is chosen."""

    ROUND_ROBIN = "round_robin"
    """The next in turn, starting at the cursor."""
    RANDOM = "random"
    """Any, evenly."""
    LEAST_LOADED = "least_loaded"
    """The one with the least load, the first of equals."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The chosen manager's index, -1 if there is none; ``cursor`` is for the next decision."""

    manager: int
    cursor: int


@dataclass(frozen=True, slots=True)
class Handover:
    """Give host ``host`` of manager ``source`` to manager ``target`` (indices)."""

    host: int
    source: int
    target: int


def assign(
    load: ArrayLike,
    policy: AssignmentPolicy | str = AssignmentPolicy.LEAST_LOADED,
    cursor: int = 0,
    rng: np.random.Generator | None = None,
) -> Assignment:
    """Choose a manager for one joining host.

    Args:
        load: one number per manager: hosts, VMs, or any other measure. A manager whose load is not
            a number is not chosen.
        policy: how to choose; an unknown name means least loaded.
        cursor: from the last assignment; only round-robin looks at it.
        rng: for RANDOM; without one the draw is seeded by the cursor, and so repeatable.
    """
    loads = _vector(load)
    usable = np.flatnonzero(np.isfinite(loads))
    if not usable.size:
        return Assignment(NONE, cursor)
    if policy == AssignmentPolicy.ROUND_ROBIN:
        chosen = int(usable[np.argmin((usable - cursor) % len(loads))])
        return Assignment(chosen, (chosen + 1) % len(loads))
    if policy == AssignmentPolicy.RANDOM:
        generator = rng if rng is not None else np.random.default_rng(abs(cursor))
        return Assignment(int(usable[generator.integers(usable.size)]), cursor + 1)
    return Assignment(int(usable[np.argmin(loads[usable])]), cursor)


def rebalance(
    manager_of_host: ArrayLike,
    managers: int,
    *,
    weight: ArrayLike | None = None,
    movable: ArrayLike | None = None,
) -> list[Handover]:
    """The fewest handovers after which the managers are balanced.

    Args:
        manager_of_host: ``int64[H]``, each host's manager; hosts of -1 or of an unknown manager
            are not touched (they join by ``assign``).
        managers: number of managers.
        weight: optional capacity per host (cores, say). Balance is about the number of hosts;
            the weight chooses *which* hosts change hands, so that the sums come closer too.
        movable: ``bool[H]``, hosts that may change hands now; default all.

    Returns:
        One ``Handover`` per host to move, none if no two managers differ by more than one host.
        Balanced afterwards, as far as enough hosts are movable. Deterministic: ties go to the
        lowest index.
    """
    owner = _vector(manager_of_host)
    hosts = len(owner)
    known = np.isfinite(owner) & (owner >= 0) & (owner < managers)
    weights = _column(weight, hosts, 1.0)
    may_move = _column(movable, hosts, 1.0) > 0
    members: list[list[int]] = [[] for _ in range(max(0, managers))]
    for index in np.flatnonzero(known).tolist():
        members[int(owner[index])].append(index)
    counts = [len(group) for group in members]
    if not counts or max(counts) - min(counts) <= 1:
        return []
    target = _targets(counts)
    sums = [float(weights[group].sum()) for group in members]
    mean = sum(sums) / managers
    givers: list[int] = [m for m in range(managers) if counts[m] > target[m]]
    takers: list[int] = [m for m in range(managers) if counts[m] < target[m]]
    handovers: list[Handover] = []
    for giver in givers:
        pool: list[int] = [host for host in members[giver] if may_move[host]]
        while counts[giver] > target[giver] and pool and takers:
            taker = min(takers, key=lambda m: (counts[m] - target[m], m))
            host: int = _most_helpful(pool, weights, sums[giver] - mean, mean - sums[taker])
            pool.remove(host)
            handovers.append(Handover(host, giver, taker))
            sums[giver] -= float(weights[host])
            sums[taker] += float(weights[host])
            counts[giver] -= 1
            counts[taker] += 1
            if counts[taker] >= target[taker]:
                takers.remove(taker)
    return handovers


def _targets(counts: Sequence[int]) -> list[int]:
    """Hosts per manager in the balanced state nearest to ``counts``.

    Everybody gets the floor of the average; the rest go to those that have most already, since
    that moves fewest.
    """
    base, extra = divmod(sum(counts), len(counts))
    by_size = sorted(range(len(counts)), key=lambda m: (-counts[m], m))
    more = set(by_size[:extra])
    return [base + (m in more) for m in range(len(counts))]


def _most_helpful(pool: Sequence[int], weights: FloatArray, surplus: float, deficit: float) -> int:
    """The host whose weight brings giver and taker nearest to the mean; ties to the lowest."""
    return min(
        pool,
        key=lambda host: (
            abs(surplus - float(weights[host])) + abs(deficit - float(weights[host])),
            host,
        ),
    )


def _vector(values: ArrayLike) -> FloatArray:
    """``values`` as a vector of doubles; an empty one if it is nothing of the kind."""
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.zeros(0)
    return vector if vector.ndim == 1 else np.zeros(0)


def _column(values: ArrayLike | None, count: int, default: float) -> FloatArray:
    if values is not None:
        vector = _vector(values)
        if vector.shape == (count,) and np.isfinite(vector).all():
            return vector
    return np.full(count, default)

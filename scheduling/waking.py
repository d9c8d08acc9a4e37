"""Which sleeping hosts to wake for VMs that wait, and for spare capacity that is missing.

Rules:

1. VMs go onto hosts that are on their way already, then onto as few watts more as possible: the
   next host is the one that costs least for what it would hold of the VMs still left.
2. A VM that no host can hold is left; a host that would hold nothing is not woken.
3. Missing capacity is covered on every axis, by the hosts that cost least for what they add to it.
4. Deterministic: ties go to the lowest index. What was decided is a plain list; nothing is checked
   against time or state here.
"""

from dataclasses import dataclass

import numpy as np

from snooze.common.resources import TOLERANCE, FloatArray
from snooze.scheduling.model import BoolArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class WakePlan:
    """``host_of[V]``: the host each VM waits for, -1 if none can hold it; ``wake``: in order."""

    host_of: IntArray
    wake: tuple[int, ...]


def plan_wakes(
    demand: FloatArray,
    allowed: BoolArray,
    room: FloatArray,
    coming: BoolArray,
    cost_w: FloatArray,
) -> WakePlan:
    """Choose hosts to wake.

    Args:
        demand: ``[V, R]``.
        allowed: ``[V, H]``, whether the VM may be on the host (its pins).
        room: ``[H, R]``, what each host can take when it is up.
        coming: ``[H]``, it is on its way up already.
        cost_w: ``[H]``, watts that waking it adds; a host with an infinite one is woken last.
    """
    host_of = np.full(len(demand), -1, dtype=np.int64)
    left = np.array(room, dtype=np.float64)
    largest = np.maximum(left.max(axis=0, initial=0.0), 1e-12)
    share = (demand / largest).max(axis=1, initial=0.0)
    order = [int(vm) for vm in np.argsort(-share, kind="stable")]
    waiting = order
    for host in _useful(np.flatnonzero(coming), demand, allowed, left):
        waiting = _fill(host, waiting, demand, allowed, left, host_of)
    wake: list[int] = []
    alike: dict[bytes, list[int]] = {}
    for host in _useful(np.flatnonzero(~coming), demand, allowed, left):
        kind = left[host].tobytes() + allowed[:, host].tobytes() + cost_w[host].tobytes()
        alike.setdefault(kind, []).append(host)
    while waiting:
        best, best_cost = b"", np.inf
        for kind, (host, *_) in sorted(alike.items(), key=lambda item: item[1][0]):
            held = sum(share[vm] for vm in _held(host, waiting, demand, allowed, left))
            if held <= 0:
                continue
            cost = float(cost_w[host]) / float(held)
            if not best or cost < best_cost:
                best, best_cost = kind, cost
        if not best:
            break
        host = alike[best].pop(0)
        if not alike[best]:
            del alike[best]
        waiting = _fill(host, waiting, demand, allowed, left, host_of)
        wake.append(host)
    return WakePlan(host_of, tuple(wake))


def _useful(hosts: IntArray, demand: FloatArray, allowed: BoolArray, left: FloatArray) -> list[int]:
    """Those of the hosts that could hold any of the VMs."""
    room = left[hosts]
    room += TOLERANCE * np.maximum(1.0, room)
    fits = allowed[:, hosts].copy()
    for axis in range(demand.shape[1]):
        fits &= demand[:, axis, np.newaxis] <= room[:, axis]
    found: list[int] = hosts[fits.any(axis=0)].tolist()
    return found


def _held(
    host: int, vms: list[int], demand: FloatArray, allowed: BoolArray, left: FloatArray
) -> list[int]:
    """The VMs that the host would hold, taken in this order."""
    slack = TOLERANCE * np.maximum(1.0, left[host])
    wanted = demand[vms]
    fits_alone = allowed[vms, host] & (wanted <= left[host] + slack).all(axis=1)
    candidates = np.flatnonzero(fits_alone)
    if not candidates.size:
        return []
    room: list[float] = left[host].tolist()
    slacks: list[float] = slack.tolist()
    needs: list[list[float]] = wanted[candidates].tolist()
    held: list[int] = []
    for index, need in zip(candidates.tolist(), needs, strict=True):
        if all(map(_fits, need, room, slacks)):
            room = [has - takes for has, takes in zip(room, need, strict=True)]
            held.append(vms[index])
    return held


def _fits(need: float, room: float, slack: float) -> bool:
    return need <= room + slack


def _fill(
    host: int,
    vms: list[int],
    demand: FloatArray,
    allowed: BoolArray,
    left: FloatArray,
    host_of: IntArray,
) -> list[int]:
    """Have the host hold what it can; the VMs that it cannot."""
    for vm in _held(host, vms, demand, allowed, left):
        host_of[vm] = host
        left[host] -= demand[vm]
    return [vm for vm in vms if host_of[vm] < 0]


def cover(missing: FloatArray, room: FloatArray, cost_w: FloatArray) -> tuple[int, ...]:
    """The hosts that together add ``missing[R]`` of capacity; all of them if that is not enough.

    Args:
        missing: ``[R]``; not positive: nothing is missing on that axis.
        room: ``[H, R]``, what each host adds.
        cost_w: ``[H]``, watts that each adds.
    """
    lack = np.maximum(np.array(missing, dtype=np.float64), 0.0)
    chosen: list[int] = []
    rest = list(range(len(room)))
    while rest and bool((lack > TOLERANCE).any()):
        scale = np.where(lack > 0, lack, np.inf)
        gain = np.minimum(room[rest] / scale, 1.0).sum(axis=1)
        if not bool((gain > 0).any()):
            break
        cost = np.full(len(rest), np.inf)
        np.divide(cost_w[rest], gain, out=cost, where=gain > 0)
        index = int(np.argmin(cost)) if np.isfinite(cost).any() else int(np.argmax(gain))
        host = rest.pop(index)
        chosen.append(host)
        lack = np.maximum(lack - room[host], 0.0)
    return tuple(chosen)

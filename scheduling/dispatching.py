"""Leader to managers: which manager is asked to host which VM.

The leader does not know hosts. Each manager reports a histogram of free room: bucket k says that
``count[k]`` hosts have at least ``room[k]`` free, each. A representative never promises more than
any host of its bucket has, so "fits" means that a host exists (as of the report); a sum of free
capacities, as Snooze used, can promise a VM that no host can take.

Within one request, VMs dispatched earlier take their room out of the views, so that a manager is
not promised the same host over and over. Every VM also gets the other managers that would fit, in
order, to be asked when the first one refuses.

Source: policies after Snooze's dispatching (FirstFit, RoundRobin, static for pinned VMs).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from snooze.common.resources import Axis, FloatArray, R, in_words
from snooze.scheduling.snapshot import MAX_VALUE, NONE, IntArray, Problem

MAX_BUCKETS: Final = 64
MAX_FALLBACKS: Final = 8
"""Managers tried after the first one refused."""


@dataclass(frozen=True, slots=True, eq=False)
class ManagerView:
    """What the leader knows of one manager: ``room[K, R]`` and ``count[K]``, see above."""

    manager_id: str
    room: FloatArray
    count: IntArray


class DispatchPolicy(StrEnum):
    """How the manager is chosen among those that fit."""

    FIRST_FIT = "first_fit"
    """The first in the order given; fills one manager before the next."""
    ROUND_ROBIN = "round_robin"
    """The next in turn, starting at the cursor."""
    BEST_FIT = "best_fit"
    """The one with the tightest host that fits: keeps large hosts for large VMs."""


class DispatchCode(StrEnum):
    """Why a VM got no manager."""

    NO_MANAGERS = "no_managers"
    NO_ROOM = "no_room"
    INVALID_VM = "invalid_vm"
    NO_SUCH_MANAGER = "no_such_manager"


@dataclass(frozen=True, slots=True)
class Undispatched:
    """Why VM ``vm`` (an index) got no manager."""

    vm: int
    code: DispatchCode
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class DispatchPlan:
    """The leader's decision.

    Attributes:
        manager: ``int64[V]``, index of the manager to ask first, -1 for none.
        fallbacks: per VM the managers to ask next, in order, at most ``MAX_FALLBACKS``.
        reasons: why, for every VM without a manager.
        cursor: where round-robin goes on; hand it to the next decision.
        problems: views or arguments that made no sense and were left out.
    """

    manager: IntArray
    fallbacks: tuple[tuple[int, ...], ...]
    reasons: tuple[Undispatched, ...] = ()
    cursor: int = 0
    problems: tuple[Problem, ...] = ()


def histogram(free: ArrayLike, max_buckets: int = MAX_BUCKETS) -> tuple[FloatArray, IntArray]:
    """``(room[K, R], count[K])`` with K <= max_buckets, from ``free[H, R]`` of hosts taking VMs.

    Hosts are split where they differ most, always at the bucket whose hosts lose most by being
    described together; the representative is the minimum by axis. Hosts without any room, and rows
    that are not numbers, are left out. Buckets come in decreasing order of room, ties by index.
    """
    rows = _matrix(free)
    rows = rows[np.isfinite(rows).all(axis=1)] if rows.size else rows
    rows = np.maximum(rows, 0.0)
    rows = rows[rows.any(axis=1)] if rows.size else rows
    if not rows.size:
        return np.zeros((0, rows.shape[1])), np.zeros(0, dtype=np.int64)
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    scale = np.maximum(distinct.max(axis=0), 1e-300)
    groups = _split(distinct / scale, counts, max(1, max_buckets))
    room = np.array([distinct[group].min(axis=0) for group in groups])
    count = np.array([counts[group].sum() for group in groups], dtype=np.int64)
    order = np.argsort(-(room / scale).sum(axis=1), kind="stable")
    return room[order], count[order]


def _matrix(values: ArrayLike) -> FloatArray:
    """``values`` as a matrix of doubles; one without rows if it is nothing of the kind."""
    try:
        rows = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.zeros((0, 0))
    return rows if rows.ndim == 2 else np.zeros((0, 0))


def _split(points: FloatArray, counts: IntArray, max_buckets: int) -> list[IntArray]:
    """Groups of rows of ``points[N, R]`` (normalised): repeatedly cut the group that wastes most.

    Waste of a group by axis: what its hosts have beyond its minimum. The cut is along the axis of
    most waste, where the two halves together waste least.
    """
    groups = [np.arange(len(points))]
    wastes = [_waste(points, counts, groups[0])]
    while len(groups) < max_buckets:
        worst = int(np.argmax([waste.sum() for waste in wastes]))
        if wastes[worst].sum() <= 0:
            break
        group = groups[worst]
        axis = int(np.argmax(wastes[worst]))
        group = group[np.argsort(points[group, axis], kind="stable")]
        cut = _best_cut(points[group, axis], counts[group])
        halves = [group[:cut], group[cut:]]
        groups[worst : worst + 1] = halves
        wastes[worst : worst + 1] = [_waste(points, counts, half) for half in halves]
    return groups


def _waste(points: FloatArray, counts: IntArray, group: IntArray) -> FloatArray:
    members = points[group]
    waste: FloatArray = ((members - members.min(axis=0)) * counts[group, None]).sum(axis=0)
    return waste


def _best_cut(values: FloatArray, counts: IntArray) -> int:
    """Where to cut sorted ``values`` in two so that both halves waste least above their minima."""
    hosts_above = counts[::-1].cumsum()[::-1]
    gain = (values[1:] - values[0]) * hosts_above[1:]
    return int(np.argmax(gain)) + 1


def plan(
    views: Sequence[ManagerView],
    demand: ArrayLike,
    pin_manager: ArrayLike | None = None,
    policy: DispatchPolicy | str = DispatchPolicy.BEST_FIT,
    cursor: int = 0,
) -> DispatchPlan:
    """Choose a manager for every VM of one request.

    Args:
        views: the managers, in the leader's order.
        demand: ``float64[V, R]``.
        pin_manager: ``int64[V]``, the only manager that may be asked, -1 (default) for any.
        policy: how to choose; an unknown name means best fit, and is said in ``problems``.
        cursor: from the last plan; only round-robin looks at it.

    Never raises: what makes no sense is in ``problems`` and ``reasons``.
    """
    needs = _matrix(demand)
    problems: list[Problem] = []
    try:
        policy = DispatchPolicy(policy)
    except ValueError:
        message = f"no dispatching policy {policy!r}; using best_fit"
        problems.append(Problem("policy", message, "no_such_policy"))
        policy = DispatchPolicy.BEST_FIT
    pins = _pins(pin_manager, len(needs), problems)
    table = _Table.of(views, needs.shape[1], problems)
    chosen = np.full(len(needs), NONE, dtype=np.int64)
    fallbacks: list[tuple[int, ...]] = []
    reasons: list[Undispatched] = []
    cursor = cursor % len(views) if views else 0
    for vm, need in enumerate(needs):
        order = [] if not _sound(need) else table.order(need, policy, cursor)
        if pins[vm] != NONE:
            order = [entry for entry in order if entry[0] == pins[vm]]
        if not order:
            reasons.append(_why(vm, need, int(pins[vm]), len(views), table))
            fallbacks.append(())
            continue
        manager, bucket = order[0]
        chosen[vm] = manager
        fallbacks.append(tuple(other for other, _ in order[1 : 1 + MAX_FALLBACKS]))
        table.reserve(bucket, need)
        cursor = (manager + 1) % len(views)
    return DispatchPlan(chosen, tuple(fallbacks), tuple(reasons), cursor, tuple(problems))


def _sound(need: FloatArray) -> bool:
    return bool(((need >= 0) & (need <= MAX_VALUE)).all())


def _pins(pin_manager: ArrayLike | None, vms: int, problems: list[Problem]) -> IntArray:
    if pin_manager is None:
        return np.full(vms, NONE, dtype=np.int64)
    try:
        pins = np.asarray(pin_manager).astype(np.int64)
    except (TypeError, ValueError, OverflowError):
        pins = np.zeros(0, dtype=np.int64)
    if pins.shape == (vms,):
        return pins
    problems.append(Problem("pin_manager", f"is not {vms} indices; no VM is dispatched", "shape"))
    return np.full(vms, np.iinfo(np.int64).max, dtype=np.int64)


def _why(vm: int, need: FloatArray, pin: int, managers: int, table: "_Table") -> Undispatched:
    if not _sound(need):
        return Undispatched(vm, DispatchCode.INVALID_VM, "its demand is no vector of sizes")
    if not managers:
        return Undispatched(vm, DispatchCode.NO_MANAGERS, "no manager has joined")
    if pin != NONE and not 0 <= pin < managers:
        return Undispatched(vm, DispatchCode.NO_SUCH_MANAGER, "there is no such manager")
    if pin != NONE:
        lacks = f"no host of the manager asked for has room: {table.lacks(need, pin)}"
    else:
        lacks = f"no host has room for it: {table.lacks(need)}"
    return Undispatched(vm, DispatchCode.NO_ROOM, lacks)


@dataclass(slots=True)
class _Table:
    """All buckets of all managers in one table; ``manager[K]`` says whose each is."""

    room: FloatArray
    count: IntArray
    manager: IntArray
    managers: int
    scale: FloatArray

    @classmethod
    def of(cls, views: Sequence[ManagerView], axes: int, problems: list[Problem]) -> "_Table":
        rooms: list[FloatArray] = [np.zeros((0, axes))]
        counts: list[IntArray] = [np.zeros(0, dtype=np.int64)]
        owners: list[IntArray] = [np.zeros(0, dtype=np.int64)]
        for index, view in enumerate(views):
            room = _matrix(view.room)
            if not len(room):
                continue
            if room.shape[1] != axes or view.count.shape != (len(room),):
                where = f"views[{index}]"
                message = f"{view.manager_id!r}: room {room.shape} and count {view.count.shape}"
                problems.append(Problem(where, message, "shape"))
                continue
            usable = np.isfinite(room).all(axis=1) & (view.count > 0)
            rooms.append(room[usable])
            counts.append(view.count[usable].astype(np.int64))
            owners.append(np.full(int(usable.sum()), index, dtype=np.int64))
        room = np.concatenate(rooms)
        scale = np.maximum(room.max(axis=0), 1e-300) if len(room) else np.ones(axes)
        return cls(room, np.concatenate(counts), np.concatenate(owners), len(views), scale)

    def order(self, need: FloatArray, policy: DispatchPolicy, cursor: int) -> list[tuple[int, int]]:
        """``(manager, its tightest bucket that fits)``, best first."""
        buckets = np.flatnonzero((self.room >= need).all(axis=1) & (self.count > 0))
        left = ((self.room[buckets] - need) / self.scale).sum(axis=1)
        ranked = buckets[np.lexsort((buckets, left))]
        owners, first = np.unique(self.manager[ranked], return_index=True)
        if policy is DispatchPolicy.BEST_FIT:
            sequence = np.argsort(first, kind="stable")
        elif policy is DispatchPolicy.ROUND_ROBIN:
            sequence = np.argsort((owners - cursor) % self.managers, kind="stable")
        else:
            sequence = np.arange(len(owners))
        return [(int(owners[i]), int(ranked[first[i]])) for i in sequence]

    def lacks(self, need: FloatArray, manager: int | None = None) -> str:
        """What no host (of a manager) has, in words: what is needed beside the most there is."""
        those = self.count > 0 if manager is None else (self.count > 0) & (self.manager == manager)
        room = self.room[those]
        if not len(room):
            return "none has any"
        if len(need) != R:
            return "none has enough"
        most = np.maximum(room.max(axis=0), 0.0)
        short = [axis for axis in Axis if most[axis] < need[axis]]
        if not short:
            return f"it needs {in_words(need)}; none has all of that"
        wanted, free = in_words(need, short), in_words(most, short)
        return f"it needs {wanted}, and the most that is free on one is {free}"

    def reserve(self, bucket: int, need: FloatArray) -> None:
        """Take ``need`` from one host of the bucket; what is left of it is a bucket of its own."""
        self.count[bucket] -= 1
        self.room = np.concatenate([self.room, self.room[bucket : bucket + 1] - need])
        self.count = np.append(self.count, 1)
        self.manager = np.append(self.manager, self.manager[bucket])


def without(view: ManagerView, need: FloatArray) -> ManagerView:
    """``view`` after a VM of ``need[R]`` was sent there: its tightest host that fits is smaller.

    Unchanged if none fits. For leaders that dispatch again before the next report arrives.
    """
    table = _Table.of([view], len(need), [])
    order = table.order(need, DispatchPolicy.FIRST_FIT, 0)
    if not order:
        return view
    table.reserve(order[0][1], need)
    kept = table.count > 0
    return replace(view, room=table.room[kept], count=table.count[kept])

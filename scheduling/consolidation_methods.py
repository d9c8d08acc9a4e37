"""The methods of consolidation: where items go so that bins become empty.

``sercon``: A. Murtazaev, S. Oh, "Sercon: server consolidation algorithm using live migration of
virtual machines for green computing", IETE Technical Review 28 (2011), in Snooze's form, corrected:
loads are compared after division by capacity; no VM moves twice; the number of moves is bounded; a
VM is not given up because the first host with room is empty (empty hosts are not looked at).

``first_fit_decreasing``: all VMs packed anew on the hosts in use, the fullest first. ``colony``:
the same by Feller's ants. ``optimiser``: ours; after a pass like Sercon's, further hosts are
emptied one after the other, cheapest first, by guided ejection, each only if it is worth its moves;
then VMs that moved needlessly are sent home.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.bounds import Bound
from snooze.scheduling.colony import Colony, forage
from snooze.scheduling.consolidation_field import Field
from snooze.scheduling.packing_effort import Effort, Meter
from snooze.scheduling.snapshot import NONE, BoolArray, IntArray

if TYPE_CHECKING:
    from snooze.scheduling.packing_kernels import Bins

WINDOW: Final = 128
"""Bins that one ejection looks at."""

EFFORTS: Final = (60, 600, 6_000)
"""Steps per item of a bin that the optimiser spends on emptying it, turn after turn."""


class Method(StrEnum):
    """Which algorithm consolidates."""

    SERCON = "sercon"
    FIRST_FIT_DECREASING = "first_fit_decreasing"
    COLONY = "colony"
    OPTIMISER = "optimiser"


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What a method is asked.

    Attributes:
        field: items and bins.
        donors: ``bool[k]``, bins that may be emptied.
        open: ``bool[k]``, bins that carry something; the others must stay empty.
        bound: no need to try for fewer bins.
        moves_most: cap on the VMs that move.
        host_worth: what an emptied bin is worth, in the unit of ``field.cost``.
        seed: of the search.
        meter: what it may spend.
    """

    field: Field
    donors: BoolArray
    open: BoolArray
    bound: Bound
    moves_most: int
    host_worth: float
    seed: int
    meter: Meter


def _scales(task: Task) -> FloatArray:
    """``float64[R]``: the mean room of a bin, by which demands are made comparable."""
    room = np.maximum(task.field.limit[:, :-1], 0.0).mean(axis=0)
    return np.where(room > 0, room, np.inf)


def _sizes(task: Task) -> FloatArray:
    """``float64[n]``: items by the normalised Euclidean norm."""
    share = task.field.items[:, :-1] / _scales(task)
    return np.asarray(np.sqrt((share * share).sum(axis=1)))


def _loads(task: Task, size: FloatArray) -> FloatArray:
    """``float64[k]``: the sizes in each bin, relative to its room."""
    field = task.field
    inside = field.home >= 0
    total = np.bincount(field.home[inside], weights=size[inside], minlength=len(field.hosts))
    room = np.maximum(field.limit[:, :-1] / _scales(task), 0.0)
    length = np.sqrt((room * room).sum(axis=1))
    return np.asarray(total / np.where(length > 0, length, np.inf))


def _bins(task: Task, bin_of: IntArray, size: FloatArray) -> "Bins":
    """The state of the kernels; bins that are not open take nothing."""
    from snooze.scheduling import packing_kernels

    field = task.field
    limit = np.where(task.open[:, None], field.limit, -np.inf)
    bins = packing_kernels.make_bins(
        field.items,
        limit,
        size,
        bin_of,
        task.seed % 2147483646 + 1,
        home=field.home,
        kind=field.kind,
        allowed=field.allowed,
        groups=field.groups,
    )
    bins.penalty[field.fixed] = packing_kernels.FIXED
    return bins


def sercon(task: Task) -> IntArray | None:
    """One pass: the least loaded host is emptied onto the most loaded ones, and so on."""
    size = _sizes(task)
    bins = _bins(task, task.field.home, size)
    _pour(task, bins, size, task.donors, _loads(task, size))
    return bins.assign.copy()


def _pour(
    task: Task, bins: "Bins", size: FloatArray, which: BoolArray, rank: FloatArray
) -> BoolArray:
    """Empty the bins ``which`` in ascending ``rank``, biggest items first; those that worked."""
    from snooze.scheduling import consolidation_kernels

    load = _loads(task, size)
    donors = np.flatnonzero(which)
    receivers = np.flatnonzero(task.open)
    released = np.zeros(len(task.open), dtype=np.bool_)
    turn = np.empty(len(size), dtype=np.int64)
    turn[np.argsort(-size, kind="stable")] = np.arange(len(size))
    consolidation_kernels.pour(
        bins,
        donors[np.argsort(rank[donors], kind="stable")],
        receivers[np.argsort(-load[receivers], kind="stable")],
        turn,
        task.open.copy(),
        task.moves_most,
        released,
    )
    task.meter.steps += len(size)
    return released


def first_fit_decreasing(task: Task) -> IntArray | None:
    """Everything packed anew, on the hosts that cannot be emptied and then on the fullest."""
    from snooze.scheduling import consolidation_kernels

    size = _sizes(task)
    start = np.where(task.field.fixed, task.field.home, NONE)
    bins = _bins(task, start, size)
    loose = np.flatnonzero(~task.field.fixed)
    order = loose[np.argsort(-size[loose], kind="stable")]
    left = consolidation_kernels.repack(bins, order, _filling_order(task, size))
    task.meter.steps += len(size)
    return None if left else _within_cap(task, bins)


def colony(task: Task) -> IntArray | None:
    """Everything packed anew by ants."""
    field = task.field
    size = _sizes(task)
    bins = _bins(task, np.where(field.fixed, field.home, NONE), size)
    order = _filling_order(task, size)
    loose = np.flatnonzero(~field.fixed)
    allowed = field.allowed[field.kind[loose]][:, order]
    start, numbers = field.groups
    of_bin: dict[int, set[int]] = {}
    for item in np.flatnonzero(field.fixed & (np.diff(start) > 0)).tolist():
        of_bin.setdefault(int(field.home[item]), set()).update(
            numbers[start[item] : start[item + 1]].tolist()
        )
    for row, item in enumerate(loose.tolist()):
        mine = set(numbers[start[item] : start[item + 1]].tolist())
        if mine:
            allowed[row] &= [not mine & of_bin.get(b, set()) for b in order.tolist()]
    lengths = np.diff(start)[loose]
    found = forage(
        Colony(
            np.ascontiguousarray(field.items[loose]),
            np.ascontiguousarray((bins.limit - bins.load)[order]),
            _without_count(field.limit[order]),
            None if allowed.all() else np.ascontiguousarray(allowed),
            (
                np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                numbers[np.repeat(~field.fixed, np.diff(start))],
            ),
        ),
        effort=_rest(task.meter),
        seed=task.seed,
    )
    if found is None:
        return None
    bin_of = field.home.copy()
    bin_of[loose] = order[found]
    return _within_cap(task, _bins(task, bin_of, size))


def _without_count(limit: FloatArray) -> FloatArray:
    """Room by which ants compare items: the number of VMs is no size."""
    scale = np.maximum(limit, 0.0)
    scale[:, -1] = 0.0
    return scale


def _rest(meter: Meter) -> Effort:
    """What is left of an effort, for a part of the work that counts its own steps."""
    if not meter.timed:
        return Effort(steps=1 << 60)
    start_s, limit_s = meter.elapsed_s(), meter.left_s()
    return Effort(1 << 60, limit_s, lambda: meter.elapsed_s() - start_s)


def _filling_order(task: Task, size: FloatArray) -> IntArray:
    """Open bins, those that cannot be emptied first, then the fullest."""
    bins = np.flatnonzero(task.open)
    load = _loads(task, size)
    return np.asarray(bins[np.lexsort((-load[bins], task.donors[bins]))])


def _within_cap(task: Task, bins: "Bins") -> IntArray | None:
    """The packing with needless moves undone, or None if it still moves too many VMs."""
    from snooze.scheduling import consolidation_kernels

    field = task.field
    empty = np.bincount(bins.assign, minlength=len(task.open)) == 0
    bins.limit[empty & ~field.kept] = -np.inf
    consolidation_kernels.go_home(bins, np.argsort(-field.cost, kind="stable"))
    moved = bins.assign != field.home
    return bins.assign.copy() if field.items[moved, -1].sum() <= task.moves_most else None


def optimiser(task: Task) -> IntArray | None:
    """Bins emptied one by one, any-time; see the module."""
    return _Optimiser(task).run()


class _Optimiser:
    """One run: the state of the kernels, which bins are open, and what moving costs so far."""

    def __init__(self, task: Task) -> None:
        field = task.field
        self.task = task
        self.field = field
        self.size = _sizes(task)
        inside = field.home >= 0
        count = len(field.hosts)
        self.price = np.bincount(
            field.home[inside], weights=field.cost[inside], minlength=count
        ).astype(np.float64)
        self.vms = np.bincount(
            field.home[inside], weights=field.items[inside, -1], minlength=count
        ).astype(np.float64)
        self.bins, self.open, self.cost = self._start()

    def _start(self) -> "tuple[Bins, BoolArray, float]":
        """The best of three passes like Sercon's: by load, by cost and by number of VMs."""
        task = self.task
        worthy = task.donors & (self.price <= task.host_worth)
        found: list[tuple[float, float, Bins, BoolArray]] = []
        for rank in (_loads(task, self.size), self.price, self.vms):
            bins = _bins(task, self.field.home, self.field.cost + self.size)
            released = _pour(task, bins, self.size, worthy, rank)
            cost = float(self.field.cost[bins.assign != self.field.home].sum())
            loss = cost - task.host_worth * int(released.sum())
            found.append((loss, cost, bins, released))
        _, cost, bins, released = min(found, key=lambda each: each[0])
        bins.limit[released] = -np.inf
        return bins, task.open & ~released, cost

    def run(self) -> IntArray:
        """Turns with growing effort over all bins that may be emptied, cheapest first."""
        donors = np.flatnonzero(self.task.donors)
        donors = donors[np.argsort(self.price[donors], kind="stable")]
        for steps in EFFORTS:
            for donor in donors.tolist():
                if self._done():
                    break
                if self.open[donor]:
                    self._empty(donor, steps)
        self._send_home()
        return self.bins.assign.copy()

    def _done(self) -> bool:
        """Whether nothing more can or may be done."""
        return (
            self.task.meter.over()
            or int(self.open.sum()) <= self.task.bound.count
            or self._moved()[1] >= self.task.moves_most
        )

    def _empty(self, donor: int, steps_per_item: int) -> None:
        """Close one bin if its items, and those they push on, have room elsewhere."""
        from snooze.scheduling import packing_kernels

        bins, meter = self.bins, self.task.meter
        inside = np.flatnonzero(bins.assign == donor)
        free = np.where(self.open[:, None], bins.limit - bins.load, 0.0)
        free[donor] = 0.0
        if (np.maximum(free, 0.0).sum(axis=0) < bins.items[inside].sum(axis=0)).any():
            return
        saved = [array.copy() for array in self._undoable()]
        limit = bins.limit[donor].copy()
        for item in inside.tolist():
            packing_kernels.take(bins, item)
        waiting = inside[np.argsort(bins.size[inside], kind="stable")]
        bins.trash[: len(waiting)] = waiting
        bins.state[packing_kernels.TRASHED] = len(waiting)
        bins.limit[donor] = -np.inf
        steps = min(steps_per_item * max(1, len(inside)), meter.steps_left())
        while steps > 0 and bins.state[packing_kernels.TRASHED] and not meter.over():
            done = packing_kernels.search(bins, min(steps, 256), 0, WINDOW)
            meter.steps += max(1, done)
            steps -= max(1, done)
        cost, moved = self._moved()
        if (
            bins.state[packing_kernels.TRASHED]
            or moved > self.task.moves_most
            or cost - self.cost > self.task.host_worth
        ):
            for array, before in zip(self._undoable(), saved, strict=True):
                array[...] = before
            bins.limit[donor] = limit
            bins.state[packing_kernels.TRASHED] = 0
            return
        self.open[donor] = False
        self.cost = cost

    def _undoable(self) -> tuple[IntArray | FloatArray, ...]:
        bins = self.bins
        return (bins.assign, bins.head, bins.after, bins.before, bins.load)

    def _moved(self) -> tuple[float, float]:
        """What all moves so far cost, and how many VMs they move."""
        moved = self.bins.assign != self.field.home
        return float(self.field.cost[moved].sum()), float(self.field.items[moved, -1].sum())

    def _send_home(self) -> None:
        from snooze.scheduling import consolidation_kernels

        order = np.argsort(-self.field.cost, kind="stable")
        consolidation_kernels.go_home(self.bins, order)


METHODS: Final[Mapping[Method, Callable[[Task], IntArray | None]]] = MappingProxyType(
    {
        Method.SERCON: sercon,
        Method.FIRST_FIT_DECREASING: first_fit_decreasing,
        Method.COLONY: colony,
        Method.OPTIMISER: optimiser,
    }
)

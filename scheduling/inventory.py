"""A manager's hosts between decisions: free room kept up to date, and quick choices on it.

A snapshot is made for one decision; at ten thousand decisions a second there is no time to make
one for each. An inventory is told of every reservation and release, keeps the room of every host,
and answers the two questions that most submissions come down to, first fit and best fit, as
``placement`` with the policies of those names would. For anything else (affinity, labels, weights,
sleeping hosts) it hands out a snapshot, at the price of one copy.

Invariants: the room of a host is its ceiling minus the sum of what is reserved there, summed anew
whenever something leaves, so rounding errors do not pile up; no reservation exceeds the room.

First fit walks an index: hosts in blocks of ``BLOCK``, per block and axis the most room of any.
A block whose most is too little is not looked into.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from snooze.common.resources import FloatArray
from snooze.scheduling.snapshot import (
    MAX_VALUE,
    NONE,
    BoolArray,
    HostState,
    IntArray,
    Snapshot,
    accepting,
    free,
)
from snooze.scheduling.validation import as_numbers, frozen

BLOCK: Final = 64
MISSES: Final = 6
"""Blocks looked into in vain before the rest is scanned at once."""

CLOSED: Final = -np.inf
"""The room that a host without admission shows."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one VM holds: its host's index and ``need``, by axis."""

    host: int
    need: tuple[float, ...]


class Inventory:
    """Hosts, reservations and room. Not for use from several threads at once."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Start from ``snapshot``: its hosts, its placed VMs, and ``used`` by others."""
        self._base = snapshot.with_vms((), np.zeros((0, len(snapshot.axes))))
        self._state = snapshot.host_state.copy()
        self._hosts = snapshot.hosts
        self._ceiling = snapshot.ceiling - snapshot.used
        self._free: FloatArray = free(snapshot)
        self._inverse: FloatArray = np.where(
            snapshot.limit > 0, 1.0 / np.where(snapshot.limit > 0, snapshot.limit, 1.0), 0.0
        )
        self._members: list[dict[str, Reservation]] = [{} for _ in range(self._hosts)]
        self._where: dict[str, Reservation] = {}
        self._count: IntArray = snapshot.vm_count.copy()
        for vm, host in enumerate(snapshot.placement.tolist()):
            if host != NONE:
                held = Reservation(host, tuple(snapshot.demand[vm].tolist()))
                self._where[snapshot.vm_ids[vm]] = held
                self._members[host][snapshot.vm_ids[vm]] = held
                self._count[host] += 1
        self._admits: BoolArray = accepting(snapshot)
        blocks = -(-self._hosts // BLOCK)
        axes = len(snapshot.axes)
        self._room: FloatArray = np.full((axes, blocks * BLOCK), CLOSED)
        self._most: FloatArray = np.full((axes, blocks), CLOSED)
        self._share: FloatArray = np.full(self._hosts, np.inf)
        for host in range(self._hosts):
            self._refresh(host)

    def __len__(self) -> int:
        """Number of reservations."""
        return len(self._where)

    def __contains__(self, vm_id: str) -> bool:
        """True if the VM holds a reservation."""
        return vm_id in self._where

    def reservation(self, vm_id: str) -> Reservation | None:
        """What the VM holds, or None."""
        return self._where.get(vm_id)

    def reservations(self, host: int) -> Iterator[tuple[str, Reservation]]:
        """What is reserved on ``host``."""
        return iter(self._members[host].items())

    @property
    def free(self) -> FloatArray:
        """``float64[H, R]``: room on every host, read-only."""
        return frozen(self._free.view())

    def first_fit(self, need: ArrayLike) -> int:
        """The first active host with room for ``need[R]``, or -1."""
        demand = self._demand(need)
        return NONE if demand is None else self._first(demand)

    def best_fit(self, need: ArrayLike) -> int:
        """The active host with the least room left after ``need[R]``, or -1.

        Room is measured as placement's best fit does: the share of each resource, summed.
        """
        demand = self._demand(need)
        return NONE if demand is None else self._best(demand)

    def place(self, vm_id: str, need: ArrayLike, *, best: bool = False) -> int:
        """Choose by first fit, or best fit, and reserve; the host, or -1 and nothing changed."""
        demand = self._demand(need)
        if demand is None or vm_id in self._where:
            return NONE
        host = self._best(demand) if best else self._first(demand)
        if host != NONE:
            self._take(vm_id, host, demand, self._free[host].tolist())
        return host

    def _first(self, demand: Sequence[float]) -> int:
        if not self._hosts:
            return NONE
        asked = [(axis, size) for axis, size in enumerate(demand) if size > 0]
        if not asked:
            return int(self._admits.argmax()) if self._admits.any() else NONE
        blocks = _enough(self._most, asked)
        for tried, block in enumerate(np.flatnonzero(blocks).tolist()):
            start = block * BLOCK
            end = start + BLOCK if tried < MISSES else self._room.shape[1]
            fits = _enough(self._room[:, start:end], asked)
            found = int(fits.argmax())
            if fits[found]:
                return start + found
            if tried >= MISSES:
                break
        return NONE

    def _best(self, demand: Sequence[float]) -> int:
        if not self._hosts:
            return NONE
        asked = [(axis, size) for axis, size in enumerate(demand) if size > 0]
        room = self._room[:, : self._hosts]
        fits = _enough(room, asked) if asked else self._admits
        left = np.where(fits, self._share - self._inverse.dot(demand), np.inf)
        best = int(left.argmin())
        return best if fits[best] else NONE

    def reserve(self, vm_id: str, host: int, need: ArrayLike) -> bool:
        """Reserve ``need[R]`` for a VM; False, and nothing changed, if that cannot be.

        That is: the VM holds something already, the host does not take VMs, or has no room.
        """
        demand = self._demand(need)
        if demand is None or vm_id in self._where or not 0 <= host < self._hosts:
            return False
        if not self._admits[host]:
            return False
        room: list[float] = self._free[host].tolist()
        if any(size > left and size > 0 for size, left in zip(demand, room, strict=True)):
            return False
        self._take(vm_id, host, demand, room)
        return True

    def _take(self, vm_id: str, host: int, demand: Sequence[float], room: Sequence[float]) -> None:
        held = Reservation(host, tuple(demand))
        self._where[vm_id] = held
        self._members[host][vm_id] = held
        self._count[host] += 1
        self._free[host] -= demand
        self._refresh(host, room)

    def release(self, vm_id: str) -> bool:
        """Give up what the VM holds; False if it holds nothing."""
        held = self._where.pop(vm_id, None)
        if held is None:
            return False
        del self._members[held.host][vm_id]
        self._count[held.host] -= 1
        self._settle(held.host)
        return True

    def set_state(self, host: int, state: HostState) -> None:
        """Note what a host does now; what it runs keeps its reservations."""
        self._state[host] = state
        self._admits[host] = state is HostState.ACTIVE and bool(self._base.host_ok[host])
        self._refresh(host)

    def snapshot(
        self, vm_ids: Sequence[str], demand: ArrayLike, load: FloatArray | None = None
    ) -> Snapshot:
        """The hosts as they are now, with VMs to be placed.

        Load is as measured, if given, else as reserved.
        """
        used = np.asfortranarray(np.maximum(self._base.ceiling - self._free, 0.0))
        hosts = replace(
            self._base,
            used=frozen(used),
            load=frozen(used) if load is None else load,
            vm_count=frozen(self._count.copy()),
            host_state=self._state.copy(),
        )
        return hosts.with_vms(vm_ids, demand)

    def _demand(self, need: ArrayLike) -> list[float] | None:
        """``need`` as a list of sizes, or None if it is none."""
        numbers = as_numbers(need)
        if numbers is None or numbers.shape != (self._free.shape[1],):
            return None
        demand: list[float] = numbers.tolist()
        # A NaN fails both comparisons.
        return demand if all(0.0 <= size <= MAX_VALUE for size in demand) else None

    def _settle(self, host: int) -> None:
        """Sum up anew what is free on ``host``."""
        held = [each.need for each in self._members[host].values()]
        totals = [sum(column) for column in zip(*held, strict=True)] if held else 0.0
        self._free[host] = self._ceiling[host] - totals
        self._refresh(host)

    def _refresh(self, host: int, before: Sequence[float] | None = None) -> None:
        """Bring room, index and share of ``host`` in line with what is free there.

        If the room only shrank, from ``before``, and was not the most of its block, neither is it
        now, and the index stands.
        """
        if self._admits[host]:
            row = self._free[host]
            self._room[:, host] = row
            self._share[host] = row.dot(self._inverse[host])
        else:
            self._room[:, host] = CLOSED
            self._share[host] = np.inf
        block = host // BLOCK
        if before is not None:
            most: list[float] = self._most[:, block].tolist()
            if all(room < peak for room, peak in zip(before, most, strict=True)):
                return
        self._room[:, block * BLOCK : (block + 1) * BLOCK].max(axis=1, out=self._most[:, block])


def _enough(room: FloatArray, asked: Sequence[tuple[int, float]]) -> BoolArray:
    """``bool[N]``: columns of ``room[R, N]`` with at least what is asked on each of the axes."""
    axis, size = asked[0]
    fits: BoolArray = room[axis] >= size
    for axis, size in asked[1:]:
        fits &= room[axis] >= size
    return fits

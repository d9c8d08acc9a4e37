"""The room that is left while a plan is being made: the mutable half of a decision.

A ledger starts as its snapshot and is changed only by ``place`` and ``lift``. Its invariant:
``free``, ``counts`` and ``placement`` always agree.
"""

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.snapshot import (
    NONE,
    BoolArray,
    IntArray,
    Snapshot,
    count_vms,
    free,
)


class Ledger:
    """Free room, VM counts and placement of one decision in progress.

    Attributes:
        snapshot: what the decision started from.
        free: ``float64[H, R]``, see ``snapshot.free``.
        counts: ``int64[H]``, VMs on each host.
        placement: ``int64[V]``.
    """

    __slots__ = ("counts", "free", "placement", "snapshot")

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.free: FloatArray = free(snapshot)
        self.counts: IntArray = count_vms(snapshot)
        self.placement: IntArray = snapshot.placement.copy()

    def place(self, vm: int, host: int) -> None:
        """Put a VM that has no host on ``host``."""
        self.free[host] -= self.snapshot.demand[vm]
        self.counts[host] += 1
        self.placement[vm] = host

    def lift(self, vm: int) -> None:
        """Take a VM off its host."""
        host = int(self.placement[vm])
        self.free[host] += self.snapshot.demand[vm]
        self.counts[host] -= 1
        self.placement[vm] = NONE

    def roomy(self, need: FloatArray) -> BoolArray:
        """``bool[H]``: hosts with room for ``need[R]``. Axes that are not needed do not matter."""
        fits = np.ones(self.snapshot.hosts, dtype=np.bool_)
        for axis in np.flatnonzero(need > 0):
            fits &= self.free[:, axis] >= need[axis]
        return fits

"""The room that is left while a plan is being made: the mutable half of a decision.

A ledger starts as its snapshot and is changed only by ``place`` and ``lift``. Its invariant:
``free``, ``counts``, ``load`` and ``placement`` always agree.

Units (filters and weights, built in or plugged in) see it through a ``Scene``, which is read-only.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.snapshot import (
    NONE,
    AffinityRule,
    BoolArray,
    IntArray,
    Snapshot,
    count_vms,
    free,
)
from snooze.scheduling.validation import frozen


class Ledger:
    """Free room, VM counts, load and placement of one decision in progress.

    Attributes:
        snapshot: what the decision started from.
        free: ``float64[H, R]``, see ``snapshot.free``.
        placement: ``int64[V]``.
    """

    __slots__ = ("_counts", "_load", "_rules", "free", "placement", "snapshot")

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.free: FloatArray = free(snapshot)
        self.placement: IntArray = snapshot.placement.copy()
        self._counts: IntArray | None = None
        self._load: FloatArray | None = None
        self._rules: dict[int, list[tuple[AffinityRule, IntArray]]] | None = None

    def rules_of(self, vm: int) -> Sequence[tuple[AffinityRule, IntArray]]:
        """The affinity rules that name ``vm``, each with the indices of all its VMs."""
        if not self.snapshot.rules:
            return ()
        if self._rules is None:
            self._rules = defaultdict(list)
            for rule in self.snapshot.rules:
                members = frozen(np.unique(np.array(rule.vms, dtype=np.int64)))
                for member in members.tolist():
                    self._rules[member].append((rule, members))
        return self._rules.get(vm, ())

    @property
    def counts(self) -> IntArray:
        """``int64[H]``, VMs on each host now."""
        if self._counts is None:
            self._counts = count_vms(self.snapshot.moved(self.placement))
        return self._counts

    @property
    def load(self) -> FloatArray:
        """``float64[H, R]``, measured load with what this decision has added or taken away.

        Never negative: a VM may be charged with more than it really used.
        """
        if self._load is None:
            before = self.snapshot.placement
            changed = np.flatnonzero(before != self.placement)
            load = self.snapshot.load.copy()
            for places, sign in ((before, -1.0), (self.placement, 1.0)):
                moved = changed[places[changed] != NONE]
                np.add.at(load, places[moved], sign * self.snapshot.demand[moved])
            self._load = load
        return np.maximum(self._load, 0.0)

    def place(self, vm: int, host: int) -> None:
        """Put a VM that has no host on ``host``."""
        self._shift(vm, host, 1)
        self.placement[vm] = host

    def lift(self, vm: int) -> None:
        """Take a VM off its host."""
        self._shift(vm, int(self.placement[vm]), -1)
        self.placement[vm] = NONE

    def _shift(self, vm: int, host: int, sign: int) -> None:
        change = sign * self.snapshot.demand[vm]
        self.free[host] -= change
        if self._counts is not None:
            self._counts[host] += sign
        if self._load is not None:
            self._load[host] += change

    def roomy(self, need: FloatArray) -> BoolArray:
        """``bool[H]``: hosts with room for ``need[R]``. Axes that are not needed do not matter."""
        fits: BoolArray | None = None
        for axis, size in enumerate(need.tolist()):
            if size > 0:
                enough: BoolArray = self.free[:, axis] >= size
                fits = enough if fits is None else np.logical_and(fits, enough, out=fits)
        return np.ones(self.snapshot.hosts, dtype=np.bool_) if fits is None else fits


class Scene:
    """One VM about to be placed, as filters and weights see it. Nothing here can be changed.

    Attributes:
        snapshot: what the decision started from.
        vm: index of the VM; it has no host at this moment, even if it comes from one.
        need: ``float64[R]``, room asked for: the VM's demand, or that of all the VMs which must be
            placed together with it.
        peers: the VMs whose demand ``need`` is, ``vm`` among them; usually it alone.
        candidates: ``bool[H]``, hosts that no earlier filter refused.
    """

    __slots__ = ("_ledger", "candidates", "need", "peers", "snapshot", "vm")

    def __init__(
        self,
        ledger: Ledger,
        vm: int,
        need: FloatArray,
        peers: tuple[int, ...],
        candidates: BoolArray,
    ) -> None:
        self._ledger = ledger
        self.snapshot = ledger.snapshot
        self.vm = vm
        self.need = need
        self.peers = peers
        self.candidates = candidates

    @property
    def size(self) -> int:
        """Number of VMs in ``need``."""
        return len(self.peers)

    @property
    def free(self) -> FloatArray:
        """``float64[H, R]``: room left, with the tolerance in it."""
        return frozen(self._ledger.free.view())

    @property
    def load(self) -> FloatArray:
        """``float64[H, R]``: measured load with the changes of this decision."""
        return frozen(self._ledger.load.view())

    @property
    def counts(self) -> IntArray:
        """``int64[H]``: VMs on each host."""
        return frozen(self._ledger.counts.view())

    @property
    def placement(self) -> IntArray:
        """``int64[V]``: where each VM is now; -1 for those still to come."""
        return frozen(self._ledger.placement.view())

    @property
    def rules(self) -> Sequence[tuple[AffinityRule, IntArray]]:
        """The affinity rules that name ``vm``, each with the indices of all its VMs."""
        return self._ledger.rules_of(self.vm)

    def roomy(self) -> BoolArray:
        """``bool[H]``: hosts with room for ``need``."""
        return self._ledger.roomy(self.need)

"""The order of migrations: every step feasible, as many at a time as hosts allow.

Rules:

1. While a VM moves it takes room on both hosts, counts in both hosts' number of VMs, and keeps its
   "apart" rules on both. A batch ends before the next begins, so what a batch frees is there for
   the next one only.
2. At most ``per_host`` moves of a batch touch one host, at most ``at_once`` run altogether.
3. If nothing can move though moves are left, the moves wait for one another in a circle. Then a VM
   goes aside to a third host first, the cheapest that unblocks something.
4. What cannot be ordered is left out and named, with all VMs tied to it by a "together" rule; the
   rest is a sound plan of its own.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.filters import tie_groups
from snooze.scheduling.plans import Move, Reason, ReasonCode
from snooze.scheduling.snapshot import (
    NONE,
    Affinity,
    BoolArray,
    IntArray,
    Snapshot,
    count_vms,
    free,
)


@dataclass(frozen=True, slots=True)
class Parallelism:
    """How many migrations may run at the same time.

    Attributes:
        per_host: of which one host is source or target.
        at_once: altogether.
        batches_most: longest plan.
        moves_most: most moves, those aside included.
    """

    per_host: int = 2
    at_once: int = 200
    batches_most: int = 1_000
    moves_most: int = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Ordered:
    """Moves in order, where VMs are in the end, and why some do not get where they should."""

    moves: tuple[Move, ...]
    placement: IntArray
    stuck: tuple[Reason, ...]


def order_moves(
    snapshot: Snapshot,
    target: IntArray,
    *,
    cost: FloatArray,
    parallelism: Parallelism | None = None,
    aside: BoolArray | None = None,
) -> Ordered:
    """Bring every placed VM from where it is to ``target``, batch after batch.

    Args:
        snapshot: where VMs are.
        target: ``int64[V]``, where they shall be; as it is now for those that stay.
        cost: ``float64[V]``, how long each move takes; the long ones start first, together.
        parallelism: the bounds.
        aside: ``bool[H]``, hosts that may take a VM for a while; default none.
    """
    ties = tie_groups(snapshot)
    target = target.copy()
    given_up: dict[int, Reason] = {}
    while True:
        ordered = _Order(snapshot, target, cost, parallelism or Parallelism(), aside).run()
        split = {ties[reason.vm] for reason in ordered.stuck if reason.vm in ties}
        if not split:
            stuck = {**given_up, **{reason.vm: reason for reason in ordered.stuck}}
            return replace(ordered, stuck=tuple(stuck[vm] for vm in sorted(stuck)))
        reasons = {reason.vm: reason for reason in ordered.stuck}
        for vm, leader in ties.items():
            if leader in split and target[vm] != snapshot.placement[vm]:
                message = "a VM it must stay together with finds no way"
                given_up[vm] = reasons.get(vm, Reason(vm, ReasonCode.NO_HOST_FITS, message))
                target[vm] = snapshot.placement[vm]


class _Order:
    """An order in progress. ``where`` and ``room`` are as between batches."""

    def __init__(
        self,
        snapshot: Snapshot,
        target: IntArray,
        cost: FloatArray,
        parallelism: Parallelism,
        aside: BoolArray | None,
    ) -> None:
        self.snapshot = snapshot
        self.target = target
        self.cost = cost
        self.parallelism = parallelism
        self.aside = np.zeros(snapshot.hosts, dtype=np.bool_) if aside is None else aside
        self.where: IntArray = snapshot.placement.copy()
        self.room: FloatArray = free(snapshot)
        most = np.where(snapshot.max_vms == NONE, np.iinfo(np.int64).max, snapshot.max_vms)
        self.places: IntArray = most - count_vms(snapshot)
        self.apart: dict[int, list[int]] = defaultdict(list)
        self.taken: dict[tuple[int, int], int] = defaultdict(int)
        for number, rule in enumerate(snapshot.rules):
            if rule.hard and rule.kind is Affinity.APART:
                for vm in set(rule.vms):
                    self.apart[vm].append(number)
                    if self.where[vm] != NONE:
                        self.taken[number, int(self.where[vm])] += 1
        self.moves: list[Move] = []
        self.batch = 0

    def run(self) -> Ordered:
        """Batch after batch, until all are there or nothing helps."""
        moving = np.flatnonzero((self.target != self.where) & (self.where != NONE))
        todo: list[int] = moving[np.argsort(-self.cost[moving], kind="stable")].tolist()
        detours = len(todo)
        while todo and self.batch < self.parallelism.batches_most:
            started = self._start(todo)
            if not started and detours > 0:
                started = self._step_aside(todo)
                detours -= 1
            if not started:
                break
            self._finish(started)
            todo = [vm for vm in todo if self.where[vm] != self.target[vm]]
        return Ordered(tuple(self.moves), self.where.copy(), tuple(map(self._why, todo)))

    def _start(self, todo: list[int]) -> list[Move]:
        """The moves of ``todo`` that can start now, room on the targets already taken."""
        started: list[Move] = []
        busy: dict[int, int] = defaultdict(int)
        limit = min(self.parallelism.at_once, self.parallelism.moves_most - len(self.moves))
        for vm in todo:
            if len(started) >= limit:
                break
            source, target = int(self.where[vm]), int(self.target[vm])
            if max(busy[source], busy[target]) >= self.parallelism.per_host:
                continue
            if self._fits(vm, target):
                self._arrive(vm, target)
                busy[source] += 1
                busy[target] += 1
                started.append(Move(vm, source, target, self.batch))
        return started

    def _fits(self, vm: int, host: int) -> bool:
        need = self.snapshot.demand[vm]
        return bool(
            self.places[host] > 0
            and ((need <= self.room[host]) | (need <= 0)).all()
            and not any(self.taken[number, host] for number in self.apart.get(vm, ()))
        )

    def _arrive(self, vm: int, host: int) -> None:
        self.room[host] -= self.snapshot.demand[vm]
        self.places[host] -= 1
        for number in self.apart.get(vm, ()):
            self.taken[number, host] += 1

    def _finish(self, started: list[Move]) -> None:
        """The batch ends: sources are free, VMs are at their targets."""
        for move in started:
            self.room[move.source] += self.snapshot.demand[move.vm]
            self.places[move.source] += 1
            for number in self.apart.get(move.vm, ()):
                self.taken[number, move.source] -= 1
            self.where[move.vm] = move.target
        self.moves += started
        self.batch += 1

    def _step_aside(self, todo: list[int]) -> list[Move]:
        """One VM to a third host, out of the way of another; empty if that is not possible."""
        if len(self.moves) + 2 > self.parallelism.moves_most:
            return []
        wanted = {int(self.target[vm]) for vm in todo}
        for vm in sorted(todo, key=lambda vm: (self.cost[vm], vm)):
            source = int(self.where[vm])
            if source not in wanted:
                continue
            need = self.snapshot.demand[vm]
            roomy = ((need <= self.room) | (need <= 0)).all(axis=1)
            for host in np.flatnonzero(self.aside & roomy).tolist():
                if host in (source, int(self.target[vm])) or not self._may_visit(vm, host):
                    continue
                if self._fits(vm, host):
                    self._arrive(vm, host)
                    return [Move(vm, source, host, self.batch)]
        return []

    def _may_visit(self, vm: int, host: int) -> bool:
        """Whether labels and rules about hosts let ``vm`` stay on ``host`` for a while."""
        snapshot = self.snapshot
        if snapshot.pin[vm] not in (NONE, host):
            return False
        for labels in (snapshot.tags, snapshot.networks):
            if labels is not None and (labels.vms[vm] & ~labels.hosts[host]).any():
                return False
        for rule in snapshot.rules:
            if rule.hard and vm in rule.vms:
                if rule.kind is Affinity.ON_HOSTS and host not in rule.hosts:
                    return False
                if rule.kind is Affinity.OFF_HOSTS and host in rule.hosts:
                    return False
        return True

    def _why(self, vm: int) -> Reason:
        host = self.snapshot.host_ids[int(self.target[vm])]
        if len(self.moves) >= self.parallelism.moves_most or (
            self.batch >= self.parallelism.batches_most
        ):
            return Reason(vm, ReasonCode.LIMIT_REACHED, f"no move to {host}: the plan is full")
        message = f"no move to {host}: nothing makes way for it there, not even for a while"
        return Reason(vm, ReasonCode.NO_HOST_FITS, message)

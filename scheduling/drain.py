"""Emptying hosts for maintenance and relieving hosts that are too full: one ordered plan for all.

Rules:

1. Hosts to be drained receive nothing and are emptied as far as possible. A VM that cannot leave is
   named with its reason; the others leave all the same.
2. From an overfull host the VMs leave that bring it under its limit at the least cost.
3. VMs elsewhere are pushed on only if there is no room otherwise, and only ``pushed_most`` of them.
4. Hosts asleep are woken only for what finds no room on running ones, one after the other.
5. Every step is feasible (``migration_plan``); a host is reported empty only if it is.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from snooze.common.resources import TOLERANCE, FloatArray
from snooze.scheduling.consolidation_field import Field, field_of
from snooze.scheduling.migration_plan import Ordered, Parallelism, order_moves
from snooze.scheduling.packing_effort import Effort, Meter
from snooze.scheduling.plans import Plan, Reason, ReasonCode
from snooze.scheduling.relocation_cost import MigrationModel
from snooze.scheduling.snapshot import (
    NONE,
    BoolArray,
    HostState,
    IntArray,
    Problem,
    Snapshot,
    accepting,
    count_vms,
    reserved,
)

if TYPE_CHECKING:
    from snooze.scheduling.packing_kernels import Bins

PUSH_STEPS: Final = 2_000
"""Most steps to make room for one VM by pushing others on."""

CHUNK: Final = 128
"""Steps between two looks at the clock."""

WINDOW: Final = 256
"""Bins that one ejection looks at."""

DEFAULT_MIGRATION: Final = MigrationModel()
DEFAULT_PARALLELISM: Final = Parallelism()
DEFAULT_EFFORT: Final = Effort(steps=200_000)


@dataclass(frozen=True, slots=True)
class DrainPolicy:
    """How to drain.

    Attributes:
        relieve: also bring hosts that are above their limit under it.
        wake: allow hosts that are asleep, if running ones do not suffice.
        pushed_most: most VMs of other hosts that may move to make room.
        migration: the network, from which the cost of each move follows.
        parallelism: how many migrations run at a time.
        effort: of the search.
        seed: of the search.
    """

    relieve: bool = False
    wake: bool = True
    pushed_most: int = 1_000
    migration: MigrationModel = DEFAULT_MIGRATION
    parallelism: Parallelism = DEFAULT_PARALLELISM
    effort: Effort = DEFAULT_EFFORT
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Drain:
    """The answer.

    Attributes:
        plan: moves in order, hosts to wake first, and a reason for each VM that cannot leave.
        emptied: hosts asked for that carry nothing afterwards.
        remaining: hosts asked for that still carry something.
        overfull: hosts still above their limit afterwards, of those that are not drained.
        pushed: VMs of other hosts that move to make room.
        cost_s: seconds of migration, summed over all moves.
    """

    plan: Plan
    emptied: tuple[int, ...]
    remaining: tuple[int, ...]
    overfull: tuple[int, ...]
    pushed: int
    cost_s: float


def drain(snapshot: Snapshot, hosts: BoolArray, policy: DrainPolicy | None = None) -> Drain:
    """A plan that empties ``hosts`` (``bool[H]``). Never raises on bad values."""
    return _Draining(snapshot, hosts, policy or DrainPolicy()).run()


class _Draining:
    """One drain in progress."""

    def __init__(self, snapshot: Snapshot, hosts: BoolArray, policy: DrainPolicy) -> None:
        shaped = hosts.shape == (snapshot.hosts,)
        self.problems = snapshot.problems
        if not shaped and snapshot.hosts:
            message = f"has shape {hosts.shape}, not one flag for each of {snapshot.hosts}"
            self.problems = (*self.problems, Problem("hosts", message, "shape"))
        self.snapshot = snapshot
        self.policy = policy
        self.meter = Meter(policy.effort)
        self.drained: BoolArray = (
            hosts.astype(np.bool_) if shaped else np.zeros(snapshot.hosts, dtype=np.bool_)
        )
        self.cost_s: FloatArray = policy.migration.cost(snapshot).duration_s
        self.cost_s = np.where(np.isfinite(self.cost_s), self.cost_s, 1e9)
        self.reasons: dict[int, Reason] = {}

    def run(self) -> Drain:
        """Choose who leaves, find them room, order the moves."""
        snapshot = self.snapshot
        overfull = self._overfull(snapshot) if self.policy.relieve else self._none()
        leaving = self._leaving(overfull)
        running = accepting(snapshot) & ~self.drained
        asleep = snapshot.host_ok & (snapshot.host_state == HostState.ASLEEP) & ~self.drained
        hosts = np.flatnonzero(running | (asleep & self.policy.wake))
        field = field_of(snapshot, hosts, cost=self.cost_s, leaving=leaving, soft=False)
        rooms = _Rooms(field, self.policy, self.meter)
        rooms.open((running & ~overfull)[hosts])
        rooms.fill(sleepers=asleep[hosts])
        self._explain(field, rooms)
        woken = self._none()
        woken[hosts[rooms.woken]] = True
        ordered = order_moves(
            snapshot,
            field.placement(rooms.bin_of()),
            cost=self.cost_s,
            parallelism=self.policy.parallelism,
            aside=(running & ~overfull) | woken,
        )
        self.reasons.update({reason.vm: reason for reason in ordered.stuck})
        return self._answer(ordered, leaving, woken)

    def _none(self) -> BoolArray:
        return np.zeros(self.snapshot.hosts, dtype=np.bool_)

    def _leaving(self, overfull: BoolArray) -> BoolArray:
        """``bool[V]``: VMs that must find another host and may; why not, for the others."""
        snapshot = self.snapshot
        on_drained: BoolArray = np.append(self.drained, False)[snapshot.placement]
        for vm in np.flatnonzero(on_drained).tolist():
            reason = self._bound(vm)
            if reason is not None:
                self.reasons[vm] = reason
        leaving: BoolArray = on_drained.copy()
        leaving[list(self.reasons)] = False
        for host in np.flatnonzero(overfull).tolist():
            leaving[self._relief(host)] = True
        return leaving

    def _bound(self, vm: int) -> Reason | None:
        """Why ``vm`` cannot be migrated at all."""
        snapshot = self.snapshot
        host = int(snapshot.placement[vm])
        if not snapshot.vm_ok[vm]:
            return Reason(vm, ReasonCode.INVALID_VM, "its row makes no sense")
        if snapshot.host_state[host] == HostState.FAILED:
            message = f"{snapshot.host_ids[host]} is out of reach: nothing can be migrated"
            return Reason(vm, ReasonCode.NOT_MOVABLE, message)
        if not snapshot.movable[vm]:
            return Reason(vm, ReasonCode.NOT_MOVABLE, "it must not be migrated")
        if snapshot.pin[vm] == host:
            message = f"it is pinned to {snapshot.host_ids[host]}"
            return Reason(vm, ReasonCode.NOT_MOVABLE, message)
        return None

    def _overfull(self, snapshot: Snapshot) -> BoolArray:
        """``bool[H]``: hosts above their limit, of those that are not drained."""
        above = (reserved(snapshot) > snapshot.ceiling).any(axis=1)
        reachable = snapshot.host_ok & (snapshot.host_state != HostState.FAILED)
        return np.asarray(above & reachable & ~self.drained)

    def _relief(self, host: int) -> list[int]:
        """VMs that bring ``host`` under its limit: most relief for the cost, ties to the smallest.

        Then those are kept after all that the others make unnecessary.
        """
        snapshot = self.snapshot
        inside = np.flatnonzero(snapshot.placement == host).tolist()
        total = snapshot.used[host] + snapshot.demand[inside].sum(axis=0)
        excess = (total - snapshot.ceiling[host]).clip(min=0.0)
        scale = np.where(excess > 0, excess, np.inf)
        candidates = [vm for vm in inside if self._bound(vm) is None]
        chosen: list[int] = []
        left = excess.copy()
        while (left > 0).any() and candidates:
            relief = np.minimum(snapshot.demand[candidates], left) / scale
            value = relief.sum(axis=1) / np.maximum(self.cost_s[candidates], TOLERANCE)
            size = (snapshot.demand[candidates] / scale).sum(axis=1)
            best = int(np.lexsort((size, -value))[0])
            if value[best] <= 0:
                break
            vm = candidates.pop(best)
            chosen.append(vm)
            left = (left - snapshot.demand[vm]).clip(min=0.0)
        for vm in sorted(chosen, key=lambda vm: -self.cost_s[vm]):
            others = [other for other in chosen if other != vm]
            if (snapshot.demand[others].sum(axis=0) >= excess).all():
                chosen = others
        return chosen

    def _explain(self, field: Field, rooms: "_Rooms") -> None:
        """The reasons of VMs that no host takes."""
        for vm in np.flatnonzero(field.item_of >= 0).tolist():
            item = int(field.item_of[vm])
            if rooms.bins.assign[item] == NONE:
                self.reasons[vm] = Reason(
                    vm, ReasonCode.NO_HOST_FITS, "no host takes it", rooms.refusals(item)
                )

    def _answer(self, ordered: Ordered, leaving: BoolArray, woken: BoolArray) -> Drain:
        snapshot = self.snapshot
        after = snapshot.moved(ordered.placement)
        wakes = woken & np.isin(np.arange(snapshot.hosts), ordered.placement)
        busy = (count_vms(after) > 0) | (snapshot.used > 0).any(axis=1)
        moved = {move.vm for move in ordered.moves}
        plan = Plan(
            placement=ordered.placement,
            reasons=tuple(self.reasons[vm] for vm in sorted(self.reasons)),
            moves=ordered.moves,
            wakes=tuple(np.flatnonzero(wakes).tolist()),
            policy="drain",
            problems=self.problems,
        )
        return Drain(
            plan,
            emptied=tuple(np.flatnonzero(self.drained & ~busy).tolist()),
            remaining=tuple(np.flatnonzero(self.drained & busy).tolist()),
            overfull=tuple(np.flatnonzero(self._overfull(after)).tolist()),
            pushed=sum(not leaving[vm] for vm in moved),
            cost_s=float(self.cost_s[[move.vm for move in ordered.moves]].sum()),
        )


class _Rooms:
    """The search for room: bins as they fill.

    Invariant between calls: an item that had a bin has one; the trash is empty.
    """

    def __init__(self, field: Field, policy: DrainPolicy, meter: Meter) -> None:
        from snooze.scheduling import packing_kernels

        self.field = field
        self.policy = policy
        self.meter = meter
        self.bins: Bins = packing_kernels.make_bins(
            field.items,
            np.full_like(field.limit, -np.inf),
            field.cost,
            field.home,
            policy.seed % 2147483646 + 1,
            home=field.home,
            kind=field.kind,
            allowed=field.allowed,
            groups=field.groups,
        )
        self.bins.penalty[field.fixed] = packing_kernels.FIXED
        self.bins.state[packing_kernels.TRASHED] = 0
        self.opened: BoolArray = np.zeros(len(field.hosts), dtype=np.bool_)
        self.woken: BoolArray = np.zeros(len(field.hosts), dtype=np.bool_)
        room = np.maximum(field.limit[:, :-1], 0.0)
        mean = room.mean(axis=0) if len(room) else np.zeros(room.shape[1])
        self.scale: FloatArray = np.append(np.where(mean > 0, mean, np.inf), np.inf)
        share = (field.items[:, :-1] / self.scale[:-1]).max(axis=1, initial=0.0)
        self.order: IntArray = np.argsort(-share, kind="stable")

    def open(self, which: BoolArray) -> None:
        """Let bins take items."""
        self.bins.limit[which] = self.field.limit[which]
        self.opened |= which

    def fill(self, sleepers: BoolArray) -> None:
        """Room for all that wait: free room, then by pushing others on, then by waking."""
        from snooze.scheduling import consolidation_kernels

        if not len(self.field.hosts):
            return
        consolidation_kernels.spread(self.bins, self._waiting(), self.scale)
        for item in self._waiting().tolist():
            self._push(item)
        for sleeper in np.flatnonzero(sleepers).tolist():
            waiting = self._waiting()
            if not len(waiting):
                return
            if not self._useful(sleeper, waiting):
                continue
            self.bins.limit[sleeper] = self.field.limit[sleeper]
            consolidation_kernels.spread(self.bins, waiting, self.scale)
            self.woken[sleeper] = self.opened[sleeper] = True

    def _waiting(self) -> IntArray:
        """Items without a bin, the biggest first."""
        return np.asarray(self.order[self.bins.assign[self.order] == NONE])

    def _useful(self, sleeper: int, waiting: IntArray) -> bool:
        """Whether a sleeping host takes anything that waits."""
        field = self.field
        fits = (field.items[waiting] <= field.limit[sleeper]).all(axis=1)
        return bool((fits & field.allowed[field.kind[waiting], sleeper]).any())

    def _push(self, item: int) -> None:
        """Make room for one item by moving others; all as before if that fails."""
        from snooze.scheduling import packing_kernels

        bins = self.bins
        kept = (bins.assign, bins.head, bins.after, bins.before, bins.load)
        saved = [array.copy() for array in kept]
        bins.trash[0] = item
        bins.state[packing_kernels.TRASHED] = 1
        steps = min(PUSH_STEPS, self.meter.steps_left())
        while steps > 0 and bins.state[packing_kernels.TRASHED] and not self.meter.over():
            done = max(1, packing_kernels.search(bins, min(steps, CHUNK), 0, WINDOW))
            self.meter.steps += done
            steps -= done
        pushed = (self.field.home >= 0) & (bins.assign != self.field.home)
        if bins.state[packing_kernels.TRASHED] or (
            self.field.items[pushed, -1].sum() > self.policy.pushed_most
        ):
            for array, before in zip(kept, saved, strict=True):
                array[...] = before
            bins.state[packing_kernels.TRASHED] = 0

    def bin_of(self) -> IntArray:
        """The bin of each item; -1 for those that stay where they are."""
        return self.bins.assign.copy()

    def refusals(self, item: int) -> tuple[tuple[str, int], ...]:
        """How many hosts refuse ``item``, by the first reason each has."""
        bins, field = self.bins, self.field
        allowed = field.allowed[field.kind[item]]
        roomy = (bins.load + field.items[item] <= field.limit).all(axis=1)
        closed = int((allowed & roomy & ~self.opened).sum())
        counts = (
            ("rules and labels", int((~allowed).sum())),
            ("capacity", int((allowed & ~roomy).sum())),
            ("closed", closed),
            ("apart", int((allowed & roomy).sum()) - closed),
        )
        return tuple((name, count) for name, count in counts if count)

"""Fewer hosts for the VMs that run: which hosts to empty, where their VMs go, in what order.

Four methods, one frame. The frame makes the packing problem of the snapshot
(``consolidation_field``), lets the method find where VMs go, weighs what that saves against what
moving costs, orders the moves (``migration_plan``), and says how far from the best possible the
answer can be (``bounds``).

Rules:

1. Only VMs that are movable, valid and not pinned move, each at most once (to break a circle one
   goes aside first), never more than ``moves_most``. Hosts fill up to ``limit``, headroom included.
2. Rules that hold are kept: hard ones always, soft ones that are kept now as well.
3. A host with anything unlisted, fixed or pinned on it is never emptied. No empty host is opened.
4. A host is given up only if that is worth more than the moves it takes; a plan that gives up
   nothing moves nothing. "No beneficial plan" is an answer.
5. The same snapshot, policy and seed give the same answer when only steps bound the effort.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.bounds import Bound, hosts_bound
from snooze.scheduling.consolidation_field import Field, field_of
from snooze.scheduling.consolidation_methods import METHODS, Method, Task
from snooze.scheduling.migration_plan import Ordered, Parallelism, order_moves
from snooze.scheduling.packing_effort import Effort, Meter
from snooze.scheduling.plans import Plan
from snooze.scheduling.relocation_cost import MigrationModel
from snooze.scheduling.snapshot import BoolArray, IntArray, Snapshot, accepting, count_vms

DEFAULT_MIGRATION: Final = MigrationModel()
DEFAULT_PARALLELISM: Final = Parallelism()
DEFAULT_EFFORT: Final = Effort(steps=200_000)


@dataclass(frozen=True, slots=True)
class ConsolidationPolicy:
    """How to consolidate.

    Attributes:
        method: which algorithm.
        moves_most: cap on the moves of one plan.
        host_worth_s: how many seconds of migrating one released host is worth.
        stop_most_s: a VM that would stand still for longer when moved is left alone.
        migration: the network, from which the cost of each move follows.
        parallelism: how many migrations run at a time.
        effort: of the method; default a fixed number of steps.
        seed: of the method.
    """

    method: Method = Method.OPTIMISER
    moves_most: int = 1_000
    host_worth_s: float = 1_800.0
    stop_most_s: float = 10.0
    migration: MigrationModel = DEFAULT_MIGRATION
    parallelism: Parallelism = DEFAULT_PARALLELISM
    effort: Effort = DEFAULT_EFFORT
    seed: int = 0


class Verdict(StrEnum):
    """What came of it. Stable; meant for programs."""

    RELEASED = "released"
    NOTHING_TO_DO = "nothing_to_do"
    """No host runs that could be emptied."""
    OPTIMAL = "optimal"
    """Already on as few hosts as possible."""
    NO_PLAN = "no_plan"
    """The method found no host whose VMs have room elsewhere."""
    NO_BENEFIT = "no_benefit"
    """Moving would cost more than it saves."""
    INVALID = "invalid"
    """The snapshot made no sense."""


@dataclass(frozen=True, slots=True, eq=False)
class Consolidation:
    """The answer: a plan, perhaps without moves, and how good it is.

    Attributes:
        plan: moves in order; ``sleeps`` are the hosts it empties.
        verdict, message: what came of it and why, for programs and for people.
        hosts_before, hosts_after: hosts in use, of those that take VMs.
        bound: the fewest hosts any plan could use.
        cost_s: seconds of migration, summed over all moves.
        steps: work done by the method.
    """

    plan: Plan
    verdict: Verdict
    message: str
    hosts_before: int
    hosts_after: int
    bound: Bound
    cost_s: float = 0.0
    steps: int = 0

    @property
    def gap(self) -> int:
        """How many hosts fewer a better plan could use at the very most."""
        return max(0, self.hosts_after - self.bound.count)


def consolidate(snapshot: Snapshot, policy: ConsolidationPolicy | None = None) -> Consolidation:
    """A plan that empties hosts, or the reason why there is none. Never raises on bad values."""
    return _Consolidating(snapshot, policy or ConsolidationPolicy()).run()


def brought_to(
    snapshot: Snapshot, placement: IntArray, policy: ConsolidationPolicy, name: str
) -> Consolidation:
    """A consolidation that somebody else found: VMs brought to ``placement``, if that is worth it.

    ``name``: of who found it. Moves that have no order are among the plan's ``reasons``.
    """
    made = _Consolidating(snapshot, policy).brought_to(placement)
    return replace(made, plan=replace(made.plan, policy=name))


class _Consolidating:
    """One consolidation in progress."""

    def __init__(self, snapshot: Snapshot, policy: ConsolidationPolicy) -> None:
        self.snapshot = snapshot
        self.policy = policy
        self.meter = Meter(policy.effort)
        cost = policy.migration.cost(snapshot)
        self.cost_s: FloatArray = cost.duration_s
        heavy = ~(cost.downtime_s <= policy.stop_most_s)
        usable = snapshot.changed(movable=snapshot.movable & ~heavy) if heavy.any() else snapshot
        self.field: Field = field_of(
            usable, np.flatnonzero(accepting(snapshot)), cost=np.where(heavy, 0.0, self.cost_s)
        )
        self.before = self._used(snapshot)
        load = np.zeros_like(self.field.limit)
        np.add.at(load, self.field.home, self.field.items)
        self.bound = hosts_bound(
            self.field.items, np.maximum(self.field.limit, load), self.field.kept
        )

    def run(self) -> Consolidation:
        """Try the method; retry without the hosts whose moves cannot be ordered."""
        if self.snapshot.problems and not self.snapshot.hosts:
            return self._nothing(Verdict.INVALID, "the snapshot makes no sense, see problems")
        in_use = self.before[self.field.hosts]
        donors: BoolArray = in_use & ~self.field.kept
        if not donors.any():
            return self._nothing(Verdict.NOTHING_TO_DO, "no host in use can be emptied")
        if int(in_use.sum()) <= self.bound.count:
            message = (
                f"no plan can do with fewer hosts than {self.bound.count} (bound: {self.bound.by})"
            )
            return self._nothing(Verdict.OPTIMAL, message)
        ordered = None
        for _ in range(2):
            bin_of = self._found(donors)
            if bin_of is None:
                break
            ordered = self._ordered(bin_of)
            if not ordered.stuck:
                break
            stuck = [int(self.snapshot.placement[reason.vm]) for reason in ordered.stuck]
            donors = donors & ~np.isin(self.field.hosts, stuck)
        if ordered is None:
            message = f"{self.policy.method} found no host to empty within its bounds"
            return self._nothing(Verdict.NO_PLAN, message)
        return self._weighed(ordered)

    def brought_to(self, placement: IntArray) -> Consolidation:
        """See the function of this name."""
        if (placement == self.snapshot.placement).all():
            return self._nothing(Verdict.NO_PLAN, "it found no host to empty")
        return self._weighed(self._to(placement))

    def _weighed(self, ordered: Ordered) -> Consolidation:
        """Worth it, or not."""
        released = np.flatnonzero(self.before & ~self._used(self.snapshot.moved(ordered.placement)))
        cost_s = float(self.cost_s[[move.vm for move in ordered.moves]].sum())
        if released.size == 0 or cost_s > self.policy.host_worth_s * released.size:
            message = f"{len(ordered.moves)} moves of {cost_s:.0f} s for {released.size} hosts"
            return self._nothing(Verdict.NO_BENEFIT, message)
        return self._answer(ordered, released, cost_s)

    def _found(self, donors: BoolArray) -> IntArray | None:
        """Where the method puts items; None if it moves none."""
        task = Task(
            field=self.field,
            donors=donors,
            open=self.before[self.field.hosts] | self.field.kept,
            bound=self.bound,
            moves_most=self.policy.moves_most,
            host_worth=self.policy.host_worth_s,
            seed=self.policy.seed,
            meter=self.meter,
        )
        bin_of = METHODS[self.policy.method](task)
        return None if bin_of is None or (bin_of == self.field.home).all() else bin_of

    def _ordered(self, bin_of: IntArray) -> Ordered:
        return self._to(self.field.placement(bin_of))

    def _to(self, placement: IntArray) -> Ordered:
        policy = self.policy
        return order_moves(
            self.snapshot,
            placement,
            cost=self.cost_s,
            parallelism=replace(
                policy.parallelism,
                moves_most=min(policy.moves_most, policy.parallelism.moves_most),
            ),
            aside=self.before & accepting(self.snapshot),
        )

    def _answer(self, ordered: Ordered, released: IntArray, cost_s: float) -> Consolidation:
        plan = Plan(
            placement=ordered.placement,
            reasons=ordered.stuck,
            moves=ordered.moves,
            sleeps=tuple(released.tolist()),
            policy=self.policy.method.value,
            problems=self.snapshot.problems,
        )
        before = int(self.before[self.field.hosts].sum())
        message = f"{len(ordered.moves)} moves empty {released.size} of {before} hosts"
        return Consolidation(
            plan,
            Verdict.RELEASED,
            message,
            before,
            before - released.size,
            self.bound,
            cost_s,
            self.meter.steps,
        )

    def _nothing(self, verdict: Verdict, message: str) -> Consolidation:
        snapshot = self.snapshot
        plan = Plan(
            placement=snapshot.placement.copy(),
            policy=self.policy.method.value,
            problems=snapshot.problems,
        )
        count = int(self.before[self.field.hosts].sum())
        return Consolidation(
            plan, verdict, message, count, count, self.bound, steps=self.meter.steps
        )

    def _used(self, snapshot: Snapshot) -> BoolArray:
        """``bool[H]``: hosts that carry something."""
        return (count_vms(snapshot) > 0) | (snapshot.used > 0).any(axis=1)

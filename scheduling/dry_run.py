"""What every policy would do with the same snapshot, side by side. Nothing is changed by it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snooze.scheduling import balancing, placement
from snooze.scheduling.check import Violation, check_plan
from snooze.scheduling.consolidation import ConsolidationPolicy, consolidate
from snooze.scheduling.consolidation_methods import Method
from snooze.scheduling.norms import normalised
from snooze.scheduling.plans import Plan
from snooze.scheduling.policies import BUILT_IN, Catalogue, PlacementPolicy
from snooze.scheduling.snapshot import NONE, Snapshot, reserved


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one policy would do.

    Attributes:
        policy: its name.
        placed, unplaced: VMs without a host before, with and without one after.
        moves: migrations its balancer would make afterwards.
        hosts_used: hosts with a listed VM after both.
        wakes, sleeps: hosts it would wake, or let sleep.
        fullest: the largest share promised of any resource of any host, 0 to 1 and beyond.
        plans: the plans themselves, in order.
        violations: what the checker says; always empty, unless there is a mistake of ours.
    """

    policy: str
    placed: int
    unplaced: int
    moves: int
    hosts_used: int
    wakes: int
    sleeps: int
    fullest: float
    plans: tuple[Plan, ...]
    violations: tuple[Violation, ...]


def dry_run(snapshot: Snapshot, catalogue: Catalogue = BUILT_IN) -> tuple[Outcome, ...]:
    """The outcome of every policy in ``catalogue``, in its order, and of every consolidation."""
    policies = tuple(outcome(snapshot, policy) for policy in catalogue.policies.values())
    return policies + tuple(_consolidated(snapshot, method) for method in Method)


def outcome(snapshot: Snapshot, policy: PlacementPolicy) -> Outcome:
    """What ``policy`` would do: place the VMs without a host, then balance."""
    placed = placement.plan(snapshot, policy)
    violations = check_plan(snapshot, placed)
    after = snapshot.moved(placed.placement)
    balanced = balancing.plan(after, policy)
    violations += check_plan(after, balanced)
    return _summary(snapshot, policy.name, (placed, balanced), violations)


def _consolidated(snapshot: Snapshot, method: Method) -> Outcome:
    """What consolidating by ``method`` would do; VMs without a host stay without."""
    plan = consolidate(snapshot, ConsolidationPolicy(method=method)).plan
    name = f"consolidation: {method.value}"
    return _summary(snapshot, name, (plan,), check_plan(snapshot, plan))


def _summary(
    snapshot: Snapshot, name: str, plans: tuple[Plan, ...], violations: Sequence[Violation]
) -> Outcome:
    last = plans[-1].placement
    waiting = snapshot.placement == NONE
    shares = normalised(reserved(snapshot.moved(last)), snapshot.limit)
    return Outcome(
        policy=name,
        placed=int((waiting & (last != NONE)).sum()),
        unplaced=int((waiting & (last == NONE)).sum()),
        moves=sum(len(plan.moves) for plan in plans),
        hosts_used=len(np.unique(last[last != NONE])),
        wakes=sum(len(plan.wakes) for plan in plans),
        sleeps=sum(len(plan.sleeps) for plan in plans),
        fullest=float(shares.max(initial=0.0)),
        plans=plans,
        violations=tuple(violations),
    )

"""What every policy would do with the same snapshot, side by side. Nothing is changed by it."""

from dataclasses import dataclass

import numpy as np

from snooze.scheduling import balancing, placement
from snooze.scheduling.check import Violation, check_plan
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
        placement_plan, balance_plan: the plans themselves.
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
    placement_plan: Plan
    balance_plan: Plan
    violations: tuple[Violation, ...]


def dry_run(snapshot: Snapshot, catalogue: Catalogue = BUILT_IN) -> tuple[Outcome, ...]:
    """The outcome of every policy in ``catalogue``, in its order."""
    return tuple(outcome(snapshot, policy) for policy in catalogue.policies.values())


def outcome(snapshot: Snapshot, policy: PlacementPolicy) -> Outcome:
    """What ``policy`` would do: place the VMs without a host, then balance."""
    placed = placement.plan(snapshot, policy)
    violations = check_plan(snapshot, placed)
    after = snapshot.moved(placed.placement)
    balanced = balancing.plan(after, policy)
    violations += check_plan(after, balanced)
    waiting = snapshot.placement == NONE
    shares = normalised(reserved(after.moved(balanced.placement)), snapshot.limit)
    return Outcome(
        policy=policy.name,
        placed=int((waiting & (placed.placement != NONE)).sum()),
        unplaced=int((waiting & (placed.placement == NONE)).sum()),
        moves=len(balanced.moves),
        hosts_used=len(np.unique(balanced.placement[balanced.placement != NONE])),
        wakes=len(placed.wakes) + len(balanced.wakes),
        sleeps=len(balanced.sleeps),
        fullest=float(shares.max(initial=0.0)),
        placement_plan=placed,
        balance_plan=balanced,
        violations=tuple(violations),
    )

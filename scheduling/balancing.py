"""A balancer's advice made into moves.

Each advised VM is scheduled anew, among the hosts the balancer allows, by the filters and weights
of its policy. It moves only if that does not make its target as bad as its source was, so that
nothing moves back and forth. No host both gives and receives in one plan; all its moves are
therefore feasible at once, in one batch.

A power-saving policy also says which hosts may sleep, and which should wake for the reserve.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.balancers import cpu_percent, pressure
from snooze.scheduling.choosing import Chooser
from snooze.scheduling.filters import Bundle, tie_groups
from snooze.scheduling.ledger import Ledger
from snooze.scheduling.plans import Move, Plan, Reason, ReasonCode
from snooze.scheduling.policies import PlacementPolicy
from snooze.scheduling.snapshot import (
    NONE,
    BoolArray,
    HostState,
    Problem,
    Snapshot,
    accepting,
    reserved,
)
from snooze.scheduling.units import Advice, UnitFailed, number

MAX_MOVES: Final = 32
MAX_ADVICE: Final = 10_000


def plan(
    snapshot: Snapshot,
    policy: PlacementPolicy,
    *,
    max_moves: int = MAX_MOVES,
    rng: np.random.Generator | None = None,
) -> Plan:
    """Moves that the policy's balancer asks for and its filters and weights allow.

    A policy without a balancer moves nothing. VMs that were advised to move and do not are in
    ``reasons``, unless another VM of their host went instead.
    """
    balance = _Balance.of(snapshot, policy, max_moves, rng)
    problems = list(snapshot.problems)
    advices: list[Advice] = []
    if policy.balancer is not None and snapshot.hosts:
        try:
            advices = policy.balancer.advise(snapshot, policy.properties)[:MAX_ADVICE]
        except UnitFailed as failure:
            where = f"balancer {policy.balancer.name}"
            problems.append(Problem(where, f"skipped: {failure}", "unit_failed"))
    for advice in advices:
        balance.follow(advice)
    sleeps, wakes = _power(snapshot, policy, balance)
    return Plan(
        placement=balance.ledger.placement,
        reasons=tuple(balance.reasons),
        moves=tuple(balance.moves),
        sleeps=sleeps,
        wakes=wakes,
        policy=policy.name,
        problems=(*problems, *balance.chooser.problems),
    )


@dataclass(slots=True)
class _Balance:
    """Moves so far, and the hosts that have given or received."""

    ledger: Ledger
    chooser: Chooser
    policy: PlacementPolicy
    left: int
    gave: BoolArray
    received: BoolArray
    ties: dict[int, int]
    moves: list[Move] = field(default_factory=list[Move])
    reasons: list[Reason] = field(default_factory=list[Reason])

    @classmethod
    def of(
        cls,
        snapshot: Snapshot,
        policy: PlacementPolicy,
        max_moves: int,
        rng: np.random.Generator | None,
    ) -> "_Balance":
        ledger = Ledger(snapshot)
        return cls(
            ledger,
            Chooser(ledger, policy, 0, rng),
            policy,
            max_moves,
            np.zeros(snapshot.hosts, dtype=np.bool_),
            np.zeros(snapshot.hosts, dtype=np.bool_),
            tie_groups(snapshot),
        )

    def follow(self, advice: Advice) -> None:
        """Move VMs of the advice until its cause is gone, or undo if it wanted all or none."""
        snapshot = self.ledger.snapshot
        if not 0 <= advice.source < snapshot.hosts or self.received[advice.source]:
            return
        within = np.zeros(snapshot.hosts, dtype=np.bool_)
        within[[host for host in advice.targets if 0 <= host < snapshot.hosts]] = True
        within &= ~self.gave & accepting(snapshot)
        within[advice.source] = False
        moved: list[Move] = []
        refused: list[Reason] = []
        for bundle in self._bundles(advice):
            if not advice.all_or_nothing and self._relieved(advice.source, moved):
                break
            if len(moved) + len(bundle.vms) > self.left:
                message = "the plan has as many moves as it may"
                refused += [Reason(vm, ReasonCode.LIMIT_REACHED, message) for vm in bundle.vms]
                break
            target = self._move(bundle, advice, within)
            if target == NONE:
                message = f"no other host would be better off ({advice.why})"
                refused += [Reason(vm, ReasonCode.NO_BENEFIT, message) for vm in bundle.vms]
                if advice.all_or_nothing:
                    break
                continue
            moved += [Move(vm, advice.source, target) for vm in bundle.vms]
        if advice.all_or_nothing and len(moved) < len(advice.vms):
            for move in reversed(moved):
                self.ledger.lift(move.vm)
                self.ledger.place(move.vm, move.source)
            moved = []
        if not moved or not self._relieved(advice.source, moved):
            self.reasons += refused
        self._record(moved)

    def _record(self, moved: list[Move]) -> None:
        self.moves += moved
        self.left -= len(moved)
        for move in moved:
            self.gave[move.source] = True
            self.received[move.target] = True

    def _bundles(self, advice: Advice) -> list[Bundle]:
        """The advised VMs that are on the source, with those that must stay together with them."""
        snapshot = self.ledger.snapshot
        bundles: list[Bundle] = []
        seen: set[int] = set()
        for vm in advice.vms:
            if not 0 <= vm < snapshot.vms or vm in seen:
                continue
            group = (
                [other for other, root in self.ties.items() if root == self.ties[vm]]
                if vm in self.ties
                else [vm]
            )
            here = [other for other in group if self.ledger.placement[other] == advice.source]
            seen.update(here)
            if vm in here and all(
                snapshot.movable[other] and snapshot.pin[other] == NONE for other in here
            ):
                bundles.append(Bundle(tuple(here)))
        return bundles

    def _move(self, bundle: Bundle, advice: Advice, within: BoolArray) -> int:
        """Schedule ``bundle`` anew; it goes back if that would not be an improvement."""
        before = self._badness(advice.source)
        for vm in bundle.vms:
            self.ledger.lift(vm)
        target = self.chooser.choose(bundle, within=within)
        if target != NONE:
            for vm in bundle.vms:
                self.ledger.place(vm, target)
            if advice.all_or_nothing or self._badness(target) < before:
                return target
            for vm in bundle.vms:
                self.ledger.lift(vm)
        for vm in bundle.vms:
            self.ledger.place(vm, advice.source)
        return NONE

    def pressure(self) -> FloatArray:
        """``float64[H]``: how near each host is to overload with the moves so far, 1 being it."""
        snapshot, properties = self.ledger.snapshot, self.policy.properties
        if "HighUtilization" not in properties:
            return cpu_percent(snapshot, self.ledger.load) / 100.0
        return pressure(snapshot, properties, self.ledger.load)

    def _badness(self, host: int) -> float:
        """What the policy wants less of on a busy host: VMs, or load."""
        if "HighVmCount" in self.policy.properties:
            return float(self.ledger.counts[host])
        return float(self.pressure()[host])

    def _relieved(self, host: int, moved: Sequence[Move]) -> bool:
        """True once the source is no longer what the balancer complained about."""
        properties = self.policy.properties
        if "HighVmCount" in properties:
            counts = self.ledger.counts
            active = accepting(self.ledger.snapshot)
            least = int(counts[active].min()) if active.any() else 0
            gap = max(2.0, number(properties, "MigrationThreshold"))
            few = counts[host] <= number(properties, "HighVmCount")
            return bool(few or counts[host] - least < gap)
        if "HighUtilization" not in properties:
            # A balancer of somebody's own: one VM for each piece of advice.
            return bool(moved)
        return bool(self.pressure()[host] <= 1.0)


def _power(
    snapshot: Snapshot, policy: PlacementPolicy, balance: _Balance
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Hosts that may sleep and hosts that should wake, for a policy that manages power.

    The reserve is a number of empty hosts kept running. A host that is overloaded, and could not
    be relieved by those that run, wakes one more.
    """
    if not policy.properties.get("EnableAutomaticHostPowerManagement", False):
        return (), ()
    reserve = int(policy.properties.get("HostsInReserve", 0))
    untouched = ~reserved(snapshot).any(axis=1) & (snapshot.vm_count == 0)
    vacated = balance.gave & (balance.ledger.counts == 0) & ~snapshot.used.any(axis=1)
    empty = accepting(snapshot) & (balance.ledger.counts == 0) & (untouched | vacated)
    waking = int((snapshot.host_ok & (snapshot.host_state == HostState.WAKING)).sum())
    stuck = any(reason.code is ReasonCode.NO_BENEFIT for reason in balance.reasons)
    hot = bool((balance.pressure()[accepting(snapshot)] > 1.0).any())
    spare = np.flatnonzero(empty)
    short = reserve - len(spare) - waking
    if hot and stuck and not len(spare) and not waking:
        short = max(short, 1)
    if short > 0:
        asleep = snapshot.host_ok & (snapshot.host_state == HostState.ASLEEP)
        return (), tuple(np.flatnonzero(asleep)[:short].tolist())
    if hot:
        return (), ()
    return tuple(spare[reserve:].tolist()), ()

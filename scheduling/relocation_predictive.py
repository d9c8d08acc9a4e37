"""Our relocation: moves that are worth what they cost, to where the load will still fit.

What is better than the greedy way:

- A host is judged by what its VMs are expected to use in the coming hour and how far that may be
  off, not by this moment alone. A target must have room for the mean plus ``confidence`` standard
  deviations of all that will be on it, unless it carries nothing else. Deviations add up as those
  of independent VMs do, so a host may be fuller the more VMs share it. Only if no such target is
  left is the mean enough to relieve an overload: here it is certain, there only possible.
- A move has a cost: the service its VM loses, from memory, dirty rate and bandwidth. It is made
  only if the benefit is larger. A peak that is passing is left alone.
- Nothing moves back and forth: a VM that moved is left alone for ``hold_s``, and does not go back
  to where it came from; a host that was overloaded, or relieved one that was, is not emptied for
  ``cooldown_s``.

Costs and benefits are both in seconds of a whole host's work.

Source: deviations of independent demands add in squares, as in stochastic bin packing (Wang, Meng
and Zhang, "Consolidating virtual machines with dynamic bandwidth demand", INFOCOM 2011).
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.filters import Bundle
from snooze.scheduling.plans import ReasonCode
from snooze.scheduling.relocation import (
    ENOUGH,
    MAX_MOVES,
    Bench,
    Hold,
    MovedVm,
    OutcomeKind,
    Relocation,
    Situation,
    hosts_in_order,
)
from snooze.scheduling.relocation_cost import MigrationCost, MigrationModel
from snooze.scheduling.relocation_selection import BestRelief, Choice, Selection
from snooze.scheduling.snapshot import NONE, BoolArray, HostState

KNOWN_IDLE_SHARE: Final = 0.5
"""What a host saves by sleeping, as a share of its full power, if nobody knows its power."""
_WHY_NOT: Final = {
    OutcomeKind.NO_ROOM: "no host has room for a VM that is on it",
    OutcomeKind.NO_BENEFIT: "moving a VM costs more than it gains",
    OutcomeKind.NOT_MOVABLE: "no VM that is on it may be moved",
    OutcomeKind.LIMIT_REACHED: "the plan has as many moves as it may",
}
"""Why an overloaded host is not relieved, or not wholly, for people."""


@dataclass(frozen=True, slots=True)
class Predictive:
    """The policy and its settings; the defaults are the product's.

    Attributes:
        confidence: standard deviations kept free on targets.
        passing: a host whose expected load is below this share of its limit is only passing a peak.
        horizon_s: for how long an overload would go on if nothing were done.
        payback_s: for how long an emptied host is expected to sleep.
        worth: what a second of lost service is worth, in seconds of work.
        hold_s: for how long a VM that moved is left alone.
        cooldown_s: for how long a host that took part in an overload is not emptied.
        patience: hosts that may prove impossible to empty before the search for more ends.
        margin: how many times its cost a move has to gain.
        max_moves: most moves of one plan.
        selection: which VM leaves an overloaded host first.
        migration: what a move costs.
    """

    confidence: float = 1.0
    passing: float = 0.7
    horizon_s: float = 600.0
    payback_s: float = 3600.0
    worth: float = 10.0
    hold_s: float = 3600.0
    cooldown_s: float = 1800.0
    patience: int = 3
    margin: float = 1.0
    max_moves: int = MAX_MOVES
    selection: Selection = field(default_factory=BestRelief)
    migration: MigrationModel = field(default_factory=MigrationModel)
    name: str = "predictive"

    def plan(self, situation: Situation) -> Relocation:
        """Relieve overloaded hosts, then empty underloaded ones. Never raises on bad values."""
        if not situation.snapshot.hosts:
            return Bench(situation, self.name, self.confidence).answer(situation.hold)
        return _Decision(self, situation).made()


DEFAULT: Final = Predictive()


class _Decision:
    """One run of the policy."""

    def __init__(self, policy: Predictive, situation: Situation) -> None:
        self.policy = policy
        self.situation = situation
        self.bench = Bench(situation, policy.name, policy.confidence)
        self.snapshot = situation.snapshot
        self.cost: MigrationCost = policy.migration.cost(situation.snapshot)
        self.relieving: set[int] = set()
        self.closed: BoolArray = self.bench.overloaded.copy()
        index = {name: host for host, name in enumerate(self.snapshot.host_ids)}
        now_s = situation.now_s
        held = situation.hold.vms
        self.left: dict[int, int] = {
            vm: index.get(held[name].left, NONE)
            for vm, name in enumerate(self.snapshot.vm_ids)
            if name in held and held[name].until_s > now_s
        }
        self.preference = self._preference()

    def _preference(self) -> FloatArray:
        """``float64[H]``: watts per unit of room, by which hosts are woken; lower is better."""
        bench = self.bench
        if bench.power is None or not len(self.snapshot.axes):
            return np.zeros(self.snapshot.hosts)
        return bench.power.cost_of_capacity(self.snapshot.limit[:, 0])

    def made(self) -> Relocation:
        """The whole decision."""
        for host in hosts_in_order(self.bench.overloaded, -self._excess().max(axis=1, initial=0.0)):
            self._relieve(host)
        self._consolidate()
        return self.bench.answer(self._hold())

    # Overload

    def _excess(self) -> FloatArray:
        """``float64[H, R]``: what each host has too much of, as a share of its limit."""
        bench = self.bench
        load = np.maximum(bench.ledger.load, bench.foreseen)
        return np.maximum(bench.share(load - self.snapshot.limit), 0.0)

    def _relieve(self, host: int) -> None:
        """Move VMs off ``host`` until what is foreseen is within its limit."""
        bench, policy = self.bench, self.policy
        if not self.snapshot.host_ok[host]:
            bench.tell(host, OutcomeKind.LEFT_OUT, "its row makes no sense")
            return
        expected = float(bench.share(bench.expected)[host].max(initial=0.0))
        if expected <= policy.passing:
            message = f"the peak is passing: {expected:.0%} of its limit is expected"
            bench.tell(host, OutcomeKind.NO_BENEFIT, message)
            return
        tried: set[int] = set()
        moved, benefit, cost = 0, 0.0, 0.0
        failure = OutcomeKind.NOT_MOVABLE
        while True:
            excess = self._excess()[host]
            if excess.max(initial=0.0) <= ENOUGH:
                message = f"{moved} VMs leave"
                bench.tell(host, OutcomeKind.RELIEVED, message, moved, benefit, cost)
                return
            bundle = self._next_to_leave(host, excess, tried)
            if bundle is None:
                break
            if len(bench.moves) + len(bundle.vms) > policy.max_moves:
                bench.refuse(
                    bundle, ReasonCode.LIMIT_REACHED, "the plan has as many moves as it may"
                )
                failure = OutcomeKind.LIMIT_REACHED
                break
            gain, loss = self._weigh(host, bundle, excess)
            if gain <= policy.margin * loss:
                message = f"moving it loses {loss:.0f} s of the host's work and gains {gain:.0f} s"
                bench.refuse(bundle, ReasonCode.NO_BENEFIT, message)
                failure = OutcomeKind.NO_BENEFIT
                continue
            if not self._leave(host, bundle):
                failure = OutcomeKind.NO_ROOM
                continue
            moved, benefit, cost = moved + len(bundle.vms), benefit + gain, cost + loss
        kind = OutcomeKind.PARTLY_RELIEVED if moved else failure
        message = f"it is foreseen {excess.max():.0%} above its limit, and {_WHY_NOT[failure]}"
        if moved:
            message = f"{moved} VMs leave; {message}"
        bench.tell(host, kind, message, moved, benefit, cost)

    def _next_to_leave(self, host: int, excess: FloatArray, tried: set[int]) -> Bundle | None:
        """The best VM to move of those not tried yet, with those that go with it."""
        bench = self.bench
        fresh = [vm for vm in bench.members(host).tolist() if vm not in tried]
        able: list[int] = []
        for bundle in bench.bundles(fresh):
            if bench.stuck(bundle) is None:
                able += bundle.vms
            else:
                tried.update(bundle.vms)
        if not able:
            return None
        vms = np.array(able, dtype=np.int64)
        use = bench.use(host, Bundle(tuple(able)))
        choice = Choice(vms, use, excess, self.cost, self.situation.history)
        first = int(vms[int(np.argmin(self.policy.selection.score(choice)))])
        bundle = next(each for each in bench.bundles(fresh) if first in each.vms)
        tried.update(bundle.vms)
        return bundle

    def _weigh(self, host: int, bundle: Bundle, excess: FloatArray) -> tuple[float, float]:
        """What moving ``bundle`` off an overloaded host gains and loses."""
        relief = np.minimum(self.bench.use(host, bundle).sum(axis=0), excess)
        return float(relief.max(initial=0.0)) * self.policy.horizon_s, self._lost(host, bundle)

    def _lost(self, host: int, bundle: Bundle) -> float:
        """Service that ``bundle`` loses by a move, in seconds of the whole host's work."""
        use = self.bench.use(host, bundle).max(axis=1, initial=0.0)
        return float((use * self.cost.lost[list(bundle.vms)]).sum())

    def _leave(self, host: int, bundle: Bundle) -> bool:
        """Move ``bundle`` to the best host there is, running or to be woken."""
        bench = self.bench
        bench.lift(bundle)
        target = self._target(bundle, within=self._not_back(bundle), wake=True)
        bench.put(bundle, host if target == NONE else target)
        if target == NONE:
            message = "no host has room for what is foreseen"
            bench.refuse(bundle, ReasonCode.NO_HOST_FITS, message)
            return False
        bench.record(bundle, host, target)
        self.relieving.update((host, target))
        return True

    # Where to

    def _not_back(self, bundle: Bundle) -> BoolArray:
        """``bool[H]``: every host but those that VMs of ``bundle`` left lately."""
        within: BoolArray = ~self.closed
        for vm in bundle.vms:
            if self.left.get(vm, NONE) != NONE:
                within[self.left[vm]] = False
        return within

    def _target(self, bundle: Bundle, within: BoolArray, wake: bool) -> int:
        """The fullest of the hosts in use that fit.

        To relieve an overload (``wake``) else one not in use, the thriftiest first; else the
        emptiest of those where it fits on average.
        """
        bench = self.bench
        state = self.snapshot.host_state
        counts = bench.ledger.counts
        in_use = bench.active() & ((counts > 0) | (self.snapshot.used > 0).any(axis=1))
        fits = bench.targets(bundle, within & in_use)
        if fits.any():
            fullness = bench.share(bench.foreseen_with(bundle)).max(axis=1, initial=0.0)
            return int(np.argmax(np.where(fits, fullness, -np.inf)))
        if not wake:
            return NONE
        spare = (bench.active() & ~in_use, state == HostState.WAKING, state == HostState.ASLEEP)
        promised = bench.received & (state == HostState.ASLEEP)
        for tier in (promised, *spare):
            fits = bench.targets(bundle, within & tier)
            if fits.any():
                return int(np.argmin(np.where(fits, self.preference, np.inf)))
        fits = bench.targets(bundle, within & in_use, wary=False)
        emptiest = bench.share(bench.foreseen_with(bundle)).max(axis=1, initial=0.0)
        return int(np.argmin(np.where(fits, emptiest, np.inf))) if fits.any() else NONE

    # Underload

    def _consolidate(self) -> None:
        """Empty underloaded hosts, the least loaded first."""
        bench = self.bench
        failures = 0
        order = bench.share(bench.expected).max(axis=1, initial=0.0)
        for host in hosts_in_order(bench.underloaded & ~bench.overloaded, order):
            if failures >= self.policy.patience:
                message = "less loaded hosts could not be emptied either"
                bench.tell(host, OutcomeKind.NOT_TRIED, message)
                continue
            if not self._empty(host):
                failures += 1

    def _held(self, host: int) -> str:
        """Why ``host`` is to be left alone for now; empty if it is not."""
        snapshot = self.snapshot
        until_s = self.situation.hold.hosts.get(snapshot.host_ids[host], -np.inf)
        if until_s > self.situation.now_s:
            return f"it took part in an overload; {until_s - self.situation.now_s:.0f} s more"
        late = [vm for vm in self.bench.members(host).tolist() if vm in self.left]
        return f"VM {snapshot.vm_ids[late[0]]!r} moved lately" if late else ""

    def _empty(self, host: int) -> bool:
        """Move everything off ``host``, or nothing. False if there is no room for it."""
        bench, policy = self.bench, self.policy
        why_not = self._held(host)
        if why_not:
            bench.tell(host, OutcomeKind.HELD, why_not)
            return True
        bundles = bench.to_empty(host)
        count = sum(len(bundle.vms) for bundle in bundles)
        if not bundles:
            return True
        if len(bench.moves) + count > policy.max_moves:
            message = "the plan has as many moves as it may"
            bench.tell(host, OutcomeKind.LIMIT_REACHED, message)
            return True
        cost = policy.worth * sum(self._lost(host, bundle) for bundle in bundles)
        before_w = self._power_w()
        if before_w is None and not self._pays(host, bundles, before_w, cost):
            return True
        bundles.sort(key=lambda bundle: -float(bench.use(host, bundle).max(initial=0.0)))
        targets = self._places_for(host, bundles)
        if len(targets) < len(bundles):
            message = (
                f"no room elsewhere for VM {self.snapshot.vm_ids[bundles[len(targets)].vms[0]]!r}"
            )
            bench.refuse(bundles[len(targets)], ReasonCode.NO_HOST_FITS, message)
            bench.undo(bundles[: len(targets)], host)
            bench.tell(host, OutcomeKind.NO_ROOM, message)
            return False
        if not self._pays(host, bundles, before_w, cost):
            bench.undo(bundles, host)
            return True
        benefit = self._saving(host, before_w) * policy.payback_s
        for bundle, target in zip(bundles, targets, strict=True):
            bench.record(bundle, host, target)
        bench.sleeps.append(host)
        bench.tell(host, OutcomeKind.EMPTIED, f"{count} VMs leave", count, benefit, cost)
        return True

    def _pays(
        self, host: int, bundles: list[Bundle], before_w: FloatArray | None, cost: float
    ) -> bool:
        """Whether emptying ``host`` saves more than it costs; said, if it does not.

        What it saves is known beforehand if nobody knows what hosts draw (``before_w`` is None).
        """
        benefit = self._saving(host, before_w) * self.policy.payback_s
        if benefit > self.policy.margin * cost:
            return True
        message = f"moving costs {cost:.0f} s of the host's work and saves {benefit:.0f} s"
        for bundle in bundles:
            self.bench.refuse(bundle, ReasonCode.NO_BENEFIT, message)
        self.bench.tell(host, OutcomeKind.NO_BENEFIT, message, 0, benefit, cost)
        return False

    def _places_for(self, host: int, bundles: list[Bundle]) -> list[int]:
        """Put bundles of ``host`` elsewhere, one after the other, as far as there is room."""
        bench = self.bench
        within = ~self.closed
        within[host] = False
        targets: list[int] = []
        for bundle in bundles:
            bench.lift(bundle)
            target = self._target(bundle, within, wake=False)
            bench.put(bundle, host if target == NONE else target)
            if target == NONE:
                break
            targets.append(target)
        return targets

    def _power_w(self) -> FloatArray | None:
        power = self.bench.power
        if power is None or not len(self.snapshot.axes):
            return None
        return power.power_w(self._cpu_share())

    def _cpu_share(self) -> FloatArray:
        capacity = self.snapshot.capacity[:, 0]
        used = self.bench.expected[:, 0]
        return np.divide(used, capacity, out=np.zeros_like(used), where=capacity > 0)

    def _saving(self, host: int, before_w: FloatArray | None) -> float:
        """Power saved once ``host``, empty by now, sleeps: as a share of its full power.

        Less what its next wake-up will cost, spread over the time it sleeps.
        """
        power = self.bench.power
        if power is None or before_w is None or not power.known[host]:
            return KNOWN_IDLE_SHARE
        after_w = power.power_w(self._cpu_share())
        full_w = float(power.curve_w[host, -1])
        saved_w = float((before_w - after_w).sum() + after_w[host] - power.asleep_w[host])
        wake_share = float(power.wake_s[host]) / self.policy.payback_s
        return saved_w / full_w - wake_share if full_w > 0 else 0.0

    # What to remember

    def _hold(self) -> Hold:
        policy, now_s = self.policy, self.situation.now_s
        snapshot = self.snapshot
        vms = {
            snapshot.vm_ids[move.vm]: MovedVm(now_s + policy.hold_s, snapshot.host_ids[move.source])
            for move in self.bench.moves
        }
        hosts = {snapshot.host_ids[host]: now_s + policy.cooldown_s for host in self.relieving}
        return self.situation.hold.after(now_s, vms, hosts)

"""One choice: the hosts that pass the filters, their scores, the winner.

This is the only place where filters and weights are applied; placing, balancing and explaining all
go through it, so what is explained is what was done.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.filters import HARD, Bundle, tier
from snooze.scheduling.ledger import Ledger, Scene
from snooze.scheduling.norms import length, normalised
from snooze.scheduling.policies import HostOrder, PlacementPolicy, Selection, Strategy
from snooze.scheduling.snapshot import (
    NONE,
    BoolArray,
    HostState,
    IntArray,
    Problem,
    Snapshot,
    reserved,
)
from snooze.scheduling.units import Filter, UnitFailed, number

MAX_UNIT_PROBLEMS: Final = 20


@dataclass(slots=True)
class Trace:
    """What happened to each host in one choice; filled when asked for.

    Attributes:
        refused_by: name of the filter that refused it, per host; "" if none did.
        parts: per weight its name, factor and scores (``float64[H]``, meaningless where refused).
        totals: ``float64[H]``, infinite where refused.
        order: hosts that passed, best first.
    """

    refused_by: list[str]
    parts: list[tuple[str, float, FloatArray]] = field(
        default_factory=list[tuple[str, float, FloatArray]]
    )
    totals: FloatArray = field(default_factory=lambda: np.zeros(0))
    order: list[int] = field(default_factory=list[int])


class Chooser:
    """Chooses hosts by one policy on one ledger.

    Attributes:
        cursor: where round-robin goes on.
        problems: units that failed and were skipped.
    """

    def __init__(
        self,
        ledger: Ledger,
        policy: PlacementPolicy,
        cursor: int = 0,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.ledger = ledger
        self.policy = policy
        self.cursor = cursor
        self.problems: list[Problem] = []
        snapshot = ledger.snapshot
        self._filters = (*_relevant(snapshot), *policy.filters)
        self._tiers = _tiers(snapshot, policy.wake)
        self._reachable = np.zeros(snapshot.hosts, dtype=np.bool_)
        for members in self._tiers:
            self._reachable |= members
        self._place_in_order = _host_order(snapshot, policy)
        self._rng = rng

    def choose(
        self, bundle: Bundle, within: BoolArray | None = None, trace: Trace | None = None
    ) -> int:
        """The host for all VMs of ``bundle``, or -1. Nothing is reserved yet.

        Args:
            bundle: VMs that have no host at this moment.
            within: ``bool[H]``, consider only these hosts.
            trace: filled in if given.
        """
        snapshot = self.ledger.snapshot
        if not snapshot.hosts:
            return NONE
        candidates = self._start(bundle, within, trace)
        scenes = self._scenes(bundle, candidates)
        if not (snapshot.vm_ok[list(bundle.vms)]).all():
            return NONE
        for each in self._filters:
            for scene in scenes:
                scene.candidates = candidates
                kept = self._kept(each, scene)
                if kept is None:
                    continue
                if trace is not None:
                    _note(trace, candidates & ~kept, each.name)
                candidates = candidates & kept
        if trace is not None:
            self._rank_all(scenes, candidates, trace)
        return self._pick(scenes, candidates)

    def _start(self, bundle: Bundle, within: BoolArray | None, trace: Trace | None) -> BoolArray:
        hosts = self.ledger.snapshot.hosts
        candidates = self._reachable.copy()
        _note(trace, ~candidates, "state")
        if within is not None:
            _note(trace, candidates & ~within, "whitelist")
            candidates &= within
        if bundle.anchor != NONE:
            anchor = np.arange(hosts) == bundle.anchor
            _note(trace, candidates & ~anchor, "affinity")
            candidates &= anchor
        return candidates

    def _scenes(self, bundle: Bundle, candidates: BoolArray) -> list[Scene]:
        demand = self.ledger.snapshot.demand
        if len(bundle.vms) == 1:
            need: FloatArray = demand[bundle.vms[0]]
        else:
            need = demand[list(bundle.vms)].sum(axis=0)
        return [Scene(self.ledger, vm, need, bundle.vms, candidates) for vm in bundle.vms]

    def _kept(self, each: Filter, scene: Scene) -> BoolArray | None:
        try:
            return each.keep(scene, self.policy.properties)
        except UnitFailed as failure:
            self._skip(f"filter {each.name}", failure)
            return None

    def _skip(self, where: str, failure: UnitFailed) -> None:
        problem = Problem(where, f"skipped: {failure}", "unit_failed")
        if len(self.problems) < MAX_UNIT_PROBLEMS and problem not in self.problems:
            self.problems.append(problem)

    def _pick(self, scenes: list[Scene], candidates: BoolArray) -> int:
        """The winner of the first tier that has any candidate."""
        for members in self._tiers:
            hosts = candidates & members if len(self._tiers) > 1 else candidates
            if not hosts.any():
                continue
            match self.policy.strategy:
                case Strategy.ROUND_ROBIN:
                    chosen = self._next_in_turn(hosts)
                    self.cursor = (chosen + 1) % len(hosts)
                    return chosen
                case Strategy.FIRST_FIT:
                    return self._first(hosts)
                case Strategy.RANDOM_K:
                    hosts = self._sample(hosts)
                case Strategy.WEIGHTS | Strategy.OPTIMISED:
                    pass
            totals = self._totals(scenes, hosts, None)
            return int(np.where(hosts, totals, np.inf).argmin())
        return NONE

    def _first(self, hosts: BoolArray) -> int:
        if self._place_in_order is None:
            return int(hosts.argmax())
        found = np.flatnonzero(hosts)
        return int(found[self._place_in_order[found].argmin()])

    def _next_in_turn(self, hosts: BoolArray) -> int:
        start = self.cursor % len(hosts)
        ahead = int(hosts[start:].argmax()) + start
        return ahead if hosts[ahead] else int(hosts.argmax())

    def _sample(self, hosts: BoolArray) -> BoolArray:
        if self._rng is None:
            seed = int(number(self.policy.properties, "seed"))
            self._rng = np.random.default_rng(seed)
        found = np.flatnonzero(hosts)
        k = min(int(number(self.policy.properties, "k")), found.size)
        drawn = np.zeros_like(hosts)
        drawn[self._rng.choice(found, size=k, replace=False)] = True
        return drawn

    def _totals(
        self, scenes: list[Scene], candidates: BoolArray, trace: Trace | None
    ) -> FloatArray:
        """``float64[H]``: factor times score, or times place, summed over weights and VMs."""
        totals = np.zeros(len(candidates))
        for weighted in self.policy.weights:
            scores = np.zeros(len(candidates))
            for scene in scenes:
                scene.candidates = candidates
                try:
                    scores += weighted.weight.score(scene, self.policy.properties) / len(scenes)
                except UnitFailed as failure:
                    self._skip(f"weight {weighted.weight.name}", failure)
            if trace is not None:
                trace.parts.append((weighted.weight.name, weighted.factor, scores))
            if self.policy.selection is Selection.RANK:
                scores = _ranks(scores, candidates)
            totals += weighted.factor * scores
        return totals

    def _rank_all(self, scenes: list[Scene], candidates: BoolArray, trace: Trace) -> None:
        """Fill in the scores and the whole order, tier by tier; without drawing or turning."""
        totals = self._totals(scenes, candidates, trace)
        hosts = np.arange(len(candidates))
        if self.policy.strategy is Strategy.ROUND_ROBIN:
            totals = ((hosts - self.cursor) % max(1, len(hosts))).astype(np.float64)
        elif self.policy.strategy is Strategy.FIRST_FIT:
            order = self._place_in_order
            totals = (hosts if order is None else order).astype(np.float64)
        trace.totals = np.where(candidates, totals, np.inf)
        for members in self._tiers:
            passed = np.flatnonzero(candidates & members)
            trace.order += passed[np.argsort(totals[passed], kind="stable")].tolist()


def _note(trace: Trace | None, refused: BoolArray, name: str) -> None:
    if trace is not None:
        for host in np.flatnonzero(refused).tolist():
            trace.refused_by[host] = name


def _relevant(snapshot: Snapshot) -> tuple[Filter, ...]:
    """The hard filters that can refuse anything on this snapshot."""
    idle = {
        "pin": snapshot.pin.max(initial=NONE) == NONE,
        "tags": snapshot.tags is None,
        "networks": snapshot.networks is None,
        "affinity": not snapshot.rules,
        "max_vms": snapshot.max_vms.max(initial=NONE) == NONE,
    }
    return tuple(each for each in HARD if not idle.get(each.name, False))


def _tiers(snapshot: Snapshot, wake: bool) -> list[BoolArray]:
    """Hosts by how soon they can run a VM: active, waking, asleep."""
    if not snapshot.host_state.any():  # all of them active: spare the comparisons
        return [snapshot.host_ok]
    states = [HostState.ACTIVE, HostState.WAKING, *([HostState.ASLEEP] if wake else [])]
    tiers = [tier(snapshot, state) for state in states]
    return [members for members in tiers if members.any()]


def _host_order(snapshot: Snapshot, policy: PlacementPolicy) -> IntArray | None:
    """Each host's place in the order of preference; None for the order of indices."""
    if policy.host_order is HostOrder.INDEX:
        return None
    used = length(normalised(reserved(snapshot), snapshot.capacity), policy.norm)
    sign = -1.0 if policy.host_order is HostOrder.MOST_USED else 1.0
    places = np.empty(snapshot.hosts, dtype=np.int64)
    places[np.argsort(sign * used, kind="stable")] = np.arange(snapshot.hosts)
    return places


def _ranks(scores: FloatArray, candidates: BoolArray) -> FloatArray:
    """Place of each candidate in the order of its score, from 0; equals share a place."""
    ranks = np.zeros(len(scores))
    if candidates.any():
        _, places = np.unique(scores[candidates], return_inverse=True)
        ranks[candidates] = places
    return ranks

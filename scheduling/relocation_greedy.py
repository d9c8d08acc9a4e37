"""Greedy relocation as Snooze means it, without its mistakes.

Overload: what a host carries above MID must go: the one smallest VM that covers it, or else the
smallest ones until their sum does; to the first host with room, the least loaded first, running
hosts before sleeping ones. Underload: all VMs of a host, the largest first, to the first host with
room, the most loaded first; all or none, and only then the host may sleep.

Corrected: vectors are normalised before they are compared (cores no longer drown in KiB); every
hard rule and the room on both hosts is kept; a host is put to sleep only by the plan that empties
it, never by a later one that remembers its name; nothing is half emptied.
"""

from dataclasses import dataclass

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.filters import Bundle
from snooze.scheduling.norms import Norm, length
from snooze.scheduling.plans import ReasonCode
from snooze.scheduling.relocation import (
    ENOUGH,
    MAX_MOVES,
    Bench,
    OutcomeKind,
    Relocation,
    Situation,
    hosts_in_order,
)
from snooze.scheduling.snapshot import BoolArray, HostState


@dataclass(frozen=True, slots=True)
class GreedyOverload:
    """Snooze's ``GreedyOverloadRelocation``."""

    norm: Norm = Norm.L1
    wake: bool = True
    max_moves: int = MAX_MOVES
    name: str = "greedy_overload"

    def plan(self, situation: Situation) -> Relocation:
        """Relieve the overloaded hosts, the most loaded first. Never raises on bad values."""
        bench = Bench(situation, self.name, confidence=0.0)
        self.relieve_all(bench)
        return bench.answer(situation.hold)

    def relieve_all(self, bench: Bench) -> None:
        """The same on a bench that others use as well."""
        for host in hosts_in_order(bench.overloaded, -_load(bench, self.norm)):
            self._relieve(bench, host)

    def _relieve(self, bench: Bench, host: int) -> None:
        if not bench.snapshot.host_ok[host]:
            bench.tell(host, OutcomeKind.LEFT_OUT, "its row makes no sense")
            return
        excess = _excess(bench, host)
        if excess.max(initial=0.0) <= ENOUGH:
            bench.tell(host, OutcomeKind.NO_BENEFIT, "nothing is above MID any more")
            return
        able = [
            bundle
            for bundle in bench.bundles(bench.members(host).tolist())
            if _may_go(bench, bundle)
        ]
        if not able:
            bench.tell(host, OutcomeKind.NOT_MOVABLE, "none of its VMs may be moved")
            return
        moved, kind = 0, OutcomeKind.NO_ROOM
        for bundle in self._in_turn(bench, host, able, excess):
            if _excess(bench, host).max(initial=0.0) <= ENOUGH:
                break
            if len(bench.moves) + len(bundle.vms) > self.max_moves:
                message = "the plan has as many moves as it may"
                bench.refuse(bundle, ReasonCode.LIMIT_REACHED, message)
                kind = OutcomeKind.LIMIT_REACHED
                break
            if self._leave(bench, host, bundle):
                moved += len(bundle.vms)
        left = float(_excess(bench, host).max(initial=0.0))
        if left <= ENOUGH:
            kind = OutcomeKind.RELIEVED
        elif moved:
            kind = OutcomeKind.PARTLY_RELIEVED
        bench.tell(host, kind, f"{moved} VMs leave; {left:.0%} of its limit is too much", moved)

    def _in_turn(
        self, bench: Bench, host: int, able: list[Bundle], excess: FloatArray
    ) -> list[Bundle]:
        """The smallest that covers the excess first; then all others, the smallest first."""
        sizes = [_size(bench, host, bundle) for bundle in able]
        lengths = [float(length(size, self.norm)) for size in sizes]
        order = sorted(range(len(able)), key=lambda i: (lengths[i], able[i].vms[0]))
        enough = [i for i in order if bool((sizes[i] >= excess - ENOUGH).all())]
        first = enough[:1]
        return [able[i] for i in (*first, *(i for i in order if i not in first))]

    def _leave(self, bench: Bench, host: int, bundle: Bundle) -> bool:
        bench.lift(bundle)
        load = _load(bench, self.norm)
        within = ~bench.overloaded
        state = bench.snapshot.host_state
        tiers = [bench.active(), state == HostState.WAKING]
        if self.wake:
            tiers.append(state == HostState.ASLEEP)
        for tier in tiers:
            target = _first(bench.targets(bundle, within & tier), load)
            if target is not None:
                bench.put(bundle, target)
                bench.record(bundle, host, target)
                return True
        bench.put(bundle, host)
        bench.refuse(bundle, ReasonCode.NO_HOST_FITS, "no host has room for it")
        return False


@dataclass(frozen=True, slots=True)
class GreedyUnderload:
    """Snooze's ``GreedyUnderloadRelocation``."""

    norm: Norm = Norm.L1
    max_moves: int = MAX_MOVES
    name: str = "greedy_underload"

    def plan(self, situation: Situation) -> Relocation:
        """Empty the underloaded hosts, the least loaded first. Never raises on bad values."""
        bench = Bench(situation, self.name, confidence=0.0)
        self.empty_all(bench)
        return bench.answer(situation.hold)

    def empty_all(self, bench: Bench) -> None:
        """The same on a bench that others use as well."""
        quiet = bench.underloaded & ~bench.overloaded
        for host in hosts_in_order(quiet, _load(bench, self.norm)):
            self._empty(bench, host)

    def _empty(self, bench: Bench, host: int) -> None:
        bundles = bench.to_empty(host)
        if not bundles:
            return
        count = sum(len(bundle.vms) for bundle in bundles)
        if len(bench.moves) + count > self.max_moves:
            message = "the plan has as many moves as it may"
            bench.tell(host, OutcomeKind.LIMIT_REACHED, message)
            return
        bundles.sort(key=lambda bundle: -float(length(_size(bench, host, bundle), self.norm)))
        within = bench.active() & ~bench.overloaded
        within[host] = False
        placed: list[tuple[Bundle, int]] = []
        for bundle in bundles:
            bench.lift(bundle)
            running = within & (bench.ledger.counts > 0)
            target = _first(bench.targets(bundle, running), -_load(bench, self.norm))
            if target is None:
                bench.put(bundle, host)
                bench.undo([done for done, _ in placed], host)
                bench.refuse(bundle, ReasonCode.NO_HOST_FITS, "no other running host has room")
                bench.tell(host, OutcomeKind.NO_ROOM, "not all of its VMs fit elsewhere")
                return
            bench.put(bundle, target)
            placed.append((bundle, target))
        for bundle, target in placed:
            bench.record(bundle, host, target)
        bench.sleeps.append(host)
        bench.tell(host, OutcomeKind.EMPTIED, f"{count} VMs leave", count)


@dataclass(frozen=True, slots=True)
class Greedy:
    """Both of them in one plan: first overload, then underload."""

    overload: GreedyOverload = GreedyOverload()
    underload: GreedyUnderload = GreedyUnderload()
    name: str = "greedy"

    def plan(self, situation: Situation) -> Relocation:
        """Relieve, then empty. Never raises on bad values."""
        bench = Bench(situation, self.name, confidence=0.0)
        self.overload.relieve_all(bench)
        self.underload.empty_all(bench)
        return bench.answer(situation.hold)


def _load(bench: Bench, norm: Norm) -> FloatArray:
    """``float64[H]``: how loaded hosts are, as shares of their limits."""
    return length(bench.share(bench.ledger.load), norm)


def _excess(bench: Bench, host: int) -> FloatArray:
    """``float64[R]``: what ``host`` carries above its limit, as a share of it."""
    over = bench.share(bench.ledger.load - bench.snapshot.limit)[host]
    excess: FloatArray = np.maximum(over, 0.0)
    return excess


def _size(bench: Bench, host: int, bundle: Bundle) -> FloatArray:
    """``float64[R]``: what ``bundle`` takes of ``host``."""
    size: FloatArray = bench.use(host, bundle).sum(axis=0)
    return size


def _may_go(bench: Bench, bundle: Bundle) -> bool:
    """False, and the reason kept, if a VM of ``bundle`` must stay."""
    reason = bench.stuck(bundle)
    if reason is not None:
        bench.refuse(bundle, reason.code, reason.message)
    return reason is None


def _first(hosts: BoolArray, keys: FloatArray) -> int | None:
    """The host of lowest key among ``hosts``, the first of equals; None if there is none."""
    return int(np.argmin(np.where(hosts, keys, np.inf))) if hosts.any() else None

"""Moving VMs off hosts that are too hot, and off hosts that are hardly used: what all ways share.

Rules:

1. ``plan(situation) -> Relocation`` is pure. What must be remembered (who moved lately) goes in and
   comes out as a ``Hold``.
2. No host both gives and receives in one plan, and no VM moves twice. So all moves are feasible at
   the same time, in one batch, with every VM charged to both its hosts.
3. A host is emptied altogether or not at all. Only a host this very plan empties is put to sleep.
4. Every overloaded or underloaded host has an ``Outcome`` that says what was done, or why nothing;
   every VM that should have moved and does not has a ``Reason`` in the plan.

``Bench`` is the mutable half of a decision in progress: the ledger, what hosts expect, the moves so
far. Its invariant: ledger, ``expected``, ``variance`` and ``moves`` always agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import numpy as np

from snooze.common.resources import TOLERANCE, FloatArray
from snooze.scheduling.estimation import Forecast, Window
from snooze.scheduling.filters import HARD, Bundle, tie_groups
from snooze.scheduling.ledger import Ledger, Scene
from snooze.scheduling.plans import Move, Plan, Reason, ReasonCode
from snooze.scheduling.power_model import PowerModel
from snooze.scheduling.snapshot import (
    BoolArray,
    HostState,
    IntArray,
    Problem,
    Snapshot,
    accepting,
)

MAX_MOVES: Final = 2000
"""Most moves of one plan. How many run at a time is for whoever carries them out."""


ENOUGH: Final = 1e-9
"""A share of a host below which nothing is left to relieve."""


class OutcomeKind(StrEnum):
    """What became of a host that was overloaded or underloaded. Stable; meant for programs."""

    RELIEVED = "relieved"
    PARTLY_RELIEVED = "partly_relieved"
    EMPTIED = "emptied"
    IDLE = "idle"
    """It carries nothing already: it may sleep."""
    HELD = "held"
    """It, or a VM on it, changed too lately."""
    NO_BENEFIT = "no_benefit"
    NO_ROOM = "no_room"
    NOT_TRIED = "not_tried"
    """Less loaded hosts found no room."""
    NOT_MOVABLE = "not_movable"
    LIMIT_REACHED = "limit_reached"
    LEFT_OUT = "left_out"
    """It is not active, its row makes no sense, or it receives VMs in this plan."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done about one host, and why not more.

    ``benefit`` and ``cost`` are in seconds of the whole host's work, where they were weighed.
    """

    host: int
    kind: OutcomeKind
    message: str
    moves: int = 0
    benefit: float = 0.0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class MovedVm:
    """A VM that moved lately: it is not moved for energy's sake before ``until_s``, and not back to
    the host named ``left`` at all."""

    until_s: float
    left: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Who changed lately, by name; bounded by the cluster's size, since what is past is dropped.

    Attributes:
        vms: VMs that moved.
        hosts: hosts that were overloaded, or took VMs from one that was: until when they are not
            emptied.
    """

    vms: Mapping[str, MovedVm] = field(default_factory=lambda: MappingProxyType({}))
    hosts: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def __reduce__(self) -> tuple[object, ...]:
        """Plans are made in other processes, and a mapping proxy cannot be sent."""
        return _hold, (dict(self.vms), dict(self.hosts))

    def after(self, now_s: float, vms: Mapping[str, MovedVm], hosts: Mapping[str, float]) -> "Hold":
        """With these added, and without those whose time is over."""
        kept_vms = {name: moved for name, moved in self.vms.items() if moved.until_s > now_s}
        kept_hosts = {name: until_s for name, until_s in self.hosts.items() if until_s > now_s}
        return Hold(
            MappingProxyType({**kept_vms, **vms}), MappingProxyType({**kept_hosts, **hosts})
        )


def _hold(vms: dict[str, MovedVm], hosts: dict[str, float]) -> Hold:
    return Hold(MappingProxyType(vms), MappingProxyType(hosts))


@dataclass(frozen=True, slots=True, eq=False)
class Situation:
    """All that a relocation may look at.

    Attributes:
        snapshot: hosts and VMs. ``demand`` is what VMs use now, by estimate; ``limit`` (that is,
            ``headroom``, Snooze's MID) is up to where a host may be filled.
        now_s: the caller's clock, on the scale of ``hold``.
        overloaded, underloaded: ``bool[H]``, from a detector.
        forecast: of each VM; None: what it uses now, for certain.
        power: of each host; None: all alike.
        hold: from the last relocation.
        history: of each VM, for selections that look at it.
        load_axes: how many axes, from the first, tell load. On the others (what was asked for, say)
            VMs only need room: no share of a host is taken there. None: all.
    """

    snapshot: Snapshot
    now_s: float
    overloaded: BoolArray
    underloaded: BoolArray
    forecast: Forecast | None = None
    power: PowerModel | None = None
    hold: Hold = Hold()
    history: Window | None = None
    load_axes: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Relocation:
    """The answer: a plan, what became of each host in question, and what to remember."""

    plan: Plan
    outcomes: tuple[Outcome, ...]
    hold: Hold


class Bench:
    """A relocation in progress. See the module.

    Attributes:
        expected, variance: ``float64[H, R]``, of what is on each host, unlisted VMs included.
        gave, received: ``bool[H]``.
    """

    def __init__(self, situation: Situation, policy: str, confidence: float) -> None:
        snapshot = situation.snapshot
        self.snapshot = snapshot
        self.policy = policy
        self.confidence = confidence
        self.ledger = Ledger(snapshot)
        axes = len(snapshot.axes)
        self.load_axes = axes if situation.load_axes is None else min(situation.load_axes, axes)
        self.problems: list[Problem] = list(snapshot.problems)
        self.vm_expected, self.vm_variance = self._forecast(situation)
        self.overloaded = self._flags("overloaded", situation.overloaded)
        self.underloaded = self._flags("underloaded", situation.underloaded)
        self.power = self._power(situation)
        self.expected = snapshot.used.copy()
        self.variance = np.zeros_like(snapshot.used)
        placed = np.flatnonzero(snapshot.placement >= 0)
        np.add.at(self.expected, snapshot.placement[placed], self.vm_expected[placed])
        np.add.at(self.variance, snapshot.placement[placed], self.vm_variance[placed])
        self.gave: BoolArray = np.zeros(snapshot.hosts, dtype=np.bool_)
        self.received: BoolArray = np.zeros(snapshot.hosts, dtype=np.bool_)
        self.ties = tie_groups(snapshot)
        self.moves: list[Move] = []
        self.reasons: dict[int, Reason] = {}
        self.outcomes: list[Outcome] = []
        self.sleeps: list[int] = []

    def _forecast(self, situation: Situation) -> tuple[FloatArray, FloatArray]:
        demand = situation.snapshot.demand
        given = situation.forecast
        if given is None:
            return demand, np.zeros_like(demand)
        self.problems += given.problems
        if given.expected.shape != demand.shape or given.deviation.shape != demand.shape:
            message = f"is about {given.expected.shape}, demands are {demand.shape}; left out"
            self.problems.append(Problem("forecast", message, "shape"))
            return demand, np.zeros_like(demand)
        if not (np.isfinite(given.expected).all() and np.isfinite(given.deviation).all()):
            self.problems.append(Problem("forecast", "has values that are no numbers", "range"))
            return demand, np.zeros_like(demand)
        return np.maximum(given.expected, 0.0), given.deviation * given.deviation

    def _flags(self, name: str, given: BoolArray) -> BoolArray:
        if given.shape == (self.snapshot.hosts,):
            return given
        if self.snapshot.hosts:
            message = f"has shape {given.shape}, not one flag for each of {self.snapshot.hosts}"
            self.problems.append(Problem(name, message, "shape"))
        return np.zeros(self.snapshot.hosts, dtype=np.bool_)

    def _power(self, situation: Situation) -> PowerModel | None:
        power = situation.power
        if power is not None and power.hosts != self.snapshot.hosts:
            message = f"is about {power.hosts} hosts, not {self.snapshot.hosts}; left out"
            self.problems.append(Problem("power", message, "shape"))
            return None
        return power

    @property
    def foreseen(self) -> FloatArray:
        """``float64[H, R]``: what to be ready for: the mean and some deviations more."""
        return self.expected + self.confidence * np.sqrt(np.maximum(self.variance, 0.0))

    def share(self, values: FloatArray) -> FloatArray:
        """``values[H, R]`` as shares of what each host may be filled with.

        0 where it has none, and on axes that tell no load.
        """
        limit = self.snapshot.limit
        share = np.divide(values, limit, out=np.zeros_like(limit), where=limit > 0)
        share[:, self.load_axes :] = 0.0
        return share

    def use(self, host: int, bundle: Bundle) -> FloatArray:
        """``float64[n, R]``: what each VM of ``bundle`` takes, now or by forecast, as a share of
        what ``host`` may be filled with."""
        vms = list(bundle.vms)
        limit = self.snapshot.limit[host]
        most = np.maximum(self.snapshot.demand[vms], self.vm_expected[vms])
        share = np.zeros(most.shape)
        np.divide(most, limit, out=share, where=limit > 0)
        share[:, self.load_axes :] = 0.0
        return share

    def members(self, host: int) -> IntArray:
        """VMs on ``host`` now, by index."""
        return np.flatnonzero(self.ledger.placement == host)

    def bundles(self, vms: Sequence[int]) -> list[Bundle]:
        """``vms``, all on one host, with those that must stay together in one; in this order."""
        found: dict[int, tuple[int, ...]] = {}
        for vm in vms:
            group = self.ties.get(vm, vm) if self.ties else vm
            found[group] = (*found.get(group, ()), vm)
        return [Bundle(members) for members in found.values()]

    def stuck(self, bundle: Bundle) -> Reason | None:
        """Why ``bundle`` must stay where it is, whatever its host's load; None if it may go."""
        for vm in bundle.vms:
            if not self.snapshot.vm_ok[vm]:
                return Reason(vm, ReasonCode.INVALID_VM, "its row makes no sense")
            if not self.snapshot.movable[vm]:
                return Reason(vm, ReasonCode.NOT_MOVABLE, "it must not be migrated")
            if self.snapshot.pin[vm] == self.ledger.placement[vm]:
                return Reason(vm, ReasonCode.NOT_MOVABLE, "it is pinned to its host")
        return None

    def targets(self, bundle: Bundle, within: BoolArray, wary: bool = True) -> BoolArray:
        """``bool[H]``: hosts of ``within`` that may take ``bundle``, which has no host just now.

        By every hard rule, and so that what is foreseen stays within the limit; unless the host
        carries nothing else, for then no host could do better. If not ``wary``, what is expected
        must stay within the limit.
        """
        vms = list(bundle.vms)
        need = self.snapshot.demand[vms].sum(axis=0)
        kept = within & ~self.gave & self.snapshot.host_ok
        for vm in vms:
            scene = Scene(self.ledger, vm, need, bundle.vms, kept)
            for each in HARD:
                passed = each.keep(scene, {})
                if passed is not None:
                    kept = kept & passed
        mean = self.vm_expected[vms].sum(axis=0)
        ahead = self.foreseen_with(bundle) if wary else self.expected + mean
        room = self.snapshot.limit + TOLERANCE * np.maximum(1.0, self.snapshot.limit)
        calm: BoolArray = np.all((ahead <= room) | (mean <= 0), axis=1)
        bare = (self.ledger.counts == 0) & ~(self.snapshot.used > 0).any(axis=1)
        fit: BoolArray = kept & (calm | bare)
        return fit

    def foreseen_with(self, bundle: Bundle) -> FloatArray:
        """``float64[H, R]``: ``foreseen``, were ``bundle`` on each host."""
        vms = list(bundle.vms)
        variance = self.variance + self.vm_variance[vms].sum(axis=0)
        mean = self.expected + self.vm_expected[vms].sum(axis=0)
        ahead: FloatArray = mean + self.confidence * np.sqrt(np.maximum(variance, 0.0))
        return ahead

    def lift(self, bundle: Bundle) -> int:
        """Take ``bundle`` off its host, and say which that was."""
        host = int(self.ledger.placement[bundle.vms[0]])
        for vm in bundle.vms:
            self.ledger.lift(vm)
            self.expected[host] -= self.vm_expected[vm]
            self.variance[host] -= self.vm_variance[vm]
        return host

    def put(self, bundle: Bundle, host: int) -> None:
        """Put ``bundle``, which has no host, on ``host``."""
        for vm in bundle.vms:
            self.ledger.place(vm, host)
            self.expected[host] += self.vm_expected[vm]
            self.variance[host] += self.vm_variance[vm]

    def record(self, bundle: Bundle, source: int, target: int) -> None:
        """``bundle``, already on ``target``, moves there from ``source``."""
        self.moves += [Move(vm, source, target) for vm in bundle.vms]
        self.gave[source] = True
        self.received[target] = True

    def refuse(self, bundle: Bundle, code: ReasonCode, message: str) -> None:
        """No VM of ``bundle`` moves, and why."""
        for vm in bundle.vms:
            self.reasons[vm] = Reason(vm, code, message)

    def tell(
        self,
        host: int,
        kind: OutcomeKind,
        message: str,
        moves: int = 0,
        benefit: float = 0.0,
        cost: float = 0.0,
    ) -> None:
        """What became of ``host``."""
        self.outcomes.append(Outcome(host, kind, message, moves, benefit, cost))

    def to_empty(self, host: int) -> list[Bundle]:
        """All that must leave ``host`` to empty it; nothing, and said why, if it cannot be.

        A host that carries nothing is put to sleep here and now.
        """
        snapshot = self.snapshot
        if not self.active()[host] or self.received[host] or self.gave[host]:
            self.tell(host, OutcomeKind.LEFT_OUT, "it is not active, or takes part already")
            return []
        if snapshot.vm_count[host] or (snapshot.used[host] > 0).any():
            self.tell(host, OutcomeKind.NOT_MOVABLE, "it carries VMs that are not listed")
            return []
        bundles = self.bundles(self.members(host).tolist())
        if not bundles:
            self.sleeps.append(host)
            self.tell(host, OutcomeKind.IDLE, "it carries nothing")
        for bundle in bundles:
            reason = self.stuck(bundle)
            if reason is not None:
                self.reasons[reason.vm] = reason
                message = f"VM {snapshot.vm_ids[reason.vm]!r}: {reason.message}"
                self.tell(host, OutcomeKind.NOT_MOVABLE, message)
                return []
        return bundles

    def undo(self, placed: Sequence[Bundle], host: int) -> None:
        """Put bundles, not yet recorded as moves, back on ``host``."""
        for bundle in reversed(placed):
            self.lift(bundle)
            self.put(bundle, host)

    def active(self) -> BoolArray:
        """``bool[H]``: hosts that run and take VMs now."""
        return accepting(self.snapshot)

    def answer(self, hold: Hold) -> Relocation:
        """What has been decided."""
        snapshot = self.snapshot
        targets = sorted({move.target for move in self.moves})
        wakes = tuple(t for t in targets if snapshot.host_state[t] == HostState.ASLEEP)
        moved = {move.vm for move in self.moves}
        plan = Plan(
            placement=self.ledger.placement,
            reasons=tuple(self.reasons[vm] for vm in sorted(self.reasons) if vm not in moved),
            moves=tuple(self.moves),
            wakes=wakes,
            sleeps=tuple(sorted(self.sleeps)),
            policy=self.policy,
            problems=tuple(self.problems),
        )
        return Relocation(plan, tuple(self.outcomes), hold)


def hosts_in_order(flags: BoolArray, keys: FloatArray) -> list[int]:
    """The hosts flagged, by rising key; ties to the lowest index."""
    chosen = np.flatnonzero(flags)
    order = np.argsort(keys[chosen], kind="stable")
    return [int(host) for host in chosen[order]]

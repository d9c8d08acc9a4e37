"""Manager to hosts: which host gets which VM.

``plan(snapshot, policy)`` gives a host to every VM that has none; VMs that have one stay. It is
deterministic (ties go to the lowest index), never raises on bad values, and its plan breaks no hard
rule, whatever the policy: pins, tags, networks, affinity, bounds and capacity are filters of every
policy. VMs that hard TOGETHER rules tie to one another get one host together, or none.

Order: higher priority first, then pinned VMs (they have no choice), then the policy's order.
Hosts that run are preferred to hosts that wake up, and those to hosts that sleep.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.choosing import Chooser, Trace
from snooze.scheduling.filters import Bundle, bundles, contradiction
from snooze.scheduling.ledger import Ledger
from snooze.scheduling.norms import Norm, length, mean_capacity, normalised
from snooze.scheduling.plans import Plan, Reason, ReasonCode
from snooze.scheduling.policies import (
    BUILT_IN,
    Catalogue,
    PlacementPolicy,
    PolicyError,
    Selection,
    Strategy,
    VmOrder,
    policy_named,
)
from snooze.scheduling.repacking import repacked
from snooze.scheduling.snapshot import (
    NONE,
    HostState,
    IntArray,
    Snapshot,
    accepting,
)

__all__ = [
    "BUILT_IN",
    "Catalogue",
    "PlacementPolicy",
    "PolicyError",
    "Selection",
    "Strategy",
    "VmOrder",
    "plan",
    "policy_named",
]


def plan(
    snapshot: Snapshot,
    policy: PlacementPolicy,
    *,
    cursor: int = 0,
    rng: np.random.Generator | None = None,
    monotonic: Callable[[], float] | None = None,
) -> Plan:
    """Give a host to each VM that has none.

    Args:
        snapshot: hosts and VMs.
        policy: see ``policies.policy_named``.
        cursor: from the last plan; only round-robin looks at it.
        rng: for policies that draw; without one the policy's seed is used.
        monotonic: a clock in seconds, for the time limit of the optimised policy; without one its
            bound is its number of steps, and the plan is the same every time.
    """
    if policy.strategy is Strategy.OPTIMISED:
        return _optimised(snapshot, policy, cursor, monotonic)
    return run(snapshot, policy, cursor, rng)


def run(
    snapshot: Snapshot,
    policy: PlacementPolicy,
    cursor: int = 0,
    rng: np.random.Generator | None = None,
    *,
    traces: dict[Bundle, Trace] | None = None,
    only: int = NONE,
) -> Plan:
    """``plan`` VM by VM.

    ``traces``, if given, receives what happened in each choice, or in that of VM ``only``.
    """
    ledger = Ledger(snapshot)
    chooser = Chooser(ledger, policy, cursor, rng)
    waiting = ordered(snapshot, policy)
    reasons: list[Reason] = []
    for bundle in bundles(snapshot, waiting):
        trace: Trace | None = None
        if traces is not None and (only == NONE or only in bundle.vms):
            trace = traces[bundle] = Trace([""] * snapshot.hosts)
        host = chooser.choose(bundle, trace=trace)
        if host == NONE:
            reasons += reasons_for(chooser, bundle)
            continue
        for vm in bundle.vms:
            ledger.place(vm, host)
    return Plan(
        placement=ledger.placement,
        reasons=tuple(sorted(reasons, key=lambda reason: reason.vm)),
        wakes=wakes(snapshot, ledger.placement[waiting]),
        cursor=chooser.cursor,
        policy=policy.name,
        problems=(*snapshot.problems, *chooser.problems),
    )


def _optimised(
    snapshot: Snapshot,
    policy: PlacementPolicy,
    cursor: int,
    monotonic: Callable[[], float] | None,
) -> Plan:
    """The best of several greedy plans, its freshly used hosts then packed anew.

    Best: most VMs placed, then fewest hosts woken, then fewest hosts used.
    """
    weights = {name: BUILT_IN.policies[name].weights for name in ("best_fit", "dot_product", "l2")}
    attempts = [replace(policy, strategy=Strategy.FIRST_FIT)]
    attempts += [
        replace(policy, strategy=Strategy.WEIGHTS, weights=each, norm=norm)
        for each in weights.values()
        for norm in (Norm.L1, Norm.MAX)
    ]
    plans = [run(snapshot, attempt, cursor) for attempt in attempts]
    best = min(plans, key=lambda each: _cost(snapshot, each))
    improved = repacked(snapshot, best, policy, monotonic)
    return min((best, improved), key=lambda each: _cost(snapshot, each))


def _cost(snapshot: Snapshot, each: Plan) -> tuple[int, int, int]:
    unplaced = int((each.placement == NONE).sum())
    return unplaced, len(each.wakes), len(np.unique(each.placement[each.placement != NONE]))


def ordered(snapshot: Snapshot, policy: PlacementPolicy) -> IntArray:
    """VMs without a host, in the order in which they are placed."""
    waiting = np.flatnonzero(snapshot.placement == NONE)
    if waiting.size < 2:
        return waiting
    size = np.zeros(waiting.size)
    if policy.vm_order is VmOrder.DECREASING:
        size = sizes(snapshot, policy)[waiting]
    free_to_go = snapshot.pin[waiting] == NONE
    return waiting[np.lexsort((waiting, -size, free_to_go, -snapshot.priority[waiting]))]


def sizes(snapshot: Snapshot, policy: PlacementPolicy) -> FloatArray:
    """``float64[V]``: length of each demand, as a share of the mean host, by the policy's norm."""
    hosts = accepting(snapshot)
    scale = mean_capacity(snapshot.limit[hosts] if hosts.any() else snapshot.limit)
    return length(normalised(snapshot.demand, scale), policy.norm)


def wakes(snapshot: Snapshot, hosts: IntArray) -> tuple[int, ...]:
    """Those of ``hosts`` that are asleep."""
    if not snapshot.host_state.any():  # all of them active
        return ()
    chosen = np.unique(hosts[hosts != NONE])
    return tuple(chosen[snapshot.host_state[chosen] == HostState.ASLEEP].tolist())


def explained(snapshot: Snapshot, trace: Trace, host: int) -> str:
    """In words, what refused ``host``."""
    name = trace.refused_by[host]
    if name == "state":
        sound = "" if snapshot.host_ok[host] else ", and its row makes no sense"
        return f"the host is {HostState(int(snapshot.host_state[host])).name.lower()}{sound}"
    return f"refused by {name}" if name else "not refused"


def reasons_for(chooser: Chooser, bundle: Bundle) -> list[Reason]:
    """Why ``bundle`` got no host: looked into only now, since it costs more than the choice."""
    snapshot = chooser.ledger.snapshot
    if not snapshot.hosts:
        code = ReasonCode.INVALID_SNAPSHOT if snapshot.problems else ReasonCode.NO_HOSTS
        message = "the snapshot makes no sense" if snapshot.problems else "there are no hosts"
        return [Reason(vm, code, message) for vm in bundle.vms]
    sound = snapshot.vm_ok[list(bundle.vms)]
    if not sound.all():
        return [
            Reason(vm, ReasonCode.INVALID_VM, "its row makes no sense")
            if not snapshot.vm_ok[vm]
            else Reason(vm, ReasonCode.NO_HOST_FITS, "it must be together with an invalid VM")
            for vm in bundle.vms
        ]
    trace = Trace([""] * snapshot.hosts)
    chooser.choose(bundle, trace=trace)
    counts: dict[str, int] = {}
    for name in trace.refused_by:
        counts[name] = counts.get(name, 0) + 1
    refused = tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    parts = ", ".join(f"{count} by {name}" for name, count in refused)
    found: list[Reason] = []
    for vm in bundle.vms:
        clash = contradiction(snapshot, vm)
        if clash is not None:
            found.append(Reason(vm, ReasonCode.CONTRADICTION, clash, refused))
        elif snapshot.pin[vm] != NONE:
            pin = int(snapshot.pin[vm])
            message = f"pinned to {snapshot.host_ids[pin]!r}: {explained(snapshot, trace, pin)}"
            found.append(Reason(vm, ReasonCode.NO_HOST_FITS, message, refused))
        else:
            message = f"none of {snapshot.hosts} hosts takes it: refused {parts}"
            found.append(Reason(vm, ReasonCode.NO_HOST_FITS, message, refused))
    return found

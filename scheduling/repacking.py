"""Fewer fresh hosts for a batch of VMs: what a plan put on empty hosts, packed anew.

Greedy plans fill hosts that are in use well enough; where they waste is on the hosts they open.
Those VMs are handed to the packing optimiser, if nothing but room binds them.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from snooze.scheduling.packing import pack
from snooze.scheduling.packing_effort import Effort
from snooze.scheduling.plans import Plan
from snooze.scheduling.policies import PlacementPolicy
from snooze.scheduling.snapshot import (
    NONE,
    BoolArray,
    HostState,
    IntArray,
    Snapshot,
    count_vms,
)
from snooze.scheduling.units import number

MAX_ITEMS = 20_000


def repacked(
    snapshot: Snapshot,
    plan: Plan,
    policy: PlacementPolicy,
    monotonic: Callable[[], float] | None = None,
) -> Plan:
    """``plan`` with its VMs on fresh hosts packed on fewer of them; ``plan`` itself if that fails.

    Only for alike fresh hosts, VMs without pins, labels and rules, and policies without filters of
    their own; the others stay where the plan has them.
    """
    fresh = count_vms(snapshot) == 0
    fresh &= ~snapshot.used.any(axis=1) & (snapshot.max_vms < 0)
    vms = np.flatnonzero(
        (snapshot.placement == NONE) & (plan.placement != NONE) & ~_bound(snapshot)
    )
    vms = vms[fresh[plan.placement[vms]]]
    if policy.filters or not 1 < len(vms) <= MAX_ITEMS:
        return plan
    placement = plan.placement.copy()
    kinds: IntArray
    hosts = np.unique(plan.placement[vms])
    _, kinds = np.unique(snapshot.ceiling[hosts], axis=0, return_inverse=True)
    groups = [hosts[kinds.ravel() == kind] for kind in range(int(kinds.max()) + 1)]
    effort = Effort(
        steps=int(number(policy.properties, "steps")) // len(groups),
        time_limit_s=number(policy.properties, "time_limit_s") / len(groups),
        monotonic=monotonic,
    )
    seed = int(number(policy.properties, "seed"))
    for group in groups:
        _repack(snapshot, placement, vms, group, seed, effort)
    after = np.unique(placement[placement != NONE])
    woken = after[snapshot.host_state[after] == HostState.ASLEEP]
    kept = tuple(host for host in plan.wakes if host in set(woken.tolist()))
    return replace(plan, placement=placement, wakes=kept)


def _repack(
    snapshot: Snapshot,
    placement: IntArray,
    vms: IntArray,
    group: IntArray,
    seed: int,
    effort: Effort,
) -> None:
    """Pack the VMs on alike hosts ``group`` anew, if that needs fewer of them."""
    here = vms[np.isin(placement[vms], group)]
    shared = np.isin(group, placement[np.setdiff1d(np.flatnonzero(placement != NONE), here)])
    targets = group[~shared]
    here = here[np.isin(placement[here], targets)]
    if len(targets) < 2 or len(here) < 2:
        return
    # Running hosts before waking and sleeping ones, as everywhere.
    state = np.array([HostState.ACTIVE, HostState.WAKING, HostState.ASLEEP])
    tiers = np.argmax(snapshot.host_state[targets][:, None] == state[None, :], axis=1)
    targets = targets[np.lexsort((targets, tiers))]
    packing = pack(snapshot.demand[here], snapshot.limit[targets[0]], effort=effort, seed=seed)
    if packing.bins < len(targets) and not packing.problems and (packing.bin_of >= 0).all():
        placement[here] = targets[packing.bin_of]


def _bound(snapshot: Snapshot) -> BoolArray:
    """``bool[V]``: VMs that something other than room ties to certain hosts or VMs."""
    bound: BoolArray = snapshot.pin != NONE
    for labels in (snapshot.tags, snapshot.networks):
        if labels is not None:
            bound = bound | labels.vms.any(axis=1)
    for rule in snapshot.rules:
        bound = bound.copy()
        bound[list(rule.vms)] = True
    return bound

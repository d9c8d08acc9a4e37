"""The cluster as a packing problem: hosts as bins, VMs that move together as items.

A snapshot says much that a search needs only in another form: VMs of a "together" rule become one
item; "apart" rules become groups whose items never share a bin; pins, labels and rules about hosts
become kinds of items with the bins allowed to them; the number of VMs a host may have becomes one
more resource; what must not move stays in its bin as a fixed item.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.snapshot import (
    NONE,
    Affinity,
    AffinityRule,
    BoolArray,
    IntArray,
    Labels,
    Snapshot,
)


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """``n`` items on ``k`` bins with ``R + 1`` resources; the last counts VMs.

    Attributes:
        snapshot: what this was made from.
        hosts: ``int64[k]``, the host of each bin.
        item_of: ``int64[V]``, the item each VM belongs to; -1: it has no part in this.
        items: ``float64[n, R + 1]``, demand.
        limit: ``float64[k, R + 1]``, room for items, tolerance included.
        home: ``int64[n]``, the bin an item is in; -1: it must find one.
        fixed: ``bool[n]``, items that stay.
        cost: ``float64[n]``, of moving each item.
        kind, allowed: see ``packing_kernels.Bins``.
        groups: offsets and numbers, see ``packing_kernels.make_bins``.
        kept: ``bool[k]``, bins that cannot be emptied: something fixed or unlisted is there.
    """

    snapshot: Snapshot
    hosts: IntArray
    item_of: IntArray
    items: FloatArray
    limit: FloatArray
    home: IntArray
    fixed: BoolArray
    cost: FloatArray
    kind: IntArray
    allowed: BoolArray
    groups: tuple[IntArray, IntArray]
    kept: BoolArray

    def placement(self, bin_of: IntArray) -> IntArray:
        """``int64[V]``: the host of every VM when items are where ``bin_of`` says."""
        placement: IntArray = self.snapshot.placement.copy()
        listed = np.flatnonzero(self.item_of >= 0)
        bins = bin_of[self.item_of[listed]]
        placed = bins >= 0
        placement[listed[placed]] = self.hosts[bins[placed]]
        return placement


def field_of(
    snapshot: Snapshot,
    hosts: IntArray,
    *,
    cost: FloatArray,
    leaving: BoolArray | None = None,
    soft: bool = True,
) -> Field:
    """The packing problem of ``hosts`` and the VMs on them.

    Args:
        snapshot: the cluster.
        hosts: the hosts that are bins, in ascending order.
        cost: ``float64[V]``, of moving each VM.
        leaving: ``bool[V]``, VMs that must find a bin; by default none. They must be movable.
        soft: let soft rules bind that are kept now; otherwise they do not count.
    """
    bin_of_host = np.full(snapshot.hosts + 1, NONE, dtype=np.int64)  # the last: for "no host"
    bin_of_host[hosts] = np.arange(len(hosts))
    away = np.zeros(snapshot.vms, dtype=np.bool_) if leaving is None else leaving
    where = bin_of_host[snapshot.placement]
    listed = np.flatnonzero(away | (where >= 0))
    stays: BoolArray = ~away & ~(snapshot.movable & snapshot.vm_ok & (snapshot.pin == NONE))
    only: dict[int, int] = {}
    leader = _tie(snapshot, away, stays, only, soft)
    firsts, members = np.unique(leader[listed], return_inverse=True)
    item_of = np.full(snapshot.vms, NONE, dtype=np.int64)
    item_of[listed] = members
    count, axes = len(firsts), snapshot.demand.shape[1]
    items = np.zeros((count, axes + 1))
    np.add.at(items[:, :axes], members, snapshot.demand[listed])
    items[:, axes] = np.bincount(members, minlength=count)
    fixed = np.zeros(count, dtype=np.bool_)
    fixed[members[stays[listed]]] = True
    home = np.full(count, NONE, dtype=np.int64)
    home[members] = np.where(away[listed], NONE, where[listed])
    kept = (snapshot.vm_count[hosts] > 0) | (snapshot.used[hosts] > 0).any(axis=1)
    kept[home[fixed]] = True
    kind, allowed = _kinds(snapshot, hosts, item_of, only, soft)
    return Field(
        snapshot=snapshot,
        hosts=hosts,
        item_of=item_of,
        items=items,
        limit=_limits(snapshot, hosts),
        home=home,
        fixed=fixed,
        cost=np.bincount(members, weights=cost[listed], minlength=count).astype(np.float64),
        kind=kind,
        allowed=allowed,
        groups=_groups(snapshot, item_of, count, soft),
        kept=kept,
    )


def _limits(snapshot: Snapshot, hosts: IntArray) -> FloatArray:
    """Room for listed VMs, and how many of them there may be: all of them if nothing is said."""
    most = snapshot.max_vms[hosts]
    count = np.where(most == NONE, snapshot.vms, most - snapshot.vm_count[hosts])
    return np.column_stack([snapshot.ceiling[hosts] - snapshot.used[hosts], count])


def _binding(snapshot: Snapshot, soft: bool) -> Iterable[tuple[int, AffinityRule]]:
    """The rules that count, with their numbers."""
    for number, rule in enumerate(snapshot.rules):
        if rule.hard or (soft and _holds(snapshot, rule)):
            yield number, rule


def _holds(snapshot: Snapshot, rule: AffinityRule) -> bool:
    """Whether a rule is kept where VMs are now."""
    where = [int(snapshot.placement[vm]) for vm in rule.vms if snapshot.placement[vm] != NONE]
    match rule.kind:
        case Affinity.TOGETHER:
            return len(set(where)) <= 1
        case Affinity.APART:
            return len(set(where)) == len(where)
        case Affinity.ON_HOSTS:
            return set(where) <= set(rule.hosts)
        case Affinity.OFF_HOSTS:
            return not set(where) & set(rule.hosts)


def _tie(
    snapshot: Snapshot, away: BoolArray, stays: BoolArray, only: dict[int, int], soft: bool
) -> IntArray:
    """For each VM the first VM of its item.

    Marks VMs that must stay for the sake of others in ``stays``, and in ``only`` the one host that
    VMs may leave to (-1: none) because others of their rule are there.
    """
    leader = np.arange(snapshot.vms)
    for _, rule in _binding(snapshot, soft):
        if rule.kind is Affinity.TOGETHER and rule.vms:
            tied = leader[list(rule.vms)]
            leader[np.isin(leader, tied)] = tied.min()
    single = leader == np.arange(snapshot.vms)
    families: dict[int, list[int]] = defaultdict(list)
    for vm in np.flatnonzero(np.isin(leader, leader[~single])).tolist():
        if snapshot.placement[vm] != NONE:
            families[int(leader[vm])].append(vm)
        leader[vm] = vm
    for family in families.values():
        leave = [vm for vm in family if away[vm]]
        rest = [vm for vm in family if not away[vm]]
        places = {int(snapshot.placement[vm]) for vm in rest}
        if not leave and len(places) == 1 and not stays[rest].any():
            leader[rest] = rest[0]
            continue
        stays[rest] = True
        if leave:
            leader[leave] = leave[0]
        if rest:
            only.update(dict.fromkeys(leave, places.pop() if len(places) == 1 else NONE))
    return leader


def _kinds(
    snapshot: Snapshot, hosts: IntArray, item_of: IntArray, only: dict[int, int], soft: bool
) -> tuple[IntArray, BoolArray]:
    """Which bins each item may be in: ``kind[n]``, ``allowed[K, k]``. Kind 0 may be in all."""
    demands: dict[int, set[tuple[str, int]]] = defaultdict(set)
    for vm in np.flatnonzero((snapshot.pin != NONE) & (item_of >= 0)).tolist():
        demands[int(item_of[vm])].add(("pin", int(snapshot.pin[vm])))
    for vm, host in only.items():
        demands[int(item_of[vm])].add(("pin", host))
    for name, labels in (("tag", snapshot.tags), ("network", snapshot.networks)):
        if labels is not None:
            for vm, label in np.argwhere(labels.vms).tolist():
                if item_of[vm] >= 0:
                    demands[int(item_of[vm])].add((name, label))
    for number, rule in _binding(snapshot, soft):
        if rule.kind in (Affinity.ON_HOSTS, Affinity.OFF_HOSTS):
            for vm in rule.vms:
                if item_of[vm] >= 0:
                    demands[int(item_of[vm])].add(("rule", number))
    kind = np.zeros(int(item_of.max(initial=-1)) + 1, dtype=np.int64)
    rows: dict[frozenset[tuple[str, int]], int] = {frozenset(): 0}
    for item, wanted in demands.items():
        kind[item] = rows.setdefault(frozenset(wanted), len(rows))
    allowed = np.ones((len(rows), len(hosts)), dtype=np.bool_)
    for demands_of_kind, row in rows.items():
        for demand in demands_of_kind:
            allowed[row] &= _allowed(snapshot, demand)[hosts]
    return kind, allowed


def _allowed(snapshot: Snapshot, demand: tuple[str, int]) -> BoolArray:
    """``bool[H]``: the hosts that meet one demand."""
    name, number = demand
    if name == "pin":
        return np.asarray(np.arange(snapshot.hosts) == number)
    if name == "rule":
        rule = snapshot.rules[number]
        inside = np.isin(np.arange(snapshot.hosts), list(rule.hosts))
        return inside if rule.kind is Affinity.ON_HOSTS else ~inside
    labels: Labels | None = snapshot.tags if name == "tag" else snapshot.networks
    assert labels is not None
    return np.asarray(labels.hosts[:, number])


def _groups(
    snapshot: Snapshot, item_of: IntArray, count: int, soft: bool
) -> tuple[IntArray, IntArray]:
    """The "apart" rules of each item."""
    of_item: dict[int, set[int]] = defaultdict(set)
    for number, rule in _binding(snapshot, soft):
        if rule.kind is Affinity.APART:
            for vm in rule.vms:
                if item_of[vm] >= 0:
                    of_item[int(item_of[vm])].add(number)
    lengths = np.zeros(count, dtype=np.int64)
    numbers: list[int] = []
    for item in sorted(of_item):
        lengths[item] = len(of_item[item])
        numbers += sorted(of_item[item])
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return start, np.array(numbers, dtype=np.int64)

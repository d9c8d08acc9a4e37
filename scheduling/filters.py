"""Which hosts may take a VM.

``HARD`` filters are the rules of the house: they are part of every policy, in this order, and the
checker knows each of them too. ``OPTIONAL`` ones are a policy's choice.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import numpy as np

from snooze.common.resources import Axis, FloatArray
from snooze.scheduling.ledger import Scene
from snooze.scheduling.norms import normalised
from snooze.scheduling.snapshot import (
    NONE,
    Affinity,
    BoolArray,
    HostState,
    IntArray,
    Labels,
    Snapshot,
    accepting,
)
from snooze.scheduling.units import Filter, Properties, Property, PropertyKind, number


def _capacity(scene: Scene, _: Properties) -> BoolArray:
    return scene.roomy()


def _max_vms(scene: Scene, _: Properties) -> BoolArray | None:
    most = scene.snapshot.max_vms
    bounded = most >= 0
    return (scene.counts + scene.size <= most) | ~bounded if bounded.any() else None


def _pin(scene: Scene, _: Properties) -> BoolArray | None:
    pin = int(scene.snapshot.pin[scene.vm])
    if pin == NONE:
        return None
    only = np.zeros(scene.snapshot.hosts, dtype=np.bool_)
    only[pin] = True
    return only


def _tags(scene: Scene, _: Properties) -> BoolArray | None:
    return _offering(scene.snapshot.tags, scene.vm)


def _networks(scene: Scene, _: Properties) -> BoolArray | None:
    return _offering(scene.snapshot.networks, scene.vm)


def _image_locality(scene: Scene, _: Properties) -> BoolArray | None:
    return _offering(scene.snapshot.images, scene.vm)


def _offering(labels: Labels | None, vm: int) -> BoolArray | None:
    """Hosts that offer everything the VM needs."""
    if labels is None or not labels.vms[vm].any():
        return None
    needed = np.flatnonzero(labels.vms[vm])
    offered: BoolArray = labels.hosts[:, needed].sum(axis=1) == needed.size
    return offered


def _affinity(scene: Scene, _: Properties) -> BoolArray | None:
    """Hosts where no hard rule of the VM is broken, given where the others are now."""
    kept: BoolArray | None = None
    for rule, members in scene.rules:
        if not rule.hard:
            continue
        if kept is None:
            kept = np.ones(scene.snapshot.hosts, dtype=np.bool_)
        taken = scene.placement[members]
        taken = taken[taken != NONE]
        if rule.kind is Affinity.APART:
            kept[taken] = False
            if scene.size > 1 and np.isin(scene.peers, members).sum() > 1:
                kept[:] = False
        elif rule.kind is Affinity.TOGETHER and taken.size:
            same = np.zeros_like(kept)
            same[taken[0]] = bool((taken == taken[0]).all())
            kept &= same
        elif rule.kind is Affinity.ON_HOSTS:
            kept &= np.isin(np.arange(len(kept)), rule.hosts)
        elif rule.kind is Affinity.OFF_HOSTS:
            kept[list(rule.hosts)] = False
    return kept


HARD: Final = (
    Filter("pin", _pin, summary="Only the host the VM is pinned to."),
    Filter("tags", _tags, summary="Hosts with every tag the VM asks for."),
    Filter("networks", _networks, summary="Hosts on every network the VM is on."),
    Filter("affinity", _affinity, summary="Hosts where no hard affinity rule is broken."),
    Filter("max_vms", _max_vms, summary="Hosts with fewer VMs than their bound."),
    Filter("capacity", _capacity, summary="Hosts with room on every axis."),
)


def _memory(scene: Scene, _: Properties) -> BoolArray | None:
    if len(scene.need) <= Axis.MEMORY:
        return None
    enough: BoolArray = scene.free[:, Axis.MEMORY] >= scene.need[Axis.MEMORY]
    return enough


def _cpu_overload(scene: Scene, properties: Properties) -> BoolArray | None:
    """Hosts whose measured CPU load stays within HighUtilization with the VM on them."""
    if not len(scene.need):
        return None
    after = scene.load[:, Axis.CPU] + scene.need[Axis.CPU]
    bound = scene.snapshot.capacity[:, Axis.CPU] * number(properties, "HighUtilization") / 100.0
    calm: BoolArray = after <= bound
    return calm


def _max_vms_per_host(scene: Scene, properties: Properties) -> BoolArray:
    few: BoolArray = scene.counts + scene.size <= number(properties, "MaxVms")
    return few


def _cluster_in_maintenance(scene: Scene, _: Properties) -> BoolArray | None:
    """Only highly available VMs start; any VM that runs may still be moved."""
    runs = scene.snapshot.placement[scene.vm] != NONE
    if runs or scene.snapshot.highly_available[scene.vm]:
        return None
    return np.zeros(scene.snapshot.hosts, dtype=np.bool_)


def _ha_reserve(scene: Scene, _: Properties) -> BoolArray | None:
    """Hosts after which the highly available VMs of any one host still find room in the others.

    Compares sums of room, so it is necessary for a restart, not sufficient.
    """
    snapshot = scene.snapshot
    active = accepting(snapshot)
    free: FloatArray = np.where(active[:, None], np.maximum(scene.free, 0.0), 0.0)
    protected = np.zeros_like(free)
    members = np.flatnonzero(snapshot.highly_available & (scene.placement != NONE))
    np.add.at(protected, scene.placement[members], snapshot.demand[members])
    # If host f dies, protected[f] must fit into total - free[f]. The VM takes need out of that,
    # unless it is on f itself: then it is lost with the host, and must be restarted if protected.
    total = free.sum(axis=0)
    joins = scene.need if snapshot.highly_available[scene.vm] else np.zeros_like(scene.need)
    elsewhere = ((protected + free + scene.need <= total) | (protected <= 0)).all(axis=1)
    here = ((protected + joins + free <= total) | (protected + joins <= 0)).all(axis=1)
    stranded = ~elsewhere
    kept: BoolArray = here & (stranded.sum() - stranded == 0)
    return kept


def _hosts_in_reserve(scene: Scene, properties: Properties) -> BoolArray | None:
    """Keeps the last HostsInReserve empty active hosts empty."""
    reserve = int(number(properties, "HostsInReserve"))
    active = accepting(scene.snapshot)
    empty = active & (scene.counts == 0)
    if not reserve or int(empty.sum()) > reserve:
        return None
    kept: BoolArray = ~empty
    return kept


def _balance_of_axes(scene: Scene, properties: Properties) -> BoolArray:
    """Hosts that are not left lopsided: one axis used up while another stays idle."""
    capacity = scene.snapshot.limit
    left = normalised(np.maximum(scene.free - scene.need, 0.0), capacity)
    counted = capacity > 0
    most = np.where(counted, left, 0.0).max(axis=1, initial=0.0)
    least = np.where(counted, left, 1.0).min(axis=1, initial=1.0)
    even: BoolArray = most - least <= number(properties, "MaxImbalance") / 100.0
    return even


HIGH_UTILIZATION: Final = Property(
    "HighUtilization", 80.0, low=1.0, high=100.0, summary="Percent of CPU above which is overload."
)
HOSTS_IN_RESERVE: Final = Property(
    "HostsInReserve", 0, PropertyKind.WHOLE, 0, 1e6, summary="Empty hosts kept running."
)

OPTIONAL: Final = (
    Filter("memory", _memory, summary="Hosts with enough memory, whatever else they lack."),
    Filter(
        "cpu_overload",
        _cpu_overload,
        (HIGH_UTILIZATION,),
        "Hosts whose measured CPU load stays below HighUtilization.",
    ),
    Filter(
        "max_vms_per_host",
        _max_vms_per_host,
        (Property("MaxVms", 3, PropertyKind.WHOLE, 0, 1e6),),
        "Hosts with fewer than MaxVms VMs (three graphics cards, say).",
    ),
    Filter("image_locality", _image_locality, summary="Hosts that have the VM's images already."),
    Filter(
        "cluster_in_maintenance",
        _cluster_in_maintenance,
        summary="No new VM unless it is highly available.",
    ),
    Filter(
        "ha_reserve",
        _ha_reserve,
        summary="Keeps room to restart the highly available VMs of any one host.",
    ),
    Filter(
        "hosts_in_reserve",
        _hosts_in_reserve,
        (HOSTS_IN_RESERVE,),
        "Keeps HostsInReserve running hosts empty.",
    ),
    Filter(
        "balance_of_axes",
        _balance_of_axes,
        (Property("MaxImbalance", 50.0, low=0.0, high=100.0),),
        "Hosts not left with one resource used up and another idle.",
    ),
)


def tier(snapshot: Snapshot, state: HostState) -> BoolArray:
    """Sound hosts in ``state``."""
    there: BoolArray = snapshot.host_state == state
    return snapshot.host_ok & there


@dataclass(frozen=True, slots=True)
class Bundle:
    """VMs to be placed on one host, all or none; ``anchor`` is the host, or -1 for any."""

    vms: tuple[int, ...]
    anchor: int = NONE


def bundles(snapshot: Snapshot, vms: IntArray) -> list[Bundle]:
    """``vms``, none of which has a host, grouped by what hard TOGETHER rules tie to one host.

    Rules that share a VM are one group. A group of which a member already has a host comes apart
    into single VMs anchored there. In the order of ``vms``.
    """
    root = tie_groups(snapshot)
    if not root:
        return [Bundle((vm,)) for vm in vms.tolist()]
    anchors: dict[int, set[int]] = defaultdict(set)
    for vm, group in root.items():
        if snapshot.placement[vm] != NONE:
            anchors[group].add(int(snapshot.placement[vm]))
    groups: dict[tuple[str, int], Bundle] = {}
    for vm in vms.tolist():
        places = anchors.get(root.get(vm, NONE), set())
        if vm not in root or places:
            groups["vm", vm] = Bundle((vm,), min(places) if places else NONE)
            continue
        before = groups.get(("group", root[vm]), Bundle(()))
        groups["group", root[vm]] = Bundle((*before.vms, vm))
    return list(groups.values())


def tie_groups(snapshot: Snapshot) -> dict[int, int]:
    """For every VM in a hard TOGETHER rule, the lowest VM it is tied to, be it by way of others."""
    leader: dict[int, int] = {}

    def find(vm: int) -> int:
        while leader.setdefault(vm, vm) != vm:
            leader[vm] = leader[leader[vm]]
            vm = leader[vm]
        return vm

    for rule in snapshot.rules:
        for vm in rule.vms if rule.hard and rule.kind is Affinity.TOGETHER else ():
            first, second = sorted((find(rule.vms[0]), find(vm)))
            leader[second] = first
    return {vm: find(vm) for vm in leader}


def contradiction(snapshot: Snapshot, vm: int) -> str | None:
    """Why the hard rules of ``vm`` cannot all hold wherever it goes, or None.

    Names rules that exclude one another whatever the load; not full hosts.
    """
    own = [rule for rule in snapshot.rules if rule.hard and vm in rule.vms]
    together = {other for rule in own if rule.kind is Affinity.TOGETHER for other in rule.vms}
    for rule in own:
        if rule.kind is Affinity.APART and len(together.intersection(rule.vms) - {vm}):
            return "it must be together with, and apart from, the same VM"
        if rule.kind is Affinity.APART and len(set(rule.vms)) > snapshot.hosts:
            return f"{len(set(rule.vms))} VMs must be apart; there are {snapshot.hosts} hosts"
    allowed = set(range(snapshot.hosts))
    for rule in own:
        if rule.kind is Affinity.ON_HOSTS:
            allowed &= set(rule.hosts)
        elif rule.kind is Affinity.OFF_HOSTS:
            allowed -= set(rule.hosts)
    pins = {int(snapshot.pin[other]) for other in together | {vm}} - {NONE}
    if len(pins) > 1:
        return "VMs that must be together are pinned to different hosts"
    if not allowed or not pins <= allowed:
        return "its affinity to hosts and its pin leave no host"
    spread = {int(snapshot.placement[other]) for other in together - {vm}} - {NONE}
    if len(spread) > 1:
        return "the VMs it must be together with are on different hosts"
    return None

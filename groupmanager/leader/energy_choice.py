"""Which hosts to put to sleep and which to wake; the energy core carries it out.

Rules: those of ``energy_rules``, and: the host whose sleep saves most goes first; the hosts that
wake add the fewest watts for what they hold. What was not chosen is named with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from snooze.common.records import HostPower
from snooze.common.resources import Axis, FloatArray
from snooze.common.vm_lifecycle import VmState
from snooze.groupmanager.leader.energy_rules import (
    SLACK,
    SLEEPERS,
    EnergyPolicy,
    Fleet,
    action_for,
    fits,
    is_wakeable,
    lacking,
    may_be_on,
    occupied,
    required_free,
    room_of,
    waiting_vms,
)
from snooze.groupmanager.leader.registry import HostEntry, Registry
from snooze.scheduling.model import BoolArray
from snooze.scheduling.power_curves import model_of
from snooze.scheduling.power_model import PowerModel
from snooze.scheduling.waking import cover, plan_wakes

MAX_WAITING: Final = 256
"""VMs that one evaluation finds hosts for; the others' turn is the next."""
MAX_ALTERNATIVES: Final = 10
MAX_SLEEPS: Final = 8
"""Hosts that one evaluation puts to sleep."""
LAST_RESORT: Final = 1000.0
"""What a host that has just gone to sleep costs, as a multiple: others are woken before it."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Hosts with the reason for each, in order, and what else was weighed.

    ``ha_refused``: some host stays up for the HA reserve.
    """

    hosts: tuple[tuple[HostEntry, str], ...]
    alternatives: tuple[str, ...] = ()
    ha_refused: bool = False


def choose_sleepers(
    registry: Registry,
    policy: EnergyPolicy,
    fleet: Fleet,
    expected: FloatArray,
    ha_lacks: Callable[[frozenset[str]], str],
    barred: set[str],
    proposed: set[str],
    now_s: float,
    now_ms: int,
) -> Chosen:
    """Hosts that nobody needs: idle and up for long enough, the reserve held without them.

    ``barred`` are left alone; ``proposed`` too, and the reserve is to hold without them already.
    """
    taken = occupied(registry)
    waiting = [vm for vm in registry.vms.values() if vm.state is VmState.PENDING and not vm.host_id]
    idle_s: dict[str, float] = {}
    for manager in registry.managers.values():
        idle_s.update(manager.idle)
    rows: list[tuple[int, float]] = []
    for row, host in enumerate(fleet.hosts):
        host_id = host.description.host_id
        idle = idle_s.get(host_id, 0.0)
        up_s = (now_ms - host.state_since_ms) / 1000 if host.state_since_ms else now_s - host.seen_s
        if (
            host_id in barred
            or host_id in proposed
            or host_id in taken
            or not host.joined
            or idle < policy.idle_s
            or up_s < policy.min_on_s
            or not is_wakeable(registry, host)
            or not action_for(policy, host)
            or any(may_be_on(vm, host) and fits(vm, fleet.room[row]) for vm in waiting)
        ):
            continue
        rows.append((row, idle))
    if not rows:
        return Chosen(())
    saving = _model([fleet.hosts[row] for row, _ in rows], policy).idle_saving_w()
    candidates = [
        (-float(saved), -idle, fleet.hosts[row].description.host_id, row)
        for (row, idle), saved in zip(rows, saving, strict=True)
    ]
    chosen: list[tuple[HostEntry, str]] = []
    others: list[str] = []
    leaving = np.array([h.description.host_id in proposed for h in fleet.hosts], dtype=np.bool_)
    gone: FloatArray = fleet.room[leaving].sum(axis=0)
    staying = {host.description.host_id for host in fleet.hosts} - proposed
    for watts, idle, host_id, row in sorted(candidates):
        if len(chosen) >= MAX_SLEEPS:
            break
        host = fleet.hosts[row]
        name = host.description.hostname
        without = gone + fleet.room[row]
        if len(staying) <= policy.reserved_hosts:
            why = f"{policy.reserved_hosts} hosts stay up"
        else:
            why = lacking(policy, fleet, without, expected)
        if why:
            others.append(f"{name}: {why}")
            continue
        gone = without
        staying.discard(host_id)
        chosen.append((host, f"idle for {-idle:.0f} s; saves {-watts:.0f} W"))
    ha_refused = False
    # All at once, then half of them, and so on: each look at the HA reserve costs.
    while chosen:
        why = ha_lacks(frozenset(staying))
        if not why:
            break
        ha_refused = True
        kept = chosen[len(chosen) // 2 :]
        chosen = chosen[: len(chosen) // 2]
        others += [f"{host.description.hostname}: {why}" for host, _ in kept]
        staying |= {host.description.host_id for host, _ in kept}
    return Chosen(tuple(chosen), tuple(others[:MAX_ALTERNATIVES]), ha_refused)


def choose_wakers(
    registry: Registry,
    policy: EnergyPolicy,
    fleet: Fleet,
    expected: FloatArray,
    limit: FloatArray,
    ha: str,
    willing: set[str],
    coming: set[str],
    now_s: float,
    now_ms: int,
) -> Chosen:
    """Hosts that VMs wait for (each is told which), and those that the reserve lacks.

    ``ha``: what HA lacks of the hosts that are up; empty: nothing.
    """
    hosts = [
        host
        for host_id, host in sorted(registry.hosts.items())
        if host.state in SLEEPERS and (host_id in willing or host_id in coming)
    ]
    waiting = waiting_vms(registry, MAX_WAITING, now_s)
    if not hosts:
        for vm in waiting:
            vm.waits_for = ""
        return Chosen(())
    ids = [host.description.host_id for host in hosts]
    room = room_of(hosts, limit)
    on_way = np.array([host_id in coming for host_id in ids], dtype=np.bool_)
    if not waiting and not ha and not _is_short(policy, fleet, expected, room[on_way]):
        return Chosen(())
    model = _model(hosts, policy)
    cost = np.maximum(model.curve_w[:, -1] - model.asleep_w, 1.0)
    rested = np.array([(now_ms - h.state_since_ms) / 1000 >= policy.min_off_s for h in hosts])
    cost = np.where(rested, cost, cost * LAST_RESORT)
    chosen: list[tuple[HostEntry, str]] = []
    others: list[str] = []
    left = room.copy()
    if waiting:
        demand = np.array([vm.demand.as_tuple() for vm in waiting], dtype=np.float64)
        allowed = np.array([[may_be_on(vm, host) for host in hosts] for vm in waiting])
        plan = plan_wakes(demand, allowed, room, on_way, cost)
        for index, vm in enumerate(waiting):
            row = int(plan.host_of[index])
            vm.waits_for = ids[row] if row >= 0 else ""
            if row >= 0:
                left[row] -= demand[index]
        for row in plan.wake:
            names = [vm.name for i, vm in enumerate(waiting) if plan.host_of[i] == row]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            chosen.append((hosts[row], f"VM {', '.join(names[:3])}{more} waits for room"))
            on_way[row] = True
    chosen += _for_reserve(policy, fleet, expected, hosts, left, on_way, cost, rested)
    if ha and not bool(on_way.any()):
        asleep = [row for row, host in enumerate(hosts) if host.state is HostPower.ASLEEP]
        for row in sorted(asleep, key=lambda row: (float(cost[row]), row))[:1]:
            chosen.append((hosts[row], ha))
            on_way[row] = True
    others = [
        f"{host.description.hostname}: {cost[row]:.0f} W more"
        for row, host in enumerate(hosts)
        if not on_way[row]
    ]
    return Chosen(tuple(chosen), tuple(others[:MAX_ALTERNATIVES]))


def _missing(
    policy: EnergyPolicy, fleet: Fleet, expected: FloatArray, coming: FloatArray
) -> FloatArray:
    """``[R]``: what the reserve lacks with ``coming[K, R]`` of free room on its way."""
    more = coming.sum(axis=0)
    needed = required_free(policy, fleet.total_room() + more, expected)
    missing: FloatArray = needed - fleet.total_free() - more
    missing[[Axis.RX, Axis.TX]] = 0.0
    return missing


def _is_short(policy: EnergyPolicy, fleet: Fleet, expected: FloatArray, coming: FloatArray) -> bool:
    """Whether the reserve lacks anything."""
    if not policy.enabled:
        return False
    if len(fleet.hosts) + len(coming) < policy.reserved_hosts:
        return True
    return bool((_missing(policy, fleet, expected, coming) > SLACK).any())


def _model(hosts: list[HostEntry], policy: EnergyPolicy) -> PowerModel:
    described = [(h.description.power, h.description.capacity.cpu_cores) for h in hosts]
    return model_of(described, policy.power_curve)


def _for_reserve(
    policy: EnergyPolicy,
    fleet: Fleet,
    expected: FloatArray,
    hosts: list[HostEntry],
    left: FloatArray,
    on_way: BoolArray,
    cost: FloatArray,
    rested: BoolArray,
) -> list[tuple[HostEntry, str]]:
    """Hosts that fill up the reserve, what is on its way counted in; marks them in ``on_way``."""
    if not policy.enabled:
        return []
    missing = _missing(policy, fleet, expected, left[on_way])
    rows = [
        row
        for row, host in enumerate(hosts)
        if not on_way[row] and rested[row] and host.state is HostPower.ASLEEP
    ]
    if not rows:
        return []
    chosen: list[tuple[HostEntry, str]] = []
    reserve = ", ".join(
        f"{missing[axis]:.6g} {unit}"
        for axis, unit in ((Axis.CPU, "cores"), (Axis.MEMORY, "KiB of memory"))
        if missing[axis] > SLACK
    )
    for index in cover(missing, left[rows], cost[rows]):
        chosen.append((hosts[rows[index]], f"the reserve lacks {reserve}"))
        on_way[rows[index]] = True
    up = len(fleet.hosts) + int(on_way.sum())
    for row in rows:
        if up >= policy.reserved_hosts:
            break
        if not on_way[row]:
            chosen.append((hosts[row], f"{policy.reserved_hosts} hosts are to be up"))
            on_way[row] = True
            up += 1
    return chosen

"""What the energy saver may do, as plain questions about the registry; the core asks them.

Rules:

1. A host may sleep only if it can be woken again (it has a power driver) and can go down by the
   wanted action; if it is joined, ``ACTIVE`` and not in maintenance; and if nothing is there: no
   domain of any kind, running or not, ours or not.
2. What stays up keeps the reserve: free cores and memory (a part of what is up, or an absolute
   figure, whichever is more), what anticipation expects, and a number of hosts.
3. A host that the registry knows as up and that has not joined (yet) counts as up until it was
   given up, so that a new leader does not wake the house for hosts that are just joining it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from snooze.common.records import HostPower
from snooze.common.resources import ZERO, Capacity, FloatArray, R
from snooze.common.vm_lifecycle import VmState
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.groupmanager.leader.registry_loads import loads_of
from snooze.scheduling.energy_question import SLACK, Reserve, amounts
from snooze.scheduling.power_curves import GENERIC

SLEEPERS: Final = frozenset({HostPower.GOING_DOWN, HostPower.ASLEEP, HostPower.WAKING})
"""Hosts that are asleep, or will be, or are coming back."""

JUST_JOINED_S: Final = 5.0
"""So long after a host joined, its manager's word on its room may be under way."""


@dataclass(frozen=True, slots=True)
class EnergyPolicy:
    """The settings ``[energy]``, as the core needs them."""

    enabled: bool = False
    action: str = ""
    idle_s: float = 0.0
    wake_s: float = 120.0
    min_on_s: float = 300.0
    min_off_s: float = 120.0
    reserved_hosts: int = 1
    reserve_share: Capacity = ZERO
    reserve_least: Capacity = ZERO
    down_timeout_s: float = 180.0
    wake_timeout_s: float = 300.0
    wake_tries: int = 2
    power_curve: str = GENERIC


@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """The hosts that are up and take VMs: ``room[H, R]`` in all, ``free[H, R]`` of it."""

    hosts: tuple[HostEntry, ...]
    room: FloatArray
    free: FloatArray

    def up(self) -> "Up":
        """In sums."""
        return Up(len(self.hosts), self.room.sum(axis=0), self.free.sum(axis=0))


@dataclass(frozen=True, slots=True, eq=False)
class Up:
    """Of the hosts that are up and take VMs: how many, their room and what is free, in all."""

    count: int
    room: FloatArray
    free: FloatArray


def room_of(hosts: Iterable[HostEntry], limit: FloatArray) -> FloatArray:
    """``[H, R]``: what VMs may be promised on each host; ``limit[R]`` scales its capacity."""
    rows = [host.description.capacity.as_tuple() for host in hosts]
    room: FloatArray = np.array(rows, dtype=np.float64).reshape(-1, R) * limit
    return room


def free_on(registry: Registry, host: HostEntry, limit: FloatArray) -> FloatArray:
    """``[R]``: what may still be promised on a host."""
    loads = loads_of(registry)
    [row] = loads.rows_of(frozenset({host.description.host_id}))
    free: FloatArray = loads.capacity[row] * limit - loads.held[row]
    return np.maximum(free, 0.0)


def fleet_of(registry: Registry, limit: FloatArray) -> Fleet:
    """What is up (rule 3), by id."""
    loads = loads_of(registry)
    away = [host for host in registry.hosts.unsettled.values() if is_up(host)]
    hosts, rows = loads.up(registry.hosts, away)
    room = loads.capacity[rows] * limit
    free = room - loads.held[rows]
    return Fleet(hosts, room, np.maximum(free, 0.0))


def up_of(registry: Registry, limit: FloatArray) -> Up:
    """What is up (rule 3), in sums."""
    loads = loads_of(registry)
    counted = loads.takes.copy()
    away = [h.description.host_id for h in registry.hosts.unsettled.values() if is_up(h)]
    counted[loads.rows_of(frozenset(away))] = True
    room: FloatArray = loads.capacity[counted] * limit
    free = np.maximum(room - loads.held[counted], 0.0)
    return Up(len(room), room.sum(axis=0), free.sum(axis=0))


def is_up(host: HostEntry) -> bool:
    """Whether a host counts as up (rule 3): it takes VMs, or may join in a moment."""
    return host.state is HostPower.ACTIVE and not host.maintenance and not host.given_up


def reserve_of(policy: EnergyPolicy, up: Up, expected: FloatArray) -> Reserve:
    """What has to stay free of what is up (rule 2); ``expected[R]`` is demand about to come."""
    return Reserve(
        policy.reserved_hosts,
        up.count,
        amounts(up.room),
        amounts(up.free),
        policy.reserve_share.as_tuple(),
        policy.reserve_least.as_tuple(),
        amounts(expected),
    )


def action_for(policy: EnergyPolicy, host: HostEntry) -> str:
    """How the host would go down; empty: it cannot as is wanted."""
    actions = host.description.power.actions
    if not policy.action:
        return actions[0] if actions else ""
    return policy.action if policy.action in actions else ""


def is_wakeable(registry: Registry, host: HostEntry) -> bool:
    """Whether there is a way to wake it."""
    return registry.can_wake(host.description)


def occupant(registry: Registry, host_id: str) -> VmEntry | None:
    """Some VM that is on the host, in whatever state, or may be."""
    return next(registry.vms_of_host(host_id), None)


def forbids_sleep(registry: Registry, policy: EnergyPolicy, host: HostEntry) -> str:
    """Why the host may not sleep whoever asks; empty: it may (rule 1)."""
    vm = occupant(registry, host.description.host_id)
    if vm is not None:
        return f"VM {vm.name} is on it ({vm.state.value}); migrate or destroy it first"
    if not host.joined:
        return "it has not joined a group manager"
    if host.state is not HostPower.ACTIVE:
        return f"it is {host.state.value.replace('_', ' ')}"
    if not is_wakeable(registry, host):
        return "nothing can wake it: no power driver that can, and may, is named for it"
    if not action_for(policy, host):
        wanted = policy.action or "at all"
        return f"it cannot go to sleep ({wanted})"
    return ""


def may_be_on(vm: VmEntry, host: HostEntry) -> bool:
    """Whether the VM's pins allow the host, which goes back to the manager that it had."""
    if vm.pin_host:
        return vm.pin_host == host.description.host_id
    return not vm.pin_manager or vm.pin_manager == host.manager_id


def fits(vm: VmEntry, room: FloatArray) -> bool:
    """Whether an empty host of ``room[R]`` holds the VM."""
    slack = SLACK * np.maximum(1.0, room)
    return bool((vm.demand.as_array() <= room + slack).all())


def fits_alone(vm: VmEntry, host: HostEntry) -> bool:
    """Whether the host, if it is empty, holds the VM, not overcommitted."""
    return not host.maintenance and fits(vm, host.description.capacity.as_array())


def waiting_vms(registry: Registry, now_s: float, now_ms: int) -> list[VmEntry]:
    """The VMs that no host in reach has room for, by id.

    Those that none was found for come last, so that each has its turn.
    Those whose host has just come up are being placed on it; so are those that wait for none yet,
    if one has just come up that may take them.
    """
    found = [
        vm for vm in registry.vms.lacking.values() if not vm.doubt and vm.state is VmState.PENDING
    ]
    if not found:
        return []
    fresh = [host for host in lately(registry, now_s, now_ms) if just_woken(host, now_ms)]

    def is_being_placed(vm: VmEntry) -> bool:
        host = registry.hosts.get(vm.waits_for or "")
        if host is not None:
            return just_joined(host, now_s)
        return any(may_be_on(vm, each) and fits_alone(vm, each) for each in fresh)

    waiting = [vm for vm in found if not is_being_placed(vm)]
    return sorted(waiting, key=lambda vm: (vm.waits_for == "", vm.vm_id))


def lately(registry: Registry, now_s: float, now_ms: int) -> list[HostEntry]:
    """The hosts that have just joined or woken; those that had are looked at for the last time."""
    hosts = registry.hosts.lately
    found: list[HostEntry] = []
    for host_id, host in list(hosts.items()):
        if just_joined(host, now_s) or just_woken(host, now_ms):
            found.append(host)
        else:
            del hosts[host_id]
    return found


def just_joined(host: HostEntry, now_s: float) -> bool:
    """Whether it joined so lately that its manager's word on its room may be under way."""
    return host.joined and now_s - host.seen_s <= JUST_JOINED_S


def just_woken(host: HostEntry, now_ms: int) -> bool:
    """Likewise, of a host that slept."""
    up = host.joined and host.state is HostPower.ACTIVE and host.state_since_ms > 0
    return up and now_ms - host.state_since_ms <= JUST_JOINED_S * 1000


def _any_host(host: HostEntry) -> bool:
    return True


def could_be_woken_for(
    registry: Registry,
    vm: VmEntry,
    limit: FloatArray,
    now_s: float,
    is_willing: Callable[[HostEntry], bool] = _any_host,
) -> HostEntry | None:
    """A host that could hold a VM for which none in reach has room: a sleeper.

    For one that waits already also a host that is just back. ``is_willing``: whether a host may be.
    """
    hosts = registry.hosts
    sleepers = (
        host
        for host in hosts.in_state(SLEEPERS)
        if not (host.joined and host.state is not HostPower.GOING_DOWN)
        and is_wakeable(registry, host)
    )
    back = [h for h in hosts.lately.values() if just_joined(h, now_s)] if vm.lacks_room else []
    holds: dict[Capacity, bool] = {}
    for host in (*back, *sleepers):
        if host.maintenance or not may_be_on(vm, host):
            continue
        capacity = host.description.capacity
        if capacity not in holds:
            holds[capacity] = fits(vm, room_of([host], limit)[0])
        if holds[capacity] and is_willing(host):
            return host
    return None

"""CloudSim 3.0.3's published policies, as the yardstick: power-aware best fit with THR, IQR, MAD, LR.

What they do, at every decision (Beloglazov and Buyya, CCPE 24(13), 2012, and the code's behaviour):

1. Find the overloaded hosts. From each take the VM with the least memory (MMT) until the detector
   is content. A host's history is the sum of the histories of the VMs now on it.
2. Place those VMs, largest demand first, where the power rises least: any host, off ones included,
   that has the MIPS free, is not overloaded now and would not be after. A VM without a host stays.
3. Again and again: take the least used host not yet looked at, neither off nor overloaded, nor
   chosen as a target in this step; move all its VMs to hosts that are on, as in 2, or none.

Three quirks are kept, since the figures depend on them: power "before" is that of the start of the
decision, whatever was planned since; a VM placed in 2 may be moved on in 3, and both moves are
carried out and counted; and a host once looked at in 3 takes no more VMs.

``local regression`` is an unweighted line over ten samples: the published code computes tricube
weights and does not use them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np

from benchmarks._planetlab_world import HOST_RAM_MB, Bools, Fleet, Floats, Ints, World

THR: Final = 0
IQR: Final = 1
MAD: Final = 2
LR: Final = 3
HISTORY: Final = 30
FALLBACK: Final = 0.7
MIN_SAMPLES_SPREAD: Final = 12
MIN_SAMPLES_LINE: Final = 10

Function = TypeVar("Function", bound=Callable[..., Any])

try:
    from numba import njit as _njit
except ImportError:  # the same functions run uncompiled, a hundred times slower

    def compiled(function: Function) -> Function:
        return function

else:

    def compiled(function: Function) -> Function:
        result: Function = _njit(cache=True)(function)
        return result


@compiled
def _watts(power_w: Floats, utilisation: float) -> float:
    """CloudSim's interpolation, operation by operation: equal rises are told apart by rounding."""
    utilisation = min(utilisation, 1.0)
    if utilisation % 0.1 == 0:
        return power_w[int(utilisation * 10)]
    below = int(np.floor(utilisation * 10))
    above = int(np.ceil(utilisation * 10))
    step = (power_w[above] - power_w[below]) / 10
    return power_w[below] + step * (utilisation - below / 10) * 100


@compiled
def _line_at_next(samples: Floats) -> float:
    """Least squares over the ten newest samples (newest first), one step beyond the newest.

    Accumulated as Apache Commons Math does, so that roundings agree.
    """
    n = 0
    mean_x = mean_y = sum_x = sum_y = sum_xx = sum_xy = 0.0
    for i in range(10):
        x = i + 1.0
        y = samples[9 - i]
        if n == 0:
            mean_x = x
            mean_y = y
        else:
            dx = x - mean_x
            dy = y - mean_y
            sum_xx += dx * dx * (n / (1.0 + n))
            sum_xy += dx * dy * (n / (1.0 + n))
            mean_x += dx / (1.0 + n)
            mean_y += dy / (1.0 + n)
        sum_x += x
        sum_y += y
        n += 1
    slope = sum_xy / sum_xx
    intercept = (sum_y - slope * sum_x) / n
    return intercept + slope * 11.0


@compiled
def _median(values: Floats) -> float:
    ordered = np.sort(values)
    n = ordered.size
    if n % 2 == 1:
        return ordered[n // 2]
    return (ordered[n // 2 - 1] + ordered[n // 2]) / 2.0


@compiled
def _overloaded(
    method: int,
    parameter: float,
    vms: Ints,
    count: int,
    extra: int,
    total: float,
    demand: Floats,
    history_mips: Floats,
    newest_to_last_busy: Ints,
    work: Floats,
) -> bool:
    """Whether a host with ``vms[:count]``, and ``extra`` unless -1, is overloaded."""
    asked = 0.0
    samples = 1
    for i in range(count):
        asked += demand[vms[i]]
        samples = max(samples, newest_to_last_busy[vms[i]])
    if extra >= 0:
        asked += demand[extra]
        samples = max(samples, newest_to_last_busy[extra])
    if method == THR:
        return asked / total > parameter
    if method == LR:
        if samples < 10:
            return asked / total > 0.7
        used = 10
    else:
        if samples < 12:
            return asked / total > 0.7
        used = samples
    for t in range(used):
        work[t] = 0.0
    for i in range(count):
        vm = vms[i]
        for t in range(used):
            work[t] += history_mips[vm, t] / total
    if extra >= 0:
        for t in range(used):
            work[t] += history_mips[extra, t] / total
    if method == LR:
        return _line_at_next(work) * parameter >= 1.0
    if method == IQR:
        ordered = np.sort(work[:used])
        first = int(np.floor(0.25 * (used + 1) + 0.5)) - 1
        third = int(np.floor(0.75 * (used + 1) + 0.5)) - 1
        return asked / total > 1.0 - parameter * (ordered[third] - ordered[first])
    middle = _median(work[:used])
    return asked / total > 1.0 - parameter * _median(np.abs(work[:used] - middle))


@compiled
def _free_and_used(
    vms: Ints, count: int, core: float, total: float, demand: Floats
) -> tuple[float, float]:
    """MIPS still free on a host, and MIPS served, with ``vms[:count]``."""
    needed = 0.0
    for i in range(count):
        needed += min(demand[vms[i]], core)
    if needed <= total:
        free = total
        for i in range(count):
            free -= min(demand[vms[i]], core)
        return free, needed
    served = 0.0
    for i in range(count):
        served += np.floor(min(demand[vms[i]], core) * (total / needed))
    return 0.0, served


@compiled
def _find_host(
    vm: int,
    excluded: Bools,
    method: int,
    parameter: float,
    seats: Ints,
    counts: Ints,
    free: Floats,
    used: Floats,
    start_w: Floats,
    core_mips: Floats,
    total_mips: Floats,
    power_w: Floats,
    demand: Floats,
    history_mips: Floats,
    newest_to_last_busy: Ints,
    work: Floats,
) -> int:
    best = -1
    least = np.inf
    asked = demand[vm]
    seen_empty = np.zeros(2, dtype=np.bool_)
    for host in range(total_mips.size):
        if excluded[host]:
            continue
        if counts[host] == 0:
            if seen_empty[host % 2]:
                continue
            seen_empty[host % 2] = True
        if asked > core_mips[host] or asked > free[host]:
            continue
        total = total_mips[host]
        rise = _watts(power_w[host], (used[host] + asked) / total) - start_w[host]
        if rise >= least:
            continue
        if used[host] != 0 and _overloaded(
            method,
            parameter,
            seats[host],
            counts[host],
            vm,
            total,
            demand,
            history_mips,
            newest_to_last_busy,
            work,
        ):
            continue
        least = rise
        best = host
    return best


@compiled
def _plan(
    method: int,
    parameter: float,
    seats: Ints,
    counts: Ints,
    host_mips: Floats,
    core_mips: Floats,
    total_mips: Floats,
    power_w: Floats,
    demand: Floats,
    ram_mb: Floats,
    history_mips: Floats,
    newest_to_last_busy: Ints,
) -> tuple[Ints, Ints]:
    hosts = total_mips.size
    work = np.zeros(30)
    overloaded = np.zeros(hosts, dtype=np.bool_)
    free = np.zeros(hosts)
    used = np.zeros(hosts)
    start_w = np.zeros(hosts)
    for host in range(hosts):
        overloaded[host] = _overloaded(
            method,
            parameter,
            seats[host],
            counts[host],
            -1,
            total_mips[host],
            demand,
            history_mips,
            newest_to_last_busy,
            work,
        )
        start_w[host] = _watts(power_w[host], host_mips[host] / total_mips[host])
        free[host], used[host] = _free_and_used(
            seats[host], counts[host], core_mips[host], total_mips[host], demand
        )
    moving = np.empty(demand.size * 2, dtype=np.int64)
    moved = 0
    for host in range(hosts):
        if not overloaded[host]:
            continue
        while counts[host] > 0:
            pick = 0
            for i in range(1, counts[host]):
                if ram_mb[seats[host, i]] < ram_mb[seats[host, pick]]:
                    pick = i
            moving[moved] = seats[host, pick]
            moved += 1
            for i in range(pick, counts[host] - 1):
                seats[host, i] = seats[host, i + 1]
            counts[host] -= 1
            if not _overloaded(
                method,
                parameter,
                seats[host],
                counts[host],
                -1,
                total_mips[host],
                demand,
                history_mips,
                newest_to_last_busy,
                work,
            ):
                break
    plan_vm = np.empty(demand.size * 2, dtype=np.int64)
    plan_host = np.empty(demand.size * 2, dtype=np.int64)
    planned = 0
    order = np.argsort(-demand[moving[:moved]], kind="mergesort")
    for i in range(moved):
        vm = moving[order[i]]
        host = _find_host(
            vm,
            overloaded,
            method,
            parameter,
            seats,
            counts,
            free,
            used,
            start_w,
            core_mips,
            total_mips,
            power_w,
            demand,
            history_mips,
            newest_to_last_busy,
            work,
        )
        if host < 0:
            continue
        seats[host, counts[host]] = vm
        counts[host] += 1
        free[host], used[host] = _free_and_used(
            seats[host], counts[host], core_mips[host], total_mips[host], demand
        )
        plan_vm[planned] = vm
        plan_host[planned] = host
        planned += 1
    seen = overloaded.copy()
    closed = overloaded.copy()
    for host in range(hosts):
        if host_mips[host] == 0:
            seen[host] = True
            closed[host] = True
    while True:
        source = -1
        lowest = 1.0
        for host in range(hosts):
            if seen[host]:
                continue
            utilisation = host_mips[host] / total_mips[host]
            if 0.0 < utilisation < lowest:
                lowest = utilisation
                source = host
        if source < 0:
            break
        seen[source] = True
        closed[source] = True
        leaving = seats[source, : counts[source]].copy()
        order = np.argsort(-demand[leaving], kind="mergesort")
        first = planned
        for i in range(leaving.size):
            vm = leaving[order[i]]
            host = _find_host(
                vm,
                closed,
                method,
                parameter,
                seats,
                counts,
                free,
                used,
                start_w,
                core_mips,
                total_mips,
                power_w,
                demand,
                history_mips,
                newest_to_last_busy,
                work,
            )
            if host < 0:
                for back in range(planned - 1, first - 1, -1):
                    target = plan_host[back]
                    counts[target] -= 1
                    free[target], used[target] = _free_and_used(
                        seats[target], counts[target], core_mips[target], total_mips[target], demand
                    )
                planned = first
                break
            seats[host, counts[host]] = vm
            counts[host] += 1
            free[host], used[host] = _free_and_used(
                seats[host], counts[host], core_mips[host], total_mips[host], demand
            )
            plan_vm[planned] = vm
            plan_host[planned] = host
            planned += 1
        for i in range(first, planned):
            seen[plan_host[i]] = True
    return plan_vm[:planned], plan_host[:planned]


def first_places(fleet: Fleet, power_aware: bool = True) -> Ints:
    """Where CloudSim creates the VMs, in index order: full speed and memory are reserved.

    Power-aware best fit takes the host whose power rises least over an idle one's; otherwise the
    first with room. -1 where there is none.
    """
    hosts = fleet.total_mips.size
    free = fleet.total_mips.copy()
    ram = np.full(hosts, float(HOST_RAM_MB))
    idle_w = fleet.power_w[:, 0]
    places = np.full(fleet.vm_mips.size, -1, dtype=np.int64)
    for vm, mips in enumerate(fleet.vm_mips):
        fits = (fleet.core_mips >= mips) & (free >= mips) & (ram >= fleet.ram_mb[vm])
        if not fits.any():
            continue
        if power_aware:
            after = (fleet.total_mips - free + mips) / fleet.total_mips
            rise = np.where(fits, fleet.watts(after) - idle_w, np.inf)
            host = int(np.argmin(rise))
        else:
            host = int(np.argmax(fits))
        places[vm] = host
        free[host] -= mips
        ram[host] -= fleet.ram_mb[vm]
    return places


@dataclass(slots=True)
class History:
    """The last thirty demands of each VM at decisions, newest first, as fractions of its speed."""

    samples: Floats

    def push(self, utilisation: Floats) -> None:
        self.samples[:, 1:] = self.samples[:, :-1]
        self.samples[:, 0] = utilisation


@dataclass(frozen=True, slots=True)
class Published:
    """One of the published policies."""

    name: str
    method: int
    parameter: float

    def plan(self, world: World, history: History) -> tuple[Ints, Ints]:
        """VMs to move and their targets, in the order in which CloudSim starts them."""
        fleet = world.fleet
        hosts = fleet.total_mips.size
        order = np.argsort(world.seat_host, kind="stable")
        counts = np.bincount(world.seat_host, minlength=hosts)
        seats = np.full((hosts, fleet.vm_mips.size), -1, dtype=np.int64)
        position = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
        seats[world.seat_host[order], position] = world.seat_vm[order]
        busy = history.samples != 0
        last_busy = np.where(busy.any(axis=1), HISTORY - np.argmax(busy[:, ::-1], axis=1), 1)
        vms, targets = _plan(
            self.method,
            self.parameter,
            seats,
            counts.astype(np.int64),
            world.host_mips,
            fleet.core_mips,
            fleet.total_mips,
            fleet.power_w,
            world.demand,
            fleet.ram_mb,
            history.samples * fleet.vm_mips[:, None],
            last_busy.astype(np.int64),
        )
        return vms, targets


PUBLISHED: Final = {
    "thr": Published("thr", THR, 0.8),
    "iqr": Published("iqr", IQR, 1.5),
    "mad": Published("mad", MAD, 2.5),
    "lr": Published("lr", LR, 1.2),
}

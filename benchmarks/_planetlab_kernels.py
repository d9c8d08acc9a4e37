"""The published policies' decision, compiled; ``_planetlab_reference`` says what they do and why.

Rounding follows CloudSim operation by operation: the rise in power of two hosts is often equal but
for rounding, and which of them is chosen decides how the rest of the day goes.
"""

from typing import Final, NamedTuple

import numpy as np

from benchmarks._planetlab_world import Bools, Floats, Ints
from snooze.scheduling.packing_jit import compiled

THR: Final = 0
IQR: Final = 1
MAD: Final = 2
LR: Final = 3

HISTORY: Final = 30
FALLBACK: Final = 0.7
SPREAD_SAMPLES: Final = 12
LINE_SAMPLES: Final = 10


class Step(NamedTuple):
    """One decision in progress.

    Attributes:
        method, parameter: the detector.
        seats, counts: ``int64[H, V]``, ``int64[H]``: the VMs of each host, in its order.
        free, used: ``float64[H]``: MIPS left and served with the VMs planned so far.
        start_w: ``float64[H]``: power when the decision began.
        host_mips, core_mips, total_mips, power_w: of the hosts.
        demand, ram_mb: of the VMs.
        history_mips: ``float64[V, 30]``, newest first.
        busy: ``int64[V]``, samples up to the oldest that is not zero.
        work: ``float64[30]``, scratch.
    """

    method: int
    parameter: float
    seats: Ints
    counts: Ints
    free: Floats
    used: Floats
    start_w: Floats
    host_mips: Floats
    core_mips: Floats
    total_mips: Floats
    power_w: Floats
    demand: Floats
    ram_mb: Floats
    history_mips: Floats
    busy: Ints
    work: Floats


@compiled
def watts(power_w: Floats, utilisation: float) -> float:
    """Linear between the eleven points of ``power_w``."""
    load = min(utilisation, 1.0)
    if load % 0.1 == 0:
        return float(power_w[int(load * 10)])
    below = int(np.floor(load * 10))
    above = int(np.ceil(load * 10))
    step = (power_w[above] - power_w[below]) / 10
    return float(power_w[below] + step * (load - below / 10) * 100)


@compiled
def line_at_next(samples: Floats) -> float:
    """Least squares over ten samples, newest first, one step beyond the newest.

    Accumulated as Apache Commons Math does.
    """
    mean_x = mean_y = sum_x = sum_y = sum_xx = sum_xy = 0.0
    for n in range(LINE_SAMPLES):
        x = n + 1.0
        y = samples[LINE_SAMPLES - 1 - n]
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
    slope = sum_xy / sum_xx
    return float((sum_y - slope * sum_x) / LINE_SAMPLES + slope * (LINE_SAMPLES + 1.0))


@compiled
def median(values: Floats) -> float:
    """The middle value, or the mean of the two."""
    ordered = np.sort(values)
    n = ordered.size
    if n % 2 == 1:
        return float(ordered[n // 2])
    return float((ordered[n // 2 - 1] + ordered[n // 2]) / 2.0)


@compiled
def quartile_range(values: Floats) -> float:
    """Third less first quartile; ranks rounded half up."""
    ordered = np.sort(values)
    n = ordered.size
    first = int(np.floor(0.25 * (n + 1) + 0.5)) - 1
    third = int(np.floor(0.75 * (n + 1) + 0.5)) - 1
    return float(ordered[third] - ordered[first])


@compiled
def _history(step: Step, host: int, extra: int, used: int) -> Floats:
    """The newest ``used`` utilisations of ``host``: sums over the VMs that are on it now."""
    total = step.total_mips[host]
    work = step.work[:used]
    work[:] = 0.0
    for i in range(step.counts[host]):
        vm = step.seats[host, i]
        for t in range(used):
            work[t] += step.history_mips[vm, t] / total
    if extra >= 0:
        for t in range(used):
            work[t] += step.history_mips[extra, t] / total
    return work


@compiled
def _overloaded(step: Step, host: int, extra: int) -> bool:
    """Whether ``host`` is overloaded, with VM ``extra`` on it as well unless that is -1."""
    asked = 0.0
    samples = 1
    for i in range(step.counts[host]):
        vm = step.seats[host, i]
        asked += step.demand[vm]
        samples = max(samples, int(step.busy[vm]))
    if extra >= 0:
        asked += step.demand[extra]
        samples = max(samples, int(step.busy[extra]))
    utilisation = asked / step.total_mips[host]
    if step.method == THR:
        return bool(utilisation > step.parameter)
    if step.method == LR:
        if samples < LINE_SAMPLES:
            return bool(utilisation > FALLBACK)
        history = _history(step, host, extra, LINE_SAMPLES)
        return bool(line_at_next(history) * step.parameter >= 1.0)
    if samples < SPREAD_SAMPLES:
        return bool(utilisation > FALLBACK)
    history = _history(step, host, extra, samples)
    if step.method == IQR:
        spread = quartile_range(history)
    else:
        spread = median(np.abs(history - median(history)))
    return bool(utilisation > 1.0 - step.parameter * spread)


@compiled
def _settle(step: Step, host: int) -> None:
    """Recompute what is free and used on ``host``."""
    core = step.core_mips[host]
    total = step.total_mips[host]
    free = total
    needed = 0.0
    for i in range(step.counts[host]):
        capped = min(step.demand[step.seats[host, i]], core)
        needed += capped
        free -= capped
    if needed <= total:
        step.free[host] = free
        step.used[host] = needed
        return
    served = 0.0
    for i in range(step.counts[host]):
        served += np.floor(min(step.demand[step.seats[host, i]], core) * (total / needed))
    step.free[host] = 0.0
    step.used[host] = served


@compiled
def _seat(step: Step, host: int, vm: int) -> None:
    step.seats[host, step.counts[host]] = vm
    step.counts[host] += 1
    _settle(step, host)


@compiled
def _find_host(step: Step, vm: int, closed: Bools) -> int:
    """The host not closed whose power rises least with ``vm``, or -1; the first of equals.

    Empty hosts of a kind are all alike: only the first is looked at.
    """
    best = -1
    least = np.inf
    asked = step.demand[vm]
    seen_empty = np.zeros(2, dtype=np.bool_)
    for host in range(step.total_mips.size):
        if closed[host]:
            continue
        if step.counts[host] == 0:
            if seen_empty[host % 2]:
                continue
            seen_empty[host % 2] = True
        if asked > step.core_mips[host] or asked > step.free[host]:
            continue
        after = (step.used[host] + asked) / step.total_mips[host]
        rise = watts(step.power_w[host], after) - step.start_w[host]
        if rise < least and (step.used[host] == 0 or not _overloaded(step, host, vm)):
            least = rise
            best = host
    return best


@compiled
def _take_off_overloaded(step: Step, overloaded: Bools, leaving: Ints) -> int:
    """Write into ``leaving`` the VMs of least memory until each host is content; their number."""
    count = 0
    for host in range(overloaded.size):
        if not overloaded[host]:
            continue
        while step.counts[host] > 0:
            pick = 0
            for i in range(1, step.counts[host]):
                if step.ram_mb[step.seats[host, i]] < step.ram_mb[step.seats[host, pick]]:
                    pick = i
            leaving[count] = step.seats[host, pick]
            count += 1
            for i in range(pick, step.counts[host] - 1):
                step.seats[host, i] = step.seats[host, i + 1]
            step.counts[host] -= 1
            if not _overloaded(step, host, -1):
                break
    return count


@compiled
def _least_used(step: Step, seen: Bools) -> int:
    source = -1
    lowest = 1.0
    for host in range(seen.size):
        if not seen[host]:
            utilisation = step.host_mips[host] / step.total_mips[host]
            if 0.0 < utilisation < lowest:
                lowest = utilisation
                source = host
    return source


@compiled
def _empty(step: Step, source: int, closed: Bools, moves: Ints, planned: int) -> int:
    """Plan all VMs of ``source`` elsewhere, or none; the number of moves planned by then."""
    leaving = step.seats[source, : step.counts[source]].copy()
    order = np.argsort(-step.demand[leaving], kind="mergesort")
    reached = planned
    for i in range(leaving.size):
        vm = int(leaving[order[i]])
        host = _find_host(step, vm, closed)
        if host < 0:
            for back in range(reached - 1, planned - 1, -1):
                step.counts[moves[back, 1]] -= 1
                _settle(step, moves[back, 1])
            return planned
        _seat(step, host, vm)
        moves[reached, 0] = vm
        moves[reached, 1] = host
        reached += 1
    return reached


@compiled
def decide(step: Step) -> Ints:
    """``int64[M, 2]``: VM and target of each migration, in the order of their start."""
    hosts = step.total_mips.size
    overloaded = np.zeros(hosts, dtype=np.bool_)
    for host in range(hosts):
        overloaded[host] = _overloaded(step, host, -1)
        step.start_w[host] = watts(step.power_w[host], step.host_mips[host] / step.total_mips[host])
        _settle(step, host)
    leaving = np.empty(step.demand.size, dtype=np.int64)
    count = _take_off_overloaded(step, overloaded, leaving)
    moves = np.empty((2 * step.demand.size, 2), dtype=np.int64)
    planned = 0
    order = np.argsort(-step.demand[leaving[:count]], kind="mergesort")
    for i in range(count):
        vm = int(leaving[order[i]])
        target = _find_host(step, vm, overloaded)
        if target >= 0:
            _seat(step, target, vm)
            moves[planned, 0] = vm
            moves[planned, 1] = target
            planned += 1
    seen = overloaded | (step.host_mips == 0)
    closed = seen.copy()
    while True:
        source = _least_used(step, seen)
        if source < 0:
            return moves[:planned]
        seen[source] = True
        closed[source] = True
        reached = _empty(step, source, closed, moves, planned)
        for i in range(planned, reached):
            seen[moves[i, 1]] = True
        planned = reached

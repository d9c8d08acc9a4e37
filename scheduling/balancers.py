"""Which VMs should leave their host, and where they may go: advice, not yet moves.

Advice is turned into moves by ``balancing.py``, with the policy's own filters and weights. Load is
``Snapshot.load``, the measured one; a VM's part in it is taken to be its demand.

Source: oVirt's cluster policies (evenly distributed, power saving, VM evenly distributed) and their
properties, whose names and defaults are kept.
"""

from typing import Final

import numpy as np

from snooze.common.resources import KIB_PER_MIB, Axis, FloatArray
from snooze.scheduling.filters import HIGH_UTILIZATION, HOSTS_IN_RESERVE
from snooze.scheduling.snapshot import BoolArray, IntArray, Snapshot, accepting, count_vms
from snooze.scheduling.units import (
    Advice,
    Balancer,
    Properties,
    Property,
    PropertyKind,
    number,
)

NUMBER: Final = PropertyKind.NUMBER
WHOLE: Final = PropertyKind.WHOLE
FLAG: Final = PropertyKind.FLAG
TEXT: Final = PropertyKind.TEXT


def cpu_percent(snapshot: Snapshot, load: FloatArray | None = None) -> FloatArray:
    """``float64[H]``: CPU load in percent, measured unless given; 0 for a host without CPU."""
    load = snapshot.load if load is None else load
    if not snapshot.axes:
        return np.zeros(snapshot.hosts)
    capacity = snapshot.capacity[:, Axis.CPU]
    usable = capacity > 0
    return np.where(usable, 100.0 * load[:, Axis.CPU], 0.0) / np.where(usable, capacity, 1.0)


def free_memory_mib(snapshot: Snapshot, load: FloatArray | None = None) -> FloatArray:
    """``float64[H]``: memory not in use, measured unless given; endless without that axis."""
    load = snapshot.load if load is None else load
    if len(snapshot.axes) <= Axis.MEMORY:
        return np.full(snapshot.hosts, np.inf)
    left: FloatArray = snapshot.capacity[:, Axis.MEMORY] - load[:, Axis.MEMORY]
    return left / KIB_PER_MIB


def pressure(snapshot: Snapshot, properties: Properties, load: FloatArray) -> FloatArray:
    """``float64[H]``: how near each host is to overload, by CPU or memory; above 1 it is over."""
    cpu = cpu_percent(snapshot, load) / number(properties, "HighUtilization")
    least_mib = number(properties, "MaxFreeMemoryForOverUtilized")
    if not least_mib:
        return cpu
    return np.maximum(cpu, least_mib / np.maximum(free_memory_mib(snapshot, load), 1e-9))


def _overloaded(snapshot: Snapshot, properties: Properties) -> BoolArray:
    """Hosts overloaded for long enough to act: a peak is no reason to migrate."""
    patience_s = 60.0 * number(properties, "CpuOverCommitDurationMinutes")
    cpu = cpu_percent(snapshot) > number(properties, "HighUtilization")
    hot: BoolArray = cpu & (snapshot.overload_s >= patience_s)
    least = number(properties, "MaxFreeMemoryForOverUtilized")
    short: BoolArray = free_memory_mib(snapshot) < least
    return accepting(snapshot) & (hot | short)


def _takers(snapshot: Snapshot, properties: Properties) -> BoolArray:
    """Hosts that may receive: calm, and with memory to spare."""
    calm = cpu_percent(snapshot) < number(properties, "HighUtilization")
    roomy = free_memory_mib(snapshot) > number(properties, "MinFreeMemoryForUnderUtilized")
    least = free_memory_mib(snapshot) >= number(properties, "MaxFreeMemoryForOverUtilized")
    takers: BoolArray = accepting(snapshot) & calm & roomy & least
    return takers


def movable_on(snapshot: Snapshot, host: int) -> IntArray:
    """VMs on ``host`` that may be migrated."""
    here = (snapshot.placement == host) & snapshot.movable & snapshot.vm_ok
    return np.flatnonzero(here & (snapshot.pin != host))


def _cheapest_relief(snapshot: Snapshot, host: int, properties: Properties) -> tuple[int, ...]:
    """VMs of an overloaded host in the order in which to try them.

    First those whose leaving alone ends the overload, the least memory to copy first; then the
    others, the largest part of the load first.
    """
    vms = movable_on(snapshot, host)
    cpu = snapshot.demand[vms, Axis.CPU] if len(snapshot.axes) else np.zeros(len(vms))
    bound = snapshot.capacity[host, Axis.CPU] * number(properties, "HighUtilization") / 100.0
    enough = cpu >= snapshot.load[host, Axis.CPU] - bound
    order = np.lexsort((vms, np.where(enough, snapshot.memory_kib[vms], -cpu), ~enough))
    return tuple(vms[order].tolist())


def _relieve(snapshot: Snapshot, properties: Properties) -> list[Advice]:
    percent = cpu_percent(snapshot)
    hot = np.flatnonzero(_overloaded(snapshot, properties))
    targets = tuple(np.flatnonzero(_takers(snapshot, properties)).tolist())
    advice: list[Advice] = []
    for host in hot[np.argsort(-percent[hot], kind="stable")].tolist():
        vms = _cheapest_relief(snapshot, host, properties)
        why = f"overloaded: {percent[host]:.0f} % of CPU"
        if vms and targets:
            advice.append(Advice(host, vms, targets, why))
    return advice


def _evenly_distributed(snapshot: Snapshot, properties: Properties) -> list[Advice]:
    return _relieve(snapshot, properties)


def _power_saving(snapshot: Snapshot, properties: Properties) -> list[Advice]:
    """Relief first; only when nobody is overloaded are quiet hosts emptied.

    A quiet host goes to busier ones only, so that two quiet hosts never swap their VMs.
    """
    advice = _relieve(snapshot, properties)
    if advice or _overloaded(snapshot, properties).any():
        return advice
    percent = cpu_percent(snapshot)
    counts = count_vms(snapshot)
    running = accepting(snapshot) & (counts > 0)
    quiet = np.flatnonzero(running & (percent < number(properties, "LowUtilization")))
    takers = np.flatnonzero(running & _takers(snapshot, properties))
    order = quiet[np.lexsort((-quiet, percent[quiet]))].tolist()
    for host in order:
        vms = movable_on(snapshot, host)
        if len(vms) < counts[host]:
            continue
        busier = takers[
            (percent[takers] > percent[host])
            | ((percent[takers] == percent[host]) & (takers < host))
        ]
        if busier.size:
            vms = vms[np.argsort(-snapshot.demand[vms, Axis.CPU], kind="stable")]
            why = f"underloaded: {percent[host]:.0f} % of CPU"
            advice.append(
                Advice(host, tuple(vms.tolist()), tuple(busier.tolist()), why, all_or_nothing=True)
            )
    return advice


def _vm_evenly_distributed(snapshot: Snapshot, properties: Properties) -> list[Advice]:
    counts = count_vms(snapshot)
    active = np.flatnonzero(accepting(snapshot))
    crowded = active[counts[active] > number(properties, "HighVmCount")]
    # A difference of one would only change sides.
    gap = max(2.0, number(properties, "MigrationThreshold"))
    advice: list[Advice] = []
    for host in crowded[np.argsort(-counts[crowded], kind="stable")].tolist():
        targets = active[counts[host] - counts[active] >= gap]
        vms = movable_on(snapshot, host)
        if targets.size and vms.size:
            vms = vms[np.argsort(snapshot.memory_kib[vms], kind="stable")]
            why = f"{counts[host]} VMs"
            advice.append(Advice(host, tuple(vms.tolist()), tuple(targets.tolist()), why))
    return advice


_UTILISATION: Final = (
    HIGH_UTILIZATION,
    Property("CpuOverCommitDurationMinutes", 2.0, low=0.0, high=1440.0),
    Property("MaxFreeMemoryForOverUtilized", 0.0, low=0.0, high=1e12, summary="MiB; 0: off."),
    Property("MinFreeMemoryForUnderUtilized", 0.0, low=0.0, high=1e12, summary="MiB; 0: off."),
)

BUILT_IN: Final = (
    Balancer(
        "evenly_distributed",
        _evenly_distributed,
        _UTILISATION,
        "VMs leave hosts that have been overloaded for some time.",
    ),
    Balancer(
        "power_saving",
        _power_saving,
        (
            *_UTILISATION,
            Property("LowUtilization", 20.0, low=0.0, high=99.0),
            HOSTS_IN_RESERVE,
            Property("EnableAutomaticHostPowerManagement", True, FLAG),
        ),
        "As above; hosts below LowUtilization are emptied, empty ones beyond the reserve sleep.",
    ),
    Balancer(
        "vm_evenly_distributed",
        _vm_evenly_distributed,
        (
            Property("HighVmCount", 10, WHOLE, 0, 1e6),
            Property("MigrationThreshold", 5, WHOLE, 1, 1e6),
        ),
        "VMs leave hosts with more than HighVmCount VMs, if others have far fewer.",
    ),
)

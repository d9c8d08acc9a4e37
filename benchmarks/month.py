"""A simulated month of PlanetLab load through the cores of manager and leader, in virtual time.

The days of traces follow one another, again and again; hosts fail now and then and take 300 s to
wake. Four runs: nothing is decided by itself; everything is; guests come and go through the day as
the traces' total does, on hosts without overcommitment; the same with anticipation. Measured are
energy, what was not served, migrations, and decisions that left the cluster worse than doing
nothing (``_month_judge``). The world's rules are in ``_month_world``.

``python -m benchmarks month --data ../shared/data [--days 30] [--plot docs/benchmarks]``
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from benchmarks import _report
from benchmarks._month_fleet import PERIOD_S, Fleet, Floats, History, Ints
from benchmarks._month_judge import harmful_naps, judge, returns
from benchmarks._month_plot import plot
from benchmarks._month_world import Month
from benchmarks._planetlab_world import HOST_MIPS, HOST_POWER_W, VM_MIPS, VM_RAM_MB
from snooze.common.decisions import DecisionKind, DecisionState
from snooze.common.settings_autonomy import AutonomySettings, RelocationSettings
from snooze.common.settings_energy import EnergySettings
from snooze.common.settings_groupmanager import (
    GroupManagerMonitoringSettings,
    GroupManagerSettings,
    OvercommitSettings,
    PlacementSettings,
)

SLOTS: Final = 288
CORES_PER_HOST: Final = 2
MIPS_PER_CORE: Final = 1000.0
SMOOTH: Final = 12
FEWEST: Final = 0.4
"""Of the guests in the quietest hour of the month, where they come and go."""
OVERCOMMIT: Final = 4.0
"""Cores promised per core: the traces use an eighth of what their sizes ask for, and an operator
who wants to profit from that promises more than there is."""


def fleet_of(folder: Path, days: int, hosts: int, vms: int) -> Fleet:
    """Hosts and guests as in the planetlab benchmark, fewer; day by day the next trace."""
    paths = sorted(folder.glob("planetlab/*.npz"))
    if not paths:
        raise SystemExit(f"no planetlab/*.npz in {folder}")
    traces: list[np.ndarray[Any, np.dtype[np.float64]]] = []
    for path in paths:
        with np.load(path, allow_pickle=False) as day:
            percent = day["utilisation_percent"].astype(np.float64)
        rows = np.linspace(0, len(percent) - 1, vms).round().astype(np.int64)
        traces.append(percent[rows] / 100)
    kind = np.arange(hosts) % len(HOST_MIPS)
    size = np.arange(vms) % len(VM_MIPS)
    asked = np.array(VM_MIPS)[size] / MIPS_PER_CORE
    use = np.concatenate([traces[day % len(traces)] for day in range(days)], axis=1)
    return Fleet(
        cores=np.array(HOST_MIPS)[kind] * CORES_PER_HOST / MIPS_PER_CORE,
        power_w=np.array(HOST_POWER_W)[kind],
        asked=asked,
        memory_kib=np.array(VM_RAM_MB, dtype=np.float64)[size] * 1024,
        use=use * asked[:, None],
    )


def wanted_of(fleet: Fleet) -> Ints:
    """How many guests there are in each period: they come and go as the traces' total does."""
    used: Floats = fleet.use.sum(axis=0)
    window: Floats = np.full(SMOOTH, 1 / SMOOTH)
    total: Floats = np.convolve(used, window, mode="same")
    low, high = float(np.percentile(total, 1)), float(np.percentile(total, 99))
    share: Floats = np.clip((total - low) / (high - low), 0.0, 1.0)
    count: Floats = (FEWEST + (1 - FEWEST) * share) * fleet.asked.size
    return np.rint(count).astype(np.int64)


def settings_of(
    *, decides: bool, anticipates: bool, overcommit: float = OVERCOMMIT
) -> GroupManagerSettings:
    """The defaults, but for the step of the traces and what a wake-up takes here."""
    mode: Literal["auto", "off"] = "auto" if decides else "off"
    return GroupManagerSettings(
        monitoring=GroupManagerMonitoringSettings(interval_s=PERIOD_S),
        placement=PlacementSettings(overcommit=OvercommitSettings(cpu=overcommit)),
        autonomy=AutonomySettings(
            overload=mode, underload=mode, consolidation="off", interval_s=PERIOD_S
        ),
        relocation=RelocationSettings(samples=12, forecast_s=3600.0),
        energy=EnergySettings(
            enabled=decides,
            wake_timeout_s=900.0,
            anticipation=anticipates,
        ),
    )


def figures(month: Month) -> dict[str, Any]:
    """What came of one run."""
    meters = month.meters
    verdicts = judge(month)
    kinds = {
        kind.value: sum(each.kind is kind for each in month.decisions.values())
        for kind in DecisionKind
    }
    failed = sum(each.state is DecisionState.FAILED for each in month.decisions.values())
    return {
        "kwh": meters.energy_j / 3.6e6,
        "unserved_percent": 100 * meters.unserved / meters.asked,
        "lost_to_migration_percent": 100 * meters.lost_to_migration / meters.asked,
        "slatah_percent": 100 * meters.hot_s / meters.active_s,
        "stopped_percent": 100 * meters.stopped / meters.asked,
        "submitted": len(month.waits_s),
        "waited_over_a_minute": sum(wait > 60 for wait in month.waits_s),
        "mean_wait_s": float(np.mean(month.waits_s)) if month.waits_s else 0.0,
        "migrations": len(month.moves),
        "sleeps": meters.sleeps,
        "wakes": meters.wakes,
        "failures": meters.failures,
        "restarts": meters.restarts,
        "judged": len(verdicts),
        "harmful": sum(each.is_harmful for each in verdicts),
        "worse_at_all": sum(each.is_worse for each in verdicts),
        "gained_kwh": sum(each.otherwise - each.cost for each in verdicts),
        "harmful_naps": harmful_naps(month),
        "returns": returns(month),
        "failed_decisions": failed,
        "decisions": {kind: count for kind, count in kinds.items() if count},
        "worst": [
            msgspec.to_builtins(month.decisions[each.decision_id].reason)
            for each in sorted(verdicts, key=lambda each: each.otherwise - each.cost)[:3]
            if each.is_harmful
        ],
    }


def run(
    fleet: Fleet,
    failures_per_day: float,
    seed: int,
    *,
    decides: bool,
    anticipates: bool = False,
    comes_and_goes: bool = False,
) -> tuple[dict[str, Any], History]:
    """One run: its figures and its history."""
    began_s = time.process_time()
    settings = settings_of(
        decides=decides,
        anticipates=anticipates,
        overcommit=1.0 if comes_and_goes else OVERCOMMIT,
    )
    start: Ints = np.arange(fleet.asked.size) % fleet.cores.size
    wanted = wanted_of(fleet) if comes_and_goes else None
    month = Month(fleet, settings, start, failures_per_day, seed, wanted)
    month.run()
    return {**figures(month), "cpu_s": time.process_time() - began_s}, month.history


RUNS: Final = {
    "nothing decided": {"decides": False},
    "decided": {"decides": True},
    "arrivals": {"decides": True, "comes_and_goes": True},
    "arrivals anticipated": {"decides": True, "comes_and_goes": True, "anticipates": True},
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks month", description=__doc__)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--vms", type=int, default=40)
    parser.add_argument("--failures", type=float, default=0.4, help="of hosts, a day")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--output")
    options = parser.parse_args(arguments)
    fleet = fleet_of(options.data, options.days, options.hosts, options.vms)
    result: dict[str, Any] = {"seed": options.seed}
    histories: dict[str, History] = {}
    with ProcessPoolExecutor(len(RUNS)) as pool:
        runs = {
            name: pool.submit(run, fleet, options.failures, options.seed, **kind)
            for name, kind in RUNS.items()
        }
        for name, done in runs.items():
            result[name], histories[name] = done.result()
    rows = [
        [key, *(result[name][key] for name in RUNS)]
        for key, value in result["decided"].items()
        if isinstance(value, int | float)
    ]
    print(
        f"{options.days} days of {SLOTS} steps, {options.hosts} hosts, {options.vms} VMs, "
        f"seed {options.seed}; {_report.machine()}"
    )
    print(_report.table(["figure", *RUNS], rows))
    for name in RUNS:
        print(name, result[name]["decisions"], *result[name]["worst"], sep="\n  ")
    if options.plot is not None:
        plot(histories, options.plot / "month.svg")
    _report.write(options.output, result)
    return 0

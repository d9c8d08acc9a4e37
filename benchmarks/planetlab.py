"""Dynamic consolidation of a day of PlanetLab VMs on 800 hosts: the field's standard benchmark.

    python -m benchmarks planetlab --data shared/data --output planetlab.json

Runs the policies published with CloudSim 3.0.3, compares them with CloudSim's own figures where
there are any (fidelity), and runs the product's default policy under the same rules (record). With
``--wake`` once more where sleep and waking up cost something; with ``--front`` also at other levels
of confidence, and draws the Pareto front. ``docs/benchmarks/planetlab.md`` explains and reports.

In the JSON ``slatah``, ``pdm`` and ``slav`` are fractions; ``esv`` is kWh times ``slav``.
"""

import argparse
import csv
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final, get_args

import numpy as np

from benchmarks import _planetlab_plot, _report
from benchmarks._planetlab_policy import Ours
from benchmarks._planetlab_reference import PUBLISHED, Published, first_places
from benchmarks._planetlab_world import (
    DECISIONS,
    PERIOD_S,
    START_S,
    Fleet,
    Ints,
    Mode,
    SleepyWorld,
    World,
    load_day,
)
from snooze.scheduling import relocation_predictive
from snooze.scheduling.relocation_round import Relocator

MODES: Final[tuple[Mode, ...]] = get_args(Mode)
DEFAULT: Final = "default"
POLICIES: Final = (*PUBLISHED, DEFAULT)
CONFIDENCES: Final = (0.0, 0.5, 2.0, 3.0)
REFERENCE: Final = "cloudsim-303-reference.csv"


@dataclass(frozen=True, slots=True)
class Run:
    """One policy on one day. ``seconds`` is the processor time of this one-threaded program."""

    mode: Mode
    day: str
    policy: str
    energy_kwh: float
    migrations: int
    slatah: float
    pdm: float
    slav: float
    esv: float
    shutdowns: int
    seconds: float
    unserved: float
    hosts: float
    wakes: int = 0
    asleep_kwh: float = 0.0
    waking_kwh: float = 0.0


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How far a run of ours is from CloudSim's, in percent; and how many times faster."""

    mode: Mode
    day: str
    policy: str
    energy_percent: float
    migrations_percent: float
    slav_percent: float
    times_faster: float

    @property
    def holds(self) -> bool:
        """Within 1 % of the energy, 2 % of the migrations, 5 % of SLAV, and 10 times faster."""
        return (
            self.energy_percent <= 1
            and self.migrations_percent <= 2
            and self.slav_percent <= 5
            and self.times_faster >= 10
        )


def main(arguments: list[str]) -> int:
    """Run the benchmark; 2 if there is nothing to run it on."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks planetlab", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="the data folder, or its planetlab"
    )
    parser.add_argument("--output", help="write the results here as JSON")
    parser.add_argument("--day", action="append", help="only this day; may be repeated")
    parser.add_argument("--mode", action="append", choices=MODES, help="may be repeated")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="may be repeated")
    parser.add_argument(
        "--wake", action="store_true", help="also with the cost of sleep and waking"
    )
    parser.add_argument("--asleep-w", type=float, default=5.0, help="watts of a sleeping host")
    parser.add_argument("--front", action="store_true", help="also other levels of confidence")
    parser.add_argument("--plot", type=Path, help="draw the fronts into this folder, as SVG")
    parser.add_argument("--check", action="store_true", help="prove every plan of ours; slower")
    options = parser.parse_args(arguments)
    try:
        fleets = _fleets(options.data, options.day)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        print(f"no traces: {error}", file=sys.stderr)
        return 2
    bench = _Bench(fleets, options.mode or MODES, options.policy or POLICIES, options.check)
    bench.warm_up()
    runs = bench.runs()
    _print(runs)
    report: dict[str, object] = {"runs": [asdict(run) for run in runs]}
    reference = _reference(options.data)
    fidelity = _fidelity(runs, reference)
    report["fidelity"] = [{**asdict(each), "holds": each.holds} for each in fidelity]
    _print_fidelity(fidelity)
    report["record"] = _record(runs, reference)
    floors = bench.floors()
    report["floors_kwh"] = [
        {"mode": mode, "day": day, "energy_kwh": floor} for (mode, day), floor in floors.items()
    ]
    front = bench.front() if options.front else []
    report["front"] = [asdict(run) for run in front]
    sleepy = bench.runs(options.asleep_w) if options.wake else []
    if sleepy:
        print(f"\nWith {PERIOD_S:.0f} s to wake up and {options.asleep_w:g} W asleep:")
        _print(sleepy)
    sleepy_front = bench.front(options.asleep_w) if options.wake and options.front else []
    report["wake_runs"] = [asdict(run) for run in sleepy]
    report["wake_front"] = [asdict(run) for run in sleepy_front]
    if options.plot:
        _planetlab_plot.draw(
            options.plot,
            _points(runs + front),
            floors,
            _points(sleepy + sleepy_front),
            bench.floors(options.asleep_w),
        )
    _report.write(options.output, report)
    return 0


class _Bench:
    """What to run."""

    def __init__(
        self, fleets: dict[str, Fleet], modes: Sequence[Mode], policies: Sequence[str], check: bool
    ) -> None:
        self.fleets = fleets
        self.modes = modes
        self.policies = policies
        self.check = check

    def warm_up(self) -> None:
        """Compile, or load what was compiled, so that no run pays for it."""
        few = Fleet.of(np.ones((8, 288), dtype=np.uint8), hosts=8)
        for policy in self.policies:
            world = World(few)
            world.place(first_places(few))
            world.advance(START_S + PERIOD_S)
            self._planner(few, policy, 0.0, None).plan(world)

    def runs(self, asleep_w: float | None = None) -> list[Run]:
        """Every policy on every day, in every mode."""
        return [
            self._run(mode, day, policy, asleep_w)
            for mode in self.modes
            for day in self.fleets
            for policy in self.policies
        ]

    def front(self, asleep_w: float | None = None) -> list[Run]:
        """The default policy at other levels of confidence."""
        return [
            self._run(mode, day, DEFAULT, asleep_w, confidence)
            for mode in self.modes
            for day in self.fleets
            for confidence in CONFIDENCES
        ]

    def floors(self, asleep_w: float = 0.0) -> dict[tuple[str, str], float]:
        """Energy below which no policy gets that serves everything: full hosts of the best kind.

        For every host its sleep, and for every MIPS the best host's watts above that.
        """
        return {
            (mode, day): _floor_kwh(fleet, mode, asleep_w)
            for mode in self.modes
            for day, fleet in self.fleets.items()
        }

    def _planner(
        self, fleet: Fleet, policy: str, asleep_w: float, confidence: float | None
    ) -> Ours | Published:
        if policy != DEFAULT:
            return Published(fleet, *PUBLISHED[policy])
        relocator = Relocator()
        if confidence is not None:
            relocator = Relocator(
                policy=replace(relocation_predictive.DEFAULT, confidence=confidence)
            )
        wake_s = PERIOD_S if asleep_w else 0.0
        return Ours(fleet, relocator, asleep_w=asleep_w, wake_s=wake_s, checked=self.check)

    def _run(
        self,
        mode: Mode,
        day: str,
        policy: str,
        asleep_w: float | None,
        confidence: float | None = None,
    ) -> Run:
        started = time.process_time()
        fleet = self.fleets[day]
        planner = self._planner(fleet, policy, asleep_w or 0.0, confidence)
        world = (
            World(fleet, mode) if asleep_w is None else SleepyWorld(fleet, mode, asleep_w=asleep_w)
        )
        world.place(first_places(fleet))
        now_s, running = START_S, 0
        for _ in range(DECISIONS):
            now_s += PERIOD_S
            world.advance(now_s)
            running += int((world.host_mips > 0).sum())
            if isinstance(world, SleepyWorld):
                _decide_sleepily(world, planner)
            else:
                world.migrate(*planner.plan(world))
        name = policy if confidence is None else f"{policy} {confidence:g}"
        return _measured(world, mode, day, name, time.process_time() - started, running)


def _decide_sleepily(world: SleepyWorld, planner: Ours | Published) -> None:
    """Start what was promised, plan, start what can start, and wake hosts for the rest."""
    due = world.kept_promises()
    if isinstance(planner, Ours):
        vms, targets = planner.plan(world, due)
    else:
        vms, targets = planner.plan(world)
        free = ~np.isin(vms, due[0])
        vms, targets = vms[free], targets[free]
    awake = world.carrying()
    awake[due[1]] = True
    now = awake[targets]
    later: tuple[Ints, Ints] = vms[~now], targets[~now]
    world.migrate(np.concatenate([due[0], vms[now]]), np.concatenate([due[1], targets[now]]))
    world.promise(*later)


def _measured(world: World, mode: Mode, day: str, policy: str, seconds: float, running: int) -> Run:
    meters = world.meters
    slav = meters.slatah * meters.pdm
    sleepy = world if isinstance(world, SleepyWorld) else None
    energy_kwh = sleepy.energy_kwh if sleepy else meters.energy_kwh
    return Run(
        mode=mode,
        day=day,
        policy=policy,
        energy_kwh=energy_kwh,
        migrations=meters.migrations,
        slatah=meters.slatah,
        pdm=meters.pdm,
        slav=slav,
        esv=energy_kwh * slav,
        shutdowns=meters.shutdowns,
        seconds=seconds,
        unserved=meters.unserved,
        hosts=running / DECISIONS,
        wakes=sleepy.wakes if sleepy else 0,
        asleep_kwh=sleepy.asleep_j / 3.6e6 if sleepy else 0.0,
        waking_kwh=sleepy.waking_j / 3.6e6 if sleepy else 0.0,
    )


def _floor_kwh(fleet: Fleet, mode: Mode, asleep_w: float) -> float:
    best_w = float(((fleet.power_w[:, -1] - asleep_w) / fleet.total_mips).min())
    asleep_j = asleep_w * fleet.total_mips.size * PERIOD_S
    there = np.ones(fleet.vm_mips.size, dtype=np.bool_)
    joules = 0.0
    for step in range(1, DECISIONS):
        demand = fleet.demand_mips(START_S + step * PERIOD_S)
        if mode == "compat":
            there &= demand > 0
        joules += float(demand[there].sum()) * best_w * PERIOD_S + asleep_j
    return joules / 3.6e6


def _folder(data: Path) -> Path:
    return data / "planetlab" if (data / "planetlab").is_dir() else data


def _fleets(data: Path, days: Sequence[str] | None) -> dict[str, Fleet]:
    """Every ``DAY.npz``, or those asked for."""
    found = {path.stem: path for path in sorted(_folder(data).glob("*.npz"))}
    missing = [day for day in days or () if day not in found]
    if missing or not found:
        what = f"day {missing[0]}" if missing else "DAY.npz"
        raise ValueError(f"there is no {what} in {_folder(data)}")
    return {day: load_day(path) for day, path in found.items() if not days or day in days}


Reference = Mapping[tuple[str, str, str], Mapping[str, str]]
"""CloudSim's figures, by mode, day and policy."""


def _reference(data: Path) -> Reference:
    """CloudSim's own figures; none if the file is not there."""
    path = _folder(data) / REFERENCE
    if not path.exists():
        return {}
    with path.open(newline="") as lines:
        return {(row["mode"], row["day"], row["policy"]): row for row in csv.DictReader(lines)}


def _fidelity(runs: Sequence[Run], reference: Reference) -> list[Fidelity]:
    found: list[Fidelity] = []
    for run in runs:
        row = reference.get((run.mode, run.day, run.policy))
        if row is not None:
            found.append(
                Fidelity(
                    run.mode,
                    run.day,
                    run.policy,
                    _off_percent(run.energy_kwh, float(row["energy_kwh"])),
                    _off_percent(run.migrations, float(row["migrations"])),
                    _off_percent(100 * run.slav, float(row["slav_pct"])),
                    float(row["wall_s"]) / run.seconds,
                )
            )
    return found


def _off_percent(ours: float, theirs: float) -> float:
    return 100 * abs(ours - theirs) / theirs


def _record(runs: Sequence[Run], reference: Reference) -> list[dict[str, object]]:
    """The default policy against LR-MMT, by mode; printed and returned.

    LR-MMT's figures are CloudSim's where there are any, else those of our own run of it.
    """
    lr = {(run.mode, run.day): run for run in runs if run.policy == "lr"}
    found: list[dict[str, object]] = []
    for mode in MODES:
        ours = [run for run in runs if run.mode == mode and run.policy == DEFAULT]
        energy: list[float] = []
        migrations: list[float] = []
        for run in ours:
            row = reference.get((mode, run.day, "lr"))
            theirs = lr.get((mode, run.day))
            if row is not None:
                energy.append(run.energy_kwh / float(row["energy_kwh"]))
                migrations.append(run.migrations / float(row["migrations"]))
            elif theirs is not None:
                energy.append(run.energy_kwh / theirs.energy_kwh)
                migrations.append(run.migrations / theirs.migrations)
        if energy:
            record = {
                "worst_energy_of_lr": max(energy),
                "worst_migrations_of_lr": max(migrations),
                "median_esv": median(run.esv for run in ours),
            }
            found.append({"mode": mode, **record})
            parts = ", ".join(f"{name} {value:.3g}" for name, value in record.items())
            print(f"\nrecord, {mode}: {parts}")
    return found


def _points(runs: Sequence[Run]) -> list[_planetlab_plot.Point]:
    """Means over the days, by mode and policy."""
    groups: dict[tuple[Mode, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.mode, run.policy), []).append(run)
    return [
        _planetlab_plot.Point(
            mode,
            policy,
            float(np.mean([run.energy_kwh for run in group])),
            float(np.mean([run.slav for run in group])),
        )
        for (mode, policy), group in groups.items()
    ]


def _print(runs: Sequence[Run]) -> None:
    columns = (
        "mode", "day", "policy", "kWh", "migrations", "SLATAH %", "PDM %", "SLAV", "ESV",
        "shutdowns", "unserved %", "hosts", "seconds",
    )  # fmt: skip
    rows = [
        (
            run.mode,
            run.day,
            run.policy,
            round(run.energy_kwh, 2),
            run.migrations,
            100 * run.slatah,
            100 * run.pdm,
            run.slav,
            run.esv,
            run.shutdowns,
            100 * run.unserved,
            run.hosts,
            run.seconds,
        )
        for run in runs
    ]
    print(_report.table(columns, rows))


def _print_fidelity(fidelity: Sequence[Fidelity]) -> None:
    if not fidelity:
        return
    print("\nFidelity: off CloudSim's figures by, in percent")
    columns = ("mode", "day", "policy", "energy", "migrations", "SLAV", "times faster", "holds")
    print(
        _report.table(
            columns,
            [
                (
                    each.mode,
                    each.day,
                    each.policy,
                    each.energy_percent,
                    each.migrations_percent,
                    each.slav_percent,
                    each.times_faster,
                    "yes" if each.holds else "no",
                )
                for each in fidelity
            ],
        )
    )

"""Workloads packed on equal hosts, 100 to 600 VMs and 10,000, four resources, against the bound.

    python -m benchmarks colony --output colony.json

The instances are in the manner of Feller's evaluation of his ant colony (GRID 2011): homogeneous
hosts, VMs that ask for a random part of each resource. Shown are first fit decreasing, the colony,
and the optimiser. The reference is the optimum where a bound meets a packing, else the better of
our lower bound and, up to ``--exact-vms``, the bound of the linear program by HiGHS (a development
dependency). No data files needed.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from benchmarks import _report
from benchmarks._exact import covering_bound
from snooze.common.resources import FloatArray
from snooze.scheduling.colony import pack_by_colony
from snooze.scheduling.packing import pack
from snooze.scheduling.packing_effort import Effort
from snooze.scheduling.packing_greedy import Measure, descending, first_fit, sizes
from snooze.scheduling.snapshot import IntArray

ENDLESS = 1 << 60
RESOURCES = 4


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    vms: int
    seed: int
    bound: int
    by: str
    first_fit: int
    colony: int
    colony_s: float
    optimiser: int
    optimiser_s: float


def main(arguments: list[str]) -> int:
    """Run the benchmark; 1 if a packing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks colony")
    parser.add_argument("--data", help="not used: instances are drawn from seeds")
    parser.add_argument("--output", help="write the results here as JSON")
    parser.add_argument("--seeds", type=int, default=3, help="instances of each size")
    parser.add_argument("--vms", type=int, action="append", help="only this size; repeatable")
    parser.add_argument("--exact-s", type=float, default=20.0, help="for the reference, each")
    parser.add_argument("--exact-vms", type=int, default=200, help="largest for the program")
    options = parser.parse_args(arguments)
    measure("warm-up", 60, 0, exact_s=0.0)
    results: list[Result] = []
    for vms in options.vms or [100, 200, 300, 400, 500, 600, 10_000]:
        for name in KINDS:
            for seed in range(1, 1 + (options.seeds if vms < 10_000 else 1)):
                exact_s = options.exact_s if vms <= options.exact_vms else 0.0
                results.append(measure(name, vms, seed, exact_s=exact_s))
    columns = [
        "kind",
        "VMs",
        "reference",
        "first fit decreasing %",
        "colony %",
        "s",
        "optimiser %",
        "s",
        "max s",
    ]
    print(_report.table(columns, rows(results)))
    print("per cent above the reference, means")
    _report.write(
        options.output,
        {
            "instances": [
                {
                    "name": f"{r.name}-{r.vms}-{r.seed}",
                    "bins": r.optimiser,
                    "seconds": round(r.optimiser_s, 4),
                    "reference": r.bound,
                    "reference_by": r.by,
                    "first_fit_decreasing": r.first_fit,
                    "colony": r.colony,
                    "colony_seconds": round(r.colony_s, 4),
                }
                for r in results
            ]
        },
    )
    return 0


def rows(results: Sequence[Result]) -> list[list[object]]:
    """One row per kind and size."""
    table: list[list[object]] = []
    for name, vms in dict.fromkeys((r.name, r.vms) for r in results):
        group = [r for r in results if (r.name, r.vms) == (name, vms)]

        def over(count: Callable[[Result], int], group: Sequence[Result] = group) -> float:
            return 100 * fmean(count(r) / r.bound - 1 for r in group)

        table.append(
            [
                name,
                vms,
                ", ".join(dict.fromkeys(r.by for r in group)),
                over(lambda r: r.first_fit),
                over(lambda r: r.colony),
                fmean(r.colony_s for r in group),
                over(lambda r: r.optimiser),
                fmean(r.optimiser_s for r in group),
                max(r.optimiser_s for r in group),
            ]
        )
    return table


def _small(rng: np.random.Generator, vms: int) -> FloatArray:
    """Every resource from 1 to 20 % of a host, in whole per cent."""
    return rng.integers(1, 21, size=(vms, RESOURCES)).astype(np.float64)


def _broad(rng: np.random.Generator, vms: int) -> FloatArray:
    """Every resource from 1 to 50 % of a host."""
    return rng.integers(1, 51, size=(vms, RESOURCES)).astype(np.float64)


def _flavours(rng: np.random.Generator, vms: int) -> FloatArray:
    """Sizes that clouds offer, CPU and memory together; network by chance."""
    cores = rng.choice([3.0, 6.0, 12.0, 25.0, 50.0], size=vms, p=[0.3, 0.3, 0.2, 0.15, 0.05])
    memory = np.ceil(cores * rng.choice([0.5, 1.0, 1.5], size=vms))
    traffic = rng.integers(1, 15, size=(vms, 2))
    return np.column_stack([cores, memory, traffic]).astype(np.float64)


KINDS: dict[str, Callable[[np.random.Generator, int], FloatArray]] = {
    "small": _small,
    "broad": _broad,
    "flavours": _flavours,
}


def measure(name: str, vms: int, seed: int, *, exact_s: float) -> Result:
    """One instance by all three, and its reference."""
    rng = np.random.default_rng([vms, seed])
    items = KINDS.get(name, _broad)(rng, vms)
    capacity = np.full(RESOURCES, 100.0)
    limit_s = 1.5 if vms <= 600 else 45.0
    greedy = first_fit(items, capacity, descending(sizes(items / capacity, Measure.SUM)))
    start_s = time.perf_counter()
    ants = pack_by_colony(
        items, capacity, effort=Effort(ENDLESS, limit_s, time.perf_counter), seed=seed
    )
    colony_s = time.perf_counter() - start_s
    start_s = time.perf_counter()
    packing = pack(items, capacity, effort=Effort(ENDLESS, limit_s, time.perf_counter), seed=seed)
    optimiser_s = time.perf_counter() - start_s
    for bin_of in (greedy, ants, packing.bin_of):
        check(items, capacity, bin_of)
    bound, by = packing.bound.count, packing.bound.by
    if packing.bins > bound:
        better = covering_bound(items, capacity, exact_s)
        if better > bound:
            bound, by = better, "linear program"
    return Result(
        name,
        vms,
        seed,
        bound,
        "optimum" if packing.bins == bound else by,
        int(greedy.max()) + 1,
        int(ants.max()) + 1,
        colony_s,
        packing.bins,
        optimiser_s,
    )


def check(items: FloatArray, capacity: FloatArray, bin_of: IntArray) -> None:
    """Stop if a packing is wrong; by plain arithmetic."""
    load: dict[int, list[float]] = {}
    for item, target in zip(items.tolist(), bin_of.tolist(), strict=True):
        if target < 0:
            raise SystemExit("an item has no bin")
        have = load.setdefault(target, [0.0] * len(item))
        load[target] = [a + b for a, b in zip(have, item, strict=True)]
    for total in load.values():
        if any(a > b for a, b in zip(total, capacity.tolist(), strict=True)):
            raise SystemExit(f"a bin is overfull: {total}")

"""Vector bin packing against the best of some 300 published heuristics.

    python -m benchmarks packing --data shared/data --output packing.json

Instances: Mommessin, Erlebach, Shakhlevich, Computers & Operations Research 2025. One algorithm
with one set of parameters for all; every packing is checked by plain integer arithmetic.
"""

import argparse
import gzip
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np

from benchmarks import _report
from snooze.scheduling.packing import pack
from snooze.scheduling.packing_effort import Effort
from snooze.scheduling.packing_greedy import first_fit

ENDLESS = 1 << 60


@dataclass(frozen=True, slots=True)
class Instance:
    family: str
    name: str
    capacity: list[int]
    items: list[list[int]]
    lower_bound: int
    optimum: int | None
    best_heuristic: int


@dataclass(frozen=True, slots=True)
class Result:
    instance: Instance
    bins: int
    bound: int
    seconds: float

    @property
    def over_optimum_percent(self) -> float | None:
        optimum = self.instance.optimum
        return None if optimum is None else 100 * (self.bins / optimum - 1)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 1 if a packing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks packing", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the data folder, or its packing")
    parser.add_argument("--output", help="write the results here as JSON")
    parser.add_argument("--time-limit-s", type=float, default=8.0, help="per instance, default 8")
    parser.add_argument("--every", type=int, default=1, help="only every Nth instance")
    parser.add_argument("--offset", type=int, default=0, help="of the first instance taken")
    parser.add_argument("--family", action="append", help="only this family; may be repeated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="a line per instance")
    options = parser.parse_args(arguments)

    warm_up()
    results: list[Result] = []
    wrong = 0
    for instance in sample(options.data, options.family, options.every, options.offset):
        result, complaint = solve(instance, options.time_limit_s, options.seed)
        results.append(result)
        if complaint:
            wrong += 1
            print(f"WRONG {instance.family} {instance.name}: {complaint}")
        elif options.verbose:
            print(
                f"{instance.family} {instance.name} bins {result.bins} bound {result.bound} "
                f"optimum {instance.optimum} best heuristic {instance.best_heuristic} "
                f"{result.seconds:.2f} s",
                flush=True,
            )
    first_fit_ms = time_first_fit()
    report(results, first_fit_ms)
    _report.write(
        options.output,
        {
            "time_limit_s": options.time_limit_s,
            "every": options.every,
            "seed": options.seed,
            "first_fit_500_ms": first_fit_ms,
            "wrong": wrong,
            "instances": [
                {
                    "name": f"{result.instance.family}/{result.instance.name}",
                    "bins": result.bins,
                    "seconds": round(result.seconds, 4),
                    "lower_bound": result.bound,
                    "optimum": result.instance.optimum,
                    "best_heuristic": result.instance.best_heuristic,
                }
                for result in results
            ],
        },
    )
    return 1 if wrong else 0


def sample(
    data: Path, families: Sequence[str] | None, every: int, offset: int
) -> Iterator[Instance]:
    """The instances, family after family."""
    folder = data / "packing" if (data / "packing").is_dir() else data
    files = sorted(folder.glob("packing-*.jsonl*"))
    if not files:
        raise SystemExit(f"no packing-FAMILY.jsonl.gz in {folder}")
    for file in files:
        family = file.name.removeprefix("packing-").split(".")[0]
        if families and family not in families:
            continue
        opener = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rt") as lines:
            for number, line in enumerate(lines):
                if number % every == offset % every:
                    yield Instance(family, **json.loads(line))


def solve(instance: Instance, time_limit_s: float, seed: int) -> tuple[Result, str | None]:
    """Pack one instance; the result and what is wrong with it."""
    start_s = time.perf_counter()
    packing = pack(
        instance.items,
        instance.capacity,
        effort=Effort(ENDLESS, time_limit_s, time.perf_counter),
        seed=seed,
        allow_negative=True,  # some items of the triplets give room back
    )
    seconds = time.perf_counter() - start_s
    complaint = check(instance, [int(b) for b in packing.bin_of], packing.bins)
    if (
        complaint is None
        and instance.optimum is not None
        and packing.bound.count > instance.optimum
    ):
        complaint = f"bound {packing.bound} above the optimum {instance.optimum}"
    return Result(instance, packing.bins, packing.bound.count, seconds), complaint


def check(instance: Instance, bin_of: list[int], bins: int) -> str | None:
    """What is wrong with a packing, by integer arithmetic alone."""
    if len(bin_of) != len(instance.items):
        return f"{len(bin_of)} answers for {len(instance.items)} items"
    if set(bin_of) != set(range(bins)):
        return "bins are not numbered from 0 without gaps"
    loads = [[0] * len(instance.capacity) for _ in range(bins)]
    for item, target in zip(instance.items, bin_of, strict=True):
        for axis, need in enumerate(item):
            loads[target][axis] += need
    for number, load in enumerate(loads):
        if any(total > room for total, room in zip(load, instance.capacity, strict=True)):
            return f"bin {number} is overfull: {load} of {instance.capacity}"
    return None


def warm_up() -> None:
    """Compile before the first instance is timed."""
    items = np.random.default_rng(0).integers(20, 60, size=(40, 3))
    pack(items, [100, 100, 100], effort=Effort(steps=2_000))
    triplets = np.array([[50, 30], [30, 50], [20, 20]] * 4)
    pack(triplets, [100, 100], effort=Effort(steps=20_000))


def time_first_fit() -> float:
    """Milliseconds of first fit over 500 items of 4 resources; the median of 21."""
    rng = np.random.default_rng(0)
    items, capacity = rng.uniform(0.05, 0.6, size=(500, 4)), np.ones(4)
    times_s: list[float] = []
    for _ in range(21):
        start_s = time.perf_counter()
        first_fit(items, capacity)
        times_s.append(time.perf_counter() - start_s)
    return 1000 * median(times_s)


def report(results: Sequence[Result], first_fit_ms: float) -> None:
    """Print the table."""
    rows: list[list[object]] = []
    for family in sorted({result.instance.family for result in results}):
        rows.append(summary(family, [r for r in results if r.instance.family == family]))
    rows.append(summary("all", results))
    columns = [
        "family",
        "instances",
        "worse than best",
        "better",
        "optimum known",
        "over it %",
        "best heuristic %",
        "proven",
        "mean s",
        "max s",
    ]
    print(_report.table(columns, rows))
    print(f"first fit, 500 items, 4 resources: {first_fit_ms:.2f} ms")


def summary(name: str, results: Sequence[Result]) -> list[object]:
    """One row of the table."""
    known = [result for result in results if result.instance.optimum]
    ours = [result.over_optimum_percent or 0.0 for result in known]
    theirs = [
        100 * (result.instance.best_heuristic / (result.instance.optimum or 1) - 1)
        for result in known
    ]
    return [
        name,
        len(results),
        sum(result.bins > result.instance.best_heuristic for result in results),
        sum(result.bins < result.instance.best_heuristic for result in results),
        len(known),
        fmean(ours) if ours else float("nan"),
        fmean(theirs) if theirs else float("nan"),
        sum(result.bins == result.bound for result in results),
        fmean(result.seconds for result in results) if results else 0.0,
        max((result.seconds for result in results), default=0.0),
    ]

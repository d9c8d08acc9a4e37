"""A whole cluster reconfigured: 5,000 hosts, 30,000 VMs, 5 % of hosts too full or to be drained.

    python -m benchmarks reconfiguration --output reconfiguration.json

Half of those hosts are to be emptied for maintenance, half are above their limit. A quarter of the
VMs are in anti-affinity groups of three. Every plan is proven by the independent checker. Beside
it: one pass of Sercon over the same cluster. No data files are needed.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks import _report
from snooze.common.resources import KIB_PER_GIB
from snooze.scheduling.check import check_plan
from snooze.scheduling.consolidation import Consolidation, ConsolidationPolicy, consolidate
from snooze.scheduling.consolidation_methods import Method
from snooze.scheduling.drain import Drain, DrainPolicy, drain
from snooze.scheduling.packing_effort import Effort
from snooze.scheduling.plans import Plan
from snooze.scheduling.snapshot import Affinity, AffinityRule, BoolArray, Snapshot

ENDLESS = 1 << 60
MOVES_MOST = 10_000
HOST_WORTH_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Run:
    name: str
    seconds: float
    moves: int
    batches: int
    text: str
    violations: int


def main(arguments: list[str]) -> int:
    """Run the benchmark; 1 if a plan breaks a rule."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks reconfiguration")
    parser.add_argument("--data", help="not used: the cluster is drawn from a seed")
    parser.add_argument("--output", help="write the results here as JSON")
    parser.add_argument("--hosts", type=int, default=5_000)
    parser.add_argument("--vms", type=int, default=30_000)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; the median counts")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)

    small, few = cluster(60, 360, options.seed)
    plan_all(small, few, 1)  # compile
    snapshot, drained = cluster(options.hosts, options.vms, options.seed)
    runs = plan_all(snapshot, drained, options.repeat)
    columns = ["what", "seconds", "moves", "batches", "violations", "outcome"]
    rows = [[r.name, r.seconds, r.moves, r.batches, r.violations, r.text] for r in runs]
    print(f"{options.hosts} hosts, {options.vms} VMs, {len(snapshot.rules)} anti-affinity groups")
    print(_report.table(columns, rows))
    _report.write(
        options.output,
        {
            "hosts": options.hosts,
            "vms": options.vms,
            "groups": len(snapshot.rules),
            "seed": options.seed,
            "runs": [
                {
                    "name": r.name,
                    "seconds": round(r.seconds, 4),
                    "moves": r.moves,
                    "batches": r.batches,
                    "violations": r.violations,
                    "outcome": r.text,
                }
                for r in runs
            ],
        },
    )
    return 1 if any(run.violations for run in runs) else 0


def cluster(hosts: int, vms: int, seed: int) -> tuple[Snapshot, BoolArray]:
    """A cluster about 60 % full, 2.5 % of its hosts overfull; and 2.5 % others to be drained."""
    rng = np.random.default_rng(seed)
    capacity = np.array([32.0, 256.0 * KIB_PER_GIB, 1.25e6, 1.25e6]) * np.ones((hosts, 1))
    cores = rng.choice([1.0, 2.0, 4.0, 8.0], size=vms, p=[0.3, 0.35, 0.25, 0.1])
    memory = cores * rng.uniform(2.0, 12.0, size=vms) * KIB_PER_GIB
    traffic = rng.uniform(1e3, 1.2e5, size=(vms, 2))
    demand = np.column_stack([cores, memory, traffic])
    group = np.full(vms, -1)
    grouped = rng.permutation(vms)[: vms // 4 // 3 * 3].reshape(-1, 3)
    group[grouped] = np.arange(len(grouped))[:, None]
    placement = np.full(vms, -1)
    load = np.zeros_like(capacity)
    taken: set[tuple[int, int]] = set()
    hot = rng.choice(hosts, size=max(1, hosts // 20), replace=False)
    overfull, drained = hot[: len(hot) // 2], hot[len(hot) // 2 :]
    limit = np.full(hosts, 0.8)
    limit[overfull] = 1.1
    for vm in range(vms):
        for host in rng.integers(hosts, size=200):
            full = load[host] + demand[vm] > capacity[host] * limit[host]
            if not full.any() and (group[vm], host) not in taken:
                placement[vm] = host
                load[host] += demand[vm]
                if group[vm] >= 0:
                    taken.add((group[vm], host))
                break
    for host in overfull:  # grow what runs there until it is too much
        inside = placement == host
        worst = (load[host] / capacity[host]).max()
        demand[inside] *= rng.uniform(0.85, 1.0) / max(worst, 1e-9)
    mask = np.zeros(hosts, dtype=np.bool_)
    mask[drained] = True
    snapshot = Snapshot.of(
        [f"host{i}" for i in range(hosts)],
        capacity,
        vm_ids=[f"vm{i}" for i in range(vms)],
        demand=demand,
        placement=placement,
        headroom=np.full(4, 0.8),
        dirty_rate_kib_s=rng.uniform(0.0, 3e4, size=vms),
        rules=[AffinityRule(Affinity.APART, tuple(row.tolist())) for row in grouped],
    )
    return snapshot, mask


def plan_all(snapshot: Snapshot, drained: BoolArray, repeat: int) -> list[Run]:
    """All that is measured, on one cluster."""

    def reconfigure() -> tuple[Plan, str]:
        effort = Effort(ENDLESS, 8.0, time.perf_counter)
        answer: Drain = drain(snapshot, drained, DrainPolicy(relieve=True, effort=effort))
        return answer.plan, (
            f"{len(answer.emptied)} emptied, {len(answer.remaining)} not; "
            f"{len(answer.overfull)} still overfull; {answer.pushed} pushed"
        )

    def consolidation(method: Method, seconds: float) -> Callable[[], tuple[Plan, str]]:
        def run() -> tuple[Plan, str]:
            effort = Effort(ENDLESS, seconds, time.perf_counter)
            policy = ConsolidationPolicy(
                method=method, moves_most=MOVES_MOST, host_worth_s=HOST_WORTH_S, effort=effort
            )
            answer: Consolidation = consolidate(snapshot, policy)
            return answer.plan, (
                f"{answer.verdict}: {answer.hosts_before} hosts to {answer.hosts_after}, "
                f"at least {answer.bound.count}; {answer.cost_s / 3600:.0f} h of migration"
            )

        return run

    return [
        measure("drain and relieve", snapshot, reconfigure, repeat),
        measure("sercon", snapshot, consolidation(Method.SERCON, 2.0), repeat),
        measure("optimiser, 8 s", snapshot, consolidation(Method.OPTIMISER, 8.0), 1),
    ]


def measure(name: str, snapshot: Snapshot, run: Callable[[], tuple[Plan, str]], repeat: int) -> Run:
    """Time ``run``; check its plan, which is not timed."""
    times_s: list[float] = []
    plan, text = run()
    for _ in range(repeat):
        start_s = time.perf_counter()
        plan, text = run()
        times_s.append(time.perf_counter() - start_s)
    batches = 1 + max((move.batch for move in plan.moves), default=-1)
    violations = check_plan(snapshot, plan)
    for violation in violations[:5]:
        print(f"WRONG {name}: {violation}")
    return Run(name, median(times_s), len(plan.moves), batches, text, len(violations))

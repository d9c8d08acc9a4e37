"""``placement-rate``: how many decisions a second, and how long one takes under open load.

Throughput: 50,000 VMs onto 5,000 hosts, one decision and reservation at a time, in this process;
then as many releases, each followed by a new decision, with the cluster full.

Latency: requests arrive on 10,000 hosts at 100 a second, whether or not the last one is done (open
loop, exponential gaps). Each is a whole decision: snapshot, plan by a policy, proof by the checker,
reservation. Latency counts from the moment a request arrives, so waiting for the one before is in
it.

The ``cpu`` columns are the same with the processor time each decision took, for the latency put
through the same queue: what it would be on a core of its own, where the wall-clock columns also
hold what other processes took.
"""

import argparse
import gc
import time

import numpy as np

from benchmarks import _report
from snooze.common.resources import KIB_PER_GIB, FloatArray
from snooze.scheduling import placement
from snooze.scheduling.check import check_plan
from snooze.scheduling.inventory import Inventory
from snooze.scheduling.snapshot import Snapshot

HOST_KINDS = np.array(
    [
        [32.0, 128.0 * KIB_PER_GIB, 1.25e6, 1.25e6],
        [48.0, 256.0 * KIB_PER_GIB, 1.25e6, 1.25e6],
        [64.0, 256.0 * KIB_PER_GIB, 2.5e6, 2.5e6],
    ]
)
VM_KINDS = np.array(
    [
        [1.0, 2.0 * KIB_PER_GIB, 12_800.0, 12_800.0],
        [2.0, 4.0 * KIB_PER_GIB, 12_800.0, 12_800.0],
        [4.0, 16.0 * KIB_PER_GIB, 25_600.0, 25_600.0],
        [8.0, 16.0 * KIB_PER_GIB, 51_200.0, 51_200.0],
    ]
)
VM_SHARES = (0.4, 0.3, 0.2, 0.1)
POLICIES = ("first_fit", "best_fit", "evenly_distributed", "power_saving")
TARGET_PER_S = {"first_fit": 10_000, "best_fit": 3_000}


def cluster(hosts: int, rng: np.random.Generator) -> Snapshot:
    capacity = HOST_KINDS[rng.integers(0, len(HOST_KINDS), hosts)]
    return Snapshot.of([f"host-{i}" for i in range(hosts)], capacity)


def demands(vms: int, rng: np.random.Generator) -> FloatArray:
    return VM_KINDS[rng.choice(len(VM_KINDS), size=vms, p=VM_SHARES)]


def throughput(policy: str, hosts: int, vms: int, seed: int) -> dict[str, float | int | str]:
    """Decisions with reservation per second, filling up and then in a full cluster."""
    rng = np.random.default_rng(seed)
    inventory = Inventory(cluster(hosts, rng))
    best = policy == "best_fit"
    needs = list(demands(vms, rng))
    placed = 0
    cpu_start = time.process_time()
    start = time.perf_counter()
    for vm, need in enumerate(needs):
        placed += inventory.place(str(vm), need, best=best) >= 0
    filling_s = time.perf_counter() - start
    filling_cpu_s = time.process_time() - cpu_start
    victims = rng.permutation(vms).tolist()
    deciding_s = deciding_cpu_s = 0.0
    for vm in victims:
        inventory.release(str(vm))
        cpu_start = time.process_time()
        start = time.perf_counter()
        placed += inventory.place(str(vm), needs[vm], best=best) >= 0
        deciding_s += time.perf_counter() - start
        deciding_cpu_s += time.process_time() - cpu_start
    return {
        "policy": policy,
        "hosts": hosts,
        "vms": vms,
        "placed": placed,
        "filling_per_s": vms / filling_s,
        "churning_per_s": vms / deciding_s,
        "filling_per_cpu_s": vms / filling_cpu_s,
        "churning_per_cpu_s": vms / deciding_cpu_s,
        "target_per_s": TARGET_PER_S[policy],
    }


def latency(
    name: str, hosts: int, rate_per_s: float, duration_s: float, seed: int
) -> dict[str, float | int | str]:
    """Latency of whole decisions under open load, on a cluster filled to about 60 %."""
    rng = np.random.default_rng(seed)
    inventory = Inventory(cluster(hosts, rng))
    policy = placement.policy_named(name)
    filling = demands(hosts * 10, rng)
    for vm, need in enumerate(filling):
        inventory.reserve(f"old-{vm}", int(rng.integers(hosts)), need)
    count = int(rate_per_s * duration_s)
    needs = demands(count, rng)
    arrivals_s = np.cumsum(rng.exponential(1.0 / rate_per_s, count))
    for i in range(20):  # warm up
        decide(inventory, policy, f"warm-{i}", needs[i])
        inventory.release(f"warm-{i}")
    gc.collect()
    gc.freeze()  # as the daemons do once they are up
    waits_s = np.empty(count)
    cpu_s = np.empty(count)
    placed = 0
    start = time.perf_counter()
    for i, arrival_s in enumerate(arrivals_s.tolist()):
        due = start + arrival_s
        while (now := time.perf_counter()) < due:
            time.sleep(max(0.0, due - now - 0.0005) / 2)
        cpu_start = time.process_time()
        placed += decide(inventory, policy, f"new-{i}", needs[i])
        cpu_s[i] = time.process_time() - cpu_start
        waits_s[i] = time.perf_counter() - due
        if i >= 1000:
            inventory.release(f"new-{i - 1000}")
    gc.unfreeze()
    percentiles = np.percentile(waits_s, [50, 99, 99.9, 100]) * 1e3
    alone = np.percentile(queued_s(arrivals_s, cpu_s), [50, 99.9]) * 1e3
    return {
        "policy": name,
        "hosts": hosts,
        "requests": count,
        "placed": placed,
        "rate_per_s": rate_per_s,
        "p50_ms": float(percentiles[0]),
        "p99_ms": float(percentiles[1]),
        "p999_ms": float(percentiles[2]),
        "max_ms": float(percentiles[3]),
        "cpu_p50_ms": float(alone[0]),
        "cpu_p999_ms": float(alone[1]),
    }


def queued_s(arrivals_s: FloatArray, service_s: FloatArray) -> FloatArray:
    """Time from arrival to answer of each request, served one at a time in order.

    Source: Lindley's recursion.
    """
    answers_s = np.empty(len(arrivals_s))
    end_s = 0.0
    for i, (arrival_s, needed_s) in enumerate(zip(arrivals_s, service_s, strict=True)):
        end_s = max(end_s, float(arrival_s)) + float(needed_s)
        answers_s[i] = end_s - float(arrival_s)
    return answers_s


def decide(
    inventory: Inventory, policy: placement.PlacementPolicy, vm_id: str, need: FloatArray
) -> bool:
    """One whole decision: True if the VM got a host."""
    snapshot = inventory.snapshot([vm_id], need[None, :])
    plan = placement.plan(snapshot, policy)
    if check_plan(snapshot, plan):
        raise RuntimeError("a plan breaks a rule")
    host = int(plan.placement[0])
    return host >= 0 and inventory.reserve(vm_id, host, need)


def single(hosts: int, seed: int) -> dict[str, float | int]:
    """The plain cost of one decision on a snapshot that is there already, and of the index."""
    rng = np.random.default_rng(seed)
    base = cluster(hosts, rng)
    half = base.changed(used=base.capacity * rng.random((hosts, 1)), load=None)
    snapshot = half.with_vms(["vm"], VM_KINDS[1:2])
    policy = placement.policy_named("first_fit")
    inventory = Inventory(snapshot)
    return {
        "hosts": hosts,
        "plan_first_fit_us": _best_us(lambda: placement.plan(snapshot, policy)),
        "index_first_fit_us": _best_us(lambda: inventory.first_fit(VM_KINDS[1])),
    }


def _best_us(function: object) -> float:
    assert callable(function)
    times: list[float] = []
    for _ in range(200):
        start = time.perf_counter()
        for _ in range(10):
            function()
        times.append((time.perf_counter() - start) / 10)
    return float(np.median(times) * 1e6)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks placement-rate")
    parser.add_argument("--data", help="not used: the load is generated")
    parser.add_argument("--output", help="write JSON to this file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--duration-s", type=float, default=60.0, help="of each latency run")
    parser.add_argument("--hosts", type=int, default=5_000)
    parser.add_argument("--vms", type=int, default=50_000)
    parser.add_argument("--open-hosts", type=int, default=10_000)
    parser.add_argument("--rate-per-s", type=float, default=100.0)
    options = parser.parse_args(arguments)
    rates = [
        throughput(policy, options.hosts, options.vms, options.seed) for policy in TARGET_PER_S
    ]
    print(_report.table(list(rates[0]), [list(rate.values()) for rate in rates]), end="\n\n")
    one = single(options.hosts, options.seed)
    print(_report.table(list(one), [list(one.values())]), end="\n\n")
    latencies = [
        latency(name, options.open_hosts, options.rate_per_s, options.duration_s, options.seed)
        for name in POLICIES
    ]
    print(_report.table(list(latencies[0]), [list(each.values()) for each in latencies]))
    _report.write(
        options.output, {"throughput": rates, "single_decision": one, "open_loop": latencies}
    )
    return 0

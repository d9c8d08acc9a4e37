"""Overload: ten times the rate that can be sustained, for a minute; what is refused, what suffers.

The cluster of ``benchmarks submission``. First the sustained rate is measured by a closed loop of
clients. Then submissions of one VM arrive at ten times that rate, whether answered or not (an open
loop, in a process of its own). Then the closed loop again. Told: what was answered and how soon,
the memory of each process second by second, and the rate before and after.

``python -m benchmarks overload [--factor 10] [--seconds 60] [--hosts 200]``
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import aiohttp
import numpy as np
import psutil

from benchmarks import _report
from benchmarks.submission import TEMPLATE, Daemons, cluster, drive

IN_FLIGHT = 16
MAX_OPEN = 1000
"""Calls that the generator keeps open; beyond them it counts what it could not even send."""
CALL_S = 60.0


async def offer(port: int, rate: float, seconds: float) -> dict[str, Any]:
    """Send submissions at a fixed rate, and note how each is answered."""
    url = f"http://127.0.0.1:{port}/v1/virtual-clusters"
    answers: Counter[str] = Counter()
    accepted_s: list[float] = []
    refused_s: list[float] = []
    without_advice = 0
    open_calls: set[asyncio.Task[None]] = set()
    names = itertools.count()

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal without_advice
        body = {"vms": [{"libvirt_xml": TEMPLATE.format(name=f"over{next(names)}")}]}
        asked_s = time.perf_counter()
        try:
            async with session.post(url, json=body) as answer:
                await answer.read()
                status = answer.status
                if status in {429, 503} and "Retry-After" not in answer.headers:
                    without_advice += 1
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            answers[type(error).__name__] += 1
            return
        answers[str(status)] += 1
        took_s = time.perf_counter() - asked_s
        (accepted_s if status in {200, 202} else refused_s).append(took_s)

    connector = aiohttp.TCPConnector(limit=0)
    limit = aiohttp.ClientTimeout(total=CALL_S)
    async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
        started_s = time.perf_counter()
        sent = 0
        while (now_s := time.perf_counter() - started_s) < seconds:
            for _ in range(int(now_s * rate) - sent):
                sent += 1
                if len(open_calls) >= MAX_OPEN:
                    answers["not sent"] += 1
                    continue
                call = asyncio.create_task(one(session))
                open_calls.add(call)
                call.add_done_callback(open_calls.discard)
            await asyncio.sleep(0.005)
        if open_calls:
            await asyncio.wait(open_calls, timeout=CALL_S)
    return {
        "offered": sent,
        "answers": dict(answers),
        "without_advice": without_advice,
        **_percentiles("accepted", accepted_s),
        **_percentiles("refused", refused_s),
    }


def _percentiles(what: str, values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"{what}_p{share}_s": float(np.percentile(values, share)) for share in (50, 99, 100)}


async def watch(daemons: Daemons, samples: dict[str, list[float]]) -> None:
    """Note the residents of each process, in MiB, once a second."""
    while True:
        for name, process in daemons.processes.items():
            samples.setdefault(name, []).append(
                psutil.Process(process.pid).memory_info().rss / 2**20
            )
        await asyncio.sleep(1.0)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    names = itertools.count()
    result: dict[str, Any] = {}
    async with cluster(options) as (daemons, port):
        await drive(port, 1, 1, 1.0, names)
        latencies, vms, took_s = await drive(port, 1, IN_FLIGHT, options.measure_s, names)
        result["sustained_per_s"] = vms / took_s
        result["sustained_p99_s"] = float(np.percentile(latencies, 99))
        samples: dict[str, list[float]] = {}
        watcher = asyncio.create_task(watch(daemons, samples))
        rate = options.factor * vms / took_s
        generator = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.overload", "--offer", str(port)),
            *("--rate", str(rate), "--seconds", str(options.seconds)),
            stdout=subprocess.PIPE,
        )
        output, _ = await generator.communicate()
        result["overload"] = json.loads(output)
        ended_s = time.monotonic()
        latencies, vms, took_s = await drive(port, 1, IN_FLIGHT, 1.0, names)
        result["first_second_after_per_s"] = vms / took_s
        latencies, vms, took_s = await drive(port, 1, IN_FLIGHT, options.measure_s, names)
        result["after_per_s"] = vms / took_s
        result["after_p99_s"] = float(np.percentile(latencies, 99))
        result["measured_after_s"] = time.monotonic() - ended_s
        watcher.cancel()
    for name, values in samples.items():
        result[f"{name}_mib"] = {"before": values[0], "most": max(values), "after": values[-1]}
    return result


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks overload", description=__doc__)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--measure-s", type=float, default=8.0)
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--hypervisor", default="simulated", choices=("simulated",))
    parser.add_argument("--offer", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--output")
    options = parser.parse_args(arguments)
    if options.offer:
        print(json.dumps(asyncio.run(offer(options.offer, options.rate, options.seconds))))
        return 0
    result = asyncio.run(run(options))
    print(f"{options.hosts} hosts; {_report.machine()}")
    flat = {**{k: v for k, v in result.items() if k != "overload"}, **result["overload"]}
    print(_report.table(["figure", "value"], [[k, v] for k, v in flat.items()]))
    _report.write(options.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

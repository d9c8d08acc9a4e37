"""Slow and dead local controllers: what the other hosts' submissions feel of them.

The cluster of ``benchmarks submission``, with VMs placed in turn. Single VMs are submitted at a
fixed rate, whatever becomes of them: first to sound hosts alone; then beside hosts that take
``--latency-s`` for a start, on average; then while the processes of these stand still (SIGSTOP:
their links stay open and say nothing), from the moment they stop; then once they have been missed.
Told for each: how soon VMs ran, in ms: on sound hosts; on slow ones; and those on sound hosts that
had been sent to a stopped one first (they ran after more than ``HELD_UP_S``) and had to wait until
it could not have them any more.

``python -m benchmarks slow-hosts [--hosts 60] [--slow 6] [--latency-s 5] [--rate 40]``
"""

import argparse
import asyncio
import itertools
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import aiohttp
import numpy as np

from benchmarks import _report
from benchmarks.submission import TEMPLATE, WAIT_S, cluster, drive

FIRST_SLOW = 9000
HELD_UP_S = 2.0


async def phase(
    port: int, rate: float, seconds: float, names: "itertools.count[int]"
) -> dict[str, Any]:
    """Submit at ``rate`` a second; wait for all that was submitted."""
    url = f"http://127.0.0.1:{port}/v1/virtual-clusters?wait_s={WAIT_S}"
    sound_s: list[float] = []
    slow_s: list[float] = []
    held_up_s: list[float] = []
    outcomes: Counter[str] = Counter()

    async def one(session: aiohttp.ClientSession) -> None:
        body = {"vms": [{"libvirt_xml": TEMPLATE.format(name=f"vm{next(names)}")}]}
        asked_s = time.perf_counter()
        async with session.post(url, json=body) as answer:
            task = await answer.json()
        took_s = time.perf_counter() - asked_s
        if answer.status not in {200, 202}:
            outcomes[f"refused: {answer.status}"] += 1
            return
        vm = task["vms"][0]
        if vm["state"] != "running":
            outcomes[f"{vm['state']} after {WAIT_S} s"] += 1
            return
        if vm["hostname"] >= f"bench{FIRST_SLOW}":
            slow_s.append(took_s)
        else:
            (held_up_s if took_s > HELD_UP_S else sound_s).append(took_s)

    connector = aiohttp.TCPConnector(limit=0)
    limit = aiohttp.ClientTimeout(total=WAIT_S + 15)
    async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
        started_s = time.perf_counter()
        calls: list[asyncio.Task[None]] = []
        while (now_s := time.perf_counter() - started_s) < seconds:
            while len(calls) < now_s * rate:
                calls.append(asyncio.create_task(one(session)))
            await asyncio.sleep(0.005)
        await asyncio.gather(*calls)
    return {
        "submitted": len(calls),
        "on_sound": len(sound_s),
        **_milliseconds("sound", sound_s),
        "on_slow": len(slow_s),
        **_milliseconds("slow", slow_s),
        "held_up": len(held_up_s),
        **_milliseconds("held_up", held_up_s),
        "others": dict(outcomes),
    }


def _milliseconds(what: str, values: list[float]) -> dict[str, float]:
    return {
        f"{what}_p{share}_ms": float(np.percentile(values, share)) * 1000 if values else 0.0
        for share in (50, 99, 100)
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    names = itertools.count()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="snooze-bench-") as folder:
        async with cluster(options) as (daemons, port):
            await drive(port, 1, 4, 2.0, names)
            result["alone"] = await phase(port, options.rate, options.seconds, names)
            settings = {"benchmark": {"first": FIRST_SLOW, "start_s": options.latency_s / 2}}
            slow = daemons.start(
                "slow",
                [
                    *("-m", "benchmarks._submission_hosts", str(options.slow), "simulated"),
                    *(f"127.0.0.1:{port}", folder, json.dumps(settings)),
                ],
            )
            assert slow.stdout is not None
            await asyncio.to_thread(slow.stdout.readline)
            await asyncio.sleep(3.0)
            result["beside slow ones"] = await phase(port, options.rate, options.seconds, names)
            slow.send_signal(signal.SIGSTOP)
            try:
                result["they stand still"] = await phase(port, options.rate, 4.0, names)
                result["they are missed"] = await phase(port, options.rate, options.seconds, names)
            finally:
                slow.send_signal(signal.SIGCONT)
    return result


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks slow-hosts", description=__doc__)
    parser.add_argument("--hosts", type=int, default=60, help="sound ones")
    parser.add_argument("--slow", type=int, default=6)
    parser.add_argument("--latency-s", type=float, default=5.0, help="of a start on a slow one")
    parser.add_argument("--rate", type=float, default=40.0, help="VMs a second")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement")
    parser.add_argument("--output")
    options = parser.parse_args(arguments)
    options.hypervisor, options.placement = "simulated", "round_robin"
    result = asyncio.run(run(options))
    print(f"{options.hosts} sound and {options.slow} slow hosts; {_report.machine()}")
    columns = list(result["alone"])
    rows = [[column, *(phase[column] for phase in result.values())] for column in columns]
    print(_report.table(["figure", *result], rows))
    _report.write(options.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Submission: VMs per second from the HTTP request to RUNNING, with separate daemons.

One ZooKeeper server, one bootstrap node, two group managers (one leads, one manages) and one
process with all hosts, all on this machine. A client posts to the front door and holds each request
until its VMs run (``?wait_s``): a latency is from the first byte sent to the answer RUNNING.

``python -m benchmarks submission [--hypervisor simulated|test] [--hosts N] [--seconds S]``
"""

import argparse
import asyncio
import contextlib
import itertools
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from benchmarks import _report
from snooze.common.config import parse
from snooze.common.config_text import toml_text
from snooze.common.settings import BootstrapSettings
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.lab.zookeeper import zookeeper_server

TEMPLATE = (
    "<domain type='kvm'><name>{name}</name><memory>131072</memory><vcpu>1</vcpu>"
    "<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>"
    "<interface type='bridge'><source bridge='virbr0'/></interface></devices></domain>"
)
WAIT_S = 60


class Daemons:
    """The processes of one cluster."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, start_new_session=True
        )
        self.processes[name] = process
        return process

    def usage(self) -> dict[str, tuple[float, float]]:
        """CPU seconds and resident MiB of each."""
        result: dict[str, tuple[float, float]] = {}
        for name, process in self.processes.items():
            seen = psutil.Process(process.pid)
            times = seen.cpu_times()
            result[name] = (times.user + times.system, seen.memory_info().rss / 2**20)
        return result

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@asynccontextmanager
async def cluster(arguments: argparse.Namespace) -> AsyncGenerator[tuple[Daemons, int]]:
    """The cluster, formed; the front door's port."""
    with tempfile.TemporaryDirectory(prefix="snooze-bench-") as folder:
        directory = Path(folder)
        async with zookeeper_server(tick_ms=500) as server:
            daemons = Daemons()
            zookeeper = psutil.Process(server.pid)
            try:
                ports = free_ports(5)
                port = ports[0]
                common = {"coordination": {"hosts": (server.hosts,)}, "log": {"level": "warning"}}
                for index in (0, 1, 2):
                    name = "bootstrap" if index == 0 else f"gm{index}"
                    tables: dict[str, object] = {
                        "node": {"state_directory": str(directory / name), "hostname": name},
                        "network": {
                            "listen_address": "127.0.0.1",
                            "advertised_address": "127.0.0.1",
                            "control_port": ports[index],
                            **({"monitoring_port": ports[2 + index]} if index else {}),
                        },
                        **common,
                    }
                    if index and hasattr(arguments, "placement"):
                        tables["placement"] = {"policy": arguments.placement}
                    kind = BootstrapSettings if index == 0 else GroupManagerSettings
                    file = directory / f"{name}.toml"
                    file.write_text(toml_text(parse("", kind, overrides=tables)))
                    command = "bootstrap" if index == 0 else "groupmanager"
                    daemons.start(name, ["-m", "snooze.client.command", command, "-c", str(file)])
                hosts = daemons.start(
                    "hosts",
                    [
                        "-m",
                        "benchmarks._submission_hosts",
                        str(arguments.hosts),
                        arguments.hypervisor,
                        f"127.0.0.1:{port}",
                        folder,
                    ],
                )
                assert hosts.stdout is not None
                await asyncio.to_thread(hosts.stdout.readline)
                await formed(port, arguments.hosts)
                started = zookeeper.cpu_times()
                yield daemons, port
                times = zookeeper.cpu_times()
                spent = times.user + times.system - started.user - started.system
                print(
                    f"ZooKeeper: {spent:.1f} CPU s, {zookeeper.memory_info().rss / 2**20:.0f} MiB"
                )
            finally:
                daemons.stop()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


async def formed(port: int, hosts: int) -> None:
    """Wait until all hosts have joined and the leader has none."""
    deadline_s = time.monotonic() + 180
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/v1/managers") as answer:
                    managers = await answer.json()
                if answer.status == 200:
                    joined = {m["leader"]: m["hosts"] for m in managers}
                    if joined == {True: 0, False: hosts}:
                        return
            except aiohttp.ClientError:
                pass
            if time.monotonic() > deadline_s:
                raise SystemExit("the hierarchy did not form in 180 s")
            await asyncio.sleep(0.1)


async def drive(
    port: int, per_request: int, in_flight: int, seconds: float, names: "itertools.count[int]"
) -> tuple[list[float], int, float]:
    """Closed loop; latencies in s, VMs that run, and the time it took."""
    latencies: list[float] = []
    running = 0
    started_s = time.monotonic()
    url = f"http://127.0.0.1:{port}/v1/virtual-clusters?wait_s={WAIT_S}"

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal running
        while time.monotonic() - started_s < seconds:
            body = {
                "vms": [
                    {"libvirt_xml": TEMPLATE.format(name=f"vm{next(names)}")}
                    for _ in range(per_request)
                ]
            }
            asked_s = time.perf_counter()
            async with session.post(url, json=body) as answer:
                task = await answer.json()
            latencies.append(time.perf_counter() - asked_s)
            if answer.status != 200 or task["state"] != "done":
                raise SystemExit(f"a submission failed: {answer.status} {str(task)[:500]}")
            running += len(task["vms"])

    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(client(session) for _ in range(in_flight)))
    return latencies, running, time.monotonic() - started_s


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    names = itertools.count()
    async with cluster(arguments) as (daemons, port):
        await drive(port, 1, 1, 1.0, names)
        for per_request, in_flight in ((1, 1), (1, 16), (10, 1), (10, 4), (100, 1), (100, 2)):
            before = daemons.usage()
            latencies, vms, took_s = await drive(
                port, per_request, in_flight, arguments.seconds, names
            )
            after = daemons.usage()
            milliseconds = np.array(latencies) * 1000
            row: dict[str, Any] = {
                "vms_per_request": per_request,
                "in_flight": in_flight,
                "vms": vms,
                "vms_per_s": vms / took_s,
                "p50_ms": float(np.percentile(milliseconds, 50)),
                "p99_ms": float(np.percentile(milliseconds, 99)),
            }
            for name in daemons.processes:
                row[f"{name}_cpu_ms_per_vm"] = (after[name][0] - before[name][0]) / vms * 1000
            rows.append(row)
        usage = daemons.usage()
    return {
        "hypervisor": arguments.hypervisor,
        "hosts": arguments.hosts,
        "rows": rows,
        "daemons": {
            name: {"cpu_s": cpu, "rss_mib": memory} for name, (cpu, memory) in usage.items()
        },
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks submission", description=__doc__)
    parser.add_argument("--hypervisor", choices=("simulated", "test"), default="simulated")
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--output")
    options = parser.parse_args(arguments)
    result = asyncio.run(run(options))
    print(f"{options.hosts} hosts, {options.hypervisor} hypervisor; {_report.machine()}")
    columns = list(result["rows"][0])
    print(_report.table(columns, [[row[name] for name in columns] for row in result["rows"]]))
    print(
        _report.table(
            ["daemon", "cpu_s", "rss_mib"],
            [[name, d["cpu_s"], d["rss_mib"]] for name, d in result["daemons"].items()],
        )
    )
    _report.write(options.output, result)
    return 0

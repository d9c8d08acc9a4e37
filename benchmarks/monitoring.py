"""Monitoring: what it costs to know what every VM uses, and how old that knowledge is.

Two processes on this machine, joined by real links over TCP: a group manager's service for hosts,
and the agents of all local controllers with simulated hypervisors, each with its VMs. All is
measured twice, with samples every 3 s and with none to speak of: the difference is monitoring.
With ``--guests N`` one real local controller's measuring of N real guests (software emulation, in
the lab) is measured, too: its own processor time and that of libvirtd.

``python -m benchmarks monitoring [--hosts 1000] [--vms 20] [--guests 20]``
"""

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import psutil

from benchmarks import _report
from snooze.common.resources import Capacity
from snooze.common.template_policy import TemplatePolicy
from snooze.common.vms import VmSpec
from snooze.lab.guests import MEMORY_KIB, assemble, make_disk, micro_guest_xml
from snooze.lab.hosts import LabNet
from snooze.localcontroller.domain_xml import AdaptOptions
from snooze.localcontroller.hypervisor.libvirt_driver import LibvirtHypervisor
from snooze.localcontroller.hypervisor.libvirt_options import LibvirtOptions
from snooze.localcontroller.images import ImageOptions

SELDOM_S = 3600.0
SETTLE_S = 12.0
JOIN_LIMIT_S = 600.0


class Process:
    """One of the benchmark's processes, asked by lines."""

    def __init__(self, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._monitoring_daemons", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.first = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._line())
        return answer

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def cluster(
    hosts: int, vms: int, interval_s: float
) -> Generator[tuple[Process, Process], None, None]:
    """Manager and hosts, joined."""
    manager = Process("manager")
    try:
        agents = Process("hosts", str(hosts), str(vms), str(interval_s), manager.first)
        try:
            deadline_s = time.monotonic() + JOIN_LIMIT_S
            while manager.ask()["hosts"] < hosts:
                if time.monotonic() > deadline_s:
                    raise SystemExit(f"not all hosts joined in {JOIN_LIMIT_S:g} s")
                time.sleep(1.0)
            yield manager, agents
        finally:
            agents.end()
    finally:
        manager.end()


def measure(hosts: int, vms: int, interval_s: float, seconds: float) -> dict[str, Any]:
    with cluster(hosts, vms, interval_s) as (manager, agents):
        time.sleep(SETTLE_S)
        manager.ask()
        agents.ask()
        time.sleep(seconds)
        seen, sent = manager.ask(), agents.ask()
    return {"interval_s": interval_s, "manager": seen, "hosts": sent}


async def real_guests(count: int, rounds: int) -> dict[str, float]:
    """The cost of one round of measuring ``count`` micro guests on one lab host."""
    async with AsyncExitStack() as stack:
        net = stack.enter_context(LabNet())
        host = net.host("one")
        host.power_on()
        host.wait_for_libvirtd()
        folder = net.folder / "shared"
        folder.mkdir()
        sector = assemble(net.folder)
        directories = (str(folder),)
        driver = LibvirtHypervisor(
            LibvirtOptions(
                uri="qemu:///system",
                peer_uri=host.uri,
                adapt=AdaptOptions(image_directory=str(folder), domain_type="qemu"),
                policy=TemplatePolicy(image_directories=directories),
                images=ImageOptions(directories, f"{folder}/disks"),
            ),
            thread_initializer=host.enter_thread,
        )
        await driver.open()
        stack.push_async_callback(driver.close)
        for number in range(count):
            disk = folder / f"{number}.raw"
            make_disk(disk, sector)
            name = f"vm-{number}"
            xml = micro_guest_xml(name, disk)
            demand = Capacity(1.0, float(MEMORY_KIB))
            await driver.start(VmSpec(uuid.uuid4().hex, name, demand, libvirt_xml=xml))
        libvirtd = psutil.Process(host.libvirtd_pid())
        await driver.usage()
        times, own = libvirtd.cpu_times(), resource.getrusage(resource.RUSAGE_SELF)
        took_s: list[float] = []
        for _ in range(rounds):
            began_s = time.monotonic()
            found = await driver.usage()
            took_s.append(time.monotonic() - began_s)
            if len(found.vms) != count:
                raise SystemExit(f"{len(found.vms)} of {count} guests were measured")
            await asyncio.sleep(0.2)
        after, then = libvirtd.cpu_times(), resource.getrusage(resource.RUSAGE_SELF)
    spent_s = then.ru_utime + then.ru_stime - own.ru_utime - own.ru_stime
    libvirtd_s = after.user + after.system - times.user - times.system
    return {
        "guests": count,
        "agent_cpu_ms": spent_s / rounds * 1000,
        "libvirtd_cpu_ms": libvirtd_s / rounds * 1000,
        "median_ms": sorted(took_s)[rounds // 2] * 1000,
        "worst_ms": max(took_s) * 1000,
    }


def show(options: argparse.Namespace, on: dict[str, Any], off: dict[str, Any]) -> None:
    seen, quiet = on["manager"], off["manager"]
    seconds, quiet_s = seen["seconds"], quiet["seconds"]
    hosts, vms = options.hosts, options.hosts * options.vms
    manager = seen["cpu_s"] / seconds - quiet["cpu_s"] / quiet_s
    agents = on["hosts"]["cpu_s"] / seconds - off["hosts"]["cpu_s"] / quiet_s
    wire = seen["bytes"] / seconds - quiet["bytes"] / quiet_s
    rows: list[list[object]] = [
        ["manager: share of a core, all", manager * 100, "%"],
        ["  of it taking samples into the rings", seen["push_s"] / seconds * 100, "%"],
        ["  of it for one message", seen["push_s"] / max(1, seen["messages"]) * 1e6, "us"],
        ["  per host", manager / hosts * 1e6, "us/s"],
        ["  per VM", manager / vms * 1e6, "us/s"],
        ["local controller: share of a core, each", agents / hosts * 100, "%"],
        ["bytes a host sends per second", wire / hosts, "B/s"],
        ["bytes per VM and sample", seen["bytes"] / max(1, seen["messages"]) / options.vms, "B"],
        ["messages per second", seen["messages"] / seconds, "1/s"],
        ["delay sample to manager, median", seen["delay_ms"][0], "ms"],
        ["delay sample to manager, 99 %", seen["delay_ms"][1], "ms"],
        ["delay sample to manager, worst", seen["delay_ms"][2], "ms"],
        ["hosts that are fresh", seen["fresh"], f"of {seen['hosts']}"],
        ["samples in the window of all VMs", seen["valid"] * 100, "%"],
        ["one window of all VMs", seen["window_s"] * 1000, "ms"],
        ["manager's memory", seen["rss_mib"], "MiB"],
    ]
    print(_report.table(["what", "value", "unit"], rows))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks monitoring", description=__doc__)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--vms", type=int, default=20, help="of each host")
    parser.add_argument("--interval", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--guests", type=int, default=0, help="real ones, in the lab (root)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output")
    options = parser.parse_args(arguments)
    print(f"{options.hosts} hosts with {options.vms} VMs; {_report.machine()}")
    off = measure(options.hosts, options.vms, SELDOM_S, options.seconds)
    on = measure(options.hosts, options.vms, options.interval, options.seconds)
    show(options, on, off)
    result: dict[str, Any] = {"on": on, "off": off}
    if options.guests:
        result["real"] = asyncio.run(real_guests(options.guests, options.rounds))
        print("one round on a host with real guests:")
        print(_report.table(list(result["real"]), [list(result["real"].values())]))
    _report.write(options.output, result)
    return 0

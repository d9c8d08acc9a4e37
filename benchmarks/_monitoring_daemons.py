"""The two processes of the monitoring benchmark.

``python -m benchmarks._monitoring_daemons manager`` is a group manager's service for hosts; prints
the port that hosts join at, then, for each line on its standard input, what it has seen since the
line before, as JSON.

``... hosts COUNT VMS INTERVAL_S PORT`` are the agents of local controllers with simulated
hypervisors that run VMS each; they are told their manager instead of asking for it. Prints ``up``
when all have begun. Both end with their standard input.
"""

import asyncio
import json
import resource
import sys
import time
import uuid
from typing import Any

import numpy as np
import uvloop

from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.config import parse
from snooze.common.logging_setup import configure_logging
from snooze.common.resources import KIB_PER_GIB, Capacity
from snooze.common.settings import LogSettings
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.settings_localcontroller import JoinSettings
from snooze.common.transport.http_client import HttpClient
from snooze.common.transport.link import LinkLimits
from snooze.common.transport.link_server import Accepted, LinkServer
from snooze.common.usage import HostSamples
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmSpec
from snooze.common.wire import (
    Address,
    Assignment,
    HostDescription,
    HostHello,
    ManagerDescription,
)
from snooze.groupmanager.manager.service import ManagerService
from snooze.localcontroller.agent import Agent
from snooze.localcontroller.hypervisor.port import MigrationOptions
from snooze.localcontroller.hypervisor.simulated import SimulatedHypervisor
from snooze.localcontroller.hypervisor.simulated_world import SimulatedVm, SimulatedWorld
from snooze.localcontroller.orders import Orders
from snooze.localcontroller.power import HostPowerDown, SimulatedPowerDown

VM = Capacity(1.0, float(KIB_PER_GIB), 100.0, 100.0)


def cpu_s() -> float:
    """Processor time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Watched:
    """Counts and times what comes in at a manager."""

    def __init__(self, manager: ManagerService) -> None:
        self.manager = manager
        self.delays_ms: list[float] = []
        self.push_s = 0.0
        self._push = manager.monitoring.push
        manager.monitoring.push = self.push  # type: ignore[method-assign]
        self._before = self._counters()

    def push(self, host_id: str, message: HostSamples, now_s: float) -> None:
        self.delays_ms.append(SYSTEM_CLOCK.wall_ms() - message.taken_ms)
        began_s = time.thread_time()
        self._push(host_id, message, now_s)
        self.push_s += time.thread_time() - began_s

    def _counters(self) -> dict[str, float]:
        stats, _ = self.manager.link_stats()
        return {
            "at_s": SYSTEM_CLOCK.monotonic_s(),
            "cpu_s": cpu_s(),
            "bytes": sum(each.bytes_in for each in stats),
        }

    def report(self) -> dict[str, Any]:
        """Since the report before."""
        now, before = self._counters(), self._before
        self._before = now
        delays, self.delays_ms = np.array(self.delays_ms), []
        push_s, self.push_s = self.push_s, 0.0
        service = self.manager
        vm_ids = [vm.report.vm_id for vm in service.core.table.vms.values()]
        began_s = time.thread_time()
        window = service.monitoring.window(vm_ids, service.now_s)
        window_s = time.thread_time() - began_s
        load = service.monitoring.host_load(service.core.table.order, service.now_s)
        return {
            "seconds": now["at_s"] - before["at_s"],
            "cpu_s": now["cpu_s"] - before["cpu_s"],
            "bytes": now["bytes"] - before["bytes"],
            "messages": int(delays.size),
            "push_s": push_s,
            "delay_ms": np.percentile(delays, [50, 99, 100]).tolist() if delays.size else [],
            "hosts": len(service.core.table.order),
            "fresh": int(load.fresh.sum()),
            "vms": len(vm_ids),
            "valid": float(window.valid.mean()) if window.valid.size else 0.0,
            "window_s": window_s,
            "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


async def lines() -> asyncio.StreamReader:
    """Standard input."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


class NoLeader:
    """There is none in this benchmark, and nothing to be said of it."""

    def leader_died(self, leader: ManagerDescription) -> None:
        """Not called."""

    def leader_unheard(self, leader: ManagerDescription) -> None:
        """Not called."""


async def manage() -> None:
    settings = parse("", GroupManagerSettings)
    identity = ManagerDescription("manager", "manager", Address("", 0), Address("", 0))
    limits = LinkLimits()
    manager = ManagerService(settings, identity, SYSTEM_CLOCK, limits, lambda: True, NoLeader())

    async def on_hello(hello: HostHello, _peer: str) -> Accepted:
        return manager.accept(hello)

    server = LinkServer("127.0.0.1", 0, HostHello, on_hello, limits=limits)
    await server.start()
    watched = Watched(manager)
    asked = await lines()
    print(server.port, flush=True)
    while await asked.readline():
        print(json.dumps(watched.report()), flush=True)
    await manager.close()
    await server.close("the end")


def populated(world: SimulatedWorld, name: str, vms: int) -> SimulatedHypervisor:
    """A host that runs so many VMs already."""
    host = world.host(name, Capacity(float(vms), vms * float(KIB_PER_GIB)))
    for number in range(vms):
        spec = VmSpec(uuid.uuid4().hex, f"{name}-{number}", VM)
        host.put(SimulatedVm(spec, VmState.RUNNING, "<domain/>", 0.0, max_vcpus=1))
    return SimulatedHypervisor(world, name)


class Known(HttpClient):
    """Instead of a bootstrap node: the manager is known."""

    def __init__(self, manager: ManagerDescription) -> None:
        super().__init__()
        self._answer = Assignment(manager, 1)

    async def post(self, *_: Any, **__: Any) -> Any:
        return self._answer


async def host(count: int, vms: int, interval_s: float, port: int) -> None:
    world = SimulatedWorld()
    agents: list[Agent] = []
    where = Address("127.0.0.1", port)
    client = Known(ManagerDescription("manager", "manager", where, where))
    nothing = HostPowerDown(SimulatedPowerDown(), ())
    for number in range(count):
        name = f"host{number:04}"
        driver = populated(world, name, vms)
        await driver.open()

        async def describe(name: str = name) -> HostDescription:
            return HostDescription(name, name, where, Capacity(float(vms), 2.0 * vms * KIB_PER_GIB))

        orders = Orders(driver, MigrationOptions(), 1, lambda notice: None)
        agent = Agent(
            describe,
            orders,
            driver.usage,
            JoinSettings(),
            interval_s,
            LinkLimits(),
            client,
            SYSTEM_CLOCK,
            nothing,
        )
        agent.start()
        agents.append(agent)
        await asyncio.sleep(0.9 * min(interval_s, 3.0) / count)
    asked = await lines()
    print("up", flush=True)
    before_s = cpu_s()
    while await asked.readline():
        now_s = cpu_s()
        sent = sum(agent.measured for agent in agents)
        print(json.dumps({"cpu_s": now_s - before_s, "measured": sent}), flush=True)
        before_s = now_s
    await asyncio.gather(*(agent.close() for agent in agents))


def main() -> None:
    role, *numbers = sys.argv[1:]
    configure_logging(LogSettings(level="error"), "", "benchmark")
    if role == "manager":
        uvloop.run(manage())
    else:
        count, vms, interval_s, port = numbers
        uvloop.run(host(int(count), int(vms), float(interval_s), int(port)))


if __name__ == "__main__":
    main()

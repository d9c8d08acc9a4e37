"""The two processes of the monitoring benchmark.

``python -m benchmarks._monitoring_daemons manager`` is a group manager that leads and manages
alone; prints its control port, then, for each line on its standard input, what it has seen since
the line before, as JSON.

``... hosts COUNT VMS INTERVAL_S PORT`` are real local controllers with simulated hypervisors that
run VMS each; prints ``up`` when all have started. Both end with their standard input.
"""

import asyncio
import json
import resource
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.config import parse
from snooze.common.coordination.memory import MemoryCoordinator, MemoryStore
from snooze.common.identity import node_identity
from snooze.common.logging_setup import configure_logging
from snooze.common.resources import KIB_PER_GIB, Capacity
from snooze.common.settings import LogSettings
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.settings_localcontroller import LocalControllerSettings
from snooze.common.usage import HostSamples
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmSpec
from snooze.groupmanager.service import GroupManager
from snooze.localcontroller.hypervisor.simulated_world import SimulatedVm, SimulatedWorld
from snooze.localcontroller.service import LocalController

LOCAL = {"listen_address": "127.0.0.1", "advertised_address": "127.0.0.1", "control_port": 0}
VM = Capacity(1.0, float(KIB_PER_GIB), 100.0, 100.0)


def cpu_s() -> float:
    """Processor time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Watched:
    """Counts and times what comes in at a manager."""

    def __init__(self, manager: GroupManager) -> None:
        self.manager = manager
        self.delays_ms: list[float] = []
        self.push_s = 0.0
        self._push = manager.manager.monitoring.push
        manager.manager.monitoring.push = self.push  # type: ignore[method-assign]
        self._before = self._counters()

    def push(self, host_id: str, message: HostSamples, now_s: float) -> None:
        self.delays_ms.append(SYSTEM_CLOCK.wall_ms() - message.taken_ms)
        began_s = time.thread_time()
        self._push(host_id, message, now_s)
        self.push_s += time.thread_time() - began_s

    def _counters(self) -> dict[str, float]:
        stats, _ = self.manager.manager.link_stats()
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
        service = self.manager.manager
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


async def manage(folder: Path) -> None:
    settings = parse(
        "",
        GroupManagerSettings,
        overrides={
            "node": {"state_directory": str(folder), "hostname": "manager"},
            "network": {**LOCAL, "monitoring_port": 0},
            "coordination": {"driver": "memory"},
        },
    )
    coordinator = MemoryCoordinator(MemoryStore())
    manager = GroupManager(settings, coordinator, node_identity(settings))
    await manager.start()
    watched = Watched(manager)
    asked = await lines()
    print(manager.identity.control.port, flush=True)
    while await asked.readline():
        print(json.dumps(watched.report()), flush=True)
    await manager.close()


def populated(world: SimulatedWorld, name: str, vms: int) -> None:
    """A host that runs so many VMs already."""
    host = world.host(name, Capacity(float(vms), vms * float(KIB_PER_GIB)))
    for number in range(vms):
        spec = VmSpec(uuid.uuid4().hex, f"{name}-{number}", VM)
        host.put(SimulatedVm(spec, VmState.RUNNING, "<domain/>", 0.0, max_vcpus=1))


async def host(count: int, vms: int, interval_s: float, port: int, folder: Path) -> None:
    world = SimulatedWorld()
    agents: list[LocalController] = []
    for number in range(count):
        name = f"host{number:04}"
        populated(world, name, vms)
        settings = parse(
            "",
            LocalControllerSettings,
            overrides={
                "node": {"state_directory": str(folder / name), "hostname": name},
                "network": LOCAL,
                "join": {"bootstrap_nodes": (f"127.0.0.1:{port}",)},
                "hypervisor": {"driver": "simulated"},
                "capacity": {"reserved_memory_kib": 0.0},
                "monitoring": {"interval_s": interval_s},
            },
        )
        agents.append(LocalController(settings, node_identity(settings), world=world))
    for agent in agents:
        await agent.start()
        await asyncio.sleep(0.9 * min(interval_s, 3.0) / count)
    asked = await lines()
    print("up", flush=True)
    before_s = cpu_s()
    while await asked.readline():
        now_s = cpu_s()
        sent = sum(agent.agent.measured for agent in agents)
        print(json.dumps({"cpu_s": now_s - before_s, "measured": sent}), flush=True)
        before_s = now_s
    await asyncio.gather(*(agent.close() for agent in agents))


def main() -> None:
    role, *numbers = sys.argv[1:]
    configure_logging(LogSettings(level="error"), "", "benchmark")
    with tempfile.TemporaryDirectory(prefix="snooze-bench-") as folder:
        if role == "manager":
            uvloop.run(manage(Path(folder)))
        else:
            count, vms, interval_s, port = numbers
            uvloop.run(host(int(count), int(vms), float(interval_s), int(port), Path(folder)))


if __name__ == "__main__":
    main()

"""Many local controllers in one process: the hosts of the submission benchmark.

``python -m benchmarks._submission_hosts COUNT HYPERVISOR BOOTSTRAP DIRECTORY [SETTINGS]``; prints
``up`` when all have started, stops on SIGTERM. BOOTSTRAP may be several, separated by commas;
SETTINGS are more of them, by section, as JSON; ``benchmark.first`` is the number of the first host,
``benchmark.start_s`` how long a start takes, at least and in the mean beyond that.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path

import uvloop

from snooze.common.config import parse
from snooze.common.identity import node_identity
from snooze.common.logging_setup import configure_logging
from snooze.common.settings import LogSettings
from snooze.common.settings_localcontroller import LocalControllerSettings
from snooze.localcontroller.hypervisor.libvirt_options import host_file
from snooze.localcontroller.hypervisor.simulated_world import (
    Latency,
    SimulatedSettings,
    SimulatedWorld,
)
from snooze.localcontroller.service import LocalController

CPUS = 128
MEMORY_KIB = 512 * 1024 * 1024


def make_host(
    index: int,
    hypervisor: str,
    bootstrap: str,
    directory: Path,
    world: SimulatedWorld,
    more: dict[str, dict[str, object]],
) -> LocalController:
    name = f"bench{index:04}"
    if hypervisor == "simulated":
        driver: dict[str, object] = {
            "driver": "simulated",
            "simulated": {
                "cpus": CPUS,
                "memory_kib": MEMORY_KIB,
            },
        }
    else:
        file = directory / f"{name}.xml"
        file.write_text(host_file(CPUS, MEMORY_KIB))
        driver = {"uri": f"test://{file}", "workers": 1}
    settings = parse(
        "",
        LocalControllerSettings,
        overrides={
            "node": {"state_directory": str(directory / name), "hostname": name},
            "network": {
                "listen_address": "127.0.0.1",
                "advertised_address": "127.0.0.1",
                "control_port": 0,
            },
            "join": {"bootstrap_nodes": tuple(bootstrap.split(",")), **more.get("join", {})},
            "heartbeat": more.get("heartbeat", {}),
            "hypervisor": driver,
            "capacity": {
                "reserved_memory_kib": 0.0,
                "rx_kib_s": 1e7,
                "tx_kib_s": 1e7,
            },
        },
    )
    return LocalController(settings, node_identity(settings), world=world)


async def serve(
    count: int,
    hypervisor: str,
    bootstrap: str,
    directory: Path,
    more: dict[str, dict[str, object]],
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    own = more.get("benchmark", {})
    start_s, first = float(str(own.get("start_s", 0.0))), int(str(own.get("first", 0)))
    latencies = {"start": Latency(start_s, start_s)}
    world = SimulatedWorld(settings=SimulatedSettings(latencies=latencies))
    hosts = [
        make_host(first + i, hypervisor, bootstrap, directory, world, more) for i in range(count)
    ]
    for host in hosts:
        await host.start()
    print("up", flush=True)
    await stopping.wait()
    await asyncio.gather(*(host.close() for host in hosts))


def main() -> None:
    count, hypervisor, bootstrap, directory = sys.argv[1:5]
    more: dict[str, dict[str, object]] = json.loads(sys.argv[5]) if len(sys.argv) > 5 else {}
    configure_logging(LogSettings(level="error"), "", "benchmark")
    uvloop.run(serve(int(count), hypervisor, bootstrap, Path(directory), more))


if __name__ == "__main__":
    main()

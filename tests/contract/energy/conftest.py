"""Real daemons in one process whose hosts sleep and are woken, by simulated power and by real IPMI.

``house`` is a cluster of two group managers and three hosts of 16 cores. A host's machine is on
while its local controller runs; with IPMI it is a file that OpenIPMI's ``ipmi_sim`` makes and takes
away when its BMC is told to, and the group managers are told of it by the original's options.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from snooze.client.allinone import AllInOne, Options, cluster
from snooze.client.async_sdk import AsyncSnooze, decode
from snooze.client.machines import Machine
from snooze.common.api import ClusterRequest, DecisionView, VmRequest
from snooze.common.errors import SnoozeError
from snooze.common.task_set import TaskSet
from tests.contract.ipmi_bmc import IpmiSim, ipmi_sim

PATIENCE_S = 60.0
POLL_S = 0.05
CORES = 16
"""Of each host: a VM that has one for itself."""
HOSTS: tuple[str, ...] = ("host1", "host2", "host3")
DOMAIN = (
    "<domain type='kvm'><name>{name}</name><memory unit='KiB'>65536</memory>"
    "<vcpu>{vcpus}</vcpu><os><type>hvm</type></os></domain>"
)

ENERGY: dict[str, object] = {
    "enabled": True,
    "idle_s": 0.5,
    "min_on_s": 0.5,
    "min_off_s": 1.0,
    "reserve_cpu": 0.0,
    "reserve_memory": 0.0,
    "down_timeout_s": 4.0,
    "wake_timeout_s": 4.0,
    "wake_tries": 2,
    "record_s": 1.0,
}
QUICK: dict[str, object] = {
    "heartbeat": {"interval_s": 0.5, "timeout_s": 3.0},
    "monitoring": {"interval_s": 0.5},
    "recovery": {"reserve": "none"},
    "submission": {"start_timeout_s": 2.0},
}


@dataclass
class Board:
    """A host's power as seen by whoever does not use its driver.

    Attributes:
        orders: how often its BMC was told to switch it on.
        silence: whether its BMC answers nothing from now on.
    """

    machine: Machine
    orders: Callable[[], int]
    silence: Callable[[bool], None]

    @property
    def is_on(self) -> bool:
        return self.machine.board.is_on


class House:
    """The cluster with its boards and a client."""

    def __init__(self, running: AllInOne, client: AsyncSnooze, boards: dict[str, Board]) -> None:
        self.running = running
        self.client = client
        self.boards = boards
        self.machines = dict(zip(HOSTS, running.machines, strict=True))

    async def power(self) -> dict[str, str]:
        return {host.hostname: host.power for host in await self.client.hosts()}

    async def asleep(self) -> list[str]:
        return [name for name, power in (await self.power()).items() if power == "asleep"]

    async def submit(self, name: str, cores: int = CORES, host: str = "") -> str:
        request = VmRequest(libvirt_xml=DOMAIN.format(name=name, vcpus=cores), host=host)
        return (await self.client.submit(ClusterRequest(vms=[request]))).id

    async def run(self, name: str, cores: int = CORES, host: str = "") -> str:
        """Have a VM run; the host it is on."""
        await self.client.wait(
            await self.client.task(await self.submit(name, cores, host)), check=True
        )
        return (await self.client.vm(name)).hostname

    async def note(self, task_id: str) -> str:
        """What the task of one VM says of it."""
        [vm] = (await self.client.task(task_id)).vms
        return vm.note

    async def decisions(self, kind: str) -> list[DecisionView]:
        return decode(await self.client.fetch("/decisions", {"kind": kind}), list[DecisionView])

    async def events(self) -> list[str]:
        return [event.kind for event in await self.client.all_events()]

    async def until(self, holds: Callable[[], Awaitable[bool]], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await self._holds(holds):  # noqa: ASYNC110 - it is asked over HTTP
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            events = [event.message for event in await self.client.all_events()][-20:]
            told = "\n".join(events)
            pytest.fail(f"{what}: not within {PATIENCE_S:g} s; {await self.power()}\n{told}")

    @staticmethod
    async def _holds(holds: Callable[[], Awaitable[bool]]) -> bool:
        try:
            return await holds()
        except SnoozeError:
            return False  # there may be no leader at this moment

    async def until_power(self, **wanted: str) -> None:
        async def seen() -> bool:
            return wanted.items() <= (await self.power()).items()

        await self.until(seen, f"power is {wanted}")


Boards = Callable[[AllInOne], dict[str, Board]]


async def simulated(_folder: Path, stack: AsyncExitStack) -> tuple[Boards, dict[str, str]]:
    """Boards of the shipped fake."""

    def board(machine: Machine) -> Board:
        power = machine.board

        def silence(silent: bool) -> None:
            power.is_silent = silent

        return Board(machine, lambda: power.orders.count("on"), silence)

    def boards(running: AllInOne) -> dict[str, Board]:
        return {name: board(machine) for name, machine in zip(HOSTS, running.machines, strict=True)}

    return boards, {}


async def real(folder: Path, stack: AsyncExitStack) -> tuple[Boards, dict[str, str]]:
    """Boards behind real BMCs; the options that reach each."""
    if shutil.which("ipmi_sim") is None:
        pytest.skip("there is no ipmi_sim: apt-get install openipmi")
    bmcs: dict[str, IpmiSim] = {}
    for name in HOSTS:
        (folder / name).mkdir()
        bmcs[name] = stack.enter_context(ipmi_sim(folder / name))
        bmcs[name].machine.plug(True)
    tasks = TaskSet()
    stack.push_async_callback(tasks.close)

    def board(bmc: IpmiSim, machine: Machine) -> Board:
        machine.board.listeners.append(bmc.machine.plug)
        tasks.spawn(follow(bmc, machine))

        def silence(silent: bool) -> None:
            os.kill(bmc.pid, signal.SIGSTOP if silent else signal.SIGCONT)

        return Board(machine, lambda: bmc.machine.ordered().count("power 1"), silence)

    def boards(running: AllInOne) -> dict[str, Board]:
        return {
            name: board(bmcs[name], machine)
            for name, machine in zip(HOSTS, running.machines, strict=True)
        }

    return boards, {name: bmc.options() for name, bmc in bmcs.items()}


async def follow(bmc: IpmiSim, machine: Machine) -> None:
    """The machine does as its BMC was told."""
    while True:
        machine.board.switch(bmc.machine.is_on())
        await asyncio.sleep(POLL_S)


DRIVERS = {"test": simulated, "IPMI": real}
LIMITS: dict[str, dict[str, object]] = {
    "test": {"call_timeout_s": 1.0},
    "IPMI": {"call_timeout_s": 8.0, "ipmi_processes": 2},
}


@pytest.fixture(params=DRIVERS)
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    """One cluster for each story, by each driver."""
    async with AsyncExitStack() as stack:
        boards, options = await DRIVERS[request.param](tmp_path, stack)
        wakeup: dict[str, dict[str, object]] = {
            name: {"driver": request.param, "options": each} for name, each in options.items()
        }
        running = await stack.enter_async_context(
            cluster(
                Options(
                    managers=2,
                    hosts=len(HOSTS),
                    hypervisor="simulated",
                    port=0,
                    sleep=True,
                    wakeup=wakeup,
                    overrides={**QUICK, "energy": ENERGY, "power": LIMITS[request.param]},
                )
            )
        )
        for machine in running.machines:
            machine.boot_s = 0.2
        client = await stack.enter_async_context(AsyncSnooze(running.url))
        yield House(running, client, boards(running))

"""The power drivers under one contract: each gives a bench of one machine, with real peers.

IPMI is answered by OpenIPMI's ``ipmi_sim``, Redfish by sushy-tools' emulator on libvirt's test
driver, Wake-on-LAN by a listener, commands are commands.
"""

import asyncio
import os
import shlex
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from snooze.common.resources import Capacity
from snooze.common.wire import Address, HostDescription, PowerDescription
from snooze.groupmanager.power.factory import PowerDrivers
from snooze.groupmanager.power.port import PowerController, PowerLimits
from snooze.groupmanager.power.simulated import SimulatedPower
from tests.contract.ipmi_bmc import FileMachine, IpmiSim, ipmi_sim
from tests.contract.redfish_bmc import Emulator, sushy_emulator

LIMITS = PowerLimits(call_timeout_s=15.0, off_timeout_s=25.0, poll_s=0.1)
MOST_WAITING_S = 30.0
HASTY = PowerLimits(call_timeout_s=2.0, off_timeout_s=2.0, poll_s=0.1)


def host_with(driver: str, options: str) -> HostDescription:
    power = PowerDescription(driver=driver, options=options)
    host_id = f"{driver} {options}"
    return HostDescription(
        host_id, "h1", Address("127.0.0.1", 1), Capacity(1, 1, 1, 1), power=power
    )


@dataclass
class Bench:
    """One machine behind one driver.

    Attributes:
        is_on: whether the machine has power, seen from outside the driver.
        plug: gives or takes its power behind the driver's back.
        silence: its controller answers nothing from now on; None where nothing can be silent.
        intrude: a controller with a wrong password; None where there are none.
        orders: how many orders that change something reached the machine; None: not counted.
        hasty: a controller of the same machine whose time is soon over.
    """

    kind: str
    controller: PowerController
    is_on: Callable[[], bool]
    plug: Callable[[bool], None]
    hasty: PowerController
    silence: Callable[[], Awaitable[None]] | None = None
    intrude: Callable[[], PowerController] | None = None
    orders: Callable[[], int] | None = None

    async def wait_until(self, is_on: bool) -> None:
        async with asyncio.timeout(MOST_WAITING_S):
            while self.is_on() is not is_on:  # noqa: ASYNC110 (it is seen from outside)
                await asyncio.sleep(0.05)


async def simulated(folder: Path) -> AsyncIterator[Bench]:
    world = SimulatedPower()
    machine = world.machine("h1")
    machine.off_s = 0.1
    machine.on_s = 0.1
    drivers = PowerDrivers(LIMITS, world)
    hasty = PowerDrivers(PowerLimits(0.2, 0.4, 0.05), world)

    async def silence() -> None:
        machine.is_silent = True

    def intrude() -> PowerController:
        machine.refuses_password = True
        return drivers.controller(host_with("test", "h1"))

    yield Bench(
        "test",
        drivers.controller(host_with("test", "")),
        lambda: machine.is_on,
        machine.switch,
        hasty.controller(host_with("test", "")),
        silence,
        intrude,
        lambda: len(machine.orders),
    )
    await drivers.close()


# ---------------------------------------------------------------- IPMI


async def ipmi(folder: Path) -> AsyncIterator[Bench]:
    drivers, hasty = PowerDrivers(LIMITS), PowerDrivers(HASTY)
    with ipmi_sim(folder) as bmc:

        async def silence() -> None:
            os.kill(bmc.pid, signal.SIGSTOP)

        yield Bench(
            "IPMI",
            drivers.controller(host_with("IPMI", bmc.options())),
            bmc.machine.is_on,
            bmc.machine.plug,
            hasty.controller(host_with("IPMI", bmc.options())),
            silence,
            lambda: drivers.controller(host_with("IPMI", bmc.options(password="falsch"))),
            bmc.machine.orders,
        )
        await drivers.close()
        await hasty.close()


# ---------------------------------------------------------------- Redfish


async def redfish(folder: Path) -> AsyncIterator[Bench]:
    drivers, hasty = PowerDrivers(LIMITS), PowerDrivers(HASTY)
    with sushy_emulator(folder) as emulator:
        members = emulator.ask("GET", "/redfish/v1/Systems")["Members"]
        assert isinstance(members, list)
        emulator.system = members[0]["@odata.id"]

        async def silence() -> None:
            os.kill(emulator.pid, signal.SIGSTOP)

        controllers = [
            drivers.controller(host_with("REDFISH", emulator.options())),
            hasty.controller(host_with("REDFISH", emulator.options())),
        ]
        yield Bench(
            "REDFISH",
            controllers[0],
            emulator.is_on,
            emulator.plug,
            controllers[1],
            silence,
            lambda: drivers.controller(host_with("REDFISH", emulator.options("falsch"))),
        )
        for controller in controllers:
            await controller.close()
        await drivers.close()
        await hasty.close()


# ---------------------------------------------------------------- Wake-on-LAN

MAC = bytes.fromhex("525400123456")


class Sleeper(asyncio.DatagramProtocol):
    """A machine with a card that listens."""

    def __init__(self) -> None:
        self.on = False

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.on = self.on or data == b"\xff" * 6 + MAC * 16

    def plug(self, is_on: bool) -> None:
        self.on = is_on


async def wake_on_lan(folder: Path) -> AsyncIterator[Bench]:
    drivers = PowerDrivers(LIMITS)
    transport, sleeper = await asyncio.get_running_loop().create_datagram_endpoint(
        Sleeper, local_addr=("127.0.0.1", 0)
    )
    port = transport.get_extra_info("sockname")[1]
    controller = drivers.controller(
        host_with("WOL", f"-i 127.0.0.1 -p {port} 52:54:00:12:34:55 {MAC.hex(':')}")
    )
    yield Bench("WOL", controller, lambda: sleeper.on, sleeper.plug, controller)
    transport.close()
    await drivers.close()


# ---------------------------------------------------------------- commands


async def command(folder: Path) -> AsyncIterator[Bench]:
    drivers = PowerDrivers(LIMITS, run_commands_of_hosts=True)
    hasty = PowerDrivers(HASTY, run_commands_of_hosts=True)
    machine = FileMachine(folder)
    here = shlex.quote(str(folder))
    script = f"#!/bin/sh\ncd {here}\necho $1 >>orders\n"
    # what is started stays behind, and holds the output open
    on = machine.script("switch-on", script + "sleep 3 &\n(sleep 0.2; touch on) &\necho $! >pid")
    off = machine.script("switch-off", script + "rm -f on")
    ask = "#!/bin/sh\ncd {}\n[ -e on ] && echo Chassis Power is on || echo Chassis Power is off"
    status = machine.script("status", ask.format(here))

    async def silence() -> None:
        for name in ("switch-on", "switch-off", "status"):
            machine.script(name, "#!/bin/sh\nsleep 60 & sleep 60")

    options = f"--on '{on} on' --off {off} --status {status}"
    yield Bench(
        "COMMAND",
        drivers.controller(host_with("COMMAND", options)),
        machine.is_on,
        machine.plug,
        hasty.controller(host_with("COMMAND", options)),
        silence,
        None,
        machine.orders,
    )
    await drivers.close()
    await hasty.close()


BENCHES: dict[str, Callable[[Path], AsyncIterator[Bench]]] = {
    "test": simulated,
    "IPMI": ipmi,
    "REDFISH": redfish,
    "WOL": wake_on_lan,
    "COMMAND": command,
}


@pytest.fixture(params=BENCHES)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async for each in BENCHES[request.param](tmp_path):
        yield each


@pytest.fixture
def bmc(tmp_path: Path) -> Iterator[IpmiSim]:
    with ipmi_sim(tmp_path) as running_bmc:
        yield running_bmc


Emulate = Callable[..., AbstractContextManager[Emulator]]


@pytest.fixture
def emulate(tmp_path: Path) -> Emulate:
    """Starts an emulator; takes ``program``, ``config`` and ``is_ready``."""

    def start(**wishes: Any) -> AbstractContextManager[Emulator]:
        return sushy_emulator(tmp_path, **wishes)

    return start

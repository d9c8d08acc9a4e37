"""The power drivers under one contract: each gives a bench of one machine."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from snooze.common.resources import Capacity
from snooze.common.wire import Address, HostDescription, PowerDescription
from snooze.groupmanager.power.factory import PowerDrivers
from snooze.groupmanager.power.port import PowerController, PowerLimits
from snooze.groupmanager.power.simulated import SimulatedPower

LIMITS = PowerLimits(call_timeout_s=15.0, off_timeout_s=25.0, poll_s=0.1)
MOST_WAITING_S = 30.0


def host_with(driver: str, options: str) -> HostDescription:
    power = PowerDescription(driver=driver, options=options)
    return HostDescription("id-1", "h1", Address("127.0.0.1", 1), Capacity(1, 1, 1, 1), power=power)


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


async def simulated() -> AsyncIterator[Bench]:
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


BENCHES: dict[str, Callable[[], AsyncIterator[Bench]]] = {"test": simulated}


@pytest.fixture(params=BENCHES)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async for each in BENCHES[request.param]():
        yield each

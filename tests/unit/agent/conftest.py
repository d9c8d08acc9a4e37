"""Hosts on one simulated world."""

from collections.abc import AsyncIterator

import pytest

from snooze.localcontroller.hypervisor.simulated_world import SimulatedWorld
from tests.unit.agent.rig import MakeRig, Rig


@pytest.fixture
async def make_rig() -> AsyncIterator[MakeRig]:
    world = SimulatedWorld()
    rigs: list[Rig] = []

    async def make(name: str) -> Rig:
        rig = Rig(world, name)
        await rig.hypervisor.open()
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.go_on()
        await rig.orders.close(5.0)
        await rig.hypervisor.close()


@pytest.fixture
async def rig(make_rig: MakeRig) -> Rig:
    return await make_rig("one")

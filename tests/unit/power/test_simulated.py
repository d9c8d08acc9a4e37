"""The fake's knobs do what they say."""

import pytest

from snooze.common.errors import ExecutionError, RemoteTimeout
from snooze.groupmanager.power.port import PowerLimits, PowerState
from snooze.groupmanager.power.simulated import SimulatedController, SimulatedPower


class Time:
    """Time that passes at once, and is counted."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    async def sleep(self, delay_s: float) -> None:
        self.slept_s += delay_s


def rig() -> tuple[SimulatedPower, SimulatedController, Time]:
    time = Time()
    world = SimulatedPower(time.sleep)
    return world, SimulatedController(world, "h1", PowerLimits(3.0, 5.0, 1.0)), time


async def test_a_stuck_machine_is_not_off_and_says_so_in_time() -> None:
    world, controller, time = rig()
    world.machine("h1").is_stuck = True
    with pytest.raises(RemoteTimeout):
        await controller.off()
    assert world.machine("h1").is_on
    assert time.slept_s == 5


async def test_an_answer_may_be_lost_and_the_order_done() -> None:
    world, controller, _ = rig()
    world.machine("h1").loses_answers = True
    with pytest.raises(RemoteTimeout):
        await controller.off()
    assert not world.machine("h1").is_on


async def test_a_system_that_ignores_shutdowns() -> None:
    world, controller, _ = rig()
    world.machine("h1").shutdown_s = None
    assert await controller.off(hard=False) is PowerState.ON
    assert await controller.off() is PowerState.OFF
    assert world.machine("h1").orders == ["shutdown", "off"]


async def test_a_controller_that_says_that_it_failed() -> None:
    world, controller, _ = rig()
    world.machine("h1").fails = True
    with pytest.raises(ExecutionError):
        await controller.off()


async def test_who_listens_hears_each_change_once() -> None:
    world, controller, _ = rig()
    heard: list[bool] = []
    world.machine("h1").listeners.append(heard.append)
    await controller.off()
    await controller.off()
    await controller.on()
    assert heard == [False, True]


async def test_a_newer_order_replaces_one_not_yet_carried_out() -> None:
    world = SimulatedPower()
    machine = world.machine("h1")
    machine.switch(False)
    machine.on_s = 0.2
    controller = SimulatedController(world, "h1")
    await controller.on()
    assert await controller.off() is PowerState.OFF
    await world.sleep(0.4)
    assert not machine.is_on


async def test_controllers_share_the_machine() -> None:
    world, controller, _ = rig()
    await controller.off()
    assert await SimulatedController(world, "h1").state() is PowerState.OFF


async def test_what_it_draws() -> None:
    world, controller, _ = rig()
    assert await controller.power_w() is None
    world.machine("h1").draws_w = 120.0
    assert await controller.power_w() == 120
    world.machine("h1").switch(False)
    assert await controller.power_w() == 0

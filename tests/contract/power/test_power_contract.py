"""What every power driver promises, as far as it can do it at all."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from snooze.common.errors import PreconditionError, RemoteError
from snooze.groupmanager.power.port import PowerState

if TYPE_CHECKING:
    from tests.contract.power.conftest import Bench

PASSWORDS = ("geheim", "falsch")


async def test_the_state_is_read_from_the_machine(bench: "Bench") -> None:
    if not bench.controller.can_read_state:
        assert await bench.controller.state() is PowerState.UNKNOWN
        return
    bench.plug(True)
    assert await bench.controller.state() is PowerState.ON
    bench.plug(False)
    assert await bench.controller.state() is PowerState.OFF


async def test_on_wakes(bench: "Bench") -> None:
    bench.plug(False)
    await bench.controller.on()
    await bench.wait_until(True)


async def test_on_again_changes_nothing(bench: "Bench") -> None:
    bench.plug(True)
    await bench.controller.on()
    await bench.controller.on()
    assert bench.is_on()


async def test_off_returns_when_it_was_read_back(bench: "Bench") -> None:
    bench.plug(True)
    if not bench.controller.can_power_off:
        with pytest.raises(PreconditionError):
            await bench.controller.off()
        assert bench.is_on()
        return
    said = await bench.controller.off()
    if bench.controller.can_read_state:
        assert said is PowerState.OFF
        assert not bench.is_on()
    else:
        assert said is PowerState.UNKNOWN
        await bench.wait_until(False)


async def test_already_off_counts_and_is_not_ordered_again(bench: "Bench") -> None:
    if not (bench.controller.can_power_off and bench.controller.can_read_state):
        pytest.skip("it cannot know")
    bench.plug(False)
    before = bench.orders() if bench.orders else 0
    assert await bench.controller.off() is PowerState.OFF
    assert await bench.controller.off(hard=False) is PowerState.OFF
    if bench.orders:
        assert bench.orders() == before


async def test_there_and_back_and_there_again(bench: "Bench") -> None:
    if not bench.controller.can_power_off:
        pytest.skip("it only wakes")
    bench.plug(True)
    for _ in range(2):
        await bench.controller.off()
        await bench.wait_until(False)
        await bench.controller.on()
        await bench.wait_until(True)


async def test_many_at_once(bench: "Bench") -> None:
    bench.plug(True)
    states = await asyncio.gather(*(bench.controller.state() for _ in range(5)))
    expected = PowerState.ON if bench.controller.can_read_state else PowerState.UNKNOWN
    assert set(states) == {expected}


async def test_a_shutdown_asked_for_politely(bench: "Bench") -> None:
    if not bench.controller.can_power_off:
        pytest.skip("it only wakes")
    bench.plug(True)
    await bench.controller.off(hard=False)
    await bench.wait_until(False)


async def test_a_silent_controller_is_never_off(bench: "Bench") -> None:
    if bench.silence is None:
        pytest.skip("nothing to be silent")
    bench.plug(False)
    await bench.silence()
    async with asyncio.timeout(60):
        for call in (bench.hasty.state, bench.hasty.off, bench.hasty.on):
            with pytest.raises(RemoteError):
                await call()


async def test_a_wrong_password_is_refused_and_not_repeated(bench: "Bench") -> None:
    if bench.intrude is None:
        pytest.skip("there are no passwords")
    bench.plug(True)
    intruder = bench.intrude()
    for call in (intruder.state, intruder.on, intruder.off):
        with pytest.raises(PreconditionError) as caught:
            await call()
        assert not any(word in str(caught.value) for word in PASSWORDS)
    assert not any(word in repr(intruder) for word in PASSWORDS)
    assert bench.is_on()
    await intruder.close()


async def test_watts_are_a_number_or_nothing(bench: "Bench") -> None:
    bench.plug(True)
    watts = await bench.controller.power_w()
    assert watts is None or 0 <= watts < 10_000


async def test_closing_twice(bench: "Bench") -> None:
    await bench.controller.close()
    await bench.controller.close()

"""How the leader's energy saver puts hosts to sleep and wakes them, whatever switches them on."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from snooze.common.api import TaskState
from snooze.common.errors import Conflict

if TYPE_CHECKING:
    from tests.contract.energy.conftest import House

HELD_S = 3.0
"""Longer than ``submission.start_timeout_s``: waiting for a host does not count."""


async def test_idle_hosts_sleep_and_a_vm_waits_for_one_just_until_it_has_joined(
    house: "House",
) -> None:
    async def two_sleep() -> bool:
        return len(await house.asleep()) == 2

    await house.until(two_sleep, "all but the reserve sleep")
    for name in await house.asleep():
        assert not house.boards[name].is_on
        assert house.machines[name].daemon is None
    for decision in await house.decisions("sleep"):
        assert decision.reason.startswith("idle for ")
        assert decision.state == "done"
    await asyncio.sleep(1.5)
    assert len(await house.asleep()) == 2, "one host stays up: energy.reserved_hosts"
    assert await house.run("first") not in await house.asleep()
    for machine in house.machines.values():
        machine.boots.clear()
    task_id = await house.submit("second")

    async def waits() -> bool:
        return (await house.note(task_id)).startswith("waits for host ")

    await house.until(waits, "its task says what it waits for")
    woken = (await house.note(task_id)).removeprefix("waits for host ").split()[0]
    await house.until_power(**{woken: "waking"})
    await asyncio.sleep(HELD_S)
    task = await house.client.task(task_id)
    assert task.state is TaskState.RUNNING, "it is waited for, however long that takes"
    assert task.vms[0].note.startswith(f"waits for host {woken} to wake")
    house.machines[woken].boots.set()
    await house.client.wait(task, check=True)
    vm = await house.client.vm("second")
    assert vm.hostname == woken
    events = await house.client.all_events()
    at = {
        event.kind: event.at_ms
        for event in events
        if event.subject in {vm.host_id, vm.vm_id, vm.name}
    }
    assert at["host.waking"] <= at["host.awake"] <= at["vm.running"], at
    assert at["vm.running"] - at["host.awake"] < 20_000, "it was placed when the host was up"
    assert house.boards[woken].orders() in {1, 2}, "a slow machine may have it woken once more"
    [wake] = await house.decisions("wake")
    assert wake.reason == "VM second waits for room"


async def test_a_host_that_does_not_wake_is_marked_and_the_next_one_is_woken(
    house: "House",
) -> None:
    async def two_sleep() -> bool:
        return len(await house.asleep()) == 2

    await house.until(two_sleep, "two sleep")
    dead, other = await house.asleep()
    up = next(name for name in house.machines if name not in {dead, other})
    await house.run("first", host=up)
    for name in (dead, other):
        house.machines[name].boots.clear()
    task_id = await house.submit("second")

    async def is_woken() -> bool:
        return "waking" in (await house.power()).values()

    await house.until(is_woken, "one is woken")
    power = await house.power()
    if power[other] == "waking":
        dead, other = other, dead
    house.machines[other].boots.set()
    await house.client.wait(await house.client.task(task_id), check=True)
    assert (await house.client.vm("second")).hostname == other
    host = await house.client.host(dead)
    assert host.power == "failed"
    assert "did not join within" in host.note
    assert house.boards[dead].orders() == 2, "energy.wake_tries"
    failed = next(each for each in await house.decisions("wake") if each.state == "failed")
    assert "did not join within" in failed.outcome
    assert "host.power_failed" in await house.events()
    await asyncio.sleep(2.0)
    assert (await house.power())[dead] == "failed", "it is left alone"
    # A person tries again; its machine has power, and boots now.
    house.machines[dead].boots.set()
    await house.until_power(**{dead: "active"})


@pytest.mark.parametrize("state", ["going_down", "waking"])
async def test_a_new_leader_goes_on_with_what_the_former_one_had_begun(
    house: "House", state: str
) -> None:
    """It dies while a host shuts down (its BMC is silent: nobody can tell), and while one boots."""
    target = "host1"

    async def sleeps() -> bool:
        return bool(await house.asleep())

    if state == "waking":
        await house.until(sleeps, "one sleeps")
        [target, *_] = await house.asleep()
        house.machines[target].boots.clear()
        assert "being woken" in (await house.client.wake_host(target)).message
    else:
        house.boards[target].silence(True)
        if (await house.power())[target] == "active":
            await house.client.sleep_host(target, force=True)
    await house.until_power(**{target: state})
    # Recorded, and ordered: then the leader is gone without a word.
    await house.running.kill_leader()
    house.boards[target].silence(False)
    if state == "going_down":
        await house.until_power(**{target: "asleep"})
        [last] = [d for d in await house.decisions("sleep") if d.reason.startswith("goes on")]
        assert not house.boards[target].is_on
    else:
        orders = house.boards[target].orders()

        async def ordered_again() -> bool:
            return house.boards[target].orders() > orders

        await house.until(ordered_again, "the new leader wakes it once more")
        house.machines[target].boots.set()
        await house.until_power(**{target: "active"})
        [last] = [d for d in await house.decisions("wake") if d.reason.startswith("goes on")]

    async def done() -> bool:
        found = await house.decisions("sleep" if state == "going_down" else "wake")
        return [d.state for d in found if d.id == last.id] == ["done"]

    await house.until(done, "its decision has ended")
    assert last.replayable


async def test_people_put_hosts_to_sleep_and_wake_them(house: "House") -> None:
    client = house.client
    busy = await house.run("vm", cores=1)
    with pytest.raises(Conflict, match="VM vm is on it"):
        await client.sleep_host(busy, force=True)

    async def others_sleep() -> bool:
        return len(await house.asleep()) == 2

    await house.until(others_sleep, "the two others sleep")
    target, other = await house.asleep()
    assert (await client.wake_host(target)).message == "it is being woken"
    await house.until_power(**{target: "active"})
    # A host is drained while no other is up: one is woken for its VM. Then a person puts it to
    # sleep, although it is in maintenance.
    await house.until(others_sleep, "both sleep again")
    plan = await client.drain([busy])
    await client.wait(await client.task(plan.task_id), check=True)
    refuge = (await client.vm("vm")).hostname
    assert refuge in {target, other}
    with pytest.raises(Conflict, match="it is in maintenance"):
        await client.sleep_host(busy)
    await client.sleep_host(busy, force=True)
    await house.until_power(**{busy: "asleep"})
    assert not house.boards[busy].is_on
    await client.undrain([busy])
    assert (await client.wake_host(busy)).message == "it is being woken"
    await house.until_power(**{busy: "active"})
    reasons = [d.reason for d in await house.decisions("wake")]
    assert reasons == ["a person asked", "VM vm waits for room", "a person asked"]
    assert all(d.replayable for d in await house.decisions("wake"))
    assert all(d.replayable for d in await house.decisions("sleep"))


async def test_a_silent_bmc_is_tried_again_and_a_host_that_stays_on_is_marked(
    house: "House",
) -> None:
    async def two_sleep() -> bool:
        return len(await house.asleep()) == 2

    await house.until(two_sleep, "two sleep")
    mute, sticky = await house.asleep()
    house.boards[mute].silence(True)
    house.machines[sticky].sticks = True  # it may be idle for long before the other one is up
    await house.client.wake_host(mute)
    await house.client.wake_host(sticky)
    await house.until_power(**{sticky: "active"})
    assert (await house.power())[mute] == "waking"
    house.boards[mute].silence(False)
    await house.until_power(**{mute: "active"})

    async def failed() -> bool:
        return (await house.power())[sticky] == "failed"

    await house.until(failed, "it said that it goes down, and its BMC calls it on")
    assert "calls it on" in (await house.client.host(sticky)).note

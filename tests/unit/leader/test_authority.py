"""The root of every lease: its term is recorded before it is granted, and waited for after."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from snooze.common import records
from snooze.common.clock import ManualClock
from snooze.common.coordination.memory import MemoryCoordinator, MemoryStore
from snooze.common.coordination.port import Check, Create, Put, wait_connected
from snooze.common.settings_recovery import RecoverySettings
from snooze.groupmanager.leader.authority import Authority

EPOCH = "/epoch"


class Rig:
    """A store, and leaders one after the other."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = ManualClock()
        self.epoch = -1
        self.deposed: list[int] = []
        self.coordinator = MemoryCoordinator(self.store)

    async def elected(self, lease_s: float) -> Authority:
        """A leader with this setting, that has read the record."""
        if self.epoch < 0:
            await self.coordinator.start()
            await wait_connected(self.coordinator, 5)
        await self.coordinator.commit([Create(EPOCH) if self.epoch < 0 else Put(EPOCH, b"")])
        self.epoch += 1
        epoch = self.epoch
        authority = Authority(
            self.coordinator,
            Check(EPOCH, epoch),
            RecoverySettings(lease_s=lease_s, margin_s=10.0),
            self.clock,
            lambda: self.deposed.append(epoch),
        )
        await authority.load()
        return authority

    async def recorded_s(self) -> float | None:
        entry = await self.coordinator.read(records.LEASE)
        return records.decode(entry.data, records.LeaseRecord).lease_s if entry else None


@asynccontextmanager
async def renewed(authority: Authority) -> AsyncGenerator[None]:
    """While its first renewal of this moment has been applied."""
    task = asyncio.create_task(authority.keep())
    try:
        for tries in range(1000):
            if tries > 50 and authority.left_s() > 0:
                break
            await asyncio.sleep(0 if tries <= 50 else 0.005)
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_term_is_recorded_before_anything_is_granted() -> None:
    rig = Rig()
    leader = await rig.elected(30.0)
    assert await rig.recorded_s() is None
    assert leader.left_s() <= 0
    async with renewed(leader):
        assert leader.left_s() == 30.0
        assert await rig.recorded_s() == 30.0


async def test_a_longer_term_of_a_former_leader_is_waited_for_and_then_over() -> None:
    """A leader with a smaller ``recovery.lease_s`` than its predecessor."""
    rig = Rig()
    async with renewed(await rig.elected(300.0)):
        pass
    follower = await rig.elected(5.0)
    assert follower.term_s == 300.0
    async with renewed(follower):
        assert follower.left_s() == 5.0, "it grants no more than it says"
        assert await rig.recorded_s() == 300.0, "the next one still has to wait for it"
    rig.clock.advance(309.0)
    async with renewed(follower):
        assert (follower.term_s, await rig.recorded_s()) == (300.0, 300.0)
    rig.clock.advance(1.5)
    async with renewed(follower):
        assert (follower.term_s, await rig.recorded_s()) == (5.0, 5.0)


async def test_a_third_leader_waits_from_its_own_election() -> None:
    rig = Rig()
    async with renewed(await rig.elected(300.0)):
        pass
    async with renewed(await rig.elected(5.0)):
        rig.clock.advance(200.0)
    third = await rig.elected(10.0)
    assert third.term_s == 300.0


async def test_a_longer_term_of_its_own_is_recorded_first() -> None:
    rig = Rig()
    async with renewed(await rig.elected(5.0)):
        pass
    longer = await rig.elected(60.0)
    assert longer.left_s() <= 0
    async with renewed(longer):
        assert await rig.recorded_s() == 60.0


async def test_a_deposed_leader_records_nothing() -> None:
    rig = Rig()
    old = await rig.elected(60.0)
    async with renewed(await rig.elected(5.0)):
        async with asyncio.timeout(5):
            await old.keep()
        assert rig.deposed == [0]
        assert await rig.recorded_s() == 5.0
        assert old.left_s() <= 0


async def test_a_record_that_appears_or_vanishes_is_no_obstacle() -> None:
    """The answer of the first write was lost; somebody cleared the store."""
    rig = Rig()
    leader = await rig.elected(30.0)
    data = records.encode(records.LeaseRecord(30.0))
    await rig.coordinator.commit([Create(records.LEASE, data)])
    async with renewed(leader):
        assert await rig.recorded_s() == 30.0

"""What a new leader works out of all hosts is worked out in pieces, and is the same."""

import asyncio

import numpy as np
import pytest

from snooze.common.records import HostPower, HostRecord
from snooze.groupmanager.leader.energy_meter_core import EnergyMeter
from snooze.groupmanager.leader.energy_table import EnergyTable, WakeTimes
from snooze.groupmanager.leader.following import AT_ONCE, Follower, begin, catch_up
from snooze.groupmanager.leader.membership_core import RecordsLoaded
from snooze.groupmanager.leader.registry import HostEntry, Registry
from snooze.groupmanager.leader.registry_loads import LoadsFollower, loads_of
from snooze.groupmanager.leader.submission_events import StateLoaded
from snooze.groupmanager.leader.takeover import LOADED_AT_ONCE, Loaded, tell
from tests.unit.leader.energy_house import MANAGER, House, power_host, wall_ms

HOSTS = 3 * AT_ONCE + AT_ONCE // 2


def anyone(host_id: str) -> bool:
    return True


class Counted:
    """A follower; how much it was asked to do in each turn of the loop is in ``turns``."""

    def __init__(self, follower: Follower, turns: list[int]) -> None:
        self._follower = follower
        self._turns = turns

    def behind(self) -> int:
        return self._follower.behind()

    def follow(self, most: int) -> None:
        before = self._follower.behind()
        self._follower.follow(most)
        self._turns[-1] += before - self._follower.behind()


@pytest.fixture
def house() -> House:
    """As many hosts as three pieces and a half, every second with a VM, of a new leader."""
    house = House()
    house.add(*(power_host(f"h{number:05}", 4.0 + number % 3) for number in range(HOSTS)))
    for number in range(0, HOSTS, 2):
        house.put(f"h{number:05}", f"vm{number}")
    for number in range(1, HOSTS, 7):
        host = house.host(f"h{number:05}")
        host.joined, host.state = False, HostPower.ASLEEP
    house.tell_idle()
    entry = house.registry.managers[MANAGER]
    entry.cores = {host_id: 0.5 + number % 3 for number, host_id in enumerate(house.registry.hosts)}
    return house


async def test_a_loop_is_held_for_one_piece_at_most(house: House) -> None:
    turns = [0]

    async def others() -> None:
        while True:
            turns.append(0)
            await asyncio.sleep(0)

    registry = house.registry
    followers: list[Follower] = [
        LoadsFollower(registry),
        EnergyTable(registry, house.policy, WakeTimes()),
        EnergyMeter(registry),
    ]
    ticking = asyncio.create_task(others())
    await catch_up([Counted(each, turns) for each in followers])
    ticking.cancel()
    assert max(turns) == AT_ONCE
    # The meter looks at each host as it changed, and as its manager says how busy it is.
    assert sum(turns) == 3 * AT_ONCE + 3 * AT_ONCE + (2 * HOSTS - 1) // AT_ONCE * AT_ONCE
    assert all(0 < each.behind() <= AT_ONCE for each in followers)


async def test_what_is_said_afterwards_is_what_a_look_at_once_says(house: House) -> None:
    registry, policy = house.registry, house.policy
    pieces = EnergyTable(registry, policy, WakeTimes())
    metered = EnergyMeter(registry)
    at_once = EnergyTable(registry, policy, WakeTimes())
    at_once.refresh()
    registry.managers[MANAGER].idle = dict(registry.managers[MANAGER].idle)  # tells both
    await catch_up([LoadsFollower(registry), pieces, metered])
    changed = house.host("h00001")
    changed.maintenance = not changed.maintenance
    house.put("h00003", "late")
    pieces.refresh()
    at_once.refresh()
    now = (house.now_s, wall_ms(house.now_s))
    asked = ((), anyone, 60.0, HOSTS, *now)
    assert set(pieces.ripe(*asked)[0]) == set(at_once.ripe(*asked)[0]) != set()
    metered.step(*now)
    entry = registry.managers[MANAGER]
    entry.cores = dict(entry.cores)
    whole = EnergyMeter(registry)
    whole.step(*now)
    assert metered.hosts == whole.hosts
    loads = loads_of(registry)
    held = dict(zip(loads.ids, loads.held.tolist(), strict=True))
    registry.loads = None
    again = loads_of(registry)
    assert held == dict(zip(again.ids, again.held.tolist(), strict=True))
    assert np.array_equal(np.sort(loads.capacity, axis=0), np.sort(again.capacity, axis=0))


def test_who_listens_from_the_beginning_finds_no_table_new() -> None:
    registry = Registry()
    [loads] = begin(LoadsFollower(registry))
    assert registry.hosts.heard
    assert registry.vms.heard, "it hears of what changes, and never looks for all"
    house = House(registry=registry)
    house.add(power_host("h1"))
    house.put("h1", "vm1")
    assert loads.behind() == 1


async def test_who_is_behind_by_a_piece_is_left_alone() -> None:
    class Behind:
        def behind(self) -> int:
            return AT_ONCE

        def follow(self, most: int) -> None:
            raise AssertionError("the next who asks does that much")

    await catch_up([Behind()])


async def test_one_that_falls_behind_faster_does_not_hold_the_ticks_up() -> None:
    class Sisyphus:
        pushed = 0

        def behind(self) -> int:
            return 10 * AT_ONCE

        def follow(self, most: int) -> None:
            self.pushed += 1

    sisyphus = Sisyphus()
    await catch_up([sisyphus])
    assert sisyphus.pushed == 9


async def test_hosts_of_the_record_are_told_in_pieces() -> None:
    told: list[RecordsLoaded | StateLoaded] = []
    record: HostRecord = HostEntry(power_host("h"), MANAGER, 1, False, 0.0).record()
    hosts = [record] * (2 * LOADED_AT_ONCE + 1)
    await tell(Loaded(hosts, (), ()), told.append, told.append, 0)
    sizes = [len(each.hosts) for each in told if isinstance(each, RecordsLoaded)]
    assert sizes == [LOADED_AT_ONCE, LOADED_AT_ONCE, 1]
    assert told[3:] == [StateLoaded((), (), 0)]

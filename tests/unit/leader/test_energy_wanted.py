"""Overloads that wake a host; how long a host is idle before it sleeps by default."""

import pytest

from snooze.common.decisions import DecisionKind
from snooze.common.records import HostPower
from snooze.common.resources import Capacity
from snooze.groupmanager.leader.energy_events import OrderWake, RoomWanted, WakeAsked
from tests.unit.leader.energy_house import (
    House,
    asleep,
    house_of,
    power_host,
    wall_ms,
    with_policy,
)

ACTIVE = HostPower.ACTIVE


def test_a_load_that_finds_no_target_wakes_a_sleeper_and_says_so() -> None:
    house = house_of(3)
    house.put("h3", "keeps it up", 3.5)
    house.tick()
    assert asleep(house) == ["h1", "h2"]
    house.feed(RoomWanted("the load of h3", Capacity(2.0, 1024.0).as_array(), house.now_s + 90))
    house.run(2)
    woken = house.ordered(OrderWake)
    assert len(woken) == 1
    [decision] = [each for each in house.decisions.values() if each.kind is DecisionKind.WAKE]
    assert decision.reason == "the load of h3 waits for room"
    house.run(40)
    assert house.state(woken[0]) is ACTIVE
    house.feed(RoomWanted("the load of h3", Capacity(2.0, 1024.0).as_array(), house.now_s + 90))
    house.run(40)
    assert len(house.ordered(OrderWake)) == 1, "one is enough, though it is asked for again"


def test_a_load_that_no_sleeper_could_hold_wakes_nobody_and_is_forgotten() -> None:
    house = house_of(2)
    house.put("h2", "keeps it up", 3.5)
    house.tick()
    house.feed(RoomWanted("too much", Capacity(8.0, 1024.0).as_array(), house.now_s + 90))
    house.run(100)
    assert house.ordered(OrderWake) == []
    assert house.core.wanted == {}


def test_by_default_a_host_sleeps_after_as_long_as_it_has_to_sleep_to_pay_for_waking() -> None:
    """Hosts of 100 W idle, 200 W full and 5 W asleep: 300 s of waking are paid for in 632 s."""
    house = House(policy=with_policy(idle_s=0.0, wake_s=300.0, min_on_s=0.0))
    house.add(power_host("h1"), power_host("h2"))
    for host_id in ("h1", "h2"):
        house.idle_since_s[host_id] = house.now_s
    house.run(625, 5)
    assert asleep(house) == []
    house.run(15)
    assert asleep(house) == ["h1"]
    house.put("h2", "keeps it up")
    house.feed(WakeAsked(1, "h1", wall_ms(house.now_s)))
    house.run(32)
    assert house.state("h1") is ACTIVE
    house.idle_since_s["h1"] = house.now_s
    house.run(55)
    assert asleep(house) == [], "it takes 30 s, as was measured: paid for in 63 s"
    house.run(15)
    assert asleep(house) == ["h1"]


@pytest.mark.parametrize("set_by_s", [-3600.0, 30_000_000.0])
def test_a_clock_that_is_set_while_a_host_wakes_says_nothing_of_how_long_that_takes(
    set_by_s: float,
) -> None:
    house = house_of(2)
    house.put("h2", "keeps it up", 3.5)
    house.tick()
    house.feed(WakeAsked(1, "h1", wall_ms(house.now_s)))
    house.host("h1").state_since_ms -= round(set_by_s * 1000)
    house.run(40)
    assert house.state("h1") is ACTIVE
    assert house.core.power.wake_times_s == {}


def test_a_vm_that_waits_while_another_host_comes_up_does_not_wake_one_for_itself() -> None:
    house = house_of(3)
    house.put("h3", "keeps it up", 4.0)
    house.tick()
    first, second = asleep(house)
    house.feed(WakeAsked(1, first, wall_ms(house.now_s)))
    house.run(31)
    assert house.state(first) is ACTIVE
    vm = house.want("vm", 4.0)  # it came in the moment before, and is being placed there
    house.run(4)
    assert house.ordered(OrderWake) == [first]
    house.run(4)
    assert house.ordered(OrderWake) == [first, second], "it is still there: it did not fit"
    assert vm.waits_for == second

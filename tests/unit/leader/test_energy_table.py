"""Which hosts could sleep or be woken: the table says what a look at all of them would."""

import math
from random import Random

import msgspec
import pytest

from snooze.common.records import HostPower
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import ManagerSummary
from snooze.groupmanager.leader.energy_rules import (
    SLEEPERS,
    could_be_woken_for,
    just_joined,
    just_woken,
    lately,
)
from snooze.groupmanager.leader.energy_table import EnergyTable, WakeTimes
from snooze.groupmanager.leader.registry import VmEntry
from tests.unit.leader.energy_house import (
    MANAGER,
    POLICY,
    START_S,
    House,
    power_host,
    wall_ms,
    with_policy,
    without_driver,
)

ZERO = Capacity()
EACH = 3


def table_of(house: House) -> EnergyTable:
    return EnergyTable(house.registry, house.policy, WakeTimes())


def idle(house: House, table: EnergyTable, *barred: str) -> tuple[list[str], list[str]]:
    table.refresh()
    return table.ripe(barred, 60.0, EACH, house.now_s, wall_ms(house.now_s))


def tell(house: House, **idle_s: float) -> None:
    """A manager tells what has changed; below 0: it is not idle any more."""
    summary = ManagerSummary(0, ZERO, ZERO, ZERO, b"", [], 1, 0, idle=idle_s, partial=True)
    house.registry.managers[MANAGER].take_summary(summary, house.now_s)


def test_of_each_kind_those_that_are_idle_longest() -> None:
    house = House()
    house.add(*(power_host(f"a{number}") for number in range(5)))
    house.add(*(power_host(f"b{number}", 8.0) for number in range(2)))
    tell(house, a0=100, a1=500, a2=400, a3=300, a4=30, b0=70, b1=20)
    table = table_of(house)
    assert idle(house, table) == (["a1", "a2", "a3", "b0"], ["a4", "b1"])
    assert idle(house, table, "a2", "b0") == (["a1", "a3", "a0"], ["a4", "b1"])


def test_hosts_that_differ_by_their_controllers_only_are_of_one_kind() -> None:
    house = House()
    for number in range(5):
        told = power_host(f"h{number}")
        power = msgspec.structs.replace(told.power, options=f"address=10.0.0.{number}")
        capacity = msgspec.structs.replace(told.capacity, memory_kib=4096.0 + number)
        house.add(msgspec.structs.replace(told, power=power, capacity=capacity))
    tell(house, **{f"h{number}": 100.0 + number for number in range(5)})
    assert idle(house, table_of(house))[0] == ["h4", "h3", "h2"]


def test_what_changes_is_taken_in() -> None:
    house = House()
    house.add(power_host("h1"))
    table = table_of(house)
    assert idle(house, table) == ([], [])
    tell(house, h1=100)
    assert idle(house, table) == (["h1"], [])
    vm = house.put("h1", "vm1")
    assert idle(house, table) == ([], [])
    house.registry.remove_vm(vm)
    assert idle(house, table) == (["h1"], [])
    tell(house, h1=-1)
    assert idle(house, table) == ([], [])
    tell(house, h1=100)
    house.host("h1").maintenance = True
    assert idle(house, table) == ([], [])
    house.host("h1").maintenance = False
    house.host("h1").seen_s = house.now_s
    assert idle(house, table) == ([], []), "it has not been up for long"


def test_an_override_of_which_nobody_tells_is_found() -> None:
    house = House()
    house.add(without_driver(power_host("h1")))
    tell(house, h1=100)
    table = table_of(house)
    assert idle(house, table) == ([], [])
    house.registry.can_wake = lambda description: True
    assert idle(house, table) == ([], []), "nor any way to go down"
    house.host("h1").description = with_power = power_host("h1")
    house.registry.can_wake = lambda description: False
    assert idle(house, table) == ([], [])
    house.registry.can_wake = lambda description: description is with_power
    assert idle(house, table) == (["h1"], [])


def test_a_wait_that_pays_follows_what_waking_took() -> None:
    house = House(policy=with_policy(idle_s=0.0, wake_s=120.0))
    house.add(power_host("h1"), power_host("h2"))
    tell(house, h1=150, h2=150)
    wake_times_s = WakeTimes()
    table = EnergyTable(house.registry, house.policy, wake_times_s)
    # 200 W for 120 s over the 95 W that it saves: 253 s.
    assert idle(house, table) == ([], [])
    wake_times_s["h1"] = 30.0
    assert idle(house, table) == (["h1", "h2"], []), "of others the mean counts"
    wake_times_s["h2"] = 600.0
    assert idle(house, table) == (["h1"], ["h2"])
    assert wake_times_s.mean(1.0) == pytest.approx(315.0)


def test_the_longest_asleep_that_are_willing() -> None:
    house = House()
    house.add(*(power_host(f"a{number}") for number in range(6)), power_host("b0", 8.0))
    for number, host in enumerate(house.registry.hosts.values()):
        host.state, host.joined, host.state_since_ms = HostPower.ASLEEP, False, 1000 - number
    table = table_of(house)
    table.refresh()
    assert table.longest_asleep(EACH, lambda host_id: host_id != "a4") == ["a5", "a3", "a2", "b0"]
    house.host("a5").state = HostPower.WAKING
    table.refresh()
    assert table.longest_asleep(1, lambda host_id: True) == ["a4", "b0"]


def test_a_table_says_what_a_look_at_everything_would_say() -> None:
    random, house = Random(4), House(policy=with_policy(min_on_s=0.0))
    table = table_of(house)
    for step in range(400):
        house.now_s = START_S + step
        host_id = f"h{random.randrange(8)}"
        host = house.registry.hosts.get(host_id)
        match random.randrange(6):
            case 0:
                house.add(power_host(host_id, random.choice([4.0, 8.0])))
            case 1 if host is not None and host.joined:
                host.leave(house.now_s)
            case 2 if host is not None:
                host.join(host.description, MANAGER, 2, house.now_s)
            case 3:
                tell(house, **{host_id: random.choice([-1.0, 10.0, 100.0])})
            case 4 if host is not None:
                house.put(host_id, f"vm{step}")
            case 5:
                for vm in list(house.registry.vms_of_host(host_id)):
                    house.registry.remove_vm(vm)
            case _:
                pass
        since_s = house.registry.managers[MANAGER].idle
        idle_s = {
            each: house.now_s - since_s[each]
            for each, entry in house.registry.hosts.items()
            if entry.joined and each in since_s and not house.registry.vms.is_any_on(each)
        }
        table.refresh()
        ripe, _ = table.ripe((), 60.0, 8, house.now_s, wall_ms(house.now_s))
        assert set(ripe) == {each for each, for_s in idle_s.items() if for_s >= POLICY.idle_s}


def test_who_came_lately_is_known_as_if_all_were_looked_at() -> None:
    random, house = Random(6), House()
    house.add(*(power_host(f"h{number}") for number in range(8)))
    for step in range(300):
        house.now_s = START_S + step
        host = house.host(f"h{random.randrange(8)}")
        match random.randrange(4):
            case 0:
                host.leave(house.now_s)
            case 1:
                host.join(host.description, MANAGER, 2, house.now_s)
            case 2:
                is_up = host.state is HostPower.ACTIVE
                host.state = HostPower.WAKING if is_up else HostPower.ACTIVE
                host.state_since_ms = wall_ms(house.now_s)
            case _:
                pass
        now_ms = wall_ms(house.now_s)
        expected = {
            host_id
            for host_id, each in house.registry.hosts.items()
            if just_joined(each, house.now_s) or just_woken(each, now_ms)
        }
        found = lately(house.registry, house.now_s, now_ms)
        assert {each.description.host_id for each in found} == expected


def test_who_could_be_woken_for_a_vm() -> None:
    house = House()
    house.add(*(power_host(f"h{number}", 4.0 + number) for number in range(3)))
    for host_id, state in (("h0", HostPower.ASLEEP), ("h1", HostPower.WAKING)):
        house.host(host_id).state, house.host(host_id).joined = state, False

    def holds(cores: float, *, waits: bool = False, pin: str = "") -> bool:
        vm = VmEntry("v", "v", Capacity(cores, 1024.0), VmState.PENDING, pin_host=pin)
        vm.lacks_room = waits
        return could_be_woken_for(house.registry, vm, house.core.limit, house.now_s) is not None

    assert [holds(cores) for cores in (4.0, 5.0, 6.0)] == [True, True, False]
    assert [holds(1.0, pin=pin) for pin in ("h0", "h1", "h2")] == [True, True, False]
    house.host("h2").seen_s = house.now_s
    assert holds(6.0, waits=True), "it has just joined, and may be free"
    assert not holds(6.0)
    assert house.host("h0").state in SLEEPERS
    house.host("h0").description = without_driver(house.host("h0").description)
    house.host("h1").maintenance = True
    assert not holds(1.0)


def test_of_thousands_that_sleep_a_question_holds_few() -> None:
    """What a look costs and a decision writes down does not grow with the hosts."""
    house = House(policy=with_policy(reserved_hosts=0))
    house.add(*(power_host(f"h{number:04}") for number in range(1500)))
    house.tick()
    assert len(house.orders) == 8
    assert all(len(decision.inputs) < 4000 for decision in house.decisions.values())
    house.modes.clear()
    for host_id, host in list(house.registry.hosts.items())[:1000]:
        if host.joined and not math.isnan(host.seen_s):
            host.leave(house.now_s)
            host.state, host.state_since_ms = HostPower.ASLEEP, 1
            house.machines[host_id] = False
    house.want("big", 4.0)
    house.now_s += 10
    house.tick()
    woken = [d for d in house.decisions.values() if d.kind.value == "wake"]
    assert len(woken) == 1
    assert len(woken[0].inputs) < 20_000

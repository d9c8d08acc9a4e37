"""Which hosts could sleep or be woken: the table says what a look at all of them would."""

import math
from collections import Counter
from random import Random

import msgspec
import numpy as np
import pytest

from snooze.common.records import HostPower
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import Address, ManagerDescription, ManagerSummary
from snooze.groupmanager.leader.energy_rules import (
    SLEEPERS,
    could_be_woken_for,
    forbids_sleep,
    just_joined,
    just_woken,
    lately,
)
from snooze.groupmanager.leader.energy_table import EnergyTable, WakeTimes, pays_s
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.registry import Down, Hosts, VmEntry
from snooze.scheduling.power_curves import model_of
from tests.unit.leader.energy_house import (
    MANAGER,
    START_S,
    House,
    power_host,
    wall_ms,
    with_policy,
    without_driver,
)

ZERO = Capacity()
EACH = 3
LEAST_S = 60.0
MANAGERS = (MANAGER, "gm2")
KINDS = (4.0, 8.0)


def table_of(house: House) -> EnergyTable:
    return EnergyTable(house.registry, house.policy, WakeTimes())


def idle(house: House, table: EnergyTable, *barred: str) -> tuple[list[str], list[str]]:
    table.refresh()
    return table.ripe(barred, anyone, LEAST_S, EACH, house.now_s, wall_ms(house.now_s))


def anyone(host_id: str) -> bool:
    return True


def kind(house: House, host_id: str) -> float:
    return house.host(host_id).description.capacity.cpu_cores


def manager_entry(manager_id: str, now_s: float) -> ManagerEntry:
    address = Address(manager_id, 1)
    return ManagerEntry(ManagerDescription(manager_id, manager_id, address, address), now_s)


def tell(house: House, **idle_s: float) -> None:
    """A manager tells what has changed; below 0: it is not idle any more."""
    tell_of(house, MANAGER, idle_s, partial=True)


def tell_of(house: House, manager_id: str, idle_s: dict[str, float], *, partial: bool) -> None:
    """What has changed, or all."""
    if not partial:
        idle_s = {host_id: for_s for host_id, for_s in idle_s.items() if for_s >= 0}
    summary = ManagerSummary(0, ZERO, ZERO, ZERO, b"", [], 1, 0, idle=idle_s, partial=partial)
    if manager_id in house.registry.managers:
        house.registry.managers[manager_id].take_summary(summary, house.now_s)


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


def test_other_overrides_are_found() -> None:
    house = House()
    house.add(without_driver(power_host("h1")))
    tell(house, h1=100)
    table = table_of(house)
    assert idle(house, table) == ([], [])
    house.registry.can_wake = lambda description: True
    house.registry.wakes_by = lambda: 2
    assert idle(house, table) == ([], []), "nor any way to go down"
    house.host("h1").description = with_power = power_host("h1")
    house.registry.can_wake = lambda description: False
    house.registry.wakes_by = lambda: 3
    assert idle(house, table) == ([], [])
    house.registry.can_wake = lambda description: description is with_power
    house.registry.wakes_by = lambda: 4
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


def add(house: House, random: Random, host_id: str) -> None:
    if host_id not in house.registry.hosts:
        actions = random.choice([(), ("shutdown",), ("suspend_to_ram", "shutdown"), ("shutdown",)])
        told = power_host(
            host_id, random.choice([4.0, 8.0]), driver=random.choice(["", "test", "test"])
        )
        power = msgspec.structs.replace(told.power, actions=actions)
        house.add(msgspec.structs.replace(told, power=power))


def change(house: House, random: Random, host_id: str) -> None:
    """Something happens to a host."""
    host, registry = house.host(host_id), house.registry
    manager_id = random.choice(MANAGERS)
    match random.randrange(13):
        case 11 | 12 if not registry.vms.is_any_on(host_id):
            host.join(host.description, manager_id, 2, house.now_s)
            host.state, host.maintenance = HostPower.ACTIVE, False
        case 0:
            host.leave(house.now_s, silent=random.random() < 0.5)
        case 1:
            host.join(host.description, manager_id, 2, house.now_s)
        case 2:  # as a membership core does that hears of it from another manager first
            host.manager_id = manager_id
        case 3 if random.random() < 0.2:  # a manager is lost, and may come again, knowing less
            for each in registry.hosts.values():
                if each.joined and each.manager_id == manager_id:
                    each.leave(house.now_s)
            registry.managers.pop(manager_id, None)
            if random.random() < 0.7:
                registry.managers[manager_id] = manager_entry(manager_id, house.now_s)
        case 4 | 5:
            named = random.sample(sorted(registry.hosts), len(registry.hosts) // 2)
            idle_s = {each: random.choice([-1.0, 10.0, 100.0, 300.0]) for each in named}
            tell_of(house, host.manager_id, idle_s, partial=random.random() < 0.7)
        case 6:
            here = list(registry.vms_of_host(host_id))
            for vm in here:
                registry.remove_vm(vm)
            if not here and random.random() < 0.5:
                house.put(host_id, f"vm{house.now_s}")
        case 7:
            host.maintenance = random.random() < 0.7
        case 8:
            host.state = random.choice([*HostPower, *[HostPower.ACTIVE] * 8])
            host.state_since_ms = wall_ms(house.now_s)
        case 9:
            host.down, host.fencing = Down.EVERYTHING, False
            host.state_since_ms = wall_ms(house.now_s)
        case 10:
            host.given_up = host.acquitted = True
        case _:
            pass


def looked_at(house: House, wake_times_s: WakeTimes) -> tuple[set[str], list[str]]:
    """Who is idle for long enough, and who sleeps, the longest first: by a look at everything."""
    registry, policy = house.registry, house.policy
    ripe: set[str] = set()
    asleep: list[tuple[int, str]] = []
    for host_id, host in registry.hosts.items():
        if host.state is HostPower.ASLEEP:
            asleep.append((host.state_since_ms, host_id))
        manager = registry.managers.get(host.manager_id)
        if manager is None or host_id not in manager.idle or host.maintenance:
            continue
        if forbids_sleep(registry, policy, host):
            continue
        cores = host.description.capacity.cpu_cores
        model = model_of([(host.description.power, cores)], policy.power_curve)
        wake_s = wake_times_s.get(host_id, wake_times_s.mean(policy.wake_s))
        [pays] = pays_s(model, np.array([wake_s]))
        up_s = house.now_s - host.seen_s
        if host.state_since_ms > 0:
            up_s = (wall_ms(house.now_s) - host.state_since_ms) / 1000
        needed_s = policy.idle_s or max(float(pays), LEAST_S)
        if house.now_s - manager.idle[host_id] >= needed_s and up_s >= policy.min_on_s:
            ripe.add(host_id)
    return ripe, [host_id for _, host_id in sorted(asleep)]


@pytest.mark.parametrize("seed", range(4))
def test_a_table_says_what_a_look_at_everything_would_say(seed: int) -> None:
    """Hosts leave, change their manager, are fenced, drained, come back; the settings change."""
    random, house = Random(seed), House(policy=with_policy(min_on_s=20.0))
    registry, drivers, seen = house.registry, Counter[str](), 0
    registry.managers = {each: manager_entry(each, house.now_s) for each in MANAGERS}
    registry.can_wake = lambda told: bool(told.power.driver) is not bool(drivers[told.host_id] % 2)
    registry.wakes_by = drivers.total
    wake_times_s = WakeTimes()
    table = EnergyTable(registry, house.policy, wake_times_s)
    for step in range(1000):
        house.now_s = START_S + 5 * step
        for _ in range(random.randrange(3)):
            host_id = f"h{random.randrange(8)}"
            add(house, random, host_id)
            change(house, random, host_id)
        match random.randrange(60):
            case 0:  # an operator changes the file of overrides
                drivers[f"h{random.randrange(8)}"] += 1
            case 1:
                wake_times_s[f"h{random.randrange(8)}"] = random.choice([20.0, 400.0])
            case 2:  # the next leader, with other settings
                action = random.choice(["", "shutdown", "suspend_to_ram"])
                idle_s = random.choice([0.0, 60.0])
                house.policy = with_policy(min_on_s=20.0, idle_s=idle_s, action=action)
                table = EnergyTable(registry, house.policy, wake_times_s)
            case 3:  # another record is read
                kept = random.sample(list(registry.hosts.values()), len(registry.hosts) // 2)
                registry.hosts = Hosts({host.description.host_id: host for host in kept})
            case _:
                pass
        ripe, asleep = looked_at(house, wake_times_s)
        barred = set(random.sample(sorted(registry.hosts), len(registry.hosts) // 4))
        table.refresh()
        found, unripe = table.ripe(barred, anyone, LEAST_S, 8, house.now_s, wall_ms(house.now_s))
        assert set(found) == ripe - barred
        assert not {*unripe} & (ripe | barred)
        slept = table.longest_asleep(8, anyone)
        assert sorted(slept) == sorted(asleep)
        since_ms = [
            [house.host(h).state_since_ms for h in slept if kind(house, h) == k] for k in KINDS
        ]
        assert all(each == sorted(each) for each in since_ms)
        seen += len(found)
    assert seen > 100


def test_who_may_not_be_sent_to_sleep_does_not_keep_others_up() -> None:
    house = House(policy=with_policy(reserved_hosts=0))
    house.add(*(power_host(f"h{number:02}") for number in range(40)))
    off = {f"h{number:02}" for number in range(30)}
    table = table_of(house)
    tell(house, **dict.fromkeys(off, 500.0))
    tell(house, h30=100.0, h31=90.0)
    table.refresh()
    args = (60.0, EACH, house.now_s, wall_ms(house.now_s))
    assert table.ripe((), lambda host_id: host_id not in off, *args)[0] == ["h30", "h31"]


def test_who_came_lately_is_known_as_if_all_were_looked_at() -> None:
    random, house = Random(6), House()
    house.add(*(power_host(f"h{number}") for number in range(8)))
    for step in range(1000):
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

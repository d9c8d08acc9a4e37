"""What people ask of the energy saver."""

from snooze.common.records import HostPower
from snooze.common.resources import Capacity
from snooze.groupmanager.leader.energy_events import (
    OrderWake,
    SleepAnswered,
    SleepAsked,
    TellDecision,
)
from tests.unit.leader.energy_house import (
    House,
    ask_wake,
    asleep,
    house_of,
    sleeping_house,
    wall_ms,
    without_driver,
)

ACTIVE, ASLEEP, WAKING = HostPower.ACTIVE, HostPower.ASLEEP, HostPower.WAKING
GOING_DOWN, FAILED, FENCED = HostPower.GOING_DOWN, HostPower.FAILED, HostPower.FENCED


# ------------------------------------------------------------ rule 2: who sleeps


# ------------------------------------------------------------ people


def ask_sleep(house: House, host_id: str, *, force: bool = False) -> str:
    house.requests += 1
    house.feed(SleepAsked(house.requests, host_id, wall_ms(house.now_s), force))
    answer = house.answers[house.requests]
    return answer.error.message if answer.error else answer.message


def test_a_person_puts_a_host_to_sleep_also_while_energy_saving_is_off() -> None:
    house = house_of(2, enabled=False)
    assert ask_sleep(house, "h1") == "it is sent to sleep"
    assert house.state("h1") is ASLEEP
    assert ask_sleep(house, "h1") == "it is asleep already"


def test_a_person_does_not_put_the_last_hosts_to_sleep_but_by_force() -> None:
    house = house_of(2, enabled=False)
    assert ask_sleep(house, "h1") == "it is sent to sleep"
    assert "of 1 hosts 1 stay up" in ask_sleep(house, "h2")
    assert ask_sleep(house, "h2", force=True) == "it is sent to sleep"


def test_force_passes_over_the_reserve_and_the_mark_and_never_over_vms() -> None:
    house = house_of(2, enabled=False, reserve_least=Capacity(6.0, 0.0))
    assert "reserve" in ask_sleep(house, "h1")
    house.put("h1", "a")
    assert "VM a is on it" in ask_sleep(house, "h1", force=True)
    house.registry.remove_vm(house.registry.vms["a"])
    house.host("h1").maintenance = True
    assert "maintenance" in ask_sleep(house, "h1")
    assert ask_sleep(house, "h1", force=True) == "it is sent to sleep"
    assert house.state("h1") is ASLEEP


def test_a_host_that_nothing_can_wake_is_not_put_to_sleep_by_anyone() -> None:
    house = house_of(2)
    house.host("h1").description = without_driver(house.host("h1").description)
    assert "nothing can wake it" in ask_sleep(house, "h1", force=True)


def test_a_person_wakes_what_sleeps_or_failed_and_a_repeat_is_harmless() -> None:
    house = sleeping_house(2)
    target = asleep(house)[0]
    assert ask_wake(house, target) == "it is being woken"
    assert ask_wake(house, target) == "it is being woken already"
    house.run(40)
    assert ask_wake(house, target) == "it is up"
    assert house.ordered(OrderWake) == [target]


def test_a_person_revives_a_failed_host() -> None:
    house = sleeping_house(2)
    target = asleep(house)[0]
    house.silent = {target}
    house.want("a", cores=4.0)
    house.run(20)
    assert house.state(target) is FAILED
    house.silent = set()
    assert ask_wake(house, target) == "it is being woken"
    house.run(40)
    assert house.state(target) is ACTIVE


def test_answers_to_former_steps_change_nothing() -> None:
    house = sleeping_house(2)
    target = asleep(house)[0]
    effects = house.feed(SleepAnswered(target, 1, wall_ms(house.now_s)))
    assert effects == []
    assert house.state(target) is ASLEEP
    assert not any(isinstance(effect, TellDecision) for effect in effects)

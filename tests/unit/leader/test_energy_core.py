"""The rules of the energy saver, one by one."""

import math
from collections import Counter

import msgspec
import pytest

from snooze.common.decisions import DecisionKind, DecisionMode, DecisionState
from snooze.common.errors import ErrorReport
from snooze.common.records import HostPower
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.groupmanager.leader.energy_choice import MAX_WAITING
from snooze.groupmanager.leader.energy_events import (
    EnergyEffect,
    LookAtPower,
    OrderSleep,
    OrderWake,
    PowerSeen,
    RecordStep,
    StepRecorded,
    Ticked,
    WakeAnswered,
)
from snooze.groupmanager.leader.registry import HostEntry
from tests.unit.leader.energy_house import (
    START_S,
    House,
    ask_wake,
    asleep,
    house_of,
    power_host,
    sleeping_house,
    wall_ms,
    with_policy,
    without_driver,
)

ACTIVE, ASLEEP, WAKING = HostPower.ACTIVE, HostPower.ASLEEP, HostPower.WAKING
GOING_DOWN, FAILED, FENCED = HostPower.GOING_DOWN, HostPower.FAILED, HostPower.FENCED


# ------------------------------------------------------------ rule 2: who sleeps


def test_idle_hosts_sleep_but_for_the_number_that_stays_up() -> None:
    house = house_of(4, reserved_hosts=2)
    house.tick()
    assert asleep(house) == ["h1", "h2"]
    house.run(1000)
    assert asleep(house) == ["h1", "h2"]


def test_nothing_sleeps_while_energy_saving_is_off() -> None:
    house = house_of(4, enabled=False)
    house.run(5000, 10)
    assert house.orders == []
    assert house.decisions == {}


def test_nothing_is_decided_before_the_leader_has_settled() -> None:
    house = house_of(3)
    house.tick(settled=False)
    assert house.orders == []


def test_a_host_with_any_vm_stays_whatever_its_state() -> None:
    house = house_of(4)
    house.put("h1", "a")
    house.put("h2", "b").state = VmState.STOPPED
    house.put("h3", "c").managed = False
    house.run(1000)
    assert asleep(house) == ["h4"]


def test_a_host_that_was_idle_only_for_a_moment_stays() -> None:
    house = house_of(2)
    house.put("h1", "keeps it up")
    house.put("h2", "a")
    house.tick()
    house.registry.remove_vm(house.registry.vms["a"])
    house.run(59)
    assert asleep(house) == []
    house.run(3)
    assert asleep(house) == ["h2"]


def test_a_host_that_came_up_a_moment_ago_stays() -> None:
    house = house_of(2)
    house.host("h1").seen_s = START_S - 10
    house.host("h2").seen_s = START_S - 10
    house.run(85)
    assert asleep(house) == []
    house.run(10)
    assert len(asleep(house)) == 1


@pytest.mark.parametrize("mark", ["maintenance", "no driver", "away", "cannot suspend"])
def test_hosts_that_may_not_sleep(mark: str) -> None:
    house = house_of(3, action="suspend_to_disk" if mark == "cannot suspend" else "")
    for host_id in ("h1", "h2"):
        host = house.host(host_id)
        if mark == "maintenance":
            host.maintenance = True
        elif mark == "no driver":
            host.description = without_driver(host.description)
        elif mark == "away":
            host.leave(house.now_s)
            house.machines[host_id] = False
    if mark == "cannot suspend":
        house.run(1000)
        assert asleep(house) == []
        return
    house.run(1000)
    assert set(asleep(house)) <= {"h3"}


def test_a_reserve_of_capacity_stays_free() -> None:
    house = house_of(4, reserved_hosts=0, reserve_share=Capacity(0.25, 0.0))
    house.put("h1", "a", cores=4.0)
    house.tick()
    assert len(asleep(house)) == 2, "4 of 8 cores stay free, 0 of 4 would be too few"


def test_an_absolute_reserve_counts_if_it_is_more() -> None:
    house = house_of(4, reserved_hosts=0, reserve_least=Capacity(5.0, 0.0))
    house.tick()
    assert len(asleep(house)) == 2


def test_memory_has_its_own_reserve() -> None:
    house = house_of(4, reserved_hosts=0, reserve_least=Capacity(0.0, 9 * 1024.0))
    house.tick()
    assert len(asleep(house)) == 1


def test_what_anticipation_expects_stays_up() -> None:
    house = house_of(4, reserved_hosts=0)
    house.expected = Capacity(9.0, 0.0)
    house.tick()
    assert len(asleep(house)) == 1


def test_ha_reserve_goes_before_saving() -> None:
    house = house_of(3)
    house.ha_lacks = "the VMs of h1 would find no room"
    house.run(300)
    assert asleep(house) == []
    house.ha_lacks = ""
    house.run(1)
    assert len(asleep(house)) == 2


def test_a_missing_ha_reserve_wakes_one_host_at_a_time() -> None:
    house = sleeping_house(4)
    house.ha_lacks = "the VMs of h1 would find no room"
    house.run(5)
    assert len(house.ordered(OrderWake)) == 1
    assert "find no room" in next(
        d.reason for d in house.decisions.values() if d.kind is DecisionKind.WAKE
    )
    house.ha_lacks = ""
    house.run(60)
    assert len(house.ordered(OrderWake)) == 1


def test_the_host_that_saves_most_sleeps_first() -> None:
    house = House(policy=with_policy(reserved_hosts=2))
    house.add(power_host("h1", full_w=100), power_host("h2", full_w=400), power_host("h3"))
    house.tick()
    assert asleep(house) == ["h2"]


def test_a_vm_that_is_being_placed_keeps_up_what_could_hold_it() -> None:
    house = house_of(3)
    vm = house.want("a", cores=4.0)
    vm.lacks_room = False
    house.run(300)
    assert asleep(house) == []


def test_a_host_that_its_manager_keeps_is_left_alone_for_a_while() -> None:
    house = house_of(2)
    house.refusing = {"h1", "h2"}
    house.run(200)
    assert sorted(house.ordered(OrderSleep)) == ["h1", "h2"]
    assert house.states() == {"h1": ACTIVE, "h2": ACTIVE}
    assert "being started" in house.host("h1").note
    assert {d.state for d in house.decisions.values()} == {DecisionState.REFUSED}
    house.refusing = set()
    house.run(400)
    assert len(asleep(house)) == 1


# ------------------------------------------------------------ rules 1 and 3: going down


def test_the_record_comes_before_the_order() -> None:
    house = house_of(2)
    house.tell_idle()
    effects = house.core.handle(Ticked(wall_ms(house.now_s), True), house.now_s)
    step = next(effect for effect in effects if isinstance(effect, RecordStep))
    assert house.state("h1") is GOING_DOWN
    assert not any(isinstance(effect, OrderSleep) for effect in effects)
    recorded = StepRecorded("h1", step.step_id, wall_ms(house.now_s))
    assert isinstance(house.core.handle(recorded, house.now_s)[0], OrderSleep)
    assert house.core.handle(recorded, house.now_s) == [], "an answer counts once"


def test_what_cannot_be_recorded_is_not_ordered() -> None:
    house = house_of(2)
    house.tell_idle()
    effects = house.core.handle(Ticked(wall_ms(house.now_s), True), house.now_s)
    step = next(effect for effect in effects if isinstance(effect, RecordStep))
    error = ErrorReport("too_busy", "too many records wait")
    house.feed(StepRecorded("h1", step.step_id, wall_ms(house.now_s), error))
    assert house.state("h1") is ACTIVE
    assert house.orders == []


def test_a_vm_that_came_while_it_was_recorded_keeps_the_host_up() -> None:
    house = house_of(2)
    house.tell_idle()
    effects = house.core.handle(Ticked(wall_ms(house.now_s), True), house.now_s)
    step = next(effect for effect in effects if isinstance(effect, RecordStep))
    house.put("h1", "late")
    house.feed(StepRecorded("h1", step.step_id, wall_ms(house.now_s)))
    assert house.state("h1") is ACTIVE
    assert house.orders == []


def test_a_host_that_its_controller_calls_on_did_not_go_down() -> None:
    house = house_of(2)
    house.stubborn = {"h1"}
    house.run(30)
    assert house.state("h1") is GOING_DOWN
    house.run(40)
    assert house.state("h1") is FAILED
    assert "calls it on" in house.host("h1").note


def test_a_silent_bmc_is_no_sign_that_it_is_still_on() -> None:
    house = house_of(2)
    house.silent = {"h1"}
    house.run(30)
    assert house.state("h1") is GOING_DOWN
    house.run(40)
    assert house.state("h1") is ASLEEP


class Unanswered(House):
    """Its power controllers take their time."""

    def perform(self, effect: EnergyEffect) -> None:
        if isinstance(effect, LookAtPower):
            self.orders.append(effect)
        else:
            super().perform(effect)


def test_a_controller_is_looked_at_again_only_when_it_has_answered() -> None:
    """A silent one has a process waiting for ten seconds: a few of them would have them all."""
    house = Unanswered(policy=with_policy())
    house.add(power_host("h1"), power_host("h2"))
    house.run(20)
    [look] = [each for each in house.orders if isinstance(each, LookAtPower)]
    house.feed(PowerSeen(look.host_id, look.step_id, wall_ms(house.now_s), None, silent=True))
    house.run(20)
    assert len([each for each in house.orders if isinstance(each, LookAtPower)]) == 2
    house.run(30)
    assert house.state(look.host_id) is ASLEEP


def test_a_suspended_host_is_not_looked_at() -> None:
    house = house_of(2, action="suspend_to_ram")
    house.stubborn = {"h1"}
    house.tick()
    assert house.state("h1") is ASLEEP, "BMCs call a suspended machine on"


def test_a_host_that_hibernates_is_looked_at_until_it_is_off() -> None:
    """Woken before, a BMC takes the order for done: the machine is on and writes its memory."""
    house = house_of(2, action="suspend_to_disk", reserved_hosts=0)
    for host in house.registry.hosts.values():
        power = msgspec.structs.replace(host.description.power, actions=("suspend_to_disk",))
        host.description = msgspec.structs.replace(host.description, power=power)
    house.put("h2", "full", cores=4.0)
    house.stubborn = {"h1"}
    house.tick()
    house.want("a", cores=4.0)
    house.run(10)
    assert house.state("h1") is GOING_DOWN
    assert house.ordered(OrderWake) == []
    house.machines["h1"] = False
    house.run(40)
    assert house.state("h1") is ACTIVE


def test_a_host_that_joins_again_instead_of_going_down_serves_on() -> None:
    house = house_of(2)
    house.stubborn = {"h1"}
    house.tick()
    assert house.state("h1") is GOING_DOWN
    house.join("h1")
    assert house.state("h1") is ACTIVE
    house.run(200)
    assert house.ordered(OrderSleep).count("h1") == 1


def test_an_order_that_was_not_answered_is_given_again_while_the_host_is_there() -> None:
    house = house_of(2)
    house.lost = {"h1"}
    house.run(29)
    assert house.ordered(OrderSleep) == ["h1"] * 3
    assert house.state("h1") is GOING_DOWN
    house.run(5)
    assert house.state("h1") is ACTIVE, "it does not say: it stays"


def test_an_order_that_was_not_answered_and_the_host_left_was_obeyed() -> None:
    house = house_of(2)
    house.lost = {"h1"}
    house.tick()
    house.machines["h1"] = False
    house.leave("h1")
    house.run(3)
    assert house.state("h1") is ASLEEP


@pytest.mark.parametrize("answers", [True, False])
def test_only_one_that_said_so_is_recorded_as_one_that_can_have_nothing(answers: bool) -> None:
    house = house_of(2, action="suspend_to_ram")
    house.lost = set() if answers else {"h1"}
    house.tick()
    house.leave("h1")
    house.run(3)
    record = house.registry.hosts["h1"].record()
    assert (record.state, record.away) == (ASLEEP, answers)
    again = HostEntry.of_record(record, 0.0, 60.0)
    assert (again.reachable_s == -math.inf) is answers, "it may be up, with what came meanwhile"


# ------------------------------------------------------------ rule 4: waking


def test_vms_for_which_none_may_be_woken_are_told_so_each_in_its_turn() -> None:
    house = sleeping_house(2)
    first, *_, last = [house.want(f"{k:03}", pin="h1") for k in range(MAX_WAITING + 1)]
    house.core.mode_of = lambda kind, host_id: DecisionMode.OFF
    waits: list[str | None] = []
    for _ in range(3):
        waits += [first.waits_for, last.waits_for]
        house.run(1)
    assert waits == [None, None, "", None, "", ""]


def test_a_vm_that_waits_wakes_one_host_and_is_told_which() -> None:
    house = sleeping_house(4)
    vm = house.want("a", cores=2.0)
    house.run(1)
    assert len(house.ordered(OrderWake)) == 1
    woken = house.ordered(OrderWake)[0]
    assert vm.waits_for == woken
    house.run(20)
    assert house.state(woken) is WAKING
    house.run(15)
    assert house.state(woken) is ACTIVE
    assert len(house.ordered(OrderWake)) == 1, "one order, however often it was looked at"
    assert vm.waits_for == woken
    vm.lacks_room, vm.host_id, vm.state = False, woken, VmState.RUNNING
    house.run(30)
    assert len(house.ordered(OrderWake)) == 1
    wake = next(d for d in house.decisions.values() if d.kind is DecisionKind.WAKE)
    assert wake.state is DecisionState.DONE
    assert "joined after" in wake.outcome


def test_vms_that_fit_one_host_wake_one() -> None:
    house = sleeping_house(4)
    for name in "abcd":
        house.want(name)
    house.run(1)
    assert len(house.ordered(OrderWake)) == 1
    house.want("e")
    house.run(2)
    assert len(house.ordered(OrderWake)) == 2


def test_of_more_than_are_looked_at_at_once_nobody_waits_until_others_are_up() -> None:
    house = house_of(101)
    house.run(100)
    assert len(asleep(house)) == 100
    vms = [house.want(f"{k:03}") for k in range(MAX_WAITING + 100)]
    house.run(2)
    assert len(house.ordered(OrderWake)) == 89, "of 4 cores each; one is up, and full"
    house.run(20)
    assert len(house.ordered(OrderWake)) == 89
    assert set(Counter(vm.waits_for for vm in vms).values()) == {4}


def test_what_waits_for_a_host_that_does_not_wake_is_given_another() -> None:
    house = sleeping_house(3)
    vm = house.want("a", cores=2.0)
    house.run(1)
    dead = house.ordered(OrderWake)[0]
    house.machines[dead], house.deaf = False, {dead}
    house.booting.clear()
    house.run(300)
    assert house.state(dead) is FAILED
    assert vm.waits_for not in {dead, "", None}


def test_the_cheapest_sufficient_host_is_woken() -> None:
    house = House(policy=with_policy(reserved_hosts=0))
    house.add(power_host("h1", 8, full_w=400), power_host("h2", 2, full_w=90), power_host("h3", 1))
    house.tick()
    house.run(100)
    house.want("a", cores=2.0)
    house.run(1)
    assert house.ordered(OrderWake) == ["h2"]


def test_a_pinned_vm_wakes_its_own_host() -> None:
    house = sleeping_house(4)
    target = asleep(house)[-1]
    house.want("a", pin=target)
    house.run(1)
    assert house.ordered(OrderWake) == [target]


def test_vms_wake_hosts_also_while_energy_saving_is_off() -> None:
    house = sleeping_house(3)
    house.policy = with_policy(enabled=False)
    house.new_leader()
    house.want("a")
    house.run(5)
    assert len(house.ordered(OrderWake)) == 1


def test_a_vm_too_large_for_every_sleeper_wakes_none() -> None:
    house = sleeping_house(3)
    vm = house.want("a", cores=64.0)
    house.run(10)
    assert house.ordered(OrderWake) == []
    assert vm.waits_for == ""


def test_a_missing_reserve_wakes_but_not_a_host_that_has_just_gone() -> None:
    house = house_of(3, reserve_share=Capacity(0.25, 0.0), min_off_s=50.0)
    house.tick()
    assert len(asleep(house)) == 2
    up = next(host_id for host_id, state in house.states().items() if state is ACTIVE)
    house.put(up, "a", cores=3.5)
    house.run(40)
    assert house.ordered(OrderWake) == []
    house.run(15)
    assert len(house.ordered(OrderWake)) == 1
    house.run(2000)
    assert len(house.ordered(OrderWake)) == 1, "what was woken is not put to sleep again"


def test_a_vm_wakes_a_host_that_has_just_gone_if_there_is_no_other() -> None:
    house = house_of(2, min_off_s=5000.0)
    house.tick()
    house.want("a")
    house.run(2)
    assert len(house.ordered(OrderWake)) == 1


def test_anticipation_wakes_what_will_be_needed() -> None:
    house = sleeping_house(4)
    house.expected = Capacity(10.0, 0.0)
    house.run(1)
    assert len(house.ordered(OrderWake)) == 2


def test_hosts_in_maintenance_are_not_woken() -> None:
    house = sleeping_house(2)
    house.host(asleep(house)[0]).maintenance = True
    house.want("a")
    house.run(5)
    assert house.ordered(OrderWake) == []


def test_no_vm_waits_for_a_host_in_maintenance_that_comes_up() -> None:
    house = sleeping_house(3)
    first, second = asleep(house)
    house.host(first).maintenance = True
    assert ask_wake(house, first) == "it is being woken"
    vm = house.want("a", cores=3.9)
    house.run(5)
    assert house.ordered(OrderWake) == [first, second]
    assert vm.waits_for == second


def test_hosts_that_are_just_joining_a_new_leader_do_not_wake_others() -> None:
    house = sleeping_house(3, reserve_share=Capacity(0.5, 0.5))
    up = next(host_id for host_id, state in house.states().items() if state is ACTIVE)
    house.host(up).leave(house.now_s)
    house.run(5)
    assert house.ordered(OrderWake) == [], "it was not given up yet"
    house.host(up).given_up = True
    house.run(5)
    assert len(house.ordered(OrderWake)) >= 1


def test_a_host_wanted_while_it_goes_down_is_woken_when_it_is_down() -> None:
    house = house_of(2)
    house.stubborn = {"h1"}
    house.tick()
    house.want("a", cores=4.0, pin="h1")
    house.run(5)
    assert house.ordered(OrderWake) == []
    house.machines["h1"] = False
    house.run(5)
    assert house.ordered(OrderWake) == ["h1"]


# ------------------------------------------------------------ rule 5: who does not wake


def test_a_host_that_does_not_wake_is_marked_and_the_next_one_is_woken() -> None:
    house = sleeping_house(3)
    first, second = asleep(house)
    house.deaf = {first, second}
    vm = house.want("a", cores=4.0)
    house.run(1)
    woken = house.ordered(OrderWake)[0]
    other = second if woken == first else first
    house.deaf = {woken}
    house.run(241)
    assert house.state(woken) is FAILED
    assert house.host(woken).tries == 2
    assert vm.wake_failed
    house.run(3)
    assert house.ordered(OrderWake) == [woken, woken, other]
    house.run(40)
    assert house.state(other) is ACTIVE
    house.run(1000)
    assert house.ordered(OrderWake) == [woken, woken, other], "nobody wakes a failed host again"


def test_a_bmc_that_does_not_answer_fails_fast() -> None:
    house = sleeping_house(2)
    target = asleep(house)[0]
    house.silent = {target}
    house.want("a", cores=4.0)
    house.run(20)
    assert house.state(target) is FAILED
    assert "does not answer" in house.host(target).note


def test_orders_that_were_never_sent_are_no_tries() -> None:
    """So many hosts are woken at once, or so many BMCs are silent, that no order goes out."""
    house = sleeping_house(2)
    target = asleep(house)[0]
    house.busy_s = house.now_s + 100
    house.want("a", cores=4.0)
    house.run(101)
    assert house.state(target) is HostPower.WAKING
    house.run(40)
    assert house.state(target) is ACTIVE
    house = sleeping_house(2)
    house.busy_s = house.now_s + 10_000
    house.want("a", cores=4.0)
    house.run(300)
    assert house.state(target) is FAILED, "it is not waited for without an end"


class StillGoing(House):
    """A host is deaf for a while after its link closed: it is still going down."""

    def perform(self, effect: EnergyEffect) -> None:
        if isinstance(effect, OrderWake) and self.now_s < self.host(effect.host_id).seen_s + 20:
            self.orders.append(effect)
            now_ms = wall_ms(self.now_s)
            self.feed(WakeAnswered(effect.host_id, effect.step_id, now_ms))
        else:
            super().perform(effect)


def test_a_host_woken_a_moment_after_it_left_is_ordered_again_until_it_hears() -> None:
    """Its kernel still suspends, or nobody can read that it is still on: a packet is lost on it."""
    house = StillGoing(policy=with_policy(action="suspend_to_ram"))
    house.add(power_host("h1"), power_host("h2"))
    house.put("h2", "full", cores=4.0)
    house.tick()
    assert house.state("h1") is ASLEEP
    house.want("a", cores=4.0)
    house.run(62)
    assert house.state("h1") is ACTIVE
    assert house.host("h1").tries == 0
    orders = house.ordered(OrderWake)
    assert 3 <= len(orders) <= 6
    house.run(200)
    assert house.ordered(OrderWake) == orders


def test_a_failed_host_that_joins_is_active() -> None:
    house = sleeping_house(2)
    target = asleep(house)[0]
    house.silent = {target}
    house.want("a", cores=4.0)
    house.run(20)
    house.machines[target] = True
    house.join(target)
    assert house.state(target) is ACTIVE
    assert house.host(target).tries == 0


def test_a_host_switched_on_by_hand_is_active() -> None:
    house = sleeping_house(2)
    target = asleep(house)[0]
    house.machines[target] = True
    house.join(target)
    assert house.state(target) is ACTIVE
    assert house.ordered(OrderWake) == []


def test_a_fenced_host_is_the_recoverys() -> None:
    house = house_of(2)
    house.host("h1").state = FENCED
    house.run(500)
    assert house.state("h1") is FENCED


# ------------------------------------------------------------ rule 1: a new leader


def test_a_new_leader_goes_on_waking() -> None:
    house = sleeping_house(2)
    target = asleep(house)[0]
    house.deaf = {target}
    house.want("a", cores=4.0)
    house.run(10)
    house.deaf = set()
    house.new_leader()
    assert house.state(target) is WAKING
    house.run(40)
    assert house.ordered(OrderWake) == [target, target]
    assert house.state(target) is ACTIVE


def test_a_new_leader_keeps_count_of_the_tries() -> None:
    house = sleeping_house(2)
    target = asleep(house)[0]
    house.deaf = {target}
    house.want("a", cores=4.0)
    house.run(130)
    assert house.host(target).tries == 1
    house.new_leader()
    house.run(125)
    assert house.state(target) is FAILED


def test_a_new_leader_orders_a_host_down_again_that_is_still_there() -> None:
    house = house_of(2)
    house.lost = {"h1"}
    house.tick()
    house.lost = set()
    house.new_leader()
    house.tick()
    assert house.ordered(OrderSleep) == ["h1", "h1"]
    assert house.state("h1") is ASLEEP


def test_a_new_leader_looks_at_a_host_that_was_going_down_and_left() -> None:
    house = house_of(2)
    house.stubborn = {"h1"}
    house.tick()
    house.machines["h1"] = False
    house.new_leader()
    house.run(3)
    assert house.state("h1") is ASLEEP
    assert house.ordered(OrderSleep) == ["h1"]


def test_sleepers_stay_asleep_under_a_new_leader() -> None:
    house = sleeping_house(4)
    before = asleep(house)
    house.new_leader()
    house.run(500)
    assert asleep(house) == before

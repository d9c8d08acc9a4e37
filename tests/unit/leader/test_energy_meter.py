"""Joules are counted as the state, the load and the BMC of each host say, and outlive a leader."""

import pytest

from snooze.common.energy_records import EnergyRecord
from snooze.common.records import HostPower
from snooze.common.resources import Capacity
from snooze.groupmanager.leader.energy_meter_core import (
    MAX_STEP_S,
    SLOTS,
    EnergyMeter,
    join,
    split,
)
from snooze.groupmanager.leader.energy_meter_table import PowerSource
from tests.unit.leader.energy_house import MANAGER, House, power_host

T0 = 1_700_000_000_000


def meter_of(count: int = 1) -> tuple[House, EnergyMeter]:
    house = House()
    house.add(*(power_host(f"h{number}") for number in range(1, count + 1)))
    return house, EnergyMeter(house.registry)


def run(meter: EnergyMeter, seconds: int, start_s: float = 0.0) -> float:
    """Steps of ten seconds; the end."""
    now_s = start_s
    while now_s <= start_s + seconds:
        meter.step(now_s, T0 + int(now_s * 1000))
        now_s += 10.0
    return now_s - 10.0


def source_of(meter: EnergyMeter) -> PowerSource:
    return meter.hosts["h1"].source


def test_an_idle_host_uses_what_its_settings_say() -> None:
    _, meter = meter_of()
    run(meter, 3600)
    assert meter.hosts["h1"].used_j == pytest.approx(100.0 * 3600)
    assert meter.hosts["h1"].saved_j == 0
    assert source_of(meter) == PowerSource.MODEL


def test_a_busy_host_uses_more() -> None:
    house, meter = meter_of()
    house.registry.managers[MANAGER].cores = {"h1": 2.0}
    run(meter, 3600)
    assert meter.hosts["h1"].used_j == pytest.approx(150.0 * 3600)


def test_a_sleeping_host_saves_what_an_idle_one_draws_more() -> None:
    house, meter = meter_of()
    house.host("h1").state = HostPower.ASLEEP
    run(meter, 3600)
    assert meter.hosts["h1"].used_j == pytest.approx(5.0 * 3600)
    assert meter.hosts["h1"].saved_j == pytest.approx(95.0 * 3600)
    assert meter.hosts["h1"].asleep_s == pytest.approx(3600)


def test_waking_costs_some_of_it_back() -> None:
    house, meter = meter_of()
    house.host("h1").state = HostPower.WAKING
    run(meter, 60)
    assert meter.hosts["h1"].used_j == pytest.approx(200.0 * 60)
    assert meter.hosts["h1"].saved_j == pytest.approx(-100.0 * 60)


@pytest.mark.parametrize("state", [HostPower.FENCED, HostPower.FAILED])
def test_a_dead_host_saves_nothing(state: HostPower) -> None:
    house, meter = meter_of()
    house.host("h1").state = state
    run(meter, 60)
    dead = meter.hosts["h1"]
    assert (dead.saved_j, dead.up_s, dead.asleep_s, dead.dead_s) == (0, 0, 0, 60)
    [slot] = meter.past()
    assert (slot.up, slot.asleep) == (0, 0)
    _, after = meter_of()
    after.load(meter.record())
    assert after.hosts["h1"].dead_s == 60


def test_a_measurement_counts_while_it_is_fresh() -> None:
    _, meter = meter_of()
    meter.step(0.0, T0)
    meter.measured("h1", 321.0, 0.0)
    meter.measured("h1", -5.0, 0.0)
    meter.step(10.0, T0 + 10_000)
    assert meter.hosts["h1"].used_j == pytest.approx(3210.0)
    assert source_of(meter) == PowerSource.BMC
    meter.step(200.0, T0 + 200_000)
    assert source_of(meter) == PowerSource.MODEL
    assert meter.hosts["h1"].watts == 100.0


def test_between_two_measurements_the_model_follows_the_load() -> None:
    house, meter = meter_of()
    meter.step(0.0, T0)
    meter.measured("h1", 300.0, 0.0)
    house.registry.managers[MANAGER].cores = {"h1": 2.0}
    meter.step(10.0, T0 + 10_000)
    assert meter.hosts["h1"].watts == pytest.approx(350.0), "half of its cores: 50 W more"
    assert source_of(meter) == PowerSource.BMC
    house.host("h1").state = HostPower.ASLEEP
    meter.step(20.0, T0 + 20_000)
    assert meter.hosts["h1"].watts == pytest.approx(5.0), "that was measured while it was up"


def test_rapl_counts_where_no_bmc_measures() -> None:
    house, meter = meter_of()
    house.registry.managers[MANAGER].watts = {"h1": 42.0}
    run(meter, 60)
    assert meter.hosts["h1"].used_j == pytest.approx(42.0 * 60)
    assert source_of(meter) == PowerSource.RAPL
    meter.measured("h1", 300.0, 60.0)
    meter.step(70.0, T0 + 70_000)
    assert source_of(meter) == PowerSource.BMC


def test_a_gap_is_not_made_up() -> None:
    _, meter = meter_of()
    meter.step(0.0, T0)
    meter.step(5000.0, T0 + 5_000_000)
    assert meter.hosts["h1"].used_j == pytest.approx(100.0 * MAX_STEP_S)


def test_slots_hold_means_and_are_bounded() -> None:
    house, meter = meter_of(2)
    end_s = run(meter, 299)
    house.host("h1").state = HostPower.ASLEEP
    run(meter, 600, end_s + 10)
    past = meter.past()
    assert past[0].watts == pytest.approx(200.0, abs=40)
    assert past[-1].watts == pytest.approx(105.0)
    assert past[-1].saved_w == pytest.approx(95.0)
    assert (past[-1].up, past[-1].asleep) == (1.0, 1.0)
    for number in range(SLOTS + 50):
        meter.step(2000.0 + number * 300, T0 + 2_000_000 + number * 300_000)
    assert len(meter.past()) <= SLOTS + 1


def test_the_next_leader_counts_on() -> None:
    house, meter = meter_of(3)
    house.put("h1", "a", cores=2.0)
    end_s = run(meter, 900)
    parts = split(meter.record(), hosts_each=2, slots_each=2)
    assert len([name for name in parts if name.startswith("hosts-")]) == 2
    other = EnergyMeter(house.registry)
    other.load(join(list(parts.values())))
    assert other.record() == meter.record()
    assert other.demand.anticipate(0).now[0] == pytest.approx(2.0)
    other.step(0.0, T0 + int(end_s * 1000))
    other.step(10.0, T0 + int(end_s * 1000) + 10_000)
    assert other.hosts["h1"].used_j == pytest.approx(meter.hosts["h1"].used_j + 1000.0)


def test_slot_pages_are_used_again_after_a_week() -> None:
    _, meter = meter_of()
    names: set[str] = set()
    for number in range(3 * SLOTS):
        meter.step(number * 300.0, T0 + number * 300_000)
        if number % 100 == 0:
            names |= split(meter.record(), 500, 288).keys()
    assert len([name for name in names if name.startswith("slots-")]) <= SLOTS // 288 + 2


def test_an_empty_record_is_a_beginning() -> None:
    _, meter = meter_of()
    meter.load(join([]))
    assert meter.record() == EnergyRecord(0, {}, [])
    meter.step(0.0, T0)
    assert meter.began_ms == T0


def test_demand_is_what_vms_were_promised() -> None:
    house, meter = meter_of()
    house.put("h1", "a", cores=2.0)
    house.want("b", cores=1.0)
    meter.step(0.0, T0)
    assert meter.past()[-1].demand == Capacity(2.0, 2048.0)

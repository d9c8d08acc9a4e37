"""Which sleepers are woken: few watts, everything held that can be held."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from snooze.common.resources import FloatArray
from snooze.common.wire import PowerDescription
from snooze.scheduling.power_curves import CURVES_W, asleep_w, curve_w, model_of
from snooze.scheduling.waking import WakePlan, cover, plan_wakes


def plan(
    demand: list[list[float]],
    room: Sequence[Sequence[float]],
    *,
    coming: list[int] | None = None,
    cost_w: list[float] | None = None,
    pins: dict[int, int] | None = None,
) -> WakePlan:
    allowed = np.ones((len(demand), len(room)), dtype=np.bool_)
    for vm, host in (pins or {}).items():
        allowed[vm] = False
        allowed[vm, host] = True
    on_the_way = np.zeros(len(room), dtype=np.bool_)
    on_the_way[coming or []] = True
    return plan_wakes(
        np.array(demand, dtype=np.float64).reshape(-1, 2),
        allowed,
        np.array(room, dtype=np.float64),
        on_the_way,
        np.array(cost_w or [100.0] * len(room)),
    )


def test_the_cheapest_sufficient_host_is_woken() -> None:
    result = plan([[2, 2]], [[8, 8], [2, 2], [1, 1]], cost_w=[200, 60, 20])
    assert result.wake == (1,)
    assert list(result.host_of) == [1]


def test_a_host_on_its_way_is_used_before_another_is_woken() -> None:
    result = plan([[2, 2], [2, 2]], [[4, 4], [4, 4]], coming=[1], cost_w=[1, 500])
    assert result.wake == ()
    assert list(result.host_of) == [1, 1]


def test_one_large_host_goes_before_several_small_ones_if_it_costs_less() -> None:
    result = plan([[2, 2]] * 4, [[2, 2]] * 4 + [[8, 8]], cost_w=[60, 60, 60, 60, 100])
    assert result.wake == (4,)


def test_a_pinned_vm_wakes_its_own_host_however_dear() -> None:
    result = plan([[1, 1]], [[4, 4], [4, 4]], cost_w=[1, 500], pins={0: 1})
    assert result.wake == (1,)


def test_what_no_host_can_hold_wakes_nobody() -> None:
    result = plan([[9, 1]], [[8, 8], [8, 8]])
    assert result.wake == ()
    assert list(result.host_of) == [-1]


def test_nothing_waits_nothing_wakes() -> None:
    assert plan([], [[8, 8]]).wake == ()
    assert cover(np.zeros(2), np.ones((3, 2)), np.ones(3)) == ()


def test_missing_capacity_is_covered_on_every_axis() -> None:
    room = np.array([[8.0, 1.0], [1.0, 8.0], [4.0, 4.0]])
    assert cover(np.array([4.0, 4.0]), room, np.array([100.0, 100.0, 100.0])) == (2,)
    assert cover(np.array([8.0, 0.0]), room, np.array([100.0, 100.0, 100.0])) == (0,)
    assert set(cover(np.array([50.0, 50.0]), room, np.ones(3))) == {0, 1, 2}


sizes = st.floats(0.1, 10.0)


@given(
    st.lists(st.tuples(sizes, sizes), max_size=12),
    st.lists(st.tuples(sizes, sizes, st.floats(1, 500), st.booleans()), min_size=1, max_size=6),
)
def test_a_plan_never_overfills_and_leaves_none_that_fits(
    demand: list[tuple[float, float]], hosts: list[tuple[float, float, float, bool]]
) -> None:
    room = [[cpu, memory] for cpu, memory, _, _ in hosts]
    coming = [index for index, host in enumerate(hosts) if host[3]]
    result = plan(
        [list(each) for each in demand], room, coming=coming, cost_w=[host[2] for host in hosts]
    )
    used: FloatArray = np.zeros((len(hosts), 2))
    for vm, host in enumerate(result.host_of):
        if host >= 0:
            used[host] += demand[vm]
            assert host in result.wake or host in coming
    assert bool((used <= np.array(room) + 1e-6).all())
    assert all(used[host].any() for host in result.wake), "no host is woken for nothing"
    untouched = set(range(len(hosts))) - set(result.wake) - set(coming)
    for vm, host in enumerate(result.host_of):
        if host < 0:
            assert not any((np.array(demand[vm]) <= np.array(room[h])).all() for h in untouched)


def test_what_the_host_says_goes_before_the_table() -> None:
    told = curve_w(PowerDescription(idle_w=50, full_w=150), 8, "hp_ml110_g4")
    assert told[0] == 50
    assert told[5] == 100
    assert told[-1] == 150
    assert curve_w(PowerDescription(), 8, "hp_ml110_g4") == CURVES_W["hp_ml110_g4"]


def test_the_generic_curve_goes_through_both_measured_machines() -> None:
    assert curve_w(PowerDescription(), 4) == CURVES_W["ibm_x3250_x3470"]
    assert curve_w(PowerDescription(), 12) == CURVES_W["ibm_x3550_x5675"]
    assert curve_w(PowerDescription(), 8)[-1] == (113 + 222) / 2
    assert min(curve_w(PowerDescription(), 0)) > 0


def test_every_curve_makes_a_sound_model() -> None:
    hosts = [(PowerDescription(asleep_w=7), 4.0), (PowerDescription(idle_w=1, full_w=2), 64.0)]
    for name in (*CURVES_W, "generic", "nonsense"):
        model = model_of(hosts, name, wake_s=60.0)
        assert model.problems == ()
        assert bool(model.known.all())
    assert asleep_w(PowerDescription(asleep_w=7)) == 7

"""Relocation, one rule at a time, on clusters small enough to do in one's head."""

import math
from dataclasses import replace

import numpy as np
import pytest

from snooze.scheduling.check import check_plan
from snooze.scheduling.estimation import Forecast, Window
from snooze.scheduling.filters import Bundle
from snooze.scheduling.plans import ReasonCode
from snooze.scheduling.power_model import PowerModel
from snooze.scheduling.relocation import (
    Bench,
    Hold,
    MovedVm,
    OutcomeKind,
    Relocation,
    Situation,
)
from snooze.scheduling.relocation_cost import MigrationCost
from snooze.scheduling.relocation_greedy import GreedyOverload, GreedyUnderload
from snooze.scheduling.relocation_predictive import DEFAULT, Predictive
from snooze.scheduling.relocation_selection import (
    BestRelief,
    Choice,
    MaximumCorrelation,
    MinimumMigrationTime,
    MinimumUtilisation,
    RandomChoice,
)
from snooze.scheduling.snapshot import Affinity, AffinityRule, HostState, Snapshot

NOW_S = 1000.0
GIB = 1024.0 * 1024


def cluster(places: list[list[float]], **columns: object) -> Snapshot:
    """Hosts of 10 cores, filled up to 9; one list of VM sizes per host, VMs of 1 GiB."""
    vms = [(host, size) for host, sizes in enumerate(places) for size in sizes]
    arguments: dict[str, object] = {
        "headroom": [0.9],
        "memory_kib": [GIB] * len(vms),
        "axes": ("cpu",),
        **columns,
    }
    return Snapshot.of(
        [f"h{i}" for i in range(len(places))],
        [[10.0]] * len(places),
        vm_ids=[f"v{i}" for i in range(len(vms))],
        demand=[[size] for _, size in vms],
        placement=[host for host, _ in vms],
        **arguments,  # type: ignore[arg-type]
    )


def situation(snapshot: Snapshot, hot: str = "", idle: str = "", **more: object) -> Situation:
    """Hosts whose numbers are in ``hot`` are overloaded, in ``idle`` underloaded."""
    flags = [np.array([str(h) in digits for h in range(snapshot.hosts)]) for digits in (hot, idle)]
    return Situation(snapshot, NOW_S, flags[0], flags[1], **more)  # type: ignore[arg-type]


def moves(answer: Relocation) -> list[tuple[int, int, int]]:
    return [(move.vm, move.source, move.target) for move in answer.plan.moves]


def kinds(answer: Relocation) -> dict[int, OutcomeKind]:
    return {outcome.host: outcome.kind for outcome in answer.outcomes}


# Greedy


def test_greedy_overload_moves_the_smallest_vm_that_covers_the_excess() -> None:
    now = situation(cluster([[4.0, 1.0, 3.0, 5.0], [2.0], [1.0]]), hot="0")
    answer = GreedyOverload().plan(now)
    assert moves(answer) == [(0, 0, 2)]  # 13 of 9: the VM of 4 alone covers it; h2 is emptiest
    assert kinds(answer) == {0: OutcomeKind.RELIEVED}


def test_greedy_overload_adds_up_the_smallest_ones_if_no_one_covers() -> None:
    now = situation(cluster([[3.0, 3.0, 3.0, 2.0, 2.0], []]), hot="0")
    assert moves(GreedyOverload().plan(now)) == [(3, 0, 1), (4, 0, 1)]


def test_greedy_overload_wakes_a_host_only_if_no_running_one_has_room() -> None:
    asleep = [HostState.ACTIVE, HostState.ACTIVE, HostState.ASLEEP]
    full = situation(cluster([[6.0, 6.0], [8.0], []], host_state=asleep), hot="0")
    answer = GreedyOverload().plan(full)
    assert moves(answer) == [(0, 0, 2)]
    assert answer.plan.wakes == (2,)
    answer = GreedyOverload(wake=False).plan(full)
    assert kinds(answer) == {0: OutcomeKind.NO_ROOM}
    assert {reason.code for reason in answer.plan.reasons} == {ReasonCode.NO_HOST_FITS}


def test_greedy_underload_is_all_or_nothing_and_sleeps_only_what_it_emptied() -> None:
    snapshot = cluster([[1.0, 2.0], [5.0], [3.0], []])
    answer = GreedyUnderload().plan(situation(snapshot, idle="03"))
    assert moves(answer) == [(1, 0, 1), (0, 0, 1)]  # the larger first, to the fullest
    assert answer.plan.sleeps == (0, 3)
    assert kinds(answer) == {0: OutcomeKind.EMPTIED, 3: OutcomeKind.IDLE}
    tight = cluster([[1.0, 4.0], [5.0]], host_state=[0, 0])
    answer = GreedyUnderload().plan(situation(tight, idle="0"))
    assert moves(answer) == []
    assert answer.plan.sleeps == ()
    assert kinds(answer) == {0: OutcomeKind.NO_ROOM}


def test_a_later_overload_puts_nothing_to_sleep() -> None:
    """Snooze's mistake: the host emptied first was switched off again by the next relocation."""
    policy, busy = GreedyUnderload(), cluster([[1.0], [5.0], [6.0, 6.0]])
    first = policy.plan(situation(busy, idle="0"))
    assert first.plan.sleeps == (0,)
    later = cluster([[3.0], [5.0], [6.0, 6.0]])
    second = GreedyOverload().plan(situation(later, hot="2", hold=first.hold))
    assert second.plan.sleeps == ()
    assert moves(second) == [(2, 2, 0)]


# Ours


def test_it_relieves_to_the_fullest_host_that_has_room_for_what_is_foreseen() -> None:
    now = situation(cluster([[5.0, 4.0, 3.0], [4.0], [5.5], []]), hot="0")
    answer = DEFAULT.plan(now)
    assert moves(answer) == [(2, 0, 2)]
    assert kinds(answer) == {0: OutcomeKind.RELIEVED}
    # What is on h2 may as well be 6.5: now only h1 has room for 3 more.
    spread = np.zeros((5, 1))
    spread[4] = 1.0
    forecast = Forecast(now.snapshot.demand, spread)
    assert moves(DEFAULT.plan(replace(now, forecast=forecast))) == [(2, 0, 1)]


def test_independent_deviations_add_in_squares() -> None:
    """Four VMs of 1 +- 1 are 4 +- 2, not 4 +- 4: there is room for one of 3 beside them."""
    snapshot = cluster([[4.0, 4.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    forecast = Forecast(snapshot.demand, np.array([[0.0]] * 3 + [[1.0]] * 4))
    now = situation(snapshot, hot="0", forecast=forecast)
    assert moves(DEFAULT.plan(now)) == [(2, 0, 1)]
    quiet = situation(cluster([[3.0], [1.0, 1.0, 1.0, 1.0]]), idle="0")
    spread = Forecast(quiet.snapshot.demand, np.array([[0.0]] + [[1.0]] * 4))
    assert moves(DEFAULT.plan(replace(quiet, forecast=spread))) == [(0, 0, 1)]
    wary = Predictive(confidence=2.5)
    assert kinds(wary.plan(replace(quiet, forecast=spread))) == {0: OutcomeKind.NO_ROOM}
    # An overload is certain, there it is only possible: the mean will do.
    assert moves(wary.plan(now)) == [(2, 0, 1)]


def test_a_passing_peak_is_left_alone() -> None:
    snapshot = cluster([[6.0, 6.0], []])
    calm = Forecast(snapshot.demand / 2, np.zeros((2, 1)))
    answer = DEFAULT.plan(situation(snapshot, hot="0", forecast=calm))
    assert moves(answer) == []
    assert kinds(answer) == {0: OutcomeKind.NO_BENEFIT}
    assert "passing" in answer.outcomes[0].message


def test_a_move_that_costs_more_than_it_brings_is_not_made() -> None:
    """64 GiB that are written as fast as they are copied: the VM would stand still for a quarter
    of an hour to take away a tenth of a core for ten minutes."""
    snapshot = cluster([[9.1], []], memory_kib=[64 * GIB], dirty_rate_kib_s=[1e6], headroom=[0.9])
    answer = DEFAULT.plan(situation(snapshot, hot="0"))
    assert moves(answer) == []
    assert kinds(answer) == {0: OutcomeKind.NO_BENEFIT}
    assert [reason.code for reason in answer.plan.reasons] == [ReasonCode.NO_BENEFIT]
    quiet = snapshot.changed(dirty_rate_kib_s=[0.0], demand=[[12.0]], load=None)
    assert kinds(DEFAULT.plan(situation(quiet, hot="0"))) == {0: OutcomeKind.NO_ROOM}


def test_emptying_must_pay_within_the_time_it_is_expected_to_last() -> None:
    snapshot = cluster([[2.0], [5.0]])
    power = PowerModel.linear([100.0, 100.0], [200.0, 200.0])
    answer = DEFAULT.plan(situation(snapshot, idle="0", power=power))
    assert answer.plan.sleeps == (0,)
    assert answer.outcomes[0].benefit > answer.outcomes[0].cost > 0
    # Waking it up again would cost more than it saves.
    slow = PowerModel.of(power.curve_w, asleep_w=10.0, wake_s=3600.0)
    answer = DEFAULT.plan(situation(snapshot, idle="0", power=slow))
    assert moves(answer) == []
    assert kinds(answer) == {0: OutcomeKind.NO_BENEFIT}
    assert [reason.code for reason in answer.plan.reasons] == [ReasonCode.NO_BENEFIT]


def test_the_least_loaded_host_is_emptied_first_and_into_no_empty_one() -> None:
    snapshot = cluster([[3.5], [2.0], [4.0], []])
    answer = DEFAULT.plan(situation(snapshot, idle="0123"))
    assert moves(answer) == [(1, 1, 2)]
    assert answer.plan.sleeps == (1, 3)
    assert kinds(answer) == {
        3: OutcomeKind.IDLE,
        1: OutcomeKind.EMPTIED,
        0: OutcomeKind.NO_ROOM,
        2: OutcomeKind.LEFT_OUT,
    }


def test_nothing_moves_back_and_forth() -> None:
    hold = Hold({"v0": MovedVm(NOW_S + 60, "h1")}, {"h2": NOW_S + 60})
    snapshot = cluster([[2.0], [3.0], [1.0]])
    answer = DEFAULT.plan(situation(snapshot, idle="02", hold=hold))
    assert moves(answer) == []
    assert kinds(answer) == {0: OutcomeKind.HELD, 2: OutcomeKind.HELD}
    hot = cluster([[6.0, 6.0], [1.0], [3.0]])
    held = Hold({"v0": MovedVm(NOW_S + 60, "h2"), "v1": MovedVm(NOW_S + 60, "h2")})
    assert moves(DEFAULT.plan(situation(hot, hot="0", hold=held))) == [(0, 0, 1)]
    over = replace(held, vms={"v0": MovedVm(NOW_S, "h2")})
    assert moves(DEFAULT.plan(situation(hot, hot="0", hold=over))) == [(0, 0, 2)]


def test_hosts_that_took_part_in_an_overload_cool_down() -> None:
    first = DEFAULT.plan(situation(cluster([[6.0, 6.0], [1.0]]), hot="0"))
    assert set(first.hold.hosts) == {"h0", "h1"}
    after = cluster([[2.0], [1.0, 2.0], [4.0]])
    second = DEFAULT.plan(situation(after, idle="01", hold=first.hold))
    assert set(kinds(second).values()) == {OutcomeKind.HELD}
    later = replace(situation(after, idle="01", hold=first.hold), now_s=NOW_S + 7200)
    assert moves(DEFAULT.plan(later))


def test_a_host_is_woken_where_power_is_cheapest() -> None:
    states = [HostState.ACTIVE, HostState.ASLEEP, HostState.ASLEEP]
    snapshot = cluster([[6.0, 6.0], [], []], host_state=states)
    power = PowerModel.linear([100.0] * 3, [200.0, 300.0, 200.0])
    answer = DEFAULT.plan(situation(snapshot, hot="0", power=power))
    assert moves(answer) == [(0, 0, 2)]
    assert answer.plan.wakes == (2,)


def test_vms_that_belong_together_leave_together() -> None:
    rule = AffinityRule(Affinity.TOGETHER, (0, 2))
    snapshot = cluster([[2.0, 6.0, 2.0], [1.0]], rules=[rule])
    answer = DEFAULT.plan(situation(snapshot, hot="0"))
    assert sorted(moves(answer)) == [(0, 0, 1), (2, 0, 1)]
    assert check_plan(snapshot, answer.plan) == []


def test_what_must_stay_keeps_its_host_awake_and_says_why() -> None:
    for column, words in (({"movable": [False, True]}, "migrated"), ({"pin": [0, -1]}, "pinned")):
        answer = DEFAULT.plan(situation(cluster([[1.0], [3.0]], **column), idle="0"))
        assert kinds(answer) == {0: OutcomeKind.NOT_MOVABLE}
        assert words in answer.outcomes[0].message
    unlisted = cluster([[1.0], [3.0]], vm_count=[1, 0])
    assert kinds(DEFAULT.plan(situation(unlisted, idle="0"))) == {0: OutcomeKind.NOT_MOVABLE}


def test_a_plan_has_no_more_moves_than_it_may() -> None:
    crowd = cluster([[2.0] * 6, [], [1.0, 1.0], [3.0]])
    answer = Predictive(max_moves=1).plan(situation(crowd, hot="0", idle="2"))
    assert len(moves(answer)) == 1
    assert kinds(answer) == {0: OutcomeKind.PARTLY_RELIEVED, 2: OutcomeKind.LIMIT_REACHED}


@pytest.mark.parametrize("policy", [DEFAULT, GreedyOverload(), GreedyUnderload()])
def test_nonsense_is_named_and_moves_nothing(policy: Predictive) -> None:
    none = Snapshot.of([], np.zeros((0, 1)), vm_ids=["v"], demand=[[1.0]], axes=("cpu",))
    nobody = np.zeros(0, dtype=np.bool_)
    assert moves(policy.plan(Situation(none, NOW_S, nobody, nobody))) == []
    snapshot = cluster([[6.0, 6.0], [1.0]])
    wrong = Situation(
        snapshot,
        NOW_S,
        nobody,
        nobody,
        forecast=Forecast(np.full((3, 1), math.nan), np.zeros((3, 1))),
        power=PowerModel.linear([1.0], [2.0]),
    )
    answer = policy.plan(wrong)
    assert moves(answer) == []
    assert {p.where for p in answer.plan.problems} == {
        "overloaded", "underloaded", "forecast", "power"
    }  # fmt: skip
    short = replace(wrong, forecast=Forecast(np.zeros((1, 1)), np.zeros((1, 1))))
    assert "forecast" in {p.where for p in policy.plan(short).plan.problems}
    broken = cluster([[math.nan, 6.0], [1.0]])
    answer = policy.plan(situation(broken, hot="0", idle="1"))
    assert check_plan(broken, answer.plan) == []
    assert kinds(answer).get(0, OutcomeKind.LEFT_OUT) is OutcomeKind.LEFT_OUT


def test_a_host_that_gave_takes_nothing_in_the_same_plan() -> None:
    bench = Bench(situation(cluster([[1.0, 2.0], [1.0], [1.0]])), "test", confidence=1.0)
    everywhere = np.ones(3, dtype=np.bool_)
    assert bench.lift(Bundle((0,))) == 0
    bench.put(Bundle((0,)), 1)
    bench.record(Bundle((0,)), 0, 1)
    bench.lift(Bundle((3,)))
    assert bench.targets(Bundle((3,)), everywhere).tolist() == [False, True, True]


# Which VM


def choice(**changes: object) -> Choice:
    cost = MigrationCost(*(np.array([10.0, 5.0, 20.0]) for _ in range(4)))
    base = Choice(np.array([0, 1, 2]), np.array([[0.3], [0.1], [0.2]]), np.array([0.2]), cost)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_each_selection_picks_its_vm() -> None:
    assert int(np.argmin(MinimumMigrationTime().score(choice()))) == 1
    assert int(np.argmin(MinimumUtilisation().score(choice()))) == 1
    # 0 takes away all the excess in 10 s, 1 half of it in 5 s, 2 all of it in 20 s.
    cost = MigrationCost(np.array([10.0, 5.0, 20.0]), *(np.zeros(3) for _ in range(3)))
    scores = BestRelief().score(choice(cost=cost))
    assert scores.tolist() == pytest.approx([10 * 0.5 / 0.2, 5 * 0.3 / 0.1, 20 * 0.4 / 0.2])
    drawn = RandomChoice(np.random.default_rng(1)).score(choice())
    assert drawn.tolist() == RandomChoice(np.random.default_rng(1)).score(choice()).tolist()


def test_maximum_correlation_follows_the_crowd() -> None:
    """VM 2 does the opposite of the other two, who move as one."""
    wave = np.array([1.0, 2.0, 3.0, 2.0, 1.0])
    history = Window.of(np.stack([wave, 2 * wave, 4 - wave / 2])[:, :, None])
    scores = MaximumCorrelation().score(choice(history=history))
    assert scores.tolist() == pytest.approx([-1.0, -1.0, 1.0])
    assert MaximumCorrelation().score(choice()).tolist() == [0.0, 0.0, 0.0]
    flat = Window.of(np.ones((3, 4, 1)))
    assert MaximumCorrelation().score(choice(history=flat)).tolist() == [0.0, 0.0, 0.0]

"""The simulated month: its world obeys its rules, and its judge can tell good from bad."""

import numpy as np

from benchmarks._month_fleet import OFF, ON, PERIOD_S, Fleet, Floats, Moved
from benchmarks._month_judge import harmful_naps, judge, returns
from benchmarks._month_world import Month
from benchmarks.month import settings_of
from snooze.common.decisions import Decision, DecisionKind, DecisionMode

HOURS = 4
POWER_W = tuple(100.0 + 10.0 * tenth for tenth in range(11))


def fleet_of(use: Floats, hosts: int, cores: float = 4.0) -> Fleet:
    vms = len(use)
    return Fleet(
        cores=np.full(hosts, cores),
        power_w=np.array([POWER_W] * hosts),
        asked=np.full(vms, 1.0),
        memory_kib=np.full(vms, 512.0 * 1024),
        use=use,
    )


def month_of(use: Floats, hosts: int, *, decides: bool = True, failures: float = 0.0) -> Month:
    settings = settings_of(decides=decides, anticipates=False)
    return Month(fleet_of(use, hosts), settings, np.arange(len(use)) % hosts, failures, 1)


def test_a_quiet_cluster_packs_itself_sleeps_and_saves() -> None:
    use = np.full((6, 4 * HOURS), 0.3)
    nothing, decided = month_of(use, 6, decides=False), month_of(use, 6)
    nothing.run()
    decided.run()
    assert nothing.meters.energy_j == 6 * (100 + 100 * 0.3 / 4) * 4 * HOURS * PERIOD_S
    assert not nothing.moves
    assert decided.meters.sleeps >= 3
    assert decided.meters.energy_j < 0.7 * nothing.meters.energy_j
    assert decided.meters.unserved == 0
    assert (decided.where >= 0).all()
    assert returns(decided) == 0
    verdicts = judge(decided)
    assert verdicts
    assert not any(each.is_harmful for each in verdicts)


def test_what_a_dead_host_had_runs_again() -> None:
    month = month_of(np.full((8, 16 * HOURS), 0.3), 5, failures=30.0)
    month.run()
    assert month.meters.failures >= 1
    assert month.meters.restarts > 0
    assert (month.where >= 0).all()
    assert 0 < month.meters.stopped < 0.1 * month.meters.asked


def moved(use: Floats) -> Month:
    """One guest of two was moved from host 0 to host 1 at the start, and host 0 went to sleep."""
    month = month_of(use, 2)
    month.history.place[:] = 1
    month.history.state[:, 0] = OFF
    month.history.state[:, 1] = ON
    month.moves.append(Moved("d", 0, 0, 1, 0.0, 10.0))
    month.decisions["d"] = Decision(
        "d", 0, DecisionKind.UNDERLOAD, DecisionMode.AUTO, "manager", "idle"
    )
    return month


def test_the_judge_tells_a_host_saved_from_a_host_overloaded() -> None:
    [good] = judge(moved(np.full((2, 20), 1.0)))
    assert not good.is_worse
    assert good.otherwise - good.cost > 0.09, "a host of 100 W for an hour, less 5 W asleep"
    [bad] = judge(moved(np.full((2, 20), 3.0)))
    assert bad.is_harmful, "two core hours were not served"


def test_a_move_that_changed_nothing_costs_what_moving_costs() -> None:
    month = moved(np.full((2, 20), 1.0))
    month.history.state[:, 0] = ON
    month.history.place[:, 1] = 0
    [verdict] = judge(month)
    assert verdict.is_worse
    assert not verdict.is_harmful


def test_whoever_comes_back_within_the_hour_is_counted() -> None:
    month = month_of(np.full((1, 20), 1.0), 3)
    for source, target, at_s in ((0, 1, 0.0), (1, 2, 600.0), (2, 0, 1200.0), (0, 1, 9000.0)):
        month.moves.append(Moved("d", 0, source, target, at_s, at_s + 10))
    assert returns(month) == 1


def test_a_short_nap_is_harmful() -> None:
    month = month_of(np.full((1, 20), 1.0), 1)
    month.slept += [[0, 0.0, 300.0], [0, 0.0, 3600.0], [0, 0.0, np.inf]]
    assert harmful_naps(month) == 1

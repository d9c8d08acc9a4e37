"""The packing optimiser by example: known optima, bad input, bounds on its work, no numba."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from snooze.scheduling import packing_jit
from snooze.scheduling.bounds import hosts_bound, packing_bound
from snooze.scheduling.packing import pack
from snooze.scheduling.packing_effort import Effort, Meter
from snooze.scheduling.packing_greedy import Rule, best_fit, fill_bins, first_fit

ROOT = Path(__file__).resolve().parents[3]


def test_first_fit_by_hand() -> None:
    items = np.array([[6.0, 1.0], [5.0, 1.0], [4.0, 1.0], [5.0, 9.5]])
    assert first_fit(items, np.array([10.0, 10.0])).tolist() == [0, 1, 0, 2]


def test_best_fit_prefers_the_bin_it_fills() -> None:
    items = np.array([[6.0], [7.0], [3.0]])
    assert best_fit(items, np.array([10.0]), np.arange(3)).tolist() == [0, 1, 1]


@pytest.mark.parametrize("rule", list(Rule))
def test_bins_are_filled_with_what_complements_them(rule: Rule) -> None:
    items = np.array([[8.0, 2.0], [8.0, 2.0], [2.0, 8.0], [2.0, 8.0]])
    bin_of = fill_bins(items, np.array([10.0, 10.0]), rule)
    assert bin_of.max() == 1


def test_greedy_rules_leave_out_what_fits_no_bin() -> None:
    items = np.array([[11.0], [5.0]])
    room = np.array([10.0])
    assert first_fit(items, room).tolist() == [-1, 0]
    assert best_fit(items, room, np.arange(2)).tolist() == [-1, 0]
    assert fill_bins(items, room, Rule.DOT).tolist() == [-1, 0]


def test_ejection_beats_every_greedy_rule() -> None:
    """Martello and Toth's kind of trap: first fit decreasing needs 3 bins, two suffice."""
    items = np.array([[44.0], [36.0], [30.0], [26.0], [24.0], [20.0], [20.0]])
    packing = pack(items, [100.0])
    assert packing.bins == 2
    assert packing.optimal


def test_each_bad_item_is_named_and_the_others_packed() -> None:
    items = [[5.0, 5.0], [float("nan"), 1.0], [-1.0, 1.0], [11.0, 1.0], [5.0, 5.0]]
    packing = pack(items, [10.0, 10.0])
    assert packing.bin_of.tolist() == [0, -1, -1, -1, 0]
    assert [problem.where for problem in packing.problems] == ["items[1]", "items[2]", "items[3]"]


@pytest.mark.parametrize("capacity", [[float("nan")], [-1.0], [float("inf")], 5.0, "x", None])
def test_a_capacity_that_makes_no_sense_is_said(capacity: object) -> None:
    packing = pack([[1.0]], capacity)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert packing.bins == 0
    assert packing.problems


@pytest.mark.parametrize("items", [[[1.0, 2.0]], [1.0], "x", [[1.0], [1.0, 2.0]], [[object()]]])
def test_items_of_a_wrong_shape_are_said(items: object) -> None:
    packing = pack(items, [10.0])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert packing.bins == 0
    assert packing.problems


def test_nothing_needs_no_bins() -> None:
    packing = pack(np.zeros((0, 3)), [1.0, 1.0, 1.0])
    assert (packing.bins, packing.problems) == (0, ())


def test_items_without_demand_need_one_bin_even_of_no_capacity() -> None:
    packing = pack(np.zeros((5, 2)), [0.0, 0.0])
    assert packing.bin_of.tolist() == [0] * 5
    assert packing.bins == 1


def test_a_full_bin_of_fractions_is_full_not_overfull() -> None:
    assert pack(np.full((10, 2), 0.1), [1.0, 1.0]).bins == 1


def test_steps_bound_the_work() -> None:
    items = np.random.default_rng(0).uniform(0.1, 0.6, size=(60, 3))
    packing = pack(items, [1.0] * 3, effort=Effort(steps=500))
    assert packing.bins > packing.bound.count  # or there was nothing to spend steps on
    assert packing.steps <= 500 + 500_000 // 100  # one look at patterns may be over


def test_time_bounds_the_work() -> None:
    now_s = [0.0]

    def monotonic() -> float:
        now_s[0] += 0.25
        return now_s[0]

    items = np.random.default_rng(0).uniform(0.1, 0.6, size=(60, 3))
    packing = pack(items, [1.0] * 3, effort=Effort(1 << 60, 5.0, monotonic))
    assert packing.bins > packing.bound.count
    assert now_s[0] < 8.0


def test_a_meter_without_a_clock_counts_steps_only() -> None:
    meter = Meter(Effort(steps=3, time_limit_s=0.0))
    assert not meter.over()
    meter.steps = 3
    assert meter.over()


@pytest.mark.parametrize(
    ("items", "count", "by"),
    [
        (np.full((10, 1), 0.3), 3, "sum"),
        (np.full((7, 1), 0.51), 7, "dual feasible functions"),
        ([[0.9, 0.0], [0.1, 0.9], [0.2, 0.2]], 2, "sum"),
        ([[0.6, 0.1], [0.6, 0.6], [0.1, 0.6]], 2, "sum"),
        ([[0.7, 0.0, 0.4], [0.4, 0.7, 0.0], [0.0, 0.4, 0.7]], 3, "items that exclude one another"),
    ],
)
def test_bounds_by_hand(items: object, count: int, by: str) -> None:
    rows = np.array(items, dtype=np.float64)
    bound = packing_bound(rows, np.ones_like(rows[0]))
    assert (bound.count, bound.by) == (count, by)


def test_hosts_that_cannot_be_emptied_count() -> None:
    capacity = np.array([[10.0], [10.0], [4.0]])
    kept = np.array([False, False, True])
    assert hosts_bound(np.array([[3.0]]), capacity, kept).count == 1
    assert hosts_bound(np.array([[3.0], [3.0]]), capacity, kept).count == 2
    assert hosts_bound(np.zeros((0, 1)), capacity, kept).count == 1


PROGRAM = """
import sys
if "interpreted" in sys.argv:
    sys.modules["numba"] = None
import numpy as np
from snooze.scheduling import packing_jit
from snooze.scheduling.packing import pack
from snooze.scheduling.packing_effort import Effort
items = np.random.default_rng(3).integers(10, 55, size=(24, 2))
packing = pack(items, [100, 100], effort=Effort(steps=6_000))
print(packing_jit.COMPILED, packing.method, packing.bins, packing.bin_of.tolist())
"""


def test_without_numba_the_same_search_runs_interpreted() -> None:
    answers = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM, how],
            env={"PYTHONPATH": str(ROOT / "typings"), "HOME": "/tmp"},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout.split(maxsplit=1)
        for how in (["compiled", "interpreted"] if packing_jit.COMPILED else ["interpreted"])
    ]
    assert answers[-1][0] == "False"
    assert len({answer[1] for answer in answers}) == 1

"""Power curves: their points, the lines between, and nonsense."""

import math

import numpy as np
import pytest

from snooze.scheduling.power_model import PowerModel


def test_power_is_linear_between_points_and_that_of_the_ends_beyond() -> None:
    model = PowerModel.of([[100.0, 120.0, 200.0]] * 5)
    watts = model.power_w(np.array([0.0, 0.25, 0.75, 1.0, 9.0]))
    assert watts.tolist() == [100.0, 110.0, 160.0, 200.0, 200.0]
    assert model.power_w(np.array([math.nan, -1.0, 0.5, 0, 0])).tolist()[:3] == [100, 100, 120]


def test_what_a_sleeping_host_saves_and_what_room_costs() -> None:
    model = PowerModel.of([[100.0, 200.0], [50.0, 100.0]], asleep_w=[10.0, 60.0], wake_s=300)
    assert model.idle_saving_w().tolist() == [90.0, 0.0]
    assert model.cost_of_capacity(np.array([8.0, 0.0])).tolist() == [25.0, math.inf]
    assert model.rows(np.array([1])).asleep_w.tolist() == [60.0]
    assert model.wake_s.tolist() == [300.0, 300.0]
    assert PowerModel.linear([1.0, 2.0], [3.0, 4.0]).power_w(np.array([0.5, 0.5])).tolist() == [
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("curve", "where"),
    [
        ("watts", "curve_w"),
        ([[1.0]], "curve_w"),
        ([1.0, 2.0], "curve_w"),
        ([[1.0, math.nan]], "curve_w[0]"),
        ([[1.0, -2.0]], "curve_w[0]"),
    ],
)
def test_nonsense_is_named_and_draws_nothing(curve: object, where: str) -> None:
    model = PowerModel.of(curve)  # type: ignore[arg-type]
    assert [problem.where for problem in model.problems] == [where]
    assert not model.known.any()
    assert model.power_w(np.ones(model.hosts)).sum() == 0.0


def test_columns_that_fit_nobody_are_named() -> None:
    model = PowerModel.of([[1.0, 2.0]] * 2, asleep_w=[1.0, 2.0, 3.0], wake_s=-1.0)
    assert [problem.where for problem in model.problems] == ["asleep_w", "wake_s[0]", "wake_s[1]"]
    assert not model.known.any()
    assert PowerModel.linear([1.0, 2.0], [1.0]).hosts == 0
    assert PowerModel.of([]).hosts == 0

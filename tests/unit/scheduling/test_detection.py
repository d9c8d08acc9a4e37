"""Windows and detectors: examples that read like the rules, and nonsense."""

import math

import numpy as np
import pytest

from snooze.scheduling.detection import DEFAULT, LIMITS, Detector, Thresholds, Watch
from snooze.scheduling.estimation import ESTIMATORS, Average, SampleRing, Window, forecast


def line(*values: float) -> Window:
    """One host, one axis."""
    return Window.of([[[value] for value in values]])


def follow(detector: Detector, *values: float) -> list[str]:
    """What one host is called after each of ``values``: hot, idle or fine."""
    watch = Watch.fresh(1)
    seen: list[str] = []
    for count in range(1, len(values) + 1):
        found = detector.detect(line(*values[max(0, count - 3) : count]), watch, period_s=10.0)
        watch = found.watch
        seen.append("hot" if found.overloaded[0] else "idle" if found.underloaded[0] else "fine")
    return seen


def test_overload_must_last_and_must_really_be_over() -> None:
    detector = Detector(sustain_s=30.0, hysteresis=0.1)
    assert follow(detector, 1.2, 1.2, 0.9, 1.2, 1.2, 1.2) == ["fine"] * 5 + ["hot"]
    assert follow(detector, 1.2, 1.2, 1.2, 0.95, 0.95, 0.95) == ["fine"] * 2 + ["hot"] * 4
    assert follow(detector, 1.2, 1.2, 1.2, 0.8, 0.8, 0.8)[2:] == ["hot"] * 3 + ["fine"]


def test_underload_must_last_and_ends_at_once() -> None:
    detector = Detector(idle_s=20.0, hysteresis=0.1)
    assert follow(detector, 0.5, 0.5, 0.5, 0.95, 0.95) == ["fine", "idle", "idle", "idle", "fine"]


def test_a_missing_sample_changes_nothing_and_starts_the_count_anew() -> None:
    detector = Detector(sustain_s=20.0)
    assert follow(detector, 1.2, math.nan, 1.2, 1.2) == ["fine", "fine", "fine", "hot"]
    found = detector.detect(line(1.2, math.nan), Watch.fresh(1), 10.0)
    assert found.unknown.tolist() == [True]


def test_any_axis_makes_a_host_hot_but_only_all_make_it_idle() -> None:
    thresholds = Thresholds((0.2, 0.5), (0.8, 0.9), (0.9, 1.0))
    detector = Detector(thresholds=thresholds, sustain_s=0.0, idle_s=0.0)
    window = Window.of([[[0.1, 0.4]], [[0.1, 0.6]], [[0.95, 0.1]], [[0.1, 0.95]]])
    found = detector.detect(window, Watch.fresh(4), 10.0)
    assert found.overloaded.tolist() == [False, False, True, False]
    assert found.underloaded.tolist() == [True, False, False, False]
    assert found.pressure[2, 0] == pytest.approx(0.95 / 0.9)


def test_a_watch_follows_its_hosts_by_name() -> None:
    watch = Watch(
        np.array([True, False]), np.array([False, True]), np.array([1, 2]), np.array([3, 4])
    )
    moved = watch.followed(["a", "b"], ["b", "new", "a"])
    assert moved.overloaded.tolist() == [False, False, True]
    assert moved.underloaded.tolist() == [True, False, False]
    assert moved.towards_overload.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("thresholds", "code"),
    [
        (Thresholds((0.9,), (0.8,), (1.0,)), "contradiction"),
        (Thresholds((0.1,), (0.5,), (1.5,)), "range"),
        (Thresholds((0.1,), (math.nan,), (1.0,)), "range"),
        (Thresholds((0.1, 0.1), (0.5,), (1.0, 1.0, 1.0)), "shape"),
        (Thresholds((), (0.5,), (1.0,)), "shape"),
    ],
)
def test_thresholds_that_make_no_sense_find_nobody(thresholds: Thresholds, code: str) -> None:
    found = Detector(thresholds=thresholds).detect(line(2.0, 2.0), Watch.fresh(1), 300.0)
    assert [problem.code for problem in found.problems] == [code]
    assert not found.overloaded.any()
    assert found.unknown.all()


def test_a_watch_for_other_hosts_is_named_and_starts_afresh() -> None:
    found = DEFAULT.detect(line(2.0), Watch.fresh(7), 300.0)
    assert [problem.where for problem in found.problems] == ["watch"]
    assert found.overloaded.tolist() == [True]


@pytest.mark.parametrize("limit", LIMITS.values(), ids=lambda limit: f"{limit.name}")
def test_no_hosts_no_instants_no_axes(limit: object) -> None:
    detector = Detector(limit=limit)  # type: ignore[arg-type]
    for shape in ((0, 5, 2), (3, 0, 2), (3, 5, 0), (0, 0, 0)):
        found = detector.detect(Window.of(np.zeros(shape)), Watch.fresh(shape[0]), 300.0)
        assert found.overloaded.shape == (shape[0],)
        assert not found.overloaded.any()


@pytest.mark.parametrize(
    ("samples", "valid", "where"),
    [
        ("text", None, "samples"),
        ([[1.0]], None, "samples"),
        (np.zeros((1, 2, 1)), [[True]], "valid"),
        (np.zeros((1, 2, 1)), [[True], [True, False]], "valid"),
    ],
)
def test_a_window_that_makes_no_sense_is_empty_and_says_so(
    samples: object, valid: object, where: str
) -> None:
    window = Window.of(samples, valid)  # type: ignore[arg-type]
    assert [problem.where for problem in window.problems] == [where]
    assert window.things == 0
    asked = np.full((2, 1), 3.0)
    for estimator in ESTIMATORS.values():
        answer = estimator.estimate(window, asked)
        assert answer.value.tolist() == asked.tolist()
        assert not answer.known.any()
        assert answer.problems
    guess = forecast(window, asked)
    assert guess.expected.tolist() == asked.tolist()
    assert (guess.deviation > 0).all()


def test_samples_that_are_no_numbers_are_counted_and_left_out() -> None:
    window = Window.of([[[1.0], [math.nan], [-1.0], [3.0]]])
    assert "2 are not numbers" in window.problems[0].message
    assert Average().estimate(window, np.array([[9.0]])).value.tolist() == [[2.0]]


def test_a_ring_without_length_or_things_is_no_trouble() -> None:
    assert SampleRing(0, 5, 2).window().things == 0
    assert SampleRing(2, 0, 2).window().valid.shape == (2, 0)

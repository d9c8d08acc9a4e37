"""What is coming, from days of a known shape."""

import math

import numpy as np
import pytest

from snooze.common.resources import R
from snooze.scheduling.anticipation import DAY_S, DAYS, SLOT_S, DayHistory

MONDAY_S = 20_000 * DAY_S
HOUR_S = 3600.0


def vector(cores: float) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    return np.array([cores, cores * 2, 0.0, 0.0])


def office(wall_s: float, scale: float = 1.0) -> float:
    """10 cores at night, 50 from nine to five."""
    hour = wall_s % DAY_S / HOUR_S
    return scale * (50.0 if 9 <= hour < 17 else 10.0)


def filled(until_s: float, scale: float = 1.0) -> DayHistory:
    history = DayHistory()
    for wall_s in np.arange(MONDAY_S, until_s, SLOT_S):
        assert history.observe(float(wall_s), vector(office(float(wall_s), scale)))
    return history


def test_nothing_is_known_without_a_past() -> None:
    assert DayHistory().anticipate(HOUR_S).days == 0
    history = filled(MONDAY_S + 8.9 * HOUR_S)
    found = history.anticipate(HOUR_S)
    assert (found.days, found.rise.tolist(), found.in_s) == (0, [0.0] * R, 0.0)
    assert found.now[0] == found.peak[0] == 10


@pytest.mark.parametrize("days", [1, 3, 6, 20])
def test_the_morning_is_seen_coming_and_the_evening_is_no_rise(days: int) -> None:
    morning_s = MONDAY_S + days * DAY_S + 8.75 * HOUR_S
    history = filled(morning_s)
    found = history.anticipate(HOUR_S / 2)
    assert found.days == min(days, DAYS - 1)
    assert found.rise.tolist() == [40.0, 80.0, 0.0, 0.0]
    assert 0 < found.in_s <= 0.25 * HOUR_S + SLOT_S
    assert not history.anticipate(0.0).rise.any()
    assert not filled(morning_s - 2 * HOUR_S).anticipate(HOUR_S / 2).rise.any()
    evening = filled(MONDAY_S + days * DAY_S + 16.5 * HOUR_S).anticipate(6 * HOUR_S)
    assert not evening.rise.any()
    assert evening.peak[0] == 50


def test_the_level_is_of_today_the_shape_of_the_past() -> None:
    history = filled(MONDAY_S + 2 * DAY_S)
    tuesday_s = MONDAY_S + 2 * DAY_S
    for wall_s in np.arange(tuesday_s, tuesday_s + 8.75 * HOUR_S, SLOT_S):
        history.observe(float(wall_s), vector(30.0))
    assert history.anticipate(HOUR_S).peak[0] == 70


def test_a_quantile_of_the_days_counts() -> None:
    history = DayHistory()
    for day, scale in enumerate((1.0, 1.0, 1.0, 2.0)):
        for wall_s in np.arange(MONDAY_S + day * DAY_S, MONDAY_S + (day + 1) * DAY_S, SLOT_S):
            history.observe(float(wall_s), vector(office(float(wall_s), scale)))
    for wall_s in np.arange(MONDAY_S + 4 * DAY_S, MONDAY_S + 4 * DAY_S + 8.75 * HOUR_S, SLOT_S):
        history.observe(float(wall_s), vector(10.0))
    rises = [history.anticipate(HOUR_S, share).rise[0] for share in (0.0, 0.5, 1.0)]
    assert rises == [40, 40, 80]


def test_holes_are_no_zeros_and_days_with_too_many_say_nothing() -> None:
    history = DayHistory()
    for wall_s in np.arange(MONDAY_S, MONDAY_S + DAY_S + 8.75 * HOUR_S, SLOT_S):
        if wall_s < MONDAY_S + 8 * HOUR_S or wall_s > MONDAY_S + 14 * HOUR_S:
            history.observe(float(wall_s), vector(office(float(wall_s))))
    assert not history.anticipate(HOUR_S).days, "its own hour is not known"
    history = DayHistory()
    for wall_s in np.arange(MONDAY_S, MONDAY_S + DAY_S + 8.75 * HOUR_S, SLOT_S):
        if int(wall_s / SLOT_S) % 3 or wall_s > MONDAY_S + DAY_S:
            history.observe(float(wall_s), vector(office(float(wall_s))))
    assert history.anticipate(HOUR_S).rise[0] == 40


def test_what_can_not_be_is_refused() -> None:
    history = DayHistory()
    assert history.observe(MONDAY_S, vector(1.0))
    assert not history.observe(MONDAY_S - SLOT_S, vector(1.0))
    assert not history.observe(MONDAY_S, np.array([math.nan] * R))
    assert not history.observe(MONDAY_S, np.array([-1.0] * R))
    assert not history.observe(MONDAY_S, np.array([1.0]))
    assert history.observe(MONDAY_S + 1, vector(3.0))
    assert history.anticipate(HOUR_S).now[0] == 2, "the mean of a slot"
    assert history.observe(MONDAY_S + 1000 * DAY_S, vector(4.0))
    assert history.anticipate(DAY_S * 5).days == 0

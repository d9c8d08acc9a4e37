"""Estimators and detectors against naive ones that loop over Python numbers."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from snooze.scheduling.detection import (
    Detector,
    Fixed,
    MedianDeviation,
    QuartileRange,
    Regression,
    Thresholds,
    Watch,
)
from snooze.scheduling.estimation import (
    ESTIMATORS,
    PRIOR_OF_MEAN,
    PRIOR_OF_REQUEST,
    PRIOR_SAMPLES,
    Average,
    Ewma,
    LocalRegression,
    Percentile,
    SampleRing,
    Window,
    forecast,
    hosts_window,
)

RELAXED = settings(max_examples=60, deadline=None, derandomize=True)
Samples = NDArray[np.float64]


@st.composite
def windows(draw: st.DrawFn, axes: int | None = None) -> Window:
    """Samples between 0 and 2, a good part of them missing or not a number."""
    things, instants = draw(st.integers(0, 4)), draw(st.integers(0, 16))
    width = axes if axes is not None else draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    samples = rng.choice([0.0, 0.25, 0.5, 0.8, 1.0, 2.0], size=(things, instants, width))
    if draw(st.booleans()):
        samples = rng.random((things, instants, width))
    bad = draw(st.sampled_from([0.0, 0.2, 0.9]))
    samples[rng.random(samples.shape) < bad] = draw(
        st.sampled_from([math.nan, -1.0, math.inf, -math.inf, 1e300])
    )
    return Window.of(samples)


def column(window: Window, thing: int, axis: int, newest: int = 10**9) -> list[tuple[int, float]]:
    """The newest valid samples of one thing on one axis: instant and value, oldest first."""
    instants = [t for t in range(window.valid.shape[1]) if window.valid[thing, t]]
    return [(t, float(window.samples[thing, t, axis])) for t in instants[-newest:]]


def requests(window: Window) -> Samples:
    return np.full((window.things, window.samples.shape[2]), 7.0)


def cells(window: Window) -> list[tuple[int, int]]:
    return [(n, r) for n in range(window.things) for r in range(window.samples.shape[2])]


@given(windows(), st.integers(1, 6))
@RELAXED
def test_average(window: Window, count: int) -> None:
    answer = Average(count).estimate(window, requests(window))
    for n, r in cells(window):
        values = [value for _, value in column(window, n, r, count)]
        assert answer.value[n, r] == pytest.approx(statistics.fmean(values) if values else 7.0)
        assert answer.known[n] == bool(values)


@given(windows(), st.sampled_from([0.5, 3.0, 20.0]))
@RELAXED
def test_ewma(window: Window, half_life: float) -> None:
    answer = Ewma(half_life).estimate(window, requests(window))
    last = window.valid.shape[1] - 1
    for n, r in cells(window):
        pairs = [(0.5 ** ((last - t) / half_life), value) for t, value in column(window, n, r)]
        mass = sum(weight for weight, _ in pairs)
        wanted = sum(weight * value for weight, value in pairs) / mass if pairs else 7.0
        assert answer.value[n, r] == pytest.approx(wanted)


@given(windows(), st.sampled_from([0.0, 50.0, 90.0, 100.0]), st.integers(1, 20))
@RELAXED
def test_percentile(window: Window, percent: float, count: int) -> None:
    answer = Percentile(percent, count).estimate(window, requests(window))
    for n, r in cells(window):
        values = [value for _, value in column(window, n, r, count)]
        wanted = float(np.percentile(values, percent)) if values else 7.0
        assert answer.value[n, r] == pytest.approx(wanted)


@given(windows(), st.integers(3, 12), st.sampled_from([0.0, 1.0, 5.0]), st.booleans())
@RELAXED
def test_local_regression(window: Window, count: int, ahead: float, loess: bool) -> None:
    answer = LocalRegression(count, ahead, loess).estimate(window, requests(window))
    last = window.valid.shape[1] - 1
    for n, r in cells(window):
        pairs = column(window, n, r, count)
        if len(pairs) < 3:
            wanted = statistics.fmean(v for _, v in pairs) if pairs else 7.0
        else:
            reach = pairs[-1][0] - pairs[0][0] + 1
            weights = [
                (1 - ((pairs[-1][0] - t) / reach) ** 3) ** 3 if loess else 1.0 for t, _ in pairs
            ]
            x = [float(t) for t, _ in pairs]
            y = [value for _, value in pairs]
            slope, start = np.polyfit(x, y, 1, w=np.sqrt(weights))
            wanted = max(0.0, float(start + slope * (last + ahead)))
        assert answer.value[n, r] == pytest.approx(wanted, abs=1e-6)


@given(windows(), st.integers(1, 12))
@RELAXED
def test_forecast(window: Window, count: int) -> None:
    asked = requests(window)
    answer = forecast(window, asked, count)
    for n, r in cells(window):
        values = [value for _, value in column(window, n, r, count)]
        mean = statistics.fmean(values) if values else 7.0
        prior = PRIOR_OF_MEAN * mean + PRIOR_OF_REQUEST * 7.0
        squares = sum((value - mean) ** 2 for value in values)
        wanted = math.sqrt((squares + PRIOR_SAMPLES * prior**2) / (len(values) + PRIOR_SAMPLES))
        assert answer.expected[n, r] == pytest.approx(mean)
        assert answer.deviation[n, r] == pytest.approx(wanted)


@given(windows(), st.integers(1, 4), st.integers(0, 2**32 - 1))
@RELAXED
def test_hosts_are_the_sum_of_what_is_on_them_now(window: Window, hosts: int, seed: int) -> None:
    placement = np.random.default_rng(seed).integers(-1, hosts, size=window.things)
    answer = hosts_window(window, placement, hosts)
    for host in range(hosts):
        vms = [vm for vm in range(window.things) if placement[vm] == host]
        for t in range(window.valid.shape[1]):
            seen = [vm for vm in vms if window.valid[vm, t]]
            assert answer.valid[host, t] == bool(seen or not vms)
            for r in range(window.samples.shape[2]):
                wanted = sum(float(window.samples[vm, t, r]) for vm in seen)
                assert answer.samples[host, t, r] == pytest.approx(wanted)


@given(
    st.integers(1, 5),
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0.5, 1.5, -1.0, math.nan])), max_size=40
    ),
)
@RELAXED
def test_a_ring_keeps_the_newest_samples_in_order(
    length: int, pushes: list[tuple[int, float]]
) -> None:
    ring = SampleRing(4, length, 1)
    kept: dict[int, list[float]] = {row: [] for row in range(4)}
    for row, value in pushes:
        ring.push(np.array([row]), np.array([[value]]))
        kept[row] = [*kept[row], value][-length:]
    window = ring.window()
    for row, values in kept.items():
        good = [value for value in values if value >= 0]
        assert [value for _, value in column(window, row, 0)] == good
    ring.clear(np.array([0]))
    assert not ring.window(np.array([0])).valid.any()
    assert ring.window(np.array([2, 1])).counts.tolist() == window.counts[[2, 1]].tolist()


@given(windows())
@RELAXED
def test_no_estimator_ever_answers_nonsense(window: Window) -> None:
    asked = requests(window)
    if asked.size:
        asked[0, 0] = math.nan
    for estimator in ESTIMATORS.values():
        answer = estimator.estimate(window, asked)
        assert answer.value.shape == asked.shape
        assert (answer.value >= 0).all()
        assert not asked.size or any(each.where == "requested" for each in answer.problems)


# Detectors


def naive_limit(detector: Detector, values: list[float], maximum: float) -> float:
    """The utilisation above which the newest of ``values`` is too much."""
    match detector.limit:
        case MedianDeviation(safety, enough, fallback):
            if len(values) < enough:
                return min(fallback, maximum)
            middle = statistics.median(values)
            away = statistics.median(abs(value - middle) for value in values)
            return min(1 - safety * away, maximum)
        case QuartileRange(safety, enough, fallback):
            if len(values) < enough:
                return min(fallback, maximum)
            first, third = np.percentile(values, [25, 75])
            return min(1 - safety * float(third - first), maximum)
        case _:
            return maximum


def naive_pressure(
    detector: Detector, pairs: list[tuple[int, float]], last: int, maximum: float
) -> float:
    values = [value for _, value in pairs]
    newest = values[-1] if values else 0.0
    if isinstance(detector.limit, Regression):
        rule = detector.limit
        if len(values) >= rule.samples:
            x = [float(t) for t, _ in pairs[-rule.samples :]]
            y = values[-rule.samples :]
            reach = x[-1] - x[0] + 1
            weights = [(1 - ((x[-1] - t) / reach) ** 3) ** 3 for t in x]
            slope, start = np.polyfit(x, y, 1, w=np.sqrt(weights))
            return max(0.0, float(start + slope * (last + 1)) * rule.safety / maximum)
        return newest / min(maximum, rule.fallback)
    limit = naive_limit(detector, values, maximum)
    if limit <= 0:
        return math.inf if newest > 0 else 0.0
    return newest / limit


class NaiveHost:
    """One host's flags, by the rules at the top of ``detection``."""

    def __init__(self) -> None:
        self.hot = self.idle = False
        self.hot_count = self.idle_count = 0

    def judge(
        self, detector: Detector, pressures: list[float], means: list[float], waits: int
    ) -> None:
        high = 1 - detector.hysteresis if self.hot else 1.0
        hot = any(p >= high if self.hot else p > high for p in pressures)
        self.hot_count = self.hot_count + 1 if hot != self.hot else 0
        if self.hot_count >= waits:
            self.hot, self.hot_count = hot, 0
        low = detector.thresholds.minimum[0] + (detector.hysteresis if self.idle else 0.0)
        idle = all(mean < low for mean in means)
        self.idle_count = self.idle_count + 1 if idle != self.idle else 0
        if self.idle_count >= (1 if self.idle else waits):
            self.idle, self.idle_count = idle, 0
        self.idle = self.idle and not self.hot


@pytest.mark.parametrize("limit", [Fixed(), MedianDeviation(), QuartileRange(), Regression()])
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([0.0, 0.1, 0.3]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_detection(limit: Fixed, seed: int, waits: int, hysteresis: float) -> None:
    rng = np.random.default_rng(seed)
    hosts, axes, length = 3, 2, 14
    detector = Detector(limit, Thresholds((0.3,), (0.8,), (0.9,)), 30.0, 30.0, hysteresis)
    watch = Watch.fresh(hosts)
    naive = [NaiveHost() for _ in range(hosts)]
    level = rng.random((hosts, 1, axes))
    samples = np.clip(level + rng.normal(0, 0.25, (hosts, length + 25, axes)), 0, 2)
    samples[rng.random(samples.shape) < 0.05] = math.nan
    for step in range(1, 26):
        window = Window.of(samples[:, max(0, step + 14 - length) : step + 14])
        seen = detector.detect(window, watch, 30.0 / waits)
        watch = seen.watch
        for host in range(hosts):
            assert seen.unknown[host] == (not window.valid[host, -1])
            if seen.unknown[host]:
                naive[host].hot_count = naive[host].idle_count = 0
                naive[host].idle = naive[host].idle and not naive[host].hot
            else:
                columns = [column(window, host, axis) for axis in range(axes)]
                pressures = [naive_pressure(detector, each, length - 1, 0.9) for each in columns]
                assert seen.pressure[host] == pytest.approx(pressures, abs=1e-6)
                means = [statistics.fmean(value for _, value in each) for each in columns]
                naive[host].judge(detector, pressures, means, waits)
            assert seen.overloaded[host] == naive[host].hot
            assert seen.underloaded[host] == naive[host].idle

"""Rings of samples against a naive list of slots for each thing."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from snooze.scheduling.sample_history import FOLLOW, JITTER, LATE, SampleHistory

LENGTH = 5
PERIOD_S = 3.0


class Naive:
    """One thing: its slots as a list, newest last, None where nothing is known."""

    def __init__(self) -> None:
        self.slots: list[list[float]] = []
        self.slot_s = -math.inf
        self.seen_s = -math.inf
        self.interval_s = PERIOD_S

    def push(self, value: float, now_s: float, interval_s: float, usable: bool) -> None:
        usable = usable and 0 <= value <= 1e15
        follow = FOLLOW if interval_s >= PERIOD_S / 2 else 0.0
        steps = 1
        if self.slot_s == -math.inf:
            self.slot_s = now_s
        else:
            steps = max(0, int(np.rint((now_s - self.slot_s) / PERIOD_S)))
            if steps:
                due_s = self.slot_s + steps * PERIOD_S
                self.slot_s = due_s + follow * (now_s - due_s)
        for _ in range(min(steps, LENGTH)):
            self.slots.append([])
        if usable:
            self.slots[-1].append(value)
            covered = min(LENGTH, math.ceil(interval_s / PERIOD_S - JITTER))
            for back in range(1, min(covered, steps, LENGTH)):
                if back < len(self.slots):
                    self.slots[-1 - back] = [value]
        self.seen_s = max(self.seen_s, now_s)
        self.interval_s = max(interval_s, PERIOD_S)

    def window(self, now_s: float) -> list[float | None]:
        means = [sum(slot) / len(slot) if slot else None for slot in self.slots]
        age_s = max(now_s - self.seen_s, 0.0)
        late = 0
        if age_s > LATE * self.interval_s:
            periods = age_s / PERIOD_S if math.isfinite(age_s) else LENGTH
            late = min(LENGTH, max(1, math.floor(periods - 0.5)))
        means = [*means[-LENGTH:], *([None] * late)]
        return ([None] * LENGTH + means)[-LENGTH:]


PUSHES = st.tuples(
    st.floats(-2.0, 25.0),
    st.sampled_from([0.0, 1.0, 3.0, 10.0]),
    st.lists(st.integers(1, 4), unique=True, max_size=4),
    st.lists(
        st.one_of(st.floats(0, 8), st.sampled_from([math.nan, math.inf, -1.0])),
        min_size=4,
        max_size=4,
    ),
    st.lists(st.booleans(), min_size=4, max_size=4),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(PUSHES, st.integers(1, 4)), max_size=30),
    st.lists(st.integers(0, 4), max_size=6),
    st.floats(0, 30),
)
def test_a_window_is_what_a_naive_list_says(
    steps: list[tuple[float, float, list[int], list[float], list[bool]] | int],
    asked: list[int],
    later_s: float,
) -> None:
    ring = SampleHistory(LENGTH, 1, PERIOD_S, rows=2)
    ring.grow(5)
    naive = [Naive() for _ in range(5)]
    now_s = 100.0
    for step in steps:
        if isinstance(step, int):
            ring.clear(np.array([step]))
            naive[step] = Naive()
            continue
        pause_s, interval_s, rows, values, usable = step
        now_s += pause_s
        count = len(rows)
        ring.push(
            np.array(rows, dtype=np.int64),
            np.array(values[:count]).reshape(count, 1),
            now_s,
            interval_s=interval_s,
            usable=np.array(usable[:count], dtype=np.bool_),
        )
        for row, value, fine in zip(rows, values, usable, strict=False):
            naive[row].push(value, now_s, interval_s, fine)
    now_s += later_s
    window = ring.window(np.array(asked, dtype=np.int64), now_s)
    assert window.samples.shape == (len(asked), LENGTH, 1)
    for index, row in enumerate(asked):
        expected = naive[row].window(now_s)
        assert window.valid[index].tolist() == [value is not None for value in expected]
        assert np.allclose(window.samples[index, :, 0], [value or 0.0 for value in expected])


@given(st.integers(0, 2**32 - 1), st.floats(0.97, 1.03))
@settings(max_examples=50, deadline=None)
def test_jitter_and_drift_leave_no_holes_and_lose_nothing(seed: int, pace: float) -> None:
    random = np.random.default_rng(seed)
    ring = SampleHistory(30, 1, PERIOD_S)
    row = np.array([1])
    for number in range(200):
        arrives_s = number * PERIOD_S * pace + random.uniform(0, 0.3 * PERIOD_S)
        ring.push(row, np.array([[float(number)]]), arrives_s, interval_s=PERIOD_S)
    window = ring.window(row, 200 * PERIOD_S * pace)
    assert window.valid.all()
    assert window.samples[0, :, 0].tolist() == [float(number) for number in range(170, 200)]

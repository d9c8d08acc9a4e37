"""So many are let in, the others refused at once, and places come free whatever happens."""

import contextlib
from contextlib import ExitStack

import pytest

from snooze.common.admission import LATE_S, MIN_UNDER_WAY, RETRY_AFTER_S, SHRINK, Admission
from snooze.common.clock import ManualClock
from snooze.common.errors import TooBusy


def test_the_surplus_is_refused_and_told_when_to_return() -> None:
    admission = Admission("submissions", most=2)
    with admission.admit(), admission.admit():
        with pytest.raises(TooBusy, match="too many submissions") as caught, admission.admit():
            pass
        assert caught.value.retry_after_s == RETRY_AFTER_S
        assert (admission.under_way, admission.refused) == (2, 1)
    with admission.admit():
        assert admission.under_way == 1


def test_a_place_comes_free_when_its_call_fails() -> None:
    admission = Admission("calls", most=1)
    for _ in range(3):
        with contextlib.suppress(ValueError), admission.admit():
            raise ValueError
    assert (admission.under_way, admission.refused) == (0, 0)


def batch(admission: Admission, clock: ManualClock, count: int, seconds: float) -> None:
    """So many at once, that all take this long."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(admission.admit())
        clock.advance(seconds)


def test_fewer_are_let_in_while_they_end_late_and_more_when_they_do_not() -> None:
    clock = ManualClock()
    admission = Admission("submissions", most=100, clock=clock)
    batch(admission, clock, 100, LATE_S + 0.1)
    assert admission.limit == pytest.approx(100 * SHRINK), "once, though a hundred were late"
    for _ in range(10):
        clock.advance(0.1)
        batch(admission, clock, MIN_UNDER_WAY, LATE_S + 0.1)
    assert admission.limit == MIN_UNDER_WAY, "and never fewer"
    with pytest.raises(TooBusy, match=f"under way \\({MIN_UNDER_WAY}\\)"):
        batch(admission, clock, MIN_UNDER_WAY + 1, 0.0)
    for _ in range(10):
        batch(admission, clock, 20, LATE_S / 2)
    assert admission.limit == 100, "the rate is what it was, and never more"


def test_a_small_limit_stays() -> None:
    clock = ManualClock()
    admission = Admission("calls", most=1, clock=clock)
    batch(admission, clock, 1, LATE_S * 2)
    assert admission.limit == 1

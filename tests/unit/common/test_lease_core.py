"""Leases rule by rule: what was granted counts from when it was asked, and fencing never waits."""

import math

import pytest

from snooze.common.lease_core import (
    ASK_MIN_S,
    FENCE_EVERY_S,
    MAX_OPEN,
    NEVER,
    Ask,
    Extended,
    Fence,
    Granted,
    LeaseCore,
    LinkClosed,
    LinkOpened,
    NotGranted,
    Ticked,
)


def holder(until_s: float = NEVER) -> LeaseCore:
    return LeaseCore(grace_s=2.0, fences=True, until_s=until_s)


def test_it_asks_as_soon_as_its_link_stands() -> None:
    core = holder()
    assert core.handle(Ticked(), 0.0) == []
    assert core.handle(LinkOpened(), 1.0) == [Ask(1)]
    assert core.handle(Ticked(), 1.0 + ASK_MIN_S / 2) == []
    assert core.handle(Ticked(), 1.0 + ASK_MIN_S) == [Ask(2)], "it holds nothing yet"


def test_a_grant_counts_from_when_it_was_asked_for() -> None:
    core = holder()
    core.handle(LinkOpened(), 10.0)
    assert core.handle(Granted(1, 9.0), 14.0) == [Extended(19.0)]
    assert core.left_s(14.0) == 5.0


def test_it_asks_three_times_in_the_length_of_a_grant() -> None:
    core = holder()
    core.handle(LinkOpened(), 10.0)
    core.handle(Granted(1, 9.0), 10.1)
    assert core.handle(Ticked(), 12.9) == []
    assert core.handle(Ticked(), 13.0) == [Ask(2)]


@pytest.mark.parametrize("valid_s", [0.0, -1.0, math.nan, math.inf])
def test_what_is_not_positive_grants_nothing(valid_s: float) -> None:
    core = holder()
    core.handle(LinkOpened(), 10.0)
    assert core.handle(Granted(1, valid_s), 10.0) == []
    assert core.left_s(10.0) < 0


def test_a_shorter_grant_takes_nothing_back() -> None:
    core = holder()
    core.handle(LinkOpened(), 10.0)
    core.handle(Granted(1, 9.0), 10.0)
    core.handle(Ticked(), 13.0)
    assert core.handle(Granted(2, 1.0), 13.1) == []
    assert core.until_s == 19.0


def test_an_answer_to_no_question_of_ours_is_not_heard() -> None:
    core = holder()
    core.handle(LinkOpened(), 10.0)
    core.handle(NotGranted(1), 10.5)
    assert core.handle(Granted(1, 9.0), 11.0) == []
    assert core.handle(Granted(7, 9.0), 11.0) == []


def test_questions_that_are_not_answered_do_not_pile_up() -> None:
    core = holder()
    core.handle(LinkOpened(), 0.0)
    for step in range(1, 100):
        core.handle(Ticked(), step * ASK_MIN_S)
    assert len(core.open) == MAX_OPEN


def test_it_fences_after_its_grace_and_again_until_it_holds_one() -> None:
    core = holder()
    core.handle(LinkOpened(), 10.0)
    core.handle(Granted(1, 9.0), 10.0)
    core.handle(LinkClosed(), 11.0)
    assert core.handle(Ticked(), 20.9) == []
    assert core.handle(Ticked(), 21.0) == [Fence(0.0)]
    assert core.is_lost
    assert core.handle(Ticked(), 21.5) == []
    assert core.handle(Ticked(), 21.0 + FENCE_EVERY_S) == [Fence(FENCE_EVERY_S)]
    (ask,) = core.handle(LinkOpened(), 23.0)
    assert isinstance(ask, Ask)
    core.handle(Granted(ask.number, 9.0), 23.1)
    assert not core.is_lost
    assert core.handle(Ticked(), 24.0) == []


def test_who_never_held_one_does_not_fence() -> None:
    assert holder().handle(Ticked(), 1e9) == []


def test_what_was_persisted_goes_on_counting() -> None:
    assert holder(until_s=50.0).handle(Ticked(), 51.9) == []
    assert holder(until_s=50.0).handle(Ticked(), 60.0) == [Fence(8.0)]


def test_a_manager_does_not_fence() -> None:
    core = LeaseCore(until_s=50.0)
    assert core.handle(Ticked(), 1000.0) == []

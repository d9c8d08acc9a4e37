"""The list of events: numbered, bounded, followed."""

import asyncio

import pytest

from snooze.common.clock import ManualClock
from snooze.groupmanager.leader import events as events_module
from snooze.groupmanager.leader.events import EventLog


def log_of(*kinds: str) -> EventLog:
    log = EventLog(ManualClock(wall_start_ms=5))
    for kind in kinds:
        log.add(kind, "subject", "message", "cause")
    return log


def test_events_are_numbered_from_one_and_dated() -> None:
    log = log_of("a", "b")
    assert [(e.seq, e.kind, e.at_ms, e.cause) for e in log.after(0, 10)] == [
        (1, "a", 5, "cause"),
        (2, "b", 5, "cause"),
    ]
    log.add("c", "s", "m", at_ms=99)
    assert log.after(2, 10)[0].at_ms == 99


@pytest.mark.parametrize(
    ("seq", "limit", "kinds"),
    [(0, 2, "ab"), (1, 10, "bcd"), (4, 10, ""), (99, 10, ""), (-5, 1, "a"), (0, 0, "")],
)
def test_a_page_of_events(seq: int, limit: int, kinds: str) -> None:
    assert [event.kind for event in log_of(*"abcd").after(seq, limit)] == list(kinds)


def test_no_events_yet() -> None:
    assert log_of().after(0, 10) == []


def test_old_events_are_dropped_and_the_numbers_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MAX_EVENTS", 3)
    assert [event.seq for event in log_of(*"abcde").after(0, 10)] == [3, 4, 5]


async def test_a_follower_gets_what_was_and_what_comes() -> None:
    log = log_of("a")
    got: list[str | None] = []
    async with asyncio.timeout(5):
        async for event in log.follow(0, 60.0):
            got.append(event.kind if event is not None else None)
            assert log.followers == 1
            if len(got) == 1:
                asyncio.get_running_loop().call_soon(log.add, "b", "s", "m")
            if len(got) == 2:
                asyncio.get_running_loop().call_soon(log.close)
    assert got == ["a", "b"]
    assert log.followers == 0


async def test_a_silence_is_told() -> None:
    log = log_of()
    async with asyncio.timeout(5):
        async for event in log.follow(0, 0.01):
            assert event is None
            log.close()


async def test_a_log_that_is_closed_has_no_followers() -> None:
    log = log_of("a")
    log.close()
    assert [event async for event in log.follow(0, 60.0)] == []

"""The runner of cores: events in order, effects in order, no reentrance, bounded, unstoppable."""

from collections.abc import Callable, Sequence

import pytest

from snooze.common import core_runner
from snooze.common.clock import ManualClock
from snooze.common.core_runner import CoreRunner
from snooze.common.errors import TooBusy


class Echo:
    """A core that orders each of an event's letters; ``!`` is a defect."""

    def __init__(self) -> None:
        self.handled: list[tuple[str, float]] = []
        self.is_busy = False

    def handle(self, event: str, now_s: float) -> Sequence[str]:
        assert not self.is_busy, "handled within handling"
        self.is_busy = True
        try:
            if event == "!":
                raise RuntimeError("a defect")
            self.handled.append((event, now_s))
            return list(event)
        finally:
            self.is_busy = False


class Rig:
    def __init__(self, then: Callable[["Rig", str], None] = lambda rig, effect: None) -> None:
        self.core = Echo()
        self.clock = ManualClock(start_s=7.0)
        self.performed: list[str] = []
        self.then = then
        self.runner: CoreRunner[str, str] = CoreRunner(self.core, self._perform, self.clock)

    def _perform(self, effect: str) -> None:
        self.performed.append(effect)
        self.then(self, effect)


def test_an_event_is_handled_and_its_effects_carried_out_at_once() -> None:
    rig = Rig()
    rig.runner.feed("ab")
    assert rig.performed == ["a", "b"]
    rig.clock.advance(1.0)
    rig.runner.feed("c")
    assert rig.core.handled == [("ab", 7.0), ("c", 8.0)]


def test_what_effects_cause_comes_after_all_of_them() -> None:
    def cause(rig: Rig, effect: str) -> None:
        if effect == "a":
            rig.runner.feed("x")
            rig.runner.feed("y")

    rig = Rig(cause)
    rig.runner.feed("ab")
    assert rig.performed == ["a", "b", "x", "y"]


def test_a_defect_of_the_core_loses_its_event_only(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.runner.feed("!")
    rig.runner.feed("a")
    assert rig.performed == ["a"]
    assert "event refused" in caplog.text


def test_a_failing_effect_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def fail(rig: Rig, effect: str) -> None:
        if effect == "a":
            raise RuntimeError("a defect")

    rig = Rig(fail)
    rig.runner.feed("ab")
    rig.runner.feed("c")
    assert rig.performed == ["a", "b", "c"]
    assert "effect failed" in caplog.text


def test_the_queue_is_bounded_and_what_it_refuses_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(core_runner, "MAX_QUEUED", 2)
    refused: list[float | None] = []

    def flood(rig: Rig, effect: str) -> None:
        if effect == "a":
            for event in ("x", "y", "z"):
                try:
                    rig.runner.feed(event)
                except TooBusy as busy:
                    refused.append(busy.retry_after_s)

    rig = Rig(flood)
    rig.runner.feed("a")
    assert rig.performed == ["a", "x", "y"]
    assert refused == [1.0]
    rig.runner.feed("z")
    assert rig.performed[-1] == "z"


def test_the_log_of_a_huge_event_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Echo):
        def handle(self, event: str, now_s: float) -> Sequence[str]:
            raise RuntimeError("a defect")

    rig = Rig()
    runner: CoreRunner[str, str] = CoreRunner(Broken(), rig.performed.append, rig.clock)
    runner.feed("x" * 100_000)
    assert len(vars(caplog.records[0])["event"]) <= 2000


def test_one_that_was_stopped_decides_nothing_more() -> None:
    def stop(rig: Rig, effect: str) -> None:
        if effect == "b":
            rig.runner.feed("queued")
            rig.runner.stop()

    rig = Rig(stop)
    rig.runner.feed("abc")
    rig.runner.feed("d")
    assert rig.performed == ["a", "b", "c"]
    assert rig.runner.waiting == 0

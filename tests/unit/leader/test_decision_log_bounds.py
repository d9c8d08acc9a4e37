"""The leader's log of decisions: what is told again, what is asked for, what is bounded."""

import msgspec
import pytest

from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.decisions import Decision, DecisionKind, DecisionMode, DecisionState
from snooze.groupmanager.leader import decision_log
from snooze.groupmanager.leader.decision_log import DecisionLog
from snooze.groupmanager.leader.events import EventLog


def decision(number: int, **changes: object) -> Decision:
    made = Decision(
        f"{number:032x}", number, DecisionKind.OVERLOAD, DecisionMode.AUTO, "gm1", "hot", ("h1",)
    )
    return msgspec.structs.replace(made, **changes)


def log() -> tuple[DecisionLog, EventLog, list[Decision]]:
    written: list[Decision] = []
    events = EventLog(SYSTEM_CLOCK)
    return DecisionLog(SYSTEM_CLOCK, events, "gm1", written.append), events, written


def test_what_became_of_it_keeps_the_inputs_that_were_told_once() -> None:
    kept, events, _ = log()
    kept.add(decision(1, inputs=b"dump"))
    kept.add(decision(1, state=DecisionState.DONE, outcome="1 of 1 moved"))
    found = kept.get(f"{1:032x}")
    assert found is not None
    assert (found.inputs, found.state) == (b"dump", DecisionState.DONE)
    assert [event.kind for event in events.after(0, 10)] == ["decision.overload"] * 2


def test_what_a_former_leader_was_in_the_middle_of_has_ended_unless_it_is_told_again() -> None:
    kept, events, written = log()
    done = decision(2, state=DecisionState.DONE, outcome="done")
    half = decision(3, outcome="1 of 3 moved")
    asked = decision(4, state=DecisionState.PROPOSED)
    kept.load([decision(1, inputs=b"dump"), done, half, asked])
    first, second, third, fourth = (kept.get(f"{n:032x}") for n in (1, 2, 3, 4))
    assert first is not None
    assert third is not None
    assert fourth is not None
    assert (first.state, first.inputs) == (DecisionState.INTERRUPTED, b"dump")
    assert first.outcome == f"the leader changed {decision_log.NOT_KNOWN}"
    assert first.ended_ms > 0
    assert second == done
    assert third.outcome == f"1 of 3 moved; the leader changed {decision_log.NOT_KNOWN}"
    not_approved = "the leader changed before it was approved"
    assert (fourth.state, fourth.outcome) == (DecisionState.EXPIRED, not_approved)
    assert written == [first, third, fourth], "so that the files say so, too"
    assert list(events.after(0, 10)) == []
    kept.add(decision(1))
    again = kept.get(f"{1:032x}")
    assert again is not None
    assert again.state is DecisionState.RUNNING, "its manager goes on with it"


def test_what_a_group_manager_left_open_has_ended_until_it_tells_again() -> None:
    kept, events, _ = log()
    running, asked = decision(1, decider="gm2"), decision(2, decider="gm2")
    asked = msgspec.structs.replace(asked, state=DecisionState.PROPOSED)
    for each in (running, asked, decision(3, decider="gm3"), decision(4)):
        kept.add(each)
    kept.decider_gone("gm1")
    kept.decider_gone("gm2")
    states = [each.state for each in reversed(kept.latest(10))]
    running_still = DecisionState.RUNNING
    assert states[:2] == [DecisionState.INTERRUPTED, DecisionState.EXPIRED]
    assert states[2:] == [running_still, running_still], "others', and our own"
    assert events.after(0, 10)[4].message.startswith("interrupted: its group manager left")
    kept.add(running)
    again = kept.get(running.decision_id)
    assert again is not None
    assert (again.state, again.outcome) == (running_still, ""), "it is back, and goes on"


def test_a_decision_that_has_ended_and_is_told_again_is_no_news() -> None:
    kept, events, written = log()
    ended = decision(1, inputs=b"dump", state=DecisionState.DONE, outcome="1 of 1 moved")
    kept.add(ended)
    kept.add(ended)
    kept.add(msgspec.structs.replace(ended, inputs=b""))
    assert len(events.after(0, 10)) == 1
    assert written == [ended]


def test_what_a_former_leader_wrote_is_known_and_nobody_is_told() -> None:
    kept, events, written = log()
    kept.load([decision(number, state=DecisionState.DONE) for number in (1, 2)])
    assert [each.at_ms for each in kept.latest(10)] == [2, 1]
    assert events.after(0, 10) == []
    assert written == []


def test_they_are_found_by_what_they_are_about_and_when_they_were_made() -> None:
    kept, _, _ = log()
    kept.add(decision(1, subjects=("h1", "v1")))
    kept.add(decision(2, subjects=("h1", "v2"), kind=DecisionKind.UNDERLOAD))
    kept.add(decision(3, subjects=("h2", "v1")))
    assert [each.at_ms for each in kept.latest(10, subjects=["h1"])] == [2, 1]
    assert [each.at_ms for each in kept.latest(10, subjects=["h1", "v1"])] == [1]
    assert [each.at_ms for each in kept.latest(10, after_ms=1)] == [3, 2]
    assert [each.at_ms for each in kept.latest(10, DecisionKind.UNDERLOAD)] == [2]
    assert [each.at_ms for each in kept.latest(1)] == [3]


def test_number_and_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "MAX_DECISIONS", 5)
    monkeypatch.setattr(decision_log, "MAX_INPUT_BYTES", 250)
    kept, _, _ = log()
    for number in range(8):
        kept.add(decision(number, inputs=bytes(100)))
    found = kept.latest(10)
    assert [each.at_ms for each in found] == [7, 6, 5, 4, 3]
    assert [len(each.inputs) for each in found] == [100, 100, 0, 0, 0]

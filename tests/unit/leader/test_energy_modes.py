"""What may be done about hosts' power: decided, proposed, written down, or left; rule 7."""

import pytest

from snooze.common.decisions import DecisionKind, DecisionMode, DecisionState
from snooze.groupmanager.leader.energy_events import Judged
from tests.unit.leader.energy_house import asleep, house_of, wall_ms


def test_every_decision_says_why_and_what_else_there_was() -> None:
    house = house_of(3, reserved_hosts=2)
    house.tick()
    (decision,) = house.decisions.values()
    assert decision.kind is DecisionKind.SLEEP
    assert decision.state is DecisionState.DONE
    assert decision.subjects == ("h1",)
    assert decision.actions == ("shutdown name-h1",)
    assert "idle for" in decision.reason
    assert any("2 stay up" in line for line in decision.alternatives)
    assert len(decision.decision_id) == 32
    assert int(decision.decision_id, 16) > 0


def test_advice_waits_for_a_person() -> None:
    house = house_of(2)
    house.modes[DecisionKind.SLEEP] = DecisionMode.ADVISE
    house.run(100)
    (proposed,) = house.decisions.values()
    assert proposed.state is DecisionState.PROPOSED
    assert house.orders == []
    house.feed(Judged(proposed.decision_id, True, "ann", wall_ms(house.now_s)))
    assert len(asleep(house)) == 1
    assert house.decisions[proposed.decision_id].state is DecisionState.DONE


def test_advice_that_nobody_takes_expires() -> None:
    house = house_of(2)
    house.modes[DecisionKind.SLEEP] = DecisionMode.ADVISE
    house.tick()
    house.run(house.core.expire_s + 5, 5)
    states = [decision.state for decision in house.decisions.values()]
    assert states == [DecisionState.EXPIRED, DecisionState.PROPOSED]


def test_advice_that_no_longer_holds_is_not_carried_out() -> None:
    house = house_of(2)
    house.modes[DecisionKind.SLEEP] = DecisionMode.ADVISE
    house.tick()
    (proposed,) = house.decisions.values()
    house.put(proposed.subjects[0], "a")
    house.feed(Judged(proposed.decision_id, True, "ann", wall_ms(house.now_s)))
    assert house.orders == []
    assert house.decisions[proposed.decision_id].state is DecisionState.EXPIRED


def test_advice_that_is_rejected_is_not_said_again_for_a_while() -> None:
    house = house_of(2)
    house.modes[DecisionKind.SLEEP] = DecisionMode.ADVISE
    house.run(100)
    (proposed,) = house.decisions.values()
    house.feed(Judged(proposed.decision_id, False, "ann", wall_ms(house.now_s)))
    told = house.decisions[proposed.decision_id]
    assert (told.state, told.outcome) == (DecisionState.REFUSED, "rejected by ann")
    house.run(house.core.expire_s - 10, 5)
    assert len(house.decisions) == 1
    assert house.orders == []
    house.run(60, 5)
    assert [d.state for d in house.decisions.values()] == [
        DecisionState.REFUSED,
        DecisionState.PROPOSED,
    ]


@pytest.mark.parametrize("mode", [DecisionMode.ADVISE, DecisionMode.DRY_RUN])
def test_what_may_be_done_counts_at_once_when_people_change_it(mode: DecisionMode) -> None:
    house = house_of(2)
    house.modes[DecisionKind.SLEEP] = mode
    house.run(100)
    (said,) = house.decisions.values()
    house.modes[DecisionKind.SLEEP] = DecisionMode.AUTO
    house.run(60)
    assert len(asleep(house)) == 1
    expected = DecisionState.EXPIRED if mode is DecisionMode.ADVISE else DecisionState.DRY_RUN
    assert house.decisions[said.decision_id].state is expected


def test_a_dry_run_is_written_down_once_and_never_done() -> None:
    house = house_of(2)
    house.modes[DecisionKind.SLEEP] = DecisionMode.DRY_RUN
    house.run(600, 5)
    assert house.orders == []
    assert [d.state for d in house.decisions.values()] == [DecisionState.DRY_RUN]


def test_a_paused_kind_decides_nothing() -> None:
    house = house_of(2)
    house.modes[DecisionKind.SLEEP] = DecisionMode.OFF
    house.run(600, 5)
    assert house.orders == []
    assert house.decisions == {}

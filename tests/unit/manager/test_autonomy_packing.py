"""Underload and consolidation: when hosts are emptied, and what comes first."""

from pathlib import Path

import pytest

from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.decisions import DecisionState
from snooze.common.errors import ErrorReport
from snooze.common.settings_autonomy import (
    AutonomySettings,
    ConsolidationSettings,
    Mode,
    RelocationSettings,
)
from snooze.common.vms import FailureAction, VmPolicy
from snooze.common.wire import DecisionMade
from snooze.groupmanager.manager.autonomy import plan_consolidation
from snooze.groupmanager.manager.autonomy_events import AutonomyTicked, ConsolidationPlanned
from snooze.groupmanager.manager.plan_work import Step, StepState
from snooze.groupmanager.planner import Planner
from snooze.scheduling.__main__ import main as scheduling
from snooze.scheduling.dump import consolidate_and_prepare
from tests.unit.manager.load_desk import (
    CONSOLIDATION,
    MONDAY_MS,
    OVERLOAD,
    PERIOD_S,
    UNDERLOAD,
    LoadDesk,
    hot_desk,
    idle_desk,
    inputs_of,
    settings_of,
)


def test_a_host_that_is_hardly_used_is_emptied() -> None:
    desk = idle_desk()
    desk.pass_time(57)
    assert desk.moves == []
    desk.pass_time(120)
    assert desk.on("h2") == set()
    [decision] = desk.decisions(UNDERLOAD)
    assert decision.state is DecisionState.DONE
    assert "name-h2 is hardly used" in decision.reason
    assert "name-h2 is empty then" in decision.actions
    desk.pass_time(3600)
    assert len(desk.moves) == 2


@pytest.mark.parametrize("hold_s", [1800.0, 300.0])
def test_hosts_of_an_overload_are_not_emptied_for_as_long_as_set(hold_s: float) -> None:
    relocation = RelocationSettings(relieved_hold_s=hold_s, idle_s=30.0, only_sleepable=False)
    autonomy = AutonomySettings(interval_s=PERIOD_S, hold_s=0.0)
    desk = LoadDesk(2, settings_of(autonomy, relocation))
    for name in "abcd":
        desk.guest(name, "h1", 1.0)
    while not desk.moves:
        desk.pass_time(PERIOD_S)
    relieved_s = desk.moves[0][0]
    desk.pass_time(30)
    for name in "abcd":
        desk.load[name] = 0.02
    desk.pass_time(hold_s + 300)
    [emptied] = desk.decisions(UNDERLOAD)
    assert hold_s <= (emptied.at_ms - MONDAY_MS) / 1000 - relieved_s <= hold_s + 120


def test_only_hosts_that_can_sleep_are_emptied_unless_settings_say_otherwise() -> None:
    desk = idle_desk(only_sleepable=True)
    desk.pass_time(300)
    assert desk.moves == []


def test_emptying_stops_for_a_host_when_one_of_its_vms_cannot_leave() -> None:
    settings = AutonomySettings(interval_s=PERIOD_S, max_per_host=1)
    desk = LoadDesk(2, settings_of(settings, RelocationSettings(only_sleepable=False, idle_s=30.0)))
    desk.guest("a", "h1", 0.9)
    for name in ("c", "d", "e"):
        desk.guest(name, "h2", 0.05)
    desk.failing = {"c", "d", "e"}
    desk.pass_time(120)
    assert len(desk.moves) == 1
    [decision] = desk.decisions(UNDERLOAD)
    assert decision.state is DecisionState.FAILED
    assert decision.outcome.count("its host cannot be emptied") == 2


def test_a_slow_migration_holds_up_only_what_depends_on_it() -> None:
    desk = LoadDesk(4, settings_of(AutonomySettings(interval_s=PERIOD_S, underload="off")))
    desk.guest("slow", "h1", 0.2, asked=3.0)
    desk.guest("big", "h3", 0.2, asked=2.0)
    desk.guest("free", "h3", 0.2, asked=1.0)
    desk.pass_time(30)
    desk.slow["slow"] = 300.0
    steps = [
        Step("slow", "slow", "h1", "h2", 0),
        Step("big", "big", "h3", "h1", 1),
        Step("free", "free", "h3", "h4", 1),
    ]
    desk.carry_out_plan(steps)
    desk.pass_time(60)
    assert [step.state for step in steps] == [
        StepState.RUNNING,
        StepState.WAITING,
        StepState.DONE,
    ]
    desk.pass_time(300)
    assert (desk.where("slow"), desk.where("big"), desk.where("free")) == ("h2", "h1", "h4")


def test_a_move_whose_room_was_not_freed_fails_and_says_why() -> None:
    desk = LoadDesk(4, settings_of(AutonomySettings(interval_s=PERIOD_S, underload="off")))
    desk.guest("stuck", "h1", 0.2, asked=3.0)
    desk.guest("big", "h3", 0.2, asked=2.0)
    desk.guest("free", "h3", 0.2, asked=1.0)
    desk.pass_time(30)
    desk.failing = {"stuck"}
    steps = [
        Step("stuck", "stuck", "h1", "h2", 0),
        Step("big", "big", "h3", "h1", 1),
        Step("free", "free", "h3", "h4", 1),
    ]
    desk.carry_out_plan(steps)
    desk.pass_time(60)
    assert [step.state for step in steps] == [
        StepState.FAILED,
        StepState.FAILED,
        StepState.DONE,
    ]
    assert "capacity" in steps[1].note


def test_consolidation_on_demand_is_planned_carried_out_and_replayed(tmp_path: Path) -> None:
    desk = LoadDesk(4, settings_of(AutonomySettings(interval_s=PERIOD_S, underload="off")))
    for number in range(8):
        desk.guest(f"v{number}", f"h{1 + number % 4}", 0.3)
    desk.pass_time(30)
    answer = desk.consolidate_now()
    assert isinstance(answer, DecisionMade)
    desk.pass_time(120)
    [decision] = desk.decisions(CONSOLIDATION)
    assert decision.state is DecisionState.DONE
    assert "asked for by ann" in decision.reason
    assert sum(1 for host_id in desk.table.order if desk.on(host_id)) == 2
    file = tmp_path / "decision.json"
    file.write_text(inputs_of(decision))
    assert scheduling(["replay", str(file)]) == 0
    moves = len(desk.moves)
    again = desk.consolidate_now(9)
    assert isinstance(again, DecisionMade)
    assert "nothing is moved" in again.decision.outcome
    assert len(desk.moves) == moves


async def test_a_consolidation_that_could_not_be_planned_is_replayed(tmp_path: Path) -> None:
    desk = LoadDesk(2, settings_of(AutonomySettings(interval_s=PERIOD_S, underload="off")))
    desk.guest("a", "h1", 0.3)
    desk.guest("b", "h2", 0.3)
    desk.pass_time(30)
    desk.plans_fail = True
    desk.consolidate_now()
    [asked] = desk.unplanned
    planner = Planner(time_limit_s=0.001)
    try:
        desk.tell(await plan_consolidation(planner, asked, "", SYSTEM_CLOCK))
    finally:
        await planner.close()
    [decision] = desk.decisions(CONSOLIDATION)
    assert (decision.state, "took longer than" in decision.outcome) == (DecisionState.FAILED, True)
    file = tmp_path / "decision.json"
    file.write_text(inputs_of(decision))
    assert scheduling(["replay", str(file)]) == 0
    assert scheduling(["explain", str(file)]) == 0


def test_consolidation_comes_when_its_calendar_says() -> None:
    desk = LoadDesk(
        3,
        settings_of(
            AutonomySettings(interval_s=PERIOD_S, underload="off"),
            consolidation=ConsolidationSettings(cron="0 0/5 * * * ?"),
        ),
    )
    desk.guest("a", "h1", 0.3)
    desk.guest("b", "h2", 0.3)
    desk.pass_time(180)
    assert desk.decisions(CONSOLIDATION) == []
    desk.pass_time(120)
    assert [each.state for each in desk.decisions(CONSOLIDATION)] == [DecisionState.DONE]
    assert "asked for by its calendar" in desk.decisions(CONSOLIDATION)[0].reason


def test_a_consolidation_of_the_calendar_waits_for_the_moves_of_another_plan() -> None:
    settings = AutonomySettings(interval_s=PERIOD_S, underload="off")
    calendar = ConsolidationSettings(cron="0 5 0 * * ?")
    desk = LoadDesk(4, settings_of(settings, consolidation=calendar), move_s=150.0)
    for number in range(4):
        desk.guest(f"v{number}", "h1", 0.85)
    desk.guest("w", "h2", 0.1)
    desk.guest("x", "h3", 0.1)
    desk.pass_time(120)
    desk.load |= {f"v{number}": 1.0 for number in range(4)}
    desk.pass_time(99)
    assert desk.now_s > 300
    assert len(desk.moves) == 1
    assert desk.decisions(CONSOLIDATION) == []
    desk.pass_time(200)
    [decision] = desk.decisions(CONSOLIDATION)
    assert "asked for by its calendar" in decision.reason


def test_a_clock_that_was_set_back_does_not_put_the_calendar_off() -> None:
    calendar = ConsolidationSettings(cron="0 5 0 * * ?")
    desk = LoadDesk(2, settings_of(consolidation=calendar))
    desk.guest("a", "h1", 0.3)
    desk.tell(AutonomyTicked(desk.wall_ms + 10**10))
    desk.pass_time(240)
    assert len(desk.decisions(CONSOLIDATION)) == 1


@pytest.mark.parametrize("keep_room", [True, False])
def test_hosts_are_not_emptied_where_that_strands_highly_available_vms(*, keep_room: bool) -> None:
    settings = AutonomySettings(interval_s=PERIOD_S, underload="off", keep_room=keep_room)
    desk = LoadDesk(1, settings_of(settings))
    leave = VmPolicy(on_host_failure=FailureAction.LEAVE)
    desk.join("h2", cores=1.0)
    desk.join("h3", cores=3.0)
    desk.guest("a", "h1", 0.3, policy=VmPolicy(FailureAction.LEAVE, movable=False))
    desk.guest("b", "h2", 0.3, policy=leave)
    desk.guest("big", "h3", 0.3, asked=3.0, policy=VmPolicy(movable=False))
    desk.pass_time(30)
    desk.consolidate_now()
    desk.pass_time(60)
    [decision] = desk.decisions(CONSOLIDATION)
    if keep_room:
        assert decision.state is DecisionState.REFUSED
        assert "no room if name-h3 failed" in decision.outcome
        assert desk.moves == []
    else:
        assert desk.where("b") == "h1"


def hot_while_packed(overload: Mode = "auto") -> LoadDesk:
    """A consolidation was asked for as ``h1`` grew hot."""
    settings = AutonomySettings(
        interval_s=PERIOD_S, underload="off", max_concurrent=1, overload=overload
    )
    desk = LoadDesk(4, settings_of(settings), move_s=60.0)
    for number in range(4):
        desk.guest(f"v{number}", "h1", 0.85)
    for number in range(2):
        desk.guest(f"w{number}", "h2", 0.1)
        desk.guest(f"x{number}", "h3", 0.1)
    desk.pass_time(30)
    desk.load |= {f"v{number}": 1.0 for number in range(4)}
    desk.pass_time(24)
    desk.consolidate_now()
    return desk


def test_an_overload_goes_before_a_consolidation() -> None:
    desk = hot_while_packed()
    desk.pass_time(600)
    [consolidation] = desk.decisions(CONSOLIDATION)
    assert "an overloaded host goes first" in consolidation.outcome
    assert desk.decisions(OVERLOAD, DecisionState.DONE)


def test_an_overload_that_is_only_proposed_stops_nothing_before_it_is_approved() -> None:
    desk = hot_while_packed(overload="advise")
    desk.pass_time(30)
    [proposal] = desk.decisions(OVERLOAD, DecisionState.PROPOSED)
    [consolidation] = desk.decisions(CONSOLIDATION)
    assert consolidation.state is DecisionState.RUNNING
    desk.judge(proposal, approved=True)
    desk.pass_time(60)
    [consolidation] = desk.decisions(CONSOLIDATION)
    assert "an overloaded host goes first" in consolidation.outcome


def test_a_consolidation_is_not_approved_beside_another_plan() -> None:
    settings = AutonomySettings(interval_s=PERIOD_S, underload="off", consolidation="advise")
    desk = LoadDesk(4, settings_of(settings), move_s=600.0)
    for number in range(4):
        desk.guest(f"v{number}", "h1", 0.85)
    desk.guest("w", "h2", 0.1)
    desk.guest("x", "h3", 0.1)
    desk.pass_time(30)
    desk.consolidate_now()
    [proposal] = desk.decisions(CONSOLIDATION, DecisionState.PROPOSED)
    desk.load |= {f"v{number}": 1.0 for number in range(4)}
    desk.pass_time(60)
    assert len(desk.moves) == 1
    desk.judge(proposal, approved=True)
    [consolidation] = desk.decisions(CONSOLIDATION)
    assert consolidation.state is DecisionState.EXPIRED
    assert "moved for another reason" in consolidation.outcome


def test_a_busy_manager_does_not_consolidate_beside() -> None:
    desk = hot_desk()
    desk.move_s = 600.0
    desk.load |= {"burner": 1.0, "log": 1.0}
    desk.pass_time(90)
    assert desk.moves
    assert isinstance(desk.consolidate_now(), ErrorReport)


def test_an_overload_that_comes_while_a_consolidation_is_planned_goes_before_it() -> None:
    desk = hot_desk()
    desk.guest("quiet", "h3", 0.1)
    desk.pass_time(60)
    desk.plans_fail = True
    desk.consolidate_now()
    [asked] = desk.unplanned
    desk.move_s = 600.0
    desk.load |= {"burner": 1.0, "log": 1.0}
    desk.pass_time(90)
    assert desk.moves
    answer, prepared = consolidate_and_prepare(asked.snapshot, asked.options, "")
    assert answer.plan.moves
    desk.tell(ConsolidationPlanned(asked.token, desk.wall_ms, answer, "", prepared))
    [decision] = desk.decisions(CONSOLIDATION)
    assert decision.state is DecisionState.REFUSED
    assert "moved for another reason" in decision.outcome
    assert len(desk.moves) == 1
    answered = desk.answers[7]
    assert isinstance(answered, DecisionMade)
    assert answered.decision.state is DecisionState.REFUSED

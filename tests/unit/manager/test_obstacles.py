"""Why a host is not emptied: each obstacle, by the same code as decides."""

from collections.abc import Callable

import pytest

from snooze.common.api import ObstacleView
from snooze.common.autonomy import AutonomyRule, Scope
from snooze.common.decisions import DecisionKind, DecisionMode
from snooze.common.errors import ErrorReport
from snooze.common.settings_autonomy import RelocationSettings
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmPolicy
from snooze.common.wire import HostDirective, HostExplained, VmStuck
from snooze.groupmanager.manager import look_core
from snooze.groupmanager.manager.autonomy_events import HostExplainAsked
from snooze.groupmanager.manager.manager_events import Directed
from tests.unit.manager.load_desk import LoadDesk, settings_of

UNDERLOAD = DecisionKind.UNDERLOAD
FIXED = VmPolicy(movable=False)


def why(desk: LoadDesk, host_id: str = "h1") -> tuple[ObstacleView, ...]:
    desk.tell(HostExplainAsked(11, desk.wall_ms, host_id))
    answer = desk.answers.pop(11)
    assert isinstance(answer, HostExplained), answer
    return answer.obstacles


def codes(desk: LoadDesk, host_id: str = "h1") -> list[str]:
    return [each.code for each in why(desk, host_id)]


def quiet_desk(load: float = 0.2, settings: RelocationSettings | None = None) -> LoadDesk:
    """``a`` on ``h1`` is hardly used, ``b`` on ``h2`` has room for it."""
    desk = LoadDesk(2, settings_of(relocation=settings))
    desk.say(AutonomyRule(Scope.CLUSTER, "", DecisionKind.CONSOLIDATION, DecisionMode.AUTO))
    desk.guest("a", "h1", load)
    desk.guest("b", "h2", 1.2)
    return desk


def test_it_is_not_long_enough_then_nothing_stands_against_it_and_it_happens() -> None:
    desk = quiet_desk()
    assert codes(desk) == ["samples", "not_judged"]
    desk.pass_time(150)
    [obstacle] = why(desk)
    assert obstacle.code == "not_long_enough"
    assert obstacle.message.endswith("s of 300 s")
    assert 140_000 < obstacle.until_ms - desk.wall_ms < 160_000
    desk.pass_time(145)
    said: set[tuple[str, ...]] = set()
    while not desk.moves:
        said.add(tuple(codes(desk)))
        desk.pass_time(3)
    assert said == {("not_long_enough",)}
    desk.pass_time(30)
    assert desk.where("a") == "h2"
    assert "empty" in codes(desk)


def _off(desk: LoadDesk) -> None:
    desk.say(AutonomyRule(Scope.CLUSTER, "", UNDERLOAD, None, paused=True, who="ann", why="audit"))


def _off_here(desk: LoadDesk) -> None:
    desk.say(AutonomyRule(Scope.HOST, "h1", UNDERLOAD, None, paused=True))


def _advise_here(desk: LoadDesk) -> None:
    desk.say(AutonomyRule(Scope.HOST, "h1", UNDERLOAD, DecisionMode.ADVISE))


def _vm_off(desk: LoadDesk) -> None:
    desk.say(AutonomyRule(Scope.VM, "a", UNDERLOAD, None, paused=True))


def _fixed(desk: LoadDesk) -> None:
    report = desk.vm("a").report
    desk.vm("a").report = type(report)(
        report.vm_id, report.name, report.state, report.demand, policy=FIXED
    )


def _paused(desk: LoadDesk) -> None:
    desk.table.set_state(desk.vm("a"), VmState.PAUSED)


def _relieved(desk: LoadDesk) -> None:
    desk.feed(Directed([HostDirective("h1", 10, relieved_ago_s=60.0)]))


def _failed(desk: LoadDesk) -> None:
    desk.feed(Directed([HostDirective("h1", 10, stuck=(VmStuck("a", 60.0),))]))


def _silent(desk: LoadDesk) -> None:
    desk.silent = {"h1"}


def _busy(desk: LoadDesk) -> None:
    desk.load["a"] = 2.0


def _drained(desk: LoadDesk) -> None:
    desk.feed(Directed([HostDirective("h1", 10, schedulable=False)]))


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (_off, "switched_off", "underload is paused by ann: audit"),
        (_off_here, "switched_off", "paused or off for this host"),
        (_advise_here, "mode", "underload is on advise for this host"),
        (_vm_off, "vm_stays", "VM name-a: a person said that it stays"),
        (_fixed, "vm_stays", "VM name-a: its owner said that it stays"),
        (_paused, "vm_stays", "VM name-a: it is paused"),
        (_relieved, "held", "it took part in an overload"),
        (_failed, "vm_stays", "VM name-a: it could not be moved a moment ago"),
        (_silent, "samples", "late or missing"),
        (_busy, "in_use", "it is used too much: cpu "),
        (_drained, "takes_no_part", "it takes no VMs"),
    ],
)
def test_each_obstacle_is_named_and_nothing_moves(
    spoil: Callable[[LoadDesk], None], code: str, words: str
) -> None:
    desk = quiet_desk()
    desk.pass_time(60)
    spoil(desk)
    desk.pass_time(420)
    assert desk.moves == []
    found = why(desk)
    assert any(each.code == code and words in each.message for each in found), found


def test_which_vm_does_not_fit_where_and_the_pause_after_it() -> None:
    desk = LoadDesk(3)
    desk.guest("a", "h1", 0.2, asked=2.0)
    desk.guest("b", "h2", 1.2, asked=3.0)
    desk.pass_time(320)
    found = why(desk)
    lines = {each.message for each in found if each.code == "no_room"}
    assert "its manager has no room elsewhere for VM name-a" in lines
    full = "name-h2 for name-a: cpu promised would be 125% of what it may be filled with"
    assert full in lines
    assert "name-h3 for name-a: nothing is on it, and no empty host is put to use" in lines
    [pause] = [each for each in found if each.code == "cool_down"]
    assert desk.wall_ms < pause.until_ms <= desk.wall_ms + 60_000


def test_a_host_that_cannot_sleep_and_one_that_is_not_here() -> None:
    desk = quiet_desk(settings=RelocationSettings())
    desk.pass_time(400)
    assert codes(desk) == ["not_sleepable"]
    desk.tell(HostExplainAsked(12, desk.wall_ms, "h9"))
    assert isinstance(desk.answers[12], ErrorReport)


def test_a_large_manager_answers_by_a_look_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look_core, "STEP_VMS", 1)
    desk = quiet_desk()
    desk.pass_time(150)
    assert codes(desk) == ["not_long_enough"]

"""What a manager leaves to the leader, and what it is not to forget."""

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from snooze.common.autonomy import AutonomyRule, Scope
from snooze.common.decisions import DecisionMode
from snooze.common.settings_autonomy import AutonomySettings
from snooze.common.vms import VmPolicy
from snooze.common.wire import (
    DecisionMade,
    Held,
    HostDirective,
    HostOverloaded,
    HostToEmpty,
    VmMoved,
    VmStuck,
)
from snooze.groupmanager.manager.manager_events import Directed, ManagerEffect, TellLeader
from tests.unit.manager.load_desk import (
    CONSOLIDATION,
    PERIOD_S,
    UNDERLOAD,
    LoadDesk,
    hot_desk,
    settings_of,
)

T = TypeVar("T")


def heard(desk: LoadDesk, kind: type[T]) -> list[T]:
    """Notices of a kind that the leader is told from now on."""
    told: list[T] = []
    carry_out = desk.carry_out

    def listen(effects: Iterable[ManagerEffect]) -> None:
        for effect in effects:
            if isinstance(effect, TellLeader) and isinstance(effect.notice, kind):
                told.append(effect.notice)
            carry_out([effect])

    desk.carry_out = listen  # type: ignore[method-assign]
    return told


def test_what_moved_under_another_manager_does_not_go_back() -> None:
    def moves_of(moved: tuple[VmMoved, ...]) -> set[tuple[str, str]]:
        settings = AutonomySettings(interval_s=PERIOD_S, underload="off")
        desk = LoadDesk(2, settings_of(settings))
        for name, use in {"web": 0.9, "db": 0.9, "log": 1.0, "burner": 1.0}.items():
            desk.guest(name, "h1", use)
        desk.feed(Directed([HostDirective("h1", 10, moved=moved)]))
        desk.pass_time(90)
        return {(move[1], move[3]) for move in desk.moves}

    names = ("web", "db", "log", "burner")
    free = moves_of(())
    assert {target for _, target in free} == {"h2"}
    held = tuple(VmMoved(name, "h2", 30.0) for name in names)
    assert moves_of(held) == set(), "all of them left h2 half a minute ago"
    assert moves_of(tuple(VmMoved(name, "h2", 1e6) for name in names)) == free, "long ago"


def test_who_finds_no_room_here_is_told_to_the_leader_again_and_again() -> None:
    desk = LoadDesk(1, settings_of(AutonomySettings(interval_s=PERIOD_S, underload="off")))
    told = heard(desk, HostOverloaded)
    for name, use in {"web": 0.9, "db": 0.9, "log": 1.0, "burner": 1.0}.items():
        desk.guest(name, "h1", use)
    desk.vm("burner").report = msgspec.structs.replace(
        desk.vm("burner").report, policy=VmPolicy(movable=False)
    )
    desk.pass_time(60)
    assert len(told) in {2, 3}, "every 15 s, once it has lasted"
    assert told[0].host_id == "h1"
    assert "is overloaded: cpu 95% on average" in told[0].reason
    assert [vm.vm_id for vm in told[0].vms] == ["db", "log", "web"]
    desk.load["web"] = 0.1
    desk.pass_time(30)
    seen = len(told)
    desk.pass_time(30)
    assert len(told) == seen


def test_who_cannot_be_emptied_here_is_told_to_the_leader_with_all_that_is_there() -> None:
    desk = LoadDesk(1)
    told = heard(desk, HostToEmpty)
    desk.guest("a", "h1", 0.2)
    desk.guest("b", "h1", 0.1)
    desk.pass_time(290)
    assert told == [], "it has not lasted"
    desk.pass_time(200)
    assert len(told) in {3, 4}, "once in a cool-down"
    assert (told[0].host_id, told[0].kind) == ("h1", UNDERLOAD)
    assert "name-h1 is hardly used" in told[0].reason
    assert [(vm.vm_id, vm.uses_cores) for vm in told[0].vms] == [("a", 0.2), ("b", 0.1)]
    desk.say(AutonomyRule(Scope.VM, "a", UNDERLOAD, DecisionMode.OFF))
    seen = len(told)
    desk.pass_time(120)
    assert len(told) == seen


def test_after_a_consolidation_the_least_used_host_is_told_once() -> None:
    desk = LoadDesk(2, settings_of(AutonomySettings(interval_s=PERIOD_S, underload="off")))
    told = heard(desk, HostToEmpty)
    for name, host_id, use in (("a", "h1", 0.9), ("b", "h2", 0.6)):
        desk.guest(name, host_id, use, asked=4.0)
    desk.pass_time(60)
    answer = desk.consolidate_now()
    assert isinstance(answer, DecisionMade)
    assert "nothing is moved" in answer.decision.outcome
    desk.pass_time(60)
    [offer] = told
    assert (offer.host_id, offer.kind) == ("h2", CONSOLIDATION)
    assert [vm.vm_id for vm in offer.vms] == ["b"]


def test_what_is_not_to_be_forgotten_is_told_to_the_leader() -> None:
    desk = hot_desk()
    told = heard(desk, Held)
    desk.failing = {"web", "db", "log", "burner"}
    desk.load |= {"burner": 1.0, "log": 1.0}
    desk.pass_time(120)
    source, target = told[0].hosts
    assert (source, told[0].vms) == ("h1", ())
    assert target in {"h2", "h3"}
    assert {vm for each in told for vm in each.vms} == {move[1] for move in desk.moves}


def test_a_manager_that_is_new_to_a_host_is_as_calm_as_the_former_one() -> None:
    def moves_of(directive: HostDirective) -> int:
        desk = LoadDesk(2)
        desk.guest("a", "h1", 0.2)
        desk.guest("b", "h2", 1.0)
        desk.feed(Directed([directive]))
        desk.pass_time(600)
        return len(desk.moves)

    assert moves_of(HostDirective("h1", 10)) == 1
    assert moves_of(HostDirective("h1", 10, relieved_ago_s=60.0)) == 0
    assert moves_of(HostDirective("h1", 10, relieved_ago_s=1e6)) == 1
    assert moves_of(HostDirective("h1", 10, stuck=(VmStuck("a", 60.0),))) == 0
    assert moves_of(HostDirective("h1", 10, stuck=(VmStuck("a", 1e6),))) == 1

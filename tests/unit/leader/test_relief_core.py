"""Overloads that their manager cannot help: another manager's host, or a sleeper."""

import zlib

import numpy as np
import pytest

from snooze.common.decisions import DecisionMode, DecisionState
from snooze.common.errors import ErrorReport
from snooze.common.records import HostPower
from snooze.common.resources import Capacity, R
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmPolicy
from snooze.common.wire import BusyVm, HostOverloaded
from snooze.groupmanager.leader.energy_events import WantRoom
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.groupmanager.leader.relief_core import (
    REST_S,
    MoveAway,
    ReliefCore,
    ReliefEffect,
)
from snooze.groupmanager.leader.submission_events import Decided
from snooze.scheduling import rulings
from tests.unit.leader.builders import host_of, manager_of

TOLD = HostOverloaded("h1", "h1 is overloaded", (BusyVm("burner", 1.0), BusyVm("web", 0.5)))


class House:
    """``h1`` of ``gm1`` is hot; ``h2`` and ``h3`` are of ``gm2`` and use 1 and 2 of 4 cores."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.now_s = 1000.0
        self.mode = DecisionMode.AUTO
        for host_id, manager_id in {"h1": "gm1", "h2": "gm2", "h3": "gm2"}.items():
            self.registry.hosts[host_id] = HostEntry(host_of(host_id), manager_id, 1, True, 0.0)
        for manager_id in ("gm1", "gm2", "gm3"):
            self.registry.managers[manager_id] = ManagerEntry(manager_of(manager_id), 0.0)
        self.registry.managers["gm1"].cores = {"h1": 3.9}
        self.registry.managers["gm2"].cores = {"h2": 1.0, "h3": 2.0}
        # They were with gm3 before: what it said then says nothing.
        self.registry.managers["gm3"].cores = {"h2": 3.9, "h3": 0.0}
        for name in ("burner", "web"):
            vm = VmEntry(name, name, Capacity(1.0, 1024.0), VmState.RUNNING, host_id="h1")
            self.registry.add_vm(vm)
        self.core = ReliefCore(
            self.registry, np.ones(R), 0.8, 600.0, lambda kind, hosts, vms: self.mode
        )

    def tell(self, told: HostOverloaded = TOLD, manager_id: str = "gm1") -> list[ReliefEffect]:
        return self.core.overloaded(manager_id, told, self.now_s, round(self.now_s * 1000))


def moves(effects: list[ReliefEffect]) -> list[tuple[str, str]]:
    return [(each.vm_id, each.target) for each in effects if isinstance(each, MoveAway)]


def decided(effects: list[ReliefEffect]) -> Decided:
    [found] = [each for each in effects if isinstance(each, Decided)]
    return found


def test_the_fullest_host_of_another_manager_that_stays_below_mid_takes_it() -> None:
    house = House()
    effects = house.tell()
    assert moves(effects) == [("burner", "h3")]
    decision = decided(effects)
    assert decision.state is DecisionState.RUNNING
    assert decision.actions == ("migrate burner from name-h1 to name-h3, another manager's",)
    assert decision.alternatives == (
        "name-h2 for burner: possible, 50% of its cores then; fuller ones first",
    )
    replayed = rulings.replay(zlib.decompress(decision.inputs).decode())
    assert replayed is not None
    assert replayed.is_same
    assert replayed.lines()[0] == "overload: burner to name-h3"
    assert house.tell() == [], "one move at a time"
    [ended] = house.core.ended("h1", "burner", "h3", None, house.now_s)
    assert isinstance(ended, Decided)
    assert (ended.state, ended.outcome) == (DecisionState.DONE, "burner is on name-h3")
    assert house.tell() == [], "its samples have to follow"
    house.now_s += REST_S + 1
    assert moves(house.tell()) == [("burner", "h3")]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        ("h3 is full", ("burner", "h2")),
        ("h3 is hot", ("burner", "h2")),
        ("h3 says nothing", ("burner", "h2")),
        ("it came from h3", ("burner", "h2")),
        ("h3 is in maintenance", ("burner", "h2")),
        ("it was to start on h1", ("burner", "h3")),
        ("it must not move", ("web", "h3")),
        ("it is not there any more", ("web", "h3")),
    ],
)
def test_what_cannot_take_it_is_passed_over(spoil: str, expected: tuple[str, str]) -> None:
    house = House()
    burner = house.registry.vms["burner"]
    match spoil:
        case "h3 is full":
            vm = VmEntry("big", "big", Capacity(3.5, 1024.0), VmState.RUNNING, host_id="h3")
            house.registry.add_vm(vm)
        case "h3 is hot":
            house.registry.managers["gm2"].cores = {"h2": 1.0, "h3": 2.5}
        case "h3 says nothing":
            house.registry.managers["gm2"].cores = {"h2": 1.0}
        case "it came from h3":
            burner.left, burner.moved_ms = "h3", round(house.now_s * 1000) - 1000
        case "h3 is in maintenance":
            house.registry.hosts["h3"].maintenance = True
        case "it was to start on h1":
            burner.pin_host = "h1"
        case "it must not move":
            burner.policy = VmPolicy(movable=False)
        case _:
            burner.state = VmState.STOPPED
    assert moves(house.tell()) == [expected]


@pytest.mark.parametrize("arrived", [False, True])
def test_what_is_on_its_way_to_a_host_counts_there_before_its_samples_do(arrived: bool) -> None:
    """Two hosts of two managers are hot at once: their VMs do not make a third one hot."""
    house = House()
    house.registry.hosts["h4"] = HostEntry(host_of("h4"), "gm3", 1, True, 0.0)
    house.registry.managers["gm3"].cores = {"h4": 3.9}
    hog = VmEntry("hog", "hog", Capacity(1.0, 1024.0), VmState.RUNNING, host_id="h4")
    house.registry.add_vm(hog)
    assert moves(house.tell()) == [("burner", "h3")]
    if arrived:
        house.registry.vms["burner"].host_id = "h3"
        house.core.ended("h1", "burner", "h3", None, house.now_s)
        house.now_s += REST_S - 1
    told = HostOverloaded("h4", "h4 is overloaded", (BusyVm("hog", 1.0),))
    assert moves(house.tell(told, "gm3")) == [("hog", "h2")]
    house.core.ended("h4", "hog", "h2", ErrorReport("remote", "it broke off"), house.now_s)
    house.core.ended("h1", "burner", "h3", ErrorReport("remote", "it broke off"), house.now_s)
    house.now_s += REST_S + 1
    assert moves(house.tell(told, "gm3")) == [("hog", "h3")], "what did not come does not count"


def test_with_no_target_room_is_wanted_of_a_sleeper_if_there_is_one() -> None:
    house = House()
    house.registry.managers["gm2"].cores = {"h2": 3.0, "h3": 3.0}
    assert house.tell() == [], "nobody sleeps"
    host = HostEntry(host_of("h4"), "gm2", 1, False, 0.0)
    host.state = HostPower.ASLEEP
    house.registry.hosts["h4"] = host
    [want] = house.tell()
    assert isinstance(want, WantRoom)
    assert want.demand.tolist() == Capacity(1.0, 1024.0).as_list()
    assert want.name == "the load of name-h1 (burner)"
    house.mode = DecisionMode.ADVISE
    assert house.tell() == []


def test_only_the_manager_that_has_the_host_is_heard() -> None:
    house = House()
    assert house.tell(manager_id="gm2") == []
    house.registry.hosts["h1"].leave(house.now_s)
    assert house.tell() == []


def test_a_move_that_failed_is_told_and_not_tried_at_once() -> None:
    house = House()
    key = decided(house.tell()).key
    [ended] = house.core.ended("h1", "burner", "h3", ErrorReport("conflict", "no"), house.now_s)
    assert isinstance(ended, Decided)
    assert (ended.key, ended.state, ended.outcome) == (key, DecisionState.FAILED, "no")
    assert house.tell() == []


def test_advice_that_is_rejected_is_not_said_again_for_a_while() -> None:
    house = House()
    house.mode = DecisionMode.ADVISE
    key = decided(house.tell()).key
    [ended] = house.core.rejected(key, "ann", house.now_s)
    assert isinstance(ended, Decided)
    assert (ended.key, ended.state, ended.outcome) == (
        key,
        DecisionState.REFUSED,
        "rejected by ann",
    )
    assert house.tell() == []
    assert house.core.rejected(key, "ann", house.now_s) == []
    house.now_s += house.core.expire_s + 1
    assert decided(house.tell()).state is DecisionState.PROPOSED


@pytest.mark.parametrize("mode", [DecisionMode.ADVISE, DecisionMode.DRY_RUN])
def test_what_may_be_done_counts_at_once_when_people_change_it(mode: DecisionMode) -> None:
    house = House()
    house.mode = mode
    house.tell()
    house.mode = DecisionMode.AUTO
    expired = house.core.tick(house.now_s)
    assert [each.state for each in expired if isinstance(each, Decided)] == (
        [DecisionState.EXPIRED] if mode is DecisionMode.ADVISE else []
    )
    assert moves(house.tell()) == [("burner", "h3")]


def test_advice_waits_for_a_person_and_is_looked_at_again() -> None:
    house = House()
    house.mode = DecisionMode.ADVISE
    proposal = decided(house.tell())
    assert proposal.state is DecisionState.PROPOSED
    assert house.tell() == [], "it is not said again"
    effects = house.core.approved(proposal.key, "ann", house.now_s, round(house.now_s * 1000))
    assert moves(effects) == [("burner", "h3")]
    other = House()
    other.mode = DecisionMode.ADVISE
    key = decided(other.tell()).key
    other.registry.hosts["h3"].maintenance = True
    [expired] = other.core.approved(key, "ann", other.now_s, round(other.now_s * 1000))
    assert isinstance(expired, Decided)
    assert expired.state is DecisionState.EXPIRED
    late = House()
    late.mode = DecisionMode.ADVISE
    late.tell()
    assert late.core.tick(late.now_s) == []
    assert (
        decided(late.core.tick(late.now_s + late.core.expire_s + 1)).state is DecisionState.EXPIRED
    )


def test_a_dry_run_is_written_down_only() -> None:
    house = House()
    house.mode = DecisionMode.DRY_RUN
    effects = house.tell()
    assert moves(effects) == []
    assert decided(effects).state is DecisionState.DRY_RUN

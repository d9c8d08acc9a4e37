"""Hosts that their own manager cannot empty: onto hosts of all managers, or not at all."""

import zlib
from collections.abc import Mapping

import numpy as np
import pytest

from snooze.common.decisions import DecisionKind, DecisionMode, DecisionState
from snooze.common.errors import ErrorReport
from snooze.common.resources import Capacity, R
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmPolicy
from snooze.common.wire import BusyVm, HostToEmpty
from snooze.groupmanager.leader.emptying_core import EmptyingCore, EmptyingEffect
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.groupmanager.leader.relief_core import MoveAway
from snooze.groupmanager.leader.submission_events import Decided
from snooze.scheduling import rulings
from tests.unit.leader.builders import host_of, manager_of

UNDERLOAD = DecisionKind.UNDERLOAD
REST_S, GATHER_S, KEEP_S = 60.0, 70.0, 210.0


class House:
    """Hosts of 4 cores: ``h1`` of ``gm1`` runs a and b; ``h2`` and ``h3`` are of ``gm2``."""

    def __init__(self, most: int = 1) -> None:
        self.registry = Registry()
        self.now_s = 100_000.0
        self.mode = DecisionMode.AUTO
        self.stir = ""
        self.lacks = ""
        self.asked: list[tuple[str, dict[str, str]]] = []
        for host_id, manager_id in {"h1": "gm1", "h2": "gm2", "h3": "gm2"}.items():
            self.registry.hosts[host_id] = HostEntry(host_of(host_id), manager_id, 1, True, 0.0)
        for manager_id in ("gm1", "gm2", "gm3"):
            self.registry.managers[manager_id] = ManagerEntry(manager_of(manager_id), 0.0)
        self.registry.managers["gm1"].cores = {"h1": 0.3}
        self.registry.managers["gm2"].cores = {"h2": 1.0, "h3": 2.0}
        # They were with gm3 before: what it said then says nothing.
        self.registry.managers["gm3"].cores = {"h2": 3.9, "h3": 0.0}
        for name, host_id in {"a": "h1", "b": "h1", "c": "h2", "d": "h3"}.items():
            self.guest(name, host_id)
        self.core = EmptyingCore(
            self.registry,
            np.ones(R),
            0.8,
            hold_s=3600.0,
            relieved_hold_s=1800.0,
            rest_s=REST_S,
            gather_s=GATHER_S,
            keep_s=KEEP_S,
            most=most,
            mode_of=lambda kind, hosts, vms: self.mode,
            is_calm=lambda: self.stir,
            ha_lacks=self._ha_lacks,
        )

    def _ha_lacks(self, host_id: str, moved: Mapping[str, str]) -> str:
        self.asked.append((host_id, dict(moved)))
        return self.lacks

    @property
    def now_ms(self) -> int:
        return round(self.now_s * 1000)

    def guest(self, name: str, host_id: str, asked: float = 1.0) -> None:
        vm = VmEntry(name, name, Capacity(asked, 1024.0), VmState.RUNNING, host_id=host_id)
        self.registry.add_vm(vm)

    def tell(self, host_id: str = "h1", **uses: float) -> None:
        uses = uses or {"a": 0.1, "b": 0.2}
        told = HostToEmpty(
            host_id, UNDERLOAD, "hardly used", tuple(BusyVm(vm, use) for vm, use in uses.items())
        )
        self.core.heard(self.registry.hosts[host_id].manager_id, told, self.now_s)

    def wait(self, span_s: float = GATHER_S) -> list[EmptyingEffect]:
        self.now_s += span_s
        return self.core.tick(self.now_s, self.now_ms)

    def arrive(self, move: MoveAway) -> list[EmptyingEffect]:
        """A VM has moved, and the leader has heard."""
        vm = self.registry.vms[move.vm_id]
        vm.left, vm.moved_ms, vm.host_id = vm.host_id, self.now_ms, move.target
        return self.core.ended(move.vm_id, None, self.now_s)


def moves(effects: list[EmptyingEffect]) -> list[tuple[str, str]]:
    return [(each.vm_id, each.target) for each in effects if isinstance(each, MoveAway)]


def decided(effects: list[EmptyingEffect]) -> Decided:
    [found] = [each for each in effects if isinstance(each, Decided)]
    return found


def all_moves(effects: list[EmptyingEffect]) -> list[MoveAway]:
    return [each for each in effects if isinstance(each, MoveAway)]


def only_move(effects: list[EmptyingEffect]) -> MoveAway:
    [found] = all_moves(effects)
    return found


def test_all_of_it_goes_to_the_fullest_hosts_one_after_the_other() -> None:
    house = House()
    house.tell()
    assert house.wait(5.0) == [], "others may have a host that is used less"
    effects = house.wait()
    assert moves(effects) == [("b", "h3")], "the one that uses most comes first"
    decision = decided(effects)
    assert (decision.kind, decision.state) == (UNDERLOAD, DecisionState.RUNNING)
    assert decision.subjects == ("h1", "b", "a")
    assert decision.actions[-1] == "name-h1 is empty then"
    replayed = rulings.replay(zlib.decompress(decision.inputs).decode())
    assert replayed is not None
    assert replayed.is_same
    assert replayed.lines()[:2] == ["emptying: 2 VMs leave", "  b to name-h3"]
    assert house.asked == [("h1", {"b": "h3", "a": "h3"})]
    assert house.wait(10.0) == [], "one move at a time"
    effects = house.arrive(only_move(effects))
    assert moves(effects) == [("a", "h3")]
    so_far = decided(effects)
    assert (so_far.state, so_far.outcome) == (DecisionState.RUNNING, "1 of 2 moved")
    ended = decided(house.arrive(only_move(effects)))
    assert (ended.state, ended.outcome) == (DecisionState.DONE, "2 moved; name-h1 is empty")


def test_as_many_leave_at_a_time_as_a_host_may_move() -> None:
    house = House(most=2)
    house.guest("e", "h1", 0.5)
    house.tell(a=0.1, b=0.2, e=0.1)
    first, second = all_moves(house.wait())
    assert (first.vm_id, second.vm_id) == ("b", "a")
    effects = house.arrive(second)
    assert moves(effects) == [("e", "h3")]
    assert decided(effects).outcome == "1 of 3 moved"
    [third] = all_moves(effects)
    assert decided(house.arrive(first)).outcome == "2 of 3 moved"
    assert decided(house.arrive(third)).outcome == "3 moved; name-h1 is empty"


def test_what_is_on_its_way_takes_room() -> None:
    house = House(most=2)
    house.guest("e", "h1", 1.0)
    house.tell(a=0.1, b=0.2, e=0.1)
    first, second = all_moves(house.wait())
    assert (first.target, second.target) == ("h3", "h3")
    house.guest("big", "h3", 0.5)
    assert moves(house.arrive(first)) == [], "1.5 cores are free, and one of them is spoken for"
    ended = decided(house.arrive(second))
    assert ended.outcome.endswith("name-h3 has no room for e any more")


def test_a_move_that_fails_lets_those_under_way_arrive() -> None:
    house = House(most=2)
    house.guest("e", "h1", 0.5)
    house.tell(a=0.1, b=0.2, e=0.1)
    first, second = all_moves(house.wait())
    effects = house.core.ended(first.vm_id, ErrorReport("conflict", "no"), house.now_s)
    assert moves(effects) == [], "nothing more begins"
    assert decided(effects).state is DecisionState.RUNNING
    ended = decided(house.arrive(second))
    assert ended.state is DecisionState.PARTLY
    assert ended.outcome == "1 moved; name-h1 is not empty: b stayed: no"


@pytest.mark.parametrize("left", [1, 0])
def test_a_vm_that_comes_meanwhile_ends_the_plan_and_the_host_is_not_called_empty(
    left: int,
) -> None:
    house = House()
    house.tell()
    house.wait(5.0)
    effects = house.wait()
    if not left:
        effects = house.arrive(only_move(effects))
    house.guest("new", "h1")
    effects = house.arrive(only_move(effects))
    assert moves(effects) == []
    decision = next(each for each in effects if isinstance(each, Decided))
    assert decision.state is DecisionState.PARTLY
    assert decision.outcome == f"{2 - left} moved; name-h1 is not empty: VM new came meanwhile"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ("h3 and h2 are full", "no host of any manager has room for b"),
        ("h3 and h2 are busy", "no host of any manager has room for b"),
        ("h2 and h3 are empty", "no host of any manager has room for b"),
        ("h3 and h2 leave", "no host of any manager has room for b"),
        ("one more VM is there", "what is on it has changed; its manager will tell"),
        ("a must not move", "VM a may not be moved now"),
        ("a is paused", "VM a may not be moved now"),
        ("a moved", "VM a moved, or could not be moved, a moment ago"),
        ("a could not move", "VM a moved, or could not be moved, a moment ago"),
        ("h1 was relieved", "it took part in an overload a moment ago"),
        ("h1 is drained", "it takes no part any more"),
        ("the reserve", "once it is empty, nothing is left"),
        ("an overload", "an overloaded host goes first"),
        ("off", "underload is switched off for what takes part"),
    ],
)
def test_what_keeps_a_host_as_it_is_and_says_so(spoil: str, why: str) -> None:
    house = House()
    hosts, a = house.registry.hosts, house.registry.vms["a"]
    match spoil:
        case "h3 and h2 are full":
            house.guest("e", "h2", 2.5)
            house.guest("f", "h3", 2.5)
        case "h3 and h2 are busy":
            house.registry.managers["gm2"].cores = {"h2": 3.1, "h3": 3.1}
        case "h2 and h3 are empty":
            house.registry.vms["c"].host_id = house.registry.vms["d"].host_id = "h9"
        case "h3 and h2 leave":
            hosts["h2"].maintenance = hosts["h3"].maintenance = True
        case "one more VM is there":
            house.guest("new", "h1")
        case "a must not move":
            a.policy = VmPolicy(movable=False)
        case "a is paused":
            a.state = VmState.PAUSED
        case "a moved":
            a.moved_ms = house.now_ms - 1000
        case "a could not move":
            a.stuck_ms = house.now_ms - 1000
        case "h1 was relieved":
            hosts["h1"].relieved_ms = house.now_ms - 1000
        case "h1 is drained":
            hosts["h1"].maintenance = True
        case "the reserve":
            house.lacks = "nothing is left"
        case "an overload":
            house.stir = why
        case _:
            house.mode = DecisionMode.OFF
    house.tell()
    assert house.wait() == []
    assert house.core.why["h1"][0] == why
    house.wait(KEEP_S)
    house.wait()
    assert house.core.told == {}
    assert house.core.why == {}


def test_the_least_used_host_is_emptied_first_and_then_there_is_a_rest() -> None:
    house = House()
    house.registry.hosts["h4"] = HostEntry(host_of("h4"), "gm2", 1, True, 0.0)
    house.guest("e", "h4")
    house.registry.managers["gm2"].cores = {"h2": 1.0, "h3": 2.0, "h4": 0.1}
    house.tell()
    house.tell("h4", e=0.1)
    effects = house.wait()
    assert moves(effects) == [("e", "h3")]
    assert decided(house.arrive(only_move(effects))).state is DecisionState.DONE
    assert house.wait(REST_S / 2) == []
    assert house.core.why["h1"] == ("a plan was carried out a moment ago",)
    assert moves(house.wait(REST_S)) == [("b", "h3")]


def test_a_host_goes_onto_one_that_is_used_less_only_after_a_while() -> None:
    """That one may be told a little later; it does not move twice then."""
    house = House()
    house.registry.managers["gm2"].cores = {"h2": 1.0}
    house.registry.managers["gm1"].cores = {"h1": 0.3}
    house.tell("h2", c=1.0)
    assert house.wait() == []
    assert house.core.why["h2"][-1] == "hosts that are used less than it are looked at later"
    house.tell("h2", c=1.0)
    assert moves(house.wait()) == [("c", "h1")], "that one stays as it is"
    both = House()
    both.registry.managers["gm2"].cores = {"h2": 1.0}
    both.tell("h2", c=1.0)
    both.wait()
    both.tell()
    both.tell("h2", c=1.0)
    assert moves(both.wait()) == [("b", "h2")], "the one that is used least comes first"


def test_a_move_that_fails_or_an_overload_ends_the_plan() -> None:
    house = House()
    house.tell()
    house.wait()
    [failed] = house.core.ended("b", ErrorReport("conflict", "no"), house.now_s)
    assert isinstance(failed, Decided)
    assert failed.state is DecisionState.FAILED
    assert failed.outcome == "0 moved; name-h1 is not empty: b stayed: no"
    other = House()
    other.tell()
    effects = other.wait()
    other.stir = "an overloaded host goes first"
    ended = decided(other.arrive(only_move(effects)))
    assert ended.state is DecisionState.PARTLY
    assert ended.outcome == "1 moved; name-h1 is not empty: an overloaded host goes first"


@pytest.mark.parametrize("change", ["h3 is drained", "h3 fills", "a has gone", "off"])
def test_each_move_is_looked_at_again(change: str) -> None:
    house = House()
    house.tell()
    effects = house.wait()
    match change:
        case "h3 is drained":
            house.registry.hosts["h3"].maintenance = True
        case "h3 fills":
            house.guest("big", "h3", 2.0)
        case "a has gone":
            house.registry.vms.pop("a")
        case _:
            house.mode = DecisionMode.OFF
    effects = house.arrive(only_move(effects))
    assert moves(effects) == []
    assert decided(effects).state is DecisionState.PARTLY


def test_advice_waits_for_a_person_and_is_made_again() -> None:
    house = House()
    house.mode = DecisionMode.ADVISE
    house.tell()
    proposal = decided(house.wait())
    assert proposal.state is DecisionState.PROPOSED
    house.tell()
    assert house.wait() == [], "it is not said again"
    house.registry.managers["gm2"].cores = {"h2": 2.0, "h3": 3.1}
    effects = house.core.approved(proposal.key, "ann", house.now_s, house.now_ms)
    assert moves(effects) == [("b", "h2")]
    late = House()
    late.mode = DecisionMode.ADVISE
    late.tell()
    key = decided(late.wait()).key
    assert decided(late.wait(late.core.expire_s + 1)).state is DecisionState.EXPIRED
    assert late.core.approved(key, "ann", late.now_s, late.now_ms) == []


def test_advice_that_is_rejected_is_not_said_again_for_a_while() -> None:
    house = House()
    house.mode = DecisionMode.ADVISE
    house.tell()
    key = decided(house.wait()).key
    ended = decided(house.core.rejected(key, "ann", house.now_s))
    assert (ended.state, ended.outcome) == (DecisionState.REFUSED, "rejected by ann")
    house.tell()
    assert house.wait() == []


@pytest.mark.parametrize("mode", [DecisionMode.ADVISE, DecisionMode.DRY_RUN])
def test_what_may_be_done_counts_at_once_when_people_change_it(mode: DecisionMode) -> None:
    house = House()
    house.mode = mode
    house.tell()
    house.wait()
    house.mode = DecisionMode.AUTO
    house.tell()
    effects = house.wait()
    assert moves(effects)
    assert not house.core.proposed


def test_a_dry_run_is_written_down_only() -> None:
    house = House()
    house.mode = DecisionMode.DRY_RUN
    house.tell()
    effects = house.wait()
    assert moves(effects) == []
    assert decided(effects).state is DecisionState.DRY_RUN


def test_only_the_manager_that_has_the_host_is_heard() -> None:
    house = House()
    told = HostToEmpty("h1", UNDERLOAD, "", (BusyVm("a", 0.1),))
    house.core.heard("gm2", told, house.now_s)
    house.core.heard("gm1", HostToEmpty("h1", UNDERLOAD, "", ()), house.now_s)
    assert house.core.told == {}

"""Pauses of the leader's own kinds: what people said reaches the cores that fence and restart."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
import pytest
import pytest_asyncio

from snooze.common.api import AutonomyChange
from snooze.common.clock import ManualClock
from snooze.common.coordination.memory import MemoryCoordinator, MemoryStore
from snooze.common.coordination.port import Check, Create, wait_connected
from snooze.common.decisions import DecisionKind, DecisionState
from snooze.common.errors import Conflict
from snooze.common.resources import Capacity
from snooze.common.settings_energy import EnergySettings
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import ManagerWelcome
from snooze.groupmanager.control import disabled_of
from snooze.groupmanager.leader.autonomy import LeaderAutonomy
from snooze.groupmanager.leader.decision_log import DecisionLog
from snooze.groupmanager.leader.events import EventLog
from snooze.groupmanager.leader.journal import Journal
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.manager_links import ManagerLinks
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.groupmanager.leader.submission_events import Decided
from tests.unit.leader.builders import host_of, manager_of

FENCE = "/fence"


@dataclass
class Desk:
    """What a leader knows, and what it may do."""

    registry: Registry
    clock: ManualClock
    autonomy: LeaderAutonomy
    decisions: DecisionLog


async def _nobody_asks(message: object) -> msgspec.Struct:
    raise AssertionError(message)


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    registry = Registry()
    for host_id in ("h1", "h2"):
        registry.hosts[host_id] = HostEntry(host_of(host_id), "gm", 1, True, 0.0)
    for name in ("web", "db"):
        vm = VmEntry(name, name, Capacity(1.0, 1024.0), VmState.RUNNING, host_id="h1")
        registry.add_vm(vm)
    coordinator = MemoryCoordinator(MemoryStore())
    await coordinator.start()
    await wait_connected(coordinator, 5)
    await coordinator.commit([Create(FENCE, b"")])
    journal = Journal(coordinator, Check(FENCE, 0), lambda: None)
    journal.start()
    clock = ManualClock()
    links = ManagerLinks(
        registry,
        ManagerWelcome("gm", 1),
        _nobody_asks,
        lambda hello: None,
        lambda manager_id, notice: None,
        lambda manager_id, reason: None,
    )
    decisions = DecisionLog(clock, EventLog(clock), "gm")
    yield Desk(
        registry,
        clock,
        LeaderAutonomy(
            GroupManagerSettings(),
            1,
            registry,
            clock,
            journal,
            links,
            decisions,
            lambda kind, subject, message: None,
            lambda decision_id, approved, who: False,
        ),
        decisions,
    )
    await journal.close()
    await coordinator.close()


@pytest.mark.parametrize("approved", [True, False])
async def test_a_proposal_of_the_leaders_own_is_judged_here_though_it_is_a_manager_too(
    desk: Desk, approved: bool
) -> None:
    desk.registry.managers["gm"] = ManagerEntry(manager_of("gm"), 0.0)
    kind, state = DecisionKind.OVERLOAD, DecisionState.PROPOSED
    proposal = desk.decisions.note(Decided("relief:h1", kind, state, ("h1",)))
    judged: list[tuple[str, bool, str]] = []

    def judge(decision_id: str, approved: bool, who: str) -> bool:
        judged.append((decision_id, approved, who))
        return True

    desk.autonomy.deciders.append(judge)
    await desk.autonomy.judge(proposal.decision_id, approved=approved, who="ann")
    assert judged == [(proposal.decision_id, approved, "ann")]


async def test_a_proposal_that_nobody_knows_any_more_is_not_said_to_be_judged(desk: Desk) -> None:
    kind, state = DecisionKind.SLEEP, DecisionState.PROPOSED
    proposal = desk.decisions.note(Decided("sleep:h1", kind, state, ("h1",)))
    with pytest.raises(Conflict, match="gone"):
        await desk.autonomy.judge(proposal.decision_id, approved=True, who="ann")


async def test_a_pause_of_fencing_holds_for_its_host_or_for_all(desk: Desk) -> None:
    autonomy = desk.autonomy
    h1, h2 = (desk.registry.hosts[name] for name in ("h1", "h2"))
    assert autonomy.may_fence(h1)
    await autonomy.change(AutonomyChange("host", "h1", ("fence",), paused=True, why="repairs"))
    assert not autonomy.may_fence(h1)
    assert autonomy.may_fence(h2)
    await autonomy.change(AutonomyChange("host", "h1", ("fence",), paused=False))
    assert autonomy.may_fence(h1)
    await autonomy.change(AutonomyChange("cluster", "", ("fence",), mode="dry-run"))
    assert not autonomy.may_fence(h2), "what is not on auto is not done"


async def test_a_pause_of_restarts_holds_for_its_vm_or_for_a_time(desk: Desk) -> None:
    autonomy = desk.autonomy
    web, db = (desk.registry.vms[name] for name in ("web", "db"))
    await autonomy.change(AutonomyChange("vm", "web", ("restart",), paused=True))
    assert not autonomy.may_restart(web)
    assert autonomy.may_restart(db)
    change = AutonomyChange("cluster", "", ("restart",), paused=True, for_s=60.0)
    view = await autonomy.change(change)
    assert view.modes["restart"] == "off"
    assert not autonomy.may_restart(db)
    desk.clock.advance(61.0)
    assert autonomy.may_restart(db)
    assert not autonomy.may_restart(web)


async def test_a_pause_that_is_over_leaves_the_mode_that_people_chose(desk: Desk) -> None:
    autonomy, kinds = desk.autonomy, ("overload",)
    await autonomy.change(AutonomyChange("cluster", "", kinds, mode="advise", who="ann"))
    pause = AutonomyChange("cluster", "", kinds, paused=True, who="bob", for_s=60.0)
    view = await autonomy.change(pause)
    assert view.modes["overload"] == "off"
    assert [(rule.mode, rule.who) for rule in view.rules] == [("advise", "ann"), ("", "bob")]
    desk.clock.advance(61.0)
    assert autonomy.view().modes["overload"] == "advise"
    await autonomy.change(AutonomyChange("cluster", "", kinds, mode="", who="ann"))
    assert autonomy.view().rules == []


async def test_a_mode_for_a_time_ends_no_pause_and_a_resume_does_not_make_it_last(
    desk: Desk,
) -> None:
    autonomy, fence = desk.autonomy, ("fence",)
    await autonomy.change(AutonomyChange("cluster", "", fence, paused=True))
    await autonomy.change(AutonomyChange("cluster", "", fence, mode="advise", for_s=60.0))
    desk.clock.advance(61.0)
    assert autonomy.view().modes["fence"] == "off"
    await autonomy.change(AutonomyChange("cluster", "", fence, mode="advise", for_s=60.0))
    await autonomy.change(AutonomyChange("cluster", "", (), paused=False))
    assert autonomy.view().modes["fence"] == "advise"
    desk.clock.advance(61.0)
    assert autonomy.view().modes["fence"] == "auto"


async def test_what_other_settings_switch_off_is_shown_as_off(desk: Desk) -> None:
    off = "energy saving is off in the leader's settings (energy.enabled)"
    view = desk.autonomy.view()
    assert (view.modes["sleep"], view.why_off["sleep"]) == ("off", off)
    assert view.modes["wake"] == "auto", "VMs wake hosts all the same"
    change = AutonomyChange("cluster", "", ("sleep",), mode="auto", who="ann")
    assert (await desk.autonomy.change(change)).modes["sleep"] == "off"
    change = AutonomyChange("cluster", "", ("sleep",), paused=True, who="ann")
    assert (await desk.autonomy.change(change)).why_off["sleep"] == f"{off}; paused by ann"
    on = GroupManagerSettings(energy=EnergySettings(enabled=True))
    assert disabled_of(on) == {}

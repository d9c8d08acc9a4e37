"""Every kind of decision, however it comes about, is decided again from its inputs alone."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.decisions import Decision, DecisionKind, DecisionMode
from snooze.common.records import HostPower
from snooze.common.settings_autonomy import AutonomySettings
from snooze.common.wire import PlacementAnswer, PlaceVms
from snooze.groupmanager.leader.decision_log import DecisionLog
from snooze.groupmanager.leader.drain_events import MaintenanceWritten, RecordMaintenance
from snooze.groupmanager.leader.energy_events import SleepAsked, WakeAsked
from snooze.groupmanager.leader.events import EventLog
from snooze.groupmanager.leader.recovery_events import ConfirmDead, PowerOutcome
from snooze.groupmanager.leader.registry import Plan
from snooze.groupmanager.leader.submission_events import (
    AskManager,
    Decided,
    PlacementAnswered,
    RestartAsked,
    StateLoaded,
)
from snooze.groupmanager.leader.vm_views import record_of
from snooze.groupmanager.manager.manager_events import PlaceAsked
from snooze.scheduling import steps
from snooze.scheduling.__main__ import main as scheduling
from tests.unit.leader.builders import Desk, only
from tests.unit.leader.energy_house import House, power_host, wall_ms
from tests.unit.leader.test_drain_core import Cluster
from tests.unit.leader.test_recovery_core import House as Ruin
from tests.unit.leader.test_relief_core import House as Hot
from tests.unit.leader.test_submission_restarts import Ward
from tests.unit.manager import builders as manager
from tests.unit.manager.load_desk import LoadDesk, hot_desk, idle_desk, settings_of

MOST = 1 << 20


def noted(*effects: object) -> list[Decision]:
    """What the leader's log makes of what its cores decided."""
    log = DecisionLog(SYSTEM_CLOCK, EventLog(SYSTEM_CLOCK), "gm1")
    for effect in effects:
        if isinstance(effect, Decided):
            log.note(effect)
    return log.latest(100)


def told(house: House) -> list[Decision]:
    return list(house.decisions.values())


def sleepers(*, going_down: bool = False) -> House:
    """Two hosts that are up, and ``c``, which sleeps or goes down."""
    house = House()
    house.add(power_host("a"), power_host("b"), power_host("c"))
    house.core.policy = house.policy
    c = house.host("c")
    c.state = HostPower.GOING_DOWN if going_down else HostPower.ASLEEP
    c.state_since_ms, c.note = wall_ms(house.now_s - 900), "idle for 900 s; saves 95 W"
    c.leave(house.now_s - 900)
    house.machines["c"] = going_down
    house.records["c"] = c.record()
    if going_down:
        house.stubborn.add("c")
    return house


# ---------------------------------------------------------------- how each kind comes about


def overload_within_a_manager() -> list[Decision]:
    desk = hot_desk()
    desk.load |= {"burner": 1.0, "log": 1.0}
    desk.pass_time(90)
    return desk.decisions(DecisionKind.OVERLOAD)


def overload_across_managers() -> list[Decision]:
    return noted(*Hot().tell())


def underload() -> list[Decision]:
    desk = idle_desk()
    desk.pass_time(180)
    return desk.decisions(DecisionKind.UNDERLOAD)


def consolidation(guests: int = 8) -> list[Decision]:
    desk = LoadDesk(4, settings_of(AutonomySettings(interval_s=3.0, underload="off")))
    for number in range(guests):
        desk.guest(f"v{number}", f"h{1 + number % 4}", 0.3)
    desk.pass_time(30)
    desk.consolidate_now()
    return desk.decisions(DecisionKind.CONSOLIDATION)


def drain() -> list[Decision]:
    cluster = Cluster("h1", "h2")
    cluster.vm("a", "h1")
    record = only(RecordMaintenance, cluster.drain("h1"))
    return noted(*cluster.feed(MaintenanceWritten(record.host_ids, 0)))


def sleep_by_itself() -> list[Decision]:
    house = House()
    house.add(power_host("a"), power_host("b"))
    house.run(3)
    return told(house)


def sleep_as_advice() -> list[Decision]:
    house = House(modes={DecisionKind.SLEEP: DecisionMode.ADVISE})
    house.add(power_host("a"), power_host("b"))
    house.run(3)
    return told(house)


def sleep_for_a_person(*, force: bool = False, maintenance: bool = False) -> list[Decision]:
    house = House(modes={DecisionKind.SLEEP: DecisionMode.OFF})
    house.add(power_host("a"), power_host("b"))
    house.host("a").maintenance = maintenance
    house.feed(SleepAsked(1, "a", wall_ms(house.now_s), force))
    return told(house)


def sleep_goes_on_under_a_new_leader(*, joined: bool) -> list[Decision]:
    house = sleepers(going_down=True)
    if joined:
        host = house.host("c")
        host.join(host.description, "gm1", 2, house.now_s)
    house.run(1)
    return told(house)


def wake_for_a_vm() -> list[Decision]:
    house = sleepers()
    house.want("vm", 4.0)
    house.host("a").maintenance = house.host("b").maintenance = True
    house.run(1)
    return told(house)


def wake_for_a_person(state: HostPower = HostPower.ASLEEP) -> list[Decision]:
    house = sleepers()
    house.host("c").state = state
    house.feed(WakeAsked(1, "c", wall_ms(house.now_s)))
    return told(house)


def wake_of_one_that_goes_down() -> list[Decision]:
    house = sleepers(going_down=True)
    house.run(1)
    house.feed(WakeAsked(1, "c", wall_ms(house.now_s)))
    house.machines["c"] = False
    house.run(5)
    return [each for each in told(house) if each.kind is DecisionKind.WAKE]


def wake_goes_on_under_a_new_leader() -> list[Decision]:
    house = sleepers()
    house.host("c").state = HostPower.WAKING
    house.records["c"] = house.host("c").record()
    house.run(1)
    return told(house)


def fence() -> list[Decision]:
    ruin = Ruin()
    ruin.lose("h1")
    effects = ruin.wait(1.1)
    return noted(*effects, *ruin.answer("h1", PowerOutcome.OFF))


def fence_by_a_person() -> list[Decision]:
    ruin = Ruin(power=False)
    ruin.lose("h1")
    return noted(*ruin.wait(1.1), *ruin.feed(ConfirmDead(1, "h1", 1)))


def restart() -> list[Decision]:
    """Its manager's real answer is a part of it."""
    ward = Ward()
    effects = ward.lose()
    asked = ward.written()
    request = only(AskManager, asked)
    hosts = manager.Desk(2)
    answer = manager.answer_of(hosts.feed(PlaceAsked(1, PlaceVms(1, "task", list(request.vms)))))
    assert isinstance(answer, PlacementAnswer)
    placed = ward.feed(PlacementAnswered(request.manager_id, answer, ward.now_ms))
    return noted(*effects, *asked, *placed)


def restart_where_it_was() -> list[Decision]:
    ward = Ward()
    ward.lose_host("gm1-host")
    return noted(*ward.back(interrupted=True))


def restart_for_a_person() -> list[Decision]:
    ward = Ward()
    ward.policy(max_restarts=0)
    ward.lose()
    return noted(*ward.feed(RestartAsked("a", ward.now_ms)))


def restart_goes_on_under_a_new_leader() -> list[Decision]:
    ward = Ward()
    ward.lose()
    record = record_of(ward.vm)
    assert ward.vm.plan is Plan.RECORDING
    heir = Desk("gm1", "gm2", settled=False)
    return noted(*heir.feed(StateLoaded([], [record], heir.now_ms)))


WAYS: dict[DecisionKind, list[Callable[[], list[Decision]]]] = {
    DecisionKind.OVERLOAD: [overload_within_a_manager, overload_across_managers],
    DecisionKind.UNDERLOAD: [underload],
    DecisionKind.CONSOLIDATION: [consolidation, lambda: consolidation(1)],
    DecisionKind.DRAIN: [drain],
    DecisionKind.SLEEP: [
        sleep_by_itself,
        sleep_as_advice,
        sleep_for_a_person,
        lambda: sleep_for_a_person(force=True),
        lambda: sleep_for_a_person(force=True, maintenance=True),
        lambda: sleep_goes_on_under_a_new_leader(joined=True),
        lambda: sleep_goes_on_under_a_new_leader(joined=False),
    ],
    DecisionKind.WAKE: [
        wake_for_a_vm,
        wake_for_a_person,
        lambda: wake_for_a_person(HostPower.FAILED),
        wake_of_one_that_goes_down,
        wake_goes_on_under_a_new_leader,
    ],
    DecisionKind.FENCE: [fence, fence_by_a_person],
    DecisionKind.RESTART: [
        restart,
        restart_where_it_was,
        restart_for_a_person,
        restart_goes_on_under_a_new_leader,
    ],
}


@pytest.mark.parametrize("kind", DecisionKind)
def test_a_decision_of_each_kind_is_decided_again(kind: DecisionKind, tmp_path: Path) -> None:
    for way in WAYS[kind]:
        decisions = [decision for decision in way() if decision.kind is kind]
        assert decisions, way.__name__
        for decision in decisions:
            assert decision.inputs, (way.__name__, decision)
            assert decision.reason
            code, shown = replayed(decision, tmp_path)
            assert code == 0, (way.__name__, shown)
            assert "the same as recorded" in shown


def test_a_restart_tells_why_and_which_manager_and_which_host(tmp_path: Path) -> None:
    [decision] = restart()
    _, shown = replayed(decision, tmp_path)
    assert shown.count("the same as recorded") == 3
    assert "restart: vm name-a" in shown
    assert "dispatch: a manager for 1 VM\n  name-a: gm1" in shown
    assert "placement by first_fit: 2 hosts, 1 VMs" in shown
    file = tmp_path / "decision.json"
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert scheduling(["explain", str(file)]) == 0, "its plan can be explained"
    assert "a -> h1" in output.getvalue()


def test_a_proof_is_a_further_step_of_the_fencing(tmp_path: Path) -> None:
    [decision] = fence()
    _, shown = replayed(decision, tmp_path)
    assert shown.count("the same as recorded") == 2
    assert "off: host name-h1" in shown
    assert "down: its power controller says it is off" in shown


def replayed(decision: Decision, folder: Path) -> tuple[int, str]:
    """The replay command's exit code and output."""
    file = folder / "decision.json"
    file.write_bytes(steps.unpack(decision.inputs, MOST))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = scheduling(["replay", str(file)])
    return code, output.getvalue()

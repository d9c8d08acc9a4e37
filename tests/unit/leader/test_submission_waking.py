"""A VM that only a sleeping host could hold waits for it, exactly until it has joined."""

import msgspec

from snooze.common.api import TaskState
from snooze.common.records import HostPower
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmErrorCode
from snooze.common.wire import PowerDescription
from snooze.groupmanager.leader.registry import HostEntry
from snooze.groupmanager.leader.submission_events import (
    AskManager,
    RecordTask,
    RecordWritten,
    SubmissionEffect,
    TaskMoved,
)
from tests.unit.leader.builders import ROOM, SMALL, Desk, candidate, host_of, none, only, summary_of

FULL = Capacity(0.0, 0.0, 0.0, 0.0)


def full_desk() -> tuple[Desk, HostEntry]:
    """A manager whose host is full, and a host of it that sleeps."""
    desk = Desk()
    desk.add_manager("gm1", FULL)
    desk.tick(10)
    return desk, sleeper(desk, "h2")


def sleeper(desk: Desk, host_id: str, state: HostPower = HostPower.ASLEEP) -> HostEntry:
    host = desk.add_host(host_id, "gm1", joined=False)
    host.description = msgspec.structs.replace(
        host_of(host_id), power=PowerDescription("IPMI", "", ("shutdown",))
    )
    host.state = state
    return host


def asked(effects: list[SubmissionEffect]) -> list[str]:
    return [
        request.spec.vm_id
        for effect in effects
        if isinstance(effect, AskManager)
        for request in effect.vms
    ]


def test_a_vm_without_room_waits_while_a_host_sleeps() -> None:
    desk, host = full_desk()
    assert desk.submit("a") == []
    vm = desk.registry.vms["a"]
    assert vm.lacks_room
    assert desk.task().vms["a"].note == "waits for a host to wake"
    vm.waits_for, host.state = "h2", HostPower.WAKING
    assert only(TaskMoved, desk.tick(1))
    assert desk.task().vms["a"].note == "waits for host name-h2 to wake"
    assert none(TaskMoved, desk.tick(1)), "it is told once"


def test_it_is_placed_as_soon_as_the_host_has_joined() -> None:
    desk, host = full_desk()
    desk.submit("a")
    desk.registry.vms["a"].waits_for, host.state = "h2", HostPower.WAKING
    desk.tick(40)
    host.state = HostPower.ACTIVE
    host.join(host.description, "gm1", 2, desk.now_s)
    assert asked(desk.tick(0.25)) == [], "its manager has not told of its room yet"
    assert desk.state("a") is VmState.PENDING
    desk.registry.managers["gm1"].take_summary(summary_of(ROOM), 0.0)
    assert asked(desk.tick(0.25)) == ["a"]
    desk.answered("gm1", "a", "h2")
    assert desk.state("a") is VmState.STARTING
    assert not desk.registry.vms["a"].lacks_room
    assert desk.task().vms["a"].note == ""


def test_room_that_comes_up_elsewhere_is_taken() -> None:
    desk, _ = full_desk()
    desk.submit("a")
    desk.registry.managers["gm1"].take_summary(summary_of(SMALL), 0.0)
    assert asked(desk.tick(0.25)) == ["a"]


def test_a_manager_that_refused_is_not_asked_at_every_tick() -> None:
    desk, _ = full_desk()
    desk.registry.managers["gm1"].take_summary(summary_of(SMALL), 0.0)
    desk.submit("a")
    desk.answered("gm1", "a")
    times = 0
    for _ in range(40):
        desk.registry.managers["gm1"].take_summary(summary_of(SMALL), 0.0)
        if asked(desk.tick(0.25)):
            times += 1
            desk.answered("gm1", "a")
    assert 8 <= times <= 11, "once a second"


def test_waiting_for_a_waking_host_does_not_count_as_starting() -> None:
    desk, host = full_desk()
    desk.submit("a")
    desk.registry.vms["a"].waits_for, host.state = "h2", HostPower.WAKING
    for _ in range(400):
        desk.tick(2)
    assert desk.task().state is TaskState.RUNNING
    desk.registry.vms["a"].waits_for = ""
    desk.tick(301)
    assert desk.error_of("a").code == VmErrorCode.TIMED_OUT


def test_a_vm_is_not_given_up_before_a_host_was_looked_for() -> None:
    desk, _ = full_desk()
    desk.submit("a")
    for _ in range(400):
        desk.tick(2)
    assert desk.task().state is TaskState.RUNNING, "its turn is still to come"
    desk.registry.vms["a"].waits_for = ""
    desk.tick(301)
    assert desk.error_of("a").code == VmErrorCode.TIMED_OUT


def test_without_a_sleeper_that_could_hold_it_it_fails_at_once() -> None:
    desk, host = full_desk()
    host.description = msgspec.structs.replace(host.description, capacity=Capacity(0.5, 65536.0))
    desk.submit("a")
    assert desk.error_of("a").code == VmErrorCode.NO_CAPACITY


def test_a_sleeper_that_nothing_can_wake_is_none() -> None:
    desk, host = full_desk()
    host.description = msgspec.structs.replace(host.description, power=PowerDescription())
    desk.submit("a")
    assert desk.error_of("a").code == VmErrorCode.NO_CAPACITY


def test_when_the_last_host_did_not_wake_the_vm_says_so() -> None:
    desk, host = full_desk()
    desk.submit("a")
    vm = desk.registry.vms["a"]
    host.state, vm.waits_for, vm.wake_failed = HostPower.FAILED, "", True
    desk.tick(1)
    error = desk.error_of("a")
    assert error.code == VmErrorCode.WAKEUP_FAILED
    assert "did not wake up" in error.message


def test_a_vm_pinned_to_a_sleeper_waits_although_there_is_room() -> None:
    desk = Desk("gm1")
    sleeper(desk, "h2")
    sleeper(desk, "h3")
    effects = desk.submitted(candidate("a", host="h2"))
    assert only(RecordTask, effects)
    assert asked(desk.feed(RecordWritten("task", desk.now_ms))) == []
    assert desk.registry.vms["a"].lacks_room


def test_a_new_leader_does_not_take_a_sleeper_for_a_host_that_may_have_the_vm() -> None:
    _, host = full_desk()
    asleep = msgspec.structs.replace(host.record(), away=True)
    assert HostEntry.of_record(asleep, 0.0, 60.0).reachable_s == -float("inf")
    unsure = msgspec.structs.replace(asleep, away=False)
    assert HostEntry.of_record(unsure, 0.0, 60.0).reachable_s == 60.0, "it may be up"

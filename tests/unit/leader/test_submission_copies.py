"""Copies of VMs that come back with their hosts: which of two domains is the VM."""

import msgspec
import pytest

from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import StaleCopy, VmMoved
from snooze.groupmanager.leader.recovery_core import RecoveryCore
from snooze.groupmanager.leader.recovery_events import Direct, HostHeard
from snooze.groupmanager.leader.submission_events import UpdateRecords, VmsReported
from snooze.groupmanager.leader.vm_views import entry_of
from tests.unit.leader.builders import Desk, status_of


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.STARTING])
def test_a_generation_that_was_given_up_does_not_beat_the_older_one_that_runs(
    state: VmState,
) -> None:
    """Found by ``snooze-sim replay 11``: the VM was started on both hosts."""
    desk = Desk()
    desk.add_manager("gm1")
    desk.add_host("h1", "gm1")
    desk.add_host("h2", "gm1")
    desk.reported("gm1", status_of("vm", state, "h2", generation=1))
    desk.core.registry.vms["vm"].highest = 3
    desk.reported("gm1", status_of("vm", VmState.STOPPED, "h1", generation=2))
    vm = desk.core.registry.vms["vm"]
    assert (vm.host_id, vm.state, vm.generation) == ("h2", state, 1)
    assert "vm" in desk.core.registry.copies["h1"]


def test_a_copy_whose_start_failed_is_none_any_more() -> None:
    """It was taken for the VM when the host of that died, and awaited for ever (seed 710070)."""
    desk = Desk()
    desk.add_manager("gm1")
    desk.add_host("h1", "gm1")
    desk.add_host("h2", "gm1")
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h2", generation=2))
    desk.reported("gm1", status_of("vm", VmState.STARTING, "h1", generation=1))
    assert "vm" in desk.core.registry.copies["h1"]
    for generation, is_left in ((0, True), (1, False)):
        failed = status_of("vm", VmState.FAILED, "", generation=generation)
        desk.reported("gm1", msgspec.structs.replace(failed, failed_on="h1"))
        assert ("h1" in desk.core.registry.copies) is is_left, "only that which was to start"
    vm = desk.core.registry.vms["vm"]
    assert (vm.host_id, vm.state, vm.generation) == ("h2", VmState.RUNNING, 2)


def test_a_copy_does_not_take_over_from_one_that_is_being_started_again() -> None:
    desk = Desk()
    desk.add_manager("gm1")
    desk.add_host("h1", "gm1")
    desk.add_host("h2", "gm1")
    desk.reported("gm1", status_of("vm", VmState.STOPPED, "h2", generation=1))
    vm = desk.core.registry.vms["vm"]
    vm.highest, vm.revives = 3, True
    desk.reported("gm1", status_of("vm", VmState.STOPPED, "h1", generation=2))
    assert vm.host_id == "h2"


@pytest.mark.parametrize("order", [("h1", "h2"), ("h2", "h1")])
def test_a_vm_that_moved_unheard_is_not_forgotten(order: tuple[str, str]) -> None:
    """Found by ``snooze-sim replay 19``: its record was removed, and made anew without template."""
    desk = Desk()
    desk.add_manager("gm1")
    desk.add_host("h1", "gm1")
    desk.add_host("h2", "gm1")
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h2"))
    vm = desk.core.registry.vms["vm"]
    vm.template = b"template"
    there = {"h1": [status_of("vm", VmState.RUNNING, "h1")], "h2": []}
    effects = desk.feed(VmsReported("gm1", there["h1"], desk.now_ms))
    for host_id in order:
        effects += desk.feed(VmsReported("gm1", there[host_id], desk.now_ms, host_id))
    assert not any(isinstance(e, UpdateRecords) and e.removed_vms for e in effects)
    assert desk.core.registry.vms["vm"] is vm
    assert (vm.host_id, vm.state, vm.template) == ("h1", VmState.RUNNING, b"template")


def test_of_two_that_are_said_to_run_the_latest_word_counts_and_nothing_is_killed() -> None:
    """Found by ``snooze-sim replay 270``: it moved, unheard, and was destroyed where it ran."""
    desk = Desk()
    desk.add_manager("gm1")
    desk.add_host("h1", "gm1")
    desk.add_host("h2", "gm1")
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h1"))
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h2"))
    vm = desk.core.registry.vms["vm"]
    assert (vm.host_id, vm.state) == ("h2", VmState.RUNNING)
    recovery = RecoveryCore(desk.core.registry, 0.0)
    (direct,) = recovery.handle(HostHeard("gm1", ("h1",), 0), 0.0)
    assert isinstance(direct, Direct)
    assert direct.directives[0].stale == (StaleCopy("vm", 1, only_off=True),)
    (direct,) = recovery.handle(HostHeard("gm1", ("h2",), 0), 0.0)
    assert isinstance(direct, Direct)
    assert direct.directives[0].stale == ()
    desk.reported("gm1", status_of("vm", VmState.DESTROYED, "h1"))
    assert (vm.host_id, vm.state) == ("h2", VmState.RUNNING)
    assert desk.core.registry.copies == {}


def test_if_the_latest_word_was_old_the_copy_that_runs_is_the_vm_again() -> None:
    desk = Desk()
    desk.add_manager("gm1")
    desk.add_host("h1", "gm1")
    desk.add_host("h2", "gm1")
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h1"))
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h2"))
    desk.reported("gm1", status_of("vm", VmState.DESTROYED, "h2"))
    vm = desk.core.registry.vms["vm"]
    assert (vm.host_id, vm.state) == ("h1", VmState.RUNNING)
    assert desk.core.registry.copies == {}


@pytest.mark.parametrize("order", [("h1", "h2"), ("h2", "h1")])
def test_a_vm_that_its_manager_moved_just_before_it_died_is_not_forgotten(
    order: tuple[str, str],
) -> None:
    desk = Desk()
    for manager_id in ("gm1", "gm2"):
        desk.add_manager(manager_id)
    for host_id in ("h1", "h2"):
        desk.add_host(host_id, "gm1")
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h1"))
    vm = desk.core.registry.vms["vm"]
    vm.template = b"template"
    there = {"h1": [], "h2": [status_of("vm", VmState.RUNNING, "h2")]}
    effects: list[object] = []
    for host_id in order:
        desk.add_host(host_id, "gm2")
        effects += desk.feed(VmsReported("gm2", there[host_id], desk.now_ms, host_id))
    assert not any(isinstance(e, UpdateRecords) and e.removed_vms for e in effects)
    assert desk.core.registry.vms["vm"] is vm
    assert (vm.host_id, vm.state, vm.template) == ("h2", VmState.RUNNING, b"template")


def test_a_move_is_recorded_and_told_to_whoever_has_the_host_next() -> None:
    desk = Desk()
    desk.add_manager("gm1")
    desk.add_host("h1", "gm1")
    desk.add_host("h2", "gm1")
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h1"))
    vm = desk.core.registry.vms["vm"]
    assert (vm.left, vm.moved_ms) == ("", 0)
    desk.reported("gm1", status_of("vm", VmState.MIGRATING, "h1"))
    effects = desk.reported("gm1", status_of("vm", VmState.RUNNING, "h2"))
    [update] = [e for e in effects if isinstance(e, UpdateRecords)]
    record = update.vms[0]
    assert (record.left, record.moved_ms) == ("h1", desk.now_ms)
    again = entry_of(record, 0.0)
    assert (again.left, again.moved_ms) == ("h1", desk.now_ms), "the next leader knows"
    recovery = RecoveryCore(desk.core.registry, 0.0)
    (direct,) = recovery.handle(HostHeard("gm1", ("h1", "h2"), desk.now_ms + 5000), 0.0)
    assert isinstance(direct, Direct)
    assert [each.moved for each in direct.directives] == [(), (VmMoved("vm", "h1", 5.0),)]
    later_ms = desk.now_ms + 90_000_000
    (direct,) = recovery.handle(HostHeard("gm1", ("h2",), later_ms), 0.0)
    assert isinstance(direct, Direct)
    assert direct.directives[0].moved == (), "a day later nobody cares"


def test_a_restart_elsewhere_is_no_move() -> None:
    desk = Desk()
    desk.add_manager("gm1")
    desk.add_host("h1", "gm1")
    desk.add_host("h2", "gm1")
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h1"))
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h2", generation=2))
    assert desk.core.registry.vms["vm"].left == ""


def test_what_a_migration_left_of_a_vm_that_was_destroyed_since_is_no_vm() -> None:
    """The host that it left was lost with its definition, and comes back with it."""
    desk = Desk()
    desk.add_manager("gm1")
    desk.add_host("h1", "gm1")
    desk.add_host("h2", "gm1")
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h1"))
    desk.core.registry.hosts["h1"].leave(desk.now_s)
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h2"))
    desk.reported("gm1", status_of("vm", VmState.DESTROYED, "h2"))
    assert "vm" not in desk.core.registry.vms
    desk.add_host("h1", "gm1")
    desk.feed(VmsReported("gm1", [status_of("vm", VmState.STOPPED, "h1")], desk.now_ms, "h1"))
    assert "vm" not in desk.core.registry.vms, "it is not a VM again"
    (direct,) = RecoveryCore(desk.core.registry, 0.0).handle(HostHeard("gm1", ("h1",), 0), 0.0)
    assert isinstance(direct, Direct)
    assert direct.directives[0].stale == (StaleCopy("vm", 1),)


def test_a_paused_guest_is_not_a_copy_because_the_record_is_old() -> None:
    """Found by ``snooze-sim replay 1334``: it had moved, unrecorded, and was destroyed."""
    desk = Desk()
    desk.add_manager("gm1")
    desk.add_host("h1", "gm1")
    desk.add_host("h2", "gm1")
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h1"))
    vm = desk.core.registry.vms["vm"]
    vm.heard = False  # a new leader has this from the record
    desk.reported("gm1", status_of("vm", VmState.PAUSED, "h2"))
    assert (vm.host_id, vm.state) == ("h2", VmState.PAUSED)
    assert "h2" not in desk.core.registry.copies
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h1"))
    assert vm.host_id == "h1", "it runs there: a migration stopped half-way"


@pytest.mark.parametrize("state", [VmState.UNREACHABLE, VmState.DESTROYED])
def test_where_a_vm_is_not_says_nothing_of_where_it_is(state: VmState) -> None:
    """Found by ``snooze-sim replay 1370``: it had moved to a host that was lost, and was forgotten.

    The source's manager had lost sight of it, and what was left there was discarded.
    """
    desk = Desk()
    desk.add_manager("gm1")
    desk.add_host("h1", "gm1")
    desk.add_host("h2", "gm1")
    desk.reported("gm1", status_of("vm", VmState.RUNNING, "h2"))
    desk.core.registry.hosts["h2"].leave(desk.now_s, silent=True)
    desk.reported("gm1", status_of("vm", state, "h1"))
    vm = desk.core.registry.vms["vm"]
    assert (vm.host_id, vm.generation) == ("h2", 1)


@pytest.mark.parametrize("is_away", [False, True])
def test_what_a_manager_that_was_unheard_has_no_more_is_gone_or_on_the_host_it_lost(
    is_away: bool,
) -> None:
    desk = Desk("gm1")
    desk.run("a")
    desk.registry.vms["a"].template = b"template"
    desk.add_host("second", "gm1")
    desk.lose_manager("gm1")
    desk.now_s += 2.0
    desk.add_manager("gm1", hosts=False)
    desk.add_host("gm1-host", "gm1")
    if not is_away:
        desk.rejoin_host("second", "gm1")
    desk.feed_inventory("gm1-host", "gm1")
    if not is_away:
        assert "a" not in desk.registry.vms, "it was destroyed meanwhile"
        return
    assert desk.state("a") is VmState.UNREACHABLE, "it may have moved, and then that host was lost"
    desk.tick(100.0)
    desk.rejoin_host("second", "gm1", status_of("a", VmState.RUNNING, "second"))
    assert (desk.state("a"), desk.registry.vms["a"].template) == (
        VmState.RUNNING,
        b"template",
    )

"""A VM is placed anew only when nobody can have it: every way in which an answer can be missing."""

import math

import pytest

from snooze.common.api import TaskState
from snooze.common.errors import ErrorReport
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmErrorCode
from snooze.groupmanager.leader.membership_core import Announce
from snooze.groupmanager.leader.registry import Down, HostEntry, Hosts, Plan, Registry, VmEntry
from snooze.groupmanager.leader.submission_core import GIVEN_UP_AT_ONCE
from snooze.groupmanager.leader.submission_events import (
    AskManager,
    Destroyed,
    ManagerHeard,
    PlacementFailed,
    RejoinManager,
    SubmissionEffect,
    UpdateRecords,
)
from snooze.groupmanager.leader.submission_state_core import LOST_AFTER_S
from snooze.groupmanager.leader.whereabouts import acquit, away, may_be_on, suspect
from tests.unit.leader.builders import SMALL, Desk, host_of, none, only, status_of

SUBNET = "10.0.0.0/29"
NO_ANSWER = ErrorReport("remote_timeout", "no answer")


def unanswered(desk: Desk, *vm_ids: str, manager_id: str = "gm1") -> list[SubmissionEffect]:
    return desk.feed(PlacementFailed(manager_id, vm_ids, True, NO_ANSWER, desk.now_ms))


def rejoined(desk: Desk, manager_id: str = "gm1") -> list[SubmissionEffect]:
    return desk.feed(ManagerHeard(manager_id, desk.now_ms))


def doubtful() -> Desk:
    """A VM that gm1 was asked for, without an answer."""
    desk = Desk("gm1", subnets=[SUBNET])
    desk.submit("a")
    desk.now_s += 1.0
    return desk


# ---------------------------------------------------------------- an answer that comes late


@pytest.mark.parametrize("manager_id", ["gm1", "gm2"])
def test_a_start_on_a_host_that_has_joined_anew_since_is_no_start(manager_id: str) -> None:
    """The host was handed on, or lost its link, with the order; the answer comes after its word."""
    desk = doubtful()
    desk.add_manager("gm2", hosts=False)
    assert none(AskManager, desk.rejoin_host("gm1-host", manager_id, epoch=2))
    desk.answered("gm1", "a", "gm1-host", epoch=1)
    assert desk.state("a") is VmState.PENDING
    assert desk.task().vms["a"].host_id == ""
    asked = only(AskManager, desk.tick())
    desk.answered(asked.manager_id, "a", "gm1-host", epoch=2)
    assert desk.state("a") is VmState.STARTING
    assert desk.registry.vms["a"].manager_id == asked.manager_id


def test_one_that_the_host_had_heard_of_is_where_the_host_says() -> None:
    desk = doubtful()
    desk.add_manager("gm2", hosts=False)
    desk.rejoin_host("gm1-host", "gm2", status_of("a", VmState.STARTING, "gm1-host"), epoch=2)
    desk.answered("gm1", "a", "gm1-host", epoch=1)
    assert desk.state("a") is VmState.STARTING
    assert none(AskManager, desk.tick(5.0))


def test_one_on_a_host_that_is_on_its_way_waits_for_its_word() -> None:
    desk = doubtful()
    desk.add_manager("gm2", hosts=False)
    desk.lose_host("gm1-host")
    desk.registry.hosts["gm1-host"].epoch = 2
    desk.answered("gm1", "a", "gm1-host", epoch=1)
    assert none(AskManager, desk.tick(1.0)), "it may start there"
    desk.rejoin_host("gm1-host", "gm2", epoch=2)
    assert only(AskManager, desk.tick())


def test_a_manager_of_before_does_not_say_in_which_assignment() -> None:
    desk = doubtful()
    desk.rejoin_host("gm1-host", "gm1", epoch=2)
    desk.answered("gm1", "a", "gm1-host", epoch=0)
    assert desk.state("a") is VmState.STARTING


# ---------------------------------------------------------------- no answer


def test_a_manager_that_does_not_answer_is_made_to_join_again_not_asked_again() -> None:
    desk = doubtful()
    desk.add_manager("gm2")
    effects = unanswered(desk, "a")
    assert only(RejoinManager, effects).manager_id == "gm1"
    assert none(AskManager, effects)
    assert none(AskManager, desk.tick(10.0)), "it may have placed it"


def test_it_is_not_made_to_join_twice() -> None:
    desk = doubtful()
    desk.lose_manager("gm1")
    assert unanswered(desk, "a") == []


def test_what_it_has_when_it_joins_again_is_where_it_is() -> None:
    desk = doubtful()
    desk.lose_manager("gm1")
    desk.add_manager("gm1", hosts=False)
    desk.rejoin_host("gm1-host", "gm1", status_of("a", VmState.STARTING, "gm1-host"))
    assert none(AskManager, rejoined(desk))
    assert desk.registry.vms["a"].host_id == "gm1-host"


def test_what_it_does_not_have_when_it_joins_again_is_placed_anew() -> None:
    desk = doubtful()
    desk.lose_manager("gm1")
    desk.add_manager("gm1", hosts=False)
    assert none(AskManager, desk.rejoin_host("gm1-host", "gm1")), "it has not said all"
    assert only(AskManager, rejoined(desk)).manager_id == "gm1"


def test_but_not_while_a_host_is_away_that_it_may_have_placed_it_on() -> None:
    desk = doubtful()
    desk.lose_manager("gm1")
    desk.add_manager("gm1", hosts=False)
    assert none(AskManager, rejoined(desk))
    assert none(AskManager, desk.tick(5.0))
    desk.rejoin_host("gm1-host", "gm1")
    assert only(AskManager, desk.tick())


def test_a_manager_that_is_gone_has_placed_it_where_its_hosts_say() -> None:
    desk = doubtful()
    desk.add_manager("gm2")
    desk.lose_manager("gm1")
    unanswered(desk, "a")
    assert none(AskManager, desk.tick(5.0))
    desk.rejoin_host("gm1-host", "gm2", status_of("a", VmState.RUNNING, "gm1-host"))
    assert none(AskManager, desk.tick(5.0))
    assert desk.task().state is TaskState.DONE


def test_or_nowhere_when_all_its_hosts_have_joined_others_without_it() -> None:
    desk = doubtful()
    desk.add_host("second", "gm1")
    desk.add_manager("gm2")
    desk.lose_manager("gm1")
    desk.rejoin_host("gm1-host", "gm2")
    assert none(AskManager, desk.tick()), "the second one may have it"
    desk.rejoin_host("second", "gm2")
    assert only(AskManager, desk.tick()).manager_id == "gm2"


def test_a_host_that_only_asked_for_a_manager_has_not_said_what_it_has() -> None:
    desk = doubtful()
    desk.add_manager("gm2")
    desk.lose_manager("gm1")
    host = desk.registry.hosts["gm1-host"]
    host.manager_id, host.seen_s, host.reachable_s = "gm2", desk.now_s, desk.now_s + 60.0
    assert none(AskManager, desk.tick(1.0))


def test_a_host_that_was_away_before_it_was_asked_for_does_not_matter() -> None:
    desk = Desk("gm1")
    desk.lose_host(desk.add_host("dead", "gm1").description.host_id)
    desk.now_s += 1.0
    desk.submit("a")
    desk.now_s += 1.0
    desk.lose_manager("gm1")
    desk.add_manager("gm2")
    desk.rejoin_host("gm1-host", "gm2")
    assert only(AskManager, desk.tick())


def test_an_answer_after_all_ends_the_doubt() -> None:
    desk = doubtful()
    desk.answered("gm1", "a", "gm1-host")
    assert unanswered(desk, "a") == []
    assert desk.state("a") is VmState.STARTING


def test_an_answer_of_a_manager_that_is_not_in_doubt_is_not_heard() -> None:
    desk = doubtful()
    desk.answered("gm9", "a", "gm9-host")
    assert desk.state("a") is VmState.PENDING


def test_a_refusal_told_late_is_a_refusal() -> None:
    desk = doubtful()
    desk.add_manager("gm2")
    assert only(AskManager, desk.answered("gm1", "a")).manager_id == "gm2"


# ---------------------------------------------------------------- a host that loses its manager


def test_a_start_that_its_host_never_heard_of_is_placed_anew() -> None:
    desk = doubtful()
    desk.answered("gm1", "a", "gm1-host")
    desk.lose_host("gm1-host")
    desk.rejoin_host("gm1-host", "gm1")
    assert desk.state("a") is VmState.PENDING
    assert only(AskManager, desk.tick()).vms[0].spec.vm_id == "a"


def test_a_start_that_goes_on_is_awaited() -> None:
    desk = doubtful()
    desk.answered("gm1", "a", "gm1-host")
    desk.lose_host("gm1-host")
    desk.rejoin_host("gm1-host", "gm1", status_of("a", VmState.STARTING, "gm1-host"))
    assert none(AskManager, desk.tick(10.0))


def test_nothing_is_placed_anew_before_all_hosts_of_a_manager_were_reported() -> None:
    desk = doubtful()
    desk.add_host("second", "gm1")
    desk.lose_manager("gm1")
    desk.add_manager("gm1", hosts=False)
    for host_id in ("gm1-host", "second"):  # the membership core takes the whole hello first
        desk.add_host(host_id, "gm1")
    assert none(AskManager, desk.rejoin_host("gm1-host", "gm1"))
    started = status_of("a", VmState.STARTING, "second")
    assert none(AskManager, desk.rejoin_host("second", "gm1", started))
    assert none(AskManager, rejoined(desk))


def test_an_inventory_of_a_host_that_is_anothers_by_now_is_old() -> None:
    desk = Desk("gm1", "gm2")
    desk.run("a")
    desk.registry.hosts["gm1-host"].manager_id = "gm2"
    assert desk.feed_inventory("gm1-host", "gm1") == []
    assert desk.state("a") is VmState.RUNNING


def test_a_vm_that_its_host_does_not_have_any_more_is_gone() -> None:
    desk = Desk("gm1", subnets=[SUBNET])
    desk.run("a")
    desk.lose_host("gm1-host")
    effects = desk.rejoin_host("gm1-host", "gm1")
    assert only(UpdateRecords, effects).removed_vms == ["a"]
    assert desk.leases.holder("10.0.0.2") is None


# ---------------------------------------------------------------- rule 7: hosts that stay away


def test_the_vms_of_a_host_that_stays_away_are_unreachable_and_come_back() -> None:
    desk = Desk("gm1")
    desk.run("a")
    desk.lose_host("gm1-host")
    assert desk.tick(10.0) == []
    effects = desk.tick(0.1)
    assert only(Announce, effects).kind == "vm.unreachable"
    assert none(UpdateRecords, effects), "its record names the host already"
    assert desk.tick(60.0) == [], "it is told once"
    desk.rejoin_host("gm1-host", "gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    assert desk.state("a") is VmState.RUNNING


def test_many_hosts_that_stay_away_are_given_up_piece_by_piece() -> None:
    """A leader after a power cut must not stand still over a thousand hosts and their VMs."""
    desk = Desk("gm1")
    desk.run("a")
    for number in range(2 * GIVEN_UP_AT_ONCE):
        host_id = f"away{number}"
        desk.registry.hosts[host_id] = host(host_id, 0.0, given_up=False)
        vm = VmEntry(f"vm{number}", f"vm{number}", SMALL, VmState.RUNNING, host_id=host_id)
        desk.registry.add_vm(vm)
    told = [len([e for e in desk.tick(10.1) if isinstance(e, Announce)])]
    told += [len([e for e in desk.tick(0.1) if isinstance(e, Announce)]) for _ in range(2)]
    assert told == [GIVEN_UP_AT_ONCE, GIVEN_UP_AT_ONCE, 0]
    assert desk.state("a") is VmState.RUNNING
    assert desk.state("vm7") is VmState.UNREACHABLE


def test_a_start_on_a_host_that_stays_away_is_recorded_where_it_may_be() -> None:
    desk = doubtful()
    desk.answered("gm1", "a", "gm1-host")
    desk.lose_host("gm1-host")
    record = only(UpdateRecords, desk.tick(10.1)).vms[0]
    assert (record.state, record.host_id) == (VmState.UNREACHABLE, "gm1-host")
    assert desk.task().vms["a"].state is VmState.UNREACHABLE
    assert not desk.task().ended
    desk.add_manager("gm2")
    desk.rejoin_host("gm1-host", "gm2")
    assert only(AskManager, desk.tick())


def test_a_vm_in_doubt_is_unreachable_on_the_host_that_may_have_it() -> None:
    desk = doubtful()
    desk.lose_manager("gm1")
    desk.tick(5.0)
    assert desk.state("a") is VmState.PENDING
    effects = desk.tick(5.1)
    record = only(UpdateRecords, effects).vms[0]
    assert (record.state, record.host_id) == (VmState.UNREACHABLE, "gm1-host")
    assert "may be on" in desk.registry.vms["a"].reason


def test_one_suspect_after_the_other() -> None:
    desk = doubtful()
    desk.add_host("second", "gm1")
    desk.add_manager("gm2")
    desk.lose_manager("gm1")
    desk.tick(10.1)
    first = desk.registry.vms["a"].host_id
    other = ({"gm1-host", "second"} - {first}).pop()
    desk.rejoin_host(first, "gm2")
    desk.tick()
    assert desk.registry.vms["a"].host_id == other
    desk.rejoin_host(other, "gm2", status_of("a", VmState.RUNNING, other))
    assert desk.state("a") is VmState.RUNNING


# ---------------------------------------------------------------- rule 8: tasks end


def test_a_task_ends_though_its_vm_may_still_come_up_and_its_address_is_kept() -> None:
    desk = doubtful()
    unanswered(desk, "a")
    assert none(UpdateRecords, desk.tick(298.0))
    desk.tick(1.1)
    assert desk.error_of("a").code == VmErrorCode.TIMED_OUT
    assert desk.task().state is TaskState.FAILED
    assert desk.leases.holder("10.0.0.2") == "a"
    assert desk.feed(Destroyed("a", desk.now_ms)) == []
    desk.reported("gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    assert desk.state("a") is VmState.RUNNING
    assert desk.leases.holder("10.0.0.2") == "a"
    assert desk.task().state is TaskState.FAILED


def test_and_is_given_back_once_nobody_has_it() -> None:
    desk = doubtful()
    desk.tick(299.1)
    desk.lose_manager("gm1")
    assert none(UpdateRecords, desk.tick(1.0))
    desk.add_manager("gm2")
    desk.rejoin_host("gm1-host", "gm2")
    effects = desk.tick()
    assert only(UpdateRecords, effects).removed_vms == ["a"]
    assert none(AskManager, effects), "nobody waits for it any more"
    assert desk.leases.holder("10.0.0.2") is None


@pytest.mark.parametrize("is_away", [False, True])
def test_a_start_that_never_ends_has_failed_in_its_task(is_away: bool) -> None:
    desk = doubtful()
    desk.answered("gm1", "a", "gm1-host")
    if is_away:
        desk.lose_host("gm1-host")
    desk.tick(299.1)
    assert desk.error_of("a").code == VmErrorCode.TIMED_OUT
    assert desk.registry.vms["a"].host_id == "gm1-host"
    assert desk.leases.holder("10.0.0.2") == "a"


def test_a_vm_that_nobody_can_have_is_placed_however_late() -> None:
    desk = Desk(settled=False)
    desk.submit("a")
    desk.add_manager("gm1")
    assert only(AskManager, desk.tick(301.0))


# ---------------------------------------------------------------- lost in a migration


def migrating() -> Desk:
    desk = Desk("gm1", "gm2", subnets=[SUBNET])
    asked = desk.submit("a")[0].manager_id
    assert asked == "gm1"
    desk.answered("gm1", "a", "gm1-host")
    desk.reported("gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    desk.reported("gm1", status_of("a", VmState.MIGRATING, "gm1-host"))
    return desk


def test_a_vm_that_left_its_host_by_a_migration_is_not_gone() -> None:
    desk = migrating()
    desk.lose_host("gm1-host")
    desk.rejoin_host("gm1-host", "gm1")
    assert desk.state("a") is VmState.UNREACHABLE
    assert desk.leases.holder("10.0.0.2") == "a"
    desk.reported("gm2", status_of("a", VmState.RUNNING, "gm2-host"))
    assert (desk.state("a"), desk.registry.vms["a"].host_id) == (VmState.RUNNING, "gm2-host")
    assert desk.tick(LOST_AFTER_S + 1.0) == []


def test_unless_no_host_tells_of_it_for_long() -> None:
    desk = migrating()
    left = status_of("a", VmState.UNREACHABLE, "")
    desk.reported("gm1", left)
    assert none(UpdateRecords, desk.tick(LOST_AFTER_S))
    effects = desk.tick(0.1)
    assert only(UpdateRecords, effects).removed_vms == ["a"]
    assert desk.leases.holder("10.0.0.2") is None


def test_and_not_while_a_host_is_away_that_may_have_it() -> None:
    desk = migrating()
    desk.now_s += 1.0
    desk.lose_host("gm2-host")
    desk.reported("gm1", status_of("a", VmState.UNREACHABLE, ""))
    desk.tick(LOST_AFTER_S * 2)
    vm = desk.registry.vms["a"]
    assert (vm.state, vm.host_id) == (VmState.UNREACHABLE, "gm2-host")
    desk.rejoin_host("gm2-host", "gm2", status_of("a", VmState.RUNNING, "gm2-host"))
    assert vm.state is VmState.RUNNING


def test_a_migration_that_is_over_leaves_no_doubt() -> None:
    desk = migrating()
    desk.reported("gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    desk.lose_host("gm1-host")
    assert only(UpdateRecords, desk.rejoin_host("gm1-host", "gm1")).removed_vms == ["a"]


def test_nor_is_it_started_elsewhere_before_the_hosts_in_reach_have_looked() -> None:
    """Its destination may be late to tell; that a host which may have it is down proves nothing."""
    desk = migrating()
    desk.now_s += 1.0
    other = desk.add_host("other", "gm2")
    desk.lose_host("other")
    desk.reported("gm1", status_of("a", VmState.UNREACHABLE, ""))
    other.given_up, other.down = True, Down.EVERYTHING
    vm = desk.registry.vms["a"]
    desk.tick(LOST_AFTER_S)
    assert vm.plan is Plan.NONE
    assert vm.state is VmState.UNREACHABLE
    desk.tick(0.1)
    assert vm.plan is not Plan.NONE


# ---------------------------------------------------------------- which host may have it


def host(
    host_id: str, reachable_s: float, *, joined: bool = False, given_up: bool = True
) -> HostEntry:
    return HostEntry(host_of(host_id), "gm1", 1, joined, 0.0, reachable_s, given_up)


def vm_since(elsewhere_s: float, host_id: str = "") -> VmEntry:
    return VmEntry("a", "a", SMALL, VmState.PENDING, host_id=host_id, elsewhere_s=elsewhere_s)


def test_hosts_away_since_before_are_no_suspects() -> None:
    registry = Registry(
        hosts=Hosts({"old": host("old", 5.0), "here": host("here", 20.0, joined=True)})
    )
    hosts = away(registry)
    assert [h.description.host_id for h in hosts] == ["old"]
    assert not may_be_on(vm_since(5.1), hosts)
    assert may_be_on(vm_since(5.0), hosts)
    assert suspect(vm_since(5.1), hosts) is None
    assert not may_be_on(vm_since(math.inf), hosts)


def test_the_latest_seen_of_those_given_up_is_the_suspect() -> None:
    hosts = {
        "early": host("early", 6.0),
        "late": host("late", 7.0),
        "latest": host("latest", 8.0, given_up=False),
    }
    found = suspect(vm_since(5.0), away(Registry(hosts=Hosts(hosts))))
    assert found is hosts["late"]


@pytest.mark.parametrize(
    ("elsewhere_s", "on", "recorded_on", "is_acquitted"),
    [
        (5.0, "", "", False),
        (5.0, "h", "h", True),
        (5.0, "h", "other", False),
        (9.0, "", "", True),
        (math.inf, "", "", True),
    ],
)
def test_a_host_given_up_is_acquitted_of_what_it_cannot_have(
    elsewhere_s: float, on: str, recorded_on: str, is_acquitted: bool
) -> None:
    registry = Registry(hosts=Hosts({"h": host("h", 7.0)}))
    vm = vm_since(elsewhere_s, on)
    vm.recorded = (vm.state, recorded_on, vm.generation)
    registry.add_vm(vm)
    acquit(registry, 7.0)
    assert not registry.hosts["h"].acquitted, "a start may just be ordered"
    acquit(registry, 7.1)
    assert registry.hosts["h"].acquitted is is_acquitted


def test_a_host_that_may_have_joined_unheard_is_a_suspect() -> None:
    """It was given to gm1 before; gm1's word that it joined was lost with gm1's link."""
    desk = Desk("gm1", "gm2")
    host = desk.add_host("new", "gm1", joined=False)
    host.reachable_s = desk.now_s + 60.0
    desk.now_s += 1.0
    assert desk.submit("a")[0].manager_id == "gm1"
    desk.now_s += 1.0
    desk.lose_manager("gm1")
    desk.rejoin_host("gm1-host", "gm2")
    assert none(AskManager, desk.tick(1.0))
    desk.rejoin_host("new", "gm2", status_of("a", VmState.RUNNING, "new"))
    assert none(AskManager, desk.tick(1.0))
    assert desk.state("a") is VmState.RUNNING

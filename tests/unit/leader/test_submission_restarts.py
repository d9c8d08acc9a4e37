"""VMs whose host is proven down, rule by rule: recorded before they are asked for, never twice."""

import math

import msgspec
import pytest

from snooze.common.decisions import DecisionState
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import FailureAction, VmErrorCode, VmPolicy
from snooze.groupmanager.leader.registry import Down, HostEntry, Plan
from snooze.groupmanager.leader.submission_events import (
    AskManager,
    Decided,
    Destroyed,
    HostDown,
    ManagerHeard,
    RecordRestarts,
    RestartAsked,
    RestartsNotWritten,
    RestartsWritten,
    StartEnded,
    StartThere,
    StateLoaded,
    SubmissionEffect,
    UpdateRecords,
)
from snooze.groupmanager.leader.vm_views import record_of
from tests.unit.leader.builders import Desk, none, only, status_of


class Ward(Desk):
    """A desk with two managers; ``a`` runs on the first one's host."""

    def __init__(self) -> None:
        super().__init__("gm1", "gm2")
        self.run("a")
        self.vm = self.registry.vms["a"]

    @property
    def host(self) -> HostEntry:
        return self.registry.hosts["gm1-host"]

    def policy(self, **fields: object) -> None:
        self.vm.policy = VmPolicy(**fields)  # type: ignore[arg-type]

    def lose(self, *, down: Down = Down.EVERYTHING) -> list[SubmissionEffect]:
        """Its host is lost, given up, and proven down."""
        self.lose_host(self.vm.host_id)
        self.tick(11.0)
        return self.prove(down)

    def prove(self, down: Down = Down.EVERYTHING) -> list[SubmissionEffect]:
        self.host.down = down
        return self.feed(HostDown(self.host.description.host_id, "bmc", self.now_ms))

    def written(self, vm_id: str = "a") -> list[SubmissionEffect]:
        return self.feed(RestartsWritten([vm_id], self.now_ms))

    def back(self, state: VmState = VmState.STOPPED, **fields: object) -> list[SubmissionEffect]:
        """The lost host joins again and has its copy."""
        status = status_of("a", state, self.host.description.host_id)
        changed = msgspec.structs.replace(status, **fields)
        return self.rejoin_host(self.host.description.host_id, "gm1", changed)


def test_it_is_recorded_with_its_next_generation_before_anybody_is_asked() -> None:
    ward = Ward()
    effects = ward.lose()
    (record,) = only(RecordRestarts, effects).vms
    assert (record.generation, record.host_id, record.restarts_ms) == (2, "", (ward.now_ms,))
    assert none(AskManager, effects)
    assert none(AskManager, ward.tick(5.0)), "not even while that takes long"
    (request,) = only(AskManager, ward.written()).vms
    assert request.spec.generation == 2


def test_the_host_that_a_submission_named_is_dead_and_binds_nobody_any_more() -> None:
    ward = Ward()
    ward.vm.pin_host = "gm1-host"
    (record,) = only(RecordRestarts, ward.lose()).vms
    assert record.pin_host == ""
    (request,) = only(AskManager, ward.written()).vms
    assert request.host == ""


def test_it_is_over_when_it_is_told_to_run() -> None:
    ward = Ward()
    ward.lose()
    ward.written()
    ward.answered("gm2", "a", "gm2-host")
    status = status_of("a", VmState.RUNNING, "gm2-host", generation=2)
    effects = ward.reported("gm2", status)
    assert ward.vm.plan is Plan.NONE
    assert only(Decided, effects).outcome == "name-a is running on name-gm2-host"
    assert (ward.vm.host_id, ward.vm.generation) == ("gm2-host", 2)


def test_without_a_proof_nothing_happens() -> None:
    ward = Ward()
    ward.lose_host("gm1-host")
    assert none(RecordRestarts, ward.tick(10_000.0))
    assert ward.state("a") is VmState.UNREACHABLE


def test_a_record_that_fails_is_tried_again_with_a_higher_generation() -> None:
    ward = Ward()
    ward.lose()
    ward.feed(RestartsNotWritten(["a"], "no answer"))
    effects = ward.tick(40.0)
    assert only(RecordRestarts, effects).vms[0].generation == 3


@pytest.mark.parametrize(
    ("action", "said"),
    [(FailureAction.ASK, "start it"), (FailureAction.LEAVE, "it waits for it")],
)
def test_other_policies_leave_it_and_say_so(action: FailureAction, said: str) -> None:
    ward = Ward()
    ward.policy(on_host_failure=action)
    assert none(RecordRestarts, ward.lose())
    assert said in ward.vm.reason
    assert none(RecordRestarts, ward.tick(1000.0))


def test_a_person_may_have_it_started_once_its_host_is_proven_down() -> None:
    ward = Ward()
    ward.policy(on_host_failure=FailureAction.ASK)
    ward.lose_host("gm1-host")
    ward.tick(11.0)
    assert "confirm-dead" in ward.core.why_not(ward.vm)
    assert ward.feed(RestartAsked("a", ward.now_ms)) == []
    ward.prove()
    assert ward.core.why_not(ward.vm) == ""
    assert only(RecordRestarts, ward.feed(RestartAsked("a", ward.now_ms)))


def test_a_lease_proves_nothing_of_a_vm_that_its_host_does_not_fence() -> None:
    ward = Ward()
    ward.policy(on_host_failure=FailureAction.ASK)
    ward.lose(down=Down.FENCED)
    assert ward.core.why_not(ward.vm)
    assert ward.feed(RestartAsked("a", ward.now_ms)) == []


def test_it_is_restarted_so_often_and_no_more() -> None:
    ward = Ward()
    ward.policy(max_restarts=2)
    ward.vm.restarts_ms = (ward.now_ms - 1000, ward.now_ms)
    assert none(RecordRestarts, ward.lose())
    assert "start it yourself" in ward.vm.reason
    assert only(RecordRestarts, ward.feed(RestartAsked("a", ward.now_ms)))


def test_restarts_of_long_ago_do_not_count() -> None:
    ward = Ward()
    ward.policy(max_restarts=1)
    ward.vm.restarts_ms = (ward.now_ms - 4_000_000,)
    assert only(RecordRestarts, ward.lose()).vms[0].restarts_ms == (ward.now_ms,)


@pytest.mark.parametrize("state", [VmState.STOPPED, VmState.FAILED])
def test_who_was_off_stays_so(state: VmState) -> None:
    ward = Ward()
    ward.reported("gm1", status_of("a", state, "gm1-host"))
    assert none(RecordRestarts, ward.lose())


def test_a_migration_under_way_is_waited_for() -> None:
    ward = Ward()
    ward.reported("gm1", status_of("a", VmState.MIGRATING, "gm1-host"))
    assert none(RecordRestarts, ward.lose())
    assert none(RecordRestarts, ward.tick(300.0)), "its manager still sees to it"
    lost = status_of("a", VmState.UNREACHABLE, "gm1-host")
    ward.reported("gm1", lost)
    assert only(RecordRestarts, ward.tick(1.0)), "it is at the source, or nowhere"


def test_a_migration_that_arrived_is_no_loss() -> None:
    ward = Ward()
    ward.reported("gm1", status_of("a", VmState.MIGRATING, "gm1-host"))
    ward.lose()
    ward.reported("gm2", status_of("a", VmState.RUNNING, "gm2-host"))
    assert none(RecordRestarts, ward.tick(300.0))
    assert (ward.vm.plan, ward.vm.generation) == (Plan.NONE, 1)


def test_a_migration_whose_manager_is_gone_waits_until_all_hosts_have_looked() -> None:
    ward = Ward()
    ward.reported("gm1", status_of("a", VmState.MIGRATING, "gm1-host"))
    ward.lose()
    ward.feed(ManagerHeard("gm1", ward.now_ms))
    assert none(RecordRestarts, ward.tick(59.0))
    assert only(RecordRestarts, ward.tick(2.0))


def test_another_host_that_may_have_it_is_waited_for() -> None:
    ward = Ward()
    ward.vm.elsewhere_s = ward.now_s - 1.0
    ward.lose_host("gm2-host")
    assert none(RecordRestarts, ward.lose())
    assert ward.vm.host_id == "gm2-host", "that host is looked at next"
    other = ward.registry.hosts["gm2-host"]
    other.down = Down.EVERYTHING
    assert only(RecordRestarts, ward.feed(HostDown("gm2-host", "bmc", ward.now_ms)))


def test_without_room_it_waits_and_says_so() -> None:
    ward = Ward()
    ward.registry.managers["gm2"].view = None
    ward.registry.managers["gm1"].view = None
    ward.lose()
    assert none(AskManager, ward.written())
    assert "waits for room" in ward.vm.reason
    assert ward.vm.vm_id in ward.registry.vms
    ward.add_manager("gm3")
    effects = [e for _ in range(40) for e in ward.tick(1.0)]
    assert only(AskManager, effects).manager_id == "gm3"


def test_a_start_that_fails_is_tried_again_and_ends_as_failed_but_kept() -> None:
    ward = Ward()
    ward.policy(max_restarts=2)
    effects = ward.lose()
    for generation in (2, 3):
        assert only(RecordRestarts, effects).vms[0].generation == generation
        ward.written()
        failed = status_of("a", VmState.FAILED, "", generation=generation, reason="no disk")
        ward.vm.manager_id = "gm2"
        ward.reported("gm2", failed)
        effects = [e for _ in range(40) for e in ward.tick(1.0)]
    assert none(RecordRestarts, effects)
    assert ward.state("a") is VmState.FAILED
    assert "a" in ward.registry.vms, "its disk is somewhere"
    assert only(RecordRestarts, ward.feed(RestartAsked("a", ward.now_ms)))


def test_a_manager_that_went_in_the_middle_makes_it_a_new_restart() -> None:
    ward = Ward()
    ward.registry.managers["gm1"].view = None
    ward.lose()
    assert only(AskManager, ward.written()).manager_id == "gm2"
    ward.lose_manager("gm2")
    effects = [e for _ in range(3) for e in ward.tick(1.0)]
    assert none(AskManager, effects), "its hosts are away: one may have started it"
    for host in ward.registry.hosts.values():
        host.down = Down.EVERYTHING
    effects = [e for _ in range(3) for e in ward.tick(1.0)]
    assert only(RecordRestarts, effects).vms[0].generation == 3


def test_the_copy_of_a_host_that_is_back_is_a_copy_only() -> None:
    ward = Ward()
    ward.lose()
    ward.written()
    ward.answered("gm2", "a", "gm2-host")
    ward.reported("gm2", status_of("a", VmState.RUNNING, "gm2-host", generation=2))
    ward.back()
    assert (ward.vm.host_id, ward.state("a")) == ("gm2-host", VmState.RUNNING)
    assert set(ward.registry.copies["gm1-host"]) == {"a"}
    ward.reported("gm1", status_of("a", VmState.DESTROYED, "gm1-host"))
    assert ward.registry.copies == {}
    assert ward.state("a") is VmState.RUNNING


def test_the_copy_of_a_vm_that_nobody_else_can_have_is_the_vm() -> None:
    ward = Ward()
    ward.registry.managers["gm1"].view = ward.registry.managers["gm2"].view = None
    ward.lose()
    ward.written()
    ward.back(interrupted=True)
    assert (ward.vm.host_id, ward.vm.generation, ward.vm.highest) == ("gm1-host", 1, 2)
    assert only(StartThere, ward.tick(1.0)) == StartThere("gm1", "a", "gm1-host")
    ward.lose_host("gm1-host")
    ward.tick(11.0)
    assert only(RecordRestarts, ward.prove()).vms[0].generation == 3, "above any recorded one"


def test_a_copy_that_was_taken_for_the_vm_and_was_being_discarded_is_started_elsewhere() -> None:
    """Found in virtual time, seed 820102: the VM was gone, and nobody had wanted that."""
    ward = Ward()
    ward.registry.managers["gm1"].view = ward.registry.managers["gm2"].view = None
    ward.lose()
    ward.written()
    ward.back(interrupted=True)
    assert ward.vm.host_id == "gm1-host"
    gone = status_of("a", VmState.DESTROYED, "gm1-host")
    effects = ward.reported("gm1", msgspec.structs.replace(gone, discarded=True))
    assert only(RecordRestarts, effects).vms[0].generation == 3
    assert "discarded as stale" in next(
        e.reason for e in effects if isinstance(e, Decided) and e.state is DecisionState.RUNNING
    )


def test_a_vm_that_is_fenced_as_its_second_start_ends_is_started_once_more() -> None:
    ward = Ward()
    ward.lose_host("gm1-host")
    ward.back(VmState.STOPPED, fenced=True)
    assert only(StartThere, ward.tick(0.3))
    ward.reported("gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    off = status_of("a", VmState.STOPPED, "gm1-host")
    ward.reported("gm1", msgspec.structs.replace(off, fenced=True))
    ward.feed(StartEnded("a", "", ward.now_ms))
    assert any(isinstance(e, StartThere) for _ in range(5) for e in ward.tick(1.0))


@pytest.mark.parametrize("why", ["interrupted", "fenced"])
def test_who_went_down_with_its_host_is_started_there(why: str) -> None:
    ward = Ward()
    ward.lose_host("gm1-host")
    effects = ward.back(VmState.STOPPED, **{why: True})
    assert none(UpdateRecords, effects), "the record says that it runs until it does"
    assert only(StartThere, ward.tick(0.3))
    assert none(StartThere, ward.tick(0.3))
    ward.feed(StartEnded("a", "no memory", ward.now_ms))
    assert "no memory" in ward.vm.reason
    assert only(StartThere, [e for _ in range(5) for e in ward.tick(1.0)])
    ward.reported("gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    assert none(StartThere, ward.tick(1000.0))


def test_who_was_shut_down_by_somebody_is_not_started() -> None:
    ward = Ward()
    ward.lose_host("gm1-host")
    effects = ward.back()
    assert only(UpdateRecords, effects).vms[0].state is VmState.STOPPED
    assert none(StartThere, ward.tick(10.0))


def test_a_new_leader_takes_a_restart_up_where_it_stood() -> None:
    ward = Ward()
    (record,) = only(RecordRestarts, ward.lose()).vms
    heir = Desk("gm2", settled=False)
    heir.add_host("gm1-host", "gm1", joined=False)
    heir.registry.hosts["gm1-host"].reachable_s = -math.inf
    heir.feed(StateLoaded([], [record], heir.now_ms))
    assert none(RecordRestarts, heir.tick(0.3, settled=False))
    assert only(RecordRestarts, heir.tick(3.0)).vms[0].generation == 3


def placed(ward: Ward) -> list[SubmissionEffect]:
    """Its host was lost, and the other manager starts it on its own host."""
    ward.registry.managers["gm1"].view = None
    ward.lose()
    ward.written()
    return ward.answered("gm2", "a", "gm2-host")


def test_a_new_leader_goes_on_with_a_restart_that_never_arrived() -> None:
    """Found in virtual time, seed 31730: recorded out of sight where it was sent, it was gone."""
    ward = Ward()
    placed(ward)
    ward.lose_host("gm2-host")
    [record] = only(UpdateRecords, ward.tick(11.0)).vms
    assert (record.state, record.host_id) == (VmState.UNREACHABLE, "gm2-host")

    heir = Desk("gm1", settled=False)
    heir.add_host("gm2-host", "gm1")
    heir.feed(StateLoaded([], [record], heir.now_ms))
    heir.feed_inventory("gm2-host", "gm1")
    assert none(RecordRestarts, heir.tick(0.3, settled=False)), "others may have it"
    assert only(RecordRestarts, heir.tick(3.0)).vms[0].generation == 3

    there = Desk("gm1")
    there.add_host("gm2-host", "gm1")
    there.feed(StateLoaded([], [record], there.now_ms))
    running = status_of("a", VmState.RUNNING, "gm2-host", generation=2)
    there.feed_inventory("gm2-host", "gm1", running)
    assert none(RecordRestarts, there.tick(3.0))
    assert there.state("a") is VmState.RUNNING


def test_a_vm_that_starts_on_another_host_has_not_been_restarted_yet() -> None:
    """Found in virtual time, seeds 31294 and 31792: its start failed, and nobody saw to it."""
    ward = Ward()
    placed(ward)
    starting = status_of("a", VmState.STARTING, "gm2-host", generation=2)
    effects = ward.reported("gm2", starting)
    assert none(Decided, effects)
    ward.feed_inventory("gm2-host", "gm2")
    assert only(AskManager, ward.tick(5.0)).vms[0].spec.vm_id == "a"


def test_a_restart_that_was_given_up_stays_given_up_and_says_so_to_a_new_leader() -> None:
    """Found in virtual time, seeds 30768 and 31428."""
    ward = Ward()
    placed(ward)
    record = msgspec.structs.replace(
        record_of(ward.vm), state=VmState.FAILED, host_id="", generation=4, highest=4
    )
    heir = Desk("gm1", settled=False)
    heir.feed(StateLoaded([], [record], heir.now_ms))
    vm = heir.registry.vms["a"]
    assert vm.asks
    assert vm.reason == "its restart on another host failed too often: start it yourself"
    effects = heir.feed(RestartAsked("a", heir.now_ms))
    assert none(RecordRestarts, effects), "a host that has not spoken may have a copy that runs"
    assert only(RecordRestarts, heir.tick(3.0)).vms[0].generation == 5

    late = Desk("gm1")
    late.feed(StateLoaded([], [record], late.now_ms))
    late.feed_inventory("gm1-host", "gm1", status_of("a", VmState.STOPPED, "gm1-host"))
    assert (late.state("a"), late.registry.vms["a"].host_id) == (VmState.STOPPED, "gm1-host")


def test_a_vm_that_waits_to_be_restarted_can_be_destroyed() -> None:
    ward = Ward()
    ward.registry.managers["gm1"].view = ward.registry.managers["gm2"].view = None
    ward.lose()
    ward.written()
    [tombstone] = only(UpdateRecords, ward.feed(Destroyed("a", ward.now_ms))).vms
    assert (tombstone.vm_id, tombstone.state) == ("a", VmState.DESTROYED)
    assert none(AskManager, ward.tick(100.0))


def test_priority_comes_first_and_start_order_waits() -> None:
    ward = Ward()
    ward.submit("b", "c", task_id="more")
    for vm_id in ("b", "c"):
        ward.answered("gm1", vm_id, "gm1-host")
        ward.reported("gm1", status_of(vm_id, VmState.RUNNING, "gm1-host"))
    for vm_id, order, priority in (("a", 0, 1), ("b", 0, 9), ("c", 5, 99)):
        vm = ward.registry.vms[vm_id]
        vm.virtual_cluster = "web"
        vm.policy = VmPolicy(priority=priority, start_order=order)
    records = only(RecordRestarts, ward.lose()).vms
    assert [record.vm_id for record in records] == ["c", "b", "a"]
    effects = ward.feed(RestartsWritten(["a", "b", "c"], ward.now_ms))
    asked = [r.spec.vm_id for e in effects if isinstance(e, AskManager) for r in e.vms]
    assert asked == ["b", "a"]
    assert "starts after" in ward.registry.vms["c"].reason
    for vm_id in ("a", "b"):
        ward.reported("gm2", status_of(vm_id, VmState.RUNNING, "gm2-host", generation=2))
    assert only(AskManager, ward.tick(1.0)).vms[0].spec.vm_id == "c"


def test_a_submission_that_waits_for_it_gets_it_whatever_its_policy() -> None:
    desk = Desk("gm1", "gm2")
    desk.submit("a")
    desk.answered("gm1", "a", "gm1-host")
    vm = desk.registry.vms["a"]
    vm.policy = VmPolicy(FailureAction.LEAVE)
    desk.lose_host("gm1-host")
    desk.tick(11.0)
    desk.registry.hosts["gm1-host"].down = Down.EVERYTHING
    assert only(RecordRestarts, desk.feed(HostDown("gm1-host", "bmc", desk.now_ms)))
    desk.feed(RestartsWritten(["a"], desk.now_ms))
    vm.manager_id = "gm2"
    failed = status_of("a", VmState.FAILED, "", generation=2, reason="no disk")
    desk.reported("gm2", failed)
    assert desk.error_of("a").code == VmErrorCode.START_FAILED


def test_what_is_recorded_can_be_read_back() -> None:
    ward = Ward()
    ward.lose()
    record = record_of(ward.vm)
    assert (record.generation, record.highest, record.policy) == (2, 2, ward.vm.policy)


def test_a_copy_between_the_adopted_one_and_the_highest_is_a_copy() -> None:
    ward = Ward()
    ward.lose()
    ward.written()
    ward.answered("gm2", "a", "gm2-host")
    ward.reported("gm2", status_of("a", VmState.RUNNING, "gm2-host", generation=2))
    other = ward.registry.hosts["gm2-host"]
    ward.registry.managers["gm1"].view = ward.registry.managers["gm2"].view = None
    ward.lose_host("gm2-host")
    ward.tick(11.0)
    other.down = Down.EVERYTHING
    ward.feed(HostDown("gm2-host", "bmc", ward.now_ms))
    ward.written()
    ward.back(interrupted=True)
    ward.reported("gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    assert (ward.vm.host_id, ward.vm.generation, ward.vm.highest) == ("gm1-host", 1, 3)
    between = status_of("a", VmState.STOPPED, "gm2-host", generation=2)
    ward.rejoin_host("gm2-host", "gm2", between)
    assert (ward.vm.host_id, ward.state("a")) == ("gm1-host", VmState.RUNNING)
    assert set(ward.registry.copies["gm2-host"]) == {"a"}


def test_a_guest_that_runs_as_a_copy_is_adopted_rather_than_restarted_beside() -> None:
    ward = Ward()
    (record,) = only(RecordRestarts, ward.lose()).vms
    heir = Desk("gm1", settled=False)
    heir.feed(StateLoaded([], [record], heir.now_ms))
    heir.feed_inventory("gm1-host", "gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    effects = heir.tick(4.0)
    assert none(RecordRestarts, effects)
    vm = heir.registry.vms["a"]
    assert (vm.host_id, vm.state, vm.generation, vm.highest) == (
        "gm1-host",
        VmState.RUNNING,
        1,
        2,
    )
    assert only(UpdateRecords, effects).vms[0].highest == 2


def test_the_copy_of_a_vm_that_was_restarted_and_destroyed_is_no_vm() -> None:
    ward = Ward()
    ward.lose()
    ward.written()
    ward.answered("gm2", "a", "gm2-host")
    ward.reported("gm2", status_of("a", VmState.RUNNING, "gm2-host", generation=2))
    effects = ward.reported("gm2", status_of("a", VmState.DESTROYED, "gm2-host", generation=2))
    [tombstone] = [r for e in effects if isinstance(e, UpdateRecords) for r in e.vms]
    assert (tombstone.state, tombstone.generation) == (VmState.DESTROYED, 2)
    assert not [i for e in effects if isinstance(e, UpdateRecords) for i in e.removed_vms]
    ward.back()
    assert "a" not in ward.registry.vms
    assert set(ward.registry.copies["gm1-host"]) == {"a"}
    ward.reported("gm1", status_of("a", VmState.DESTROYED, "gm1-host"))
    assert ward.registry.copies == {}

    later = Ward()
    later.registry.remove_vm(later.vm)
    later.feed(StateLoaded((), [tombstone], later.now_ms))
    later.reported("gm1", status_of("a", VmState.STOPPED, "gm1-host"))
    assert "a" not in later.registry.vms, "a new leader knows, too"


def test_a_manager_that_joins_again_is_asked_again_though_a_host_is_suspected_meanwhile() -> None:
    """Found in virtual time, seed 5055: it waited for ever for the manager to be gone once more."""
    ward = Ward()
    ward.registry.managers["gm1"].view = None
    ward.lose()
    assert only(AskManager, ward.written()).manager_id == "gm2"
    ward.now_s += 1.0
    ward.lose_manager("gm2")
    for _ in range(3):
        ward.tick(5.0)
    assert ward.state("a") is VmState.UNREACHABLE, "it may be on the host of whom was asked"
    ward.add_manager("gm2", hosts=False)
    ward.feed(ManagerHeard("gm2", ward.now_ms))
    ward.rejoin_host("gm2-host", "gm2")
    assert only(RecordRestarts, ward.tick(0.25)).vms[0].generation == 3


def test_what_failed_after_a_restart_is_remembered_as_gone() -> None:
    """Found in virtual time, seed 1685: its copy came back, on an address that was another's."""
    desk = Desk("gm1", "gm2")
    desk.submit("a")
    vm = desk.registry.vms["a"]
    vm.generation, vm.doubt, vm.elsewhere_s = (
        2,
        "",
        math.inf,
    )  # restarted before it was known to run
    effects = desk.core.fail(vm, VmErrorCode.NO_CAPACITY, "no room", desk.now_s, desk.now_ms)
    (tombstone,) = only(UpdateRecords, [e for e in effects if not getattr(e, "tasks", ())]).vms
    assert (tombstone.state, tombstone.generation) == (VmState.DESTROYED, 2)
    assert "a" not in desk.registry.vms
    desk.rejoin_host("gm1-host", "gm1", status_of("a", VmState.STOPPED, "gm1-host"))
    assert "a" not in desk.registry.vms
    assert set(desk.registry.copies["gm1-host"]) == {"a"}, "to be destroyed"


def test_what_a_manager_that_is_not_heard_may_have_moved_waits_for_its_other_hosts() -> None:
    ward = Ward()
    ward.add_host("second", "gm1")
    ward.lose_manager("gm1")
    assert none(RecordRestarts, ward.prove()), "it may run on the second one by now"
    assert none(RecordRestarts, ward.tick(600.0))
    assert (ward.state("a"), ward.vm.host_id) == (VmState.UNREACHABLE, "second")
    second = ward.registry.hosts["second"]
    second.down = Down.EVERYTHING
    assert only(RecordRestarts, ward.feed(HostDown("second", "bmc", ward.now_ms)))


def test_and_is_where_the_one_that_comes_back_says() -> None:
    ward = Ward()
    ward.add_host("second", "gm1")
    ward.lose_manager("gm1")
    ward.prove()
    effects = ward.rejoin_host("second", "gm2", status_of("a", VmState.RUNNING, "second"))
    assert none(RecordRestarts, effects)
    assert none(RecordRestarts, ward.tick(1.0))
    assert (ward.state("a"), ward.vm.host_id, ward.vm.plan) == (
        VmState.RUNNING,
        "second",
        Plan.NONE,
    )


def test_once_they_have_come_back_without_it_it_is_restarted() -> None:
    ward = Ward()
    ward.add_host("second", "gm1")
    ward.lose_manager("gm1")
    ward.prove()
    ward.rejoin_host("second", "gm2")
    assert only(RecordRestarts, ward.tick(1.0))


def test_a_manager_that_loses_a_host_itself_has_said_what_it_moved() -> None:
    ward = Ward()
    ward.add_host("second", "gm1")
    ward.lose_host("gm1-host")
    ward.lose_host("second")
    assert only(RecordRestarts, ward.prove())


@pytest.mark.parametrize("generation", [1, 2])
def test_a_copy_that_was_on_is_not_restarted_beside_while_its_host_is_away(generation: int) -> None:
    """Two hosts said that it runs, and one word was old: it may have been the later one."""
    ward = Ward()
    ward.reported("gm2", status_of("a", VmState.RUNNING, "gm2-host", generation=generation))
    assert ward.vm.host_id == "gm2-host"
    ward.registry.copies.setdefault("gm1-host", {})["a"] = status_of(
        "a", VmState.RUNNING, "gm1-host"
    )
    ward.lose_host("gm1-host")
    ward.lose_host("gm2-host")
    ward.tick(11.0)
    ward.registry.hosts["gm2-host"].down = Down.EVERYTHING
    assert none(RecordRestarts, ward.feed(HostDown("gm2-host", "bmc", ward.now_ms)))
    assert (ward.state("a"), ward.vm.host_id) == (VmState.UNREACHABLE, "gm1-host")
    (record,) = only(RecordRestarts, ward.prove()).vms
    assert record.generation == generation + 1

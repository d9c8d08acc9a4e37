"""The drain core, rule by rule."""

import zlib

import numpy as np
import pytest

from snooze.common.decisions import DecisionKind, DecisionState
from snooze.common.errors import ErrorReport
from snooze.common.records import HostPower
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmPolicy
from snooze.groupmanager.leader.drain_core import (
    MAX_TRIES,
    PER_HOST,
    REPLAN_S,
    WAKES_S,
    DrainCore,
)
from snooze.groupmanager.leader.drain_events import (
    AnswerDrain,
    DirectHost,
    DrainAsked,
    DrainEffect,
    DrainEvent,
    DrainTicked,
    MaintenanceFailed,
    MaintenanceWritten,
    MakePlan,
    MoveEnded,
    OrderMove,
    PlanMade,
    RecordMaintenance,
    UndrainAsked,
)
from snooze.groupmanager.leader.drain_planning import COMES
from snooze.groupmanager.leader.energy_events import WantRoom
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.groupmanager.leader.submission_events import Decided
from snooze.scheduling import dump
from snooze.scheduling.drain import drain
from snooze.scheduling.dump import drain_and_pack
from tests.unit.leader.builders import host_of, none, only

ONE = np.ones(4)
BROKEN = ErrorReport("execution_failed", "the migration failed")


class Cluster:
    """Hosts of four cores, and VMs of one."""

    def __init__(self, *hosts: str) -> None:
        self.registry = Registry()
        for host_id in hosts:
            self.registry.hosts[host_id] = HostEntry(host_of(host_id), "gm1", 1, True, 0.0)
        self.core = DrainCore(self.registry, ONE, ONE)
        self.now_s = 100.0

    def vm(self, vm_id: str, host_id: str, **fields: object) -> VmEntry:
        entry = VmEntry(vm_id, f"name-{vm_id}", Capacity(1.0, 1024.0), VmState.RUNNING)
        entry.host_id = host_id
        for key, value in fields.items():
            setattr(entry, key, value)
        self.registry.add_vm(entry)
        return entry

    def feed(self, event: DrainEvent) -> list[DrainEffect]:
        """Let the core decide; plans are made at once."""
        effects: list[DrainEffect] = []
        for effect in self.core.handle(event, self.now_s):
            if isinstance(effect, MakePlan):
                answer, inputs = drain_and_pack(effect.snapshot, effect.hosts, effect.policy)
                effects += self.feed(PlanMade(effect.number, answer, 0, inputs=inputs))
            else:
                effects.append(effect)
        return effects

    def drain(
        self, *host_ids: str, deadline_s: float = 0.0, plan_only: bool = False, task_id: str = "t"
    ) -> list[DrainEffect]:
        return self.feed(DrainAsked(1, task_id, host_ids, deadline_s, plan_only, 0))

    def begin(self, *host_ids: str, deadline_s: float = 0.0) -> list[DrainEffect]:
        record = only(RecordMaintenance, self.drain(*host_ids, deadline_s=deadline_s))
        return self.feed(MaintenanceWritten(record.host_ids, 0))

    def arrive(self, order: OrderMove) -> list[DrainEffect]:
        self.registry.vms[order.vm_id].host_id = order.destination
        return self.feed(MoveEnded(order.order_id, None, 0))

    def fail(self, order: OrderMove) -> list[DrainEffect]:
        return self.feed(MoveEnded(order.order_id, BROKEN, 0))

    def tick(self, seconds: float = 0.25) -> list[DrainEffect]:
        self.now_s += seconds
        return self.feed(DrainTicked(0, True))

    def run(self, effects: list[DrainEffect]) -> list[OrderMove]:
        """Let every move succeed; all that were ordered."""
        done: list[OrderMove] = []
        todo = orders(effects)
        while todo:
            order = todo.pop(0)
            done.append(order)
            todo += orders(self.arrive(order))
        return done


def orders(effects: list[DrainEffect]) -> list[OrderMove]:
    return [effect for effect in effects if isinstance(effect, OrderMove)]


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster("h1", "h2", "h3")
    for vm_id, host_id in (("a", "h1"), ("b", "h1"), ("c", "h1"), ("d", "h2")):
        made.vm(vm_id, host_id)
    return made


def test_a_plan_alone_changes_nothing(cluster: Cluster) -> None:
    answer = only(AnswerDrain, cluster.drain("h1", plan_only=True))
    assert answer.view is not None
    assert {move.vm for move in answer.view.moves} == {"name-a", "name-b", "name-c"}
    assert {move.source for move in answer.view.moves} == {"name-h1"}
    assert answer.view.emptied == ["name-h1"]
    assert answer.view.seconds > 0
    assert answer.view.task_id == ""
    assert not cluster.registry.hosts["h1"].maintenance
    assert cluster.tick() == []


def test_the_mark_is_recorded_before_anything_moves(cluster: Cluster) -> None:
    effects = cluster.drain("h1")
    record = only(RecordMaintenance, effects)
    assert record.host_ids == ("h1",)
    assert cluster.registry.hosts["h1"].maintenance
    assert cluster.registry.hosts["h1"].record().drain_until_ms == -1
    assert none(OrderMove, effects)
    assert none(AnswerDrain, effects)
    assert none(OrderMove, cluster.tick())
    effects = cluster.feed(MaintenanceWritten(("h1",), 0))
    assert only(DirectHost, effects).host_id == "h1"
    answer = only(AnswerDrain, effects)
    assert answer.view is not None
    assert answer.view.task_id == "t"
    assert len(orders(effects)) == PER_HOST


def test_a_mark_that_could_not_be_recorded_is_taken_back(cluster: Cluster) -> None:
    cluster.drain("h1")
    busy = ErrorReport("too_busy", "later")
    effects = cluster.feed(MaintenanceFailed(("h1",), busy, 0))
    assert only(AnswerDrain, effects).error == busy
    assert not cluster.registry.hosts["h1"].maintenance
    assert none(OrderMove, cluster.tick(10))


def test_every_vm_leaves_and_the_host_stays_marked(cluster: Cluster) -> None:
    moved = cluster.run(cluster.begin("h1"))
    assert {order.vm_id for order in moved} == {"a", "b", "c"}
    assert all(order.destination in {"h2", "h3"} for order in moved)
    task = cluster.core.tasks["t"]
    assert task.ended
    assert all(vm.error is None for vm in task.vms.values())
    host = cluster.registry.hosts["h1"]
    assert host.maintenance
    assert host.drain_until_ms == 0
    assert set(host.evacuated) == {"a", "b", "c"}


def test_few_moves_at_a_time_touch_one_host(cluster: Cluster) -> None:
    open_orders = orders(cluster.begin("h1"))
    assert len(open_orders) == PER_HOST
    assert none(OrderMove, cluster.tick(10))


def test_a_vm_that_fits_nowhere_is_named(cluster: Cluster) -> None:
    for number in range(7):
        cluster.vm(f"x{number}", "h2" if number < 3 else "h3")
    answer = only(AnswerDrain, cluster.drain("h1", plan_only=True))
    assert answer.view is not None
    assert {stay.vm for stay in answer.view.stays} == {"name-a", "name-b", "name-c"}
    assert answer.view.emptied == []
    effects = cluster.begin("h1")
    assert orders(effects) == []
    task = cluster.core.tasks["t"]
    assert task.ended
    assert {vm.error is not None for vm in task.vms.values()} == {True}
    assert cluster.registry.hosts["h1"].maintenance, "it takes no VM all the same"


def test_with_a_deadline_a_drain_waits_for_room(cluster: Cluster) -> None:
    fillers = [cluster.vm(f"x{number}", "h2" if number < 3 else "h3") for number in range(7)]
    assert orders(cluster.begin("h1", deadline_s=60)) == []
    for filler in fillers:
        cluster.registry.remove_vm(filler)
    moved = cluster.run(cluster.tick(6))
    assert {order.vm_id for order in moved} == {"a", "b", "c"}
    assert cluster.core.tasks["t"].ended


def test_after_the_deadline_no_move_begins(cluster: Cluster) -> None:
    first, second = orders(cluster.begin("h1", deadline_s=10))
    cluster.now_s += 11
    assert orders(cluster.arrive(first)) == []
    assert not cluster.core.tasks["t"].ended, "a move is still under way"
    cluster.arrive(second)
    task = cluster.core.tasks["t"]
    assert task.ended
    left = [vm.name for vm in task.vms.values() if vm.error is not None]
    assert len(left) == 1


def test_a_move_that_fails_is_tried_again_and_holds_up_nothing(cluster: Cluster) -> None:
    todo = orders(cluster.begin("h1"))
    failures = 0
    while todo:
        order = todo.pop(0)
        if order.vm_id == "a":
            failures += 1
            todo += orders(cluster.fail(order))
        else:
            todo += orders(cluster.arrive(order))
        todo += orders(cluster.tick(6))
    assert failures == MAX_TRIES
    task = cluster.core.tasks["t"]
    assert task.ended
    assert {vm_id for vm_id, vm in task.vms.items() if vm.error is not None} == {"a"}
    error = task.vms["a"].error
    assert error is not None
    assert error.message == BROKEN.message


def test_what_does_not_run_stays(cluster: Cluster) -> None:
    cluster.registry.vms["a"].state = VmState.STOPPED
    cluster.registry.vms["b"].state = VmState.PAUSED
    answer = only(AnswerDrain, cluster.drain("h1", plan_only=True))
    assert answer.view is not None
    assert [move.vm for move in answer.view.moves] == ["name-c"]
    assert [stay.vm for stay in answer.view.stays] == ["name-b"]
    assert "paused" in answer.view.stays[0].reason


def test_where_a_vm_was_to_start_does_not_keep_it_there(cluster: Cluster) -> None:
    cluster.registry.vms["a"].pin_host = "h1"
    answer = only(AnswerDrain, cluster.drain("h1", plan_only=True))
    assert answer.view is not None
    assert {move.vm for move in answer.view.moves} == {"name-a", "name-b", "name-c"}
    assert answer.view.stays == []


def test_a_host_out_of_reach_is_refused(cluster: Cluster) -> None:
    cluster.registry.hosts["h1"].leave(0.0)
    answer = only(AnswerDrain, cluster.drain("h1"))
    assert answer.error is not None
    assert answer.error.message == "name-h1 is out of reach: only a host that is up can be drained"
    cluster.registry.hosts["h1"].state = HostPower.GOING_DOWN
    answer = only(AnswerDrain, cluster.drain("h1", plan_only=True))
    assert answer.error is not None
    assert answer.error.message == "name-h1 is going down: only a host that is up can be drained"
    assert not cluster.registry.hosts["h1"].maintenance


def test_one_drain_of_a_host_at_a_time(cluster: Cluster) -> None:
    cluster.begin("h1")
    answer = only(AnswerDrain, cluster.drain("h1", task_id="t2"))
    assert answer.error is not None
    assert "under way" in answer.error.message


def test_a_host_given_back_gets_its_vms_if_asked(cluster: Cluster) -> None:
    cluster.run(cluster.begin("h1"))
    asked = UndrainAsked(2, "back", ("h1",), True, 0)
    record = only(RecordMaintenance, cluster.feed(asked))
    assert not cluster.registry.hosts["h1"].maintenance
    moved = cluster.run(cluster.feed(MaintenanceWritten(tuple(record.host_ids), 0)))
    assert {order.vm_id for order in moved} == {"a", "b", "c"}
    assert {order.destination for order in moved} == {"h1"}
    assert cluster.core.tasks["back"].ended
    assert cluster.registry.hosts["h1"].evacuated == ()


def test_a_host_given_back_without_more_stays_empty(cluster: Cluster) -> None:
    cluster.run(cluster.begin("h1"))
    asked = UndrainAsked(2, "back", ("h1",), False, 0)
    cluster.feed(asked)
    effects = cluster.feed(MaintenanceWritten(("h1",), 0))
    assert orders(effects) == []
    assert cluster.registry.hosts["h1"].evacuated == ()


def test_giving_back_ends_a_drain_under_way(cluster: Cluster) -> None:
    first, _ = orders(cluster.begin("h1"))
    cluster.feed(UndrainAsked(2, "back", ("h1",), False, 0))
    assert cluster.core.tasks["t"].ended
    assert orders(cluster.arrive(first)) == []
    assert orders(cluster.tick(10)) == []


def test_giving_back_what_nobody_took_is_refused(cluster: Cluster) -> None:
    effects = cluster.feed(UndrainAsked(2, "back", ("h1",), False, 0))
    answer = only(AnswerDrain, effects)
    assert answer.error is not None
    assert "maintenance" in answer.error.message


def test_a_new_leader_goes_on(cluster: Cluster) -> None:
    cluster.begin("h1")
    record = cluster.registry.hosts["h1"].record()
    later = Cluster("h2", "h3")
    later.registry.hosts["h1"] = HostEntry.of_record(record, 0.0, 0.0)
    for vm_id in "abc":
        later.vm(vm_id, "h1")
    assert orders(later.tick()) == [], "the host has not joined yet"
    later.registry.hosts["h1"].join(host_of("h1"), "gm1", 2, later.now_s)
    moved = later.run(later.tick(6))
    assert {order.vm_id for order in moved} == {"a", "b", "c"}


def test_nothing_is_put_on_another_host_in_maintenance(cluster: Cluster) -> None:
    cluster.registry.hosts["h3"].maintenance = True
    moved = cluster.run(cluster.begin("h1"))
    assert {order.destination for order in moved} == {"h2"}
    assert len(cluster.core.tasks["t"].vms) == 3


def test_a_plan_that_was_not_made_changes_nothing(cluster: Cluster) -> None:
    [effect] = cluster.core.handle(DrainAsked(1, "t", ("h1",), 0.0, False, 0), cluster.now_s)
    assert isinstance(effect, MakePlan)
    late = ErrorReport("timed_out", "planning took too long")
    effects = cluster.feed(PlanMade(effect.number, None, 0, late))
    assert only(AnswerDrain, effects).error == late
    assert not cluster.registry.hosts["h1"].maintenance


def test_while_a_wave_is_planned_nothing_else_is(cluster: Cluster) -> None:
    record = only(RecordMaintenance, cluster.drain("h1"))
    effects = cluster.core.handle(MaintenanceWritten(record.host_ids, 0), cluster.now_s)
    planning = only(MakePlan, effects)
    cluster.now_s += 10
    assert cluster.core.handle(DrainTicked(0, True), cluster.now_s) == []
    answer = drain(planning.snapshot, planning.hosts, planning.policy)
    assert len(orders(cluster.feed(PlanMade(planning.number, answer, 0)))) == PER_HOST


def test_a_drain_is_a_decision_with_all_that_replays_it(cluster: Cluster) -> None:
    cluster.registry.vms["c"].state = VmState.PAUSED
    record = only(RecordMaintenance, cluster.drain("h1"))
    effects = cluster.feed(MaintenanceWritten(record.host_ids, 0))
    began = only(Decided, effects)
    assert (began.kind, began.state) == (DecisionKind.DRAIN, DecisionState.RUNNING)
    assert began.subjects == ("h1",)
    assert "a person wants" in began.reason
    assert any(line.startswith("migrate name-a from") for line in began.actions)
    assert any(line.startswith("name-c stays") for line in began.alternatives)
    recorded = dump.load(zlib.decompress(began.inputs).decode())
    assert recorded.placement is not None
    assert (recorded.decide().placement == recorded.placement).all()
    seen: list[DrainEffect] = []
    while todo := orders(effects):
        effects = [effect for order in todo for effect in cluster.arrive(order)]
        seen += effects
    ended = only(Decided, seen)
    assert (ended.key, ended.state) == (began.key, DecisionState.PARTLY)
    assert "2 of 3 VMs moved away; name-c stays" in ended.outcome


def test_what_no_host_takes_has_a_sleeper_woken_and_waits_for_it() -> None:
    cluster = Cluster("h1", "h2", "h3")
    for name in "abcd":
        cluster.vm(f"h2-{name}", "h2")
    cluster.vm("a", "h1")
    sleeper = cluster.registry.hosts.pop("h3")
    cluster.core.can_wake = lambda vm: sleeper.description.host_id not in cluster.registry.hosts
    effects = cluster.drain("h1", plan_only=True)
    [stay] = only(AnswerDrain, effects).view.stays  # type: ignore[union-attr]
    assert stay.reason == COMES
    effects = cluster.begin("h1")
    assert only(Decided, effects).alternatives == (f"name-a stays: {COMES}",)
    assert only(WantRoom, effects).name == "VM name-a"
    assert none(RecordMaintenance, effects), "it is not over"
    effects = cluster.tick(REPLAN_S)
    assert only(WantRoom, effects).span_s > REPLAN_S, "again and again"
    cluster.registry.hosts["h3"] = sleeper
    [order] = orders(cluster.tick(REPLAN_S))
    assert (order.vm_id, order.destination) == ("a", "h3")
    assert only(Decided, cluster.arrive(order)).state is DecisionState.DONE


def test_a_drain_does_not_wait_for_ever_for_a_host_that_does_not_wake() -> None:
    cluster = Cluster("h1")
    cluster.vm("a", "h1")
    cluster.core.can_wake = lambda vm: True
    cluster.begin("h1")
    assert none(Decided, cluster.tick(WAKES_S - 1))
    ended = only(Decided, cluster.tick(REPLAN_S))
    assert ended.outcome == "0 of 1 VMs moved away; name-a stays: no host takes it"


def test_a_vm_elsewhere_that_never_moves_by_itself_is_not_pushed_on() -> None:
    """Room for ``big`` is where ``stays`` is, could that go: nobody asked to empty its host."""
    cluster = Cluster("h1", "h2", "h3")
    cluster.vm("big", "h1", demand=Capacity(3.0, 1024.0))
    pinned = cluster.vm("stays", "h2", demand=Capacity(2.0, 1024.0))
    cluster.vm("other", "h3", demand=Capacity(2.0, 1024.0))
    pinned.policy = VmPolicy(movable=False)
    cluster.registry.vms["other"].policy = VmPolicy(movable=False)
    answer = only(AnswerDrain, cluster.drain("h1", plan_only=True))
    assert answer.view is not None
    assert [move.vm for move in answer.view.moves] == []
    assert [stay.vm for stay in answer.view.stays] == ["name-big"]
    answer = only(AnswerDrain, cluster.drain("h2", plan_only=True))
    assert answer.view is not None
    assert [move.vm for move in answer.view.moves] == ["name-stays"], "a person empties its host"


def test_nothing_is_moved_to_a_host_that_is_being_sent_to_sleep() -> None:
    cluster = Cluster("h1", "h2", "h3")
    cluster.vm("a", "h1")
    for host_id, state in (("h2", HostPower.GOING_DOWN), ("h3", HostPower.ACTIVE)):
        cluster.registry.hosts[host_id].state = state
    answer = only(AnswerDrain, cluster.drain("h1", plan_only=True))
    assert answer.view is not None
    assert [move.target for move in answer.view.moves] == ["name-h3"]
    cluster.registry.hosts["h3"].state = HostPower.GOING_DOWN
    answer = only(AnswerDrain, cluster.drain("h1", plan_only=True))
    assert answer.view is not None
    assert [stay.vm for stay in answer.view.stays] == ["name-a"]


def test_a_vm_that_is_refused_at_once_is_not_tried_three_times_in_a_moment() -> None:
    cluster = Cluster("h1", "h2")
    cluster.vm("a", "h1")
    [order] = orders(cluster.begin("h1"))
    assert orders(cluster.fail(order)) == []
    assert orders(cluster.tick()) == []
    [order] = orders(cluster.tick(REPLAN_S))
    assert orders(cluster.arrive(order)) == []
    assert not cluster.core.is_at_work()

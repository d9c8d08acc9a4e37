"""Migrations: every row of the table, for a destination of ours and of another manager."""

import pytest

from snooze.common.errors import ErrorReport
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.vms import MigrationTicket, VmReport
from snooze.common.wire import (
    AbortIncoming,
    CommandVm,
    FinishIncoming,
    HostAnswer,
    HostJoined,
    HostOrder,
    MigrateOut,
    MoveToManager,
    OfferIssued,
    OfferVm,
    OrderDone,
    PrepareIncoming,
    TakeInventory,
    TicketIssued,
    VmOrderDone,
    VmStatus,
)
from snooze.groupmanager.manager.manager_events import (
    CloseHost,
    ManagerEffect,
    OrderHost,
    TellLeader,
)
from snooze.groupmanager.manager.migration_core import MAX_FINISHES
from tests.unit.manager.builders import (
    REFUSED,
    SMALL,
    Desk,
    answer_of,
    error_of,
    none,
    only,
    report_of,
    told,
)

TICKET = MigrationTicket("a", "uri-of-h2", token="t")
HERE, THERE = "h1", "h2"
STEPS: list[tuple[type[HostOrder], HostAnswer]] = [
    (OfferVm, OfferIssued(report_of("a"), b"offer")),
    (PrepareIncoming, TicketIssued(TICKET)),
    (MigrateOut, OrderDone()),
    (FinishIncoming, OrderDone(report_of("a"))),
]


class Journey(Desk):
    """VM ``a`` runs on h1 and is to go to h2, which is ours or another manager's."""

    def __init__(self, relayed: bool, demand: Capacity = SMALL) -> None:
        super().__init__(hosts=1 if relayed else 2)
        self.relayed = relayed
        self.demand = demand
        self.run("a", demand=demand)
        self.effects = self.command("a", VmCommand.MIGRATE, destination=THERE)

    @property
    def step(self) -> OrderHost:
        """The one order that is open now."""
        return only(OrderHost, self.effects)

    def go(self, steps: int) -> "Journey":
        """Let so many steps succeed."""
        for kind, answer in STEPS[:steps]:
            self.done(kind, answer)
        return self

    def done(self, kind: type[HostOrder], answer: HostAnswer) -> None:
        assert isinstance(self.step.order, kind)
        self.effects = self.answer(self.step, answer)

    def refused(self) -> list[ManagerEffect]:
        self.effects = self.answer(self.step, REFUSED)
        return self.effects

    def lost(self) -> list[ManagerEffect]:
        self.effects = self.unanswered(self.step)
        return self.effects

    def abort(self, answer: HostAnswer | ErrorReport, *, unknown: bool = False) -> None:
        """The destination is asked to give up, and answers."""
        assert isinstance(self.step.order, AbortIncoming)
        assert (self.step.host_id, self.step.relayed) == (THERE, self.relayed)
        if not self.relayed and THERE in self.table.hosts:
            assert self.cores(THERE) == self.demand.cpu_cores, "it may still arrive"
        self.effects = self.answer(self.step, answer, unknown=unknown)

    def look(self, *vms: VmReport) -> list[ManagerEffect]:
        """The source is asked, and says what it has."""
        assert self.step.order == TakeInventory(10, "cause", "a")
        assert self.step.host_id == HERE
        self.effects = self.inventory(self.step, *vms)
        return self.effects

    def failed(self, error: ErrorReport, state: VmState = VmState.RUNNING) -> bool:
        """Whether it is over, with the VM at the source and room reserved there only."""
        assert error_of(self.effects) == error
        assert told(self.effects)[-1].state is state
        assert self.vm("a").host_id == HERE
        assert self.state("a") is state
        assert not self.core.migrations.moves("a")
        assert not self.core.migrations.touch(HERE)
        if not self.relayed:
            assert self.cores(THERE) == 0.0
        return self.cores(HERE) == (self.demand.cpu_cores if state is not VmState.STOPPED else 0.0)


@pytest.fixture(params=[False, True], ids=["local", "relayed"])
def journey(request: pytest.FixtureRequest) -> Journey:
    return Journey(bool(request.param))


NO_ANSWER = ErrorReport("remote_timeout", "no answer")

# ---------------------------------------------------------------- the way of a success


def test_step_by_step_to_the_destination(journey: Journey) -> None:
    assert told(journey.effects)[0].state is VmState.MIGRATING
    epoch = 0 if journey.relayed else 10
    expected: list[tuple[HostOrder, str, bool]] = [
        (OfferVm(10, "cause", "a"), HERE, False),
        (PrepareIncoming(epoch, "cause", report_of("a"), b"offer"), THERE, journey.relayed),
        (MigrateOut(10, "cause", "a", TICKET), HERE, False),
        (FinishIncoming(epoch, "cause", "a", TICKET), THERE, journey.relayed),
    ]
    for (order, host_id, relayed), (kind, answer) in zip(expected, STEPS, strict=True):
        step = journey.step
        assert (step.order, step.host_id, step.relayed) == (order, host_id, relayed)
        assert journey.cores(HERE) == 1.0
        if not journey.relayed:
            assert journey.cores(THERE) == 1.0, "room on both hosts"
        journey.done(kind, answer)
    done = answer_of(journey.effects)
    assert isinstance(done, VmOrderDone)
    assert (done.status.state, done.status.host_id) == (VmState.RUNNING, THERE)
    assert journey.cores(HERE) == 0.0
    assert not journey.core.migrations.moves("a")
    if journey.relayed:
        assert "a" not in journey.table.vms, "it is the other manager's"
        assert told(journey.effects) == []
    else:
        assert journey.vm("a").host_id == THERE
        assert journey.cores(THERE) == 1.0
        assert told(journey.effects)[0].host_id == THERE


# ---------------------------------------------------------------- every row, refused and lost


def test_offer_refused(journey: Journey) -> None:
    journey.refused()
    assert journey.failed(REFUSED)


def test_offer_not_answered(journey: Journey) -> None:
    journey.lost()
    assert journey.failed(NO_ANSWER)


def test_prepare_refused(journey: Journey) -> None:
    journey.go(1).refused()
    assert journey.failed(REFUSED)


def test_prepare_not_answered(journey: Journey) -> None:
    journey.go(1).lost()
    assert isinstance(journey.step.order, AbortIncoming)
    assert journey.step.order.ticket is None
    journey.abort(OrderDone())
    journey.look(report_of("a"))
    assert journey.failed(NO_ANSWER)


@pytest.mark.parametrize("is_answered", [True, False])
@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.STOPPED, VmState.MIGRATING])
def test_move_failed_and_the_source_has_it(
    journey: Journey, state: VmState, is_answered: bool
) -> None:
    journey.go(2)
    journey.refused() if is_answered else journey.lost()
    assert isinstance(journey.step.order, AbortIncoming)
    assert journey.step.order.ticket == TICKET
    journey.abort(OrderDone())
    journey.look(report_of("other"), report_of("a", state))
    assert journey.failed(REFUSED if is_answered else NO_ANSWER, state)


@pytest.mark.parametrize("steps", [2, 3])
def test_it_has_arrived_after_all(journey: Journey, steps: int) -> None:
    journey.go(steps).refused()
    journey.abort(OrderDone(report_of("a")))
    done = answer_of(journey.effects)
    assert isinstance(done, VmOrderDone)
    assert done.status.host_id == THERE
    assert journey.cores(HERE) == 0.0
    if not journey.relayed:
        assert journey.vm("a").host_id == THERE


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize(
    ("answer", "unknown"), [(OrderDone(), False), (REFUSED, False), (NO_ANSWER, True)]
)
def test_nobody_has_it(
    journey: Journey, steps: int, answer: HostAnswer | ErrorReport, unknown: bool
) -> None:
    journey.go(steps).refused()
    journey.abort(answer, unknown=unknown)
    effects = journey.look(report_of("other"))
    assert error_of(effects) == REFUSED
    status = told(effects)[0]
    assert (status.state, status.host_id) == (VmState.UNREACHABLE, "")
    assert "lost between h1 and h2" in status.reason
    assert "a" not in journey.table.vms
    assert journey.cores(HERE) == 0.0
    assert not journey.core.migrations.moves("a")


@pytest.mark.parametrize("is_answered", [True, False])
def test_the_source_does_not_say_what_it_has(journey: Journey, is_answered: bool) -> None:
    journey.go(3).refused()
    journey.abort(OrderDone())
    effects = journey.refused() if is_answered else journey.lost()
    assert error_of(effects) == REFUSED
    assert journey.state("a") is VmState.UNREACHABLE
    assert journey.cores(HERE) == 1.0, "it may still be there"
    journey.notice(HERE, report_of("a"))
    assert journey.state("a") is VmState.RUNNING


def test_finish_is_tried_again_a_bounded_number_of_times(journey: Journey) -> None:
    journey.go(3)
    for _ in range(MAX_FINISHES - 1):
        journey.lost()
        assert isinstance(journey.step.order, FinishIncoming)
    journey.lost()
    assert isinstance(journey.step.order, AbortIncoming)


def test_finish_answered_at_the_second_try(journey: Journey) -> None:
    journey.go(3).lost()
    journey.done(*STEPS[3])
    assert isinstance(answer_of(journey.effects), VmOrderDone)


# ---------------------------------------------------------------- hosts lost on the way


def test_the_source_is_lost_before_it_offers(journey: Journey) -> None:
    assert error_of(journey.lose(HERE)).code == "remote_failed"
    assert "a" not in journey.table.vms


def test_the_source_is_lost_while_the_destination_prepares(journey: Journey) -> None:
    journey.go(1)
    assert none(OrderHost, journey.lose(HERE))
    journey.done(*STEPS[1])
    journey.refused()  # "it has just left"
    journey.abort(OrderDone())
    assert error_of(journey.effects) == REFUSED
    (status,) = told(journey.effects)
    assert (status.host_id, status.state) == (HERE, VmState.UNREACHABLE), "there or nowhere"


@pytest.mark.parametrize("arrives", [False, True])
def test_the_source_is_lost_while_the_vm_moves(journey: Journey, arrives: bool) -> None:
    journey.go(2)
    journey.effects = journey.lose(HERE)
    journey.abort(OrderDone(report_of("a") if arrives else None))
    assert isinstance(answer_of(journey.effects), VmOrderDone if arrives else ErrorReport)
    assert ("a" in journey.table.vms) is (arrives and not journey.relayed)


def test_the_source_is_lost_when_the_vm_has_left(journey: Journey) -> None:
    journey.go(3)
    assert none(OrderHost, journey.lose(HERE))
    journey.done(*STEPS[3])
    assert isinstance(answer_of(journey.effects), VmOrderDone)


def test_our_destination_is_lost_before_it_is_asked() -> None:
    journey = Journey(relayed=False)
    journey.lose(THERE)
    journey.done(*STEPS[0])
    journey.refused()
    assert journey.state("a") is VmState.RUNNING


def test_our_destination_is_lost_while_it_prepares() -> None:
    journey = Journey(relayed=False).go(1)
    journey.effects = journey.lose(THERE)
    journey.abort(REFUSED)  # "it has just left"
    journey.look(report_of("a"))
    assert error_of(journey.effects).code == "remote_failed"
    assert journey.state("a") is VmState.RUNNING


def test_our_destination_is_lost_while_the_vm_moves() -> None:
    journey = Journey(relayed=False).go(2)
    assert none(OrderHost, journey.lose(THERE))
    journey.refused()
    journey.abort(REFUSED)
    journey.look(report_of("a"))
    assert error_of(journey.effects) == REFUSED
    assert journey.state("a") is VmState.RUNNING


def test_our_destination_is_lost_before_it_says_that_the_vm_arrived() -> None:
    journey = Journey(relayed=False).go(3)
    journey.effects = journey.lose(THERE)
    journey.refused()
    journey.abort(REFUSED)
    status = told(journey.look())[0]
    assert (status.state, status.host_id) == (VmState.UNREACHABLE, "")
    arrived = journey.join(THERE, report_of("a"), epoch=11)
    assert journey.vm("a").host_id == THERE
    assert told(arrived) == [], "the host's joining tells it"


def test_a_destination_that_joins_again_does_not_lose_more_than_it_reserved() -> None:
    journey = Journey(relayed=False).go(1)
    journey.effects = journey.join(THERE, epoch=11)
    assert journey.cores(THERE) == 0.0
    journey.effects = journey.answer(journey.step, OrderDone())
    journey.look(report_of("a"))
    assert journey.cores(THERE) == 0.0
    assert journey.state("a") is VmState.RUNNING


def test_a_source_that_joins_again_says_what_it_has() -> None:
    journey = Journey(relayed=False).go(2)
    journey.effects = journey.join(HERE, report_of("a", VmState.MIGRATING), epoch=11)
    journey.abort(OrderDone())
    journey.effects = journey.inventory(journey.step, report_of("a", VmState.MIGRATING))
    assert error_of(journey.effects).code == "remote_failed"
    assert not journey.core.migrations.moves("a")
    left = told(journey.notice(HERE, report_of("a", VmState.MIGRATING), gone=True))[0]
    assert (left.state, left.host_id) == (VmState.UNREACHABLE, "")
    arrived = told(journey.notice(THERE, report_of("a")))[0]
    assert (arrived.state, arrived.host_id) == (VmState.RUNNING, THERE)


# ---------------------------------------------------------------- what is not allowed


def test_to_the_host_it_is_on() -> None:
    desk = Desk()
    desk.run("a")
    effects = desk.command("a", VmCommand.MIGRATE, destination=HERE)
    assert error_of(effects).code == "conflict"


def test_to_a_host_without_room() -> None:
    desk = Desk()
    desk.run("a")
    desk.run("b", THERE, Capacity(3.5, 1024.0))
    effects = desk.command("a", VmCommand.MIGRATE, destination=THERE)
    assert error_of(effects).code == "no_capacity"
    assert desk.state("a") is VmState.RUNNING


def test_to_a_host_that_leaves() -> None:
    desk = Desk()
    desk.run("a")
    desk.release(THERE)
    effects = desk.command("a", VmCommand.MIGRATE, destination=THERE)
    assert error_of(effects).code == "conflict"


def test_one_migration_a_vm(journey: Journey) -> None:
    effects = journey.command("a", VmCommand.MIGRATE, destination=THERE, request_id=8)
    assert error_of(effects).code == "conflict"


def test_while_it_moves_only_the_steps_tell(journey: Journey) -> None:
    journey.go(2)
    for state, gone in ((VmState.STOPPED, False), (VmState.MIGRATING, True)):
        assert journey.notice(HERE, report_of("a", state), gone=gone) == []
    assert journey.state("a") is VmState.MIGRATING


def test_a_host_that_a_migration_touches_stays_until_it_is_over() -> None:
    for host_id in (HERE, THERE):
        journey = Journey(relayed=False)
        assert none(OrderHost, journey.release(host_id))
        effects = journey.refused()
        assert isinstance(only(OrderHost, effects).order, MoveToManager)
        assert only(OrderHost, effects).host_id == host_id


def test_a_resize_that_ends_during_a_migration_leaves_the_promise_as_it_was() -> None:
    desk = Desk()
    desk.run("a")
    resize = only(OrderHost, desk.command("a", VmCommand.RESIZE, demand=Capacity(2.0, 1024.0)))
    effects = desk.command("a", VmCommand.MIGRATE, destination=THERE)
    assert desk.cores(THERE) == 2.0
    desk.answer(resize, REFUSED)
    desk.answer(only(OrderHost, effects), REFUSED)
    assert (desk.cores(HERE), desk.cores(THERE)) == (1.0, 0.0)


def test_room_is_kept_at_a_destination_that_joins_anew_while_its_manager_lives(
    journey: Journey,
) -> None:
    journey.go(2)
    journey.join(THERE, epoch=11, arriving=[report_of("a")])
    assert journey.cores(THERE) == 1.0


# ---------------------------------------------------------------- a source that joins anew


def test_a_source_that_joins_anew_while_the_destination_prepares(journey: Journey) -> None:
    """Found by ``snooze-sim replay 270``: the VM that had moved was destroyed as a copy."""
    journey.go(1)
    assert none(OrderHost, journey.lose(HERE))
    prepare = journey.step
    joined = journey.join(HERE, report_of("a"), epoch=11)
    assert journey.state("a") is VmState.MIGRATING, "its migration goes on"
    assert [vm.state for vm in hosts_told(joined)] == [VmState.MIGRATING]
    journey.effects = journey.answer(prepare, TicketIssued(TICKET))
    assert journey.step.order == MigrateOut(11, "cause", "a", TICKET)
    for kind, answer in STEPS[2:]:
        journey.done(kind, answer)
    done = answer_of(journey.effects)
    assert isinstance(done, VmOrderDone)
    assert done.status.host_id == THERE
    assert journey.cores(HERE) == 0.0
    if not journey.relayed:
        assert journey.vm("a").host_id == THERE
        assert told(journey.effects)[0].host_id == THERE


def test_a_source_that_joins_anew_and_whose_destination_refuses(journey: Journey) -> None:
    journey.go(1)
    prepare = journey.step
    journey.lose(HERE)
    journey.join(HERE, report_of("a", VmState.PAUSED), epoch=11)
    journey.effects = journey.answer(prepare, REFUSED)
    assert journey.failed(REFUSED, VmState.PAUSED)


def hosts_told(effects: list[ManagerEffect]) -> list[VmStatus]:
    """What the leader is told of the VMs of hosts that joined."""
    notices = [effect.notice for effect in effects if isinstance(effect, TellLeader)]
    return [vm for notice in notices if isinstance(notice, HostJoined) for vm in notice.state.vms]


# ---------------------------------------------------------------- stopped half-way


@pytest.mark.parametrize("answer", [OrderDone(report_of("a")), REFUSED])
def test_a_guest_that_is_left_paused_goes_on_where_it_was(
    journey: Journey, answer: HostAnswer | ErrorReport
) -> None:
    journey.go(2).refused()
    journey.abort(OrderDone())
    journey.look(report_of("a", VmState.PAUSED))
    assert journey.step.order == CommandVm(10, "cause", "a", VmCommand.RESUME)
    assert journey.state("a") is VmState.MIGRATING
    journey.effects = journey.answer(journey.step, answer)
    went_on = isinstance(answer, OrderDone)
    assert journey.failed(REFUSED, VmState.RUNNING if went_on else VmState.PAUSED)


def test_a_guest_that_may_run_at_the_destination_stays_paused(journey: Journey) -> None:
    journey.go(2).refused()
    journey.abort(NO_ANSWER, unknown=True)
    journey.look(report_of("a", VmState.PAUSED))
    assert journey.failed(REFUSED, VmState.PAUSED)


# ---------------------------------------------------------------- a VM that is not there


def test_a_source_that_does_not_have_it_is_looked_at(journey: Journey) -> None:
    """Found by chaos, seed 3: it was told to run again, for ever."""
    missing = ErrorReport("not_found", "no VM a on this host")
    journey.effects = journey.answer(journey.step, missing)
    journey.look()
    assert error_of(journey.effects) == missing
    assert (told(journey.effects)[-1].state, told(journey.effects)[-1].host_id) == (
        VmState.UNREACHABLE,
        "",
    )
    assert "a" not in journey.table.vms


def test_what_the_source_says_late_is_not_forgotten(journey: Journey) -> None:
    """Found in virtual time, seed 40191: the guest had switched itself off."""
    journey.go(2).refused()
    journey.abort(OrderDone())
    journey.notice(HERE, report_of("a", VmState.STOPPED))
    journey.look(report_of("a"))
    assert journey.state("a") is VmState.MIGRATING, "it is looked at once more"
    journey.look(report_of("a", VmState.STOPPED))
    assert journey.failed(REFUSED, VmState.STOPPED)


@pytest.mark.parametrize("taken_back", [True, False])
def test_a_source_that_does_not_answer_has_it_only_if_the_destination_does_not(
    taken_back: bool,
) -> None:
    """Found in virtual time, seed 40509: it had arrived, and was taken for destroyed."""
    journey = Journey(relayed=True).go(2)
    journey.refused()
    if taken_back:
        journey.abort(OrderDone())
    else:
        journey.abort(NO_ANSWER, unknown=True)
    journey.effects = journey.unanswered(journey.step)
    [status] = told(journey.effects)
    assert (status.state, status.host_id) == (VmState.UNREACHABLE, HERE if taken_back else "")
    assert only(CloseHost, journey.effects).host_id == HERE, "it says so when it joins again"


@pytest.mark.parametrize("is_there", [True, False])
def test_that_it_is_gone_is_not_forgotten_while_it_moves(journey: Journey, is_there: bool) -> None:
    journey.go(1)
    step = journey.step
    assert journey.notice(HERE, report_of("a"), gone=True) == []
    journey.effects = journey.answer(step, REFUSED)
    if is_there:
        journey.look(report_of("a"))
        assert journey.failed(REFUSED)
    else:
        journey.look()
        assert error_of(journey.effects) == REFUSED
        assert "a" not in journey.table.vms

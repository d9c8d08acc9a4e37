# pyright: reportPrivateUsage=false
"""The steps of a migration, as source and destination carry them out."""

import asyncio
from dataclasses import dataclass

import msgspec
import pytest

from snooze.common.errors import (
    ExecutionError,
    InvalidRequest,
    StaleEpoch,
)
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import MigrationTicket
from snooze.common.wire import (
    AbortIncoming,
    FinishIncoming,
    MigrateOut,
    MigrationMoved,
    OfferIssued,
    OfferVm,
    OrderDone,
    PrepareIncoming,
    TicketIssued,
)
from snooze.localcontroller.hypervisor.port import MigrationOffer
from tests.unit.agent.rig import (
    A,
    MakeRig,
    Rig,
)


@dataclass
class Pair:
    """VM ``a`` runs at the source."""

    source: Rig
    destination: Rig

    async def offer(self) -> OfferIssued:
        offer = await self.source.orders.carry_out(OfferVm(1, "m", A))
        assert isinstance(offer, OfferIssued)
        return offer

    async def prepare(self) -> MigrationTicket:
        offer = await self.offer()
        order = PrepareIncoming(1, "m", offer.report, offer.offer)
        answer = await self.destination.orders.carry_out(order)
        assert isinstance(answer, TicketIssued)
        return answer.ticket

    async def move(self, ticket: MigrationTicket) -> OrderDone:
        return await self.source.run(MigrateOut(1, "m", A, ticket))

    async def finish(self, ticket: MigrationTicket) -> OrderDone:
        return await self.destination.run(FinishIncoming(1, "m", A, ticket))


@pytest.fixture
async def pair(make_rig: MakeRig) -> Pair:
    pair = Pair(await make_rig("one"), await make_rig("two"))
    await pair.source.start()
    return pair


async def test_a_vm_moves_and_each_side_tells_its_part(pair: Pair) -> None:
    ticket = await pair.prepare()
    await pair.move(ticket)
    report = (await pair.finish(ticket)).report
    assert report is not None
    assert report.state is VmState.RUNNING
    await pair.source.quiet()
    assert pair.source.changes == [(A, VmState.MIGRATING, True)]
    assert any(isinstance(notice, MigrationMoved) for notice in pair.source.told)
    assert pair.destination.changes == []
    assert (pair.source.orders.vm_ids, pair.destination.orders.vm_ids) == ([], [A])


async def test_a_move_that_fails_tells_how_the_vm_stayed(pair: Pair) -> None:
    ticket = await pair.prepare()
    pair.source.hypervisor.host.fail("migrate_out", ExecutionError("too much memory"))
    with pytest.raises(ExecutionError):
        await pair.move(ticket)
    await pair.source.quiet()
    assert pair.source.changes == [(A, VmState.RUNNING, False)]


async def test_an_arrival_that_nobody_finishes_is_told_by_looking_until_somebody_does(
    pair: Pair,
) -> None:
    ticket = await pair.prepare()
    await pair.move(ticket)
    await pair.destination.quiet()
    assert pair.destination.changes == []
    for _ in range(2):
        pair.destination.told.clear()
        await pair.destination.orders.reconcile()
        assert pair.destination.changes == [(A, VmState.RUNNING, False)]
    await pair.finish(ticket)
    pair.destination.told.clear()
    await pair.destination.orders.reconcile()
    assert pair.destination.changes == []


async def test_an_arrival_is_part_of_the_next_introduction(pair: Pair) -> None:
    ticket = await pair.prepare()
    await pair.move(ticket)
    assert [r.vm_id for r in await pair.destination.join(2)] == [A]
    pair.destination.hypervisor.host.guest_powers_off(A)
    await pair.destination.quiet()
    assert pair.destination.changes == [(A, VmState.STOPPED, False)]


@pytest.mark.parametrize("with_ticket", [True, False])
async def test_an_abort_frees_what_was_prepared_even_if_its_answer_was_lost(
    pair: Pair, with_ticket: bool
) -> None:
    ticket = await pair.prepare()
    host = pair.destination.hypervisor.host
    assert host.incoming
    abort = AbortIncoming(1, "m", A, ticket if with_ticket else None)
    for _ in range(2):
        assert (await pair.destination.run(abort)).report is None
    assert not host.incoming


async def test_an_abort_that_comes_too_late_says_so(pair: Pair) -> None:
    ticket = await pair.prepare()
    await pair.move(ticket)
    report = (await pair.destination.run(AbortIncoming(1, "m", A, ticket))).report
    assert report is not None
    assert report.state is VmState.RUNNING


async def test_an_abort_waits_for_a_prepare_under_way(pair: Pair) -> None:
    offer = await pair.offer()
    prepare = PrepareIncoming(1, "m", offer.report, offer.offer)
    preparing = await pair.destination.held("prepare_incoming", prepare)
    abort = asyncio.ensure_future(pair.destination.run(AbortIncoming(1, "m", A)))
    await pair.destination.quiet()
    assert not abort.done()
    pair.destination.go_on()
    await preparing
    await abort
    assert not pair.destination.hypervisor.host.incoming


async def test_a_refused_prepare_leaves_nothing_behind(pair: Pair) -> None:
    offer = await pair.offer()
    with pytest.raises(InvalidRequest):
        await pair.destination.orders.carry_out(PrepareIncoming(1, "m", offer.report, b"\xff"))
    pair.destination.hypervisor.host.fail("prepare_incoming", ExecutionError("no space"))
    with pytest.raises(ExecutionError):
        await pair.prepare()
    await pair.prepare()
    with pytest.raises(ExecutionError):
        await pair.finish(MigrationTicket(A, "simulated://two"))


async def test_the_offer_is_the_drivers_and_opaque(pair: Pair) -> None:
    offer = await pair.offer()
    assert msgspec.msgpack.decode(offer.offer, type=MigrationOffer).report == offer.report


async def test_a_move_that_waited_for_others_until_the_host_was_assigned_anew_is_refused(
    pair: Pair,
) -> None:
    ticket = await pair.prepare()
    pair.source.orders._migrating = busy = asyncio.Semaphore(0)
    move = asyncio.ensure_future(pair.move(ticket))
    await pair.source.quiet()
    assert [r.state for r in await pair.source.join(2)] == [VmState.RUNNING]
    busy.release()
    with pytest.raises(StaleEpoch, match="assigned anew"):
        await move
    assert list(pair.source.hypervisor.host.vms) == [A], "where the next leader knows it to be"

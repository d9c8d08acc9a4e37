"""Carrying out orders on the simulated hypervisor: to their end, told to whoever is the manager."""

import asyncio

import msgspec
import pytest

from snooze.common.errors import (
    Conflict,
    ExecutionError,
    InvalidRequest,
    NotFound,
    RemoteError,
    RemoteTimeout,
    SnoozeError,
    StaleEpoch,
)
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.vms import VmReport, VmSpec, being_started
from snooze.common.wire import (
    Address,
    Assignment,
    CommandVm,
    DiscardVm,
    HostOrder,
    Inventory,
    ManagerDescription,
    MoveToManager,
    ResizeVm,
    TakeInventory,
    VmChanged,
)
from snooze.localcontroller import orders
from snooze.localcontroller.hypervisor.port import ChangeKind, VmChange
from snooze.localcontroller.hypervisor.simulated import SimulatedHypervisor
from snooze.localcontroller.hypervisor.simulated_world import SimulatedVm
from snooze.localcontroller.orders import MAX_LOOKS
from tests.unit.agent.rig import (
    SMALL,
    A,
    B,
    GatedHypervisor,
    Rig,
    command_of,
    spec_of,
    start_of,
)

# ---------------------------------------------------------------- orders


async def test_a_start_is_answered_by_the_vm(rig: Rig) -> None:
    report = (await rig.start()).report
    assert report is not None
    assert (report.vm_id, report.state, report.ip_address) == (A, VmState.RUNNING, "10.0.0.2")
    assert rig.orders.vm_ids == [A]


@pytest.mark.parametrize(
    ("command", "state"),
    [
        (VmCommand.SUSPEND, VmState.PAUSED),
        (VmCommand.RESUME, VmState.RUNNING),
        (VmCommand.REBOOT, VmState.RUNNING),
        (VmCommand.SHUTDOWN, VmState.STOPPED),
    ],
)
async def test_commands_twice(rig: Rig, command: VmCommand, state: VmState) -> None:
    await rig.start()
    for _ in range(2):
        report = (await rig.run(command_of(command))).report
        assert report is not None
        assert report.state is state


async def test_destroyed_and_started_again(rig: Rig) -> None:
    await rig.start()
    await rig.run(command_of(VmCommand.SHUTDOWN))
    report = (await rig.run(command_of(VmCommand.START))).report
    assert report is not None
    assert report.state is VmState.RUNNING
    for _ in range(2):
        assert (await rig.run(command_of(VmCommand.DESTROY))).report is None
    assert rig.orders.vm_ids == []
    with pytest.raises(NotFound):
        await rig.run(command_of(VmCommand.SUSPEND))


async def test_a_resize_keeps_the_network_asked_for(rig: Rig) -> None:
    await rig.start()
    size = Capacity(1.0, 65536.0, 7.0, 8.0)
    report = (await rig.run(ResizeVm(1, "task", A, size))).report
    assert report is not None
    assert report.demand == size
    rig.told.clear()
    await rig.orders.reconcile()
    assert rig.changes == [], "the hypervisor has noted it: it said 0 at the next look"


@pytest.mark.parametrize("command", [VmCommand.RESIZE, VmCommand.MIGRATE])
async def test_what_has_an_order_of_its_own_is_no_command(rig: Rig, command: VmCommand) -> None:
    with pytest.raises(InvalidRequest):
        await rig.run(command_of(command))


async def test_moving_to_another_manager_is_the_agents(rig: Rig) -> None:
    where = Address("gm2", 1)
    manager = ManagerDescription("gm2", "gm2", where, where)
    with pytest.raises(InvalidRequest):
        await rig.orders.carry_out(MoveToManager(1, "", Assignment(manager, 2)))


async def test_one_order_at_a_time_per_vm_and_others_meanwhile(rig: Rig) -> None:
    await rig.start(B)
    starting = await rig.held("start", start_of(A))
    destroying = asyncio.ensure_future(rig.run(command_of(VmCommand.DESTROY)))
    await rig.run(CommandVm(1, "task", B, VmCommand.SUSPEND))
    await rig.quiet()
    assert not destroying.done()
    rig.go_on()
    await starting
    await destroying
    assert rig.orders.vm_ids == [B]


async def test_who_asks_about_a_vm_is_told_after_the_orders_before(rig: Rig) -> None:
    await rig.start()
    suspending = await rig.held("suspend", command_of(VmCommand.SUSPEND))
    asking = asyncio.ensure_future(rig.orders.carry_out(TakeInventory(1, "", A)))
    await rig.quiet()
    assert not asking.done()
    rig.go_on()
    inventory = await asking
    assert isinstance(inventory, Inventory)
    assert [r.state for r in inventory.vms] == [VmState.PAUSED]
    await suspending


# ---------------------------------------------------------------- rule 2: to the end


async def test_an_order_outlives_its_link(rig: Rig) -> None:
    task = await rig.held("start", start_of())
    task.cancel()
    await rig.join(2)
    rig.go_on()
    await rig.quiet()
    assert rig.changes == [(A, VmState.RUNNING, False)]
    assert rig.orders.vm_ids == [A]


async def test_a_start_under_way_is_part_of_the_inventory(rig: Rig) -> None:
    task = await rig.held("start", start_of())
    assert [(r.vm_id, r.state) for r in await rig.orders.inventory()] == [(A, VmState.STARTING)]
    inventory = await rig.orders.carry_out(TakeInventory(1, ""))
    assert isinstance(inventory, Inventory)
    assert [(r.vm_id, r.state) for r in inventory.vms] == [(A, VmState.STARTING)]
    rig.go_on()
    await task


@pytest.mark.parametrize(
    ("generation", "told"), [(1, VmState.STARTING), (0, VmState.STOPPED)], ids=["it", "a copy"]
)
async def test_what_is_defined_and_not_on_yet_is_starting(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, generation: int, told: VmState
) -> None:
    """libvirt lists it as off; its submission would end with that. A copy of before is off."""
    off = msgspec.structs.replace(
        being_started(spec_of(A)), state=VmState.STOPPED, generation=generation
    )
    task = await rig.held("start", start_of())

    async def listed(self: SimulatedHypervisor) -> list[VmReport]:
        return [off]

    with monkeypatch.context() as patch:
        patch.setattr(GatedHypervisor, "inventory", listed)
        assert [r.state for r in await rig.join(2)] == [told]
    rig.go_on()
    await task
    assert rig.changes[-1] == (A, VmState.RUNNING, False)


async def test_a_start_ordered_twice_is_under_way_until_the_second_has_ended(rig: Rig) -> None:
    rig.hypervisor.host.fail("start", ExecutionError("no disk"))
    first = await rig.held("start", start_of())
    second = asyncio.ensure_future(rig.orders.carry_out(start_of()))
    await rig.quiet()
    rig.gate.arrived.clear()
    rig.gate.open()
    with pytest.raises(ExecutionError):
        await first
    await rig.gate.arrived.wait()
    assert [r.vm_id for r in await rig.orders.inventory()] == [A]
    rig.go_on()
    await second


async def test_a_start_that_fails_after_its_manager_changed_is_told(rig: Rig) -> None:
    rig.hypervisor.host.fail("start", ExecutionError("no disk"))
    task = await rig.held("start", start_of())
    await rig.join(2)
    rig.go_on()
    with pytest.raises(ExecutionError):
        await task
    assert rig.changes == [(A, VmState.STARTING, True)]


class Awaited:
    """A lease that is not here yet."""

    def __init__(self) -> None:
        self.granted = asyncio.Event()

    async def require(self) -> None:
        await self.granted.wait()

    def noted(self) -> frozenset[str]:
        return frozenset()

    def mark(self, reports: list[VmReport], noted: frozenset[str] | None = None) -> list[VmReport]:
        return reports


async def test_a_lease_of_the_next_assignment_lets_no_former_order_in(rig: Rig) -> None:
    """Found in virtual time, seed 6041: it had been restarted elsewhere, and ran twice."""
    rig.orders.lease = lease = Awaited()
    former = asyncio.ensure_future(rig.orders.carry_out(start_of()))
    await rig.quiet()
    assert [report.state for report in await rig.join(2)] == [VmState.STARTING]
    lease.granted.set()
    with pytest.raises(StaleEpoch, match="assigned anew"):
        await former
    assert rig.changes == [(A, VmState.STARTING, True)]
    assert rig.hypervisor.host.vms == {}
    assert (await rig.start(epoch=2)).report is not None


@pytest.mark.parametrize("happened", [False, True])
async def test_a_start_of_which_nobody_knows_is_told_of_when_it_is_known(
    rig: Rig, happened: bool
) -> None:
    rig.hypervisor.host.fail("start", RemoteTimeout("libvirt hangs"), after=happened)
    task = await rig.held("start", start_of())
    await rig.join(2)
    rig.go_on()
    with pytest.raises(RemoteTimeout):
        await task
    await rig.quiet()
    assert all(not gone for _, _, gone in rig.changes), "it may have happened"
    if not happened:
        assert [r.state for r in await rig.orders.inventory()] == [VmState.STARTING]
    await rig.orders.reconcile()
    state, gone = (VmState.RUNNING, False) if happened else (VmState.STARTING, True)
    assert rig.changes[-1] == (A, state, gone)


async def test_a_manager_that_asks_meanwhile_hears_that_it_may_come_up(rig: Rig) -> None:
    rig.hypervisor.host.fail("start", RemoteTimeout("a disk is copied"))
    with pytest.raises(RemoteTimeout):
        await rig.start()
    assert [report.state for report in await rig.orders.listed()] == [VmState.STARTING]
    await rig.orders.reconcile()
    assert rig.changes == [(A, VmState.STARTING, True)]
    assert await rig.orders.listed() == []


@pytest.mark.parametrize(
    ("method", "order", "change"),
    [
        ("suspend", command_of(VmCommand.SUSPEND), (A, VmState.PAUSED, False)),
        ("destroy", command_of(VmCommand.DESTROY), (A, VmState.RUNNING, True)),
        (
            "resize",
            ResizeVm(1, "task", A, Capacity(1.0, 65536.0)),
            (A, VmState.RUNNING, False),
        ),
    ],
)
async def test_the_outcome_of_a_former_managers_order_is_told_to_the_next(
    rig: Rig, method: str, order: HostOrder, change: tuple[str, VmState, bool]
) -> None:
    await rig.start()
    task = await rig.held(method, order)
    await rig.join(2)
    rig.go_on()
    await task
    assert change in rig.changes


async def test_what_changes_between_the_inventory_and_the_link_is_found(rig: Rig) -> None:
    await rig.start(B)
    task = await rig.held("start", start_of())
    reports = await rig.orders.inventory()
    assert {r.vm_id: r.state for r in reports} == {A: VmState.STARTING, B: VmState.RUNNING}
    rig.go_on()
    await task  # the link is not there yet, and the epoch is the former one
    await rig.run(CommandVm(1, "task", B, VmCommand.DESTROY))
    await rig.quiet()
    rig.told.clear()
    rig.orders.epoch = 2
    await rig.orders.reconcile()
    assert sorted(rig.changes) == [(A, VmState.RUNNING, False), (B, VmState.RUNNING, True)]
    rig.told.clear()
    await rig.orders.reconcile()
    assert rig.changes == [], "once"


async def test_even_if_a_look_for_the_link_before_ends_after_the_inventory(rig: Rig) -> None:
    await rig.join(2)
    rig.hypervisor.held = frozenset({"inventory"})
    looking = asyncio.ensure_future(rig.orders.reconcile())
    await rig.gate.arrived.wait()
    task = await rig.held("start", start_of(epoch=2))
    assert [r.state for r in await rig.orders.inventory()] == [VmState.STARTING]
    rig.go_on()
    await looking
    await task  # the next link is not there yet
    await rig.quiet()
    rig.told.clear()
    rig.orders.epoch = 3
    await rig.orders.reconcile()
    assert rig.changes == [(A, VmState.RUNNING, False)]


@pytest.mark.parametrize("starts", [True, False])
async def test_a_vm_that_is_started_again_keeps_its_room_with_the_next_manager(
    rig: Rig, starts: bool
) -> None:
    """Found in virtual time, seeds 21892 and 40748: others were placed where it was to run."""
    await rig.start()
    await rig.run(command_of(VmCommand.SHUTDOWN))
    if not starts:
        rig.hypervisor.host.fail("start_again", RemoteError("it does not boot"))
    task = await rig.held("start_again", command_of(VmCommand.START))
    assert [r.state for r in await rig.orders.inventory()] == [VmState.STARTING]
    await rig.join(2)
    rig.go_on()
    if starts:
        await task
    else:
        with pytest.raises(RemoteError):
            await task
    await rig.quiet()
    state = VmState.RUNNING if starts else VmState.STOPPED
    assert rig.changes[-1] == (A, state, False)
    assert [r.state for r in await rig.orders.inventory()] == [state]


async def test_a_start_that_ends_while_the_hypervisor_is_asked_is_not_missed(rig: Rig) -> None:
    starting = await rig.held("start", start_of())
    rig.hypervisor.held = frozenset({"inventory"})
    rig.gate.arrived.clear()
    asking = asyncio.ensure_future(rig.orders.inventory())
    await rig.gate.arrived.wait()  # the hypervisor has answered: without it
    rig.go_on()
    await starting
    assert [(r.vm_id, r.state) for r in await asking] == [(A, VmState.RUNNING)]


async def test_a_vm_started_again_while_the_hypervisor_is_asked_is_not_told_as_off(
    rig: Rig,
) -> None:
    """Its room was given away until the next look (seed 142, with lists 6 s old)."""
    await rig.start()
    await rig.run(command_of(VmCommand.SHUTDOWN))
    rig.hypervisor.held = frozenset({"inventory"})
    rig.gate.arrived.clear()
    asking = asyncio.ensure_future(rig.orders.inventory())
    await rig.gate.arrived.wait()  # the hypervisor has answered: it is off
    rig.hypervisor.held = frozenset()
    await rig.run(command_of(VmCommand.START))
    rig.go_on()
    assert [(r.vm_id, r.state) for r in await asking] == [(A, VmState.RUNNING)]


async def test_an_inventory_that_never_catches_up_is_an_error(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = [await rig.held("start", start_of(f"{1:032x}"))]

    async def overtaken(self: SimulatedHypervisor) -> list[VmReport]:
        rig.gate.open()
        await under_way[-1]
        under_way.append(await rig.held("start", start_of(f"{len(under_way) + 1:032x}")))
        return []

    monkeypatch.setattr(GatedHypervisor, "inventory", overtaken)
    with pytest.raises(RemoteError, match="overtaken"):
        await rig.orders.inventory()
    assert len(under_way) == 1 + MAX_LOOKS


# ---------------------------------------------------------------- what happens by itself


async def test_what_a_guest_does_by_itself_is_told(rig: Rig) -> None:
    await rig.start()
    rig.hypervisor.host.guest_powers_off(A)
    await rig.quiet()
    assert rig.changes == [(A, VmState.STOPPED, False)]
    await rig.run(command_of(VmCommand.START))
    await rig.quiet()
    rig.told.clear()
    rig.hypervisor.host.crash(A, "panic")
    await rig.quiet()
    assert rig.changes == [(A, VmState.FAILED, False)]
    notice = rig.told[0]
    assert isinstance(notice, VmChanged)
    assert notice.report.reason == "panic"


async def test_what_an_event_says_is_gone_is_looked_for(rig: Rig) -> None:
    """Seed 142: it was about a stale copy, and came when the VM had been started here again."""
    await rig.start()
    gone = VmChange(A, "name", ChangeKind.GONE, VmState.DESTROYED)
    rig.orders.on_change(gone)
    await rig.quiet()
    assert rig.changes == [(A, VmState.RUNNING, False)]
    rig.told.clear()
    rig.hypervisor.host.drop(A)
    rig.orders.on_change(gone)
    await rig.quiet()
    assert rig.changes == [(A, VmState.RUNNING, True)]
    assert rig.orders.vm_ids == []


async def test_an_end_is_looked_for_if_the_vm_was_started_lately(rig: Rig) -> None:
    """A fenced guest had been started again: its late end gave its room away (seed 700014)."""
    await rig.start()
    rig.orders.on_change(VmChange(A, "name", ChangeKind.STOPPED, VmState.STOPPED))
    await rig.quiet()
    assert rig.changes == [(A, VmState.RUNNING, False)]
    rig.told.clear()
    rig.hypervisor.host.guest_powers_off(A)
    rig.hypervisor.host.vms[A].interrupted = True  # as libvirt has it of a crash
    await rig.quiet()
    assert rig.changes == [(A, VmState.STOPPED, False)]
    assert isinstance(rig.told[0], VmChanged)
    assert not rig.told[0].report.interrupted, "it would be started again, and crash again"


async def test_what_an_event_says_is_looked_for_until_the_hypervisor_answers(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else told of it: a VM that had been shut down was stopping for ever (seed 820035)."""
    monkeypatch.setattr(orders, "LOOK_AGAIN_S", 0.01)
    await rig.start()
    rig.hypervisor.host.fail("inventory", RemoteError("libvirtd restarts"))
    rig.hypervisor.host.guest_powers_off(A)
    await rig.quiet()
    assert rig.changes == []
    await asyncio.sleep(0.1)
    assert rig.changes == [(A, VmState.STOPPED, False)]
    assert rig.orders.under_way == 0


async def test_an_end_that_comes_while_all_is_looked_at_is_not_forgotten(rig: Rig) -> None:
    """The look cannot tell of what was touched meanwhile; the next one compares with what was."""
    rig.hypervisor.host.put(SimulatedVm(VmSpec(A, "old", SMALL), VmState.RUNNING, "", 0.0))
    await rig.join(2)
    await rig.orders.reconcile()
    rig.hypervisor.held = frozenset({"inventory"})
    rig.gate.arrived.clear()
    looking = asyncio.ensure_future(rig.orders.reconcile())
    await rig.gate.arrived.wait()
    rig.orders.on_change(VmChange(A, "old", ChangeKind.STOPPED, VmState.STOPPED))
    assert rig.changes == [(A, VmState.STOPPED, False)], "at once: it was not started lately"
    rig.go_on()
    await looking
    await rig.orders.reconcile()
    assert rig.changes == [(A, VmState.STOPPED, False), (A, VmState.RUNNING, False)]


async def test_a_domain_of_somebody_else_is_found(rig: Rig) -> None:
    spec = VmSpec("x", "theirs", SMALL)
    vm = SimulatedVm(spec, VmState.RUNNING, "<domain/>", 0.0, managed=False)
    rig.hypervisor.host.put(vm)
    await rig.orders.reconcile()
    assert rig.changes == [("x", VmState.RUNNING, False)]
    rig.hypervisor.host.drop("x")
    await rig.orders.reconcile()
    assert rig.changes[1:] == [("x", VmState.RUNNING, True)]
    rig.hypervisor.host.put(vm)
    with pytest.raises(Conflict):
        await rig.run(CommandVm(1, "", "x", VmCommand.DESTROY))


async def test_a_domain_whose_event_comes_first_is_looked_for(rig: Rig) -> None:
    spec = VmSpec("x", "theirs", SMALL)
    vm = SimulatedVm(spec, VmState.RUNNING, "<domain/>", 0.0, managed=False)
    rig.hypervisor.host.put(vm)
    rig.hypervisor.host.guest_powers_off("x")
    rig.hypervisor.host.guest_powers_off("x")
    await rig.quiet()
    assert rig.changes == [("x", VmState.STOPPED, False)]


async def test_what_an_order_is_doing_is_not_told_of_by_looking(rig: Rig) -> None:
    await rig.start()
    task = await rig.held("suspend", command_of(VmCommand.SUSPEND))
    rig.hypervisor.host.vms[A].state = VmState.STOPPED
    await rig.orders.reconcile()
    assert rig.changes == []
    rig.go_on()
    with pytest.raises(Conflict):
        await task


async def test_a_vm_that_lived_and_died_within_one_look_is_not_told_of(rig: Rig) -> None:
    """Found by chaos, seed 3: VMs were told to run after they had been destroyed."""
    hypervisor = rig.hypervisor
    seen = asyncio.Event()
    answer = asyncio.Event()
    look = hypervisor.inventory

    async def slow() -> list[VmReport]:
        await seen.wait()
        reports = await look()
        await answer.wait()
        return reports

    hypervisor.inventory = slow  # type: ignore[method-assign]
    looking = asyncio.ensure_future(rig.orders.reconcile())
    await rig.quiet()
    await rig.run(start_of(A))
    seen.set()
    await rig.quiet()  # it is seen to run
    await rig.run(command_of(VmCommand.DESTROY))
    await rig.quiet()
    rig.told.clear()
    answer.set()
    await looking
    assert rig.changes == []
    assert rig.orders.vm_ids == []


async def test_a_hypervisor_that_does_not_answer_is_no_end_of_vms(rig: Rig) -> None:
    await rig.start()
    rig.hypervisor.host.lose_connection("gone")
    with pytest.raises(SnoozeError):
        await rig.orders.reconcile()
    assert rig.changes == []
    rig.hypervisor.host.restore_connection()
    await rig.orders.reconcile()
    assert rig.changes == []


async def test_one_vm_is_told_of_whatever_was_told_before(rig: Rig) -> None:
    await rig.start()
    await rig.orders.reconcile_vm(A)
    await rig.orders.reconcile_vm("nobody")
    assert rig.changes == [(A, VmState.RUNNING, False)]


# ---------------------------------------------------------------- the end


async def test_closing_waits_for_orders_and_then_lets_go(rig: Rig) -> None:
    await rig.orders.close(1.0)
    task = await rig.held("start", start_of())
    closing = asyncio.ensure_future(rig.orders.close(5.0))
    await rig.quiet()
    assert not closing.done()
    rig.go_on()
    await closing
    await task
    late = await rig.held("suspend", command_of(VmCommand.SUSPEND))
    await rig.orders.close(0.01)
    with pytest.raises(asyncio.CancelledError):
        await late


async def test_a_copy_that_is_the_vm_by_now_is_not_discarded_by_a_former_managers_order(
    rig: Rig,
) -> None:
    await rig.start()
    busy = await rig.held("suspend", command_of(VmCommand.SUSPEND))
    discard = asyncio.ensure_future(rig.orders.carry_out(DiscardVm(1, "recovery", A, 1)))
    await rig.quiet()
    await rig.join(2)
    rig.go_on()
    await busy
    with pytest.raises(StaleEpoch, match="assigned anew"):
        await discard
    assert list(rig.hypervisor.host.vms) == [A]

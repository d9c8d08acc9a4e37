"""A host on the simulated hypervisor, and a gate at which its work can be held."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.vms import MigrationTicket, VmReport, VmSpec
from snooze.common.wire import (
    CommandVm,
    HostNotice,
    HostOrder,
    OrderDone,
    StartVm,
    VmChanged,
)
from snooze.localcontroller.hypervisor.port import MigrationOffer, MigrationOptions
from snooze.localcontroller.hypervisor.simulated import SimulatedHypervisor
from snooze.localcontroller.hypervisor.simulated_world import SimulatedWorld
from snooze.localcontroller.orders import Orders

SMALL = Capacity(1.0, 131072.0)
A, B = "a" * 32, "b" * 32


class Gate:
    """A ``sleep`` that the test lets end."""

    def __init__(self) -> None:
        self.closed = False
        self._sleepers: list[asyncio.Future[None]] = []
        self.arrived = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        if self.closed:
            sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._sleepers.append(sleeper)
            self.arrived.set()
            await sleeper

    def open(self) -> None:
        self.closed = False
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)
        self._sleepers.clear()


class GatedHypervisor(SimulatedHypervisor):
    """One whose methods named in ``held`` wait at the gate, before their work."""

    held: frozenset[str] = frozenset()
    gate: Gate

    async def _at(self, method: str) -> None:
        if method in self.held:
            self.gate.closed = True
            await self.gate.sleep(1.0)

    async def start(self, spec: VmSpec) -> VmReport:
        await self._at("start")
        return await super().start(spec)

    async def start_again(self, vm_id: str) -> VmReport:
        await self._at("start_again")
        return await super().start_again(vm_id)

    async def inventory(self) -> list[VmReport]:
        reports = await super().inventory()
        await self._at("inventory")
        return reports

    async def suspend(self, vm_id: str) -> VmReport:
        await self._at("suspend")
        return await super().suspend(vm_id)

    async def destroy(self, vm_id: str) -> None:
        await self._at("destroy")
        await super().destroy(vm_id)

    async def resize(self, vm_id: str, demand: Capacity) -> VmReport:
        await self._at("resize")
        return await super().resize(vm_id, demand)

    async def prepare_incoming(self, offer: MigrationOffer) -> MigrationTicket:
        await self._at("prepare_incoming")
        return await super().prepare_incoming(offer)


@dataclass
class Rig:
    """A host with its orders; ``told`` is what its manager hears."""

    world: SimulatedWorld
    name: str
    gate: Gate = field(default_factory=Gate)
    told: list[HostNotice] = field(default_factory=list[HostNotice])
    hypervisor: GatedHypervisor = field(init=False)
    orders: Orders = field(init=False)

    def __post_init__(self) -> None:
        self.hypervisor = GatedHypervisor(self.world, self.name)
        self.hypervisor.gate = self.gate
        self.orders = Orders(self.hypervisor, MigrationOptions(), 2, self.told.append)
        self.orders.epoch = 1
        self.hypervisor.on_change(self.orders.on_change)

    @property
    def changes(self) -> list[tuple[str, VmState, bool]]:
        """What was told; twice the same in a row is no harm, and listed once."""
        found: list[tuple[str, VmState, bool]] = []
        for notice in self.told:
            if isinstance(notice, VmChanged):
                change = (notice.report.vm_id, notice.report.state, notice.gone)
                found += [change] if found[-1:] != [change] else []
        return found

    async def run(self, order: HostOrder) -> OrderDone:
        answer = await self.orders.carry_out(order)
        assert isinstance(answer, OrderDone)
        return answer

    async def start(self, vm_id: str = A, epoch: int = 1) -> OrderDone:
        done = await self.run(start_of(vm_id, epoch))
        await self.quiet()
        self.told.clear()
        return done

    async def held(self, method: str, order: HostOrder) -> "asyncio.Task[object]":
        """An order that has begun and waits in the hypervisor."""
        self.hypervisor.held = frozenset({method})
        self.gate.arrived.clear()
        task = asyncio.ensure_future(self.orders.carry_out(order))
        async with asyncio.timeout(5):
            await self.gate.arrived.wait()
        return task

    def go_on(self) -> None:
        self.hypervisor.held = frozenset()
        self.gate.open()

    async def quiet(self) -> None:
        """Let callbacks and tasks that are due run."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def join(self, epoch: int) -> list[VmReport]:
        """Introduce the host to a manager, as the agent does."""
        reports = await self.orders.inventory()
        self.orders.epoch = epoch
        self.told.clear()
        return reports


MakeRig = Callable[[str], Awaitable[Rig]]


def spec_of(vm_id: str) -> VmSpec:
    return VmSpec(vm_id, f"name-{vm_id}", SMALL, image="debian", ip_address="10.0.0.2")


def start_of(vm_id: str = A, epoch: int = 1) -> StartVm:
    return StartVm(epoch, "task", spec_of(vm_id))


def command_of(command: VmCommand, epoch: int = 1) -> CommandVm:
    return CommandVm(epoch, "task", A, command)

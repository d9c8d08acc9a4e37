# pyright: reportPrivateUsage=false
# A host's link is put straight into its manager's daemon.
"""Ten thousand hosts as plain state: for worlds in which a full agent a host is too costly.

A host of a fleet has no process. It asks the real leader for a manager (``LeaderService.assign``),
joins the real manager (``ManagerService.accept``) with the real ``HostHello``, takes every order of
the wire (``HostOrder``) with its epoch and answers it with the wire's answers, after the time that
it takes; it sends samples, reports what changes, looks for another manager when its link ends, and
goes off when its power controller says so. What is left out: the frames and pings of its link (it
is either up, ended or silent), the agent's own code, and the front door between it and the leader.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import msgspec

from snooze.common.errors import Conflict, ExecutionError, SnoozeError, StaleEpoch
from snooze.common.resources import KIB_PER_GIB, Capacity
from snooze.common.transport.channel import CloseCause, CloseReason, LinkStats
from snooze.common.transport.delivery import not_sent
from snooze.common.usage import HostSamples, HostUsage, VmUsage
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.vms import MigrationTicket, VmReport, VmSpec
from snooze.common.wire import (
    AbortIncoming,
    Address,
    Assignment,
    AssignmentRequest,
    CommandVm,
    DiscardVm,
    DropDisk,
    FinishIncoming,
    HostAnswer,
    HostDescription,
    HostHello,
    HostOrder,
    Inventory,
    MigrateOut,
    MoveToManager,
    OfferIssued,
    OfferVm,
    OrderDone,
    PowerDescription,
    PowerDown,
    PrepareIncoming,
    ResizeVm,
    StartVm,
    TakeInventory,
    TicketIssued,
    VmChanged,
)
from snooze.simulation.invariants import Breach
from snooze.simulation.loop import Process
from snooze.simulation.world import World

CAPACITY = Capacity(16.0, 64.0 * KIB_PER_GIB)
ORDER_S = 0.3
"""How long a host takes for an order, on average; a migration takes ten times as long."""
SILENCE_S = 3.0
"""Source: ``heartbeat.timeout_s``."""
SAMPLES_S = 120.0
TURN_S = 0.25
"""Hosts whose samples are due within this time send them together."""
BOOT_S = 60.0
BUSY = 0.5
"""What share of its cores a VM uses: nothing is overloaded, and nothing worth emptying."""


class FleetLink:
    """The manager's end of a host's link."""

    def __init__(self, host: "FleetHost", process: Process) -> None:
        self.host = host
        self.process = process
        self.stats = LinkStats()
        self.buffered_bytes = 0
        self.reason: CloseReason | None = None
        self.sink: Callable[[Any], None] = lambda notice: None
        self._ended: asyncio.Future[CloseReason] = process.loop.create_future()

    @property
    def closed(self) -> "asyncio.Future[CloseReason]":
        """See ``Link``."""
        return self._ended

    @property
    def is_open(self) -> bool:
        """See ``Link``."""
        return self.reason is None

    def close(self, detail: str = "closed") -> None:
        """The manager lets the host go."""
        self.end(CloseCause.LOCAL, detail)

    def end(self, cause: CloseCause, detail: str) -> None:
        """The link has ended; both sides hear of it in their time."""
        if self.reason is not None:
            return
        self.reason = CloseReason(cause, detail)
        if not self._ended.done():
            self._ended.set_result(self.reason)
        self.host.lost(self)

    async def request(self, order: HostOrder, reply_type: Any, timeout_s: float) -> HostAnswer:
        """See ``Link``: the host carries the order out."""
        if self.reason is not None:
            raise not_sent(f"the link is closed ({self.reason})")
        self.stats.frames_out += 1
        answer = await self.host.carry_out(order, self)
        self.stats.frames_in += 1
        return answer

    def tell(self, notice: Any) -> None:
        """The host says something by itself."""
        if self.reason is None:
            self.stats.frames_in += 1
            self.process.run(lambda: self.sink(notice))


@dataclass(eq=False)
class FleetHost:
    """One host."""

    fleet: "Fleet"
    name: str
    description: HostDescription
    vms: dict[str, VmReport] = field(default_factory=dict[str, VmReport])
    epoch: int = 0
    link: FleetLink | None = None
    is_on: bool = True
    life: int = 0
    """Grows when it goes off: what was under way then does not happen."""
    manager_id: str = ""
    sent_to: Assignment | None = None
    seeks: bool = False
    seen: list[VmReport] = field(default_factory=list[VmReport])
    said: HostSamples | None = None
    """What it said last of what its VMs use, and of which."""
    busy_s: dict[str, float] = field(default_factory=dict[str, float])
    """Until when an order for each VM is under way."""

    # ------------------------------------------------------------ looking for a manager

    def seek(self, delay_s: float, failed: tuple[str, ...] = ()) -> None:
        """Ask the leader for a manager after a while."""
        if self.seeks or not self.is_on:
            return
        self.seeks = True
        life = self.life

        def ask() -> None:
            self.seeks = False
            if self.life != life or not self.is_on or self.link is not None:
                return
            world = self.fleet.world
            leader = world.leading()
            process = None if leader is None else world.daemon(leader.identity.manager_id)
            if leader is None or process is None:
                self.seek(self.fleet.pause())
                return
            request = AssignmentRequest(self.description, self.manager_id, failed)
            answered = False

            async def assigned() -> None:
                nonlocal answered
                try:
                    assignment = await leader.assign(request)
                except SnoozeError:
                    answered = True
                    self.seek(self.fleet.pause())
                    return
                answered = True
                world.schedule.after(0.002, lambda: self._join(assignment, life))

            def give_up() -> None:
                if not answered and self.life == life and self.link is None:
                    self.seek(0.0)

            process.spawn(assigned())
            world.schedule.after(5.0, give_up)

        self.fleet.world.schedule.after(delay_s, ask)

    def _join(self, assignment: Assignment, life: int) -> None:
        if self.life != life or not self.is_on or self.link is not None:
            return
        if assignment.epoch < self.epoch:
            self.seek(self.fleet.pause())
            return
        name = assignment.manager.manager_id
        process = self.fleet.world.daemon(name)
        if process is None or process.paused:
            self.manager_id = ""
            self.seek(0.05, (name,))
            return
        process.run(lambda: self._enter(process, name, assignment, life))

    def _enter(self, process: Process, name: str, assignment: Assignment, life: int) -> None:
        """In the manager's process: what happens when a host connects."""
        if self.life != life or not self.is_on or self.link is not None:
            return
        manager = self.fleet.world.managers[name].manager
        hello = HostHello(self.description, list(self.vms.values()), assignment.epoch)
        try:
            accepted = manager.accept(hello)
        except SnoozeError:
            self.seek(self.fleet.pause())
            return
        link = FleetLink(self, process)
        link.sink = accepted.service.on_notification
        self.link, self.epoch, self.manager_id = link, assignment.epoch, name
        accepted.opened(cast(Any, link))
        self.fleet.sample_in(self.fleet.random.random() * SAMPLES_S, link)

    def lost(self, link: FleetLink) -> None:
        """The link has ended."""
        if self.link is not link:
            return
        self.link = None
        assignment, self.sent_to = self.sent_to, None
        if assignment is not None:
            life = self.life
            self.fleet.world.schedule.after(0.01, lambda: self._join(assignment, life))
        else:
            self.seek(0.005 + 0.05 * self.fleet.random.random())

    def sample(self, link: FleetLink) -> None:
        """Say what the VMs use, now and regularly."""
        if self.link is not link:
            return
        self.fleet.sample_in(SAMPLES_S, link)
        taken_ms = self.fleet.world.machines["client"].wall_ms()
        on = [vm for vm in self.vms.values() if vm.state is VmState.RUNNING]
        if self.said is None or on != self.seen:
            usage = [
                VmUsage(vm.vm_id, taken_ms, vm.demand.scaled((BUSY, 1.0, BUSY, BUSY))) for vm in on
            ]
            self.seen = on
            self.said = HostSamples.of(taken_ms, HostUsage(usage), round(SAMPLES_S * 1000))
        link.tell(msgspec.structs.replace(self.said, taken_ms=taken_ms))

    # ------------------------------------------------------------ orders

    async def carry_out(self, order: HostOrder, link: FleetLink) -> HostAnswer:
        """Do what is ordered, in the time that it takes."""
        if order.epoch < self.epoch:
            raise StaleEpoch(f"{self.name} has an assignment of epoch {self.epoch}")
        life = self.life
        slow = 10.0 if isinstance(order, MigrateOut) else 1.0
        # Orders for one VM are carried out one after the other, as by the local controller.
        vm_id, now_s = _vm_of(order), self.fleet.world.schedule.now_s
        done_s = max(now_s, self.busy_s.get(vm_id, now_s))
        done_s += slow * ORDER_S * (0.5 + self.fleet.random.random())
        self.busy_s[vm_id] = done_s
        await asyncio.sleep(done_s - now_s)
        if self.busy_s.get(vm_id) == done_s:
            del self.busy_s[vm_id]
        if self.life != life or not self.is_on:
            await asyncio.Event().wait()  # it went off meanwhile, and answers nothing any more
        answer = self._do(order)
        if link.reason is not None and isinstance(answer, OrderDone) and answer.report:
            if self.link is not None:
                self.link.tell(VmChanged(answer.report))
            await asyncio.Event().wait()
        return answer

    def _do(self, order: HostOrder) -> HostAnswer:
        fleet = self.fleet
        match order:
            case StartVm():
                return OrderDone(fleet.start(self, order.spec))
            case CommandVm():
                return self._command(order)
            case ResizeVm() | OfferVm() | FinishIncoming():
                if order.vm_id not in self.vms:
                    raise ExecutionError(f"VM {order.vm_id} is not on {self.name}")
                report = self.vms[order.vm_id]
                return OfferIssued(report, b"") if isinstance(order, OfferVm) else OrderDone(report)
            case PrepareIncoming():
                return TicketIssued(MigrationTicket(order.report.vm_id, self.name))
            case MigrateOut():
                fleet.move(self, order.vm_id, order.ticket.uri)
                return OrderDone()
            case AbortIncoming():
                return OrderDone(self.vms.get(order.vm_id))
            case TakeInventory():
                return Inventory(list(self.vms.values()))
            case DiscardVm():
                present = self.vms.get(order.vm_id)
                if present is None or present.generation > order.generation:
                    return OrderDone(present)
                if order.only_off and present.state is VmState.RUNNING:
                    return OrderDone(present)
                fleet.drop(self, order.vm_id)
                return OrderDone()
            case DropDisk():
                return OrderDone()
            case MoveToManager():
                self.sent_to = order.assignment
                return OrderDone()
            case PowerDown():
                raise Conflict("a host of a fleet does not go to sleep")

    def _command(self, order: CommandVm) -> HostAnswer:
        if order.command is VmCommand.DESTROY:
            self.fleet.drop(self, order.vm_id)
            return OrderDone()
        report = self.vms.get(order.vm_id)
        if report is None:
            raise ExecutionError(f"VM {order.vm_id} is not on {self.name}")
        if order.command is VmCommand.START:
            return OrderDone(self.fleet.switch_on(self, order.vm_id))
        return OrderDone(report)


class Fleet:
    """All hosts of a world."""

    def __init__(self, world: World, count: int, seed: int) -> None:
        self.world = world
        self.random = Random(f"fleet:{seed}")
        self.alive: dict[str, str] = {}
        """Where each guest is on that is on: rule 2 of ARCHITECTURE.md, at every change."""
        self.hosts: dict[str, FleetHost] = {}
        self._wheel: dict[int, list[FleetLink]] = {}
        self._turn()
        for number in range(count):
            name = f"node{number}"
            description = HostDescription(
                name,
                name,
                Address(f"10.{128 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}", 1),
                CAPACITY,
                power=PowerDescription(driver="test", options=name),
            )
            self.hosts[name] = FleetHost(self, name, description)

    def sample_in(self, delay_s: float, link: FleetLink) -> None:
        """Have a host send a sample: in the next turn of the wheel after this time."""
        turn = math.ceil((self.world.schedule.now_s + delay_s) / TURN_S)
        self._wheel.setdefault(turn, []).append(link)

    def _turn(self) -> None:
        """One event for all the hosts that send a sample now."""
        turn = round(self.world.schedule.now_s / TURN_S)
        for link in self._wheel.pop(turn, ()):
            link.host.sample(link)
        self.world.schedule.at((turn + 1) * TURN_S, self._turn)

    def pause(self) -> float:
        """Seconds until a host asks again."""
        return 0.5 + self.random.random()

    def fill(self, vms: int, demand: Capacity) -> None:
        """Have so many VMs run already, spread over all hosts."""
        hosts = list(self.hosts.values())
        for number in range(vms):
            vm_id = f"{number:032x}"
            host = hosts[number % len(hosts)]
            host.vms[vm_id] = VmReport(vm_id, f"old-{number}", VmState.RUNNING, demand)
            self.alive[vm_id] = host.name

    def start(self, host: FleetHost, spec: VmSpec) -> VmReport:
        """Define and start."""
        present = host.vms.get(spec.vm_id)
        if present is not None and present.state is VmState.RUNNING:
            return present
        self._on(host, spec.vm_id, spec.name)
        report = host.vms[spec.vm_id] = VmReport(
            spec.vm_id,
            spec.name,
            VmState.RUNNING,
            spec.demand,
            spec.generation,
            ip_address=spec.ip_address,
            mac_address=spec.mac_address,
            image=spec.image,
            policy=spec.policy,
        )
        return report

    def switch_on(self, host: FleetHost, vm_id: str) -> VmReport:
        """Start what is defined."""
        report = host.vms[vm_id]
        if report.state is not VmState.RUNNING:
            self._on(host, vm_id, report.name)
            report = host.vms[vm_id] = _in_state(report, VmState.RUNNING)
        return report

    def _on(self, host: FleetHost, vm_id: str, name: str) -> None:
        other = self.alive.setdefault(vm_id, host.name)
        if other != host.name:
            raise Breach(f"at {self.world.now_s:.3f} s: {name} runs on {other} and {host.name}")

    def drop(self, host: FleetHost, vm_id: str) -> None:
        """Switch off and undefine."""
        if host.vms.pop(vm_id, None) is not None and self.alive.get(vm_id) == host.name:
            del self.alive[vm_id]

    def move(self, host: FleetHost, vm_id: str, target: str) -> None:
        """The instant at which a guest is no longer here but there."""
        there = self.hosts[target]
        report = host.vms.get(vm_id)
        if report is None:
            return
        if not there.is_on:
            raise ExecutionError(f"{target} does not answer; the VM runs where it was")
        del host.vms[vm_id]
        there.vms[vm_id] = report
        self.alive[vm_id] = target

    def cut_power(self, name: str) -> None:
        """A host goes off; its manager hears nothing of it any more."""
        host = self.hosts[name]
        if not host.is_on:
            return
        host.is_on, host.seeks = False, False
        host.life += 1
        self.world.bmcs.machine(name).is_on = False
        for vm_id, report in host.vms.items():
            if self.alive.get(vm_id) == name:
                del self.alive[vm_id]
            host.vms[vm_id] = _in_state(report, VmState.STOPPED)
        link = host.link
        if link is not None:
            self.world.schedule.after(
                SILENCE_S,
                lambda: link.process.run(lambda: link.end(CloseCause.SILENT, "no frame for 3.0 s")),
            )

    def give_power(self, name: str) -> None:
        """A host boots, and looks for a manager."""
        host = self.hosts[name]
        if host.is_on:
            return
        self.world.bmcs.machine(name).is_on = True
        life = host.life

        def up() -> None:
            if host.life == life and not host.is_on:
                host.is_on, host.link = True, None
                host.seek(0.0)

        self.world.schedule.after(BOOT_S, up)

    def switch(self, name: str, is_on: bool) -> None:
        """A power controller does as it was told."""
        (self.give_power if is_on else self.cut_power)(name)

    def manager_died(self, manager: str) -> None:
        """Its machine's kernel closes the connections of its hosts."""
        for host in self.hosts.values():
            if host.manager_id == manager and host.link is not None:
                host.link.reason = CloseReason(CloseCause.LOST, "connection ended")
                host.lost(host.link)

    def differences(self, registry: Any) -> Iterator[str]:
        """Where the leader is wrong."""
        for vm_id, vm in registry.vms.items():
            if vm.state is VmState.RUNNING and self.alive.get(vm_id) != vm.host_id:
                yield f"{vm.name}: the leader has it on {vm.host_id}, not {self.alive.get(vm_id)}"
        for vm_id, name in self.alive.items():
            if vm_id not in registry.vms:
                yield f"{vm_id} runs on {name}, and the leader does not know it"


def _vm_of(order: HostOrder) -> str:
    """The VM that an order concerns; empty: none."""
    match order:
        case StartVm():
            return order.spec.vm_id
        case PrepareIncoming():
            return order.report.vm_id
        case CommandVm() | ResizeVm() | DiscardVm():
            return order.vm_id
        case OfferVm() | MigrateOut() | AbortIncoming() | FinishIncoming():
            return order.vm_id
        case _:
            return ""


def _in_state(report: VmReport, state: VmState) -> VmReport:
    off = state is VmState.STOPPED
    return VmReport(
        report.vm_id,
        report.name,
        state,
        report.demand,
        report.generation,
        ip_address=report.ip_address,
        mac_address=report.mac_address,
        image=report.image,
        policy=report.policy,
        interrupted=off and (report.state is VmState.RUNNING or report.interrupted),
    )

"""Hosts: the real agent core, and domains without a hypervisor."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from snooze.common.errors import (
    Conflict,
    ErrorReport,
    ExecutionError,
    NotFound,
    SnoozeError,
    StaleEpoch,
)
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.vms import MigrationTicket, VmReport, VmSpec
from snooze.common.wire import (
    AbortIncoming,
    Address,
    Assignment,
    AssignmentRequest,
    CommandVm,
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
    PowerDown,
    PrepareIncoming,
    ResizeVm,
    StartVm,
    TakeInventory,
    TicketIssued,
    VmChanged,
)
from snooze.localcontroller import agent_core as agents
from tests.property.cluster.links import Link, Outcome, Peer

if TYPE_CHECKING:
    from tests.property.cluster.world import World

ACTIVE = {VmState.RUNNING, VmState.PAUSED, VmState.MIGRATING}
CAPACITY = Capacity(4.0, 4096.0, 100.0, 100.0)


@dataclass
class Domain:
    spec: VmSpec
    state: VmState

    def report(self) -> VmReport:
        spec = self.spec
        return VmReport(
            spec.vm_id,
            spec.name,
            self.state,
            spec.demand,
            spec.generation,
            ip_address=spec.ip_address,
        )


@dataclass(eq=False)
class Work:
    """An order under way; it goes on to its end, whatever becomes of the link."""

    vm_id: str
    order: HostOrder
    link: Link
    ident: int
    stage: int = 0


class Host(Peer):
    """An agent and its domains; ``orders`` as ``localcontroller.orders`` promises."""

    def __init__(self, world: "World", host_id: str) -> None:
        self.world = world
        self.description = HostDescription(host_id, host_id, Address(host_id, 1), CAPACITY)
        self.domains: dict[str, Domain] = {}
        self.work: list[Work] = []
        self.arriving: set[str] = set()
        self.known: dict[str, VmReport] = {}
        self.core = agents.AgentCore(0.5, 4.0)
        self.link: Link | None = None
        self.welcomed = False
        self.cut_off = False
        self.epoch = 0
        self.wakes: list[tuple[float, int]] = []
        self.feed(agents.Started())

    @property
    def host_id(self) -> str:
        return self.description.host_id

    def feed(self, event: agents.AgentEvent) -> None:
        for effect in self.core.handle(event, self.world.now_s):
            match effect:
                case agents.AskAssignment():
                    request = AssignmentRequest(
                        self.description, effect.previous_manager, effect.failed_managers
                    )
                    self.world.later(partial(self._ask, request))
                case agents.ConnectTo():
                    self._connect(effect.assignment)
                case agents.CloseLink():
                    link, self.link = self.link, None
                    if link is not None:
                        link.close(self)
                case agents.WakeIn():
                    self.wakes.append((self.world.now_s + effect.pause_s, effect.number))
                case agents.Note():
                    pass

    def _ask(self, request: AssignmentRequest) -> None:
        leader = self.world.leader
        if leader is None or self.cut_off or self.world.loses():
            self.feed(agents.NotAssigned("no leader answers"))
        else:
            leader.assign(request, self)

    def assigned(self, answer: Assignment | ErrorReport) -> None:
        def arrives() -> None:
            if isinstance(answer, Assignment) and not self.cut_off and not self.world.loses():
                self.feed(agents.Assigned(answer))
            else:
                self.feed(agents.NotAssigned("not assigned"))

        self.world.later(arrives)

    def _connect(self, assignment: Assignment) -> None:
        manager = self.world.managers.get(assignment.manager.manager_id)
        if manager is None or self.cut_off:
            self.world.later(lambda: self.feed(agents.NotJoined("connection refused")))
            return
        self.epoch, self.welcomed = assignment.epoch, False
        link = self.link = self.world.open(self, manager)
        reports = [domain.report() for domain in self.domains.values()]
        self.known = {report.vm_id: report for report in reports}
        self.arriving -= self.known.keys()
        hello = HostHello(self.description, reports + self._starting(), assignment.epoch)
        link.request(self, hello, lambda outcome, unknown: self._welcomed(link, outcome))

    def _welcomed(self, link: Link, outcome: Outcome) -> None:
        if self.link is not link:
            return
        if isinstance(outcome, ErrorReport) or not link.is_open(self):
            self.link = None
            link.close(self)
            self.feed(agents.NotJoined("refused"))
        else:
            self.welcomed = True
            self.feed(agents.Joined())

    def on_closed(self, link: Link) -> None:
        if self.link is link and self.welcomed:
            self.link = None
            self.feed(agents.LinkClosed("closed"))

    def _starting(self) -> list[VmReport]:
        return [
            Domain(work.order.spec, VmState.STARTING).report()
            for work in self.work
            if isinstance(work.order, StartVm) and work.vm_id not in self.domains
        ]

    def has(self, vm_id: str) -> bool:
        return vm_id in self.domains or any(
            isinstance(work.order, StartVm) and work.vm_id == vm_id for work in self.work
        )

    def tell(self, notice: VmChanged) -> None:
        if self.link is not None:
            self.link.notify(self, notice)

    def on_request(self, link: Link, ident: int, message: msgspec.Struct) -> None:
        assert isinstance(message, HostOrder)
        try:
            self.core.admit(message.epoch)
        except StaleEpoch as error:
            link.reply(self, ident, ErrorReport.of(error))
            return
        match message:
            case MoveToManager():
                link.reply(self, ident, OrderDone())
                moved = agents.SentElsewhere(message.assignment)
                self.world.later(lambda: self.feed(moved))
            case StartVm():
                self.work.append(Work(message.spec.vm_id, message, link, ident))
            case PrepareIncoming():
                self.work.append(Work(message.report.vm_id, message, link, ident))
            case PowerDown():
                raise AssertionError(message)
            case _:
                self.work.append(Work(message.vm_id, message, link, ident))

    def go_on(self, work: Work) -> None:
        """Let an order under way get on by one stage, if it is its VM's turn."""
        if not isinstance(work.order, MigrateOut) and work is not self._turn(work.vm_id):
            return
        try:
            answer = self._carry_out(work)
            if answer is None:
                return
        except SnoozeError as error:
            self._end(work, ErrorReport.of(error))
        else:
            self._end(work, answer)

    def _turn(self, vm_id: str) -> Work:
        """One order at a time per VM; a migration goes on beside them."""
        return next(
            work
            for work in self.work
            if work.vm_id == vm_id and not isinstance(work.order, MigrateOut)
        )

    def _end(self, work: Work, outcome: HostAnswer | ErrorReport) -> None:
        self.work.remove(work)
        order = work.order
        if order.epoch != self.epoch and isinstance(outcome, OrderDone):
            self._tell_state(work.vm_id)
        if order.epoch != self.epoch and isinstance(order, StartVm):
            failed = Domain(order.spec, VmState.STARTING).report()
            if isinstance(outcome, ErrorReport):
                self.tell(VmChanged(failed, gone=True))
        if isinstance(order, MigrateOut) and isinstance(outcome, ErrorReport):
            self._tell_state(work.vm_id)
        if isinstance(outcome, OrderDone) and outcome.report is not None:
            self.known[work.vm_id] = outcome.report
        work.link.reply(self, work.ident, outcome)

    def _tell_state(self, vm_id: str) -> None:
        if vm_id in self.domains:
            self.known[vm_id] = self.domains[vm_id].report()
            self.tell(VmChanged(self.known[vm_id]))

    def _carry_out(self, work: Work) -> HostAnswer | None:
        vm_id, order = work.vm_id, work.order
        domain = self.domains.get(vm_id)
        if isinstance(order, StartVm):
            return self._start(order, domain)
        if isinstance(order, PrepareIncoming):
            if domain is not None or self.world.fails():
                raise Conflict("no room for it here")
            self.arriving.add(vm_id)
            return TicketIssued(MigrationTicket(vm_id, self.host_id))
        if isinstance(order, TakeInventory):
            found = [domain.report() for domain in self.domains.values()]
            return Inventory(found + self._starting())
        if isinstance(order, AbortIncoming):
            self.arriving.discard(vm_id)
            return OrderDone(domain.report() if domain is not None else None)
        if isinstance(order, FinishIncoming):
            if domain is None or domain.state not in ACTIVE:
                raise ExecutionError("it did not arrive")
            self.arriving.discard(vm_id)
            return OrderDone(domain.report())
        if isinstance(order, MigrateOut):
            return self._migrate_out(work, order, domain)
        if isinstance(order, CommandVm) and order.command is VmCommand.DESTROY:
            if domain is not None and (self.world.fails() or domain.state is VmState.MIGRATING):
                raise ExecutionError("it does not want to go")
            self.domains.pop(vm_id, None)
            gone = self.known.pop(vm_id, None)
            if gone is not None and order.epoch != self.epoch:
                self.tell(VmChanged(gone, gone=True))
            return OrderDone()
        if domain is None:
            raise NotFound("no such VM here")
        if self.world.fails():
            raise ExecutionError("the hypervisor refused")
        return self._command(order, domain)

    def _start(self, order: StartVm, domain: Domain | None) -> HostAnswer:
        if domain is None:
            if self.world.fails():
                raise ExecutionError("no disk")
            domain = self.domains[order.spec.vm_id] = Domain(order.spec, VmState.RUNNING)
        elif domain.state not in ACTIVE:
            domain.state = VmState.RUNNING
        return OrderDone(domain.report())

    def _command(self, order: HostOrder, domain: Domain) -> HostAnswer:
        match order:
            case OfferVm():
                if domain.state not in ACTIVE:
                    raise Conflict("it is off")
                return OfferIssued(domain.report(), b"")
            case ResizeVm():
                domain.spec = msgspec.structs.replace(domain.spec, demand=order.demand)
            case CommandVm():
                allowed, target = {
                    VmCommand.START: (set(VmState), VmState.RUNNING),
                    VmCommand.SUSPEND: (ACTIVE, VmState.PAUSED),
                    VmCommand.RESUME: (ACTIVE, VmState.RUNNING),
                    VmCommand.SHUTDOWN: (set(VmState), VmState.STOPPED),
                    VmCommand.REBOOT: (ACTIVE, VmState.RUNNING),
                }[order.command]
                if domain.state not in allowed or domain.state is VmState.MIGRATING:
                    raise Conflict("not in this state")
                domain.state = target
                self._tell_state(order.vm_id)
            case _:
                raise AssertionError(order)
        return OrderDone(domain.report())

    def _migrate_out(
        self, work: Work, order: MigrateOut, domain: Domain | None
    ) -> HostAnswer | None:
        if domain is None:
            return OrderDone()
        if work.stage == 0:
            if domain.state not in ACTIVE:
                raise Conflict("it is off")
            work.stage, domain.state = 1, VmState.MIGRATING
            return None
        target = self.world.hosts[order.ticket.uri]
        domain.state = VmState.RUNNING
        if self.world.fails() or work.vm_id not in target.arriving:
            raise ExecutionError("it stays")
        del self.domains[work.vm_id]
        target.domains[work.vm_id] = domain
        left = self.known.pop(work.vm_id, None)
        if left is not None:
            moving = msgspec.structs.replace(left, state=VmState.MIGRATING)
            self.tell(VmChanged(moving, gone=True))
        return OrderDone()

    def power_off_guest(self, vm_id: str) -> None:
        """A guest switches itself off."""
        if self.domains[vm_id].state in {VmState.RUNNING, VmState.PAUSED}:
            self.domains[vm_id].state = VmState.STOPPED
            if not any(work.vm_id == vm_id for work in self.work):
                self._tell_state(vm_id)

    def reconcile(self) -> None:
        busy = {work.vm_id for work in self.work}
        for vm_id, domain in self.domains.items():
            report = domain.report()
            if vm_id in self.arriving:
                self.tell(VmChanged(report))
            elif vm_id not in busy and self.known.get(vm_id) != report:
                self._tell_state(vm_id)
        for vm_id in self.known.keys() - self.domains.keys() - busy:
            self.tell(VmChanged(self.known.pop(vm_id), gone=True))

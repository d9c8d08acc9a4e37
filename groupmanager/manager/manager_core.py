"""A manager's decisions about its hosts and their VMs.

Rules:

1. A host is here as long as its link stands. What it reports when it joins is the truth; when the
   link closes, the host and its VMs are forgotten here, and the leader remembers them.
2. Room is reserved before an order is sent and given back when the order is refused. A VM holds
   room on its host in the states of ``HOLDS_CAPACITY``; a migrating one holds it on both hosts.
3. No plan is carried out that the independent checker refutes.
4. Every order is idempotent. A start that was not answered is ordered again, at most
   ``MAX_TRIES`` times, while the host's link stands; then the link is closed, so that the host
   joins again and says what it has. After any other order that may have happened or not, the host
   is asked what it has.
5. An order of the leader is checked against the VM's state first; one that has nothing to do is
   answered as done.
6. A host that is to go to another manager gets no new VM, and goes when no order and no migration
   concerns it.

Invariant: ``reserved`` of a host is the sum of the demands of what holds room on it.
Migrations are in ``migration_core.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, assert_never

import msgspec
import numpy as np

from snooze.common.errors import (
    Conflict,
    ErrorReport,
    NoCapacity,
    NotFound,
    RemoteError,
    SnoozeError,
)
from snooze.common.resources import Capacity, FloatArray, R
from snooze.common.vm_lifecycle import (
    HOLDS_CAPACITY,
    TRANSITIONS,
    VmCommand,
    VmEvent,
    VmState,
    check_command,
)
from snooze.common.vms import VmErrorCode, VmReport, VmSpec
from snooze.common.wire import (
    CommandVm,
    HostAnswer,
    HostImages,
    HostOrder,
    Inventory,
    MoveToManager,
    OrderDone,
    PlacedVm,
    PlacementAnswer,
    PlacementRequest,
    ResizeVm,
    StartVm,
    TakeInventory,
    VmOrder,
    VmOrderDone,
    VmsChanged,
)
from snooze.common.wire import HostGone as HostGoneNotice
from snooze.common.wire import HostJoined as HostJoinedNotice
from snooze.groupmanager.manager.host_table import HostEntry, HostTable, VmEntry
from snooze.groupmanager.manager.manager_events import (
    AnswerLeader,
    CloseHost,
    HostAnswered,
    HostJoined,
    HostLost,
    ImagesNoticed,
    ManagerEffect,
    ManagerEvent,
    OrderAsked,
    OrderHost,
    PlaceAsked,
    RelayAsked,
    ReleaseAsked,
    TellLeader,
    VmNoticed,
)
from snooze.groupmanager.manager.migration_core import Migrations
from snooze.scheduling import placement
from snooze.scheduling.check import check_plan
from snooze.scheduling.snapshot import NONE, Snapshot
from snooze.scheduling.validation import frozen

MAX_TRIES: Final = 3
"""How often a start is ordered when no answer comes."""

Outcome = HostAnswer | ErrorReport
Then = Callable[[Outcome, bool], list[ManagerEffect]]

_AFTER_COMMAND: Final[dict[VmCommand, VmEvent]] = {
    VmCommand.SUSPEND: VmEvent.SUSPENDED,
    VmCommand.RESUME: VmEvent.RESUMED,
    VmCommand.SHUTDOWN: VmEvent.SHUTDOWN_ASKED,
}

_SEEN: Final[dict[VmState, VmEvent]] = {
    VmState.RUNNING: VmEvent.SEEN_RUNNING,
    VmState.PAUSED: VmEvent.SEEN_PAUSED,
    VmState.STOPPED: VmEvent.SEEN_STOPPED,
    VmState.FAILED: VmEvent.CRASHED,
}


@dataclass(slots=True)
class OpenOrder:
    """An order under way and what follows its answer; ``host`` is whose ``orders`` counts it."""

    host_id: str
    then: Then
    relayed: bool
    host: HostEntry | None


class ManagerCore:
    """Decides for one manager; see the module's rules."""

    def __init__(
        self, policy: placement.PlacementPolicy, overcommit: Capacity, headroom: Capacity
    ) -> None:
        """``overcommit`` and ``headroom`` multiply a host's capacity by axis."""
        self.table = HostTable()
        self.policy = policy
        self.overcommit: FloatArray = overcommit.as_array()
        self.headroom: FloatArray = headroom.as_array()
        self.limit: FloatArray = self.overcommit * self.headroom
        self.cursor = 0
        self._orders: dict[int, OpenOrder] = {}
        self._next_order = 0
        self._leaving: set[str] = set()
        self._base_version = -1
        self._base = Snapshot.of((), np.zeros((0, R)))
        self.migrations = Migrations(self.table, self.limit, self.order, self.report)

    def handle(self, event: ManagerEvent, now_s: float) -> list[ManagerEffect]:
        """Take in one event."""
        effects = self._decide(event, now_s) + self.migrations.expire(now_s)
        for host_id in sorted(self._leaving):
            effects += self._leave_if_quiet(host_id)
        return effects

    def _decide(self, event: ManagerEvent, now_s: float) -> list[ManagerEffect]:
        match event:
            case HostJoined():
                return self._host_joined(event)
            case HostLost():
                return self._host_lost(event)
            case PlaceAsked():
                return self._place(event)
            case OrderAsked():
                return self._order_asked(event)
            case RelayAsked():
                return self.migrations.relayed(event, now_s)
            case ReleaseAsked():
                return self._release(event)
            case HostAnswered():
                return self._answered(event)
            case VmNoticed():
                return self._noticed(event)
            case ImagesNoticed():
                return self._images_noticed(event)
            case _:
                assert_never(event)

    # ------------------------------------------------------------ orders to hosts

    def order(
        self,
        host_id: str,
        make: Callable[[int], HostOrder],
        then: Then,
        relayed: bool = False,
    ) -> list[ManagerEffect]:
        """Order something of a host; ``make`` is given the host's epoch, ``then`` the outcome."""
        self._next_order += 1
        host = None if relayed else self.table.hosts.get(host_id)
        epoch = 0 if host is None else host.epoch
        if host is not None:
            host.orders += 1
        self._orders[self._next_order] = OpenOrder(host_id, then, relayed, host)
        return [OrderHost(self._next_order, host_id, make(epoch), relayed)]

    def report(self, vm: VmEntry, cause: str) -> list[ManagerEffect]:
        """Tell the leader how a VM stands."""
        vm.cause = cause
        return [TellLeader(VmsChanged([vm.status()]))]

    def _answered(self, event: HostAnswered) -> list[ManagerEffect]:
        order = self._orders.pop(event.order_id, None)
        if order is None:
            return []
        if order.host is not None:
            order.host.orders -= 1
        return order.then(event.answer, event.unknown)

    # ------------------------------------------------------------ hosts

    def _host_joined(self, event: HostJoined) -> list[ManagerEffect]:
        hello = event.hello
        host_id = hello.host.host_id
        effects: list[ManagerEffect] = []
        if host_id in self.table.hosts:
            effects += self._drop_host(host_id, "it joined again")
        self.table.add_host(HostEntry(hello.host, hello.epoch))
        for report in hello.vms:
            self.table.put_vm(
                VmEntry(report, host_id, report.state, report.demand, reason=report.reason)
            )
        effects.append(TellLeader(HostJoinedNotice(self.table.state_of(host_id))))
        return effects

    def _host_lost(self, event: HostLost) -> list[ManagerEffect]:
        host = self.table.hosts.get(event.host_id)
        if host is None or host.epoch != event.epoch:
            return []
        effects = self._drop_host(event.host_id, event.reason)
        notice = HostGoneNotice(event.host_id, event.epoch, event.reason, event.left)
        return [*effects, TellLeader(notice)]

    def _drop_host(self, host_id: str, reason: str) -> list[ManagerEffect]:
        """Forget a host; what was ordered of it has an unknown outcome."""
        open_orders = [
            order_id
            for order_id, order in self._orders.items()
            if order.host_id == host_id and not order.relayed
        ]
        self.table.remove_host(host_id)
        self._leaving.discard(host_id)
        self.migrations.host_dropped(host_id)
        effects: list[ManagerEffect] = []
        lost = ErrorReport.of(RemoteError(f"host {host_id} is out of reach: {reason}"))
        for order_id in open_orders:
            effects += self._orders.pop(order_id).then(lost, True)
        return effects

    def _release(self, event: ReleaseAsked) -> list[ManagerEffect]:
        host = self.table.hosts.get(event.host_id)
        if host is not None:
            self.table.set_leaving(host, event.assignment)
            self._leaving.add(event.host_id)
        return []

    def _leave_if_quiet(self, host_id: str) -> list[ManagerEffect]:
        """Send a host on its way once nothing is under way on it."""
        host = self.table.hosts[host_id]
        if host.leaving is None or host.orders or self.migrations.touch(host_id):
            return []
        assignment = host.leaving

        def gone(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if self.table.hosts.get(host_id) is not host:
                return []
            if isinstance(outcome, ErrorReport) and not unknown:
                self.table.set_leaving(host, None)
                self._leaving.discard(host_id)
                return []
            return [CloseHost(host_id, f"given to group manager {assignment.manager.manager_id}")]

        return self.order(host_id, lambda e: MoveToManager(e, "rebalance", assignment), gone)

    # ------------------------------------------------------------ placement

    def _place(self, event: PlaceAsked) -> list[ManagerEffect]:
        answers: dict[str, PlacedVm] = {}
        new: list[PlacementRequest] = []
        for request in event.message.vms:
            known = self.table.vms.get(request.spec.vm_id)
            if known is not None:
                answers[request.spec.vm_id] = PlacedVm(request.spec.vm_id, known.host_id)
            else:
                new.append(request)
        for request in list(new):
            if request.host and request.host not in self.table.hosts:
                away = f"host {request.host} is not with this group manager"
                answers[request.spec.vm_id] = PlacedVm(request.spec.vm_id, "", away)
                new.remove(request)
        orders: list[ManagerEffect] = []
        if new:
            snapshot = self._snapshot(new)
            plan = placement.plan(snapshot, self.policy, cursor=self.cursor)
            violations = check_plan(snapshot, plan)
            self.cursor = plan.cursor
            for index, request in enumerate(new):
                spec = request.spec
                if plan.placement[index] < 0 or violations:
                    reason = plan.reason_for(index)
                    why = f"the plan is invalid: {violations[0]}" if violations else ""
                    answers[spec.vm_id] = PlacedVm(
                        spec.vm_id, "", why or (reason.message if reason else "no host has room")
                    )
                    continue
                host_id = self.table.order[int(plan.placement[index])]
                answers[spec.vm_id] = PlacedVm(spec.vm_id, host_id)
                orders += self._start(spec, host_id, event.message.cause)
        listed = [answers[request.spec.vm_id] for request in event.message.vms]
        return [AnswerLeader(event.request_id, PlacementAnswer(listed)), *orders]

    def _snapshot(self, requests: list[PlacementRequest]) -> Snapshot:
        """The hosts as they are now and the VMs to place."""
        table = self.table
        demand = np.array([r.spec.demand.as_tuple() for r in requests], dtype=np.float64)
        pins = np.full(len(requests), NONE, dtype=np.int64)
        for index, request in enumerate(requests):
            row = table.row_of(request.host)
            if row is not None:
                pins[index] = row
        used = frozen(table.reserved.copy())
        hosts = replace(self._hosts(), used=used, load=used)
        return hosts.with_vms([r.spec.vm_id for r in requests], demand, pin=pins)

    def _hosts(self) -> Snapshot:
        """The hosts without reservations; made anew only when hosts come or go."""
        if self._base_version != self.table.version:
            self._base_version = self.table.version
            self._base = Snapshot.of(
                self.table.order,
                self.table.capacity,
                host_state=np.array(self.table.states(), dtype=np.int8),
                overcommit=self.overcommit,
                headroom=self.headroom,
            )
        return self._base

    def _start(self, spec: VmSpec, host_id: str, cause: str, tries: int = 1) -> list[ManagerEffect]:
        report = VmReport(
            vm_id=spec.vm_id,
            name=spec.name,
            state=VmState.STARTING,
            demand=spec.demand,
            generation=spec.generation,
            ip_address=spec.ip_address,
            mac_address=spec.mac_address,
            image=spec.image,
        )
        vm = VmEntry(report, host_id, VmState.STARTING, spec.demand, cause, ordered=True)
        self.table.put_vm(vm)

        def started(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            current = self.table.vms.get(spec.vm_id)
            vm.ordered = False
            if current is not vm or vm.state is not VmState.STARTING:
                return []
            if isinstance(outcome, OrderDone) and outcome.report is not None:
                return self._take_report(vm, outcome.report, cause)
            if unknown and tries < MAX_TRIES:
                self.table.remove_vm(vm)
                return self._start(spec, host_id, cause, tries + 1)
            if unknown:
                return [CloseHost(host_id, "it does not say whether it started a VM")]
            message = outcome.message if isinstance(outcome, ErrorReport) else "no answer"
            return self._start_failed(vm, message, cause)

        return self.order(host_id, lambda epoch: StartVm(epoch, cause, spec), started)

    def _start_failed(self, vm: VmEntry, message: str, cause: str) -> list[ManagerEffect]:
        hostname = self.table.hosts[vm.host_id].description.hostname
        self.table.remove_vm(vm)
        vm.state, vm.cause, vm.reason = VmState.FAILED, cause, f"on {hostname}: {message}"
        status = vm.status(VmErrorCode.START_FAILED, host_id="")
        return [TellLeader(VmsChanged([status]))]

    def _take_report(self, vm: VmEntry, report: VmReport, cause: str) -> list[ManagerEffect]:
        """A host says how a VM is; the leader is told."""
        self.table.set_state(vm, report.state)
        if report.demand != vm.demand:
            self.table.set_demand(vm, report.demand)
        vm.report, vm.reason = report, report.reason
        return self.report(vm, cause)

    # ------------------------------------------------------------ commands

    def _order_asked(self, event: OrderAsked) -> list[ManagerEffect]:
        try:
            return self._command(event.request_id, event.message)
        except SnoozeError as error:
            return [AnswerLeader(event.request_id, ErrorReport.of(error))]

    def _command(self, request_id: int, order: VmOrder) -> list[ManagerEffect]:
        vm = self.table.find(order.vm_id)
        if vm is None:
            raise NotFound(f"no VM {order.vm_id!r} on the hosts of this group manager")
        if not vm.report.managed:
            raise Conflict(
                f"{vm.report.name!r} was not started by Snooze; it is shown, counted, not touched"
            )
        if not check_command(order.command, vm.state, vm.report.name):
            return [AnswerLeader(request_id, VmOrderDone(vm.status()))]
        match order.command:
            case VmCommand.RESIZE:
                return self._resize(request_id, vm, order)
            case VmCommand.MIGRATE:
                return self.migrations.start(request_id, vm, order)
            case VmCommand.START:
                return self._start_again(request_id, vm, order)
            case _:
                return self._simple(request_id, vm, order)

    def _simple(self, request_id: int, vm: VmEntry, order: VmOrder) -> list[ManagerEffect]:
        effects: list[ManagerEffect] = []
        before = vm.state
        # A VM that is off has no room to hold while it is removed: it stays off until it is gone.
        if order.command is VmCommand.DESTROY and before in HOLDS_CAPACITY:
            self.table.set_state(vm, VmState.DESTROYING)
            effects += self.report(vm, order.cause)

        def done(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            current = self.table.vms.get(vm.key) is vm
            if isinstance(outcome, ErrorReport) and vm.state is not VmState.DESTROYED:
                told: list[ManagerEffect] = []
                if current and vm.state is VmState.DESTROYING:
                    self.table.set_state(vm, before)
                    told += self.report(vm, order.cause)
                if current and (unknown or order.command is VmCommand.DESTROY):
                    told += self._look(vm, order.cause)
                return [*told, AnswerLeader(request_id, outcome)]
            told = self._after_command(vm, order, outcome) if current else []
            return [*told, AnswerLeader(request_id, VmOrderDone(vm.status()))]

        return effects + self.order(
            vm.host_id,
            lambda epoch: CommandVm(epoch, order.cause, vm.report.vm_id, order.command),
            done,
        )

    def _after_command(self, vm: VmEntry, order: VmOrder, outcome: Outcome) -> list[ManagerEffect]:
        """The host obeyed: take the state that follows, unless it said a newer one meanwhile."""
        if order.command is VmCommand.DESTROY:
            return self._vanished(vm, order.cause)
        event = _AFTER_COMMAND.get(order.command)
        target = TRANSITIONS.get((vm.state, event)) if event is not None else None
        report = outcome.report if isinstance(outcome, OrderDone) else None
        if report is not None:
            vm.report = report
        if target is None:
            return []
        self.table.set_state(vm, target)
        return self.report(vm, order.cause)

    def _look(self, vm: VmEntry, cause: str) -> list[ManagerEffect]:
        """Ask the host what it has: what was ordered of the VM may have happened or not."""
        host_id = vm.host_id

        def looked(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if self.table.vms.get(vm.key) is not vm or vm.host_id != host_id:
                return []
            if self.migrations.moves(vm.key) or vm.ordered:
                return []
            if not isinstance(outcome, Inventory):
                return [CloseHost(host_id, "it does not say what it has")] if unknown else []
            report = next((r for r in outcome.vms if r.vm_id == vm.report.vm_id), None)
            if report is None:
                return self._vanished(vm, cause)
            return self._take_report(vm, report, cause)

        return self.order(
            host_id, lambda epoch: TakeInventory(epoch, cause, vm.report.vm_id), looked
        )

    def _vanished(self, vm: VmEntry, cause: str) -> list[ManagerEffect]:
        """The VM is no longer on its host, and so nowhere."""
        self.table.remove_vm(vm)
        vm.state = VmState.DESTROYED
        return self.report(vm, cause)

    def _start_again(self, request_id: int, vm: VmEntry, order: VmOrder) -> list[ManagerEffect]:
        if not self.table.fits(vm.host_id, vm.demand, self.limit):
            raise NoCapacity(
                f"host {vm.host_id} has no room left for VM {vm.report.name!r}; free some of it, "
                "or destroy the VM and submit it again"
            )
        before = vm.state
        self.table.set_state(vm, VmState.STARTING)

        def done(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if self.table.vms.get(vm.key) is not vm:
                error = ErrorReport.of(Conflict("the VM vanished while it was being started"))
                return [AnswerLeader(request_id, error)]
            if isinstance(outcome, ErrorReport) and unknown:
                return [*self._look(vm, order.cause), AnswerLeader(request_id, outcome)]
            if isinstance(outcome, ErrorReport):
                if vm.state is VmState.STARTING:
                    self.table.set_state(vm, before)
                return [*self.report(vm, order.cause), AnswerLeader(request_id, outcome)]
            report = outcome.report if isinstance(outcome, OrderDone) else None
            told = self._take_report(vm, report or vm.report, order.cause)
            return [*told, AnswerLeader(request_id, VmOrderDone(vm.status()))]

        return self.report(vm, order.cause) + self.order(
            vm.host_id,
            lambda epoch: CommandVm(epoch, order.cause, vm.report.vm_id, VmCommand.START),
            done,
        )

    def _resize(self, request_id: int, vm: VmEntry, order: VmOrder) -> list[ManagerEffect]:
        if order.demand is None:
            raise Conflict("a resize without a size")
        former, wanted = vm.demand, order.demand
        more = Capacity.of(np.maximum(wanted.as_array() - former.as_array(), 0.0))
        if not self.table.fits(vm.host_id, more, self.limit):
            raise NoCapacity(
                f"host {vm.host_id} cannot give VM {vm.report.name!r} that much more; "
                "migrate it to a host with room first"
            )
        # Until the host has answered, the larger of both is reserved, axis by axis.
        self.table.set_demand(vm, former.plus(more))

        def done(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if self.table.vms.get(vm.key) is not vm:
                error = ErrorReport.of(Conflict("the VM vanished while it was being resized"))
                return [AnswerLeader(request_id, error)]
            if isinstance(outcome, ErrorReport):
                if unknown:
                    return [*self._look(vm, order.cause), AnswerLeader(request_id, outcome)]
                self.table.set_demand(vm, former)
                return [AnswerLeader(request_id, outcome)]
            self.table.set_demand(vm, wanted)
            if isinstance(outcome, OrderDone) and outcome.report is not None:
                vm.report = outcome.report
            told = self.report(vm, order.cause)
            return [*told, AnswerLeader(request_id, VmOrderDone(vm.status()))]

        return self.order(
            vm.host_id,
            lambda epoch: ResizeVm(epoch, order.cause, vm.report.vm_id, wanted),
            done,
        )

    # ------------------------------------------------------------ what hosts say by themselves

    def _noticed(self, event: VmNoticed) -> list[ManagerEffect]:
        report = event.notice.report
        if event.host_id not in self.table.hosts:
            return []
        if not event.notice.gone and self.migrations.arrived(event.host_id, report.vm_id):
            return self._new_vm(event)
        key = report.vm_id if report.managed else f"{report.vm_id}@{event.host_id}"
        if self.migrations.moves(key):
            return []
        vm = self.table.vms.get(key)
        if vm is None:
            return self._new_vm(event)
        if vm.host_id != event.host_id:
            return []
        if vm.ordered or (vm.state is VmState.DESTROYING and not event.notice.gone):
            return []
        if event.notice.gone:
            if vm.state is VmState.STARTING:
                return self._start_failed(vm, "it did not start while its manager changed", "")
            vm.reason = report.reason
            if report.state is VmState.MIGRATING:
                return self.migrations.left(vm)
            return self._vanished(vm, vm.cause if vm.state is VmState.DESTROYING else "")
        seen = _SEEN.get(report.state)
        target = TRANSITIONS.get((vm.state, seen)) if seen is not None else None
        if target is None:
            return []
        if target is vm.state and report.demand == vm.demand:
            vm.report = report
            return []
        self.table.set_state(vm, target)
        if report.demand != vm.demand:
            self.table.set_demand(vm, report.demand)
        vm.report, vm.reason = report, report.reason
        return self.report(vm, "")

    def _images_noticed(self, event: ImagesNoticed) -> list[ManagerEffect]:
        host = self.table.hosts.get(event.host_id)
        if host is None:
            return []
        host.description = msgspec.structs.replace(host.description, images=event.images)
        return [TellLeader(HostImages(event.host_id, event.images))]

    def _new_vm(self, event: VmNoticed) -> list[ManagerEffect]:
        """Somebody made a domain on the host."""
        if event.notice.gone:
            return []
        report = event.notice.report
        vm = VmEntry(report, event.host_id, report.state, report.demand, reason=report.reason)
        self.table.put_vm(vm)
        return self.report(vm, "")

"""A client's commands on a VM of this manager, as the leader passes them on.

An order is checked against the VM's state first; one that has nothing to do is answered as done.
After an order that may have happened or not, the host is asked what it has. So it is about a guest
that was asked to shut down and has not within ``SHUTDOWN_S``: it is what its host says then.
"""

import math
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from snooze.common.errors import Conflict, ErrorReport, NoCapacity, NotFound, SnoozeError
from snooze.common.resources import Capacity, FloatArray
from snooze.common.vm_lifecycle import (
    HOLDS_CAPACITY,
    TRANSITIONS,
    VmCommand,
    VmEvent,
    VmState,
    check_command,
)
from snooze.common.wire import (
    CommandVm,
    Inventory,
    OrderDone,
    ResizeVm,
    TakeInventory,
    VmOrder,
    VmOrderDone,
)
from snooze.groupmanager.manager.host_table import HostTable, VmEntry
from snooze.groupmanager.manager.manager_events import (
    AnswerLeader,
    CloseHost,
    ManagerEffect,
    OrderAsked,
)
from snooze.groupmanager.manager.migration_core import Migrations
from snooze.groupmanager.manager.ordering import GiveOrder, Outcome
from snooze.groupmanager.manager.vm_changes import VmChanges

SHUTDOWN_S: Final = 300.0
"""A guest that has not shut down by then does not know its power button, or waits for somebody."""

_AFTER_COMMAND: Final[Mapping[VmCommand, VmEvent]] = {
    VmCommand.SUSPEND: VmEvent.SUSPENDED,
    VmCommand.RESUME: VmEvent.RESUMED,
    VmCommand.SHUTDOWN: VmEvent.SHUTDOWN_ASKED,
}


class VmCommands:
    """Commands on the VMs of one manager."""

    def __init__(
        self,
        table: HostTable,
        limit: FloatArray,
        order: GiveOrder,
        changes: VmChanges,
        migrations: Migrations,
    ) -> None:
        """``limit[R]`` scales a host's capacity (overcommit, headroom)."""
        self._table = table
        self._limit = limit
        self._order = order
        self._changes = changes
        self._migrations = migrations
        self._stopping: dict[str, tuple[VmEntry, float]] = {}

    def expire(self, now_s: float) -> list[ManagerEffect]:
        """Guests that do not shut down are not waited for any longer."""
        effects: list[ManagerEffect] = []
        for key, (vm, since_s) in list(self._stopping.items()):
            if self._table.vms.get(key) is not vm or vm.state is not VmState.STOPPING:
                del self._stopping[key]
            elif since_s == math.inf:
                self._stopping[key] = (vm, now_s)
            elif now_s - since_s > SHUTDOWN_S:
                del self._stopping[key]
                effects += self.look(vm, vm.cause, f"it did not shut down in {SHUTDOWN_S:.0f} s")
        return effects

    def asked(self, event: OrderAsked) -> list[ManagerEffect]:
        """Carry out a command, or say why not."""
        try:
            return self._command(event.request_id, event.message)
        except SnoozeError as error:
            return [AnswerLeader(event.request_id, ErrorReport.of(error))]

    def _command(self, request_id: int, order: VmOrder) -> list[ManagerEffect]:
        vm = self._table.find(order.vm_id)
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
                return self._migrations.start(request_id, vm, order)
            case VmCommand.START:
                return self._start_again(request_id, vm, order)
            case _:
                return self._simple(request_id, vm, order)

    def _simple(self, request_id: int, vm: VmEntry, order: VmOrder) -> list[ManagerEffect]:
        effects: list[ManagerEffect] = []
        before = vm.state
        # A VM that is off has no room to hold while it is removed: it stays off until it is gone.
        if order.command is VmCommand.DESTROY and before in HOLDS_CAPACITY:
            self._table.set_state(vm, VmState.DESTROYING)
            effects += self._changes.report(vm, order.cause)

        def done(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            current = self._table.vms.get(vm.key) is vm
            if isinstance(outcome, ErrorReport) and vm.state is not VmState.DESTROYED:
                told: list[ManagerEffect] = []
                if current and vm.state is VmState.DESTROYING:
                    self._table.set_state(vm, before)
                    told += self._changes.report(vm, order.cause)
                if current and (unknown or order.command is VmCommand.DESTROY):
                    told += self.look(vm, order.cause)
                return [*told, AnswerLeader(request_id, outcome)]
            told = self._after_command(vm, order, outcome) if current else []
            return [*told, AnswerLeader(request_id, VmOrderDone(vm.status()))]

        return effects + self._order(
            vm.host_id,
            lambda epoch: CommandVm(epoch, order.cause, vm.report.vm_id, order.command),
            done,
        )

    def _after_command(self, vm: VmEntry, order: VmOrder, outcome: Outcome) -> list[ManagerEffect]:
        """The host obeyed: take the state that follows, unless it said a newer one meanwhile."""
        if order.command is VmCommand.DESTROY:
            return self._changes.vanished(vm, order.cause)
        event = _AFTER_COMMAND.get(order.command)
        target = TRANSITIONS.get((vm.state, event)) if event is not None else None
        report = outcome.report if isinstance(outcome, OrderDone) else None
        if report is not None:
            vm.report = report
        if target is None:
            return []
        self._table.set_state(vm, target)
        if target is VmState.STOPPING:
            self._stopping[vm.key] = (vm, math.inf)
        return self._changes.report(vm, order.cause)

    def look(self, vm: VmEntry, cause: str, reason: str = "") -> list[ManagerEffect]:
        """Ask the host what it has: what was ordered of the VM may have happened or not.

        ``reason``: why it is as it is, if it runs.
        """
        host_id = vm.host_id

        def looked(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if self._table.vms.get(vm.key) is not vm or vm.host_id != host_id:
                return []
            if self._migrations.moves(vm.key) or vm.ordered:
                return []
            if not isinstance(outcome, Inventory):
                return [CloseHost(host_id, "it does not say what it has")] if unknown else []
            report = next((r for r in outcome.vms if r.vm_id == vm.report.vm_id), None)
            if report is None:
                return self._changes.vanished(vm, cause)
            if reason and report.state is VmState.RUNNING:
                report = msgspec.structs.replace(report, reason=reason)
            return self._changes.take_report(vm, report, cause)

        return self._order(
            host_id, lambda epoch: TakeInventory(epoch, cause, vm.report.vm_id), looked
        )

    def _start_again(self, request_id: int, vm: VmEntry, order: VmOrder) -> list[ManagerEffect]:
        host = self._table.hosts[vm.host_id]
        if (order.destination and order.destination != vm.host_id) or vm.key in host.stale:
            raise Conflict(f"VM {vm.report.name!r} is not there any more")
        if not host.directed:
            raise Conflict("the leader has not said yet what holds of its host; try again")
        if not self._table.fits(vm.host_id, vm.demand, self._limit):
            raise NoCapacity(
                f"host {vm.host_id} has no room left for VM {vm.report.name!r}; free some of it, "
                "or destroy the VM and submit it again"
            )
        before = vm.state
        self._table.set_state(vm, VmState.STARTING)
        vm.ordered, vm.overheard = True, None

        def done(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            vm.ordered = False
            if self._table.vms.get(vm.key) is not vm:
                error = ErrorReport.of(Conflict("the VM vanished while it was being started"))
                return [AnswerLeader(request_id, error)]
            if isinstance(outcome, ErrorReport) and unknown:
                return [*self.look(vm, order.cause), AnswerLeader(request_id, outcome)]
            if vm.state is not VmState.STARTING:  # it is being destroyed meanwhile
                told = []
            elif isinstance(outcome, ErrorReport):
                self._table.set_state(vm, before)
                told = self._changes.report(vm, order.cause)
            else:
                report = (outcome.report if isinstance(outcome, OrderDone) else None) or vm.report
                told = self._changes.take_report(vm, report, order.cause)
            # What the host said of it meanwhile may be newer than its answer.
            if told and vm.overheard not in {None, vm.state}:
                told += self.look(vm, order.cause)
            refused = outcome if isinstance(outcome, ErrorReport) else None
            return [*told, AnswerLeader(request_id, refused or VmOrderDone(vm.status()))]

        return self._changes.report(vm, order.cause) + self._order(
            vm.host_id,
            lambda epoch: CommandVm(epoch, order.cause, vm.report.vm_id, VmCommand.START),
            done,
        )

    def _resize(self, request_id: int, vm: VmEntry, order: VmOrder) -> list[ManagerEffect]:
        if order.demand is None:
            raise Conflict("a resize without a size")
        former, wanted = vm.demand, order.demand
        more = Capacity.of(np.maximum(wanted.as_array() - former.as_array(), 0.0))
        if not self._table.fits(vm.host_id, more, self._limit):
            raise NoCapacity(
                f"host {vm.host_id} cannot give VM {vm.report.name!r} that much more; "
                "migrate it to a host with room first"
            )
        # Until the host has answered, the larger of both is reserved, axis by axis.
        self._table.set_demand(vm, former.plus(more))

        def done(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if self._table.vms.get(vm.key) is not vm:
                error = ErrorReport.of(Conflict("the VM vanished while it was being resized"))
                return [AnswerLeader(request_id, error)]
            if isinstance(outcome, ErrorReport):
                if unknown:
                    return [*self.look(vm, order.cause), AnswerLeader(request_id, outcome)]
                self._table.set_demand(vm, former)
                return [AnswerLeader(request_id, outcome)]
            self._table.set_demand(vm, wanted)
            if isinstance(outcome, OrderDone) and outcome.report is not None:
                vm.report = outcome.report
            told = self._changes.report(vm, order.cause)
            return [*told, AnswerLeader(request_id, VmOrderDone(vm.status()))]

        return self._order(
            vm.host_id,
            lambda epoch: ResizeVm(epoch, order.cause, vm.report.vm_id, wanted),
            done,
        )

"""Placing new VMs on the manager's hosts, and ordering their starts.

Room is reserved before an order is sent. No plan is carried out that the independent checker
refutes. A start that was not answered is ordered again, at most ``MAX_TRIES`` times. That a repeat
is refused says nothing of the first: then the host is asked what it has.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from snooze.common.errors import ErrorReport
from snooze.common.resources import FloatArray, R
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmSpec, being_started
from snooze.common.wire import (
    Inventory,
    OrderDone,
    PlacedVm,
    PlacementAnswer,
    PlacementRequest,
    StartVm,
    TakeInventory,
)
from snooze.groupmanager.manager.host_table import HostTable, VmEntry
from snooze.groupmanager.manager.manager_events import (
    AnswerLeader,
    CloseHost,
    ManagerEffect,
    PlaceAsked,
)
from snooze.groupmanager.manager.ordering import GiveOrder, Outcome
from snooze.groupmanager.manager.vm_changes import VmChanges
from snooze.scheduling import placement
from snooze.scheduling.check import check_plan
from snooze.scheduling.deciding import DecisionKind
from snooze.scheduling.dump import Decision, pack
from snooze.scheduling.snapshot import NONE, Snapshot
from snooze.scheduling.validation import frozen

MAX_TRIES: Final = 3
"""How often a start is ordered when no answer comes."""
FIRST_GENERATION: Final = 1
"""A VM of a later one is restarted; how its host was chosen is a part of that decision."""

Look = Callable[[VmEntry, str], list[ManagerEffect]]
"""Asks the host how the VM is."""


class Placing:
    """Placement on the hosts of one manager."""

    def __init__(
        self,
        table: HostTable,
        policy: placement.PlacementPolicy,
        overcommit: FloatArray,
        headroom: FloatArray,
        order: GiveOrder,
        changes: VmChanges,
        look: Look,
    ) -> None:
        """``overcommit[R]`` and ``headroom[R]`` multiply a host's capacity by axis."""
        self._table = table
        self._policy = policy
        self._overcommit = overcommit
        self._headroom = headroom
        self._order = order
        self._changes = changes
        self._look = look
        self._cursor = 0
        self._base_version = -1
        self._base = Snapshot.of((), np.zeros((0, R)))

    def place(self, event: PlaceAsked) -> list[ManagerEffect]:
        """Reserve hosts for VMs, order their starts, and say where each goes."""
        answers: dict[str, PlacedVm] = {}
        new: list[PlacementRequest] = []
        for request in event.message.vms:
            known = self._table.vms.get(request.spec.vm_id)
            if known is not None and known.report.generation < request.spec.generation:
                self._table.set_aside(known)  # of an earlier life: the leader will say what of it
                known = None
            if known is not None:
                answers[request.spec.vm_id] = self._placed(request.spec, known.host_id)
            else:
                new.append(request)
        for request in list(new):
            if request.host and request.host not in self._table.hosts:
                away = f"host {request.host} is not with this group manager"
                answers[request.spec.vm_id] = PlacedVm(request.spec.vm_id, "", away)
                new.remove(request)
        orders: list[ManagerEffect] = []
        inputs = b""
        if new:
            snapshot = self._snapshot(new)
            plan = placement.plan(snapshot, self._policy, cursor=self._cursor)
            violations = check_plan(snapshot, plan)
            if any(
                request.spec.generation > FIRST_GENERATION and host >= 0
                for request, host in zip(new, plan.placement.tolist(), strict=True)
            ):
                decision = Decision(DecisionKind.PLACEMENT, snapshot, self._policy, self._cursor)
                inputs = pack(decision, plan)
            self._cursor = plan.cursor
            for index, request in enumerate(new):
                spec = request.spec
                if plan.placement[index] < 0 or violations:
                    reason = plan.reason_for(index)
                    why = f"the plan is invalid: {violations[0]}" if violations else ""
                    answers[spec.vm_id] = PlacedVm(
                        spec.vm_id, "", why or (reason.message if reason else "no host has room")
                    )
                    continue
                host_id = self._table.order[int(plan.placement[index])]
                answers[spec.vm_id] = self._placed(spec, host_id)
                orders += self._start(spec, host_id, event.message.cause)
        listed = [answers[request.spec.vm_id] for request in event.message.vms]
        return [AnswerLeader(event.request_id, PlacementAnswer(listed, inputs)), *orders]

    def _placed(self, spec: VmSpec, host_id: str) -> PlacedVm:
        return PlacedVm(spec.vm_id, host_id, epoch=self._table.hosts[host_id].epoch)

    def _snapshot(self, requests: list[PlacementRequest]) -> Snapshot:
        """The hosts as they are now and the VMs to place."""
        table = self._table
        demand = np.array([r.spec.demand.as_tuple() for r in requests], dtype=np.float64)
        pins = np.full(len(requests), NONE, dtype=np.int64)
        for index, request in enumerate(requests):
            row = table.row_of(request.host)
            if row is not None:
                pins[index] = row
        used = frozen(table.reserved.copy())
        hosts = replace(self.hosts(), used=used, load=used)
        return hosts.with_vms([r.spec.vm_id for r in requests], demand, pin=pins)

    def hosts(self) -> Snapshot:
        """The hosts without reservations; made anew only when hosts come or go."""
        if self._base_version != self._table.version:
            self._base_version = self._table.version
            self._base = Snapshot.of(
                self._table.order,
                self._table.capacity,
                host_state=np.array(self._table.states(), dtype=np.int8),
                overcommit=self._overcommit,
                headroom=self._headroom,
            )
        return self._base

    def _start(self, spec: VmSpec, host_id: str, cause: str, tries: int = 1) -> list[ManagerEffect]:
        report = being_started(spec)
        vm = VmEntry(report, host_id, VmState.STARTING, spec.demand, cause, ordered=True)
        self._table.hosts[host_id].copies.pop(vm.key, None)  # the start takes its place
        self._table.put_vm(vm)

        def started(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            current = self._table.vms.get(spec.vm_id)
            vm.ordered = False
            if current is not vm or vm.state is not VmState.STARTING:
                return []
            if isinstance(outcome, OrderDone) and outcome.report is not None:
                told = self._changes.take_report(vm, outcome.report, cause)
                # What the host said of it meanwhile may be newer than its answer.
                is_newer = vm.overheard not in {None, vm.state}
                return told + (self._look(vm, cause) if is_newer else [])
            if unknown and tries < MAX_TRIES:
                self._table.remove_vm(vm)
                return self._start(spec, host_id, cause, tries + 1)
            if unknown:
                return [CloseHost(host_id, "it does not say whether it started a VM")]
            message = outcome.message if isinstance(outcome, ErrorReport) else "no answer"
            if tries > 1:
                return self._ask(vm, message, cause)
            return self._changes.start_failed(vm, message, cause)

        return self._order(host_id, lambda epoch: StartVm(epoch, cause, spec), started)

    def _ask(self, vm: VmEntry, message: str, cause: str) -> list[ManagerEffect]:
        """A start was refused after one that was not answered, which may be under way yet."""
        host_id, vm_id, generation = vm.host_id, vm.report.vm_id, vm.report.generation

        def looked(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if self._table.vms.get(vm.key) is not vm or vm.state is not VmState.STARTING:
                return []
            if not isinstance(outcome, Inventory):
                return [CloseHost(host_id, "it does not say whether it started a VM")]
            found = (r for r in outcome.vms if (r.vm_id, r.generation) == (vm_id, generation))
            report = next(found, None)
            if report is None:
                return self._changes.start_failed(vm, message, cause)
            return self._changes.take_report(vm, report, cause)

        return self._order(host_id, lambda epoch: TakeInventory(epoch, cause, vm_id), looked)

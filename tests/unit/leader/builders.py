"""What the tests of the leader's cores are made of: a registry by hand, and submissions."""

import zlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from snooze.common.errors import ErrorReport, Problem
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmErrorCode
from snooze.common.wire import (
    Address,
    HostDescription,
    HostState,
    ManagerDescription,
    ManagerSummary,
    PlacedVm,
    PlacementAnswer,
    VmStatus,
)
from snooze.groupmanager.leader.address_leases import AddressLeases
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.registry import HostEntry, Registry
from snooze.groupmanager.leader.submission_core import SubmissionCore
from snooze.groupmanager.leader.submission_events import (
    AskManager,
    Candidate,
    Decided,
    PlacementAnswered,
    RecordTask,
    RecordWritten,
    SubmissionEffect,
    SubmissionEvent,
    Submitted,
    Ticked,
    VmsReported,
)
from snooze.groupmanager.leader.tasks import Task
from snooze.groupmanager.leader.whereabouts import lose_with
from snooze.scheduling import rulings

E = TypeVar("E")

SMALL = Capacity(1.0, 1024.0)
ROOM = Capacity(4.0, 65536.0, 1000.0, 1000.0)


def manager_of(manager_id: str) -> ManagerDescription:
    return ManagerDescription(
        manager_id, manager_id, Address(manager_id, 1), Address(manager_id, 2)
    )


def host_of(host_id: str, cores: float = 4.0) -> HostDescription:
    capacity = Capacity(cores, 65536.0, 1000.0, 1000.0)
    return HostDescription(host_id, f"name-{host_id}", Address(host_id, 1), capacity)


def summary_of(*rooms: Capacity) -> ManagerSummary:
    """A manager with one host for each of ``rooms``, free to that extent."""
    array = np.array([room.as_tuple() for room in rooms], dtype="<f8").reshape(len(rooms), 4)
    zero = Capacity()
    return ManagerSummary(0, zero, zero, zero, array.tobytes(), [1] * len(rooms), len(rooms), 0)


def host_state(host_id: str, epoch: int, *vms: VmStatus) -> HostState:
    return HostState(host_of(host_id), epoch, list(vms))


def status_of(
    vm_id: str,
    state: VmState,
    host_id: str,
    *,
    generation: int = 1,
    managed: bool = True,
    reason: str = "",
    error_code: str = "",
    ip_address: str = "",
    name: str = "",
) -> VmStatus:
    return VmStatus(
        vm_id,
        name or f"name-{vm_id}",
        state,
        SMALL,
        host_id,
        generation,
        managed=managed,
        reason=reason,
        error_code=error_code,
        ip_address=ip_address,
    )


def candidate(vm_id: str, *, name: str = "", host: str = "", wrong: str = "") -> Candidate:
    problems = (Problem("vms[0]", wrong, VmErrorCode.INVALID_TEMPLATE),) if wrong else ()
    return Candidate(vm_id, name or f"name-{vm_id}", SMALL, host=host, problems=problems)


def only(kind: type[E], effects: Iterable[object]) -> E:
    """The one effect of this kind."""
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, found
    return found[0]


def none(kind: type[E], effects: Iterable[object]) -> bool:
    """Whether no effect is of this kind."""
    return not any(isinstance(effect, kind) for effect in effects)


def must_replay(effects: Iterable[object]) -> None:
    """Each decision that begins carries what it is decided again from, and its alternatives."""
    for effect in effects:
        if not isinstance(effect, Decided) or not effect.reason:
            continue
        inputs = effect.inputs or effect.more
        assert inputs, effect
        replayed = rulings.replay(zlib.decompress(inputs).decode())
        assert replayed is not None
        assert replayed.is_same
        assert replayed.kind == effect.kind.value
        assert effect.actions


class Desk:
    """A submission core with its registry, and a clock that the test moves."""

    def __init__(
        self,
        *managers: str,
        subnets: Sequence[str] = (),
        settled: bool = True,
        max_pending_tasks: int = 1000,
    ) -> None:
        self.now_s = 1000.0
        self.registry = Registry()
        self.leases = AddressLeases(subnets, quarantine_s=60.0)
        self.core = SubmissionCore(
            self.registry,
            self.leases,
            start_timeout_s=300.0,
            retention_ms=100_000,
            max_pending_tasks=max_pending_tasks,
        )
        for manager_id in managers:
            self.add_manager(manager_id)
        if settled:
            self.tick()

    @property
    def now_ms(self) -> int:
        return round(self.now_s * 1000)

    def add_manager(self, manager_id: str, *rooms: Capacity, hosts: bool = True) -> None:
        """A member with one host, ``MANAGER-host``."""
        entry = ManagerEntry(manager_of(manager_id), self.now_s)
        entry.take_summary(summary_of(*(rooms or (ROOM,))), 0.0)
        self.registry.managers[manager_id] = entry
        if hosts:
            self.add_host(f"{manager_id}-host", manager_id)

    def add_host(
        self, host_id: str, manager_id: str, *, joined: bool = True, epoch: int = 1
    ) -> HostEntry:
        host = HostEntry(host_of(host_id), manager_id, epoch, joined, self.now_s)
        self.registry.hosts[host_id] = host
        return host

    def lose_manager(self, manager_id: str) -> None:
        """The membership core says so: its hosts are away from now on."""
        del self.registry.managers[manager_id]
        for host in self.registry.hosts.values():
            if host.manager_id == manager_id and host.joined:
                lose_with(self.registry, host, self.now_s)

    def lose_host(self, host_id: str) -> None:
        host = self.registry.hosts[host_id]
        host.leave(self.now_s)

    def rejoin_host(
        self, host_id: str, manager_id: str, *statuses: VmStatus, epoch: int = 1
    ) -> list[SubmissionEffect]:
        """A host joins a manager and says all it has."""
        self.add_host(host_id, manager_id, epoch=epoch)
        return self.feed_inventory(host_id, manager_id, *statuses)

    def feed_inventory(
        self, host_id: str, manager_id: str, *statuses: VmStatus
    ) -> list[SubmissionEffect]:
        """A manager says all that a host has."""
        return self.feed(VmsReported(manager_id, statuses, self.now_ms, host_id))

    def feed(self, event: SubmissionEvent) -> list[SubmissionEffect]:
        effects = self.core.handle(event, self.now_s)
        must_replay(effects)
        return effects

    def tick(self, seconds: float = 0.0, *, settled: bool = True) -> list[SubmissionEffect]:
        self.now_s += seconds
        return self.feed(Ticked(self.now_ms, settled))

    def submitted(
        self, *candidates: Candidate, partial: bool = False, key: str = "", task_id: str = "task"
    ) -> list[SubmissionEffect]:
        return self.feed(Submitted(7, task_id, candidates, self.now_ms, key, "", partial))

    def submit(self, *vm_ids: str, task_id: str = "task") -> list[AskManager]:
        """Submit and record; what managers are asked."""
        effects = self.submitted(*(candidate(vm_id) for vm_id in vm_ids), task_id=task_id)
        assert only(RecordTask, effects)
        effects = self.feed(RecordWritten(task_id, self.now_ms))
        return [effect for effect in effects if isinstance(effect, AskManager)]

    def answered(
        self, manager_id: str, vm_id: str, host_id: str = "", epoch: int | None = None
    ) -> list[SubmissionEffect]:
        """A manager says where it starts a VM; ``epoch``: not in the host's present assignment."""
        host = self.registry.hosts.get(host_id)
        if epoch is None:
            epoch = host.epoch if host is not None else 0
        placed = PlacedVm(vm_id, host_id, "" if host_id else "no room here", epoch)
        return self.feed(PlacementAnswered(manager_id, PlacementAnswer([placed]), self.now_ms))

    def reported(self, manager_id: str, *statuses: VmStatus) -> list[SubmissionEffect]:
        return self.feed(VmsReported(manager_id, statuses, self.now_ms))

    def run(self, vm_id: str, manager_id: str = "gm1", task_id: str = "task") -> None:
        """Submit a VM and see it run on the manager's host."""
        self.submit(vm_id, task_id=task_id)
        self.answered(manager_id, vm_id, f"{manager_id}-host")
        self.reported(manager_id, status_of(vm_id, VmState.RUNNING, f"{manager_id}-host"))

    def task(self, task_id: str = "task") -> Task:
        return self.core.tasks[task_id]

    def state(self, vm_id: str) -> VmState:
        return self.registry.vms[vm_id].state

    def error_of(self, vm_id: str, task_id: str = "task") -> ErrorReport:
        error = self.task(task_id).vms[vm_id].error
        assert error is not None
        return error

"""A manager's hosts and VMs as plain state, with what each host has promised."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from snooze.common.resources import TOLERANCE, Capacity, FloatArray, R
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmState
from snooze.common.vms import VmReport
from snooze.common.wire import (
    Assignment,
    HostDescription,
    HostDirective,
    HostState,
    StaleCopy,
    VmStatus,
)
from snooze.scheduling.snapshot import HostState as SchedulingState

MAX_VANISHED: Final = 1000
"""A leader that dies has not recorded the end of fewer: it acts on so many in a few seconds."""


@dataclass(slots=True)
class HostEntry:
    """A host whose link to this manager stands.

    ``orders``: how many are under way; ``leaving``: where it is to go once there are none;
    ``sleeping``: it is being sent to sleep.
    ``directed``: the leader has said what holds of it; ``schedulable``: and that it takes VMs;
    ``stale``: domains that are to be discarded first. ``copies``: domains of VMs that another host
    of this manager has with a higher generation.
    """

    description: HostDescription
    epoch: int
    orders: int = 0
    leaving: Assignment | None = None
    sleeping: bool = False
    directed: bool = False
    schedulable: bool = False
    stale: dict[str, StaleCopy] = field(default_factory=dict[str, StaleCopy])
    copies: "dict[str, VmEntry]" = field(default_factory=lambda: {})
    vms: set[str] = field(default_factory=set[str])

    @property
    def takes_vms(self) -> bool:
        """Whether a VM may be placed on it or move to it."""
        taken = self.leaving is not None or self.sleeping
        return self.schedulable and not self.stale and not taken

    @property
    def host_id(self) -> str:
        """Its id."""
        return self.description.host_id


@dataclass(slots=True)
class VmEntry:
    """A VM on a host of this manager.

    ``demand`` is what is reserved for it while its state holds capacity. ``cause`` is the task
    behind its last change. ``ordered``: its start, the first or another, is an open order of ours;
    ``overheard``: how the host told of it meanwhile.
    """

    report: VmReport
    host_id: str
    state: VmState
    demand: Capacity
    cause: str = ""
    reason: str = ""
    ordered: bool = False
    overheard: VmState | None = None

    @property
    def key(self) -> str:
        """Its key: unmanaged domains of two hosts may share a UUID."""
        managed = self.report.managed
        return self.report.vm_id if managed else f"{self.report.vm_id}@{self.host_id}"

    def status(
        self, error_code: str = "", host_id: str | None = None, failed_on: str = ""
    ) -> VmStatus:
        """What the leader is told."""
        report = self.report
        return VmStatus(
            vm_id=report.vm_id,
            name=report.name,
            state=self.state,
            demand=self.demand,
            host_id=self.host_id if host_id is None else host_id,
            generation=report.generation,
            managed=report.managed,
            ip_address=report.ip_address,
            mac_address=report.mac_address,
            image=report.image,
            reason=self.reason,
            cause=self.cause,
            error_code=error_code,
            policy=report.policy,
            fenced=report.fenced,
            interrupted=report.interrupted,
            halted=report.halted and self.state is VmState.PAUSED,
            failed_on=failed_on,
        )


class HostTable:
    """Hosts in the order in which they joined, VMs by key, and the arrays that placement needs.

    ``capacity`` and ``reserved`` are ``float64[H, R]``, one row a host, in the order of ``order``.
    ``empty`` are the hosts without VMs. ``vanished``: the VMs that ended here lately; a leader that
    is new may not have heard of it.
    ``version`` changes whenever hosts do (not when only reservations do), ``reservations`` then.
    """

    def __init__(self) -> None:
        self.hosts: dict[str, HostEntry] = {}
        self.vms: dict[str, VmEntry] = {}
        self.order: list[str] = []
        self.capacity: FloatArray = np.zeros((0, R))
        self.reserved: FloatArray = np.zeros((0, R))
        self._row: dict[str, int] = {}
        self.empty: dict[str, None] = {}
        self.vanished: deque[VmStatus] = deque(maxlen=MAX_VANISHED)
        self.version = self.reservations = 0

    def add_host(self, host: HostEntry) -> None:
        """A host joined; it must not be here already."""
        self.version += 1
        self._row[host.host_id] = len(self.order)
        self.order.append(host.host_id)
        self.hosts[host.host_id] = host
        self.empty[host.host_id] = None
        row = host.description.capacity.as_array()
        self.capacity = np.vstack([self.capacity, row])
        self.reserved = np.vstack([self.reserved, np.zeros(R)])

    def remove_host(self, host_id: str) -> list[VmEntry]:
        """A host left; its VMs go with it and are returned."""
        host = self.hosts.pop(host_id, None)
        if host is None:
            return []
        self.version += 1
        self.empty.pop(host_id, None)
        gone = [self.vms.pop(key) for key in sorted(host.vms)]
        row = self._row.pop(host_id)
        del self.order[row]
        self._row = {name: index for index, name in enumerate(self.order)}
        self.capacity = np.delete(self.capacity, row, axis=0)
        self.reserved = np.delete(self.reserved, row, axis=0)
        return gone

    def set_leaving(self, host: HostEntry, assignment: Assignment | None) -> None:
        """A host is to go elsewhere (it takes no more VMs), or may stay after all."""
        self.version += 1
        host.leaving = assignment

    def set_sleeping(self, host: HostEntry, *, sleeping: bool) -> None:
        """A host is being sent to sleep (it takes no more VMs), or stays after all."""
        self.version += 1
        host.sleeping = sleeping

    def set_directive(self, host: HostEntry, directive: HostDirective) -> None:
        """The leader says what holds of a host."""
        self.version += 1
        host.directed, host.schedulable = True, directive.schedulable
        host.stale = {copy.vm_id: copy for copy in directive.stale}

    def set_aside(self, vm: VmEntry) -> None:
        """A VM of the table is a copy only: another host has it, or will."""
        self.remove_vm(vm)
        self.hosts[vm.host_id].copies[vm.key] = vm

    def discarded(self, host: HostEntry, vm_id: str) -> None:
        """A stale copy is gone from a host."""
        self.version += 1
        host.stale.pop(vm_id, None)
        host.copies.pop(vm_id, None)

    def row_of(self, host_id: str) -> int | None:
        """The host's row in the arrays; None if it is not here."""
        return self._row.get(host_id)

    def put_vm(self, vm: VmEntry) -> None:
        """A VM is on its host from now on; replaces an entry of the same key."""
        former = self.vms.get(vm.key)
        if former is not None:
            self.remove_vm(former)
        self.vms[vm.key] = vm
        self.hosts[vm.host_id].copies.pop(vm.key, None)
        self.hosts[vm.host_id].vms.add(vm.key)
        self.empty.pop(vm.host_id, None)
        if vm.state in HOLDS_CAPACITY:
            self._reserve(vm.host_id, vm.demand, 1.0)

    def remove_vm(self, vm: VmEntry) -> None:
        """A VM is no longer on its host."""
        if self.vms.pop(vm.key, None) is None:
            return
        host = self.hosts[vm.host_id]
        host.vms.discard(vm.key)
        if not host.vms:
            self.empty[vm.host_id] = None
        if vm.state in HOLDS_CAPACITY:
            self._reserve(vm.host_id, vm.demand, -1.0)

    def set_state(self, vm: VmEntry, state: VmState) -> None:
        """Change a VM's state, and its reservation where the states differ in that."""
        held, holds = vm.state in HOLDS_CAPACITY, state in HOLDS_CAPACITY
        vm.state = state
        if held != holds:
            self._reserve(vm.host_id, vm.demand, 1.0 if holds else -1.0)

    def set_demand(self, vm: VmEntry, demand: Capacity) -> None:
        """Change what is reserved for a VM."""
        if vm.state in HOLDS_CAPACITY:
            self._reserve(vm.host_id, demand.minus(vm.demand), 1.0)
        vm.demand = demand

    def promise(self, host_id: str, demand: Capacity, sign: float) -> None:
        """Reserve (+1) or give back (-1) room for a VM that is not here yet."""
        if host_id in self._row:
            self._reserve(host_id, demand, sign)

    def _reserve(self, host_id: str, demand: Capacity, sign: float) -> None:
        self.reservations += 1
        self.reserved[self._row[host_id]] += sign * demand.as_array()

    def fits(self, host_id: str, demand: Capacity, limit: FloatArray) -> bool:
        """Whether the host has room; ``limit[R]`` scales its capacity (overcommit, headroom)."""
        row = self._row[host_id]
        room = self.capacity[row] * limit
        slack = TOLERANCE * np.maximum(1.0, room)
        return bool((self.reserved[row] + demand.as_array() <= room + slack).all())

    def free(self, limit: FloatArray) -> FloatArray:
        """``float64[H, R]``: what is free on the hosts that take VMs, never negative."""
        taking = [self.hosts[host_id].takes_vms for host_id in self.order]
        room = np.maximum(self.capacity * limit - self.reserved, 0.0)
        result: FloatArray = room[np.array(taking, dtype=np.bool_)] if taking else room
        return result

    def states(self, host_ids: Iterable[str] | None = None) -> list[int]:
        """``HostState`` of each host, or of those named, for placement."""
        return [
            int(
                SchedulingState.DRAINING
                if not self.hosts[host_id].takes_vms
                else SchedulingState.ACTIVE
            )
            for host_id in (self.order if host_ids is None else host_ids)
        ]

    def reserved_on(self, host_id: str) -> Capacity:
        """What the host has promised."""
        return Capacity.of(np.maximum(self.reserved[self._row[host_id]], 0.0))

    def vms_on(self, host_id: str) -> Iterator[VmEntry]:
        """The VMs of a host, in the order of their keys."""
        return (self.vms[key] for key in sorted(self.hosts[host_id].vms))

    def state_of(self, host_id: str) -> HostState:
        """A host as the leader is told of it."""
        host = self.hosts[host_id]
        statuses = [vm.status() for vm in self.vms_on(host_id)]
        statuses += [vm.status() for _, vm in sorted(host.copies.items())]
        return HostState(host.description, host.epoch, statuses)

    def is_outdated(self, told: HostState | None, host_id: str) -> bool:
        """Whether what was told of a host is of a former joining, or names VMs that are gone."""
        host = self.hosts[host_id]
        if told is None or told.epoch != host.epoch:
            return True
        return any(
            (vm.vm_id if vm.managed else f"{vm.vm_id}@{host_id}") not in host.vms
            and vm.vm_id not in host.copies
            for vm in told.vms
        )

    def find(self, vm_id: str) -> VmEntry | None:
        """A VM by key, or a managed one by name."""
        found = self.vms.get(vm_id) or self.vms.get(vm_id.replace("-", ""))
        if found is not None:
            return found
        return next(
            (vm for vm in self.vms.values() if vm.report.name == vm_id and vm.report.managed), None
        )

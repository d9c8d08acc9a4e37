"""What a second of the leader's own looking costs, whatever nobody asked for, by number of hosts.

The leader's cores are ticked as its shell ticks them (four times a second: membership, submissions,
recovery, drains, energy; and the meter), with energy saving on. Of the hosts six in ten are full of
VMs, one in ten is up and idle (the reserve, which may not sleep), three in ten sleep. In each
second one VM stops, one starts, and one group manager tells of its hosts. *Waiting*: besides, VMs
that no host in reach can hold wait for hosts that are woken. Time is that of the process.

``python -m benchmarks leader-tick [--hosts 1000 10000] [--vms 10] [--seconds 40]``
"""

import argparse
import time
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks import _report
from snooze.common.records import HostPower
from snooze.common.resources import KIB_PER_GIB, Capacity, R
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import (
    Address,
    HostDescription,
    ManagerDescription,
    ManagerSummary,
    PowerDescription,
)
from snooze.groupmanager.leader import (
    drain_events,
    energy_events,
    membership_core,
    recovery_events,
    submission_events,
)
from snooze.groupmanager.leader.address_leases import AddressLeases
from snooze.groupmanager.leader.drain_core import DrainCore
from snooze.groupmanager.leader.energy_core import EnergyCore
from snooze.groupmanager.leader.energy_meter_core import EnergyMeter
from snooze.groupmanager.leader.energy_rules import EnergyPolicy
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.membership_core import MembershipCore
from snooze.groupmanager.leader.recovery_core import RecoveryCore
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.groupmanager.leader.submission_core import SubmissionCore

TICKS: Final = 4
"""A second, as in ``leader/service.py``."""
HOSTS_EACH: Final = 100
"""Of a group manager."""
START_S: Final = 100_000.0
START_MS: Final = 1_767_571_200_000
ROOM: Final = Capacity(16.0, 64.0 * KIB_PER_GIB, 1.2e5, 1.2e5)
POWER: Final = PowerDescription("test", "", ("shutdown",), 100.0, 200.0, 5.0)
ZERO: Final = Capacity()


class Cluster:
    """The leader's cores, and a registry that has been quiet for long."""

    def __init__(self, hosts: int, vms: int, waiting: int) -> None:
        self.now_s = START_S
        registry = self.registry = Registry()
        self.demand = Capacity(ROOM.cpu_cores / vms, ROOM.memory_kib / vms, 10.0, 10.0)
        for number in range(max(1, hosts // HOSTS_EACH)):
            name = f"gm{number}"
            address = Address(name, 1)
            entry = ManagerEntry(ManagerDescription(name, name, address, address), 0.0)
            registry.managers[name] = entry
        names = list(registry.managers)
        self.full: list[str] = []
        for number in range(hosts):
            host_id, manager_id = f"node{number:05}", names[number // 10 % len(names)]
            described = HostDescription(host_id, host_id, Address(host_id, 1), ROOM, power=POWER)
            host = HostEntry(described, manager_id, 1, True, 0.0, in_record=True)
            registry.hosts[host_id] = host
            if number % 10 < 6:
                self.full.append(host_id)
            elif number % 10 == 6:
                registry.managers[manager_id].idle[host_id] = START_S - 10_000.0
            else:
                host.joined, host.given_up, host.acquitted = False, True, True
                host.in_record, host.away, host.reachable_s = False, True, -np.inf
                host.state, host.state_since_ms = HostPower.ASLEEP, START_MS - 10_000_000
            if host.joined:
                registry.managers[manager_id].hosts.add(host_id)
        self.serial = 0
        for host_id in self.full:
            for _ in range(vms):
                self.start_vm(host_id)
        self.lead(registry)
        self.waiting = [self.wait_vm(number) for number in range(waiting)]

    def lead(self, registry: Registry) -> None:
        """The cores of a leader of this registry."""
        self.registry, limit = registry, np.ones(R)
        policy = EnergyPolicy(enabled=True, idle_s=60.0, reserve_share=Capacity(0.1428, 0.1428))
        self.submissions = SubmissionCore(registry, AddressLeases((), 60.0), limit=limit)
        self.recovery = RecoveryCore(registry, 0.0)
        self.membership = MembershipCore(registry, "leader", 1)
        self.drains = DrainCore(registry, limit, limit)
        self.energy = EnergyCore(registry, "leader", 1, limit, policy)
        self.meter = EnergyMeter(registry)
        self.effects = 0

    def start_vm(self, host_id: str) -> None:
        self.serial += 1
        vm = VmEntry(f"{self.serial:032x}", f"vm{self.serial}", self.demand, VmState.RUNNING)
        vm.host_id, vm.manager_id = host_id, self.registry.hosts[host_id].manager_id
        self.registry.add_vm(vm)

    def wait_vm(self, number: int) -> VmEntry:
        vm = VmEntry(f"w{number:031x}", f"wait{number}", ROOM, VmState.PENDING)
        vm.lacks_room = True
        self.registry.add_vm(vm)
        return vm

    def second(self) -> float:
        """One second goes by; milliseconds of work."""
        self.stir()
        began_s = time.process_time()
        for tick in range(TICKS):
            self.now_s += 1.0 / TICKS
            now_s, now_ms = self.now_s, START_MS + round(1000 * (self.now_s - START_S))
            self.membership.handle(membership_core.Ticked(), now_s)
            self.submissions.handle(submission_events.Ticked(now_ms, True), now_s)
            self.recovery.handle(recovery_events.Ticked(now_ms), now_s)
            self.drains.handle(drain_events.DrainTicked(now_ms, True), now_s)
            done = self.energy.handle(energy_events.Ticked(now_ms, True), now_s)
            self.effects += sum(isinstance(each, energy_events.OrderSleep) for each in done)
            if tick == 0 and self.now_s - self.meter.stepped_s >= len(self.registry.hosts) / 1000:
                self.meter.step(now_s, now_ms)
        return 1000 * (time.process_time() - began_s)

    def stir(self) -> None:
        """A VM goes, another comes, a manager tells of its hosts."""
        number = round(self.now_s)
        host_id = self.full[number % len(self.full)]
        gone = next(self.registry.vms_of_host(host_id))
        self.registry.remove_vm(gone)
        self.start_vm(host_id)
        managers = list(self.registry.managers)
        manager = self.registry.managers[managers[number % len(managers)]]
        summary = ManagerSummary(0, ZERO, ZERO, ZERO, b"", [], HOSTS_EACH, 0, partial=True)
        manager.take_summary(summary, self.now_s)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks leader-tick", description=__doc__)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--vms", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=40)
    parser.add_argument("--output")
    options = parser.parse_args(arguments)
    rows: list[list[object]] = []
    result: dict[str, Any] = {}
    for hosts in options.hosts:
        for waiting in (0, 20):
            cluster = Cluster(hosts, options.vms, waiting)
            cluster.second()
            spent = [cluster.second() for _ in range(options.seconds)]
            what = "waiting" if waiting else "quiet"
            rows.append([hosts, len(cluster.registry.vms), what, median(spent), max(spent)])
            result[f"{hosts} {what}"] = spent
    print(_report.machine())
    print(_report.table(["hosts", "VMs", "", "a second, ms", "most"], rows))
    _report.write(options.output, result)
    return 0

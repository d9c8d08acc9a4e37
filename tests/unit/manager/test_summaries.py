"""The leader knows of busy and idle hosts what it is to know, though only changes are told."""

from dataclasses import dataclass, field
from random import Random
from typing import cast

import numpy as np

from snooze.common.clock import Clock
from snooze.common.resources import Capacity, R
from snooze.common.usage import HostSamples, HostUsage, MachineUsage, VmUsage
from snooze.common.wire import Address, HostDescription, ManagerDescription, ManagerSummary
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.manager.host_table import HostEntry, HostTable
from snooze.groupmanager.manager.leader_link import LeaderLink
from snooze.groupmanager.manager.monitoring import Monitoring
from snooze.groupmanager.manager.summaries import (
    CORES_S,
    CORES_SHARE,
    MOST_STIRRED,
    WHOLE_S,
    Summaries,
)

CORES = 16.0
HOSTS = 80


@dataclass
class Wire:
    """The link to a leader that notes what it hears, unless the link is full."""

    leader: ManagerEntry
    now_s: float = 1000.0
    full: bool = False
    heard: list[ManagerSummary] = field(default_factory=list[ManagerSummary])

    def notify(self, summary: ManagerSummary, *, droppable: bool) -> bool:
        assert droppable
        if self.full:
            return False
        self.heard.append(summary)
        self.leader.take_summary(summary, self.now_s)
        return True


@dataclass
class Leader:
    link: Wire | None


@dataclass
class WireClock:
    wire: Wire

    def monotonic_s(self) -> float:
        return self.wire.now_s

    def wall_ms(self) -> int:
        return round(self.wire.now_s * 1000)


def leader_entry() -> ManagerEntry:
    manager = ManagerDescription("gm", "gm", Address("m", 1), Address("m", 2))
    return ManagerEntry(manager, 1000.0)


class Rig:
    """A manager of ``HOSTS`` hosts and what its leader knows of them."""

    def __init__(self) -> None:
        self.table = HostTable()
        self.monitoring = Monitoring()
        self.idle_since_s: dict[str, float] = {}
        for number in range(HOSTS):
            host_id = f"h{number}"
            capacity = Capacity(CORES, 1024.0, 1.0, 1.0)
            description = HostDescription(host_id, host_id, Address("h", 1), capacity)
            self.table.add_host(HostEntry(description, 1, directed=True, schedulable=True))
        self.wire = Wire(leader_entry())
        self.leader = Leader(self.wire)
        self.clock = WireClock(self.wire)
        self.summaries = Summaries(
            self.table,
            np.ones(R),
            self.monitoring,
            cast(LeaderLink, self.leader),
            cast(Clock, self.clock),
            1.0,
            lambda now_s: {h: round(now_s - s, 1) for h, s in self.idle_since_s.items()},
        )

    def connect(self) -> None:
        """Join a leader that knows nothing."""
        self.wire = self.leader.link = self.clock.wire = Wire(leader_entry(), self.wire.now_s)

    def use(self, host_id: str, cores: float, watts: float | None = None) -> None:
        machine = None if watts is None else MachineUsage(Capacity(cores, 1.0), power_w=watts)
        usage = HostUsage([VmUsage("vm-" + host_id, 0, Capacity(cores, 1.0))], machine)
        self.monitoring.push(host_id, HostSamples.of(0, usage, 3000), self.wire.now_s)

    def run(self, seconds: float) -> list[ManagerSummary]:
        before = len(self.wire.heard)
        for _ in range(round(seconds)):
            self.wire.now_s += 1.0
            self.summaries.now()
        return self.wire.heard[before:]


def test_what_does_not_change_is_told_once() -> None:
    rig = Rig()
    for host_id in rig.table.order:
        rig.use(host_id, 4.0)
    rig.idle_since_s["h3"] = 900.0
    (first,) = rig.run(1)
    assert len(first.cores) == HOSTS
    assert not first.partial
    later = rig.run(WHOLE_S - 2)
    assert all(s.partial and not (s.cores or s.stirred or s.idle) for s in later)
    assert rig.wire.leader.idle == {"h3": 900.0}
    assert len(rig.run(2)[-1].cores) == HOSTS, "now and then all of it"


def test_a_few_are_told_at_a_time_and_all_of_them_in_the_end() -> None:
    rig = Rig()
    rig.run(1)
    for number, host_id in enumerate(rig.table.order):
        rig.use(host_id, 2.0 + number / 10)
    told = [len(s.stirred) for s in rig.run(3 * CORES_S)]
    assert max(told) == MOST_STIRRED
    assert sum(told) == HOSTS
    assert rig.wire.leader.cores["h10"] == 3.0


def test_what_was_dropped_is_told_again() -> None:
    rig = Rig()
    rig.run(1)
    rig.wire.full = True
    rig.use("h1", 8.0)
    rig.idle_since_s["h2"] = 950.0
    rig.run(CORES_S + 1)
    assert rig.wire.leader.cores.get("h1", 0.0) == 0.0
    rig.wire.full = False
    rig.run(1)
    assert rig.wire.leader.cores["h1"] == 8.0
    assert rig.wire.leader.idle == {"h2": 950.0}


def test_a_new_leader_hears_all_of_it() -> None:
    rig = Rig()
    rig.use("h1", 8.0)
    rig.run(2)
    rig.connect()
    rig.run(1)
    assert rig.wire.leader.cores["h1"] == 8.0


def test_the_leader_is_right_within_the_threshold_whatever_happens() -> None:
    rig, random = Rig(), Random(7)
    for _ in range(40):
        for host_id in random.sample(rig.table.order, 20):
            rig.use(host_id, round(random.uniform(0, CORES), 2), random.choice([None, 90.0, 200.0]))
        for host_id in random.sample(rig.table.order, 5):
            if rig.idle_since_s.pop(host_id, None) is None:
                rig.idle_since_s[host_id] = rig.wire.now_s
        rig.run(random.choice([1, 7, 30]))
    rig.run(4 * CORES_S)
    for host_id in rig.table.order:
        used = rig.monitoring.host_used(host_id).cpu_cores
        machine = rig.monitoring.machine(host_id)
        told = rig.wire.leader.cores.get(host_id, 0.0)
        assert abs(told - used) <= CORES_SHARE * CORES + 0.01
        assert (host_id in rig.wire.leader.watts) == (
            machine is not None and machine.power_w is not None
        )
    assert rig.wire.leader.idle.keys() == rig.idle_since_s.keys()


def test_a_leader_takes_in_what_changed_once() -> None:
    rig = Rig()
    rig.use("h1", 8.0)
    rig.run(1)
    assert set(rig.wire.leader.take_stirred()) == set(rig.table.order)
    rig.use("h2", 8.0)
    rig.run(CORES_S)
    assert rig.wire.leader.take_stirred() == ["h2"]
    assert rig.wire.leader.take_stirred() == []


def test_a_host_that_came_later_and_does_nothing_is_told_of() -> None:
    rig = Rig()
    for host_id in rig.table.order:
        rig.use(host_id, 4.0)
    rig.run(1)
    description = HostDescription("new", "new", Address("h", 1), Capacity(CORES, 1.0, 1.0, 1.0))
    rig.table.add_host(HostEntry(description, 1, directed=True, schedulable=True))
    told = [s.stirred for s in rig.run(2 * CORES_S) if s.stirred]
    assert told == [{"new": 0.0}], "nobody moves a VM to a host of which nothing is known"

"""How long a new leader's event loop is held, by what it does, until it has taken over.

The leader's cores are told what its shell tells them: the record's hosts, its VMs piece by piece,
each group manager with its hosts and VMs, and ticks four times a second, energy saving on, until
well after it has settled. A *turn* is what is done without anything else being heard in between:
what one manager says, or all that one tick does. Hosts are as in ``leader-tick``. Time is that of
the process.

``python -m benchmarks new-leader [--hosts 1000 10000] [--vms 17] [--seconds 40]``
"""

import argparse
import functools
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from benchmarks import _report
from benchmarks.leader_tick import START_MS, START_S, TICKS, ZERO, Cluster
from snooze.common.wire import HostState, ManagerDescription, ManagerSummary, VmStatus
from snooze.groupmanager.leader import (
    drain_events,
    energy_events,
    membership_core,
    recovery_events,
    submission_events,
    takeover,
)
from snooze.groupmanager.leader.following import AT_ONCE, Follower, begin, pieces
from snooze.groupmanager.leader.ha_reserve import shortfall
from snooze.groupmanager.leader.registry import Registry
from snooze.groupmanager.leader.registry_loads import LoadsFollower
from snooze.groupmanager.leader.vm_views import record_of
from snooze.groupmanager.leader.whereabouts import is_news

SETTLE_S: Final = 3.0
RESERVE_EVERY_S: Final = 5.0
Step = tuple[str, Callable[[], object]]


class NewLeader(Cluster):
    """A leader that takes over from another; ``at_once``: it does not follow in pieces."""

    at_once = False

    def turns(self, seconds: int) -> Iterator[tuple[str, list[Step]]]:
        """What it does, and the steps of it."""
        former = self.registry
        hosts = [host.record() for host in former.hosts.values()]
        vms = [record_of(vm) for vm in former.vms.values()]
        self.now_s = START_S
        self.lead(Registry())
        begin(*self._followers())
        for event in takeover.pieces_of_hosts(hosts):
            yield "hosts of the record", [self._membership(event)]
        for piece in takeover.pieces_of_vms(vms, START_MS):
            yield "VMs of the record", [self._submissions(piece)]
        yield "all VMs once", [self._submissions(submission_events.StateLoaded((), (), START_MS))]
        for manager_id, entry in former.managers.items():
            states = [
                HostState(former.hosts[host_id].description, 1, list(statuses(former, host_id)))
                for host_id in sorted(entry.hosts)
            ]
            yield "a manager joins", [self._joins(entry.description, states)]
            idle = {host_id: self.now_s - since_s for host_id, since_s in entry.idle.items()}
            summary = ManagerSummary(0, ZERO, ZERO, ZERO, b"", [], len(states), 0, idle=idle)
            self.registry.managers[manager_id].take_summary(summary, self.now_s)
        for tick in range(TICKS * seconds):
            self.now_s += 1.0 / TICKS
            if not self.at_once and self.now_s - START_S > SETTLE_S:
                for follow in self._behind():
                    yield "catching up", [("", follow)]
            yield "a tick", list(self._tick(tick))

    def _behind(self) -> Iterator[Callable[[], None]]:
        """As ``following.catch_up`` does."""
        for follower in self._followers():
            for _ in range(pieces(follower)):
                yield functools.partial(follower.follow, AT_ONCE)

    def _followers(self) -> tuple[Follower, ...]:
        return LoadsFollower(self.registry), self.energy.table, self.meter

    def _membership(self, event: membership_core.MembershipEvent) -> Step:
        return "", lambda: self.membership.handle(event, self.now_s)

    def _submissions(self, event: submission_events.SubmissionEvent) -> Step:
        return "", lambda: self.submissions.handle(event, self.now_s)

    def _joins(self, manager: ManagerDescription, hosts: list[HostState]) -> Step:
        return "", lambda: self._joined(membership_core.ManagerJoined(manager, hosts))

    def _joined(self, joined: membership_core.ManagerJoined) -> None:
        """As ``LeaderService`` does when a manager joins."""
        now_s, manager_id = self.now_s, joined.manager.manager_id
        self.membership.handle(joined, now_s)
        moved = [vm for state in joined.hosts for vm in state.vms if is_news(self.registry, vm)]
        self.submissions.handle(submission_events.VmsReported(manager_id, moved, START_MS), now_s)
        for state in joined.hosts:
            host_id = state.host.host_id
            told = submission_events.VmsReported(manager_id, state.vms, START_MS, host_id)
            self.submissions.handle(told, now_s)
            self.energy.handle(energy_events.HostSeen(host_id, START_MS), now_s)
        self.submissions.handle(submission_events.ManagerHeard(manager_id, START_MS), now_s)
        host_ids = [state.host.host_id for state in joined.hosts]
        self.recovery.handle(recovery_events.HostHeard(manager_id, host_ids, START_MS), now_s)

    def _tick(self, tick: int) -> Iterator[Step]:
        """As ``LeaderService`` and the shells of its cores do a few times a second."""
        now_s, now_ms = self.now_s, START_MS + round(1000 * (self.now_s - START_S))
        settled = now_s - START_S > SETTLE_S
        yield "membership", lambda: self.membership.handle(membership_core.Ticked(), now_s)
        yield (
            "submissions",
            lambda: self.submissions.handle(submission_events.Ticked(now_ms, settled), now_s),
        )
        yield "recovery", lambda: self.recovery.handle(recovery_events.Ticked(now_ms), now_s)
        if tick % round(TICKS * RESERVE_EVERY_S) == 0 and tick:
            yield "HA reserve", lambda: shortfall(self.registry, self.energy.limit)
        yield "drains", lambda: self.drains.handle(drain_events.DrainTicked(now_ms, settled), now_s)
        yield "energy", lambda: self.energy.handle(energy_events.Ticked(now_ms, settled), now_s)
        if settled and now_s - self.meter.stepped_s >= max(1.0, len(self.registry.hosts) / 1000):
            yield "meter", lambda: self.meter.step(now_s, now_ms)


def statuses(registry: Registry, host_id: str) -> Iterator[VmStatus]:
    for vm in registry.vms_of_host(host_id):
        yield VmStatus(vm.vm_id, vm.name, vm.state, vm.demand, vm.host_id, vm.generation)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks new-leader", description=__doc__)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--vms", type=int, default=17)
    parser.add_argument("--seconds", type=int, default=40)
    parser.add_argument("--at-once", action="store_true", help="as it was: nothing in pieces")
    parser.add_argument("--output")
    options = parser.parse_args(arguments)
    rows: list[list[object]] = []
    result: dict[str, Any] = {}
    gc.disable()  # what it would look at is the former leader's world, too
    for hosts in options.hosts:
        leader = NewLeader(hosts, options.vms, 0)
        leader.at_once = options.at_once
        longest: dict[str, tuple[float, str]] = {}
        for name, steps in leader.turns(options.seconds):
            spent: list[tuple[float, str]] = []
            for part, do in steps:
                began_s = time.process_time()
                do()
                spent.append((1000 * (time.process_time() - began_s), part))
            turn_ms = sum(took_ms for took_ms, _ in spent)
            parts = ", ".join(f"{part} {ms:.0f}" for ms, part in sorted(spent)[::-1] if ms >= 1)
            longest[name] = max(longest.get(name, (0.0, "")), (turn_ms, parts))
        vms = len(leader.registry.vms)
        for name, (turn_ms, parts) in longest.items():
            rows.append([hosts, vms, name, turn_ms, parts])
        result[str(hosts)] = longest
        del leader
        gc.collect()
    print(_report.machine())
    print(_report.table(["hosts", "VMs", "turn", "longest, ms", "of which"], rows))
    _report.write(options.output, result)
    return 0

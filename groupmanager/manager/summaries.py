"""What is free on a manager's hosts, as the leader is told: regularly, and soon after a change."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from snooze.common.clock import Clock
from snooze.common.resources import ZERO, Capacity, FloatArray
from snooze.common.transport.link import Link
from snooze.common.wire import ManagerSummary
from snooze.groupmanager.manager.host_table import HostTable
from snooze.groupmanager.manager.leader_link import LeaderLink
from snooze.groupmanager.manager.monitoring import Monitoring
from snooze.scheduling import dispatching

DELAY_S = 0.02
"""Changes within this time go up in one summary, at least."""
SHARE = 0.05
"""Summaries take at most this part of the manager's time: many unlike hosts take longer."""

CORES_S = 10.0
"""How often the leader is told which hosts are much busier or less busy than it was told: it meters
power by it, and chooses where an overload goes."""
IDLE_STEP_S = 0.5
"""A host that is idle since a time that differs so much was busy meanwhile."""
CORES_SHARE = 0.05
WATTS_SHARE = 0.05
"""What is much: a part of a host's cores, and of the watts told last."""
MOST_STIRRED = 32
"""Of so many hosts at a time, the most changed first; the others' turn comes next."""
WHOLE_S = 300.0
"""How often it is told of all hosts: should it have missed something, or be of a version that takes
in nothing else."""


@dataclass(frozen=True, slots=True)
class _Free:
    """What a manager's hosts have and what is free of it."""

    capacity: Capacity
    reserved: Capacity
    room: bytes
    count: list[int]


_NOTHING = _Free(ZERO, ZERO, b"", [])


class Summaries:
    """Summaries of one manager's hosts."""

    def __init__(
        self,
        table: HostTable,
        limit: FloatArray,
        monitoring: Monitoring,
        leader: LeaderLink,
        clock: Clock,
        interval_s: float,
        idle: Callable[[float], dict[str, float]],
    ) -> None:
        """``limit[R]`` scales a host's capacity (overcommit, headroom); ``idle``: for how long."""
        self._table = table
        self._limit = limit
        self._monitoring = monitoring
        self._leader = leader
        self._clock = clock
        self._interval_s = interval_s
        self._idle = idle
        self._due = False
        self._cost_s = 0.0
        self._sent_s = -math.inf
        self._link: Link | None = None
        self._whole_due_s = self._stirred_due_s = -math.inf
        self._idle_told: dict[str, float] = {}
        self._cores_told: dict[str, float] = {}
        self._watts_told: dict[str, float] = {}
        self._free_of = (-1, -1)
        self._free = _NOTHING
        self._after: list[tuple[asyncio.Future[msgspec.Struct], msgspec.Struct]] = []

    def answer_after(self, future: asyncio.Future[msgspec.Struct], answer: msgspec.Struct) -> None:
        """Answer after the next summary: whoever hears it may rely on what it says is free."""
        self._after.append((future, answer))
        if self._clock.monotonic_s() - self._sent_s > self._pause_s:
            self.now()
        else:
            self.soon()

    async def keep(self) -> None:
        """Tell it regularly."""
        while True:
            await asyncio.sleep(self._interval_s)
            self._monitoring.expire(self._clock.monotonic_s())
            self.now()

    def soon(self) -> None:
        """Tell it soon; changes meanwhile go with it."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(self._pause_s, self.now)

    @property
    def _pause_s(self) -> float:
        return max(DELAY_S, self._cost_s / SHARE)

    def now(self) -> None:
        """Tell it now."""
        self._due = False
        self._sent_s = self._clock.monotonic_s()
        self._tell_what_is_free()
        waiting, self._after = self._after, []
        for future, answer in waiting:
            if not future.done():
                future.set_result(answer)

    def _tell_what_is_free(self) -> None:
        link = self._leader.link
        if link is None:
            return
        now_s = self._clock.monotonic_s()
        if link is not self._link:
            self._link, self._whole_due_s = link, now_s
        is_whole = now_s >= self._whole_due_s
        free = self._what_is_free()
        idle = self._idle(now_s)
        cores, watts = self._busy() if is_whole or now_s >= self._stirred_due_s else ({}, {})
        summary = ManagerSummary(
            taken_ms=self._clock.wall_ms(),
            capacity=free.capacity,
            reserved=free.reserved,
            used=self._monitoring.total_used(),
            room=free.room,
            count=free.count,
            hosts=len(self._table.order),
            vms=len(self._table.vms),
            idle=idle if is_whole else self._changes_of(idle, now_s),
            cores=cores if is_whole else {},
            watts=watts if is_whole else {},
            partial=not is_whole,
            stirred={} if is_whole else self._stirred(cores),
            stirred_watts={} if is_whole else self._stirred_watts(watts),
        )
        if not link.notify(summary, droppable=True):
            return
        if is_whole:
            self._whole_due_s = now_s + WHOLE_S
            self._cores_told, self._watts_told = dict(cores), dict(watts)
        if cores:
            self._stirred_due_s = now_s + CORES_S
        self._idle_told = {host_id: now_s - idle_s for host_id, idle_s in idle.items()}
        self._cores_told.update(summary.stirred)
        for host_id, told_w in summary.stirred_watts.items():
            if told_w < 0:
                del self._watts_told[host_id]
            else:
                self._watts_told[host_id] = told_w

    def _what_is_free(self) -> _Free:
        """Reckoned anew when hosts or reservations have changed."""
        table = self._table
        of = (table.version, table.reservations)
        if of != self._free_of:
            started_s = self._clock.monotonic_s()
            room, count = dispatching.histogram(table.free(self._limit))
            self._free = _Free(
                Capacity.of(table.capacity.sum(axis=0)),
                Capacity.of(table.reserved.sum(axis=0).clip(min=0.0)),
                room.astype("<f8").tobytes(),
                [int(number) for number in count],
            )
            self._free_of = of
            self._cost_s = self._clock.monotonic_s() - started_s
        return self._free

    def _changes_of(self, idle: dict[str, float], now_s: float) -> dict[str, float]:
        told_s = self._idle_told
        changes = {
            host_id: idle_s
            for host_id, idle_s in idle.items()
            if abs(told_s.get(host_id, math.inf) - (now_s - idle_s)) > IDLE_STEP_S
        }
        changes.update((host_id, -1.0) for host_id in told_s if host_id not in idle)
        return changes

    def _busy(self) -> tuple[dict[str, float], dict[str, float]]:
        """What each host's CPUs do and what its RAPL counts."""
        cores: dict[str, float] = {}
        watts: dict[str, float] = {}
        for host_id in self._table.order:
            machine = self._monitoring.machine(host_id)
            used = self._monitoring.host_used(host_id) if machine is None else machine.used
            cores[host_id] = round(used.cpu_cores, 2)
            if machine is not None and machine.power_w is not None:
                watts[host_id] = round(machine.power_w, 1)
        return cores, watts

    def _stirred(self, cores: dict[str, float]) -> dict[str, float]:
        """The hosts that are much busier, or less, than was told; and those never told of."""
        if cores:
            told = self._cores_told.items()
            self._cores_told = {host_id: was for host_id, was in told if host_id in cores}
        stirred: list[tuple[float, str]] = []
        for host_id, now in cores.items():
            has = self._table.hosts[host_id].description.capacity.cpu_cores
            told_cores = self._cores_told.get(host_id, math.inf)
            share = abs(now - told_cores) / max(has, 1.0)
            if share > CORES_SHARE:
                stirred.append((share, host_id))
        return {host_id: cores[host_id] for host_id in _most(stirred)}

    def _stirred_watts(self, watts: dict[str, float]) -> dict[str, float]:
        stirred: list[tuple[float, str]] = []
        for host_id, now in watts.items():
            told = self._watts_told.get(host_id, 0.0)
            share = abs(now - told) / max(told, 1.0)
            if share > WATTS_SHARE:
                stirred.append((share, host_id))
        changes = {host_id: watts[host_id] for host_id in _most(stirred)}
        if watts:
            gone = [host_id for host_id in self._watts_told if host_id not in watts]
            changes.update((host_id, -1.0) for host_id in gone)
        return changes


def _most(stirred: list[tuple[float, str]]) -> list[str]:
    return [host_id for _, host_id in sorted(stirred, reverse=True)[:MOST_STIRRED]]

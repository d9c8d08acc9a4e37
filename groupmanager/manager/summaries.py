"""What is free on a manager's hosts, as the leader is told: regularly, and soon after a change."""

import asyncio
import math
from collections.abc import Callable

import msgspec

from snooze.common.clock import Clock
from snooze.common.resources import Capacity, FloatArray
from snooze.common.wire import ManagerSummary
from snooze.groupmanager.manager.host_table import HostTable
from snooze.groupmanager.manager.leader_link import LeaderLink
from snooze.groupmanager.manager.monitoring import Monitoring
from snooze.scheduling import dispatching
from snooze.scheduling.snapshot import IntArray

DELAY_S = 0.02
"""Changes within this time go up in one summary, at least."""
SHARE = 0.05
"""Summaries take at most this part of the manager's time: many unlike hosts take longer."""

CORES_S = 10.0
"""How often the leader is told how busy each host is: it meters power by it."""


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
        self._cores_told_s = -math.inf
        self._free_key: bytes | None = None
        self._buckets: tuple[FloatArray, IntArray] = dispatching.histogram([])
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

    def _busy(self, now_s: float) -> tuple[dict[str, float], dict[str, float]]:
        """What each host's CPUs do and what its RAPL counts, told every ``CORES_S`` only."""
        if now_s - self._cores_told_s < CORES_S:
            return {}, {}
        self._cores_told_s = now_s
        cores: dict[str, float] = {}
        watts: dict[str, float] = {}
        for host_id in self._table.order:
            machine = self._monitoring.machine(host_id)
            used = self._monitoring.host_used(host_id) if machine is None else machine.used
            cores[host_id] = round(used.cpu_cores, 2)
            if machine is not None and machine.power_w is not None:
                watts[host_id] = round(machine.power_w, 1)
        return cores, watts

    def _histogram(self, free: FloatArray) -> tuple[FloatArray, IntArray]:
        """The buckets of what is free; worked out anew only when that has changed."""
        key = free.tobytes()
        if key != self._free_key:
            self._free_key, self._buckets = key, dispatching.histogram(free)
        return self._buckets

    def _tell_what_is_free(self) -> None:
        link = self._leader.link
        if link is None:
            return
        table = self._table
        started_s = self._clock.monotonic_s()
        room, count = self._histogram(table.free(self._limit))
        self._cost_s = self._clock.monotonic_s() - started_s
        cores, watts = self._busy(started_s)
        link.notify(
            ManagerSummary(
                taken_ms=self._clock.wall_ms(),
                capacity=Capacity.of(table.capacity.sum(axis=0)),
                reserved=Capacity.of(table.reserved.sum(axis=0).clip(min=0.0)),
                used=self._monitoring.total_used(),
                room=room.astype("<f8").tobytes(),
                count=[int(number) for number in count],
                hosts=len(table.order),
                vms=len(table.vms),
                idle=self._idle(started_s),
                cores=cores,
                watts=watts,
            ),
            droppable=True,
        )

# pyright: reportPrivateUsage=false
# What a leader spends is measured from outside.
"""The real CPU time that one machine's processes of a simulated world take: see ``scale.py``."""

from time import thread_time
from typing import Any

import msgspec

from snooze.simulation.loop import Process, Schedule
from snooze.simulation.world import World


class Work(msgspec.Struct, frozen=True):
    """What the leader did in a part of the run."""

    virtual_s: float
    cpu_s: float
    events: int
    frames: int

    @property
    def cpu_ms_per_s(self) -> float:
        """CPU milliseconds a virtual second."""
        return 1000 * self.cpu_s / max(self.virtual_s, 1e-9)


class Meter:
    """Real CPU seconds and events of one machine's processes, while the schedule runs.

    What reading the clock costs (microseconds here) is measured once, and not counted.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.machine = ""
        self.cpu_s = 0.0
        self.events = 0
        self.everyone: dict[str, float] | None = None
        """CPU seconds of each machine while this is set: nobody knows who will lead."""
        self._empty_s = min(-thread_time() + thread_time() for _ in range(1000))
        self._run_one = schedule.run_one
        schedule.run_one = self._metered  # type: ignore[method-assign]

    def _metered(self, process: Process | None, item: Any) -> None:
        if process is None or (self.everyone is None and process.machine.name != self.machine):
            self._run_one(process, item)
            return
        started_s = thread_time()
        self._run_one(process, item)
        took_s = max(0.0, thread_time() - started_s - self._empty_s)
        name = process.machine.name
        if self.everyone is not None:
            self.everyone[name] = self.everyone.get(name, 0.0) + took_s
        if name == self.machine:
            self.cpu_s += took_s
            self.events += 1


class Watch:
    """The leader's work between two looks; a change of the leader is followed."""

    def __init__(self, world: World, meter: Meter) -> None:
        self._world = world
        self._meter = meter
        self._leader = ""
        self._frames = 0
        self._counted = 0
        self._sums = (0.0, 0, 0)
        self._since_s = world.now_s
        self.elections = 0

    def look(self) -> None:
        """Count what was done since the last look; to be called often."""
        leader = self._world.leading()
        name = leader.identity.manager_id if leader is not None else self._leader
        frames = 0
        if leader is not None:
            frames = sum(link.stats.frames_in for link in leader.links._links.values())
        if name == self._leader:
            self._counted += max(0, frames - self._frames)
        else:
            self.elections += 1
            self._meter.machine = name
        self._leader, self._frames = name, frames

    def work(self) -> Work:
        """What was done since the last call."""
        self.look()
        now = self._meter.cpu_s, self._meter.events, self._counted
        cpu_s, events, frames = (a - b for a, b in zip(now, self._sums, strict=True))
        self._sums = now
        passed_s, self._since_s = self._world.now_s - self._since_s, self._world.now_s
        return Work(round(passed_s, 1), round(cpu_s, 3), int(events), int(frames))

# pyright: reportPrivateUsage=false
# What a leader spends is measured from outside.
"""The real CPU time that one machine's processes of a simulated world take: see ``scale.py``."""

from dataclasses import dataclass
from time import thread_time
from typing import Any

import msgspec

from snooze.simulation.loop import Process, Schedule
from snooze.simulation.world import World


class Work(msgspec.Struct, frozen=True):
    """What the leader did in a part of the run; ``longest_s``: CPU of its longest event.

    An event is one step of its event loop: so long nothing else was done or heard.
    """

    virtual_s: float
    cpu_s: float
    events: int
    frames: int
    longest_s: float = 0.0

    @property
    def cpu_ms_per_s(self) -> float:
        """CPU milliseconds a virtual second."""
        return 1000 * self.cpu_s / max(self.virtual_s, 1e-9)


@dataclass(slots=True)
class Spent:
    """What a machine took: CPU seconds in all, and of its longest event, and which that was."""

    cpu_s: float = 0.0
    longest_s: float = 0.0
    longest: str = ""

    def add(self, took_s: float, item: Any) -> None:
        """One event."""
        self.cpu_s += took_s
        if took_s > self.longest_s:
            self.longest_s, self.longest = took_s, _name(item)


class Meter:
    """Real CPU seconds and events of one machine's processes, while the schedule runs.

    What reading the clock costs (microseconds here) is measured once, and not counted.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.machine = ""
        self.cpu_s = 0.0
        self.events = 0
        self.longest_s = 0.0
        self.longest = ""
        """What the longest event of the machine was, for people."""
        self.everyone: dict[str, Spent] | None = None
        """What each machine took while this is set: nobody knows who will lead."""
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
            self.everyone.setdefault(name, Spent()).add(took_s, item)
        if name == self.machine:
            self.cpu_s += took_s
            self.events += 1
            if took_s > self.longest_s:
                self.longest_s, self.longest = took_s, _name(item)


def _name(item: Any) -> str:
    """What an event did, for people: which coroutine went on, or which function was called."""
    what: Any = getattr(item, "_callback", item)
    task: Any = getattr(what, "__self__", None)
    if hasattr(task, "get_coro"):
        what = task.get_coro()
    return str(getattr(what, "__qualname__", what))


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
        longest_s, self._meter.longest_s = self._meter.longest_s, 0.0
        return Work(
            round(passed_s, 1), round(cpu_s, 3), int(events), int(frames), round(longest_s, 3)
        )

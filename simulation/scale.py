# pyright: reportPrivateUsage=false
# What a leader spends is measured from outside.
"""Large clusters in virtual time: what the leader's work is, and that it does not grow with hosts.

Real are the group managers and the leader (daemons, links, HTTP, journal, election), the store's
semantics, the client's SDK and the front door; hosts are a ``fleet``. Faults and load are the same
a minute whatever the number of hosts, so that what grows is what the size costs by itself.

A figure of CPU is real seconds of the events of the leader's process, its own group manager, its
election and its HTTP included, divided by virtual seconds.
"""

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from time import perf_counter, process_time, thread_time
from typing import Any

import msgspec

from snooze.common.resources import KIB_PER_GIB, Capacity
from snooze.simulation.bmcs import Bmcs
from snooze.simulation.clients import Clients
from snooze.simulation.fleet import SAMPLES_S, Fleet
from snooze.simulation.invariants import Breach
from snooze.simulation.loop import Process, Schedule
from snooze.simulation.world import Shape, World, ruled

FORM_S = 300.0
SETTLE_S = 90.0
"""Until every host has sent its first sample, and its manager has told of it."""
STEADY_S = 60.0
"""How long nothing happens but heartbeats and samples; then load and faults begin."""
CONVERGE_S = 600.0
OLD_VM = Capacity(1.0, 4.0 * KIB_PER_GIB)


@dataclass(frozen=True, slots=True)
class Size:
    """What is simulated; rates are a virtual minute."""

    hosts: int = 1000
    vms: int = 10_000
    managers: int = 100
    hours: float = 1.0
    seed: int = 1
    submissions: float = 30.0
    destroys: float = 20.0
    lost_hosts: float = 0.5
    lost_managers: float = 0.2
    lost_leaders: float = 0.05
    partitions: float = 0.1
    heartbeat_s: float = 1.0


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


class ScaleResult(msgspec.Struct, frozen=True):
    """How it went; ``failure`` is empty when all held."""

    hosts: int
    vms: int
    managers: int
    seed: int
    virtual_s: float
    wall_s: float
    cpu_s: float
    events: int
    formed_s: float
    forming: Work
    steady: Work
    troubled: Work
    elections: int
    faults: int
    accepted: int
    refused: int
    restarted: int
    converged_s: float
    failure: str = ""


class Meter:
    """Real CPU seconds and events of one machine's processes, while the schedule runs.

    What reading the clock costs (microseconds here) is measured once, and not counted.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.machine = ""
        self.cpu_s = 0.0
        self.events = 0
        self._empty_s = min(-thread_time() + thread_time() for _ in range(1000))
        self._run_one = schedule.run_one
        schedule.run_one = self._metered  # type: ignore[method-assign]

    def _metered(self, process: Process | None, item: Any) -> None:
        if process is None or process.machine.name != self.machine:
            self._run_one(process, item)
            return
        started_s = thread_time()
        self._run_one(process, item)
        self.cpu_s += max(0.0, thread_time() - started_s - self._empty_s)
        self.events += 1


class _Watch:
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


@dataclass
class Scale:
    """One run."""

    size: Size
    tell: Callable[[str], None] = lambda line: None

    def go(self) -> ScaleResult:
        """Run it."""
        size, beat_s = self.size, self.size.heartbeat_s
        shape = Shape(
            hosts=0,
            managers=size.managers,
            subnets=("10.64.0.0/16",),
            managers_settings=(
                ("submission", {"start_timeout_s": 120.0}),
                ("heartbeat", {"interval_s": beat_s, "timeout_s": 3 * beat_s}),
                ("monitoring", {"interval_s": SAMPLES_S}),
                ("autonomy", {"interval_s": SAMPLES_S}),
            ),
        )
        world = World(shape, size.seed)
        self._wall_s, self._cpu_s = perf_counter(), process_time()
        # The collector would look at all hosts and VMs in whichever event it happens to run.
        gc.disable()
        with ruled(world):
            try:
                return self._run(world)
            finally:
                world.close()
                gc.enable()

    def _run(self, world: World) -> ScaleResult:
        size = self.size
        meter = Meter(world.schedule)
        fleet = Fleet(world, size.hosts, size.seed)
        world.bmcs = Bmcs(world.schedule, fleet.switch)
        fleet.fill(size.vms, OLD_VM)
        clients = Clients(world)
        world.start()
        for host in fleet.hosts.values():
            host.seek(1.0 + 5.0 * fleet.random.random())
        watch = _Watch(world, meter)
        failure, converged_s = "", 0.0
        nothing = Work(0.0, 0.0, 0, 0)
        forming = steady = troubled = nothing
        formed_s, faults = 0.0, 0
        trouble = _Trouble(world, fleet, clients, size)
        try:
            formed_s = self._until(world, watch, lambda: self._is_whole(world, fleet), FORM_S)
            forming = watch.work()
            self.tell(f"formed after {formed_s:.0f} s: {self._said(forming)}")
            self._pass(world, watch, SETTLE_S)
            watch.work()
            self._pass(world, watch, STEADY_S)
            steady = watch.work()
            self.tell(f"nothing happens for {STEADY_S:g} s: {self._said(steady)}")
            trouble.begin()
            end_s = size.hours * 3600.0
            while end_s > 0:
                self._pass(world, watch, min(300.0, end_s))
                end_s -= 300.0
                gc.collect()
                self.tell(f"{world.now_s / 60:.0f} virtual minutes, {trouble.faults} faults")
            troubled = watch.work()
            trouble.end()
            converged_s = self._until(
                world, watch, lambda: self._is_whole(world, fleet), CONVERGE_S
            )
        except Breach as breach:
            failure = str(breach)
        faults = trouble.faults
        leader = world.leading()
        restarted = (
            sum(1 for vm in leader.registry.vms.values() if vm.generation > 1) if leader else 0
        )
        clients.close()
        return ScaleResult(
            size.hosts,
            size.vms,
            size.managers,
            size.seed,
            round(world.now_s, 1),
            round(perf_counter() - self._wall_s, 1),
            round(process_time() - self._cpu_s, 1),
            world.schedule.events,
            round(formed_s, 1),
            forming,
            steady,
            troubled,
            watch.elections,
            faults,
            len(clients.acked),
            sum(1 for each in clients.submissions if each.refused),
            restarted,
            round(converged_s, 1),
            failure,
        )

    def _said(self, work: Work) -> str:
        per_s = max(work.virtual_s, 1e-9)
        return (
            f"the leader took {work.cpu_ms_per_s:.1f} ms CPU, {work.events / per_s:.0f} events and "
            f"{work.frames / per_s:.0f} frames a second"
        )

    def _pass(self, world: World, watch: _Watch, seconds: float) -> None:
        for _ in range(math.ceil(seconds)):
            world.run_for(1.0)
            watch.look()
            if defects := world.defects():
                raise Breach(f"at {world.now_s:.0f} s: a defect: {defects[0]}")

    def _until(
        self, world: World, watch: _Watch, holds: Callable[[], bool], limit_s: float
    ) -> float:
        started_s = world.now_s
        while world.now_s - started_s < limit_s:
            self._pass(world, watch, 5.0)
            if holds():
                return world.now_s - started_s
        raise Breach(f"at {world.now_s:.0f} s: {self._left or 'nobody leads'}")

    _left = ""

    def _is_whole(self, world: World, fleet: Fleet) -> bool:
        """Whether every host has a manager, and the leader knows of every guest where it is."""
        leader = world.leading()
        if leader is None:
            return False
        joined = len(leader.registry.hosts) - len(leader.registry.hosts.away())
        if joined != len(fleet.hosts):
            self._left = f"{joined} of {len(fleet.hosts)} hosts have a manager"
            return False
        wrong = list(fleet.differences(leader.registry))
        odd = [
            vm for vm in leader.registry.vms.values() if vm.managed and vm.state.value != "running"
        ]
        if leader.tasks.open_tasks:
            self._left = f"{len(leader.tasks.open_tasks)} tasks are open"
            return False
        if odd:
            self._left = f"{len(odd)} VMs do not run; {odd[0].name} is {odd[0].state.value}"
            return False
        self._left = f"{len(wrong)} VMs are wrong at the leader: {wrong[0]}" if wrong else ""
        return not wrong


class _Trouble:
    """Load and faults at fixed rates a minute, by seed."""

    def __init__(self, world: World, fleet: Fleet, clients: Clients, size: Size) -> None:
        self._world = world
        self._fleet = fleet
        self._clients = clients
        self._random = Random(f"scale:{size.seed}")
        self._size = size
        self._on = False
        self.faults = 0

    def begin(self) -> None:
        """Let it begin."""
        self._on = True
        size = self._size
        for rate, deed in (
            (size.submissions, self._submit),
            (size.destroys, self._destroy),
            (size.lost_hosts, self._lose_host),
            (size.lost_managers, self._lose_manager),
            (size.lost_leaders, self._lose_leader),
            (size.partitions, self._cut_off),
        ):
            if rate > 0:
                self._again(rate, deed)

    def end(self) -> None:
        """No more of it."""
        self._on = False

    def _again(self, rate: float, deed: Callable[[], None]) -> None:
        def do() -> None:
            if self._on:
                deed()
                self._again(rate, deed)

        self._world.schedule.after(self._random.expovariate(rate / 60.0), do)

    def _submit(self) -> None:
        self._clients.submit(self._random.randint(1, 3), 1.0, partial=False)

    def _destroy(self) -> None:
        self._clients.command("destroy", self._random.randrange(1 << 30), "", 0.0)

    def _lose_host(self) -> None:
        self.faults += 1
        self._fleet.cut_power(self._random.choice(list(self._fleet.hosts)))

    def _others(self) -> list[str]:
        leader = self._world.leading()
        mine = leader.identity.manager_id if leader is not None else ""
        return [name for name in sorted(self._world.managers) if name != mine]

    def _lose_manager(self) -> None:
        others = self._others()
        if others:
            self._kill(self._random.choice(others))

    def _lose_leader(self) -> None:
        leader = self._world.leading()
        if leader is not None:
            self._kill(leader.identity.manager_id)

    def _kill(self, name: str) -> None:
        self.faults += 1
        self._world.kill(name)
        self._fleet.manager_died(name)
        self._world.schedule.after(20.0, lambda: self._world.start_daemon(name))

    def _cut_off(self) -> None:
        """A manager hears nothing of anybody but its hosts for a while."""
        others = self._others()
        if not others:
            return
        self.faults += 1
        name = self._random.choice(others)
        network = self._world.network
        rest = [machine for machine in self._world.machines if machine != name]
        for other in rest:
            network.cut(name, other)
            network.cut(other, name)

        def heal() -> None:
            for other in rest:
                network.heal(name, other)
                network.heal(other, name)

        self._world.schedule.after(10.0 + 20.0 * self._random.random(), heal)

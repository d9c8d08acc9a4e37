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
from time import perf_counter, process_time

import msgspec

from snooze.common.api import TaskState
from snooze.common.resources import KIB_PER_GIB, Capacity
from snooze.groupmanager.leader.energy import READINGS_PER_S
from snooze.simulation.bmcs import Bmcs
from snooze.simulation.clients import Clients
from snooze.simulation.fleet import SAMPLES_S, Fleet
from snooze.simulation.invariants import Breach
from snooze.simulation.scale_end import Ending, ending
from snooze.simulation.scale_meter import Meter, Spent, Watch, Work
from snooze.simulation.world import Shape, World, ruled

FORM_S = 300.0
SETTLE_S = 90.0
"""Until every host has sent its first sample, and its manager has told of it; and longer, until
every BMC was asked once."""
STEADY_S = 60.0
"""How long nothing happens but heartbeats and samples; then load and faults begin."""
CONVERGE_S = 600.0
CHANGE_S = 120.0
CHANGE_STEP_S = 0.1
"""How closely is looked at what follows the death of a leader."""
DRAWS_W = 150.0
"""What every host's BMC measures."""
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


class LeaderChange(msgspec.Struct, frozen=True):
    """A leader was killed: from then on, in virtual seconds, and in the next one's CPU seconds.

    ``served``: a client's submission, sent at that moment, was accepted; ``ran``: its VM runs;
    ``whole``: every host has a manager, and the leader knows of every guest where it is.
    """

    served_s: float = 0.0
    served_cpu_s: float = 0.0
    ran_s: float = 0.0
    whole_s: float = 0.0
    whole_cpu_s: float = 0.0
    longest_s: float = 0.0
    """CPU of the next leader's longest event: so long it did and heard nothing else."""
    longest: str = ""


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
    dark_hosts: int = 0
    """Hosts that are off in the end: nothing was on them, and the leader has given them up."""
    kept_vms: int = 0
    """VMs whose removal failed as their host was off: the leader tells of them."""
    change: LeaderChange = LeaderChange()
    failure: str = ""


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
        for name in fleet.hosts:
            world.bmcs.machine(name).draws_w = DRAWS_W
        fleet.fill(size.vms, OLD_VM)
        clients = Clients(world)
        world.start()
        for host in fleet.hosts.values():
            host.seek(1.0 + 5.0 * fleet.random.random())
        watch = Watch(world, meter)
        failure, converged_s = "", 0.0
        nothing = Work(0.0, 0.0, 0, 0)
        forming = steady = troubled = nothing
        formed_s, faults, change = 0.0, 0, LeaderChange()
        trouble = _Trouble(world, fleet, clients, size)

        def whole() -> bool:
            return self._is_whole(world, fleet, clients)

        try:
            formed_s = self._until(world, watch, whole, FORM_S)
            forming = watch.work()
            self.tell(f"formed after {formed_s:.0f} s: {self._said(forming)}")
            self._pass(world, watch, max(SETTLE_S, 1.1 * size.hosts / READINGS_PER_S))
            watch.work()
            self._pass(world, watch, STEADY_S)
            steady = watch.work()
            self.tell(f"nothing happens for {STEADY_S:g} s: {self._said(steady)}")
            change = self._change_leader(world, watch, meter, fleet, clients)
            self.tell(
                f"the leader was killed: a submission is accepted after {change.served_s:.1f} s "
                f"({change.served_cpu_s:.1f} s CPU of the next leader), its VM runs after "
                f"{change.ran_s:.1f} s; all is whole after {change.whole_s:.1f} s "
                f"({change.whole_cpu_s:.1f} s CPU); its longest event took "
                f"{change.longest_s * 1000:.0f} ms ({change.longest})"
            )
            watch.work()
            trouble.begin()
            end_s = size.hours * 3600.0
            while end_s > 0:
                self._pass(world, watch, min(300.0, end_s))
                end_s -= 300.0
                gc.collect()
                self.tell(f"{world.now_s / 60:.0f} virtual minutes, {trouble.faults} faults")
            troubled = watch.work()
            trouble.end()
            converged_s = self._until(world, watch, whole, CONVERGE_S)
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
            self._ending.dark_hosts,
            self._ending.kept_vms,
            change,
            failure,
        )

    def _change_leader(
        self, world: World, watch: Watch, meter: Meter, fleet: Fleet, clients: Clients
    ) -> LeaderChange:
        """Kill the leader, with a client that submits a VM at that moment."""
        leader = world.leading()
        if leader is None:
            raise Breach(f"at {world.now_s:.0f} s: nobody leads")
        name, began_s = leader.identity.manager_id, world.now_s
        spent = meter.everyone = dict[str, Spent]()
        lose_manager(world, fleet, name)
        clients.submit(1, 1.0, partial=False)
        asked = clients.submissions[-1]

        def cpu_s() -> float:
            return spent[meter.machine].cpu_s if meter.machine in spent else 0.0

        def step(holds: Callable[[], bool]) -> float:
            while not holds():
                if asked.refused or world.now_s - began_s > CHANGE_S:
                    raise Breach(f"at {world.now_s:.0f} s: not served: {asked.refused or 'late'}")
                world.run_for(CHANGE_STEP_S)
                watch.look()
            return round(world.now_s - began_s, 1)

        served_s = step(lambda: bool(asked.task_id))
        served_cpu_s = cpu_s()
        ran_s = step(lambda: asked.view is not None and asked.view.state is TaskState.DONE)
        self._until(world, watch, lambda: self._is_whole(world, fleet, clients), CONVERGE_S)
        whole_s, whole_cpu_s = round(world.now_s - began_s, 1), cpu_s()
        meter.everyone = None
        most = spent.get(meter.machine, Spent())
        return LeaderChange(
            served_s,
            round(served_cpu_s, 2),
            ran_s,
            whole_s,
            round(whole_cpu_s, 2),
            round(most.longest_s, 3),
            most.longest,
        )

    def _said(self, work: Work) -> str:
        per_s = max(work.virtual_s, 1e-9)
        return (
            f"the leader took {work.cpu_ms_per_s:.1f} ms CPU, {work.events / per_s:.0f} events and "
            f"{work.frames / per_s:.0f} frames a second, at most {work.longest_s * 1000:.0f} ms "
            "in one event"
        )

    def _pass(self, world: World, watch: Watch, seconds: float) -> None:
        for _ in range(math.ceil(seconds)):
            world.run_for(1.0)
            watch.look()
            if defects := world.defects():
                raise Breach(f"at {world.now_s:.0f} s: a defect: {defects[0]}")

    def _until(
        self, world: World, watch: Watch, holds: Callable[[], bool], limit_s: float
    ) -> float:
        started_s = world.now_s
        while world.now_s - started_s < limit_s:
            self._pass(world, watch, 5.0)
            if holds():
                return world.now_s - started_s
        raise Breach(f"at {world.now_s:.0f} s: {self._left or 'nobody leads'}")

    _left = ""
    _ending = Ending()

    def _is_whole(self, world: World, fleet: Fleet, clients: Clients) -> bool:
        """Whether every host has a manager, and the leader knows of every guest where it is."""
        leader = world.leading()
        if leader is None:
            self._left = "nobody leads"
            return False
        waiting = [each for each in clients.acked.values() if not each.is_over]
        if leader.tasks.open_tasks or waiting:
            self._left = (
                f"{len(leader.tasks.open_tasks)} tasks are open, {len(waiting)} clients wait"
            )
            return False
        wanted = [f"old-{number}" for number in range(self.size.vms)]
        wanted += [name for each in clients.acked.values() for name in each.served]
        self._ending = ending(fleet, leader.registry, wanted, clients.condemned)
        self._left = self._ending.left
        return not self._left


def lose_manager(world: World, fleet: Fleet, name: str) -> None:
    """Kill a group manager; it is started again after a while."""
    world.kill(name)
    fleet.manager_died(name)
    world.schedule.after(20.0, lambda: world.start_daemon(name))


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
        lose_manager(self._world, self._fleet, name)

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

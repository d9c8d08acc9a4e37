# pyright: reportPrivateUsage=false, reportUnknownArgumentType=false
# The daemons are looked into from outside: they know nothing of being watched.
"""What always holds (ARCHITECTURE.md), looked at after every event; and what holds in the end.

Looked at from outside: the guests that really exist, the tree that is really stored, what clients
were really told. A breach stops the run and says what, when, and after which event.

After every event that may have changed it:

1. an acknowledged submission is in the store, and so is every VM that is alive;
2. a VM is alive on at most one host;
3. of two that take themselves for the leader one soon knows better; the store's epoch grows; hosts,
   tasks and VMs are written only with a check of it; no order of an older epoch than the newest
   that its machine has heard of is carried out (``ghosts.py`` sees to it that some come);
4. no host has more alive than it has room for, and a manager's reservations are the sum of what
   holds room;
5. no two VMs have one address;
6. no host goes to sleep with a guest on it;
7. queues are bounded (``CoreRunner``, journal), and no daemon lets an exception through.

In the end, when all has healed: ``disagreements``.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from snooze.common import record_layout, records
from snooze.common.api import TASK_ENDED
from snooze.common.coordination.leadership import EPOCH
from snooze.common.coordination.port import Check, Create, Delete, Operation, Put
from snooze.common.core_runner import MAX_QUEUED, CoreRunner
from snooze.common.records import HostPower
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmState
from snooze.common.vms import VmSpec
from snooze.groupmanager.leader.membership_core import MembershipCore
from snooze.groupmanager.leader.registry import Plan, Registry
from snooze.groupmanager.leader.service import LeaderService
from snooze.groupmanager.manager.manager_core import ManagerCore
from snooze.groupmanager.manager.service import ManagerService
from snooze.localcontroller.hypervisor.simulated_world import SimulatedHost
from snooze.simulation.clients import Clients
from snooze.simulation.ghosts import Ghosts
from snooze.simulation.loop import Process
from snooze.simulation.world import World

MAX_TWO_LEADERS_S = 4.0
"""A session time-out: two thirds of it are how long a leader is proven to live."""

ALIVE = frozenset({VmState.RUNNING, VmState.PAUSED, VmState.MIGRATING})


ON_THE_WAY = frozenset({HostPower.GOING_DOWN, HostPower.WAKING})
"""Hosts that fall asleep or wake up: soon over, and nothing to wonder at."""

_LEADERS = tuple(f"{part}/" for part in (records.HOSTS, records.TASKS, records.VMS))


class Breach(AssertionError):
    """Something that always holds did not."""


class _Watched:
    """A core whose every step is looked at."""

    def __init__(
        self, core: Any, before: Callable[[Any], None], after: Callable[[Any], None]
    ) -> None:
        self._core = core
        self._before = before
        self._after = after

    def handle(self, event: Any, now_s: float) -> Any:
        """Let the core decide, then look."""
        self._before(event)
        effects = self._core.handle(event, now_s)
        self._after(self._core)
        return effects


class Invariants:
    """Watches one world."""

    def __init__(self, world: World, clients: Clients) -> None:
        self.world = world
        self.clients = clients
        self.checks = 0
        self.ghosts = Ghosts(world)
        self._watched: dict[int, object] = {}
        self._services: dict[str, tuple[ManagerService, LeaderService | None]] = {}
        self._known_tasks: dict[str, bool] = {}
        """Tasks in the store, and whether they are recorded as ended."""
        self._acked = 0
        self._two_since_s = math.inf
        self.expired: set[str] = set()
        """Tasks whose record was removed after they had ended: their retention was over."""
        self.epoch = -1
        self._seen: list[tuple[str, str, VmState, VmSpec]] = []
        world.schedule.after_event = self._after_event
        world.sleepers.on_down = self._check_down
        world.ensemble.on_commit = self._on_commit

    def _breach(self, what: str) -> None:
        raise Breach(f"at {self.world.now_s:.3f} s: {what}")

    # ------------------------------------------------------------ after events

    def _after_event(self, process: Process | None) -> None:
        if process is None:
            return
        if process.defects:
            self._breach(f"a defect: {process.defects[0]}")
        if self.ghosts.found:
            self._breach(self.ghosts.found[0])
        if process.kind == "hypervisor":
            self.check_guests()
        elif process.kind == "client":
            self._check_acked()
        elif process.role == "gm":
            self._watch_cores(process.machine.name)
            self._check_leaders()

    def check_guests(self) -> None:
        """Look at everything alive, unless nothing has changed."""
        seen = [
            (name, vm_id, vm.state, vm.spec)
            for name, host in self.world.guests.hosts.items()
            for vm_id, vm in host.vms.items()
        ]
        if seen == self._seen:
            return
        self._seen = seen
        self.checks += 1
        where: dict[str, str] = {}
        addresses: dict[str, str] = {}
        for name, host in self.world.guests.hosts.items():
            alive = Capacity()
            for vm_id, vm in host.vms.items():
                if vm.state in ALIVE:
                    other = where.setdefault(vm_id, name)
                    if other != name:
                        self._breach(f"{vm.spec.name} is alive on {other} and on {name}")
                    alive = alive.plus(vm.spec.demand)
                address = vm.spec.ip_address
                if vm.state not in ALIVE and self._is_buried(vm_id):
                    continue
                if address and addresses.setdefault(address, vm_id) != vm_id:
                    self._breach(f"two VMs have the address {address}, one is {vm.spec.name}")
            if host.vms and not alive.fits_in(_room(host)):
                self._breach(f"{name} is overfull: {alive} of {host.capacity}")

    def _check_down(self, name: str) -> None:
        """A host goes down because the cluster wants it to sleep."""
        for vm in self.world.guests.host(name).vms.values():
            if vm.state in ALIVE or vm.state is VmState.STARTING:
                self._breach(f"{name} goes to sleep with {vm.spec.name} on it, {vm.state.value}")

    def _is_buried(self, vm_id: str) -> bool:
        """Whether a VM was destroyed that may have left a copy on a host that was down (seed 5002).

        The copy is off, and told to go as soon as its host is back. Its tombstone is in the store,
        or about to be; that nobody leads at the moment changes nothing (seed 50722).
        """
        leaders = [manager.leading for manager in self.world.managers.values()]
        if any(leader is not None and vm_id in leader.registry.graves for leader in leaders):
            return True
        entry = self.world.ensemble.store.read(record_layout.vm_path(vm_id), 0)
        if entry is None:
            return False
        return records.decode(entry.data, records.VmRecord).state is VmState.DESTROYED

    def _on_commit(self, operations: Any) -> None:
        for operation in operations:
            self._note_task(operation)
        self._check_fence(operations)
        entry = self.world.ensemble.store.read("/epoch", 0)
        epoch = -1 if entry is None else entry.version
        if epoch < self.epoch:
            self._breach(f"the epoch went back from {self.epoch} to {epoch}")
        self.epoch = epoch

    def _check_fence(self, operations: Any) -> None:
        """What only the leader writes is written with a check of its epoch, which is the latest."""
        fenced = any(
            isinstance(operation, Check)
            and operation.path == EPOCH
            and operation.version is not None
            for operation in operations
        )
        for operation in operations:
            if not fenced and operation.path.startswith(_LEADERS):
                self._breach(f"{operation.path} was written without a check of the epoch")

    def _note_task(self, operation: Operation) -> None:
        if isinstance(operation, Delete) and operation.path.startswith(f"{records.VMS}/"):
            self._check_forgotten(operation.path.rpartition("/")[2])
        if not operation.path.startswith(f"{records.TASKS}/") or operation.path.count("/") < 3:
            return
        task_id = operation.path.rpartition("/")[2]
        if isinstance(operation, Create | Put):
            record = records.decode(operation.data, records.TaskRecord)
            self._known_tasks[task_id] = record.state in TASK_ENDED
        elif isinstance(operation, Delete):
            ended = self._known_tasks.pop(task_id, True)
            if not ended and task_id in self.clients.acked:
                self._breach(f"the record of the accepted task {task_id} was removed")
            self.expired.add(task_id)

    def _check_forgotten(self, vm_id: str) -> None:
        """A VM is taken out of the record only when it is proven gone."""
        for name, host in self.world.guests.hosts.items():
            vm = host.vms.get(vm_id)
            if vm is not None and vm.state in ALIVE:
                self._breach(f"{vm.spec.name} is forgotten while it is alive on {name}")

    def _check_acked(self) -> None:
        if len(self.clients.acked) == self._acked:
            return
        self._acked = len(self.clients.acked)
        for task_id in self.clients.acked:
            if task_id not in self._known_tasks and task_id not in self.expired:
                self._breach(f"task {task_id} was accepted and is not in the store")

    def _check_leaders(self) -> None:
        """Two may take themselves for the leader until the word of it has come; no longer.

        A leader whose session the store ended knows it before; one that was evicted, when its watch
        fires, or when its session is not proven to live any more.
        """
        leaders: list[str] = []
        candidates = [
            (name, manager._election)
            for name, manager in self.world.managers.items()
            if manager._election is not None and manager._election._confirmed_epoch is not None
        ]
        if len(candidates) < 2:
            self._two_since_s = math.inf
            return
        for name, election in candidates:
            process = self.world.daemon(name)
            if process is None or process.paused:
                continue
            epoch = election._confirmed_epoch
            if epoch is not None and election.is_leader(epoch):
                leaders.append(f"{name} (epoch {epoch})")
        if len(leaders) < 2:
            self._two_since_s = math.inf
        elif self._two_since_s == math.inf:
            self._two_since_s = self.world.now_s
        elif self.world.now_s - self._two_since_s > MAX_TWO_LEADERS_S:
            self._breach(f"more than one leads: {', '.join(leaders)}")

    # ------------------------------------------------------------ cores

    def _watch_cores(self, name: str) -> None:
        manager = self.world.managers.get(name)
        if manager is None:
            return
        services = (manager.manager, manager.leading)
        if self._services.get(name) == services:
            return
        self._services[name] = services
        for service in services:
            if service is not None and id(service) not in self._watched:
                self._watched[id(service)] = service
                if isinstance(service, LeaderService):
                    self._tell_events(name, service)
                else:
                    self.ghosts.watch_manager(name, service)
                for runner in vars(service).values():
                    if isinstance(runner, CoreRunner):
                        self._watch(name, service, runner)

    def _tell_events(self, name: str, leader: LeaderService) -> None:
        """The leader's events are part of the story."""
        add = leader.events.add

        def told(kind: str, subject: str, message: str, *more: Any, **named: Any) -> Any:
            self.world.tell(name, f"{kind}: {message}")
            return add(kind, subject, message, *more, **named)

        leader.events.add = told  # type: ignore[method-assign]

    def _watch(
        self, name: str, service: ManagerService | LeaderService, runner: "CoreRunner[Any, Any]"
    ) -> None:
        def before(event: Any) -> None:
            if isinstance(service, ManagerService):
                self.ghosts.look_at_event(name, service, event)

        def after(core: Any) -> None:
            if len(runner._queue) > MAX_QUEUED // 10:
                self._breach(f"{len(runner._queue)} events wait at {name}")
            match core:
                case ManagerCore():
                    self._check_manager(name, core)
                case MembershipCore():
                    self._check_membership(core)
                case _:
                    pass

        if not isinstance(runner._core, _Watched):
            runner._core = _Watched(runner._core, before, after)

    def _check_manager(self, name: str, core: ManagerCore) -> None:
        """Reservations are the sum of what holds room."""
        table = core.table
        for host_id in table.order:
            held = core.migrations.promised_on(host_id)
            for vm in table.vms_on(host_id):
                if vm.state in HOLDS_CAPACITY:
                    held = held.plus(vm.demand)
            reserved = table.reserved_on(host_id)
            if not _is_close(reserved, held):
                self._breach(f"{name} reserves {reserved} on {host_id} for what takes {held}")

    def _check_membership(self, core: MembershipCore) -> None:
        """A host is joined to at most one manager, and both sides of the registry agree."""
        registry = core.registry
        for host_id, host in registry.hosts.items():
            has = [m for m, entry in registry.managers.items() if host_id in entry.hosts]
            if has != ([host.manager_id] if host.joined else []):
                self._breach(f"{host_id} is with {host.manager_id} and counted at {has}")

    # ------------------------------------------------------------ in the end

    def disagreements(self, *, steady: bool = True) -> list[str]:
        """What is not as it has to be once everything has healed and time has passed.

        ``steady``: no host is on its way to sleep, or back.
        """
        world = self.world
        leader = world.leading()
        if leader is None:
            return ["nobody leads"]
        registry = leader.registry
        away = {h for h, host in registry.hosts.items() if host.state is HostPower.ASLEEP}
        if not steady:
            away |= {h for h, host in registry.hosts.items() if host.state in ON_THE_WAY}
        found = [f"{name} does not run" for name in self._missing() if name not in away]
        found += self._power(registry, away)
        there = {
            vm_id: (name, vm.state, vm.spec.demand)
            for name, host in world.guests.hosts.items()
            for vm_id, vm in host.vms.items()
        }
        total = sum(len(host.vms) for host in world.guests.hosts.values())
        if total != len(there):
            found.append(f"{total - len(there)} domains are left on hosts that no longer have them")
        waiting = self._wait_for_room(registry) | self._given_up(registry)
        there = {vm_id: place for vm_id, place in there.items() if vm_id not in waiting}
        at_leader = {
            vm_id: (vm.host_id, vm.state, vm.demand)
            for vm_id, vm in registry.vms.items()
            if vm_id not in waiting
        }
        found += _differences("the leader", at_leader, there)
        at_managers = {
            key: (vm.host_id, vm.state, vm.demand)
            for manager in world.managers.values()
            for key, vm in manager.manager.core.table.vms.items()
            if key not in waiting
        }
        found += _differences("the managers", at_managers, there)
        store = world.ensemble.store
        shards = record_layout.shards(records.VMS)
        recorded = {vm_id for shard in shards for vm_id in store.children(shard)[0]}
        recorded -= registry.graves.keys() | waiting
        if recorded != there.keys():
            odd = sorted(recorded ^ there.keys())
            found.append(f"record and world differ in {odd}")
        found += self._leases(leader)
        alive = {vm.spec.name for vm in self._guests()}
        found += self._tasks(leader, alive | {registry.vms[vm_id].name for vm_id in waiting})
        found += self._membership(leader, away)
        found += self._leftovers(leader)
        return found

    def _wait_for_room(self, registry: Registry) -> set[str]:
        """VMs that are to be restarted, on hosts that are full: they say so, and go on waiting.

        Where one was, a copy of it may be left, switched off.
        """
        free: list[Capacity] = []
        for host in self.world.guests.hosts.values():
            left = _room(host)
            for vm in host.vms.values():
                if vm.state in HOLDS_CAPACITY:
                    left = left.minus(vm.spec.demand)
            free.append(left)
        return {
            vm.vm_id
            for vm in registry.vms.values()
            if vm.state is VmState.PENDING
            and vm.plan is Plan.PLACING
            and not vm.host_id
            and "room" in vm.reason
            and not any(vm.demand.fits_in(left) for left in free)
            and not any(self._is_on(vm.vm_id))
        }

    def _given_up(self, registry: Registry) -> set[str]:
        """VMs whose restarts have failed, with the reason shown, and of which nothing is left."""
        return {
            vm.vm_id
            for vm in registry.vms.values()
            if vm.state is VmState.FAILED
            and vm.asks
            and vm.reason
            and not vm.host_id
            and not any(vm.vm_id in host.vms for host in self.world.guests.hosts.values())
        }

    def _is_on(self, vm_id: str) -> Iterator[bool]:
        for host in self.world.guests.hosts.values():
            if vm_id in host.vms:
                yield host.vms[vm_id].state in ALIVE

    def _missing(self) -> Iterator[str]:
        for machine in self.world.machines.values():
            if machine.name[:2] in {"gm", "bs", "ho"} and "snooze" not in machine.processes:
                yield machine.name

    def _guests(self) -> Iterator[Any]:
        for host in self.world.guests.hosts.values():
            yield from host.vms.values()

    def _leases(self, leader: Any) -> Iterator[str]:
        leases = leader.tasks.leases
        held = dict(leases._vm_of)
        for vm in leader.registry.vms.values():
            if vm.managed and held.pop(vm.ip_address, None) != vm.vm_id:
                yield f"{vm.name} runs with {vm.ip_address}, which is not leased to it"
        for address, vm_id in held.items():
            yield f"the address {address} is leased to {vm_id}, which does not exist"

    def _tasks(self, leader: Any, alive: set[str]) -> Iterator[str]:
        for task_id, submission in self.clients.acked.items():
            task = leader.tasks.tasks.get(task_id)
            if task is None and task_id in self.expired:
                continue
            if task is None:
                yield f"the accepted task {task_id} is not known"
                continue
            if not task.ended:
                yield f"the task of {', '.join(submission.names)} has not ended"
            for vm in task.vms.values():
                if vm.error is not None and not vm.error.message:
                    yield f"{vm.name} failed without a reason"
                is_there, is_wanted = vm.name in alive, vm.name not in self.clients.condemned
                if vm.error is None and is_wanted and not is_there:
                    yield f"{vm.name} was accepted and is gone, and nobody wanted that"

    def _power(self, registry: Registry, away: set[str]) -> Iterator[str]:
        """Hosts that are told to sleep sleep; the others are up."""
        for host_id, host in registry.hosts.items():
            machine = self.world.machines[host_id]
            is_down = not machine.is_on or machine.is_suspended
            if host.state is HostPower.ASLEEP and not is_down:
                yield f"{host_id} sleeps, says the leader, and it is up"
            elif host_id not in away and (is_down or host.state is not HostPower.ACTIVE):
                really = "down" if is_down else "up"
                yield f"{host_id} is {host.state.value} ({host.note}), and really {really}"

    def _membership(self, leader: Any, away: set[str]) -> Iterator[str]:
        registry = leader.registry
        counts = [
            len(entry.hosts - away)
            for manager_id, entry in registry.managers.items()
            if manager_id != leader.identity.manager_id or len(registry.managers) == 1
        ]
        if len(registry.managers) != self.world.shape.managers:
            yield f"{len(registry.managers)} managers have joined of {self.world.shape.managers}"
        elif sum(counts) != self.world.shape.hosts - len(away):
            yield f"{sum(counts)} hosts have a manager of {self.world.shape.hosts - len(away)}"
        elif max(counts) - min(counts) > 1:
            yield f"the managers are not balanced: {counts}"

    def _leftovers(self, leader: Any) -> Iterator[str]:
        if leader.journal._queue:
            yield f"{len(leader.journal._queue)} writes wait"
        if leader.tasks.open_tasks:
            yield f"{len(leader.tasks.open_tasks)} tasks are open"
        for name, manager in self.world.managers.items():
            under_way = manager.manager.core.orders._open
            if under_way:
                yield f"{name} has {len(under_way)} orders under way"
        for name, agent in self.world.agents.items():
            orders = agent.orders
            if orders._starts.new or orders._moving:
                yield f"{name} has work under way"
        for name, host in self.world.guests.hosts.items():
            if any(vm.state is VmState.MIGRATING for vm in host.vms.values()):
                yield f"{name} has a VM that migrates"
            for vm in host.vms.values():
                if vm.halted:
                    yield f"{vm.spec.name} is left paused on {name} by a migration"


def _room(host: SimulatedHost) -> Capacity:
    """A host's room on every axis; the simulated network is not measured."""
    return Capacity(host.capacity.cpu_cores, host.capacity.memory_kib, 1e18, 1e18)


def _is_close(one: Capacity, other: Capacity) -> bool:
    """Equal but for what adding in another order leaves."""
    return all(
        math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-8)
        for a, b in zip(one.as_tuple(), other.as_tuple(), strict=True)
    )


def _differences(who: str, known: dict[str, Any], there: dict[str, Any]) -> Iterator[str]:
    for vm_id in sorted(known.keys() | there.keys()):
        if known.get(vm_id) != there.get(vm_id):
            told = _short(known.get(vm_id)), _short(there.get(vm_id))
            yield f"{who} has {vm_id[:8]} as {told[0]}, and it is {told[1]}"


def _short(place: Any) -> str:
    if place is None:
        return "nowhere"
    host, state, demand = place
    return f"{state.value} on {host or 'no host'} with {demand.cpu_cores:g} cores"

# pyright: reportPrivateUsage=false
# A world puts its own parts into daemons that do not expect it.
"""One world: machines, the real daemons on them, clients, and the means to break all of it.

``World(shape, seed)`` is a cluster that is about to start. What its daemons are is what they are in
production: ``GroupManager``, ``LocalController`` and ``Bootstrap``, with their links, their HTTP
and their settings; only the event loop, the store and the hypervisors are this room's.
"""

import contextlib
import logging
import random
import secrets
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from typing import Any

from aiohttp import connector, web_app

from snooze.bootstrap.service import Bootstrap
from snooze.common.config import parse
from snooze.common.errors import SnoozeError
from snooze.common.settings import BootstrapSettings
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.settings_localcontroller import LocalControllerSettings
from snooze.groupmanager.leader.service import LeaderService
from snooze.groupmanager.power.factory import PowerDrivers
from snooze.groupmanager.power.port import PowerLimits
from snooze.groupmanager.service import GroupManager
from snooze.localcontroller.hypervisor.simulated import SimulatedHypervisor
from snooze.localcontroller.service import LocalController
from snooze.simulation.bmcs import Bmcs
from snooze.simulation.ensemble import Ensemble, SimulatedCoordinator
from snooze.simulation.hypervisors import Guests, hypervisor_of
from snooze.simulation.leases import Notes, guard_starter
from snooze.simulation.loop import Process, Schedule, mix
from snooze.simulation.network import Machine, Network
from snooze.simulation.sleepers import Sleepers, ways_down

FRONT_PORT = 5000
MANAGER_PORT = 5001
MONITORING_PORT = 6000
AGENT_PORT = 5002
RESTART_S = 2.0
"""How long an init system waits before it starts a daemon again that failed to start."""
MAX_DRIFT = 0.005
"""A monotonic clock is wrong by at most this rate, ten times what NTP allows."""
START_DAEMON_S = 1.0
"""A daemon's start, from the process to its first step."""
BOOT_S = 20.0
GRACE_S = 0.5
"""``lease.grace_s`` of the hosts that fence themselves: the least."""
BMC_LIMITS = PowerLimits(call_timeout_s=3.0, off_timeout_s=10.0)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a world is made of; ``settings`` are more tables for the daemons, by role."""

    hosts: int = 4
    managers: int = 3
    bootstraps: int = 2
    servers: int = 3
    subnets: tuple[str, ...] = ("10.9.0.0/27",)
    drift: bool = True
    managers_settings: tuple[tuple[str, object], ...] = ()
    hosts_settings: tuple[tuple[str, object], ...] = ()
    leases: str = ""
    """Which hosts fence themselves: ``some`` (those of odd number, which have no power controller),
    ``all`` (those with one, too: ``lease.enabled = "always"``), or none."""
    terms_s: tuple[float, ...] = ()
    """``recovery.lease_s`` of the managers, counted round: they need not agree."""
    sleeps: bool = False
    """Whether hosts can go to sleep; whether they are sent is the managers' settings' affair."""
    late_events: bool = False
    """Whether hypervisors tell late, now and then: a destination may be heard before its source."""


@dataclass
class Story:
    """What happened, for people: lines of ``(time, who, what)``."""

    lines: list[tuple[float, str, str]] = field(default_factory=list[tuple[float, str, str]])
    listener: Callable[[float, str, str], None] | None = None

    def tell(self, now_s: float, who: str, what: str) -> None:
        """Add a line."""
        self.lines.append((now_s, who, what))
        if self.listener is not None:
            self.listener(now_s, who, what)


class World:
    """See the module."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.seed = seed
        self.schedule = Schedule()
        self.network = Network(self.schedule, seed)
        self.story = Story()
        self.graveyard: list[Process] = []
        self._numbers = 0
        servers = [self._machine(f"zk{i}", f"10.0.0.{i + 1}") for i in range(shape.servers)]
        self.ensemble = Ensemble(self.network, servers)
        self.sleepers = Sleepers(self.network, self.tell, self.stop, self.power_off)
        self.bmcs = Bmcs(self.schedule, self._switch)
        self.guests = Guests(seed, self.schedule, self.network, late=shape.late_events)
        self.bootstraps = [
            self._machine(f"bs{i}", f"10.0.1.{i + 1}") for i in range(shape.bootstraps)
        ]
        self.manager_machines = [
            self._machine(f"gm{i}", f"10.0.2.{i + 1}") for i in range(shape.managers)
        ]
        self.host_machines = [
            self._machine(f"host{i}", f"10.{1 + i // 62_500}.{i // 250 % 250}.{i % 250 + 1}")
            for i in range(shape.hosts)
        ]
        self.client_machine = self._machine("client", "10.0.3.1")
        self.managers: dict[str, GroupManager] = {}
        self.agents: dict[str, LocalController] = {}
        self.notes = {machine.name: Notes(machine) for machine in self.host_machines}
        self.drivers: dict[str, SimulatedHypervisor] = {}
        self.doors: dict[str, Bootstrap] = {}
        terms = shape.terms_s
        self.terms_s = {
            machine.name: terms[i % len(terms)]
            for i, machine in enumerate(self.manager_machines if terms else ())
        }
        """``recovery.lease_s`` of managers, from their next start on; others have the default."""
        self.wanted: dict[str, bool] = {}
        """Whether the init system of a machine keeps its daemon running."""
        self.on_bmc_off: Callable[[str], None] = lambda _name: None
        self.on_agent: list[Callable[[LocalController], None]] = []

    @property
    def now_s(self) -> float:
        """Seconds since the world began."""
        return self.schedule.now_s - 1000.0

    def tell(self, who: str, what: str) -> None:
        """Add a line to the story."""
        self.story.tell(self.now_s, who, what)

    @property
    def front_doors(self) -> tuple[str, ...]:
        """Where clients connect."""
        return tuple(f"{machine.address}:{FRONT_PORT}" for machine in self.bootstraps)

    @property
    def machines(self) -> dict[str, Machine]:
        """All machines by name."""
        return self.network.by_name

    # ------------------------------------------------------------ who leads

    def leading(self) -> LeaderService | None:
        """The leader that serves now, if there is one."""
        for name, manager in self.managers.items():
            process = self.daemon(name)
            leader = manager.leading
            if process is None or process.paused or leader is None:
                continue
            try:
                leader.require()
            except SnoozeError:
                continue
            return leader
        return None

    def daemon(self, machine: str) -> Process | None:
        """The Snooze daemon of a machine, if one runs."""
        return self.machines[machine].processes.get("snooze")

    # ------------------------------------------------------------ machines and processes

    def _machine(self, name: str, address: str) -> Machine:
        return self.network.machine(name, address)

    def process(self, machine: Machine, kind: str) -> Process:
        """A new process on a machine."""
        self._numbers += 1
        drift = 0.0
        if self.shape.drift:
            place = sum(machine.name.encode()) * 131 + len(machine.name)
            drift = MAX_DRIFT * (2.0 * mix(self.seed, 7, place) - 1.0)
        process = Process(
            self.schedule, self._numbers, f"{machine.name}/{kind}", machine, drift=drift
        )
        machine.processes[kind] = process
        return process

    def start(self) -> None:
        """Switch everything on."""
        for machine in self.bootstraps:
            self.start_daemon(machine.name)
        for machine in self.manager_machines:
            self.start_daemon(machine.name)
        for machine in self.host_machines:
            self.start_hypervisor(machine)
            self.start_daemon(machine.name)

    def start_hypervisor(self, machine: Machine) -> None:
        """Its libvirtd."""
        self.process(machine, "hypervisor")
        host = self.guests.host(machine.name)
        host.up = True

    def start_daemon(self, name: str) -> None:
        """Start the Snooze daemon of a machine."""
        machine = self.machines[name]
        self.wanted[name] = True
        if not machine.is_on or machine.is_booting or "snooze" in machine.processes:
            return
        process = self.process(machine, "snooze")
        process.spawn(self._daemon_main(process, name))

    async def _daemon_main(self, process: Process, name: str) -> None:
        daemon = self._make_daemon(process, name)
        try:
            await daemon.start()
        except (OSError, SnoozeError) as error:
            self.tell(name, f"cannot start: {error}")
            self.schedule.after(RESTART_S, lambda: self._restart(process, name))

    def _restart(self, process: Process, name: str) -> None:
        if process.alive:
            self.kill(name)
            self.start_daemon(name)

    def _make_daemon(
        self, process: Process, name: str
    ) -> GroupManager | LocalController | Bootstrap:
        address = process.machine.address
        if name.startswith("bs"):
            settings = _bootstrap_settings(name, address)
            door = Bootstrap(settings, self._coordinator(process), name, process)
            self.doors[name] = door
            return door
        if name.startswith("gm"):
            more = (("addresses", {"subnets": self.shape.subnets}), *self.shape.managers_settings)
            if name in self.terms_s:
                more = (*more, ("recovery", {"lease_s": self.terms_s[name]}))
            manager = GroupManager(
                _manager_settings(name, address, _frozen(more)),
                self._coordinator(process),
                name,
                process,
            )
            manager._power = PowerDrivers(BMC_LIMITS, self.bmcs)
            self.managers[name] = manager
            return manager
        daemon = process.machine.processes["hypervisor"]
        hypervisor, driver = hypervisor_of(process, daemon, self.guests, name)
        more = (
            ("join", {"bootstrap_nodes": self.front_doors}),
            *self.shape.hosts_settings,
            *self._lease_settings(name),
        )
        if self.shape.sleeps:
            ways = ways_down(int(name[4:]))
            more = (*more, ("power", {"driver": "test", "actions": ways}))
        notes, machine = self.notes[name], process.machine
        guard = guard_starter(
            machine,
            notes,
            self.guests.host(name),
            lambda: self.process(machine, "guard"),
            partial(self.tell, name),
        )
        agent = LocalController(
            _host_settings(name, address, _frozen(more)),
            name,
            clock=process,
            hypervisor=hypervisor,
            lease=notes,
            fall=partial(self.sleepers.fall, name),
            start_guard=guard if self._lease_settings(name) else None,
        )
        self.agents[name], self.drivers[name] = agent, driver
        for callback in self.on_agent:
            callback(agent)
        return agent

    def _lease_settings(self, name: str) -> tuple[tuple[str, object], ...]:
        """Of a host that fences itself."""
        if self.shape.leases and int(name[4:]) % 2:
            return (("wakeup", {"driver": "IPMI", "options": ""}), ("lease", {"grace_s": GRACE_S}))
        if self.shape.leases == "all":
            return (("lease", {"enabled": "always", "grace_s": GRACE_S}),)
        return ()

    def _coordinator(self, process: Process) -> SimulatedCoordinator:
        return SimulatedCoordinator(self.ensemble, process, 4.0, 5.0)

    # ------------------------------------------------------------ what faults do

    def kill(self, name: str) -> None:
        """SIGKILL to a machine's daemon."""
        machine = self.machines[name]
        process = machine.processes.pop("snooze", None)
        if process is None:
            return
        process.kill()
        machine.end_process(process)
        self._forget(name)
        self.graveyard.append(process)

    def kill_guard(self, name: str) -> None:
        """SIGKILL to the process that fences beside a host's agent, which starts another."""
        process = self.machines[name].processes.pop("guard", None)
        if process is not None:
            process.kill()
            self.graveyard.append(process)

    def _forget(self, name: str) -> None:
        self.managers.pop(name, None)
        self.doors.pop(name, None)
        self.agents.pop(name, None)
        driver = self.drivers.pop(name, None)
        if driver is not None and driver in driver.host.listeners:
            driver.host.listeners.remove(driver)

    def stop(self, name: str) -> None:
        """SIGTERM: it says goodbye, then it is gone."""
        process = self.daemon(name)
        daemon = self.managers.get(name) or self.agents.get(name) or self.doors.get(name)
        if process is None or daemon is None:
            return

        async def close() -> None:
            await daemon.close()
            self.schedule.soon(lambda: self.kill(name) if self.daemon(name) is process else None)

        process.spawn(close())

    def _switch(self, name: str, is_on: bool) -> None:
        """A BMC does as it was told."""
        self.tell(name, f"its BMC switches it {'on' if is_on else 'off'}")
        if is_on:
            self.power_on(name)
        else:
            self.on_bmc_off(name)
            self.power_off(name)

    def power_off(self, name: str) -> None:
        """Cut a machine's power."""
        machine = self.machines[name]
        if not machine.is_on:
            return
        self.bmcs.machine(name).is_on = False
        gone = list(machine.processes.values())
        self.sleepers.forget(name)
        machine.power_off()
        self.graveyard += gone
        self._forget(name)
        host = self.guests.hosts.get(name)
        if host is not None:
            host.power_off()
            host.incoming.clear()
            host.listeners.clear()
        self.ensemble.look()

    def power_on(self, name: str) -> None:
        """Switch a machine on: it boots, and its init system starts what it is to run.

        One that is suspended goes on.
        """
        machine = self.machines[name]
        if machine.is_suspended:
            self.sleepers.wake(name)
        if machine.is_on:
            return
        machine.power_on()
        self.bmcs.machine(name).is_on = True
        self.ensemble.look()
        boots = machine.boots

        def booted() -> None:
            if machine.is_on and machine.boots == boots:
                machine.is_booting = False
                if name.startswith("host"):
                    self.start_hypervisor(machine)
                if self.wanted.get(name, False):
                    self.start_daemon(name)

        self.schedule.after(BOOT_S, booted)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """End every process that ever was, so that nothing is left to be collected."""
        living = [p for machine in self.machines.values() for p in machine.processes.values()]
        self.schedule.after_event = lambda _process: None
        self.ensemble.on_commit = lambda _operations: None
        for process in [*self.graveyard, *living]:
            process.kill()
            process.bury()
        self.schedule.wind_up()

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.schedule.run_until(self.schedule.now_s + seconds)

    def defects(self) -> list[str]:
        """What no daemon may do: exceptions that nobody caught."""
        living = [p for machine in self.machines.values() for p in machine.processes.values()]
        return [defect for process in [*self.graveyard, *living] for defect in process.defects]


# ---------------------------------------------------------------- settings


def _frozen(tables: Sequence[tuple[str, object]]) -> tuple[tuple[str, object], ...]:
    """The same, fit to be a key of a cache."""
    return tuple((name, repr(table)) for name, table in tables)


def _tables(name: str, address: str, port: int) -> dict[str, Any]:
    return {
        "node": {"id": name, "hostname": name},
        "network": {
            "listen_address": address,
            "advertised_address": address,
            "control_port": port,
        },
    }


def _merge(tables: dict[str, Any], more: tuple[tuple[str, object], ...]) -> dict[str, Any]:
    import ast

    for name, table in more:
        value = ast.literal_eval(str(table))
        if isinstance(value, dict) and isinstance(tables.get(name), dict):
            tables[name] = {**tables[name], **value}
        else:
            tables[name] = value
    return tables


@cache
def _bootstrap_settings(name: str, address: str) -> BootstrapSettings:
    return parse("", BootstrapSettings, overrides=_tables(name, address, FRONT_PORT))


@cache
def _manager_settings(
    name: str, address: str, more: tuple[tuple[str, object], ...]
) -> GroupManagerSettings:
    tables = _tables(name, address, MANAGER_PORT)
    tables["network"]["monitoring_port"] = MONITORING_PORT
    return parse("", GroupManagerSettings, overrides=_merge(tables, more))


@cache
def _host_settings(
    name: str, address: str, more: tuple[tuple[str, object], ...]
) -> LocalControllerSettings:
    tables = _tables(name, address, AGENT_PORT)
    tables["hypervisor"] = {"driver": "simulated"}
    tables["wakeup"] = {"driver": "test", "options": name}
    return parse("", LocalControllerSettings, overrides=_merge(tables, more))


# ---------------------------------------------------------------- determinism


class _Watcher(logging.Handler):
    """What the daemons log: a line of the story, or a defect."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record."""
        import asyncio

        try:
            loop: Any = asyncio.get_running_loop()
        except RuntimeError:
            return
        process: Process = loop.process
        text = record.getMessage()
        if process.closing or not process.alive:
            return
        if record.exc_info is not None and record.exc_info[1] is not None:
            error = record.exc_info[1]
            where = getattr(record, "event", "") or getattr(record, "effect", "")
            process.defects.append(
                f"{process.name}: {text}: {type(error).__name__}: {error} {where}"
            )
        else:
            more = getattr(record, "error", "")
            self._world.tell(process.machine.name, f"{text}{': ' + more if more else ''}")


@contextlib.contextmanager
def ruled(world: World, *, chatty: bool = False) -> Generator[None]:
    """While this lasts, nothing in this process is random or tells the real time to the daemons.

    ``chatty``: the daemons' own log is part of the story.
    """
    draws = random.Random(world.seed)
    numbers = random.Random(world.seed + 1)
    aiohttp_connector: Any = connector
    # aiohttp keeps a thousand handlers of applications that are gone, and with them their worlds.
    aiohttp_app: Any = web_app
    cached = aiohttp_app._cached_build_middleware
    aiohttp_app._cached_build_middleware = lru_cache(aiohttp_app._build_middlewares)
    former = uuid.uuid4, secrets.token_hex, aiohttp_connector.monotonic
    loggers = [logging.getLogger(name) for name in ("snooze", "aiohttp", "asyncio")]
    watcher = _Watcher(world)
    was = [(logger.level, logger.propagate) for logger in loggers]
    state = random.getstate()
    uuid.uuid4 = lambda: uuid.UUID(int=draws.getrandbits(128), version=4)
    secrets.token_hex = lambda nbytes=None: f"{numbers.getrandbits(64):016x}"
    aiohttp_connector.monotonic = lambda: world.schedule.now_s
    for logger in loggers:
        logger.addHandler(watcher)
        logger.setLevel(logging.INFO if chatty else logging.ERROR)
        logger.propagate = False
    random.seed(world.seed)
    try:
        yield
    finally:
        aiohttp_app._cached_build_middleware = cached
        uuid.uuid4, secrets.token_hex, aiohttp_connector.monotonic = former
        for logger, (level, propagate) in zip(loggers, was, strict=True):
            logger.removeHandler(watcher)
            logger.setLevel(level)
            logger.propagate = propagate
        random.setstate(state)

"""The world behind simulated hypervisors: hosts, latencies, failures and load, all to order.

Deterministic: everything random is drawn from generators seeded by the world's seed and the host's
name, so that one integer reproduces a run. Time is handed in (``Clock`` and ``sleep``).
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from snooze.common.clock import SYSTEM_CLOCK, Clock
from snooze.common.errors import ExecutionError, SnoozeError
from snooze.common.resources import KIB_PER_GIB, Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import LooseDisk, MigrationProgress, VmSpec

Sleep = Callable[[float], Awaitable[None]]

LoadProfile = Callable[[VmSpec, float], Capacity]
"""What a VM uses, given what it asked for and the seconds it has existed."""


def constant_load(share: float) -> LoadProfile:
    """Each VM uses this share of its demand's cores and network, and all of its memory."""

    def profile(spec: VmSpec, age_s: float) -> Capacity:
        return spec.demand.scaled((share, 1.0, share, share))

    return profile


def wave_load(low: float, high: float, period_s: float) -> LoadProfile:
    """A sine between two shares of the demand; each VM has a phase of its own."""
    middle, swing = (low + high) / 2, (high - low) / 2

    def profile(spec: VmSpec, age_s: float) -> Capacity:
        phase = random.Random(spec.vm_id).random()
        share = middle + swing * math.sin(2 * math.pi * (age_s / period_s + phase))
        return spec.demand.scaled((share, 1.0, share, share))

    return profile


@dataclass(frozen=True, slots=True)
class Latency:
    """How long an operation takes: at least ``base_s``, on average ``spread_s`` more."""

    base_s: float = 0.0
    spread_s: float = 0.0

    def draw(self, generator: random.Random) -> float:
        """One duration in seconds, exponentially spread."""
        if not self.spread_s:
            return self.base_s
        return self.base_s + generator.expovariate(1 / self.spread_s)


NO_LATENCY: Final = Latency()

DEFAULT_CAPACITY: Final = Capacity(16.0, 64.0 * KIB_PER_GIB)


@dataclass(frozen=True, slots=True)
class SimulatedSettings:
    """What simulated hosts are like unless told otherwise.

    Attributes:
        latencies: by method name of the port (``start``, ``suspend``, ...); none for the others.
        failure_rates: probability, by method name, that a call fails having changed nothing.
        migration_kib_s: a migration takes the VM's memory divided by this.
        migration_steps: reports of progress in one migration.
    """

    capacity: Capacity = DEFAULT_CAPACITY
    latencies: dict[str, Latency] = field(default_factory=dict[str, Latency])
    failure_rates: dict[str, float] = field(default_factory=dict[str, float])
    load: LoadProfile = field(default_factory=lambda: constant_load(0.5))
    migration_kib_s: float = 10.0 * KIB_PER_GIB
    migration_steps: int = 4
    downtime_ms: int = 20


@dataclass(slots=True)
class SimulatedVm:
    """One domain of a simulated host."""

    spec: VmSpec
    state: VmState
    xml: str
    born_s: float
    managed: bool = True
    mac_address: str = ""
    max_vcpus: int = 1
    max_memory_kib: int = 0
    reason: str = ""
    interrupted: bool = False
    halted: bool = False


@dataclass(slots=True)
class _Failure:
    error: SnoozeError
    times: int
    after: bool


class SimulatedHost:
    """The state of one host: it outlives the driver objects that look at it.

    Attributes:
        up: whether its hypervisor answers.
        vms: by vm_id.
        arrivals: how the VMs that came by a migration came, by vm_id.
        disks: those made for VMs from images, by vm_id, as their notes say.
        incoming: reservations of migrations, vm_id by token.
        listeners: drivers that want to hear of changes.
    """

    __slots__ = (
        "_failures",
        "arrivals",
        "capacity",
        "disks",
        "generator",
        "incoming",
        "listeners",
        "name",
        "names",
        "up",
        "vms",
    )

    def __init__(self, name: str, capacity: Capacity, generator: random.Random) -> None:
        self.name = name
        self.capacity = capacity
        self.generator = generator
        self.up = True
        self.vms: dict[str, SimulatedVm] = {}
        self.names: dict[str, str] = {}
        self.arrivals: dict[str, MigrationProgress] = {}
        self.disks: dict[str, LooseDisk] = {}
        self.incoming: dict[str, str] = {}
        self.listeners: list[HostListener] = []
        self._failures: dict[str, list[_Failure]] = {}

    def fail(self, method: str, error: SnoozeError, *, times: int = 1, after: bool = False) -> None:
        """Let the next ``times`` calls of ``method`` raise ``error``.

        Args:
            after: raise once the work is done: the answer is lost, not the order.
        """
        self._failures.setdefault(method, []).append(_Failure(error, times, after))

    def take_failure(self, method: str, *, after: bool) -> SnoozeError | None:
        """The error ordered for this call, if any; counts it."""
        queue = self._failures.get(method)
        if not queue or queue[0].after is not after:
            return None
        failure = queue[0]
        failure.times -= 1
        if failure.times <= 0:
            queue.pop(0)
        return failure.error

    def put(self, vm: SimulatedVm) -> None:
        """Add a domain."""
        self.vms[vm.spec.vm_id] = vm
        self.names[vm.spec.name] = vm.spec.vm_id

    def drop(self, vm_id: str) -> SimulatedVm | None:
        """Remove a domain, if it is here."""
        vm = self.vms.pop(vm_id, None)
        self.arrivals.pop(vm_id, None)
        if vm is not None:
            del self.names[vm.spec.name]
        return vm

    def lose_connection(self, reason: str) -> None:
        """The hypervisor stops answering; its VMs keep running."""
        self.up = False
        for listener in tuple(self.listeners):
            listener.connection_changed(False, reason)

    def restore_connection(self) -> None:
        """The hypervisor answers again."""
        self.up = True
        for listener in tuple(self.listeners):
            listener.connection_changed(True, "")

    def power_off(self) -> None:
        """The machine loses power: nobody is told, and every VM is off."""
        self.lose_connection("power lost")
        for vm in self.vms.values():
            if vm.state not in {VmState.STOPPED, VmState.FAILED}:
                vm.state, vm.interrupted, vm.halted = VmState.STOPPED, True, False

    def crash(self, vm_id: str, reason: str = "guest panicked") -> None:
        """A VM's process dies.

        Raises:
            KeyError: if it is not here.
        """
        vm = self.vms[vm_id]
        vm.state, vm.reason, vm.halted = VmState.FAILED, reason, False
        for listener in tuple(self.listeners):
            listener.vm_crashed(vm)

    def guest_powers_off(self, vm_id: str) -> None:
        """A guest switches itself off.

        Raises:
            KeyError: if it is not here.
        """
        vm = self.vms[vm_id]
        vm.state, vm.reason, vm.interrupted = VmState.STOPPED, "shutdown", False
        vm.halted = False
        for listener in tuple(self.listeners):
            listener.vm_stopped(vm)


class HostListener:
    """What a driver object hears from its host; it overrides all of it."""

    def connection_changed(self, connected: bool, reason: str) -> None:
        """The hypervisor stopped answering, or answers again."""
        raise NotImplementedError

    def vm_crashed(self, vm: SimulatedVm) -> None:
        """A VM's process died."""
        raise NotImplementedError

    def vm_stopped(self, vm: SimulatedVm) -> None:
        """A guest switched itself off."""
        raise NotImplementedError


class SimulatedWorld:
    """All simulated hosts of one process; between them VMs migrate."""

    def __init__(
        self,
        seed: int = 0,
        settings: SimulatedSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.seed = seed
        self.settings = settings if settings is not None else SimulatedSettings()
        self.clock = clock
        self.sleep = sleep
        self._hosts: dict[str, SimulatedHost] = {}
        self.loads: dict[str, float] = {}
        self.migrations_halt = False
        """Whether migrations stop half-way: the guest is left paused where it was."""

    def load_of(self, vm: SimulatedVm) -> Capacity:
        """What a VM uses now.

        ``loads`` has the share of its vCPUs that a VM burns, by name, for those whose load is set
        by hand; the others follow the profile of the settings.
        """
        burnt = self.loads.get(vm.spec.name)
        if burnt is None:
            return self.settings.load(vm.spec, self.clock.monotonic_s() - vm.born_s)
        return vm.spec.demand.scaled((burnt, 1.0, 0.0, 0.0))

    def host(self, name: str, capacity: Capacity | None = None) -> SimulatedHost:
        """The host of this name, made if it is new (``capacity`` counts only then)."""
        host = self._hosts.get(name)
        if host is None:
            generator = random.Random(f"{self.seed}:{name}")
            host = SimulatedHost(name, capacity or self.settings.capacity, generator)
            self._hosts[name] = host
        return host

    @property
    def hosts(self) -> Mapping[str, SimulatedHost]:
        """All hosts there are, by name."""
        return self._hosts

    def find(self, name: str) -> SimulatedHost | None:
        """The host of this name, if there is one."""
        return self._hosts.get(name)

    async def work(self, host: SimulatedHost, method: str) -> None:
        """Spend a method's latency, then fail if that was ordered or drawn.

        Raises:
            SnoozeError: as ordered by ``host.fail``, or ``ExecutionError`` by ``failure_rates``.
        """
        delay_s = self.settings.latencies.get(method, NO_LATENCY).draw(host.generator)
        if delay_s > 0:
            await self.sleep(delay_s)
        error = host.take_failure(method, after=False)
        if error is not None:
            raise error
        rate = self.settings.failure_rates.get(method, 0.0)
        if rate and host.generator.random() < rate:
            raise ExecutionError(f"{method} failed on {host.name} (drawn at rate {rate:g})")

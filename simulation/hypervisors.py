"""The hosts' hypervisors: the shipped simulated one, in a process of its own on each host.

As with libvirt, what was ordered goes on when the agent that ordered it dies, a hypervisor can
stand still while its guests run, and a machine that loses power takes all of it along. Guests are
the ``SimulatedHost``'s: they outlive agent and hypervisor, and are off after a power loss.
"""

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable
from typing import Any, cast

from snooze.common.errors import ExecutionError, RemoteTimeout
from snooze.common.resources import KIB_PER_GIB, Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.localcontroller.hypervisor.port import Hypervisor
from snooze.localcontroller.hypervisor.simulated import SimulatedHypervisor
from snooze.localcontroller.hypervisor.simulated_world import (
    Latency,
    SimulatedHost,
    SimulatedSettings,
    SimulatedVm,
    SimulatedWorld,
)
from snooze.simulation.loop import Process, Schedule
from snooze.simulation.network import Network

CALL_S = 0.0001
"""A call to the hypervisor's socket, one way."""

CALL_TIMEOUT_S = 30.0
"""Source: ``hypervisor.call_timeout_s`` of the local controller's settings."""

LATE = 0.3, 1.5
"""How many changes of guests are told late, where some are, and by how many seconds at most."""

LATE_LISTS = 0.1, 3.0
"""Likewise of lists of all guests, in half of these worlds: they are as old when they are read."""

OLD_LISTS = 2
"""The last digit of the seeds of that half."""

LATENCIES = {
    "start": Latency(0.2, 0.3),
    "start_again": Latency(0.2, 0.3),
    "destroy": Latency(0.05, 0.1),
    "shutdown": Latency(0.1, 0.4),
    "suspend": Latency(0.01, 0.02),
    "resume": Latency(0.01, 0.02),
    "inventory": Latency(0.002, 0.004),
    "prepare_incoming": Latency(0.02, 0.05),
    "migrate_out": Latency(0.01, 0.05),
    "finish_incoming": Latency(0.01, 0.05),
}


class WorldClock:
    """True time, for what belongs to no process."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def monotonic_s(self) -> float:
        """Seconds of the world."""
        return self._schedule.now_s

    def boottime_s(self) -> float:
        """The same."""
        return self._schedule.now_s

    def wall_ms(self) -> int:
        """A wall clock that never steps."""
        return round(self._schedule.now_s * 1000)


class Guests(SimulatedWorld):
    """All simulated hosts; migrations go over the simulated network, disks can be full."""

    def __init__(
        self, seed: int, schedule: Schedule, network: Network, *, late: bool = False
    ) -> None:
        """``late``: some changes of guests are told late, and some lists of them are old."""
        settings = SimulatedSettings(
            capacity=Capacity(8.0, 16.0 * KIB_PER_GIB),
            latencies=dict(LATENCIES),
            migration_kib_s=2.0 * KIB_PER_GIB,
        )
        super().__init__(seed, settings, WorldClock(schedule))
        self._network = network
        self._late = random.Random(f"{seed}:late") if late else None
        self._lists = random.Random(f"{seed}:lists") if late and seed % 10 == OLD_LISTS else None
        self.full_disks: set[str] = set()
        self.failing: dict[str, float] = {}
        """Probability that a method fails on any host, while a fault lasts."""
        self.slow: dict[str, float] = {}
        """Seconds more that a method takes on every host, while a fault lasts."""

    def lag_s(self) -> float:
        """How long the next change of a guest takes until its agent hears of it."""
        share, most_s = LATE
        if self._late is None or self._late.random() >= share:
            return CALL_S
        return CALL_S + self._late.random() * most_s

    def answer_s(self, method: str) -> float:
        """How long what a method found takes back to its agent."""
        share, most_s = LATE_LISTS
        if self._lists is None or method != "inventory" or self._lists.random() >= share:
            return CALL_S
        return CALL_S + self._lists.random() * most_s

    def find(self, name: str) -> SimulatedHost | None:
        """The host, if whoever asks reaches it now."""
        loop = cast(Any, asyncio.get_running_loop())
        asker: str = loop.process.machine.name
        if self._network.is_cut(asker, name) or self._network.is_cut(name, asker):
            return None
        return super().find(name)

    async def work(self, host: SimulatedHost, method: str) -> None:
        """See ``SimulatedWorld``; and what the faults of this world do."""
        extra_s = self.slow.get(method, 0.0)
        if extra_s:
            await self.sleep(extra_s * (0.5 + host.generator.random()))
        await super().work(host, method)
        if host.name in self.full_disks and method in {"start", "prepare_incoming"}:
            raise ExecutionError(f"no space left on the disk of {host.name}")
        rate = self.failing.get(method, 0.0)
        if rate and host.generator.random() < rate:
            raise ExecutionError(f"{method} failed on {host.name}, as ordered")


class _Driver(SimulatedHypervisor):
    """The driver; what it does in several calls ends with its agent."""

    def __init__(self, agent: Process, guests: Guests, hostname: str) -> None:
        super().__init__(guests, hostname)
        self._agent = agent

    def _unmake(self, vm: SimulatedVm) -> None:
        """A start that failed leaves its definition behind if nobody is there to remove it."""
        if self._agent.alive:
            super()._unmake(vm)
        elif vm.state is VmState.STARTING:
            vm.state = VmState.STOPPED


class RemoteHypervisor:
    """A ``Hypervisor`` in another process of the same machine.

    Every method of the driver is there: what it waits for happens in the hypervisor's process, and
    its outcome comes back to the caller's, if that still lives.
    """

    def __init__(
        self, agent: Process, daemon: Process, guests: Guests, inner: SimulatedHypervisor
    ) -> None:
        self._guests = guests
        self._heard_s = 0.0
        self._agent = agent
        self._daemon = daemon
        self._inner = inner

    def on_change(self, callback: Callable[[Any], None]) -> None:
        """See the port."""
        self._inner.on_change(lambda change: self._tell(lambda: callback(change)))

    def on_connection(self, callback: Callable[[Any], None]) -> None:
        """See the port."""
        self._inner.on_connection(lambda change: self._come_back(lambda: callback(change)))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **named: Any) -> Any:
            return await self._call(method, *map(self._carried, args), **named)

        return call

    def _carried(self, value: Any) -> Any:
        """Callbacks run in the caller's process."""
        if not callable(value):
            return value

        def carry(*args: Any) -> None:
            self._come_back(lambda: value(*args))

        return carry

    async def _call(self, method: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        under_way: list[asyncio.Task[Any]] = []

        async def work() -> None:
            try:
                result = await method(*args, **named)
            except asyncio.CancelledError:
                self._come_back(lambda: future.done() or future.cancel())
                raise
            except Exception as error:  # noqa: BLE001  # handed to the caller, whatever it is
                told = error
                self._come_back(lambda: None if future.done() else future.set_exception(told))
            else:
                self._come_back(
                    lambda: None if future.done() else future.set_result(result),
                    self._guests.answer_s(method.__name__),
                )

        def begin() -> None:
            under_way.append(self._daemon.loop.create_task(work()))

        self._daemon.schedule.after(CALL_S, lambda: self._daemon.run(begin))
        limit_s = None if method.__name__ == "migrate_out" else CALL_TIMEOUT_S
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.shield(future)
        except TimeoutError:
            raise RemoteTimeout(f"the hypervisor did not answer {method.__name__}") from None
        except asyncio.CancelledError:
            self._daemon.run(lambda: _cancel(under_way))
            raise
        finally:
            if future.done() and not future.cancelled():
                future.exception()

    def _tell(self, step: Callable[[], object]) -> None:
        """Of one host in order."""
        now_s = self._agent.schedule.now_s
        self._heard_s = max(self._heard_s, now_s + self._guests.lag_s())
        self._come_back(step, self._heard_s - now_s)

    def _come_back(self, step: Callable[[], object], after_s: float = CALL_S) -> None:
        schedule = self._agent.schedule
        schedule.after(after_s, lambda: self._agent.run(lambda: (step(), None)[1]))


def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()


def hypervisor_of(
    agent: Process, daemon: Process, guests: Guests, hostname: str
) -> tuple[Hypervisor, SimulatedHypervisor]:
    """The agent's hypervisor, and the driver behind it."""
    inner = _Driver(agent, guests, hostname)
    return cast(Hypervisor, RemoteHypervisor(agent, daemon, guests, inner)), inner

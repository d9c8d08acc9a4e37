"""The shipped fake: simulated machines with delays and failures to order.

A ``SimulatedPower`` is the world: machines by name, shared by all controllers that are made for
them, as several managers share one BMC. Whoever simulates hosts listens to their machines.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from snooze.common.errors import ExecutionError, PreconditionError, RemoteTimeout
from snooze.groupmanager.power.port import PowerLimits, PowerState

Sleep = Callable[[float], Awaitable[None]]
Listener = Callable[[bool], None]


@dataclass(slots=True)
class SimulatedMachine:
    """One machine and its BMC; fields may be changed at any time.

    Attributes:
        is_on: whether it has power.
        on_s: from the order until it has power.
        off_s: from a hard order until it has none.
        shutdown_s: from a graceful order until it has none; None: its system ignores it.
        answer_s: what each question and order takes.
        is_silent: its BMC answers nothing, and orders do not arrive.
        loses_answers: orders are carried out, and no answer is heard.
        refuses_password: the BMC lets nobody in.
        is_stuck: orders are accepted, and nothing happens.
        fails: the BMC says that orders failed.
        draws_w: watts while it is on; None: not measured.
        orders: what it was told, in order: ``on``, ``off``, ``shutdown``.
        listeners: called with the new ``is_on`` at each change.
    """

    is_on: bool = True
    on_s: float = 0.0
    off_s: float = 0.0
    shutdown_s: float | None = 0.0
    answer_s: float = 0.0
    is_silent: bool = False
    loses_answers: bool = False
    refuses_password: bool = False
    is_stuck: bool = False
    fails: bool = False
    draws_w: float | None = None
    orders: list[str] = field(default_factory=list[str])
    listeners: list[Listener] = field(default_factory=list[Listener])

    def switch(self, is_on: bool) -> None:
        """Give or take its power at once, as a plug would; listeners are told of a change."""
        if self.is_on != is_on:
            self.is_on = is_on
            for listener in tuple(self.listeners):
                listener(is_on)


class SimulatedPower:
    """Machines by name, and the time they live in."""

    def __init__(self, sleep: Sleep = asyncio.sleep) -> None:
        self.machines: dict[str, SimulatedMachine] = {}
        self._sleep = sleep
        self._changing: dict[str, asyncio.Task[None]] = {}

    def machine(self, name: str) -> SimulatedMachine:
        """The machine of this name; it is made, and is on, if there was none."""
        return self.machines.setdefault(name, SimulatedMachine())

    async def sleep(self, delay_s: float) -> None:
        """Let time pass."""
        await self._sleep(delay_s)

    def switch_later(self, name: str, is_on: bool, delay_s: float) -> None:
        """Order a change of power; a newer order replaces one that is not yet carried out."""
        machine = self.machine(name)
        waiting = self._changing.pop(name, None)
        if waiting is not None:
            waiting.cancel()
        if delay_s <= 0:
            machine.switch(is_on)
            return

        async def change() -> None:
            await self._sleep(delay_s)
            machine.switch(is_on)

        task = asyncio.ensure_future(change())
        self._changing[name] = task
        task.add_done_callback(lambda done: self._forget(name, done))

    def is_changing(self, name: str) -> bool:
        """Whether an order to this machine waits to be carried out."""
        return name in self._changing

    def _forget(self, name: str, task: "asyncio.Task[None]") -> None:
        if self._changing.get(name) is task:
            del self._changing[name]

    async def close(self) -> None:
        """Let no change happen any more."""
        tasks = list(self._changing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class SimulatedController:
    """A ``PowerController`` of one machine of a ``SimulatedPower``."""

    can_read_state = True
    can_power_off = True

    def __init__(self, world: SimulatedPower, name: str, limits: PowerLimits | None = None) -> None:
        self._world = world
        self._name = name
        self._limits = limits or PowerLimits()

    def __repr__(self) -> str:
        return f"SimulatedController({self._name!r})"

    async def state(self) -> PowerState:
        """See the port."""
        machine = await self._reach()
        await self._answer(machine)
        return PowerState.ON if machine.is_on else PowerState.OFF

    async def on(self) -> None:
        """See the port."""
        machine = await self._reach()
        self._order(machine, "on", True, machine.on_s)
        await self._answer(machine)

    async def off(self, *, hard: bool = True) -> PowerState:
        """See the port."""
        machine = await self._reach()
        if not machine.is_on and not self._world.is_changing(self._name):
            await self._answer(machine)
            return PowerState.OFF
        if hard:
            self._order(machine, "off", False, machine.off_s)
        else:
            self._order(machine, "shutdown", False, machine.shutdown_s)
        await self._answer(machine)
        waited_s = 0.0
        while hard and machine.is_on:
            if waited_s >= self._limits.off_timeout_s:
                raise RemoteTimeout(
                    f"{self._name} was ordered off and is still on after "
                    f"{self._limits.off_timeout_s:g} s"
                )
            await self._world.sleep(self._limits.poll_s)
            waited_s += self._limits.poll_s
        return await self.state()

    async def power_w(self) -> float | None:
        """See the port."""
        machine = await self._reach()
        await self._answer(machine)
        if machine.draws_w is None:
            return None
        return machine.draws_w if machine.is_on else 0.0

    async def close(self) -> None:
        """See the port."""

    async def _reach(self) -> SimulatedMachine:
        machine = self._world.machine(self._name)
        limit_s = self._limits.call_timeout_s
        if machine.is_silent or machine.answer_s > limit_s:
            await self._world.sleep(limit_s)
            raise RemoteTimeout(f"the BMC of {self._name} did not answer within {limit_s:g} s")
        if machine.answer_s:
            await self._world.sleep(machine.answer_s)
        if machine.refuses_password:
            raise PreconditionError(f"the BMC of {self._name} refuses the user or the password")
        return machine

    def _order(
        self, machine: SimulatedMachine, name: str, is_on: bool, delay_s: float | None
    ) -> None:
        machine.orders.append(name)
        if machine.fails:
            raise ExecutionError(f"the BMC of {self._name} says that it failed to go {name}")
        if not machine.is_stuck and delay_s is not None:
            self._world.switch_later(self._name, is_on, delay_s)

    async def _answer(self, machine: SimulatedMachine) -> None:
        if machine.loses_answers:
            await self._world.sleep(self._limits.call_timeout_s)
            raise RemoteTimeout(f"the BMC of {self._name} did not answer; it may have happened")

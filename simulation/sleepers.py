"""How the hosts of a world go to sleep and come back: what their systems and their kernels do.

A host that shuts down has its daemon stopped, as systemd does, and is off a moment later. One that
is suspended to memory stands still with all that runs on it: packets to it are lost, its monotonic
clocks and timers stop, its wall clock does not. Its power controller calls it on all the time, and
wakes it when it is told to switch it on. ``common/clock.py`` says which clock counts on.
"""

from collections.abc import Callable
from functools import partial

from snooze.common.errors import ExecutionError
from snooze.localcontroller.power import PowerAction
from snooze.simulation.network import Network

SHUTDOWN_S = 1.0
"""From the order until systemd stops the daemon."""
OFF_S = 1.0
"""From then until the machine is off."""
SUSPEND_S = 0.4
RESUME_S = 2.0
"""From the order to wake until a suspended machine goes on."""


def ways_down(number: int) -> tuple[str, ...]:
    """``power.actions`` of a host: every other one shuts down, the rest are suspended."""
    return ("suspend_to_ram",) if number % 2 else ("shutdown",)


class Sleepers:
    """The sleep of all hosts of one world."""

    def __init__(
        self,
        network: Network,
        tell: Callable[[str, str], None],
        stop: Callable[[str], None],
        power_off: Callable[[str], None],
    ) -> None:
        """``stop`` ends a machine's daemon as an init system does, ``power_off`` is the rest."""
        self._network = network
        self._tell = tell
        self._stop = stop
        self._power_off = power_off
        self.refusing: set[str] = set()
        """Hosts whose systems fail at once when they are to go down."""
        self.late_s: dict[str, float] = {}
        """Seconds more that a host takes to go down; it may have other plans by then."""
        self.fell = 0
        self.woke = 0
        self.on_down: Callable[[str], None] = lambda _name: None
        """Called at the moment at which a host goes down."""

    def fall(self, name: str, action: PowerAction) -> None:
        """The agent of a host has the machine go down. Raises: ExecutionError, it fails at once."""
        if name in self.refusing:
            raise ExecutionError(f"systemctl: cannot {action.value}")
        boots = self._network.by_name[name].boots
        wait_s = SHUTDOWN_S if action is PowerAction.SHUTDOWN else SUSPEND_S
        wait_s += self.late_s.get(name, 0.0)
        self._network.schedule.after(wait_s, partial(self._down, name, boots, action))

    def _is_same(self, name: str, boots: int) -> bool:
        machine = self._network.by_name[name]
        return machine.is_on and machine.boots == boots and not machine.is_suspended

    def _down(self, name: str, boots: int, action: PowerAction) -> None:
        if not self._is_same(name, boots):
            return
        self.fell += 1
        self._tell(name, f"goes down ({action.value})")
        self.on_down(name)
        if action is not PowerAction.SHUTDOWN:
            self.suspend(name)
            return

        def off() -> None:
            if self._is_same(name, boots):
                self.on_down(name)
                self._power_off(name)

        self._stop(name)
        self._network.schedule.after(OFF_S, off)

    def suspend(self, name: str) -> None:
        """A machine stands still, and nothing gets to it."""
        machine = self._network.by_name[name]
        machine.suspend()
        for other in self._others(name):
            self._network.cut(name, other)
            self._network.cut(other, name)

    def wake(self, name: str) -> None:
        """A suspended machine goes on, soon."""
        machine = self._network.by_name[name]
        since_s = machine.suspended_since_s

        def resume() -> None:
            if machine.suspended_since_s == since_s and machine.is_suspended:
                self.woke += 1
                self._tell(name, "goes on")
                self.forget(name)
                machine.go_on()

        self._network.schedule.after(RESUME_S, resume)

    def forget(self, name: str) -> None:
        """A machine stands still no longer: it goes on, or has lost its power."""
        if self._network.by_name[name].is_suspended:
            for other in self._others(name):
                self._network.heal(name, other)
                self._network.heal(other, name)

    def _others(self, name: str) -> list[str]:
        return [other for other in self._network.by_name if other != name]

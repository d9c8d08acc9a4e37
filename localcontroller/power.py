"""How a host goes down by itself: the port, and its drivers.

Waking is not a host's own affair: see ``groupmanager/power/``.
"""

import os
import shutil
import signal
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from snooze.common.commands import begin_command
from snooze.common.errors import PreconditionError
from snooze.common.power_options import split_command
from snooze.common.settings_power import PowerDownSettings

EARLY_S: Final = 1.0
"""A command that goes wrong within this time has failed; one that goes on is at work."""

SLEEP_STATES: Final = Path("/sys/power/state")
SYSTEMD: Final = Path("/run/systemd/system")


class PowerAction(StrEnum):
    """A way to go down; Snooze's were ``shutdown``, ``suspendToRam`` and so on."""

    SHUTDOWN = "shutdown"
    SUSPEND_TO_RAM = "suspend_to_ram"
    SUSPEND_TO_DISK = "suspend_to_disk"
    SUSPEND_TO_BOTH = "suspend_to_both"


SYSTEMCTL: Final = {
    PowerAction.SHUTDOWN: "poweroff",
    PowerAction.SUSPEND_TO_RAM: "suspend",
    PowerAction.SUSPEND_TO_DISK: "hibernate",
    PowerAction.SUSPEND_TO_BOTH: "hybrid-sleep",
}

# Source: Linux, Documentation/admin-guide/pm/sleep-states.rst; systemd-sleep.conf(5).
NEEDED_STATES: Final[Mapping[PowerAction, frozenset[str]]] = {
    PowerAction.SHUTDOWN: frozenset(),
    PowerAction.SUSPEND_TO_RAM: frozenset({"mem", "standby", "freeze"}),
    PowerAction.SUSPEND_TO_DISK: frozenset({"disk"}),
    PowerAction.SUSPEND_TO_BOTH: frozenset({"disk"}),
}
"""Any of these words in ``/sys/power/state``."""


class PowerDownDriver(Protocol):
    """What takes this machine down."""

    def why_not(self, action: PowerAction) -> str:
        """Why this machine cannot go down in this way; empty if it can. Quick, changes nothing."""
        ...

    async def go_down(self, action: PowerAction) -> None:
        """Begin to; returns when it is under way, within about ``EARLY_S``.

        Raises:
            ExecutionError: it failed at once: the machine stays up.
        """
        ...


class SystemdPower:
    """By systemd."""

    def __init__(self, states: Path = SLEEP_STATES, systemd: Path = SYSTEMD) -> None:
        self._states = states
        self._systemd = systemd

    def why_not(self, action: PowerAction) -> str:
        """See the port: systemd runs, and the kernel knows such a state."""
        if not self._systemd.is_dir() or shutil.which("systemctl") is None:
            return "systemd does not run here"
        return _unknown_state(action, self._states)

    async def go_down(self, action: PowerAction) -> None:
        """See the port."""
        await begin_command(("systemctl", SYSTEMCTL[action]), EARLY_S)


class CommandPower:
    """By a command of the operator; ``{action}`` in it stands for what is to be done."""

    def __init__(self, command: str) -> None:
        self._words = split_command(command, "power.command") if command else ()

    def why_not(self, action: PowerAction) -> str:
        """See the port: the command exists."""
        if not self._words:
            return "power.command is empty"
        if shutil.which(self._words[0]) is None:
            return f"there is no command {self._words[0]}"
        return ""

    async def go_down(self, action: PowerAction) -> None:
        """See the port."""
        words = [word.replace("{action}", action.value) for word in self._words]
        await begin_command(words, EARLY_S)


class IpmiPower:
    """By this machine's own BMC, which presses the power button: its system shuts down."""

    COMMAND: Final = ("ipmitool", "-I", "open", "chassis", "power", "soft")

    def why_not(self, action: PowerAction) -> str:
        """See the port."""
        if action is not PowerAction.SHUTDOWN:
            return "a BMC cannot suspend a machine"
        if shutil.which("ipmitool") is None:
            return "ipmitool is not installed"
        return ""

    async def go_down(self, action: PowerAction) -> None:
        """See the port."""
        await begin_command(self.COMMAND, EARLY_S)


class SimulatedPowerDown:
    """The shipped fake: ``fall`` is called instead; without one this daemon is told to end."""

    def __init__(self, fall: Callable[[PowerAction], None] | None = None) -> None:
        self._fall = fall or _end_daemon

    def why_not(self, action: PowerAction) -> str:
        """See the port: it can do all."""
        return ""

    async def go_down(self, action: PowerAction) -> None:
        """See the port."""
        self._fall(action)


def make_power(
    settings: PowerDownSettings, fall: Callable[[PowerAction], None] | None = None
) -> PowerDownDriver:
    """The driver that the (checked) settings name; ``fall`` is for driver ``test``."""
    match settings.driver:
        case "systemd":
            return SystemdPower()
        case "command":
            return CommandPower(settings.command)
        case "ipmi":
            return IpmiPower()
        case "test":
            return SimulatedPowerDown(fall)


class HostPowerDown:
    """The ways down that this host offers."""

    def __init__(self, driver: PowerDownDriver, wanted: tuple[str, ...]) -> None:
        self._driver = driver
        self._wanted = tuple(PowerAction(each) for each in wanted)

    def actions(self) -> tuple[str, ...]:
        """Those of the settings that this machine can do, the preferred one first."""
        return tuple(each.value for each in self._wanted if not self._driver.why_not(each))

    def check(self, action: str) -> PowerAction:
        """The action, if it is offered.

        Raises:
            PreconditionError: the settings do not allow it, or this machine cannot.
        """
        wanted = next((each for each in self._wanted if each.value == action), None)
        if wanted is None:
            raise PreconditionError(f"power.actions of this host do not hold {action[:40]!r}")
        reason = self._driver.why_not(wanted)
        if reason:
            raise PreconditionError(f"this host cannot {action}: {reason}")
        return wanted

    async def go_down(self, action: PowerAction) -> None:
        """See ``PowerDownDriver.go_down``."""
        await self._driver.go_down(action)


def _unknown_state(action: PowerAction, states: Path) -> str:
    needed = NEEDED_STATES[action]
    if not needed:
        return ""
    try:
        known = set(states.read_text().split())
    except OSError:
        known = set[str]()
    return "" if needed & known else f"the kernel knows none of {', '.join(sorted(needed))}"


def _end_daemon(action: PowerAction) -> None:
    os.kill(os.getpid(), signal.SIGTERM)

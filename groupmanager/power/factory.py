"""From a host's description to the controller of its power."""

import asyncio
import functools
from typing import Protocol, assert_never

from snooze.common.errors import InvalidRequest
from snooze.common.power_options import (
    CommandOptions,
    IpmiOptions,
    RedfishOptions,
    SimulatedOptions,
    WolOptions,
    parse_power,
)
from snooze.common.settings_power import PowerControlSettings
from snooze.common.wire import PowerDescription
from snooze.groupmanager.power.command import CommandController
from snooze.groupmanager.power.ipmi import IpmiController
from snooze.groupmanager.power.ipmi_workers import IpmiWorkers
from snooze.groupmanager.power.overrides import PowerOverrides
from snooze.groupmanager.power.port import PowerController, PowerLimits
from snooze.groupmanager.power.redfish import RedfishController
from snooze.groupmanager.power.simulated import SimulatedController, SimulatedPower
from snooze.groupmanager.power.wake_on_lan import WakeOnLanController


class PoweredHost(Protocol):
    """A ``HostDescription`` or a ``HostRecord``."""

    @property
    def host_id(self) -> str:
        """Its id."""
        ...

    @property
    def hostname(self) -> str:
        """Its name."""
        ...

    @property
    def power(self) -> PowerDescription:
        """As it described itself."""
        ...


class PowerDrivers:
    """Makes controllers, keeps them, and owns what they share; one of these per daemon.

    A host's controller is kept as long as its description stays the same. ``close`` ends all.
    """

    def __init__(
        self,
        limits: PowerLimits | None = None,
        world: SimulatedPower | None = None,
        *,
        ipmi_processes: int = 8,
        overrides: PowerOverrides | None = None,
        run_commands_of_hosts: bool = False,
    ) -> None:
        """``world``: the machines of driver ``test``, shared with whoever simulates hosts.

        ``run_commands_of_hosts``: whether a host may name what is run here (driver ``COMMAND``).
        """
        self._limits = limits or PowerLimits()
        self._owns_world = world is None
        self.world = world or SimulatedPower()
        self._workers = IpmiWorkers(ipmi_processes)
        self._overrides = overrides
        self._runs_commands = run_commands_of_hosts
        self._kept: dict[str, tuple[PowerDescription, str, PowerController]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @classmethod
    def of(
        cls, settings: PowerControlSettings, world: SimulatedPower | None = None
    ) -> "PowerDrivers":
        """As a group manager's settings say; reads the file of overrides.

        Raises:
            SettingsError: that file is wrong.
        """
        path = settings.overrides_file
        return cls(
            PowerLimits(settings.call_timeout_s, settings.off_timeout_s, settings.poll_interval_s),
            world,
            ipmi_processes=settings.ipmi_processes,
            overrides=PowerOverrides(path) if path else None,
            run_commands_of_hosts=settings.run_commands_of_hosts,
        )

    def describe(self, host: PoweredHost) -> PowerDescription:
        """How the host is reached: by the operator's overrides, else as it told."""
        if self._overrides is None:
            return host.power
        return self._overrides.of(host.host_id, host.hostname, host.power)

    def can_wake(self, host: PoweredHost) -> bool:
        """Whether there is a way to switch the host on; nothing is sent."""
        described = self.describe(host)
        return self._may(host, described) and _can_wake(described.driver, described.options)

    def _may(self, host: PoweredHost, described: PowerDescription) -> bool:
        """Whether it is the operator's word, or no command: a host is not to run what it likes."""
        if self._runs_commands or described.driver != "COMMAND":
            return True
        return described is not host.power

    def overrides_version(self) -> object:
        """Something else whenever the operator's overrides are others."""
        return None if self._overrides is None else self._overrides.version()

    def controller(self, host: PoweredHost) -> PowerController:
        """The controller of a host's power; nothing is sent yet. Not to be closed by the caller.

        Raises:
            InvalidRequest: the host has no power driver, its options cannot be meant, or they are
                commands, which are not run for hosts.
        """
        described = self.describe(host)
        if not self._may(host, described):
            raise InvalidRequest(
                f"{host.hostname} names commands for its power, and what hosts name is not run "
                "here: put them into power.overrides_file, or set power.run_commands_of_hosts "
                "on the group managers"
            )
        kept = self._kept.get(host.host_id)
        if kept is not None and kept[:2] == (described, host.hostname):
            return kept[2]
        controller = self._make(described, host.hostname)
        self._kept[host.host_id] = (described, host.hostname, controller)
        if kept is not None:
            self._close_soon(kept[2])
        return controller

    def forget(self, host_id: str) -> None:
        """The host is gone for good; its controller is closed."""
        kept = self._kept.pop(host_id, None)
        if kept is not None:
            self._close_soon(kept[2])

    def _make(self, described: PowerDescription, hostname: str) -> PowerController:
        if not described.driver:
            raise InvalidRequest(f"{hostname} tells no way to switch it on and off")
        options = parse_power(described.driver, described.options)
        match options:
            case IpmiOptions():
                return IpmiController(options, self._workers, self._limits)
            case RedfishOptions():
                return RedfishController(options, self._limits)
            case WolOptions():
                return WakeOnLanController(options)
            case CommandOptions():
                return CommandController(options, self._limits)
            case SimulatedOptions():
                return SimulatedController(self.world, options.name or hostname, self._limits)
            case _:
                assert_never(options)

    def _close_soon(self, controller: PowerController) -> None:
        task = asyncio.ensure_future(controller.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End all controllers, and what they share; idempotent."""
        for host_id in list(self._kept):
            self.forget(host_id)
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._workers.close()
        if self._owns_world:
            await self.world.close()


@functools.lru_cache(maxsize=16_384)
def _can_wake(driver: str, options: str) -> bool:
    if not driver:
        return False
    try:
        meant = parse_power(driver, options)
    except InvalidRequest:
        return False
    return bool(meant.on) if isinstance(meant, CommandOptions) else True

"""From a host's description to the controller of its power."""

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
from snooze.common.wire import PowerDescription
from snooze.groupmanager.power.command import CommandController
from snooze.groupmanager.power.ipmi import IpmiController
from snooze.groupmanager.power.ipmi_workers import IpmiWorkers
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
    """Makes controllers, and owns what they share; one of these per daemon.

    Callers keep the controller of a host for as long as its description stays the same, and close
    it. ``close`` ends what is shared, after which no controller works.
    """

    def __init__(
        self, limits: PowerLimits | None = None, world: SimulatedPower | None = None
    ) -> None:
        """``world``: the machines of driver ``test``, shared with whoever simulates hosts."""
        self._limits = limits or PowerLimits()
        self.world = world or SimulatedPower()
        self._workers = IpmiWorkers()

    def controller(self, host: PoweredHost) -> PowerController:
        """The controller of a host's power; nothing is sent yet, no file is read.

        Raises:
            InvalidRequest: the host has no power driver, or its options cannot be meant.
        """
        described = host.power
        if not described.driver:
            raise InvalidRequest(f"{host.hostname} tells no way to switch it on and off")
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
                name = options.name or host.hostname
                return SimulatedController(self.world, name, self._limits)
            case _:
                assert_never(options)

    async def close(self) -> None:
        """End what controllers share; idempotent."""
        await self._workers.close()
        await self.world.close()

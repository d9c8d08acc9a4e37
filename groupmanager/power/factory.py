"""From a host's description to the controller of its power."""

from typing import Protocol

from snooze.common.errors import InvalidRequest
from snooze.common.power_options import SimulatedOptions, parse_power
from snooze.common.wire import PowerDescription
from snooze.groupmanager.power.port import PowerController, PowerLimits
from snooze.groupmanager.power.simulated import SimulatedController, SimulatedPower


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
            case SimulatedOptions():
                name = options.name or host.hostname
                return SimulatedController(self.world, name, self._limits)
            case _:
                raise InvalidRequest(f"{described.driver} is not there yet")

    async def close(self) -> None:
        """End what controllers share; idempotent."""
        await self.world.close()

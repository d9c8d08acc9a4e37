"""The parts of Redfish's answers that we read.

Source: DMTF DSP0266 (protocol), DSP0268 (schemas): ServiceRoot, ComputerSystem, Chassis,
EnvironmentMetrics, Power.
"""

import msgspec

from snooze.common.errors import RemoteError


class Link(msgspec.Struct, frozen=True):
    """Where something is."""

    odata_id: str = msgspec.field(default="", name="@odata.id")

    @property
    def path(self) -> str:
        """The path on the same server.

        Raises:
            RemoteError: it leads elsewhere, where our password has no business.
        """
        path = self.odata_id.partition("#")[0]
        if not path.startswith("/") or path.startswith("//") or not path.isprintable():
            raise RemoteError("the BMC's link leads away from it")
        return path


class Root(msgspec.Struct, frozen=True, rename="pascal"):
    """``/redfish/v1/``, which anybody may read."""

    systems: Link | None = None


class Collection(msgspec.Struct, frozen=True, rename="pascal"):
    """A list of links."""

    members: tuple[Link, ...] = ()


class Reset(msgspec.Struct, frozen=True):
    """How a system is switched; ``allowed`` is empty where the BMC does not tell."""

    target: str = ""
    allowed: tuple[str, ...] = msgspec.field(default=(), name="ResetType@Redfish.AllowableValues")


class Actions(msgspec.Struct, frozen=True):
    """What can be done with a system."""

    reset: Reset | None = msgspec.field(default=None, name="#ComputerSystem.Reset")


class SystemLinks(msgspec.Struct, frozen=True, rename="pascal"):
    """What a system belongs to."""

    chassis: tuple[Link, ...] = ()


class System(msgspec.Struct, frozen=True, rename="pascal"):
    """A machine."""

    power_state: str | None = None
    actions: Actions = Actions()
    links: SystemLinks = SystemLinks()


class Chassis(msgspec.Struct, frozen=True, rename="pascal"):
    """A box, and where its sensors are: the newer way and the older."""

    environment_metrics: Link | None = None
    power: Link | None = None


class Reading(msgspec.Struct, frozen=True, rename="pascal"):
    """A sensor."""

    reading: float | None = None


class EnvironmentMetrics(msgspec.Struct, frozen=True, rename="pascal"):
    """The newer way."""

    power_watts: Reading = Reading()


class PowerControl(msgspec.Struct, frozen=True, rename="pascal"):
    """One domain of power; the first is the whole box."""

    power_consumed_watts: float | None = None


class Power(msgspec.Struct, frozen=True, rename="pascal"):
    """The older way."""

    power_control: tuple[PowerControl, ...] = ()

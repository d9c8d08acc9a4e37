"""What every way of switching a host on and off can do: the port of the power drivers.

============  ===========  =============  ==============================================
driver        reads state  switches off   what it talks to
============  ===========  =============  ==============================================
``IPMI``      yes          yes            a BMC, over the network
``REDFISH``   yes          yes            a BMC, over HTTPS
``COMMAND``   if it has    if it has      commands of the operator, on this machine
              ``--status`` ``--off``
``kapower3``  no           no             Grid'5000's command, which only wakes here
``WOL``       no           no             the sleeping host's network card
``test``      yes          yes            nothing: a simulated machine
============  ===========  =============  ==============================================

Rules that every driver keeps:

1. ``PowerState.OFF`` is said only if the machine's own controller was asked and said so. A
   controller that is silent, refuses or talks nonsense is an error, never *off*.
2. Every call ends within its time limit, whatever the controller does.
3. Calls are idempotent: what is already so is done. A call that failed may be made again.
4. No password is in an error, a ``repr`` or a log line.

Errors, beside those each method names:

- ``PreconditionError``: the controller refuses us (password, rights), or this driver cannot do it;
  nothing changed. ``InvalidRequest``: the host's description cannot be meant.
- ``RemoteTimeout``: no answer in time; an order may have been carried out.
- ``RemoteError``: the controller cannot be reached, broke off or answered nonsense; likewise.
- ``ExecutionError``: the controller, or a command, said that it failed.
"""

import enum
from dataclasses import dataclass
from typing import Protocol


class PowerState(enum.StrEnum):
    """Whether a machine has power, as its controller said."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"  # This driver cannot read it; never the word for a silent controller.


@dataclass(frozen=True, slots=True)
class PowerLimits:
    """How long the calls of a driver may take.

    Attributes:
        call_timeout_s: one question or order: ``state``, ``on``, ``power_w``.
        off_timeout_s: ``off``, from the order until the state was read back.
        poll_s: between two looks at a state that is to change.
    """

    call_timeout_s: float = 10.0
    off_timeout_s: float = 30.0
    poll_s: float = 0.5


class PowerController(Protocol):
    """Power over one host."""

    @property
    def can_read_state(self) -> bool:
        """Whether ``state`` can ever say more than ``UNKNOWN``, so that *off* can be proven."""
        ...

    @property
    def can_power_off(self) -> bool:
        """Whether ``off`` is possible."""
        ...

    async def state(self) -> PowerState:
        """What the machine's controller says now; ``UNKNOWN`` if this driver cannot read it."""
        ...

    async def on(self) -> None:
        """Wake it or switch it on; a machine that is on is left alone.

        Returns when the order was accepted (for Wake-on-LAN: sent). That the host is up is proven
        by its joining, not by this.
        """
        ...

    async def off(self, *, hard: bool = True) -> PowerState:
        """Switch it off; a machine that is off is left alone.

        Args:
            hard: cut its power, and wait until the state reads *off*. Else ask its operating
                system to shut down, and do not wait.

        Returns:
            The state read afterwards. ``OFF`` is proof; ``UNKNOWN`` comes from a driver that
            cannot read it, and proves nothing. A hard one never returns ``ON``.

        Raises:
            RemoteTimeout: ordered, and not read as *off* in time.
        """
        ...

    async def power_w(self) -> float | None:
        """What the machine draws now, in watts; None if its controller does not measure it."""
        ...

    async def close(self) -> None:
        """Give back what the controller holds; idempotent."""
        ...

"""The machines' power controllers: the shipped simulated ones, on machines that really go off.

An order to a BMC is carried out by the machine, not by who gave it: it happens even if the leader
that gave it dies the next moment. A BMC can be silent, slow, stuck or failing, or carry out orders
whose answers are lost; one whose machine is unplugged is silent too. None ever reads as off what is
on: that is what the proof *bmc* stands on.
"""

import asyncio
from collections.abc import Callable

from snooze.groupmanager.power.simulated import SimulatedPower
from snooze.simulation.loop import Schedule

ORDER_S = 1.0
"""From the order until the machine has, or has not, power."""


class Bmcs(SimulatedPower):
    """All BMCs of a world."""

    def __init__(self, schedule: Schedule, switched: Callable[[str, bool], None]) -> None:
        """``switched`` takes or gives a machine's power when its BMC was ordered to."""
        super().__init__(asyncio.sleep)
        self._schedule = schedule
        self._switched = switched
        self._orders: dict[str, int] = {}
        self._number = 0

    def switch_later(self, name: str, is_on: bool, delay_s: float) -> None:
        """See ``SimulatedPower``: the machine does it, in the world's time."""
        self._number += 1
        number = self._orders[name] = self._number

        def change() -> None:
            if self._orders.get(name) == number:
                del self._orders[name]
                self._switched(name, is_on)

        self._schedule.after(max(delay_s, ORDER_S), change)

    def is_changing(self, name: str) -> bool:
        """See ``SimulatedPower``."""
        return name in self._orders

    async def close(self) -> None:
        """A leader that ends takes no BMC with it."""

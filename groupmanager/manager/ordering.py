"""Orders to hosts that are under way, and what follows the answer of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from snooze.common.errors import ErrorReport, RemoteError
from snooze.common.wire import HostAnswer, HostOrder
from snooze.groupmanager.manager.host_table import HostEntry, HostTable
from snooze.groupmanager.manager.manager_events import HostAnswered, ManagerEffect, OrderHost

Outcome = HostAnswer | ErrorReport
Then = Callable[[Outcome, bool], list[ManagerEffect]]
"""What follows an order: its outcome, and whether it is unknown if it happened."""


class GiveOrder(Protocol):
    """How something is ordered of a host; see ``HostOrders.give``."""

    def __call__(
        self,
        host_id: str,
        make: Callable[[int], HostOrder],
        then: Then,
        relayed: bool = False,
    ) -> list[ManagerEffect]:
        """Order something of a host."""
        ...


@dataclass(slots=True)
class OpenOrder:
    """An order under way and what follows its answer; ``host`` is whose ``orders`` counts it."""

    host_id: str
    then: Then
    relayed: bool
    host: HostEntry | None


class HostOrders:
    """The orders under way of one manager."""

    def __init__(self, table: HostTable) -> None:
        self._table = table
        self._open: dict[int, OpenOrder] = {}
        self._next = 0

    def give(
        self,
        host_id: str,
        make: Callable[[int], HostOrder],
        then: Then,
        relayed: bool = False,
    ) -> list[ManagerEffect]:
        """Order something of a host; ``make`` is given the host's epoch, ``then`` the outcome."""
        self._next += 1
        host = None if relayed else self._table.hosts.get(host_id)
        epoch = 0 if host is None else host.epoch
        if host is not None:
            host.orders += 1
        self._open[self._next] = OpenOrder(host_id, then, relayed, host)
        return [OrderHost(self._next, host_id, make(epoch), relayed)]

    def answered(self, event: HostAnswered) -> list[ManagerEffect]:
        """The outcome of an order."""
        order = self._open.pop(event.order_id, None)
        if order is None:
            return []
        if order.host is not None:
            order.host.orders -= 1
        return order.then(event.answer, event.unknown)

    def of_host(self, host_id: str) -> list[int]:
        """The open orders that go to the host by its own link."""
        return [
            order_id
            for order_id, order in self._open.items()
            if order.host_id == host_id and not order.relayed
        ]

    def lose(self, order_ids: list[int], host_id: str, reason: str) -> list[ManagerEffect]:
        """The host is out of reach: what was ordered of it has an unknown outcome."""
        lost = ErrorReport.of(RemoteError(f"host {host_id} is out of reach: {reason}"))
        effects: list[ManagerEffect] = []
        for order_id in order_ids:
            effects += self._open.pop(order_id).then(lost, True)
        return effects

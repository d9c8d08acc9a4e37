# pyright: reportPrivateUsage=false
# What daemons are told is listened to from outside.
"""Orders of those who were deposed: they come late, and whoever gets one refuses it.

A manager that lost a host, or a leader that was deposed, may not know it yet, and what it ordered
may be under way. Connections are closed when somebody else takes over, so with right daemons an
old order hardly ever arrives; here it does: what a machine was once ordered is kept, and a *ghost*
gives it to the machine again when there is a newer assignment, or a newer leader. No order may be
carried out with an older epoch than the newest one that its machine has heard of.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from snooze.common.errors import SnoozeError
from snooze.groupmanager.manager.service import ManagerService
from snooze.localcontroller.service import LocalController
from snooze.simulation.world import World

KEPT: Final = 30
"""Orders of one machine that are remembered, the latest."""


class Ghosts:
    """What machines were ordered, and what comes of it when it is ordered late."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._orders: dict[str, deque[Any]] = {}
        self.found: list[str] = []
        """What was carried out and must not have been."""
        world.on_agent.append(self._watch_host)

    def _watch_host(self, agent: LocalController) -> None:
        orders, name = agent.orders, agent.node_id
        carry_out: Callable[[Any], Awaitable[Any]] = orders.carry_out

        async def watched(order: Any) -> Any:
            self._see(name, order, orders.epoch)
            return await carry_out(order)

        orders.carry_out = watched  # type: ignore[method-assign]

    def watch_manager(self, name: str, service: ManagerService) -> None:
        """Listen to what a group manager is ordered by leaders."""
        answer = service.leader._answer

        async def watched(message: Any) -> Any:
            if hasattr(message, "epoch"):
                self._keep(name, message)
            return await answer(message)

        service.leader._answer = watched

    def look_at_event(self, name: str, service: ManagerService, event: Any) -> None:
        """A manager's core takes an event in."""
        message = getattr(event, "message", None)
        if message is not None and hasattr(message, "epoch"):
            self._see(name, message, service.leader.epoch)

    def _see(self, name: str, order: Any, newest: int) -> None:
        self._keep(name, order)
        if order.epoch < newest:
            self.found.append(
                f"{name} carries out a {type(order).__name__} of epoch {order.epoch}, and has "
                f"heard of {newest}"
            )

    def _keep(self, name: str, order: Any) -> None:
        kept = self._orders.setdefault(name, deque(maxlen=KEPT))
        if order not in kept:
            kept.append(order)

    def appear(self, number: int) -> None:
        """The ``number``-th of the orders that are out of date is given again."""
        late = list(self._late())
        if not late:
            return
        name, order, give = late[number % len(late)]
        process = self._world.daemon(name)
        if process is None:
            return
        self._world.tell("--", f"{name} gets a {type(order).__name__} of epoch {order.epoch}")

        async def deliver() -> None:
            try:
                await give(order)
            except SnoozeError as error:
                self._world.tell(name, f"refuses it: {error.message}")

        process.spawn(deliver())

    def _late(self) -> Iterator[tuple[str, Any, Callable[[Any], Awaitable[Any]]]]:
        for name, orders in sorted(self._orders.items()):
            agent, manager = self._world.agents.get(name), self._world.managers.get(name)
            for order in orders:
                if agent is not None and order.epoch < agent.orders.epoch:
                    yield name, order, agent.agent._answer
                elif manager is not None and order.epoch < manager.manager.leader.epoch:
                    yield name, order, manager.manager._answer_leader

"""A manager's lease from the leader, and what it grants its hosts of it."""

import asyncio
from typing import assert_never

from snooze.common.clock import Clock
from snooze.common.errors import SnoozeError
from snooze.common.lease_core import (
    Ask,
    Extended,
    Fence,
    Granted,
    LeaseCore,
    LeaseEvent,
    LinkClosed,
    LinkOpened,
    NotGranted,
    Ticked,
)
from snooze.common.task_set import TaskSet
from snooze.common.transport.link import Link
from snooze.common.wire import LeaseGranted, RenewLease
from snooze.groupmanager.manager.host_table import HostTable
from snooze.groupmanager.manager.leader_link import LeaderLink

TICK_S = 0.1
"""How often is looked for a link while there is none."""
REST_S = 1.0
"""How long nothing is looked at, at most."""
DIRECTIVE_WAIT_S = 5.0
"""A host that asks before the leader has spoken of it is answered when it has, or then."""


class Leases:
    """One lease from above, one grant a host."""

    def __init__(self, table: HostTable, leader: LeaderLink, clock: Clock, lease_s: float) -> None:
        self._table = table
        self._leader = leader
        self._clock = clock
        self._lease_s = lease_s
        self._core = LeaseCore()
        self._link: Link | None = None
        self._directed = asyncio.Event()
        self._tasks = TaskSet()

    async def keep(self) -> None:
        """Hold a lease, until cancelled."""
        try:
            while True:
                link = self._leader.link
                if link is not self._link:
                    self._link = link
                    self._feed(LinkClosed() if link is None else LinkOpened())
                self._feed(Ticked())
                await asyncio.sleep(self._pause_s())
        finally:
            await self._tasks.close()

    def _pause_s(self) -> float:
        if self._link is None:
            return TICK_S
        due_s = self._core.next_s - self._clock.boottime_s()
        return min(max(due_s, TICK_S), REST_S)

    def _feed(self, event: LeaseEvent) -> None:
        for effect in self._core.handle(event, self._clock.boottime_s()):
            match effect:
                case Ask():
                    self._tasks.spawn(self._ask(effect.number))
                case Extended() | Fence():
                    pass
                case _:
                    assert_never(effect)

    async def _ask(self, number: int) -> None:
        link = self._link
        try:
            if link is None:
                raise TimeoutError
            granted = await link.request(RenewLease(), LeaseGranted, self._lease_s)
        except (SnoozeError, TimeoutError):
            self._feed(NotGranted(number))
        else:
            self._feed(Granted(number, granted.valid_s))

    def directed(self) -> None:
        """The leader spoke of hosts: those that wait for that may be answered."""
        self._directed.set()
        self._directed = asyncio.Event()

    async def grant(self, host_id: str, epoch: int) -> LeaseGranted:
        """What a host is granted: what is left of ours, once the leader has let it in.

        The leader counts a host as lost from when it stops hearing of it. So nothing may be granted
        to a host of which it may not have heard yet.
        """
        deadline_s = self._clock.monotonic_s() + DIRECTIVE_WAIT_S
        while True:
            host = self._table.hosts.get(host_id)
            if host is None or host.epoch != epoch:
                return LeaseGranted(0.0)
            left_s = deadline_s - self._clock.monotonic_s()
            if host.directed or left_s <= 0:
                break
            try:
                async with asyncio.timeout(left_s):
                    await self._directed.wait()
            except TimeoutError:
                break
        if not host.directed:
            return LeaseGranted(0.0)
        return LeaseGranted(min(self._lease_s, self._core.left_s(self._clock.boottime_s())))

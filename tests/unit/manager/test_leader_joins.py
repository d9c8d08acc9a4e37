"""What a manager tells a leader that it joins, over a real link."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest_asyncio

from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.transport.channel import LinkLimits
from snooze.common.transport.link import Service
from snooze.common.transport.link_server import Accepted, LinkServer
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.wire import (
    Address,
    LeaderOrder,
    ManagerDescription,
    ManagerHello,
    ManagerNotice,
    ManagerRequest,
    ManagerWelcome,
    OrderDone,
    VmsChanged,
    VmStatus,
)
from snooze.groupmanager.manager.host_table import HostTable
from snooze.groupmanager.manager.leader_link import LeaderLink
from snooze.groupmanager.manager.manager_events import OrderHost
from tests.unit.manager.builders import Desk, only

Told = Callable[[HostTable], Awaitable[list[VmStatus]]]


class Nobody:
    """Who leads is known to all."""

    def leader_died(self, leader: ManagerDescription) -> None:
        raise AssertionError(leader)

    def leader_unheard(self, leader: ManagerDescription) -> None:
        raise AssertionError(leader)


async def unasked(message: ManagerRequest | LeaderOrder) -> msgspec.Struct:
    raise AssertionError(message)


@pytest_asyncio.fixture
async def told() -> AsyncIterator[Told]:
    """Joins a leader with a table; what that hears of VMs besides the hello."""
    heard: asyncio.Queue[VmsChanged] = asyncio.Queue()

    def hear(notice: ManagerNotice) -> None:
        if isinstance(notice, VmsChanged):
            heard.put_nowait(notice)

    async def on_hello(hello: ManagerHello, peer: str) -> Accepted:
        del hello, peer
        service = Service(
            requests=ManagerRequest,
            answer=unasked,
            notifications=ManagerNotice,
            on_notification=hear,
        )
        return Accepted(ManagerWelcome("gl", 1), service)

    server = LinkServer("127.0.0.1", 0, ManagerHello, on_hello)
    await server.start()
    here = Address("127.0.0.1", server.port)
    joins: list[tuple[LeaderLink, asyncio.Task[None]]] = []

    async def join(table: HostTable) -> list[VmStatus]:
        link = LeaderLink(
            ManagerDescription("gm", "gm", here, here),
            table,
            LinkLimits(),
            unasked,
            lambda: None,
            lambda: None,
            Nobody(),
            SYSTEM_CLOCK,
        )
        link.follow(ManagerDescription("gl", "gl", here, here))
        joins.append((link, asyncio.ensure_future(link.keep())))
        async with asyncio.timeout(30):
            return (await heard.get()).vms

    yield join
    for link, task in joins:
        link.close("over")
        task.cancel()
    await server.close()


async def test_a_leader_hears_what_ended_before_it_led(told: Told) -> None:
    desk = Desk()
    for vm_id in ("a", "b"):
        desk.run(vm_id)
        order = only(OrderHost, desk.command(vm_id, VmCommand.DESTROY))
        desk.answer(order, OrderDone())
    desk.run("b", "h2")  # restarted by the leader of then, say
    (status,) = await told(desk.table)
    assert (status.vm_id, status.host_id, status.state) == ("a", "h1", VmState.DESTROYED)

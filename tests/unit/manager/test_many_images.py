"""Hosts with more images than a message holds: their manager joins, and tells all of them."""

import asyncio
from typing import cast

import msgspec

from snooze.common.api import ImageView
from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.transport.channel import LinkLimits
from snooze.common.transport.codec import ENCODER
from snooze.common.transport.link import Link, Service
from snooze.common.transport.link_server import Accepted, LinkServer
from snooze.common.wire import (
    Address,
    DescribeHosts,
    HostDetails,
    HostImages,
    ManagerDescription,
    ManagerHello,
    ManagerNotice,
    ManagerWelcome,
)
from snooze.groupmanager.manager.host_table import HostEntry, HostTable
from snooze.groupmanager.manager.host_views import describe
from snooze.groupmanager.manager.leader_link import LeaderLink, LeaderNews
from snooze.groupmanager.manager.monitoring import Monitoring
from tests.unit.manager.builders import host_of

HOSTS, IMAGES = 200, 600


def table_of() -> HostTable:
    images = tuple(
        ImageView(f"{'a-rather-long-name-' * 6}{number}.qcow2", "qcow2", 2**33, 2**31)
        for number in range(IMAGES)
    )
    table = HostTable()
    for number in range(HOSTS):
        host = msgspec.structs.replace(host_of(f"h{number}"), images=images)
        table.add_host(HostEntry(host, 1))
    return table


def test_what_is_said_of_hosts_does_not_name_them() -> None:
    """Their number would make an answer too long, and all of its hosts seem out of reach."""
    hosts = describe(table_of(), Monitoring(), DescribeHosts(with_vms=False))
    assert len(ENCODER.encode(HostDetails(hosts))) < 100_000


async def test_the_leader_hears_of_all_of_them() -> None:
    table = table_of()
    heard: dict[str, int] = {}
    hellos: list[ManagerHello] = []
    links: list[Link] = []

    def on_notice(notice: ManagerNotice) -> None:
        if isinstance(notice, HostImages):
            heard[notice.host_id] = len(notice.images)

    async def on_hello(hello: ManagerHello, _peer: str) -> Accepted:
        hellos.append(hello)
        service = Service(notifications=ManagerNotice, on_notification=on_notice)
        return Accepted(ManagerWelcome("gl", 1), service, links.append)

    limits = LinkLimits(send_buffer_bytes=16 * 1024 * 1024)  # less than all of them take
    server = LinkServer("127.0.0.1", 0, ManagerHello, on_hello, limits=limits)
    await server.start()
    where = Address("127.0.0.1", server.port)
    manager = LeaderLink(
        ManagerDescription("gm", "gm", where, where),
        table,
        limits,
        answer=cast("object", None),  # type: ignore[arg-type]
        seeks=lambda: None,
        joined=lambda: None,
        news=cast(LeaderNews, None),
        clock=SYSTEM_CLOCK,
    )
    manager.follow(ManagerDescription("gl", "gl", where, where))
    keeping = asyncio.ensure_future(manager.keep())
    try:
        async with asyncio.timeout(30):
            while len(heard) < HOSTS:  # noqa: ASYNC110 (no event)
                await asyncio.sleep(0.01)
        assert set(heard.values()) == {IMAGES}
        assert len(hellos) == len(links) == 1
    finally:
        keeping.cancel()
        await server.close()

# pyright: reportPrivateUsage=false
"""What a manager tells its leader within one turn of the loop."""

import asyncio
from typing import cast

import msgspec

from snooze.common.clock import ManualClock
from snooze.common.transport.link import Link, LinkLimits
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import Address, ManagerDescription, OrderDone, StaleCopy, VmsChanged
from snooze.groupmanager.manager.leader_link import LeaderLink, LeaderNews
from snooze.groupmanager.manager.manager_events import ManagerEffect, OrderHost, TellLeader
from tests.unit.manager.builders import Desk, only, report_of


class Leader:
    """The other end of the link."""

    def __init__(self) -> None:
        self.heard: list[msgspec.Struct] = []

    def notify(self, notice: msgspec.Struct, *, droppable: bool = False) -> None:
        del droppable
        self.heard.append(notice)


async def _answer(_: object) -> msgspec.Struct:
    raise AssertionError


async def told_in_one_turn(desk: Desk, effects: list[ManagerEffect]) -> list[tuple[str, VmState]]:
    leader = Leader()
    nowhere = Address("", 0)
    link = LeaderLink(
        ManagerDescription("gm", "gm", nowhere, nowhere),
        desk.table,
        LinkLimits(),
        _answer,
        lambda: None,
        lambda: None,
        cast(LeaderNews, None),
        ManualClock(),
    )
    link._link = cast(Link, leader)
    for effect in effects:
        if isinstance(effect, TellLeader):
            link.tell(effect.notice)
    await asyncio.sleep(0)
    (notice,) = leader.heard
    assert isinstance(notice, VmsChanged)
    return [(status.host_id, status.state) for status in notice.vms]


async def test_the_end_of_a_copy_is_told_beside_what_becomes_the_vm() -> None:
    """Of two that a migration left paused: the other one goes on only once this one is gone."""
    desk = Desk(hosts=0)
    desk.join("h1", report_of("a", VmState.PAUSED))
    desk.join("h2", report_of("a", VmState.PAUSED))
    discard = only(OrderHost, desk.direct("h1", StaleCopy("a", 1)))
    effects = desk.answer(discard, OrderDone())
    assert await told_in_one_turn(desk, effects) == [
        ("h2", VmState.PAUSED),
        ("h1", VmState.DESTROYED),
    ]


async def test_the_last_of_each_domain_is_told() -> None:
    desk = Desk(hosts=1)
    desk.run("a")
    paused = desk.notice("h1", report_of("a", VmState.PAUSED))
    running = desk.notice("h1", report_of("a"))
    assert await told_in_one_turn(desk, [*paused, *running]) == [("h1", VmState.RUNNING)]


async def test_where_a_vm_is_is_told_before_where_it_is_no_more() -> None:
    """The leader would forget it, and take what comes next for a copy of a VM that is gone."""
    desk = Desk(hosts=2)
    desk.run("a", "h1")
    there = desk.notice("h2", report_of("a"))
    gone = desk.notice("h1", report_of("a"), gone=True)
    assert await told_in_one_turn(desk, [*there, *gone]) == [
        ("h2", VmState.RUNNING),
        ("h1", VmState.DESTROYED),
    ]

"""A local controller is told to go down: it answers, acts, leaves, and comes back when it is up."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from snooze.common.clock import SystemClock
from snooze.common.config import parse
from snooze.common.errors import Conflict, PreconditionError, SnoozeError
from snooze.common.resources import Capacity
from snooze.common.settings_localcontroller import LocalControllerSettings
from snooze.common.transport.codec import ENCODER
from snooze.common.transport.link import Link, Service
from snooze.common.transport.link_server import Accepted, LinkServer
from snooze.common.vms import VmSpec
from snooze.common.wire import (
    Address,
    Assignment,
    AssignmentRequest,
    HostHello,
    HostNotice,
    HostRequest,
    HostWelcome,
    ManagerDescription,
    MoveToManager,
    OrderDone,
    PowerDown,
    StartVm,
)
from snooze.localcontroller import agent
from snooze.localcontroller.power import PowerAction
from snooze.localcontroller.service import LocalController

PATIENCE_S = 30.0


class SleepyClock(SystemClock):
    """A machine that can have been suspended, or frozen by the machine that it is part of."""

    asleep_s = 0.0
    frozen_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.frozen_s

    def boottime_s(self) -> float:
        return self.monotonic_s() + self.asleep_s


class Manager:
    """A front door and a group manager: assigns hosts to itself and keeps their links."""

    def __init__(self) -> None:
        self.hellos: list[HostHello] = []
        self.reasons: list[str] = []
        self.links: asyncio.Queue[Link] = asyncio.Queue()
        self.server = LinkServer("127.0.0.1", 0, HostHello, self._on_hello)
        self.port = 0
        self._epoch = 0

    async def start(self) -> web.AppRunner:
        await self.server.start()
        application = web.Application()
        application.router.add_post("/internal/assignment", self._assign)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        return runner

    def _me(self) -> ManagerDescription:
        where = Address("127.0.0.1", self.server.port)
        return ManagerDescription("gm", "gm", where, where)

    async def _assign(self, request: web.Request) -> web.Response:
        msgspec.msgpack.decode(await request.read(), type=AssignmentRequest)
        self._epoch += 1
        body = ENCODER.encode(Assignment(self._me(), self._epoch))
        return web.Response(body=body, content_type="application/msgpack")

    async def _on_hello(self, hello: HostHello, peer: str) -> Accepted:
        def opened(link: Link) -> None:
            self.hellos.append(hello)
            self.links.put_nowait(link)
            link.closed.add_done_callback(lambda done: self.reasons.append(str(done.result())))

        async def answer(request: msgspec.Struct) -> msgspec.Struct:
            raise Conflict("this manager knows nothing")

        service = Service(requests=HostRequest, notifications=HostNotice, answer=answer)
        return Accepted(HostWelcome(self._me()), service, opened)

    async def order(self, link: Link, order: msgspec.Struct) -> msgspec.Struct:
        return await link.request(order, OrderDone, PATIENCE_S)

    async def next_link(self) -> Link:
        async with asyncio.timeout(PATIENCE_S):
            return await self.links.get()


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    peer = Manager()
    runner = await peer.start()
    yield peer
    await peer.server.close()
    await runner.cleanup()


class Host:
    """A local controller on a simulated hypervisor; ``fallen``: how it went down."""

    def __init__(self, manager: Manager, folder: Path, power: dict[str, object]) -> None:
        self.clock = SleepyClock()
        self.fallen: list[PowerAction] = []
        self.nap_s = 0.0
        tables: dict[str, object] = {
            "node": {"hostname": "h1", "state_directory": str(folder)},
            "network": {"control_port": 0, "listen_address": "127.0.0.1"},
            "hypervisor": {"driver": "simulated"},
            "join": {
                "bootstrap_nodes": (f"127.0.0.1:{manager.port}",),
                "retry_min_s": 0.05,
                "retry_max_s": 0.2,
            },
            "lease": {"enabled": "never"},
            "power": power,
        }
        settings = parse("", LocalControllerSettings, overrides=tables)
        self.daemon = LocalController(settings, "id-1", clock=self.clock, fall=self.fall)

    def fall(self, action: PowerAction) -> None:
        """What the machine does; it may sleep before the command to do so has ended."""
        self.fallen.append(action)
        self.clock.asleep_s += self.nap_s


Start = Callable[..., Awaitable[Host]]


@pytest.fixture
async def start(tmp_path: Path, manager: Manager) -> AsyncIterator[Start]:
    """Starts a host; takes its ``[power]``."""
    hosts: list[Host] = []

    async def start_one(**power: object) -> Host:
        hosts.append(Host(manager, tmp_path, power))
        await hosts[-1].daemon.start()
        return hosts[-1]

    yield start_one
    for host in hosts:
        await host.daemon.close()


def spec() -> VmSpec:
    return VmSpec("a" * 32, "vm", Capacity(1.0, 131072.0), 1)


async def test_it_answers_acts_leaves_and_comes_back_at_once_when_it_slept(
    manager: Manager, start: Start
) -> None:
    host = await start(driver="test", actions=("suspend_to_ram", "shutdown"))
    link = await manager.next_link()
    assert manager.hellos[0].host.power.actions == ("suspend_to_ram", "shutdown")
    await manager.order(link, PowerDown(1, "c", "suspend_to_ram"))
    async with asyncio.timeout(PATIENCE_S):
        await link.closed
    assert host.fallen == [PowerAction.SUSPEND_TO_RAM]
    assert "it goes down (suspend_to_ram)" in manager.reasons[0]
    await asyncio.sleep(1.0)
    assert manager.links.empty()  # it rests, though it is up: it may yet go
    host.clock.asleep_s = 3600.0
    again = await manager.next_link()
    await manager.order(again, StartVm(2, "c", spec()))


async def test_a_frozen_one_comes_back_at_once_and_one_that_slept_within_its_command(
    manager: Manager, start: Start
) -> None:
    host = await start(driver="test", actions=("suspend_to_ram",))
    link = await manager.next_link()
    await manager.order(link, PowerDown(1, "c", "suspend_to_ram"))
    async with asyncio.timeout(PATIENCE_S):
        await link.closed
    host.clock.frozen_s = 60.0
    link = await manager.next_link()
    host.nap_s = 60.0
    await manager.order(link, PowerDown(2, "c", "suspend_to_ram"))
    await manager.next_link()
    assert len(host.fallen) == 2


async def test_one_that_cannot_says_why_and_serves_on(
    manager: Manager, start: Start, tmp_path: Path
) -> None:
    script = tmp_path / "down"
    script.write_text("#!/bin/sh\necho inhibited by a person >&2; exit 1\n")
    script.chmod(0o755)
    await start(driver="command", command=f"{script} {{action}}")
    link = await manager.next_link()
    await manager.order(link, PowerDown(1, "c", "shutdown"))
    again = await manager.next_link()
    assert "it cannot shutdown" in manager.reasons[0]
    assert "inhibited by a person" in manager.reasons[0]
    await manager.order(again, StartVm(2, "c", spec()))


async def test_one_that_goes_down_is_handed_to_no_other_manager(
    manager: Manager, start: Start
) -> None:
    host = await start(driver="test", actions=("shutdown",))
    link = await manager.next_link()
    await manager.order(link, PowerDown(1, "c", "shutdown"))
    other = ManagerDescription("gm2", "gm2", Address("h", 1), Address("h", 2))
    with pytest.raises(Conflict, match="going down"):
        await manager.order(link, MoveToManager(1, "c", Assignment(other, 5)))
    async with asyncio.timeout(PATIENCE_S):
        await link.closed
    assert host.fallen == [PowerAction.SHUTDOWN]


async def test_one_that_was_assigned_anew_before_it_went_down_stays_up(
    manager: Manager, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next manager was told that it is up (found in virtual time, seed 720202)."""
    monkeypatch.setattr(agent, "LEAVE_PAUSE_S", 1.0)
    host = await start(driver="test", actions=("shutdown",))
    link = await manager.next_link()
    await manager.order(link, PowerDown(1, "c", "shutdown"))
    link.close("the manager went")
    again = await manager.next_link()
    await manager.order(again, StartVm(2, "c", spec()))
    await asyncio.sleep(1.2)
    assert host.fallen == []
    assert not again.closed.done()


async def test_what_it_refuses_changes_nothing(manager: Manager, start: Start) -> None:
    host = await start(driver="test", actions=("shutdown",))
    link = await manager.next_link()
    with pytest.raises(PreconditionError, match=r"power\.actions"):
        await manager.order(link, PowerDown(1, "c", "suspend_to_ram"))
    await manager.order(link, StartVm(1, "c", spec()))
    with pytest.raises(Conflict, match="'vm' is one"):
        await manager.order(link, PowerDown(1, "c", "shutdown"))
    with pytest.raises(SnoozeError):
        await manager.order(link, PowerDown(0, "c", "shutdown"))
    assert host.fallen == []
    assert not link.closed.done()

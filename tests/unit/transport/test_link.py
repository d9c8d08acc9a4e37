"""Links between daemons: on real sockets, on both event loops."""

import asyncio
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from snooze.common.errors import (
    Conflict,
    ErrorReport,
    ExecutionError,
    InvalidRequest,
    NotLeader,
    Problem,
    RemoteError,
    RemoteTimeout,
    SnoozeError,
    TooBusy,
)
from snooze.common.transport.channel import CloseCause, LinkLimits
from snooze.common.transport.codec import decode
from snooze.common.transport.frames import HEADER, PROTOCOL_VERSION, FrameKind
from snooze.common.transport.link import Link, Service, connect, was_sent
from snooze.common.transport.link_server import Accepted, LinkServer

ENCODE = msgspec.msgpack.encode


class Hello(msgspec.Struct, tag=True):
    name: str


class Welcome(msgspec.Struct, tag=True):
    name: str


class Echo(msgspec.Struct, tag=True):
    text: str = ""
    number: int = 0


class Fail(msgspec.Struct, tag=True):
    kind: str = "conflict"


class Hang(msgspec.Struct, tag=True):
    pass


class Discard(msgspec.Struct, tag=True):
    pass


class Grow(msgspec.Struct, tag=True):
    size: int


class Unknown(msgspec.Struct, tag=True):
    pass


class Count(msgspec.Struct, tag=True):
    number: int
    padding: bytes = b""


class Samples(msgspec.Struct, tag=True, eq=False):
    values: npt.NDArray[np.float64]


class Peer:
    """One side: answers, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.hanging = asyncio.Event()
        self.cancelled = 0
        self.links: asyncio.Queue[Link] = asyncio.Queue()
        self.service = Service(
            requests=Echo | Fail | Hang | Discard | Grow,
            answer=self.answer,
            notifications=Count | Samples,
            on_notification=self.on_notification,
        )

    def on_notification(self, message: Any) -> None:
        self.told.append(message)
        if isinstance(message, Count) and message.number < 0:
            raise ValueError("a bug in a callback")

    async def answer(self, message: Echo | Fail | Hang | Discard | Grow) -> msgspec.Struct | None:
        match message:
            case Echo():
                return message
            case Fail("conflict"):
                raise Conflict("not now", problems=[Problem("vm", "gone")], retry_after_s=3.5)
            case Fail():
                raise ZeroDivisionError("a bug in a handler")
            case Hang():
                self.hanging.set()
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
            case Discard():
                return None
            case Grow():
                return Echo("x" * message.size)
        return None

    async def on_hello(self, hello: Hello, peer: str) -> Accepted:
        assert peer.startswith("127.0.0.1:")
        if hello.name == "refuse me":
            raise NotLeader("ask somebody else", retry_after_s=1.0)
        if hello.name == "break":
            raise ZeroDivisionError("a bug")
        return Accepted(Welcome(f"hello {hello.name}"), self.service, self.links.put_nowait)


@pytest.fixture
async def peer() -> Peer:
    return Peer()


Serve = Callable[..., Awaitable[LinkServer]]


@pytest.fixture
async def serve(peer: Peer) -> AsyncIterator[Serve]:
    servers: list[LinkServer] = []

    async def start(limits: LinkLimits | None = None, max_links: int = 100) -> LinkServer:
        server = LinkServer(
            "127.0.0.1", 0, Hello, peer.on_hello, limits=limits, max_links=max_links
        )
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.close()
    leftover = asyncio.all_tasks() - {asyncio.current_task()}
    assert not {task for task in leftover if "Link" in str(task) or "Channel" in str(task)}


async def dial(
    server: LinkServer,
    service: Service | None = None,
    limits: LinkLimits | None = None,
    name: str = "test",
) -> Link:
    link, welcome = await connect(
        "127.0.0.1", server.port, Hello(name), Welcome, service or Service(), limits=limits
    )
    assert welcome == Welcome(f"hello {name}")
    return link


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for belongs to the code under test
            await asyncio.sleep(0.005)


async def test_every_kind_of_answer(serve: Serve) -> None:
    link = await dial(await serve())
    assert await link.request(Echo("a", 1), Echo, 10) == Echo("a", 1)
    await link.request(Discard(), None, 10)
    with pytest.raises(Conflict, match="not now") as conflict:
        await link.request(Fail(), Echo, 10)
    assert conflict.value.problems == (Problem("vm", "gone"),)
    assert conflict.value.retry_after_s == 3.5
    with pytest.raises(SnoozeError, match="ZeroDivisionError"):
        await link.request(Fail("bug"), Echo, 10)
    with pytest.raises(InvalidRequest, match="Unknown"):
        await link.request(Unknown(), Echo, 10)
    with pytest.raises(RemoteError, match="something else"):
        await link.request(Echo(), Welcome, 10)
    assert await link.request(Echo("still here"), Echo, 10) == Echo("still here")
    link.close()
    await link.wait_closed()


async def test_both_sides_may_ask_and_tell(serve: Serve, peer: Peer) -> None:
    server = await serve()
    other = Peer()
    link = await dial(server, other.service)
    back = await peer.links.get()
    assert server.links == {back}
    assert await back.request(Echo("from the server"), Echo, 10) == Echo("from the server")
    assert back.notify(Samples(np.arange(3.0)))
    assert link.notify(Count(7))
    await until(lambda: bool(other.told and peer.told))
    assert peer.told == [Count(7)]
    assert other.told[0].values.tolist() == [0.0, 1.0, 2.0]
    assert not other.told[0].values.flags.writeable
    link.close("enough")
    reason = await back.closed
    assert (reason.cause, reason.detail) == (CloseCause.PEER, "enough")
    assert (await link.closed).cause is CloseCause.LOCAL
    await until(lambda: not server.links)


async def test_notifications_and_requests_keep_their_order(serve: Serve, peer: Peer) -> None:
    link = await dial(await serve())
    for number in range(5000):
        link.notify(Count(number))
    await link.request(Echo(), Echo, 30)
    assert [message.number for message in peer.told] == list(range(5000))


async def test_thousands_of_requests_at_once(serve: Serve) -> None:
    limits = LinkLimits(requests_in_flight=5000)
    link = await dial(await serve(limits), limits=limits)
    replies = await asyncio.gather(
        *(link.request(Echo("x" * (n % 100), n), Echo, 60) for n in range(5000))
    )
    assert [reply.number for reply in replies] == list(range(5000))
    with pytest.raises(TooBusy, match="wait for"):
        await asyncio.gather(*(link.request(Echo(), Echo, 60) for _ in range(5001)))


async def test_the_answering_side_refuses_beyond_its_bound(serve: Serve, peer: Peer) -> None:
    link = await dial(await serve(LinkLimits(requests_in_flight=3)))
    hanging = [asyncio.create_task(link.request(Hang(), None, 60)) for _ in range(3)]
    await peer.hanging.wait()
    with pytest.raises(TooBusy) as busy:
        await link.request(Echo(), Echo, 60)
    assert busy.value.retry_after_s is not None
    assert (await peer.links.get()).stats.refused == 1
    link.close()
    for task in hanging:
        with pytest.raises(RemoteError):
            await task


async def test_a_timeout_says_that_it_may_have_happened(serve: Serve, peer: Peer) -> None:
    link = await dial(await serve())
    with pytest.raises(RemoteTimeout, match="may have happened") as timeout:
        await link.request(Hang(), None, 0.05)
    assert was_sent(timeout.value)
    assert await link.request(Echo("alive"), Echo, 10) == Echo("alive")
    assert peer.cancelled == 0


async def test_cancelling_the_asker_leaves_the_link_usable(serve: Serve, peer: Peer) -> None:
    link = await dial(await serve())
    task = asyncio.create_task(link.request(Hang(), None, 60))
    await peer.hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await link.request(Echo("alive"), Echo, 10) == Echo("alive")


async def test_closing_fails_who_waits_and_cancels_who_works(serve: Serve, peer: Peer) -> None:
    link = await dial(await serve())
    back = await peer.links.get()
    task = asyncio.create_task(link.request(Hang(), None, 60))
    await peer.hanging.wait()
    link.close()
    with pytest.raises(RemoteError, match="after the request was sent") as after:
        await task
    assert was_sent(after.value)
    with pytest.raises(RemoteError, match="was not sent") as before:
        await link.request(Echo(), Echo, 1)
    assert not was_sent(before.value)
    assert not link.notify(Count(1))
    async with asyncio.timeout(20):
        await link.wait_closed()
        await back.wait_closed()
    assert peer.cancelled == 1
    link.close()


async def test_a_server_that_closes_leaves_nothing_behind(serve: Serve, peer: Peer) -> None:
    before = asyncio.all_tasks()
    server = await serve()
    links = [await dial(server) for _ in range(5)]
    asking = [asyncio.create_task(link.request(Hang(), None, 60)) for link in links]
    await peer.hanging.wait()
    # One that has not said hello yet.
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await server.close("going home")
    for task in asking:
        with pytest.raises(RemoteError, match="going home"):
            await task
    for link in links:
        await link.wait_closed()
    assert asyncio.all_tasks() == before
    with pytest.raises(RemoteError) as refused:
        await dial(server)
    assert not was_sent(refused.value)
    writer.close()


async def test_messages_too_large_for_a_frame(serve: Serve) -> None:
    limits = LinkLimits(max_frame_bytes=1000)
    link = await dial(await serve(limits), limits=limits)
    with pytest.raises(InvalidRequest, match="a frame at most 1000"):
        await link.request(Echo("x" * 2000), Echo, 10)
    with pytest.raises(InvalidRequest):
        link.notify(Count(1, b"x" * 2000))
    with pytest.raises(ExecutionError, match="too large"):
        await link.request(Grow(2000), Echo, 10)
    assert await link.request(Echo("ok"), Echo, 10) == Echo("ok")


async def test_large_messages_pass(serve: Serve) -> None:
    link = await dial(await serve())
    text = "x" * (8 * 1024 * 1024)
    assert await link.request(Echo(text), Echo, 60) == Echo(text)


def zeros(dtype: str) -> npt.NDArray[Any]:
    return np.zeros(2, dtype=dtype)


async def test_what_cannot_be_encoded_changes_nothing(serve: Serve) -> None:
    link = await dial(await serve())
    with pytest.raises(InvalidRequest, match="dtype complex128"):
        link.notify(Samples(zeros("c16")))
    assert await link.request(Echo("ok"), Echo, 10) == Echo("ok")


async def test_a_notification_not_understood_is_counted(
    serve: Serve, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    link = await dial(await serve())
    back = await peer.links.get()
    link.notify(Unknown())
    link.notify(Samples(zeros("f4")))
    link.notify(Count(-1))
    assert await link.request(Echo("ok"), Echo, 10) == Echo("ok")
    assert back.stats.rejected == 2
    assert "a bug in a callback" in caplog.text


# The handshake


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".example"])
async def test_a_name_that_can_be_none_is_out_of_reach(name: str) -> None:
    """One group manager's setting must not end the loops of all others that look for it."""
    with pytest.raises(RemoteError, match="cannot connect") as refused:
        await connect(name, 1, Hello("test"), Welcome)
    assert not was_sent(refused.value)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [("refuse me", NotLeader, "ask somebody else"), ("break", SnoozeError, "ZeroDivisionError")],
)
async def test_a_hello_may_be_refused(
    serve: Serve, name: str, error: type[SnoozeError], text: str
) -> None:
    server = await serve()
    with pytest.raises(error, match=text):
        await connect("127.0.0.1", server.port, Hello(name), Welcome)
    with pytest.raises(InvalidRequest, match="Unknown"):
        await connect("127.0.0.1", server.port, Unknown(), Welcome)
    with pytest.raises(RemoteError, match="nonsense"):
        await connect("127.0.0.1", server.port, Hello("x"), Echo)


async def test_a_full_server_says_so(serve: Serve) -> None:
    server = await serve(max_links=2)
    links = [await dial(server) for _ in range(2)]
    with pytest.raises(TooBusy, match="2 links are open"):
        await dial(server)
    links[0].close()
    await until(lambda: len(server.links) == 1)
    await until_connected(server)


async def until_connected(server: LinkServer) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(TooBusy):
                await dial(server)
                return
            await asyncio.sleep(0.01)


async def test_who_says_no_hello_is_shown_out(serve: Serve) -> None:
    server = await serve(LinkLimits(handshake_timeout_s=0.1))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(20):
        await reader.read()
    writer.close()
    assert not server.links


async def test_a_listener_that_never_answers() -> None:
    accepted: list[asyncio.StreamWriter] = []

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        await reader.read()

    server = await asyncio.start_server(ignore, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(RemoteTimeout, match="did not welcome us"):
        await connect(
            "127.0.0.1", port, Hello("x"), Welcome, limits=LinkLimits(handshake_timeout_s=0.1)
        )
    server.close()
    for writer in accepted:
        writer.close()
    await server.wait_closed()


async def test_another_version_is_told_so(serve: Serve) -> None:
    server = await serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    hello = ENCODE(Hello("x"))
    writer.write(HEADER.pack(len(hello), FrameKind.HELLO, PROTOCOL_VERSION + 1) + hello)
    kind, payload = await read_frame(reader)
    assert kind == FrameKind.ERROR
    assert "version" in decode(ErrorReport, payload).message
    writer.close()


# Bad peers, on raw sockets


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(20):
        length, kind, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
        return kind, await reader.readexactly(length)


async def raw_dial(server: LinkServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    hello = ENCODE(Hello("raw"))
    writer.write(HEADER.pack(len(hello), FrameKind.HELLO, PROTOCOL_VERSION) + hello)
    kind, _ = await read_frame(reader)
    assert kind == FrameKind.WELCOME
    return reader, writer


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        HEADER.pack(0xFFFFFFFF, FrameKind.REQUEST, 1),
        HEADER.pack(0, 0, 1),
        HEADER.pack(0, 200, 1),
        HEADER.pack(0, FrameKind.HELLO, 1),
        HEADER.pack(1, FrameKind.REQUEST, 1) + b"\xc1",
        HEADER.pack(4, FrameKind.NOTIFICATION, 1) + b"\xdf\xff\xff\xff",
        HEADER.pack(1, FrameKind.ERROR, 1) + b"\xc1",
        HEADER.pack(2, FrameKind.ERROR, 1) + ENCODE([1]),
        HEADER.pack(0, FrameKind.REPLY, 9) + HEADER.pack(1, 99, 9),
    ],
)
async def test_nonsense_ends_the_link(serve: Serve, peer: Peer, data: bytes) -> None:
    server = await serve()
    reader, writer = await raw_dial(server)
    back = await peer.links.get()
    writer.write(data)
    async with asyncio.timeout(20):
        reason = await back.closed
        await reader.read()
    assert reason.cause is CloseCause.MALFORMED
    writer.close()
    assert await (await dial(server)).request(Echo("next"), Echo, 10) == Echo("next")


async def test_a_frame_byte_by_byte(serve: Serve) -> None:
    server = await serve()
    reader, writer = await raw_dial(server)
    payload = ENCODE(Echo("dripping"))
    for byte in HEADER.pack(len(payload), FrameKind.REQUEST, 5) + payload:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    kind, answer = await read_frame(reader)
    assert kind == FrameKind.REPLY
    assert decode(Echo, answer) == Echo("dripping")
    writer.close()


async def test_a_peer_that_does_not_read(serve: Serve, peer: Peer) -> None:
    limits = LinkLimits(droppable_bytes=10_000, send_buffer_bytes=4_000_000)
    server = await serve(limits)
    _, writer = await raw_dial(server)
    back = await peer.links.get()
    sample = Count(1, b"x" * 50_000)
    async with asyncio.timeout(30):
        # The kernel's buffers take the first megabytes.
        while back.notify(sample, droppable=True):  # noqa: ASYNC110 - the loop must turn
            await asyncio.sleep(0)
        assert back.stats.dropped == 1
        assert back.is_open
        assert back.notify(Count(2))
        # Far beyond the bound, but counted: a failing bound must not eat the machine's memory.
        assert not all(back.notify(sample) for _ in range(200))
    assert (await back.closed).cause is CloseCause.OVERFLOW
    writer.close()


async def test_requests_are_refused_before_the_buffer_is_full(serve: Serve, peer: Peer) -> None:
    server = await serve(LinkLimits(send_buffer_bytes=40_000_000))
    _, writer = await raw_dial(server)
    back = await peer.links.get()
    big = Echo("x" * 5_000_000)
    asking: list[asyncio.Task[Echo]] = []
    async with asyncio.timeout(30):
        while not any(task.done() for task in asking):
            asking.append(asyncio.create_task(back.request(big, Echo, 60)))
            await asyncio.sleep(0)
    refused = next(task for task in asking if task.done())
    with pytest.raises(TooBusy, match="reads too slowly"):
        await refused
    assert back.is_open
    back.close()
    await asyncio.gather(*asking, return_exceptions=True)
    writer.close()


async def test_silence_is_noticed_and_heartbeats_are_not_silence(serve: Serve, peer: Peer) -> None:
    limits = LinkLimits(ping_interval_s=0.1, silence_timeout_s=1.0)
    server = await serve(limits)
    link = await dial(server, limits=limits)
    lively = await peer.links.get()
    _, writer = await raw_dial(server)
    silent = await peer.links.get()
    async with asyncio.timeout(20):
        assert (await silent.closed).cause is CloseCause.SILENT
    assert link.is_open
    assert lively.is_open
    await until(lambda: link.stats.round_trip_s is not None)
    writer.close()


async def test_who_sends_something_else_anyway_does_not_ping(serve: Serve, peer: Peer) -> None:
    limits = LinkLimits(ping_interval_s=1.0, silence_timeout_s=20.0)
    link = await dial(await serve(limits), limits=limits)
    other = await peer.links.get()
    longest_s, told_s = 0.0, time.monotonic()
    for number in range(30):
        link.notify(Count(number))
        await asyncio.sleep(0.1)
        longest_s, told_s = max(longest_s, time.monotonic() - told_s), time.monotonic()
    busy = longest_s > limits.ping_interval_s  # this machine, so that it was quiet after all
    assert busy or link.stats.round_trip_s is None, "it had no need to ask"
    await until(lambda: other.stats.round_trip_s is not None)
    assert link.is_open


async def test_our_own_standstill_is_not_the_peers_silence(serve: Serve) -> None:
    limits = LinkLimits(ping_interval_s=0.1, silence_timeout_s=0.4)
    link = await dial(await serve(limits), limits=limits)
    time.sleep(1.0)  # noqa: ASYNC251 - the loop stands still: that is what is tested
    assert await link.request(Echo("back"), Echo, 10) == Echo("back")


STOPPED_PEER = """
import asyncio
from snooze.common.transport.link import Service
from snooze.common.transport.link_server import Accepted, LinkServer
import msgspec

class Hello(msgspec.Struct, tag=True):
    name: str

class Welcome(msgspec.Struct, tag=True):
    name: str

async def on_hello(hello, peer):
    return Accepted(Welcome("hello test"), Service())

async def main():
    server = LinkServer("127.0.0.1", 0, Hello, on_hello)
    await server.start()
    print(server.port, flush=True)
    await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that listens for links; prints its port."""
    root = pathlib.Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED_PEER],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root / "typings")},
    ) as process:
        yield process
        process.kill()


async def test_a_stopped_process_is_noticed(child: subprocess.Popen[bytes]) -> None:
    assert child.stdout is not None
    port = int(await asyncio.to_thread(child.stdout.readline))
    limits = LinkLimits(ping_interval_s=0.1, silence_timeout_s=0.5)
    link, _ = await connect("127.0.0.1", port, Hello("test"), Welcome, limits=limits)
    await until(lambda: link.stats.round_trip_s is not None)
    child.send_signal(signal.SIGSTOP)
    asked = asyncio.create_task(link.request(Echo(), Echo, 60))
    async with asyncio.timeout(20):
        assert (await link.closed).cause is CloseCause.SILENT
    with pytest.raises(RemoteError, match="silent"):
        await asked
    await link.wait_closed()

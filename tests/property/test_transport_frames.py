"""Frames and messages under random bytes and random cuts."""

import asyncio
import contextlib

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snooze.common.errors import InvalidRequest
from snooze.common.transport.channel import LinkLimits
from snooze.common.transport.codec import ENCODER, MalformedMessage, decode, unpack_array
from snooze.common.transport.frames import (
    HEADER,
    PROTOCOL_VERSION,
    FrameKind,
    FrameReader,
    MalformedFrame,
)
from snooze.common.transport.link import Service, connect
from snooze.common.transport.link_server import Accepted, LinkServer


class Hello(msgspec.Struct, tag=True):
    pass


class Work(msgspec.Struct, tag=True):
    names: list[str] = []
    sizes: dict[str, float] = {}


class Rest(msgspec.Struct, tag=True):
    pass


FRAMES = st.lists(
    st.tuples(st.sampled_from(list(FrameKind)), st.integers(0, 2**32 - 1), st.binary(max_size=200)),
    max_size=10,
)


def written(frames: list[tuple[FrameKind, int, bytes]]) -> bytes:
    return b"".join(
        HEADER.pack(len(payload), kind, ident) + payload for kind, ident, payload in frames
    )


@given(FRAMES, st.lists(st.integers(1, 50)))
def test_frames_survive_every_cut(
    frames: list[tuple[FrameKind, int, bytes]], cuts: list[int]
) -> None:
    data = written(frames)
    reader = FrameReader(200)
    seen: list[tuple[int, int, bytes]] = []
    while data:
        size = cuts.pop() if cuts else len(data)
        reader.feed(data[:size])
        data = data[size:]
        # Sometimes frames are left in the reader while more arrives.
        while size % 3 and (frame := reader.next_frame()) is not None:
            seen.append(frame)
    while (frame := reader.next_frame()) is not None:
        seen.append(frame)
    assert seen == frames
    assert reader.held_bytes == 0


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_random_bytes_are_frames_or_malformed(pieces: list[bytes]) -> None:
    reader = FrameReader(50)
    with contextlib.suppress(MalformedFrame):
        for piece in pieces:
            reader.feed(piece)
            while (frame := reader.next_frame()) is not None:
                assert len(frame[2]) <= 50
            assert reader.held_bytes <= 50 + HEADER.size + 60


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda tail: b"\x00\x02" + tail))
def test_random_bytes_are_arrays_or_refused(payload: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        unpack_array(payload)


@given(st.binary(max_size=300))
def test_random_bytes_are_messages_or_refused(payload: bytes) -> None:
    with contextlib.suppress(InvalidRequest, MalformedMessage):
        decode(Work | Rest, payload)


@given(st.data())
def test_damaged_messages_are_messages_or_refused(data: st.DataObject) -> None:
    payload = bytearray(ENCODER.encode(Work(["a", "bé"], {"x": 1.5, "y": 2.0})))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidRequest, MalformedMessage):
        decode(Work | Rest, bytes(payload))


HOSTILE = st.one_of(
    st.binary(max_size=100),
    FRAMES.map(written),
    st.lists(
        st.tuples(
            st.sampled_from([FrameKind.REQUEST, FrameKind.NOTIFICATION, FrameKind.REPLY]),
            st.integers(0, 5),
            st.sampled_from([ENCODER.encode(Work()), ENCODER.encode(Rest()), b"\xc0", b"\x91"]),
        ),
        max_size=20,
    ).map(written),
)


@pytest.mark.filterwarnings("error")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(HOSTILE, min_size=1, max_size=4), st.booleans())
def test_a_server_outlives_whatever_comes(pieces: list[bytes], polite: bool) -> None:
    async def answer(message: Work | Rest) -> Work | None:
        return message if isinstance(message, Work) else None

    async def on_hello(hello: Hello, peer: str) -> Accepted:
        del hello, peer
        return Accepted(Rest(), Service(requests=Work | Rest, answer=answer))

    async def attack() -> None:
        limits = LinkLimits(handshake_timeout_s=10, close_timeout_s=0.5)
        server = LinkServer("127.0.0.1", 0, Hello, on_hello, limits=limits)
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        if polite:
            hello = ENCODER.encode(Hello())
            writer.write(HEADER.pack(len(hello), FrameKind.HELLO, PROTOCOL_VERSION) + hello)
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            writer.write_eof()
            await reader.read()
        writer.close()
        link, _ = await connect("127.0.0.1", server.port, Hello(), Rest)
        assert await link.request(Work(["still alive"]), Work, 10) == Work(["still alive"])
        link.close()
        await link.wait_closed()
        await server.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(attack())

"""One TCP connection that carries frames: batching, bounds, the heartbeat, closing.

Theory of operation
    Outgoing frames are encoded straight into one buffer, which is handed to the socket once a turn
    of the event loop. A peer that does not read makes that buffer grow: droppable frames are
    dropped (and counted) above ``droppable_bytes``; above ``send_buffer_bytes`` the channel closes.

    Incoming frames are given to ``on_frame`` in order, in the loop turn in which they came. Until
    ``open`` is called they are held, and the socket is not read.

    Once open, each side sends a PING every ``ping_interval_s``, unless it has just sent something
    else (the answer to the peer's PING, for one), and closes the channel when it has not received
    one whole frame for ``silence_timeout_s``. If our own process stood still meanwhile
    (stopped, starved, suspended with the machine), that silence was ours: the peer gets one more
    interval to be heard.
"""

import asyncio
import dataclasses
import enum
import logging
import math
import socket
from collections.abc import Callable
from typing import cast

import msgspec

from snooze.common.errors import InvalidRequest
from snooze.common.transport.codec import ENCODER, MalformedMessage
from snooze.common.transport.frames import HEADER, FrameKind, FrameReader, MalformedFrame

logger = logging.getLogger(__name__)

_MAX_REASON_CHARS = 500
_QUIET = 1.2
"""Ping intervals after another frame was sent until a PING is due: what is sent once an interval, a
little late perhaps, makes up for it."""


@dataclasses.dataclass(frozen=True, slots=True)
class LinkLimits:
    """The bounds of a link. Both sides have their own; they need not agree.

    ``silence_timeout_s`` is the failure detector: three missed heartbeats and some slack. Requests
    are refused from half of ``send_buffer_bytes`` on, so that a request alone never fills it.
    """

    max_frame_bytes: int = 16 * 1024 * 1024
    send_buffer_bytes: int = 32 * 1024 * 1024
    droppable_bytes: int = 1024 * 1024
    requests_in_flight: int = 4096
    ping_interval_s: float = 3.0
    silence_timeout_s: float = 10.0
    handshake_timeout_s: float = 5.0
    close_timeout_s: float = 2.0


class CloseCause(enum.StrEnum):
    """Who or what ended a link."""

    LOCAL = "local"  # we closed it
    PEER = "peer"  # the peer said goodbye
    LOST = "lost"  # the connection broke or ended without a goodbye
    SILENT = "silent"  # no frame for too long
    MALFORMED = "malformed"  # the peer sent nonsense
    OVERFLOW = "overflow"  # the peer does not read


@dataclasses.dataclass(frozen=True, slots=True)
class CloseReason:
    """Why a link ended."""

    cause: CloseCause
    detail: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}"


@dataclasses.dataclass(slots=True)
class LinkStats:
    """Counters of one link, for metrics."""

    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    dropped: int = 0  # droppable notifications not sent, because the peer reads too slowly
    rejected: int = 0  # notifications of a type we do not know
    refused: int = 0  # requests beyond the bound of requests in flight
    round_trip_s: float | None = None  # of the last ping


class Channel(asyncio.Protocol):
    """Frames over one connection. Belongs to one event loop."""

    def __init__(self, limits: LinkLimits) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._reader = FrameReader(limits.max_frame_bytes)
        self._transport: asyncio.Transport | None = None
        self._out = bytearray()
        self._flush_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = 0.0
        self._next_ping_s = 0.0
        self._sent_s = -math.inf
        self._ping_id = 0
        self._ping_sent_s: float | None = None
        self._heard_s = 0.0
        self._reading = True
        self._on_frame: Callable[[int, int, bytes], None] | None = None
        self.stats = LinkStats()
        self.peer = "?"
        self.reason: CloseReason | None = None
        self.closed: asyncio.Future[CloseReason] = self._loop.create_future()
        """Done as soon as the channel takes nothing more."""
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Done when the socket is closed."""

    # Incoming

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        # A cast: uvloop's transports are not registered as asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if peer else "?"
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            _set_socket_options(sock, self._limits.silence_timeout_s)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self.reason is not None:
            return
        self.stats.bytes_in += len(data)
        self._reader.feed(data)
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._end(CloseReason(CloseCause.LOST, str(exc) if exc else "connection ended"))
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if not self.gone.done():
            self.gone.set_result(None)

    async def first_frame(self) -> tuple[int, int, bytes] | None:
        """The first frame, everything after it is held; None when the channel closed before."""
        waiter: asyncio.Future[tuple[int, int, bytes]] = self._loop.create_future()

        def take(kind: int, ident: int, payload: bytes) -> None:
            self._on_frame = None
            if not waiter.done():
                waiter.set_result((kind, ident, payload))

        self._on_frame = take
        self._pump()
        await asyncio.wait((waiter, self.closed), return_when=asyncio.FIRST_COMPLETED)
        return waiter.result() if waiter.done() else None

    def open(self, on_frame: Callable[[int, int, bytes], None]) -> None:
        """From the next turn of the loop on, give every frame to ``on_frame``; start to ping."""
        if self.reason is not None:
            return
        self._on_frame = on_frame
        now_s = self._loop.time()
        self._heard_s = now_s
        self._next_ping_s = now_s + self._limits.ping_interval_s
        self._set_timer(now_s)
        self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._pump()
        if not self._reading and self._transport is not None and self.reason is None:
            self._reading = True
            self._transport.resume_reading()

    def _pump(self) -> None:
        """Give out the whole frames there are."""
        heard = False
        try:
            while self._on_frame is not None and self.reason is None:
                frame = self._reader.next_frame()
                if frame is None:
                    break
                heard = True
                self.stats.frames_in += 1
                kind, ident, payload = frame
                if kind == FrameKind.PING:
                    self.send_empty(FrameKind.PONG, ident)
                    self._sent_s = self._loop.time()
                elif kind == FrameKind.PONG:
                    self._on_pong(ident)
                elif kind == FrameKind.BYE:
                    self._end(CloseReason(CloseCause.PEER, _reason_text(payload)))
                    self._finish()
                else:
                    self._on_frame(kind, ident, payload)
        except (MalformedFrame, MalformedMessage) as error:
            self.close(CloseCause.MALFORMED, str(error))
        if heard:
            self._heard_s = self._loop.time()
        if self._on_frame is None and self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    # Outgoing

    @property
    def buffered_bytes(self) -> int:
        """Bytes that the peer's kernel has not taken yet."""
        waiting = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return len(self._out) + waiting

    def send(self, kind: FrameKind, ident: int, message: object) -> None:
        """Send one frame; closes the channel when the peer reads too little.

        Nothing happens on a closed channel.

        Raises:
            InvalidRequest: the message is longer than a frame may be; nothing was sent.
        """
        if self.reason is not None:
            return
        start = len(self._out)
        self._out += b"\0" * HEADER.size
        try:
            ENCODER.encode_into(message, self._out, start + HEADER.size)
            length = len(self._out) - start - HEADER.size
            if length > self._limits.max_frame_bytes:
                raise InvalidRequest(
                    f"{type(message).__name__} takes {length} bytes, "
                    f"a frame at most {self._limits.max_frame_bytes}"
                )
        except BaseException:
            del self._out[start:]
            raise
        HEADER.pack_into(self._out, start, length, kind, ident)
        self._sent_s = self._loop.time()
        self._sent()

    def send_empty(self, kind: FrameKind, ident: int) -> None:
        """Send a frame without a payload."""
        if self.reason is None:
            self._out += HEADER.pack(0, kind, ident)
            self._sent()

    def _sent(self) -> None:
        self.stats.frames_out += 1
        if self._flush_handle is None:
            self._flush_handle = self._loop.call_soon(self._flush)
        buffered = self.buffered_bytes
        if buffered > self._limits.send_buffer_bytes:
            self.close(CloseCause.OVERFLOW, f"the peer has left {buffered} bytes unread")

    def _flush(self) -> None:
        self._flush_handle = None
        if self._out and self._transport is not None:
            out, self._out = self._out, bytearray()
            self.stats.bytes_out += len(out)
            self._transport.write(out)

    # Heartbeat

    def _set_timer(self, now_s: float) -> None:
        silence_s = self._heard_s + self._limits.silence_timeout_s
        self._timer_due_s = max(now_s, min(self._next_ping_s, silence_s))
        self._timer = self._loop.call_at(self._timer_due_s, self._on_timer)

    def _on_timer(self) -> None:
        now_s = self._loop.time()
        limits = self._limits
        if now_s - self._timer_due_s > limits.ping_interval_s:
            logger.warning(
                "this process stood still; giving the peer time to be heard",
                extra={"peer": self.peer, "late_s": round(now_s - self._timer_due_s, 3)},
            )
            grace_s = now_s + limits.ping_interval_s - limits.silence_timeout_s
            self._heard_s = max(self._heard_s, grace_s)
        if now_s >= self._heard_s + limits.silence_timeout_s:
            self.close(CloseCause.SILENT, f"no frame for {now_s - self._heard_s:.1f} s")
            return
        quiet_s = self._sent_s + _QUIET * limits.ping_interval_s
        if self._next_ping_s <= now_s < quiet_s:
            self._next_ping_s = quiet_s
        elif now_s >= self._next_ping_s:
            self._next_ping_s = now_s + limits.ping_interval_s
            self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
            self._ping_sent_s = now_s
            self.send_empty(FrameKind.PING, self._ping_id)
        if self.reason is None:
            self._set_timer(now_s)

    def _on_pong(self, ident: int) -> None:
        if ident == self._ping_id and self._ping_sent_s is not None:
            self.stats.round_trip_s = self._loop.time() - self._ping_sent_s
            self._ping_sent_s = None

    # Closing

    def close(self, cause: CloseCause = CloseCause.LOCAL, detail: str = "closed") -> None:
        """End the channel, once. Says goodbye where the peer can still be expected to listen."""
        if self.reason is not None:
            return
        if cause in (CloseCause.LOCAL, CloseCause.MALFORMED):
            self.send(FrameKind.BYE, 0, detail[:_MAX_REASON_CHARS])
        # Sending the goodbye may have found the buffer full and closed the channel.
        self._end(CloseReason(cause, detail))
        if cause in (CloseCause.SILENT, CloseCause.OVERFLOW):
            self._abort()
        else:
            self._finish()

    def _end(self, reason: CloseReason) -> None:
        """Take nothing more, and tell who waits."""
        if self.reason is not None:
            return
        self.reason = reason
        self._on_frame = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        logger.debug(
            "link closed",
            extra={"peer": self.peer, "cause_of_close": reason.cause, "detail": reason.detail},
        )
        if not self.closed.done():
            self.closed.set_result(reason)

    def _finish(self) -> None:
        """Let the socket take what is buffered, for a bounded time."""
        self._flush()
        if self._transport is not None:
            self._transport.close()
            self._timer = self._loop.call_later(self._limits.close_timeout_s, self._abort)

    def _abort(self) -> None:
        self._out.clear()
        if self._transport is not None:
            self._transport.abort()


def _reason_text(payload: bytes) -> str:
    try:
        text = msgspec.msgpack.decode(payload, type=str)
    except ValueError:
        text = "no reason given"
    return text[:_MAX_REASON_CHARS]


def _set_socket_options(sock: socket.socket, silence_timeout_s: float) -> None:
    """Small frames leave at once; the kernel notices a dead peer even when we have no timer."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle_s = max(1, round(silence_timeout_s))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle_s // 3))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

"""A persistent, duplex, typed link between two daemons.

Either side may ask (``Link.request``) and tell (``Link.notify``) the other one. What a side accepts
is a ``Service``: unions of tagged msgspec structs, an ``async`` handler for requests and a plain
callback for notifications.

What a request promises: see ``Link.request``. Requests are started and notifications delivered in
the order in which they were sent; the handler of a request runs as its own task, so answers may
overtake one another. When the link closes, running handlers are cancelled: what must outlive the
link belongs in a task of the daemon, with the handler only waiting for it.
"""

import asyncio
import dataclasses
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

import msgspec

from snooze.common.errors import (
    ErrorReport,
    ExecutionError,
    InvalidRequest,
    RemoteError,
    RemoteTimeout,
    SnoozeError,
    TooBusy,
)
from snooze.common.transport.channel import (
    Channel,
    CloseCause,
    CloseReason,
    LinkLimits,
    LinkStats,
)
from snooze.common.transport.codec import MalformedMessage, decode, decoder_for
from snooze.common.transport.delivery import not_sent, was_sent
from snooze.common.transport.frames import PROTOCOL_VERSION, FrameKind, MalformedFrame

__all__ = [
    "NO_SERVICE",
    "CloseCause",
    "CloseReason",
    "Link",
    "LinkLimits",
    "LinkStats",
    "Service",
    "connect",
    "was_sent",
]

logger = logging.getLogger(__name__)

R = TypeVar("R")

_RETRY_AFTER_S = 1.0


class _Nothing(msgspec.Struct, tag=True, frozen=True):
    """What a side accepts that accepts nothing."""


async def _answer_nothing(message: Any) -> None:
    raise InvalidRequest(f"this side answers no requests, not {type(message).__name__}")


def _ignore(message: Any) -> None:
    del message


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """What one side of a link accepts.

    ``requests`` and ``notifications`` are a tagged struct or a union of such (``Start | Stop``);
    the callables get exactly these (``Any`` here: Python cannot yet tie a union to a parameter).
    ``answer`` returns the struct that the asking side expects, or None; a ``SnoozeError`` that it
    raises is raised at the asking side. ``on_notification`` must not wait for anything.
    """

    requests: Any = _Nothing
    answer: Callable[[Any], Awaitable[msgspec.Struct | None]] = _answer_nothing
    notifications: Any = _Nothing
    on_notification: Callable[[Any], None] = _ignore

    def __post_init__(self) -> None:
        decoder_for(self.requests)
        decoder_for(self.notifications)


NO_SERVICE = Service()


class Link:
    """One end of a link. Made by ``connect`` and ``LinkServer``."""

    def __init__(self, channel: Channel, service: Service, limits: LinkLimits) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._service = service
        self._limits = limits
        self._last_id = 0
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        channel.closed.add_done_callback(self._on_closed)

    @property
    def peer(self) -> str:
        """Address and port of the other side."""
        return self._channel.peer

    @property
    def stats(self) -> LinkStats:
        """Counters, live."""
        return self._channel.stats

    @property
    def buffered_bytes(self) -> int:
        """What waits to be sent."""
        return self._channel.buffered_bytes

    @property
    def is_open(self) -> bool:
        """Whether it takes messages."""
        return self._channel.reason is None

    @property
    def reason(self) -> CloseReason | None:
        """Why it is closed; None while it is open."""
        return self._channel.reason

    @property
    def closed(self) -> "asyncio.Future[CloseReason]":
        """Await it, or add callbacks to it: done with the reason as soon as the link has ended.

        Each access gives a future of its own, so cancelling one harms nobody.
        """
        return asyncio.shield(self._channel.closed)

    def close(self, detail: str = "closed") -> None:
        """End the link, telling the peer why; idempotent.

        Waiting requests fail, running handlers are cancelled, what is buffered is still sent for a
        bounded time. ``wait_closed`` waits for all of that.
        """
        self._channel.close(CloseCause.LOCAL, detail)

    async def wait_closed(self) -> None:
        """Wait until the link has ended, its handlers are done and its socket is closed."""
        await asyncio.shield(self._channel.closed)
        if self._serving:
            await asyncio.wait(set(self._serving))
        await asyncio.shield(self._channel.gone)

    # Asking

    @overload
    async def request(
        self, message: msgspec.Struct, reply_type: type[R], timeout_s: float
    ) -> R: ...

    @overload
    async def request(
        self, message: msgspec.Struct, reply_type: None, timeout_s: float
    ) -> None: ...

    async def request(
        self, message: msgspec.Struct, reply_type: type[R] | None, timeout_s: float
    ) -> R | None:
        """Ask the peer and wait for its answer, at most ``timeout_s``.

        Raises:
            TooBusy: too many requests wait on this link, here or at the peer; nothing was done.
            InvalidRequest: larger than a frame, or not of a type the peer accepts; nothing done.
            RemoteTimeout: no answer in time: it may have happened, or may still happen.
            RemoteError: the link is closed; ``was_sent(error)`` tells whether the request may have
                happened. Also an answer that is no ``reply_type``.
            SnoozeError: what the peer's handler raised, as its own class.
        """
        reason = self._channel.reason
        if reason is not None:
            raise not_sent(
                f"the link to {self.peer} is closed ({reason}); the request was not sent"
            )
        if len(self._pending) >= self._limits.requests_in_flight:
            raise TooBusy(
                f"{len(self._pending)} requests wait for {self.peer} already",
                retry_after_s=_RETRY_AFTER_S,
            )
        if self._channel.buffered_bytes > self._limits.send_buffer_bytes // 2:
            raise TooBusy(f"{self.peer} reads too slowly", retry_after_s=_RETRY_AFTER_S)
        ident = self._next_id()
        self._channel.send(FrameKind.REQUEST, ident, message)
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._pending[ident] = future
        timer = self._loop.call_later(
            timeout_s, _expire, future, type(message).__name__, self.peer, timeout_s
        )
        try:
            payload = await future
        finally:
            timer.cancel()
            self._pending.pop(ident, None)
            if future.done() and not future.cancelled():
                future.exception()  # Seen, even if we were cancelled in the same turn.
        try:
            reply: R | None = decode(reply_type, payload)
        except InvalidRequest as error:
            raise RemoteError(
                f"{self.peer} answered {type(message).__name__} with something else: {error}"
            ) from None
        return reply

    def notify(self, message: msgspec.Struct, *, droppable: bool = False) -> bool:
        """Tell the peer, without an answer; True when it was handed to the connection.

        A droppable message (the next one makes up for it) is dropped and counted when the peer
        reads too slowly. Any other one is sent, or the link closes. False on a closed link.

        Raises:
            InvalidRequest: larger than a frame.
        """
        channel = self._channel
        if channel.reason is not None:
            return False
        if droppable and channel.buffered_bytes > self._limits.droppable_bytes:
            channel.stats.dropped += 1
            return False
        channel.send(FrameKind.NOTIFICATION, 0, message)
        # Asked again: sending may have found the buffer full, which closes the channel.
        return self.is_open

    def _next_id(self) -> int:
        ident = self._last_id
        while True:
            ident = (ident + 1) & 0xFFFFFFFF
            if ident and ident not in self._pending:
                self._last_id = ident
                return ident

    # Answering

    def start(self) -> None:
        """Begin to take the peer's messages, from the next turn of the loop on."""
        self._channel.open(self._on_frame)

    def _on_frame(self, kind: int, ident: int, payload: bytes) -> None:
        if kind == FrameKind.REPLY:
            future = self._pending.get(ident)
            # Nobody waits any more for an answer that came too late.
            if future is not None and not future.done():
                future.set_result(payload)
        elif kind == FrameKind.REQUEST:
            self._on_request(ident, payload)
        elif kind == FrameKind.NOTIFICATION:
            self._on_notification(payload)
        elif kind == FrameKind.ERROR:
            self._on_error(ident, payload)
        else:
            raise MalformedFrame(f"unexpected {FrameKind(kind).name} frame")

    def _on_error(self, ident: int, payload: bytes) -> None:
        try:
            report: ErrorReport = decode(ErrorReport, payload)
        except InvalidRequest as error:
            raise MalformedFrame(f"error frame without a report: {error}") from None
        future = self._pending.get(ident)
        if future is not None and not future.done():
            future.set_exception(report.as_error())

    def _on_notification(self, payload: bytes) -> None:
        try:
            message = decode(self._service.notifications, payload)
        except InvalidRequest as error:
            # A newer peer may tell more than we understand.
            if not self.stats.rejected:
                logger.warning(
                    "notification not understood", extra={"peer": self.peer, "error": error.message}
                )
            self.stats.rejected += 1
            return
        try:
            self._service.on_notification(message)
        except Exception:
            logger.exception("notification callback failed", extra={"peer": self.peer})

    def _on_request(self, ident: int, payload: bytes) -> None:
        if len(self._serving) >= self._limits.requests_in_flight:
            self.stats.refused += 1
            error = TooBusy(
                f"{len(self._serving)} requests of this link are being served already",
                retry_after_s=_RETRY_AFTER_S,
            )
            self._channel.send(FrameKind.ERROR, ident, ErrorReport.of(error))
            return
        try:
            message = decode(self._service.requests, payload)
        except InvalidRequest as error:
            self._channel.send(FrameKind.ERROR, ident, ErrorReport.of(error))
            return
        task = self._loop.create_task(self._serve(ident, message))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, ident: int, message: msgspec.Struct) -> None:
        """Top of the task of one request: whatever happens, the peer gets an answer."""
        name = type(message).__name__
        try:
            try:
                reply = await self._service.answer(message)
            except SnoozeError as error:
                self._channel.send(FrameKind.ERROR, ident, ErrorReport.of(error))
                return
            try:
                self._channel.send(FrameKind.REPLY, ident, reply)
            except InvalidRequest as error:
                raise ExecutionError(f"done, but the answer is too large: {error}") from None
        except asyncio.CancelledError:
            report = ErrorReport.of(ExecutionError(f"{name} was cancelled: perhaps half done"))
            self._channel.send(FrameKind.ERROR, ident, report)
            raise
        except Exception as error:
            logger.exception("request failed", extra={"peer": self.peer, "request": name})
            self._channel.send(FrameKind.ERROR, ident, ErrorReport.of(error))

    def _on_closed(self, closed: "asyncio.Future[CloseReason]") -> None:
        reason = closed.result()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(
                    RemoteError(
                        f"the link to {self.peer} closed ({reason}) after the request was sent: "
                        "it may have happened"
                    )
                )
        for task in self._serving:
            task.cancel()


def _expire(future: "asyncio.Future[bytes]", name: str, peer: str, timeout_s: float) -> None:
    if not future.done():
        future.set_exception(
            RemoteTimeout(
                f"{peer} did not answer {name} within {timeout_s:g} s; it may have happened"
            )
        )


W = TypeVar("W")


async def connect(
    host: str,
    port: int,
    hello: msgspec.Struct,
    welcome_type: type[W],
    service: Service = NO_SERVICE,
    *,
    limits: LinkLimits | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> tuple[Link, W]:
    """Open a link, introduce ourselves, and wait to be welcomed.

    The peer's messages are taken from the next turn of the loop on, so the caller can note the link
    before the first of them.

    Raises:
        RemoteError: nobody listens there (see ``is_refused``), or the connection broke; nothing
            happened.
        RemoteTimeout: not welcomed within ``limits.handshake_timeout_s``.
        SnoozeError: why the peer refused us, as its own class.
    """
    bounds = limits or LinkLimits()
    loop = asyncio.get_running_loop()
    channel: Channel | None = None
    try:
        async with asyncio.timeout(bounds.handshake_timeout_s):
            _, channel = await loop.create_connection(
                lambda: Channel(bounds), host, port, ssl=ssl_context
            )
            channel.send(FrameKind.HELLO, PROTOCOL_VERSION, hello)
            welcome = _read_welcome(channel, await channel.first_frame(), welcome_type)
    except TimeoutError:
        if channel is None:
            raise not_sent(
                f"{host}:{port} did not accept a connection in {bounds.handshake_timeout_s:g} s"
            ) from None
        channel.close(detail="handshake timed out")
        raise RemoteTimeout(
            f"{host}:{port} did not welcome us within {bounds.handshake_timeout_s:g} s"
        ) from None
    except (OSError, UnicodeError) as error:  # the latter: a name that can be none
        raise not_sent(f"cannot connect to {host}:{port}: {error}") from error
    except BaseException:
        if channel is not None:
            channel.close(detail="handshake failed")
        raise
    link = Link(channel, service, bounds)
    link.start()
    return link, welcome


def is_refused(error: SnoozeError) -> bool:
    """Whether the peer's machine said that nobody listens there: its process is gone."""
    return isinstance(error.__cause__, ConnectionRefusedError)


def _read_welcome(
    channel: Channel, frame: tuple[int, int, bytes] | None, welcome_type: type[W]
) -> W:
    if frame is None:
        raise RemoteError(f"{channel.peer} closed the connection ({channel.reason})")
    kind, _, payload = frame
    try:
        if kind == FrameKind.ERROR:
            report: ErrorReport = decode(ErrorReport, payload)
            raise report.as_error()
        if kind != FrameKind.WELCOME:
            raise RemoteError(f"{channel.peer} answered the hello with frame kind {kind}")
        try:
            welcome: W = decode(welcome_type, payload)
        except InvalidRequest as error:
            raise RemoteError(f"{channel.peer} welcomed us with nonsense: {error}") from None
    except MalformedMessage as error:
        raise RemoteError(f"{channel.peer} answered nonsense: {error}") from None
    return welcome

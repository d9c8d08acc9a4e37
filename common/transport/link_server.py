"""The listening side of links: who may come in, and how many."""

import asyncio
import dataclasses
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from snooze.common.errors import ErrorReport, InvalidRequest, SnoozeError, TooBusy
from snooze.common.transport.channel import Channel, LinkLimits
from snooze.common.transport.codec import MalformedMessage, decode, decoder_for
from snooze.common.transport.frames import PROTOCOL_VERSION, FrameKind
from snooze.common.transport.link import Link, Service

logger = logging.getLogger(__name__)


# Beyond the bound of links, so many newcomers at a time are told why they are refused.
_MAX_REFUSED = 64


def _ignore_link(link: Link) -> None:
    del link


@dataclasses.dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a hello: what to reply, what this side accepts from now on.

    ``opened`` is called with the link right after the welcome was sent and before the peer's first
    message is taken: the place to note the link. It is not called when the peer went away before.
    """

    welcome: msgspec.Struct
    service: Service
    opened: Callable[[Link], None] = _ignore_link


class LinkServer:
    """Listens for links.

    ``on_hello(hello, peer)`` decides about each newcomer: it returns ``Accepted`` or raises the
    ``SnoozeError`` that the peer's ``connect`` shall raise. It should change nothing: the peer may
    be gone when it returns (``Accepted.opened`` is where a link begins).
    """

    def __init__(
        self,
        host: str,
        port: int,
        hello_type: Any,
        on_hello: Callable[[Any, str], Awaitable[Accepted]],
        *,
        limits: LinkLimits | None = None,
        max_links: int = 10_000,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        decoder_for(hello_type)
        self._host = host
        self._port = port
        self._hello_type = hello_type
        self._on_hello = on_hello
        self._limits = limits or LinkLimits()
        self._max_links = max_links
        self._ssl_context = ssl_context
        self._server: asyncio.Server | None = None
        self._channels: set[Channel] = set()
        self._newcomers: set[asyncio.Task[None]] = set()
        self._links: set[Link] = set()
        self._closing = False

    @property
    def port(self) -> int:
        """The port it listens on; the one chosen by the kernel when 0 was asked."""
        if self._server is None:
            return self._port
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def links(self) -> frozenset[Link]:
        """The open links."""
        return frozenset(self._links)

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            OSError: the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._make_channel,
            self._host,
            self._port,
            ssl=self._ssl_context,
            ssl_handshake_timeout=self._limits.handshake_timeout_s if self._ssl_context else None,
            backlog=1024,
        )

    async def close(self, detail: str = "shutting down") -> None:
        """Stop listening, say goodbye on every link, and wait until all of it is gone.

        Bounded by ``limits.close_timeout_s`` and by how long handlers take to be cancelled.
        """
        self._closing = True
        if self._server is not None:
            self._server.close()
        for task in self._newcomers:
            task.cancel()
        links = set(self._links)
        for link in links:
            link.close(detail)
        for channel in self._channels:
            channel.close(detail=detail)
        if self._newcomers:
            await asyncio.wait(set(self._newcomers))
        for link in links:
            await link.wait_closed()
        for channel in set(self._channels):
            await asyncio.shield(channel.gone)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    def _make_channel(self) -> Channel:
        return _Newcomer(self._limits, self._begin)

    def _begin(self, channel: Channel) -> None:
        # Only now, not when the channel is made: a failed TLS handshake never comes here.
        self._channels.add(channel)
        channel.gone.add_done_callback(lambda _: self._channels.discard(channel))
        if self._closing or len(self._channels) > self._max_links + _MAX_REFUSED:
            channel.close(detail="too many links")
            return
        task = asyncio.get_running_loop().create_task(self._welcome(channel))
        self._newcomers.add(task)
        task.add_done_callback(self._newcomers.discard)

    async def _welcome(self, channel: Channel) -> None:
        """Top of the task of one newcomer."""
        try:
            async with asyncio.timeout(self._limits.handshake_timeout_s):
                accepted = await self._accept(channel)
        except TimeoutError:
            channel.close(detail="handshake timed out")
            return
        except SnoozeError as error:
            channel.send(FrameKind.ERROR, 0, ErrorReport.of(error))
            channel.close(detail=error.message)
            return
        except Exception as error:
            logger.exception("hello failed", extra={"peer": channel.peer})
            channel.send(FrameKind.ERROR, 0, ErrorReport.of(error))
            channel.close(detail="internal error")
            return
        if accepted is None or channel.reason is not None:
            return
        try:
            channel.send(FrameKind.WELCOME, PROTOCOL_VERSION, accepted.welcome)
            link = Link(channel, accepted.service, self._limits)
            self._links.add(link)
            channel.closed.add_done_callback(lambda _: self._links.discard(link))
            accepted.opened(link)
            link.start()
        except Exception:
            logger.exception("opening a link failed", extra={"peer": channel.peer})
            channel.close(detail="internal error")

    async def _accept(self, channel: Channel) -> Accepted | None:
        frame = await channel.first_frame()
        if frame is None:
            return None
        kind, version, payload = frame
        if kind != FrameKind.HELLO:
            raise InvalidRequest("the first frame must be a hello")
        if version != PROTOCOL_VERSION:
            raise InvalidRequest(
                f"this daemon speaks version {PROTOCOL_VERSION} of the link protocol, not {version}"
            )
        try:
            hello = decode(self._hello_type, payload)
        except MalformedMessage as error:
            raise InvalidRequest(f"the hello is not MessagePack: {error}") from None
        if len(self._channels) > self._max_links:
            raise TooBusy(f"{self._max_links} links are open already", retry_after_s=5.0)
        return await self._on_hello(hello, channel.peer)


class _Newcomer(Channel):
    """A channel that reports itself when its connection stands."""

    def __init__(self, limits: LinkLimits, begin: Callable[[Channel], None]) -> None:
        super().__init__(limits)
        self._begin = begin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._begin(self)

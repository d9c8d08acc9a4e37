"""The HTTP client of every daemon: one pool of connections, bounds, our own errors.

A request is repeated only when it certainly never left, which is when no connection came about.
"""

import asyncio
import dataclasses
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec
from yarl import URL

from snooze.common.api import ErrorBody
from snooze.common.errors import (
    ERRORS_BY_CODE,
    InvalidRequest,
    RemoteError,
    RemoteTimeout,
)
from snooze.common.transport.codec import ENCODER, MalformedMessage, decode
from snooze.common.transport.delivery import not_sent

R = TypeVar("R")

JSON = "application/json"
MESSAGEPACK = "application/msgpack"

_MAX_SHOWN_CHARS = 200
_MAX_RETRY_AFTER_S = 3600.0
_MAX_CONNECT_PAUSE_S = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class HttpClientLimits:
    """The bounds of a client.

    ``idle_timeout_s`` must be shorter than the servers', or requests race with their closing.
    """

    connections: int = 256
    connections_per_host: int = 64
    connect_timeout_s: float = 3.0
    connect_attempts: int = 3
    connect_pause_s: float = 0.1
    idle_timeout_s: float = 15.0
    max_reply_bytes: int = 64 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class HttpReply:
    """An answer, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        """The label, without its parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()


class HttpClient:
    """Sends requests; an async context manager, or ``start`` and ``close`` by hand."""

    def __init__(
        self,
        *,
        limits: HttpClientLimits | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits or HttpClientLimits()
        self._ssl_context = ssl_context
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Open the pool; belongs to the running event loop from here on."""
        limits = self._limits
        connector = aiohttp.TCPConnector(
            limit=limits.connections,
            limit_per_host=limits.connections_per_host,
            keepalive_timeout=limits.idle_timeout_s,
            ssl=True if self._ssl_context is None else self._ssl_context,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
            headers={"User-Agent": "snooze"},
        )

    async def close(self) -> None:
        """Close every connection; idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(
        self,
        url: str,
        reply_type: type[R],
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> R:
        """GET a message in JSON; see ``send`` and ``checked`` for the errors."""
        reply = await self.send(
            "GET", url, timeout_s=timeout_s, headers={"Accept": JSON, **(headers or {})}
        )
        return read_reply(url, reply, reply_type)

    async def post(
        self,
        url: str,
        message: object,
        reply_type: type[R],
        *,
        timeout_s: float,
        encoding: str = JSON,
        headers: Mapping[str, str] | None = None,
    ) -> R:
        """POST a message in ``JSON`` or ``MESSAGEPACK``, get one of the same kind back.

        See ``send`` and ``checked`` for the errors.
        """
        encoder = ENCODER.encode if encoding == MESSAGEPACK else msgspec.json.encode
        reply = await self.send(
            "POST",
            url,
            encoder(message),
            timeout_s=timeout_s,
            headers={"Accept": encoding, "Content-Type": encoding, **(headers or {})},
        )
        return read_reply(url, reply, reply_type)

    async def send(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> HttpReply:
        """Send one request and read its answer, all within ``timeout_s``; any status is an answer.

        Redirects are not followed.

        Raises:
            InvalidRequest: no such URL can be asked.
            RemoteTimeout: no whole answer in time: it may have happened.
            RemoteError: no connection (``delivery.was_sent`` is false), one that broke, or an
                answer beyond the bound.
        """
        target = _parse(url)
        pause_s = self._limits.connect_pause_s
        attempts = self._limits.connect_attempts
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    attempts -= 1
                    try:
                        return await self._send_once(method, target, body, headers)
                    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                        # A certificate that is wrong now will be wrong in a moment.
                        if attempts <= 0 or isinstance(error, aiohttp.ClientSSLError):
                            raise not_sent(
                                f"cannot connect to {_origin(target)}: {error}"
                            ) from None
                        await asyncio.sleep(pause_s)
                        pause_s = min(2 * pause_s, _MAX_CONNECT_PAUSE_S)
        except TimeoutError:
            raise RemoteTimeout(
                f"{_origin(target)} did not answer {method} {target.path} within {timeout_s:g} s; "
                "it may have happened"
            ) from None
        except UnicodeError as error:  # a name that can be none: it is not looked up
            raise not_sent(f"cannot connect to {_origin(target)}: {error}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise RemoteError(
                f"{_origin(target)} broke off during {method} {target.path} "
                f"({type(error).__name__}: {error}); it may have happened"
            ) from None

    async def _send_once(
        self, method: str, url: URL, body: bytes | None, headers: Mapping[str, str] | None
    ) -> HttpReply:
        if self._session is None:
            raise RuntimeError("the HTTP client is not started")
        async with self._session.request(
            method,
            url,
            data=body,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=self._limits.connect_timeout_s),
        ) as response:
            received = bytearray()
            async for chunk in response.content.iter_any():
                received += chunk
                if len(received) > self._limits.max_reply_bytes:
                    raise RemoteError(
                        f"{_origin(url)} answered more than {self._limits.max_reply_bytes} bytes"
                    )
            return HttpReply(response.status, response.headers, bytes(received))


def checked(url: str, reply: HttpReply) -> HttpReply:
    """``reply``, when it is a success.

    Raises:
        SnoozeError: what the peer reported, as its own class.
        RemoteError: any other status but 2xx.
    """
    if 200 <= reply.status < 300:
        return reply
    if reply.content_type == JSON:
        try:
            report = msgspec.json.decode(reply.body, type=ErrorBody).error
        except (ValueError, RecursionError):
            report = None
        if report is not None and report.code in ERRORS_BY_CODE:
            raise report.as_error()
    text = reply.body[:_MAX_SHOWN_CHARS].decode(errors="replace").strip().partition("\n")[0]
    raise RemoteError(
        f"{_origin(_parse(url))} answered {reply.status}: {text}",
        retry_after_s=_retry_after_s(reply.headers.get("Retry-After")),
    )


def read_reply(url: str, reply: HttpReply, reply_type: type[R]) -> R:
    """The message in an answer, by its label JSON or MessagePack.

    Raises:
        SnoozeError: as ``checked``; ``RemoteError`` also for an answer that is no ``reply_type``.
    """
    checked(url, reply)
    try:
        if reply.content_type == MESSAGEPACK:
            message: R = decode(reply_type, reply.body)
            return message
        return msgspec.json.decode(reply.body, type=reply_type)
    except (ValueError, RecursionError, InvalidRequest, MalformedMessage) as error:
        raise RemoteError(f"{_origin(_parse(url))} answered nonsense: {error}") from None


def _parse(url: str) -> URL:
    try:
        target = URL(url)
        valid = target.scheme in ("http", "https") and bool(target.host)
    except ValueError as error:
        raise InvalidRequest(f"no URL: {url[:_MAX_SHOWN_CHARS]}: {error}") from None
    if not valid:
        raise InvalidRequest(f"no URL of a server: {url[:_MAX_SHOWN_CHARS]}")
    return target


def _origin(url: URL) -> str:
    """Where it goes, without a path, a query or a password in it."""
    return f"{url.host}:{url.port}"


def _retry_after_s(header: str | None) -> float | None:
    if header is None or not header.isascii() or not header.isdigit() or len(header) > 9:
        return None
    return min(float(header), _MAX_RETRY_AFTER_S)

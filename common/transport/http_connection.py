"""One HTTP connection: request targets without a slash, and clients that are too slow.

Snooze's libcloud driver of 2013 writes ``POST groupmanager?startVirtualCluster HTTP/1.1``. The
parser in C that aiohttp normally uses refuses that before anybody can mend it, so connections here
use aiohttp's parser in Python, told to put the missing slash before the target. Which bytes belong
to which request is decided by that parser alone, from the headers, so a mended target cannot shift
a request's borders.

A client owes us progress: its head within ``head_timeout_s``; its body at ``min_body_bytes_s``
after a grace of ``body_timeout_s``; and to read what we send within ``write_timeout_s``.
``HttpServer`` looks at every connection about once a second and has those cut that are overdue.
"""

import asyncio
import dataclasses
import enum
import logging
import math
import re
from http import HTTPStatus
from typing import cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import HttpRequestParserPy, RawRequestMessage
from aiohttp.web_protocol import MAX_MSG_QUEUE_SIZE
from aiohttp.web_request import BaseRequest

logger = logging.getLogger(__name__)

# A path or a query that lacks its slash; not a scheme (absolute form), which ends in a colon.
_BARE_TARGET = re.compile(rb"[A-Za-z0-9_.~%-]+(?![A-Za-z0-9_.~%+:-])")

_REFUSAL_LINGER_S = 1.0
_MAX_REFUSED = 256
_TELL_AGAIN_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class HttpLimits:
    """The bounds of an HTTP server.

    ``min_body_bytes_s``: each so many bytes received give the body one more second.
    ``stop_timeout_s``: how long requests that run when the server stops may still take.
    """

    max_body_bytes: int = 16 * 1024 * 1024
    max_line_bytes: int = 8190
    max_head_lines: int = 100
    max_connections: int = 2048
    head_timeout_s: float = 10.0
    body_timeout_s: float = 20.0
    min_body_bytes_s: float = 16 * 1024
    write_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    stop_timeout_s: float = 5.0


@dataclasses.dataclass(slots=True)
class ConnectionTable:
    """The connections of one server."""

    open: "set[HttpConnection]" = dataclasses.field(default_factory=set["HttpConnection"])
    refused: int = 0  # Connections that are still being told that there are too many.
    told_s: float = -math.inf  # When the log was last told of that.


class _Phase(enum.Enum):
    """What the client owes us."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class SlashTolerantParser(HttpRequestParserPy):
    """aiohttp's request parser in Python, mending targets that lack their first slash."""

    def parse_message(self, lines: list[bytes]) -> RawRequestMessage:
        """Called with the lines of a whole head."""
        method, space, rest = lines[0].partition(b" ")
        if rest[:1] != b"/" and method != b"CONNECT" and _BARE_TARGET.match(rest):
            lines[0] = b"".join((method, space, b"/", rest))
        return super().parse_message(lines)

    @property
    def phase(self) -> _Phase:
        """Where in a request the bytes received so far end."""
        if self._payload_parser is not None:
            return _Phase.BODY
        if self._max_msg_queue_size and self._msg_in_flight >= self._max_msg_queue_size:
            return _Phase.IDLE  # The rest waits for us, not for the client.
        unfinished = bool(self._lines or self._tail)  # pyright: ignore
        return _Phase.HEAD if unfinished else _Phase.IDLE


class HttpConnection(web.RequestHandler):
    """aiohttp's connection with the parser above and deadlines; made by ``HttpServer``."""

    __slots__ = (
        "_drained_s",
        "_limits",
        "_opened",
        "_phase_key",
        "_phase_s",
        "_received",
        "_table",
        "_unread_bytes",
    )

    def __init__(
        self,
        manager: web.Server,
        loop: asyncio.AbstractEventLoop,
        limits: HttpLimits,
        table: ConnectionTable,
    ) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=limits.idle_timeout_s,
            access_log=None,  # type: ignore[arg-type]
            max_line_size=limits.max_line_bytes,
            max_field_size=limits.max_line_bytes,
            max_headers=limits.max_head_lines,
            lingering_time=2.0,
        )
        self._parser = SlashTolerantParser(
            self,
            loop,
            self._read_bufsize,
            max_line_size=limits.max_line_bytes,
            max_field_size=limits.max_line_bytes,
            max_headers=limits.max_head_lines,
            payload_exception=web.RequestPayloadError,
            max_msg_queue_size=MAX_MSG_QUEUE_SIZE,
        )
        self._limits = limits
        self._table = table
        self._opened = False
        self._phase_key = (_Phase.HEAD, 0)
        self._phase_s = loop.time()
        self._received = 0
        self._unread_bytes = 0
        self._drained_s = self._phase_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop; beyond the bound of connections, only to be refused."""
        if len(self._table.open) >= self._limits.max_connections:
            self._refuse(cast(asyncio.Transport, transport))
            return
        self._opened = True
        self._table.open.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the loop."""
        self._table.open.discard(self)
        if self._opened:
            super().connection_lost(exc)
        else:
            self._table.refused -= 1

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if not self._opened:
            return
        super().data_received(data)
        parser = cast("SlashTolerantParser | None", self._parser)
        if parser is None:
            return
        phase = parser.phase
        if phase is _Phase.IDLE and not self._request_count:
            phase = _Phase.HEAD  # The first request is owed from the start.
        key = (phase, self._request_count)
        if key == self._phase_key:
            self._received += len(data)
        else:
            self._phase_key = key
            self._phase_s = self._loop.time()
            self._received = 0

    def forgive(self, seconds: float) -> None:
        """Give the client so much more time."""
        self._phase_s += seconds
        self._drained_s += seconds

    def check_progress(self, now_s: float) -> None:
        """Cut the connection when its client is overdue."""
        transport = self.transport
        if transport is None:
            return
        unread_bytes = transport.get_write_buffer_size()
        if unread_bytes == 0 or unread_bytes < self._unread_bytes:
            self._drained_s = now_s
        self._unread_bytes = unread_bytes
        if now_s - self._drained_s > self._limits.write_timeout_s:
            logger.info("client does not read", extra={"remote": self.peername})
            transport.abort()
            return
        phase, _ = self._phase_key
        waited_s = now_s - self._phase_s
        if phase is _Phase.HEAD and self._current_request is None and not self._messages:
            overdue = waited_s > self._limits.head_timeout_s
        elif phase is _Phase.BODY and self._reading_paused:
            self._phase_s = now_s  # It is us who do not read.
            overdue = False
        elif phase is _Phase.BODY:
            earned_s = self._received / self._limits.min_body_bytes_s
            overdue = waited_s > self._limits.body_timeout_s + earned_s
        else:
            overdue = False
        if overdue:
            logger.info(
                "client is too slow", extra={"remote": self.peername, "phase": phase.name.lower()}
            )
            request = self._current_request
            if request is None or request.writer.output_size == 0:
                transport.write(_plain_answer(HTTPStatus.REQUEST_TIMEOUT, "too slow"))
            self.force_close()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what could not be parsed (400), or to an error outside every handler."""
        if status >= 500 and not isinstance(exc, ConnectionError):
            logger.error("request failed", exc_info=exc, extra={"remote": self.peername})
            message = None
        else:
            logger.debug("bad request", extra={"remote": self.peername, "error": message})
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        if isinstance(exc, LineTooLong):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        reason = HTTPStatus(status).phrase
        first_line = (message or "").strip().partition("\n")[0]
        response = web.Response(
            status=status, text=f"{reason}: {first_line}\n" if first_line else f"{reason}\n"
        )
        response.force_close()
        return response

    def _refuse(self, transport: asyncio.Transport) -> None:
        """Say that there are too many connections; stay long enough to be heard."""
        self._table.refused += 1
        if self._table.refused > _MAX_REFUSED:
            transport.abort()
            return
        if self._loop.time() > self._table.told_s + _TELL_AGAIN_S:
            self._table.told_s = self._loop.time()
            logger.warning("too many connections", extra={"bound": self._limits.max_connections})
        transport.write(_plain_answer(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections"))
        if transport.can_write_eof():
            transport.write_eof()
        self._loop.call_later(_REFUSAL_LINGER_S, transport.abort)


def _plain_answer(status: HTTPStatus, text: str) -> bytes:
    body = f"{status.phrase}: {text}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        + ("Retry-After: 1\r\n" if status is HTTPStatus.SERVICE_UNAVAILABLE else "")
        + "Connection: close\r\n\r\n"
    )
    return head.encode() + body

"""HTTP to the front doors of one cluster: which to ask, how long, and when to ask again.

What an attempt can come to, and what follows:

=====================================  ====================================================
an answer                              it is returned
refused, a repeat would not help       the server's error is raised
refused for now (503, deposed leader)  ask again after the pause the server names
no connection                          ask the next address at once: nothing was sent. When
                                       none has answered: give up, or go round again until
                                       ``patience_s`` is over
connection lost, silence, 502, 504     perhaps done: ask again, at most ``MAX_LOST`` times
=====================================  ====================================================

Asking again is safe because a ``GET`` changes nothing and every ``POST`` carries an
``Idempotency-Key``, the same in each attempt: the server gives the same task again.
Every call ends within ``timeout_s`` (plus ``hold_s``, when the server was asked to hold its
answer).
"""

import asyncio
import re
import ssl
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal

import aiohttp
import msgspec
from yarl import URL

from snooze.client.errors import NoFrontDoor
from snooze.common.api import ErrorBody
from snooze.common.clock import SYSTEM_CLOCK, Clock
from snooze.common.errors import (
    ExecutionError,
    InvalidRequest,
    NotLeader,
    RemoteError,
    RemoteTimeout,
    SnoozeError,
    StaleEpoch,
    TooBusy,
)

Method = Literal["GET", "POST", "PUT"]
Params = Mapping[str, str | int | float]

CONNECT_TIMEOUT_S: Final = 3.0
MAX_LOST: Final = 3
MAX_PAUSE_S: Final = 5.0
FIRST_PAUSE_S: Final = 0.1
MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
"""The hierarchy of 100,000 VMs takes about a quarter of this."""

IDLE_STREAM_S: Final = 60.0
"""A stream of events that is silent for so long is opened again: its peer may have died."""

NOT_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding a hostile answer can raise."""

_READ_BYTES: Final = 64 * 1024
_KEY: Final = re.compile(r"[\x21-\x7e]{0,200}")
_NO_NAME: Final = "that can be no name of a machine"
_FOR_NOW: Final = (TooBusy, NotLeader, StaleEpoch)


def is_passing(error: SnoozeError) -> bool:
    """Whether the same call may succeed a little later."""
    return isinstance(error, (*_FOR_NOW, RemoteError))


@dataclass(frozen=True, slots=True)
class _Request:
    """One request, the same to whichever address it is sent."""

    method: Method
    path: str
    params: Params | None
    body: bytes | None
    headers: Mapping[str, str]

    def url(self, address: str) -> URL:
        """Where it goes at ``address``."""
        return _url(address, self.path, self.params)


@dataclass(frozen=True, slots=True)
class _Failed:
    """An attempt without an answer. ``sent``: the request may have been carried out."""

    error: SnoozeError
    sent: bool


class _Attempts:
    """What has been tried within one call, and what to do next."""

    def __init__(self, addresses: Sequence[str], clock: Clock, limit_s: float, patience_s: float):
        self._clock = clock
        self._started_s = clock.monotonic_s()
        self._limit_s = limit_s
        self._patience_s = patience_s
        self._addresses = len(addresses)
        self._unreachable: dict[str, str] = {}
        self._refused_in_a_row = 0
        self._lost = 0
        self._pause_s = FIRST_PAUSE_S

    def remaining_s(self) -> float:
        """What is left of the call's time."""
        return self._limit_s - (self._clock.monotonic_s() - self._started_s)

    def pause_after(self, failed: _Failed, address: str) -> float:
        """Seconds until the next attempt.

        Raises:
            SnoozeError: when there is to be none.
        """
        if isinstance(failed.error, _FOR_NOW):
            pause_s = min(MAX_PAUSE_S, failed.error.retry_after_s or self._next_pause_s())
        elif failed.sent:
            self._lost += 1
            if self._lost >= MAX_LOST:
                raise failed.error
            pause_s = self._next_pause_s()
        else:
            pause_s = self._pause_unreachable(failed, address)
        if pause_s >= self.remaining_s():
            raise failed.error
        return pause_s

    def _pause_unreachable(self, failed: _Failed, address: str) -> float:
        self._unreachable[address] = failed.error.message
        self._refused_in_a_row += 1
        if self._refused_in_a_row % self._addresses:
            return 0.0
        pause_s = self._next_pause_s()
        if self._clock.monotonic_s() - self._started_s + pause_s > self._patience_s:
            raise _no_front_door(self._unreachable) from failed.error
        return pause_s

    def _next_pause_s(self) -> float:
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, MAX_PAUSE_S)
        return pause_s


class Transport:
    """Calls and streams to one cluster, by any of its addresses.

    Bound to the event loop of its first call. Not for use from several threads.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        timeout_s: float = 30.0,
        clock: Clock = SYSTEM_CLOCK,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.addresses = tuple(addresses)
        self.timeout_s = timeout_s
        self.clock = clock
        self._tls = tls
        self.closings = 0
        """How often it was closed: whoever began before that is to end."""
        self._preferred = 0
        self._session: aiohttp.ClientSession | None = None
        self._streams: set[aiohttp.ClientResponse] = set()

    async def close(self) -> None:
        """Close all connections, and end calls and streams; a later call opens new ones."""
        self.closings += 1
        for response in self._streams:  # a session that is closed leaves who reads them waiting
            response.close()
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(
        self,
        method: Method,
        path: str,
        *,
        params: Params | None = None,
        body: bytes | None = None,
        idempotency_key: str = "",
        hold_s: float = 0.0,
        patience_s: float = 0.0,
    ) -> bytes:
        """The body of the answer to one request.

        Args:
            path: already percent-encoded.
            hold_s: how long the server was asked to hold its answer.
            patience_s: how long to go on when no address takes a connection.

        Raises:
            SnoozeError: what the server said, ``RemoteError`` when nobody could be asked, or
                ``RemoteTimeout`` when the answer did not come.
        """
        if not _KEY.fullmatch(idempotency_key):
            raise InvalidRequest("an idempotency key is at most 200 visible ASCII characters")
        headers = {"Accept": "application/json"}
        if method == "POST":
            headers["Idempotency-Key"] = idempotency_key or uuid.uuid4().hex
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = _Request(method, path, params, body, headers)
        attempts = _Attempts(
            self.addresses, self.clock, self.timeout_s + hold_s, max(patience_s, 0.0)
        )
        closings = self.closings
        while True:
            self.require_open(closings)
            address = self.addresses[self._preferred % len(self.addresses)]
            # One address that hangs must leave time for the others.
            limit_s = min(attempts.remaining_s(), hold_s + max(self.timeout_s / MAX_LOST, 0.001))
            outcome = await self._attempt(request, address, limit_s)
            if isinstance(outcome, bytes):
                return outcome
            pause_s = attempts.pause_after(outcome, address)
            self._preferred = (self._preferred + 1) % len(self.addresses)
            await asyncio.sleep(pause_s)

    def require_open(self, closings: int) -> None:
        """Go on.

        Raises:
            ExecutionError: it was closed since; what was asked may have happened.
        """
        if self.closings != closings:
            raise ExecutionError("this client was closed while it waited for an answer")

    @asynccontextmanager
    async def stream(
        self, path: str, *, params: Params | None = None
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """The lines of an open-ended answer; entering tries each address once.

        Raises:
            SnoozeError: as ``call``; while reading, ``RemoteError`` when the stream breaks or is
                silent for ``IDLE_STREAM_S``.
        """
        response = await self._open_stream(path, params)
        self._streams.add(response)
        try:
            yield _lines(response)
        finally:
            self._streams.discard(response)
            response.close()

    async def _open_stream(self, path: str, params: Params | None) -> aiohttp.ClientResponse:
        unreachable: dict[str, str] = {}
        closings = self.closings
        for _ in self.addresses:
            self.require_open(closings)
            address = self.addresses[self._preferred % len(self.addresses)]
            try:
                response = await self._open_session().request(
                    "GET",
                    _url(address, path, params),
                    headers={"Accept": "text/event-stream", "Cache-Control": "no-store"},
                    timeout=aiohttp.ClientTimeout(
                        total=None, connect=CONNECT_TIMEOUT_S, sock_read=IDLE_STREAM_S
                    ),
                    allow_redirects=False,
                )
            except (aiohttp.ClientError, TimeoutError, UnicodeError) as error:
                unreachable[address] = _NO_NAME if isinstance(error, UnicodeError) else _why(error)
                self._preferred = (self._preferred + 1) % len(self.addresses)
                continue
            if response.status == 200 and response.content_type == "text/event-stream":
                return response
            try:
                raise _refusal(address, response, await _read(response))
            finally:
                response.close()
        raise _no_front_door(unreachable)

    async def _attempt(self, request: _Request, address: str, limit_s: float) -> bytes | _Failed:
        """Send it to one address; raises the refusals that are final."""
        try:
            async with self._open_session().request(
                request.method,
                request.url(address),
                data=request.body,
                headers=request.headers,
                timeout=aiohttp.ClientTimeout(
                    total=limit_s, connect=CONNECT_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S
                ),
                allow_redirects=False,
            ) as response:
                content = await _read(response)
                if 200 <= response.status < 300:
                    return content
                refusal = _refusal(address, response, content)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return _Failed(RemoteError(_why(error)), sent=False)
        except UnicodeError:
            return _Failed(RemoteError(_NO_NAME), sent=False)
        except TimeoutError:
            message = f"{address} took the request and did not answer within {limit_s:.3g} s"
            return _Failed(RemoteTimeout(message), sent=True)
        except aiohttp.ClientError as error:
            message = f"{address} broke off before its answer was complete ({_why(error)})"
            return _Failed(RemoteError(message), sent=True)
        if isinstance(refusal, _FOR_NOW):
            return _Failed(refusal, sent=False)
        if response.status in (502, 504):
            return _Failed(refusal, sent=True)
        raise refusal

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=64, ssl=self._tls or True)
            self._session = aiohttp.ClientSession(connector=connector, read_bufsize=2**18)
        return self._session


def _url(address: str, path: str, params: Params | None) -> URL:
    url = URL(address + path, encoded=True)
    return url.with_query({key: str(value) for key, value in params.items()}) if params else url


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, refused when it is beyond every sensible size."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_chunked(_READ_BYTES):
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            response.close()
            raise RemoteError(f"{response.url} answered more than {MAX_ANSWER_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for line in response.content:
            yield line.rstrip(b"\r\n")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise RemoteError(f"the stream from {response.url.host} broke: {_why(error)}") from error


def _refusal(address: str, response: aiohttp.ClientResponse, content: bytes) -> SnoozeError:
    """The error that an answer without success stands for."""
    try:
        error = msgspec.json.decode(content, type=ErrorBody).error.as_error()
    except NOT_JSON:
        if response.status == 503:
            error = TooBusy(f"{address} cannot serve at the moment (503)")
        else:
            error = RemoteError(
                f"{address} answered {response.status} {response.reason or ''} without saying why;"
                " it may not be a front door of Snooze"
            )
    if error.retry_after_s is None:
        error.retry_after_s = _retry_after_s(response.headers.get("Retry-After", ""))
    return error


def _retry_after_s(header: str) -> float | None:
    return float(header) if header.isdecimal() and len(header) < 7 else None


def _no_front_door(reasons: Mapping[str, str]) -> NoFrontDoor:
    told = "; ".join(f"{address}: {reason}" for address, reason in reasons.items())
    return NoFrontDoor(f"no front door of the cluster can be reached ({told})")


def _why(error: BaseException) -> str:
    """A short reason in words; the libraries' texts repeat the address and their own types."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "its name is not known"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return f"TLS failed: {error}"
        case aiohttp.ClientConnectorError() if (
            isinstance(error.os_error, ConnectionRefusedError)
            or "refused" in str(error.os_error).lower()
        ):
            return "connection refused"
        case aiohttp.ClientConnectorError():
            return error.os_error.strerror or str(error.os_error)
        case TimeoutError():
            return "no answer in time"
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection"
        case _:
            return str(error) or type(error).__name__

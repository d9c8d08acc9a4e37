"""The HTTP server of every daemon: bounds on whatever a client may do, errors in one form.

What a handler may raise
    A ``SnoozeError`` becomes its HTTP status with an ``ErrorBody`` as JSON and, where it has one,
    a ``Retry-After``. So do aiohttp's own HTTP exceptions (404, 405, 413) on paths of our own API;
    on other paths they pass. Anything else is logged with its traceback and becomes a 500 that
    names only the request's id.

Each request has an id, its *cause*: the client's ``X-Request-Id`` where that is sane, else a new
one. It stands in the answer, in ``current_cause()`` and in the log.
"""

import asyncio
import contextvars
import logging
import math
import re
import secrets
import ssl
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import msgspec
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from snooze.common.api import API_PREFIX, ErrorBody
from snooze.common.errors import ErrorReport, InvalidRequest, NotFound, SnoozeError
from snooze.common.transport.http_connection import ConnectionTable, HttpConnection, HttpLimits

__all__ = ["CAUSE_HEADER", "HttpLimits", "HttpServer", "current_cause", "error_response"]

logger = logging.getLogger(__name__)

CAUSE_HEADER = "X-Request-Id"

_cause: contextvars.ContextVar[str] = contextvars.ContextVar("cause", default="")
_SANE_CAUSE = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)
_MAX_SWEEP_INTERVAL_S = 1.0

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def current_cause() -> str:
    """The id of the request on behalf of which this runs; empty outside of any."""
    return _cause.get()


def _refusal(request: web.Request, error: web.HTTPException) -> web.Response:
    """What aiohttp refuses, in the form of our own API."""
    kind = NotFound if error.status == HTTPStatus.NOT_FOUND else InvalidRequest
    response = error_response(kind(f"{request.method} {request.path[:200]}: {error.reason}"))
    response.set_status(error.status)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def error_response(error: BaseException) -> web.Response:
    """An error in the form of our own API: status, code and sentence."""
    report = ErrorReport.of(error)
    if isinstance(error, SnoozeError):
        status = error.http_status
    else:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        report = ErrorReport("internal", "internal error; the log has it under the request's id")
    response = web.Response(
        status=status, body=msgspec.json.encode(ErrorBody(report)), content_type="application/json"
    )
    if report.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(report.retry_after_s)))
    return response


class HttpServer:
    """Serves an aiohttp application at one address.

    The application's own ``client_max_size`` is replaced by ``limits.max_body_bytes``. A longer
    body is answered 413, at once when the client announces its length, else when it is exceeded
    (also by decompression). A running handler is not cancelled when its client goes away.
    """

    def __init__(
        self,
        app: web.Application,
        host: str,
        port: int,
        *,
        limits: HttpLimits | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._limits = limits or HttpLimits()
        self._ssl_context = ssl_context
        self._table = ConnectionTable()
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        app.middlewares.insert(0, self._guard)

    @property
    def port(self) -> int:
        """The port it listens on; the one chosen by the kernel when 0 was asked."""
        if self._server is None:
            return self._port
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._table.open)

    async def start(self) -> None:
        """Start the application and begin to listen.

        Raises:
            OSError: the address cannot be bound; the application is stopped again.
        """
        loop = asyncio.get_running_loop()
        runner = web.AppRunner(
            self._app, access_log=None, shutdown_timeout=self._limits.stop_timeout_s / 2
        )
        await runner.setup()
        self._runner = runner
        manager = runner.server
        assert manager is not None
        manager.request_factory = self._make_request

        def make_connection() -> HttpConnection:
            return HttpConnection(manager, loop, self._limits, self._table)

        try:
            self._server = await loop.create_server(
                make_connection,
                self._host,
                self._port,
                ssl=self._ssl_context,
                ssl_handshake_timeout=self._limits.head_timeout_s if self._ssl_context else None,
                backlog=1024,
            )
        except BaseException:
            self._runner = None
            await runner.cleanup()
            raise
        self._sweep()

    async def stop(self) -> None:
        """Stop listening, let running requests finish, then cut them; stop the application.

        Running requests get ``limits.stop_timeout_s`` in all; idempotent.
        """
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        server, self._server = self._server, None
        if server is not None:
            self._port = server.sockets[0].getsockname()[1]
            server.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        if server is not None:
            await server.wait_closed()

    def _sweep(self, due_s: float | None = None) -> None:
        """Look at every connection, and again a moment later."""
        loop = asyncio.get_running_loop()
        limits = self._limits
        shortest_s = min(limits.head_timeout_s, limits.body_timeout_s, limits.write_timeout_s)
        interval_s = min(_MAX_SWEEP_INTERVAL_S, shortest_s / 4)
        now_s = loop.time()
        # When this process stood still meanwhile, that was not the clients' slowness.
        late_s = 0.0 if due_s is None else now_s - due_s
        for connection in list(self._table.open):
            if late_s > interval_s:
                connection.forgive(late_s)
            connection.check_progress(now_s)
        self._sweeper = loop.call_later(interval_s, self._sweep, now_s + interval_s)

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        return web.Request(
            message,
            payload,
            protocol,
            writer,
            task,
            asyncio.get_running_loop(),
            client_max_size=self._limits.max_body_bytes,
        )

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Around every handler: the id, the bound on the body, errors, the access log."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        given = request.headers.get(CAUSE_HEADER, "")
        cause = given if _SANE_CAUSE.fullmatch(given) else secrets.token_hex(8)
        _cause.set(cause)
        status = 0
        try:
            length = request.content_length
            if length is not None and length > self._limits.max_body_bytes:
                raise web.HTTPRequestEntityTooLarge(self._limits.max_body_bytes, length)
            response = await handler(request)
            status = response.status
        except web.HTTPException as error:
            status = error.status
            if status < HTTPStatus.BAD_REQUEST or not request.path.startswith(f"{API_PREFIX}/"):
                error.headers.setdefault(CAUSE_HEADER, cause)
                raise
            response = _refusal(request, error)
        except SnoozeError as error:
            response = error_response(error)
            status = response.status
        except web.RequestPayloadError as error:
            raise web.HTTPBadRequest(text=f"Bad Request: {error}\n") from None
        except ConnectionError:
            raise  # The client went away.
        except Exception as error:
            logger.exception("handler failed", extra={"path": request.path, "cause": cause})
            response = error_response(error)
            status = response.status
        finally:
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug(
                    "request",
                    extra={
                        "method": request.method,
                        "target": request.rel_url.raw_path_qs,
                        "status": status,
                        "duration_ms": round((loop.time() - started_s) * 1000, 3),
                        "cause": cause,
                        "remote": request.remote,
                    },
                )
        if not response.prepared:
            response.headers.setdefault(CAUSE_HEADER, cause)
        return response

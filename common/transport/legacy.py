"""Snooze's HTTP calls as the original routes them: a table of methods per resource.

Rules (source: reference of Snooze 2.1.x, sections 1.0 and 7.4)
    1. A request names its method by a bare key of the query, as in
       ``GET /bootstrap?getCompleteHierarchy``. Other parameters are ignored. No such method, or
       not with this verb: 405.
    2. A body is a message as JSON, an id as bare text, or a bare integer. A message that cannot be
       read, or one that is expressly labelled as something else than JSON, is a 415; without a
       label it is read.
    3. A result is a message as JSON, ``true`` or ``false``, or bare text without quotes (which the
       original labels as JSON all the same, unless the client only takes text). No result: 204 for
       GET, an empty 200 for POST.
    4. That, or ``false``, is also how a refused or failed command is answered: the original has no
       error messages. Ours stand in a header, ``X-Snooze-Error``. Only ``TooBusy`` and
       ``NotLeader`` are a 503 with ``Retry-After``, and a bug is a 500.
    5. Where a client that sends no ``Accept`` chokes on what is labelled as JSON
       (``unlabelled``: getVirtualMachineMetaData, for the libcloud driver), it gets plain text.
"""

import asyncio
import dataclasses
import enum
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import unquote_plus

import msgspec
from aiohttp import web

from snooze.common.errors import InvalidRequest, NotLeader, SnoozeError, TooBusy
from snooze.common.snooze_api import decode, decode_int, decode_text, encode
from snooze.common.transport.http_server import current_cause

logger = logging.getLogger(__name__)

ERROR_HEADER = "X-Snooze-Error"

_MAX_ERROR_CHARS = 400
_DECODED_AT_ONCE_BYTES = 128 * 1024
"""A longer body is read in a thread of its own, while other calls go on: seconds, at worst."""
_JSON = "application/json"
_TEXT = "text/plain"

LegacyResult = msgspec.Struct | Sequence[msgspec.Struct] | str | bool | None
M = TypeVar("M", bound=msgspec.Struct)


class BodyKind(enum.Enum):
    """What a method takes, when it is no message."""

    NOTHING = enum.auto()
    TEXT = enum.auto()
    INTEGER = enum.auto()


class ResultKind(enum.Enum):
    """What a method gives; decides how a failure is told."""

    MESSAGE = enum.auto()
    TEXT = enum.auto()
    BOOLEAN = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class LegacyMethod:
    """One method of a resource. Made by the functions below, which check its types."""

    name: str
    verb: str
    body: BodyKind | type[msgspec.Struct]
    result: ResultKind
    call: Callable[..., Awaitable[LegacyResult]]
    unlabelled: bool = False


def get(name: str, result: ResultKind, call: Callable[[], Awaitable[LegacyResult]]) -> LegacyMethod:
    """``GET ?name``."""
    return LegacyMethod(name, "GET", BodyKind.NOTHING, result, call)


def post(
    name: str, result: ResultKind, call: Callable[[], Awaitable[LegacyResult]]
) -> LegacyMethod:
    """``POST ?name``, whatever the body is."""
    return LegacyMethod(name, "POST", BodyKind.NOTHING, result, call)


def post_text(
    name: str, result: ResultKind, call: Callable[[str], Awaitable[LegacyResult]]
) -> LegacyMethod:
    """``POST ?name`` with an id."""
    return LegacyMethod(name, "POST", BodyKind.TEXT, result, call)


def post_int(
    name: str, result: ResultKind, call: Callable[[int], Awaitable[LegacyResult]]
) -> LegacyMethod:
    """``POST ?name`` with an integer."""
    return LegacyMethod(name, "POST", BodyKind.INTEGER, result, call)


def post_message(
    name: str,
    kind: type[M],
    result: ResultKind,
    call: Callable[[M], Awaitable[LegacyResult]],
    *,
    unlabelled: bool = False,
) -> LegacyMethod:
    """``POST ?name`` with a message of type ``kind``."""
    return LegacyMethod(name, "POST", kind, result, call, unlabelled)


class LegacyResource:
    """A resource of the original: ``/bootstrap``, ``/groupmanager`` or ``/localcontroller``."""

    def __init__(self, path: str, methods: Iterable[LegacyMethod]) -> None:
        self.path = path
        self._methods: dict[tuple[str, str], LegacyMethod] = {}
        for method in methods:
            key = (method.verb, method.name)
            if key in self._methods:
                raise ValueError(f"{path} has {method.verb} {method.name} twice")
            self._methods[key] = method

    def add_to(self, app: web.Application) -> None:
        """Serve the resource under its path."""
        app.router.add_route("*", self.path, self.handle)

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one call; the handler to be registered."""
        method = self._select(request)
        if method is None:
            verbs = sorted({verb for verb, _ in self._methods})
            text = f"Method Not Allowed: {self._why_not(request)}\n"
            raise web.HTTPMethodNotAllowed(request.method, verbs, text=text)
        try:
            arguments = await _read_body(method, request)
        except InvalidRequest as error:
            raise web.HTTPUnsupportedMediaType(
                text=f"Unsupported Media Type: {_one_line(error.message)}\n"
            ) from None
        try:
            result = await method.call(*arguments)
        except (TooBusy, NotLeader) as error:
            return _come_back_later(error)
        except SnoozeError as error:
            logger.info(
                "legacy call failed",
                extra={"method": method.name, "cause": current_cause(), "code": error.code},
                exc_info=error if error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR else None,
            )
            refusal = False if method.result is ResultKind.BOOLEAN else None
            response = _respond(method, refusal, request)
            response.headers[ERROR_HEADER] = _one_line(f"{error.code}: {error.message}")
            return response
        except ConnectionError:
            raise  # The client went away.
        except Exception:
            logger.exception(
                "legacy call broke", extra={"method": method.name, "cause": current_cause()}
            )
            return web.Response(
                status=HTTPStatus.INTERNAL_SERVER_ERROR,
                text=f"Internal Server Error: the log has it under {current_cause()}\n",
            )
        return _respond(method, result, request)

    def _select(self, request: web.Request) -> LegacyMethod | None:
        for name in _asked(request):
            method = self._methods.get((request.method, name))
            if method is not None:
                return method
        return None

    def _why_not(self, request: web.Request) -> str:
        for name in _asked(request):
            for verb, known in self._methods:
                if known == name:
                    return f"{self.path}?{name} is a {verb}"
        return f"{request.method} {self.path} has no such method"


def _asked(request: web.Request) -> Iterator[str]:
    """The names in the query, in order: one of them is the method's."""
    for parameter in request.rel_url.raw_query_string.split("&"):
        yield unquote_plus(parameter.partition("=")[0])


async def _read_body(method: LegacyMethod, request: web.Request) -> tuple[Any, ...]:
    """The arguments of the call.

    Raises:
        InvalidRequest: the body cannot be read as what the method takes.
    """
    kind = method.body
    if kind is BodyKind.NOTHING:
        return ()
    if not isinstance(kind, BodyKind):
        label = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if label not in ("", _JSON, "*/*"):
            raise InvalidRequest(f"expected {_JSON}, got {label}")
        message = await request.read()
        if len(message) > _DECODED_AT_ONCE_BYTES:
            return (await asyncio.to_thread(decode, kind, message),)
        return (decode(kind, message),)
    body = await request.read()
    return (decode_text(body) if kind is BodyKind.TEXT else decode_int(body),)


def _respond(method: LegacyMethod, result: LegacyResult, request: web.Request) -> web.Response:
    accept = request.headers.get("Accept")
    match result:
        case None:
            if method.verb == "GET":
                return web.Response(status=HTTPStatus.NO_CONTENT)
            return web.Response(body=b"", content_type=_JSON)
        case bool():
            return web.Response(
                body=b"true" if result else b"false", content_type=_bare_label(accept)
            )
        case str():
            return web.Response(text=result, content_type=_bare_label(accept))
        case _:
            label = _TEXT if method.unlabelled and accept is None else _JSON
            return web.Response(body=encode(result), content_type=label)


def _bare_label(accept: str | None) -> str:
    """The label of a result that is no JSON object."""
    if accept is None:
        return _JSON
    ranges = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    if ranges & {_JSON, "application/*", "*/*"} or not ranges & {_TEXT, "text/*"}:
        return _JSON
    return _TEXT


def _come_back_later(error: SnoozeError) -> web.Response:
    retry_after_s = 1.0 if error.retry_after_s is None else error.retry_after_s
    return web.Response(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        text=f"Service Unavailable: {_one_line(error.message)}\n",
        headers={
            "Retry-After": str(max(1, math.ceil(retry_after_s))),
            ERROR_HEADER: _one_line(f"{error.code}: {error.message}"),
        },
    )


def _one_line(text: str) -> str:
    """``text`` as it may stand in a header or a line: printable ASCII, bounded."""
    shown = "".join(char if " " <= char <= "~" else "?" for char in text[:_MAX_ERROR_CHARS])
    return shown.strip()

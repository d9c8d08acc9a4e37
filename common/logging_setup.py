"""Structured logs: one line per event, for people (text) or for programs (JSON), on stderr.

Each line carries time, level, logger, the node and role that speak, the id of the cause, the
message and whatever the caller gave as ``extra``. Node, role and cause travel with the task
(``contextvars``), so several daemons in one process keep their lines apart, and a task started
while handling an order logs under that order.
"""

import logging
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final, TextIO

import msgspec

from snooze.common.redaction import HIDDEN, redact_options
from snooze.common.settings import LogSettings

MAX_FIELD_CHARACTERS: Final = 8192
"""A longer message or value is cut: a log is no place for a document."""

QUIET: Final[dict[str, int]] = {
    # Every connection attempt is a line, and its errors reach us as exceptions or states.
    "kazoo": logging.WARNING,
    # One line per request belongs into metrics.
    "aiohttp.access": logging.WARNING,
    "asyncio": logging.WARNING,
}
"""Loggers of libraries and the level they get; with level = "debug" they get DEBUG like all."""

_cause: ContextVar[str] = ContextVar("snooze_cause", default="")
_node: ContextVar[str] = ContextVar("snooze_node", default="")
_role: ContextVar[str] = ContextVar("snooze_role", default="")

_SECRET_NAME = re.compile(r"password|passwd|passphrase|secret|token|authorization", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[^\s\"=]+")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def cause_id() -> str:
    """The id of what this task is doing its work for, or empty."""
    return _cause.get()


@contextmanager
def caused_by(cause: str) -> Generator[None]:
    """Log lines in this block, and in tasks started in it, carry ``cause``."""
    token = _cause.set(cause)
    try:
        yield
    finally:
        _cause.reset(token)


@contextmanager
def speaking_as(node_id: str, role: str) -> Generator[None]:
    """Log lines in this block, and in tasks started in it, are this node's."""
    tokens = _node.set(node_id), _role.set(role)
    try:
        yield
    finally:
        _node.reset(tokens[0])
        _role.reset(tokens[1])


def configure_logging(
    settings: LogSettings, node_id: str, role: str, *, stream: TextIO | None = None
) -> None:
    """Send all logs of this process to ``stream`` (stderr) in the configured form.

    May be called again: the last call counts, no line comes twice. Handlers that others installed
    stay.

    Args:
        settings: level and format.
        node_id, role: the speaker of lines outside of ``speaking_as``.
        stream: for tests and for the all-in-one cluster.
    """
    formatter = (
        JsonFormatter(node_id, role) if settings.format == "json" else TextFormatter(node_id, role)
    )
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for earlier in [item for item in root.handlers if isinstance(item, _Handler)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    root.setLevel(level)
    for name, quiet in QUIET.items():
        logging.getLogger(name).setLevel(level if level == logging.DEBUG else max(level, quiet))
    logging.captureWarnings(True)


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, to be told from those of others."""


class _Formatter(logging.Formatter):
    """What both forms have in common."""

    def __init__(self, node_id: str, role: str) -> None:
        super().__init__()
        self._node_id = node_id
        self._role = role

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        """The line as a table, secrets redacted, in the order in which it is written."""
        moment = datetime.fromtimestamp(record.created, UTC)
        fields: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "node": _node.get() or self._node_id,
            "role": _role.get() or self._role,
        }
        if cause := _cause.get():
            fields["cause"] = cause
        fields["message"] = _cut(record.getMessage())
        for name, value in vars(record).items():
            if name not in _STANDARD and not name.startswith("_"):
                fields.setdefault(name, _safe(name, value))
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        return fields


class JsonFormatter(_Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        return msgspec.json.encode(self.fields(record), enc_hook=str).decode()


class TextFormatter(_Formatter):
    """``time level role node logger: message key=value ...``, a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end; control characters are escaped, so one event is one line."""
        fields = self.fields(record)
        below = [str(fields.pop(name)) for name in ("exception", "stack") if name in fields]
        head = (
            f"{fields.pop('time')} {str(fields.pop('level')).upper():7} {fields.pop('role')} "
            f"{fields.pop('node')} {fields.pop('logger')}: {fields.pop('message')}"
        )
        pairs = "".join(f" {name}={_quoted(value)}" for name, value in fields.items())
        return "\n".join([_CONTROL.sub(_escaped, head + pairs), *below])


def _safe(name: str, value: object) -> object:
    """A value that may be printed."""
    if _SECRET_NAME.search(name):
        return HIDDEN
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return _cut(redact_options(value) if name == "options" else value)
    return _cut(str(value))


def _cut(text: str) -> str:
    """A text that is not too long, and that every encoder takes (file names may be no Unicode)."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= MAX_FIELD_CHARACTERS:
        return text
    return f"{text[:MAX_FIELD_CHARACTERS]}... ({len(text)} characters)"


def _quoted(value: object) -> str:
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escaped(character: re.Match[str]) -> str:
    return repr(character[0])[1:-1]

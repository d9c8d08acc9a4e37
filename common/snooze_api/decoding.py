"""Reads Snooze's JSON as liberally as the original's clients need, and refuses all else alike.

Rules
    1. A document is JSON in UTF-8 (a byte order mark is skipped). Unknown members are ignored.
    2. A member that is missing or null has its default. A member's own name goes before its
       aliases (``messages.ALIASES``).
    3. A number may stand as text (``"5"``, ``" 5.0 "``, ``""`` for 0) and text as a number or a
       boolean; an integer may be written as a float without a fraction; a boolean as ``"true"``,
       ``"false"``, ``""`` or a number. Integers have 64 bits, floats are finite.
    4. An enumeration is read by its exact member. Arrays and maps have no null elements.
    5. Whatever else comes, however it is nested or however long: ``InvalidRequest``, whose message
       names the path. An array or a map has at most ``MAX_ELEMENTS``, a document ``MAX_OBJECTS``.

How the values themselves make sense is not decided here.

Source: Codehaus Jackson 1.9's default ObjectMapper, which the original uses; stricter where that
would lose information without a word (a fraction cut off an integer, an enumeration by position).
"""

import enum
import functools
import math
import re
import types
from collections.abc import Callable, Sized
from typing import Any, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from snooze.common.errors import InvalidRequest
from snooze.common.snooze_api.messages import ALIASES

T = TypeVar("T")
Reader = Callable[[object], Any]

MAX_TEXT_CHARS = 4096
"""Of a bare text body: it is an id."""

MAX_ELEMENTS = 100_000
"""Of an array or a map; as many VMs as settings may allow in one request. They take a second."""
MAX_OBJECTS = 300_000
"""Braces and brackets in a document; the parser needs a second for millions, and stops for nobody.
"""

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}(\.0{1,19})?", re.ASCII)
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", re.ASCII)
_MAX_NUMBER_CHARS = 400
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WHITESPACE = " \t\r\n"
_MAX_SHOWN_CHARS = 40


class _Refused(Exception):
    """Why a value is refused; collects the path on its way up."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self.path: list[str] = []


def decode(kind: type[T], body: bytes) -> T:
    """The message of type ``kind`` in a request's body.

    ``kind`` is one of the messages, or ``list[...]`` or ``dict[str, ...]`` of such.

    Raises:
        InvalidRequest: for whatever else the body is.
    """
    wanted: Any = kind
    read = _reader(wanted)
    if body.count(b"{") + body.count(b"[") > MAX_OBJECTS:
        raise InvalidRequest(f"more than {MAX_OBJECTS} objects and arrays")
    try:
        document: object = msgspec.json.decode(body.removeprefix(_BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        # msgspec.DecodeError and UnicodeDecodeError are ValueErrors.
        raise InvalidRequest(f"not JSON: {error}") from None
    try:
        message: T = read(document)
    except _Refused as refused:
        path = "".join(reversed(refused.path)).removeprefix(".")
        raise InvalidRequest(f"{path}: {refused.why}" if path else refused.why) from None
    return message


def decode_text(body: bytes) -> str:
    """The id in a request's body: bare, or as a JSON string; without white space around it.

    Raises:
        InvalidRequest: empty, longer than ``MAX_TEXT_CHARS``, or not text in UTF-8.
    """
    # Four bytes a character at most, six for an escaped one.
    if len(body) > 8 * MAX_TEXT_CHARS:
        raise InvalidRequest(f"an id of {len(body)} bytes")
    try:
        text = body.removeprefix(_BYTE_ORDER_MARK).decode().strip()
        if len(text) >= 2 and text[0] == text[-1] == '"':
            text = msgspec.json.decode(text, type=str).strip()
    except ValueError as error:
        raise InvalidRequest(f"not a text: {error}") from None
    if not text:
        raise InvalidRequest("empty, where an id is expected")
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidRequest(f"an id of {len(text)} characters")
    return text


def decode_int(body: bytes) -> int:
    """The integer in a request's body: bare, or as a JSON string.

    Raises:
        InvalidRequest: not an integer of 64 bits.
    """
    try:
        return _read_int(decode_text(body))
    except _Refused as refused:
        raise InvalidRequest(refused.why) from None


# Scalars


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."


def _read_int(value: object) -> int:
    match value:
        case str():
            text = value.strip(_WHITESPACE)
            if not text:
                return 0
            if not _INTEGER.fullmatch(text):
                raise _Refused(f"expected an integer, got {_shown(value)}")
            number = int(text.partition(".")[0])
        case int() if not isinstance(value, bool):
            number = value
        case float() if value.is_integer():
            number = int(value)
        case _:
            raise _Refused(f"expected an integer, got {_named(value)}")
    if not _INT_MIN <= number <= _INT_MAX:
        raise _Refused("an integer of more than 64 bits")
    return number


def _read_float(value: object) -> float:
    match value:
        case float():
            number = value
        case int() if not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                raise _Refused("a number out of range") from None
        case str():
            text = value.strip(_WHITESPACE)
            if not text:
                return 0.0
            if len(text) > _MAX_NUMBER_CHARS or not _FLOAT.fullmatch(text):
                raise _Refused(f"expected a number, got {_shown(value)}")
            number = float(text)
        case _:
            raise _Refused(f"expected a number, got {_named(value)}")
    if not math.isfinite(number):
        raise _Refused("a number out of range")
    return number


def _read_bool(value: object) -> bool:
    match value:
        case bool():
            return value
        case int() | float():
            return value != 0
        case str() if (text := value.strip(_WHITESPACE).lower()) in ("true", "false", ""):
            return text == "true"
        case _:
            raise _Refused(f"expected true or false, got {_named(value)}")


def _read_str(value: object) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float():
            return str(value)
        case int() if _INT_MIN <= value <= _INT_MAX:
            return str(value)
        case _:
            raise _Refused(f"expected text, got {_named(value)}")


def _named(value: object) -> str:
    match value:
        case dict():
            return "an object"
        case list():
            return "an array"
        case _:
            return _shown(value)


def _is_array(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


# Compositions: made once per type, then only called


@functools.cache
def _reader(kind: Any) -> Reader:
    """What reads a value that is to become ``kind``."""
    scalars: dict[object, Reader] = {
        int: _read_int,
        float: _read_float,
        bool: _read_bool,
        str: _read_str,
    }
    if kind in scalars:
        return scalars[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (member,) = (argument for argument in arguments if argument is not type(None))
        return _reader(member)  # Null never reaches a reader: rule 2.
    if origin is list:
        return functools.partial(_read_list, _reader(arguments[0]))
    if origin is dict:
        return functools.partial(_read_dict, arguments[0] is int, _reader(arguments[1]))
    if issubclass(kind, enum.Enum):
        return functools.partial(_read_enum, {member.value: member for member in kind})
    return _struct_reader(kind)


def _check_length(value: Sized) -> None:
    if len(value) > MAX_ELEMENTS:
        raise _Refused(f"{len(value)} elements; the most is {MAX_ELEMENTS}")


def _read_list(element: Reader, value: object) -> list[Any]:
    if not _is_array(value):
        raise _Refused(f"expected an array, got {_named(value)}")
    _check_length(value)
    result: list[Any] = []
    for position, item in enumerate(value):
        try:
            if item is None:
                raise _Refused("null in an array")
            result.append(element(item))
        except _Refused as refused:
            refused.path.append(f"[{position}]")
            raise
    return result


def _read_dict(integer_keys: bool, element: Reader, value: object) -> dict[Any, Any]:
    if not _is_object(value):
        raise _Refused(f"expected an object, got {_named(value)}")
    _check_length(value)
    result: dict[Any, Any] = {}
    for key, item in value.items():
        try:
            if item is None:
                raise _Refused("null in a map")
            result[_read_int(key) if integer_keys else key] = element(item)
        except _Refused as refused:
            refused.path.append(f"[{_shown(key)}]")
            raise
    return result


def _read_enum(members: dict[str, enum.Enum], value: object) -> enum.Enum:
    member = members.get(value) if isinstance(value, str) else None
    if member is None:
        raise _Refused(f"expected one of {', '.join(members)}, got {_named(value)}")
    return member


def _same(value: object) -> object:
    return value


def _struct_reader(kind: type[msgspec.Struct]) -> Reader:
    hints = get_type_hints(kind)
    aliases = ALIASES.get(kind, {})
    fields: list[tuple[str, tuple[tuple[str, Callable[[object], object]], ...], Reader]] = [
        (
            field.name,
            ((field.encode_name, _same), *aliases.get(field.name, {}).items()),
            _reader(hints[field.name]),
        )
        for field in msgspec.structs.fields(kind)
    ]

    def read(value: object) -> msgspec.Struct:
        if not _is_object(value):
            raise _Refused(f"expected an object, got {_named(value)}")
        members: dict[str, Any] = {}
        for attribute, names, reader in fields:
            for name, prepare in names:
                member = value.get(name)
                if member is not None:
                    try:
                        members[attribute] = reader(prepare(member))
                    except _Refused as refused:
                        refused.path.append(f".{name}")
                        raise
                    break
        return kind(**members)

    return read

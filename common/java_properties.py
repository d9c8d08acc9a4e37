"""Reads Java properties files, in which the original Snooze kept its settings.

Source: java.util.Properties.load, https://docs.oracle.com/javase/8/docs/api/java/util/Properties.html
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANKS = " \t\f"
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|u|.|\Z)", re.DOTALL)
_KEY = re.compile(r"(?:[^\\=: \t\f]|\\.)*", re.DOTALL)
_SEPARATOR = re.compile(r"[ \t\f]*[=:]?[ \t\f]*")


class Property(NamedTuple):
    """One entry."""

    key: str
    value: str
    line: int
    """Where it begins; the first line is 1."""


class PropertySyntaxError(ValueError):
    """An entry that Java would refuse too."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def parse_properties(text: str) -> tuple[list[Property], list[PropertySyntaxError]]:
    """All entries in order, keys that come twice included, and what is no entry."""
    entries: list[Property] = []
    mistakes: list[PropertySyntaxError] = []
    for number, line in _logical_lines(text):
        key = _KEY.match(line)
        assert key is not None
        value = line[key.end() :]
        separator = _SEPARATOR.match(value)
        assert separator is not None
        try:
            entries.append(
                Property(_unescape(key[0]), _unescape(value[separator.end() :]).strip(), number)
            )
        except ValueError as error:
            mistakes.append(PropertySyntaxError(number, str(error)))
    return entries, mistakes


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments and blank ones, continued ones joined, with their numbers."""
    pending: list[str] = []
    begin = 0
    for number, natural in enumerate(_LINE_END.split(text), start=1):
        line = natural.lstrip(_BLANKS)
        if not pending:
            if not line or line[0] in "#!":
                continue
            begin = number
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2:
            pending.append(line[:-1])
        else:
            yield begin, "".join([*pending, line])
            pending = []
    if pending:
        yield begin, "".join(pending)


def _unescape(text: str) -> str:
    def plain(escape: re.Match[str]) -> str:
        what = escape[1]
        if what == "u":
            raise ValueError("\\u is not followed by four hexadecimal digits")
        if len(what) == 5:
            return chr(int(what[1:], 16))
        return _ESCAPES.get(what, what)

    unescaped = _ESCAPE.sub(plain, text)
    return unescaped.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

"""Reads settings from TOML, the environment and programs, and collects every mistake on the way.

Knows nothing of any particular key: what is allowed comes from the ``Section`` handed in.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from msgspec import inspect

from snooze.common.errors import Problem
from snooze.common.redaction import HIDDEN
from snooze.common.settings_schema import FieldInfo, Section, expectation, fields_of, leaves
from snooze.common.toml_values import Tables, is_array, is_table, toml_value

MAX_FILE_BYTES = 1 << 20
MAX_SYNTAX_ERRORS = 20
MAX_PROBLEMS = 200
"""Nobody mends more at once; what comes after them is not looked at."""
ENVIRONMENT_PREFIX = "SNOOZE_"

SectionT = TypeVar("SectionT", bound=Section)

_UNREADABLE = "__unreadable_table_"
_HEADER = re.compile(r"\s*\[(?P<path>[^\[\]]+)\]\s*(#.*)?$")
_KEY = re.compile(r"""\s*(?P<path>[A-Za-z0-9_.\-"' ]+?)\s*=""")
_POSITION = re.compile(r"\s*\(at line (?P<line>\d+), column (?P<column>\d+)\)$")


@dataclass
class Document:
    """Values as read, where each came from, and what could not be read."""

    tables: Tables = field(default_factory=dict[str, object])
    origins: dict[str, str] = field(default_factory=dict[str, str])
    """Dotted key: where it was set, as people say it ("line 12")."""
    problems: list[Problem] = field(default_factory=list[Problem])


def read_toml(text: str) -> Document:
    """Parse ``text``; a line that is no TOML is noted and left out, the rest is still read."""
    document = Document()
    if len(text) > MAX_FILE_BYTES:
        document.problems.append(
            Problem("file", f"is longer than {MAX_FILE_BYTES} characters", "too_long")
        )
        return document
    # Not splitlines(): it knows more line ends than TOML.
    lines = text.replace("\r\n", "\n").split("\n")
    for _ in range(MAX_SYNTAX_ERRORS):
        try:
            tables = tomllib.loads("\n".join(lines))
        except tomllib.TOMLDecodeError as error:
            number = _note_syntax_error(document, str(error), lines)
            if number is None:
                return document
            header = lines[number - 1].lstrip().startswith("[")
            lines[number - 1] = f"[{_UNREADABLE}{number}]" if header else ""
        except (RecursionError, ValueError) as error:
            # Python's own bounds on nesting and on the digits of a number.
            document.problems.append(Problem("file", f"is no settings file: {error}", "syntax"))
            return document
        else:
            document.tables = {
                key: value for key, value in tables.items() if not key.startswith(_UNREADABLE)
            }
            document.origins = {
                key: f"line {number}" for key, number in reversed(list(_positions(lines)))
            }
            break
    return document


def _note_syntax_error(document: Document, message: str, lines: list[str]) -> int | None:
    """Add the problem; the line to leave out, or None if there is none."""
    position = _POSITION.search(message)
    number = int(position["line"]) if position else len(lines)
    sentence = _POSITION.sub(f" (column {position['column']})" if position else "", message)
    document.problems.append(Problem(f"line {number}", sentence, "syntax"))
    if not position or number > len(lines) or not lines[number - 1].strip():
        return None
    return number


def _positions(lines: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Dotted keys and the lines that set them, as far as a simple look can tell."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(lines, start=1):
        if header := _HEADER.match(line):
            table = _split_path(header["path"])
            yield ".".join(table), number
        elif key := _KEY.match(line):
            yield ".".join((*table, *_split_path(key["path"]))), number


def _split_path(path: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in path.split("."))


def merge(document: Document, values: Mapping[str, object], origin: str) -> None:
    """Lay ``values`` (tables in tables) over the document's own; ``origin`` says whose they are."""
    _merge_into(document.tables, values, document.origins, origin, "")


def _merge_into(
    tables: Tables,
    values: Mapping[str, object],
    origins: dict[str, str],
    origin: str,
    prefix: str,
) -> None:
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if is_table(value):
            below = tables.get(key)
            if not is_table(below):
                below = tables[key] = {}
            _merge_into(below, value, origins, origin, f"{dotted}.")
        else:
            tables[key] = value
            origins[dotted] = origin


def merge_environment(
    document: Document,
    root: type[Section],
    environment: Mapping[str, str],
    others: Iterable[type[Section]] = (),
) -> None:
    """Lay the variables ``SNOOZE_SECTION__KEY`` over the document.

    A text is taken as it is, a list is separated by commas or written as in TOML, all else is
    written as in TOML. A variable that names a key of one of ``others`` only is not ours.
    """
    known = _variables(root)
    elsewhere = {name for other in others for name in _variables(other)}
    for name, text in sorted(environment.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
            continue
        if name in known:
            path, info = known[name]
            merge(document, nested(path, from_text(text, info)), f"environment {name}")
        elif name not in elsewhere:
            document.problems.append(
                Problem(name, "names no setting" + suggestion(name, known), "unknown_key")
            )


def nested(path: Sequence[str], value: object) -> Tables:
    """Tables in tables, with ``value`` at ``path``."""
    values: Tables = {path[-1]: value}
    for part in reversed(path[:-1]):
        values = {part: values}
    return values


def _variables(root: type[Section]) -> dict[str, tuple[tuple[str, ...], FieldInfo]]:
    return {
        ENVIRONMENT_PREFIX + "__".join(path).upper(): (path, info)
        for path, info in leaves(root)
        if len(path) > 1
    }


def from_text(text: str, info: FieldInfo) -> object:
    """What a bare text stands for: as it is, a list by its commas, all else as TOML writes it."""
    if isinstance(info.kind, inspect.VarTupleType) and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(info.kind, inspect.StrType | inspect.LiteralType):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def build(document: Document, root: type[SectionT]) -> tuple[SectionT | None, list[Problem]]:
    """The settings in ``document``, or None and everything that is wrong with them."""
    builder = _Builder(root, document.origins, list(document.problems))
    built = builder.section(document.tables, root, "")
    return (None, builder.problems) if builder.problems else (built, [])


@dataclass
class _Builder:
    """Fills sections; whatever is wrong is added to ``problems`` and its default taken."""

    root: type[Section]
    origins: Mapping[str, str]
    problems: list[Problem]

    def section(self, tables: Tables, section: type[SectionT], prefix: str) -> SectionT:
        """The section whose keys begin with ``prefix``."""
        fields = {info.key: info for info in fields_of(section)}
        values: dict[str, object] = {}
        bad: set[str] = set()
        for key, value in tables.items():
            if len(self.problems) >= MAX_PROBLEMS:
                break
            info = fields.get(key)
            if info is None:
                message = _unknown_key(key, value, fields, self.root)
                self._complain(prefix, key, message, "unknown_key")
            elif info.section is None:
                converted, mistakes = _convert(value, info)
                for suffix, message in mistakes:
                    self._complain(prefix, key + suffix, message, "invalid")
                    bad.add(key)
                if not mistakes:
                    values[key] = converted
            elif is_table(value):
                values[key] = self.section(value, info.section, f"{prefix}{key}.")
            else:
                self._complain(prefix, key, "must be a table", "invalid")
        built = section(**values)
        for complaint in built.complaints():
            if bad.isdisjoint((_plain(complaint.key), *complaint.because_of)):
                self._complain(prefix, complaint.key, complaint.message, "contradiction")
        return built

    def _complain(self, prefix: str, key: str, message: str, code: str) -> None:
        where = f"{prefix}{key}"
        origin = self.origins.get(where) or self.origins.get(_plain(where))
        place = f" ({origin})" if origin else ""
        self.problems.append(Problem(where, message + place, code))


def _plain(key: str) -> str:
    """The key without the index of an element."""
    return key.partition("[")[0]


def _convert(value: object, info: FieldInfo) -> tuple[object, list[tuple[str, str]]]:
    """The value in its own type, or what is wrong, each with a suffix to the key."""
    try:
        converted: object = msgspec.convert(value, info.annotation)
    except msgspec.ValidationError:
        return None, list(_mistakes(value, info))
    if isinstance(converted, float) and not math.isfinite(converted):
        return None, [("", f"must be {expectation(info)}, not {converted}")]
    return converted, []


def _mistakes(value: object, info: FieldInfo) -> Iterator[tuple[str, str]]:
    """What is wrong with a value that did not convert: its elements if these are to blame."""
    elements: list[tuple[str, object]] = []
    if isinstance(info.kind, inspect.VarTupleType) and is_array(value):
        elements = [(f"[{index}]", element) for index, element in enumerate(value)]
    elif isinstance(info.kind, inspect.DictType) and is_table(value):
        elements = [(f".{key}", element) for key, element in value.items()]
    blamed = list(_bad_elements(elements, info))
    if blamed:
        yield from blamed
        return
    hint = suggestion(value, info.choices) if isinstance(value, str) else ""
    yield "", f"must be {expectation(info)}, not {_shown(value, info)}{hint}"


def _bad_elements(
    elements: Iterable[tuple[str, object]], info: FieldInfo
) -> Iterator[tuple[str, str]]:
    for suffix, element in elements:
        if not isinstance(element, str):
            yield suffix, f"must be text, not {_shown(element, info)}"
        elif info.choices and element not in info.choices:
            hint = suggestion(element, info.choices) or f"; there are {', '.join(info.choices)}"
            yield suffix, f"there is no {_shown(element, info)}{hint}"


def _shown(value: object, info: FieldInfo) -> str:
    """A value as written in an error: short, and never a secret."""
    if info.doc.secret:
        return HIDDEN
    if is_table(value):
        return "a table"
    if is_array(value):
        return f"a list of {len(value)}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge number"
    text = toml_value(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _unknown_key(key: str, value: object, siblings: Iterable[str], root: type[Section]) -> str:
    """The complaint about a key that does not exist, with the one that may be meant."""
    namesakes = [".".join(path) for path, info in leaves(root) if info.key == key]
    if namesakes:
        hint = f"; did you mean {' or '.join(namesakes[:3])}?"
    else:
        hint = suggestion(key, siblings)
    what = "table" if is_table(value) else "key"
    return f"no such {what}{hint}"


def suggestion(word: str, words: Iterable[str]) -> str:
    """``"; did you mean X?"`` with the nearest of ``words``, or nothing if none is near."""
    by_lower = {candidate.lower(): candidate for candidate in words}
    near = difflib.get_close_matches(word.lower()[:128], by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""

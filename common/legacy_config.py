"""Reads an original ``snooze_node.cfg``: what it says that has a meaning here, and what has not.

The original kept about 90 mandatory keys for all three daemons in one Java properties file. Each
key is *honoured* (it becomes one of our settings), *ignored* (with the reason), for *another
daemon*, or unknown, which is a mistake. Our own keys may be added to such a file under their dotted
names (``join.bootstrap_nodes = a:5000, b:5000``): the original found its peers by multicast and has
no key for that.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from snooze.common import config_reader
from snooze.common.config_reader import Document, suggestion
from snooze.common.errors import Problem
from snooze.common.java_properties import Property, parse_properties
from snooze.common.legacy_keys import ROLE_KEY, RULES, Rule, ignored_because
from snooze.common.redaction import HIDDEN
from snooze.common.settings import Role
from snooze.common.settings_schema import FieldInfo, Section, leaves
from snooze.common.toml_values import toml_value

NoteKind = Literal["honoured", "ignored", "other daemon", "missing"]

_TABLE = re.compile(r"^\s*\[", re.MULTILINE)
_TOML_ROLE = re.compile(r"^\s*role\s*=", re.MULTILINE)
_NEEDED = {
    "join.bootstrap_nodes": "the original found its leader by multicast; add a line "
    '"join.bootstrap_nodes = HOST:5000", or 127.0.0.1:5000 is asked'
}


class Note(msgspec.Struct, frozen=True):
    """What became of one key of the old file; ``line`` is 0 for a key that it lacks."""

    key: str
    line: int
    kind: NoteKind
    message: str


@dataclass
class LegacyFile:
    """An old file as read for one daemon: values of ours, and what became of each key."""

    document: Document = field(default_factory=Document)
    notes: list[Note] = field(default_factory=list[Note])


def is_legacy(text: str) -> bool:
    """Whether this is an old file rather than one of ours: by its keys, not by its name."""
    if _TABLE.search(text) or _TOML_ROLE.search(text):
        return False
    entries, _ = parse_properties(text[: config_reader.MAX_FILE_BYTES])
    return any(
        entry.key in _RULE_OF or entry.key == ROLE_KEY or ignored_because(entry.key)
        for entry in entries
        if not entry.value.startswith(('"', "'"))
    )


def legacy_role(text: str) -> str | None:
    """What ``node.role`` says."""
    entries, _ = parse_properties(text)
    return next((entry.value for entry in reversed(entries) if entry.key == ROLE_KEY), None)


def read_legacy(text: str, role: Role, roots: Mapping[Role, type[Section]]) -> LegacyFile:
    """Translate an old file for the daemon ``role``.

    Mistakes are in ``document.problems``; bounds are checked later, with the rest.
    """
    return _Translation(role, roots).run(text)


_RULE_OF = {key: rule for rule in RULES for key in rule.keys}


class _Translation:
    """One reading of one file."""

    def __init__(self, role: Role, roots: Mapping[Role, type[Section]]) -> None:
        self._role = role
        self._own = _keys(roots[role])
        self._readers: dict[str, list[str]] = {}
        for name, root in roots.items():
            for key in _keys(root):
                self._readers.setdefault(key, []).append(name)
        self._infos = {key: info for root in roots.values() for key, info in _keys(root).items()}
        self._entries: dict[str, Property] = {}
        self._file = LegacyFile()

    def run(self, text: str) -> LegacyFile:
        entries, mistakes = parse_properties(text)
        for mistake in mistakes:
            self._complain(f"line {mistake.line}", str(mistake), "syntax")
        for entry in entries:
            earlier = self._entries.get(entry.key)
            if earlier is not None:
                self._note(earlier, "ignored", f"is set again on line {entry.line}")
            self._entries[entry.key] = entry
        done: set[Rule] = set()
        for key, entry in self._entries.items():
            rule = _RULE_OF.get(key)
            if len(self._file.document.problems) >= config_reader.MAX_PROBLEMS:
                break
            if rule is None:
                self._without_rule(entry)
            elif rule not in done:
                done.add(rule)
                self._apply(rule)
        for key, message in _NEEDED.items():
            if key in self._own and key not in self._file.document.origins:
                self._file.notes.append(Note(key, 0, "missing", message))
        return self._file

    def _without_rule(self, entry: Property) -> None:
        if entry.key == ROLE_KEY:
            if entry.value != self._role:
                self._complain(
                    ROLE_KEY,
                    f'"{entry.value}", but this is read for a {self._role} (line {entry.line})',
                    "contradiction",
                )
            return
        if entry.key in self._infos:
            value = config_reader.from_text(entry.value, self._infos[entry.key])
            self._set(entry, {entry.key: value}, "")
        elif reason := ignored_because(entry.key):
            self._note(entry, "ignored", reason)
        else:
            known = [*_RULE_OF, *self._infos]
            message = f"no such key{suggestion(entry.key, known)} (line {entry.line})"
            self._complain(entry.key, message, "unknown_key")

    def _apply(self, rule: Rule) -> None:
        present = [self._entries[key] for key in rule.keys if key in self._entries]
        values = {key: entry.value for key, entry in self._entries.items()}
        try:
            converted = rule.convert(values)
        except ValueError as error:
            if not self._own.keys().isdisjoint(rule.targets):
                place = f"{error} (line {present[0].line})"
                self._complain(present[0].key, place, "invalid")
                return
            converted = dict.fromkeys(rule.targets)
        for entry in present:
            self._set(entry, converted, rule.remark)

    def _set(self, entry: Property, converted: Mapping[str, object], remark: str) -> None:
        """Note what the entry became, and lay its values into the document."""
        ours = {key: value for key, value in converted.items() if key in self._own}
        if not ours:
            readers = sorted({name for key in converted for name in self._readers.get(key, ())})
            self._note(entry, "other daemon", f"is read by {' and '.join(readers)}")
            return
        shown = ", ".join(
            f"{key} = {HIDDEN if self._infos[key].doc.secret else _written(value)}"
            for key, value in ours.items()
        )
        self._note(entry, "honoured", f"{shown}{f' ({remark})' if remark else ''}")
        for dotted, value in ours.items():
            values = config_reader.nested(dotted.split("."), value)
            origin = f"line {entry.line}, from {entry.key}"
            config_reader.merge(self._file.document, values, origin)

    def _note(self, entry: Property, kind: NoteKind, message: str) -> None:
        self._file.notes.append(Note(entry.key, entry.line, kind, message))

    def _complain(self, where: str, message: str, code: str) -> None:
        self._file.document.problems.append(Problem(where, message, code))


def _written(value: object) -> str:
    try:
        return toml_value(value)
    except TypeError:  # a date, which no setting takes: refused when the settings are built
        return str(value)


def _keys(root: type[Section]) -> dict[str, FieldInfo]:
    """Dotted keys of the sections below ``root``."""
    return {".".join(path): info for path, info in leaves(root) if len(path) > 1}

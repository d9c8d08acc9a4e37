"""Explains a settings file before anybody starts a daemon with it: ``snooze check-config FILE``."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from snooze.common import config_reader, legacy_config
from snooze.common.config import ROOTS, Role, Settings, read_text
from snooze.common.config_reader import Document
from snooze.common.errors import Problem, SettingsError
from snooze.common.legacy_config import Note, NoteKind
from snooze.common.legacy_keys import ROLE_KEY
from snooze.common.settings_schema import fields_of
from snooze.common.toml_values import is_table

FileFormat = Literal["toml", "snooze_node.cfg"]


class ConfigReport(msgspec.Struct, frozen=True):
    """All there is to say about a settings file.

    Attributes:
        role: the daemon it is for, as said or guessed; None if it could not be read.
        problems: every mistake, in the order of the file as far as known.
        notes: what became of each key of an original file.
        settings: what a daemon would run with; None if there are problems.
    """

    path: str
    format: FileFormat = "toml"
    role: Role | None = None
    problems: tuple[Problem, ...] = ()
    notes: tuple[Note, ...] = ()
    settings: Settings | None = None

    @property
    def ok(self) -> bool:
        """Whether a daemon would start with it."""
        return self.settings is not None

    def text(self) -> str:
        """The report for people, without secrets."""
        lines = [f"{self.path}: {self._verdict()}"]
        lines += [f"  {problem.where}: {problem.message}" for problem in self.problems]
        for kind, heading in _HEADINGS.items():
            notes = [note for note in self.notes if note.kind == kind]
            if notes:
                lines += ["", f"{heading} ({len(notes)}):"]
                lines += [f"  {note.key}: {note.message}" for note in notes]
        return "\n".join(lines) + "\n"

    def _verdict(self) -> str:
        what = f"settings of a {self.role}" if self.role else "settings"
        if self.format == "snooze_node.cfg":
            what = f"original Snooze {what}"
        if not self.problems:
            return f"{what}, no mistakes"
        count = len(self.problems)
        return f"{what}, {count} mistake{'s' if count > 1 else ''}"


_HEADINGS: dict[NoteKind, str] = {
    "missing": "Should be added",
    "honoured": "Honoured",
    "ignored": "Without a meaning here",
    "other daemon": "Of another daemon",
}


def check_config(
    path: str | Path,
    role: Role | None = None,
    *,
    environment: Mapping[str, str] | None = None,
) -> ConfigReport:
    """Everything that is right and wrong with a settings file; never raises for its content.

    Args:
        path: a file of ours or an original ``snooze_node.cfg``.
        role: the daemon it is meant for; found in the file unless given.
        environment: variables to lay over it; none unless given.
    """
    name = str(path)
    try:
        text = read_text(path)
    except SettingsError as error:
        message = error.message.removeprefix(f"{name}: ")
        return ConfigReport(name, problems=(Problem("file", message, "unreadable"),))
    if legacy_config.is_legacy(text):
        return _check_legacy(name, text, role, environment or {})
    document = config_reader.read_toml(text)
    report = ConfigReport(name, "toml", role or _guess_role(document))
    return _complete(report, document, environment or {})


def _check_legacy(
    name: str, text: str, role: Role | None, environment: Mapping[str, str]
) -> ConfigReport:
    found = legacy_config.legacy_role(text)
    known = role or _as_role(found)
    if known is None:
        message = f'"{found}" is none of' if found is not None else "is missing; it is one of"
        problem = Problem(ROLE_KEY, f"{message} {', '.join(ROOTS)}", "invalid")
        return ConfigReport(name, "snooze_node.cfg", problems=(problem,))
    legacy = legacy_config.read_legacy(text, known, ROOTS)
    report = ConfigReport(name, "snooze_node.cfg", known, notes=tuple(legacy.notes))
    return _complete(report, legacy.document, environment)


def _complete(
    report: ConfigReport, document: Document, environment: Mapping[str, str]
) -> ConfigReport:
    """The report with what building the settings of its role brings to light."""
    root = ROOTS[report.role or "bootstrap"]
    config_reader.merge_environment(document, root, environment, others=ROOTS.values())
    settings, problems = config_reader.build(document, root)
    return msgspec.structs.replace(report, settings=settings, problems=tuple(problems))


def _as_role(text: object) -> Role | None:
    return next((role for role in ROOTS if role == text), None)


def _guess_role(document: Document) -> Role:
    """What the file says; else what it nearly says; else the daemon that knows most of it."""
    said = document.tables.get("role")
    if role := _as_role(said):
        return role
    if isinstance(said, str) and (near := difflib.get_close_matches(said, ROOTS, n=1)):
        return _as_role(near[0]) or "bootstrap"

    def known_keys(role: Role) -> int:
        count = 0
        for info in fields_of(ROOTS[role]):
            table = document.tables.get(info.key)
            if info.section is not None and is_table(table):
                count += 1 + sum(below.key in table for below in fields_of(info.section))
        return count

    return max(ROOTS, key=known_keys)

"""Writes settings for people: the commented files in ``configs/`` and ``docs/settings.md``.

Both are made from the types, so neither can fall behind them::

    python -m snooze.common.config_text

writes them anew after a change.
"""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from snooze.common.config import ROOTS, Role
from snooze.common.settings_schema import Section, expectation, fields_of
from snooze.common.toml_values import toml_value

WIDTH = 96


def toml_text(settings: Section) -> str:
    """A complete, commented settings file with the values of ``settings``, secrets and all."""
    head = [
        f"# {_meaning(type(settings))}",
        "#",
        "# Each key stands here with its default; what you leave out has that default too.",
        "# A mistake stops the start, and all mistakes are told at once: snooze check-config FILE",
        "# The environment overrides this file: SNOOZE_NETWORK__CONTROL_PORT=5005",
    ]
    return "\n".join((*head, *_section_lines(settings, ()))) + "\n"


def _section_lines(section: Section, path: tuple[str, ...]) -> Iterator[str]:
    """Values first, then the tables below, as TOML demands."""
    if path:
        yield ""
        yield from _comment(_meaning(type(section)))
        yield f"[{'.'.join(path)}]"
    fields = fields_of(type(section))
    for info in fields:
        if info.section is None:
            yield ""
            yield from _comment(info.doc.text)
            if (allowed := expectation(info)) != "text":
                yield from _comment(f"May be {allowed}.")
            yield f"{info.key} = {toml_value(getattr(section, info.key))}"
    for info in fields:
        below: object = getattr(section, info.key)
        if isinstance(below, Section):
            yield from _section_lines(below, (*path, info.key))


def _comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}"


def _meaning(section: type[Section]) -> str:
    """What its docstring says, on one line."""
    return " ".join((section.__doc__ or "").split())


def markdown_text() -> str:
    """The page that lists every key: which daemons read it, its default, what it may be."""
    lines = [
        "# Settings",
        "",
        "Written by `python -m snooze.common.config_text` from the types in `common/settings*.py`;",
        "`configs/README.md` says how the files are used.",
        "",
        "A file is TOML, one table per section. Each key may be overridden by the environment, as",
        "`SNOOZE_SECTION__KEY` (`SNOOZE_PLACEMENT__OVERCOMMIT__CPU=2`): texts as they are, lists",
        "separated by commas, all else as in TOML.",
    ]
    for title, roles, section in _pages():
        lines += ["", f"## {title}", "", f"{_meaning(section)} Read by: {', '.join(roles)}.", ""]
        lines += ["| key | default | may be | meaning |", "| --- | --- | --- | --- |"]
        for info in fields_of(section):
            if info.section is None:
                cells = (
                    f"`{info.key}`",
                    f"`{toml_value(info.default)}`",
                    expectation(info),
                    info.doc.text,
                )
                lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _pages() -> list[tuple[str, list[Role], type[Section]]]:
    """Each section type once, under the path it has, with the roles that read it."""
    pages: dict[tuple[str, type[Section]], list[Role]] = {}

    def collect(role: Role, section: type[Section], path: tuple[str, ...]) -> None:
        for info in fields_of(section):
            if info.section is not None:
                below = (*path, info.key)
                pages.setdefault((".".join(below), info.section), []).append(role)
                collect(role, info.section, below)

    for role, root in ROOTS.items():
        collect(role, root, ())
    paths = [path for path, _ in pages]
    return [
        (f"`[{path}]`" + (f" of a {roles[0]}" if paths.count(path) > 1 else ""), roles, section)
        for (path, section), roles in sorted(pages.items(), key=lambda page: page[0][0])
    ]


def shipped_files() -> dict[Path, str]:
    """Every generated file of the repository and what it must contain."""
    repository = Path(__file__).parent.parent
    files = {
        repository / "configs" / f"{role}.toml": toml_text(root()) for role, root in ROOTS.items()
    }
    return files | {repository / "docs" / "settings.md": markdown_text()}


if __name__ == "__main__":
    for path, text in shipped_files().items():
        path.write_text(text)

"""The repository's Python modules, parsed once."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ROOMS = (
    "bootstrap",
    "client",
    "common",
    "configs",
    "groupmanager",
    "lab",
    "localcontroller",
    "scheduling",
    "simulation",
)
"""The folders that are installed, each a sub-package of ``snooze``."""
PREFIX = "snooze."


@dataclass(frozen=True, eq=False)
class Module:
    """One Python file; ``name`` is its path without the ending, with dots."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def room(self) -> str:
        """The folder at the top in which it lies."""
        return self.name.partition(".")[0]

    def imports(self) -> Iterator[str]:
        """What it imports, wherever in the file: full dotted names."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def ours(self) -> Iterator[str]:
        """The modules of ours that it imports, by ``name``."""
        for imported in self.imports():
            if imported.startswith(PREFIX):
                whole = imported.removeprefix(PREFIX)
                for name in (whole, whole.rpartition(".")[0]):
                    if name in by_name():
                        yield name
                        break


@cache
def by_name() -> dict[str, Module]:
    """Every module of the rooms, of the benchmarks and of the tests."""
    found: dict[str, Module] = {}
    for room in (*ROOMS, "benchmarks", "tests"):
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            relative = path.relative_to(REPOSITORY).with_suffix("")
            name = ".".join(relative.parts).removesuffix(".__init__")
            text = path.read_text()
            found[name] = Module(name, path, ast.parse(text), text.count("\n"))
    return found


def modules(*rooms: str) -> list[Module]:
    """The modules of these rooms."""
    return [module for module in by_name().values() if module.room in rooms]

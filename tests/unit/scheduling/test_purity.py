"""Scheduling stays pure, and its page names everything there is to choose from."""

import ast
from pathlib import Path

import pytest

import snooze.scheduling
from snooze.scheduling.filters import HARD
from snooze.scheduling.policies import BUILT_IN

FOLDER = Path(next(iter(snooze.scheduling.__path__)))
SHELLS = {"plugins.py", "guard.py", "__main__.py"}
"""They load files, start threads, read and print; nothing decides there."""

PURE = {
    "bisect", "collections", "collections.abc", "dataclasses", "enum", "functools", "heapq",
    "itertools", "json", "math", "msgspec", "numbers", "numpy", "numpy.typing", "types", "typing",
    "zlib",
}  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(FOLDER.glob("*.py")) if path.name not in SHELLS],
    ids=lambda path: path.name,
)
def test_modules_import_only_numbers(path: Path) -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    foreign = {
        name
        for name in imported - PURE
        if name.split(".")[:2] != ["snooze", "scheduling"] and name != "snooze.common.resources"
    }
    assert foreign <= ({"importlib"} if path.name == "packing_jit.py" else set())


def test_the_page_names_every_policy_unit_and_property() -> None:
    page = FOLDER.parent / "docs" / "scheduling.md"
    if not page.exists():
        pytest.skip("installed without the pages")
    text = page.read_text(encoding="utf-8")
    names = {each.name for each in HARD}
    tables = (BUILT_IN.policies, BUILT_IN.filters, BUILT_IN.weights, BUILT_IN.balancers)
    for table in tables:
        names |= set(table)
    for policy in BUILT_IN.policies.values():
        names |= set(policy.properties)
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []

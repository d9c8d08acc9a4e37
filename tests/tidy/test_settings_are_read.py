"""No setting is a placebo: every key is read by code."""

import ast
from pathlib import Path

from snooze.common.config import ROOTS
from snooze.common.settings_schema import leaves

REPOSITORY = Path(__file__).parents[2]
ROOMS = ("bootstrap", "client", "common", "groupmanager", "localcontroller")


def test_every_key_is_read_somewhere() -> None:
    read: set[str] = set()
    for room in ROOMS:
        for path in (REPOSITORY / room).rglob("*.py"):
            if not path.name.startswith(("settings", "config", "legacy_")):
                tree = ast.parse(path.read_text())
                read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    keys = {".".join(path) for root in ROOTS.values() for path, _ in leaves(root)}
    assert {key for key in keys if key.rpartition(".")[2] not in read} == set()

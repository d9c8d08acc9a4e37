"""Values of TOML: telling them apart, and writing them."""

import json
import re
from collections.abc import Sequence
from typing import TypeGuard

Tables = dict[str, object]
"""A TOML table, tables in it included."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def is_table(value: object) -> TypeGuard[Tables]:
    """True for a TOML table."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[Sequence[object]]:
    """True for a TOML array, and for the tuple it becomes."""
    return isinstance(value, list | tuple)


def toml_value(value: object) -> str:
    """A value as TOML writes it.

    Raises:
        TypeError: if it is none that settings have.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if is_table(value):
        inside = ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if is_array(value):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    raise TypeError(f"{type(value).__name__} has no form in TOML")


def toml_key(key: str) -> str:
    """A key as TOML writes it: quoted if need be."""
    return key if _BARE_KEY.fullmatch(key) else toml_value(key)

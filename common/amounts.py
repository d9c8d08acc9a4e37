"""Amounts in words, for messages: ``4 cores, 8.0 GiB``."""

from collections.abc import Iterable
from typing import Final

from snooze.common.resources import Axis, FloatArray

BYTE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def bytes_text(count: float) -> str:
    """``300.0 MiB``: the largest unit that leaves a number of at least one."""
    value, unit = float(count), 0
    while abs(value) >= 1024 and unit < len(BYTE_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {BYTE_UNITS[unit]}"


def in_words(vector: FloatArray, axes: Iterable[Axis] = Axis) -> str:
    """The axes of a capacity vector that are not zero, or those named: ``4 cores, 8.0 GiB``."""
    named = set(axes)
    shown = named if named != set(Axis) else {axis for axis in Axis if vector[axis]}
    return ", ".join(_one(axis, vector[axis]) for axis in Axis if axis in shown) or "nothing"


def _one(axis: Axis, value: float) -> str:
    if axis is Axis.CPU:
        return f"{value:g} core{'' if value == 1 else 's'}"
    amount = bytes_text(value * 1024)
    return amount if axis is Axis.MEMORY else f"{amount}/s {axis.name.lower()}"

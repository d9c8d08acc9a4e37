"""The capacity vector: its axes, their order and their units, defined once.

Every capacity, demand and usage in Snooze is a vector over the same four axes:

===========  =====  ======================================
axis         index  unit
===========  =====  ======================================
``CPU``      0      cores (virtual or physical)
``MEMORY``   1      KiB
``RX``       2      KiB per second received
``TX``       3      KiB per second sent
===========  =====  ======================================

Inside the scheduler a vector is one row of a numpy array ``float64[N, R]``; between daemons and in
records it is a ``Capacity``; on Snooze's HTTP calls it is a JSON list in this order.

Source: Snooze's wire format (four doubles: cpu, memory, network Rx, network Tx).
"""

import math
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Axis(IntEnum):
    """The position of each resource in a capacity vector."""

    CPU = 0
    MEMORY = 1
    RX = 2
    TX = 3


R: Final = len(Axis)
"""Number of axes; the ``R`` in array shapes."""

AXIS_NAMES: Final[tuple[str, ...]] = ("cpu", "memory", "rx", "tx")
AXIS_UNITS: Final[tuple[str, ...]] = ("cores", "KiB", "KiB/s", "KiB/s")

BYTE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

KIB_PER_MIB: Final = 1024
KIB_PER_GIB: Final = 1024 * 1024

MAX_CPU_CORES: Final = 8192.0
MAX_MEMORY_KIB: Final = 64.0 * 1024 * KIB_PER_GIB
MAX_NETWORK_KIB_S: Final = 1024.0 * KIB_PER_GIB
MAXIMA: Final[tuple[float, ...]] = (
    MAX_CPU_CORES,
    MAX_MEMORY_KIB,
    MAX_NETWORK_KIB_S,
    MAX_NETWORK_KIB_S,
)
"""Beyond these a value is a mistake, not a machine: 8192 cores, 64 TiB, 1 TiB/s."""

TOLERANCE: Final = 1e-9
"""Relative slack of every "fits" comparison, so that sums of floats do not refuse a full host."""


class Capacity(msgspec.Struct, frozen=True, array_like=True):
    """A point on the four axes: a capacity, a demand or a usage.

    Encoded as a list of four numbers, in axis order.
    """

    cpu_cores: float = 0.0
    memory_kib: float = 0.0
    rx_kib_s: float = 0.0
    tx_kib_s: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> "Capacity":
        """Build from four numbers in axis order.

        Raises:
            ValueError: if there are not exactly four.
        """
        numbers = tuple(float(value) for value in values)
        if len(numbers) != R:
            raise ValueError(f"a capacity vector has {R} numbers, not {len(numbers)}")
        return cls(*numbers)

    def as_tuple(self) -> tuple[float, float, float, float]:
        """The four numbers in axis order."""
        return (self.cpu_cores, self.memory_kib, self.rx_kib_s, self.tx_kib_s)

    def as_list(self) -> list[float]:
        """The four numbers as a JSON-ready list."""
        return list(self.as_tuple())

    def as_array(self) -> FloatArray:
        """A new ``float64[R]`` array."""
        return np.array(self.as_tuple(), dtype=np.float64)

    def plus(self, other: "Capacity") -> "Capacity":
        """Sum by axis."""
        return Capacity(*(a + b for a, b in zip(self.as_tuple(), other.as_tuple(), strict=True)))

    def minus(self, other: "Capacity") -> "Capacity":
        """Difference by axis; may be negative."""
        return Capacity(*(a - b for a, b in zip(self.as_tuple(), other.as_tuple(), strict=True)))

    def scaled(self, factors: Sequence[float]) -> "Capacity":
        """Product by axis with ``factors`` (four numbers)."""
        return Capacity(*(a * f for a, f in zip(self.as_tuple(), factors, strict=True)))

    def fits_in(self, room: "Capacity") -> bool:
        """True if no axis exceeds ``room``, within ``TOLERANCE``."""
        return all(
            need <= have + TOLERANCE * max(1.0, abs(have))
            for need, have in zip(self.as_tuple(), room.as_tuple(), strict=True)
        )

    def problems(self) -> list[str]:
        """Why this is no demand a machine could have; empty if it is fine.

        Names each axis that is not a number, negative, or beyond ``MAXIMA``.
        """
        found: list[str] = []
        for name, unit, value, maximum in zip(
            AXIS_NAMES, AXIS_UNITS, self.as_tuple(), MAXIMA, strict=True
        ):
            if not math.isfinite(value):
                found.append(f"{name} is not a finite number")
            elif value < 0:
                found.append(f"{name} is negative ({value:g} {unit})")
            elif value > maximum:
                found.append(f"{name} is {value:g} {unit}; the most is {maximum:g}")
        return found


ZERO: Final = Capacity()


def stack(capacities: Iterable[Capacity]) -> FloatArray:
    """Rows of a ``float64[N, R]`` array, in the order given; ``[0, R]`` when empty."""
    rows = [capacity.as_tuple() for capacity in capacities]
    return np.array(rows, dtype=np.float64).reshape(len(rows), R)


def bytes_text(count: float) -> str:
    """``300.0 MiB``: the largest unit that leaves a number of at least one."""
    value, unit = float(count), 0
    while abs(value) >= 1024 and unit < len(BYTE_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {BYTE_UNITS[unit]}"


def in_words(vector: FloatArray, axes: Iterable[Axis] | None = None) -> str:
    """The axes of a capacity vector that are named, or not zero: ``4 cores, 8.0 GiB``."""
    shown = [axis for axis in Axis if vector[axis]] if axes is None else axes
    return ", ".join(_one(axis, vector[axis]) for axis in shown) or "nothing"


def _one(axis: Axis, value: float) -> str:
    if axis is Axis.CPU:
        return f"{value:g} core{'' if value == 1 else 's'}"
    amount = bytes_text(value * 1024)
    return amount if axis is Axis.MEMORY else f"{amount}/s {axis.name.lower()}"

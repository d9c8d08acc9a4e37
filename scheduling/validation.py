"""From whatever a caller hands in to arrays that no numpy operation can trip over.

See ``snapshot.py`` for what is promised. Nothing here raises on bad values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from snooze.common.resources import FloatArray
from snooze.scheduling.model import (
    MAX_VALUE,
    NONE,
    Affinity,
    AffinityRule,
    BoolArray,
    IntArray,
    Labels,
    Problem,
)

MAX_PROBLEMS: Final = 100
"""Problems listed by name; the rest are counted in one more line."""

MAX_COUNT: Final = 2**53
"""Bound on counts and priorities: integers that a double holds exactly."""

Array = TypeVar("Array", FloatArray, IntArray, BoolArray)
Rows = Literal["host", "vm", "axis"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a column may hold, and what stands where nothing sound was given."""

    low: float
    high: float
    default: float = 0.0
    low_open: bool = False

    def __str__(self) -> str:
        return f"{'(' if self.low_open else '['}{self.low:g}, {self.high:g}]"


SIZE: Final = Bounds(0.0, MAX_VALUE)
SIGNED: Final = Bounds(-MAX_VALUE, MAX_VALUE)
FACTOR: Final = Bounds(0.0, 1e6, 1.0, low_open=True)
FRACTION: Final = Bounds(0.0, 1.0, 1.0, low_open=True)
COUNT: Final = Bounds(0, MAX_COUNT)
COUNT_OR_NONE: Final = Bounds(NONE, MAX_COUNT, NONE)
INTEGER: Final = Bounds(-MAX_COUNT, MAX_COUNT)
FLAG_ON: Final = Bounds(0, 1, 1)
FLAG_OFF: Final = Bounds(0, 1, 0)


@dataclass(slots=True)
class Reader:
    """Reads one column after the other and collects what is wrong with them.

    Attributes:
        counts: number of hosts, VMs and axes.
        host_ok, vm_ok: False where a row of some column read so far made no sense.
        fatal: the input as a whole is unusable.
    """

    counts: Mapping[Rows, int]
    host_ok: BoolArray
    vm_ok: BoolArray
    fatal: bool = False
    _problems: list[Problem] = field(default_factory=list[Problem])
    _left_out: int = 0

    @classmethod
    def over(cls, hosts: int, vms: int, axes: int) -> "Reader":
        """A reader that has found nothing wrong yet."""
        counts: dict[Rows, int] = {"host": hosts, "vm": vms, "axis": axes}
        return cls(counts, np.ones(hosts, dtype=np.bool_), np.ones(vms, dtype=np.bool_))

    def add(self, where: str, message: str, code: str, *, fatal: bool = False) -> None:
        """Note a problem."""
        self.fatal = self.fatal or fatal
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(where, message, code))
        else:
            self._left_out += 1

    def problems(self) -> tuple[Problem, ...]:
        """What was found, at most ``MAX_PROBLEMS`` by name."""
        if not self._left_out:
            return tuple(self._problems)
        more = Problem("", f"and {self._left_out} more problems", "truncated")
        return (*self._problems, more)

    def matrix(self, name: str, value: object, rows: Rows, bounds: Bounds = SIZE) -> FloatArray:
        """``float64[rows, R]``, read-only; of hosts in column order, which scans like best."""
        shape = (self.counts[rows], self.counts["axis"])
        numbers = self._read(name, value, rows, shape, bounds)
        return frozen(np.asfortranarray(numbers)) if rows == "host" else numbers

    def floats(self, name: str, value: object, rows: Rows, bounds: Bounds = SIZE) -> FloatArray:
        """``float64[rows]``, read-only."""
        return self._read(name, value, rows, (self.counts[rows],), bounds)

    def whole(self, name: str, value: object, rows: Rows, bounds: Bounds) -> IntArray:
        """``int64[rows]``, read-only; fractions are cut off."""
        return frozen(self.floats(name, value, rows, bounds).astype(np.int64))

    def flags(self, name: str, value: object, rows: Rows, bounds: Bounds) -> BoolArray:
        """``bool[rows]``, read-only."""
        return frozen(self.floats(name, value, rows, bounds).astype(np.bool_))

    def indices(self, name: str, value: object, vm_ids: Sequence[str]) -> IntArray:
        """``int64[V]`` host indices or -1, read-only; those that name no host are -1, not ok."""
        index = self.whole(name, value, "vm", COUNT_OR_NONE)
        stray = index >= self.counts["host"]
        if not stray.any():
            return index
        for vm in np.flatnonzero(stray).tolist():
            message = f"{vm_ids[vm]!r}: there is no host {index[vm]}"
            self.add(f"{name}[{vm}]", message, "no_such_host")
        self.vm_ok[stray] = False
        index = index.copy()
        index[stray] = NONE
        return frozen(index)

    def unique(self, where: str, ids: Sequence[str]) -> None:
        """Fatal if a name is listed twice."""
        if len(set(ids)) == len(ids):
            return
        seen: set[str] = set()
        for name in ids:
            if name in seen:
                self.add(where, f"{name!r} is listed twice", "duplicate", fatal=True)
                return
            seen.add(name)

    def labels(self, name: str, labels: Labels | None) -> Labels | None:
        """``labels``, or None if their shapes are wrong."""
        if labels is None:
            return None
        names = len(labels.names)
        expected = ((self.counts["host"], names), (self.counts["vm"], names))
        actual = (np.shape(labels.hosts), np.shape(labels.vms))
        if actual != expected:
            message = f"has shapes {actual}; expected {expected}"
            self.add(name, message, "shape", fatal=True)
            return None
        return labels

    def rules(self, rules: Sequence[AffinityRule]) -> tuple[AffinityRule, ...]:
        """``rules``; fatal if one names what is not there."""
        for i, rule in enumerate(rules):
            where = f"rules[{i}]"
            strays = [f"VM {vm}" for vm in rule.vms if not 0 <= vm < self.counts["vm"]]
            strays += [f"host {h}" for h in rule.hosts if not 0 <= h < self.counts["host"]]
            if strays:
                self.add(where, f"there is no {strays[0]}", "no_such_member", fatal=True)
            if rule.kind not in set(Affinity):
                self.add(where, f"{rule.kind!r} is no kind of affinity", "type", fatal=True)
            if not 0 <= rule.weight <= MAX_VALUE:
                self.add(where, f"weight {rule.weight:g} is no size", "range", fatal=True)
        return tuple(rules)

    def _read(
        self, name: str, value: object, rows: Rows, shape: tuple[int, ...], bounds: Bounds
    ) -> FloatArray:
        default = frozen(np.full(shape, bounds.default))
        if value is None:
            return default
        numbers = as_numbers(value)
        if numbers is None:
            self.add(name, "is not an array of numbers", "type", fatal=True)
            return default
        if numbers.size == 0 and 0 in shape:
            return default
        if numbers.shape != shape:
            message = f"has shape {numbers.shape}; expected {shape}"
            self.add(name, message, "shape", fatal=True)
            return default
        # Written so that a NaN, for which every comparison is False, is wrong too.
        if not (numbers.min() >= bounds.low and numbers.max() <= bounds.high) or (
            bounds.low_open and numbers.min() == bounds.low
        ):
            numbers = self._without_wrong_rows(name, numbers, rows, bounds)
        return frozen(numbers.view())

    def _without_wrong_rows(
        self, name: str, numbers: FloatArray, rows: Rows, bounds: Bounds
    ) -> FloatArray:
        """A copy with the default in every row that holds a wrong number."""
        wrong = ~((numbers >= bounds.low) & (numbers <= bounds.high))
        if bounds.low_open:
            wrong |= numbers == bounds.low
        wrong_rows = wrong.any(axis=1) if wrong.ndim == 2 else wrong
        for row in np.flatnonzero(wrong_rows):
            value = numbers[row].ravel()[wrong[row].ravel()][0]
            message = f"{value:g} is not in {bounds}"
            self.add(f"{name}[{row}]", message, "range", fatal=rows == "axis")
        if rows == "host":
            self.host_ok[wrong_rows] = False
        elif rows == "vm":
            self.vm_ok[wrong_rows] = False
        numbers = numbers.copy()
        numbers[wrong_rows] = bounds.default
        return numbers


def as_numbers(value: object) -> FloatArray | None:
    """``value`` as an array of doubles, or None if it is nothing of the kind."""
    try:
        raw: NDArray[np.generic] = np.asarray(value)
        return raw.astype(np.float64, copy=False) if raw.dtype.kind in "biufO" else None
    except (TypeError, ValueError, OverflowError):
        return None


def frozen(array: Array) -> Array:
    """``array``, read-only from now on."""
    array.flags.writeable = False
    return array

"""The figures of all metered hosts as arrays, a row a host: see the rules of the meter's core."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from snooze.common.resources import FloatArray
from snooze.common.wire import PowerDescription

MAX_HOSTS: Final = 20_000

USED_J, SAVED_J, UP_S, ASLEEP_S, DEAD_S, WATTS = range(6)
COUNTED: Final = (USED_J, SAVED_J, UP_S, ASLEEP_S, DEAD_S)
_READING_W, _READ_S, _MODEL_THEN_W, _MODEL_W, _RAPL_W, _IDLE_W, _FULL_W, _ASLEEP_W = range(6, 14)
_COLUMNS: Final = 14
_FIRST_ROWS: Final = 64
_NEVER_S: Final = -1e18

Key = tuple[PowerDescription, float]


class PowerSource(StrEnum):
    """Where a figure came from."""

    BMC = "bmc"
    RAPL = "rapl"
    MODEL = "model"


SOURCES: Final = (PowerSource.MODEL, PowerSource.RAPL, PowerSource.BMC)


GONE, UP, WAKING, ASLEEP, DEAD = range(5)
"""What a host does, as far as its watts depend on it; ``GONE``: it is not in the registry."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Over all hosts, now; dead ones are neither up nor asleep."""

    watts: float
    saved_w: float
    up: int
    asleep: int


class MeterTable:
    """Rows of hosts; ``key[i]`` is what row i's curve was made from, ``source[i]`` an index."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.key: list[Key | None] = []
        self._row: dict[str, int] = {}
        self._curves: list[Sequence[float]] = []
        self._cores: list[float] = []
        self._numbers: FloatArray = _blank(_FIRST_ROWS)
        self._mode: NDArray[np.int8] = np.zeros(_FIRST_ROWS, dtype=np.int8)
        self._source: NDArray[np.int8] = np.zeros(_FIRST_ROWS, dtype=np.int8)
        self._joined: NDArray[np.bool_] = np.zeros(_FIRST_ROWS, dtype=np.bool_)

    def row_of(self, host_id: str) -> int | None:
        """The row of a host, a new one if need be; None if there are too many."""
        row = self._row.get(host_id)
        if row is not None or len(self.ids) >= MAX_HOSTS:
            return row
        row = self._row[host_id] = len(self.ids)
        self.ids.append(host_id)
        self.key.append(None)
        self._curves.append(())
        self._cores.append(0.0)
        if row >= len(self._mode):
            self._numbers = np.concatenate([self._numbers, _blank(row)], axis=1)
            self._mode = np.concatenate([self._mode, np.zeros_like(self._mode)])
            self._source = np.concatenate([self._source, np.zeros_like(self._source)])
            self._joined = np.concatenate([self._joined, np.zeros_like(self._joined)])
        return row

    def column(self, number: int) -> FloatArray:
        """One figure of all hosts; may be written."""
        column: FloatArray = self._numbers[number, : len(self.ids)]
        return column

    @property
    def source(self) -> NDArray[np.int8]:
        """Where each host's watts came from: indexes of ``SOURCES``."""
        return self._source[: len(self.ids)]

    def set_curve(self, row: int, key: Key, curve: Sequence[float], asleep_w: float) -> None:
        """What a host draws from idle to full load, and asleep."""
        self.key[row], self._curves[row] = key, curve
        self._numbers[_IDLE_W, row], self._numbers[_FULL_W, row] = curve[0], curve[-1]
        self._numbers[_ASLEEP_W, row] = asleep_w
        self._read_s_of(row, _NEVER_S)
        self._set_model(row)

    def set_state(self, row: int, mode: int, *, is_joined: bool) -> None:
        """What a host does now."""
        if int(self._mode[row]) not in {mode, GONE}:
            self._read_s_of(row, _NEVER_S)
        self._mode[row], self._joined[row] = mode, is_joined
        self._set_model(row)

    def set_load(self, row: int, cores: float, rapl_w: float) -> None:
        """How many cores are busy, and what RAPL counts (not a number: nothing)."""
        self._cores[row] = cores
        self._numbers[_RAPL_W, row] = rapl_w
        self._set_model(row)

    def measured(self, row: int, watts: float, now_s: float) -> None:
        """What a BMC says."""
        self._numbers[_READING_W, row] = watts
        self._read_s_of(row, now_s)
        self._numbers[_MODEL_THEN_W, row] = self._numbers[_MODEL_W, row]

    def _read_s_of(self, row: int, read_s: float) -> None:
        self._numbers[_READ_S, row] = read_s

    def _set_model(self, row: int) -> None:
        """What the curve says: of a host that is down, going up, or that is up with this load."""
        curve, key = self._curves[row], self.key[row]
        if not curve or key is None:
            return
        mode = int(self._mode[row])
        if mode in {ASLEEP, DEAD}:
            watts = float(self._numbers[_ASLEEP_W, row])
        elif mode == WAKING:
            watts = curve[-1]
        else:
            cores = self._cores[row] if self._joined[row] else 0.0
            load = min(max(cores / max(key[1], 1e-9), 0.0), 1.0) * (len(curve) - 1)
            below = min(int(load), len(curve) - 2)
            watts = curve[below] + (curve[below + 1] - curve[below]) * (load - below)
        self._numbers[_MODEL_W, row] = watts

    def step(self, passed_s: float, now_s: float, fresh_s: float) -> Sums:
        """Add up what was drawn in this time."""
        count = len(self.ids)
        numbers, mode = self._numbers[:, :count], self._mode[:count]
        model_w: FloatArray = numbers[_MODEL_W]
        rapl_w: FloatArray = numbers[_RAPL_W]
        idle_w: FloatArray = numbers[_IDLE_W]
        here, is_up = mode != GONE, mode == UP
        asleep, waking, dead = mode == ASLEEP, mode == WAKING, mode == DEAD
        on = here & ~asleep & ~dead
        measured = here & (now_s - numbers[_READ_S] <= fresh_s)
        counted = is_up & ~measured & self._joined[:count] & ~np.isnan(rapl_w)
        now_w: FloatArray = np.maximum(
            numbers[_READING_W] + (model_w - numbers[_MODEL_THEN_W]), 0.0
        )
        watts = model_w.copy()
        watts[counted] = rapl_w[counted]
        watts[measured] = now_w[measured]
        watts[~here] = 0.0
        saved: FloatArray = np.where(asleep, np.maximum(idle_w - watts, 0.0), 0.0)
        saved = np.where(waking, idle_w - watts, saved)
        numbers[WATTS] = watts
        numbers[USED_J] += watts * passed_s
        numbers[SAVED_J] += saved * passed_s
        numbers[ASLEEP_S] += asleep * passed_s
        numbers[DEAD_S] += dead * passed_s
        numbers[UP_S] += on * passed_s
        self._source[:count] = np.where(measured, 2, np.where(counted, 1, 0))
        return Sums(float(watts.sum()), float(saved.sum()), int(on.sum()), int(asleep.sum()))


def _blank(rows: int) -> FloatArray:
    numbers: FloatArray = np.zeros((_COLUMNS, rows))
    numbers[_READ_S], numbers[_RAPL_W] = _NEVER_S, np.nan
    return numbers

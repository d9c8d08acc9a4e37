"""What hosts draw, from how busy they are: piecewise linear curves, sleep and wake-up.

Rules:

1. A ``PowerModel`` has one row per host of a snapshot, in the same order. It is made by
   ``PowerModel.of`` (or ``linear``); whatever is handed in, no exception comes out: what is wrong
   is listed in ``problems``, and the rows concerned count as hosts that draw nothing.
2. Between two points of a curve power is linear; below 0 and above 1 it is that of the ends.

Source: SPECpower_ssj2008 publishes power at 0, 10, .. 100 % load, which is the form used here.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from snooze.common.resources import FloatArray
from snooze.scheduling.snapshot import BoolArray, IntArray, Problem

MAX_POWER_W: Final = 1e6
"""Beyond a megawatt a figure is a mistake, not a machine."""

MAX_WAKE_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, eq=False)
class PowerModel:
    """Power of each host. Made by ``PowerModel.of``.

    Attributes:
        curve_w: ``float64[H, P]``, watts at P evenly spaced loads from idle to full, P >= 2.
        asleep_w: ``float64[H]``, watts while asleep.
        wake_s: ``float64[H]``, from the order to wake until the host takes VMs. Meanwhile it draws
            what it draws under full load: a machine that boots is busy.
        known: ``bool[H]``, False where nothing usable was given.
        problems: what was wrong.
    """

    curve_w: FloatArray
    asleep_w: FloatArray
    wake_s: FloatArray
    known: BoolArray
    problems: tuple[Problem, ...] = ()

    @classmethod
    def of(
        cls, curve_w: ArrayLike, *, asleep_w: ArrayLike = 0.0, wake_s: ArrayLike = 0.0
    ) -> "PowerModel":
        """Build and validate; never raises, see ``problems``.

        Args:
            curve_w: ``[H, P]``, watts at P evenly spaced loads.
            asleep_w: watts asleep, one number or one per host.
            wake_s: seconds to wake up, one number or one per host.
        """
        problems: list[Problem] = []
        curve = _matrix(curve_w, problems)
        hosts = len(curve)
        asleep = _column("asleep_w", asleep_w, hosts, MAX_POWER_W, problems)
        wake = _column("wake_s", wake_s, hosts, MAX_WAKE_S, problems)
        sound = ((curve >= 0) & (curve <= MAX_POWER_W)).all(axis=1)
        for row in np.flatnonzero(~sound)[:10]:
            problems.append(Problem(f"curve_w[{row}]", f"not in [0, {MAX_POWER_W:g}] W", "range"))
        known = sound & np.isfinite(asleep) & np.isfinite(wake)
        curve = np.where(known[:, None], curve, 0.0)
        asleep = np.where(known, asleep, 0.0)
        wake = np.where(known, wake, 0.0)
        for array in (curve, asleep, wake, known):
            array.flags.writeable = False
        return cls(curve, asleep, wake, known, tuple(problems))

    @classmethod
    def linear(cls, idle_w: ArrayLike, full_w: ArrayLike) -> "PowerModel":
        """Power that grows evenly from ``idle_w[H]`` to ``full_w[H]``."""
        try:
            ends = np.column_stack([np.atleast_1d(idle_w), np.atleast_1d(full_w)])
        except (TypeError, ValueError):
            return cls.of(())
        return cls.of(ends)

    @property
    def hosts(self) -> int:
        """H, the number of hosts."""
        return len(self.curve_w)

    def rows(self, hosts: IntArray) -> "PowerModel":
        """The model of these hosts only, in this order."""
        return replace(
            self,
            curve_w=self.curve_w[hosts],
            asleep_w=self.asleep_w[hosts],
            wake_s=self.wake_s[hosts],
            known=self.known[hosts],
        )

    def power_w(self, load: FloatArray) -> FloatArray:
        """``float64[H]``: watts of running hosts at ``load[H]`` (0 idle, 1 full; NaN as idle)."""
        steps = self.curve_w.shape[1] - 1
        position = np.clip(np.nan_to_num(load, nan=0.0), 0.0, 1.0) * steps
        below = np.minimum(position.astype(np.int64), steps - 1)
        rows = np.arange(self.hosts)
        low = self.curve_w[rows, below]
        watts: FloatArray = low + (self.curve_w[rows, below + 1] - low) * (position - below)
        return watts

    def idle_saving_w(self) -> FloatArray:
        """``float64[H]``: watts saved when an idle host sleeps; never negative."""
        return np.maximum(self.curve_w[:, 0] - self.asleep_w, 0.0)

    def cost_of_capacity(self, capacity: FloatArray) -> FloatArray:
        """``float64[H]``: watts per unit of ``capacity[H]`` at full load; infinite if unknown.

        The order in which to prefer hosts that are to be run full.
        """
        usable = self.known & (capacity > 0)
        cost = np.full(self.hosts, np.inf)
        np.divide(self.curve_w[:, -1], capacity, out=cost, where=usable)
        return cost


def _matrix(value: ArrayLike, problems: list[Problem]) -> FloatArray:
    """``value`` as ``float64[H, P]``; no rows if it is nothing of the kind."""
    try:
        curve = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        problems.append(Problem("curve_w", "is not an array of numbers", "type"))
        return np.zeros((0, 2))
    if curve.size == 0:
        return np.zeros((0, 2))
    if curve.ndim != 2 or curve.shape[1] < 2:
        message = f"has shape {curve.shape}; expected hosts by at least two loads"
        problems.append(Problem("curve_w", message, "shape"))
        return np.zeros((0, 2))
    return curve


def _column(
    name: str, value: ArrayLike, hosts: int, high: float, problems: list[Problem]
) -> FloatArray:
    """One number per host; NaN, and said so, where it is unusable."""
    try:
        column = np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), (hosts,)))
    except (TypeError, ValueError, OverflowError):
        problems.append(
            Problem(name, f"is neither one number nor one for each of {hosts}", "shape")
        )
        return np.full(hosts, np.nan)
    wrong = ~((column >= 0) & (column <= high))
    for row in np.flatnonzero(wrong)[:10]:
        problems.append(Problem(f"{name}[{row}]", f"{column[row]:g} not in [0, {high:g}]", "range"))
    column[wrong] = np.nan
    return column

"""Which hosts are too hot or too idle: thresholds, adaptive limits, sustained, with hysteresis.

Rules:

1. A host is *overloaded* once its pressure has been above 1 on some axis for ``sustain_s``, and
   stops being so once it has been below ``1 - hysteresis`` on every axis for as long. Pressure is
   utilisation over the limit in force, see ``Limit``.
2. A host is *underloaded* once the mean of its window has been below MIN on every axis for
   ``idle_s``, and stops being so as soon as it is at MIN + hysteresis on any. An overloaded host is
   never underloaded.
3. A host without a valid newest sample is ``unknown``: what it was, it stays; counting starts anew.
4. Nothing is remembered here. ``Watch`` goes in, a new one comes out; ``detect`` is called once per
   new sample.

Source: MIN, MID and MAX thresholds per resource from Snooze, which had no sustained windows and no
hysteresis; MAD, IQR and local regression from Beloglazov and Buyya, CCPE 24(13), 2012.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.estimation import Window, continued_line, quantile, sorted_samples
from snooze.scheduling.snapshot import BoolArray, IntArray, Problem


class Limit(Protocol):
    """How hard each host is pressed, whatever one takes for its limit."""

    @property
    def name(self) -> str:
        """What it is called in settings."""
        ...

    def pressure(self, window: Window, maximum: FloatArray) -> FloatArray:
        """``float64[H, R]``; above 1 is too much.

        Args:
            window: utilisation of each host, fractions of its capacity.
            maximum: ``float64[R]``, the MAX threshold.
        """
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """The newest utilisation over MAX."""

    name: str = "thresholds"

    def pressure(self, window: Window, maximum: FloatArray) -> FloatArray:
        """See ``Limit``."""
        return _over(window.newest(), maximum)


@dataclass(frozen=True, slots=True)
class MedianDeviation:
    """The newest utilisation over ``1 - safety * MAD``: the more restless, the lower the limit."""

    safety: float = 2.5
    min_samples: int = 12
    fallback: float = 0.7
    name: str = "mad"

    def pressure(self, window: Window, maximum: FloatArray) -> FloatArray:
        """See ``Limit``; with fewer than ``min_samples`` the limit is ``fallback``."""
        values, counts = sorted_samples(window, window.valid)
        median = quantile(values, counts, 0.5)
        away = Window(np.abs(window.samples - median[:, None, :]), window.valid)
        spread = quantile(*sorted_samples(away, window.valid), 0.5)
        limit = np.where(
            (counts >= self.min_samples)[:, None], 1 - self.safety * spread, self.fallback
        )
        return _over(window.newest(), np.minimum(limit, maximum))


@dataclass(frozen=True, slots=True)
class QuartileRange:
    """The newest utilisation over ``1 - safety * IQR``."""

    safety: float = 1.5
    min_samples: int = 12
    fallback: float = 0.7
    name: str = "iqr"

    def pressure(self, window: Window, maximum: FloatArray) -> FloatArray:
        """See ``Limit``; with fewer than ``min_samples`` the limit is ``fallback``."""
        values, counts = sorted_samples(window, window.valid)
        spread = quantile(values, counts, 0.75) - quantile(values, counts, 0.25)
        limit = np.where(
            (counts >= self.min_samples)[:, None], 1 - self.safety * spread, self.fallback
        )
        return _over(window.newest(), np.minimum(limit, maximum))


@dataclass(frozen=True, slots=True)
class Regression:
    """Where local regression says utilisation is heading, times ``safety``, over MAX."""

    safety: float = 1.2
    samples: int = 10
    ahead: float = 1.0
    loess: bool = True
    fallback: float = 0.7
    name: str = "local_regression"

    def pressure(self, window: Window, maximum: FloatArray) -> FloatArray:
        """See ``Limit``; with fewer than ``samples`` the newest over ``fallback``."""
        chosen = window.recent(self.samples)
        heading = continued_line(window.samples, chosen, self.ahead, self.loess)
        enough = (chosen.sum(axis=1) >= self.samples)[:, None]
        now = _over(window.newest(), np.minimum(maximum, self.fallback))
        return np.where(enough, np.maximum(_over(heading * self.safety, maximum), 0.0), now)


LIMITS: Final[Mapping[str, Limit]] = MappingProxyType(
    {each.name: each for each in (Fixed(), MedianDeviation(), QuartileRange(), Regression())}
)
"""The built-in limits by name, with their default settings."""


class Verdicts(Protocol):
    """Says of each host whether it is too hot or too idle now, in place of limits: a plug-in."""

    @property
    def name(self) -> str:
        """What it is called in settings."""
        ...

    def verdicts(self, window: Window) -> tuple[BoolArray, BoolArray]:
        """``bool[H]`` each: too hot, too idle; ``window``: utilisation, fractions of capacity."""
        ...


@dataclass(frozen=True, slots=True)
class Thresholds:
    """MIN, MID and MAX as fractions of capacity: one number for all axes, or one for each.

    MID is up to where hosts are filled by moves (``Snapshot.headroom``); it plays no part here.
    """

    minimum: tuple[float, ...] = (0.6,)
    middle: tuple[float, ...] = (0.9,)
    maximum: tuple[float, ...] = (1.0,)

    def problems(self) -> list[Problem]:
        """Why these make no sense; empty if they do."""
        rows = {"minimum": self.minimum, "middle": self.middle, "maximum": self.maximum}
        found = [
            Problem(name, f"{value:g} is not in [0, 1]", "range")
            for name, values in rows.items()
            for value in values
            if not 0 <= value <= 1
        ]
        lengths = {len(values) for values in rows.values()}
        if 0 in lengths or len(lengths - {1}) > 1:
            found.append(Problem("thresholds", "differ in how many axes they name", "shape"))
        elif not found:
            axes = max(lengths)
            low, middle, high = (axis_values(values, axes) for values in rows.values())
            if not ((low < middle) & (middle <= high)).all():
                found.append(Problem("thresholds", "must be MIN < MID <= MAX", "contradiction"))
        return found


def axis_values(values: Sequence[float], axes: int) -> FloatArray:
    """``float64[R]`` from one number for all axes or one for each."""
    given = np.array(values, dtype=np.float64)
    return np.full(axes, given[0]) if given.size == 1 else given


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """What the detector has to know of the past: flags in force, and for how many samples the
    opposite has been true."""

    overloaded: BoolArray
    underloaded: BoolArray
    towards_overload: IntArray
    towards_underload: IntArray

    @classmethod
    def fresh(cls, hosts: int) -> "Watch":
        """Nothing is known of the past."""
        flags, counts = np.zeros(hosts, dtype=np.bool_), np.zeros(hosts, dtype=np.int64)
        return cls(flags, flags.copy(), counts, counts.copy())

    def followed(self, before: Sequence[str], after: Sequence[str]) -> "Watch":
        """The same for hosts ``after``, given that it was made for hosts ``before`` (names)."""
        index = {name: i for i, name in enumerate(before)}
        rows = np.array([index.get(name, -1) for name in after], dtype=np.int64)
        known = rows >= 0
        fresh = Watch.fresh(len(after))
        for new, old in zip(
            (fresh.overloaded, fresh.underloaded, fresh.towards_overload, fresh.towards_underload),
            (self.overloaded, self.underloaded, self.towards_overload, self.towards_underload),
            strict=True,
        ):
            new[known] = old[rows[known]]
        return fresh


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """What the samples say that a host has to be too hot (or no longer be) for: ``sustain_s``.

    Attributes:
        mean, highest: ``float64[H, R]``, use of it, as a fraction of capacity.
        limit: ``float64[H, R]``, what use is measured against: MAX, or what an adaptive limit makes
            of it.
    """

    mean: FloatArray
    highest: FloatArray
    limit: FloatArray

    @classmethod
    def together(cls, parts: Sequence["Stretch"]) -> "Stretch":
        """Of the hosts of all parts, one after the other."""
        return cls(
            np.vstack([each.mean for each in parts]),
            np.vstack([each.highest for each in parts]),
            np.vstack([each.limit for each in parts]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """What was found.

    Attributes:
        overloaded, underloaded: ``bool[H]``.
        unknown: ``bool[H]``, hosts without a usable newest sample.
        pressure: ``float64[H, R]``, see ``Limit``.
        mean: ``float64[H, R]``, of the window.
        stretch: of the end of the window that overload is judged by.
        watch: hand it to the next detection.
        problems: what was wrong with what was handed in.
    """

    overloaded: BoolArray
    underloaded: BoolArray
    unknown: BoolArray
    pressure: FloatArray
    mean: FloatArray
    stretch: Stretch
    watch: Watch
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Detector:
    """Finds overloaded and underloaded hosts.

    Attributes:
        limit: what overload is measured against.
        thresholds: MIN and MAX.
        sustain_s: for how long a host must be too hot (or no longer be).
        idle_s: for how long it must be too idle.
        hysteresis: how far it must come back, as a fraction of capacity.
        verdicts: judges in place of limit, thresholds and hysteresis; windows are sustained alike.
    """

    limit: Limit = Fixed()
    thresholds: Thresholds = Thresholds()
    sustain_s: float = 30.0
    idle_s: float = 300.0
    hysteresis: float = 0.05
    verdicts: Verdicts | None = None

    @property
    def name(self) -> str:
        """What judges, as in settings."""
        return self.verdicts.name if self.verdicts is not None else self.limit.name

    def detect(self, window: Window, watch: Watch, period_s: float) -> Detection:
        """Judge the newest sample of each host.

        Args:
            window: utilisation of each host, fractions of its capacity.
            watch: from the last detection, for the same hosts; or ``Watch.fresh``.
            period_s: time between samples.
        """
        senseless = self.thresholds.problems()
        problems = [*window.problems, *senseless]
        hosts, instants, axes = window.samples.shape
        if len(watch.overloaded) != hosts:
            message = f"is about {len(watch.overloaded)} hosts, not {hosts}; starting afresh"
            problems.append(Problem("watch", message, "shape"))
            watch = Watch.fresh(hosts)
        if senseless or not axes or not instants:
            blank = np.zeros((hosts, axes))
            nobody = np.zeros(hosts, dtype=np.bool_)
            return Detection(
                nobody,
                nobody,
                ~nobody,
                blank,
                blank,
                Stretch(blank, blank, blank),
                Watch.fresh(hosts),
                tuple(problems),
            )
        maximum = axis_values(self.thresholds.maximum, axes)
        pressure = self.limit.pressure(window, maximum)
        counted = np.where(window.valid[:, :, None], window.samples, 0.0)
        mean = counted.sum(axis=1) / np.maximum(window.counts, 1)[:, None]
        unknown = ~window.valid[:, -1]
        hot = np.where(
            watch.overloaded,
            (pressure >= 1 - self.hysteresis).any(axis=1),
            (pressure > 1).any(axis=1),
        )
        minimum = axis_values(self.thresholds.minimum, axes)
        bound = np.where(watch.underloaded[:, None], minimum + self.hysteresis, minimum)
        idle = (mean < bound).all(axis=1)
        if self.verdicts is not None:
            hot, idle = self.verdicts.verdicts(window)
        now_hot, hot_count = _sustained(
            watch.overloaded,
            watch.towards_overload,
            hot,
            unknown,
            _samples(self.sustain_s, period_s),
        )
        wait = np.where(watch.underloaded, 1, _samples(self.idle_s, period_s))
        now_idle, idle_count = _sustained(
            watch.underloaded, watch.towards_underload, idle, unknown, wait
        )
        now_idle &= ~now_hot
        return Detection(
            now_hot,
            now_idle,
            unknown,
            pressure,
            mean,
            self._stretch(window, pressure, maximum, period_s),
            Watch(now_hot, now_idle, hot_count, idle_count),
            tuple(problems),
        )

    def _stretch(
        self, window: Window, pressure: FloatArray, maximum: FloatArray, period_s: float
    ) -> Stretch:
        chosen = slice(-_samples(self.sustain_s, period_s), None)
        valid, samples = window.valid[:, chosen, None], window.samples[:, chosen]
        counts = np.maximum(valid.sum(axis=1), 1)
        newest = window.newest()
        limit = np.broadcast_to(maximum, pressure.shape).copy()
        told = (newest > 0) & (pressure > 0) & np.isfinite(pressure)
        np.divide(newest, pressure, out=limit, where=told)
        return Stretch(
            np.where(valid, samples, 0.0).sum(axis=1) / counts,
            np.where(valid, samples, 0.0).max(axis=1, initial=0.0),
            limit,
        )


DEFAULT: Final = Detector()
"""Too hot: more asked for than there is. Too idle: below 60 % on average."""


def _over(values: FloatArray, limit: FloatArray) -> FloatArray:
    """``values / limit``; a limit of zero or less is exceeded by any use at all."""
    limit = np.broadcast_to(limit, values.shape)
    ratio = np.where(values > 0, np.inf, 0.0)
    np.divide(values, limit, out=ratio, where=limit > 0)
    return ratio


def _samples(span_s: float, period_s: float) -> int:
    """How many samples make up ``span_s``; at least the one."""
    return max(1, int(np.ceil(span_s / period_s))) if period_s > 0 else 1


def _sustained(
    was: BoolArray, counted: IntArray, seen: BoolArray, unknown: BoolArray, wait: int | IntArray
) -> tuple[BoolArray, IntArray]:
    """Flags that change only after ``wait`` samples in a row say the opposite."""
    differs = (seen != was) & ~unknown
    count = np.where(differs, counted + 1, 0)
    turns = differs & (count >= wait)
    return was ^ turns, np.where(turns, 0, count)

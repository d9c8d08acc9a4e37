"""What VMs will use, from what they used: estimators over windows of samples.

Rules:

1. Samples are ``[N, T, R]``: N things (VMs or hosts), T instants, oldest first, R resources. An
   instant without a usable sample (missing, NaN, infinite, negative) is not valid and counts for
   nothing; nothing here raises on bad values.
2. An estimator answers for every thing. Where there is no valid sample it answers with what was
   requested, and ``known`` is False there.
3. Estimates are never negative and never NaN.

``SampleRing`` keeps samples that all come at the same instants; where each thing has its own pace,
``sample_history`` does. Everything else is pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np
from numpy.typing import ArrayLike

from snooze.common.resources import FloatArray
from snooze.scheduling.snapshot import MAX_VALUE, BoolArray, IntArray, Problem

PRIOR_SAMPLES: Final = 3.0
"""How many samples the prior spread of a VM is worth, see ``forecast``."""

PRIOR_OF_MEAN: Final = 0.5
PRIOR_OF_REQUEST: Final = 0.05
"""The prior spread: half the mean and a twentieth of the request. Source: the VMs of the PlanetLab
traces, whose demand within an hour spreads by about that much (docs/benchmarks/planetlab.md)."""


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Samples of N things at T instants, oldest first. Made by ``Window.of``.

    Attributes:
        samples: ``float64[N, T, R]``; zeros where not valid.
        valid: ``bool[N, T]``.
        problems: what was wrong with what was handed in.
    """

    samples: FloatArray
    valid: BoolArray
    problems: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, samples: ArrayLike, valid: ArrayLike | None = None) -> "Window":
        """Build and validate; never raises. A window that makes no sense is empty, and says so."""
        try:
            values = np.array(samples, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            return _no_window("samples", "is not an array of numbers", "type")
        if values.ndim != 3:
            return _no_window("samples", f"has shape {values.shape}; expected [N, T, R]", "shape")
        usable: BoolArray = np.all(in_bounds(values), axis=2)
        if valid is not None:
            try:
                given = np.asarray(valid, dtype=np.bool_)
            except (TypeError, ValueError):
                return _no_window("valid", "is not an array of flags", "type")
            if given.shape != usable.shape:
                message = f"has shape {given.shape}; expected {usable.shape}"
                return _no_window("valid", message, "shape")
            wrong = int((given & ~usable).sum())
            usable &= given
        else:
            wrong = int((~usable).sum())
        values[~usable] = 0.0
        problems: tuple[Problem, ...] = ()
        if wrong:
            message = f"{wrong} are not numbers in [0, {MAX_VALUE:g}] and are left out"
            problems = (Problem("samples", message, "range"),)
        return cls(values, usable, problems)

    @property
    def things(self) -> int:
        """N."""
        return len(self.samples)

    def nothing(self) -> "Window":
        """The same things, of which nothing is known."""
        shape = (self.things, 0, self.samples.shape[2])
        return Window(np.zeros(shape), np.zeros(shape[:2], dtype=np.bool_))

    @property
    def counts(self) -> IntArray:
        """``int64[N]``: valid samples of each thing."""
        counts: IntArray = self.valid.sum(axis=1, dtype=np.int64)
        return counts

    def recent(self, count: int) -> BoolArray:
        """``bool[N, T]``: the newest ``count`` valid samples of each thing."""
        age = np.cumsum(self.valid[:, ::-1], axis=1)[:, ::-1]
        newest: BoolArray = self.valid & (age <= count)
        return newest

    def newest(self) -> FloatArray:
        """``float64[N, R]``: the last valid sample of each thing; zeros where there is none."""
        if not self.valid.shape[1]:
            return np.zeros((self.things, self.samples.shape[2]))
        last = self.valid.shape[1] - 1 - np.argmax(self.valid[:, ::-1], axis=1)
        found: FloatArray = self.samples[np.arange(self.things), last]
        return found


def _no_window(where: str, message: str, code: str) -> Window:
    return Window(
        np.zeros((0, 0, 0)), np.zeros((0, 0), dtype=np.bool_), (Problem(where, message, code),)
    )


class SampleRing:
    """The last ``length`` samples of each of a fixed number of things; bounded by construction.

    Things have their own pace: each row fills and wraps on its own.
    """

    __slots__ = ("_count", "_head", "_samples", "_valid")

    def __init__(self, things: int, length: int, axes: int) -> None:
        self._samples: FloatArray = np.zeros((things, length, axes))
        self._valid: BoolArray = np.zeros((things, length), dtype=np.bool_)
        self._head: IntArray = np.zeros(things, dtype=np.int64)
        self._count: IntArray = np.zeros(things, dtype=np.int64)

    def push(self, rows: IntArray, samples: FloatArray) -> None:
        """Add one sample ``samples[i]`` to each of ``rows`` (all different).

        A sample that is no usable number takes its place in time, but is not valid.
        """
        at = self._head[rows]
        usable: BoolArray = np.all(in_bounds(samples), axis=1)
        self._samples[rows, at] = np.where(usable[:, None], samples, 0.0)
        self._valid[rows, at] = usable
        length = self._valid.shape[1]
        self._head[rows] = (at + 1) % length
        self._count[rows] = np.minimum(self._count[rows] + 1, length)

    def clear(self, rows: IntArray) -> None:
        """Forget all samples of ``rows``, so that they can be given to other things."""
        self._valid[rows] = False
        self._head[rows] = 0
        self._count[rows] = 0

    def window(self, rows: IntArray | None = None) -> Window:
        """The samples of ``rows`` (default: all) in order of time, newest last."""
        chosen = np.arange(len(self._head)) if rows is None else rows
        length = int(self._valid.shape[1])
        start = self._head[chosen][:, None]
        order: IntArray = np.mod(start + np.arange(length), max(length, 1))
        pick = chosen[:, None]
        return Window(self._samples[pick, order], self._valid[pick, order])


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """What each thing is expected to use.

    Attributes:
        value: ``float64[N, R]``.
        known: ``bool[N]``, False where it is only what was requested.
        problems: what was wrong with what was handed in.
    """

    value: FloatArray
    known: BoolArray
    problems: tuple[Problem, ...] = ()


class Estimator(Protocol):
    """Answers what things will use."""

    @property
    def name(self) -> str:
        """What it is called in settings."""
        ...

    def estimate(self, window: Window, requested: FloatArray) -> Estimate:
        """``requested[N, R]`` is used where there is no sample. See the rules above."""
        ...


@dataclass(frozen=True, slots=True)
class Static:
    """What was requested, whatever was used."""

    name: str = "static"

    def estimate(self, window: Window, requested: FloatArray) -> Estimate:
        """See ``Estimator``."""
        nothing = np.zeros((len(requested), requested.shape[-1]))
        return _answer(window, requested, nothing, np.zeros(len(requested), dtype=np.bool_))


@dataclass(frozen=True, slots=True)
class Average:
    """Mean of the newest samples. Source: Snooze's only estimator, 15 samples."""

    samples: int = 15
    name: str = "average"

    def estimate(self, window: Window, requested: FloatArray) -> Estimate:
        """See ``Estimator``."""
        return _answer(window, requested, *_weighted_mean(window, window.recent(self.samples)))


@dataclass(frozen=True, slots=True)
class Ewma:
    """Exponentially weighted mean: a sample's weight halves every ``half_life`` instants."""

    half_life: float = 5.0
    name: str = "ewma"

    def estimate(self, window: Window, requested: FloatArray) -> Estimate:
        """See ``Estimator``."""
        age: IntArray = np.arange(int(window.valid.shape[1]) - 1, -1, -1)
        decay: FloatArray = np.power(0.5, age / max(self.half_life, 1e-9))
        weights: FloatArray = np.where(window.valid, decay, 0.0)
        return _answer(window, requested, *_weighted_mean(window, weights))


@dataclass(frozen=True, slots=True)
class Percentile:
    """The ``percent``-th percentile, by axis, linear between samples."""

    percent: float = 95.0
    samples: int = 30
    name: str = "percentile"

    def estimate(self, window: Window, requested: FloatArray) -> Estimate:
        """See ``Estimator``."""
        values, counts = sorted_samples(window, window.recent(self.samples))
        return _answer(window, requested, quantile(values, counts, self.percent / 100), counts > 0)


@dataclass(frozen=True, slots=True)
class LocalRegression:
    """A line through the newest samples, continued ``ahead`` instants beyond the last.

    With ``loess`` the samples are weighted by the tricube of their distance from the newest.
    Fewer than three samples make no line; then it is their mean.

    Source: Cleveland, "Robust locally weighted regression and smoothing scatterplots", JASA 74,
    1979; as a detector of overload Beloglazov and Buyya, CCPE 24(13), 2012.
    """

    samples: int = 10
    ahead: float = 1.0
    loess: bool = True
    name: str = "local_regression"

    def estimate(self, window: Window, requested: FloatArray) -> Estimate:
        """See ``Estimator``."""
        chosen = window.recent(self.samples)
        value, known = _weighted_mean(window, chosen)
        line = continued_line(window.samples, chosen, self.ahead, self.loess)
        enough = chosen.sum(axis=1) >= 3
        value = np.where(enough[:, None], np.maximum(line, 0.0), value)
        return _answer(window, requested, value, known)


ESTIMATORS: Final[Mapping[str, Estimator]] = MappingProxyType(
    {each.name: each for each in (Average(), Ewma(), Percentile(), LocalRegression(), Static())}
)
"""The built-in estimators by name, with their default settings."""


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """What each VM is expected to use in the coming hour, and how far it may be off.

    Attributes:
        expected: ``float64[N, R]``, mean.
        deviation: ``float64[N, R]``, standard deviation.
        problems: what was wrong with what was handed in.
    """

    expected: FloatArray
    deviation: FloatArray
    problems: tuple[Problem, ...] = ()


def forecast(window: Window, requested: FloatArray, samples: int = 12) -> Forecast:
    """Mean and standard deviation of the newest ``samples``, by axis.

    A few samples say little about a spread, so a prior one counts as ``PRIOR_SAMPLES`` more.
    Without any sample: what was requested, with the prior spread.
    """
    chosen = window.recent(samples)
    mean = Average(samples).estimate(window, requested)
    counts = chosen.sum(axis=1)[:, None] if window.things == len(requested) else 0
    prior = PRIOR_OF_MEAN * mean.value + PRIOR_OF_REQUEST * _usable(requested)
    squares = 0.0
    if window.things == len(requested):
        away = np.where(chosen[:, :, None], window.samples - mean.value[:, None, :], 0.0)
        squares = (away * away).sum(axis=1)
    variance = (squares + PRIOR_SAMPLES * prior * prior) / (counts + PRIOR_SAMPLES)
    return Forecast(mean.value, np.sqrt(variance), mean.problems)


def hosts_window(window: Window, placement: IntArray, hosts: int) -> Window:
    """The history of each host: the sum of those of the VMs that are on it *now*.

    What a host measured itself is no guide right after a migration; this is. A VM without a sample
    at an instant counts as idle then; an instant is valid if any VM of the host has a sample. The
    instants of all VMs are taken to be the same. A host without VMs has used nothing, validly.
    """
    placed = np.flatnonzero((placement >= 0) & (placement < hosts))
    instants, axes = window.samples.shape[1:]
    total = np.zeros((hosts, instants, axes))
    seen = np.zeros((hosts, instants), dtype=np.int64)
    if placed.size and window.things == len(placement):
        # VMs of one host in a row are summed at once: that is many times faster than one by one.
        order = placed[np.argsort(placement[placed], kind="stable")]
        on = placement[order]
        starts = np.flatnonzero(np.diff(on, prepend=-1))
        total[on[starts]] = np.add.reduceat(window.samples[order], starts, axis=0)
        seen[on[starts]] = np.add.reduceat(window.valid[order].astype(np.int64), starts, axis=0)
    empty = np.bincount(placement[placed], minlength=hosts) == 0
    return Window(total, (seen > 0) | empty[:, None], window.problems)


def sorted_samples(window: Window, chosen: BoolArray) -> tuple[FloatArray, IntArray]:
    """Samples ``[N, T, R]`` in rising order by axis, the chosen first; and how many are chosen."""
    values = np.where(chosen[:, :, None], window.samples, np.inf)
    counts: IntArray = chosen.sum(axis=1, dtype=np.int64)
    return np.sort(values, axis=1), counts


def quantile(ordered: FloatArray, counts: IntArray, share: float) -> FloatArray:
    """``float64[N, R]``: linear between order statistics; zeros where there is no sample."""
    if not ordered.shape[1]:
        return np.zeros((len(ordered), ordered.shape[2]))
    position = np.maximum(counts - 1, 0) * min(max(share, 0.0), 1.0)
    below = np.floor(position).astype(np.int64)
    above = np.ceil(position).astype(np.int64)
    rows = np.arange(len(ordered))
    low = np.where(counts[:, None] > 0, ordered[rows, below], 0.0)
    high = np.where(counts[:, None] > 0, ordered[rows, above], 0.0)
    value: FloatArray = low + (high - low) * (position - below)[:, None]
    return value


def continued_line(samples: FloatArray, chosen: BoolArray, ahead: float, loess: bool) -> FloatArray:
    """``float64[N, R]``: (weighted) least squares over the chosen samples, continued.

    ``ahead`` instants beyond the last instant; with fewer than two chosen instants, their mean.
    """
    things, instants, axes = samples.shape
    if not instants:
        return np.zeros((things, axes))
    x = np.arange(instants, dtype=np.float64)
    weights = chosen.astype(np.float64)
    if loess:
        newest = np.where(chosen, x, -np.inf).max(axis=1, initial=-np.inf)
        oldest = np.where(chosen, x, np.inf).min(axis=1, initial=np.inf)
        reach = np.where(np.isfinite(newest), newest - oldest + 1.0, 1.0)
        far = np.where(chosen, newest[:, None] - x, 0.0) / reach[:, None]
        weights *= (1.0 - np.clip(far, 0.0, 1.0) ** 3) ** 3
    mass = weights.sum(axis=1)
    share = weights / np.where(mass > 0, mass, 1.0)[:, None]
    mean_x = share @ x
    mean_y: FloatArray = np.einsum("nt,ntr->nr", share, samples)
    dx = x - mean_x[:, None]
    spread = (share * dx * dx).sum(axis=1)
    slope = (
        np.einsum("nt,ntr->nr", share * dx, samples) / np.where(spread > 0, spread, 1.0)[:, None]
    )
    reached: FloatArray = mean_y + slope * ((instants - 1 + ahead) - mean_x)[:, None]
    return np.where((spread > 0)[:, None], reached, mean_y)


def _weighted_mean(window: Window, weights: FloatArray | BoolArray) -> tuple[FloatArray, BoolArray]:
    mass = weights.sum(axis=1)
    total: FloatArray = np.einsum("nt,ntr->nr", weights.astype(np.float64), window.samples)
    known: BoolArray = mass > 0
    return total / np.where(known, mass, 1.0)[:, None], known


def in_bounds(values: FloatArray) -> BoolArray:
    """Where a value is one that something could have used; same shape as ``values``."""
    sound: BoolArray = (values >= 0) & (values <= MAX_VALUE)
    return sound


def _usable(requested: FloatArray) -> FloatArray:
    return np.where(in_bounds(requested), requested, 0.0)


def _answer(window: Window, requested: FloatArray, value: FloatArray, known: BoolArray) -> Estimate:
    """``value`` where known, else what was requested; says so if the two are not about the same."""
    usable = _usable(requested)
    problems = list(window.problems)
    if usable.shape != requested.shape or not np.array_equal(usable, requested):
        problems.append(Problem("requested", "has values that are no demand; 0 instead", "range"))
    if value.shape != requested.shape:
        message = f"samples for {value.shape}, requests for {requested.shape}"
        problems.append(Problem("samples", message, "shape"))
        return Estimate(usable, np.zeros(len(requested), dtype=np.bool_), tuple(problems))
    return Estimate(np.where(known[:, None], value, usable), known, tuple(problems))

"""Estimators and detectors by name, those of plug-ins among the built-in ones.

A plug-in is asked thing by thing, under the guard of ``plugins``. Where it fails, the answer is
that of the built-in default: the mean of the samples, the thresholds; the log has the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.detection import LIMITS, Detector, Limit, Thresholds, Verdicts, axis_values
from snooze.scheduling.estimation import ESTIMATORS, Average, Estimate, Estimator, Window
from snooze.scheduling.plugins import DeciderKind, Plugins
from snooze.scheduling.snapshot import BoolArray, Problem
from snooze.scheduling.units import UnitFailed


@dataclass(frozen=True, slots=True)
class PluggedEstimator:
    """An estimator of a plug-in; see ``Estimator``."""

    plugins: Plugins
    name: str

    def estimate(self, window: Window, requested: FloatArray) -> Estimate:
        """See ``Estimator``."""
        usual = Average().estimate(window, requested)
        if len(usual.value) != window.things:
            return usual
        value = usual.value.copy()
        for row in np.flatnonzero(usual.known).tolist():
            samples = window.samples[row][window.valid[row]]
            try:
                value[row] = self.plugins.estimate(samples, requested[row], self.name)
            except UnitFailed as failure:
                problem = Problem(f"estimator {self.name}", str(failure), "plugin")
                return Estimate(value, usual.known, (*usual.problems, problem))
        return Estimate(value, usual.known, usual.problems)


@dataclass(frozen=True, slots=True)
class PluggedVerdicts:
    """A detector of a plug-in; see ``Verdicts``."""

    plugins: Plugins
    name: str
    thresholds: Thresholds

    def verdicts(self, window: Window) -> tuple[BoolArray, BoolArray]:
        """See ``Verdicts``. A host without samples is neither."""
        hosts, axes = len(window.samples), int(window.samples.shape[2])
        newest = window.newest()
        hot: BoolArray = np.any(newest > axis_values(self.thresholds.maximum, axes), axis=1)
        idle: BoolArray = np.all(newest < axis_values(self.thresholds.minimum, axes), axis=1)
        capacity: FloatArray = np.ones(axes, dtype=np.float64)
        for row in range(hosts):
            samples = window.samples[row][window.valid[row]]
            if not len(samples):
                hot[row] = idle[row] = False
                continue
            try:
                answer = self.plugins.detect(samples, capacity, self.name)
            except UnitFailed:
                break
            hot[row], idle[row] = answer == "overload", answer == "underload"
        return hot, idle


@dataclass(frozen=True, slots=True)
class Choices:
    """What settings choose from, by name."""

    estimators: Mapping[str, Estimator]
    limits: Mapping[str, Limit]
    plugged: frozenset[str]
    plugins: Plugins | None

    def detector(self, name: str, thresholds: Thresholds, **rest: float) -> Detector:
        """The detector of that name; ``rest``: ``sustain_s``, ``idle_s``, ``hysteresis``.

        Raises:
            ValueError: there is none.
        """
        verdicts: Verdicts | None = None
        if self.plugins is not None and name in self.plugged:
            verdicts = PluggedVerdicts(self.plugins, name, thresholds)
        elif name not in self.limits:
            known = ", ".join(sorted({*self.limits, *self.plugged}))
            raise ValueError(f"there is no detector {name!r}; there are: {known}")
        limit = self.limits.get(name, LIMITS["thresholds"])
        return Detector(limit, thresholds, verdicts=verdicts, **rest)

    def estimator(self, name: str) -> Estimator:
        """The estimator of that name.

        Raises:
            ValueError: there is none.
        """
        found = self.estimators.get(name)
        if found is None:
            known = ", ".join(sorted(self.estimators))
            raise ValueError(f"there is no estimator {name!r}; there are: {known}")
        return found


def choices(plugins: Plugins | None = None) -> Choices:
    """The built-in estimators and detectors, and those of plug-ins under other names."""
    if plugins is None:
        return Choices(ESTIMATORS, LIMITS, frozenset(), None)
    names = {
        kind: frozenset(name for of, name in plugins.deciders if of is kind)
        for kind in (DeciderKind.ESTIMATOR, DeciderKind.DETECTOR)
    }
    estimators: dict[str, Estimator] = {
        name: PluggedEstimator(plugins, name) for name in names[DeciderKind.ESTIMATOR]
    }
    return Choices(
        MappingProxyType({**estimators, **ESTIMATORS}),
        LIMITS,
        names[DeciderKind.DETECTOR] - LIMITS.keys(),
        plugins,
    )

"""One round of relocation: from the samples of VMs to moves. What a group manager calls.

Samples are forecast, hosts are judged, a policy plans; what must be remembered goes in and comes
out as a ``Memory``. Pure, like all its parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling import detection, relocation_predictive
from snooze.scheduling.detection import Detection, Detector, Watch
from snooze.scheduling.estimation import Forecast, Window, forecast, hosts_window
from snooze.scheduling.power_model import PowerModel
from snooze.scheduling.relocation import Hold, Relocation, Situation
from snooze.scheduling.relocation_greedy import Greedy, GreedyOverload, GreedyUnderload
from snooze.scheduling.snapshot import Snapshot, accepting

FORECAST_S: Final = 3600.0
"""The past that a forecast looks at, and the future it is meant for."""


class RelocationPolicy(Protocol):
    """Plans moves."""

    @property
    def name(self) -> str:
        """What it is called in settings."""
        ...

    def plan(self, situation: Situation) -> Relocation:
        """Never raises on bad values; its plan breaks no hard rule."""
        ...


RELOCATIONS: Final[Mapping[str, RelocationPolicy]] = MappingProxyType(
    {
        each.name: each
        for each in (
            relocation_predictive.DEFAULT,
            Greedy(),
            GreedyOverload(),
            GreedyUnderload(),
        )
    }
)
"""The built-in relocation policies by name, with their default settings."""


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What one round leaves to the next.

    Attributes:
        host_ids: the hosts that ``watch`` is about.
        watch: of the detector.
        hold: of the policy.
    """

    host_ids: tuple[str, ...] = ()
    watch: Watch = field(default_factory=lambda: Watch.fresh(0))
    hold: Hold = field(default_factory=Hold)


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """What was seen, what is to be done, and what to remember."""

    detection: Detection
    relocation: Relocation
    memory: Memory


@dataclass(frozen=True, slots=True)
class Relocator:
    """Detector and policy, as settings choose them.

    ``forecast_s``: the past that a forecast looks at.
    """

    detector: Detector = detection.DEFAULT
    policy: RelocationPolicy = relocation_predictive.DEFAULT
    forecast_s: float = FORECAST_S

    def judge(self, snapshot: Snapshot, window: Window, watch: Watch, period_s: float) -> Detection:
        """Which hosts are too hot or too idle; called once per new sample.

        ``watch`` is about the hosts of the snapshot, in its order.
        """
        return self.detector.detect(_utilisation(snapshot, window), watch, period_s)

    def foresee(
        self, snapshot: Snapshot, window: Window, requested: FloatArray, period_s: float
    ) -> Forecast:
        """What the snapshot's VMs are expected to use, on all its axes."""
        samples = max(1, round(self.forecast_s / period_s)) if period_s > 0 else 1
        load_axes = window.samples.shape[2] or len(snapshot.axes)
        foreseen = forecast(window, requested[:, :load_axes], samples)
        further = snapshot.demand[:, load_axes:]
        if further.shape[1] and len(foreseen.expected) == len(further):
            foreseen = replace(
                foreseen,
                expected=np.hstack([foreseen.expected, further]),
                deviation=np.hstack([foreseen.deviation, np.zeros_like(further)]),
            )
        return foreseen

    def situation(
        self,
        snapshot: Snapshot,
        foreseen: Forecast | None,
        load_axes: int,
        seen: Detection,
        hold: Hold,
        now_s: float,
        power: PowerModel | None = None,
        history: Window | None = None,
    ) -> Situation:
        """What a policy is asked after ``judge`` and ``foresee``."""
        active = accepting(snapshot)
        return Situation(
            snapshot,
            now_s,
            overloaded=seen.overloaded & active,
            underloaded=seen.underloaded & active,
            forecast=foreseen,
            power=power,
            hold=hold,
            history=history,
            load_axes=load_axes,
        )

    def relocate(
        self,
        snapshot: Snapshot,
        window: Window,
        requested: FloatArray,
        memory: Memory,
        now_s: float,
        period_s: float,
        power: PowerModel | None = None,
    ) -> Round:
        """Judge and plan; called once per new sample. Never raises on bad values.

        Args:
            snapshot: hosts and VMs; ``demand`` is what VMs use now, ``headroom`` the MID threshold.
                It may have more axes than the window: there VMs only need room, for certain.
            window: samples of the snapshot's VMs, in its order, at the same instants for all.
            requested: ``float64[V, R]``, what was asked for, where there are no samples.
            memory: from the last round; ``Memory()`` in the first.
            now_s: the caller's clock.
            period_s: time between samples.
            power: of the snapshot's hosts, in its order.
        """
        watch = memory.watch.followed(memory.host_ids, snapshot.host_ids)
        seen = self.judge(snapshot, window, watch, period_s)
        foreseen = self.foresee(snapshot, window, requested, period_s)
        load_axes = window.samples.shape[2] or len(snapshot.axes)
        answer = self.policy.plan(
            self.situation(snapshot, foreseen, load_axes, seen, memory.hold, now_s, power, window)
        )
        plan = replace(answer.plan, problems=(*answer.plan.problems, *seen.problems))
        answer = replace(answer, plan=plan)
        return Round(seen, answer, Memory(snapshot.host_ids, seen.watch, answer.hold))


def _utilisation(snapshot: Snapshot, window: Window) -> Window:
    """Each host's history, of the VMs that are listed, as fractions of its capacity."""
    total = hosts_window(window, snapshot.placement, snapshot.hosts)
    axes = total.samples.shape[2]
    capacity = snapshot.capacity[:, None, :axes]
    if axes != capacity.shape[2] or not axes:
        nothing = np.zeros((snapshot.hosts, 0, capacity.shape[2]))
        return Window(nothing, np.zeros((snapshot.hosts, 0), dtype=np.bool_), window.problems)
    share = np.zeros_like(total.samples)
    np.divide(total.samples, capacity, out=share, where=capacity > 0)
    return Window(share, total.valid, total.problems)

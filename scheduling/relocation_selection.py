"""Which VM leaves an overloaded host first.

A selection scores the VMs of a host; the lowest score leaves, the first of equals, and all are
scored again until the host is relieved. Source, but for ``best_relief``: Beloglazov and Buyya,
CCPE 24(13), 2012.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.estimation import Window
from snooze.scheduling.relocation_cost import MigrationCost
from snooze.scheduling.snapshot import IntArray

MOVE_ITSELF: Final = 0.2
"""What a move costs beside the service its VM loses, in hosts kept busy: two daemons, the copying,
and the host that receives and is charged for a VM that does not run there yet."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A host that must lose VMs.

    Attributes:
        vms: ``int64[n]``, candidates, in the order of their indices.
        use: ``float64[n, R]``, what each uses, as a share of the host.
        excess: ``float64[R]``, what must go, as a share of the host; not negative.
        cost: of every VM of the snapshot.
        history: of every VM of the snapshot, if there is one.
    """

    vms: IntArray
    use: FloatArray
    excess: FloatArray
    cost: MigrationCost
    history: Window | None = None


class Selection(Protocol):
    """Scores VMs; the lowest leaves."""

    @property
    def name(self) -> str:
        """What it is called in settings."""
        ...

    def score(self, choice: Choice) -> FloatArray:
        """``float64[n]``."""
        ...


@dataclass(frozen=True, slots=True)
class BestRelief:
    """The most relief for the least migration: seconds of copying per share of excess taken away.

    A small VM that takes away little is as bad a choice as a large one that takes away more than
    needed.
    """

    name: str = "best_relief"

    def score(self, choice: Choice) -> FloatArray:
        """See ``Selection``."""
        relief: FloatArray = np.minimum(choice.use, choice.excess).sum(axis=1)
        busy = MOVE_ITSELF + choice.use.max(axis=1, initial=0.0)
        effort = choice.cost.duration_s[choice.vms] * busy + choice.cost.downtime_s[choice.vms]
        score: FloatArray = effort / np.maximum(relief, 1e-9)
        return score


@dataclass(frozen=True, slots=True)
class MinimumMigrationTime:
    """The VM that is copied soonest (MMT)."""

    name: str = "minimum_migration_time"

    def score(self, choice: Choice) -> FloatArray:
        """See ``Selection``."""
        return choice.cost.duration_s[choice.vms]


@dataclass(frozen=True, slots=True)
class MinimumUtilisation:
    """The VM that uses least (MU)."""

    name: str = "minimum_utilisation"

    def score(self, choice: Choice) -> FloatArray:
        """See ``Selection``."""
        most: FloatArray = choice.use.max(axis=1, initial=0.0)
        return most


@dataclass(frozen=True, slots=True)
class MaximumCorrelation:
    """The VM whose use rises and falls most with that of the rest of the host (MC).

    Correlation of its use of the first resource with the sum of the others'. Without a history, or
    with one that never changes, nothing is correlated and the first VM leaves.
    """

    name: str = "maximum_correlation"

    def score(self, choice: Choice) -> FloatArray:
        """See ``Selection``."""
        if choice.history is None or not choice.history.samples.shape[2]:
            return np.zeros(len(choice.vms))
        own = choice.history.samples[choice.vms, :, 0]
        rest = own.sum(axis=0) - own
        own = own - own.mean(axis=1, keepdims=True)
        rest = rest - rest.mean(axis=1, keepdims=True)
        scale = np.sqrt((own * own).sum(axis=1) * (rest * rest).sum(axis=1))
        together: FloatArray = (own * rest).sum(axis=1) / np.where(scale > 0, scale, 1.0)
        return -together


@dataclass(frozen=True, slots=True, eq=False)
class RandomChoice:
    """Any VM (RS). The generator is the caller's."""

    rng: np.random.Generator
    name: str = "random"

    def score(self, choice: Choice) -> FloatArray:
        """See ``Selection``."""
        return self.rng.random(len(choice.vms))


SELECTIONS: Final[Mapping[str, Selection]] = MappingProxyType(
    {
        each.name: each
        for each in (
            BestRelief(),
            MinimumMigrationTime(),
            MinimumUtilisation(),
            MaximumCorrelation(),
        )
    }
)
"""The built-in selections by name; the random one needs a generator."""

"""The machines of the simulated month, and what is noted of a run."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PERIOD_S: Final = 300.0
MIGRATION_SHARE: Final = 0.1
WAKE_S: Final = 300.0

OFF, ON, WAKING, FAILED = range(4)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The machines and what the guests ask for.

    Attributes:
        cores: ``float64[H]``.
        power_w: ``float64[H, 11]``.
        asked: ``float64[V]``, cores of each guest's size.
        memory_kib: ``float64[V]``.
        use: ``float64[V, N]``, cores asked for in each period.
    """

    cores: Floats
    power_w: Floats
    asked: Floats
    memory_kib: Floats
    use: Floats
    host_memory_kib: float = 32.0 * 1024 * 1024
    asleep_w: float = 5.0

    @property
    def periods(self) -> int:
        """N."""
        return int(self.use.shape[1])

    def watts(self, hosts: Ints, load: Floats) -> Floats:
        """Power of ``hosts`` at these loads in cores."""
        tenth = np.clip(load / self.cores[hosts], 0.0, 1.0) * 10.0
        below = np.minimum(tenth.astype(np.int64), 9)
        low = self.power_w[hosts, below]
        drawn: Floats = low + (self.power_w[hosts, below + 1] - low) * (tenth - below)
        return drawn


@dataclass(frozen=True, slots=True)
class Moved:
    """One migration that was carried out."""

    decision_id: str
    vm: int
    source: int
    target: int
    began_s: float
    ended_s: float


@dataclass(slots=True)
class Meters:
    """Of one run."""

    energy_j: float = 0.0
    unserved: float = 0.0
    asked: float = 0.0
    stopped: float = 0.0
    lost_to_migration: float = 0.0
    hot_s: float = 0.0
    active_s: float = 0.0
    sleeps: int = 0
    wakes: int = 0
    failures: int = 0
    restarts: int = 0
    waited_s: float = 0.0


@dataclass(slots=True)
class History:
    """Where everything was in each period: ``place[N, V]`` (-1: nowhere), ``state[N, H]``."""

    place: NDArray[np.int16]
    state: NDArray[np.int8]
    energy_w: Floats
    unserved: Floats
    load: Floats
    up: Floats

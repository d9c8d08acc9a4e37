"""What moving a VM costs: how long it takes, how long it stands still, what service it loses.

Live migration copies memory in rounds while the VM goes on writing; each round copies what was
written during the one before. Once the rest can be copied within ``stop_s`` (or rounds are used
up) the VM is stopped and the rest copied. A VM that writes as fast as the network copies never gets
there: it stands still for as long as its memory takes.

Source: Clark et al., "Live migration of virtual machines", NSDI 2005.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.snapshot import BoolArray, Snapshot

MAX_ROUNDS: Final = 30
"""Source: the bound of Xen; QEMU's is the time, ours is checked by the one who migrates."""


FOREVER_S: Final = 1e9
"""Some thirty years; finite, so that nothing becomes NaN on the way."""


@dataclass(frozen=True, slots=True, eq=False)
class MigrationCost:
    """Per VM of a snapshot.

    Attributes:
        duration_s: ``float64[V]``, from start to end.
        downtime_s: ``float64[V]``, part of it in which the VM stands still.
        copied_kib: ``float64[V]``, over the network.
        lost: ``float64[V]``, service lost, in seconds of the VM's full service.
    """

    duration_s: FloatArray
    downtime_s: FloatArray
    copied_kib: FloatArray
    lost: FloatArray


@dataclass(frozen=True, slots=True)
class MigrationModel:
    """The network that memory is copied over, and what a move does to the VM.

    Attributes:
        bandwidth_kib_s: for one migration. 62.5 MB/s is half of a 1 Gbit/s link.
        stop_s: longest stop that is aimed at.
        setup_s: fixed part of the stop: hand-over, announcing the new place.
        slowdown: share of its service a VM loses while it is copied. Source: 10 %, Voorsluys et
            al., "Cost of virtual machine live migration in clouds", CloudCom 2009.
    """

    bandwidth_kib_s: float = 62_500.0
    stop_s: float = 0.3
    setup_s: float = 0.0
    slowdown: float = 0.1

    def cost(self, snapshot: Snapshot) -> MigrationCost:
        """Of every VM. Without bandwidth everything takes ``FOREVER_S``."""
        left = snapshot.memory_kib.copy()
        bandwidth = self.bandwidth_kib_s
        if not bandwidth > 0:
            forever = np.full(snapshot.vms, FOREVER_S)
            return MigrationCost(forever, forever, left, forever)
        written = snapshot.dirty_rate_kib_s / bandwidth
        copied = np.zeros(snapshot.vms)
        copying: BoolArray = (left > self.stop_s * bandwidth) & (written < 1)
        for _ in range(MAX_ROUNDS):
            if not copying.any():
                break
            copied += np.where(copying, left, 0.0)
            left = np.where(copying, left * written, left)
            copying = copying & (left > self.stop_s * bandwidth)
        duration_s = (copied + left) / bandwidth + self.setup_s
        downtime_s = left / bandwidth + self.setup_s
        lost = self.slowdown * (duration_s - downtime_s) + downtime_s
        return MigrationCost(duration_s, downtime_s, copied + left, lost)

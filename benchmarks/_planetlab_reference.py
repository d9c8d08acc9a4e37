"""CloudSim 3.0.3's published policies, the yardstick: power-aware best fit with THR, IQR, MAD, LR.

What they do, at every decision (Beloglazov and Buyya, CCPE 24(13), 2012, and how the code behaves):

1. Find the overloaded hosts. From each take the VM with the least memory (MMT) until the detector
   is content. A host's history is the sum of the histories of the VMs now on it.
2. Place those VMs, largest demand first, where the power rises least: any host, off ones included,
   that has the MIPS free, is not overloaded now and would not be after. A VM without a host stays.
3. Again and again: take the least used host not yet looked at, neither off nor overloaded, nor
   chosen as a target in this step; move all its VMs to hosts that are on, as in 2, or none.

Three quirks are kept, since the figures depend on them: power "before" is that of the start of the
decision, whatever was planned since; a VM placed in 2 may be moved on in 3, and both moves are
carried out and counted; and a host once looked at in 3 takes no more VMs.

LR is an unweighted line over ten samples: the published code computes tricube weights and then does
not use them.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from benchmarks._planetlab_kernels import HISTORY, IQR, LR, MAD, THR, Step, decide
from benchmarks._planetlab_world import HOST_RAM_MB, Fleet, Floats, Ints, World


def first_places(fleet: Fleet) -> Ints:
    """Where CloudSim creates the VMs, in index order: full speed and memory are reserved.

    The host whose power rises least over an idle one's; -1 where none has room.
    """
    hosts = fleet.total_mips.size
    free = fleet.total_mips.copy()
    ram_mb = np.full(hosts, float(HOST_RAM_MB))
    places = np.full(fleet.vm_mips.size, -1, dtype=np.int64)
    for vm, mips in enumerate(fleet.vm_mips.tolist()):
        fits = (fleet.core_mips >= mips) & (free >= mips) & (ram_mb >= fleet.ram_mb[vm])
        if fits.any():
            after = (fleet.total_mips - free + mips) / fleet.total_mips
            rise = fleet.watts(after) - fleet.power_w[:, 0]
            host = int(np.argmin(np.where(fits, rise, np.inf)))
            places[vm] = host
            free[host] -= mips
            ram_mb[host] -= fleet.ram_mb[vm]
    return places


@dataclass(slots=True)
class Published:
    """One of the published policies, for one run.

    Attributes:
        history: ``float64[V, 30]``, utilisation of each VM at the last decisions, newest first.
        seats: ``int64[H, V]``, the VMs of each host, in its order; scratch.
    """

    fleet: Fleet
    method: int
    parameter: float
    history: Floats = field(init=False)
    seats: Ints = field(init=False)

    def __post_init__(self) -> None:
        hosts, vms = self.fleet.total_mips.size, self.fleet.vm_mips.size
        self.history = np.zeros((vms, HISTORY))
        self.seats = np.zeros((hosts, vms), dtype=np.int64)

    def plan(self, world: World) -> tuple[Ints, Ints]:
        """VMs to move and their targets, in the order in which CloudSim starts them."""
        fleet = self.fleet
        self.history[:, 1:] = self.history[:, :-1].copy()
        self.history[:, 0] = fleet.utilisation_at(world.now_s)
        counts = np.bincount(world.seat_host, minlength=fleet.total_mips.size).astype(np.int64)
        busy = self.history != 0
        oldest = np.where(busy.any(axis=1), HISTORY - np.argmax(busy[:, ::-1], axis=1), 1)
        moves = decide(
            Step(
                self.method,
                self.parameter,
                self._seated(world, counts),
                counts,
                np.zeros(counts.size),
                np.zeros(counts.size),
                np.zeros(counts.size),
                world.host_mips,
                fleet.core_mips,
                fleet.total_mips,
                fleet.power_w,
                world.demand,
                fleet.ram_mb,
                self.history * fleet.vm_mips[:, None],
                oldest.astype(np.int64),
                np.zeros(HISTORY),
            )
        )
        return moves[:, 0], moves[:, 1]

    def _seated(self, world: World, counts: Ints) -> Ints:
        order = np.argsort(world.seat_host, kind="stable")
        position = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
        self.seats[world.seat_host[order], position] = world.seat_vm[order]
        return self.seats


PUBLISHED: Final = {"thr": (THR, 0.8), "iqr": (IQR, 1.5), "mad": (MAD, 2.5), "lr": (LR, 1.2)}
"""Detector and parameter of each published policy, as in our runs of CloudSim."""

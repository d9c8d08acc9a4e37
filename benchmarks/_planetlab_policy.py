"""The product's own policy at work in the PlanetLab world: nothing but its public parts, joined.

What a group manager does with its hosts is done here with the world's: samples go into a ring, and
the product's ``Relocator`` makes moves of them.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from benchmarks._planetlab_world import PERIOD_S, Fleet, Ints, World
from snooze.scheduling.check import check_plan
from snooze.scheduling.estimation import SampleRing
from snooze.scheduling.power_model import PowerModel
from snooze.scheduling.relocation_round import FORECAST_S, Memory, Relocator
from snooze.scheduling.snapshot import HostState, Labels, Snapshot

Arrivals = tuple[Ints, Ints]
"""VMs and the hosts they are on their way to."""

NOBODY: Final[Arrivals] = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
WINDOW: Final = int(FORECAST_S / PERIOD_S)
KIB_PER_MB: Final = 1000


@dataclass(slots=True)
class Ours:
    """The default policy, for one run.

    Attributes:
        asleep_w, wake_s: what the policy is told of sleep; the reference's world has none.
        checked: prove every plan with the independent checker, and fail loudly.
    """

    fleet: Fleet
    relocator: Relocator = field(default_factory=Relocator)
    asleep_w: float = 0.0
    wake_s: float = 0.0
    checked: bool = False
    memory: Memory = field(default_factory=Memory)
    ring: SampleRing = field(init=False)
    power: PowerModel = field(init=False)
    tags: Labels = field(init=False)
    host_ids: tuple[str, ...] = field(init=False)
    vm_ids: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        fleet = self.fleet
        hosts, vms = fleet.total_mips.size, fleet.vm_mips.size
        self.ring = SampleRing(vms, WINDOW, 1)
        self.power = PowerModel.of(fleet.power_w, asleep_w=self.asleep_w, wake_s=self.wake_s)
        self.host_ids = tuple(f"host{i}" for i in range(hosts))
        self.vm_ids = tuple(f"vm{i}" for i in range(vms))
        speeds = np.unique(fleet.core_mips)[1:]
        self.tags = Labels(
            tuple(f"core of {speed:g} MIPS" for speed in speeds),
            fleet.core_mips[:, None] >= speeds,
            fleet.vm_mips[:, None] > np.unique(fleet.core_mips)[:-1],
        )

    def plan(self, world: World, arriving: Arrivals = NOBODY) -> tuple[Ints, Ints]:
        """VMs to move now, and their targets; ``arriving`` are on their way already."""
        fleet = self.fleet
        self.ring.push(np.arange(fleet.vm_mips.size), world.demand[:, None])
        snapshot = self.snapshot(world, arriving)
        found = self.relocator.relocate(
            snapshot,
            self.ring.window(),
            fleet.vm_mips[:, None],
            self.memory,
            world.now_s,
            PERIOD_S,
            self.power,
        )
        self.memory = found.memory
        plan = found.relocation.plan
        if self.checked:
            violations = check_plan(snapshot, plan)
            if violations:
                raise AssertionError(violations[0])
        vms = np.array([move.vm for move in plan.moves], dtype=np.int64)
        return vms, np.array([move.target for move in plan.moves], dtype=np.int64)

    def snapshot(self, world: World, arriving: Arrivals = NOBODY) -> Snapshot:
        """The world as the product sees it."""
        fleet = self.fleet
        hosts = fleet.total_mips.size
        placement = world.host_of.copy()
        movable = np.ones(placement.size, dtype=np.bool_)
        leaving = np.zeros((hosts, 1))
        vms, targets = arriving
        np.add.at(leaving[:, 0], placement[vms], world.demand[vms])
        placement[vms] = targets
        movable[vms] = False
        carries = np.bincount(world.seat_host, minlength=hosts) > 0
        carries[targets] = True
        return Snapshot.of(
            self.host_ids,
            fleet.total_mips[:, None],
            used=leaving,
            host_state=np.where(carries, HostState.ACTIVE, HostState.ASLEEP),
            vm_ids=self.vm_ids,
            demand=world.demand[:, None],
            placement=placement,
            headroom=self.relocator.detector.thresholds.middle,
            memory_kib=fleet.ram_mb * KIB_PER_MB,
            movable=movable,
            tags=self.tags,
            axes=("mips",),
        )

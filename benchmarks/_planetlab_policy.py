"""The product's own policy at work in the PlanetLab world: nothing but its public parts, joined.

What a group manager does with its hosts is done here with the world's: samples go into a ring,
demand is forecast, hosts are judged by the default detector, and the default relocation plans.
"""

from dataclasses import dataclass, field

import numpy as np

from benchmarks._planetlab_world import PERIOD_S, Fleet, Ints, World
from snooze.scheduling import detection, relocation_predictive
from snooze.scheduling.check import check_plan
from snooze.scheduling.detection import Detector, Watch
from snooze.scheduling.estimation import SampleRing, Window, forecast, hosts_window
from snooze.scheduling.power_model import PowerModel
from snooze.scheduling.relocation import Hold, Situation
from snooze.scheduling.relocation_predictive import Predictive
from snooze.scheduling.snapshot import HostState, Labels, Snapshot

WINDOW = 12
KIB_PER_MB = 1000


@dataclass(slots=True)
class Ours:
    """The default policy, for one run."""

    fleet: Fleet
    policy: Predictive = relocation_predictive.DEFAULT
    detector: Detector = detection.DEFAULT
    checked: bool = False
    ring: SampleRing = field(init=False)
    watch: Watch = field(init=False)
    power: PowerModel = field(init=False)
    tags: Labels = field(init=False)
    hold: Hold = field(default_factory=Hold)
    host_ids: tuple[str, ...] = field(init=False)
    vm_ids: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        fleet = self.fleet
        hosts, vms = fleet.total_mips.size, fleet.vm_mips.size
        self.ring = SampleRing(vms, WINDOW, 1)
        self.watch = Watch.fresh(hosts)
        self.power = PowerModel.of(fleet.power_w)
        self.host_ids = tuple(f"host{i}" for i in range(hosts))
        self.vm_ids = tuple(f"vm{i}" for i in range(vms))
        speeds = np.unique(fleet.core_mips)[1:]
        self.tags = Labels(
            tuple(f"core of {speed:g} MIPS" for speed in speeds),
            fleet.core_mips[:, None] >= speeds,
            fleet.vm_mips[:, None] > np.unique(fleet.core_mips)[:-1],
        )

    def plan(self, world: World) -> tuple[Ints, Ints]:
        """VMs to move now, and their targets."""
        fleet = self.fleet
        everyone = np.arange(fleet.vm_mips.size)
        self.ring.push(everyone, world.demand[:, None])
        window = self.ring.window()
        snapshot = self.snapshot(world)
        hosts = hosts_window(window, world.host_of, fleet.total_mips.size)
        share = Window(hosts.samples / fleet.total_mips[:, None, None], hosts.valid)
        seen = self.detector.detect(share, self.watch, PERIOD_S)
        self.watch = seen.watch
        active = snapshot.host_state == HostState.ACTIVE
        answer = self.policy.plan(
            Situation(
                snapshot,
                world.now_s,
                seen.overloaded & active,
                seen.underloaded & active,
                forecast(window, fleet.vm_mips[:, None], WINDOW),
                self.power,
                self.hold,
                window,
            )
        )
        self.hold = answer.hold
        if self.checked:
            violations = check_plan(snapshot, answer.plan)
            if violations:
                raise AssertionError(violations[0])
        moves = answer.plan.moves
        vms = np.array([move.vm for move in moves], dtype=np.int64)
        return vms, np.array([move.target for move in moves], dtype=np.int64)

    def snapshot(self, world: World) -> Snapshot:
        """The world as the product sees it."""
        fleet = self.fleet
        carries = np.bincount(world.seat_host, minlength=fleet.total_mips.size) > 0
        return Snapshot.of(
            self.host_ids,
            fleet.total_mips[:, None],
            host_state=np.where(carries, HostState.ACTIVE, HostState.ASLEEP),
            vm_ids=self.vm_ids,
            demand=world.demand[:, None],
            placement=world.host_of,
            headroom=self.detector.thresholds.middle,
            memory_kib=fleet.ram_mb * KIB_PER_MB,
            tags=self.tags,
            axes=("mips",),
        )

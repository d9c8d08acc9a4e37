"""The standard world of dynamic consolidation: 800 hosts, a day of VMs, CloudSim's accounting.

Rules (issue "A scheduler that beats the published ones", benchmark 2; the behaviour of CloudSim
3.0.3's power package, checked against our own runs of it):

1. Time runs from one decision to the next, every 300 s, starting 0.1 s after midnight plus one
   period. Accounting happens at each decision and at the end of each migration it started.
2. A VM's demand is interpolated between its 5-minute samples. A host serves it up to the speed of
   one core; if the sum exceeds the host, everybody gets the same share, in whole MIPS.
3. A migrating VM gets 90 % of its share on its source, and 10 % of its demand is charged to the
   target as well. A migration lasts memory / 62.5 MB/s.
4. Energy of an interval is the mean of the power at its two ends; a host that served nothing at
   the start of the interval is off and costs nothing.
5. ``compat``: a VM whose demand is zero at an accounting point leaves for the day, as in the
   released CloudSim. ``clean``: it stays.

The order in which a host lists its VMs is kept (new ones last), since sums of floats depend on it
and the reference compares two such sums with ``<``.

Arrays: ``H`` hosts, ``V`` VMs, ``S`` seats. A *seat* is a VM on a host: each VM has one, and a
migrating VM one more on its target.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Mode = Literal["compat", "clean"]

PERIOD_S: Final = 300.0
START_S: Final = 0.1
SAMPLES: Final = 288
DECISIONS: Final = SAMPLES - 1
HOSTS: Final = 800
CORES: Final = 2
HOST_MIPS: Final = (1860, 2660)
HOST_RAM_MB: Final = 4096
HOST_POWER_W: Final = (
    (86.0, 89.4, 92.6, 96.0, 99.5, 102.0, 106.0, 108.0, 112.0, 114.0, 117.0),
    (93.7, 97.0, 101.0, 105.0, 110.0, 116.0, 121.0, 125.0, 129.0, 133.0, 135.0),
)
VM_MIPS: Final = (2500, 2000, 1000, 500)
VM_RAM_MB: Final = (870, 1740, 1740, 613)
MIGRATION_MB_S: Final = 62.5
MIGRATION_SHARE: Final = 0.9
ARRIVING_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Fleet:
    """The machines and one day of demand; nothing in it changes during a run.

    Attributes:
        core_mips, total_mips: ``float64[H]``, speed of one core and of the host.
        power_w: ``float64[H, 11]``, watts at 0, 10, .. 100 % utilisation.
        vm_mips, ram_mb: ``float64[V]``.
        utilisation: ``float64[V, 289]``, fractions; the last sample is repeated once.
    """

    core_mips: Floats
    total_mips: Floats
    power_w: Floats
    vm_mips: Floats
    ram_mb: Floats
    utilisation: Floats

    @classmethod
    def of(cls, utilisation_percent: NDArray[np.integer], hosts: int = HOSTS) -> "Fleet":
        """The benchmark's fleet for a day's ``utilisation_percent[V, 288]``."""
        vms = int(utilisation_percent.shape[0])
        kind = np.arange(hosts) % len(HOST_MIPS)
        core_mips = np.array(HOST_MIPS, dtype=np.float64)[kind]
        vm_kind = np.arange(vms) // max(1, -(-vms // len(VM_MIPS)))
        samples = utilisation_percent.astype(np.float64) / 100.0
        return cls(
            core_mips=core_mips,
            total_mips=core_mips * CORES,
            power_w=np.array(HOST_POWER_W)[kind],
            vm_mips=np.array(VM_MIPS, dtype=np.float64)[vm_kind],
            ram_mb=np.array(VM_RAM_MB, dtype=np.float64)[vm_kind],
            utilisation=np.concatenate([samples, samples[:, -1:]], axis=1),
        )

    def utilisation_at(self, now_s: float) -> Floats:
        """``float64[V]``: the part of its own speed that each VM asks for at ``now_s``."""
        before = int(now_s // PERIOD_S)
        low = self.utilisation[:, before]
        slope = (self.utilisation[:, min(before + 1, SAMPLES)] - low) / PERIOD_S
        now: Floats = low + slope * (now_s - before * PERIOD_S)
        return now

    def demand_mips(self, now_s: float) -> Floats:
        """``float64[V]``: what each VM asks for at ``now_s``."""
        demand: Floats = self.utilisation_at(now_s) * self.vm_mips
        return demand

    def watts(self, utilisation: Floats, hosts: Ints | slice = slice(None)) -> Floats:
        """Power of ``hosts`` at the utilisations given, linear between the eleven points."""
        tenth = np.clip(utilisation, 0.0, 1.0) * 10.0
        below = np.minimum(tenth.astype(np.int64), 9)
        curve = self.power_w[hosts]
        rows = np.arange(below.size)
        low = curve[rows, below]
        watts: Floats = low + (curve[rows, below + 1] - low) * (tenth - below)
        return watts


def load_day(path: Path) -> Fleet:
    """The fleet of one ``DAY.npz``."""
    with np.load(path, allow_pickle=False) as day:
        return Fleet.of(day["utilisation_percent"])


@dataclass(slots=True)
class Meters:
    """What is measured over a run; sums of products with seconds."""

    energy_j: float = 0.0
    migrations: int = 0
    shutdowns: int = 0
    active_s: float = 0.0
    violation_s: float = 0.0
    requested: float = 0.0
    allocated: float = 0.0
    lost_to_migration: float = 0.0

    @property
    def energy_kwh(self) -> float:
        return self.energy_j / 3.6e6

    @property
    def slatah(self) -> float:
        """Share of the hosts' active time in which they could not serve all demand."""
        return self.violation_s / self.active_s if self.active_s else 0.0

    @property
    def pdm(self) -> float:
        """Share of the demand that was not served because a migration was under way."""
        return self.lost_to_migration / self.requested if self.requested else 0.0

    @property
    def unserved(self) -> float:
        """Share of the demand that was not served, for whatever reason."""
        return (self.requested - self.allocated) / self.requested if self.requested else 0.0


@dataclass(slots=True)
class World:
    """The state of a run. ``place`` the VMs, then alternate ``advance`` and ``migrate``.

    Attributes:
        host_of: ``int64[V]``, where each VM runs; -1 if it does not (any more).
        demand: ``float64[V]``, MIPS asked for at ``now_s``.
        host_mips: ``float64[H]``, MIPS served at ``now_s``.
    """

    fleet: Fleet
    mode: Mode = "compat"
    now_s: float = START_S
    meters: Meters = field(default_factory=Meters)
    host_of: Ints = field(init=False)
    demand: Floats = field(init=False)
    host_mips: Floats = field(init=False)
    seat_vm: Ints = field(init=False)
    seat_host: Ints = field(init=False)
    seat_arriving: Bools = field(init=False)
    migrating: Bools = field(init=False)
    _host_requested: Floats = field(init=False)
    _vm_allocated: Floats = field(init=False)
    _vm_requested: Floats = field(init=False)
    _was_active: Bools = field(init=False)
    _accounted_s: float = 0.0
    _seen: bool = False

    def __post_init__(self) -> None:
        hosts, vms = self.fleet.total_mips.size, self.fleet.vm_mips.size
        self.host_of = np.full(vms, -1, dtype=np.int64)
        self.demand = np.zeros(vms)
        self.host_mips = np.zeros(hosts)
        self.seat_vm = np.zeros(0, dtype=np.int64)
        self.seat_host = np.zeros(0, dtype=np.int64)
        self.seat_arriving = np.zeros(0, dtype=np.bool_)
        self.migrating = np.zeros(vms, dtype=np.bool_)
        self._host_requested = np.zeros(hosts)
        self._vm_allocated = np.zeros(vms)
        self._vm_requested = np.zeros(vms)
        self._was_active = np.ones(hosts, dtype=np.bool_)

    def place(self, host_of: Ints) -> None:
        """Create the VMs, in index order, on the hosts given; -1: not created."""
        created = np.flatnonzero(host_of >= 0)
        self.host_of = host_of.astype(np.int64)
        self.seat_vm = created
        self.seat_host = self.host_of[created]
        self.seat_arriving = np.zeros(created.size, dtype=np.bool_)

    def advance(self, now_s: float) -> None:
        """Go on to ``now_s`` and account for the time in between; nothing else happens then."""
        span_s = now_s - self._accounted_s
        before = self.host_mips
        if self._seen:
            self._account_service(span_s)
        self._serve(now_s)
        on = np.flatnonzero(before > 0)
        total = self.fleet.total_mips[on]
        start_w = self.fleet.watts(before[on] / total, on)
        end_w = self.fleet.watts(self.host_mips[on] / total, on)
        self.meters.energy_j += float((start_w + (end_w - start_w) / 2).sum()) * span_s
        self.now_s = self._accounted_s = now_s
        self._seen = True
        self._let_go()

    def migrate(self, vms: Ints, targets: Ints) -> None:
        """Start these migrations now, in this order, and go on until the last has ended.

        A VM listed twice moves twice at the same time, as CloudSim lets it, and ends where its
        last entry says.
        """
        start_s = self.now_s
        if vms.size == 0:
            self._settle()
            return
        self.meters.migrations += int(vms.size)
        self.migrating[vms] = True
        self.seat_vm = np.concatenate([self.seat_vm, vms])
        self.seat_host = np.concatenate([self.seat_host, targets])
        self.seat_arriving = np.concatenate([self.seat_arriving, np.ones(vms.size, dtype=np.bool_)])
        self._serve(start_s)
        self._settle()
        lasts_s = self.fleet.ram_mb[vms] / MIGRATION_MB_S
        for end_s in np.unique(lasts_s):
            done = np.flatnonzero(lasts_s == end_s)
            self.advance(start_s + float(end_s))
            self._arrive(vms[done], targets[done])
            self._serve(self.now_s)
            self._let_go()
            self._settle()

    def _arrive(self, vms: Ints, targets: Ints) -> None:
        leave = np.isin(self.seat_vm, vms)
        self.host_of[vms] = targets
        self.migrating[vms] = False
        last = np.unique(vms[::-1], return_index=True)[1]
        kept = vms[np.sort(vms.size - 1 - last)]
        self.seat_vm = np.concatenate([self.seat_vm[~leave], kept])
        self.seat_host = np.concatenate([self.seat_host[~leave], self.host_of[kept]])
        self.seat_arriving = np.concatenate(
            [self.seat_arriving[~leave], np.zeros(kept.size, dtype=np.bool_)]
        )

    def _serve(self, now_s: float) -> None:
        """Share out the hosts' MIPS for the demand at ``now_s``."""
        fleet = self.fleet
        self.demand = fleet.demand_mips(now_s)
        host, arriving = self.seat_host, self.seat_arriving
        hosts = fleet.total_mips.size
        asked = self.demand[self.seat_vm]
        leaving = self.migrating[self.seat_vm] & ~arriving
        capped = np.minimum(asked, fleet.core_mips[host])
        charged = np.where(arriving, capped * ARRIVING_SHARE, capped)
        needed = np.bincount(host, charged, minlength=hosts)
        short = needed > fleet.total_mips
        share = np.divide(fleet.total_mips, needed, out=np.ones(hosts), where=short)[host]
        scaled = np.where(arriving, capped * ARRIVING_SHARE * share, capped * share)
        served = np.where(leaving, scaled * MIGRATION_SHARE, scaled)
        served = np.where(short[host], np.floor(served), served)
        drawn = np.where(leaving, served / MIGRATION_SHARE, served)
        self.host_mips = np.bincount(host, drawn, minlength=hosts).astype(np.float64)
        self._host_requested = np.bincount(host, asked, minlength=hosts).astype(np.float64)
        home = ~arriving
        self._vm_allocated[:] = 0.0
        self._vm_requested[:] = 0.0
        self._vm_allocated[self.seat_vm[home]] = served[home]
        self._vm_requested[self.seat_vm[home]] = asked[home]

    def _account_service(self, span_s: float) -> None:
        """Charge what was served since the last accounting point."""
        meters = self.meters
        active = self.host_mips > 0
        meters.active_s += span_s * int(active.sum())
        meters.violation_s += span_s * int((active & (self.host_mips < self._host_requested)).sum())
        lost = self._vm_requested - self._vm_allocated
        meters.requested += span_s * float(self._vm_requested.sum())
        meters.allocated += span_s * float(self._vm_allocated.sum())
        meters.lost_to_migration += span_s * float(lost[self.migrating & (lost > 0)].sum())

    def _settle(self) -> None:
        """The state at this instant is final: count hosts that fell idle since the last one."""
        active = self.host_mips > 0
        self.meters.shutdowns += int((self._was_active & ~active).sum())
        self._was_active = active

    def _let_go(self) -> None:
        """In compat mode, VMs that ask for nothing leave for the day."""
        if self.mode == "clean":
            return
        gone = (self.demand == 0) & (self.host_of >= 0) & ~self.migrating
        if not gone.any():
            return
        self.host_of[gone] = -1
        keep = ~gone[self.seat_vm]
        self.seat_vm = self.seat_vm[keep]
        self.seat_host = self.seat_host[keep]
        self.seat_arriving = self.seat_arriving[keep]


@dataclass(slots=True)
class SleepyWorld(World):
    """The same world where sleep and waking up cost something, which the reference leaves out.

    A host without VMs sleeps and draws ``asleep_w``; one that carries only idle VMs draws its idle
    power. A migration to a sleeping host first wakes it: the host draws full power for one period,
    and the migration starts at the next decision.
    """

    asleep_w: float = 5.0
    asleep_j: float = 0.0
    waking_j: float = 0.0
    wakes: int = 0
    promised_vms: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    promised_targets: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def carrying(self) -> Bools:
        """``bool[H]``: hosts with a VM on them, or on its way to them."""
        carries: Bools = np.bincount(self.seat_host, minlength=self.fleet.total_mips.size) > 0
        return carries

    def advance(self, now_s: float) -> None:
        """As in ``World``; charges sleeping and idle hosts as well."""
        span_s = now_s - self._accounted_s
        carries, seen = self.carrying(), self._seen
        idle = carries & (self.host_mips == 0)
        World.advance(self, now_s)
        if seen:
            self.asleep_j += span_s * self.asleep_w * int((~carries).sum())
            self.meters.energy_j += span_s * float(self.fleet.power_w[idle, 0].sum())

    def kept_promises(self) -> tuple[Ints, Ints]:
        """Migrations to hosts that have woken by now, to be started with this decision's."""
        still = self.host_of[self.promised_vms] >= 0
        due = self.promised_vms[still], self.promised_targets[still]
        self.promised_vms = self.promised_targets = np.zeros(0, dtype=np.int64)
        return due

    def promise(self, vms: Ints, targets: Ints) -> None:
        """Wake ``targets`` for migrations that start at the next decision."""
        hosts = np.unique(targets)
        self.promised_vms, self.promised_targets = vms, targets
        self.wakes += int(hosts.size)
        asleep_w = self.asleep_w * hosts.size
        self.waking_j += PERIOD_S * (float(self.fleet.power_w[hosts, -1].sum()) - asleep_w)

    @property
    def energy_kwh(self) -> float:
        """All of it: work, idling, sleep and waking up."""
        return (self.meters.energy_j + self.asleep_j + self.waking_j) / 3.6e6

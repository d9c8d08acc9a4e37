"""How much energy hosts use, and how much they would if none of them slept.

Rules:

1. A host draws what its BMC measured, if that is fresh; else what its RAPL counts (processors and
   memory: a lower bound); else what its curve says at its load (``scheduling.power_curves``). Where
   the figure came from is told with it.
2. One that sleeps, was fenced or failed draws what a sleeping one draws; one that is being woken
   what it draws under full load.
3. *Saved* is the difference to a cluster whose sleepers idle instead; waking costs some of it back.
4. Figures are joules since the record began, by host; a step longer than ``MAX_STEP_S`` counts as
   that long: nobody knows what was in between.
5. The past is kept in slots of ``SLOT_S``, ``SLOTS`` of them, means; hosts at most ``MAX_HOSTS``.

Invariant: the totals are the sums over all hosts ever metered.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec
import numpy as np

from snooze.common.energy_records import EnergyRecord, EnergySlot, HostEnergy
from snooze.common.records import HostPower
from snooze.common.resources import Capacity, FloatArray, R
from snooze.common.vm_lifecycle import HOLDS_CAPACITY
from snooze.common.wire import PowerDescription
from snooze.groupmanager.leader.registry import HostEntry, Registry
from snooze.scheduling.anticipation import SLOT_S, DayHistory
from snooze.scheduling.power_curves import GENERIC, asleep_w, curve_w

MAX_STEP_S: Final = 30.0
SLOTS: Final = 2016
"""A week of five minutes."""
MAX_HOSTS: Final = 20_000
FRESH_S: Final = 120.0
"""A measurement counts for so long."""
DEMAND_S: Final = 30.0
"""How often the demand of all VMs is summed up."""

_NONE: Final[Mapping[str, float]] = MappingProxyType({})
_DOWN: Final = frozenset({HostPower.ASLEEP, HostPower.FENCED, HostPower.FAILED})


class PowerSource(StrEnum):
    """Where a figure came from."""

    BMC = "bmc"
    RAPL = "rapl"
    MODEL = "model"


@dataclass(slots=True)
class HostMeter:
    """One host: joules and seconds since the record began, and watts now."""

    used_j: float = 0.0
    saved_j: float = 0.0
    up_s: float = 0.0
    asleep_s: float = 0.0
    watts: float = 0.0
    source: PowerSource = PowerSource.MODEL
    reading_w: float = 0.0
    read_s: float = -1e18
    key: tuple[PowerDescription, float] | None = None
    curve: tuple[float, ...] = ()


@dataclass(slots=True)
class EnergyMeter:
    """Meters the hosts of a registry; see the module's rules."""

    registry: Registry
    power_curve: str = GENERIC
    hosts: dict[str, HostMeter] = field(default_factory=dict[str, HostMeter])
    slots: deque[EnergySlot] = field(default_factory=lambda: deque(maxlen=SLOTS))
    demand: DayHistory = field(default_factory=DayHistory)
    began_ms: int = 0
    stepped_s: float = -1.0
    current: EnergySlot | None = None
    demanded: FloatArray = field(default_factory=lambda: np.zeros(R))
    demanded_s: float = -1e18
    samples: int = 0

    def measured(self, host_id: str, watts: float, now_s: float) -> None:
        """A BMC says what its host draws."""
        meter = self._meter(host_id)
        if meter is not None and 0 <= watts < 1e6:
            meter.reading_w, meter.read_s = watts, now_s

    def step(self, now_s: float, now_ms: int) -> None:
        """Count what was drawn since the last step."""
        if self.began_ms == 0:
            self.began_ms = now_ms
        passed_s = min(max(now_s - self.stepped_s, 0.0), MAX_STEP_S) if self.stepped_s >= 0 else 0.0
        self.stepped_s = now_s
        cores: dict[str, float] = {}
        rapl: dict[str, float] = {}
        for manager in self.registry.managers.values():
            cores.update(manager.cores)
            rapl.update(manager.watts)
        total_w = saved_w = 0.0
        up = asleep = 0
        for host_id, host in self.registry.hosts.items():
            meter = self._meter(host_id)
            if meter is None:
                continue
            watts, saved = self._draws(
                host, meter, cores.get(host_id, 0.0), rapl.get(host_id), now_s
            )
            meter.watts = watts
            meter.used_j += watts * passed_s
            meter.saved_j += saved * passed_s
            if host.state in _DOWN:
                meter.asleep_s += passed_s
                asleep += 1
            else:
                meter.up_s += passed_s
                up += 1
            total_w, saved_w = total_w + watts, saved_w + saved
        if now_s - self.demanded_s >= DEMAND_S:
            self.demanded_s, self.demanded = now_s, self._demand()
            self.demand.observe(now_ms / 1000, self.demanded)
        used = self.demanded
        self._remember(EnergySlot(now_ms, total_w, saved_w, up, asleep, Capacity.of(used)))

    def _meter(self, host_id: str) -> HostMeter | None:
        meter = self.hosts.get(host_id)
        if meter is None and len(self.hosts) < MAX_HOSTS:
            meter = self.hosts[host_id] = HostMeter()
        return meter

    def _draws(
        self, host: HostEntry, meter: HostMeter, cores: float, rapl_w: float | None, now_s: float
    ) -> tuple[float, float]:
        """Watts now, and watts saved (negative while it is woken)."""
        description = host.description
        key = (description.power, description.capacity.cpu_cores)
        if meter.key != key:
            meter.key, meter.curve = key, curve_w(*key, self.power_curve)
        curve, idle_w = meter.curve, meter.curve[0]
        measured = now_s - meter.read_s <= FRESH_S
        meter.source = PowerSource.BMC if measured else PowerSource.MODEL
        if host.state in _DOWN:
            watts = meter.reading_w if measured else asleep_w(description.power)
            return watts, max(0.0, idle_w - watts) if host.state is HostPower.ASLEEP else 0.0
        if measured:
            saved = idle_w - meter.reading_w if host.state is HostPower.WAKING else 0.0
            return meter.reading_w, saved
        if host.state is HostPower.WAKING:
            return curve[-1], idle_w - curve[-1]
        if rapl_w is not None and host.joined:
            meter.source = PowerSource.RAPL
            return rapl_w, 0.0
        load = min(max(cores / max(key[1], 1e-9), 0.0), 1.0) * (len(curve) - 1)
        below = min(int(load), len(curve) - 2)
        return curve[below] + (curve[below + 1] - curve[below]) * (load - below), 0.0

    def _demand(self) -> FloatArray:
        """``[R]``: what all VMs that hold room were promised."""
        held = [
            vm.demand.as_tuple() for vm in self.registry.vms.values() if vm.state in HOLDS_CAPACITY
        ]
        total: FloatArray = np.array(held, dtype=np.float64).reshape(-1, R).sum(axis=0)
        return total

    def _remember(self, now: EnergySlot) -> None:
        """Into the slot of this moment, as a mean."""
        begun = self.current
        if begun is None or now.at_ms // int(SLOT_S * 1000) != begun.at_ms // int(SLOT_S * 1000):
            if begun is not None:
                self.slots.append(begun)
            self.current, self.samples = now, 1
            return
        self.samples += 1
        part = 1.0 / self.samples
        self.current = EnergySlot(
            begun.at_ms,
            begun.watts + (now.watts - begun.watts) * part,
            begun.saved_w + (now.saved_w - begun.saved_w) * part,
            begun.up + (now.up - begun.up) * part,
            begun.asleep + (now.asleep - begun.asleep) * part,
            Capacity.of(
                begun.demand.as_array() + (now.demand.as_array() - begun.demand.as_array()) * part
            ),
        )

    def past(self) -> list[EnergySlot]:
        """The slots kept, the present one included, the oldest first."""
        return [*self.slots, *([self.current] if self.current is not None else [])]

    # ------------------------------------------------------------ the record

    def record(self, wake_times_s: Mapping[str, float] = _NONE) -> EnergyRecord:
        """What the next leader is to know; ``wake_times_s``: what waking hosts took."""
        return EnergyRecord(
            self.began_ms,
            {
                host_id: HostEnergy(
                    round(meter.used_j, 1),
                    round(meter.saved_j, 1),
                    round(meter.up_s, 1),
                    round(meter.asleep_s, 1),
                    round(wake_times_s.get(host_id, 0.0), 1),
                )
                for host_id, meter in self.hosts.items()
            },
            self.past(),
        )

    def load(self, record: EnergyRecord) -> None:
        """What the last leader knew."""
        self.began_ms = record.began_ms
        for host_id, energy in record.hosts.items():
            self.hosts[host_id] = HostMeter(
                energy.used_j, energy.saved_j, energy.up_s, energy.asleep_s
            )
        for slot in sorted(record.slots, key=lambda slot: slot.at_ms):
            self.slots.append(slot)
            self.demand.observe(slot.at_ms / 1000, slot.demand.as_array())


def split(record: EnergyRecord, hosts_each: int, slots_each: int) -> dict[str, EnergyRecord]:
    """The record in parts that the store takes, by name."""
    parts: dict[str, EnergyRecord] = {}
    ids = sorted(record.hosts)
    for start in range(0, len(ids), hosts_each):
        part = {host_id: record.hosts[host_id] for host_id in ids[start : start + hosts_each]}
        parts[f"hosts-{start // hosts_each}"] = EnergyRecord(record.began_ms, part)
    by_page: dict[int, list[EnergySlot]] = {}
    for slot in record.slots:
        page = slot.at_ms // int(SLOT_S * 1000) // slots_each
        by_page.setdefault(page % (SLOTS // slots_each + 2), []).append(slot)
    for page, slots in by_page.items():
        parts[f"slots-{page}"] = EnergyRecord(record.began_ms, slots=slots)
    return parts


def join(parts: list[EnergyRecord]) -> EnergyRecord:
    """The record again; what is too old to be kept is left out."""
    slots = sorted((slot for part in parts for slot in part.slots), key=lambda slot: slot.at_ms)
    hosts: dict[str, HostEnergy] = {}
    for part in parts:
        hosts.update(part.hosts)
    began_ms = min((part.began_ms for part in parts if part.began_ms), default=0)
    return EnergyRecord(began_ms, hosts, slots[-SLOTS:])


def same(one: EnergyRecord, other: EnergyRecord | None) -> bool:
    """Whether two parts say the same."""
    return other is not None and msgspec.msgpack.encode(one) == msgspec.msgpack.encode(other)

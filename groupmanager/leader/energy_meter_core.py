"""How much energy hosts use, and how much they would if none of them slept.

Rules:

1. A host draws what its BMC measured, if that is fresh, and what its curve at its load
   (``scheduling.power_curves``) has risen or fallen by since; else what its RAPL counts (processors
   and memory: a lower bound); else what its curve says. Where the figure came from is told with it.
   A measurement is of the state the host was in: it is forgotten when that changes.
2. One that sleeps draws what it draws asleep, and so does a dead one (it was fenced, or failed to
   wake), whose time counts apart; one that is being woken what it draws under full load.
3. *Saved* is the difference to a cluster whose sleepers idle instead; waking costs some of it back.
4. Figures are joules since the record began, by host; a step longer than ``MAX_STEP_S`` counts as
   that long: nobody knows what was in between.
5. The past is kept in slots of ``SLOT_S``, ``SLOTS`` of them, means; hosts at most ``MAX_HOSTS``.

A step costs a few array operations, and a look at each host that changed since the last one.

Invariant: the totals are the sums over all hosts ever metered.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Final

import msgspec
import numpy as np

from snooze.common.energy_records import EnergyRecord, EnergySlot, HostEnergy
from snooze.common.records import HostPower
from snooze.common.resources import Capacity, FloatArray, R
from snooze.groupmanager.leader.energy_meter_table import (
    ASLEEP,
    COUNTED,
    DEAD,
    SOURCES,
    UP,
    WAKING,
    WATTS,
    MeterTable,
    PowerSource,
)
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.registry import HostEntry, Registry
from snooze.groupmanager.leader.registry_loads import Ledger, first, loads_of
from snooze.scheduling.anticipation import SLOT_S, DayHistory
from snooze.scheduling.power_curves import GENERIC, asleep_w, curve_w

MAX_STEP_S: Final = 30.0
SLOTS: Final = 2016
"""A week of five minutes."""
FRESH_S: Final = 120.0
"""A measurement counts for so long; longer where BMCs are so many that they are read less often."""
DEMAND_S: Final = 30.0
"""How often the demand of all VMs is summed up."""

_NONE: Final[Mapping[str, float]] = MappingProxyType({})
_MODES: Final = {
    HostPower.ASLEEP: ASLEEP,
    HostPower.FENCED: DEAD,
    HostPower.FAILED: DEAD,
    HostPower.WAKING: WAKING,
}


@dataclass(frozen=True, slots=True)
class HostMeter:
    """One host: joules and seconds since the record began, and watts now."""

    used_j: float = 0.0
    saved_j: float = 0.0
    up_s: float = 0.0
    asleep_s: float = 0.0
    dead_s: float = 0.0
    watts: float = 0.0
    source: PowerSource = PowerSource.MODEL


@dataclass(slots=True)
class EnergyMeter:
    """Meters the hosts of a registry; see the module's rules."""

    registry: Registry
    power_curve: str = GENERIC
    slots: deque[EnergySlot] = field(default_factory=lambda: deque(maxlen=SLOTS))
    demand: DayHistory = field(default_factory=DayHistory)
    began_ms: int = 0
    fresh_s: float = FRESH_S
    stepped_s: float = -1.0
    current: EnergySlot | None = None
    demanded: FloatArray = field(default_factory=lambda: np.zeros(R))
    demanded_s: float = -1e18
    samples: int = 0
    table: MeterTable = field(default_factory=MeterTable)
    _ledger: Ledger = field(default_factory=Ledger)
    _changed: dict[str, None] = field(default_factory=dict[str, None])
    _stirred: dict[str, ManagerEntry] = field(default_factory=dict[str, ManagerEntry])

    @property
    def hosts(self) -> dict[str, HostMeter]:
        """All hosts ever metered, as they are now."""
        table = self.table
        columns = [table.column(number).tolist() for number in (*COUNTED, WATTS)]
        sources: list[int] = table.source.tolist()
        return {
            host_id: HostMeter(used, saved, up, asleep, dead, watts, SOURCES[sources[row]])
            for row, (host_id, used, saved, up, asleep, dead, watts) in enumerate(
                zip(table.ids, *columns, strict=True)
            )
        }

    def measured(self, host_id: str, watts: float, now_s: float) -> None:
        """A BMC says what its host draws."""
        self._take_changes()
        row = self.table.row_of(host_id)
        if row is not None and 0 <= watts < 1e6:
            self.table.measured(row, watts, now_s)

    def step(self, now_s: float, now_ms: int) -> None:
        """Count what was drawn since the last step."""
        if self.began_ms == 0:
            self.began_ms = now_ms
        passed_s = min(max(now_s - self.stepped_s, 0.0), MAX_STEP_S) if self.stepped_s >= 0 else 0.0
        self.stepped_s = now_s
        self._take_changes()
        sums = self.table.step(passed_s, now_s, self.fresh_s)
        if now_s - self.demanded_s >= DEMAND_S:
            self.demanded_s, self.demanded = now_s, loads_of(self.registry).held.sum(axis=0)
            self.demand.observe(now_ms / 1000, self.demanded)
        used = self.demanded
        self._remember(
            EnergySlot(now_ms, sums.watts, sums.saved_w, sums.up, sums.asleep, Capacity.of(used))
        )

    def _take_changes(self) -> None:
        """Take in which hosts changed, and how busy managers say that hosts are."""
        self.follow(self.behind())

    def behind(self) -> int:
        """How many hosts changed, or got busier, that were not looked at since."""
        self._changed.update(
            dict.fromkeys(self._ledger.take(self.registry.hosts, self.registry.vms))
        )
        for manager in self.registry.managers.values():
            for host_id in manager.take_stirred():
                self._stirred[host_id] = manager
        return len(self._changed) + len(self._stirred)

    def follow(self, most: int) -> None:
        """Look at so many of those."""
        table = self.table
        changed = first(self._changed, most)
        for host_id in changed:
            host = self.registry.hosts.get(host_id)
            row = table.row_of(host_id) if host is not None else None
            if host is not None and row is not None:
                self._set_host(row, host)
        stirred = islice(self._stirred.items(), most - len(changed))
        for host_id, manager in list(stirred):
            del self._stirred[host_id]
            row = table.row_of(host_id)
            if row is not None:
                table.set_load(
                    row, manager.cores.get(host_id, 0.0), manager.watts.get(host_id, math.nan)
                )

    def _set_host(self, row: int, host: HostEntry) -> None:
        description = host.description
        key = (description.power, description.capacity.cpu_cores)
        table = self.table
        if table.key[row] != key:
            table.set_curve(row, key, curve_w(*key, self.power_curve), asleep_w(description.power))
        table.set_state(row, _MODES.get(host.state, UP), is_joined=host.joined)

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
                    used, saved, up, asleep, round(wake_times_s.get(host_id, 0.0), 1), dead
                )
                for host_id, used, saved, up, asleep, dead in zip(
                    self.table.ids,
                    *(np.round(self.table.column(c), 1).tolist() for c in COUNTED),
                    strict=True,
                )
            },
            self.past(),
        )

    def load(self, record: EnergyRecord) -> None:
        """What the last leader knew."""
        self.began_ms = record.began_ms
        for host_id, energy in record.hosts.items():
            row = self.table.row_of(host_id)
            if row is not None:
                spans_s = (energy.up_s, energy.asleep_s, energy.dead_s)
                counted = (energy.used_j, energy.saved_j, *spans_s)
                for column, number in zip(COUNTED, counted, strict=True):
                    self.table.column(column)[row] = number
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

"""What hosts and VMs used lately, of all hosts of a manager: rings of samples behind ids.

Rules:

1. One message of a host costs a constant number of array operations, however many VMs it has: rows
   are looked up by id only when the host's list of VMs is another than in its message before.
2. A VM's history follows it from host to host and survives a lost link for ``RETENTION_S``. While
   two hosts claim one VM (a stale copy, an unmanaged domain with the same UUID) the one that had it
   keeps it as long as it is heard of and lists it; the other's samples of it are left out.
3. A sample without rates (the first of a run) takes its place in time and is not valid.
4. A message is taken in whole or refused whole. Rows are bounded: ``MAX_VMS_PER_HOST``,
   ``MAX_ROWS``, ``MAX_RETIRED``.

Monitoring is not record: after a restart of the manager it fills anew. Pure state: no clock, no
waiting; ``now_s`` is the manager's monotonic clock, because hosts' clocks differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Final

import numpy as np

from snooze.common.resources import ZERO, Capacity, FloatArray, R
from snooze.common.usage import DETAILS, HostSamples, MachineUsage
from snooze.common.wire import UsageSample
from snooze.scheduling.estimation import Window
from snooze.scheduling.sample_history import LATE, SampleHistory
from snooze.scheduling.snapshot import BoolArray, IntArray

SAMPLES: Final = 30
"""Samples kept of each VM. Source: Snooze's database.numberOfEntriesPerVirtualMachine."""

LONG_PERIOD_S: Final = 300.0
LONG_SAMPLES: Final = 24
"""Means over five minutes are kept for two hours: the past that a forecast of the coming hour looks
at. Source: the step of the PlanetLab traces that the forecasts were chosen on."""

LONG_STEP_S: Final = 30.0
"""What the long past is made of: means over so long, for the sake of the cost of a message."""

RETENTION_S: Final = 3600.0
"""How long a VM's samples outlive the last message about it."""

MAX_VMS_PER_HOST: Final = 1024
MAX_ROWS: Final = 131_072
MAX_RETIRED: Final = 16_384
MAX_INTERVAL_S: Final = 3600.0
MAX_ID: Final = 256
NO_PRESSURE: Final = (0.0, 0.0, 0.0)

NOBODY: Final = 0
"""The row of everything that is unknown."""


@dataclass(frozen=True, slots=True, eq=False)
class HostLoad:
    """What hosts themselves use, in the order asked for.

    Attributes:
        used: samples ``[H, T, R]``: of the machine where it is measured, else the sum of its VMs.
        pressure: the same for pressure-stall shares ``[H, T, 3]`` (cpu, memory, io); not valid
            where the kernel does not tell.
        measured: ``bool[H]``: the machine itself was measured last, not only its VMs.
        age_s: ``float64[H]``, since the newest message; infinite for a host never heard of.
        fresh: ``bool[H]``: no message is missing. Decide nothing about a host that is not.
    """

    used: Window
    pressure: Window
    measured: BoolArray
    age_s: FloatArray
    fresh: BoolArray


@dataclass(slots=True, eq=False)
class _Host:
    """The latest of one host; ``rows`` follows ``vm_ids``, ``NOBODY`` where another host has it."""

    row: int
    vm_ids: list[str] = field(default_factory=list[str])
    rows: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    listed: frozenset[str] = frozenset()
    contested: bool = False
    seen_s: float = -np.inf
    long_due_s: float = -np.inf
    interval_s: float = 0.0
    used: Capacity = ZERO
    machine: MachineUsage | None = None
    details: FloatArray = field(default_factory=lambda: np.zeros((0, DETAILS)))


class Monitoring:
    """All samples of one manager."""

    def __init__(self, period_s: float = 3.0, samples: int = SAMPLES) -> None:
        """``period_s``: the interval at which hosts are expected to send."""
        self.period_s = period_s
        self._vms = SampleHistory(samples, R, period_s)
        long_s = max(LONG_PERIOD_S, period_s)
        self._long = SampleHistory(LONG_SAMPLES, R, long_s)
        self._machines = SampleHistory(samples, R + len(NO_PRESSURE), period_s)
        self._hosts: dict[str, _Host] = {}
        self._used: FloatArray = np.zeros((2, R))
        self._row: dict[str, int] = {}
        self._owner: dict[int, str] = {}
        self._ids: dict[int, str] = {}
        self._retired: dict[int, float] = {}
        self._free_rows: list[int] = []
        self._free_host_rows: list[int] = []
        self.taken = self.refused = 0

    # ------------------------------------------------------------ what comes in

    def push(self, host_id: str, message: HostSamples, now_s: float) -> None:
        """Take a host's message in; a host not heard of before begins.

        Raises:
            ValueError: if its parts do not fit together, hold what is no number, or name more VMs
                than a host has; nothing has changed then.
        """
        try:
            self._push(host_id, message, now_s)
        except ValueError:
            self.refused += 1
            raise
        self.taken += 1

    def _push(self, host_id: str, message: HostSamples, now_s: float) -> None:
        rows, rated = message.rows(), message.has_rates()
        details = message.detail_rows()
        machine = _checked(message)
        host = self._hosts.get(host_id)
        if host is None or host.contested or message.vm_ids != host.vm_ids:
            self._check_ids(message.vm_ids)
            host = self._lay_out(host_id, message.vm_ids, now_s)
        host.seen_s = now_s
        host.interval_s = min(max(message.interval_ms / 1000, self.period_s), MAX_INTERVAL_S)
        host.used, host.machine, host.details = message.host_used, machine, details
        self._used[host.row] = host.used.as_tuple()
        own, whole_rated = host.rows, bool(rated.all())
        if host.contested:
            mine = own != NOBODY
            own, rows, rated = own[mine], rows[mine], rated[mine]
        taken_ms, interval_s = message.taken_ms, host.interval_s
        self._vms.push(own, rows, now_s, interval_s=interval_s, usable=rated, taken_ms=taken_ms)
        if now_s >= host.long_due_s:
            host.long_due_s = now_s + LONG_STEP_S - self.period_s / 2
            slots = max(1, round(LONG_STEP_S / self.period_s))
            mean, known = self._vms.recent_mean(own, slots)
            self._long.push(own, mean, now_s, interval_s=interval_s, usable=known)
        self._push_machine(host, message, whole_rated, now_s)

    def _push_machine(
        self, host: _Host, message: HostSamples, whole_rated: bool, now_s: float
    ) -> None:
        machine = message.machine
        used = machine.used if machine is not None else message.host_used
        stalled = machine.pressure if machine is not None else None
        shares = (stalled.cpu, stalled.memory, stalled.io) if stalled is not None else NO_PRESSURE
        self._machines.push(
            np.array([host.row]),
            np.array([(*used.as_tuple(), *shares)]),
            now_s,
            interval_s=host.interval_s,
            usable=np.array([machine.rated if machine is not None else whole_rated]),
        )

    def _check_ids(self, vm_ids: list[str]) -> None:
        if len(vm_ids) > MAX_VMS_PER_HOST:
            raise ValueError(f"samples of {len(vm_ids)} VMs; a host has at most {MAX_VMS_PER_HOST}")
        if len(set(vm_ids)) != len(vm_ids):
            raise ValueError("a VM is named twice among the samples")
        if any(len(vm_id) > MAX_ID for vm_id in vm_ids):
            raise ValueError(f"a VM's id among the samples is longer than {MAX_ID}")
        new = sum(vm_id not in self._row for vm_id in vm_ids)
        if len(self._row) - len(self._retired) + new > MAX_ROWS:
            raise ValueError(f"samples of more than {MAX_ROWS} VMs in all")

    def _lay_out(self, host_id: str, vm_ids: list[str], now_s: float) -> _Host:
        """The host with another list of VMs."""
        host = self._hosts.get(host_id)
        if host is None:
            host = self._hosts[host_id] = _Host(self._take_host_row())
        listed = frozenset(vm_ids)
        for vm_id in host.listed - listed:
            self._retire(vm_id, host_id, now_s)
        host.rows = np.array(
            [self._claim(vm_id, host_id, now_s) for vm_id in vm_ids], dtype=np.int64
        )
        host.vm_ids, host.listed = list(vm_ids), listed
        host.contested = bool((host.rows == NOBODY).any())
        self.expire(now_s)
        return host

    def _claim(self, vm_id: str, host_id: str, now_s: float) -> int:
        """The row of a VM that a host lists; ``NOBODY`` while another host has it."""
        row = self._row.get(vm_id)
        if row is None:
            row = self._take_row()
            self._row[vm_id], self._ids[row] = row, vm_id
        else:
            owner = self._owner.get(row, host_id)
            if owner != host_id and self._holds(owner, vm_id, now_s):
                return NOBODY
            self._retired.pop(row, None)
            if owner != host_id:
                self._disown(owner, vm_id)
        self._owner[row] = host_id
        return row

    def _holds(self, host_id: str, vm_id: str, now_s: float) -> bool:
        host = self._hosts.get(host_id)
        return (
            host is not None
            and vm_id in host.listed
            and now_s - host.seen_s <= LATE * max(host.interval_s, self.period_s)
        )

    def _disown(self, host_id: str, vm_id: str) -> None:
        """A host that listed a VM is silent, and another has it now."""
        host = self._hosts.get(host_id)
        if host is not None and vm_id in host.listed:
            host.rows[host.vm_ids.index(vm_id)] = NOBODY
            host.contested = True

    def _retire(self, vm_id: str, host_id: str, now_s: float) -> None:
        """A host no longer lists a VM: its samples stay for a while, for whoever has it next."""
        row = self._row.get(vm_id)
        if row is not None and self._owner.get(row) == host_id:
            del self._owner[row]
            self._retired[row] = now_s

    def _take_row(self) -> int:
        if self._free_rows:
            return self._free_rows.pop()
        row = len(self._row) + 1
        if row >= self._vms.rows:
            self._vms.grow(2 * self._vms.rows)
            self._long.grow(2 * self._long.rows)
        return row

    def _take_host_row(self) -> int:
        if self._free_host_rows:
            return self._free_host_rows.pop()
        row = len(self._hosts) + 1
        if row >= self._machines.rows:
            self._machines.grow(2 * self._machines.rows)
        if row >= len(self._used):
            self._used = np.concatenate([self._used, np.zeros_like(self._used)])
        return row

    def remove_host(self, host_id: str, now_s: float) -> None:
        """A host's link is gone; the samples of its VMs stay for a while."""
        host = self._hosts.pop(host_id, None)
        if host is None:
            return
        self._used[host.row] = 0.0
        for vm_id in host.vm_ids:
            self._retire(vm_id, host_id, now_s)
        self._machines.clear(np.array([host.row]))
        self._free_host_rows.append(host.row)

    def expire(self, now_s: float) -> None:
        """Forget VMs that no host has listed for long, and the longest gone of too many."""
        over = len(self._retired) - MAX_RETIRED
        old: list[int] = []
        for row, retired_s in self._retired.items():
            if len(old) >= over and now_s - retired_s <= RETENTION_S:
                break
            old.append(row)
        self._drop(old)

    def _drop(self, rows: list[int]) -> None:
        for row in rows:
            del self._retired[row]
            del self._row[self._ids.pop(row)]
        if rows:
            for ring in (self._vms, self._long):
                ring.clear(np.array(rows))
            self._free_rows.extend(rows)

    # ------------------------------------------------------------ what is known

    def _rows_of(self, vm_ids: Sequence[str]) -> IntArray:
        return np.fromiter(map(self._row.get, vm_ids, repeat(NOBODY)), np.int64, len(vm_ids))

    def _host_rows_of(self, host_ids: Sequence[str]) -> IntArray:
        hosts = (self._hosts.get(host_id) for host_id in host_ids)
        rows = [host.row if host is not None else NOBODY for host in hosts]
        return np.array(rows, dtype=np.int64)

    def window(self, vm_ids: Sequence[str], now_s: float) -> Window:
        """What VMs used, ``float64[V, T, R]`` in the order given, a period a column, ending now.

        A VM without a sample in time, or unknown, has none that is valid in the last column.
        """
        return self._vms.window(self._rows_of(vm_ids), now_s)

    def history(self, vm_ids: Sequence[str], now_s: float) -> Window:
        """The same over ``LONG_PERIOD_S`` a column; the last one may be of a few samples only."""
        return self._long.window(self._rows_of(vm_ids), now_s)

    @property
    def history_period_s(self) -> float:
        """Time between two columns of ``history``."""
        return self._long.period_s

    def vm_age_s(self, vm_ids: Sequence[str], now_s: float) -> FloatArray:
        """``float64[V]``: since the newest sample; infinite for a VM never heard of."""
        return self._vms.age_s(self._rows_of(vm_ids), now_s)

    def fresh(self, vm_ids: Sequence[str], now_s: float) -> BoolArray:
        """``bool[V]``: whose newest sample is in time."""
        return self._vms.is_fresh(self._rows_of(vm_ids), now_s)

    def host_load(self, host_ids: Sequence[str], now_s: float) -> HostLoad:
        """What hosts use, and how old that is."""
        rows = self._host_rows_of(host_ids)
        found = [self._hosts.get(host_id) for host_id in host_ids]
        machines = [host.machine if host is not None else None for host in found]
        told = [machine is not None and machine.pressure is not None for machine in machines]
        whole = self._machines.window(rows, now_s)
        stalled = whole.valid & np.array(told, dtype=np.bool_)[:, None]
        return HostLoad(
            used=Window(whole.samples[:, :, :R], whole.valid),
            pressure=Window(whole.samples[:, :, R:], stalled),
            measured=np.array([machine is not None for machine in machines], dtype=np.bool_),
            age_s=self._machines.age_s(rows, now_s),
            fresh=self._machines.is_fresh(rows, now_s),
        )

    def hosts_fresh(self, host_ids: Sequence[str], now_s: float) -> BoolArray:
        """``bool[H]``: of which hosts no message is missing."""
        return self._machines.is_fresh(self._host_rows_of(host_ids), now_s)

    def of_vm(self, vm_id: str, entries: int) -> list[UsageSample]:
        """Up to ``entries`` samples of one VM, newest first."""
        row = self._row.get(vm_id)
        if row is None:
            return []
        found = self._vms.newest_first(row, entries)
        return [UsageSample(taken_ms, Capacity.of(sample)) for taken_ms, sample in found]

    def host_used(self, host_id: str) -> Capacity:
        """What the VMs of a host used last."""
        host = self._hosts.get(host_id)
        return host.used if host is not None else ZERO

    def machine(self, host_id: str) -> MachineUsage | None:
        """What a host said last of itself."""
        host = self._hosts.get(host_id)
        return host.machine if host is not None else None

    def total_used(self) -> Capacity:
        """What the VMs of all hosts used last."""
        return Capacity.of(self._used.sum(axis=0))

    @property
    def size(self) -> tuple[int, int]:
        """How many hosts and how many VMs are kept."""
        return len(self._hosts), len(self._row)


def _checked(message: HostSamples) -> MachineUsage | None:
    """What a host says of itself.

    Raises:
        ValueError: if that, or what its VMs use together, can not be.
    """
    machine = message.machine
    numbers = [*message.host_used.as_tuple()]
    if machine is not None:
        numbers += [*machine.used.as_tuple(), machine.cores, machine.memory_kib]
        if machine.pressure is not None:
            shares = [machine.pressure.cpu, machine.pressure.memory, machine.pressure.io]
            if not all(0 <= share <= 1 for share in shares):
                raise ValueError("a pressure is not a share")
    if not np.isfinite(numbers).all() or min(numbers) < 0:
        raise ValueError("a sample of the host holds a value that is not a finite number")
    return machine

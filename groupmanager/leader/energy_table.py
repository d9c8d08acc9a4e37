"""Which hosts could sleep or be woken, kept up to date a host at a time, and chosen among by kind.

The energy saver looks every second. What a look costs must not grow with the hosts that are idle
or asleep: hosts of one *kind* (equal capacity and power) are alike, so of each kind only a few are
looked at, those that come first; the rest is arithmetic on arrays. Who looks pays besides for the
hosts that changed; for all of them when the operator's overrides of power controllers did.

Invariant: after ``refresh`` each row says of its host what a look at the registry would.
"""

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from snooze.common.records import HostPower
from snooze.common.resources import FloatArray
from snooze.common.wire import HostDescription
from snooze.groupmanager.leader.energy_rules import EnergyPolicy, action_for, is_wakeable
from snooze.groupmanager.leader.registry import HostEntry, Registry
from snooze.groupmanager.leader.registry_loads import Ledger, first, takes_vms
from snooze.scheduling.power_curves import model_of
from snooze.scheduling.power_model import PowerModel

MIN_SAVED_W: Final = 0.1
"""A host that saves less never pays for waking it."""
MAX_PAYS_S: Final = 7 * 86_400.0

IsWilling = Callable[[str], bool]
"""Whether a decision may be made about this host; it is asked as few as possible."""

_FIRST_ROWS: Final = 64
_IDLE_S, _SEEN_S, _SINCE_MS, _WAKE_S = range(4)
_COLUMNS: Final = 4


class WakeTimes(dict[str, float]):
    """How long hosts took to wake, as far as that was measured, and the mean of it."""

    def __init__(self) -> None:
        super().__init__()
        self.total_s = 0.0
        self.heard: dict[str, None] = {}

    def __setitem__(self, host_id: str, wake_s: float) -> None:
        self.total_s += wake_s - self.get(host_id, 0.0)
        super().__setitem__(host_id, wake_s)
        self.heard[host_id] = None

    def mean(self, unknown_s: float) -> float:
        """Of all that were measured; ``unknown_s`` if none was."""
        return self.total_s / len(self) if self else unknown_s


class EnergyTable:
    """One row a host, in the order in which they were first seen; see the module."""

    def __init__(self, registry: Registry, policy: EnergyPolicy, wake_times_s: WakeTimes) -> None:
        self._registry = registry
        self._policy = policy
        self._wake_times_s = wake_times_s
        self._ledger = Ledger()
        self._changed: dict[str, None] = {}
        self._row: dict[str, int] = {}
        self._all_of: tuple[object, object] | None = None
        """Of which hosts, and which overrides, every row was read."""
        self.ids: list[str] = []
        self._kind_of: dict[tuple[float, ...], int] = {}
        self._pays_each: list[float] = []
        """Of each kind, ``pays_s`` for a second of waking."""
        self._kind: NDArray[np.int64] = np.zeros(_FIRST_ROWS, dtype=np.int64)
        self._numbers: FloatArray = np.zeros((_COLUMNS, _FIRST_ROWS))
        self._idle: NDArray[np.bool_] = np.zeros(_FIRST_ROWS, dtype=np.bool_)
        self._asleep: NDArray[np.bool_] = np.zeros(_FIRST_ROWS, dtype=np.bool_)

    # ------------------------------------------------------------ kept up to date

    def refresh(self) -> None:
        """Take in what changed."""
        self.follow(self.behind())

    def behind(self) -> int:
        """How many hosts changed that were not looked at since."""
        registry, changed = self._registry, self._changed
        changed.update(dict.fromkeys(self._ledger.take(registry.hosts, registry.vms)))
        for manager in registry.managers.values():
            changed.update(dict.fromkeys(manager.take_idled()))
        if self._wake_times_s.heard:
            changed.update(self._wake_times_s.heard)
            self._wake_times_s.heard.clear()
        all_of = registry.hosts, registry.wakes_by()
        if self._all_of is None or self._all_of[0] is not all_of[0] or self._all_of[1] != all_of[1]:
            self._all_of = all_of
            changed.update(dict.fromkeys((*self.ids, *registry.hosts)))
        return len(changed)

    def follow(self, most: int) -> None:
        """Look at so many of those."""
        for host_id in first(self._changed, most):
            host = self._registry.hosts.get(host_id)
            if host is not None:
                self._read(self._row_of(host_id), host_id, host)
            elif host_id in self._row:
                row = self._row[host_id]
                self._idle[row] = self._asleep[row] = False

    def _read(self, row: int, host_id: str, host: HostEntry) -> None:
        description = host.description
        key = _coarse(description)
        kind = self._kind_of.get(key)
        if kind is None:
            kind = self._kind_of[key] = len(self._pays_each)
            described = [(description.power, description.capacity.cpu_cores)]
            model = model_of(described, self._policy.power_curve)
            self._pays_each.append(float(pays_s(model, np.ones(1))[0]))
        self._kind[row] = kind
        since_s = self._idle_since_s(host_id, host)
        self._idle[row] = since_s < math.inf
        self._asleep[row] = host.state is HostPower.ASLEEP
        self._numbers[:, row] = (
            since_s,
            host.seen_s,
            host.state_since_ms,
            self._wake_times_s.get(host_id, math.nan),
        )

    def _idle_since_s(self, host_id: str, host: HostEntry) -> float:
        """Since when it could sleep for all that it has to do; infinite: it could not."""
        registry = self._registry
        manager = registry.managers.get(host.manager_id)
        since_s = manager.idle.get(host_id) if manager is not None else None
        if since_s is None or not takes_vms(host) or registry.vms.is_any_on(host_id):
            return math.inf
        if not is_wakeable(registry, host) or not action_for(self._policy, host):
            return math.inf
        return since_s

    def _row_of(self, host_id: str) -> int:
        row = self._row.get(host_id)
        if row is not None:
            return row
        row = self._row[host_id] = len(self.ids)
        self.ids.append(host_id)
        if row >= len(self._kind):
            self._kind = np.concatenate([self._kind, np.zeros_like(self._kind)])
            self._numbers = np.concatenate([self._numbers, np.zeros_like(self._numbers)], axis=1)
            self._idle = np.concatenate([self._idle, np.zeros_like(self._idle)])
            self._asleep = np.concatenate([self._asleep, np.zeros_like(self._asleep)])
        return row

    # ------------------------------------------------------------ asked

    def ripe(
        self,
        barred: Iterable[str],
        is_willing: IsWilling,
        least_s: float,
        each: int,
        now_s: float,
        now_ms: int,
    ) -> tuple[list[str], list[str]]:
        """Idle hosts that have been idle and up for long enough: of each kind the most idle.

        Args:
            barred: hosts that are left alone; so are those that are not willing.
            least_s: how long a host is idle at least.
            each: how many of a kind.

        Returns:
            Those, and some others that have not been for long enough.
        """
        count = len(self.ids)
        rows = np.flatnonzero(self._idle[:count])
        if len(rows) == 0:
            return [], []
        idle_s: FloatArray = now_s - self._numbers[_IDLE_S, rows]
        since_ms: FloatArray = self._numbers[_SINCE_MS, rows]
        seen_s: FloatArray = self._numbers[_SEEN_S, rows]
        up_s: FloatArray = np.where(since_ms > 0, (now_ms - since_ms) / 1000, now_s - seen_s)
        needed_s: FloatArray = np.full(len(rows), self._policy.idle_s)
        if not self._policy.idle_s:
            needed_s = np.maximum(self._pays(rows), least_s)
        due: NDArray[np.bool_] = (idle_s >= needed_s) & (up_s >= self._policy.min_on_s)
        out = [self._row[host_id] for host_id in barred if host_id in self._row]
        free: NDArray[np.bool_] = ~np.isin(rows, np.array(out, dtype=np.int64))
        ripe = rows[due & free]
        if len(ripe) == 0:
            return [], []
        longest = ripe[np.argsort(self._numbers[_IDLE_S, ripe], kind="stable")]
        unripe = [self.ids[int(row)] for row in rows[~due & free][:each]]
        return self._firsts(longest, each, is_willing), unripe

    def longest_asleep(self, each: int, is_willing: IsWilling) -> list[str]:
        """The hosts that have slept longest, so many of each kind, of those that are willing."""
        rows = np.flatnonzero(self._asleep[: len(self.ids)])
        longest = rows[np.argsort(self._numbers[_SINCE_MS, rows], kind="stable")]
        return self._firsts(longest, each, is_willing)

    def _firsts(self, rows: NDArray[np.int64], each: int, is_willing: IsWilling) -> list[str]:
        """Of each kind the first that are willing."""
        kinds = self._kind[rows]
        found: list[str] = []
        for kind in np.unique(kinds):
            ids = (self.ids[int(row)] for row in rows[kinds == kind])
            found += islice((host_id for host_id in ids if is_willing(host_id)), each)
        return found

    def _pays(self, rows: NDArray[np.int64]) -> FloatArray:
        """How long these have to sleep to pay for waking, see ``pays_s``."""
        known = self._numbers[_WAKE_S, rows]
        wake_s = np.where(np.isnan(known), self._wake_times_s.mean(self._policy.wake_s), known)
        pays_each = np.array(self._pays_each)[self._kind[rows]]
        pays: FloatArray = np.minimum(pays_each * wake_s, MAX_PAYS_S)
        return pays


def pays_s(model: PowerModel, wake_s: FloatArray) -> FloatArray:
    """How long each host has to sleep to save what waking it takes: full power till it serves."""
    saves = np.maximum(model.idle_saving_w(), MIN_SAVED_W)
    pays: FloatArray = np.minimum(model.curve_w[:, -1] * wake_s / saves, MAX_PAYS_S)
    return pays


def _coarse(description: HostDescription) -> tuple[float, ...]:
    """What hosts of one kind have in common: a capacity to about a hundredth, and the watts."""
    power = description.power
    sizes = (round(100 * math.log(max(x, 1e-3))) for x in description.capacity.as_tuple())
    return (*sizes, power.idle_w, power.full_w, power.asleep_w)

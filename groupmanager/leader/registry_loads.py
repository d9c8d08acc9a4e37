"""What the VMs of each host need together, kept up to date a host at a time.

Whoever asks pays for the hosts that changed since it was asked last, not for all hosts and VMs: the
HA reserve, the demand of all VMs and the energy saver look every few seconds.

The sums of a host are made anew from its VMs whenever one of them changes, never added to: they are
exact for however long a leader leads. VMs without a host are in the row of the host ``""``.
"""

from itertools import islice
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from snooze.common.records import HostPower
from snooze.common.resources import FloatArray, R
from snooze.common.vm_lifecycle import HOLDS_CAPACITY
from snooze.groupmanager.leader.registry import HostEntry, Hosts, Registry, VmEntry, Vms

T = TypeVar("T")

_FIRST_ROWS: Final = 64


def first(waiting: dict[str, T], most: int) -> list[str]:
    """So many keys, which wait no longer."""
    keys = list(islice(waiting, most))
    for key in keys:
        del waiting[key]
    return keys


class Ledger:
    """Keys that changed in the tables of a registry since they were taken."""

    def __init__(self) -> None:
        self._hosts: object = None
        self._vms: object = None
        self._hosts_changed: dict[str, None] = {}
        self._vms_changed: dict[str, None] = {}

    def take(self, hosts: Hosts, vms: Vms) -> list[str]:
        """The hosts that changed, or whose VMs did; of tables not seen before, all of them."""
        if self._hosts is not hosts:
            self._hosts = hosts
            self._hosts_changed.update(dict.fromkeys(hosts))
            hosts.heard.append(self._hosts_changed)
        if self._vms is not vms:
            self._vms = vms
            self._vms_changed.update(dict.fromkeys(vm.host_id for vm in vms.values()))
            vms.heard.append(self._vms_changed)
        if not self._hosts_changed and not self._vms_changed:
            return []
        changed = list(self._hosts_changed | self._vms_changed)
        self._hosts_changed.clear()
        self._vms_changed.clear()
        return changed


class HostLoads:
    """One row a host, in the order in which they were first seen; see the module.

    ``capacity[N, R]``: of the host; ``held[N, R]``: what its VMs were promised; ``moving[N, R]``:
    what those of them need that are restarted elsewhere if it fails. ``takes[N]``: it is joined,
    active and not in maintenance.
    """

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._changed: dict[str, None] = {}
        self._row: dict[str, int] = {}
        self.ids: list[str] = []
        self._capacity: FloatArray = np.zeros((_FIRST_ROWS, R))
        self._held: FloatArray = np.zeros((_FIRST_ROWS, R))
        self._moving: FloatArray = np.zeros((_FIRST_ROWS, R))
        self._takes: NDArray[np.bool_] = np.zeros(_FIRST_ROWS, dtype=np.bool_)
        self._up: (
            tuple[tuple[int, int, list[str]], tuple[HostEntry, ...], NDArray[np.int64]] | None
        ) = None

    @property
    def capacity(self) -> FloatArray:
        """See the class."""
        return self._capacity[: len(self.ids)]

    @property
    def held(self) -> FloatArray:
        """See the class."""
        return self._held[: len(self.ids)]

    @property
    def moving(self) -> FloatArray:
        """See the class."""
        return self._moving[: len(self.ids)]

    @property
    def takes(self) -> NDArray[np.bool_]:
        """See the class."""
        return self._takes[: len(self.ids)]

    def behind(self, hosts: Hosts, vms: Vms) -> int:
        """How many hosts changed that were not looked at since."""
        self._changed.update(dict.fromkeys(self._ledger.take(hosts, vms)))
        return len(self._changed)

    def follow(self, hosts: Hosts, vms: Vms, most: int) -> None:
        """Look at so many of those."""
        changed = first(self._changed, most)
        if not changed:
            return
        rows = [self._row_of(host_id) for host_id in changed]
        self._held[rows] = self._moving[rows] = 0.0
        where: list[int] = []
        held: list[VmEntry] = []
        for row, host_id in zip(rows, changed, strict=True):
            host = hosts.get(host_id)
            if host is not None:
                self._capacity[row] = host.description.capacity.as_tuple()
            self._takes[row] = host is not None and takes_vms(host)
            here = [vm for vm in vms.on(host_id) if vm.state in HOLDS_CAPACITY]
            held += here
            where += [row] * len(here)
        if not held:
            return
        demand = np.array([vm.demand.as_tuple() for vm in held])
        at, moving = np.array(where), np.array([moves(vm) for vm in held], dtype=np.bool_)
        np.add.at(self._held, at, demand)
        np.add.at(self._moving, at[moving], demand[moving])

    def up(
        self, hosts: Hosts, away: list[HostEntry]
    ) -> tuple[tuple[HostEntry, ...], NDArray[np.int64]]:
        """The hosts that take VMs, and these besides, by id; and their rows."""
        key = (
            id(hosts),
            hosts.version,
            [host.description.host_id for host in away],
        )
        if self._up is None or self._up[0] != key:
            ids = [self.ids[row] for row in np.flatnonzero(self.takes)]
            ids = sorted({*ids, *key[2]})
            rows = np.array([self._row[host_id] for host_id in ids], dtype=np.int64)
            self._up = key, tuple(hosts[host_id] for host_id in ids), rows
        return self._up[1:]

    def rows_of(self, host_ids: frozenset[str]) -> list[int]:
        """The rows of these hosts, in the order of the rows."""
        return sorted(self._row[host_id] for host_id in host_ids if host_id in self._row)

    def _row_of(self, host_id: str) -> int:
        row = self._row.get(host_id)
        if row is not None:
            return row
        row = self._row[host_id] = len(self.ids)
        self.ids.append(host_id)
        if row >= len(self._takes):
            self._capacity = _doubled(self._capacity)
            self._held = _doubled(self._held)
            self._moving = _doubled(self._moving)
            self._takes = np.concatenate([self._takes, np.zeros_like(self._takes)])
        return row


def _loads(registry: Registry) -> HostLoads:
    loads = registry.loads
    if not isinstance(loads, HostLoads):
        loads = registry.loads = HostLoads()
    return loads


def loads_of(registry: Registry) -> HostLoads:
    """What the VMs of a registry need, by host, as of now."""
    loads = _loads(registry)
    hosts, vms = registry.hosts, registry.vms
    loads.follow(hosts, vms, loads.behind(hosts, vms))
    return loads


class LoadsFollower:
    """Brings what ``loads_of`` says up to date, see ``following.py``."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def behind(self) -> int:
        """See ``Follower``."""
        return _loads(self._registry).behind(self._registry.hosts, self._registry.vms)

    def follow(self, most: int) -> None:
        """See ``Follower``."""
        _loads(self._registry).follow(self._registry.hosts, self._registry.vms, most)


def takes_vms(host: HostEntry) -> bool:
    """Whether VMs may be placed on a host."""
    return host.joined and not host.maintenance and host.state is HostPower.ACTIVE


def moves(vm: VmEntry) -> bool:
    """Whether a VM is restarted elsewhere if its host fails."""
    return vm.managed and vm.policy.is_highly_available


def _doubled(array: FloatArray) -> FloatArray:
    return np.concatenate([array, np.zeros_like(array)])

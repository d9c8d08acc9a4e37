"""A manager's hosts and VMs as autonomy looks at them: what is used and what was asked for.

Rules:

1. A snapshot has two sets of axes. On the first ``R`` a VM's demand is what it uses, by estimate,
   and a host may be filled up to MID of its capacity. On the other ``R`` it is what was asked for,
   and a host may be promised as much as placement may promise.
2. A host takes part if it takes VMs, is not switched off for this by a person, and its samples are
   complete and in time. One that does not is ``DRAINING`` here: it is left as it is.
3. A VM that has no samples yet counts with what it asked for. One whose samples stopped coming
   makes its host unknown.
4. A VM may be moved if it is ours, runs, has no order or migration of its own under way, and
   neither its owner (``VmPolicy.movable``) nor a person said that it stays. A paused one loads no
   processor, and qemu 7.2 crashes when a guest that arrived paused moves on before it has run.
5. What is about to arrive, and domains that are off, take room too, but are not listed.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from snooze.common.resources import AXIS_NAMES, FloatArray, R
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmState
from snooze.groupmanager.manager.host_table import HostTable, VmEntry
from snooze.groupmanager.manager.migration_core import Migrations
from snooze.scheduling.detection import Thresholds, axis_values
from snooze.scheduling.estimation import Average, Estimator, Forecast, Window
from snooze.scheduling.snapshot import BoolArray, HostState, IntArray, Snapshot

AXES: Final = (*AXIS_NAMES, *(f"asked_{name}" for name in AXIS_NAMES))

UNBOUNDED: Final = 1e12
"""The capacity of an axis of which a host says nothing: no bound, and no load to speak of."""


class Samples(Protocol):
    """What was measured lately; see ``Monitoring``."""

    @property
    def period_s(self) -> float:
        """Time between two samples."""
        ...

    def window(self, vm_ids: Sequence[str], now_s: float) -> Window:
        """What VMs used."""
        ...

    def hosts_fresh(self, host_ids: Sequence[str], now_s: float) -> BoolArray:
        """``bool[H]``: of which hosts no message is missing."""
        ...


@dataclass(frozen=True, slots=True)
class Looking:
    """How to look.

    Attributes:
        estimator: what VMs use, from their samples.
        thresholds: MID is up to where a host is filled.
        recent: newest samples whose mean a VM uses at least, whatever the estimator says.
        overcommit, headroom: ``float64[R]``, as placement multiplies capacities.
    """

    estimator: Estimator
    thresholds: Thresholds
    recent: int
    overcommit: FloatArray
    headroom: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What autonomy sees at one moment. Hosts as in the table, VMs host by host.

    Attributes:
        snapshot: with ``2 * R`` axes, see the module.
        window: samples of the VMs, ``R`` axes.
        requested: ``float64[V, R]``, what was asked for.
        takes_part: ``bool[H]``.
        unknown: ``bool[H]``, takes no part only because samples are late or not complete yet.
        empty: ``bool[H]``, nothing at all is on the host.
        use: ``float64[H, R]``, newest use of what is on each host, as a share of its capacity.
        foreseen: what the VMs are expected to use, if that was asked for.
    """

    snapshot: Snapshot
    window: Window
    requested: FloatArray
    takes_part: BoolArray
    unknown: BoolArray
    empty: BoolArray
    use: FloatArray
    foreseen: Forecast | None = None

    def row_of_vm(self, key: str) -> int | None:
        """A VM's row."""
        try:
            return self.snapshot.vm_ids.index(key)
        except ValueError:
            return None


def look(
    table: HostTable,
    migrations: Migrations,
    samples: Samples,
    looking: Looking,
    now_s: float,
    off_hosts: Container[str] = (),
    off_vms: Container[str] = (),
    only: Sequence[str] | None = None,
) -> View:
    """See the hosts and VMs as they are now; ``off_*`` are switched off by people.

    ``only``: of these hosts, which are here; that costs little, however many there are.
    """
    order = table.order if only is None else list(only)
    rows = np.array([table.row_of(host_id) for host_id in order], dtype=np.int64)
    capacity, states = table.capacity[rows], np.array(table.states(order), dtype=np.int8)
    vms: list[VmEntry] = []
    placement: list[int] = []
    unlisted = np.zeros(len(order), dtype=np.int64)
    for row, host_id in enumerate(order):
        for vm in table.vms_on(host_id):
            if vm.state in HOLDS_CAPACITY:
                vms.append(vm)
                placement.append(row)
            else:
                unlisted[row] += 1
    where = np.array(placement, dtype=np.int64)
    keys = [vm.key for vm in vms]
    requested = np.array([vm.demand.as_tuple() for vm in vms], dtype=np.float64).reshape(-1, R)
    window = samples.window([vm.report.vm_id for vm in vms], now_s)
    usage = looking.estimator.estimate(window, requested).value
    recent = Average(looking.recent).estimate(window, requested).value
    usage = np.maximum(usage, recent)
    stays = [
        not vm.report.managed
        or not vm.report.policy.movable
        or vm.state is not VmState.RUNNING
        or vm.ordered
        or migrations.moves(key)
        or key in off_vms
        for key, vm in zip(keys, vms, strict=True)
    ]
    known = _known(order, samples, window, vms, where, now_s)
    allowed = (states == HostState.ACTIVE) & np.array(
        [host_id not in off_hosts for host_id in order], dtype=np.bool_
    )
    takes_part = allowed & known
    state = states.copy()
    state[(state == HostState.ACTIVE) & ~takes_part] = HostState.DRAINING
    measured = np.where(capacity > 0, capacity, UNBOUNDED)
    snapshot = Snapshot.of(
        order,
        np.hstack([measured, capacity]),
        used=_unlisted_use(table.reserved[rows], order, migrations, vms, where, usage, requested),
        host_state=state,
        vm_ids=keys,
        demand=np.hstack([usage, requested]),
        placement=where,
        overcommit=np.concatenate([np.ones(R), looking.overcommit]),
        headroom=np.concatenate([axis_values(looking.thresholds.middle, R), looking.headroom]),
        vm_count=unlisted,
        movable=~np.array(stays, dtype=np.bool_),
        highly_available=[vm.report.managed and vm.report.policy.is_highly_available for vm in vms],
        axes=AXES,
    )
    counts = unlisted + np.bincount(where, minlength=len(order)) if order else unlisted
    use = _use(window, where, capacity)
    return View(snapshot, window, requested, takes_part, allowed & ~known, counts == 0, use)


def _use(window: Window, where: IntArray, capacity: FloatArray) -> FloatArray:
    load = np.zeros((len(capacity), R))
    if window.things:
        np.add.at(load, where, window.newest())
    share: FloatArray = np.divide(load, capacity, out=np.zeros_like(load), where=capacity > 0)
    return share


def _known(
    order: Sequence[str],
    samples: Samples,
    window: Window,
    vms: list[VmEntry],
    where: IntArray,
    now_s: float,
) -> BoolArray:
    """``bool[H]``: whose samples are in time, and those of its running VMs too."""
    known: BoolArray = samples.hosts_fresh(order, now_s)
    if vms and window.valid.shape[1]:
        running = np.array([vm.state is VmState.RUNNING for vm in vms], dtype=np.bool_)
        silent = running & window.valid.any(axis=1) & ~window.valid[:, -1]
        known[where[silent]] = False
    return known


def _unlisted_use(
    reserved: FloatArray,
    order: Sequence[str],
    migrations: Migrations,
    vms: list[VmEntry],
    where: IntArray,
    usage: FloatArray,
    requested: FloatArray,
) -> FloatArray:
    """``float64[H, 2R]``: what is promised or about to arrive beside the VMs that are listed."""
    asked = np.maximum(reserved, 0.0)
    if vms:
        listed = np.zeros_like(asked)
        np.add.at(listed, where, requested)
        asked = np.maximum(asked - listed, 0.0)
        asked[asked < 1e-6 * np.maximum(1.0, listed)] = 0.0
    arriving = np.zeros_like(asked)
    hosts = {host_id: row for row, host_id in enumerate(order)}
    open_moves = migrations.under_way()
    moving = {migration.vm.key for migration in open_moves}
    rows = {vm.key: row for row, vm in enumerate(vms) if vm.report.vm_id in moving}
    for migration in open_moves:
        host, vm = hosts.get(migration.destination), rows.get(migration.vm.key)
        if host is not None:
            # Of a VM whose source is not looked at, what it asked for is counted.
            arriving[host] += usage[vm] if vm is not None else migration.vm.demand.as_array()
    for host_id, demand in migrations.arrivals.listed():
        host = hosts.get(host_id)
        if host is not None:
            arriving[host] += demand.as_array()
    return np.hstack([arriving, asked])

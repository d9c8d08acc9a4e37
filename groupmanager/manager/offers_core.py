"""What a manager tells the leader of hosts that it cannot help by itself: which, and what is there.

The leader finds room among the hosts of all managers (``leader/relief_core.py`` for overloads,
``leader/emptying_core.py`` for hosts that are to be emptied).
"""

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np

from snooze.common.wire import BusyVm
from snooze.groupmanager.manager.cluster_view import View
from snooze.scheduling.relocation import Hold, Outcome, OutcomeKind
from snooze.scheduling.relocation_cost import MigrationCost
from snooze.scheduling.snapshot import BoolArray

MAX_BUSY: Final = 8
"""VMs that are named to the leader of each host that is overloaded."""
MAX_EMPTIED: Final = 64
"""A host with more VMs is not emptied across managers."""
MAX_OFFERED: Final = 10
"""Hosts that are told at a time."""


def busy_vms(view: View, host: int, resting: Collection[str]) -> tuple[BusyVm, ...]:
    """The VMs of a host that may go: those that alone bring it below MID first, the smallest of
    them (in memory, so the cheapest) before the others; then those that use most."""
    snapshot = view.snapshot
    rows = [
        row
        for row in np.flatnonzero((snapshot.placement == host) & snapshot.movable).tolist()
        if snapshot.vm_ids[row] not in resting and snapshot.demand[row, 0] > 0
    ]
    on = snapshot.placement == host
    cores = snapshot.demand[:, 0]
    excess = float(cores[on].sum() + snapshot.used[host, 0] - snapshot.ceiling[host, 0])

    def cost(row: int) -> tuple[bool, float, str]:
        enough = float(cores[row]) >= excess
        size = float(snapshot.memory_kib[row]) if enough else -float(cores[row])
        return not enough, size, snapshot.vm_ids[row]

    return tuple(_vm(view, row) for row in sorted(rows, key=cost)[:MAX_BUSY])


def all_vms(view: View, host: int) -> tuple[BusyVm, ...]:
    """All that is on a host; nothing if that is too much to be moved by the leader."""
    rows = np.flatnonzero(view.snapshot.placement == host).tolist()
    return tuple(_vm(view, row) for row in rows) if len(rows) <= MAX_EMPTIED else ()


def _vm(view: View, row: int) -> BusyVm:
    return BusyVm(view.snapshot.vm_ids[row], round(float(view.snapshot.demand[row, 0]), 3))


def without_room(outcomes: Sequence[Outcome]) -> list[int]:
    """The hosts that would be emptied, were there room for what is on them."""
    return [each.host for each in outcomes if each.kind is OutcomeKind.NO_ROOM][:MAX_OFFERED]


def least_used(
    view: View,
    hot: BoolArray,
    hold: Hold,
    stays: Collection[str],
    cost: MigrationCost,
    worth_s: float,
) -> int | None:
    """The host in use with the least load, of those that can be emptied; after a consolidation.

    ``stays``: VMs that are to be left alone; ``worth_s``: most seconds of migration.
    """
    snapshot = view.snapshot
    best: tuple[float, int] | None = None
    for host in np.flatnonzero(view.takes_part & ~view.empty & ~hot).tolist():
        rows = np.flatnonzero(snapshot.placement == host)
        if snapshot.vm_count[host] or (snapshot.used[host] > 0).any() or not len(rows):
            continue
        if hold.hosts.get(snapshot.host_ids[host]) is not None or not snapshot.movable[rows].all():
            continue
        if any(snapshot.vm_ids[row] in stays for row in rows.tolist()):
            continue
        if float(cost.duration_s[rows].sum()) > worth_s:
            continue
        load = float(snapshot.demand[rows, 0].sum())
        if best is None or load < best[0]:
            best = (load, host)
    return best[1] if best is not None else None

"""Whether the loss of any one host could be absorbed by the others: the HA reserve.

Of each host its highly available VMs are packed, the largest first, into what is free on the other
hosts that are up. That is what placement would do after a failure, and errs on the safe side: a
cleverer packing may still fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from snooze.common.resources import TOLERANCE, FloatArray, R
from snooze.common.vm_lifecycle import HOLDS_CAPACITY
from snooze.groupmanager.leader.registry import Registry, VmEntry
from snooze.groupmanager.leader.registry_loads import loads_of, moves

MOST: Final = 8
"""Hosts that are looked at: those with the most to bring elsewhere."""

AT_ONCE: Final = 256
"""Hosts that are asked for room together."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A host whose loss could not be absorbed; ``vms`` are those that would find no room."""

    host_id: str
    hostname: str
    vms: Sequence[str]

    @property
    def message(self) -> str:
        """For people."""
        shown = ", ".join(self.vms[:5]) + (", ..." if len(self.vms) > 5 else "")
        return (
            f"if host {self.hostname} failed, {len(self.vms)} of its highly available VMs would "
            f"find no room ({shown})"
        )


NOWHERE: Final[Mapping[str, str]] = MappingProxyType({})


def shortfall(
    registry: Registry,
    limit: FloatArray,
    gone: frozenset[str] = frozenset(),
    moved: Mapping[str, str] = NOWHERE,
) -> Shortfall | None:
    """The first host whose loss could not be absorbed; None if every loss could.

    Args:
        limit: ``[R]``, scales the hosts' capacity (overcommit, headroom).
        gone: hosts that are not up then.
        moved: VMs as if they were on hosts other than theirs, which are among those gone.
    """
    loads = loads_of(registry)
    rows = np.flatnonzero(loads.takes)
    if gone:
        rows = rows[~np.isin(rows, np.array(loads.rows_of(gone), dtype=np.int64))]
    if len(rows) == 0:
        return None
    free = loads.capacity[rows] * limit - loads.held[rows]
    moving, arrived = loads.moving[rows].copy(), _arrived(registry, moved)
    for host_id, vms in arrived.items():
        at = np.isin(rows, np.array(loads.rows_of(frozenset({host_id})), dtype=np.int64))
        for vm in vms:
            free[at] -= vm.demand.as_array()
            moving[at] += vm.demand.as_array() * moves(vm)
    scale = np.maximum(free.max(axis=0), 1.0)
    heavy = (moving / scale).max(axis=1)
    for index in np.argsort(-heavy, kind="stable")[:MOST]:
        host_id = loads.ids[rows[index]]
        here = [*registry.vms_of_host(host_id), *arrived.get(host_id, ())]
        needs = [vm for vm in here if vm.state in HOLDS_CAPACITY]
        left = _unplaced([vm for vm in needs if moves(vm)], free, int(index), scale)
        if left:
            return Shortfall(host_id, registry.hosts[host_id].description.hostname, left)
    return None


def _arrived(registry: Registry, moved: Mapping[str, str]) -> dict[str, list[VmEntry]]:
    """The VMs that would be there, by host."""
    found: dict[str, list[VmEntry]] = {}
    for key, host_id in moved.items():
        if (vm := registry.vms.get(key)) is not None:
            found.setdefault(host_id, []).append(vm)
    return found


def _unplaced(vms: Sequence[VmEntry], free: FloatArray, lost: int, scale: FloatArray) -> list[str]:
    """The names of VMs that do not fit into ``free[H, R]`` but row ``lost``, the largest first.

    Each goes to the first host that has room: only as many rows as that takes are looked at.
    """
    if not vms:
        return []
    rest = free.copy()
    slack = TOLERANCE * np.maximum(1.0, np.abs(free))
    rest[lost] = slack[lost] = -np.inf
    left: list[str] = []
    for vm in sorted(vms, key=lambda v: (-float((v.demand.as_array() / scale).max()), v.name)):
        demand = vm.demand.as_array()
        assert demand.shape == (R,)
        for start in range(0, len(rest), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            fits = (rest[part] + slack[part] >= demand).all(axis=1)
            if fits.any():
                rest[start + int(np.argmax(fits))] -= demand
                break
        else:
            left.append(vm.name)
    return left

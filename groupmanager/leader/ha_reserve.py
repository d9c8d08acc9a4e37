"""Whether the loss of any one host could be absorbed by the others: the HA reserve.

Of each host its highly available VMs are packed, the largest first, into what is free on the other
hosts that are up. That is what placement would do after a failure, and errs on the safe side: a
cleverer packing may still fit.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

import numpy as np

from snooze.common.records import HostPower
from snooze.common.resources import TOLERANCE, FloatArray, R
from snooze.common.vm_lifecycle import HOLDS_CAPACITY
from snooze.groupmanager.leader.registry import Registry, VmEntry

MOST: Final = 8
"""Hosts that are looked at: those with the most to bring elsewhere."""


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


def shortfall(
    registry: Registry, limit: FloatArray, without: Set[str] = frozenset()
) -> Shortfall | None:
    """The first host whose loss could not be absorbed; None if every loss could.

    Args:
        limit: ``[R]``, scales the hosts' capacity (overcommit, headroom).
        without: hosts to leave out, as if they were asleep.
    """
    hosts = [
        host
        for host_id, host in sorted(registry.hosts.items())
        if host.joined
        and not host.maintenance
        and host.state is HostPower.ACTIVE
        and host_id not in without
    ]
    if not hosts:
        return None
    row = {host.description.host_id: index for index, host in enumerate(hosts)}
    free = np.array([host.description.capacity.as_tuple() for host in hosts]) * limit
    needs: list[list[VmEntry]] = [[] for _ in hosts]
    held = [
        (row[vm.host_id], vm.demand.as_tuple(), vm)
        for vm in registry.vms.values()
        if vm.host_id in row and vm.state in HOLDS_CAPACITY
    ]
    loads = np.zeros(len(hosts))
    scale = np.maximum(free.max(axis=0), 1.0)
    if held:
        rows = np.array([index for index, _, _ in held])
        demand = np.array([needed for _, needed, _ in held])
        np.subtract.at(free, rows, demand)
        scale = np.maximum(free.max(axis=0), 1.0)
        moving = np.array([vm.managed and vm.policy.is_highly_available for _, _, vm in held])
        np.add.at(loads, rows[moving], (demand[moving] / scale).max(axis=1))
        for index, _, vm in held:
            if vm.managed and vm.policy.is_highly_available:
                needs[index].append(vm)
    for index in sorted(range(len(hosts)), key=lambda i: (-loads[i], i))[:MOST]:
        left = _unplaced(needs[index], np.delete(free, index, axis=0), scale)
        if left:
            description = hosts[index].description
            return Shortfall(description.host_id, description.hostname, left)
    return None


def _unplaced(vms: Sequence[VmEntry], free: FloatArray, scale: FloatArray) -> list[str]:
    """The names of VMs that do not fit into ``free[H, R]``, the largest placed first."""
    rest = free.copy()
    slack = TOLERANCE * np.maximum(1.0, np.abs(rest))
    left: list[str] = []
    for vm in sorted(vms, key=lambda v: (-float((v.demand.as_array() / scale).max()), v.name)):
        demand = vm.demand.as_array()
        assert demand.shape == (R,)
        fits = (rest + slack >= demand).all(axis=1)
        if not fits.any():
            left.append(vm.name)
            continue
        target = int(np.argmax(fits))
        rest[target] -= demand
    return left

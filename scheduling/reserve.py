"""Whether the highly available VMs of a host that fails would find room elsewhere.

Judged host by host, one failure at a time, by first fit of the largest first: where that finds
room there is room; where it does not, a better packing might.
"""

import numpy as np

from snooze.scheduling.snapshot import BoolArray, Snapshot, accepting, free


def stranded_hosts(snapshot: Snapshot) -> BoolArray:
    """``bool[H]``: hosts whose failure would leave a highly available VM without a place."""
    stranded: BoolArray = np.zeros(snapshot.hosts, dtype=np.bool_)
    taking = accepting(snapshot)
    room = free(snapshot)
    scale = np.where(snapshot.capacity > 0, snapshot.capacity, np.inf).max(axis=0, initial=1.0)
    size = (snapshot.demand / np.where(np.isfinite(scale), scale, 1.0)).max(axis=1, initial=0.0)
    protected = np.flatnonzero(snapshot.highly_available & (snapshot.placement >= 0))
    for host in np.unique(snapshot.placement[protected]).tolist():
        members = protected[snapshot.placement[protected] == host]
        left = room.copy()
        open_to = taking.copy()
        open_to[host] = False
        for vm in members[np.argsort(-size[members], kind="stable")].tolist():
            need = snapshot.demand[vm]
            fits = open_to & ((left >= need) | (need <= 0)).all(axis=1)
            if not fits.any():
                stranded[host] = True
                break
            left[int(np.argmax(fits))] -= need
    return stranded

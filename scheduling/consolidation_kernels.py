"""The loops of consolidation over the state of ``packing_kernels``: pour, repack, go home."""

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.packing_jit import compiled
from snooze.scheduling.packing_kernels import FIXED, Bins, has_room, may_go, put, room_for, take
from snooze.scheduling.snapshot import BoolArray, IntArray


@compiled
def pour(
    bins: Bins,
    donors: IntArray,
    receivers: IntArray,
    order: IntArray,
    usable: BoolArray,
    moves_most: int,
    released: BoolArray,
) -> int:
    """Empty one bin after the other by first fit: the pass of Sercon.

    A bin is emptied altogether or left as it was. A bin that received is not emptied, so that
    nothing moves twice; an emptied bin receives nothing, an empty one neither.

    Args:
        bins: the state; changed.
        donors: bins to empty, in this order.
        receivers: bins to try, in this order; the same bins may be in both.
        order: ``int64[n]``, the rank of each item; a bin's lowest rank is moved first.
        usable: ``bool[k]``, bins that may receive; emptied ones are taken out.
        moves_most: stop before more items move; an item counts as the VMs it is made of.
        released: ``bool[k]``, receives which bins were emptied.

    Returns:
        How many VMs moved.
    """
    items, load, limit, head = bins.items, bins.load, bins.limit, bins.head
    received = np.zeros(limit.shape[0], dtype=np.bool_)
    members = np.empty(items.shape[0], dtype=np.int64)
    counting = items.shape[1] - 1
    moved = 0
    for donor in donors:
        if received[donor] or head[donor] < 0:
            continue
        count, vms = 0, 0
        movable = True
        x = int(head[donor])
        while x >= 0:
            movable = movable and bins.penalty[x] < FIXED
            at = count
            while at > 0 and order[members[at - 1]] > order[x]:
                members[at] = members[at - 1]
                at -= 1
            members[at] = x
            count += 1
            vms += int(items[x, counting])
            x = int(bins.after[x])
        if not movable or moved + vms > moves_most:
            continue
        usable[donor] = False
        done = 0
        while done < count:
            v = int(members[done])
            target = -1
            for b in receivers:
                if (
                    usable[b]
                    and head[b] >= 0
                    and has_room(items, load, limit, v, b)
                    and may_go(bins, v, b, -1)
                ):
                    target = b
                    break
            if target < 0:
                break
            take(bins, v)
            put(bins, v, target)
            done += 1
        if done < count:
            for i in range(done):
                v = int(members[i])
                take(bins, v)
                put(bins, v, donor)
            usable[donor] = True
            continue
        for i in range(count):
            received[bins.assign[members[i]]] = True
        released[donor] = True
        moved += vms
    return moved


@compiled
def repack(bins: Bins, items: IntArray, receivers: IntArray) -> int:
    """Put ``items``, in this order, each into the first of ``receivers`` that takes it.

    Returns how many found no bin; they stay without one.
    """
    left = 0
    for v in items:
        target = -1
        for b in receivers:
            if has_room(bins.items, bins.load, bins.limit, v, b) and may_go(bins, v, b, -1):
                target = b
                break
        if target >= 0:
            put(bins, v, target)
        else:
            left += 1
    return left


@compiled
def spread(bins: Bins, items: IntArray, scale: FloatArray) -> int:
    """Put ``items``, in this order, each where it leaves the most room in its scarcest resource.

    ``scale[R]`` makes resources comparable; those with an infinite scale are not compared. Returns
    how many found no bin; they stay without one.
    """
    left = 0
    for v in items:
        target, most = -1, -1.0
        for b in range(bins.limit.shape[0]):
            if not has_room(bins.items, bins.load, bins.limit, v, b) or not may_go(bins, v, b, -1):
                continue
            room = np.inf
            for r in range(scale.shape[0]):
                if scale[r] < np.inf:
                    gap = bins.limit[b, r] - bins.load[b, r] - bins.items[v, r]
                    room = min(room, gap / scale[r])
            if room > most:
                target, most = b, room
        if target >= 0:
            put(bins, v, target)
        else:
            left += 1
    return left


@compiled
def go_home(bins: Bins, order: IntArray) -> int:
    """Send items back to where they came from, wherever that has become possible.

    An item goes home if there is room, or in exchange for an item that is not at home there and
    fits where it leaves. Tries ``order`` until nothing changes; returns how many went home.
    """
    gone, changed = 0, True
    while changed:
        changed = False
        for v in order:
            home, now = int(bins.home[v]), int(bins.assign[v])
            if home < 0 or now < 0 or home == now:
                continue
            if has_room(bins.items, bins.load, bins.limit, v, home) and may_go(bins, v, home, -1):
                take(bins, v)
                put(bins, v, home)
                gone += 1
                changed = True
                continue
            x = int(bins.head[home])
            while x >= 0:
                if (
                    bins.home[x] != home
                    and bins.penalty[x] < FIXED
                    and room_for(bins.items, bins.load, bins.limit, x, v, home)
                    and room_for(bins.items, bins.load, bins.limit, v, x, now)
                    and may_go(bins, v, home, x)
                    and may_go(bins, x, now, v)
                ):
                    take(bins, v)
                    take(bins, x)
                    put(bins, v, home)
                    put(bins, x, now)
                    gone += 1
                    changed = True
                    break
                x = int(bins.after[x])
    return gone

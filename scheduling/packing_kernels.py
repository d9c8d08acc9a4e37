"""Guided ejection search: fit a trash can of items into a fixed set of bins.

The loop of every optimiser here. One step takes an item from the trash. If some bin has room, it
goes there. If none has, the item's penalty grows, and the set of up to three items with the least
sum of penalties whose removal makes room for it is ejected into the trash instead; then a few
random exchanges between bins shake the packing. Items that are hard to place thus become expensive
to eject, until the trash is empty or the steps are used up.

Items may be forbidden some bins (``kind``, ``allowed``) and one another (``group``: two items of a
group never share a bin). Everything is plain arrays, so that numba can compile it; the random
numbers are our own, so that the compiled and the interpreted loop give the same answer.

Source: Y. Nagata, O. Bräysy, "A powerful route minimization heuristic for the vehicle routing
problem with time windows", OR Letters 37 (2009); there over routes, here over bins.
"""

from typing import Final, NamedTuple

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.packing_jit import compiled
from snooze.scheduling.snapshot import NONE, BoolArray, IntArray

EJECT_MOST: Final = 3
"""Items that one step may throw out of a bin."""

FIXED: Final = 1 << 50
"""Penalty of an item that stays where it is, whatever happens."""

RNG: Final = 0
TRASHED: Final = 1


class Bins(NamedTuple):
    """The state of a search over ``n`` items, ``k`` bins, ``R`` resources, ``K`` kinds.

    Attributes:
        items: ``float64[n, R]``.
        limit: ``float64[k, R]``, room of each bin, tolerance included.
        size: ``float64[n]``; among equal penalties the smallest sum is ejected.
        kind: ``int64[n]``, row of ``allowed``.
        allowed: ``bool[K, k]``, bins where items of a kind may go.
        group_start: ``int64[n + 1]``; the groups of item ``v`` are
            ``group[group_start[v]:group_start[v + 1]]``.
        group: ``int64[...]``.
        home: ``int64[n]``, bin an item goes back to when it has room; -1: none.
        assign: ``int64[n]``, bin of each item, -1 in the trash.
        head: ``int64[k]``, first item of each bin; ``after``, ``before``: ``int64[n]``, its list.
        load: ``float64[k, R]``.
        trash: ``int64[n]``, the first ``state[TRASHED]`` count; the last is taken next.
        penalty: ``int64[n]``, how often an item found no room, plus one; or ``FIXED``.
        state: ``int64[2]``, the random number generator and the size of the trash.
    """

    items: FloatArray
    limit: FloatArray
    size: FloatArray
    kind: IntArray
    allowed: BoolArray
    group_start: IntArray
    group: IntArray
    home: IntArray
    assign: IntArray
    head: IntArray
    after: IntArray
    before: IntArray
    load: FloatArray
    trash: IntArray
    penalty: IntArray
    state: IntArray


@compiled
def draw(state: IntArray, bound: int) -> int:
    """A random whole number below ``bound``. Source: Park and Miller, CACM 31 (1988)."""
    state[0] = (state[0] * 48271) % 2147483647
    return int(state[0] % bound)


@compiled
def put(bins: Bins, v: int, b: int) -> None:
    """Item ``v``, which is in no bin, into bin ``b``; not asked whether it fits."""
    first = bins.head[b]
    bins.assign[v] = b
    bins.after[v] = first
    bins.before[v] = -1
    if first >= 0:
        bins.before[first] = v
    bins.head[b] = v
    for r in range(bins.items.shape[1]):
        bins.load[b, r] += bins.items[v, r]


@compiled
def take(bins: Bins, v: int) -> None:
    """Item ``v`` out of its bin."""
    b = bins.assign[v]
    follower, leader = bins.after[v], bins.before[v]
    if leader >= 0:
        bins.after[leader] = follower
    else:
        bins.head[b] = follower
    if follower >= 0:
        bins.before[follower] = leader
    bins.assign[v] = -1
    for r in range(bins.items.shape[1]):
        bins.load[b, r] -= bins.items[v, r]


@compiled
def clash(group_start: IntArray, group: IntArray, v: int, x: int) -> bool:
    """Whether two items have a group in common."""
    for i in range(group_start[v], group_start[v + 1]):
        for j in range(group_start[x], group_start[x + 1]):
            if group[i] == group[j]:
                return True
    return False


@compiled
def may_go(bins: Bins, v: int, b: int, but: int) -> bool:
    """Whether rules let ``v`` into bin ``b``, once item ``but`` (-1: none) has left it."""
    if not bins.allowed[bins.kind[v], b]:
        return False
    if bins.group_start[v] == bins.group_start[v + 1]:
        return True
    x = int(bins.head[b])
    while x >= 0:
        if x != but and clash(bins.group_start, bins.group, v, x):
            return False
        x = int(bins.after[x])
    return True


@compiled
def has_room(items: FloatArray, load: FloatArray, limit: FloatArray, v: int, b: int) -> bool:
    """Whether ``v`` fits into bin ``b``, rules apart."""
    for r in range(limit.shape[1]):  # noqa: SIM110 (numba does not compile generators)
        if load[b, r] + items[v, r] > limit[b, r]:
            return False
    return True


@compiled
def room_for(
    items: FloatArray, load: FloatArray, limit: FloatArray, out: int, into: int, b: int
) -> bool:
    """Whether ``into`` fits into bin ``b`` once ``out`` has left it."""
    for r in range(limit.shape[1]):
        if load[b, r] - items[out, r] + items[into, r] > limit[b, r]:
            return False
    return True


@compiled
def _leaves(items: FloatArray, load: FloatArray, limit: FloatArray, v: int, b: int) -> bool:
    """Whether bin ``b`` can do without ``v``; not if ``v`` gives it room."""
    for r in range(limit.shape[1]):  # noqa: SIM110
        if load[b, r] - items[v, r] > limit[b, r]:
            return False
    return True


@compiled
def shake(bins: Bins, attempts: int) -> None:
    """Try ``attempts`` random moves and exchanges between bins; do those that fit."""
    items, load, limit = bins.items, bins.load, bins.limit
    assign, penalty, state = bins.assign, bins.penalty, bins.state
    n, k = items.shape[0], limit.shape[0]
    for _ in range(attempts):
        v = draw(state, n)
        b = int(assign[v])
        if b < 0 or penalty[v] >= FIXED:
            continue
        if draw(state, 4) == 0:
            target = draw(state, k)
            if (
                target != b
                and has_room(items, load, limit, v, target)
                and _leaves(items, load, limit, v, b)
                and may_go(bins, v, target, -1)
            ):
                take(bins, v)
                put(bins, v, target)
        else:
            x = draw(state, n)
            target = int(assign[x])
            if (
                target >= 0
                and target != b
                and penalty[x] < FIXED
                and room_for(items, load, limit, v, x, b)
                and room_for(items, load, limit, x, v, target)
                and may_go(bins, x, b, v)
                and may_go(bins, v, target, x)
            ):
                take(bins, v)
                take(bins, x)
                put(bins, v, target)
                put(bins, x, b)


@compiled
def _find_room(bins: Bins, v: int) -> int:
    """A bin with room for ``v``: its home, else a random one; -1: none."""
    items, load, limit, home = bins.items, bins.load, bins.limit, int(bins.home[v])
    if home >= 0 and has_room(items, load, limit, v, home) and may_go(bins, v, home, -1):
        return home
    found, seen = -1, 0
    for b in range(limit.shape[0]):
        if has_room(items, load, limit, v, b) and may_go(bins, v, b, -1):
            seen += 1
            if draw(bins.state, seen) == 0:
                found = b
    return found


@compiled
def _gather(bins: Bins, v: int, b: int, members: IntArray) -> tuple[int, int]:
    """The items of bin ``b``, those that clash with ``v`` first: how many, how many clash."""
    count, clashing = 0, 0
    ruled = bins.group_start[v] < bins.group_start[v + 1]
    x = int(bins.head[b])
    while x >= 0:
        members[count] = x
        if ruled and clash(bins.group_start, bins.group, v, x):
            members[count] = members[clashing]
            members[clashing] = x
            clashing += 1
        count += 1
        x = int(bins.after[x])
    return count, clashing


@compiled
def _cheapest_ejection(
    bins: Bins, v: int, window: int, members: IntArray, excess: FloatArray, chosen: IntArray
) -> int:
    """The set to eject for ``v``, into ``chosen`` (-1 where fewer); its bin, or -1.

    Looks at ``window`` bins from a random one on. Sets are compared by penalties, then sizes.
    """
    items, size, penalty = bins.items, bins.size, bins.penalty
    k, axes = bins.limit.shape
    best, best_size, best_bin = FIXED - 1, np.inf, -1
    offset = draw(bins.state, k)
    for turn in range(min(window, k)):
        b = (offset + turn) % k
        if not bins.allowed[bins.kind[v], b]:
            continue
        count, clashing = _gather(bins, v, b, members)
        if clashing > EJECT_MOST:
            continue
        for r in range(axes):
            excess[r] = bins.load[b, r] + items[v, r] - bins.limit[b, r]
        for i in range(count if clashing == 0 else 1):
            x = members[i]
            cost_x = penalty[x]
            if cost_x > best:
                continue
            enough = clashing <= 1
            for r in range(axes):
                if items[x, r] < excess[r]:
                    enough = False
                    break
            if enough:
                if cost_x < best or size[x] < best_size:
                    best, best_size, best_bin = cost_x, size[x], b
                    chosen[0], chosen[1], chosen[2] = x, -1, -1
                continue
            for j in range(i + 1, count if clashing <= 1 else 2):
                y = members[j]
                cost_y = cost_x + penalty[y]
                if cost_y > best:
                    continue
                size_y = size[x] + size[y]
                enough = clashing <= 2
                for r in range(axes):
                    if items[x, r] + items[y, r] < excess[r]:
                        enough = False
                        break
                if enough:
                    if cost_y < best or size_y < best_size:
                        best, best_size, best_bin = cost_y, size_y, b
                        chosen[0], chosen[1], chosen[2] = x, y, -1
                    continue
                for m in range(j + 1, count if clashing <= 2 else 3):
                    z = members[m]
                    cost_z = cost_y + penalty[z]
                    if cost_z > best:
                        continue
                    size_z = size_y + size[z]
                    if cost_z == best and size_z >= best_size:
                        continue
                    enough = True
                    for r in range(axes):
                        if items[x, r] + items[y, r] + items[z, r] < excess[r]:
                            enough = False
                            break
                    if enough:
                        best, best_size, best_bin = cost_z, size_z, b
                        chosen[0], chosen[1], chosen[2] = x, y, z
    return best_bin


@compiled
def search(bins: Bins, steps: int, attempts: int, window: int) -> int:
    """Run until the trash is empty or ``steps`` are done; how many were done."""
    members = np.empty(bins.items.shape[0], dtype=np.int64)
    excess = np.empty(bins.items.shape[1], dtype=np.float64)
    chosen = np.empty(EJECT_MOST, dtype=np.int64)
    for step in range(steps):
        trashed = int(bins.state[TRASHED])
        if trashed == 0:
            return step
        v = int(bins.trash[trashed - 1])
        target = _find_room(bins, v)
        if target >= 0:
            bins.state[TRASHED] = trashed - 1
            put(bins, v, target)
            continue
        bins.penalty[v] += 1
        target = _cheapest_ejection(bins, v, window, members, excess, chosen)
        if target < 0:  # nothing makes room for it now: let the others go first
            bins.trash[trashed - 1] = bins.trash[0]
            bins.trash[0] = v
        else:
            trashed -= 1
            for x in chosen:
                if x >= 0:
                    take(bins, int(x))
                    bins.trash[trashed] = x
                    trashed += 1
            put(bins, v, target)
            bins.state[TRASHED] = trashed
        shake(bins, attempts)
    return steps


@compiled
def _fill(bins: Bins, bin_of: IntArray) -> None:
    """Put every item where ``bin_of`` says, the last first, so that lists are in order."""
    for v in range(bin_of.shape[0] - 1, -1, -1):
        if bin_of[v] >= 0:
            put(bins, v, bin_of[v])


def make_bins(
    items: FloatArray,
    limit: FloatArray,
    size: FloatArray,
    bin_of: IntArray,
    seed: int,
    *,
    home: IntArray | None = None,
    kind: IntArray | None = None,
    allowed: BoolArray | None = None,
    groups: tuple[IntArray, IntArray] | None = None,
) -> Bins:
    """The state of a search that starts at ``bin_of``; items without a bin are in the trash.

    The smallest item in the trash is taken last. ``seed`` is from 1 to 2147483646; ``groups`` are
    offsets ``int64[n + 1]`` and group numbers. The other arguments as in ``Bins``.
    """
    count, bins = len(items), len(limit)
    waiting = np.flatnonzero(bin_of < 0)
    trash = np.zeros(count, dtype=np.int64)
    trash[: len(waiting)] = waiting[np.argsort(size[waiting], kind="stable")]
    state = Bins(
        items=np.ascontiguousarray(items),
        limit=np.ascontiguousarray(limit),
        size=size,
        kind=np.zeros(count, dtype=np.int64) if kind is None else kind,
        allowed=np.ones((1, bins), dtype=np.bool_) if allowed is None else allowed,
        group_start=np.zeros(count + 1, dtype=np.int64) if groups is None else groups[0],
        group=np.zeros(0, dtype=np.int64) if groups is None else groups[1],
        home=np.full(count, NONE, dtype=np.int64) if home is None else home,
        assign=np.full(count, NONE, dtype=np.int64),
        head=np.full(bins, NONE, dtype=np.int64),
        after=np.full(count, NONE, dtype=np.int64),
        before=np.full(count, NONE, dtype=np.int64),
        load=np.zeros((bins, items.shape[1])),
        trash=trash,
        penalty=np.ones(count, dtype=np.int64),
        state=np.array([seed, len(waiting)], dtype=np.int64),
    )
    _fill(state, bin_of)
    return state

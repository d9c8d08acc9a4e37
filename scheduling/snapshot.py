"""The cluster as one decision sees it: arrays that do not change.

Rules:

1. A snapshot is made by ``Snapshot.of`` (or, cheaply, from another by ``with_vms``). Whatever is
   handed in, no exception comes out: what is wrong is listed in ``problems``.
2. One wrong row spoils only itself. A host with a wrong row accepts nothing (``host_ok`` is False);
   a VM with a wrong row is not placed (``vm_ok`` is False), and the host that carries it accepts
   nothing either, since nobody knows how full it is. The arrays hold zeros there, never a NaN.
3. What is wrong as a whole (shapes, a VM listed twice, a negative overcommit) makes a snapshot
   without hosts: nothing can be decided on it, and every plan says so.
4. Arrays are read-only, and perhaps views of what was handed in: the caller no longer changes
   them. Matrices over hosts are in column order, since scans go along one axis over all hosts.

Axes: ``H`` hosts, ``V`` VMs, ``R`` resources (``snooze.common.resources``, but any number of axes
works). An index of -1 means none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snooze.common.resources import TOLERANCE, Axis, FloatArray
from snooze.scheduling.model import (
    MAX_VALUE,
    NONE,
    Affinity,
    AffinityRule,
    BoolArray,
    HostState,
    IntArray,
    Labels,
    Problem,
    default_axes,
)
from snooze.scheduling.validation import (
    COUNT,
    COUNT_OR_NONE,
    FACTOR,
    FLAG_OFF,
    FLAG_ON,
    FRACTION,
    INTEGER,
    SIGNED,
    SIZE,
    Bounds,
    Reader,
    as_numbers,
    frozen,
)

__all__ = [
    "MAX_VALUE",
    "NONE",
    "Affinity",
    "AffinityRule",
    "BoolArray",
    "HostState",
    "IntArray",
    "Labels",
    "Problem",
    "Snapshot",
    "accepting",
    "count_vms",
    "free",
    "reserved",
]

StateArray = NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """All that a decision may look at. Made by ``Snapshot.of``, which says what each field is."""

    host_ids: tuple[str, ...]
    capacity: FloatArray
    used: FloatArray
    host_state: StateArray
    vm_ids: tuple[str, ...]
    demand: FloatArray
    placement: IntArray
    overcommit: FloatArray
    headroom: FloatArray
    pin: IntArray
    load: FloatArray
    vm_count: IntArray
    max_vms: IntArray
    host_preference: FloatArray
    priority: IntArray
    movable: BoolArray
    highly_available: BoolArray
    memory_kib: FloatArray
    dirty_rate_kib_s: FloatArray
    overload_s: FloatArray
    rules: tuple[AffinityRule, ...]
    tags: Labels | None
    networks: Labels | None
    images: Labels | None
    axes: tuple[str, ...]
    host_ok: BoolArray
    vm_ok: BoolArray
    limit: FloatArray
    ceiling: FloatArray
    problems: tuple[Problem, ...]

    @classmethod
    def of(
        cls,
        host_ids: Sequence[str],
        capacity: ArrayLike,
        *,
        used: ArrayLike | None = None,
        host_state: ArrayLike | None = None,
        vm_ids: Sequence[str] = (),
        demand: ArrayLike | None = None,
        placement: ArrayLike | None = None,
        overcommit: ArrayLike | None = None,
        headroom: ArrayLike | None = None,
        pin: ArrayLike | None = None,
        load: ArrayLike | None = None,
        vm_count: ArrayLike | None = None,
        max_vms: ArrayLike | None = None,
        host_preference: ArrayLike | None = None,
        priority: ArrayLike | None = None,
        movable: ArrayLike | None = None,
        highly_available: ArrayLike | None = None,
        memory_kib: ArrayLike | None = None,
        dirty_rate_kib_s: ArrayLike | None = None,
        overload_s: ArrayLike | None = None,
        rules: Iterable[AffinityRule] = (),
        tags: Labels | None = None,
        networks: Labels | None = None,
        images: Labels | None = None,
        axes: Sequence[str] | None = None,
    ) -> "Snapshot":
        """Build and validate; never raises, see ``problems``.

        Args:
            host_ids: one name per host; their order is the order of preference in every tie.
            capacity: ``float64[H, R]``, what each host has.
            used: ``float64[H, R]``, reserved by VMs that are *not* listed here; default none.
            host_state: ``HostState`` per host; default all ACTIVE.
            vm_ids: one name per VM: those to be placed, and those that may be moved.
            demand: ``float64[V, R]``, what each VM asked for, or its estimate.
            placement: host index per VM, -1 if it has none yet (the default).
            overcommit: ``float64[R]``, how many times a capacity may be promised; default 1.
            headroom: ``float64[R]`` in (0, 1], the part of it that may be used (Snooze's MID
                threshold); default 1. A host takes VMs up to ``capacity * overcommit * headroom``.
            pin: host index on which the VM must be, -1 (default) for anywhere.
            load: ``float64[H, R]``, measured usage; default what is reserved.
            vm_count: number of VMs on each host that are *not* listed here; default 0.
            max_vms: most VMs per host, -1 (default) for no bound.
            host_preference: per host, higher is preferred; default 0.
            priority: per VM, higher is placed first; default 0.
            movable: per VM, False if it must not be migrated; default True.
            highly_available: per VM, True if it is restarted when its host dies; default False.
            memory_kib: per VM, memory to copy when it moves; default its memory demand.
            dirty_rate_kib_s: per VM, how fast it rewrites memory, KiB/s; default 0.
            overload_s: per host, for how long it has been overloaded, seconds; default 0.
            rules: affinity rules, by indices.
            tags, networks, images: what hosts offer and VMs need.
            axes: names of the R resources; default Snooze's four.
        """
        host_ids, vm_ids = tuple(host_ids), tuple(vm_ids)
        axis_count = _axis_count(capacity, demand, axes)
        read = Reader.over(len(host_ids), len(vm_ids), axis_count)
        read.unique("host_ids", host_ids)
        read.unique("vm_ids", vm_ids)
        if axes is not None and len(axes) != axis_count:
            read.add("axes", f"{len(axes)} names, {axis_count} resources", "shape", fatal=True)
        sizes = read.matrix("capacity", capacity, "host")
        promised = read.matrix("used", used, "host")
        needs = read.matrix("demand", _required(demand, len(vm_ids)), "vm")
        places = read.indices("placement", placement, vm_ids)
        states = Bounds(0, max(HostState), HostState.ACTIVE)
        factor = read.floats("overcommit", overcommit, "axis", FACTOR)
        fraction = read.floats("headroom", headroom, "axis", FRACTION)
        limit, ceiling = _bounds(sizes, factor, fraction)
        snapshot = cls(
            host_ids=host_ids,
            capacity=sizes,
            used=promised,
            host_state=read.whole("host_state", host_state, "host", states).astype(np.int8),
            vm_ids=vm_ids,
            demand=needs,
            placement=places,
            overcommit=factor,
            headroom=fraction,
            pin=read.indices("pin", pin, vm_ids),
            load=read.matrix("load", load, "host"),
            vm_count=read.whole("vm_count", vm_count, "host", COUNT),
            max_vms=read.whole("max_vms", max_vms, "host", COUNT_OR_NONE),
            host_preference=read.floats("host_preference", host_preference, "host", SIGNED),
            priority=read.whole("priority", priority, "vm", INTEGER),
            movable=read.flags("movable", movable, "vm", FLAG_ON),
            highly_available=read.flags("highly_available", highly_available, "vm", FLAG_OFF),
            memory_kib=(
                read.floats("memory_kib", memory_kib, "vm")
                if memory_kib is not None
                else _memory(needs)
            ),
            dirty_rate_kib_s=read.floats("dirty_rate_kib_s", dirty_rate_kib_s, "vm"),
            overload_s=read.floats("overload_s", overload_s, "host", SIZE),
            rules=read.rules(tuple(rules)),
            tags=read.labels("tags", tags),
            networks=read.labels("networks", networks),
            images=read.labels("images", images),
            axes=tuple(axes) if axes is not None else default_axes(axis_count),
            host_ok=read.host_ok,
            vm_ok=read.vm_ok,
            limit=limit,
            ceiling=ceiling,
            problems=(),
        )
        if read.fatal:
            return _without_hosts(vm_ids, axis_count, read.problems())
        carriers = places[~read.vm_ok]
        read.host_ok[carriers[carriers >= 0]] = False
        frozen(read.host_ok)
        frozen(read.vm_ok)
        return replace(
            snapshot,
            load=snapshot.load if load is not None else frozen(reserved(snapshot)),
            problems=read.problems(),
        )

    def with_vms(
        self, vm_ids: Sequence[str], demand: ArrayLike, *, pin: ArrayLike | None = None
    ) -> "Snapshot":
        """The same hosts with other VMs, all to be placed, without affinity or labels.

        Costs nothing per host. The VMs of this snapshot no longer count: reserve them in ``used``
        first if they take room.
        """
        vm_ids = tuple(vm_ids)
        read = Reader.over(self.hosts, len(vm_ids), len(self.axes))
        read.unique("vm_ids", vm_ids)
        needs = read.matrix("demand", _required(demand, len(vm_ids)), "vm")
        if read.fatal:
            return _without_hosts(vm_ids, len(self.axes), self.problems + read.problems())
        return replace(
            self,
            vm_ids=vm_ids,
            demand=needs,
            placement=read.whole("placement", None, "vm", COUNT_OR_NONE),
            pin=read.indices("pin", pin, vm_ids),
            priority=read.whole("priority", None, "vm", INTEGER),
            movable=read.flags("movable", None, "vm", FLAG_ON),
            highly_available=read.flags("highly_available", None, "vm", FLAG_OFF),
            memory_kib=_memory(needs),
            dirty_rate_kib_s=read.floats("dirty_rate_kib_s", None, "vm"),
            rules=(),
            tags=None,
            networks=None,
            images=None,
            vm_ok=frozen(read.vm_ok),
            problems=self.problems + read.problems(),
        )

    def changed(self, **columns: object) -> "Snapshot":
        """The same with some arguments of ``of`` replaced, validated again."""
        arguments: dict[str, object] = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in {"host_ok", "vm_ok", "limit", "ceiling", "problems"}
        }
        return Snapshot.of(**{**arguments, **columns})  # type: ignore[arg-type]

    @property
    def hosts(self) -> int:
        """H, the number of hosts."""
        return len(self.host_ids)

    @property
    def vms(self) -> int:
        """V, the number of VMs listed."""
        return len(self.vm_ids)

    def moved(self, placement: IntArray) -> "Snapshot":
        """The same VMs at other places, as after a plan; ``placement`` is not validated."""
        return replace(self, placement=frozen(placement.astype(np.int64)))


def reserved(snapshot: Snapshot) -> FloatArray:
    """``float64[H, R]``: what is promised on each host, to VMs listed or not. A new array."""
    total = snapshot.used.copy()
    placed = np.flatnonzero(snapshot.placement >= 0)
    if placed.size:
        np.add.at(total, snapshot.placement[placed], snapshot.demand[placed])
    return total


def free(snapshot: Snapshot) -> FloatArray:
    """``float64[H, R]``: room left on each host, with the tolerance already in it. A new array.

    ``demand <= free`` is the test for "fits". Negative where a host is overcommitted. Hosts that
    take no VMs have room too: whoever asks looks at ``host_state`` and ``host_ok``.
    """
    if (snapshot.placement == NONE).all():
        return snapshot.ceiling - snapshot.used
    return snapshot.ceiling - reserved(snapshot)


def count_vms(snapshot: Snapshot) -> IntArray:
    """``int64[H]``: number of VMs on each host, listed or not. A new array."""
    placed = snapshot.placement[snapshot.placement >= 0]
    return snapshot.vm_count + np.bincount(placed, minlength=snapshot.hosts)


def accepting(snapshot: Snapshot) -> BoolArray:
    """``bool[H]``: hosts that run and take VMs now."""
    active: BoolArray = snapshot.host_state == HostState.ACTIVE
    return snapshot.host_ok & active


def _axis_count(capacity: object, demand: object, axes: Sequence[str] | None) -> int:
    """R, from the capacities; from the demands or the names when there is no host."""
    for value in (capacity, demand):
        array = as_numbers(value)
        if array is not None and array.ndim == 2 and array.shape[1]:
            return int(array.shape[1])
    return len(axes) if axes is not None else len(Axis)


def _required(value: object, rows: int) -> object:
    """``value``, or something that will be refused if it is missing though there are rows."""
    return value if value is not None or not rows else ()


def _memory(demand: FloatArray) -> FloatArray:
    """The memory axis of ``demand``, or zeros if there is none."""
    if demand.shape[1] > Axis.MEMORY:
        return frozen(demand[:, Axis.MEMORY])
    return frozen(np.zeros(len(demand)))


def _bounds(
    capacity: FloatArray, overcommit: FloatArray, headroom: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """What may be promised on each host, and the same with the tolerance."""
    limit = capacity * (overcommit * headroom)
    return frozen(limit), frozen(limit + TOLERANCE * np.maximum(1.0, limit))


def _without_hosts(
    vm_ids: tuple[str, ...], axis_count: int, problems: tuple[Problem, ...]
) -> Snapshot:
    """No hosts, and no VM placeable: what is left of a snapshot that makes no sense."""
    names = tuple(f"{i}" for i in range(len(vm_ids)))
    empty = Snapshot.of((), np.zeros((0, axis_count)))
    bare = empty.with_vms(names, np.zeros((len(vm_ids), axis_count)))
    nothing = frozen(np.zeros(len(vm_ids), dtype=np.bool_))
    return replace(bare, vm_ids=vm_ids, vm_ok=nothing, problems=problems)

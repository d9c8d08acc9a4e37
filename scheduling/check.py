"""An independent proof that a plan breaks no rule.

Written naively, with loops over Python numbers, and importing none of the code that makes plans, so
that a mistake there is not repeated here. A plan is charged only with what it does: a host that was
overcommitted before, and receives nothing, is no violation.

The comparison allows twice the ``TOLERANCE`` that planning does, since it sums in another order.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from snooze.common.resources import TOLERANCE
from snooze.scheduling.plans import Move, Plan
from snooze.scheduling.snapshot import NONE, Affinity, HostState, Labels, Snapshot

SLACK: Final = 2 * TOLERANCE


class Rule(StrEnum):
    """Which rule a violation breaks."""

    SHAPE = "shape"
    CAPACITY = "capacity"
    MAX_VMS = "max_vms"
    PIN = "pin"
    HOST_STATE = "host_state"
    INVALID_HOST = "invalid_host"
    INVALID_VM = "invalid_vm"
    TAGS = "tags"
    NETWORKS = "networks"
    AFFINITY = "affinity"
    NOT_MOVABLE = "not_movable"
    LOST = "lost"
    MOVES = "moves"
    WAKES = "wakes"
    SLEEPS = "sleeps"


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule; ``vm``, ``host`` are indices or -1, ``batch`` the step of a migration."""

    rule: Rule
    message: str
    vm: int = NONE
    host: int = NONE
    batch: int = NONE


def check_plan(snapshot: Snapshot, plan: Plan) -> list[Violation]:
    """Every rule that carrying out ``plan`` on ``snapshot`` would break; empty if it is sound.

    Checks the end state, and each step on the way if the plan has moves. Moves must then say how
    every VM that changes its host gets there.
    """
    before = [int(host) for host in snapshot.placement]
    if plan.placement.ndim != 1 or len(plan.placement) != snapshot.vms:
        return [Violation(Rule.SHAPE, f"a plan for {len(plan.placement)} VMs, not {snapshot.vms}")]
    after = [int(host) for host in plan.placement]
    strays = [vm for vm, host in enumerate(after) if not NONE <= host < snapshot.hosts]
    if strays:
        return [
            Violation(Rule.SHAPE, f"there is no host {after[vm]}", vm, after[vm]) for vm in strays
        ]
    found = _check_arrivals(snapshot, before, after, plan.wakes)
    found += _check_hosts(snapshot, _listed(after), _gains(before, after), NONE)
    found += _check_affinity(snapshot, _listed(after), _gains(before, after), NONE)
    found += _check_power(snapshot, plan, after)
    if plan.moves:
        found += _check_moves(snapshot, plan, before, after)
    return found


def check_moves(snapshot: Snapshot, moves: Sequence[Move]) -> list[Violation]:
    """Every rule that a sequence of moves would break, at each of its steps and in the end."""
    after = snapshot.placement.copy()
    for move in moves:
        if 0 <= move.vm < snapshot.vms:
            after[move.vm] = move.target
    return check_plan(snapshot, Plan(placement=after, moves=tuple(moves)))


def _listed(placement: Sequence[int]) -> dict[int, list[int]]:
    """The VMs on each host."""
    on_host: dict[int, list[int]] = defaultdict(list)
    for vm, host in enumerate(placement):
        if host != NONE:
            on_host[host].append(vm)
    return on_host


def _gains(before: Sequence[int], after: Sequence[int]) -> dict[int, list[int]]:
    """The VMs each host receives."""
    gained: dict[int, list[int]] = defaultdict(list)
    for vm, (old, new) in enumerate(zip(before, after, strict=True)):
        if new not in (NONE, old):
            gained[new].append(vm)
    return gained


def _check_arrivals(
    snapshot: Snapshot, before: Sequence[int], after: Sequence[int], wakes: Sequence[int]
) -> list[Violation]:
    """Rules about one VM and the host it comes to."""
    found: list[Violation] = []
    for vm, (old, new) in enumerate(zip(before, after, strict=True)):
        if new == old:
            continue
        if new == NONE:
            found.append(Violation(Rule.LOST, "a running VM has no host in the plan", vm, old))
            continue
        if not snapshot.vm_ok[vm]:
            found.append(Violation(Rule.INVALID_VM, "its row made no sense", vm, new))
        if not snapshot.host_ok[new]:
            found.append(Violation(Rule.INVALID_HOST, "the host's row made no sense", vm, new))
        state = HostState(int(snapshot.host_state[new]))
        if state not in (HostState.ACTIVE, HostState.WAKING) and not (
            state is HostState.ASLEEP and new in wakes
        ):
            found.append(Violation(Rule.HOST_STATE, f"the host is {state.name}", vm, new))
        if snapshot.pin[vm] not in (NONE, new):
            found.append(Violation(Rule.PIN, f"pinned to host {snapshot.pin[vm]}", vm, new))
        if old != NONE and not snapshot.movable[vm]:
            found.append(Violation(Rule.NOT_MOVABLE, "it must not be migrated", vm, new))
        found += _check_labels(Rule.TAGS, snapshot.tags, vm, new)
        found += _check_labels(Rule.NETWORKS, snapshot.networks, vm, new)
    return found


def _check_labels(rule: Rule, labels: Labels | None, vm: int, host: int) -> list[Violation]:
    if labels is None:
        return []
    lacking = [
        name
        for i, name in enumerate(labels.names)
        if labels.vms[vm, i] and not labels.hosts[host, i]
    ]
    return [Violation(rule, f"the host lacks {', '.join(lacking)}", vm, host)] if lacking else []


def _check_hosts(
    snapshot: Snapshot,
    on_host: Mapping[int, Sequence[int]],
    gained: Mapping[int, Sequence[int]],
    batch: int,
) -> list[Violation]:
    """Capacity and number of VMs, on the hosts that receive something."""
    found: list[Violation] = []
    for host in gained:
        members = on_host.get(host, ())
        for axis, name in enumerate(snapshot.axes):
            limit = (
                float(snapshot.capacity[host, axis])
                * float(snapshot.overcommit[axis])
                * float(snapshot.headroom[axis])
            )
            total = math.fsum(
                [
                    float(snapshot.used[host, axis]),
                    *(float(snapshot.demand[vm, axis]) for vm in members),
                ]
            )
            if total > limit + SLACK * max(1.0, limit) and any(
                snapshot.demand[vm, axis] > 0 for vm in gained[host]
            ):
                message = f"{name}: {total:g} promised of {limit:g}"
                found.append(Violation(Rule.CAPACITY, message, NONE, host, batch))
        most = int(snapshot.max_vms[host])
        count = int(snapshot.vm_count[host]) + len(members)
        if most != NONE and count > most:
            message = f"{count} VMs where {most} are allowed"
            found.append(Violation(Rule.MAX_VMS, message, NONE, host, batch))
    return found


def _check_affinity(
    snapshot: Snapshot,
    on_host: Mapping[int, Sequence[int]],
    gained: Mapping[int, Sequence[int]],
    batch: int,
) -> list[Violation]:
    """Hard rules that a VM breaks by where it comes to."""
    found: list[Violation] = []
    where = {vm: host for host, members in on_host.items() for vm in members}
    arrivals = {vm for members in gained.values() for vm in members}
    for rule in snapshot.rules:
        if not rule.hard:
            continue
        for vm in sorted(arrivals.intersection(rule.vms)):
            host = where[vm]
            others = [where[other] for other in rule.vms if other != vm and other in where]
            broken = {
                Affinity.APART: host in others,
                Affinity.TOGETHER: any(other != host for other in others),
                Affinity.ON_HOSTS: host not in rule.hosts,
                Affinity.OFF_HOSTS: host in rule.hosts,
            }[rule.kind]
            if broken:
                message = f"rule {rule.name or rule.kind.value!r}"
                found.append(Violation(Rule.AFFINITY, message, vm, host, batch))
    return found


def _check_power(snapshot: Snapshot, plan: Plan, after: Sequence[int]) -> list[Violation]:
    """Only sleeping hosts are woken, only empty running ones put to sleep."""
    found: list[Violation] = []
    for host in plan.wakes:
        if not 0 <= host < snapshot.hosts or snapshot.host_state[host] != HostState.ASLEEP:
            found.append(Violation(Rule.WAKES, "the host is not asleep", NONE, host))
    for host in plan.sleeps:
        if not 0 <= host < snapshot.hosts or snapshot.host_state[host] != HostState.ACTIVE:
            found.append(Violation(Rule.SLEEPS, "the host is not active", NONE, host))
        elif not snapshot.host_ok[host] or host in after or snapshot.vm_count[host] > 0:
            found.append(Violation(Rule.SLEEPS, "VMs are left on the host", NONE, host))
        elif any(snapshot.used[host] > 0):
            found.append(Violation(Rule.SLEEPS, "something is reserved there", NONE, host))
    return found


def _check_moves(
    snapshot: Snapshot, plan: Plan, before: Sequence[int], after: Sequence[int]
) -> list[Violation]:
    """Replay the moves batch by batch; while a VM moves it is on both hosts."""
    found: list[Violation] = []
    where = list(before)
    batches: dict[int, list[Move]] = defaultdict(list)
    for move in plan.moves:
        if not 0 <= move.vm < snapshot.vms or not 0 <= move.target < snapshot.hosts:
            found.append(Violation(Rule.MOVES, f"no such VM or host: {move}", move.vm))
            return found
        batches[move.batch].append(move)
    if [move.batch for move in plan.moves] != sorted(move.batch for move in plan.moves):
        found.append(Violation(Rule.MOVES, "moves are not in the order of their batches"))
    for batch in sorted(batches):
        moves = batches[batch]
        found += _check_batch(snapshot, moves, where, plan.wakes, batch)
        for move in moves:
            where[move.vm] = move.target
    for vm, (reached, wanted) in enumerate(zip(where, after, strict=True)):
        if before[vm] != NONE and reached != wanted:
            message = f"the moves end on host {reached}, the plan says {wanted}"
            found.append(Violation(Rule.MOVES, message, vm, wanted))
    return found


def _check_batch(
    snapshot: Snapshot,
    moves: Sequence[Move],
    where: Sequence[int],
    wakes: Sequence[int],
    batch: int,
) -> list[Violation]:
    found: list[Violation] = []
    moving: set[int] = set()
    during = _listed(where)
    arrived = list(where)
    gained: dict[int, list[int]] = defaultdict(list)
    for move in moves:
        if move.vm in moving:
            message = "moves twice in one batch"
            found.append(Violation(Rule.MOVES, message, move.vm, move.target, batch))
            continue
        moving.add(move.vm)
        if move.source != where[move.vm] or move.source in (NONE, move.target):
            message = f"from host {move.source} to {move.target}; it is on {where[move.vm]}"
            found.append(Violation(Rule.MOVES, message, move.vm, move.target, batch))
            continue
        during[move.target].append(move.vm)
        gained[move.target].append(move.vm)
        arrived[move.vm] = move.target
    found += _check_hosts(snapshot, during, gained, batch)
    found += _check_arrivals(snapshot, where, arrived, wakes)
    found += _check_affinity_on_the_way(snapshot, moves, where, batch)
    return found


def _check_affinity_on_the_way(
    snapshot: Snapshot, moves: Sequence[Move], where: Sequence[int], batch: int
) -> list[Violation]:
    """Apart stays apart while VMs move: a VM counts on both its hosts until the batch ends.

    Together may be broken on the way: a group cannot arrive in one instant.
    """
    found: list[Violation] = []
    places: list[set[int]] = [set() if host == NONE else {host} for host in where]
    for move in moves:
        places[move.vm].add(move.target)
    for rule in snapshot.rules:
        if not rule.hard or rule.kind is not Affinity.APART:
            continue
        members = set(rule.vms)
        for move in moves:
            if move.vm not in members:
                continue
            if any(move.target in places[other] for other in members - {move.vm}):
                message = f"rule {rule.name or rule.kind.value!r} on the way"
                found.append(Violation(Rule.AFFINITY, message, move.vm, move.target, batch))
    return found

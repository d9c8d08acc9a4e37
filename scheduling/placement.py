"""Manager to hosts: which host gets which VM."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never

import numpy as np

from snooze.scheduling.ledger import Ledger
from snooze.scheduling.plans import Plan, Reason, ReasonCode
from snooze.scheduling.snapshot import NONE, BoolArray, HostState, Snapshot


class Strategy(StrEnum):
    """How a host is chosen among those allowed."""

    FIRST_FIT = "first_fit"
    ROUND_ROBIN = "round_robin"


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """A named way to place VMs; ``wake`` allows hosts that are asleep, after all running ones."""

    name: str
    strategy: Strategy
    wake: bool = True


POLICIES: Final = {
    "first_fit": PlacementPolicy("first_fit", Strategy.FIRST_FIT),
    "round_robin": PlacementPolicy("round_robin", Strategy.ROUND_ROBIN),
}


def policy_named(name: str) -> PlacementPolicy:
    """The policy of that name.

    Raises:
        ValueError: no such policy.
    """
    if name not in POLICIES:
        raise ValueError(f"no placement policy {name!r}; there are: {', '.join(sorted(POLICIES))}")
    return POLICIES[name]


def plan(
    snapshot: Snapshot,
    policy: PlacementPolicy,
    *,
    cursor: int = 0,
    rng: np.random.Generator | None = None,
) -> Plan:
    """Give a host to each VM that has none; VMs that have one stay.

    Deterministic; ties go to the host with the lowest index. Never raises on bad values.
    """
    ledger = Ledger(snapshot)
    reasons: list[Reason] = []
    tiers = _tiers(snapshot, policy.wake)
    order = np.flatnonzero(snapshot.placement == NONE)
    order = order[np.argsort(-snapshot.priority[order], kind="stable")]
    for vm in order:
        host = NONE
        allowed = _allowed(ledger, int(vm)) if snapshot.vm_ok[vm] else None
        if allowed is not None:
            for tier in tiers:
                host = _choose(policy.strategy, allowed & tier, cursor)
                if host != NONE:
                    break
        if host == NONE:
            reasons.append(_reason(snapshot, int(vm)))
            continue
        ledger.place(int(vm), host)
        cursor = (host + 1) % snapshot.hosts
    used = {int(host) for host in ledger.placement[order] if host != NONE}
    wakes = tuple(sorted(h for h in used if snapshot.host_state[h] == HostState.ASLEEP))
    return Plan(
        placement=ledger.placement,
        reasons=tuple(reasons),
        wakes=wakes,
        cursor=cursor,
        policy=policy.name,
        problems=snapshot.problems,
    )


def _tiers(snapshot: Snapshot, wake: bool) -> list[BoolArray]:
    """Hosts by how soon they can run a VM: active, waking, asleep."""
    states = [HostState.ACTIVE, HostState.WAKING] + ([HostState.ASLEEP] if wake else [])
    tiers = [snapshot.host_ok & (snapshot.host_state == state) for state in states]
    return [tier for tier in tiers if tier.any()]


def _allowed(ledger: Ledger, vm: int) -> BoolArray:
    snapshot = ledger.snapshot
    allowed = ledger.roomy(snapshot.demand[vm])
    allowed &= (snapshot.max_vms < 0) | (ledger.counts < snapshot.max_vms)
    if snapshot.pin[vm] != NONE:
        allowed &= np.arange(snapshot.hosts) == snapshot.pin[vm]
    return allowed


def _choose(strategy: Strategy, hosts: BoolArray, cursor: int) -> int:
    if not hosts.any():
        return NONE
    match strategy:
        case Strategy.FIRST_FIT:
            return int(hosts.argmax())
        case Strategy.ROUND_ROBIN:
            start = cursor % len(hosts)
            ahead = int(hosts[start:].argmax()) + start
            return ahead if hosts[ahead] else int(hosts.argmax())
        case _:
            assert_never(strategy)


def _reason(snapshot: Snapshot, vm: int) -> Reason:
    if not snapshot.vm_ok[vm]:
        return Reason(vm, ReasonCode.INVALID_VM, "its row makes no sense")
    if not snapshot.hosts:
        return Reason(vm, ReasonCode.NO_HOSTS, "there are no hosts")
    return Reason(vm, ReasonCode.NO_HOST_FITS, "no host has room for it")

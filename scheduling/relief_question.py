"""Where a VM of an overloaded host goes that finds no room among its manager's hosts.

Rules of ``choose_relief``:

1. VMs are tried in the order given (the cheapest that helps first), hosts by how much they use: the
   fullest first that stays below ``middle`` of its cores with the VM, so that few are used.
2. A host has to have room for what the VM asked for, and must not be the one that it left within
   ``hold_s``.
3. If no host is there for any of them, room is wanted for the first one: a sleeper may be woken.

A question holds all that its answer depends on (``rulings.py``).
"""

from typing import Final

import msgspec

from snooze.scheduling.energy_question import Amounts

SLACK: Final = 1e-9
MAX_LINES: Final = 20


class Burden(msgspec.Struct, frozen=True, omit_defaults=True):
    """A VM that could go.

    Attributes:
        uses_cores: by estimate.
        asked: what it asked for.
        left: the host that it left within the hold time, if any.
    """

    id: str
    name: str
    uses_cores: float
    asked: Amounts
    left: str = ""


class Target(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host of another manager that takes VMs.

    Attributes:
        free: what may still be promised there.
        cores, uses_cores: it has and uses; use below 0: it is not known.
    """

    id: str
    name: str
    free: Amounts
    cores: float
    uses_cores: float


class ReliefQuestion(msgspec.Struct, frozen=True):
    """Which VM goes where?"""

    host: str
    vms: tuple[Burden, ...]
    targets: tuple[Target, ...]
    middle: float


class Relief(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer; ``vm`` is empty if there is no target for any."""

    vm: str = ""
    target: str = ""
    others: tuple[str, ...] = ()


def choose_relief(question: ReliefQuestion) -> Relief:
    """See the module's rules."""
    others: list[str] = []
    targets = sorted(question.targets, key=lambda host: (-host.uses_cores, host.id))
    for vm in question.vms:
        found: Target | None = None
        for host in targets:
            why = why_not(vm, host, question.middle)
            if not why and found is None:
                found = host
                continue
            said = (
                why or f"possible, {share_with(vm, host):.0%} of its cores then; fuller ones first"
            )
            others.append(f"{host.name} for {vm.name}: {said}")
        if found is not None:
            return Relief(vm.id, found.id, tuple(others[:MAX_LINES]))
    return Relief(others=tuple(others[:MAX_LINES]))


def share_with(vm: Burden, host: Target) -> float:
    """How much of its cores a host would use with the VM."""
    return (host.uses_cores + vm.uses_cores) / max(host.cores, SLACK)


def why_not(vm: Burden, host: Target, middle: float) -> str:
    """Why the host does not take the VM; empty: it does."""
    if host.uses_cores < 0:
        return "what it uses is not known"
    if host.id == vm.left:
        return "it came from there a moment ago"
    pairs = zip(vm.asked, host.free, strict=True)
    if any(need > free + SLACK * max(1.0, free) for need, free in pairs):
        return "no room for what it asked for"
    if share_with(vm, host) > middle:
        return f"{share_with(vm, host):.0%} of its cores would be used"
    return ""

"""Whether a host can be emptied onto hosts of whatever manager, so that it may sleep.

Rules of ``choose_emptying``:

1. All VMs leave, or none does. The one that uses most goes first, to the fullest host that stays
   below ``middle`` of its cores with it and has room for what it asked for; those that went there
   before it are counted.
2. Targets carry something already, so that each plan makes one host fewer. None is the host that a
   VM left within the hold time.

A question holds all that its answer depends on (``rulings.py``).
"""

from typing import Final

import msgspec
import numpy as np

from snooze.scheduling.energy_question import amounts
from snooze.scheduling.relief_question import Burden, Target, share_with, why_not

MAX_LINES: Final = 20


class EmptyingQuestion(msgspec.Struct, frozen=True):
    """Where does all that is on ``host`` go?"""

    host: str
    vms: tuple[Burden, ...]
    targets: tuple[Target, ...]
    middle: float


class Emptying(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer: ``(VM, target)`` for each VM, in order; none: there is no room for ``stuck``."""

    moves: tuple[tuple[str, str], ...] = ()
    stuck: str = ""
    others: tuple[str, ...] = ()


def choose_emptying(question: EmptyingQuestion) -> Emptying:
    """See the module's rules."""
    targets = {host.id: host for host in question.targets}
    moves: list[tuple[str, str]] = []
    others: list[str] = []
    for vm in sorted(question.vms, key=lambda vm: (-vm.uses_cores, vm.id)):
        chosen: Target | None = None
        for host in sorted(targets.values(), key=lambda host: (-_fullness(host), host.id)):
            why = why_not(vm, host, question.middle)
            if not why and chosen is None:
                chosen = host
                continue
            said = (
                why or f"possible, {share_with(vm, host):.0%} of its cores then; fuller ones first"
            )
            others.append(f"{host.name} for {vm.name}: {said}")
        if chosen is None:
            none = [line for line in others if f" for {vm.name}: " in line]
            return Emptying(stuck=vm.name, others=tuple(none[:MAX_LINES]))
        moves.append((vm.id, chosen.id))
        targets[chosen.id] = msgspec.structs.replace(
            chosen,
            uses_cores=chosen.uses_cores + vm.uses_cores,
            free=amounts(np.subtract(chosen.free, vm.asked)),
        )
    return Emptying(tuple(moves), others=tuple(others[:MAX_LINES]))


def _fullness(host: Target) -> float:
    return host.uses_cores / host.cores if host.cores > 0 else 0.0

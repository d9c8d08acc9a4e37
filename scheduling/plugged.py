"""Relocations and consolidations by plug-ins: asked under guard, examined, put into order.

Rules:

1. A plug-in answers with a host for every VM (``DeciderKind``). The moves that this takes are put
   into an order in which each is feasible (``migration_plan``); an answer that has none is refused.
2. What built-in policies never do is refused of a plug-in as well: moving a VM that must stay, or
   one that is not on a host in question; emptying a host by halves; a move back to where a VM came
   from; one for energy's sake of a VM that moved a moment ago, or off a host that took part in an
   overload; more moves than may be.
3. A plug-in that is not there, raises, hangs or is refused decides nothing: the built-in default
   does, and the plan's ``problems`` say why (code ``plugin``). What is recorded is who decided.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from snooze.scheduling import consolidation
from snooze.scheduling.consolidation import Consolidation, ConsolidationPolicy
from snooze.scheduling.consolidation_methods import Method
from snooze.scheduling.migration_plan import order_moves
from snooze.scheduling.plans import Plan
from snooze.scheduling.plugins import DeciderKind, Plugins, host_indices
from snooze.scheduling.relocation import Outcome, OutcomeKind, Relocation, Situation
from snooze.scheduling.relocation_cost import MigrationModel
from snooze.scheduling.relocation_round import RELOCATIONS
from snooze.scheduling.snapshot import NONE, IntArray, Problem, Snapshot, accepting
from snooze.scheduling.units import UnitFailed

CODE: Final = "plugin"


def is_plugged(kind: DeciderKind, name: str) -> bool:
    """Whether a policy of this name is no built-in one."""
    if kind is DeciderKind.RELOCATION:
        return name not in RELOCATIONS
    return name not in set(Method)


def known(kind: DeciderKind, found: Plugins | None) -> list[str]:
    """The names of all policies of a kind, built-in ones first."""
    built_in = list(RELOCATIONS) if kind is DeciderKind.RELOCATION else [m.value for m in Method]
    return built_in + sorted(name for of, name in (found.deciders if found else ()) if of is kind)


def problem_of(kind: DeciderKind, name: str, failure: UnitFailed) -> Problem:
    """A plug-in that failed, as a plan's ``problems`` tell it."""
    return Problem(f"{kind.value} {name}", str(failure), CODE)


def relocate(
    situation: Situation, found: Plugins, name: str, max_moves: int, migration: MigrationModel
) -> Relocation:
    """What a relocation plug-in plans.

    Raises:
        UnitFailed: it is not there, raised, hung, or its answer is refused (rules 1 and 2).
    """
    snapshot = situation.snapshot
    in_question = situation.overloaded | situation.underloaded

    def examined(answer: object) -> Plan:
        placement = host_indices(answer, snapshot.vms, snapshot.hosts)
        _examine(situation, placement)
        ordered = order_moves(snapshot, placement, cost=migration.cost(snapshot).duration_s)
        if ordered.stuck:
            raise UnitFailed(f"its moves have no order: {ordered.stuck[0].message}")
        if len(ordered.moves) > max_moves:
            raise UnitFailed(f"it wants {len(ordered.moves)} moves, and {max_moves} may be")
        emptied = [
            host
            for host in np.flatnonzero(situation.underloaded).tolist()
            if any(move.source == host for move in ordered.moves)
        ]
        return Plan(
            placement=ordered.placement,
            moves=ordered.moves,
            sleeps=tuple(emptied),
            policy=name,
            problems=snapshot.problems,
        )

    plan = found.ask(DeciderKind.RELOCATION, name, None, examined, situation)
    outcomes: list[Outcome] = []
    for host in np.flatnonzero(in_question).tolist():
        count = sum(move.source == host for move in plan.moves)
        done = OutcomeKind.RELIEVED if situation.overloaded[host] else OutcomeKind.EMPTIED
        text = f"{count} VMs leave" if count else f"the plug-in {name} moves nothing off it"
        outcomes.append(Outcome(host, done if count else OutcomeKind.NO_BENEFIT, text, count))
    return Relocation(plan, tuple(outcomes), situation.hold)


def _examine(situation: Situation, placement: IntArray) -> None:
    """Rule 2. Raises: UnitFailed."""
    snapshot, hold, now_s = situation.snapshot, situation.hold, situation.now_s
    taking = accepting(snapshot)
    moved = np.flatnonzero(placement != snapshot.placement)
    for vm in moved.tolist():
        name, source, target = snapshot.vm_ids[vm], snapshot.placement[vm], placement[vm]
        if NONE in {int(source), int(target)} or not snapshot.movable[vm]:
            raise UnitFailed(f"it moves {name}, which stays where it is")
        if not (situation.overloaded[source] or situation.underloaded[source]):
            raise UnitFailed(f"it moves {name} off a host that is not in question")
        if not taking[target]:
            raise UnitFailed(f"it moves {name} to a host that takes none")
        held = hold.vms.get(name)
        if held is None or held.until_s <= now_s:
            continue
        if snapshot.host_ids[target] == held.left:
            raise UnitFailed(f"it moves {name} back to where it came from")
        if not situation.overloaded[source]:
            raise UnitFailed(f"it moves {name} for energy's sake, which moved a moment ago")
    for host in np.flatnonzero(situation.underloaded & ~situation.overloaded).tolist():
        here = np.flatnonzero(snapshot.placement == host)
        leave = int((placement[here] != host).sum())
        if not leave:
            continue
        unlisted = bool(snapshot.vm_count[host]) or bool((snapshot.used[host] > 0).any())
        if leave < len(here) or unlisted or (placement[moved] == host).any():
            raise UnitFailed(f"it does not empty {snapshot.host_ids[host]} altogether")
        if hold.hosts.get(snapshot.host_ids[host], now_s) > now_s:
            raise UnitFailed(
                f"it empties {snapshot.host_ids[host]}, which took part in an overload"
            )


def consolidate(
    snapshot: Snapshot, policy: ConsolidationPolicy, found: Plugins, name: str
) -> Consolidation:
    """What a consolidation plug-in plans; ``policy`` bounds it.

    Raises:
        UnitFailed: it is not there, raised, hung, or its answer is refused (rules 1 and 2).
    """

    def examined(answer: object) -> Consolidation:
        placement = host_indices(answer, snapshot.vms, snapshot.hosts)
        moved = placement != snapshot.placement
        if (moved & (~snapshot.movable | (snapshot.placement == NONE) | (placement == NONE))).any():
            raise UnitFailed("it moves a VM that stays where it is")
        made = consolidation.brought_to(snapshot, placement, policy, name)
        if made.plan.reasons:
            raise UnitFailed(f"its moves have no order: {made.plan.reasons[0].message}")
        if len(made.plan.moves) > policy.moves_most:
            raise UnitFailed(f"it wants {len(made.plan.moves)} moves, not {policy.moves_most}")
        return made

    properties: Mapping[str, object] = {}
    return found.ask(DeciderKind.CONSOLIDATION, name, properties, examined, snapshot)


def with_problem(made: Relocation | Consolidation, problem: Problem) -> Plan:
    """The plan of who decided instead, with what was wrong with the plug-in."""
    return replace(made.plan, problems=(*made.plan.problems, problem))

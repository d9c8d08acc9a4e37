"""Any recorded decision, made again: one place that knows every kind.

=================  ======================================  ===================================
kind               decided by                              options
=================  ======================================  ===================================
``placement``      ``placement.plan``                      those of its policy
``balance``        ``balancing.plan``                      those of its policy
``consolidation``  ``consolidation.consolidate``           ``CONSOLIDATION``
``drain``          ``drain.drain``, of hosts that drain    ``DRAIN``
``relocation``     a relocation policy, in a situation     ``RELOCATION``
=================  ======================================  ===================================
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from snooze.scheduling import balancing, consolidation, drain, placement, plugged
from snooze.scheduling.consolidation_methods import Method
from snooze.scheduling.migration_plan import Parallelism
from snooze.scheduling.packing_effort import Effort
from snooze.scheduling.plans import Plan
from snooze.scheduling.plugins import DeciderKind, Plugins
from snooze.scheduling.policies import PlacementPolicy, PolicyError
from snooze.scheduling.relocation import Relocation, Situation
from snooze.scheduling.relocation_cost import MigrationModel
from snooze.scheduling.situations import RELOCATION, read_situation, relocation_policy
from snooze.scheduling.snapshot import HostState, Snapshot
from snooze.scheduling.units import (
    Properties,
    Property,
    PropertyKind,
    UnitFailed,
    number,
    read_properties,
)


class DecisionKind(StrEnum):
    """What was decided."""

    PLACEMENT = "placement"
    BALANCE = "balance"
    CONSOLIDATION = "consolidation"
    DRAIN = "drain"
    RELOCATION = "relocation"


_WHOLE: Final = PropertyKind.WHOLE
_STEPS: Final = Property("steps", 200_000, _WHOLE, 0, 1e12, summary="Bound on the search.")
_SEED: Final = Property("seed", 0, _WHOLE, 0, 2**53)

_PARALLEL: Final = Parallelism()

CONSOLIDATION: Final = (
    Property("method", Method.OPTIMISER.value, PropertyKind.TEXT),
    Property("moves_most", 1_000, _WHOLE, 0, 1e9),
    Property("host_worth_s", 1_800.0, low=0.0, high=1e9),
    Property("stop_most_s", 10.0, low=0.0, high=1e9),
    _STEPS,
    _SEED,
)
DRAIN: Final = (
    Property("relieve", False, PropertyKind.FLAG),
    Property("wake", True, PropertyKind.FLAG),
    Property("pushed_most", 1_000, _WHOLE, 0, 1e9),
    Property("per_host", _PARALLEL.per_host, _WHOLE, 1, 1e9),
    Property("at_once", _PARALLEL.at_once, _WHOLE, 1, 1e9),
    _STEPS,
    _SEED,
)


def options_of(kind: DecisionKind, given: Mapping[str, object]) -> Properties:
    """The options of a consolidation, drain or relocation, defaults filled in; else none.

    Raises:
        PolicyError: an unknown option, or a value out of bounds.
    """
    known = {
        DecisionKind.CONSOLIDATION: CONSOLIDATION,
        DecisionKind.DRAIN: DRAIN,
        DecisionKind.RELOCATION: RELOCATION,
    }.get(kind, ())
    values, problems = read_properties(known, given)
    if problems:
        raise PolicyError(problems)
    return MappingProxyType(values)


def decide(
    kind: DecisionKind,
    snapshot: Snapshot,
    policy: PlacementPolicy,
    options: Properties,
    cursor: int = 0,
    situation: Situation | None = None,
    plugged_in: Plugins | None = None,
) -> Plan:
    """The plan of one decision. Drains empty the hosts whose state is DRAINING.

    ``situation``: of a relocation, on the same snapshot; None: no host is overloaded or idle.

    Raises:
        UnitFailed: a plug-in decides, and is not in ``plugged_in``, or failed.
    """
    match kind:
        case DecisionKind.PLACEMENT:
            return placement.plan(snapshot, policy, cursor=cursor)
        case DecisionKind.BALANCE:
            return balancing.plan(snapshot, policy)
        case DecisionKind.CONSOLIDATION:
            name = str(options["method"])
            if plugged.is_plugged(DeciderKind.CONSOLIDATION, name):
                found = _needed(plugged_in, DeciderKind.CONSOLIDATION, name)
                bounds = consolidation_policy(options)
                return plugged.consolidate(snapshot, bounds, found, name).plan
            return consolidation.consolidate(snapshot, consolidation_policy(options)).plan
        case DecisionKind.DRAIN:
            chosen = snapshot.host_state == HostState.DRAINING
            return drain.drain(snapshot, chosen, drain_policy(options)).plan
        case DecisionKind.RELOCATION:
            asked = situation if situation is not None else read_situation({}, snapshot)
            name = str(options["policy"])
            if plugged.is_plugged(DeciderKind.RELOCATION, name):
                found = _needed(plugged_in, DeciderKind.RELOCATION, name)
                return relocated(asked, options, found).plan
            return relocation_policy(options).plan(asked).plan


def relocated(situation: Situation, options: Properties, found: Plugins) -> Relocation:
    """What the plug-in that ``RELOCATION`` options name plans. Raises: UnitFailed."""
    model = MigrationModel(bandwidth_kib_s=number(options, "bandwidth_kib_s"))
    most = int(number(options, "max_moves"))
    return plugged.relocate(situation, found, str(options["policy"]), most, model)


def _needed(found: Plugins | None, kind: DeciderKind, name: str) -> Plugins:
    if found is None or (kind, name) not in found.deciders:
        raise UnitFailed(
            f"it was decided by the plug-in {name!r}, which is in no package that is installed "
            "here: name its directory (python -m snooze.scheduling --plugins DIRECTORY replay FILE)"
        )
    return found


def consolidation_policy(options: Properties) -> consolidation.ConsolidationPolicy:
    """From ``options_of``."""
    return consolidation.ConsolidationPolicy(
        method=_method(str(options["method"])),
        moves_most=int(number(options, "moves_most")),
        host_worth_s=number(options, "host_worth_s"),
        stop_most_s=number(options, "stop_most_s"),
        effort=Effort(steps=int(number(options, "steps"))),
        seed=int(number(options, "seed")),
    )


def _method(name: str) -> Method:
    """The built-in method of this name; the default for a plug-in's."""
    return Method(name) if name in set(Method) else Method.OPTIMISER


def drain_policy(options: Properties) -> drain.DrainPolicy:
    """From ``options_of``."""
    return drain.DrainPolicy(
        relieve=bool(options["relieve"]),
        wake=bool(options["wake"]),
        pushed_most=int(number(options, "pushed_most")),
        parallelism=Parallelism(int(number(options, "per_host")), int(number(options, "at_once"))),
        effort=Effort(steps=int(number(options, "steps"))),
        seed=int(number(options, "seed")),
    )


def drain_options(policy: drain.DrainPolicy) -> Properties:
    """From which ``drain_policy`` makes the same, but for the network that costs are of."""
    return options_of(
        DecisionKind.DRAIN,
        {
            "relieve": policy.relieve,
            "wake": policy.wake,
            "pushed_most": policy.pushed_most,
            "per_host": policy.parallelism.per_host,
            "at_once": policy.parallelism.at_once,
            "steps": policy.effort.steps,
            "seed": policy.seed,
        },
    )

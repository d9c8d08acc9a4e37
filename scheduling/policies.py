"""Named policies: which filters, weights and balancer, with which properties.

``BUILT_IN`` is the catalogue we ship; plug-ins extend it (``Catalogue.extended``). A policy is made
by name, with properties, or from a document as it stands in a settings file::

    {"name": "mine", "filters": ["cpu_overload"], "weights": {"even_distribution": 5},
     "balancer": "evenly_distributed", "selection": "rank", "properties": {"HighUtilization": 70}}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeGuard

from snooze.scheduling import balancers, filters, weights
from snooze.scheduling.norms import Norm
from snooze.scheduling.snapshot import Problem
from snooze.scheduling.units import (
    Balancer,
    Filter,
    Properties,
    Property,
    PropertyValue,
    Weight,
    Weighted,
    read_properties,
)

MAX_FACTOR: Final = 1e6


class Strategy(StrEnum):
    """How a host is chosen among those that passed the filters."""

    FIRST_FIT = "first_fit"
    """The first in the order of hosts."""
    ROUND_ROBIN = "round_robin"
    """The next in turn, starting at the cursor."""
    WEIGHTS = "weights"
    """The one with the lowest score."""
    RANDOM_K = "random_k"
    """The one with the lowest score among k drawn at random."""
    OPTIMISED = "optimised"
    """All VMs at once, on as few hosts as the time limit lets us find."""


class Selection(StrEnum):
    """How the scores of several weights become one."""

    SUM = "sum"
    """Sum of factor times score."""
    RANK = "rank"
    """Sum of factor times the place each weight gives the host: units no longer matter."""


class VmOrder(StrEnum):
    """In which order VMs of equal priority are placed."""

    GIVEN = "given"
    DECREASING = "decreasing"


class HostOrder(StrEnum):
    """Which host counts as first."""

    INDEX = "index"
    MOST_USED = "most_used"
    LEAST_USED = "least_used"


class PolicyError(ValueError):
    """No such policy, or not with these parts or properties; ``problems`` lists all of it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{each.where}: {each.message}" for each in self.problems))


def _no_properties() -> Properties:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """How VMs get their hosts. ``wake`` allows sleeping hosts, after all running ones."""

    name: str
    strategy: Strategy
    filters: tuple[Filter, ...] = ()
    weights: tuple[Weighted, ...] = ()
    balancer: Balancer | None = None
    selection: Selection = Selection.SUM
    vm_order: VmOrder = VmOrder.GIVEN
    host_order: HostOrder = HostOrder.INDEX
    norm: Norm = Norm.L1
    wake: bool = True
    properties: Properties = field(default_factory=_no_properties)
    summary: str = ""


OPTIONS: Final = (
    Property("selection", "sum", balancers.TEXT, choices=tuple(Selection)),
    Property("vm_order", "given", balancers.TEXT, choices=tuple(VmOrder)),
    Property("host_order", "index", balancers.TEXT, choices=tuple(HostOrder)),
    Property("norm", "l1", balancers.TEXT, choices=tuple(Norm)),
    Property("wake", True, balancers.FLAG),
)
"""Options of every policy; the rest of its properties are those of its parts."""

RANDOM_K: Final = (
    Property("k", 2, balancers.WHOLE, 1, 1e6, summary="Hosts drawn."),
    Property("seed", 0, balancers.WHOLE, 0, 2**53, summary="Used when no generator is given."),
)
OPTIMISED: Final = (
    Property("steps", 200_000, balancers.WHOLE, 0, 1e9, summary="Bound on the search."),
    Property("time_limit_s", 1.0, low=0.0, high=3600.0),
    Property("seed", 0, balancers.WHOLE, 0, 2**53),
)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything a policy can be made of, by name."""

    filters: Mapping[str, Filter]
    weights: Mapping[str, Weight]
    balancers: Mapping[str, Balancer]
    policies: Mapping[str, PlacementPolicy]

    def extended(self, units: Iterable[Filter | Weight | Balancer]) -> "Catalogue":
        """With more units; one of a name already there is left out (see ``clashes``)."""
        tables: tuple[dict[str, Filter], dict[str, Weight], dict[str, Balancer]] = (
            dict(self.filters),
            dict(self.weights),
            dict(self.balancers),
        )
        for unit in units:
            match unit:
                case Filter():
                    tables[0].setdefault(unit.name, unit)
                case Weight():
                    tables[1].setdefault(unit.name, unit)
                case Balancer():
                    tables[2].setdefault(unit.name, unit)
        return replace(self, filters=tables[0], weights=tables[1], balancers=tables[2])

    def policy(self, name: str, properties: Mapping[str, object] | None = None) -> PlacementPolicy:
        """The policy of that name, with properties in place of its defaults.

        Raises:
            PolicyError: no such policy; an unknown property, or a value out of bounds.
        """
        if name not in self.policies:
            there = ", ".join(sorted(self.policies))
            raise PolicyError([Problem("policy", f"no policy {name!r}; there are: {there}")])
        return _with_properties(self.policies[name], properties or {})

    def compose(self, document: Mapping[str, object]) -> PlacementPolicy:
        """A policy from a document, see the top of this file.

        ``base`` may name a policy to start from; what the document has replaces its parts.

        Raises:
            PolicyError: everything that is wrong with the document.
        """
        problems: list[Problem] = []
        base_name = document.get("base", document.get("name"))
        start = PlacementPolicy("", Strategy.WEIGHTS)
        if isinstance(base_name, str) and base_name in self.policies:
            start = self.policies[base_name]
        elif "base" in document:
            problems.append(Problem("base", f"no policy {base_name!r}", "unknown"))
        unknown = set(document) - {
            "name", "base", "strategy", "filters", "weights", "balancer", "properties",
        }  # fmt: skip
        problems += [Problem(str(key), "no such key", "unknown") for key in sorted(unknown)]
        name = document.get("name", start.name)
        if not isinstance(name, str) or not name:
            problems.append(Problem("name", "a policy needs a name", "type"))
        policy = replace(
            start,
            name=str(name),
            strategy=self._strategy(document.get("strategy", start.strategy), problems),
            filters=self._filters(document.get("filters"), start.filters, problems),
            weights=self._weights(document.get("weights"), start.weights, problems),
            balancer=self._balancer(document.get("balancer"), start.balancer, problems),
            properties=_no_properties(),
        )
        given = document.get("properties", {})
        values: Mapping[str, object] = given if is_table(given) else {}
        if not is_table(given):
            problems.append(Problem("properties", "must be a table", "type"))
        inherited = {k: v for k, v in start.properties.items() if k in _known(policy)}
        try:
            policy = _with_properties(policy, {**inherited, **values})
        except PolicyError as error:
            problems += error.problems
        if problems:
            raise PolicyError(problems)
        return policy

    def _strategy(self, value: object, problems: list[Problem]) -> Strategy:
        try:
            return Strategy(str(value))
        except ValueError:
            message = f"must be one of {', '.join(Strategy)}"
            problems.append(Problem("strategy", message, "range"))
            return Strategy.WEIGHTS

    def _filters(
        self, value: object, default: tuple[Filter, ...], problems: list[Problem]
    ) -> tuple[Filter, ...]:
        if value is None:
            return default
        if not is_list(value):
            problems.append(Problem("filters", "must be a list of names", "type"))
            return default
        chosen: list[Filter] = []
        for name in value:
            if isinstance(name, str) and name in self.filters:
                chosen.append(self.filters[name])
            else:
                problems.append(Problem("filters", f"no filter {name!r}", "unknown"))
        return tuple(chosen)

    def _weights(
        self, value: object, default: tuple[Weighted, ...], problems: list[Problem]
    ) -> tuple[Weighted, ...]:
        if value is None:
            return default
        if not is_table(value):
            problems.append(Problem("weights", "must be a table of names and factors", "type"))
            return default
        chosen: list[Weighted] = []
        for name, factor in value.items():
            where = f"weights.{name}"
            if name not in self.weights:
                problems.append(Problem(where, "no such weight", "unknown"))
            elif isinstance(factor, bool) or not isinstance(factor, int | float):
                problems.append(Problem(where, "the factor must be a number", "type"))
            elif not 0 <= factor <= MAX_FACTOR:
                message = f"the factor must be in [0, {MAX_FACTOR:g}]"
                problems.append(Problem(where, message, "range"))
            else:
                chosen.append(Weighted(self.weights[name], float(factor)))
        return tuple(chosen)

    def _balancer(
        self, value: object, default: Balancer | None, problems: list[Problem]
    ) -> Balancer | None:
        if value is None:
            return default
        if value == "none":
            return None
        if isinstance(value, str) and value in self.balancers:
            return self.balancers[value]
        problems.append(Problem("balancer", f"no balancer {value!r}", "unknown"))
        return default


def is_table(value: object) -> TypeGuard[Mapping[str, object]]:
    """True for what a JSON or TOML table becomes."""
    if not isinstance(value, Mapping):
        return False
    keys: set[object] = set(value)  # pyright: ignore[reportUnknownArgumentType]
    return all(isinstance(key, str) for key in keys)


def is_list(value: object) -> TypeGuard[list[object] | tuple[object, ...]]:
    """True for what a JSON or TOML list becomes."""
    return isinstance(value, list | tuple)


def _known(policy: PlacementPolicy) -> dict[str, Property]:
    """All properties of a policy: those of its parts, its strategy, and the options of all."""
    own = {Strategy.RANDOM_K: RANDOM_K, Strategy.OPTIMISED: OPTIMISED}.get(policy.strategy, ())
    parts: list[tuple[Property, ...]] = [
        *(each.properties for each in policy.filters),
        *(each.weight.properties for each in policy.weights),
        policy.balancer.properties if policy.balancer else (),
        own,
        OPTIONS,
    ]
    return {each.name: each for part in parts for each in part}


def _with_properties(policy: PlacementPolicy, given: Mapping[str, object]) -> PlacementPolicy:
    current: dict[str, PropertyValue] = {
        "selection": policy.selection,
        "vm_order": policy.vm_order,
        "host_order": policy.host_order,
        "norm": policy.norm,
        "wake": policy.wake,
        **policy.properties,
    }
    known = {
        name: replace(each, default=current.get(name, each.default))
        for name, each in _known(policy).items()
    }
    values, problems = read_properties(known.values(), given)
    low, high = values.get("LowUtilization"), values.get("HighUtilization")
    if isinstance(low, float) and isinstance(high, float) and low >= high:
        message = f"must be less than HighUtilization ({high:g})"
        problems.append(Problem("LowUtilization", message, "contradiction"))
    if problems:
        raise PolicyError(problems)
    options = {each.name for each in OPTIONS}
    return replace(
        policy,
        selection=Selection(str(values["selection"])),
        vm_order=VmOrder(str(values["vm_order"])),
        host_order=HostOrder(str(values["host_order"])),
        norm=Norm(str(values["norm"])),
        wake=bool(values["wake"]),
        properties=MappingProxyType({k: v for k, v in values.items() if k not in options}),
    )


_FILTERS: Final = {each.name: each for each in filters.OPTIONAL}
_WEIGHTS: Final = {each.name: each for each in weights.BUILT_IN}
_BALANCERS: Final = {each.name: each for each in balancers.BUILT_IN}


def _weighted(**factors: float) -> tuple[Weighted, ...]:
    return tuple(Weighted(_WEIGHTS[name], float(factor)) for name, factor in factors.items())


_SOFT: Final = _weighted(soft_affinity=10, preferred_hosts=0.1, image_locality=0.1, ha_spread=10)
"""What every policy made of weights also considers.

Soft affinity outweighs any difference in load; a preferred host, or an image that need not be
copied, is worth a tenth of a host's CPU; a highly available neighbour costs a hundredth.
"""


def _policies() -> tuple[PlacementPolicy, ...]:
    by_weight = Strategy.WEIGHTS
    calm = (_FILTERS["cpu_overload"],)
    return (
        PlacementPolicy("first_fit", Strategy.FIRST_FIT, summary="The first host with room."),
        PlacementPolicy(
            "first_fit_decreasing",
            Strategy.FIRST_FIT,
            vm_order=VmOrder.DECREASING,
            summary="The largest VM first, to the first host with room.",
        ),
        PlacementPolicy("round_robin", Strategy.ROUND_ROBIN, summary="Hosts in turn."),
        PlacementPolicy(
            "best_fit", by_weight, weights=_weighted(best_fit=1), summary="The tightest host."
        ),
        PlacementPolicy(
            "best_fit_decreasing",
            by_weight,
            weights=_weighted(best_fit=1),
            vm_order=VmOrder.DECREASING,
            summary="The largest VM first, to the tightest host.",
        ),
        PlacementPolicy(
            "worst_fit", by_weight, weights=_weighted(worst_fit=1), summary="The emptiest host."
        ),
        PlacementPolicy(
            "dot_product",
            by_weight,
            weights=_weighted(dot_product=1),
            vm_order=VmOrder.DECREASING,
            summary="Room that points the way the demand does (Panigrahy).",
        ),
        PlacementPolicy(
            "l2",
            by_weight,
            weights=_weighted(l2=1),
            vm_order=VmOrder.DECREASING,
            norm=Norm.EUCLID,
            summary="Room nearest to the demand (Panigrahy).",
        ),
        PlacementPolicy(
            "random_k",
            Strategy.RANDOM_K,
            weights=_weighted(worst_fit=1),
            summary="The emptiest of k hosts drawn at random.",
        ),
        PlacementPolicy(
            "optimised",
            Strategy.OPTIMISED,
            weights=_weighted(best_fit=1),
            vm_order=VmOrder.DECREASING,
            summary="All at once, on as few hosts as possible.",
        ),
        PlacementPolicy(
            "evenly_distributed",
            by_weight,
            calm,
            (*_weighted(even_distribution=1), *_SOFT),
            _BALANCERS["evenly_distributed"],
            summary="CPU load spread over all hosts.",
        ),
        PlacementPolicy(
            "power_saving",
            by_weight,
            calm,
            (*_weighted(power_saving=1), *_SOFT),
            _BALANCERS["power_saving"],
            summary="As few hosts as the load allows; the others may sleep.",
        ),
        PlacementPolicy(
            "vm_evenly_distributed",
            by_weight,
            (),
            (*_weighted(even_vm_count=1), *_SOFT),
            _BALANCERS["vm_evenly_distributed"],
            summary="The same number of VMs everywhere.",
        ),
        PlacementPolicy(
            "cluster_maintenance",
            by_weight,
            (_FILTERS["cluster_in_maintenance"],),
            (*_weighted(even_distribution=1), *_SOFT),
            summary="Nothing new but highly available VMs; no balancing.",
        ),
        PlacementPolicy("none", by_weight, (), _SOFT, summary="Wherever it fits; no balancing."),
    )


BUILT_IN: Final = Catalogue(
    _FILTERS,
    _WEIGHTS,
    _BALANCERS,
    {policy.name: _with_properties(policy, {}) for policy in _policies()},
)


def document_of(policy: PlacementPolicy) -> dict[str, object]:
    """The document from which ``Catalogue.compose`` makes this policy."""
    return {
        "name": policy.name,
        "strategy": policy.strategy.value,
        "filters": [each.name for each in policy.filters],
        "weights": {each.weight.name: each.factor for each in policy.weights},
        "balancer": policy.balancer.name if policy.balancer else "none",
        "properties": {
            "selection": policy.selection.value,
            "vm_order": policy.vm_order.value,
            "host_order": policy.host_order.value,
            "norm": policy.norm.value,
            "wake": policy.wake,
            **policy.properties,
        },
    }


def policy_named(
    name: str, properties: Mapping[str, object] | None = None, catalogue: Catalogue = BUILT_IN
) -> PlacementPolicy:
    """The policy of that name, with properties in place of its defaults.

    Raises:
        PolicyError: (a ValueError) no such policy or property, or a value out of bounds.
    """
    return catalogue.policy(name, properties)

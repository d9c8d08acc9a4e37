"""User plug-ins: filters, weights, balancers and whole policies, loaded by name and never trusted.

A plug-in is an object of one of the classes below, found

* in a ``*.py`` file of the plug-in directory, in its module-level list ``SNOOZE_PLUGINS``; or
* under an entry point of the group ``snooze.scheduling``, that names such an object or a list.

=====================  ======================================================================
class                  function
=====================  ======================================================================
``Filter``             ``keep(scene, properties) -> bool[H]`` or None
``Weight``             ``score(scene, properties) -> float64[H]``, lower is better
``Balancer``           ``advise(snapshot, properties) -> list[Advice]``
``PerHostFilter``      ``keep(scene, host, properties) -> bool``, asked for the hosts still left
``PerHostWeight``      ``score(scene, host, properties) -> float``
``Decider``            ``decide(...)``, see there: placement, dispatching, estimator, detector,
                       relocation, consolidation
=====================  ======================================================================

Every call runs under a guard (``guard.py``): on another thread, with a time limit, and its answer
is examined. What raises, hangs or answers nonsense is named in the log and skipped for that
decision; after ``MAX_FAILURES`` failures in a row, or one hang, it is not called again until
plug-ins are loaded anew. Placements pass the checker before anybody sees them.

Loading a plug-in runs its code with the rights of the daemon, so directory and files must not be
writable by others; they are refused if they are.
"""

import functools
import importlib.metadata
import importlib.util
import logging
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.check import check_plan
from snooze.scheduling.dispatching import ManagerView
from snooze.scheduling.guard import Guard
from snooze.scheduling.plans import Plan
from snooze.scheduling.plugin_units import (
    PerHostFilter,
    PerHostWeight,
    guarded_balancer,
    guarded_filter,
    guarded_weight,
)
from snooze.scheduling.policies import BUILT_IN, Catalogue, is_list
from snooze.scheduling.snapshot import MAX_VALUE, NONE, IntArray, Problem, Snapshot
from snooze.scheduling.units import (
    Balancer,
    Filter,
    Property,
    UnitFailed,
    Weight,
    read_properties,
)
from snooze.scheduling.validation import as_numbers

__all__ = [
    "Decider",
    "DeciderKind",
    "PerHostFilter",
    "PerHostWeight",
    "Plugin",
    "Plugins",
    "load",
]

T = TypeVar("T")

log = logging.getLogger(__name__)

GROUP: Final = "snooze.scheduling"
LIST: Final = "SNOOZE_PLUGINS"
MAX_FILES: Final = 200
MAX_FILE_BYTES: Final = 1_000_000
TIME_LIMIT_S: Final = 1.0
PLAN_LIMIT_S: Final = 20.0
"""For one call of a whole plan. Plans are made in a process of their own, killed after 60 s."""
LOAD_LIMIT_S: Final = 10.0


class DeciderKind(StrEnum):
    """What a ``Decider`` decides; the arguments and the answer of its function."""

    PLACEMENT = "placement"
    """``(snapshot, properties) -> int64[V]`` host of every VM."""
    CONSOLIDATION = "consolidation"
    """``(snapshot, properties) -> int64[V]`` host of every VM, moves included."""
    RELOCATION = "relocation"
    """``(situation, properties) -> int64[V]`` host of every VM, moves included."""
    DISPATCHING = "dispatching"
    """``(views, demand[V, R], properties) -> int64[V]`` manager of every VM."""
    ESTIMATOR = "estimator"
    """``(samples[T, R], requested[R], properties) -> float64[R]`` demand."""
    DETECTOR = "detector"
    """``(samples[T, R], capacity[R], properties) -> "overload", "underload" or "normal"``."""


@dataclass(frozen=True, slots=True)
class Decider:
    """A whole policy of one's own; see ``DeciderKind`` for its function."""

    kind: DeciderKind
    name: str
    decide: Callable[..., object]
    properties: tuple[Property, ...] = ()
    summary: str = ""


Plugin = Filter | Weight | Balancer | PerHostFilter | PerHostWeight | Decider


@dataclass(frozen=True, slots=True)
class Plugins:
    """Loaded plug-ins, under guard.

    Attributes:
        catalogue: the built-in units and policies with the plugged-in units.
        deciders: by kind and name.
        problems: files and objects that could not be loaded, and why.
        guard: whoever calls them.
    """

    catalogue: Catalogue
    deciders: Mapping[tuple[DeciderKind, str], Decider]
    problems: tuple[Problem, ...]
    guard: Guard

    def place(
        self,
        snapshot: Snapshot,
        name: str,
        properties: Mapping[str, object] | None = None,
        kind: DeciderKind = DeciderKind.PLACEMENT,
    ) -> Plan:
        """The plan of a placement or consolidation plug-in, proved by the checker.

        A consolidation's moves are not ordered yet: hand its placement to ``migration_plan``.

        Raises:
            UnitFailed: it is not there, raised, hung, or its plan breaks a rule.
        """
        stays = snapshot.placement != NONE

        def examined(answer: object) -> Plan:
            placement = host_indices(answer, snapshot.vms, snapshot.hosts)
            moved = (placement != snapshot.placement) & stays
            if kind is DeciderKind.PLACEMENT and moved.any():
                raise UnitFailed("moved a VM that already has a host")
            plan = Plan(placement=placement, policy=name, problems=snapshot.problems)
            broken = [f"{each.rule.value}: {each.message}" for each in check_plan(snapshot, plan)]
            if broken:
                raise UnitFailed(f"its plan breaks {len(broken)} rules; first {broken[0]}")
            return plan

        return self.ask(kind, name, properties, examined, snapshot)

    def dispatch(
        self,
        views: Sequence[ManagerView],
        demand: FloatArray,
        name: str,
        properties: Mapping[str, object] | None = None,
    ) -> IntArray:
        """``int64[V]``: the manager a dispatching plug-in chose for each VM, -1 for none.

        Raises:
            UnitFailed: it is not there, raised, hung, or named a manager that is not there.
        """

        def examined(answer: object) -> IntArray:
            return host_indices(answer, len(demand), len(views))

        kind = DeciderKind.DISPATCHING
        return self.ask(kind, name, properties, examined, tuple(views), demand)

    def estimate(
        self,
        samples: FloatArray,
        requested: FloatArray,
        name: str,
        properties: Mapping[str, object] | None = None,
    ) -> FloatArray:
        """``float64[R]``: the demand that an estimator plug-in sees in ``samples[T, R]``.

        Raises:
            UnitFailed: it is not there, raised, hung, or its answer is no vector of sizes.
        """

        def examined(answer: object) -> FloatArray:
            numbers = as_numbers(answer)
            if numbers is None or numbers.shape != requested.shape:
                raise UnitFailed("the answer is not one number per axis")
            if not ((numbers >= 0) & (numbers <= MAX_VALUE)).all():
                raise UnitFailed("the answer is no vector of sizes")
            return numbers.copy()

        kind = DeciderKind.ESTIMATOR
        return self.ask(kind, name, properties, examined, samples, requested)

    def detect(
        self,
        samples: FloatArray,
        capacity: FloatArray,
        name: str,
        properties: Mapping[str, object] | None = None,
    ) -> str:
        """ "overload", "underload" or "normal", by a detector plug-in.

        Raises:
            UnitFailed: it is not there, raised, hung, or said something else.
        """

        def examined(answer: object) -> str:
            if isinstance(answer, str) and answer in {"overload", "underload", "normal"}:
                return str(answer)
            raise UnitFailed(f"unknown answer {str(answer)[:40]!r}")

        return self.ask(DeciderKind.DETECTOR, name, properties, examined, samples, capacity)

    def ask(
        self,
        kind: DeciderKind,
        name: str,
        properties: Mapping[str, object] | None,
        examined: Callable[[object], T],
        *arguments: object,
    ) -> T:
        """Any decider's answer, as ``examined`` makes it (which raises ``UnitFailed`` or is sound).

        Raises:
            UnitFailed: it is not there, raised, hung, or its answer is not sound.
        """
        decider = self.deciders.get((kind, name))
        if decider is None:
            raise UnitFailed(f"there is no {kind.value} plug-in {name!r}")
        values, problems = read_properties(decider.properties, properties or {})
        if problems:
            raise UnitFailed("; ".join(each.message for each in problems))
        frozen_values = MappingProxyType(values)
        return self.guard.call(
            f"{kind.value} {name}", lambda: examined(decider.decide(*arguments, frozen_values))
        )


def load(
    directory: Path | None = None,
    *,
    entry_points: bool = False,
    time_limit_s: float = TIME_LIMIT_S,
    base: Catalogue = BUILT_IN,
) -> Plugins:
    """Load plug-ins; whatever is wrong with one is logged, listed, and does not stop the others.

    Args:
        directory: where ``*.py`` files lie; None for none.
        entry_points: also those that installed packages announce.
        time_limit_s: for each call.
        base: units and policies to extend.
    """
    guard = Guard(time_limit_s)
    problems: list[Problem] = []
    found: list[Plugin] = []
    sources: list[tuple[str, Callable[[], object]]] = []
    if directory is not None:
        sources += [(str(path), _reader(path)) for path in _files(directory, problems)]
    if entry_points:
        for point in sorted(importlib.metadata.entry_points(group=GROUP)):
            sources.append((f"entry point {point.name}", point.load))
    loader = Guard(LOAD_LIMIT_S)
    for where, read in sources:
        try:
            found += _plugins_in(loader.call(f"plug-in {where}", read))
        except UnitFailed as failure:
            problems.append(Problem(where, str(failure), "not_loaded"))
    names: set[tuple[str, str]] = set()
    units: list[Filter | Weight | Balancer] = []
    deciders: dict[tuple[DeciderKind, str], Decider] = {}
    for plugin in found:
        key = (_kind(plugin), plugin.name)
        if key in names or _built_in(plugin, base):
            problems.append(Problem(" ".join(key), "that name is taken", "not_loaded"))
            continue
        names.add(key)
        if isinstance(plugin, Decider):
            deciders[plugin.kind, plugin.name] = plugin
        else:
            units.append(_guarded(plugin, guard))
    for problem in problems:
        log.warning("plug-in not loaded", extra={"where": problem.where, "why": problem.message})
    return Plugins(base.extended(units), MappingProxyType(deciders), tuple(problems), guard)


@functools.lru_cache(maxsize=8)
def for_plans(directory: str) -> Plugins:
    """The plug-ins of installed packages and of a directory (empty: none), for whole plans.

    They are loaded once in each process.
    """
    where = Path(directory) if directory else None
    return load(where, entry_points=True, time_limit_s=PLAN_LIMIT_S)


def _files(directory: Path, problems: list[Problem]) -> list[Path]:
    """The plug-in files that nobody but us and root can write to."""
    try:
        paths = sorted(path for path in directory.glob("*.py") if not path.name.startswith("_"))
    except OSError as error:
        problems.append(Problem(str(directory), str(error), "not_loaded"))
        return []
    kept: list[Path] = []
    if _writable_by_others(directory):
        problems.append(Problem(str(directory), "others may write to it", "not_loaded"))
        return []
    for path in paths[:MAX_FILES]:
        if _writable_by_others(path):
            problems.append(Problem(str(path), "others may write to it", "not_loaded"))
        elif path.stat().st_size > MAX_FILE_BYTES:
            problems.append(Problem(str(path), "is too large", "not_loaded"))
        else:
            kept.append(path)
    if len(paths) > MAX_FILES:
        message = f"more than {MAX_FILES} files; the others are left out"
        problems.append(Problem(str(directory), message, "not_loaded"))
    return kept


def _writable_by_others(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & (stat.S_IWOTH | stat.S_IWGRP))
    except OSError:
        return True


def _reader(path: Path) -> Callable[[], object]:
    def read() -> object:
        specification = importlib.util.spec_from_file_location(f"snooze_plugin_{path.stem}", path)
        if specification is None or specification.loader is None:
            raise ImportError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return getattr(module, LIST)

    return read


def _plugins_in(value: object) -> list[Plugin]:
    """The plug-ins in what a file or entry point gave; UnitFailed if it is something else."""
    if isinstance(value, Plugin):
        return [value]
    if not is_list(value):
        raise UnitFailed("neither a plug-in nor a list of plug-ins")
    found: list[Plugin] = []
    for each in value:
        if not isinstance(each, Plugin):
            message = f"the list holds a {type(each).__name__}, which is no plug-in"
            raise UnitFailed(message)
        found.append(each)
    return found


def _kind(plugin: Plugin) -> str:
    match plugin:
        case Filter() | PerHostFilter():
            return "filter"
        case Weight() | PerHostWeight():
            return "weight"
        case Balancer():
            return "balancer"
        case Decider():
            return plugin.kind.value


def _built_in(plugin: Plugin, base: Catalogue) -> bool:
    tables: Mapping[str, Mapping[str, object]] = {
        "filter": base.filters,
        "weight": base.weights,
        "balancer": base.balancers,
    }
    return plugin.name in tables.get(_kind(plugin), {})


def _guarded(
    plugin: Filter | Weight | Balancer | PerHostFilter | PerHostWeight, guard: Guard
) -> Filter | Weight | Balancer:
    """The same unit, called through ``guard``, its answers examined; per-host ones vectorised."""
    match plugin:
        case Filter() | PerHostFilter():
            return guarded_filter(plugin, guard)
        case Weight() | PerHostWeight():
            return guarded_weight(plugin, guard)
        case Balancer():
            return guarded_balancer(plugin, guard)


def host_indices(answer: object, count: int, bound: int) -> IntArray:
    """``int64[count]`` with values from -1 to bound - 1; UnitFailed if ``answer`` is not that."""
    numbers = as_numbers(answer)
    if numbers is None or numbers.shape != (count,):
        raise UnitFailed(f"the answer is not {count} indices")
    if not ((numbers >= NONE) & (numbers < bound)).all() or (numbers % 1 != 0).any():
        raise UnitFailed("the answer names what is not there")
    return numbers.astype(np.int64)

"""Plugged-in filters, weights and balancers: their forms, and the examination of their answers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral, Real

import numpy as np

from snooze.common.resources import FloatArray
from snooze.scheduling.guard import Guard
from snooze.scheduling.ledger import Scene
from snooze.scheduling.policies import is_list
from snooze.scheduling.snapshot import BoolArray, Snapshot
from snooze.scheduling.units import (
    Advice,
    Balancer,
    Filter,
    Properties,
    Property,
    UnitFailed,
    Weight,
)
from snooze.scheduling.validation import as_numbers


@dataclass(frozen=True, slots=True)
class PerHostFilter:
    """A filter asked host by host."""

    name: str
    keep: Callable[[Scene, int, Properties], object]
    properties: tuple[Property, ...] = ()
    summary: str = ""


@dataclass(frozen=True, slots=True)
class PerHostWeight:
    """A weight asked host by host."""

    name: str
    score: Callable[[Scene, int, Properties], object]
    properties: tuple[Property, ...] = ()
    summary: str = ""


def guarded_filter(plugin: Filter | PerHostFilter, guard: Guard) -> Filter:
    """A filter that asks ``plugin`` under ``guard``; it raises ``UnitFailed`` or is sound."""
    label = f"filter {plugin.name}"

    def ask(scene: Scene, properties: Properties) -> object:
        if isinstance(plugin, Filter):
            return plugin.keep(scene, properties)
        ask_host = plugin.keep
        return _each(scene, lambda host: _truth(ask_host(scene, host, properties)))

    def examined(scene: Scene, answer: object) -> BoolArray | None:
        if answer is None:
            return None
        numbers = as_numbers(answer)
        if numbers is None or numbers.shape != (scene.snapshot.hosts,):
            raise UnitFailed("the answer is not one truth value per host")
        if not ((numbers == 0) | (numbers == 1)).all():
            raise UnitFailed("the answer holds something other than true and false")
        return numbers.astype(np.bool_)

    def keep(scene: Scene, properties: Properties) -> BoolArray | None:
        return guard.call(label, lambda: examined(scene, ask(scene, properties)))

    return Filter(plugin.name, keep, plugin.properties, plugin.summary)


def guarded_weight(plugin: Weight | PerHostWeight, guard: Guard) -> Weight:
    """A weight that asks ``plugin`` under ``guard``; it raises ``UnitFailed`` or is sound."""
    label = f"weight {plugin.name}"

    def ask(scene: Scene, properties: Properties) -> object:
        if isinstance(plugin, Weight):
            return plugin.score(scene, properties)
        ask_host = plugin.score
        return _each(scene, lambda host: _real(ask_host(scene, host, properties)))

    def examined(scene: Scene, answer: object) -> FloatArray:
        numbers = as_numbers(answer)
        if numbers is None or numbers.shape != (scene.snapshot.hosts,):
            raise UnitFailed("the answer is not one number per host")
        # Scores of hosts that were refused before mean nothing, and may be anything.
        if not np.isfinite(numbers[scene.candidates]).all():
            raise UnitFailed("the answer holds numbers that are not finite")
        return np.where(scene.candidates, numbers, 0.0)

    def score(scene: Scene, properties: Properties) -> FloatArray:
        return guard.call(label, lambda: examined(scene, ask(scene, properties)))

    return Weight(plugin.name, score, plugin.properties, plugin.summary)


def guarded_balancer(plugin: Balancer, guard: Guard) -> Balancer:
    """A balancer that asks ``plugin`` under ``guard``; it raises ``UnitFailed`` or is sound."""
    label = f"balancer {plugin.name}"

    def examined(answer: object) -> list[Advice]:
        if not is_list(answer):
            raise UnitFailed("the answer is no list of advice")
        found: list[Advice] = []
        for each in answer:
            if not isinstance(each, Advice):
                raise UnitFailed("the answer is no list of advice")
            indices: tuple[object, ...] = (each.source, *each.vms, *each.targets)
            if not all(isinstance(index, Integral) for index in indices):
                raise UnitFailed("advice names hosts and VMs by their indices")
            found.append(each)
        return found

    def advise(snapshot: Snapshot, properties: Properties) -> list[Advice]:
        return guard.call(label, lambda: examined(plugin.advise(snapshot, properties)))

    return replace(plugin, advise=advise)


def _each(scene: Scene, ask: Callable[[int], float]) -> FloatArray:
    """The answers for the hosts that are still candidates; 0 for the others."""
    answers = np.zeros(scene.snapshot.hosts)
    for host in np.flatnonzero(scene.candidates).tolist():
        answers[host] = ask(host)
    return answers


def _truth(answer: object) -> float:
    value = np.asarray(answer)
    if value.dtype.kind != "b" or value.ndim:
        raise TypeError(f"not a truth value: {type(answer).__name__}")
    return float(value)


def _real(answer: object) -> float:
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise TypeError(f"not a number: {type(answer).__name__}")
    return float(answer)

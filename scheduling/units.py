"""The parts a policy is made of: filters, weights, a balancer, and their properties.

===========  =================================================  ==================================
unit         asks                                               answers
===========  =================================================  ==================================
``Filter``   which hosts may take this VM?                      ``bool[H]``, or None: all of them
``Weight``   how bad is each host for this VM?                  ``float64[H]``, lower is better
``Balancer``  which VMs should leave their host, where to?      ``list[Advice]``
===========  =================================================  ==================================

Hosts pass all filters, one after the other; those left are scored: each weight times its factor,
summed; the lowest wins, the first of equals.

Source: oVirt's scheduling API (filter, weight and balance modules, factors, properties).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from snooze.common.resources import FloatArray
from snooze.scheduling.ledger import Scene
from snooze.scheduling.snapshot import BoolArray, Problem, Snapshot

MAX_WEIGHT: Final = 1000.0
"""The worst score a built-in weight gives. Source: oVirt's MaxSchedulerWeight."""

PropertyValue = bool | int | float | str
Properties = Mapping[str, PropertyValue]


class UnitFailed(Exception):
    """A plugged-in unit raised, took too long or answered nonsense; it is skipped."""


class PropertyKind(StrEnum):
    """The type of a property's values."""

    NUMBER = "number"
    WHOLE = "whole"
    FLAG = "flag"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Property:
    """A setting of a unit: its name, default and bounds."""

    name: str
    default: PropertyValue
    kind: PropertyKind = PropertyKind.NUMBER
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    summary: str = ""

    def read(self, value: object) -> PropertyValue:
        """``value`` as this property holds it; numbers and flags may come as text.

        Raises:
            ValueError: wrong type or out of bounds, in words.
        """
        if self.kind is PropertyKind.TEXT:
            return self._read_text(value)
        if self.kind is PropertyKind.FLAG:
            return self._read_flag(value)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"{self.name} must be a number")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise ValueError(f"{self.name} must be a number, not {value!r}") from None
        if not (math.isfinite(number) and self.low <= number <= self.high):
            raise ValueError(f"{self.name} must be in [{self.low:g}, {self.high:g}]: {value}")
        if self.kind is PropertyKind.NUMBER:
            return number
        if number != int(number):
            raise ValueError(f"{self.name} must be a whole number, not {value}")
        return int(number)

    def _read_text(self, value: object) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{self.name} must be text")
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name} must be one of {', '.join(self.choices)}")
        return value

    def _read_flag(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in {"true", "false"}:
            return value.lower() == "true"
        raise ValueError(f"{self.name} must be true or false")


def read_properties(
    specifications: Iterable[Property], given: Mapping[str, object]
) -> tuple[dict[str, PropertyValue], list[Problem]]:
    """Defaults with what is given over them, and everything wrong with it."""
    known = {each.name: each for each in specifications}
    values = {name: each.default for name, each in known.items()}
    problems: list[Problem] = []
    for name, value in given.items():
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            problems.append(Problem(name, f"no such property; there are: {there}", "unknown"))
            continue
        try:
            values[name] = known[name].read(value)
        except ValueError as error:
            problems.append(Problem(name, str(error), "range"))
    return values, problems


def number(properties: Properties, name: str) -> float:
    """A validated number among ``properties``."""
    value = properties[name]
    return value if isinstance(value, float) else float(value)


@dataclass(frozen=True, slots=True)
class Filter:
    """Refuses hosts. ``keep`` is asked once per VM; None keeps all."""

    name: str
    keep: Callable[[Scene, Properties], BoolArray | None]
    properties: tuple[Property, ...] = ()
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Weight:
    """Scores hosts, lower is better; scores of hosts that filters refused are not looked at."""

    name: str
    score: Callable[[Scene, Properties], FloatArray]
    properties: tuple[Property, ...] = ()
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Weighted:
    """A weight and its factor."""

    weight: Weight
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Advice:
    """One VM of ``vms``, the first that works out, should go from ``source`` to one of ``targets``.

    ``all_or_nothing`` asks for all of them to go: the source is to be emptied.
    """

    source: int
    vms: tuple[int, ...]
    targets: tuple[int, ...]
    why: str
    all_or_nothing: bool = False


@dataclass(frozen=True, slots=True)
class Balancer:
    """Names VMs that should move, and hosts they may move to."""

    name: str
    advise: Callable[[Snapshot, Properties], list[Advice]]
    properties: tuple[Property, ...] = ()
    summary: str = ""

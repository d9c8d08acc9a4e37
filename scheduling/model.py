"""The words that snapshots, plans and checks are written in.

Import them from ``snooze.scheduling.snapshot``, which has them all.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from snooze.common.resources import AXIS_NAMES

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
StateArray = NDArray[np.int8]

NONE: Final = -1
"""The index that stands for "no host"."""

MAX_VALUE: Final = 1e15
"""A capacity or demand beyond this is a mistake; below it no sum of a cluster overflows or turns
into infinity."""


class HostState(IntEnum):
    """What a host is doing, as far as placing VMs is concerned."""

    ACTIVE = 0
    """Takes VMs."""
    DRAINING = 1
    """Still runs VMs, takes no more: it is being emptied."""
    ASLEEP = 2
    """Switched off to save energy; takes VMs after a wake-up."""
    WAKING = 3
    """On its way from ASLEEP to ACTIVE; may be promised VMs."""
    MAINTENANCE = 4
    """A person has it."""
    FAILED = 5
    """Out of reach."""


class Affinity(StrEnum):
    """What an affinity rule asks for."""

    TOGETHER = "together"
    """All VMs of the rule on one host."""
    APART = "apart"
    """No two VMs of the rule on one host."""
    ON_HOSTS = "on_hosts"
    """Each VM of the rule on one of the rule's hosts."""
    OFF_HOSTS = "off_hosts"
    """No VM of the rule on any of the rule's hosts."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with what was handed in: where, what, and a stable code for programs."""

    where: str
    message: str
    code: str = "invalid"


@dataclass(frozen=True, slots=True)
class AffinityRule:
    """A rule over VMs and hosts, by their indices in the snapshot.

    ``hard`` rules are never broken by a plan; soft ones cost ``weight``.
    """

    kind: Affinity
    vms: tuple[int, ...]
    hosts: tuple[int, ...] = ()
    hard: bool = True
    weight: float = 1.0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Labels:
    """What hosts offer and VMs need, by name: tags, networks or images.

    ``hosts[h, n]`` is True if host h offers ``names[n]``; ``vms[v, n]`` if VM v needs it.
    """

    names: tuple[str, ...]
    hosts: BoolArray
    vms: BoolArray

    @classmethod
    def of(cls, hosts: Sequence[AbstractSet[str]], vms: Sequence[AbstractSet[str]]) -> "Labels":
        """Labels from one set of names per host and per VM; names in sorted order."""
        names = tuple(sorted(set[str]().union(*hosts, *vms)))
        index = {name: i for i, name in enumerate(names)}
        return cls(names, _marks(hosts, index), _marks(vms, index))


def _marks(sets: Sequence[AbstractSet[str]], index: Mapping[str, int]) -> BoolArray:
    marks = np.zeros((len(sets), len(index)), dtype=np.bool_)
    for row, members in enumerate(sets):
        for name in members:
            marks[row, index[name]] = True
    return marks


def default_axes(count: int) -> tuple[str, ...]:
    """Names for ``count`` resources: Snooze's own when there are as many."""
    if count == len(AXIS_NAMES):
        return AXIS_NAMES
    return tuple(f"resource {i}" for i in range(count))

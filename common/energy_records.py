"""What ZooKeeper keeps of the energy that hosts used: ``/energy/hosts-N`` and ``slots-N``.

Written by the leader every ``energy.record_s``; so much is lost with a leader that dies.
"""

from typing import Final

import msgspec

from snooze.common.resources import ZERO, Capacity

ENERGY: Final = "/energy"


class HostEnergy(msgspec.Struct, frozen=True, array_like=True):
    """One host since the record began: joules used and saved, seconds up, asleep and dead.

    ``wake_s``: how long it took to wake it the last time; 0: not known. ``dead_s``: it was fenced,
    or failed to wake.
    """

    used_j: float = 0.0
    saved_j: float = 0.0
    up_s: float = 0.0
    asleep_s: float = 0.0
    wake_s: float = 0.0
    dead_s: float = 0.0


class EnergySlot(msgspec.Struct, frozen=True, array_like=True):
    """Five minutes: mean watts drawn and saved, hosts up and asleep, what VMs were promised."""

    at_ms: int
    watts: float
    saved_w: float
    up: float
    asleep: float
    demand: Capacity = ZERO


class EnergyRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """All of it, or a part; ``began_ms``: since when is metered."""

    began_ms: int = 0
    hosts: dict[str, HostEnergy] = {}
    slots: list[EnergySlot] = []

"""What servers draw: measured curves by name, and a guess for a host of which nothing is known.

Source: published results of SPECpower_ssj2008 (spec.org/power_ssj2008/results), average active
power at 0, 10, .. 100 % of the target load:

==================  ==========================================  ========================
name                machine                                     result
==================  ==========================================  ========================
``hp_ml110_g4``     HP ProLiant ML110 G4, 1 Xeon 3040, 2 cores  res2011q1, 20110127-00342
``hp_ml110_g5``     HP ProLiant ML110 G5, 1 Xeon 3075, 2 cores  res2011q1, 20110124-00339
``ibm_x3250_x3470`` IBM x3250 M3, 1 Xeon X3470, 4 cores         res2009q4, 20091104-00213
``ibm_x3550_x5675`` IBM x3550 M3, 2 Xeon X5675, 12 cores        res2011q2, 20110406-00368
==================  ==========================================  ========================

``generic`` scales with the number of cores: the straight line through idle and full load of the two
IBM machines (4 and 12 cores). It is a guess of the right order, not a measurement.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from snooze.scheduling.power_model import PowerModel

GENERIC: Final = "generic"


class Draws(Protocol):
    """What a host's settings say that it draws, watts; 0: not said."""

    @property
    def idle_w(self) -> float:
        """On, without load."""
        ...

    @property
    def full_w(self) -> float:
        """On, under full load."""
        ...

    @property
    def asleep_w(self) -> float:
        """Asleep or off."""
        ...


CURVES_W: Final[dict[str, tuple[float, ...]]] = {
    "hp_ml110_g4": (86.0, 89.4, 92.6, 96.0, 99.5, 102.0, 106.0, 108.0, 112.0, 114.0, 117.0),
    "hp_ml110_g5": (93.7, 97.0, 101.0, 105.0, 110.0, 116.0, 121.0, 125.0, 129.0, 133.0, 135.0),
    "ibm_x3250_x3470": (41.6, 46.7, 52.3, 57.9, 65.4, 73.0, 80.7, 89.5, 99.6, 105.0, 113.0),
    "ibm_x3550_x5675": (58.4, 98.0, 109.0, 118.0, 128.0, 140.0, 153.0, 170.0, 189.0, 205.0, 222.0),
}

_FEW, _MANY = CURVES_W["ibm_x3250_x3470"], CURVES_W["ibm_x3550_x5675"]
_FEW_CORES, _MANY_CORES = 4.0, 12.0

POINTS: Final = 11
"""Loads of every curve."""

OFF_W: Final = 3.0
"""A switched-off server still feeds its BMC; a guess, where the host's settings do not say."""


def curve_w(description: Draws, cores: float, name: str = GENERIC) -> tuple[float, ...]:
    """Watts of one host at ``POINTS`` loads from idle to full.

    What the host's settings say goes first (a line from ``idle_w`` to ``full_w``), then the curve
    called ``name``; a name that is not known counts as ``generic``.
    """
    if 0 < description.idle_w <= description.full_w:
        step = (description.full_w - description.idle_w) / (POINTS - 1)
        return tuple(description.idle_w + step * point for point in range(POINTS))
    if name in CURVES_W:
        return CURVES_W[name]
    share = (max(cores, 1.0) - _FEW_CORES) / (_MANY_CORES - _FEW_CORES)
    return tuple(
        max(1.0, few + (many - few) * share) for few, many in zip(_FEW, _MANY, strict=True)
    )


def asleep_w(description: Draws) -> float:
    """Watts of the host while it sleeps."""
    return description.asleep_w or OFF_W


def model_of(
    hosts: Sequence[tuple[Draws, float]], name: str = GENERIC, wake_s: float = 0.0
) -> PowerModel:
    """The power model of ``(description, cores)`` of each host, in this order."""
    return PowerModel.of(
        [curve_w(description, cores, name) for description, cores in hosts],
        asleep_w=[asleep_w(description) for description, _ in hosts],
        wake_s=wake_s,
    )

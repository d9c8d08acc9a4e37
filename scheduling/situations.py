"""A relocation as JSON-ready data, and again: what it looked at beside the snapshot, its policy.

The history of samples is not written down: only the forecast that was made of it. So a policy whose
selection looks at the history (``MaximumCorrelation``) is not replayed by it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from snooze.scheduling.estimation import Forecast
from snooze.scheduling.model import BoolArray
from snooze.scheduling.policies import is_list, is_table
from snooze.scheduling.power_model import PowerModel
from snooze.scheduling.relocation import MAX_MOVES, Hold, MovedVm, Situation
from snooze.scheduling.relocation_cost import MigrationModel
from snooze.scheduling.relocation_predictive import Predictive
from snooze.scheduling.relocation_round import RELOCATIONS, RelocationPolicy
from snooze.scheduling.snapshot import Snapshot
from snooze.scheduling.units import Properties, Property, PropertyKind, number
from snooze.scheduling.validation import as_numbers

_ACTUAL: Final = Predictive()

RELOCATION: Final = (
    Property("policy", _ACTUAL.name, PropertyKind.TEXT),
    Property("confidence", _ACTUAL.confidence, low=0.0, high=100.0),
    Property("passing", _ACTUAL.passing, low=0.0, high=1.0),
    Property("horizon_s", _ACTUAL.horizon_s, low=0.0, high=1e9),
    Property("payback_s", _ACTUAL.payback_s, low=1e-3, high=1e9),
    Property("worth", _ACTUAL.worth, low=0.0, high=1e9),
    Property("hold_s", _ACTUAL.hold_s, low=0.0, high=1e9),
    Property("cooldown_s", _ACTUAL.cooldown_s, low=0.0, high=1e9),
    Property("margin", _ACTUAL.margin, low=0.0, high=1e9),
    Property("max_moves", MAX_MOVES, PropertyKind.WHOLE, 0, 1e9),
    Property("bandwidth_kib_s", _ACTUAL.migration.bandwidth_kib_s, low=0.0, high=1e12),
)
"""The options of a recorded relocation; all but the first are of the predictive policy.

A ``policy`` that is no built-in one is a plug-in's (``plugged.py``)."""


def relocation_policy(options: Properties) -> RelocationPolicy:
    """The built-in policy that ``RELOCATION`` options name; the predictive one for a plug-in's."""
    name = str(options["policy"])
    if name != _ACTUAL.name and name in RELOCATIONS:
        return RELOCATIONS[name]
    return Predictive(
        confidence=number(options, "confidence"),
        passing=number(options, "passing"),
        horizon_s=number(options, "horizon_s"),
        payback_s=number(options, "payback_s"),
        worth=number(options, "worth"),
        hold_s=number(options, "hold_s"),
        cooldown_s=number(options, "cooldown_s"),
        margin=number(options, "margin"),
        max_moves=int(number(options, "max_moves")),
        migration=MigrationModel(bandwidth_kib_s=number(options, "bandwidth_kib_s")),
    )


def situation_document(situation: Situation) -> dict[str, object]:
    """``situation`` without its snapshot and history; ``read_situation`` makes an equal one."""
    snapshot = situation.snapshot

    def named(flags: BoolArray) -> list[str]:
        return [snapshot.host_ids[host] for host in np.flatnonzero(flags).tolist()]

    document: dict[str, object] = {
        "now_s": situation.now_s,
        "overloaded": named(situation.overloaded),
        "underloaded": named(situation.underloaded),
        "hold": {
            "vms": {name: [held.until_s, held.left] for name, held in situation.hold.vms.items()},
            "hosts": dict(situation.hold.hosts),
        },
        "load_axes": situation.load_axes,
    }
    if situation.forecast is not None:
        document["expected"] = situation.forecast.expected.tolist()
        document["deviation"] = situation.forecast.deviation.tolist()
    if situation.power is not None:
        power = situation.power
        document["power"] = {
            "curve_w": power.curve_w.tolist(),
            "asleep_w": power.asleep_w.tolist(),
            "wake_s": power.wake_s.tolist(),
        }
    return document


def read_situation(document: Mapping[str, object], snapshot: Snapshot) -> Situation:
    """The situation of ``situation_document`` on ``snapshot``.

    Raises:
        ValueError: it cannot be read; says what.
    """
    load_axes = document.get("load_axes")
    if load_axes is not None and (isinstance(load_axes, bool) or not isinstance(load_axes, int)):
        raise ValueError("load_axes is no number of axes")
    forecast = None
    if "expected" in document:
        expected, deviation = (
            _numbers(document, name, snapshot) for name in ("expected", "deviation")
        )
        forecast = Forecast(expected, deviation)
    power = document.get("power")
    if power is not None and not is_table(power):
        raise ValueError("power is not a table")
    return Situation(
        snapshot,
        _number(document.get("now_s", 0.0), "now_s"),
        overloaded=_flags(document, "overloaded", snapshot),
        underloaded=_flags(document, "underloaded", snapshot),
        forecast=forecast,
        power=_power(power) if power is not None else None,
        hold=_hold(document.get("hold", {})),
        load_axes=load_axes,
    )


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} is not a number")
    return float(value)


def _numbers(document: Mapping[str, object], name: str, snapshot: Snapshot) -> NDArray[np.float64]:
    numbers = as_numbers(document.get(name))
    shape = snapshot.demand.shape
    if (
        numbers is None
        or (numbers.shape != shape and numbers.size != 0)
        or len(numbers) != shape[0]
    ):
        raise ValueError(f"{name} is not one row of numbers per VM")
    return numbers.reshape(shape)


def _flags(document: Mapping[str, object], name: str, snapshot: Snapshot) -> BoolArray:
    names = document.get(name, [])
    if not is_list(names):
        raise ValueError(f"{name} is not a list of hosts")
    chosen = set(map(str, names))
    return np.array([host_id in chosen for host_id in snapshot.host_ids], dtype=np.bool_)


def _hold(value: object) -> Hold:
    if not is_table(value):
        raise ValueError("hold is not a table")
    vms, hosts = value.get("vms", {}), value.get("hosts", {})
    if not is_table(vms) or not is_table(hosts):
        raise ValueError("hold.vms and hold.hosts must be tables")
    held: dict[str, MovedVm] = {}
    for name, entry in vms.items():
        if not is_list(entry) or len(entry) != 2:
            raise ValueError("an entry of hold.vms is not [until_s, host]")
        held[name] = MovedVm(_number(entry[0], "hold.vms"), str(entry[1]))
    return Hold(
        MappingProxyType(held),
        MappingProxyType({name: _number(until, "hold.hosts") for name, until in hosts.items()}),
    )


def _power(document: Mapping[str, object]) -> PowerModel:
    columns = [as_numbers(document.get(name)) for name in ("curve_w", "asleep_w", "wake_s")]
    curve, asleep, wake = columns
    if curve is None or asleep is None or wake is None:
        raise ValueError("power is not made of numbers")
    return PowerModel.of(curve, asleep_w=asleep, wake_s=wake)

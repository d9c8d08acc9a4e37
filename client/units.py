"""Quantities as people write and read them.

Memory and rates are binary: ``2G`` is 2 GiB, ``12M`` a second is 12 MiB/s.
"""

import re
from typing import Final

from snooze.common.errors import InvalidRequest
from snooze.common.resources import BYTE_UNITS, bytes_text

_KIB_OF: Final[dict[str, float]] = {"k": 1, "m": 1024, "g": 1024**2, "t": 1024**3}
_QUANTITY = re.compile(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([kmgt]?)(?:i?b)?\s*", re.IGNORECASE)


def parse_memory_kib(text: str, *, where: str = "memory") -> int:
    """KiB in ``512M``, ``2G``, ``1.5GiB``; a number needs its unit.

    Raises:
        InvalidRequest: if it is not such a quantity, or less than a KiB.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"{where}: {text!r} is no amount of memory; write it as 512M or 2G")
    number, unit = match.groups()
    if not unit:
        raise InvalidRequest(f"{where}: {text!r} has no unit; write it as {number}M or {number}G")
    kib = round(float(number) * _KIB_OF[unit.lower()])
    if kib < 1:
        raise InvalidRequest(f"{where}: {text!r} is less than 1 KiB")
    return kib


def parse_rate_kib_s(text: str, *, where: str = "rate") -> float:
    """KiB/s in ``12800`` (KiB/s), ``12M`` or ``1G`` (MiB and GiB a second).

    Raises:
        InvalidRequest: if it is not such a quantity.
    """
    match = _QUANTITY.fullmatch(text.removesuffix("/s"))
    if match is None:
        raise InvalidRequest(f"{where}: {text!r} is no rate; write KiB/s as 12800, or as 12M")
    number, unit = match.groups()
    return float(number) * _KIB_OF[unit.lower() or "k"]


def memory_text(kib: float) -> str:
    """``2.0 GiB``."""
    return bytes_text(kib * 1024)


def rate_text(kib_s: float) -> str:
    """``12.5 MiB/s``; a dash for none."""
    return f"{bytes_text(kib_s * 1024)}/s" if kib_s else "-"


def pair_text(part_kib: float, whole_kib: float) -> str:
    """``4.0/64.0 GiB``: both in the unit of the whole; a dash when there is nothing."""
    if whole_kib <= 0:
        return "-"
    whole = bytes_text(whole_kib * 1024)
    number, unit = whole.split(" ")
    factor = 1024.0 ** (BYTE_UNITS.index(unit) - 1)
    return f"{part_kib / factor:.1f}/{number} {unit}"


def energy_text(kwh: float) -> str:
    """``12.5 Wh``, ``3.46 kWh``, ``146 kWh``, ``1.21 MWh``: three digits; never ``-0``."""
    for factor, unit in ((1000.0, "Wh"), (1.0, "kWh"), (0.001, "MWh")):
        if unit == "MWh" or abs(kwh * factor) < 999.5:
            return f"{_three_digits(kwh * factor)} {unit}"
    raise AssertionError(kwh)


def watts_text(watts: float) -> str:
    """``66.8 W``, ``350.0 W``, ``1.20 kW``."""
    return f"{watts:.1f} W" if abs(watts) < 999.95 else f"{watts / 1000:.2f} kW"


def _three_digits(value: float) -> str:
    size = abs(value)
    places = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{round(value, places) + 0.0:.{places}f}"


def share_text(share: float) -> str:
    """``41 %``."""
    return f"{share + 0.0:.0%}".replace("%", " %").replace("-0 ", "0 ")


def cores_text(cores: float) -> str:
    """``4`` or ``0.25``."""
    return f"{cores:.0f}" if cores == round(cores) else f"{cores:.2f}"


def span_text(milliseconds: float) -> str:
    """``0 s``, ``250 ms``, ``12.3 s``, ``4 min 05 s``, ``3 h 07 min``."""
    if not milliseconds:
        return "0 s"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"

"""What this machine's processors draw, by the counters of RAPL.

Each top zone below ``/sys/class/powercap`` counts microjoules. Packages are summed, with their
memory where the kernel shows it apart; a ``psys`` zone counts the whole board and goes before them.
What neither counts (fans, disks, the power supply's loss) is missing: a lower bound.

Source: Linux, Documentation/power/powercap/powercap.rst.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

POWERCAP: Final = Path("/sys/class/powercap")
MAX_ZONE_W: Final = 10_000.0
"""Above it a reading is a counter that was reset, not power."""

_MICRO: Final = 1e-6
_BOARD: Final = "psys"
_MEMORY: Final = "dram"


@dataclass(frozen=True, slots=True)
class _Zone:
    """One counter: where it is, and where it starts again (microjoules)."""

    energy: Path
    wraps_at_uj: int


class RaplMeter:
    """Power as the difference of counters; not thread-safe, reads files."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones = _find_zones(root)
        self._last: dict[Path, tuple[float, int]] = {}

    @property
    def is_there(self) -> bool:
        """Whether this machine has such counters, and lets us read them."""
        return bool(self._zones)

    def power_w(self, now_s: float) -> float | None:
        """The mean since the call before, in watts; ``now_s`` is a monotonic clock's.

        None where there are no counters, at the first call, and when a counter was reset.
        """
        total_w = 0.0
        is_known = bool(self._zones)
        for zone in self._zones:
            power_w = self._zone_w(zone, now_s)
            if power_w is None:
                is_known = False
            else:
                total_w += power_w
        return total_w if is_known else None

    def _zone_w(self, zone: _Zone, now_s: float) -> float | None:
        energy_uj = _number(zone.energy)
        before = self._last.pop(zone.energy, None)
        if energy_uj is None:
            return None
        self._last[zone.energy] = now_s, energy_uj
        if before is None or now_s <= before[0]:
            return None
        used_uj = energy_uj - before[1]
        if used_uj < 0:
            used_uj += zone.wraps_at_uj
        power_w = used_uj * _MICRO / (now_s - before[0])
        return power_w if 0 <= power_w <= MAX_ZONE_W else None


def _find_zones(root: Path) -> list[_Zone]:
    """The counters that together are the machine, each joule once."""
    boards: list[_Zone] = []
    packages: list[_Zone] = []
    for folder in sorted(root.glob("intel-rapl:*")):
        zone = _Zone(folder / "energy_uj", _number(folder / "max_energy_range_uj") or 0)
        if _number(zone.energy) is None:
            continue
        name = _word(folder / "name")
        is_top = folder.name.count(":") == 1
        if is_top and name == _BOARD:
            boards.append(zone)
        elif is_top or name == _MEMORY:
            packages.append(zone)
    return boards or packages


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    word = _word(path)
    return int(word) if word.isascii() and word.isdigit() and len(word) < 20 else None

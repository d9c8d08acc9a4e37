"""The plot of `snooze energy --plot FILE.svg`: watts drawn, watts if no host slept, hosts up.

Plain SVG without a library: one step line a series, a grid, and the figures in the title.
"""

import datetime
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from snooze.common.api import EnergySlotView, EnergyView

WIDTH: Final = 900
HEIGHT: Final = 420
LEFT: Final = 70
RIGHT: Final = 60
TOP: Final = 50
BOTTOM: Final = 50
TICKS: Final = 5
DRAWN: Final = "#2166ac"
ALL_ON: Final = "#b2182b"
UP: Final = "#999999"

Place = Callable[[float], float]


def svg(view: EnergyView) -> str:
    """The picture; of no past it says so."""
    title = (
        f"{view.used_kwh:.3f} kWh used, {view.saved_kwh:.3f} kWh saved"
        f" since {_moment(view.began_ms)}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 20, title, "middle", size=15),
    ]
    past = view.past
    if len(past) < 2:
        parts.append(_text(WIDTH / 2, HEIGHT / 2, "There is no past to show yet.", "middle"))
        return "\n".join([*parts, "</svg>\n"])
    first, last = past[0].at_ms, past[-1].at_ms
    most_w = _round_up(max(watt for slot in past for watt in (slot.watts, slot.watts_all_on)))
    # The axis has five parts: whole hosts each.
    most_hosts = 5.0 * math.ceil(max(1.0, *(slot.up + slot.asleep for slot in past)) / 5 - 1e-6)

    def x(at_ms: float) -> float:
        return LEFT + (at_ms - first) / max(last - first, 1) * (WIDTH - LEFT - RIGHT)

    def watts(value: float) -> float:
        return HEIGHT - BOTTOM - value / most_w * (HEIGHT - TOP - BOTTOM)

    def hosts(value: float) -> float:
        return HEIGHT - BOTTOM - value / most_hosts * (HEIGHT - TOP - BOTTOM)

    parts += _axes(first, last, most_w, most_hosts, x, watts)
    parts.append(_steps([(slot.at_ms, slot.up) for slot in past], x, hosts, UP, dashed=True))
    parts.append(_area(past, x, watts))
    parts.append(_steps([(slot.at_ms, slot.watts_all_on) for slot in past], x, watts, ALL_ON))
    parts.append(_steps([(slot.at_ms, slot.watts) for slot in past], x, watts, DRAWN))
    legend = ((DRAWN, "drawn"), (ALL_ON, "if no host slept"), (UP, "hosts up (right)"))
    for index, (colour, words) in enumerate(legend):
        at = LEFT + 10 + index * 150
        parts.append(
            f'<line x1="{at}" y1="38" x2="{at + 20}" y2="38" stroke="{colour}" stroke-width="3"/>'
        )
        parts.append(_text(at + 26, 42, words, "start"))
    return "\n".join([*parts, "</svg>\n"])


def _axes(
    first: float, last: float, most_w: float, most_hosts: float, x: Place, y: Place
) -> list[str]:
    parts: list[str] = []
    for tick in range(TICKS + 1):
        value = most_w * tick / TICKS
        parts.append(
            f'<line x1="{LEFT}" y1="{y(value):.1f}" x2="{WIDTH - RIGHT}" y2="{y(value):.1f}" '
            'stroke="#dddddd"/>'
        )
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value:.4g} W", "end"))
        parts.append(
            _text(WIDTH - RIGHT + 6, y(value) + 4, f"{most_hosts * tick / TICKS:.3g}", "start")
        )
        moment = first + (last - first) * tick / TICKS
        parts.append(_text(x(moment), HEIGHT - BOTTOM + 18, _moment(moment), "middle", size=10))
    return parts


def _steps(
    points: Sequence[tuple[float, float]], x: Place, y: Place, colour: str, *, dashed: bool = False
) -> str:
    path = [f"M{x(points[0][0]):.1f},{y(points[0][1]):.1f}"]
    for at, value in points[1:]:
        path.append(f"H{x(at):.1f}V{y(value):.1f}")
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>'


def _area(past: Sequence[EnergySlotView], x: Place, y: Place) -> str:
    """What was saved, between both lines."""
    upper = [f"M{x(past[0].at_ms):.1f},{y(past[0].watts_all_on):.1f}"]
    for slot in past[1:]:
        upper.append(f"H{x(slot.at_ms):.1f}V{y(slot.watts_all_on):.1f}")
    lower: list[str] = []
    for before, slot in zip(reversed(past[:-1]), reversed(past[1:]), strict=True):
        lower.append(f"V{y(slot.watts):.1f}" if not lower else "")
        lower.append(f"V{y(before.watts):.1f}H{x(before.at_ms):.1f}")
    return f'<path d="{"".join(upper)}{"".join(lower)}Z" fill="{ALL_ON}" fill-opacity="0.12"/>'


def _text(x: float, y: float, words: str, anchor: str, *, size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(words)}</text>"
    )


def _moment(at_ms: float) -> str:
    instant = datetime.datetime.fromtimestamp(at_ms / 1000, tz=datetime.UTC)
    return instant.astimezone().strftime("%d %b %H:%M")


def _round_up(value: float) -> float:
    """The next figure with one digit that is not zero, at least 1."""
    size = 1.0
    while size * 10 <= value:
        size *= 10
    return next(size * digit for digit in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10) if size * digit >= value)

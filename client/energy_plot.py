"""The plot of `snooze energy --plot FILE.svg`: what is drawn and saved, and below it who is up.

Plain SVG without a library. The upper panel has the watts that hosts draw; what lies between them
and the watts that all hosts would draw is what was saved. The lower panel has the hosts that are
up, and on top of them those that sleep. Times are the reader's, named at whole hours or days.
"""

import datetime
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from snooze.client.units import energy_text, share_text
from snooze.common.api import EnergySlotView, EnergyView

WIDTH: Final = 900
HEIGHT: Final = 460
LEFT: Final = 62
RIGHT: Final = 24
TOP: Final = 84
SPLIT: Final = 300
"""Where the upper panel ends."""
LOWER: Final = 336
BOTTOM: Final = 424
NO_PAST: Final = "There is no past to show yet: it is kept in means of five minutes."
COLUMNS: Final = 400
"""More slots than this are drawn as means of several: a pixel shows no more."""
TICKS: Final = 8
"""At most so many times are named."""
DRAWN: Final = "#2b6cb0"
SAVED: Final = "#38a169"
INK: Final = "#1a202c"
FAINT: Final = "#718096"
GRID: Final = "#e2e8f0"
HOUR_MS: Final = 3_600_000
STEPS_H: Final = (1, 2, 3, 6, 12, 24, 48, 96, 168)

Place = Callable[[float], float]
Points = Sequence[tuple[float, float]]


def svg(view: EnergyView) -> str:
    """The picture; of no past it says so."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="Inter, Helvetica, Arial, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_title(view),
    ]
    past = thinned(view.past, COLUMNS)
    if len(past) < 2:
        parts.append(_text(WIDTH / 2, HEIGHT / 2, NO_PAST, "middle", colour=FAINT))
        return "\n".join([*parts, "</svg>\n"])
    # A slot is drawn until the next one begins; the last for as long as the one before.
    first, last = past[0].at_ms, 2 * past[-1].at_ms - past[-2].at_ms
    most_w = nice(max(watt for slot in past for watt in (slot.watts, slot.watts_all_on)))
    most_hosts = max(1.0, *(slot.up + slot.asleep for slot in past))

    def x(at_ms: float) -> float:
        return LEFT + (at_ms - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def watts(value: float) -> float:
        return SPLIT - value / most_w * (SPLIT - TOP)

    def hosts(value: float) -> float:
        return BOTTOM - value / most_hosts * (BOTTOM - LOWER)

    def series(value: Callable[[EnergySlotView], float]) -> Points:
        points = [(slot.at_ms, value(slot)) for slot in past]
        return [*points, (last, points[-1][1])]

    drawn = series(lambda slot: slot.watts)
    all_on = series(lambda slot: max(slot.watts, slot.watts_all_on))
    up = series(lambda slot: slot.up)
    known = series(lambda slot: slot.up + slot.asleep)
    nothing = [(first, 0.0), (last, 0.0)]
    parts += _grid(most_w, watts)
    parts += _times(first, last, x)
    parts.append(_area(nothing, drawn, x, watts, DRAWN, 0.18))
    parts.append(_area(drawn, all_on, x, watts, SAVED, 0.28))
    parts.append(_line(all_on, x, watts, SAVED, 1.0))
    parts.append(_line(drawn, x, watts, DRAWN, 1.8))
    parts.append(_area(nothing, up, x, hosts, DRAWN, 0.55))
    parts.append(_area(up, known, x, hosts, SAVED, 0.28))
    parts.append(_rule(BOTTOM))
    parts.append(_text(LEFT - 8, BOTTOM + 4, "0", "end", colour=FAINT))
    parts.append(_text(LEFT - 8, LOWER + 4, f"{most_hosts:.4g}", "end", colour=FAINT))
    parts += _legend(TOP - 14, ((DRAWN, 0.5, "drawn"), (SAVED, 0.4, "saved by hosts that sleep")))
    parts += _legend(LOWER - 12, ((DRAWN, 0.55, "hosts up"), (SAVED, 0.28, "asleep")))
    return "\n".join([*parts, "</svg>\n"])


def thinned(past: Sequence[EnergySlotView], most: int) -> list[EnergySlotView]:
    """At most so many slots: each the mean of as many neighbours."""
    size = math.ceil(len(past) / most)
    if size <= 1:
        return list(past)
    found: list[EnergySlotView] = []
    for begin in range(0, len(past), size):
        group = past[begin : begin + size]
        count = len(group)
        found.append(
            EnergySlotView(
                group[0].at_ms,
                sum(slot.watts for slot in group) / count,
                sum(slot.watts_all_on for slot in group) / count,
                sum(slot.up for slot in group) / count,
                sum(slot.asleep for slot in group) / count,
            )
        )
    return found


def nice(value: float) -> float:
    """The next figure that four equal parts divide well, at least 4."""
    size = 1.0
    while size * 10 <= value:
        size *= 10
    return next(
        size * digit for digit in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10)
        if size * digit >= max(value, 4.0)
    )  # fmt: skip


def _title(view: EnergyView) -> list[str]:
    whole = view.used_kwh + view.saved_kwh
    saved = f"{energy_text(view.saved_kwh)} saved"
    if whole > 0:
        saved += f", {share_text(view.saved_kwh / whole)} of what would have been used"
    since = f" since {_moment(view.began_ms, '%d %b %Y %H:%M')}" if view.began_ms else ""
    return [
        _text(LEFT, 26, saved, "start", size=17, weight="600"),
        _text(LEFT, 45, f"{energy_text(view.used_kwh)} used{since}", "start", colour=FAINT),
    ]


def _grid(most_w: float, y: Place) -> list[str]:
    parts: list[str] = []
    size, unit = (1000.0, "kW") if most_w >= 2000 else (1.0, "W")
    for tick in range(5):
        value = most_w * tick / 4
        words = f"{value / size:.4g} {unit}"
        parts.append(_rule(y(value)))
        parts.append(_text(LEFT - 8, y(value) + 4, words, "end", colour=FAINT))
    return parts


def _times(first: float, last: float, x: Place) -> list[str]:
    """Names of whole hours, or days, of the reader's clock, and a line for each."""
    hours = (last - first) / HOUR_MS
    step_h = next((step for step in STEPS_H if hours / step <= TICKS), STEPS_H[-1])
    moments: list[float] = []
    if hours < 2:
        moments += [first, last]
    else:
        begin = _local(first).replace(minute=0, second=0, microsecond=0)
        moment = begin.replace(hour=0) if step_h >= 24 else begin
        while (at_ms := moment.timestamp() * 1000) <= last:
            if at_ms >= first and (step_h >= 24 or moment.hour % step_h == 0):
                moments.append(at_ms)
            moment += datetime.timedelta(hours=24 if step_h >= 24 else 1)
        moments = moments[:: max(1, step_h // 24)]
    parts: list[str] = []
    for at_ms in moments:
        here = x(at_ms)
        parts.append(
            f'<path d="M{here:.1f},{TOP}V{SPLIT}M{here:.1f},{LOWER}V{BOTTOM}" stroke="{GRID}"/>'
        )
        midnight = _local(at_ms).hour == 0 and _local(at_ms).minute == 0
        words = _moment(at_ms, "%a %d %b" if step_h >= 24 or midnight else "%H:%M")
        anchor = "middle"
        if here > WIDTH - RIGHT - 20:
            anchor = "end"
        elif here < LEFT + 20:
            anchor = "start"
        parts.append(_text(here, BOTTOM + 20, words, anchor, size=11, colour=FAINT))
    return parts


def _legend(y: float, entries: Sequence[tuple[str, float, str]]) -> list[str]:
    parts: list[str] = []
    at = float(LEFT)
    for colour, opacity, words in entries:
        parts.append(
            f'<rect x="{at:.0f}" y="{y - 9:.0f}" width="12" height="10" rx="2" fill="{colour}" '
            f'fill-opacity="{opacity}"/>'
        )
        parts.append(_text(at + 18, y, words, "start"))
        at += 40 + 6.5 * len(words)
    return parts


def _line(points: Points, x: Place, y: Place, colour: str, width: float) -> str:
    path = f"M{x(points[0][0]):.1f},{y(points[0][1]):.1f}{_steps(points, x, y)}"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _area(lower: Points, upper: Points, x: Place, y: Place, colour: str, opacity: float) -> str:
    """What lies between two step lines."""
    back = list(reversed(lower))
    path = f"M{x(upper[0][0]):.1f},{y(upper[0][1]):.1f}{_steps(upper, x, y)}"
    path += f"V{y(back[0][1]):.1f}"
    for at, value in back[1:]:
        path += f"V{y(value):.1f}H{x(at):.1f}"
    return f'<path d="{path}Z" fill="{colour}" fill-opacity="{opacity}"/>'


def _steps(points: Points, x: Place, y: Place) -> str:
    return "".join(f"H{x(at):.1f}V{y(value):.1f}" for at, value in points[1:])


def _rule(y: float) -> str:
    return f'<path d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>'


def _text(
    x: float, y: float, words: str, anchor: str, *, size: int = 12, colour: str = INK,
    weight: str = "400",
) -> str:  # fmt: skip
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{colour}" font-weight="{weight}">{escape(words)}</text>'
    )


def _local(at_ms: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at_ms / 1000, tz=datetime.UTC).astimezone()


def _moment(at_ms: float, form: str) -> str:
    return _local(at_ms).strftime(form)

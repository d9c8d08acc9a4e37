"""When something may or shall happen: cron expressions and weekly windows, each with its time zone.

A *cron expression* has five fields (minute, hour, day, month, weekday), or six with seconds first,
as Quartz and the original Snooze write them (``0 0/1 * * * ?``). With six fields weekdays count as
Quartz counts them, 1 is Sunday; with five as cron does, 0 is Sunday; names (``MON``) are the same
in both. What the two understand differently is refused rather than guessed: a seventh field (years)
and Quartz's ``W``.

A *window* is ``DAYS START-END``, such as ``mon-fri 22:00-06:00`` or ``sat,sun 00:00-24:00`` or
``* 01:00-05:00``. One that ends before it starts goes on into the next day, which need not be among
its days. The end is not in it.

Times are wall time of one zone (``UTC``, ``Europe/Paris``). A window lasts as long as clocks say
that it does, also when they are set back; a run that falls into a skipped hour comes right after.

The time is always an argument: nothing here looks at a clock, so that cores may use it. The rules
of a zone are read from the system when it is named.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MAX_CHARS: Final = 200
DAY_MINUTES: Final = 1440

_WINDOW = re.compile(r"(\S+)\s+(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})")
_QUARTZ_DAYS: Final = "0123456"


def zone_of(name: str) -> tzinfo:
    """The time zone of that name.

    Raises:
        ValueError: there is none; says so in a sentence for people.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        # A name that is no key, a directory, or one that would leave the database of zones.
        raise ValueError(f'there is no time zone "{name[:80]}" (UTC, Europe/Paris, ...)') from None


def _quartz_weekday(field: str) -> str:
    """Weekdays counted from 1, Sunday, as cron counts them from 0."""

    def renumbered(match: re.Match[str]) -> str:
        number = int(match.group())
        if not 1 <= number <= len(DAYS):
            raise ValueError(f"weekday {number} is not in 1 (Sunday) to 7 (Saturday)")
        return _QUARTZ_DAYS[number - 1]

    days, step, every = field.partition("/")
    days, number_sign, week = days.partition("#")
    return re.sub(r"\d+", renumbered, days) + number_sign + week + step + every


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression, understood; made by ``Cron.of``."""

    text: str
    expression: str
    zone: tzinfo

    @classmethod
    def of(cls, text: str, zone: tzinfo) -> "Cron":
        """Understand ``text``.

        Raises:
            ValueError: it is no cron expression; says why.
        """
        fields = text.split()
        if len(text) > MAX_CHARS or len(fields) not in (5, 6):
            raise ValueError(
                f'"{text[:MAX_CHARS]}" is no cron expression of five fields, or of six with '
                "seconds first"
            )
        if "W" in fields[-3].upper():
            raise ValueError(f'"{text}": the nearest weekday (W) is not known here')
        if len(fields) == 6:
            fields[5] = _quartz_weekday(fields[5]) if fields[5] != "?" else "*"
            fields[3] = "*" if fields[3] == "?" else fields[3]
        expression = " ".join(fields)
        try:
            found = next(CronSim(expression, datetime(2024, 1, 1, tzinfo=zone)), None)
        except (CronSimError, StopIteration, ValueError) as error:
            why = f": {str(error).lower()}" if str(error) else ""
            raise ValueError(f'"{text}" is no cron expression{why}') from None
        if found is None:
            raise ValueError(f'"{text}" never comes')
        return cls(text, expression, zone)

    def next_ms(self, after_ms: int) -> int:
        """The first time after ``after_ms``, both in milliseconds since 1970.

        Raises:
            ValueError: it does not come in the next fifty years.
        """
        after = datetime.fromtimestamp(after_ms / 1000, self.zone)
        for found in CronSim(self.expression, after):
            found_ms = int(found.timestamp() * 1000)
            if found_ms > after_ms:  # in an hour that comes twice, it may be of the first
                return found_ms
        raise ValueError(f'"{self.text}" does not come any more')


@dataclass(frozen=True, slots=True)
class Window:
    """A time of the week that comes again and again; made by ``Window.of``."""

    text: str
    days: frozenset[int]
    start_minute: int
    end_minute: int
    zone: tzinfo

    @classmethod
    def of(cls, text: str, zone: tzinfo) -> "Window":
        """Understand ``text``.

        Raises:
            ValueError: it is no window; says why.
        """
        match = _WINDOW.fullmatch(text.strip().lower())
        if match is None or len(text) > MAX_CHARS:
            raise ValueError(f'"{text[:MAX_CHARS]}" is no window such as "mon-fri 22:00-06:00"')
        days = frozenset(_days(match[1]))
        start, end = (_minute(match[hour], match[hour + 1]) for hour in (2, 4))
        if start in (end, DAY_MINUTES):
            raise ValueError(f'"{text}" is empty; a whole day is "* 00:00-24:00"')
        return cls(text, days, start, end, zone)

    def has(self, wall_ms: int) -> bool:
        """Whether this moment lies in the window."""
        moment = datetime.fromtimestamp(wall_ms / 1000, self.zone)
        clock = moment.time()
        minute = clock.hour * 60 + clock.minute
        if self.start_minute < self.end_minute:
            return moment.weekday() in self.days and self.start_minute <= minute < self.end_minute
        if minute >= self.start_minute:
            return moment.weekday() in self.days
        yesterday = (datetime.combine(moment.date(), time()) - timedelta(days=1)).weekday()
        return minute < self.end_minute and yesterday in self.days


def _minute(hours: str, minutes: str) -> int:
    minute = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or minute > DAY_MINUTES:
        raise ValueError(f"{hours}:{minutes} is no time of a day")
    return minute


def _days(text: str) -> Iterator[int]:
    if text == "*":
        yield from range(len(DAYS))
        return
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS:
            raise ValueError(f'"{part}" names no days; there are {", ".join(DAYS)}')
        start, end = DAYS.index(first), DAYS.index(last or first)
        yield from ((start + step) % len(DAYS) for step in range((end - start) % len(DAYS) + 1))

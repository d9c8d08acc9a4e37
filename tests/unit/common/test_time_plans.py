"""Cron expressions and windows, with their zones."""

import zoneinfo
from datetime import datetime

import pytest

from snooze.common.time_plans import Cron, Window, zone_of

UTC = zone_of("UTC")
PARIS = zone_of("Europe/Paris")


def ms(text: str, zone: object = UTC) -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=zone)  # type: ignore[arg-type]
    return int(moment.timestamp() * 1000)


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("*/5 * * * *", "2026-01-01T00:01", "2026-01-01T00:05"),
        ("0 0/1 * * * ?", "2026-01-01T00:01:30", "2026-01-01T00:02"),
        ("30 0 3 ? * 2", "2026-01-01T00:00", "2026-01-05T03:00:30"),
        ("30 0 3 ? * MON", "2026-01-01T00:00", "2026-01-05T03:00:30"),
        ("0 3 * * 1", "2026-01-01T00:00", "2026-01-05T03:00"),
        ("0 3 * * 0", "2026-01-01T00:00", "2026-01-04T03:00"),
        ("0 0 3 ? * 1-7/2", "2026-01-01T03:00", "2026-01-03T03:00"),
        ("0 22 * * *", "2026-01-01T22:00", "2026-01-02T22:00"),
    ],
)
def test_cron_as_cron_and_quartz_mean_it(expression: str, after: str, expected: str) -> None:
    assert Cron.of(expression, UTC).next_ms(ms(after)) == ms(expected)


def test_cron_in_its_zone_and_over_the_change_of_clocks() -> None:
    daily = Cron.of("30 2 * * *", PARIS)
    assert daily.next_ms(ms("2026-01-01T03:00", PARIS)) == ms("2026-01-02T02:30", PARIS)
    # 2026-03-29: 02:00 to 03:00 does not exist in Paris.
    assert daily.next_ms(ms("2026-03-28T03:00", PARIS)) == ms("2026-03-29T03:00", PARIS)


def test_cron_in_the_hour_that_comes_twice_never_answers_with_what_was() -> None:
    daily = Cron.of("30 2 * * *", PARIS)
    # 2026-10-25, 01:10 UTC: 02:10 in Paris for the second time.
    second = ms("2026-10-25T01:10")
    assert daily.next_ms(second) > second


@pytest.mark.parametrize(
    "text",
    [
        "",
        "* * * *",
        "* * * * * * *",
        "61 * * * *",
        "0 0 3 15W * ?",
        "0 0 3 ? * 0",
        "0 0 3 ? * 8",
        "0 0 30 2 *",
        "a b c d e",
        "*/0 * * * *",
        "* " * 300,
    ],
)
def test_what_is_no_cron_expression_says_so(text: str) -> None:
    with pytest.raises(ValueError, match=r"cron|known|never|weekday"):
        Cron.of(text, UTC)


def test_a_window_of_days() -> None:
    window = Window.of("mon-fri 08:00-18:00", UTC)
    assert window.has(ms("2026-01-05T08:00"))
    assert window.has(ms("2026-01-05T17:59"))
    assert not window.has(ms("2026-01-05T18:00"))
    assert not window.has(ms("2026-01-04T12:00"))


def test_a_window_over_midnight_belongs_to_the_day_it_starts() -> None:
    window = Window.of("fri 22:00-06:00", UTC)
    assert window.has(ms("2026-01-02T23:00"))
    assert window.has(ms("2026-01-03T05:59"))
    assert not window.has(ms("2026-01-02T05:00"))
    assert not window.has(ms("2026-01-03T23:00"))


def test_windows_of_whole_days_and_of_days_around_the_week_end() -> None:
    assert Window.of("* 00:00-24:00", UTC).has(ms("2026-01-01T23:59"))
    around = Window.of("sat-mon 00:00-24:00", UTC)
    assert [around.has(ms(f"2026-01-0{day}T12:00")) for day in range(2, 7)] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_a_window_counts_in_its_zone() -> None:
    assert Window.of("* 01:00-02:00", PARIS).has(ms("2026-01-01T00:30"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mon",
        "mon 8-18",
        "mon 08:00-08:00",
        "mon 24:00-25:00",
        "foo 08:00-09:00",
        "* 08:61-9:00",
    ],
)
def test_what_is_no_window_says_so(text: str) -> None:
    with pytest.raises(ValueError, match=r"window|time|days|empty"):
        Window.of(text, UTC)


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../../etc/passwd", "/etc/passwd", "Europe"])
def test_what_is_no_zone_says_so(name: str) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        zone_of(name)


def test_zones_are_known_on_a_machine_that_has_no_database_of_them() -> None:
    """A window whose zone one manager does not know would be no window there."""
    zoneinfo.reset_tzpath(to=())
    try:
        zoneinfo.ZoneInfo.clear_cache()
        assert Window.of("* 01:00-02:00", zone_of("Europe/Paris")).has(ms("2026-01-01T00:30"))
    finally:
        zoneinfo.reset_tzpath()

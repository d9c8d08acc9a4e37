"""Quantities as people write and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snooze.client.units import (
    cores_text,
    memory_text,
    pair_text,
    parse_memory_kib,
    parse_rate_kib_s,
    rate_text,
    span_text,
)
from snooze.common.errors import InvalidRequest
from snooze.common.resources import bytes_text


@pytest.mark.parametrize(
    ("text", "kib"),
    [
        ("512M", 512 * 1024),
        ("2G", 2 * 1024**2),
        ("2g", 2 * 1024**2),
        ("1.5GiB", 1536 * 1024),
        (" 1 TB ", 1024**3),
        ("131072K", 131072),
    ],
)
def test_memory(text: str, kib: int) -> None:
    assert parse_memory_kib(text) == kib


@pytest.mark.parametrize("text", ["", "512", "-1G", "G", "1X", "0M", "1e3M", "nan", "9" * 20 + "M"])
def test_no_memory(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--memory"):
        parse_memory_kib(text, where="--memory")


@pytest.mark.parametrize(
    ("text", "kib_s"), [("12800", 12800), ("12.5M", 12800), ("1G/s", 1024**2), ("0", 0)]
)
def test_rates(text: str, kib_s: float) -> None:
    assert parse_rate_kib_s(text) == kib_s


@pytest.mark.parametrize("text", ["", "fast", "-1", "1 M M"])
def test_no_rate(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--rx"):
        parse_rate_kib_s(text, where="--rx")


def test_words() -> None:
    assert memory_text(2 * 1024**2) == "2.0 GiB"
    assert memory_text(128 * 1024) == "128.0 MiB"
    assert bytes_text(0) == "0 B"
    assert bytes_text(2**80) == "1073741824.0 PiB"
    assert rate_text(12800) == "12.5 MiB/s"
    assert rate_text(0) == "-"
    assert pair_text(4 * 1024**2, 64 * 1024**2) == "4.0/64.0 GiB"
    assert pair_text(0, 0) == "-"
    assert cores_text(4.0) == "4"
    assert cores_text(0.25) == "0.25"
    assert span_text(0) == "0 s"
    assert span_text(250) == "250 ms"
    assert span_text(12_340) == "12.3 s"
    assert span_text(245_000) == "4 min 05 s"
    assert span_text(11_220_000) == "3 h 07 min"


@given(st.integers(min_value=1, max_value=1000), st.sampled_from("KMGT"))
def test_what_is_written_is_read_again(number: int, unit: str) -> None:
    kib = parse_memory_kib(f"{number}{unit}")
    assert kib == number * 1024 ** "KMGT".index(unit)
    value, name = memory_text(kib).split(" ")
    assert abs(parse_memory_kib(f"{value}{name}") - kib) <= 0.05 * 1024 ** "KMGTP".index(name[0])

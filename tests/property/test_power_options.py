"""Hostile descriptions of a host's power: read or refused, and no password is shown."""

import contextlib
import shlex
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from snooze.common.errors import InvalidRequest
from snooze.common.power_options import (
    POWER_DRIVERS,
    CommandOptions,
    IpmiOptions,
    parse_power,
    shown_options,
)
from snooze.common.redaction import redact_options
from snooze.common.wire import PowerDescription

DRIVERS = st.sampled_from([*POWER_DRIVERS, "", "ipmi"])
PIECES = st.one_of(
    st.sampled_from(["-H", "-P", "-f", "-U", "-i", "-v", "-Hb", "--on", "--system", "--insecure"]),
    st.sampled_from(["b", "/x", "https://b", "52:54:00:12:34:56", "\n"]),
    st.sampled_from(["'", '"', "\\", "-", "--", "="]),
)
HOSTILE = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=12).map(" ".join))
PRINTABLE = st.characters(categories=["L", "N", "P", "S", "Zs"])
# long and odd enough not to stand in a message by chance
PASSWORDS = st.text(PRINTABLE, min_size=6, max_size=20).map(lambda text: f"Qz{text}Zq")


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def bare(text: str) -> str:
    return "".join(c if c.isalnum() else f"\\{c}" for c in text)


STYLES: list[Callable[[str], str]] = [shlex.quote, quoted, bare]


@settings(deadline=None)
@given(DRIVERS, HOSTILE)
def test_any_text_is_read_or_refused(driver: str, options: str) -> None:
    with contextlib.suppress(InvalidRequest):
        parse_power(driver, options)


@settings(deadline=None)
@given(PASSWORDS, st.sampled_from(STYLES), st.sampled_from(["-P ", "-P", "-vvP"]))
def test_any_password_is_read_and_hidden(
    password: str, style: Callable[[str], str], flag: str
) -> None:
    if not password.isprintable():
        return
    options = f"-I lanplus -H b {flag}{style(password)} -U u"
    meant = parse_power("IPMI", options)
    assert isinstance(meant, IpmiOptions)
    assert meant.password.text == password
    assert meant.user == "u"
    assert "Zq" not in repr(meant)
    shown = (redact_options(options), repr(PowerDescription("IPMI", options)))
    for text in shown:
        assert "Zq" not in text
        assert "-H b" in text
        assert "-U u" in text


@settings(deadline=None)
@given(PASSWORDS, st.sampled_from(STYLES), st.sampled_from(STYLES[:2]))
def test_a_password_in_a_command_is_hidden(
    password: str, style: Callable[[str], str], around: Callable[[str], str]
) -> None:
    if not password.isprintable():
        return
    options = f"--on {around(f'/bin/wake -P {style(password)} h1')} --off /bin/halt"
    meant = parse_power("COMMAND", options)
    assert isinstance(meant, CommandOptions)
    assert meant.on == ("/bin/wake", "-P", password, "h1")
    for text in (repr(meant), redact_options(options), shown_options("COMMAND", options)):
        assert "Zq" not in text
        assert "/bin/wake" in text
    assert options not in repr(PowerDescription("COMMAND", options))
    assert "Zq" not in repr(PowerDescription("COMMAND", options))


@settings(deadline=None)
@given(DRIVERS, st.lists(st.one_of(PIECES, PASSWORDS), max_size=8).map(" ".join))
def test_a_refusal_repeats_no_password(driver: str, options: str) -> None:
    said = ""
    try:
        parse_power(driver, options)
    except InvalidRequest as error:
        said = str(error)
    assert "Zq" not in said

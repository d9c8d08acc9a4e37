"""Logs: every line with its speaker and its cause, no secret, no forged line."""

import asyncio
import io
import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest

from snooze.common.config import LogSettings
from snooze.common.logging_setup import (
    MAX_FIELD_CHARACTERS,
    cause_id,
    caused_by,
    configure_logging,
    speaking_as,
)

Lines = Callable[[], list[dict[str, object]]]

LOG = logging.getLogger("snooze.test")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A place for the lines; the logging of the process is as before afterwards."""
    root = logging.getLogger()
    names = ["kazoo", "aiohttp.access", "asyncio"]
    before = root.level, root.handlers[:], {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        yield io.StringIO()
        logging.captureWarnings(False)
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for name, level in before[2].items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def json_lines(stream: io.StringIO) -> Lines:
    configure_logging(LogSettings(format="json"), "gm-1", "groupmanager", stream=stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def text(stream: io.StringIO) -> Callable[[], str]:
    configure_logging(LogSettings(level="debug"), "lc-1", "localcontroller", stream=stream)
    return stream.getvalue


def test_a_json_line_carries_all(json_lines: Lines) -> None:
    with caused_by("task-7"):
        LOG.info("placed %s", "vm1", extra={"host": "h1", "free_kib": 12, "left": None})
    (line,) = json_lines()
    assert str(line.pop("time")).endswith("Z")
    assert line == {
        "level": "info",
        "logger": "snooze.test",
        "node": "gm-1",
        "role": "groupmanager",
        "cause": "task-7",
        "message": "placed vm1",
        "host": "h1",
        "free_kib": 12,
        "left": None,
    }


def test_a_text_line_carries_all(text: Callable[[], str]) -> None:
    with caused_by("task-7"):
        LOG.warning("no room", extra={"host": "h 1", "free_kib": 12})
    line = text()
    assert line.count("\n") == 1
    assert "WARNING localcontroller lc-1 snooze.test: no room" in line
    assert line.endswith('cause=task-7 host="h 1" free_kib=12\n')


def test_no_line_comes_twice_and_the_last_configuration_counts(stream: io.StringIO) -> None:
    other = io.StringIO()
    configure_logging(LogSettings(), "a", "bootstrap", stream=other)
    configure_logging(LogSettings(level="error"), "b", "bootstrap", stream=stream)
    LOG.error("once")
    LOG.warning("not at all")
    assert other.getvalue() == ""
    assert stream.getvalue().count("once") == 1
    assert "not at all" not in stream.getvalue()


def test_libraries_are_quiet_unless_debugging(stream: io.StringIO) -> None:
    configure_logging(LogSettings(), "a", "bootstrap", stream=stream)
    logging.getLogger("kazoo.client").info("Connecting")
    logging.getLogger("aiohttp.access").info("GET /")
    logging.getLogger("kazoo.client").warning("dropped")
    assert stream.getvalue().count("\n") == 1
    configure_logging(LogSettings(level="debug"), "a", "bootstrap", stream=stream)
    logging.getLogger("kazoo.client").debug("Sending")
    assert "Sending" in stream.getvalue()


def test_quiet_libraries_do_not_talk_below_the_configured_level(stream: io.StringIO) -> None:
    configure_logging(LogSettings(level="error"), "a", "bootstrap", stream=stream)
    logging.getLogger("kazoo.client").warning("dropped")
    assert stream.getvalue() == ""


async def test_the_cause_and_the_speaker_travel_with_the_task(json_lines: Lines) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        LOG.info("working")

    with speaking_as("lc-9", "localcontroller"), caused_by("c1"):
        task = asyncio.create_task(work())
    LOG.info("outside")
    await task
    outside, working = json_lines()
    assert "cause" not in outside
    assert outside["node"] == "gm-1"
    assert (working["cause"], working["node"]) == ("c1", "lc-9")
    assert working["role"] == "localcontroller"


def test_causes_nest(json_lines: Lines) -> None:
    assert cause_id() == ""
    with caused_by("a"), caused_by("b"):
        assert cause_id() == "b"
    with pytest.raises(ZeroDivisionError), caused_by("a"):
        raise ZeroDivisionError
    assert cause_id() == ""


def test_secrets_are_not_printed(json_lines: Lines) -> None:
    LOG.info(
        "waking",
        extra={
            "options": "-H bmc -U user -P geheim",
            "bmc_password": "geheim",
            "Authorization": "Bearer geheim",
        },
    )
    (line,) = json_lines()
    assert "geheim" not in str(line)
    assert line["options"] == "-H bmc -U user -P ***"


def test_what_a_guest_or_client_names_forges_no_line(text: Callable[[], str]) -> None:
    LOG.info("name is %s", "x\n2026-01-01 ERROR all is lost\x1b[2J", extra={"k": "a\r\nb"})
    assert text().count("\n") == 1
    assert "\\n2026-01-01" in text()
    assert "\x1b" not in text()
    assert 'k="a\\r\\nb"' in text()


def test_an_extra_field_replaces_none_of_ours(json_lines: Lines) -> None:
    LOG.info("x", extra={"node": "forged", "level": "debug"})
    (line,) = json_lines()
    assert (line["node"], line["level"]) == ("gm-1", "info")


def test_a_long_value_is_cut(json_lines: Lines) -> None:
    LOG.info("%s", "m" * 100_000, extra={"body": "b" * 100_000})
    (line,) = json_lines()
    assert len(str(line["message"])) < MAX_FIELD_CHARACTERS + 50
    assert str(line["body"]).endswith("(100000 characters)")


def test_whatever_is_logged_comes_out(json_lines: Lines) -> None:
    LOG.info("\udcff é", extra={"any": {1: object}, "no_number": float("nan"), "path": "\udcff"})
    (line,) = json_lines()
    assert line["message"] == "\\udcff é"
    assert line["no_number"] is None
    assert "object" in str(line["any"])


def test_an_exception_is_told_with_its_traceback(json_lines: Lines) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        LOG.exception("failed")
    (line,) = json_lines()
    assert "ValueError: broken" in str(line["exception"])


def test_a_traceback_stands_below_its_line(text: Callable[[], str]) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        LOG.exception("failed", stack_info=True)
    head, *rest = text().splitlines()
    assert head.endswith("failed")
    assert rest[0].startswith("Traceback")
    assert any(line.startswith("Stack") for line in rest)


def test_threads_speak_for_the_process(json_lines: Lines) -> None:
    with speaking_as("lc-9", "localcontroller"):
        thread = threading.Thread(target=LOG.info, args=("from a thread",))
        thread.start()
        thread.join()
    assert json_lines()[0]["node"] == "gm-1"


def test_handlers_of_others_stay(stream: io.StringIO, caplog: pytest.LogCaptureFixture) -> None:
    configure_logging(LogSettings(), "a", "bootstrap", stream=stream)
    LOG.info("seen by both")
    assert "seen by both" in caplog.text

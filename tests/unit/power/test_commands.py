"""Commands of the operator: time limits, what they leave behind, what their errors show."""

import asyncio
import os
import resource
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from snooze.common.commands import MAX_OUTPUT_BYTES, begin_command, run_command
from snooze.common.errors import ExecutionError, PreconditionError, RemoteError, RemoteTimeout
from snooze.common.power_options import CommandOptions, parse_power
from snooze.groupmanager.power.command import CommandController
from snooze.groupmanager.power.port import PowerLimits, PowerState

LIMITS = PowerLimits(10.0, 10.0, 0.05)


def sh(text: str) -> tuple[str, ...]:
    return "sh", "-c", text


async def test_its_output_is_returned_and_its_errors_are_told() -> None:
    assert await run_command(sh("echo 'a  b'"), 10) == "a  b\n"
    with pytest.raises(ExecutionError, match="sh ended with 7: the plug is stuck"):
        await run_command(sh("echo the plug is stuck >&2; exit 7"), 10)
    with pytest.raises(ExecutionError, match="sh ended with -9"):
        await run_command(sh("kill -9 $$"), 10)
    for words in (("/no/such/command",), ("a\0b",)):
        with pytest.raises(ExecutionError, match="cannot be started"):
            await run_command(words, 10)


async def test_on_a_full_disk_it_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(ExecutionError, match="echo cannot be started: no file"):
        await run_command(("echo", "on"), 10)


@contextmanager
def no_more_files() -> Generator[None]:
    """This process can open nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_machine_without_room_for_one_is_an_error_of_ours() -> None:
    """Who fences a host waits for an answer, whatever it is."""
    with no_more_files():
        with pytest.raises(ExecutionError, match="cannot be started"):
            await run_command(("true",), 10)
        with pytest.raises(ExecutionError, match="cannot be started"):
            await begin_command(("true",), 10)
    assert await run_command(("echo", "on"), 10) == "on\n"


async def test_no_shell_reads_it() -> None:
    assert await run_command(("echo", "$HOME", ";", "reboot"), 10) == "$HOME ; reboot\n"


async def test_one_that_does_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(RemoteTimeout):
        await run_command(sh(f"sleep 60 & echo $! >{tmp_path}/pid; wait"), 0.5)
    pid = int((tmp_path / "pid").read_text())
    async with asyncio.timeout(10):
        while _is_alive(pid):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_what_it_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    async with asyncio.timeout(5):
        assert await run_command(sh(f"sleep 20 & echo $! >{tmp_path}/pid; echo on"), 5) == "on\n"
    os.kill(int((tmp_path / "pid").read_text()), 9)


async def test_of_much_output_the_end_is_kept() -> None:
    said = await run_command(sh("yes | head -c 300000; echo end"), 20)
    assert len(said) <= MAX_OUTPUT_BYTES
    assert said.endswith("end\n")
    with pytest.raises(ExecutionError) as caught:
        await run_command(sh("yes | head -c 300000 >&2; exit 1"), 20)
    assert len(str(caught.value)) < 600


async def test_its_errors_show_no_password() -> None:
    script = 'echo "login $4 with $2 and -P other and password=third" >&2; exit 1'
    words = ("sh", "-c", script, "sh", "-P", "geheim", "-U", "user")
    with pytest.raises(ExecutionError) as caught:
        await run_command(words, 10)
    for secret in ("geheim", "other", "third"):
        assert secret not in str(caught.value)
    assert "with ***" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("on", PowerState.ON),
        ("Chassis Power is on", PowerState.ON),
        ("warning: off by one\nrunning", PowerState.ON),
        ("OFF\n\n", PowerState.OFF),
        ("shut off", PowerState.OFF),
    ],
)
async def test_states_are_read_from_the_last_line(said: str, state: PowerState) -> None:
    power = CommandController(CommandOptions(status=("printf", "%s", said)), LIMITS)
    assert await power.state() is state


@pytest.mark.parametrize("said", ["", "unknown", "on or off", "offline", "none", "1"])
async def test_what_is_no_state_is_never_off(said: str) -> None:
    options = CommandOptions(off=("true",), status=("printf", "%s", said))
    power = CommandController(options, LIMITS)
    with pytest.raises(RemoteError):
        await power.state()
    with pytest.raises(RemoteError):
        await power.off()


async def test_a_status_that_fails_is_never_off() -> None:
    power = CommandController(CommandOptions(status=sh("echo off; exit 1")), LIMITS)
    with pytest.raises(ExecutionError):
        await power.state()


async def test_without_a_status_off_proves_nothing() -> None:
    power = CommandController(CommandOptions(on=("true",), off=("true",)), LIMITS)
    assert not power.can_read_state
    assert await power.off() is PowerState.UNKNOWN
    assert await power.state() is PowerState.UNKNOWN
    await power.on()


async def test_what_there_is_no_command_for() -> None:
    meant = parse_power("kapower3", "-m node-7")
    assert isinstance(meant, CommandOptions)
    power = CommandController(meant, LIMITS)
    assert not power.can_power_off
    with pytest.raises(PreconditionError):
        await power.off()
    with pytest.raises(PreconditionError):
        await CommandController(CommandOptions(off=("true",)), LIMITS).on()
    with pytest.raises(ExecutionError, match="kapower3 cannot be started"):
        await power.on()


async def test_a_machine_that_stays_on_is_told_again_and_is_not_off(tmp_path: Path) -> None:
    options = CommandOptions(off=sh(f"echo x >>{tmp_path}/orders"), status=sh("echo on"))
    power = CommandController(options, PowerLimits(5.0, 1.0, 0.05))
    with pytest.raises(RemoteTimeout, match="not off after 1 s"):
        await power.off()
    assert (tmp_path / "orders").exists()

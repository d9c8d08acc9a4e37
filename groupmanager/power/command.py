"""Power by commands of the operator, run on this machine without a shell.

======  ===========================  ============================================================
order   done when                    the command
======  ===========================  ============================================================
on      it ends with 0               need not wait for the machine
off     it ends with 0, and, where   is run again while the state is not *off*; for a graceful
        there is a status, it says   shutdown as well: there is one command
        *off*
status  it ends with 0               prints ``on`` or ``off`` as a word of its last line
                                     ("Chassis Power is off"); ``running`` is on
======  ===========================  ============================================================

A command counts as ended when it ends itself, whatever it leaves running. One that does not end in
time is killed with everything in its process group.
"""

import asyncio
import os
import re
import shlex
import signal
import tempfile
from typing import IO, Final

from snooze.common.errors import ExecutionError, PreconditionError, RemoteError, RemoteTimeout
from snooze.common.power_options import CommandOptions
from snooze.common.redaction import redact_options
from snooze.groupmanager.power.port import PowerLimits, PowerState

_MAX_OUTPUT_BYTES: Final = 64 * 1024
_MAX_SHOWN_CHARS: Final = 500
_AGAIN_S: Final = 10.0
_WORDS: Final = re.compile(r"\b(on|running|off)\b", re.IGNORECASE)


class CommandController:
    """A ``PowerController`` by commands."""

    def __init__(self, options: CommandOptions, limits: PowerLimits) -> None:
        self._options = options
        self._limits = limits

    def __repr__(self) -> str:
        return f"CommandController({self._options!r})"

    @property
    def can_read_state(self) -> bool:
        """See the port."""
        return bool(self._options.status)

    @property
    def can_power_off(self) -> bool:
        """See the port."""
        return bool(self._options.off)

    async def state(self) -> PowerState:
        """See the port."""
        if not self._options.status:
            return PowerState.UNKNOWN
        said = await run(self._options.status, self._limits.call_timeout_s)
        return _state_in(said, self._options.status[0])

    async def on(self) -> None:
        """See the port."""
        if not self._options.on:
            raise PreconditionError("there is no command that switches this host on")
        await run(self._options.on, self._limits.call_timeout_s)

    async def off(self, *, hard: bool = True) -> PowerState:
        """See the port."""
        if not self._options.off:
            raise PreconditionError("there is no command that switches this host off")
        limit_s = self._limits.off_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._switch_off(wait=hard)
        except TimeoutError:
            raise RemoteTimeout(
                f"{self._options.off[0]} was run and the host is not off after {limit_s:g} s"
            ) from None

    async def _switch_off(self, *, wait: bool) -> PowerState:
        looks, again = 0, max(1, round(_AGAIN_S / self._limits.poll_s))
        while (state := await self.state()) is not PowerState.OFF:
            if looks % again == 0:
                await run(self._options.off, self._limits.call_timeout_s)
                if not wait:
                    return await self.state()
                if state is PowerState.UNKNOWN:
                    return state
            else:
                await asyncio.sleep(self._limits.poll_s)
            looks += 1
        return state

    async def power_w(self) -> float | None:
        """See the port; never known."""
        return None

    async def close(self) -> None:
        """See the port; nothing is held."""


def _state_in(said: str, command: str) -> PowerState:
    lines = said.strip().splitlines()
    words = {word.lower() for word in _WORDS.findall(lines[-1])} if lines else set[str]()
    if words == {"off"}:
        return PowerState.OFF
    if words and "off" not in words:
        return PowerState.ON
    raise RemoteError(f"{command} says neither on nor off: {said.strip()[-_MAX_SHOWN_CHARS:]!r}")


async def run(words: tuple[str, ...], limit_s: float) -> str:
    """Run a command, and return what it printed on its standard output.

    Raises:
        ExecutionError: it cannot be started, or ends with another code than 0; with its output.
        RemoteTimeout: it did not end in time, and was killed; it may have done its work.
    """
    # files, not pipes: what the command leaves running may keep them open for ever
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaint:
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=complaint,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such command"
            raise ExecutionError(f"{words[0]} cannot be started: {reason}") from None
        try:
            async with asyncio.timeout(limit_s):
                await process.wait()
        except TimeoutError:
            raise RemoteTimeout(
                f"{words[0]} did not end within {limit_s:g} s and was killed; it may have happened"
            ) from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode:
            said = (_end_of(complaint) or _end_of(output)).strip()[-_MAX_SHOWN_CHARS:]
            shown = _without(redact_options(said), words)
            raise ExecutionError(f"{words[0]} ended with {process.returncode}: {shown}")
        return _end_of(output)


def _end_of(file: IO[bytes]) -> str:
    """The last of what was written."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MAX_OUTPUT_BYTES))
    return file.read(_MAX_OUTPUT_BYTES).decode(errors="replace")


def _without(text: str, words: tuple[str, ...]) -> str:
    """``text``, without what was hidden of the command's own words."""
    shown = set(shlex.split(redact_options(shlex.join(words))))
    for word in words:
        if word not in shown:
            text = text.replace(word, "***")
    return text

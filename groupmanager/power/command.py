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

How they are run: ``common/commands.py``.
"""

import asyncio
import re
from typing import Final

from snooze.common.commands import MAX_SHOWN_CHARS, run_command
from snooze.common.errors import PreconditionError, RemoteError, RemoteTimeout
from snooze.common.power_options import CommandOptions
from snooze.groupmanager.power.port import PowerLimits, PowerState

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
        said = await run_command(self._options.status, self._limits.call_timeout_s)
        return _state_in(said, self._options.status[0])

    async def on(self) -> None:
        """See the port."""
        if not self._options.on:
            raise PreconditionError("there is no command that switches this host on")
        await run_command(self._options.on, self._limits.call_timeout_s)

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
                await run_command(self._options.off, self._limits.call_timeout_s)
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
    raise RemoteError(f"{command} says neither on nor off: {said.strip()[-MAX_SHOWN_CHARS:]!r}")

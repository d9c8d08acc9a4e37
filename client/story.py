"""A story that is told and verified step by step: what the demonstrations are made of."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
from rich.console import Console

from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.errors import SnoozeError


class Broken(Exception):
    """A step was not as it should be."""


class Story:
    """Steps, numbered, each with the time that it took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps = 0

    @asynccontextmanager
    async def step(self, title: str) -> AsyncGenerator[list[str]]:
        """One step: its title, how long it took, and what was found.

        Raises:
            Broken: it was not as it should be.
        """
        self.steps += 1
        found: list[str] = []
        started_s = SYSTEM_CLOCK.monotonic_s()
        try:
            yield found
        except (Broken, SnoozeError, TimeoutError, aiohttp.ClientError) as error:
            self.console.print(f"[red]✗[/] {self.steps}. {title}: {error}", highlight=False)
            raise Broken(f"step {self.steps} ({title}): {error}") from error
        took_ms = (SYSTEM_CLOCK.monotonic_s() - started_s) * 1000
        took = f"{took_ms:.0f} ms" if took_ms < 1000 else f"{took_ms / 1000:.1f} s"
        self.console.print(f"[green]✓[/] {self.steps}. {title} [dim]({took})[/]", highlight=False)
        for line in found:
            self.console.print(f"     {line}", highlight=False, markup=False)

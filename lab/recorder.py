"""Waiting for what callbacks report, instead of sleeping and hoping."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")

PATIENCE_S = 30.0
"""How long a wait may take before something must be broken, on a busy machine."""


class Recorder(Generic[_T]):
    """A callback that keeps all values it was given, in order."""

    def __init__(self) -> None:
        self.values: list[_T] = []
        self._news = asyncio.Event()

    def __call__(self, value: _T) -> None:
        """Take a value."""
        self.values.append(value)
        self._news.set()

    async def until(self, wanted: Callable[[_T], bool]) -> _T:
        """Wait until the latest value is a wanted one. Raises: TimeoutError with the values."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (self.values and wanted(self.values[-1])):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise TimeoutError(f"never reported; the last were {self.values[-10:]}") from None
        return self.values[-1]

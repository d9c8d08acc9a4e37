"""The machines of a cluster in one process: each runs its local controller while it has power.

They sleep and wake as real ones do: the local controller switches its machine off, and whoever has
a power controller of it (driver ``test``, a BMC) switches it on.
"""

import asyncio
import logging
from collections.abc import Callable

from snooze.common.errors import SnoozeError
from snooze.common.logging_setup import speaking_as
from snooze.common.task_set import TaskSet
from snooze.groupmanager.power.simulated import SimulatedMachine
from snooze.localcontroller.power import PowerAction
from snooze.localcontroller.service import LocalController

logger = logging.getLogger(__name__)

Fall = Callable[[PowerAction], None]


class Machine:
    """One machine.

    Attributes:
        daemon: its local controller; None while it is off, or boots.
        boot_s: from power on until its local controller starts.
        boots: while this is not set, it has power and does not boot.
        sticks: it does not go down when its local controller says so.
    """

    def __init__(
        self,
        board: SimulatedMachine,
        make: Callable[[Fall], LocalController],
        cut: Callable[[], None],
        boot_s: float,
    ) -> None:
        """``board`` is its power, ``make`` makes its daemon; ``cut``: its power was taken away."""
        self.board = board
        self.daemon: LocalController | None = None
        self.boot_s = boot_s
        self.boots = asyncio.Event()
        self.boots.set()
        self.sticks = False
        self._make = make
        self._cut = cut
        self._changing = asyncio.Lock()
        self._stopping: asyncio.Future[None] | None = None
        self._tasks = TaskSet()

    async def start(self) -> None:
        """Let it run, as if it had been on for long. Raises: OSError: its port is taken."""
        await self._boot()
        self.board.listeners.append(self._switched)

    async def close(self) -> None:
        """Stop its daemon; it stays as it is."""
        if self._switched in self.board.listeners:
            self.board.listeners.remove(self._switched)
        await self._tasks.close()
        await self._stop()

    async def _boot(self) -> None:
        daemon = self._make(self._fell)
        try:
            with speaking_as(daemon.node_id, "localcontroller"):
                await daemon.start()
        except BaseException:  # what it had opened by then is closed
            await daemon.close()
            raise
        self.daemon = daemon

    async def _stop(self) -> None:
        """Close the daemon to its end, even if who waits for that is cancelled."""
        daemon, self.daemon = self.daemon, None
        if daemon is not None:
            self._stopping = asyncio.ensure_future(daemon.close())
        if self._stopping is not None:
            await asyncio.shield(self._stopping)

    def _fell(self, action: PowerAction) -> None:
        """Its own daemon switches it off."""
        if not self.sticks:
            self._tasks.spawn(self._go_down())

    async def _go_down(self) -> None:
        async with self._changing:
            await self._stop()
            self.board.switch(False)

    def _switched(self, is_on: bool) -> None:
        """Its power came, or went."""
        self._tasks.spawn(self._follow(is_on))

    async def _follow(self, is_on: bool) -> None:
        if is_on:
            await asyncio.sleep(self.boot_s)
            await self.boots.wait()
        async with self._changing:
            if is_on and self.board.is_on and self.daemon is None:
                try:
                    await self._boot()
                except (OSError, SnoozeError) as error:
                    logger.warning("a machine does not boot", extra={"why": str(error)})
            elif not self.board.is_on and self.daemon is not None:
                self._cut()
                await self._stop()

"""What the main functions of the three daemons share: loop, signals, exit code."""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Protocol

import uvloop

from snooze.common import service_manager
from snooze.common.errors import SnoozeError
from snooze.common.logging_setup import configure_logging
from snooze.common.settings import LogSettings

logger = logging.getLogger(__name__)


class DaemonService(Protocol):
    """A daemon: started once, closed once."""

    async def start(self) -> None:
        """Begin to serve."""
        ...

    async def close(self) -> None:
        """Stop, cleanly and in bounded time."""
        ...


def run(make: Callable[[], DaemonService], log: LogSettings, node_id: str, role: str) -> int:
    """Run a daemon until SIGTERM or SIGINT; its exit code.

    A mistake of the operator is told in one paragraph, without a traceback.
    """
    configure_logging(log, node_id, role)
    try:
        return uvloop.run(_serve(make, role))
    except KeyboardInterrupt:
        return 130


async def _serve(make: Callable[[], DaemonService], role: str) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    service: DaemonService | None = None
    try:
        service = make()
        await service.start()
    except (SnoozeError, OSError) as error:
        sys.stderr.write(f"snooze {role}: {error}\n")
        if service is not None:  # what it had opened by then is closed
            await _close(service.close)
        return error.exit_code if isinstance(error, SnoozeError) else 1
    gc.freeze()  # what was imported and made by now stays: no collection looks at it again
    service_manager.notify("READY=1")
    logger.info("started")
    try:
        await stopping.wait()
    finally:
        service_manager.notify("STOPPING=1")
        logger.info("stopping")
        await _close(service.close)
    logger.info("stopped")
    return 0


async def _close(close: Callable[[], Awaitable[None]]) -> None:
    try:
        await close()
    except SnoozeError as error:
        logger.warning("not stopped cleanly: %s", error.message)

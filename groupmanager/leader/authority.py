"""How long the leader may speak for the cluster: the root of every lease.

The store applies a transaction that does nothing but check the leader's epoch: a write, so a quorum
agreed that no later leader had been elected when it was applied. The leader's authority ends
``lease_s`` after it *sent* the last such transaction, by a clock that counts through suspend. What
it grants to managers is what is left of that.
"""

import asyncio
import logging
import math
from collections.abc import Callable

from snooze.common.clock import Clock
from snooze.common.coordination.port import Check, CommitConflict, Coordinator
from snooze.common.errors import SnoozeError

logger = logging.getLogger(__name__)

RETRY_S = 0.2


class Authority:
    """The leader's own lease, renewed three times in its length."""

    def __init__(
        self,
        coordinator: Coordinator,
        fence: Check,
        lease_s: float,
        clock: Clock,
        deposed: Callable[[], None],
    ) -> None:
        """``fence`` holds while this leader's epoch is the latest; else ``deposed`` is told."""
        self._coordinator = coordinator
        self._fence = fence
        self._lease_s = lease_s
        self._clock = clock
        self._deposed = deposed
        self._until_s = -math.inf

    def left_s(self) -> float:
        """What may be granted now; not positive: nothing."""
        return min(self._lease_s, self._until_s - self._clock.boottime_s())

    async def keep(self) -> None:
        """Renew it until cancelled, or another leads."""
        while True:
            sent_s = self._clock.boottime_s()
            try:
                await self._coordinator.commit([self._fence])
            except CommitConflict:
                self._deposed()
                return
            except SnoozeError as error:
                logger.debug("authority is not renewed", extra={"error": error.message})
                await asyncio.sleep(RETRY_S)
                continue
            self._until_s = max(self._until_s, sent_s + self._lease_s)
            await asyncio.sleep(self._lease_s / 3)

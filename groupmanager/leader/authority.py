"""How long the leader may speak for the cluster: the root of every lease.

The store applies a transaction that does nothing but check the leader's epoch: a write, so a quorum
agreed that no later leader had been elected when it was applied. The leader's authority ends
``lease_s`` after it *sent* the last such transaction, by a clock that counts through suspend. What
it grants to managers is what is left of that.

``recovery.lease_s`` may differ between group managers, and from one start to the next. So the term
is in the record before anything is granted of it, and a new leader waits for the longer of its own
and the recorded one (``term_s``). It lowers the record to its own when the longer one has passed
since it was elected: what any leader before it granted is over by then.
"""

import asyncio
import logging
import math
from collections.abc import Callable

from snooze.common import records
from snooze.common.clock import Clock
from snooze.common.coordination.port import (
    Check,
    CommitConflict,
    ConflictReason,
    Coordinator,
    Create,
    Operation,
    Put,
)
from snooze.common.errors import SnoozeError
from snooze.common.settings_recovery import RecoverySettings

logger = logging.getLogger(__name__)

RETRY_S = 0.2


class Authority:
    """The leader's own lease, renewed three times in its length."""

    def __init__(
        self,
        coordinator: Coordinator,
        fence: Check,
        settings: RecoverySettings,
        clock: Clock,
        deposed: Callable[[], None],
    ) -> None:
        """``fence`` holds while this leader's epoch is the latest; else ``deposed`` is told."""
        self._coordinator = coordinator
        self._fence = fence
        self._lease_s = settings.lease_s
        self._margin_s = settings.margin_s
        self._clock = clock
        self._deposed = deposed
        self._until_s = -math.inf
        self._lower_s = math.inf
        self._is_recorded = False
        self._recorded_s: float | None = None
        self.term_s = settings.lease_s
        """No lease below this leader, or one before it, lasts longer from when it was asked."""

    async def load(self) -> None:
        """Read how long leases of former leaders may last: after the election, before serving.

        Raises:
            RemoteError: the store does not answer.
            ExecutionError: the record cannot be read.
        """
        entry = await self._coordinator.read(records.LEASE)
        if entry is None:
            return
        recorded_s = records.decode(entry.data, records.LeaseRecord).lease_s
        self._recorded_s = recorded_s
        self._is_recorded = recorded_s >= self._lease_s
        if recorded_s > self._lease_s:
            self.term_s = recorded_s
            self._lower_s = self._clock.boottime_s() + recorded_s + self._margin_s
            logger.info("leases of %g s may be held: they are waited for", recorded_s)

    def left_s(self) -> float:
        """What may be granted now; not positive: nothing."""
        return min(self._lease_s, self._until_s - self._clock.boottime_s())

    async def keep(self) -> None:
        """Renew it until cancelled, or another leads."""
        while True:
            sent_s = self._clock.boottime_s()
            is_over = sent_s >= self._lower_s
            term = [] if self._is_recorded and not is_over else [self._term()]
            try:
                await self._coordinator.commit([self._fence, *term])
            except CommitConflict as conflict:
                if conflict.index == 0:
                    self._deposed()
                    return
                # It was created, and the answer was lost; or somebody removed it.
                missing = conflict.reason is ConflictReason.MISSING
                self._recorded_s = None if missing else self._lease_s
                await asyncio.sleep(RETRY_S)
                continue
            except SnoozeError as error:
                logger.debug("authority is not renewed", extra={"error": error.message})
                await asyncio.sleep(RETRY_S)
                continue
            if term:
                self._is_recorded, self._recorded_s = True, self._lease_s
            if is_over:
                self.term_s, self._lower_s = self._lease_s, math.inf
            self._until_s = max(self._until_s, sent_s + self._lease_s)
            await asyncio.sleep(self._lease_s / 3)

    def _term(self) -> Operation:
        """Record this leader's own term."""
        data = records.encode(records.LeaseRecord(self._lease_s))
        create = self._recorded_s is None
        return Create(records.LEASE, data) if create else Put(records.LEASE, data)

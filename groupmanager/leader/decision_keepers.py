"""Copies of the leader's own decisions with a few group managers, so that they outlive it.

Rules:

1. What a manager decided it tells every leader by itself (``manager/decision_book.py``). What the
   leader decided is copied to ``KEEPERS`` managers that live in other processes.
2. A keeper that is lost is replaced; the new one is told all that the leader has of its own.
3. What a keeper did not take is told again while its link stands, only as it is by then.
4. A manager tells a new leader what it kept (``TellDecisions``): the log takes it in as what a
   former leader wrote down, and copies it on.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from snooze.common.decisions import Decision
from snooze.common.errors import SnoozeError
from snooze.common.task_set import TaskSet
from snooze.common.wire import Accepted, KeepDecisions
from snooze.groupmanager.decision_copies import CopyRing, batches
from snooze.groupmanager.leader.decision_log import DecisionLog
from snooze.groupmanager.leader.manager_links import ManagerLinks

logger = logging.getLogger(__name__)

KEEPERS: Final = 3
KEEP_TIMEOUT_S: Final = 10.0
RETRY_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
"""Pauses, which double, before a keeper is told again."""


@dataclass(slots=True)
class _Keeper:
    """One manager that keeps copies, and the ids of what it has not taken yet."""

    task: "asyncio.Task[None] | None" = None
    waiting: dict[str, None] = field(default_factory=dict[str, None])
    more: asyncio.Event = field(default_factory=asyncio.Event)


class DecisionKeepers:
    """Who keeps copies of what one leader decided."""

    def __init__(self, links: ManagerLinks, log: DecisionLog, epoch: int) -> None:
        self._links = links
        self._log = log
        self._epoch = epoch
        self._own = CopyRing()
        self._joined: dict[str, None] = {}
        self._keepers: dict[str, _Keeper] = {}
        self._tasks = TaskSet()
        log.copy_to(self.changed)

    async def close(self) -> None:
        """Tell nobody any more."""
        await self._tasks.close()

    def changed(self, decision: Decision) -> None:
        """A decision of the leader's is new, or is so now."""
        self._own.put(decision)
        for keeper in self._keepers.values():
            keeper.waiting[decision.decision_id] = None
            keeper.more.set()

    def recall(self, decisions: Sequence[Decision]) -> None:
        """Rule 4: what a manager kept of a former leader's."""
        for decision in decisions:
            self._log.recall(decision)

    def joined(self, manager_id: str) -> None:
        """A manager joined; the one in this process would die with its leader."""
        if manager_id != self._log.decider:
            self._joined[manager_id] = None
            self._choose()

    def left(self, manager_id: str) -> None:
        """A manager left, and its copies with it."""
        self._joined.pop(manager_id, None)
        keeper = self._keepers.pop(manager_id, None)
        if keeper is not None:
            if keeper.task is not None:
                keeper.task.cancel()
            self._choose()

    def _choose(self) -> None:
        for manager_id in self._joined:
            if len(self._keepers) >= KEEPERS:
                break
            if manager_id not in self._keepers:
                keeper = self._keepers[manager_id] = _Keeper()
                keeper.waiting = dict.fromkeys(each.decision_id for each in self._own)
                keeper.more.set()
                keeper.task = self._tasks.spawn(self._serve(manager_id, keeper))

    async def _serve(self, manager_id: str, keeper: _Keeper) -> None:
        """Rule 3, until the manager leaves."""
        pause_s = RETRY_S
        while True:
            await keeper.more.wait()
            keeper.more.clear()
            found = [self._own.get(decision_id) for decision_id in keeper.waiting]
            keeper.waiting = {}
            for batch in batches([each for each in found if each is not None]):
                if await self._tell(manager_id, batch):
                    pause_s = RETRY_S
                    continue
                keeper.waiting |= dict.fromkeys(each.decision_id for each in batch)
                keeper.more.set()
                await asyncio.sleep(pause_s)
                pause_s = min(RETRY_MAX_S, 2 * pause_s)

    async def _tell(self, manager_id: str, batch: list[Decision]) -> bool:
        link = self._links.get(manager_id)
        if link is None:
            return False
        try:
            await link.request(KeepDecisions(self._epoch, batch), Accepted, KEEP_TIMEOUT_S)
        except SnoozeError as error:
            logger.info(
                "a group manager did not take copies of decisions",
                extra={"manager": manager_id, "error": error.message},
            )
            return False
        return True

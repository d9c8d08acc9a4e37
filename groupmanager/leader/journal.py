"""The leader's writes to the store of record: batched, in order, fenced by its epoch.

Changes queue up while a transaction is under way and go together in the next one (group commit), so
one round trip serves many submissions. Every transaction checks the epoch: a deposed leader cannot
write, and learns that it is deposed.

What if the store's answer is lost? The transaction was applied wholly or not at all, so it is made
idempotent (what exists already is not created again, what is gone not deleted again) and repeated
until it is known to be applied, or the session is lost and this leader with it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from snooze.common.coordination.port import (
    Check,
    CommitConflict,
    ConflictReason,
    Coordinator,
    Create,
    Delete,
    Operation,
    OutcomeUnknown,
    Put,
    SessionState,
    Unavailable,
    wait_connected,
)
from snooze.common.errors import ErrorReport, NotLeader, SnoozeError, TooBusy

logger = logging.getLogger(__name__)

MAX_BATCH_BYTES = 400_000
MAX_BATCH_OPERATIONS = 1000
MAX_QUEUED_BYTES = 64 * 1024 * 1024
RECONNECT_WAIT_S = 60.0
MAX_CONFLICTS = 5
"""How often one batch is mended after it met what exists, or did not meet what it counted on."""

_MENDABLE = frozenset({ConflictReason.EXISTS, ConflictReason.MISSING})

Done = Callable[[ErrorReport | None], None]


@dataclass(slots=True)
class Change:
    """Operations that belong together, in one transaction if they fit, else the last one last.

    ``done`` is called once: with None when all are applied, else with why they are not.
    """

    operations: deque[Operation]
    done: Done | None
    size_bytes: int


class Journal:
    """Writes for one leader, from its election to its end."""

    def __init__(self, coordinator: Coordinator, fence: Check, deposed: Callable[[], None]) -> None:
        """``fence`` holds while this leader's epoch is the latest; else ``deposed`` is told."""
        self._coordinator = coordinator
        self._fence = fence
        self._deposed = deposed
        self._queue: deque[Change] = deque()
        self._queued_bytes = 0
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.transactions = 0
        self.bytes_written = 0

    @property
    def waiting(self) -> int:
        """Changes that are queued."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run())

    async def close(self, flush_s: float = 0.0) -> None:
        """Stop writing; with ``flush_s``, first give what is queued that much time."""
        if self._task is None:
            return
        if flush_s:
            try:
                async with asyncio.timeout(flush_s):
                    await self._idle.wait()
            except TimeoutError:
                logger.warning("records were not all written before the leader stopped")
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        self._closed = True
        while self._queue:
            self._end(self._queue.popleft(), _gone())

    def write(self, operations: Sequence[Operation], done: Done | None = None) -> None:
        """Queue operations; ``done`` is called from the event loop, never from within.

        Raises:
            TooBusy: too much is queued; nothing was taken.
        """
        if self._closed:
            if done is not None:
                asyncio.get_running_loop().call_soon(done, _gone())
            return
        size = sum(_size_of(operation) for operation in operations)
        if done is not None and self._queued_bytes + size > MAX_QUEUED_BYTES:
            raise TooBusy("too many records wait to be written", retry_after_s=1.0)
        self._queue.append(Change(deque(operations), done, size))
        self._queued_bytes += size
        self._idle.clear()
        self._wanted.set()

    async def written(self, operations: Sequence[Operation] = ()) -> None:
        """Return when these operations, and all that was queued before, are in the record.

        Raises:
            TooBusy: as ``write``.
            NotLeader, RemoteError: they are not, as far as is known.
        """
        ended: asyncio.Future[ErrorReport | None] = asyncio.get_running_loop().create_future()

        def done(error: ErrorReport | None) -> None:
            if not ended.done():
                ended.set_result(error)

        self.write(operations, done)
        error = await ended
        if error is not None:
            raise error.as_error()

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._queue:
                changes, batch = self._next_batch()
                error = await self._commit(batch)
                for change in changes:
                    if error is not None or not change.operations:
                        self._end(change, error)
                        change.operations.clear()
                while self._queue and not self._queue[0].operations:
                    change = self._queue.popleft()
                    self._queued_bytes -= change.size_bytes
                    self._end(change, error)  # one without operations that came meanwhile
            self._idle.set()

    def _next_batch(self) -> tuple[list[Change], list[Operation]]:
        """Operations from the head of the queue, as many as fit a transaction."""
        batch: dict[str, Operation] = {}
        size = 0
        changes: list[Change] = []
        for change in self._queue:
            changes.append(change)
            while change.operations:
                operation = change.operations[0]
                added = _size_of(operation)
                earlier = batch.get(operation.path)
                merged = _merge(earlier, operation)
                full = size + added > MAX_BATCH_BYTES or len(batch) >= MAX_BATCH_OPERATIONS
                if (batch and full) or (earlier is not None and merged is None):
                    return changes, list(batch.values())
                change.operations.popleft()
                batch[operation.path] = merged or operation
                size += added
        return changes, list(batch.values())

    async def _commit(self, batch: list[Operation]) -> ErrorReport | None:
        """Apply a batch; None when it is applied."""
        operations = list(batch)
        conflicts = 0
        while operations:
            try:
                await self._coordinator.commit([self._fence, *operations])
            except CommitConflict as conflict:
                if conflict.index == 0:
                    self._deposed()
                    return ErrorReport.of(NotLeader("another group manager leads; ask again"))
                conflicts += 1
                if conflict.reason not in _MENDABLE or conflicts > MAX_CONFLICTS:
                    logger.error("record refused", extra={"conflict": conflict.message})
                    return ErrorReport.of(conflict)
                operations = await self._settled(operations)
            except (OutcomeUnknown, Unavailable):
                if not await self._session_came_back():
                    return ErrorReport.of(NotLeader("the store of record does not answer"))
            except SnoozeError as error:
                logger.error("record refused", extra={"error": error.message})
                return ErrorReport.of(error)
            else:
                self.transactions += 1
                self.bytes_written += sum(_size_of(operation) for operation in operations)
                return None
        return None

    async def _settled(self, operations: list[Operation]) -> list[Operation]:
        """The operations as they are to be, seeing what exists; all at once, not one by one.

        What is to be created and exists is our own, from a transaction whose answer was lost: ids
        are never used twice. While the store cannot be read, they stay as they are.
        """
        try:
            entries = await self._coordinator.read_many([o.path for o in operations])
        except (Unavailable, OutcomeUnknown):
            return operations
        settled: list[Operation] = []
        for operation in operations:
            entry = entries.get(operation.path)
            match operation:
                case Create() if entry is not None:
                    settled.append(Put(operation.path, operation.data))
                case Put() if entry is None:
                    settled.append(Create(operation.path, operation.data))
                case Delete() if entry is None:
                    pass
                case _:
                    settled.append(operation)
        return settled

    async def _session_came_back(self) -> bool:
        number = self._coordinator.session.number
        try:
            session = await wait_connected(self._coordinator, RECONNECT_WAIT_S)
        except Unavailable:
            return False
        return session.state is SessionState.CONNECTED and session.number == number

    def _end(self, change: Change, error: ErrorReport | None) -> None:
        if change.done is None:
            return
        done, change.done = change.done, None
        try:
            done(error)
        except Exception:
            logger.exception("what follows a write failed")


def _gone() -> ErrorReport:
    return ErrorReport.of(NotLeader("this group manager stopped leading; ask again"))


def _size_of(operation: Operation) -> int:
    return len(operation.path) + (len(operation.data) if isinstance(operation, Create | Put) else 0)


def _merge(earlier: Operation | None, later: Operation) -> Operation | None:
    """One operation that does what both do; None if there is no such."""
    match earlier, later:
        case None, _:
            return later
        case Create(), Put():
            return replace(earlier, data=later.data)
        case Put(), Put() | Delete():
            return later
        case _:
            return None

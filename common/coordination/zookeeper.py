"""The ZooKeeper driver, through kazoo: entries, transactions and watches.

``_session`` keeps the session and sends the requests; ``_kazoo`` makes kazoo fit for it.
"""

from __future__ import annotations  # kazoo's classes take no parameters at run time.

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from kazoo.exceptions import (
    BadVersionError,
    NoChildrenForEphemeralsError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
    RuntimeInconsistency,
    UnimplementedError,
)
from kazoo.interfaces import IAsyncResult
from kazoo.protocol.states import WatchedEvent, ZnodeStat

from snooze.common.clock import SYSTEM_CLOCK, Clock
from snooze.common.coordination._kazoo import Client
from snooze.common.coordination._multi_read import get_children, get_values
from snooze.common.coordination._session import SessionKeeper
from snooze.common.coordination.callbacks import Level
from snooze.common.coordination.port import (
    Applied,
    Cancel,
    Check,
    CommitConflict,
    ConflictReason,
    Create,
    Delete,
    Entry,
    Operation,
    OutcomeUnknown,
    Put,
    Session,
    SessionState,
    Unavailable,
    parents,
    require_commit,
    require_path,
)

_T = TypeVar("_T")
_Result = str | bool | ZnodeStat | Exception
"""What kazoo gives for one operation of a transaction."""

_COMMIT_ATTEMPTS = 3
"""How often a transaction is sent that fails for want of a parent, which changed nothing."""
_WATCH_RETRY_S = 0.5
_READ_BYTES = 256 * 1024
"""How large an answer to a read of many shall be; the first one tells how large values are."""
_MIN_READ, _MAX_READ = 32, 1000
_MAX_LISTED = 64

_REASONS: dict[type[Exception], ConflictReason] = {
    NodeExistsError: ConflictReason.EXISTS,
    NoNodeError: ConflictReason.MISSING,
    BadVersionError: ConflictReason.VERSION,
    NotEmptyError: ConflictReason.NOT_EMPTY,
    NoChildrenForEphemeralsError: ConflictReason.PARENT_EPHEMERAL,
}


class ZooKeeperCoordinator:
    """A ``Coordinator`` on a ZooKeeper ensemble.

    ``hosts`` is ``host:port,host:port,...``; everything lies under the path ``root``. The servers
    may grant a longer or shorter session than asked for; what they granted counts.
    """

    def __init__(
        self,
        hosts: str,
        *,
        root: str = "/snooze",
        session_timeout_s: float = 4.0,
        operation_timeout_s: float = 5.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        require_path(root)
        self._root = root
        self._timeout_s = operation_timeout_s
        self._reads_many = True  # Until a server says that it is too old: before ZooKeeper 3.6.
        self._keeper = SessionKeeper(hosts, root, session_timeout_s, operation_timeout_s, clock)
        self._watches: set[_Watch] = set()

    @property
    def session(self) -> Session:
        """See ``Coordinator``."""
        return self._keeper.session

    @property
    def live_until_s(self) -> float:
        """See ``Coordinator``."""
        return self._keeper.live_until_s

    async def start(self) -> None:
        """See ``Coordinator``."""
        if self.session.state is SessionState.CLOSED:
            self._keeper.on_session.add(self._session_changed)
            self._keeper.start()

    async def close(self) -> None:
        """See ``Coordinator``."""
        for watch in list(self._watches):
            watch.cancel()
        self._watches.clear()
        await self._keeper.close()

    def on_session(self, callback: Callable[[Session], None]) -> Cancel:
        """See ``Coordinator``."""
        return self._keeper.on_session.add(callback)

    async def read(self, path: str) -> Entry | None:
        """See ``Coordinator``."""
        require_path(path)
        try:
            data, stat = await self._ask(_getter(self._root + path))
        except NoNodeError:
            return None
        return self._entry(data, stat)

    async def children(self, path: str) -> list[str]:
        """See ``Coordinator``."""
        require_path(path)
        try:
            names, _ = await self._ask(
                lambda client: client.get_children_async(self._root + path, include_data=True)
            )
        except NoNodeError:
            return []
        return sorted(names)

    async def read_children(self, path: str) -> dict[str, Entry]:
        """See ``Coordinator``."""
        entries = await self.read_many([f"{path}/{name}" for name in await self.children(path)])
        return {child.rpartition("/")[2]: entry for child, entry in entries.items()}

    async def children_of_many(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """See ``Coordinator``."""
        answers = await self._many(paths, get_children, _lister, _MAX_LISTED)
        return {path: sorted(names or ()) for path, names in zip(paths, answers, strict=True)}

    async def read_many(self, paths: Sequence[str]) -> dict[str, Entry]:
        """See ``Coordinator``."""
        entries: dict[str, Entry] = {}
        count = _MIN_READ
        begin = 0
        while begin < len(paths):
            batch = paths[begin : begin + count]
            begin += count
            values = await self._many(batch, get_values, _getter, count)
            size = 1
            for path, value in zip(batch, values, strict=True):
                if value is not None:
                    entries[path] = self._entry(*value)
                    size += len(value[0])
            count = min(max(_READ_BYTES * len(batch) // size, _MIN_READ), _MAX_READ)
        return entries

    async def _many(
        self,
        paths: Sequence[str],
        begin: Callable[[Sequence[str]], Callable[[Client], IAsyncResult[list[_T | None]]]],
        begin_one: Callable[[str], Callable[[Client], IAsyncResult[_T]]],
        at_once: int,
    ) -> list[_T | None]:
        """Read ``at_once`` paths a request; each by itself from a server that cannot do that."""
        for path in paths:
            require_path(path)
        real = [self._root + path for path in paths]
        answers: list[_T | None] = []
        while self._reads_many and len(answers) < len(paths):
            batch = real[len(answers) : len(answers) + at_once]
            try:
                answered = await self._ask(begin(batch))
            except UnimplementedError:
                self._reads_many = False
            else:
                answers += answered
        number = self.session.number
        pending = [
            await self._keeper.submit(number, begin_one(path)) for path in real[len(answers) :]
        ]
        for answer in pending:
            try:
                value = await self._value(answer)
            except NoNodeError:
                answers.append(None)
            else:
                answers.append(value)
        return answers

    async def commit(self, operations: Sequence[Operation]) -> list[Applied]:
        """See ``Coordinator``."""
        require_commit(operations)
        number = self.session.number
        for _ in range(_COMMIT_ATTEMPTS):
            results = await self._transact(number, operations)
            failed = _first_failure(results)
            if failed is None:
                pairs = zip(operations, results, strict=True)
                return [self._applied(operation, result) for operation, result in pairs]
            index, error = failed
            operation = operations[index]
            if isinstance(operation, Create) and isinstance(error, NoNodeError):
                await self._make_parents(number, operations)
                continue
            reason = _REASONS.get(type(error))
            if reason is None:
                raise Unavailable(f"ZooKeeper refused {operation.path}: {error!r}") from error
            raise CommitConflict(index, operation, reason)
        raise Unavailable("the parents of new entries vanish as fast as they are made")

    def watch(self, path: str, callback: Callable[[Entry | None], None]) -> Cancel:
        """See ``Coordinator``."""
        require_path(path)
        level = Level(callback)

        async def refresh() -> None:
            entry: Entry | None = None
            try:
                data, stat = await self._ask(
                    lambda client: client.get_async(self._root + path, watch=self._on_event)
                )
                entry = self._entry(data, stat)
            except NoNodeError:
                if await self._await_creation(path):
                    return
            level.offer(entry, entry)

        return self._watch(path, refresh, level.cancel)

    def watch_children(self, path: str, callback: Callable[[list[str]], None]) -> Cancel:
        """See ``Coordinator``."""
        require_path(path)
        level = Level(callback)

        async def refresh() -> None:
            names: list[str] = []
            revision = -1
            try:
                names, stat = await self._ask(
                    lambda client: client.get_children_async(
                        self._root + path, watch=self._on_event, include_data=True
                    )
                )
                revision = stat.pzxid
            except NoNodeError:
                if await self._await_creation(path):
                    return
            level.offer(sorted(names), revision)

        return self._watch(path, refresh, level.cancel)

    async def _ask(self, start: Callable[[Client], IAsyncResult[_T]]) -> _T:
        return await self._value(await self._keeper.submit(self.session.number, start))

    async def _value(self, answer: asyncio.Future[IAsyncResult[_T]]) -> _T:
        """The answer to a read.

        Raises: NoNodeError, UnimplementedError, or Unavailable if none came.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await answer
        except TimeoutError:
            raise Unavailable("ZooKeeper did not answer in time") from None
        error = result.exception
        if error is None or isinstance(error, NoNodeError | UnimplementedError):
            return result.get_nowait()
        raise Unavailable(f"ZooKeeper did not answer: {error!r}") from error

    async def _transact(self, number: int, operations: Sequence[Operation]) -> list[_Result]:
        """Send a transaction once; the errors of its operations are among the results."""
        answer = await self._keeper.submit(number, lambda client: self._begin(client, operations))
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await answer
        except TimeoutError:
            raise OutcomeUnknown("ZooKeeper did not answer a commit in time") from None
        error = result.exception
        if error is not None:
            raise OutcomeUnknown(f"ZooKeeper did not answer a commit: {error!r}") from error
        return result.get_nowait()

    def _begin(
        self, client: Client, operations: Sequence[Operation]
    ) -> IAsyncResult[list[_Result]]:
        transaction = client.transaction()
        for operation in operations:
            path = self._root + operation.path
            match operation:
                case Create(data=data, ephemeral=ephemeral, sequence=sequence):
                    transaction.create(path, data, ephemeral=ephemeral, sequence=sequence)
                case Put(data=data, version=version):
                    transaction.set_data(path, data, -1 if version is None else version)
                case Delete(version=version):
                    transaction.delete(path, -1 if version is None else version)
                case Check(version=version):
                    transaction.check(path, -1 if version is None else version)
        return transaction.commit_async()

    async def _make_parents(self, number: int, operations: Sequence[Operation]) -> None:
        """Make the parents of what is to be created, save those that are created with it."""
        created = {operation.path for operation in operations if isinstance(operation, Create)}
        wanted: dict[str, int] = {}
        for index, operation in enumerate(operations):
            if isinstance(operation, Create):
                for path in parents(self._root + operation.path):
                    if path.removeprefix(self._root) not in created:
                        wanted.setdefault(path, index)
        for path, index in wanted.items():
            answer = await self._keeper.submit(number, _creator(path))
            try:
                async with asyncio.timeout(self._timeout_s):
                    error = (await answer).exception
            except TimeoutError:
                raise Unavailable(f"ZooKeeper did not make {path} in time") from None
            if isinstance(error, NoChildrenForEphemeralsError):
                raise CommitConflict(index, operations[index], ConflictReason.PARENT_EPHEMERAL)
            if error is not None and not isinstance(error, NodeExistsError):
                raise Unavailable(f"ZooKeeper did not make {path}: {error!r}") from error

    def _applied(self, operation: Operation, result: _Result) -> Applied:
        match operation, result:
            case Create(), str():
                return Applied(result.removeprefix(self._root), 0)
            case Put(), ZnodeStat():
                return Applied(operation.path, result.version)
            case Check(version=int(version)), _:
                return Applied(operation.path, version)
            case _:
                return Applied(operation.path, -1)

    def _entry(self, data: bytes, stat: ZnodeStat) -> Entry:
        return Entry(
            data=data,
            version=stat.version,
            revision=stat.mzxid,
            ephemeral=stat.ephemeralOwner != 0,
            mine=stat.ephemeralOwner == self._keeper.session_id,
        )

    def _watch(
        self, path: str, refresh: Callable[[], Awaitable[None]], forget: Callable[[], None]
    ) -> Cancel:
        watch = _Watch(self._root + path, refresh)
        self._watches.add(watch)

        def cancel() -> None:
            forget()
            watch.cancel()
            self._watches.discard(watch)

        if self.session.state is SessionState.CONNECTED:
            watch.poke()
        return cancel

    async def _await_creation(self, path: str) -> bool:
        """Have its watches poked when ``path`` is created; at once, and true, if it is by now."""
        path = self._root + path
        stat = await self._ask(lambda client: client.exists_async(path, watch=self._on_event))
        if stat is not None:
            self._poke(path)
        return stat is not None

    def _on_event(self, event: WatchedEvent) -> None:
        """Called by a thread of kazoo.

        One function for all watches, as kazoo keeps each function once per path: so watches that
        come and go leave nothing behind there. Without a path, the connection was lost; then all
        are poked when it is back.
        """
        if event.path is not None:
            path = event.path
            self._keeper.post(lambda: self._poke(path))

    def _poke(self, path: str) -> None:
        for watch in list(self._watches):
            if watch.path == path:
                watch.poke()

    def _session_changed(self, session: Session) -> None:
        if session.state is SessionState.CONNECTED:
            for watch in list(self._watches):
                watch.poke()


class _Watch:
    """Refreshes after being poked; pokes during a refresh make one more."""

    def __init__(self, path: str, refresh: Callable[[], Awaitable[None]]) -> None:
        self.path = path
        self._refresh = refresh
        self._is_due = False
        self._task: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None

    def poke(self) -> None:
        self._is_due = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._retry is not None:
            self._retry.cancel()

    async def _run(self) -> None:
        try:
            while self._is_due:
                self._is_due = False
                try:
                    await self._refresh()
                except Unavailable:
                    # All are poked when the session is back, but perhaps it never went.
                    self._retry_later()
        finally:
            self._task = None

    def _retry_later(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(_WATCH_RETRY_S, self.poke)


def _getter(path: str) -> Callable[[Client], IAsyncResult[tuple[bytes, ZnodeStat]]]:
    return lambda client: client.get_async(path)


def _lister(path: str) -> Callable[[Client], IAsyncResult[list[str]]]:
    return lambda client: client.get_children_async(path)


def _creator(path: str) -> Callable[[Client], IAsyncResult[str]]:
    return lambda client: client.create_async(path)


def _first_failure(results: Sequence[_Result]) -> tuple[int, Exception] | None:
    """The operation that made a transaction fail; the others say only that they were undone."""
    for index, result in enumerate(results):
        if isinstance(result, Exception) and not isinstance(
            result, RolledBackError | RuntimeInconsistency
        ):
            return index, result
    return None

"""The in-memory driver: the all-in-one mode's store, and the tests' obliging one.

Several ``MemoryCoordinator`` of one process share a ``MemoryStore``. Order, versions, sequence
numbers, ephemerals, watches and failures are as over ZooKeeper; nothing survives the process. All
of them live on one event loop.

Sessions do not end by themselves here. Tests end them (``suspend``, ``resume``, ``expire``) and set
``Faults`` for a coordinator's calls.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from snooze.common.coordination.callbacks import Callbacks, Level
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

_NO_OWNER = 0


@dataclass(slots=True)
class _Node:
    """An entry as stored. ``next_sequence`` and ``children_revision`` are about its children."""

    data: bytes = b""
    version: int = 0
    revision: int = 0
    owner: int = _NO_OWNER
    next_sequence: int = 0
    children_revision: int = 0
    children: set[str] = field(default_factory=set[str])


class MemoryStore:
    """The tree itself, shared by the coordinators that are given it."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {"": _Node()}
        self._revision = 0
        self._last_owner = _NO_OWNER
        self._ephemerals: dict[int, set[str]] = {}  # By owner; its keys are the living sessions.
        self._pokes: dict[str, dict[object, Callable[[], None]]] = {}

    def open_session(self) -> int:
        """Begin a session; its number is unique in this store and never 0."""
        self._last_owner += 1
        self._ephemerals[self._last_owner] = set()
        return self._last_owner

    def end_session(self, owner: int) -> None:
        """End a session: its ephemerals vanish in one step. Ending it twice changes nothing."""
        self._revision += 1
        touched: set[str] = set()
        for path in sorted(self._ephemerals.pop(owner, set[str]())):
            self._detach(path, touched)
        self._poke(touched)

    def is_live(self, owner: int) -> bool:
        """Whether the session has begun and not ended."""
        return owner in self._ephemerals

    def read(self, path: str, reader: int) -> Entry | None:
        """The entry as the session ``reader`` sees it."""
        node = self._nodes.get(path)
        if node is None:
            return None
        return Entry(
            data=node.data,
            version=node.version,
            revision=node.revision,
            ephemeral=node.owner != _NO_OWNER,
            mine=node.owner == reader,
        )

    def children(self, path: str) -> tuple[list[str], int]:
        """Sorted names of the children and the revision of their last coming or going."""
        node = self._nodes.get(path)
        return ([], -1) if node is None else (sorted(node.children), node.children_revision)

    def commit(self, operations: Sequence[Operation], owner: int) -> list[Applied]:
        """Apply all or nothing, on behalf of the living session ``owner``."""
        self._revision += 1
        undo: list[Callable[[], None]] = []
        touched: set[str] = set()
        results: list[Applied] = []
        for index, operation in enumerate(operations):
            result = self._apply(operation, owner, undo, touched)
            if isinstance(result, ConflictReason):
                for step in reversed(undo):
                    step()
                raise CommitConflict(index, operation, result)
            results.append(result)
        self._poke(touched)
        return results

    def on_touch(self, path: str, poke: Callable[[], None]) -> Cancel:
        """Call ``poke`` whenever the entry or the set of its children may have changed."""
        key = object()
        self._pokes.setdefault(path, {})[key] = poke

        def cancel() -> None:
            pokes = self._pokes.get(path, {})
            pokes.pop(key, None)
            if not pokes:
                self._pokes.pop(path, None)

        return cancel

    def _poke(self, touched: set[str]) -> None:
        for path in sorted(touched):
            for poke in list(self._pokes.get(path, {}).values()):
                poke()

    def _apply(
        self, operation: Operation, owner: int, undo: list[Callable[[], None]], touched: set[str]
    ) -> Applied | ConflictReason:
        if isinstance(operation, Create):
            return self._create(operation, owner, undo, touched)
        path = operation.path
        node = self._nodes.get(path)
        if node is None:
            return ConflictReason.MISSING
        if operation.version is not None and operation.version != node.version:
            return ConflictReason.VERSION
        match operation:
            case Check():
                return Applied(path, -1 if operation.version is None else node.version)
            case Put():
                undo.append(_restorer(node))
                node.data = operation.data
                node.version += 1
                node.revision = self._revision
                touched.add(path)
                return Applied(path, node.version)
            case Delete():
                if node.children:
                    return ConflictReason.NOT_EMPTY
                undo.append(_restorer(self._nodes[_parent(path)]))
                undo.append(lambda: self._attach(path, node, set()))
                self._detach(path, touched)
                return Applied(path, -1)

    def _create(
        self, operation: Create, owner: int, undo: list[Callable[[], None]], touched: set[str]
    ) -> Applied | ConflictReason:
        for ancestor in parents(operation.path):
            node = self._nodes.get(ancestor)
            if node is None:
                self._add(ancestor, _Node(revision=self._revision), undo, touched)
            elif node.owner != _NO_OWNER:
                return ConflictReason.PARENT_EPHEMERAL
        path = operation.path
        if operation.sequence:
            path = f"{path}{self._nodes[_parent(path)].next_sequence:010d}"
        if path in self._nodes:
            return ConflictReason.EXISTS
        node = _Node(
            data=operation.data,
            revision=self._revision,
            owner=owner if operation.ephemeral else _NO_OWNER,
        )
        self._add(path, node, undo, touched)
        return Applied(path, 0)

    def _add(
        self, path: str, node: _Node, undo: list[Callable[[], None]], touched: set[str]
    ) -> None:
        undo.append(_restorer(self._nodes[_parent(path)]))
        undo.append(lambda: self._detach(path, set()))
        self._attach(path, node, touched)
        self._nodes[_parent(path)].next_sequence += 1

    def _attach(self, path: str, node: _Node, touched: set[str]) -> None:
        parent, name = _parent(path), path.rpartition("/")[2]
        self._nodes[path] = node
        self._nodes[parent].children.add(name)
        self._nodes[parent].children_revision = self._revision
        if node.owner != _NO_OWNER:
            self._ephemerals[node.owner].add(path)
        touched.update((path, parent))

    def _detach(self, path: str, touched: set[str]) -> None:
        parent, name = _parent(path), path.rpartition("/")[2]
        node = self._nodes.pop(path)
        self._nodes[parent].children.discard(name)
        self._nodes[parent].children_revision = self._revision
        if node.owner in self._ephemerals:
            self._ephemerals[node.owner].discard(path)
        touched.update((path, parent))


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _restorer(node: _Node) -> Callable[[], None]:
    """Undoes changes to everything of ``node`` but its set of children."""
    data, version, revision = node.data, node.version, node.revision
    next_sequence, children_revision = node.next_sequence, node.children_revision

    def restore() -> None:
        node.data, node.version, node.revision = data, version, revision
        node.next_sequence, node.children_revision = next_sequence, children_revision

    return restore


@dataclass(slots=True)
class Faults:
    """What shall go wrong with a coordinator's calls; the counts run down as they are used.

    ``lose_requests`` and ``lose_replies`` are commits whose outcome the caller is not told: the
    former are not applied, the latter are.
    """

    delay_s: float = 0.0
    refuse: int = 0
    lose_requests: int = 0
    lose_replies: int = 0


class MemoryCoordinator:
    """A ``Coordinator`` on a ``MemoryStore``."""

    def __init__(self, store: MemoryStore) -> None:
        self.faults = Faults()
        self._store = store
        self._session = Session(SessionState.CLOSED, 0)
        self._owner = _NO_OWNER
        self._reachable = True
        self._session_callbacks: Callbacks[Session] = Callbacks()
        self._watches: dict[object, Callable[[], None]] = {}  # Each offers the present level.
        self._cancels: dict[object, Cancel] = {}

    @property
    def session(self) -> Session:
        """See ``Coordinator``."""
        return self._session

    @property
    def live_until_s(self) -> float:
        """See ``Coordinator``: for ever, until the session has ended."""
        connected = self._session.state is SessionState.CONNECTED
        return math.inf if connected and self._store.is_live(self._owner) else -math.inf

    async def start(self) -> None:
        """See ``Coordinator``."""
        if self._session.state is SessionState.CLOSED:
            self._change(SessionState.SUSPENDED)
            self._soon(self._connect)

    async def close(self) -> None:
        """See ``Coordinator``."""
        if self._session.state is SessionState.CLOSED:
            return
        for cancel in list(self._cancels.values()):
            cancel()
        self._store.end_session(self._owner)
        self._change(SessionState.CLOSED)
        self._session_callbacks.clear()

    def on_session(self, callback: Callable[[Session], None]) -> Cancel:
        """See ``Coordinator``."""
        return self._session_callbacks.add(callback)

    async def read(self, path: str) -> Entry | None:
        """See ``Coordinator``."""
        require_path(path)
        await self._reach(is_commit=False)
        return self._store.read(path, self._owner)

    async def children(self, path: str) -> list[str]:
        """See ``Coordinator``."""
        require_path(path)
        await self._reach(is_commit=False)
        return self._store.children(path)[0]

    async def read_children(self, path: str) -> dict[str, Entry]:
        """See ``Coordinator``."""
        entries = await self.read_many([f"{path}/{name}" for name in await self.children(path)])
        return {child.rpartition("/")[2]: entry for child, entry in entries.items()}

    async def children_of_many(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """See ``Coordinator``."""
        return {path: await self.children(path) for path in paths}

    async def read_many(self, paths: Sequence[str]) -> dict[str, Entry]:
        """See ``Coordinator``."""
        for path in paths:
            require_path(path)
        await self._reach(is_commit=False)
        entries = {path: self._store.read(path, self._owner) for path in paths}
        return {path: entry for path, entry in entries.items() if entry is not None}

    async def commit(self, operations: Sequence[Operation]) -> list[Applied]:
        """See ``Coordinator``."""
        require_commit(operations)
        await self._reach(is_commit=True)
        if self.faults.lose_requests:
            self.faults.lose_requests -= 1
            raise OutcomeUnknown("the request was lost, by order")
        results = self._store.commit(operations, self._owner)
        if self.faults.lose_replies:
            self.faults.lose_replies -= 1
            raise OutcomeUnknown("the reply was lost, by order")
        return results

    def watch(self, path: str, callback: Callable[[Entry | None], None]) -> Cancel:
        """See ``Coordinator``."""
        require_path(path)
        level = Level(callback)

        def offer() -> None:
            entry = self._store.read(path, self._owner)
            level.offer(entry, entry)

        return self._watch(path, offer, level.cancel)

    def watch_children(self, path: str, callback: Callable[[list[str]], None]) -> Cancel:
        """See ``Coordinator``."""
        require_path(path)
        level = Level(callback)

        def offer() -> None:
            names, revision = self._store.children(path)
            level.offer(names, revision)

        return self._watch(path, offer, level.cancel)

    def suspend(self) -> None:
        """Cut this coordinator off: SUSPENDED; its session lives on in the store."""
        self._reachable = False
        if self._session.state is SessionState.CONNECTED:
            self._change(SessionState.SUSPENDED)

    def resume(self) -> None:
        """Undo ``suspend``: CONNECTED again, by way of LOST if the session ended meanwhile."""
        self._reachable = True
        if self._session.state is SessionState.SUSPENDED:
            self._soon(self._connect)

    def expire(self, *, noticed: bool = True) -> None:
        """Let the store end this session, as if the process had been silent for too long.

        With ``noticed=False`` the coordinator goes on as ``CONNECTED`` until its next call, as a
        process does that was frozen and thawed.
        """
        self._store.end_session(self._owner)
        if noticed and self._session.state is SessionState.CONNECTED:
            self._lose()

    async def _reach(self, *, is_commit: bool) -> None:
        """Travel to the store: raises if it is not reached, or not within the same session."""
        session = self._session
        if session.state is not SessionState.CONNECTED:
            raise Unavailable(f"not connected to the store: {session.state.value}")
        if self.faults.refuse:
            self.faults.refuse -= 1
            raise Unavailable("refused, by order")
        await asyncio.sleep(self.faults.delay_s)
        if self._session == session and not self._store.is_live(self._owner):
            self._lose()
        if self._session != session:
            error = OutcomeUnknown if is_commit else Unavailable
            raise error("the connection to the store was lost during the call")

    def _soon(self, step: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(step)

    def _connect(self) -> None:
        state = self._session.state
        if not self._reachable or state not in {SessionState.SUSPENDED, SessionState.LOST}:
            return
        if self._store.is_live(self._owner):
            self._change(SessionState.CONNECTED)
        elif self._owner != _NO_OWNER and state is SessionState.SUSPENDED:
            self._lose()
        else:
            self._owner = self._store.open_session()
            self._change(SessionState.CONNECTED, self._session.number + 1)
        self._poke_all()

    def _lose(self) -> None:
        self._change(SessionState.LOST)
        self._soon(self._connect)

    def _change(self, state: SessionState, number: int | None = None) -> None:
        self._session = Session(state, self._session.number if number is None else number)
        self._session_callbacks.call(self._session)

    def _poke_all(self) -> None:
        for poke in list(self._watches.values()):
            poke()

    def _watch(self, path: str, offer: Callable[[], None], forget: Callable[[], None]) -> Cancel:
        """Have ``offer`` called soon after each touch of ``path``, once for several."""
        key = object()
        scheduled = False

        def deliver() -> None:
            nonlocal scheduled
            scheduled = False
            if self._session.state is SessionState.CONNECTED:
                offer()

        def poke() -> None:
            nonlocal scheduled
            if not scheduled:
                scheduled = True
                self._soon(deliver)

        untouch = self._store.on_touch(path, poke)

        def cancel() -> None:
            forget()
            untouch()
            self._watches.pop(key, None)
            self._cancels.pop(key, None)

        self._watches[key] = poke
        self._cancels[key] = cancel
        poke()
        return cancel

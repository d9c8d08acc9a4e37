"""The port to the store of record: what every daemon may ask of ZooKeeper, and no more.

A tree of small versioned values (*entries*), atomic transactions, watches, and a *session*: the
store's proof that this process lives. An ephemeral entry goes when the session that made it ends.

Two drivers pass one contract suite (``tests/contract/coordination``):
``snooze.common.coordination.zookeeper`` and ``snooze.common.coordination.memory``.

Sessions::

    CLOSED -start()-> SUSPENDED -> CONNECTED <-> SUSPENDED -> LOST -> CONNECTED (number + 1) ...
                                                  any -close()-> CLOSED

- ``SUSPENDED``: no server answers. The session may still live or may have ended; whoever decides by
  virtue of it stops deciding *now*. Calls are refused at once with ``Unavailable``.
- ``LOST``: the session is known to have ended and its ephemerals are gone. The driver opens a new
  one by itself and reports ``CONNECTED`` with the next ``number``; only then can ephemerals be made
  again, and whoever owned some makes them again.

What can be relied on:

- A commit is applied wholly or not at all, and all commits have one order in the whole cluster.
- A coordinator's calls take effect in the order in which they are awaited, one after another (of
  calls made concurrently nothing is promised). It reads at least all that was ordered before its
  own last commit and before its session was last found ``CONNECTED``; another's later commits may
  be seen a little late.
- Every call ends within the driver's time-out (``read_many`` and what is built on it: as long as
  answers keep coming, that of each). Nothing is repeated behind the caller's back, except
  what provably changed nothing.

Failures of a call, told apart because the remedy differs:

==================  =============================================  =================================
``CommitConflict``  a condition did not hold; nothing changed      read again and decide anew
``Unavailable``     not sent, or only a read; nothing changed      wait for ``CONNECTED``, repeat
``OutcomeUnknown``  sent, no answer; *perhaps applied*             wait, read back, then decide
``InvalidRequest``  malformed path or too large; nothing changed   a mistake of the caller
==================  =============================================  =================================

``OutcomeUnknown`` is a ``RemoteTimeout`` and ``Unavailable`` a plain ``RemoteError``; as the first
is also the second in ``snooze.common.errors``, handlers catch ``OutcomeUnknown`` first.
"""

import asyncio
import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from snooze.common.errors import Conflict, InvalidRequest, RemoteError, RemoteTimeout

MAX_COMMIT_BYTES = 1_000_000
"""Upper bound of one transaction, paths and overhead included.

ZooKeeper's server drops the connection of whoever sends more than ``jute.maxbuffer`` (0xfffff bytes
by default), and with it every other call in flight, so larger ones are refused before sending.
Source: ZooKeeper 3.8 Administrator's Guide, "Unsafe Options", jute.maxbuffer.
"""

_OPERATION_OVERHEAD_BYTES = 64  # Header, lengths, flags and the open access list of one operation.
_PATH = re.compile(r"(/[^/\x00-\x1f\x7f-\x9f\ud800-\uf8ff\ufff0-\uffff]+)+")


class SessionState(enum.Enum):
    """What is known of the session."""

    CONNECTED = "connected"
    SUSPENDED = "suspended"
    LOST = "lost"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Session:
    """A session and what is known of it.

    ``number`` counts the sessions of this coordinator: 0 before the first, then 1, 2, ... Equal
    numbers mean that ephemerals made earlier are still there once the state is ``CONNECTED``.
    """

    state: SessionState
    number: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A value as read.

    ``version`` starts at 0 and grows by one with each ``Put``; ``revision`` orders this entry's
    last change among all changes of the store (also across deletion and re-creation). ``mine``: it
    is ephemeral and belongs to the reader's present session.
    """

    data: bytes
    version: int
    revision: int
    ephemeral: bool
    mine: bool


@dataclass(frozen=True, slots=True)
class Create:
    """Make a new entry; fails with ``EXISTS``. Missing parents are made as well (and stay).

    ``sequence`` appends ten digits that grow with every sequence entry made under the same parent,
    not necessarily by one. Ephemeral entries cannot have children.
    """

    path: str
    data: bytes = b""
    ephemeral: bool = False
    sequence: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    """Replace a value; fails with ``MISSING``, or ``VERSION`` unless ``version`` is None."""

    path: str
    data: bytes
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove an entry; fails with ``MISSING``, ``NOT_EMPTY``, or ``VERSION`` as ``Put`` does."""

    path: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """Let the transaction fail unless the entry exists with this version (None: any)."""

    path: str
    version: int | None = None


Operation = Create | Put | Delete | Check


@dataclass(frozen=True, slots=True)
class Applied:
    """What one operation of a transaction did.

    ``path`` is the real one (with the digits of a sequence); ``version`` the entry's version
    afterwards, -1 for one that was deleted. A ``Check`` gives its own version back, -1 for any.
    """

    path: str
    version: int


class ConflictReason(enum.Enum):
    """Why an operation could not be applied."""

    EXISTS = "exists"
    MISSING = "missing"
    VERSION = "version"
    NOT_EMPTY = "not empty"
    PARENT_EPHEMERAL = "parent is ephemeral"


class CommitConflict(Conflict):
    """One operation's condition did not hold: nothing of the transaction was applied."""

    def __init__(self, index: int, operation: Operation, reason: ConflictReason) -> None:
        kind = type(operation).__name__
        super().__init__(f"operation {index} ({kind} {operation.path}): {reason.value}")
        self.index = index
        self.operation = operation
        self.reason = reason


class Unavailable(RemoteError):
    """The store could not be asked, or a read was not answered: nothing changed."""


class OutcomeUnknown(RemoteTimeout):
    """A commit was sent and no answer came: all of it was applied, or nothing, perhaps later.

    "Later" ends when ``CONNECTED`` is next reported: what is read then tells which it was. After a
    mere time-out while connected, an answered commit of any kind ends it.
    """


Cancel = Callable[[], None]
"""Ends a subscription: its callback is not called any more. May be called twice."""


class Coordinator(Protocol):
    """One client of the store. Not thread safe: to be used on the event loop that started it.

    Callbacks run on that loop, one at a time, never inside the call that registers them. They are
    plain functions that return quickly; what they raise is logged and goes no further.
    """

    @property
    def session(self) -> Session:
        """The session now. Changes only between two steps of the event loop."""
        ...

    @property
    def live_until_s(self) -> float:
        """Until when, by the coordinator's clock (monotonic), the session was proven to live.

        An answered call proves that the server heard from us after we sent it, and it waits for a
        whole session time-out from then on. It tells a process that was frozen and thawed that it
        may have been given up, before any event does. Minus infinity unless ``CONNECTED``.
        (A server cut off from its quorum may vouch wrongly, so what must never happen twice is
        fenced by versions and epochs besides.)
        """
        ...

    async def start(self) -> None:
        """Begin to connect, and return without waiting: ZooKeeper may come up later than we."""
        ...

    async def close(self) -> None:
        """End the session so that its ephemerals vanish at once; give up waiting after a bound.

        Idempotent. All subscriptions end; calls under way fail.
        """
        ...

    def on_session(self, callback: Callable[[Session], None]) -> Cancel:
        """Call back at every change of ``session``, in order, none left out."""
        ...

    async def read(self, path: str) -> Entry | None:
        """The entry, or None when there is none. Raises: Unavailable."""
        ...

    async def children(self, path: str) -> list[str]:
        """Names of the children in ascending order; empty when the parent is missing.

        Raises: Unavailable.
        """
        ...

    async def read_children(self, path: str) -> dict[str, Entry]:
        """Every child by name, in ascending order, read in one go but not as one snapshot.

        A child that vanishes meanwhile is left out. Raises: Unavailable.
        """
        ...

    async def children_of_many(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """``children`` of each path, in few round trips. Raises: Unavailable."""
        ...

    async def read_many(self, paths: Sequence[str]) -> dict[str, Entry]:
        """``read`` of each path, in few round trips, not as one snapshot; by path, in that order.

        What is not there is left out. Raises: Unavailable.
        """
        ...

    async def commit(self, operations: Sequence[Operation]) -> list[Applied]:
        """Apply all operations as one transaction, in order, or none of them.

        Sent in the session that is open at the call, or not at all.

        Returns: one ``Applied`` per operation.
        Raises: CommitConflict, Unavailable, OutcomeUnknown, InvalidRequest.
        """
        ...

    def watch(self, path: str, callback: Callable[[Entry | None], None]) -> Cancel:
        """Report the entry now and whenever it is found changed: the level, not each edge.

        Rapid changes may come as one call with the last value. Survives reconnects and new
        sessions; nothing is reported while not connected.
        """
        ...

    def watch_children(self, path: str, callback: Callable[[list[str]], None]) -> Cancel:
        """As ``watch``, for the names of the children in ascending order (not their values).

        A child removed and made again counts as a change, so equal lists may follow one another.
        """
        ...


def require_path(path: str) -> None:
    """Refuse a malformed path. Raises: InvalidRequest."""
    segments = path.split("/")[1:]
    if not _PATH.fullmatch(path) or "." in segments or ".." in segments:
        raise InvalidRequest(f"not a path of the store: {path!r}")


def require_commit(operations: Sequence[Operation]) -> None:
    """Refuse a transaction that is empty, malformed or too large. Raises: InvalidRequest."""
    if not operations:
        raise InvalidRequest("a transaction without operations")
    size_bytes = 0
    for operation in operations:
        require_path(operation.path)
        size_bytes += _OPERATION_OVERHEAD_BYTES + len(operation.path.encode())
        if isinstance(operation, Create | Put):
            size_bytes += len(operation.data)
    if size_bytes > MAX_COMMIT_BYTES:
        raise InvalidRequest(
            f"transaction of {len(operations)} operations takes {size_bytes} bytes, "
            f"at most {MAX_COMMIT_BYTES} can be written at once"
        )


def parents(path: str) -> list[str]:
    """The proper ancestors of ``path``, the topmost first: ``/a/b/c`` gives ``/a``, ``/a/b``."""
    segments = path.split("/")
    return ["/".join(segments[:end]) for end in range(2, len(segments))]


async def wait_connected(coordinator: Coordinator, timeout_s: float) -> Session:
    """Wait until the session is ``CONNECTED``. Raises: Unavailable after ``timeout_s``."""
    changed = asyncio.Event()
    cancel = coordinator.on_session(lambda _session: changed.set())
    try:
        async with asyncio.timeout(timeout_s):
            while coordinator.session.state is not SessionState.CONNECTED:
                await changed.wait()
                changed.clear()
    except TimeoutError:
        raise Unavailable(f"no session with the store within {timeout_s:g} s") from None
    finally:
        cancel()
    return coordinator.session

"""ZooKeeper as its clients see it: an ensemble of servers, sessions that end by silence.

The tree itself is ``common.coordination.memory.MemoryStore``. Around it is what makes ZooKeeper
hard: a client talks to one server; a server answers only while it has a quorum; what was sent on a
connection that broke may or may not have been applied, and may still be until the client is heard
on another connection; a session ends when the ensemble has not heard of it for its time-out,
whatever its owner believes; while there is no quorum nobody's time runs, and a new quorum gives
everybody a whole time-out.

``SimulatedCoordinator`` is the client's half and keeps the promises of ``common.coordination.port``
with the shares of ``common.coordination._session`` (probe at 1/4, give up at 7/12, dead to itself
at 2/3 of the session time-out).
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from snooze.common.coordination.callbacks import Callbacks, Level
from snooze.common.coordination.memory import MemoryStore
from snooze.common.coordination.port import (
    Applied,
    Cancel,
    CommitConflict,
    Entry,
    Operation,
    OutcomeUnknown,
    Session,
    SessionState,
    Unavailable,
    require_commit,
    require_path,
)
from snooze.simulation.loop import Process
from snooze.simulation.network import Machine, Network

PROBE_SHARE = 1 / 4
UNANSWERED_SHARE = 1 / 3
LIVE_SHARE = 2 / 3
RECONNECT_S = 0.15
DISK_S = 0.002
"""A server's write-ahead log, flushed."""


class Ensemble:
    """The servers, the tree and the sessions."""

    def __init__(self, network: Network, servers: Sequence[Machine]) -> None:
        self.network = network
        self.servers = list(servers)
        self.store = MemoryStore()
        self.refuses_writes = False
        self.had_quorum = True
        self.commits = 0
        self.bytes_written = 0
        self.on_commit: Callable[[Sequence[Operation]], None] = lambda _operations: None
        self._clients: dict[int, SimulatedCoordinator] = {}
        self._heard_s: dict[int, float] = {}
        network.on_heal.append(self.look)

    def quorum(self) -> list[Machine]:
        """The servers that can serve: a majority that hears one another."""
        alive = [server for server in self.servers if server.is_on]
        best: list[Machine] = []
        for leader in alive:
            group = [
                server
                for server in alive
                if not self.network.is_cut(leader.name, server.name)
                and not self.network.is_cut(server.name, leader.name)
            ]
            if len(group) > len(best):
                best = group
        return best if len(best) * 2 > len(self.servers) else []

    def look(self) -> None:
        """Something changed: without a quorum no session ends, with a new one all get new time."""
        has_quorum = bool(self.quorum())
        if has_quorum and not self.had_quorum:
            for owner in self._heard_s:
                self._heard_s[owner] = self.network.schedule.now_s
        self.had_quorum = has_quorum

    def serves(self, server: Machine, client: Machine) -> bool:
        """Whether a client reaches this server, and that is of use."""
        return (
            server.is_on
            and not self.network.is_cut(client.name, server.name)
            and not self.network.is_cut(server.name, client.name)
            and server in self.quorum()
        )

    def open_session(self, client: "SimulatedCoordinator") -> int:
        """Begin a session."""
        owner = self.store.open_session()
        self._clients[owner] = client
        self._heard_s[owner] = self.network.schedule.now_s
        self._watch(owner, client.session_timeout_s)
        return owner

    def hear(self, owner: int) -> None:
        """The quorum hears of a session."""
        if owner in self._heard_s:
            self._heard_s[owner] = self.network.schedule.now_s

    def end_session(self, owner: int) -> None:
        """The session is over: its ephemerals go."""
        self._heard_s.pop(owner, None)
        self._clients.pop(owner, None)
        self.store.end_session(owner)

    def expire(self, machine: str) -> None:
        """End the sessions of a machine, as an administrator or a long silence does."""
        for owner, client in list(self._clients.items()):
            if client.process.machine.name == machine:
                self.end_session(owner)

    def _watch(self, owner: int, timeout_s: float) -> None:
        def check() -> None:
            heard_s = self._heard_s.get(owner)
            if heard_s is None:
                return
            self.look()
            due_s = heard_s + timeout_s
            now_s = self.network.schedule.now_s
            if not self.had_quorum:
                self.network.schedule.after(timeout_s, check)
            elif now_s >= due_s - 1e-9:
                self.end_session(owner)
            else:
                self.network.schedule.at(due_s, check)

        self.network.schedule.after(timeout_s, check)

    def commit(self, operations: Sequence[Operation], owner: int) -> list[Applied]:
        """Apply a transaction of a living session. Raises: CommitConflict."""
        results = self.store.commit(operations, owner)
        self.commits += 1
        self.on_commit(operations)
        return results


class _Way:
    """One direction of a connection: in order, however long the way is cut."""

    def __init__(
        self, network: Network, source: Machine, target: Machine, stands: Callable[[], bool]
    ) -> None:
        self._network = network
        self._source = source.name
        self._target = target.name
        self._stands = stands
        self._queue: deque[Callable[[], None]] = deque()
        self._due = 0
        self._polling = False
        self._last_s = 0.0

    def send(self, work: Callable[[], None], extra_s: float = 0.0) -> None:
        """Run ``work`` at the other end, later."""
        schedule = self._network.schedule
        delay_s = self._network.delay_s(self._source, self._target) + extra_s
        self._last_s = max(self._last_s, schedule.now_s + delay_s)
        self._queue.append(work)
        schedule.at(self._last_s, self._arrive)

    def _arrive(self) -> None:
        self._due += 1
        self._flow()

    def _flow(self) -> None:
        if not self._stands():
            return
        if self._network.is_cut(self._source, self._target):
            if not self._polling:
                self._polling = True
                self._network.schedule.after(0.3, self._poll)
            return
        while self._due:
            self._due -= 1
            self._queue.popleft()()

    def _poll(self) -> None:
        self._polling = False
        self._flow()


class _Connection:
    """A client's connection to one server; things sent on it stay in order.

    When its client has turned away, what is under way may still be applied, until the server it
    turned to has heard of it.
    """

    def __init__(self, client: "SimulatedCoordinator", server: Machine) -> None:
        self.client = client
        self.server = server
        self.is_open = True
        network, machine = client.ensemble.network, client.process.machine
        self._to_server = _Way(
            network, machine, server, lambda: client.owner_at_server is self and server.is_on
        )
        self._to_client = _Way(network, server, machine, lambda: self.is_open)

    def to_server(self, work: Callable[[], None], extra_s: float = 0.0) -> None:
        """Run ``work`` at the server, if the connection gets it there and it has a quorum."""
        ensemble = self.client.ensemble
        self._to_server.send(lambda: work() if self.server in ensemble.quorum() else None, extra_s)

    def to_client(self, work: Callable[[], None]) -> None:
        """Run ``work`` in the client's process."""
        process = self.client.process
        self._to_client.send(lambda: process.run(lambda: work() if self.is_open else None))


class SimulatedCoordinator:
    """A ``Coordinator`` of one process."""

    def __init__(
        self,
        ensemble: Ensemble,
        process: Process,
        session_timeout_s: float,
        operation_timeout_s: float,
    ) -> None:
        self.ensemble = ensemble
        self.process = process
        self.session_timeout_s = session_timeout_s
        self.operation_timeout_s = operation_timeout_s
        self.owner = 0
        self.owner_at_server: _Connection | None = None
        self._connection: _Connection | None = None
        self._session = Session(SessionState.CLOSED, 0)
        self._contact_s = -math.inf
        self._probe_sent_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._attempts = process.number
        self._pending: dict[asyncio.Future[Any], bool] = {}
        self._session_callbacks: Callbacks[Session] = Callbacks()
        self._watches: dict[object, Callable[[], None]] = {}
        self._cancels: dict[object, Cancel] = {}

    @property
    def session(self) -> Session:
        """See ``Coordinator``."""
        return self._session

    @property
    def live_until_s(self) -> float:
        """See ``Coordinator``."""
        if self._session.state is not SessionState.CONNECTED:
            return -math.inf
        return self._contact_s + self.session_timeout_s * LIVE_SHARE

    async def start(self) -> None:
        """See ``Coordinator``."""
        if self._session.state is SessionState.CLOSED:
            self._change(SessionState.SUSPENDED)
            self._try_server()

    async def close(self) -> None:
        """See ``Coordinator``."""
        if self._session.state is SessionState.CLOSED:
            return
        if self._timer is not None:
            self._timer.cancel()
        for cancel in list(self._cancels.values()):
            cancel()
        connection, owner = self._connection, self.owner
        self._connection = None
        if connection is not None:
            connection.to_server(lambda: self.ensemble.end_session(owner))
        self._fail_pending()
        self._change(SessionState.CLOSED)
        self._session_callbacks.clear()

    def on_session(self, callback: Callable[[Session], None]) -> Cancel:
        """See ``Coordinator``."""
        return self._session_callbacks.add(callback)

    # ------------------------------------------------------------ the session

    def _later(self, delay_s: float, step: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.process.loop.call_later(delay_s, step)

    def _try_server(self) -> None:
        """Turn to the next server."""
        if self._session.state not in {SessionState.SUSPENDED, SessionState.LOST}:
            return
        ensemble = self.ensemble
        self._attempts += 1
        server = ensemble.servers[self._attempts % len(ensemble.servers)]
        if not ensemble.serves(server, self.process.machine):
            self._later(RECONNECT_S, self._try_server)
            return
        connection = self._connection = _Connection(self, server)
        self.owner_at_server = connection  # what was sent on the former one is void from here on
        self._later(self.session_timeout_s * UNANSWERED_SHARE, self._give_up)

        def at_server() -> None:
            is_live = ensemble.store.is_live(self.owner)
            if is_live:
                ensemble.hear(self.owner)
            connection.to_client(lambda: self._connected(is_live))

        sent_s = self.process.monotonic_s()
        self._probe_sent_s = sent_s
        connection.to_server(at_server)

    def _connected(self, is_live: bool) -> None:
        connection = self._connection
        if connection is None:
            return
        if is_live:
            self._contact_s = self._probe_sent_s or -math.inf
            self._probe_sent_s = None
            self._change(SessionState.CONNECTED)
            self._poke_all()
            self._probe_later()
            return
        if self.owner and self._session.state is SessionState.SUSPENDED:
            self._lose()
            return
        sent_s = self.process.monotonic_s()

        def open_at_server() -> None:
            owner = self.ensemble.open_session(self)

            def opened() -> None:
                self.owner = owner
                self._contact_s, self._probe_sent_s = sent_s, None
                self._change(SessionState.CONNECTED, self._session.number + 1)
                self._poke_all()
                self._probe_later()

            connection.to_client(opened)

        connection.to_server(open_at_server)

    def _probe_later(self) -> None:
        self._later(self.session_timeout_s * PROBE_SHARE, self._probe)

    def _probe(self) -> None:
        """Ask for a sign of life that only a server with a quorum can give."""
        connection = self._connection
        if connection is None or self._session.state is not SessionState.CONNECTED:
            return
        if self.process.monotonic_s() >= self.live_until_s:
            self._give_up()
            return
        sent_s = self._probe_sent_s = self.process.monotonic_s()

        def at_server() -> None:
            if not self.ensemble.store.is_live(self.owner):
                connection.to_client(self._lose)
                return
            self.ensemble.hear(self.owner)
            connection.to_client(answered)

        def answered() -> None:
            self._contact_s = max(self._contact_s, sent_s)
            self._probe_sent_s = None
            self._probe_later()

        connection.to_server(at_server)
        self._later(self.session_timeout_s * UNANSWERED_SHARE, self._give_up)

    def _give_up(self) -> None:
        """No answer: SUSPENDED, and on to the next server."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.is_open = False
        self._fail_pending()
        if self._session.state is SessionState.CONNECTED:
            self._change(SessionState.SUSPENDED)
        self._try_server()

    def _lose(self) -> None:
        """The session has ended."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.is_open = False
        self.owner_at_server = None
        self._fail_pending()
        self._change(SessionState.LOST)
        self._later(0.01, self._try_server)

    def _change(self, state: SessionState, number: int | None = None) -> None:
        session = Session(state, self._session.number if number is None else number)
        if session != self._session:
            self._session = session
            self._session_callbacks.call(session)

    def _fail_pending(self) -> None:
        pending, self._pending = self._pending, {}
        for future, is_commit in pending.items():
            if not future.done():
                kind = OutcomeUnknown if is_commit else Unavailable
                future.set_exception(kind("the connection to the store was lost during the call"))

    # ------------------------------------------------------------ calls

    async def _call(self, work: Callable[[], Any], *, is_commit: bool) -> Any:
        """Run ``work`` at the server and bring back what it gives or raises."""
        connection = self._connection
        if connection is None or self._session.state is not SessionState.CONNECTED:
            raise Unavailable(f"not connected to the store: {self._session.state.value}")
        if self.process.monotonic_s() >= self.live_until_s:
            self._give_up()
            raise Unavailable("not connected to the store: nothing was heard of it for long")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[future] = is_commit
        owner = self.owner

        def resolve(result: Any, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def at_server() -> None:
            ensemble = self.ensemble
            if not ensemble.store.is_live(owner):
                connection.to_client(self._lose)
                return
            ensemble.hear(owner)
            if is_commit and ensemble.refuses_writes:
                return  # a full disk: the log takes nothing, and nobody is answered
            try:
                result = work()
            except CommitConflict as error:
                refused = error
                connection.to_client(lambda: resolve(None, refused))
            else:
                connection.to_client(lambda: resolve(result, None))

        connection.to_server(at_server, DISK_S if is_commit else 0.0)
        kind = OutcomeUnknown if is_commit else Unavailable
        try:
            async with asyncio.timeout(self.operation_timeout_s):
                return await future
        except TimeoutError:
            raise kind("no answer from the store in time") from None
        finally:
            self._pending.pop(future, None)
            if future.done() and not future.cancelled():
                future.exception()

    async def read(self, path: str) -> Entry | None:
        """See ``Coordinator``."""
        require_path(path)
        entry: Entry | None = await self._call(
            lambda: self.ensemble.store.read(path, self.owner), is_commit=False
        )
        return entry

    async def children(self, path: str) -> list[str]:
        """See ``Coordinator``."""
        require_path(path)
        names: list[str] = await self._call(
            lambda: self.ensemble.store.children(path)[0], is_commit=False
        )
        return names

    async def read_children(self, path: str) -> dict[str, Entry]:
        """See ``Coordinator``."""
        entries = await self.read_many([f"{path}/{name}" for name in await self.children(path)])
        return {child.rpartition("/")[2]: entry for child, entry in entries.items()}

    async def children_of_many(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """See ``Coordinator``."""
        for path in paths:
            require_path(path)
        store, taken = self.ensemble.store, list(paths)
        lists: dict[str, list[str]] = await self._call(
            lambda: {path: store.children(path)[0] for path in taken}, is_commit=False
        )
        return lists

    async def read_many(self, paths: Sequence[str]) -> dict[str, Entry]:
        """See ``Coordinator``."""
        for path in paths:
            require_path(path)
        store, taken, owner = self.ensemble.store, list(paths), self.owner

        def work() -> dict[str, Entry]:
            found = ((path, store.read(path, owner)) for path in taken)
            return {path: entry for path, entry in found if entry is not None}

        entries: dict[str, Entry] = await self._call(work, is_commit=False)
        return entries

    async def commit(self, operations: Sequence[Operation]) -> list[Applied]:
        """See ``Coordinator``."""
        require_commit(operations)
        owner, taken = self.owner, list(operations)
        results: list[Applied] = await self._call(
            lambda: self.ensemble.commit(taken, owner), is_commit=True
        )
        return results

    # ------------------------------------------------------------ watches

    def watch(self, path: str, callback: Callable[[Entry | None], None]) -> Cancel:
        """See ``Coordinator``."""
        require_path(path)
        level = Level(callback)

        def offer() -> Callable[[], None]:
            entry = self.ensemble.store.read(path, self.owner)
            return lambda: level.offer(entry, entry)

        return self._watch(path, offer, level.cancel)

    def watch_children(self, path: str, callback: Callable[[list[str]], None]) -> Cancel:
        """See ``Coordinator``."""
        require_path(path)
        level = Level(callback)

        def offer() -> Callable[[], None]:
            names, revision = self.ensemble.store.children(path)
            return lambda: level.offer(names, revision)

        return self._watch(path, offer, level.cancel)

    def _watch(
        self, path: str, offer: Callable[[], Callable[[], None]], forget: Callable[[], None]
    ) -> Cancel:
        """Tell of ``path`` now and after each touch: read at the server, once for several."""
        key = object()
        on_way: list[_Connection] = []

        def poke() -> None:
            connection = self._connection
            if connection is None or not connection.is_open or connection in on_way:
                return
            on_way.append(connection)

            def at_server() -> None:
                on_way.remove(connection)
                told = offer()
                connection.to_client(
                    lambda: told() if self._session.state is SessionState.CONNECTED else None
                )

            connection.to_server(at_server)

        untouch = self.ensemble.store.on_touch(path, poke)

        def cancel() -> None:
            forget()
            untouch()
            self._watches.pop(key, None)
            self._cancels.pop(key, None)

        self._watches[key] = poke
        self._cancels[key] = cancel
        poke()
        return cancel

    def _poke_all(self) -> None:
        for poke in list(self._watches.values()):
            poke()

"""The ZooKeeper driver's session: one kazoo client after the other, and proof of life.

One kazoo client is one session: when it ends, the next session gets a new client. kazoo's threads
only ever post to the event loop; everything that is decided here is decided on the loop.

How we know that the session lives: every quarter of the session time-out we ask for a ``sync``,
which a server can only answer together with its leader. (A server cut off from its quorum goes on
answering reads and pings for a while, so those prove nothing.) An answer proves that the leader had
not given the session up, and whichever server took the question keeps the session for a whole
time-out from then on. With a session time-out of 1:

=====  =============================================================================================
0      the last question that was answered is sent
1/4    the next one is sent; a server answers within milliseconds
7/12   still no answer: the connection is dropped (``SUSPENDED``) and the next server tried
2/3    whatever kazoo says, ``live_until_s`` is over and the state is ``SUSPENDED``
3/4    the soonest that the ensemble can end the session: the server that took the question may die
       before it passes on, half a tick later, that it heard of us, and a session has two ticks
=====  =============================================================================================

``CONNECTED`` is reported only after such a ``sync`` on the new connection, so that whatever was
asked on the one before has happened by then or never will, and is seen.
"""

from __future__ import annotations  # kazoo's classes take no parameters at run time.

import asyncio
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kazoo.interfaces import IAsyncResult
from kazoo.protocol.states import KazooState

from snooze.common.clock import Clock
from snooze.common.coordination._kazoo import Client, Connected
from snooze.common.coordination.callbacks import Callbacks
from snooze.common.coordination.port import Session, SessionState, Unavailable

_log = logging.getLogger(__name__)
_kazoo_log = logging.getLogger(f"{__name__}.kazoo")
_kazoo_log.setLevel(logging.ERROR)  # It warns of every attempt to connect; we tell of each change.
_T = TypeVar("_T")

_PROBE_SHARE = 1 / 4
_UNANSWERED_SHARE = 1 / 3
_LIVE_SHARE = 2 / 3
_SUPERVISE_SHARE = 1 / 40

_MAX_IN_FLIGHT = 100
"""Requests handed to kazoo at once. Each leaves a byte in a socket pair that is emptied only while
the server takes requests; about 270 bytes fill it, and then handing over blocks the event loop."""

_CLOSE_TIMEOUT_S = 3.0
_REOPEN_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """One connection of one client; a reconnect makes another."""

    client: Client
    session_id: int
    session_timeout_s: float


class SessionKeeper:
    """Keeps a session open, from ``start`` to ``close``, and sends requests in it."""

    def __init__(
        self,
        hosts: str,
        root: str,
        session_timeout_s: float,
        operation_timeout_s: float,
        clock: Clock,
    ) -> None:
        self.session = Session(SessionState.CLOSED, 0)
        self.on_session: Callbacks[Session] = Callbacks()
        self._hosts = hosts
        self._root = root
        self._session_timeout_s = session_timeout_s
        self._operation_timeout_s = operation_timeout_s
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._client_has_number = False
        self._opened_s = -math.inf
        self._link: Link | None = None
        self._is_synced = False
        self._contact_s = -math.inf
        self._probe_sent_s: float | None = None
        self._slots = asyncio.Semaphore(_MAX_IN_FLIGHT)

    @property
    def session_id(self) -> int | None:
        """ZooKeeper's number of the session, while there is a connection."""
        return None if self._link is None else self._link.session_id

    @property
    def live_until_s(self) -> float:
        """See ``Coordinator``."""
        if self.session.state is not SessionState.CONNECTED or self._link is None:
            return -math.inf
        return self._contact_s + self._link.session_timeout_s * _LIVE_SHARE

    def start(self) -> None:
        """Begin to connect. Harmless when started."""
        if self._supervisor is None:
            self._loop = asyncio.get_running_loop()
            self._change(SessionState.SUSPENDED)
            self._open()
            self._supervisor = self._loop.create_task(self._supervise())

    async def close(self) -> None:
        """End the session; give up waiting for the server after a bound. Harmless when closed."""
        if self._supervisor is None:
            return
        self._supervisor.cancel()
        self._supervisor = None
        client, self._client, self._link = self._client, None, None
        self._change(SessionState.CLOSED)
        self.on_session.clear()
        if client is not None:
            stopped = self._retire(client)
            try:
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await stopped.wait()
            except TimeoutError:
                _log.warning("ZooKeeper session left to its time-out", extra={"hosts": self._hosts})

    async def submit(
        self, number: int, start: Callable[[Client], IAsyncResult[_T]]
    ) -> asyncio.Future[IAsyncResult[_T]]:
        """Send a request in session ``number``, once fewer than the bound are under way.

        Args:
            number: the session's; in any other the request is not sent.
            start: hands the request to kazoo.

        Returns: what will hold kazoo's answer or error; it always comes, if only when the
            connection is lost. Requests are sent in the order of the calls.
        Raises: Unavailable, and then the request was not sent and never will be.
        """
        session = Session(SessionState.CONNECTED, number)
        if self.session != session:
            raise Unavailable(f"not connected to ZooKeeper: {self.session.state.value}")
        try:
            async with asyncio.timeout(self._operation_timeout_s):
                await self._slots.acquire()
        except TimeoutError:
            raise Unavailable("ZooKeeper is too slow: too many requests are waiting") from None
        if self.session != session or self._link is None:
            self._slots.release()
            raise Unavailable(f"not connected to ZooKeeper: {self.session.state.value}")
        future: asyncio.Future[IAsyncResult[_T]] = asyncio.get_running_loop().create_future()

        def finish(answer: IAsyncResult[_T]) -> None:
            self._slots.release()
            if not future.done():
                future.set_result(answer)

        start(self._link.client).rawlink(lambda answer: self.post(lambda: finish(answer)))
        return future

    def post(self, step: Callable[[], None]) -> None:
        """Run ``step`` on the event loop; called by kazoo's threads, which may outlive the loop."""
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(step)
            except RuntimeError:
                _log.debug("the event loop ended before a thread of kazoo")

    def _open(self) -> None:
        self._opened_s = self._clock.monotonic_s()
        self._client_has_number = False
        self._client = Client(
            self._hosts,
            self._session_timeout_s,
            clock=self._clock,
            on_connected=lambda client, it: self.post(lambda: self._connected(client, it)),
            on_state=lambda client, state: self.post(lambda: self._kazoo_state(client, state)),
            logger=_kazoo_log,
        )
        self._client.start_async()

    def _connected(self, client: Client, connected: Connected) -> None:
        if client is self._client:
            self._link = Link(client, connected.session_id, connected.session_timeout_s)
            self._contact_s = connected.begun_s
            self._is_synced = False
            self._probe(self._link)

    def _kazoo_state(self, client: Client, state: str) -> None:
        if client is not self._client or state == KazooState.CONNECTED:
            return
        self._link = None
        self._suspend()
        if state == KazooState.LOST:
            self._client = None  # The supervisor opens the next one.
            self._retire(client)
            if self._client_has_number:
                self._change(SessionState.LOST)
                self._supervise_once()

    def _suspend(self) -> None:
        if self.session.state is SessionState.CONNECTED:
            self._change(SessionState.SUSPENDED)

    def _change(self, state: SessionState, number: int | None = None) -> None:
        self.session = Session(state, self.session.number if number is None else number)
        is_bad = state in {SessionState.SUSPENDED, SessionState.LOST} and self.session.number > 0
        _log.log(
            logging.WARNING if is_bad else logging.INFO,
            "ZooKeeper session %s",
            state.value,
            extra={"hosts": self._hosts, "number": self.session.number},
        )
        self.on_session.call(self.session)

    def _probe(self, link: Link) -> None:
        sent_s = self._probe_sent_s = self._clock.monotonic_s()
        answer = link.client.sync_async(self._root)
        answer.rawlink(lambda answer: self.post(lambda: self._probed(link, sent_s, answer)))

    def _probed(self, link: Link, sent_s: float, answer: IAsyncResult[str]) -> None:
        if link is not self._link or answer.exception is not None:
            return
        self._contact_s = max(self._contact_s, sent_s)
        self._probe_sent_s = None
        self._is_synced = True
        self._supervise_once()

    async def _supervise(self) -> None:
        while True:
            timeout_s = self._link.session_timeout_s if self._link else self._session_timeout_s
            await asyncio.sleep(timeout_s * _SUPERVISE_SHARE)
            self._supervise_once()

    def _supervise_once(self) -> None:
        now_s = self._clock.monotonic_s()
        if self._client is None and now_s >= self._opened_s + _REOPEN_INTERVAL_S:
            self._open()
        link = self._link
        if link is None:
            return
        if now_s >= self._contact_s + link.session_timeout_s * _LIVE_SHARE:
            self._suspend()
        elif self._is_synced and self.session.state is not SessionState.CONNECTED:
            number = self.session.number + (0 if self._client_has_number else 1)
            self._client_has_number = True
            self._change(SessionState.CONNECTED, number)
        if self._probe_sent_s is None:
            if now_s >= self._contact_s + link.session_timeout_s * _PROBE_SHARE:
                self._probe(link)
        elif now_s >= self._probe_sent_s + link.session_timeout_s * _UNANSWERED_SHARE:
            _log.warning("ZooKeeper server does not answer", extra={"hosts": self._hosts})
            self._link = None
            self._suspend()
            link.client.drop()

    def _retire(self, client: Client) -> asyncio.Event:
        """Stop a client in a thread of its own: kazoo waits for its threads, perhaps for long."""
        stopped = asyncio.Event()

        def stop() -> None:
            try:
                client.stop()
                client.close()
            except Exception:  # noqa: BLE001 - top of its thread
                _log.exception("a kazoo client could not be stopped")
            self.post(stopped.set)

        threading.Thread(target=stop, name="zookeeper-close", daemon=True).start()
        return stopped

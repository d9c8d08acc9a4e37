"""kazoo's client, made fit for deciding by it.

Used as it comes, kazoo (2.11) does four things that a leader cannot live with:

- It does not say what session time-out the server granted, nor when a connection was begun.
- It notices a silent server by unanswered pings only, and sends none while requests are sent: a
  busy client of a frozen server stays ``CONNECTED`` for as long as it is busy.
- It gives each server a whole session time-out to accept a connection and a generous share of one
  to answer, so that one dead or frozen machine in the list can cost the session.
- Its waits between attempts to connect grow up to an hour.

The first three are mended here, by overriding ``_connect`` and ``_invoke`` of its
``ConnectionHandler`` and ``create_connection`` of its handler of threads; the fourth by a setting.
All that touches what kazoo does not promise is in this file.

Threads: kazoo has three of its own per client. Whatever is called back from here runs on them.
"""

import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

from kazoo.client import KazooClient
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.connection import ConnectionHandler
from kazoo.retry import KazooRetry

from snooze.common.clock import Clock

_RETRY_DELAY_S = 0.05
_MIN_CONNECT_S = 0.1
_READ_TIMEOUT_SHARE = 2.0 / 3.0
"""Of the granted session time-out; Source: kazoo.protocol.connection.ConnectionHandler._connect."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection was made and the server granted or confirmed a session.

    ``begun_s``: when the connection was begun, by the client's clock, that is, before the server
    can have heard of it.
    """

    session_id: int
    session_timeout_s: float
    begun_s: float


class Client(KazooClient):
    """A kazoo client that tells what it was granted and can be made to try another server."""

    def __init__(
        self,
        hosts: str,
        session_timeout_s: float,
        *,
        clock: Clock,
        on_connected: Callable[["Client", Connected], None],
        on_state: Callable[["Client", str], None],
        logger: logging.Logger,
    ) -> None:
        servers = hosts.count(",") + 1
        connect_s = max(_MIN_CONNECT_S, session_timeout_s / (2 * servers))
        super().__init__(
            hosts,
            session_timeout_s,
            handler=_Handler(connect_s),
            connection_retry=KazooRetry(
                max_tries=-1, delay=_RETRY_DELAY_S, max_delay=session_timeout_s / 8
            ),
            logger=logger,
        )
        self.clock = clock
        self.on_connected = on_connected
        self._interruptible = _Connection(self, connect_s)
        self._connection = self._interruptible
        self.add_listener(lambda state: on_state(self, state))

    def connection_retry(self) -> KazooRetry:
        """A fresh copy of how to retry connecting."""
        return self._conn_retry.copy()

    def drop(self) -> None:
        """Give the present connection up; kazoo then tries the next server, in the same session."""
        self._interruptible.drop()


class _Handler(SequentialThreadingHandler):
    """Bounds the wait for one server to accept a connection."""

    def __init__(self, connect_timeout_s: float) -> None:
        super().__init__()
        self._connect_timeout_s = connect_timeout_s

    def create_connection(
        self, address: tuple[str, int], *, timeout: float, **options: object
    ) -> socket.socket:
        bounded_s = min(timeout, self._connect_timeout_s)
        return super().create_connection(address=address, timeout=bounded_s, **options)


class _Connection(ConnectionHandler):
    """Tells of each connection made, and bounds the wait for a server to open the session."""

    def __init__(self, client: Client, connect_timeout_s: float) -> None:
        super().__init__(client, client.connection_retry(), logger=client.logger)
        self._owner = client
        self._connect_timeout_s = connect_timeout_s

    def _invoke(
        self, timeout: float, request: object, xid: int | None = None
    ) -> tuple[object, int | None]:
        return super()._invoke(min(timeout, self._connect_timeout_s), request, xid)

    def _connect(self, host: str, hostip: str, port: int) -> tuple[float, float]:
        begun_s = self._owner.clock.monotonic_s()
        read_timeout_ms, connect_timeout_ms = super()._connect(host, hostip, port)
        session_timeout_s = read_timeout_ms / _READ_TIMEOUT_SHARE / 1000
        session = self._owner.client_id
        if session is not None:
            connected = Connected(session[0], session_timeout_s, begun_s)
            self._owner.on_connected(self._owner, connected)
        return read_timeout_ms, connect_timeout_ms

    def drop(self) -> None:
        present = self._socket
        if present is not None:
            with contextlib.suppress(OSError):  # Closed already.
                present.shutdown(socket.SHUT_RDWR)

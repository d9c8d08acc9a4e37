"""One connection to a libvirt: kept alive, watched, and opened again when it is lost."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, TypeVar

import libvirt

from snooze.common.errors import (
    Conflict,
    ExecutionError,
    InvalidRequest,
    NotFound,
    RemoteError,
    RemoteTimeout,
    SnoozeError,
)
from snooze.localcontroller.hypervisor.libvirt_options import LibvirtOptions
from snooze.localcontroller.hypervisor.libvirt_runtime import WorkerPool, start_event_loop
from snooze.localcontroller.hypervisor.libvirt_shared import SharedConnection
from snooze.localcontroller.hypervisor.libvirt_uri import explain, without_questions
from snooze.localcontroller.hypervisor.port import ConnectionChange

log = logging.getLogger(__name__)

T = TypeVar("T")

LifecycleCallback = Callable[[str, str, int, int], None]
"""Called on the event loop with a domain's UUID (hex), name, event and detail."""

MAX_LOST_THREADS: Final = 64
"""Threads abandoned in calls that never returned; beyond this no connection is opened."""


class LibvirtConnection:
    """A ``virConnect`` that comes back.

    Args:
        on_lifecycle: told of every lifecycle event.
        on_connection: told when the connection is lost and when it is back.
        thread_initializer: run first in each thread that calls libvirt; a lab enters a host's
            namespaces with it.
    """

    def __init__(
        self,
        options: LibvirtOptions,
        on_lifecycle: LifecycleCallback,
        on_connection: Callable[[ConnectionChange], None],
        thread_initializer: Callable[[], None] | None = None,
    ) -> None:
        self._options = options
        self._on_lifecycle = on_lifecycle
        self._on_connection = on_connection
        self._initializer = thread_initializer
        self._pool = self._new_pool(options.workers)
        self._migration_pool = self._new_pool(options.max_migrations)
        self._abandoned: list[WorkerPool] = []
        self._connection: SharedConnection | None = None
        self._event_id = -1
        self._attempt = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._closed = True

    @property
    def is_connected(self) -> bool:
        """Whether calls are sent at all."""
        return self._connection is not None

    async def open(self) -> None:
        """Connect.

        Raises:
            RemoteError: if that fails; nothing is retried.
        """
        if not self._closed:
            return
        start_event_loop()
        self._loop = asyncio.get_running_loop()
        self._pool = self._new_pool(self._options.workers)
        self._migration_pool = self._new_pool(self._options.max_migrations)
        self._closed = False
        try:
            self._connection = await self._connect()
        except BaseException:
            self._closed = True
            self._attempt += 1  # should it come after all, it is closed where it comes
            self._pool.close()
            self._migration_pool.close()
            raise

    async def close(self) -> None:
        """Let go of connection and threads."""
        self._closed = True
        self._attempt += 1
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.gather(self._reconnecting, return_exceptions=True)
            self._reconnecting = None
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._discard(connection)
        self._pool.close()
        self._migration_pool.close()

    async def call(
        self,
        what: str,
        work: Callable[[libvirt.virConnect], T],
        timeout_s: float | None = None,
        *,
        migrating: bool = False,
    ) -> T:
        """Run ``work`` with the connection in a worker thread.

        Args:
            what: for messages: ``start VM 'x'``.
            migrating: use a thread of the migrations, which are few and take long.

        Raises:
            SnoozeError: as the port promises; libvirt's own errors are translated.
        """
        connection = self._connection
        if connection is None:
            raise RemoteError(f"{what}: there is no connection to {self._options.uri}")
        limit_s = self._options.call_timeout_s if timeout_s is None else timeout_s
        pool = self._migration_pool if migrating else self._pool
        try:
            return await pool.run(what, lambda: connection.use(work), limit_s)
        except libvirt.libvirtError as error:
            if not connection.is_alive():
                self._lose(connection, f"{what}: {error}")
                raise RemoteTimeout(
                    f"{what}: the connection broke; it may have happened: {error}"
                ) from error
            raise translate(error, what) from error
        except OSError as error:
            raise ExecutionError(f"{what}: {error}") from error
        except RemoteTimeout:
            if pool.is_exhausted:
                self._lose(connection, "no thread came back in time")
            raise
        except SnoozeError:
            raise
        except Exception as error:
            # The port promises our errors, and whoever calls lives by that: a loop that ends, or a
            # host that joins no more, would be worse than one answer that cannot be read.
            log.exception("what libvirt said was not understood", extra={"what": what})
            raise ExecutionError(f"{what}: {type(error).__name__}: {error}") from error

    def _new_pool(self, size: int) -> WorkerPool:
        return WorkerPool("libvirt", size, self._options.max_waiting, self._initializer)

    async def _connect(self) -> SharedConnection:
        """A connection that is watched."""
        options = self._options
        self._attempt += 1
        attempt = self._attempt
        try:
            connection = await self._pool.run(
                f"connect to {options.uri}",
                lambda: self._open_watched(attempt),
                options.connect_timeout_s,
            )
        except libvirt.libvirtError as error:
            raise RemoteError(explain(options.uri, str(error))) from error
        except RemoteTimeout as error:
            said = f"timed out: no answer within {options.connect_timeout_s:g} s"
            raise RemoteTimeout(explain(options.uri, said)) from error
        if self._closed:  # closed while we were connecting
            await self._discard(connection)
            raise RemoteError(f"the connection to {options.uri} is closed")
        return connection

    def _open_watched(self, attempt: int) -> SharedConnection:
        """In a worker: open, keep alive, and listen."""
        options = self._options
        connection = libvirt.open(without_questions(options.uri))
        shared = SharedConnection(connection)
        try:
            _if_supported(
                lambda: connection.setKeepAlive(
                    options.keepalive_interval_s, options.keepalive_count
                )
            )
            _if_supported(lambda: connection.registerCloseCallback(self._hear_close, shared))
            event_id = connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._hear_lifecycle, None
            )
        except BaseException:
            shared.end()
            raise
        if attempt != self._attempt:  # too late: nobody waits, or somebody tries anew
            _close_watched(shared, event_id)
            raise RemoteError(f"the connection to {options.uri} came too late")
        self._event_id = event_id
        return shared

    def _hear_close(
        self, connection: libvirt.virConnect, reason: int, opaque: SharedConnection
    ) -> None:
        """On libvirt's thread."""
        silent = reason == libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE
        text = "the peer is silent" if silent else f"closed by the peer (reason {reason})"
        self._call_soon(lambda: self._lose(opaque, text))

    def _hear_lifecycle(
        self,
        connection: libvirt.virConnect,
        domain: libvirt.virDomain,
        event: int,
        detail: int,
        opaque: None,
    ) -> None:
        """On libvirt's thread; neither call leaves the process."""
        name, uuid_hex = domain.name(), domain.UUIDString().replace("-", "")
        self._call_soon(lambda: self._on_lifecycle(uuid_hex, name, event, detail))

    def _call_soon(self, work: Callable[[], None]) -> None:
        loop = self._loop
        if loop is None or self._closed:
            return
        try:
            loop.call_soon_threadsafe(work)
        except RuntimeError:
            log.debug("libvirt had news after the event loop was closed")

    def _lose(self, connection: SharedConnection, reason: str) -> None:
        """The connection is of no use any more: say so once, and open another."""
        if self._closed or self._connection is not connection:
            return  # known, or news of an older connection
        self._connection = None
        log.warning("connection lost", extra={"uri": self._options.uri, "reason": reason})
        if self._pool.lost or self._migration_pool.lost:
            self._abandon_pools()
        self._on_connection(ConnectionChange(False, reason))
        self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect(connection))

    def _abandon_pools(self) -> None:
        """Leave threads that hang in calls on the old connection to themselves."""
        for pool in (self._pool, self._migration_pool):
            pool.close()
            self._abandoned.append(pool)
        self._pool = self._new_pool(self._options.workers)
        self._migration_pool = self._new_pool(self._options.max_migrations)

    async def _reconnect(self, old: SharedConnection) -> None:
        await self._discard(old)
        delay_s = self._options.reconnect_min_s
        while not self._closed:
            try:
                self._abandoned = [pool for pool in self._abandoned if pool.lost]
                if sum(pool.lost for pool in self._abandoned) >= MAX_LOST_THREADS:
                    raise RemoteError("too many threads hang in calls that do not return")
                self._connection = await self._connect()
            except SnoozeError as error:
                log.info("no connection yet", extra={"reason": error.message})
                if self._pool.is_exhausted:
                    self._abandon_pools()
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, self._options.reconnect_max_s)
            else:
                log.info("connected again", extra={"uri": self._options.uri})
                self._reconnecting = None
                self._on_connection(ConnectionChange(True))
                return

    async def _discard(self, connection: SharedConnection) -> None:
        """Close a connection, whatever state it is in."""
        event_id = self._event_id
        try:
            await self._pool.run(
                "close", lambda: _close_watched(connection, event_id), self._options.call_timeout_s
            )
        except SnoozeError as error:
            log.info("a connection did not close", extra={"reason": error.message})


def translate(error: libvirt.libvirtError, what: str) -> SnoozeError:
    """libvirt's error as one of ours: whose fault, and what changed."""
    code = error.get_error_code()
    message = f"{what}: {error.get_error_message() or error}"
    kind = _KINDS.get(code if code is not None else -1, ExecutionError)
    return kind(message)


_KINDS: Final[dict[int, type[SnoozeError]]] = {
    libvirt.VIR_ERR_NO_DOMAIN: NotFound,
    libvirt.VIR_ERR_OPERATION_INVALID: Conflict,
    libvirt.VIR_ERR_DOM_EXIST: Conflict,
    libvirt.VIR_ERR_XML_ERROR: InvalidRequest,
    libvirt.VIR_ERR_XML_DETAIL: InvalidRequest,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: InvalidRequest,
    libvirt.VIR_ERR_INVALID_ARG: InvalidRequest,
}


def is_code(error: libvirt.libvirtError, *codes: int) -> bool:
    """Whether an error has one of libvirt's codes."""
    return error.get_error_code() in codes


def has_job(domain: libvirt.virDomain) -> bool:
    """Whether something is done with a domain now: it is saved, say, or it comes or goes."""
    try:
        return bool(domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
    except libvirt.libvirtError as error:
        if is_code(error, libvirt.VIR_ERR_OPERATION_UNSUPPORTED):
            return True  # a guest that comes: of that its source alone says more
        raise


def _if_supported(call: Callable[[], object]) -> None:
    try:
        call()
    except libvirt.libvirtError as error:
        if not is_code(error, libvirt.VIR_ERR_NO_SUPPORT):
            raise


def _close_watched(connection: SharedConnection, event_id: int) -> None:
    _if_it_works(connection, lambda c: c.domainEventDeregisterAny(event_id))
    _if_it_works(connection, lambda c: c.unregisterCloseCallback())
    connection.end()


def _if_it_works(
    connection: SharedConnection, call: Callable[[libvirt.virConnect], object]
) -> None:
    try:
        connection.use(call)
    except (libvirt.libvirtError, RemoteError) as error:
        log.debug("not closed cleanly", extra={"reason": str(error)})

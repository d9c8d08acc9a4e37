"""A ``virConnect`` that several threads use, and one may close.

libvirt frees a connection as soon as it is closed, whoever is in a call on it: that call, or one
that begins in this instant, reads freed memory, and the process dies (seen with libvirt 9.0). So a
connection is closed when nobody is in a call any more; until then it only takes no new ones.
"""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import libvirt

from snooze.common.errors import RemoteError

log = logging.getLogger(__name__)

T = TypeVar("T")


class SharedConnection:
    """One open connection; every call on it goes through ``use``. Safe from any thread."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        """``connection`` is closed by this object, and used by nobody else."""
        self._connection = connection
        self._lock = threading.Lock()
        self._users = 0
        self._ended = False
        self._closed = False

    def use(self, work: Callable[[libvirt.virConnect], T]) -> T:
        """Run ``work`` with the connection, in this thread.

        Raises:
            RemoteError: it has ended; nothing was asked.
        """
        with self._lock:
            if self._ended:
                raise RemoteError("this connection to libvirt has ended")
            self._users += 1
        try:
            return work(self._connection)
        finally:
            with self._lock:
                self._users -= 1
            self._close_unused()

    def is_alive(self) -> bool:
        """Whether libvirt still believes in it; asks nobody, and never closes it: no wait."""
        with self._lock:
            try:
                return not self._ended and self._connection.isAlive() == 1
            except libvirt.libvirtError:
                return False

    def end(self) -> None:
        """Take no calls from now on, and close it: now, or when the last call under way is over."""
        with self._lock:
            self._ended = True
        self._close_unused()

    def _close_unused(self) -> None:
        with self._lock:
            if not self._ended or self._users or self._closed:
                return
            self._closed = True
        try:
            self._connection.close()
        except libvirt.libvirtError as error:
            log.debug("not closed cleanly", extra={"reason": str(error)})

"""libvirt in a process: its one event loop, and the bounded threads in which its calls block.

libvirt has one event loop per process, to be registered before the first connection is opened;
without it keepalive does not run, and a call to a host that died silently hangs for good.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

import libvirt

from snooze.common.errors import RemoteTimeout, TooBusy

log = logging.getLogger(__name__)

T = TypeVar("T")

_start_lock = threading.Lock()
_started = threading.Event()

IDLE_S: Final = 30.0
"""A worker thread that had nothing to do for so long ends."""


def start_event_loop() -> None:
    """Run libvirt's event loop in a thread of its own; once per process, however often called."""
    with _start_lock:
        if _started.is_set():
            return
        libvirt.registerErrorHandler(_ignore_error, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True).start()
        _started.set()


def _ignore_error(context: None, error: object) -> None:
    """Errors are raised as exceptions; libvirt need not print them, too."""


def _run_event_loop() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            log.exception("libvirt's event loop failed once; it goes on")


class _Job(Generic[T]):
    """One call, waiting or running."""

    __slots__ = ("_work", "future")

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self.future: Future[T] = Future()

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001  # it belongs to the caller, all of it
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class WorkerPool:
    """Daemon threads for blocking calls: bounded in number, in waiting calls, and in time.

    A thread whose call timed out is *lost* until the call returns. Unlike those of
    ``concurrent.futures``, lost threads do not keep the process from ending.
    """

    def __init__(
        self,
        name: str,
        size: int,
        max_waiting: int,
        initializer: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self._size = size
        self._max_waiting = max_waiting
        self._initializer = initializer
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._unfinished = 0
        self._lost = 0
        self._closed = False

    @property
    def lost(self) -> int:
        """Threads whose calls timed out and have not come back."""
        return self._lost

    @property
    def is_exhausted(self) -> bool:
        """Whether every thread is lost."""
        return self._lost >= self._size

    async def run(self, what: str, work: Callable[[], T], timeout_s: float) -> T:
        """Run ``work`` in a thread and wait for it.

        Raises:
            TooBusy: if no thread got to it in time; nothing happened.
            RemoteTimeout: if it began and did not end in time; it may yet happen.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        job = _Job(work)
        job.future.add_done_callback(lambda done: _hand_over(loop, answer, done))
        self._submit(job.run, what)
        try:
            await asyncio.wait({answer}, timeout=timeout_s)
        except asyncio.CancelledError:
            job.future.cancel()
            raise
        if answer.done():
            return answer.result()
        if job.future.cancel():
            raise TooBusy(f"{what}: all threads were busy for {timeout_s:g} s", retry_after_s=1.0)
        with self._lock:
            self._lost += 1
        job.future.add_done_callback(lambda done: self._find_again())
        raise RemoteTimeout(f"{what}: no answer within {timeout_s:g} s; it may have happened")

    def close(self) -> None:
        """Let idle threads end at once and busy ones when their calls return."""
        with self._lock:
            self._closed = True
            for _ in range(self._threads):
                self._jobs.put(None)

    def _submit(self, job: Callable[[], None], what: str) -> None:
        with self._lock:
            if self._closed:
                raise TooBusy(f"{what}: the connection is closing")
            waiting = self._jobs.qsize()
            if waiting >= self._max_waiting:
                raise TooBusy(f"{what}: {waiting} calls are waiting already", retry_after_s=1.0)
            self._jobs.put(job)
            # Not by who is idle: a thread that has just taken a call would still count as such.
            self._unfinished += 1
            if self._threads < min(self._unfinished, self._size):
                self._threads += 1
                name = f"{self._name}-{self._threads}"
                threading.Thread(target=self._work, name=name, daemon=True).start()

    def _find_again(self) -> None:
        with self._lock:
            self._lost -= 1

    def _work(self) -> None:
        if self._initializer is not None:
            self._initializer()  # if it fails the thread ends, and says so by threading.excepthook
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                job = None
            if job is None:
                with self._lock:
                    if self._closed or self._jobs.empty():
                        self._threads -= 1
                        return
                continue
            job()
            del job  # or an idle thread keeps its last result alive
            with self._lock:
                self._unfinished -= 1


def _hand_over(loop: asyncio.AbstractEventLoop, answer: asyncio.Future[T], done: Future[T]) -> None:
    """From a worker thread: give the result to the event loop, if both are still there."""
    try:
        loop.call_soon_threadsafe(_settle, answer, done)
    except RuntimeError:
        log.debug("an answer came after the event loop was closed")


def _settle(answer: asyncio.Future[T], done: Future[T]) -> None:
    if answer.done() or done.cancelled():
        return
    error = done.exception()
    if error is not None:
        answer.set_exception(error)
        answer.exception()  # whoever stopped waiting does not make it a warning
    else:
        answer.set_result(done.result())

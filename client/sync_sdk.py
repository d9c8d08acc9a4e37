"""The SDK for programs without asyncio: ``AsyncSnooze`` on a thread of its own.

The methods are those of ``AsyncSnooze``, which documents them. A ``Snooze`` may be used from any
thread, also from several at once, and from code that itself runs inside an event loop (which it
blocks).
"""

import asyncio
import ssl
import threading
from collections.abc import Coroutine, Generator, Iterable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from snooze.client.async_sdk import WAIT_TIMEOUT_S, AsyncSnooze, OnProgress
from snooze.client.transport import Params
from snooze.common.api import (
    ClusterRequest,
    ClusterView,
    CommandRequest,
    DrainView,
    EnergyView,
    EventView,
    HierarchyView,
    HostView,
    HostWhyView,
    ImageView,
    ManagerView,
    PowerAnswer,
    TaskView,
    VmRequest,
    VmView,
)
from snooze.common.clock import SYSTEM_CLOCK, Clock
from snooze.common.vm_lifecycle import VmCommand

T = TypeVar("T")


class _LoopThread:
    """An event loop on a daemon thread; it holds nothing that outlives it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="snooze-client", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def run(self, work: Coroutine[object, object, T]) -> T:
        """The result of ``work``; an interrupt of the caller cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=5)


class Snooze:
    """One cluster, for plain programs. Close it, or use it as a context manager.

    Takes what ``AsyncSnooze`` takes. Its thread starts with the first call; after ``close`` the
    next call starts a new one.
    """

    def __init__(
        self,
        addresses: str | Iterable[str] | None = None,
        *,
        timeout_s: float = 30.0,
        clock: Clock = SYSTEM_CLOCK,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._cluster = AsyncSnooze(addresses, timeout_s=timeout_s, clock=clock, tls=tls)
        self._lock = threading.Lock()
        self._thread: _LoopThread | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """The front doors, as ``http://host:port``."""
        return self._cluster.addresses

    def close(self) -> None:
        """Close the connections and end the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.run(self._cluster.close())
            thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[object, object, T]) -> T:
        with self._lock:
            if self._thread is None:
                self._thread = _LoopThread()
            thread = self._thread
        return thread.run(work)

    def fetch(self, path: str, params: Params | None = None, *, hold_s: float = 0.0) -> bytes:
        """The JSON that ``GET /v1`` + ``path`` answers, as the server sent it."""
        return self._run(self._cluster.fetch(path, params, hold_s=hold_s))

    def cluster(self) -> ClusterView:
        """The cluster in one line."""
        return self._run(self._cluster.cluster())

    def vms(self) -> list[VmView]:
        """All VMs, those of others included (``managed`` is false)."""
        return self._run(self._cluster.vms())

    def vm(self, name: str) -> VmView:
        """One VM by its name or ``vm_id``, with the XML that really runs."""
        return self._run(self._cluster.vm(name))

    def hosts(self) -> list[HostView]:
        """All hosts."""
        return self._run(self._cluster.hosts())

    def host(self, name: str) -> HostView:
        """One host by its id or hostname."""
        return self._run(self._cluster.host(name))

    def why(self, host: str) -> HostWhyView:
        """What stands against emptying a host now; nothing: it is emptied soon."""
        return self._run(self._cluster.why(host))

    def managers(self) -> list[ManagerView]:
        """All group managers; one of them leads."""
        return self._run(self._cluster.managers())

    def hierarchy(self) -> HierarchyView:
        """The whole tree: leader, managers, hosts, VMs."""
        return self._run(self._cluster.hierarchy())

    def images(self) -> list[ImageView]:
        """The images that hosts can start VMs from."""
        return self._run(self._cluster.images())

    def tasks(self) -> list[TaskView]:
        """The tasks that the cluster remembers."""
        return self._run(self._cluster.tasks())

    def task(self, task_id: str, *, wait_s: float = 0.0) -> TaskView:
        """One task; with ``wait_s`` (at most 60) the answer waits for its end for so long."""
        return self._run(self._cluster.task(task_id, wait_s=wait_s))

    def submit(
        self, request: ClusterRequest | Sequence[VmRequest], *, idempotency_key: str = ""
    ) -> TaskView:
        """Ask for VMs; all are validated before any starts."""
        return self._run(self._cluster.submit(request, idempotency_key=idempotency_key))

    def command(
        self,
        name: str,
        command: VmCommand,
        request: CommandRequest | None = None,
        *,
        wait_s: float = 0.0,
        idempotency_key: str = "",
    ) -> TaskView:
        """Order ``command`` for one VM."""
        return self._run(
            self._cluster.command(
                name, command, request, wait_s=wait_s, idempotency_key=idempotency_key
            )
        )

    def start(self, name: str) -> TaskView:
        """Start a VM that is stopped or failed."""
        return self._run(self._cluster.start(name))

    def suspend(self, name: str) -> TaskView:
        """Pause a VM; its memory stays on its host."""
        return self._run(self._cluster.suspend(name))

    def resume(self, name: str) -> TaskView:
        """Let a paused VM run again."""
        return self._run(self._cluster.resume(name))

    def shutdown(self, name: str) -> TaskView:
        """Ask the guest to shut down; ``wait_settled`` tells when it has."""
        return self._run(self._cluster.shutdown(name))

    def reboot(self, name: str) -> TaskView:
        """Ask the guest to reboot."""
        return self._run(self._cluster.reboot(name))

    def destroy(self, name: str) -> TaskView:
        """Remove a VM, running or not."""
        return self._run(self._cluster.destroy(name))

    def resize(
        self,
        name: str,
        *,
        vcpus: int | None = None,
        memory_kib: int | None = None,
        rx_kib_s: float | None = None,
        tx_kib_s: float | None = None,
    ) -> TaskView:
        """Change what a VM is given; what is left out stays."""
        return self._run(
            self._cluster.resize(
                name, vcpus=vcpus, memory_kib=memory_kib, rx_kib_s=rx_kib_s, tx_kib_s=tx_kib_s
            )
        )

    def migrate(self, name: str, host: str) -> TaskView:
        """Move a running VM to ``host`` (id or hostname)."""
        return self._run(self._cluster.migrate(name, host))

    def drain(
        self, hosts: Sequence[str], *, deadline_s: float = 0.0, plan_only: bool = False
    ) -> DrainView:
        """Empty hosts by live migration and keep VMs off them, or only show how."""
        return self._run(self._cluster.drain(hosts, deadline_s=deadline_s, plan_only=plan_only))

    def confirm_dead(self, host: str) -> HostView:
        """Say that a host that is away is off: its VMs may be started elsewhere from now on."""
        return self._run(self._cluster.confirm_dead(host))

    def sleep_host(self, host: str, *, force: bool = False) -> PowerAnswer:
        """Put a host to sleep; ``force`` passes over reserve and maintenance, never over VMs."""
        return self._run(self._cluster.sleep_host(host, force=force))

    def wake_host(self, host: str) -> PowerAnswer:
        """Wake a host; a repeat is harmless."""
        return self._run(self._cluster.wake_host(host))

    def energy(self) -> EnergyView:
        """What the hosts used, and what was saved by those that slept."""
        return self._run(self._cluster.energy())

    def undrain(self, hosts: Sequence[str], *, bring_back: bool = False) -> DrainView:
        """Let hosts take VMs again; with ``bring_back``, those that left for a drain return."""
        return self._run(self._cluster.undrain(hosts, bring_back=bring_back))

    def wait(
        self,
        task: TaskView | str,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float = WAIT_TIMEOUT_S,
        check: bool = False,
    ) -> TaskView:
        """The task when it has ended; ``on_progress`` is called on the client's own thread."""
        return self._run(
            self._cluster.wait(task, on_progress=on_progress, timeout_s=timeout_s, check=check)
        )

    def wait_settled(self, name: str, *, timeout_s: float = WAIT_TIMEOUT_S) -> VmView:
        """The VM when nothing is under way with it any more."""
        return self._run(self._cluster.wait_settled(name, timeout_s=timeout_s))

    def events(self, *, after: int = 0, limit: int = 0) -> list[EventView]:
        """Events with a higher ``seq`` than ``after``, oldest first; at most ``limit`` if given."""
        return self._run(self._cluster.events(after=after, limit=limit))

    def all_events(self) -> list[EventView]:
        """Every event that the leader remembers, oldest first."""
        return self._run(self._cluster.all_events())

    def follow(self, *, after: int | None = None, patience_s: float = 60.0) -> Generator[EventView]:
        """Events as they happen, for ever; closing the generator closes the stream."""
        events = self._cluster.follow(after=after, patience_s=patience_s)

        async def following() -> EventView | None:
            return await anext(events, None)

        try:
            while (event := self._run(following())) is not None:
                yield event
        finally:
            self._run(events.aclose())

"""The SDK for asyncio: one cluster as an object.

Every method is one call of ``common/api.py`` and returns its types; see ``client/sdk.py``.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import quote

import msgspec

from snooze.client.settings import find_addresses
from snooze.client.transport import NOT_JSON, Method, Params, Transport, is_passing
from snooze.common.api import (
    API_PREFIX,
    MAX_WAIT_S,
    TASK_ENDED,
    ClusterRequest,
    ClusterView,
    CommandRequest,
    DrainRequest,
    DrainView,
    EnergyView,
    EventView,
    HierarchyView,
    HostView,
    HostWhyView,
    ImageView,
    ManagerView,
    PowerAnswer,
    PowerRequest,
    TaskState,
    TaskView,
    VmRequest,
    VmView,
)
from snooze.common.clock import SYSTEM_CLOCK, Clock
from snooze.common.errors import (
    ErrorReport,
    ExecutionError,
    InvalidRequest,
    NoCapacity,
    Problem,
    RemoteError,
    RemoteTimeout,
    SnoozeError,
)
from snooze.common.vm_lifecycle import SETTLED, VmCommand
from snooze.common.vms import VmErrorCode

T = TypeVar("T")
OnProgress = Callable[[TaskView], None]

PLAN_HOLD_S: Final = 60.0
"""The first plan of a leader or manager starts the process that plans, which may take seconds."""
WAIT_TIMEOUT_S: Final = 600.0
"""Twice the default time that a start may take on a host."""

PROGRESS_INTERVAL_S: Final = 0.25
"""How often a task is looked at when somebody wants to see its progress."""

WAIT_PATIENCE_S: Final = 30.0
"""How long a wait goes on when no front door answers: a fail-over takes a few seconds."""

MIN_POLL_S: Final = 0.05
"""The least time between two looks at a task whose server does not hold its answers."""

SETTLING_POLL_S: Final = 1.0
"""The most time between two looks at a VM that is settling."""

_VM_ERRORS: Final[dict[str, type[SnoozeError]]] = {
    VmErrorCode.INVALID_TEMPLATE: InvalidRequest,
    VmErrorCode.NAME_TAKEN: InvalidRequest,
    VmErrorCode.INVALID_HOST: InvalidRequest,
    VmErrorCode.NO_ADDRESS: NoCapacity,
    VmErrorCode.NO_MANAGER: NoCapacity,
    VmErrorCode.START_FAILED: ExecutionError,
    VmErrorCode.WAKEUP_FAILED: ExecutionError,
    VmErrorCode.TIMED_OUT: RemoteTimeout,
    VmErrorCode.DESTROYED: ExecutionError,
}
"""Why a VM of a submission does not run, as an error; of any other code see ``ErrorReport``."""

_RECONNECT_MIN_S: Final = 0.1
_RECONNECT_MAX_S: Final = 5.0
_MAX_EVENT_PAGES: Final = 1000
_MAX_EVENT_LINES: Final = 1000
_MAX_NAME: Final = 1024


class AsyncSnooze:
    """One cluster, for asyncio. Close it, or use it as a context manager.

    Args:
        addresses: front doors; left out, they are looked up as ``client/settings.py`` says.
        timeout_s: bound of each call.
        tls: for https with a private authority or a client certificate.
    """

    def __init__(
        self,
        addresses: str | Iterable[str] | None = None,
        *,
        timeout_s: float = 30.0,
        clock: Clock = SYSTEM_CLOCK,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._clock = clock
        self._transport = Transport(
            find_addresses(addresses), timeout_s=timeout_s, clock=clock, tls=tls
        )

    @property
    def addresses(self) -> tuple[str, ...]:
        """The front doors, as ``http://host:port``."""
        return self._transport.addresses

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # What there is ----------------------------------------------------------------------------

    async def fetch(self, path: str, params: Params | None = None, *, hold_s: float = 0.0) -> bytes:
        """The JSON that ``GET /v1`` + ``path`` answers, as the server sent it.

        ``path`` is percent-encoded already. For programs that want fields that this version of
        the SDK does not know.
        """
        return await self._transport.call("GET", API_PREFIX + path, params=params, hold_s=hold_s)

    async def send(
        self,
        path: str,
        request: msgspec.Struct | None,
        kind: type[T],
        *,
        verb: Method = "POST",
        hold_s: float = 0.0,
    ) -> T:
        """What ``verb /v1`` + ``path`` answers to ``request``; ``path`` is percent-encoded.

        ``hold_s``: how long the answer may take besides, for something that is planned first.
        """
        body = None if request is None else msgspec.json.encode(request)
        content = await self._transport.call(verb, API_PREFIX + path, body=body, hold_s=hold_s)
        return decode(content, kind)

    async def cluster(self) -> ClusterView:
        """The cluster in one line."""
        return decode(await self.fetch("/cluster"), ClusterView)

    async def vms(self) -> list[VmView]:
        """All VMs, those of others included (``managed`` is false)."""
        return decode(await self.fetch("/vms"), list[VmView])

    async def vm(self, name: str) -> VmView:
        """One VM by its name or ``vm_id``, with the XML that really runs."""
        return decode(await self.fetch(f"/vms/{segment(name)}"), VmView)

    async def hosts(self) -> list[HostView]:
        """All hosts."""
        return decode(await self.fetch("/hosts"), list[HostView])

    async def host(self, name: str) -> HostView:
        """One host by its id or hostname."""
        return decode(await self.fetch(f"/hosts/{segment(name)}"), HostView)

    async def why(self, host: str) -> HostWhyView:
        """What stands against emptying a host now; nothing: it is emptied soon."""
        return decode(await self.fetch(f"/hosts/{segment(host)}/why"), HostWhyView)

    async def managers(self) -> list[ManagerView]:
        """All group managers; one of them leads."""
        return decode(await self.fetch("/managers"), list[ManagerView])

    async def hierarchy(self) -> HierarchyView:
        """The whole tree: leader, managers, hosts, VMs."""
        return decode(await self.fetch("/hierarchy"), HierarchyView)

    async def images(self) -> list[ImageView]:
        """The images that hosts can start VMs from."""
        return decode(await self.fetch("/images"), list[ImageView])

    async def tasks(self) -> list[TaskView]:
        """The tasks that the cluster remembers."""
        return decode(await self.fetch("/tasks"), list[TaskView])

    async def task(self, task_id: str, *, wait_s: float = 0.0) -> TaskView:
        """One task; with ``wait_s`` (at most 60) the answer waits for its end for so long."""
        return await self._task(task_id, wait_s, patience_s=0.0)

    # What to do -------------------------------------------------------------------------------

    async def submit(
        self,
        request: ClusterRequest | Sequence[VmRequest],
        *,
        idempotency_key: str = "",
    ) -> TaskView:
        """Ask for VMs; all are validated before any starts.

        A submission repeated with the same ``idempotency_key`` is the same submission; without
        one, each call of this method is a new one.
        """
        if not isinstance(request, ClusterRequest):
            request = ClusterRequest(list(request))
        answer = await self._transport.call(
            "POST",
            f"{API_PREFIX}/virtual-clusters",
            body=msgspec.json.encode(request),
            idempotency_key=idempotency_key,
        )
        return decode(answer, TaskView)

    async def command(
        self,
        name: str,
        command: VmCommand,
        request: CommandRequest | None = None,
        *,
        wait_s: float = 0.0,
        idempotency_key: str = "",
    ) -> TaskView:
        """Order ``command`` for one VM; with ``wait_s`` the answer waits so long for its end."""
        wait_s = min(max(wait_s, 0.0), MAX_WAIT_S)
        answer = await self._transport.call(
            "POST",
            f"{API_PREFIX}/vms/{segment(name)}/{command.value}",
            params={"wait_s": wait_s} if wait_s else None,
            body=None if request is None else msgspec.json.encode(request),
            idempotency_key=idempotency_key,
            hold_s=wait_s,
        )
        return decode(answer, TaskView)

    async def start(self, name: str) -> TaskView:
        """Start a VM that is stopped or failed."""
        return await self.command(name, VmCommand.START)

    async def suspend(self, name: str) -> TaskView:
        """Pause a VM; its memory stays on its host."""
        return await self.command(name, VmCommand.SUSPEND)

    async def resume(self, name: str) -> TaskView:
        """Let a paused VM run again."""
        return await self.command(name, VmCommand.RESUME)

    async def shutdown(self, name: str) -> TaskView:
        """Ask the guest to shut down; ``wait_settled`` tells when it has."""
        return await self.command(name, VmCommand.SHUTDOWN)

    async def reboot(self, name: str) -> TaskView:
        """Ask the guest to reboot."""
        return await self.command(name, VmCommand.REBOOT)

    async def destroy(self, name: str) -> TaskView:
        """Remove a VM, running or not."""
        return await self.command(name, VmCommand.DESTROY)

    async def resize(
        self,
        name: str,
        *,
        vcpus: int | None = None,
        memory_kib: int | None = None,
        rx_kib_s: float | None = None,
        tx_kib_s: float | None = None,
    ) -> TaskView:
        """Change what a VM is given; what is left out stays."""
        request = CommandRequest(
            vcpus=vcpus, memory_kib=memory_kib, rx_kib_s=rx_kib_s, tx_kib_s=tx_kib_s
        )
        return await self.command(name, VmCommand.RESIZE, request)

    async def migrate(self, name: str, host: str) -> TaskView:
        """Move a running VM to ``host`` (id or hostname)."""
        return await self.command(name, VmCommand.MIGRATE, CommandRequest(host=host))

    async def drain(
        self, hosts: Sequence[str], *, deadline_s: float = 0.0, plan_only: bool = False
    ) -> DrainView:
        """Empty hosts by live migration and keep VMs off them, or only show how."""
        request = DrainRequest(list(hosts), deadline_s, plan_only)
        return await self.send("/hosts/drain", request, DrainView, hold_s=PLAN_HOLD_S)

    async def confirm_dead(self, host: str) -> HostView:
        """Say that a host that is away is off: its VMs may be started elsewhere from now on."""
        return await self.send(f"/hosts/{segment(host)}/confirm-dead", PowerRequest(), HostView)

    async def sleep_host(self, host: str, *, force: bool = False) -> PowerAnswer:
        """Put a host to sleep; ``force`` passes over reserve and maintenance, never over VMs."""
        return await self.send(f"/hosts/{segment(host)}/sleep", PowerRequest(force), PowerAnswer)

    async def wake_host(self, host: str) -> PowerAnswer:
        """Wake a host; a repeat is harmless."""
        return await self.send(f"/hosts/{segment(host)}/wake", PowerRequest(), PowerAnswer)

    async def energy(self) -> EnergyView:
        """What the hosts used, and what was saved by those that slept."""
        return decode(await self.fetch("/energy"), EnergyView)

    async def undrain(self, hosts: Sequence[str], *, bring_back: bool = False) -> DrainView:
        """Let hosts take VMs again; with ``bring_back``, those that left for a drain return."""
        request = DrainRequest(list(hosts), bring_back=bring_back)
        return await self.send("/hosts/undrain", request, DrainView)

    async def wait(
        self,
        task: TaskView | str,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float = WAIT_TIMEOUT_S,
        check: bool = False,
    ) -> TaskView:
        """The task when it has ended.

        Survives the death of the leader and of front doors.

        Args:
            on_progress: called with the task as it is seen on the way, and at its end.
            check: raise what went wrong (see ``failure``) instead of returning it.

        Raises:
            RemoteTimeout: it had not ended after ``timeout_s``; it goes on.
        """
        seen = task if isinstance(task, TaskView) else None
        task_id = task.id if isinstance(task, TaskView) else task
        deadline_s = self._clock.monotonic_s() + timeout_s
        while seen is None or seen.state not in TASK_ENDED:
            started_s = self._clock.monotonic_s()
            left_s = deadline_s - started_s
            if left_s <= 0:
                raise RemoteTimeout(
                    f"task {task_id} has not ended after {timeout_s:g} s; it goes on"
                )
            hold_s = min(left_s, PROGRESS_INTERVAL_S if on_progress else MAX_WAIT_S / 2)
            seen = await self._task(task_id, hold_s, patience_s=WAIT_PATIENCE_S)
            if on_progress:
                on_progress(seen)
            # A server that does not hold its answer must not be asked without a pause.
            spent_s = self._clock.monotonic_s() - started_s
            if seen.state not in TASK_ENDED and spent_s < min(hold_s, MIN_POLL_S):
                await asyncio.sleep(MIN_POLL_S - spent_s)
        error = failure(seen)
        if check and error is not None:
            raise error
        return seen

    async def wait_settled(self, name: str, *, timeout_s: float = WAIT_TIMEOUT_S) -> VmView:
        """The VM when nothing is under way with it any more.

        A guest that is asked to shut down takes its time, or does not listen at all: the task ends
        when it has been asked.

        Raises:
            RemoteTimeout: something still is after ``timeout_s``.
        """
        deadline_s = self._clock.monotonic_s() + timeout_s
        pause_s = MIN_POLL_S
        while (vm := await self.vm(name)).state not in SETTLED:
            left_s = deadline_s - self._clock.monotonic_s()
            if left_s <= 0:
                raise RemoteTimeout(f"VM {name} is still {vm.state.value} after {timeout_s:g} s")
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, SETTLING_POLL_S)
        return vm

    # What happens -----------------------------------------------------------------------------

    async def events(self, *, after: int = 0, limit: int = 0) -> list[EventView]:
        """Events with a higher ``seq`` than ``after``, oldest first; at most ``limit`` if given."""
        params: dict[str, int] = {"after": after}
        if limit:
            params["limit"] = limit
        return decode(await self.fetch("/events", params), list[EventView])

    async def all_events(self) -> list[EventView]:
        """Every event that the leader remembers, oldest first."""
        found: list[EventView] = []
        for _ in range(_MAX_EVENT_PAGES):
            page = await self.events(after=found[-1].seq if found else 0)
            found += page
            if not page:
                break
        return found

    async def follow(
        self, *, after: int | None = None, patience_s: float = 60.0
    ) -> AsyncGenerator[EventView]:
        """Events as they happen, for ever.

        A stream that breaks is opened again after the last event seen. ``seq`` is counted anew by
        each leader, so the epoch decides: a new leader's events are told from its first one.

        Args:
            after: begin after this ``seq``; None: with the events from now on.
            patience_s: how long nobody may answer before the error is raised.
        """
        epoch = (await self.cluster()).epoch
        if after is None:
            known = await self.all_events()
            after = known[-1].seq if known else 0
        last_alive_s = self._clock.monotonic_s()
        pause_s = _RECONNECT_MIN_S
        closings = self._transport.closings
        while True:
            self._transport.require_open(closings)
            try:
                # The epoch is read when the stream is open: a leader elected in between closes it.
                async with self._transport.stream(
                    f"{API_PREFIX}/events", params={"after": after}
                ) as lines:
                    now = (await self.cluster()).epoch
                    last_alive_s = self._clock.monotonic_s()
                    if now != epoch:
                        epoch, after = now, 0
                        continue
                    async for event in _events_of(lines):
                        after, pause_s = event.seq, _RECONNECT_MIN_S
                        yield event
                        last_alive_s = self._clock.monotonic_s()
            except SnoozeError as error:
                silent_s = self._clock.monotonic_s() - last_alive_s
                if not is_passing(error) or silent_s > patience_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RECONNECT_MAX_S)

    async def _task(self, task_id: str, wait_s: float, *, patience_s: float) -> TaskView:
        wait_s = min(max(wait_s, 0.0), MAX_WAIT_S)
        answer = await self._transport.call(
            "GET",
            f"{API_PREFIX}/tasks/{segment(task_id)}",
            params={"wait_s": wait_s} if wait_s else None,
            hold_s=wait_s,
            patience_s=patience_s,
        )
        return decode(answer, TaskView)


def failure(task: TaskView) -> SnoozeError | None:
    """What went wrong in a task that has ended; None if nothing did.

    The task's own error, or the error that all its VMs share, or ``ExecutionError``: some failed
    and some did not. ``problems`` names each VM that failed and why.
    """
    if task.state not in (TaskState.FAILED, TaskState.PARTIAL):
        return None
    failed = [(vm.name, vm.error) for vm in task.vms if vm.error is not None]
    problems = [Problem(name, error.message, error.code) for name, error in failed]
    if task.error is not None:
        error = task.error.as_error()
        if len(task.vms) > 1 and not error.problems:
            error.problems = tuple(problems)
        return error
    if len(task.vms) == 1 and failed:
        return _vm_error(failed[0][1])
    message = f"{len(failed)} of {len(task.vms)} VMs failed in task {task.id} ({task.kind})"
    codes = {error.code for _, error in failed}
    if task.state is TaskState.FAILED and len(codes) == 1:
        kind = type(_vm_error(failed[0][1]))
        return kind(message, problems=problems)
    return ExecutionError(message, problems=problems)


def _vm_error(report: ErrorReport) -> SnoozeError:
    kind = _VM_ERRORS.get(report.code)
    return report.as_error() if kind is None else kind(report.message, problems=report.problems)


def segment(name: str) -> str:
    """``name`` as one segment of a path.

    Raises:
        InvalidRequest: if it cannot be one.
    """
    if not name or name in (".", "..") or len(name) > _MAX_NAME:
        raise InvalidRequest(f"{name[:_MAX_NAME]!r} cannot be the name of anything here")
    try:
        return quote(name, safe="")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name!r} is not text") from error


def decode(content: bytes, kind: type[T]) -> T:
    """The typed answer; RemoteError if it is not one."""
    try:
        return msgspec.json.decode(content, type=kind)
    except NOT_JSON as error:
        raise RemoteError(f"the answer is not what Snooze answers: {error}") from error


async def _events_of(lines: AsyncIterator[bytes]) -> AsyncIterator[EventView]:
    """The events in a stream of server-sent events.

    Source: WHATWG HTML, 9.2.6 "Interpreting an event stream"; ``id`` and ``event`` repeat what the
    data says and are passed over.
    """
    data: list[bytes] = []
    async for line in lines:
        if not line:
            if data:
                yield decode(b"\n".join(data), EventView)
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
            if len(data) > _MAX_EVENT_LINES:
                raise RemoteError("the stream of events sends an event without end")

"""Waiting for tasks, and for the power of hosts, with a progress bar on standard error.

A terminal sees one bar for each task (one for all of them when there are many): a submission counts
the VMs that have settled, a migration the bytes that have moved, a drain the VMs that have gone.
Without a terminal it is silent.

A host's power has no task: its state is looked at, and what is waited for is over when it is

======  ================================================  ======================================
wanted  done                                              never comes
======  ================================================  ======================================
up      active, and in reach                              asleep, failed, fenced; out of reach
asleep  asleep                                            active, waking, failed, fenced
======  ================================================  ======================================
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column

from snooze.client.async_sdk import (
    MIN_POLL_S,
    SETTLING_POLL_S,
    WAIT_PATIENCE_S,
    AsyncSnooze,
    OnProgress,
)
from snooze.client.terminal import error_console, plain
from snooze.client.transport import is_passing
from snooze.client.units import rate_text, span_text
from snooze.common.api import TASK_ENDED, HostView, TaskState, TaskView, TaskVm
from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.errors import ExecutionError, RemoteTimeout, SnoozeError
from snooze.common.records import HostPower
from snooze.common.resources import bytes_text
from snooze.common.vm_lifecycle import SETTLED, VmCommand

A = TypeVar("A")
B = TypeVar("B")

MAX_AT_ONCE: Final = 16
MAX_BARS: Final = 8
MOVING: Final = ("drain", "undrain")
WIDE: Final = 76
"""Columns of a terminal that has room for everything."""


async def each(items: Sequence[A], work: Callable[[A], Awaitable[B]]) -> list[B]:
    """``work``, which raises nothing, for each item; results in the items' order.

    At most ``MAX_AT_ONCE`` at a time.
    """
    slots = asyncio.Semaphore(MAX_AT_ONCE)

    async def one(item: A) -> B:
        async with slots:
            return await work(item)

    return await asyncio.gather(*(one(item) for item in items))


async def wait_for(
    cluster: AsyncSnooze, tasks: Sequence[TaskView], timeout_s: float
) -> list[TaskView | SnoozeError]:
    """The tasks when they have ended, in the order given; shows how far they are.

    In place of a task whose end was not seen stands the reason (``RemoteTimeout`` when it had not
    ended after ``timeout_s``).
    """
    console = error_console()
    pending = [task for task in tasks if task.state not in TASK_ENDED]
    on_progress: OnProgress | None = None

    async def wait(task: TaskView) -> TaskView | SnoozeError:
        try:
            ended = await cluster.wait(task, on_progress=on_progress, timeout_s=timeout_s)
            return await _shut_down(cluster, ended, timeout_s)
        except SnoozeError as error:
            return error

    try:
        if not pending or not console.is_terminal:
            return await each(tasks, wait)
        with _progress(console) as progress:
            on_progress = _Bars(progress, tasks).update
            return await each(tasks, wait)
    except asyncio.CancelledError:
        if pending:
            others = f" and {len(pending) - 1} more" if len(pending) > 1 else ""
            console.print(f"Not waiting. The order stands: snooze task {pending[0].id}{others}")
        raise


async def wait_for_power(
    cluster: AsyncSnooze, host: str, timeout_s: float, *, up: bool
) -> HostView:
    """The host once it is up, or asleep, as it was ordered; see the module's table.

    Raises:
        ExecutionError: it will not be; says why.
        RemoteTimeout: it was neither after ``timeout_s``; what was ordered goes on.
        SnoozeError: it could not be asked, for longer than a new leader takes.
    """
    console = error_console()
    try:
        if not console.is_terminal:
            return await _power_reached(cluster, host, timeout_s, lambda view: None, up=up)
        with _progress(console) as progress:
            title = plain(f"{'wake' if up else 'sleep'} {host}")
            bar = progress.add_task(title, total=None, detail="")

            def show(view: HostView) -> None:
                progress.update(bar, detail=plain(_power_words(view)))

            return await _power_reached(cluster, host, timeout_s, show, up=up)
    except asyncio.CancelledError:
        console.print(f"Not waiting. The order stands: snooze host show {plain(host)}")
        raise


async def _power_reached(
    cluster: AsyncSnooze,
    host: str,
    timeout_s: float,
    show: Callable[[HostView], None],
    *,
    up: bool,
) -> HostView:
    """Look until it is so. Raises: see ``wait_for_power``."""
    clock, pause_s, said = SYSTEM_CLOCK, MIN_POLL_S, "not seen"
    heard_s = clock.monotonic_s()
    deadline_s = heard_s + timeout_s
    while True:
        try:
            view = await cluster.host(host)
        except SnoozeError as error:
            if not is_passing(error) or clock.monotonic_s() - heard_s > WAIT_PATIENCE_S:
                raise
        else:
            heard_s, said = clock.monotonic_s(), _power_words(view)
            show(view)
            reached = power_reached(view, up=up)
            if reached is not None:
                if reached:
                    return view
                wanted = "up" if up else "asleep"
                raise ExecutionError(f"{view.hostname} is not {wanted}: it is {said}")
        left_s = deadline_s - clock.monotonic_s()
        if left_s <= 0:
            raise RemoteTimeout(f"{host} is {said} after {timeout_s:g} s; it goes on")
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, SETTLING_POLL_S)


def power_reached(view: HostView, *, up: bool) -> bool | None:
    """Whether a host is as it was ordered to be; None: that is still to come."""
    match view.power:
        case HostPower.ACTIVE if up:
            return None if view.status == "joining" else view.status != "unreachable"
        case HostPower.GOING_DOWN:
            return None
        case HostPower.WAKING:
            return None if up else False
        case HostPower.ASLEEP:
            return not up
        case HostPower.ACTIVE | HostPower.FAILED | HostPower.FENCED:
            return False
        case _:
            return None


def _power_words(view: HostView) -> str:
    """Its state, and why."""
    state = view.power.replace("_", " ")
    if view.power == HostPower.ACTIVE and view.status == "unreachable":
        state = "out of reach"
    return f"{state}: {view.note}" if view.note else state


async def _shut_down(cluster: AsyncSnooze, task: TaskView, timeout_s: float) -> TaskView:
    """A shutdown that has been asked for, when the guest has obeyed; any other task as it is."""
    if task.kind != VmCommand.SHUTDOWN.value or task.state is not TaskState.DONE:
        return task
    stopped: list[TaskVm] = []
    for vm in task.vms:
        seen = await cluster.wait_settled(vm.name, timeout_s=timeout_s)
        stopped.append(msgspec.structs.replace(vm, state=seen.state))
    return msgspec.structs.replace(task, vms=stopped)


def _progress(console: Console) -> Progress:
    wide = console.width >= WIDE
    columns: list[ProgressColumn] = [
        TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=32)
        ),
        BarColumn(bar_width=20 if wide else 8),
        TextColumn("{task.fields[detail]}", markup=False, table_column=Column(no_wrap=True)),
    ]
    if wide:
        columns.append(TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


class _Bars:
    def __init__(self, progress: Progress, tasks: Sequence[TaskView]) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}
        self._ended: set[str] = set()
        self._began = {
            task.id: {vm.name: vm.hostname for vm in task.vms}
            for task in tasks
            if task.kind in MOVING
        }
        self._all: TaskID | None = None
        if len(tasks) > MAX_BARS:
            self._all = progress.add_task(tasks[0].kind, total=len(tasks), detail="")
        else:
            for task in tasks:
                self._bars[task.id] = progress.add_task(_title(task), total=None, detail="")
                self.update(task)

    def update(self, task: TaskView) -> None:
        """Show how far ``task`` is."""
        if self._all is not None:
            if task.state in TASK_ENDED:
                self._ended.add(task.id)
            total = self._progress.tasks[0].total or 0
            words = f"{len(self._ended)}/{total:.0f} VMs"
            self._progress.update(self._all, completed=len(self._ended), detail=words)
            return
        done, whole, words = measure(task, self._began.get(task.id))
        self._progress.update(self._bars[task.id], completed=done, total=whole, detail=words)


def _title(task: TaskView) -> str:
    names = task.vms[0].name if len(task.vms) == 1 else f"{len(task.vms)} VMs"
    return plain(f"{task.kind} {names}")


def measure(
    task: TaskView, began: Mapping[str, str] | None = None
) -> tuple[float, float | None, str]:
    """Done, total (None: unknown) and words.

    ``began``: of a task that moves VMs away, the hosts that they were on at first, by VM.
    """
    moved = task.progress
    waits = next((vm for vm in task.vms if vm.note and not _settled(vm)), None)
    if began:
        gone = sum(vm.error is not None or vm.hostname != began.get(vm.name) for vm in task.vms)
        return gone, len(task.vms), _counted(gone, task, waits)
    if moved is not None and moved.total_bytes:
        done = min(moved.processed_bytes, moved.total_bytes)
        detail = f"{bytes_text(done)} of {bytes_text(moved.total_bytes)}"
        if moved.dirty_kib_s:
            detail += f", dirties {rate_text(moved.dirty_kib_s)}"
        if task.state in TASK_ENDED and moved.downtime_ms:
            detail += f", down for {span_text(moved.downtime_ms)}"
        return done, moved.total_bytes, detail
    if len(task.vms) > 1:
        settled = sum(_settled(vm) for vm in task.vms)
        return settled, len(task.vms), _counted(settled, task, waits)
    if task.state in TASK_ENDED:
        return 1, 1, task.state.value
    return 0, None, task.state.value if waits is None else plain(waits.note)


def _counted(done: int, task: TaskView, waits: TaskVm | None) -> str:
    note = plain(f"; {waits.name} {waits.note}") if waits is not None else ""
    return f"{done}/{len(task.vms)} VMs{note}"


def _settled(vm: TaskVm) -> bool:
    return vm.error is not None or vm.state in SETTLED

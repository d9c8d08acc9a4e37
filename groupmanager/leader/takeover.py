"""How a new leader takes over: what the record holds, read and told to the core piece by piece."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from snooze.common import record_layout, records
from snooze.common.coordination.port import Check, Coordinator
from snooze.groupmanager.leader.membership_core import RecordsLoaded
from snooze.groupmanager.leader.submission_events import StateLoaded

T = TypeVar("T")

logger = logging.getLogger(__name__)

LOADED_AT_ONCE = 500
"""Some milliseconds' work: between two pieces the session is kept alive, and links are heard."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """All records, tasks by the time of their end."""

    hosts: Sequence[records.HostRecord]
    vms: Sequence[records.VmRecord]
    tasks: Sequence[records.TaskRecord]


async def read_record(coordinator: Coordinator, fence: Check) -> Loaded:
    """Read all of it, from this layout or an older one, which is moved.

    Raises:
        RemoteError: the store does not answer.
        ExecutionError: the record cannot be read.
        CommitConflict: we do not lead any more.
    """
    moved = await record_layout.prepare(coordinator, fence)
    if moved:
        logger.warning("%d records of an older layout were moved to the present one", moved)
    hosts = await record_layout.load(coordinator, records.HOSTS, records.HostRecord)
    vms = await record_layout.load(coordinator, records.VMS, records.VmRecord)
    tasks = await record_layout.load(coordinator, records.TASKS, records.TaskRecord)
    tasks.sort(key=lambda task: (task.ended_ms, task.task_id))
    return Loaded(hosts, vms, tasks)


async def tell(
    loaded: Loaded,
    membership: Callable[[RecordsLoaded], None],
    submissions: Callable[[StateLoaded], None],
    now_ms: int,
) -> None:
    """Tell the cores of hosts, then of VMs, then of tasks."""
    for number, hosts in enumerate(pieces_of_hosts(loaded.hosts)):
        if number:
            await asyncio.sleep(0)
        membership(hosts)
    for piece in (*pieces_of_vms(loaded.vms, now_ms), *pieces_of_tasks(loaded.tasks, now_ms)):
        submissions(piece)
        await asyncio.sleep(0)
    submissions(StateLoaded((), (), now_ms))


def pieces_of_hosts(hosts: Sequence[records.HostRecord]) -> Iterator[RecordsLoaded]:
    """What the record says of hosts."""
    return (RecordsLoaded(piece) for piece in _pieces(hosts))


def pieces_of_vms(vms: Sequence[records.VmRecord], now_ms: int) -> Iterator[StateLoaded]:
    """What it says of VMs; more follows."""
    return (StateLoaded((), piece, now_ms, more=True) for piece in _pieces(vms))


def pieces_of_tasks(tasks: Sequence[records.TaskRecord], now_ms: int) -> Iterator[StateLoaded]:
    """What it says of tasks; more follows."""
    return (StateLoaded(piece, (), now_ms, more=True) for piece in _pieces(tasks))


def _pieces(of: Sequence[T]) -> Iterator[Sequence[T]]:
    return (of[begin : begin + LOADED_AT_ONCE] for begin in range(0, len(of), LOADED_AT_ONCE))

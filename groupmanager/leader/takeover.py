"""How a new leader takes over: what the record holds, read and told to the core piece by piece."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from snooze.common import record_layout, records
from snooze.common.coordination.port import Check, Coordinator
from snooze.groupmanager.leader.submission_events import StateLoaded

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


async def tell(loaded: Loaded, feed: Callable[[StateLoaded], None], now_ms: int) -> None:
    """Tell the core of VMs, then of tasks."""
    for begin in range(0, len(loaded.vms), LOADED_AT_ONCE):
        feed(StateLoaded((), loaded.vms[begin : begin + LOADED_AT_ONCE], now_ms, more=True))
        await asyncio.sleep(0)
    for begin in range(0, len(loaded.tasks), LOADED_AT_ONCE):
        feed(StateLoaded(loaded.tasks[begin : begin + LOADED_AT_ONCE], (), now_ms, more=True))
        await asyncio.sleep(0)
    feed(StateLoaded((), (), now_ms))

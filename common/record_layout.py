"""Where each record lies, and how an older layout becomes this one.

VMs and tasks lie in 256 *shards*, by the first two digits of their id: ``/vms/3f/3f07...``. A list
of names is one answer of ZooKeeper; of 100,000 VMs it would be 3.6 MB, and ZooKeeper's own tools
drop the connection above 1 MiB (``jute.maxbuffer``). A shard's list stays below that for more than
seven million records.

=======  ============================================  ===================================
layout   what it was                                   how it becomes the next
=======  ============================================  ===================================
1        ``/vms/ID``, ``/tasks/ID``; no ``/layout``    ``prepare`` moves each record
2        shards; ``/layout`` says 2                    (the present one)
=======  ============================================  ===================================

``prepare`` is a leader's first act. Each of its transactions moves whole records and checks the
leader's epoch, so that it can die anywhere and the next leader carries on. A daemon of the older
layout refuses to lead what was moved (a shard is no record); one of this layout refuses a newer.
"""

import re
import zlib
from collections.abc import Sequence
from typing import Final

from snooze.common import records
from snooze.common.coordination.port import (
    Check,
    Coordinator,
    Create,
    Delete,
    Entry,
    Operation,
    Put,
)
from snooze.common.energy_records import ENERGY
from snooze.common.errors import ExecutionError

LAYOUT: Final = 2
LAYOUT_PATH: Final = "/layout"
IMPORT_PATH: Final = "/import"
"""There while an import of the record is unfinished (``snooze record import``)."""
SHARDED: Final = (records.VMS, records.TASKS)
FOLDERS: Final = (records.HOSTS, *SHARDED, ENERGY)
SINGLES: Final = (records.AUTONOMY, records.LEASE)
"""Values that are not one of many."""

LOAD_RECORDS: Final = 1000
MAX_MOVE_BYTES: Final = 400_000
MAX_MOVE_RECORDS: Final = 300

_HEX = re.compile("[0-9a-f]{2}")


def vm_path(vm_id: str) -> str:
    """Where a VM's record lies."""
    return f"{records.VMS}/{_shard_of(vm_id)}/{vm_id}"


def task_path(task_id: str) -> str:
    """Where a task's record lies."""
    return f"{records.TASKS}/{_shard_of(task_id)}/{task_id}"


def host_path(host_id: str) -> str:
    """Where a host's record lies."""
    return f"{records.HOSTS}/{host_id}"


def path_of(kind: str, record_id: str) -> str | None:
    """Where a value of a kind (``vms``) lies; None if there is no such kind."""
    root = f"/{kind}"
    if "/" in record_id:
        return None
    if root in SHARDED and record_id:
        return f"{root}/{_shard_of(record_id)}/{record_id}"
    if root in FOLDERS and record_id:
        return f"{root}/{record_id}"
    return root if root in SINGLES and not record_id else None


def shards(root: str) -> list[str]:
    """The paths of all shards below ``/vms`` or ``/tasks``."""
    return [f"{root}/{number:02x}" for number in range(256)]


async def paths_of(coordinator: Coordinator, root: str) -> list[str]:
    """The paths of all records below ``root``. Raises: Unavailable."""
    folders = shards(root) if root in SHARDED else [root]
    lists = await coordinator.children_of_many(folders)
    return [f"{folder}/{name}" for folder, names in lists.items() for name in names]


async def load(coordinator: Coordinator, root: str, kind: type[records.T]) -> list[records.T]:
    """Every record below ``root``; gives way to other tasks every few hundred records.

    Raises:
        Unavailable: the store does not answer.
        ExecutionError: a record cannot be read; says which and why.
    """
    paths = await paths_of(coordinator, root)
    loaded: list[records.T] = []
    for begin in range(0, len(paths), LOAD_RECORDS):
        entries = await coordinator.read_many(paths[begin : begin + LOAD_RECORDS])
        loaded += [_decode(path, entry.data, kind) for path, entry in entries.items()]
    return loaded


def _decode(path: str, data: bytes, kind: type[records.T]) -> records.T:
    try:
        return records.decode(data, kind)
    except ExecutionError as error:
        raise ExecutionError(
            f"{path}: {error.message}; 'snooze record check' names every such record"
        ) from error


async def prepare(coordinator: Coordinator, fence: Check) -> int:
    """Make the layout ours, from nothing or from an older one; returns how many records it moved.

    Raises:
        ExecutionError: the layout is newer than ours, or an import was not finished; nothing
            changed.
        CommitConflict: of ``fence`` (index 0): we do not lead any more.
        RemoteError: the store does not answer. Every transaction until then holds.
    """
    entry = await coordinator.read(LAYOUT_PATH)
    require_known(entry)
    if await coordinator.read(IMPORT_PATH) is not None:
        raise ExecutionError(
            "an import of the record was not finished: repeat 'snooze record import' with its file"
        )
    lists = await coordinator.children_of_many(SHARDED)
    operations: list[Operation] = [] if entry else [Create(LAYOUT_PATH, str(LAYOUT).encode())]
    old: list[str] = []
    for root, names in lists.items():
        present = {f"{root}/{name}" for name in names}
        expected = shards(root)
        operations += [Create(path) for path in expected if path not in present]
        old += sorted(present.difference(expected))
    if operations:
        await coordinator.commit([fence, *operations])
    for begin in range(0, len(old), MAX_MOVE_RECORDS):
        await _move(coordinator, fence, old[begin : begin + MAX_MOVE_RECORDS])
    return len(old)


def require_known(entry: Entry | None) -> None:
    """Refuse a layout that is newer than ours. Raises: ExecutionError."""
    text = entry.data.decode(errors="replace") if entry else str(LAYOUT)
    if not text.isdecimal() or int(text) > LAYOUT:
        raise ExecutionError(
            f"the store's records have layout {text!r}; this version knows up to {LAYOUT}: "
            "upgrade this daemon"
        )


async def _move(coordinator: Coordinator, fence: Check, paths: Sequence[str]) -> None:
    """Move records to their shards; of two with one id, the later written one stays."""
    targets = {path: _target_of(path) for path in paths}
    entries = await coordinator.read_many([*paths, *targets.values()])
    batch: list[Operation] = []
    size = 0
    for path, target in targets.items():
        source = entries.get(path)
        if source is None:
            continue
        there = entries.get(target)
        if there is None:
            batch.append(Create(target, source.data))
        elif there.revision < source.revision:
            batch.append(Put(target, source.data, there.version))
        batch.append(Delete(path, source.version))
        size += len(source.data)
        if size > MAX_MOVE_BYTES:
            await coordinator.commit([fence, *batch])
            batch, size = [], 0
    if batch:
        await coordinator.commit([fence, *batch])


def _target_of(path: str) -> str:
    root, _, name = path.rpartition("/")
    return f"{root}/{_shard_of(name)}/{name}"


def _shard_of(record_id: str) -> str:
    """The shard of an id: its first two digits, or any other two for an id that has none."""
    digits = record_id[:2]
    if _HEX.fullmatch(digits) and len(record_id) > 2:
        return digits
    return f"{zlib.crc32(record_id.encode()) & 0xFF:02x}"

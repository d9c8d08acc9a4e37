"""Taking the record out of a store and putting it back; ``common/record_file.py`` is the file.

An import is many transactions. Its first makes ``/import``, which names the file and how far it is,
and while that is there no leader can take over. Then the epoch is raised above all that the file
and the store have seen: a leader that lives is deposed by it, and what hosts and managers heard of
former leaders is older than what they will hear. Each of the following transactions clears or
writes a batch and notes that in ``/import``, so that whatever dies, the same command goes on where
it stood. The last removes ``/import``.
"""

from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from snooze.common import record_layout, records
from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.coordination.leadership import EPOCH, LEADER, decode_record
from snooze.common.coordination.port import (
    Coordinator,
    Create,
    Delete,
    Operation,
    Put,
    require_commit,
    wait_connected,
)
from snooze.common.coordination.zookeeper import ZooKeeperCoordinator
from snooze.common.errors import Conflict, ExecutionError, InvalidRequest
from snooze.common.record_check import Finding, Report, check, readable
from snooze.common.record_file import FileEntry, FileHeader, Verified, read, verify, write
from snooze.common.version import VERSION

CONNECT_S: Final = 15.0
READ_PATHS: Final = 2000
MAX_BATCH_BYTES: Final = 400_000
MAX_BATCH: Final = 400
EPOCH_MARGIN: Final = 10_000
"""How many leaders there may have been since the file was made."""
EPOCH_STEP: Final = 1000
MAX_EPOCH: Final = 10_000_000
"""A leader every two minutes for forty years; a file that says more is not what it claims to be."""

_NOTE_ROOM: Final = b"." * 200
_O = TypeVar("_O", bound=Operation)

OnProgress = Callable[[int, int], None]
"""Told how many entries of how many are done."""


class Progress(msgspec.Struct, frozen=True):
    """What ``/import`` says: of which file, and how many of its entries are written.

    ``done`` is -1 while what was there before is being cleared away.
    """

    sha256: str
    done: int


@dataclass(frozen=True, slots=True)
class Imported:
    """The file that was imported, and which of its records were left out."""

    verified: Verified
    left_out: frozenset[str]


@asynccontextmanager
async def opened(hosts: str, root: str) -> AsyncGenerator[Coordinator]:
    """A session with a store. Raises: Unavailable."""
    coordinator = ZooKeeperCoordinator(hosts, root=root, session_timeout_s=10.0)
    await coordinator.start()
    try:
        await wait_connected(coordinator, CONNECT_S)
        yield coordinator
    finally:
        await coordinator.close()


async def export_record(coordinator: Coordinator, path: Path, root: str) -> Verified:
    """Write every record into a file. A leader may live; each record is whole, as it is read.

    Raises: Unavailable; ExecutionError of a newer layout; OSError.
    """
    record_layout.require_known(await coordinator.read(record_layout.LAYOUT_PATH))
    values = await read_all(coordinator)
    header = FileHeader(
        records.SCHEMA,
        record_layout.LAYOUT,
        await _epoch(coordinator),
        SYSTEM_CLOCK.wall_ms(),
        root,
        VERSION,
    )
    return write(path, header, (_entry(place, value) for place, value in values.items()))


async def read_all(coordinator: Coordinator) -> dict[str, bytes]:
    """Every value of the record by its path, those of an older layout included."""
    paths = [*record_layout.SINGLES]
    for folder in record_layout.FOLDERS:
        paths += await record_layout.paths_of(coordinator, folder)
    for folder in record_layout.SHARDED:
        shards = set(record_layout.shards(folder))
        names = await coordinator.children(folder)
        paths += [p for p in (f"{folder}/{name}" for name in names) if p not in shards]
    values: dict[str, bytes] = {}
    for begin in range(0, len(paths), READ_PATHS):
        entries = await coordinator.read_many(paths[begin : begin + READ_PATHS])
        values |= {path: entry.data for path, entry in entries.items()}
    return values


async def import_record(
    coordinator: Coordinator,
    path: Path,
    *,
    replace: bool = False,
    force: bool = False,
    leave_out: bool = False,
    on_progress: OnProgress = lambda _done, _of: None,
) -> Imported:
    """Make the store's record what a file says; goes on where the same import ended before.

    Args:
        replace: clear away what is there.
        force: depose a leader that lives.
        leave_out: records that cannot be read stay out of the store; else they are refused.

    Raises:
        InvalidRequest: the file is no good; nothing changed.
        Conflict: the store is not empty, a leader lives, or another import is unfinished; nothing
            changed.
        ExecutionError: what was read back differs.
        RemoteError: the store does not answer; repeat the import.
    """
    verified = verify(path)
    left_out = _require_known(path, verified)
    if left_out and not leave_out:
        place, why = next(iter(left_out.items()))
        raise InvalidRequest(
            f"{path} has {len(left_out)} records with which nobody could lead, {place} is one "
            f"({why}): --leave-out-unreadable imports the others"
        )
    record_layout.require_known(await coordinator.read(record_layout.LAYOUT_PATH))
    progress = await _begin(coordinator, verified, replace=replace, force=force)
    await _raise_epoch(coordinator, verified.header.epoch + EPOCH_MARGIN)
    if progress.done < 0:
        for batch in _batches(Delete(place) for place in await read_all(coordinator)):
            await coordinator.commit(batch)
        progress = await _note(coordinator, [], Progress(verified.sha256, 0))
    await _make_shards(coordinator)
    entries = islice(read(path, verified), progress.done, None)
    done = progress.done
    creates = (Create(_path_of(path, entry), entry.value) for entry in entries)
    for created in _batches(creates):
        done += len(created)
        kept = [create for create in created if create.path not in left_out]
        await _note(coordinator, kept, Progress(verified.sha256, done))
        on_progress(done, verified.entries)
    await _compare(coordinator, path, verified, left_out)
    await coordinator.commit([Delete(record_layout.IMPORT_PATH)])
    return Imported(verified, frozenset(left_out))


async def check_record(coordinator: Coordinator) -> Report:
    """Check the record of a store, living or not; changes nothing."""
    findings: list[Finding] = []
    layout = await coordinator.read(record_layout.LAYOUT_PATH)
    try:
        record_layout.require_known(layout)
    except ExecutionError as error:
        advice = "use the version that wrote it, or a later one"
        return Report([Finding(record_layout.LAYOUT_PATH, error.message, advice)], [])
    if await coordinator.read(record_layout.IMPORT_PATH) is not None:
        what = "an import was not finished: no leader can take over"
        advice = "repeat 'snooze record import' with the same file"
        findings.append(Finding(record_layout.IMPORT_PATH, what, advice))
    values = await read_all(coordinator)
    report = check(values, await coordinator.children(records.MANAGERS))
    return Report([*findings, *report.findings], report.totals)


# ---------------------------------------------------------------- steps of an import


async def _begin(
    coordinator: Coordinator, verified: Verified, *, replace: bool, force: bool
) -> Progress:
    """Take the store for this import, or find out how far it was."""
    entry = await coordinator.read(record_layout.IMPORT_PATH)
    if entry is not None:
        progress = msgspec.msgpack.decode(entry.data, type=Progress)
        if progress.sha256 == verified.sha256:
            return progress
        if not replace:
            raise Conflict("the import of another file is unfinished; --replace gives it up")
    leader = await coordinator.read(LEADER)
    if leader is not None and not force:
        record = decode_record(leader.data)
        raise Conflict(
            f"group manager {record.id if record else '?'} leads: stop all group managers first, "
            "or depose it with --force"
        )
    present = len(await read_all(coordinator))
    if present and not replace:
        raise Conflict(f"the store has {present} records; --replace clears them away first")
    progress = Progress(verified.sha256, -1)
    data = msgspec.msgpack.encode(progress)
    path = record_layout.IMPORT_PATH
    await coordinator.commit([Create(path, data) if entry is None else Put(path, data)])
    return progress


async def _note(
    coordinator: Coordinator, batch: Sequence[Operation], progress: Progress
) -> Progress:
    """Apply a batch and note how far the import is, in one transaction."""
    note = Put(record_layout.IMPORT_PATH, msgspec.msgpack.encode(progress))
    await coordinator.commit([*batch, note])
    return progress


async def _epoch(coordinator: Coordinator) -> int:
    """How many leaders there have been."""
    entry = await coordinator.read(EPOCH)
    return 0 if entry is None else entry.version + 1


async def _raise_epoch(coordinator: Coordinator, wanted: int) -> None:
    """Let the next leader's epoch be above ``wanted``, and above any that lives now."""
    epoch = await _epoch(coordinator)
    if epoch == 0:
        await coordinator.commit([Create(EPOCH)])
        epoch = 1
    missing = max(1, wanted - epoch)
    for begin in range(0, missing, EPOCH_STEP):
        count = min(EPOCH_STEP, missing - begin)
        await coordinator.commit([Put(EPOCH, b"")] * count)


async def _make_shards(coordinator: Coordinator) -> None:
    """Make the layout, if nothing has."""
    operations: list[Operation] = []
    if await coordinator.read(record_layout.LAYOUT_PATH) is None:
        operations.append(Create(record_layout.LAYOUT_PATH, str(record_layout.LAYOUT).encode()))
    lists = await coordinator.children_of_many(record_layout.SHARDED)
    for folder, names in lists.items():
        present = {f"{folder}/{name}" for name in names}
        operations += [Create(p) for p in record_layout.shards(folder) if p not in present]
    if operations:
        await coordinator.commit(operations)


async def _compare(
    coordinator: Coordinator, path: Path, verified: Verified, left_out: Collection[str]
) -> None:
    """Read all back. Raises: ExecutionError."""
    present = await read_all(coordinator)
    for entry in read(path, verified):
        place = _path_of(path, entry)
        if place not in left_out and present.pop(place, None) != entry.value:
            raise ExecutionError(f"{place} is not what was written: something else writes there")
    if present:
        raise ExecutionError(f"{next(iter(present))} is there and was not written by this import")


def _require_known(path: Path, verified: Verified) -> dict[str, str]:
    """Refuse what this version, or a store, cannot take; which records cannot be read, and why.

    Raises:
        InvalidRequest: nothing was changed.
    """
    header = verified.header
    for what, has, knows in (
        ("schema", header.schema, records.SCHEMA),
        ("layout", header.layout, record_layout.LAYOUT),
    ):
        if has > knows:
            raise InvalidRequest(
                f"{path} was made by Snooze {header.version} with {what} {has}; this version "
                f"reads up to {knows}: upgrade first"
            )
    if not 0 <= header.epoch <= MAX_EPOCH:
        raise InvalidRequest(f"{path} says that {header.epoch} leaders had led, which cannot be")
    note = Put(record_layout.IMPORT_PATH, _NOTE_ROOM)
    seen: set[str] = set()
    unreadable: dict[str, str] = {}
    for entry in read(path, verified):
        place = _path_of(path, entry)
        if place in seen:
            raise InvalidRequest(f"{path} has {place} twice")
        seen.add(place)
        require_commit([Create(place, entry.value), note])
        record = readable(place, entry.value)
        if isinstance(record, str):
            unreadable[place] = record
    return unreadable


def _path_of(path: Path, entry: FileEntry) -> str:
    place = record_layout.path_of(entry.kind, entry.id)
    if place is None:
        raise InvalidRequest(
            f"{path} has {entry.kind}/{entry.id}, which this version does not know: upgrade first"
        )
    return place


def _entry(place: str, value: bytes) -> FileEntry:
    kind, _, rest = place.removeprefix("/").partition("/")
    return FileEntry(kind, rest.rpartition("/")[2], value)


def _batches(operations: Iterator[_O]) -> Iterator[list[_O]]:
    """Operations, as many as fit a transaction."""
    batch: list[_O] = []
    size = 0
    for operation in operations:
        added = len(operation.path) + (len(operation.data) if isinstance(operation, Create) else 0)
        if batch and (size + added > MAX_BATCH_BYTES or len(batch) >= MAX_BATCH):
            yield batch
            batch, size = [], 0
        batch.append(operation)
        size += added
    if batch:
        yield batch

"""Export and import of the record: a round trip, refusals, and an import that dies anywhere."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from snooze.client.record_store import (
    EPOCH_MARGIN,
    check_record,
    export_record,
    import_record,
    read_all,
)
from snooze.common import record_layout, records
from snooze.common.autonomy import AutonomyRecord
from snooze.common.coordination.leadership import EPOCH, LEADER
from snooze.common.coordination.memory import MemoryCoordinator, MemoryStore
from snooze.common.coordination.port import (
    Applied,
    Create,
    Delete,
    Operation,
    OutcomeUnknown,
    Put,
    wait_connected,
)
from snooze.common.errors import Conflict, ExecutionError, InvalidRequest
from snooze.common.record_file import FileEntry, FileHeader, write
from snooze.common.record_layout import FOLDERS, IMPORT_PATH, prepare
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import Address
from snooze.groupmanager.election import Leading

VMS = 1000
HOST = records.encode(records.HostRecord("h", "one", Address("10.0.0.9", 5002), "m", 3))


class Dying(MemoryCoordinator):
    """Its n-th commit is the last that anybody hears of."""

    left = 1_000_000
    applied = True

    async def commit(self, operations: Sequence[Operation]) -> list[Applied]:
        self.left -= 1
        if self.left == 0:
            if self.applied:
                await super().commit(operations)
            raise OutcomeUnknown("died here")
        return await super().commit(operations)


async def store() -> Dying:
    client = Dying(MemoryStore())
    await client.start()
    await wait_connected(client, 1.0)
    return client


def vm(number: int) -> records.VmRecord:
    vm_id = f"{number * 2654435761 % 2**32:08x}" * 4
    return records.VmRecord(vm_id, f"vm{number}", Capacity(1.0), VmState.RUNNING, "t")


async def filled() -> Dying:
    client = await store()
    await client.commit([Create(EPOCH), *[Put(EPOCH, b"")] * 41])
    await prepare(client, Leading(42).guard)
    for begin in range(0, VMS, 250):
        those = [vm(number) for number in range(begin, begin + 250)]
        await client.commit(
            [Create(record_layout.vm_path(v.vm_id), records.encode(v)) for v in those]
        )
    autonomy = Create(records.AUTONOMY, records.encode(AutonomyRecord()))
    await client.commit([autonomy, Create("/hosts/h", HOST)])
    return client


async def exported(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    client = await filled()
    path = tmp_path / "record"
    verified = await export_record(client, path, "/snooze")
    assert (verified.entries, verified.header.epoch) == (VMS + 2, 42)
    return path, await read_all(client)


async def test_a_round_trip_brings_everything_back(tmp_path: Path) -> None:
    path, values = await exported(tmp_path)
    client = await store()
    told: list[tuple[int, int]] = []
    await import_record(client, path, on_progress=lambda done, of: told.append((done, of)))
    assert await read_all(client) == values
    assert told[-1] == (VMS + 2, VMS + 2)
    assert await client.read(IMPORT_PATH) is None


async def test_the_next_leader_is_above_all_that_hosts_have_heard_of(tmp_path: Path) -> None:
    path, _ = await exported(tmp_path)
    client = await store()
    await import_record(client, path)
    epoch = await client.read(EPOCH)
    assert epoch is not None
    assert epoch.version + 1 == 42 + EPOCH_MARGIN
    assert await prepare(client, Leading(epoch.version + 1).guard) == 0


async def test_a_store_that_is_not_empty_is_refused_unless_told(tmp_path: Path) -> None:
    path, values = await exported(tmp_path)
    client = await filled()
    stray = record_layout.vm_path("ee" * 16)
    await client.commit([Create(stray, b"stray"), Delete("/hosts/h")])
    with pytest.raises(Conflict, match="--replace"):
        await import_record(client, path)
    assert stray in await read_all(client)
    await import_record(client, path, replace=True)
    assert await read_all(client) == values


async def test_a_leader_that_lives_is_minded_or_deposed(tmp_path: Path) -> None:
    path, _ = await exported(tmp_path)
    client = await filled()
    await client.commit([Create(LEADER, b"", ephemeral=True)])
    with pytest.raises(Conflict, match="--force"):
        await import_record(client, path, replace=True)
    guard = Leading(42).guard
    await client.commit([guard])
    await import_record(client, path, replace=True, force=True)
    with pytest.raises(Conflict):
        await client.commit([guard])


async def test_nobody_leads_while_an_import_is_unfinished(tmp_path: Path) -> None:
    path, _ = await exported(tmp_path)
    client = await store()
    client.left = 14
    with pytest.raises(OutcomeUnknown):
        await import_record(client, path)
    client.left = 1_000_000
    epoch = await client.read(EPOCH)
    assert epoch is not None
    with pytest.raises(ExecutionError, match="was not finished"):
        await prepare(client, Leading(epoch.version + 1).guard)
    report = await check_record(client)
    assert report.findings[0].path == IMPORT_PATH


@pytest.mark.parametrize("applied", [True, False])
async def test_an_import_may_end_anywhere(tmp_path: Path, applied: bool) -> None:
    path, values = await exported(tmp_path)
    ends = 0
    while True:
        client = await filled()
        await client.commit([Create(record_layout.vm_path("ee" * 16), b"stray")])
        client.left, client.applied = ends + 1, applied
        try:
            await import_record(client, path, replace=True)
        except OutcomeUnknown:
            client.left = 1_000_000
            await import_record(client, path, replace=True)
            ends += 1
        else:
            break
        assert await read_all(client) == values
        assert await client.read(IMPORT_PATH) is None
    assert ends > 15


async def test_another_file_does_not_go_on_with_the_import_of_one(tmp_path: Path) -> None:
    path, _ = await exported(tmp_path)
    client = await store()
    client.left = 16
    with pytest.raises(OutcomeUnknown):
        await import_record(client, path)
    client.left = 1_000_000
    other = tmp_path / "other"
    write(other, FileHeader(2, 2, 1, 0, "/", "1"), [FileEntry("hosts", "x", HOST)])
    with pytest.raises(Conflict, match="another file"):
        await import_record(client, other)
    await import_record(client, other, replace=True)
    assert list(await read_all(client)) == ["/hosts/x"]


@pytest.mark.parametrize(
    ("header", "entry", "what"),
    [
        (FileHeader(99, 2, 1, 0, "/", "9"), FileEntry("vms", "a", b""), "schema 99"),
        (FileHeader(2, 99, 1, 0, "/", "9"), FileEntry("vms", "a", b""), "layout 99"),
        (FileHeader(2, 2, 2**62, 0, "/", "9"), FileEntry("hosts", "h", HOST), "cannot be"),
        (FileHeader(2, 2, -1, 0, "/", "9"), FileEntry("hosts", "h", HOST), "cannot be"),
        (FileHeader(2, 2, 1, 0, "/", "9"), FileEntry("hosts", "..", HOST), "not a path"),
        (FileHeader(2, 2, 1, 0, "/", "9"), FileEntry("hosts", "a\x1b[31m", HOST), "not a path"),
        (FileHeader(2, 2, 1, 0, "/", "9"), FileEntry("hosts", "h", bytes(1_050_000)), "at most"),
        (FileHeader(2, 2, 1, 0, "/", "9"), FileEntry("lease", "", b"\x02?"), "/lease is one"),
        (FileHeader(2, 2, 1, 0, "/", "9"), FileEntry("spells", "a", b""), "does not know"),
        (FileHeader(2, 2, 1, 0, "/", "9"), FileEntry("vms", "", b""), "does not know"),
        (FileHeader(2, 2, 1, 0, "/", "9"), FileEntry("hosts", "../leader", b""), "does not know"),
    ],
)
async def test_a_file_of_another_version_changes_nothing(
    tmp_path: Path, header: FileHeader, entry: FileEntry, what: str
) -> None:
    path = tmp_path / "record"
    write(path, header, [entry])
    client = await store()
    with pytest.raises(InvalidRequest, match=what):
        await import_record(client, path)
    assert await client.read(IMPORT_PATH) is None
    assert [await client.children(folder) for folder in FOLDERS] == [[]] * len(FOLDERS)


async def test_records_that_cannot_be_read_are_left_out_when_told(tmp_path: Path) -> None:
    client = await filled()
    bad = record_layout.vm_path("ee" * 16)
    await client.commit([Create(bad, b"\x02?"), Create(records.LEASE, b"\x63new")])
    path = tmp_path / "record"
    await export_record(client, path, "/snooze")
    values = await read_all(client)
    assert {finding.path for finding in (await check_record(client)).findings} == {
        bad,
        records.LEASE,
    }
    with pytest.raises(InvalidRequest, match="2 records with which nobody could lead"):
        await import_record(client, path, replace=True)
    client.left = 16
    with pytest.raises(OutcomeUnknown):
        await import_record(client, path, replace=True, leave_out=True)
    client.left = 1_000_000
    imported = await import_record(client, path, replace=True, leave_out=True)
    assert imported.left_out == {bad, records.LEASE}
    del values[bad], values[records.LEASE]
    assert await read_all(client) == values
    assert (await check_record(client)).findings == []


async def test_a_check_of_a_good_store_finds_nothing() -> None:
    client = await filled()
    report = await check_record(client)
    assert report.findings == []
    assert report.totals[1].count == VMS

"""The layout of the record: made from nothing, made from the older one, whatever dies meanwhile."""

import uuid

import pytest

from snooze.common import records
from snooze.common.coordination.port import Check, CommitConflict, Coordinator, Create, Put
from snooze.common.errors import ExecutionError
from snooze.common.record_layout import (
    LAYOUT_PATH,
    load,
    paths_of,
    prepare,
    shards,
    task_path,
    vm_path,
)
from snooze.common.records import TASKS, VMS, HostRecord, VmRecord, encode
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import Address
from snooze.lab.coordination import World

FENCE = Check("/epoch", 0)
NAMES = [uuid.uuid5(uuid.NAMESPACE_DNS, str(number)).hex for number in range(700)]


def vm(vm_id: str) -> VmRecord:
    return VmRecord(vm_id, f"vm-{vm_id}", Capacity(1.0, 1024.0), VmState.RUNNING, "task")


async def begin(world: World) -> Coordinator:
    client = await world.connect()
    await client.commit([Create("/epoch")])
    return client


async def old_layout(client: Coordinator) -> None:
    """What a daemon of layout 1 wrote."""
    for start in range(0, len(NAMES), 350):
        names = NAMES[start : start + 350]
        await client.commit([Create(f"{VMS}/{name}", encode(vm(name))) for name in names])
    host = HostRecord("h1", "one", Address("10.0.0.1", 5000), "gm1", 7)
    await client.commit(
        [Create(f"{TASKS}/no digits", b"task"), Create(f"{records.HOSTS}/h1", encode(host))]
    )


async def test_it_is_made_from_nothing_once(world: World) -> None:
    client = await begin(world)
    assert await prepare(client, FENCE) == 0
    assert await client.children(VMS) == [path.rpartition("/")[2] for path in shards(VMS)]
    assert await client.children(TASKS) == await client.children(VMS)
    before = await client.read(LAYOUT_PATH)
    assert await prepare(client, FENCE) == 0
    assert await client.read(LAYOUT_PATH) == before
    assert await load(client, VMS, VmRecord) == []
    await client.commit([Create(vm_path("ab" * 16), encode(vm("ab" * 16)))])
    assert await load(client, VMS, VmRecord) == [vm("ab" * 16)]


async def test_records_of_the_older_layout_are_moved(world: World) -> None:
    client = await begin(world)
    await old_layout(client)
    assert await prepare(client, FENCE) == len(NAMES) + 1
    assert sorted(await load(client, VMS, VmRecord), key=lambda record: record.vm_id) == [
        vm(name) for name in sorted(NAMES)
    ]
    assert await client.children(VMS) == [path.rpartition("/")[2] for path in shards(VMS)]
    assert await paths_of(client, TASKS) == [task_path("no digits")]
    assert [host.host_id for host in await load(client, records.HOSTS, HostRecord)] == ["h1"]
    assert await prepare(client, FENCE) == 0


async def test_the_later_written_of_two_stays(world: World) -> None:
    client = await begin(world)
    older, newer = NAMES[1], NAMES[2]
    await client.commit([Create(vm_path(newer), b"new"), Create(f"{VMS}/{older}", b"old")])
    await client.commit([Create(vm_path(older), b"new"), Create(f"{VMS}/{newer}", b"newest")])
    assert await prepare(client, FENCE) == 2
    entries = await client.read_many([vm_path(older), vm_path(newer)])
    assert [entry.data for entry in entries.values()] == [b"new", b"newest"]


async def test_who_does_not_lead_moves_nothing(world: World) -> None:
    client = await begin(world)
    await old_layout(client)
    await client.commit([Put("/epoch", b"")])
    with pytest.raises(CommitConflict) as caught:
        await prepare(client, FENCE)
    assert caught.value.index == 0
    assert len(await client.children(VMS)) == len(NAMES)


@pytest.mark.parametrize("number", [b"3", b"12", b"\xff"])
async def test_a_newer_layout_is_refused_with_advice(world: World, number: bytes) -> None:
    client = await begin(world)
    await client.commit([Create(LAYOUT_PATH, number)])
    with pytest.raises(ExecutionError, match="upgrade this daemon"):
        await prepare(client, FENCE)
    assert await client.children(VMS) == []


async def test_an_unreadable_record_is_named(world: World) -> None:
    client = await begin(world)
    await client.commit([Create(vm_path(NAMES[3]), b"\x02garbage")])
    with pytest.raises(ExecutionError, match=f"{vm_path(NAMES[3])}.*snooze record check"):
        await load(client, VMS, VmRecord)

"""Moving records to their shards may end at any transaction, applied or not."""

import uuid
from collections.abc import Sequence

import pytest

from snooze.common.coordination.memory import MemoryCoordinator, MemoryStore
from snooze.common.coordination.port import (
    Applied,
    Check,
    Create,
    Operation,
    OutcomeUnknown,
    wait_connected,
)
from snooze.common.record_layout import MAX_MOVE_RECORDS, paths_of, prepare, task_path, vm_path
from snooze.common.records import TASKS, VMS

FENCE = Check("/epoch", 0)
NAMES = [uuid.uuid5(uuid.NAMESPACE_DNS, str(number)).hex for number in range(1000)]


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


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("last", range(1, len(NAMES) // MAX_MOVE_RECORDS + 3))
async def test_a_move_may_end_anywhere(last: int, applied: bool) -> None:
    client = Dying(MemoryStore())
    await client.start()
    await wait_connected(client, 1.0)
    await client.commit([Create("/epoch")])
    for begin in range(0, len(NAMES), 500):
        batch = NAMES[begin : begin + 500]
        await client.commit([Create(f"{VMS}/{name}", name.encode()) for name in batch])
    await client.commit([Create(f"{TASKS}/T", b"task")])
    client.left, client.applied = last, applied
    with pytest.raises(OutcomeUnknown):
        await prepare(client, FENCE)
    client.left = 1_000_000
    await prepare(client, FENCE)
    entries = await client.read_many(await paths_of(client, VMS))
    assert {path: entry.data.decode() for path, entry in entries.items()} == {
        vm_path(name): name for name in NAMES
    }
    assert await paths_of(client, TASKS) == [task_path("T")]
    assert await client.children(VMS) == [f"{number:02x}" for number in range(256)]

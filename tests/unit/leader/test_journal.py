"""The journal: exactly what was asked is written, once, in order, and by the leader only."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from random import Random

import pytest

from snooze.common.coordination.memory import MemoryCoordinator, MemoryStore
from snooze.common.coordination.port import (
    Check,
    Create,
    Delete,
    Operation,
    Put,
    wait_connected,
)
from snooze.common.errors import ErrorReport, NotLeader, TooBusy
from snooze.groupmanager.leader import journal as journal_module
from snooze.groupmanager.leader.journal import Journal

EPOCH = "/epoch"


@dataclass
class Rig:
    """A leader's journal on a store that another coordinator looks at."""

    store: MemoryStore
    writer: MemoryCoordinator
    reader: MemoryCoordinator
    journal: Journal
    deposed: list[bool] = field(default_factory=list[bool])
    outcomes: list[ErrorReport | None] = field(default_factory=list[ErrorReport | None])

    async def write(self, *operations: Operation) -> ErrorReport | None:
        """Write and wait for the outcome."""
        done: asyncio.Future[ErrorReport | None] = asyncio.get_running_loop().create_future()
        self.journal.write(operations, done.set_result)
        async with asyncio.timeout(5):
            return await done

    async def content(self) -> dict[str, bytes]:
        entries = await self.reader.read_children("/vms")
        return {name: entry.data for name, entry in entries.items()}


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    store = MemoryStore()
    writer, reader = MemoryCoordinator(store), MemoryCoordinator(store)
    for coordinator in (writer, reader):
        await coordinator.start()
        await wait_connected(coordinator, 5)
    await reader.commit([Create(EPOCH, b"1")])
    deposed: list[bool] = []
    journal = Journal(writer, Check(EPOCH, 0), lambda: deposed.append(True))
    journal.start()
    rig = Rig(store, writer, reader, journal, deposed)
    yield rig
    await journal.close()
    await writer.close()
    await reader.close()


def _note(done: list[str], name: str, error: ErrorReport | None) -> None:
    assert error is None
    done.append(name)


def create(name: str, data: bytes = b"") -> Create:
    return Create(f"/vms/{name}", data or name.encode())


def put(name: str, data: bytes) -> Put:
    return Put(f"/vms/{name}", data)


def delete(name: str) -> Delete:
    return Delete(f"/vms/{name}")


# ---------------------------------------------------------------- what is written


async def test_what_is_asked_is_written_and_then_said(rig: Rig) -> None:
    assert await rig.write(create("a"), create("b")) is None
    assert await rig.content() == {"a": b"a", "b": b"b"}
    assert rig.journal.transactions == 1


async def test_changes_that_wait_go_together(rig: Rig) -> None:
    done: list[str] = []
    for name in "abcdef":
        rig.journal.write([create(name)], partial(_note, done, name))
    assert done == [], "never from within"
    assert await rig.write(create("z")) is None
    assert done == list("abcdef")
    assert rig.journal.transactions <= 2


async def test_written_waits_for_all_that_was_queued_before(rig: Rig) -> None:
    rig.journal.write([create("a")])
    async with asyncio.timeout(5):
        await rig.journal.written()
    assert await rig.content() == {"a": b"a"}
    rig.journal.write([create("b")])
    waits = [asyncio.create_task(rig.journal.written()) for _ in range(3)]
    for _ in range(30):
        waits.append(asyncio.create_task(rig.journal.written()))
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await asyncio.gather(*waits)
    assert await rig.content() == {"a": b"a", "b": b"b"}
    assert rig.journal.waiting == 0


async def test_nothing_is_awaited_of_a_journal_that_is_closed(rig: Rig) -> None:
    await rig.journal.close()
    async with asyncio.timeout(5):
        with pytest.raises(NotLeader):
            await rig.journal.written([create("a")])
    assert await rig.content() == {}


async def test_changes_of_one_entry_keep_their_order(rig: Rig) -> None:
    rig.journal.write([create("a", b"1")])
    rig.journal.write([put("a", b"2")])
    rig.journal.write([delete("a")])
    rig.journal.write([create("a", b"3")])
    assert await rig.write(put("a", b"4")) is None
    assert await rig.content() == {"a": b"4"}


async def test_a_put_of_what_is_missing_creates_and_a_delete_of_it_is_done(rig: Rig) -> None:
    assert await rig.write(put("a", b"1"), delete("b"), create("c")) is None
    assert await rig.content() == {"a": b"1", "c": b"c"}


async def test_a_change_too_large_for_one_transaction_ends_with_its_last_operation(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_BATCH_OPERATIONS", 3)
    assert await rig.write(*(create(f"{i:02}") for i in range(10))) is None
    assert len(await rig.content()) == 10
    assert rig.journal.transactions == 4


async def test_a_batch_is_bounded_in_bytes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_BATCH_BYTES", 250)
    assert await rig.write(*(create(str(i), b"x" * 100) for i in range(4))) is None
    assert rig.journal.transactions == 2
    assert rig.journal.bytes_written == 4 * (100 + len("/vms/0"))


# ---------------------------------------------------------------- lost replies, lost requests


@pytest.mark.parametrize("lost", [1, 3])
async def test_a_lost_reply_does_not_write_twice_or_fail(rig: Rig, lost: int) -> None:
    rig.writer.faults.lose_replies = lost
    assert await rig.write(create("a"), put("b", b"1"), delete("c")) is None
    assert await rig.content() == {"a": b"a", "b": b"1"}


async def test_a_lost_reply_to_a_delete_is_a_deletion(rig: Rig) -> None:
    await rig.write(create("a"))
    rig.writer.faults.lose_replies = 1
    assert await rig.write(delete("a")) is None
    assert await rig.content() == {}


async def test_a_lost_request_is_sent_again(rig: Rig) -> None:
    rig.writer.faults.lose_requests = 2
    assert await rig.write(create("a")) is None
    assert await rig.content() == {"a": b"a"}


async def test_a_store_that_refuses_for_a_while_is_awaited(rig: Rig) -> None:
    rig.writer.faults.refuse = 3
    assert await rig.write(create("a")) is None


async def test_a_suspended_session_is_awaited(rig: Rig) -> None:
    rig.writer.suspend()
    writing = asyncio.ensure_future(rig.write(create("a")))
    await asyncio.sleep(0.01)
    assert not writing.done()
    rig.writer.resume()
    assert await writing is None
    assert await rig.content() == {"a": b"a"}


# ---------------------------------------------------------------- only the leader writes


async def test_a_deposed_leader_writes_nothing_and_learns_of_it(rig: Rig) -> None:
    await rig.reader.commit([Put(EPOCH, b"2")])
    error = await rig.write(create("a"))
    assert error is not None
    assert error.code == "not_leader"
    assert rig.deposed == [True]
    assert await rig.content() == {}


async def test_a_lost_session_is_the_end(rig: Rig) -> None:
    rig.writer.suspend()
    writing = asyncio.ensure_future(rig.write(create("a")))
    await asyncio.sleep(0.01)
    rig.writer.expire()
    rig.writer.resume()
    error = await writing
    assert error is not None
    assert error.code == "not_leader"
    assert await rig.content() == {}


async def test_a_store_that_never_comes_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "RECONNECT_WAIT_S", 0.01)
    rig.writer.suspend()
    error = await rig.write(create("a"))
    assert error is not None
    assert error.code == "not_leader"


async def test_what_can_never_be_written_is_refused_and_the_rest_goes_on(rig: Rig) -> None:
    error = await rig.write(Create("no path", b""))
    assert error is not None
    assert error.code == "invalid_request"
    assert await rig.write(create("a")) is None


async def test_a_conflict_that_nobody_can_mend_is_refused(rig: Rig) -> None:
    await rig.write(create("a"))
    error = await rig.write(Put("/vms/a", b"2", version=7))
    assert error is not None
    assert error.code == "conflict"
    assert await rig.content() == {"a": b"a"}


# ---------------------------------------------------------------- bounds and the end


async def test_too_much_that_waits_is_refused_whole(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_QUEUED_BYTES", 100)
    rig.writer.faults.delay_s = 0.01
    rig.journal.write([create("a", b"x" * 90)], lambda error: None)
    with pytest.raises(TooBusy):
        rig.journal.write([create("b", b"x" * 90)], lambda error: None)
    rig.journal.write([create("c", b"x" * 90)])  # what nobody waits for is never dropped
    await rig.journal.close(flush_s=5.0)
    assert (await rig.content()).keys() == {"a", "c"}


async def test_closing_flushes_what_is_queued(rig: Rig) -> None:
    rig.writer.faults.delay_s = 0.01
    for name in "abc":
        rig.journal.write([create(name)])
    await rig.journal.close(flush_s=5.0)
    assert (await rig.content()).keys() == {"a", "b", "c"}


async def test_closing_without_flushing_says_what_was_not_written(rig: Rig) -> None:
    rig.writer.suspend()
    outcomes: list[ErrorReport | None] = []
    rig.journal.write([create("a")], outcomes.append)
    rig.journal.write([create("b")], outcomes.append)
    await asyncio.sleep(0)
    await rig.journal.close(flush_s=0.01)
    assert [error is not None and error.code for error in outcomes] == ["not_leader"] * 2
    await rig.journal.close()


async def test_a_callback_that_fails_does_not_stop_the_journal(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(error: ErrorReport | None) -> None:
        raise RuntimeError("a defect")

    rig.journal.write([create("a")], fail)
    assert await rig.write(create("b")) is None
    assert "what follows a write failed" in caplog.text


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_the_store_does_the_last_word_is_kept(rig: Rig, seed: int) -> None:
    random = Random(seed)
    expected: dict[str, bytes] = {}
    for step in range(60):
        name = random.choice("abcdef")
        if random.random() < 0.3:
            faults = rig.writer.faults
            fault = random.choice(["lose_replies", "lose_requests", "refuse"])
            setattr(faults, fault, random.randint(1, 2))
        if random.random() < 0.3:
            rig.journal.write([delete(name)])
            expected.pop(name, None)
        else:
            data = str(step).encode()
            rig.journal.write([put(name, data)])
            expected[name] = data
        if random.random() < 0.3:
            await asyncio.sleep(0)
    assert await rig.write(create("end")) is None
    assert await rig.content() == {**expected, "end": b"end"}

"""What every ``Coordinator`` promises: one suite for both drivers, ZooKeeper's on a real server."""

import asyncio
import threading

import pytest

from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.coordination.port import (
    MAX_COMMIT_BYTES,
    Applied,
    Check,
    CommitConflict,
    ConflictReason,
    Create,
    Delete,
    Entry,
    Operation,
    OutcomeUnknown,
    Put,
    Session,
    SessionState,
    Unavailable,
    wait_connected,
)
from snooze.common.errors import InvalidRequest, RemoteError, RemoteTimeout
from snooze.lab.coordination import World
from snooze.lab.recorder import PATIENCE_S, Recorder

CONNECTED, SUSPENDED = SessionState.CONNECTED, SessionState.SUSPENDED
LOST, CLOSED = SessionState.LOST, SessionState.CLOSED


def data_of(entry: Entry | None) -> bytes | None:
    return None if entry is None else entry.data


async def test_an_entry_lives_through_versions(world: World) -> None:
    one, other = await world.connect(), await world.connect()
    assert await one.commit([Create("/a", b"first")]) == [Applied("/a", 0)]
    assert await one.commit([Put("/a", b"second", version=0)]) == [Applied("/a", 1)]
    assert await one.commit([Put("/a", b"third")]) == [Applied("/a", 2)]

    await other.commit([Check("/a", 2)])  # Its own commit brings a reader up to date.
    entry = await other.read("/a")
    assert entry is not None
    assert (entry.data, entry.version, entry.ephemeral, entry.mine) == (b"third", 2, False, False)

    assert await one.commit([Check("/a"), Delete("/a", version=2)]) == [
        Applied("/a", -1),
        Applied("/a", -1),
    ]
    assert await one.read("/a") is None


async def test_a_remade_entry_starts_at_version_0_with_a_later_revision(world: World) -> None:
    client = await world.connect()
    await client.commit([Create("/a"), Create("/b")])
    before = await client.read("/a")
    await client.commit([Delete("/a"), Create("/a")])
    after = await client.read("/a")
    assert before is not None
    assert after is not None
    assert after.version == before.version == 0
    assert after.revision > before.revision


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (Create("/there/full"), ConflictReason.EXISTS),
        (Create("/ephemeral/child"), ConflictReason.PARENT_EPHEMERAL),
        (Create("/ephemeral/deep/child"), ConflictReason.PARENT_EPHEMERAL),
        (Put("/missing", b""), ConflictReason.MISSING),
        (Put("/there", b"", version=7), ConflictReason.VERSION),
        (Delete("/missing"), ConflictReason.MISSING),
        (Delete("/there/full", version=7), ConflictReason.VERSION),
        (Delete("/there"), ConflictReason.NOT_EMPTY),
        (Check("/missing"), ConflictReason.MISSING),
        (Check("/there", version=7), ConflictReason.VERSION),
    ],
    ids=str,
)
async def test_a_failed_operation_is_named_and_undoes_the_others(
    world: World, operation: Operation, reason: ConflictReason
) -> None:
    client = await world.connect()
    await client.commit(
        [Create("/there/full"), Create("/gone"), Create("/ephemeral", ephemeral=True)]
    )
    others: list[Operation] = [Create("/new/child"), Delete("/gone"), Put("/there", b"changed")]
    with pytest.raises(CommitConflict) as caught:
        await client.commit([*others, operation, Put("/missing", b"")])
    assert (caught.value.index, caught.value.reason) == (3, reason)
    assert caught.value.operation == operation
    assert await client.read("/new/child") is None
    assert await client.read("/gone") is not None
    assert data_of(await client.read("/there")) == b""
    assert await client.children("/there") == ["full"]


async def test_missing_parents_are_made(world: World) -> None:
    client = await world.connect()
    await client.commit(
        [Create("/a/b/c/d", b"deep"), Create("/a/b2", b""), Create("/x"), Create("/x/y")]
    )
    assert data_of(await client.read("/a/b/c/d")) == b"deep"
    assert await client.children("/a") == ["b", "b2"]
    assert await client.children("/x") == ["y"]


async def test_sequence_numbers_only_grow(world: World) -> None:
    client = await world.connect()
    first, second = await client.commit(
        [Create("/queue/n-", sequence=True), Create("/queue/n-", b"2", sequence=True)]
    )
    await client.commit([Delete(second.path)])
    (third,) = await client.commit([Create("/queue/other-", sequence=True)])
    numbers = [int(applied.path[-10:]) for applied in (first, second, third)]
    assert numbers == sorted(set(numbers))
    assert await client.children("/queue") == [
        first.path.removeprefix("/queue/"),
        third.path.removeprefix("/queue/"),
    ]


async def test_children_are_read_together(world: World) -> None:
    client = await world.connect()
    assert await client.children("/none") == []
    assert await client.read_children("/none") == {}
    names = [f"{number:03}" for number in range(250)]
    await client.commit([Create(f"/many/{name}", name.encode()) for name in reversed(names)])
    assert await client.children("/many") == names
    await client.commit([Create("/many/000/deep"), Create("/large", b"x" * 200_000)])
    paths = ["/many/249", "/none", "/large", "/many/000"]
    answers = await client.read_many(paths)
    assert {path: len(entry.data) for path, entry in answers.items()} == {
        "/many/249": 3,
        "/large": 200_000,
        "/many/000": 3,
    }
    assert list(answers) == ["/many/249", "/large", "/many/000"]
    assert not answers["/large"].mine
    assert await client.read_many([]) == {}
    lists = await client.children_of_many(["/none", "/many/000", "/many", "/large"])
    assert lists == {"/none": [], "/many/000": ["deep"], "/many": names, "/large": []}
    entries = await client.read_children("/many")
    assert [(name, entry.data) for name, entry in entries.items()] == [
        (name, name.encode()) for name in names
    ]


async def test_of_two_writers_with_one_version_one_wins(world: World) -> None:
    clients = [await world.connect() for _ in range(3)]
    await clients[0].commit([Create("/epoch", b"0")])
    outcomes = await asyncio.gather(
        *(client.commit([Put("/epoch", b"mine", version=0)]) for client in clients * 5),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, list) for outcome in outcomes) == 1
    conflicts = [outcome for outcome in outcomes if isinstance(outcome, CommitConflict)]
    assert len(conflicts) == len(outcomes) - 1


async def test_many_calls_at_once_all_take_effect(world: World) -> None:
    client = await world.connect()
    await asyncio.gather(*(client.commit([Create(f"/crowd/{n}")]) for n in range(500)))
    assert len(await client.children("/crowd")) == 500


@pytest.mark.parametrize("path", ["", "/", "a", "/a/", "//a", "/a/../b", "/.", "/a\0b", "/\ud800"])
async def test_malformed_paths_are_refused(world: World, path: str) -> None:
    client = await world.connect()
    for call in (client.read(path), client.children(path), client.commit([Create(path)])):
        with pytest.raises(InvalidRequest):
            await call


async def test_what_the_server_would_choke_on_is_refused(world: World) -> None:
    client = await world.connect()
    with pytest.raises(InvalidRequest, match="at most 1000000"):
        await client.commit([Create("/big", b"x" * MAX_COMMIT_BYTES)])
    with pytest.raises(InvalidRequest):
        await client.commit([])
    largest = b"x" * (MAX_COMMIT_BYTES - 100)
    await client.commit([Create("/big", largest)])
    assert data_of(await client.read("/big")) == largest
    assert client.session == Session(CONNECTED, 1)


async def test_ephemerals_go_with_their_session(world: World) -> None:
    owner, other = await world.connect(), await world.connect()
    names: Recorder[list[str]] = Recorder()
    other.watch_children("/members", names)
    await owner.commit([Create("/members/owner", ephemeral=True), Create("/members/durable")])
    await names.until(lambda present: present == ["durable", "owner"])

    own, others = await owner.read("/members/owner"), await other.read("/members/owner")
    assert own is not None
    assert others is not None
    assert (own.ephemeral, own.mine, others.ephemeral, others.mine) == (True, True, True, False)

    await owner.close()
    await names.until(lambda present: present == ["durable"])


async def test_a_watch_reports_the_present_and_each_later_level(world: World) -> None:
    writer, reader = await world.connect(), await world.connect()
    seen: Recorder[Entry | None] = Recorder()
    cancel = reader.watch("/w/x", seen)
    assert seen.values == []  # Not inside the call that registers.
    await seen.until(lambda entry: entry is None)
    await writer.commit([Create("/w/x", b"0")])
    await seen.until(lambda entry: data_of(entry) == b"0")
    for number in range(1, 51):
        await writer.commit([Put("/w/x", str(number).encode())])
    await seen.until(lambda entry: data_of(entry) == b"50")
    await writer.commit([Delete("/w/x")])
    await seen.until(lambda entry: entry is None)
    await writer.commit([Create("/w/x", b"again")])
    await seen.until(lambda entry: data_of(entry) == b"again")

    revisions = [entry.revision for entry in seen.values if entry is not None]
    assert revisions == sorted(set(revisions))
    cancel()
    cancel()
    count = len(seen.values)
    after: Recorder[Entry | None] = Recorder()
    reader.watch("/w/x", after)
    await writer.commit([Put("/w/x", b"unseen")])
    await after.until(lambda entry: data_of(entry) == b"unseen")
    assert len(seen.values) == count


async def test_a_watch_of_children_reports_coming_and_going(world: World) -> None:
    writer, reader = await world.connect(), await world.connect()
    names: Recorder[list[str]] = Recorder()
    reader.watch_children("/w", names)
    await names.until(lambda present: present == [])
    await writer.commit([Create("/w/b"), Create("/w/a")])
    await names.until(lambda present: present == ["a", "b"])
    count = len(names.values)
    await writer.commit([Delete("/w/a"), Create("/w/a")])
    await names.until(lambda present: present == ["a", "b"] and len(names.values) > count)
    await writer.commit([Delete("/w/a"), Delete("/w/b"), Delete("/w")])
    await names.until(lambda present: present == [])
    await writer.commit([Create("/w/c")])
    await names.until(lambda present: present == ["c"])


async def test_a_failing_callback_harms_no_other(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    client = await world.connect()

    def fail(_value: object) -> None:
        raise ValueError("on purpose")

    seen: Recorder[Entry | None] = Recorder()
    sessions: Recorder[Session] = Recorder()
    client.watch("/x", fail)
    client.watch("/x", seen)
    client.on_session(fail)
    client.on_session(sessions)
    await client.commit([Create("/x", b"1")])
    await seen.until(lambda entry: data_of(entry) == b"1")
    world.suspend(client)
    await sessions.until(lambda session: session.state is SUSPENDED)
    assert "on purpose" in caplog.text


async def test_callbacks_run_on_the_loops_thread(world: World) -> None:
    client = await world.connect()
    threads: Recorder[int] = Recorder()
    client.watch("/x", lambda _entry: threads(threading.get_ident()))
    client.on_session(lambda _session: threads(threading.get_ident()))
    await threads.until(lambda _: len(threads.values) >= 1)
    world.suspend(client)
    await threads.until(lambda _: len(threads.values) >= 2)
    assert set(threads.values) == {threading.get_ident()}


async def test_suspended_calls_fail_and_the_same_session_comes_back(world: World) -> None:
    client, other = await world.connect(), await world.connect()
    await client.commit([Create("/mine", ephemeral=True), Create("/w", b"before")])
    seen: Recorder[Entry | None] = Recorder()
    sessions: Recorder[Session] = Recorder()
    client.watch("/w", seen)
    client.on_session(sessions)
    await seen.until(lambda entry: data_of(entry) == b"before")
    assert client.session == Session(CONNECTED, 1)
    assert client.live_until_s > SYSTEM_CLOCK.monotonic_s()

    world.suspend(client)
    await sessions.until(lambda session: session == Session(SUSPENDED, 1))
    assert client.live_until_s < SYSTEM_CLOCK.monotonic_s()
    for call in (client.read("/w"), client.children("/w"), client.commit([Put("/w", b"")])):
        with pytest.raises(Unavailable) as caught:
            await call
        assert isinstance(caught.value, RemoteError)
        assert not isinstance(caught.value, RemoteTimeout)
    await other.commit([Put("/w", b"1"), Put("/w", b"meanwhile")])

    world.resume(client)
    await sessions.until(lambda session: session == Session(CONNECTED, 1))
    await seen.until(lambda entry: data_of(entry) == b"meanwhile")
    mine = await client.read("/mine")
    assert mine is not None
    assert mine.mine


async def test_a_lost_session_is_followed_by_a_new_one(world: World) -> None:
    client, other = await world.connect(), await world.connect()
    seen: Recorder[Entry | None] = Recorder()
    sessions: Recorder[Session] = Recorder()
    client.watch("/w", seen)
    client.on_session(sessions)
    await client.commit([Create("/mine", ephemeral=True)])

    await world.expire(client)
    await sessions.until(lambda session: session == Session(CONNECTED, 2))
    assert sessions.values == [Session(SUSPENDED, 1), Session(LOST, 1), Session(CONNECTED, 2)]
    assert await client.read("/mine") is None
    await client.commit([Create("/mine", ephemeral=True)])
    mine = await client.read("/mine")
    assert mine is not None
    assert mine.mine
    await other.commit([Create("/w", b"after")])
    await seen.until(lambda entry: data_of(entry) == b"after")


async def test_a_commit_whose_reply_is_lost_has_an_unknown_outcome(world: World) -> None:
    client, other = await world.connect(), await world.connect()
    await client.commit([Create("/before")])  # The parents are there, so one request is enough.
    world.lose_next_reply(client)
    with pytest.raises(OutcomeUnknown) as caught:
        await client.commit([Create("/perhaps")])
    assert isinstance(caught.value, RemoteTimeout)
    await wait_connected(client, PATIENCE_S)
    assert await client.read("/perhaps") is not None  # It was applied: this is how to find out.
    assert await other.read("/perhaps") is not None


async def test_closing_ends_everything_and_may_be_repeated(world: World) -> None:
    client, other = await world.connect(), await world.connect()
    seen: Recorder[Entry | None] = Recorder()
    sessions: Recorder[Session] = Recorder()
    client.watch("/w", seen)
    client.on_session(sessions)
    await seen.until(lambda entry: entry is None)
    await client.close()
    await client.close()
    assert sessions.values == [Session(CLOSED, 1)]
    with pytest.raises(Unavailable):
        await client.read("/w")
    with pytest.raises(Unavailable):
        await client.commit([Create("/w")])
    await other.commit([Create("/w")])
    assert await other.read("/w") is not None
    assert seen.values == [None]

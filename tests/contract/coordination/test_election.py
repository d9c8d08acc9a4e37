"""The election with real coordinators: who leads, who follows, and what they may write."""

import asyncio

import pytest

from snooze.common.clock import SYSTEM_CLOCK, ManualClock
from snooze.common.coordination.leadership import (
    CANDIDATES,
    LEADER,
    LeaderRecord,
    LeaderWatch,
    decode_record,
)
from snooze.common.coordination.memory import MemoryCoordinator, MemoryStore
from snooze.common.coordination.port import (
    CommitConflict,
    Coordinator,
    Create,
    Put,
    wait_connected,
)
from snooze.common.errors import InvalidRequest
from snooze.groupmanager.challenge import QUESTION, Question, ask, read_question
from snooze.groupmanager.election import Election, Following, Leadership, Leading, Suspended
from snooze.lab.coordination import World
from snooze.lab.recorder import PATIENCE_S, Recorder


async def stand(client: Coordinator, name: str) -> tuple[Election, Recorder[Leadership]]:
    """A candidate that has found its place."""
    election = Election(client, name, f"{name}:5000".encode(), SYSTEM_CLOCK)
    seen: Recorder[Leadership] = Recorder()
    election.on_leadership(seen)
    await election.start()
    await seen.until(lambda it: isinstance(it, Leading) or it != Following(None))
    return election, seen


async def test_the_first_leads_and_a_clean_stop_hands_over(world: World) -> None:
    first, first_saw = await stand(await world.connect(), "one")
    second, second_saw = await stand(await world.connect(), "two")
    third, third_saw = await stand(await world.connect(), "three")
    assert first_saw.values == [Leading(1)]
    assert first.is_leader(1)
    assert not first.is_leader(2)
    for seen in (second_saw, third_saw):
        await seen.until(
            lambda it: (
                isinstance(it, Following)
                and it.leader is not None
                and (it.leader.id, it.leader.epoch, it.leader.payload) == ("one", 1, b"one:5000")
            )
        )

    await first.close()
    assert first_saw.values[-1] == Following(None)
    assert not first.is_leader(1)
    await second_saw.until(lambda it: it == Leading(2))
    await third_saw.until(
        lambda it: isinstance(it, Following) and it.leader is not None and it.leader.id == "two"
    )
    await third.close()  # One that only follows leaves without a trace, too.
    assert second.is_leader(2)
    observer = await world.connect()
    assert len(await observer.children(CANDIDATES)) == 1
    await second.close()
    assert await observer.children(CANDIDATES) == []
    assert await observer.read(LEADER) is None


async def test_an_evicted_leader_is_followed_at_once_and_stands_again(world: World) -> None:
    first, first_saw = await stand(await world.connect(), "one")
    second, second_saw = await stand(await world.connect(), "two")
    third, _ = await stand(await world.connect(), "three")
    assert not await third.evict("two"), "only the one that leads"
    assert await third.evict("one")
    await second_saw.until(lambda it: it == Leading(2))
    await first_saw.until(
        lambda it: isinstance(it, Following) and it.leader is not None and it.leader.id == "two"
    )
    assert not first.is_leader(1)
    assert not await third.evict("one")
    assert second.is_leader(2)
    assert await third.evict("two")
    await second_saw.until(
        lambda it: isinstance(it, Following) and it.leader is not None and it.leader.id == "three"
    )
    assert await second.evict("three")
    await first_saw.until(lambda it: it == Leading(4))
    for election in (first, second, third):
        await election.close()


async def test_two_that_evict_do_not_evict_the_next_one(world: World) -> None:
    _, first_saw = await stand(await world.connect(), "one")
    second, second_saw = await stand(await world.connect(), "two")
    third, _ = await stand(await world.connect(), "three")
    done = await asyncio.gather(*(each.evict("one") for each in (second, third) * 3))
    assert sum(done) == 1
    await second_saw.until(lambda it: it == Leading(2))
    await first_saw.until(lambda it: isinstance(it, Following) and it.leader is not None)
    assert second.is_leader(2)


async def test_a_doubted_leader_that_is_there_says_so_and_stays(world: World) -> None:
    first, first_saw = await stand(await world.connect(), "one")
    second, _ = await stand(await world.connect(), "two")
    third, _ = await stand(await world.connect(), "three")
    doubts = await asyncio.gather(*(each.doubt("one", 0.5) for each in (second, third)))
    assert doubts == [False, False]
    assert not await second.doubt("one", 0.5), "asked once more, answered once more"
    assert not await second.doubt("three", 0.5), "only the one that leads"
    assert first.is_leader(1)
    assert first_saw.values == [Leading(1)]
    for election in (first, second, third):
        await election.close()


async def test_a_doubted_leader_that_is_silent_is_followed_before_its_session_ends(
    world: World,
) -> None:
    client = await world.connect()
    first, _ = await stand(client, "one")
    second, second_saw = await stand(await world.connect(), "two")
    third, _ = await stand(await world.connect(), "three")
    world.suspend(client)  # The store keeps its session, and its entries, for a while yet.
    doubts = await asyncio.gather(*(each.doubt("one", 0.2) for each in (second, third)))
    assert sorted(doubts) == [False, True], "removed once, and the next one was spared"
    await second_saw.until(lambda it: it == Leading(2))
    assert not first.is_leader(1)
    world.resume(client)
    assert second.is_leader(2)
    assert not await third.doubt("two", 0.5)


async def test_a_question_from_before_is_answered_on_coming_back(world: World) -> None:
    client = await world.connect()
    first, first_saw = await stand(client, "one")
    observer = await world.connect()
    world.suspend(client)
    await first_saw.until(lambda it: it == Suspended(1))
    asked = await ask(observer, 1)
    assert await ask(observer, 1) == asked, "a question that stands is not put twice"
    world.resume(client)
    answered: Recorder[Question | None] = Recorder()
    observer.watch(QUESTION, lambda entry: answered(read_question(entry)))
    await answered.until(lambda it: it == Question(1, answered=True))
    assert first_saw.values[-1] == Leading(1)
    with pytest.raises(CommitConflict):
        await observer.commit([asked, Create("/removed")])
    with pytest.raises(CommitConflict):
        await ask(observer, 2)
    await first.close()


async def test_a_suspended_leader_stops_and_resumes_its_epoch(world: World) -> None:
    client = await world.connect()
    election, seen = await stand(client, "one")
    moments: list[bool] = []
    client.on_session(lambda _session: moments.append(election.is_leader(1)))
    world.suspend(client)
    await seen.until(lambda it: it == Suspended(1))
    assert not election.is_leader(1)
    world.resume(client)
    await seen.until(lambda it: it == Leading(1))
    assert seen.values == [Leading(1), Suspended(1), Leading(1)]
    assert election.is_leader(1)
    assert moments == [False, False]  # Back, but not confirmed yet.
    await election.close()


async def test_a_leader_that_lost_its_session_steps_down_for_the_next(world: World) -> None:
    old_client, new_client = await world.connect(), await world.connect()
    old, old_saw = await stand(old_client, "old")
    new, new_saw = await stand(new_client, "new")
    stale_guard = Leading(1).guard
    await old_client.commit([stale_guard, Create("/record", b"by old")])

    await world.expire(old_client)
    await new_saw.until(lambda it: it == Leading(2))
    await old_saw.until(
        lambda it: isinstance(it, Following) and it.leader is not None and it.leader.id == "new"
    )
    assert not old.is_leader(1)
    assert new.is_leader(2)
    with pytest.raises(CommitConflict) as caught:
        await old_client.commit([stale_guard, Put("/record", b"by a ghost")])
    assert caught.value.index == 0
    await new_client.commit([Leading(2).guard, Put("/record", b"by new")])

    await new.close()
    await old_saw.until(lambda it: it == Leading(3))  # It stood again, in its new session.
    await old.close()


async def test_a_lone_leader_that_lost_its_session_leads_in_a_new_epoch(world: World) -> None:
    client = await world.connect()
    election, seen = await stand(client, "one")
    await world.expire(client)
    await seen.until(lambda it: it == Leading(2))
    assert seen.values[:2] == [Leading(1), Suspended(1)]
    assert Following(None) in seen.values
    await election.close()


async def test_a_bystander_follows_the_leaders_record(world: World) -> None:
    watch = LeaderWatch(await world.connect())
    seen: Recorder[LeaderRecord | None] = Recorder()
    watch.on_change(seen)
    watch.start()
    first, _ = await stand(await world.connect(), "one")
    second, _ = await stand(await world.connect(), "two")
    leader = await seen.until(lambda record: record is not None)
    assert leader == watch.leader
    assert leader is not None
    assert (leader.id, leader.epoch, leader.payload) == ("one", 1, b"one:5000")
    await first.close()
    await seen.until(lambda record: record is not None and record.id == "two")
    await second.close()
    await seen.until(lambda record: record is None)
    watch.close()


async def test_changes_can_be_iterated_until_the_end(world: World) -> None:
    election = Election(await world.connect(), "one", b"", SYSTEM_CLOCK)
    seen: Recorder[Leadership] = Recorder()

    async def iterate() -> None:
        async for leadership in election.changes():
            seen(leadership)

    task = asyncio.create_task(iterate())
    await election.start()
    await seen.until(lambda it: it == Leading(1))
    await election.close()
    async with asyncio.timeout(PATIENCE_S):
        await task
    assert seen.values[-1] == Following(None)


async def test_candidates_may_share_a_session(world: World) -> None:
    client = await world.connect()
    first, _ = await stand(client, "one")
    second, second_saw = await stand(client, "two")
    await first.close()
    await second_saw.until(lambda it: it == Leading(2))
    await second.close()


@pytest.mark.parametrize("fault", ["lose_replies", "lose_requests", "refuse"])
@pytest.mark.parametrize("count", [1, 2, 5])
async def test_lost_calls_delay_but_do_not_mislead(fault: str, count: int) -> None:
    client = MemoryCoordinator(MemoryStore())
    await client.start()
    await wait_connected(client, PATIENCE_S)
    setattr(client.faults, fault, count)
    election, seen = await stand(client, "one")
    await seen.until(lambda it: isinstance(it, Leading))
    assert len(await client.children(CANDIDATES)) == 1
    entry = await client.read(LEADER)
    assert entry is not None
    record = decode_record(entry.data)
    assert record is not None
    assert election.leadership == Leading(record.epoch)
    await election.close()
    assert await client.children(CANDIDATES) == []
    await client.close()


async def test_a_thawed_leader_knows_before_it_hears() -> None:
    """Frozen for too long, its session gone, no event delivered yet: the clock says enough."""
    clock = ManualClock()

    class Frozen(MemoryCoordinator):
        @property
        def live_until_s(self) -> float:
            return 1002.0

    client = Frozen(MemoryStore())
    await client.start()
    await wait_connected(client, PATIENCE_S)
    election = Election(client, "one", b"", clock)
    seen: Recorder[Leadership] = Recorder()
    election.on_leadership(seen)
    await election.start()
    await seen.until(lambda it: it == Leading(1))
    assert election.is_leader(1)
    clock.advance(2.0)
    assert not election.is_leader(1)
    await election.close()
    await client.close()


async def test_an_unreadable_record_is_replaced_not_obeyed() -> None:
    store = MemoryStore()
    client, other = MemoryCoordinator(store), MemoryCoordinator(store)
    for each in (client, other):
        await each.start()
        await wait_connected(each, PATIENCE_S)
    await other.commit([Create(LEADER, b"\xff" * 100)])
    election, seen = await stand(client, "one")
    await seen.until(lambda it: it == Leading(1))
    with pytest.raises(InvalidRequest):
        Election(client, "one", b"x" * 40_000, SYSTEM_CLOCK)
    await election.close()
    for each in (client, other):
        await each.close()

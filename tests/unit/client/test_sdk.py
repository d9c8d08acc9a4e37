# pyright: reportPrivateUsage=false
"""The SDK against a server that fails to order."""

import asyncio
import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snooze.client import async_sdk, transport
from snooze.client.async_sdk import AsyncSnooze, failure
from snooze.client.errors import NoFrontDoor
from snooze.client.fake_cluster import Failure, FakeCluster
from snooze.common.api import EventView, TaskState, TaskView, TaskVm, VmRequest, VmView
from snooze.common.errors import (
    Conflict,
    ErrorReport,
    ExecutionError,
    InvalidRequest,
    NoCapacity,
    NotFound,
    NotLeader,
    RemoteError,
    RemoteTimeout,
    TooBusy,
)
from snooze.common.vm_lifecycle import VmState

WEB = VmRequest(name="web", vcpus=2, memory_kib=2 * 1024**2, image="tiny.qcow2")


def posts(fake: FakeCluster) -> list[tuple[str, str]]:
    return [(path, key) for method, path, key in fake.requests if method == "POST"]


async def test_a_vm_from_submission_to_destruction(fake: FakeCluster) -> None:
    async with AsyncSnooze(fake.url) as cluster:
        task = await cluster.submit([WEB])
        assert task.state is TaskState.PENDING
        task = await cluster.wait(task, check=True)
        assert [(vm.name, vm.state) for vm in task.vms] == [("web", VmState.RUNNING)]
        for order, state in (
            (cluster.suspend, VmState.PAUSED),
            (cluster.resume, VmState.RUNNING),
            (cluster.reboot, VmState.RUNNING),
            (cluster.shutdown, VmState.STOPPED),
            (cluster.start, VmState.RUNNING),
        ):
            await cluster.wait(await order("web"), check=True)
            assert (await cluster.vm("web")).state is state
        await cluster.wait(await cluster.resize("web", vcpus=4, tx_kib_s=1.0), check=True)
        resized = (await cluster.vm("web")).demand
        assert resized.as_list() == [4, 2 * 1024**2, 12800, 1]
        await cluster.wait(await cluster.migrate("web", "host-2"), check=True)
        assert [vm.hostname for vm in await cluster.vms()] == ["host-2"]
        await cluster.wait(await cluster.destroy("web"), check=True)
        assert await cluster.vms() == []
        assert len(await cluster.tasks()) == 9
    keys = [key for _, key in posts(fake)]
    assert len(set(keys)) == len(keys) == 9
    assert all(keys)


async def test_what_there_is(fake: FakeCluster) -> None:
    fake.add_vm("web")
    async with AsyncSnooze(fake.url) as cluster:
        assert (await cluster.cluster()).epoch == 3
        assert [host.hostname for host in await cluster.hosts()] == ["host-1", "host-2", "host-3"]
        assert (await cluster.host("host-1")).reserved.cpu_cores == 2
        assert [manager.leader for manager in await cluster.managers()] == [True, False]
        assert [image.name for image in await cluster.images()] == ["tiny.qcow2"]
        tree = await cluster.hierarchy()
        assert tree.managers[0].hosts[0].vms[0].name == "web"
        assert (await cluster.fetch("/cluster")).startswith(b"{")


async def test_progress_of_a_migration(fake: FakeCluster) -> None:
    fake.add_vm("web")
    seen: list[TaskView] = []
    async with AsyncSnooze(fake.url) as cluster:
        await cluster.wait(await cluster.migrate("web", "lc-2"), on_progress=seen.append)
    moved = [task.progress.processed_bytes for task in seen if task.progress]
    assert moved == sorted(moved)
    assert len(moved) == 4
    assert seen[-1].state is TaskState.DONE


async def test_the_next_front_door_is_asked(fake: FakeCluster, closed_url: str) -> None:
    async with AsyncSnooze([closed_url, "http://name.invalid:1", fake.url]) as cluster:
        await cluster.submit([WEB])
        await cluster.vms()
    # The one that answered is remembered.
    assert [method for method, _, _ in fake.requests] == ["POST", "GET"]


async def test_nobody_answers(closed_url: str) -> None:
    async with AsyncSnooze(closed_url) as cluster:
        with pytest.raises(NoFrontDoor, match="connection refused") as caught:
            await cluster.vms()
    assert closed_url in caught.value.message


@pytest.mark.parametrize("order", [Failure.DROP, Failure.LOSE_ANSWER, Failure.BAD_GATEWAY])
async def test_a_lost_order_is_repeated_and_done_once(fake: FakeCluster, order: Failure) -> None:
    fake.fail_next(order)
    async with AsyncSnooze(fake.url) as cluster:
        task = await cluster.submit([WEB])
        await cluster.wait(task, check=True)
    assert list(fake.vms) == ["web"]
    assert list(fake.tasks) == [task.id]
    first, second = posts(fake)
    assert first == second


async def test_one_key_is_one_submission(fake: FakeCluster) -> None:
    async with AsyncSnooze(fake.url) as cluster:
        first = await cluster.submit([WEB], idempotency_key="mine")
        assert (await cluster.submit([WEB], idempotency_key="mine")).id == first.id
        with pytest.raises(InvalidRequest, match="idempotency key"):
            await cluster.submit([WEB], idempotency_key="two\r\nlines")


async def test_a_peer_that_keeps_breaking_off_is_given_up(fake: FakeCluster) -> None:
    fake.fail_next(Failure.DROP, times=100)
    async with AsyncSnooze(fake.url) as cluster:
        with pytest.raises(RemoteError, match="broke off"):
            await cluster.submit([WEB])
    assert len(posts(fake)) == transport.MAX_LOST


async def test_silence_ends_with_the_time_out(fake: FakeCluster) -> None:
    fake.fail_next(Failure.HANG, times=100)
    async with AsyncSnooze(fake.url, timeout_s=0.3) as cluster:
        with pytest.raises(RemoteTimeout, match="did not answer"):
            await cluster.vms()


async def test_an_address_that_hangs_leaves_time_for_the_others(fake: FakeCluster) -> None:
    fake.fail_next(Failure.HANG)
    async with AsyncSnooze(fake.url, timeout_s=3) as cluster:
        assert await cluster.vms() == []


async def test_a_change_of_leader_is_waited_out(fake: FakeCluster) -> None:
    fake.fail_next(Failure.NO_LEADER, times=4)
    async with AsyncSnooze(fake.url) as cluster:
        assert await cluster.vms() == []


async def test_the_pause_the_server_asks_for_may_be_too_long(fake: FakeCluster) -> None:
    fake.fail_next(Failure.BUSY, times=100)
    async with AsyncSnooze(fake.url, timeout_s=0.5) as cluster:
        with pytest.raises(TooBusy) as caught:
            await cluster.submit([WEB])
    assert caught.value.retry_after_s == 1
    assert len(posts(fake)) == 1


async def test_refusals_carry_their_problems(fake: FakeCluster) -> None:
    wrong = VmRequest(name="web", vcpus=1, memory_kib=-1, image="absent")
    async with AsyncSnooze(fake.url) as cluster:
        with pytest.raises(InvalidRequest) as caught:
            await cluster.submit([wrong])
        assert [problem.where for problem in caught.value.problems] == [
            "vms[0].memory_kib",
            "vms[0].image",
        ]
        with pytest.raises(NotFound):
            await cluster.vm("absent")
        fake.add_vm("web", VmState.PAUSED)
        with pytest.raises(Conflict, match="it is paused"):
            await cluster.migrate("web", "host-2")


@pytest.mark.parametrize(
    ("order", "message"),
    [(Failure.NONSENSE, "not what Snooze answers"), (Failure.FOREIGN, "may not be a front door")],
)
async def test_what_is_not_snooze_is_said(fake: FakeCluster, order: Failure, message: str) -> None:
    fake.fail_next(order)
    async with AsyncSnooze(fake.url) as cluster:
        with pytest.raises(RemoteError, match=message):
            await cluster.vms()


async def test_an_answer_without_end_is_refused(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 1000)
    for number in range(10):
        fake.add_vm(f"vm-{number}")
    async with AsyncSnooze(fake.url) as cluster:
        with pytest.raises(RemoteError, match="more than 1000 bytes"):
            await cluster.vms()


@pytest.mark.parametrize("name", ["a/../b?c#d", "Ünïcode ☃", "%2e%2e", "a b"])
async def test_any_name_is_one_segment_of_the_path(fake: FakeCluster, name: str) -> None:
    fake.add_vm(name)
    async with AsyncSnooze(fake.url) as cluster:
        assert (await cluster.vm(name)).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "x" * 1025, "\ud800"])
async def test_what_can_be_no_name_is_not_sent(fake: FakeCluster, name: str) -> None:
    async with AsyncSnooze(fake.url) as cluster:
        with pytest.raises(InvalidRequest):
            await cluster.vm(name)
    assert fake.requests == []


async def test_a_wait_ends_and_does_not_hammer(fake: FakeCluster) -> None:
    fake.add_vm("web")
    async with AsyncSnooze(fake.url) as cluster:
        task = await cluster.suspend("web")
        # A server that does not hold its answers, and a task that never ends.
        fake.stuck = True
        before = len(fake.requests)
        with pytest.raises(RemoteTimeout, match="it goes on"):
            await cluster.wait(task, timeout_s=0.5)
        assert len(fake.requests) - before <= 0.5 / async_sdk.MIN_POLL_S + 1


async def test_a_wait_survives_front_doors_that_fail(fake: FakeCluster, closed_url: str) -> None:
    async with AsyncSnooze([fake.url, closed_url]) as cluster:
        task = await cluster.submit([WEB])
        fake.fail_next(Failure.DROP, times=2, path="/tasks/")
        fake.fail_next(Failure.NO_LEADER, times=2, path="/tasks/")
        assert (await cluster.wait(task)).state is TaskState.DONE


async def test_a_partial_submission(fake: FakeCluster) -> None:
    fake.capacity_vms = 1
    async with AsyncSnooze(fake.url) as cluster:
        other = VmRequest(name="other", vcpus=1, memory_kib=1024, image="tiny.qcow2")
        task = await cluster.wait(await cluster.submit([WEB, other]))
        assert task.state is TaskState.PARTIAL
        with pytest.raises(ExecutionError, match="1 of 2 VMs failed") as caught:
            await cluster.wait(task, check=True)
        assert [problem.where for problem in caught.value.problems] == ["other"]


def test_what_went_wrong_in_a_task() -> None:
    full = ErrorReport("no_capacity", "no room")
    bad = ErrorReport("execution_failed", "qemu died")

    def task(
        state: TaskState, *errors: ErrorReport | None, own: ErrorReport | None = None
    ) -> TaskView:
        vms = [TaskVm(f"vm-{n}", error=error) for n, error in enumerate(errors)]
        return TaskView("t", "submit", state, 0, vms=vms, error=own)

    assert failure(task(TaskState.DONE, None)) is None
    assert failure(task(TaskState.RUNNING, bad)) is None
    assert type(failure(task(TaskState.FAILED, full))) is NoCapacity
    assert type(failure(task(TaskState.FAILED, full, full))) is NoCapacity
    assert type(failure(task(TaskState.FAILED, full, bad))) is ExecutionError
    assert type(failure(task(TaskState.PARTIAL, full, None))) is ExecutionError
    image = ErrorReport("start_failed", "on h2: there is no image 'nope'")
    assert type(failure(task(TaskState.FAILED, image))) is ExecutionError
    assert type(failure(task(TaskState.FAILED, image, image))) is ExecutionError
    assert type(failure(task(TaskState.FAILED, ErrorReport("no_manager", "none")))) is NoCapacity
    assert type(failure(task(TaskState.FAILED, ErrorReport("of the future", "?")))) is RemoteError
    own = failure(task(TaskState.FAILED, full, bad, own=ErrorReport("not_leader", "deposed")))
    assert isinstance(own, NotLeader)
    assert len(own.problems) == 2


async def collect(cluster: AsyncSnooze, count: int, after: int | None) -> list[EventView]:
    found: list[EventView] = []
    events = cluster.follow(after=after)
    async with asyncio.timeout(20):
        async for event in events:
            found.append(event)
            if len(found) == count:
                break
    await events.aclose()
    return found


async def test_events_are_listed(fake: FakeCluster) -> None:
    for number in range(250):
        fake.emit("vm.running", f"web-{number}", "runs")
    async with AsyncSnooze(fake.url) as cluster:
        assert [event.seq for event in await cluster.events(after=247)] == [248, 249, 250]
        assert [event.seq for event in await cluster.events(limit=2)] == [1, 2]
        assert [event.seq for event in await cluster.all_events()] == list(range(1, 251))


async def test_a_broken_stream_goes_on_after_the_last_event(fake: FakeCluster) -> None:
    for number in range(6):
        fake.emit("vm.running", f"web-{number}", "runs")
    fake.fail_next(Failure.DROP, times=2, path="stream")
    fake.fail_next(Failure.DROP, path="/events")
    async with AsyncSnooze(fake.url) as cluster:
        assert [event.seq for event in await collect(cluster, 5, after=1)] == [2, 3, 4, 5, 6]


async def test_a_new_leaders_events_are_told_from_the_first(fake: FakeCluster) -> None:
    for number in range(5):
        fake.emit("vm.running", f"web-{number}", "runs")
    async with AsyncSnooze(fake.url) as cluster, asyncio.timeout(20):
        events = cluster.follow(after=4)
        assert (await anext(events)).seq == 5
        fake.change_leader()
        fake.emit("vm.running", "web-9", "runs")
        found = [await anext(events), await anext(events)]
        await events.aclose()
    assert [(event.seq, event.kind) for event in found] == [
        (1, "leader.elected"),
        (2, "vm.running"),
    ]


async def test_following_begins_now(fake: FakeCluster) -> None:
    fake.emit("vm.running", "old", "runs")
    async with AsyncSnooze(fake.url) as cluster:
        following = asyncio.create_task(collect(cluster, 1, after=None))
        await asyncio.to_thread(fake.wait_until_asked, "events?after=1")
        fake.emit("vm.running", "new", "runs")
        assert [event.subject for event in await following] == ["new"]


async def test_a_stream_that_is_refused(fake: FakeCluster) -> None:
    fake.fail_next(Failure.FOREIGN, times=1000, path="/events")
    async with AsyncSnooze(fake.url) as cluster:
        events = cluster.follow(after=0, patience_s=0.2)
        with pytest.raises(RemoteError):
            await anext(events)


@given(st.binary(max_size=64))
@example(b'[{"name": "\xff"}]')
@example(b'{"error": ' + b"[" * 100_000)
def test_an_answer_is_decoded_or_refused(content: bytes) -> None:
    for kind in (list[VmView], TaskView, EventView):
        with contextlib.suppress(RemoteError):
            async_sdk.decode(content, kind)


async def test_calls_and_streams_end_with_their_client(fake: FakeCluster) -> None:
    """One that went on would open a session that nobody closes, which is a warning."""
    client = AsyncSnooze(fake.url)
    following = client.follow()
    event = asyncio.ensure_future(anext(following))
    while not any("/events" in path for _, path, _ in fake.requests):  # noqa: ASYNC110 (no event)
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    fake.fail_next(Failure.HANG)
    call = asyncio.ensure_future(client.vms())
    await asyncio.sleep(0.1)
    await client.close()
    for work in (event, call):
        with pytest.raises(ExecutionError, match="closed"):
            await work
    assert client._transport._session is None


async def test_an_address_that_can_be_none_is_passed_over(fake: FakeCluster) -> None:
    async with AsyncSnooze(["http://a..b:1", fake.url]) as cluster:
        assert await cluster.vms() == []
    async with (
        AsyncSnooze(["http://a..b:1", fake.url]) as cluster,
        cluster._transport.stream("/v1/events", params={"after": 0}),
    ):
        assert cluster._transport._preferred == 1

"""The SDK for plain programs: threads, loops, generators."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from snooze.client.fake_cluster import FakeCluster
from snooze.client.sdk import CommandRequest, Snooze, VmCommand, VmRequest
from snooze.common.api import TaskState, TaskView
from snooze.common.errors import NotFound


@pytest.fixture(autouse=True)
def others() -> frozenset[threading.Thread]:
    """The threads of clients that other tests have open for the whole run."""
    before = frozenset(t for t in threading.enumerate() if t.name == "snooze-client")
    _OTHERS[:] = before
    return before


_OTHERS: list[threading.Thread] = []


def threads() -> int:
    """How many threads the clients of this test have."""
    return sum(
        thread.name == "snooze-client" and thread not in _OTHERS for thread in threading.enumerate()
    )


def test_every_method(fake: FakeCluster) -> None:
    with Snooze(fake.url) as cluster:
        web = VmRequest(name="web", vcpus=1, memory_kib=1024**2, image="tiny.qcow2")
        seen: list[TaskView] = []
        task = cluster.wait(cluster.submit([web]), on_progress=seen.append, check=True)
        assert seen[-1] == task == cluster.task(task.id)
        for order in (
            cluster.suspend,
            cluster.resume,
            cluster.reboot,
            cluster.shutdown,
            cluster.start,
        ):
            assert cluster.wait(order("web")).state is TaskState.DONE
        cluster.wait(cluster.resize("web", memory_kib=2048))
        cluster.wait(cluster.migrate("web", "host-2"))
        moved = CommandRequest(host="host-1")
        cluster.wait(cluster.command("web", VmCommand.MIGRATE, moved, wait_s=1))
        assert cluster.vm("web").hostname == "host-1"
        assert cluster.vm("web").demand.memory_kib == 2048
        assert len(cluster.tasks()) == 9
        assert cluster.cluster().vms == len(cluster.vms()) == 1
        assert len(cluster.hosts()) == 3
        assert cluster.host("lc-2").hostname == "host-2"
        assert cluster.managers()[0].leader
        assert cluster.hierarchy().leader_id == "gm-1"
        assert cluster.images()[0].format == "qcow2"
        assert cluster.fetch("/vms").startswith(b"[")
        cluster.wait(cluster.destroy("web"))
        with pytest.raises(NotFound):
            cluster.vm("web")
        assert cluster.addresses == (fake.url,)
    assert threads() == 0


async def test_inside_a_running_loop(fake: FakeCluster) -> None:
    with Snooze(fake.url) as cluster:
        assert cluster.vms() == []


def test_from_several_threads(fake: FakeCluster) -> None:
    fake.add_vm("web")
    with Snooze(fake.url) as cluster, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(cluster.vm, ["web"] * 40))
        assert [vm.name for vm in found] == ["web"] * 40
        assert threads() == 1


def test_after_close_it_starts_anew(fake: FakeCluster) -> None:
    cluster = Snooze(fake.url)
    assert threads() == 0
    cluster.vms()
    cluster.close()
    cluster.close()
    assert threads() == 0
    assert cluster.vms() == []
    cluster.close()


def test_following_ends_when_it_is_closed(fake: FakeCluster) -> None:
    for number in range(3):
        fake.emit("vm.running", f"web-{number}", "runs")
    with Snooze(fake.url) as cluster:
        events = cluster.follow(after=1)
        assert [next(events).seq, next(events).seq] == [2, 3]
        events.close()
        assert [event.seq for event in cluster.events(after=2)] == [3]
        assert len(cluster.all_events()) == 3

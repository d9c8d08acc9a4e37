"""The SDK and the command against a living cluster on libvirt's test driver."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from snooze.client.async_sdk import AsyncSnooze
from snooze.client.command import app
from snooze.client.sdk import Snooze
from snooze.common.api import TaskState, VmRequest, VmView
from snooze.common.errors import Conflict, InvalidRequest, NotFound
from snooze.common.vm_lifecycle import VmState

DOMAIN = (
    "<domain type='kvm'><name>{name}</name><memory unit='KiB'>131072</memory><vcpu>1</vcpu>"
    "<os><type arch='x86_64'>hvm</type></os></domain>"
)


class LiveCluster(Protocol):
    """What the fixture ``live_cluster`` gives."""

    url: str


@pytest.fixture
def names(live_cluster: LiveCluster) -> Iterator[list[str]]:
    """Names of VMs that nobody else has; whatever of them is left is destroyed."""
    mine = [f"live-{uuid.uuid4().hex[:8]}" for _ in range(3)]
    yield mine
    with Snooze(live_cluster.url) as cluster:
        for vm in cluster.vms():
            if vm.name in mine and vm.state is not VmState.DESTROYED:
                cluster.wait(cluster.destroy(vm.name))


@pytest.fixture
async def cluster(live_cluster: LiveCluster) -> AsyncIterator[AsyncSnooze]:
    async with AsyncSnooze(live_cluster.url) as connected:
        yield connected


@pytest.fixture
def run(live_cluster: LiveCluster) -> Callable[..., Result]:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["--url", live_cluster.url, *arguments])

    return invoke


async def test_a_life_by_the_sdk(cluster: AsyncSnooze, names: list[str]) -> None:
    requests = [VmRequest(libvirt_xml=DOMAIN.format(name=name)) for name in names]
    task = await cluster.wait(await cluster.submit(requests, idempotency_key=names[0]), check=True)
    assert [(vm.name, vm.state) for vm in task.vms] == [(name, VmState.RUNNING) for name in names]
    again = await cluster.submit(requests, idempotency_key=names[0])
    assert again.id == task.id

    name = names[0]
    vm = await cluster.vm(name)
    assert vm.vm_id == task.vms[0].vm_id
    assert ElementTree.fromstring(vm.xml).findtext("name") == name
    assert (await cluster.vm(vm.vm_id)).name == name

    for order, state in (
        (cluster.suspend, VmState.PAUSED),
        (cluster.resume, VmState.RUNNING),
        (cluster.reboot, VmState.RUNNING),
    ):
        await cluster.wait(await order(name), check=True)
        assert (await cluster.vm(name)).state is state
    host = next(host for host in await cluster.hosts() if host.id != vm.host_id)
    await cluster.wait(await cluster.suspend(name), check=True)
    with pytest.raises(Conflict, match="paused"):
        await cluster.wait(await cluster.migrate(name, host.id), check=True)
    await cluster.wait(await cluster.resume(name), check=True)

    moved = await cluster.wait(await cluster.migrate(name, host.hostname), check=True)
    assert moved.progress is not None
    assert (await cluster.vm(name)).host_id == host.id

    await cluster.wait(await cluster.shutdown(name), check=True)
    assert (await cluster.wait_settled(name)).state is VmState.STOPPED
    await cluster.wait(await cluster.destroy(name), check=True)
    left = {vm.name for vm in await cluster.vms() if vm.state is not VmState.DESTROYED}
    assert left & set(names) == set(names[1:])


async def test_refusals(cluster: AsyncSnooze, names: list[str]) -> None:
    with pytest.raises(NotFound):
        await cluster.vm("never-was")
    with pytest.raises(NotFound):
        await cluster.task("never-was")
    with pytest.raises(InvalidRequest) as caught:
        await cluster.submit(
            [
                VmRequest(libvirt_xml=DOMAIN.format(name=names[0])),
                VmRequest(name=names[1], vcpus=-1, memory_kib=1024, image="tiny"),
            ]
        )
    assert any(problem.where.startswith("vms[1]") for problem in caught.value.problems)
    assert not {vm.name for vm in await cluster.vms()} & set(names)


async def test_events_are_followed(cluster: AsyncSnooze, names: list[str]) -> None:
    known = await cluster.all_events()
    events = cluster.follow(after=known[-1].seq)
    task = await cluster.submit([VmRequest(libvirt_xml=DOMAIN.format(name=names[0]))])
    async with asyncio.timeout(30):
        while names[0] not in (await anext(events)).message:
            pass
    await events.aclose()
    await cluster.wait(task, check=True)


async def test_the_tree_is_whole(cluster: AsyncSnooze) -> None:
    tree = await cluster.hierarchy()
    view = await cluster.cluster()
    assert tree.leader_id == view.leader_id
    managers = await cluster.managers()
    assert {branch.manager.id for branch in tree.managers} == {m.id for m in managers}
    assert [m.id for m in managers if m.leader] == [tree.leader_id]
    hosts = [twig.host.id for branch in tree.managers for twig in branch.hosts]
    assert sorted(hosts) == sorted(host.id for host in await cluster.hosts())


def test_a_life_by_the_command(
    run: Callable[..., Result], names: list[str], tmp_path: Path
) -> None:
    paths: list[str] = []
    for name in names:
        path = tmp_path / f"{name}.xml"
        path.write_text(DOMAIN.format(name=name))
        paths.append(str(path))
    done = run("submit", *paths, "-o", "json")
    assert done.exit_code == 0, done.output
    task = json.loads(done.stdout)
    assert task["state"] == TaskState.DONE.value
    listed = {vm["name"] for vm in json.loads(run("list", "-o", "json").stdout)}
    assert set(names) <= listed
    for command, state in (("suspend", "paused"), ("resume", "running"), ("shutdown", "stopped")):
        done = run(command, *names)
        assert done.exit_code == 0, done.output
        assert done.stdout.count(state) >= len(names)
    for view in ("list", "hosts", "managers", "images", "tasks", "hierarchy", "events", "version"):
        done = run(view)
        assert done.exit_code == 0, done.output
        assert done.stderr == ""
    ElementTree.fromstring(run("hierarchy", "-o", "graphml").stdout)
    vm: VmView = json.loads(run("info", names[0], "-o", "json").stdout)
    assert vm
    assert run("destroy", *names).exit_code == 0
    assert run("suspend", names[0]).exit_code in (4, 5)

"""The smallest cluster on two real hosts: qemu runs a guest with a pulse, and it moves alive.

Each host is a set of namespaces with its own network, libvirtd and local controller; front door and
group manager (the only one: it plays both roles) stand outside, on the lab's network.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from snooze.client.sdk import Snooze, TaskState, TaskView, VmRequest, VmState
from snooze.common.errors import SnoozeError
from snooze.lab.daemons import Daemon, DaemonCluster
from snooze.lab.guests import Beat, assemble, make_disk, micro_guest_xml, read_beat, wait_for_beat
from snooze.lab.hosts import LabHost, LabNet
from snooze.lab.zookeeper import zookeeper_server

T = TypeVar("T")

LOCAL = Path("/var/lib/libvirt/images")
"""On each host its own."""
LARGE_DISK_BYTES = 24 * 1024 * 1024
BANDWIDTH_MIB_S = 12
PATIENCE_S = 60.0


class Lab:
    """Two hosts and the daemons of their cluster."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        runner = stack.enter_context(asyncio.Runner())
        server = zookeeper_server(tick_ms=500)
        zookeeper = runner.run(server.__aenter__())
        stack.callback(lambda: runner.run(server.__aexit__(None, None, None)))
        self.net = stack.enter_context(LabNet(uplink=True))
        self.hosts = {name: self.net.host(name) for name in ("one", "two")}
        self.sector = assemble(self.net.folder)
        self.shared = self.net.folder / "shared"
        self.shared.mkdir()
        for host in self.hosts.values():
            self.local(host).mkdir(parents=True)
            host.power_on()
        directories = (str(LOCAL), str(self.shared))
        self.cluster = stack.enter_context(
            DaemonCluster(
                folder,
                zookeeper.hosts,
                address=self.net.gateway,
                defaults={
                    "coordination": {"session_timeout_s": 2.0},
                    "heartbeat": {"interval_s": 0.3, "timeout_s": 2.0},
                },
            )
        )
        front = self.cluster.bootstrap("front")
        self.cluster.manager("gm", {"templates": {"image_directories": directories}})
        self.agents: dict[str, Daemon] = {}
        for name, host in self.hosts.items():
            self.agents[name] = self.cluster.host(
                name,
                {
                    "hypervisor": {"migration_uri": "qemu+tcp://{address}/system"},
                    "images": {"directories": directories},
                    "templates": {"bridges": {"*": "br0"}},
                    "migration": {"bandwidth_mib_s": BANDWIDTH_MIB_S},
                },
                on=host,
            )
        for daemon in self.cluster:
            daemon.start()
        for host in self.hosts.values():
            host.wait_for_libvirtd()
        for daemon in self.cluster:
            daemon.wait_ready()
        self.client = stack.enter_context(Snooze(front.url))

    def local(self, host: LabHost) -> Path:
        """Where we see a host's own images."""
        return host.folder / str(LOCAL).lstrip("/")

    def submit(self, name: str, disk: Path, host: str, *, bridge: str = "br0") -> TaskView:
        request = VmRequest(libvirt_xml=micro_guest_xml(name, disk, bridge=bridge), host=host)
        return self.client.wait(self.client.submit([request]))

    def domains(self, host: str) -> list[str]:
        listed = self.hosts[host].exec(["virsh", "list", "--all", "--name"])
        return listed.stdout.decode().split()

    def until(self, condition: Callable[[], T | None], what: str) -> T:
        deadline_s = time.monotonic() + PATIENCE_S
        while not (answer := condition()):
            assert time.monotonic() < deadline_s, what
            time.sleep(0.05)
        return answer


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(tmp_path_factory.mktemp("real"), stack)


def test_a_guest_runs_obeys_and_outlives_its_local_controller(lab: Lab) -> None:
    disk = lab.local(lab.hosts["one"]) / "obedient.raw"
    make_disk(disk, lab.sector)
    task = lab.submit("obedient", Path("obedient.raw"), "one", bridge="br7")
    assert task.state is TaskState.DONE, task
    first = wait_for_beat(disk)
    xml = lab.client.vm("obedient").xml
    assert "bridge='br0'" in xml, "as the host's settings map it"
    assert str(LOCAL / "obedient.raw") in xml, "a relative path lies in the image directory"

    lab.client.wait(lab.client.suspend("obedient"), check=True)
    paused = read_beat(disk)
    time.sleep(2.5)  # more than two beats
    assert read_beat(disk) == paused
    lab.client.wait(lab.client.resume("obedient"), check=True)
    assert paused is not None
    assert wait_for_beat(disk, paused.count).boot == first.boot

    agent = lab.agents["one"]
    ident = agent.node_id
    agent.stop()
    beat = read_beat(disk)
    assert beat is not None
    assert wait_for_beat(disk, beat.count).boot == first.boot
    agent.start()
    agent.wait_ready()
    lab.until(lambda: lab.client.vm("obedient").state is VmState.RUNNING, "it is adopted")
    assert agent.node_id == ident
    assert lab.client.vm("obedient").host_id == ident

    lab.client.wait(lab.client.reboot("obedient"), check=True)
    lab.client.wait(lab.client.destroy("obedient"), check=True)
    assert lab.domains("one") == []
    assert disk.exists(), "a disk that the user named is the user's"


def test_a_guest_on_shared_storage_moves_without_missing_a_beat(lab: Lab) -> None:
    disk = lab.shared / "shared.raw"
    make_disk(disk, lab.sector)
    lab.submit("sharer", disk, "one")
    beats = [wait_for_beat(disk)]
    task = lab.client.wait(
        lab.client.migrate("sharer", "two"),
        on_progress=lambda _: note(beats, read_beat(disk)),
        check=True,
    )
    for _ in range(2):
        note(beats, wait_for_beat(disk, beats[-1].count))
    assert {beat.boot for beat in beats} == {beats[0].boot}, "it never booted anew"
    counts = [beat.count for beat in beats]
    assert counts == list(range(counts[0], counts[0] + len(counts))), "no beat is missing"
    check_moved(lab, "sharer", task)
    lab.client.wait(lab.client.destroy("sharer"), check=True)


def test_a_guest_takes_its_disk_along_and_tells_how_far_it_is(lab: Lab) -> None:
    here, there = (lab.local(lab.hosts[name]) / "mover.raw" for name in ("one", "two"))
    make_disk(here, lab.sector, LARGE_DISK_BYTES, fill=b"not zero" * 64)
    lab.submit("mover", Path("mover.raw"), "one")
    before = wait_for_beat(here)
    on_the_way: list[TaskView] = []
    task = lab.client.wait(
        lab.client.migrate("mover", "two"), on_progress=on_the_way.append, check=True
    )
    arrived = wait_for_beat(there, before.count)
    assert arrived.boot == before.boot
    assert not here.exists(), "what moved is not left behind"
    moving = [seen.progress for seen in on_the_way if seen.progress is not None]
    assert any(progress.total_bytes >= LARGE_DISK_BYTES for progress in moving), moving
    assert any(0 < p.processed_bytes < LARGE_DISK_BYTES and p.remaining_bytes for p in moving)
    check_moved(lab, "mover", task)
    lab.client.wait(lab.client.destroy("mover"), check=True)


def check_moved(lab: Lab, name: str, task: TaskView) -> None:
    vm = lab.client.vm(name)
    assert (vm.hostname, vm.state) == ("two", VmState.RUNNING)
    assert (lab.domains("one"), lab.domains("two")) == ([], [name])
    assert task.progress is not None
    assert task.progress.total_bytes > 0
    assert task.progress.downtime_ms > 0
    assert task.progress.note == "", "nothing unusual: it was a live migration"


def note(beats: list[Beat], beat: Beat | None) -> None:
    if beat is not None and beat != beats[-1]:
        beats.append(beat)


def test_a_missing_disk_image_is_named(lab: Lab) -> None:
    task = lab.submit("diskless", Path("no-such-image.raw"), "one")
    assert task.state is TaskState.FAILED
    [vm] = task.vms
    assert vm.error is not None
    assert "no-such-image.raw does not exist" in vm.error.message
    assert lab.domains("one") == []
    assert lab.client.host("one").reserved.cpu_cores == 0
    with pytest.raises(SnoozeError):
        lab.client.suspend("diskless")

"""A cluster of separate daemon processes over a real ZooKeeper, on libvirtd's test driver.

Every host has a libvirtd of its own: what runs there outlives the daemons, and is looked at with
virsh, which knows nothing of Snooze.
"""

import asyncio
import json
import subprocess
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import libvirt
import pytest

from snooze.client.sdk import ClusterRequest, Snooze, TaskView, VmRequest, VmState, VmView
from snooze.common.errors import NotFound, SnoozeError
from snooze.lab.daemons import Daemon, DaemonCluster
from snooze.lab.libvirtd import LabLibvirtd
from snooze.lab.zookeeper import ZooKeeperServer, zookeeper_server

T = TypeVar("T")

PATIENCE_S = 60.0
"""More than anything here takes on a busy machine."""
POLL_S = 0.05


QUICK: dict[str, dict[str, object]] = {
    "coordination": {"session_timeout_s": 1.5},
    "heartbeat": {"interval_s": 0.3, "timeout_s": 1.5},
    "join": {"retry_min_s": 0.05, "retry_max_s": 0.5},
    "monitoring": {"interval_s": 0.5},
    "addresses": {"subnets": ("192.168.200.0/24",), "quarantine_s": 0.0},
}
"""Short time-outs, so that what has to be noticed is noticed soon."""

DOMAIN = (
    "<domain type='{kind}'>{uuid}<name>{name}</name><memory unit='KiB'>{memory}</memory>"
    "<vcpu>{vcpus}</vcpu><os><type>hvm</type></os></domain>"
)


@dataclass(frozen=True)
class Domain:
    """What virsh says of one domain; ``number`` changes with every start."""

    name: str
    host: str
    state: str
    uuid: str
    number: str


@dataclass(frozen=True)
class Reply:
    """An HTTP answer as it came."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Rig:
    """The cluster with its ZooKeeper and its hypervisors, all of which can be killed."""

    SESSION_S = 1.5
    HOST_CPUS = 16
    HOST_MEMORY_KIB = 3 * 1024 * 1024
    """Of libvirt's test:///default."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        runner = stack.enter_context(asyncio.Runner())
        server = zookeeper_server(tick_ms=500)
        self.zookeeper: ZooKeeperServer = runner.run(server.__aenter__())
        stack.callback(lambda: runner.run(server.__aexit__(None, None, None)))
        self._run = runner.run
        self.cluster = stack.enter_context(
            DaemonCluster(folder, self.zookeeper.hosts, defaults=QUICK)
        )
        self.fronts = [self.cluster.bootstrap(f"front{n}") for n in (1, 2)]
        self.managers = [self.cluster.manager(f"gm{n}", self.manager_settings()) for n in (1, 2, 3)]
        self.hypervisors: dict[str, LabLibvirtd] = {}
        self.hosts: list[Daemon] = []
        for name in ("host1", "host2", "host3"):
            daemon = self.hypervisors[name] = stack.enter_context(LabLibvirtd())
            # the test driver forgets everything when its last connection is closed
            stack.callback(libvirt.open(daemon.test_uri).close)
            self.virsh(daemon.test_uri, "destroy", "test")
            self.virsh(daemon.test_uri, "undefine", "test")
            self.hosts.append(
                self.cluster.host(
                    name,
                    {
                        "hypervisor": {"uri": daemon.test_uri, "migration_uri": daemon.test_uri},
                        "capacity": {"reserved_memory_kib": 0.0},
                        **self.host_settings(name),
                    },
                )
            )
        self.client = stack.enter_context(Snooze([front.url for front in self.fronts]))

    # ------------------------------------------------------------ tools

    def host_settings(self, name: str) -> dict[str, dict[str, object]]:
        """Further settings of a host, whose hypervisor runs already."""
        return {}

    def manager_settings(self) -> dict[str, dict[str, object]]:
        """Further settings of the group managers."""
        return {}

    @staticmethod
    def domain(name: str, *, vcpus: int = 1, memory_kib: int = 65536) -> str:
        """A template."""
        return DOMAIN.format(kind="kvm", uuid="", name=name, memory=memory_kib, vcpus=vcpus)

    @staticmethod
    def vms(prefix: str, count: int, **options: Any) -> list[VmRequest]:
        """Requests for VMs named PREFIX-0 and so on."""
        return [VmRequest(libvirt_xml=Rig.domain(f"{prefix}-{n}", **options)) for n in range(count)]

    @staticmethod
    def fresh(prefix: str = "vm") -> str:
        """A name that nothing has."""
        return f"{prefix}-{uuid.uuid4().hex[:8]}"

    @staticmethod
    def until(condition: Callable[[], T | None], what: str, timeout_s: float = PATIENCE_S) -> T:
        """The first true answer of ``condition``; errors of the cluster count as not yet."""
        deadline_s = time.monotonic() + timeout_s
        last: object = None
        while True:
            try:
                if answer := condition():
                    return answer
                last = answer
            except SnoozeError as error:
                last = error
            assert time.monotonic() < deadline_s, f"{what}: not in {timeout_s:g} s; last: {last!r}"
            time.sleep(POLL_S)

    @staticmethod
    def virsh(uri: str, *command: str) -> str:
        done = subprocess.run(
            ["virsh", "-q", "-c", uri, *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    @staticmethod
    def call(
        daemon: Daemon,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> Reply:
        """One HTTP call on a connection of its own."""
        host, port = daemon.address.split(":")
        connection = HTTPConnection(host, int(port), timeout=timeout_s)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            text = response.read().decode()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, fields, text)
        finally:
            connection.close()

    # ------------------------------------------------------------ starting

    def start_zookeeper(self) -> None:
        with suppress(SnoozeError):
            self.zookeeper.launch()
        self._run(self.zookeeper.wait_ready())

    def start_all(self, daemons: Sequence[Daemon]) -> None:
        for daemon in daemons:
            daemon.start()

    def wait_whole(self) -> Daemon:
        """Wait until every daemon is ready and the hierarchy is complete; the leader."""
        for daemon in self.cluster:
            daemon.wait_ready(PATIENCE_S)
        return self.until(self._complete, "the hierarchy is complete")

    def _complete(self) -> Daemon | None:
        leaders = self.leaders()
        if len(leaders) != 1:
            return None
        tree = self.client.hierarchy()
        if len(tree.managers) != len(self.managers) or tree.leader_id != leaders[0].node_id:
            return None
        below = {branch.manager.id: branch.hosts for branch in tree.managers}
        joined = [
            twig.host.id
            for manager, twigs in below.items()
            for twig in twigs
            if twig.host.status == "active" and manager != tree.leader_id
        ]
        if sorted(joined) != sorted(host.node_id for host in self.hosts):
            return None
        counts = [len(twigs) for manager, twigs in below.items() if manager != tree.leader_id]
        return leaders[0] if max(counts) - min(counts) <= 1 else None

    # ------------------------------------------------------------ looking

    def leaders(self) -> list[Daemon]:
        """The group managers that serve as the leader, asked so that they do not pass it on."""
        return [manager for manager in self.managers if self.epoch_of(manager) is not None]

    def epoch_of(self, manager: Daemon) -> int | None:
        """The epoch in which a manager serves as the leader; None if it does not."""
        try:
            reply = self.call(
                manager, "GET", "/v1/cluster", headers={"X-Snooze-Hops": "1"}, timeout_s=2
            )
        except (OSError, HTTPException):
            return None
        return reply.json["epoch"] if reply.status == 200 else None

    def named(self, node_id: str) -> Daemon:
        return next(daemon for daemon in self.cluster if daemon.node_id == node_id)

    def domains(self) -> list[Domain]:
        """Everything that the hypervisors have, by name."""
        found: list[Domain] = []
        for host, daemon in self.hypervisors.items():
            for line in self.virsh(daemon.test_uri, "list", "--all").splitlines():
                number, name, state = line.split(maxsplit=2)
                try:
                    xml = ElementTree.fromstring(self.virsh(daemon.test_uri, "dumpxml", name))
                except subprocess.CalledProcessError:
                    continue  # it went while we looked
                found.append(Domain(name, host, state.strip(), xml.findtext("uuid") or "", number))
        return sorted(found, key=lambda each: (each.name, each.host))

    def agrees(self) -> bool:
        """Whether Snooze tells of exactly what the hypervisors have."""
        states = {
            VmState.RUNNING: "running",
            VmState.PAUSED: "paused",
            VmState.STOPPED: "shut off",
        }
        told = [
            (vm.name, vm.hostname, states.get(vm.state, vm.state.value)) for vm in self.living()
        ]
        return sorted(told) == sorted((d.name, d.host, d.state) for d in self.domains())

    def living(self) -> list[VmView]:
        return [vm for vm in self.client.vms() if vm.state is not VmState.DESTROYED]

    # ------------------------------------------------------------ doing

    def submit(self, requests: Sequence[VmRequest] | ClusterRequest, key: str = "") -> TaskView:
        """Submit and wait for all to run."""
        task = self.client.submit(requests, idempotency_key=key)
        return self.client.wait(task, check=True)

    def restore(self) -> None:
        """Start what is down, and take away every VM."""
        if not self.zookeeper_runs:
            self.start_zookeeper()
        for daemon in self.cluster:
            daemon.start()
        self.wait_whole()
        for vm in self.living():
            if vm.managed:
                self.until(partial(self._take_away, vm.name), f"{vm.name} is taken away")
        for each in self.domains():
            uri = self.hypervisors[each.host].test_uri
            if each.state != "shut off":
                self.virsh(uri, "destroy", each.name)
            self.virsh(uri, "undefine", each.name)
        self.until(lambda: not self.living(), "nothing is left")

    def _take_away(self, name: str) -> bool:
        with suppress(NotFound):  # it failed meanwhile: no host has room for it
            self.client.wait(self.client.destroy(name))
        return True

    @property
    def zookeeper_runs(self) -> bool:
        try:
            return self.zookeeper.pid > 0
        except SnoozeError:
            return False


@pytest.fixture(scope="package")
def bare_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(tmp_path_factory.mktemp("cluster"), stack)


@pytest.fixture
def rig(bare_rig: Rig) -> Rig:
    """The cluster, whole and without a VM."""
    bare_rig.restore()
    return bare_rig


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of every daemon's log with a failure."""
    report = yield
    if report.failed:
        fixtures = getattr(item, "funcargs", {})
        for rig in fixtures.values():
            cluster = getattr(rig, "cluster", None)
            if isinstance(cluster, DaemonCluster):
                report.sections += [(f"log of {name}", text) for name, text in cluster.logs()]
                break
    return report

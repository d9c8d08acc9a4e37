"""``snooze up``: a whole cluster in one process, for trying out and for tests.

Coordination lives in memory; group managers, local controllers and the bootstrap node are the real
ones, each with its own HTTP port and links over loopback. With ``qemu``, every host is a set of
namespaces with a libvirtd of its own (``snooze.lab``), so that guests really migrate. Nothing is
left behind: the state directory is a temporary one.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from snooze.bootstrap.service import Bootstrap
from snooze.client.machines import Fall, Machine
from snooze.common.config import parse
from snooze.common.coordination.memory import MemoryCoordinator, MemoryStore
from snooze.common.errors import InvalidRequest, SnoozeError
from snooze.common.identity import node_identity
from snooze.common.logging_setup import configure_logging, speaking_as
from snooze.common.settings import BootstrapSettings, LogSettings
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.settings_localcontroller import LocalControllerSettings
from snooze.groupmanager.power.factory import PowerDrivers
from snooze.groupmanager.power.simulated import SimulatedPower
from snooze.groupmanager.service import GroupManager
from snooze.lab.guests import kvm_works
from snooze.localcontroller.hypervisor.libvirt_options import host_file
from snooze.localcontroller.hypervisor.simulated_world import SimulatedWorld
from snooze.localcontroller.service import LocalController

logger = logging.getLogger(__name__)

HYPERVISORS = ("test", "simulated", "qemu")
MAX_MANAGERS = 50
MAX_HOSTS = 2000
FORM_TIMEOUT_S = 60.0
POLL_S = 0.02

BOOT_S = 3.0
"""What a machine takes from power on until its local controller starts."""
QUICK_SLEEP = {
    "enabled": True,
    "idle_s": 20.0,
    "min_on_s": 10.0,
    "min_off_s": 10.0,
    "record_s": 5.0,
}
"""So that hosts are seen to go to sleep and to be woken while somebody watches."""

LAB_BRIDGE = "br0"
TEST_HOST_CPUS = 16
TEST_HOST_MEMORY_KIB = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Options:
    """What the cluster is made of; ``port`` is the front door's, 0 for free ports everywhere.

    ``images`` are the directories of disk images, absolute.
    ``overrides`` are tables of settings of the managers, ``host_overrides`` of the hosts.
    ``uris`` are the libvirt URIs of the hosts, for a cluster on hypervisors that exist already.
    ``sleep``: idle hosts go to sleep, and are woken: by simulated power, unless ``wakeup`` has the
    table of settings of a host of that name.
    """

    managers: int = 2
    hosts: int = 4
    hypervisor: str = "test"
    port: int = 5000
    address: str = "127.0.0.1"
    subnets: tuple[str, ...] = ("192.168.122.0/24", "10.122.0.0/16")
    images: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    sleep: bool = False
    wakeup: dict[str, dict[str, object]] = field(default_factory=dict[str, dict[str, object]])
    overrides: dict[str, object] = field(default_factory=dict[str, object])
    host_overrides: dict[str, object] = field(default_factory=dict[str, object])

    def check(self) -> None:
        """Refuse what cannot be built.

        Raises:
            InvalidRequest: says what is wrong.
        """
        if not 1 <= self.managers <= MAX_MANAGERS:
            raise InvalidRequest(f"--managers has to be from 1 to {MAX_MANAGERS}")
        if not 0 <= self.hosts <= MAX_HOSTS:
            raise InvalidRequest(f"--hosts has to be from 0 to {MAX_HOSTS}")
        if self.hypervisor not in HYPERVISORS:
            known = ", ".join(HYPERVISORS)
            raise InvalidRequest(f"no hypervisor {self.hypervisor!r}; there are: {known}")
        if self.hypervisor == "qemu" and not self.uris and os.geteuid() != 0:
            raise InvalidRequest(
                "qemu hosts are made of network namespaces, which takes root: run it as root, or "
                "use --hypervisor test"
            )
        for images in self.images:
            if not Path(images).is_dir():
                raise InvalidRequest(f"--images {images}: there is no such directory")
        last = self.port + self.managers + self.hosts
        if self.port and not (self.port > 0 and last <= 65535):
            raise InvalidRequest(f"ports {self.port} to {last} are not all ports")


class AllInOne:
    """A running cluster; made by ``cluster``."""

    def __init__(
        self,
        options: Options,
        directory: Path,
        uris: tuple[str, ...] = (),
        *,
        kvm: bool = False,
    ) -> None:
        """``uris``: the libvirt of each host, unless each is to have a test driver of its own.

        ``kvm``: whether real guests run by KVM, or in software emulation.
        """
        self.options = options
        self._uris = uris
        self._kvm = kvm
        self._directory = directory
        self._store = MemoryStore()
        self.world = SimulatedWorld()
        self.power = SimulatedPower()
        self._coordinator_of: dict[str, MemoryCoordinator] = {}
        self.bootstrap = self._make_bootstrap()
        self.managers = [self._make_manager(index) for index in range(options.managers)]
        self.machines = [self._machine(index) for index in range(options.hosts)]

    @property
    def hosts(self) -> list[LocalController]:
        """The local controllers that run."""
        return [machine.daemon for machine in self.machines if machine.daemon is not None]

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://{self.options.address}:{self.bootstrap.port}"

    async def start(self) -> None:
        """Start everything, and wait until the hierarchy has formed.

        Raises:
            OSError: a port is taken.
            SnoozeError: it did not form in time; says what is missing.
        """
        with speaking_as(self.bootstrap.node_id, "bootstrap"):
            await self.bootstrap.start()
        for manager in self.managers:
            with speaking_as(manager.node_id, "groupmanager"):
                await manager.start()
        for machine in self.machines:
            await machine.start()
        await self.formed()

    async def formed(self, timeout_s: float = FORM_TIMEOUT_S) -> None:
        """Wait until there is a leader and every host has a manager that may keep it.

        Raises:
            SnoozeError: not in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                # Three kinds of daemons have to agree: there is no one event to wait for.
                while self._missing():  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise SnoozeError(
                f"the hierarchy has not formed in {timeout_s:g} s: {'; '.join(self._missing())}"
            ) from None

    def _missing(self) -> list[str]:
        missing = [f"bootstrap: {reason}" for reason in self.bootstrap.health().reasons]
        for manager in self.managers:
            missing += [f"group manager: {reason}" for reason in manager.health().reasons]
        for host in self.hosts:
            missing += [f"{host.hostname}: {reason}" for reason in host.health().reasons]
        leader = next((m.leading for m in self.managers if m.leading is not None), None)
        if leader is None:
            return [*missing, "no group manager leads"]
        joined = sum(1 for host in leader.registry.hosts.values() if host.joined)
        if joined < len(self.hosts):
            missing.append(f"{joined} of {len(self.hosts)} hosts have joined")
        if len(leader.registry.managers) < len(self.managers):
            missing.append("not all group managers have joined the leader")
        elif any(m.view is None for m in leader.registry.managers.values()):
            missing.append("not all group managers have said what is free")
        elif len(self.managers) > 1 and leader.identity.manager_id in {
            host.manager_id for host in leader.registry.hosts.values()
        }:
            missing.append("the leader is handing its hosts over")
        return missing

    async def close(self) -> None:
        """Stop everything, hosts first."""
        for machine in self.machines:
            await machine.close()
        for manager in self.managers:
            await manager.close()
        await self.bootstrap.close()
        await self.power.close()

    async def kill_leader(self) -> GroupManager:
        """Let the leader vanish, as if its process had died; the one that it was.

        Its session ends without a word, its sockets are closed; nothing is handed over.
        """
        index = next(i for i, m in enumerate(self.managers) if m.leading is not None)
        killed = self.managers.pop(index)
        coordinator = self._coordinator_of.pop(killed.node_id)
        coordinator.suspend()
        coordinator.expire(noticed=False)
        await killed.abandon()
        return killed

    # ------------------------------------------------------------ parts

    def _port(self, offset: int) -> int:
        return self.options.port + offset if self.options.port else 0

    def _common(self, name: str, port: int) -> dict[str, object]:
        address = self.options.address
        return {
            "node": {"state_directory": str(self._directory / name), "hostname": name},
            "network": {
                "listen_address": address,
                "advertised_address": address,
                "control_port": port,
            },
        }

    def _make_bootstrap(self) -> Bootstrap:
        tables = self._common("bootstrap", self._port(0))
        settings = parse("", BootstrapSettings, overrides=tables)
        return Bootstrap(settings, MemoryCoordinator(self._store), node_identity(settings))

    def _make_manager(self, index: int) -> GroupManager:
        tables = self._common(f"gm{index + 1}", self._port(1 + index))
        network = tables["network"]
        assert isinstance(network, dict)
        network["monitoring_port"] = 0
        tables["addresses"] = {"subnets": self.options.subnets}
        if self.options.images:
            tables["templates"] = {"image_directories": self.options.images}
        if self.options.sleep:
            tables["energy"] = QUICK_SLEEP
        tables.update(self.options.overrides)
        settings = parse("", GroupManagerSettings, overrides=tables)
        node_id = node_identity(settings)
        coordinator = MemoryCoordinator(self._store)
        self._coordinator_of[node_id] = coordinator
        power = PowerDrivers.of(settings.power, self.power)
        return GroupManager(settings, coordinator, node_id, power=power)

    def _machine(self, index: int) -> Machine:
        name = _host_name(index)
        simulated = self.options.hypervisor == "simulated"
        return Machine(
            self.power.machine(name),
            lambda fall: self._make_host(index, fall),
            lambda: self.world.host(name).power_off() if simulated else None,
            BOOT_S,
        )

    def _make_host(self, index: int, fall: Fall) -> LocalController:
        name = _host_name(index)
        tables = self._common(name, self._port(1 + len(self.managers) + index))
        tables["join"] = {"bootstrap_nodes": (f"{self.options.address}:{self.bootstrap.port}",)}
        tables["hypervisor"] = self._hypervisor(name, index)
        tables["capacity"] = {"reserved_memory_kib": 0.0}
        tables["lease"] = {"enabled": "never"}  # one process: nobody can be cut off from anybody
        # Disks made for VMs go when the cluster goes; images stay.
        disks = self._directory / "disks"
        disks.mkdir(exist_ok=True)
        tables["images"] = {
            "directories": (*self.options.images, str(disks)),
            "disk_directory": str(disks),
        }
        if self.options.hypervisor == "qemu":
            kind = "kvm" if self._kvm else "qemu"
            tables["templates"] = {"domain_type": kind, "bridges": {"*": LAB_BRIDGE}}
        if self.options.sleep:
            tables["wakeup"] = self.options.wakeup.get(name, {"driver": "test", "options": name})
            tables["power"] = {"driver": "test", "actions": ("shutdown",)}
        tables.update(self.options.host_overrides)
        settings = parse("", LocalControllerSettings, overrides=tables)
        if self.options.hypervisor == "simulated":
            self.world.host(name).up = True
        return LocalController(settings, node_identity(settings), world=self.world, fall=fall)

    def _hypervisor(self, name: str, index: int) -> dict[str, object]:
        if self.options.hypervisor == "simulated":
            return {"driver": "simulated"}
        if self._uris:
            uri = self._uris[index % len(self._uris)]
            return {"uri": uri, "migration_uri": uri}
        # Every host has a file of its own: connections to test:///default share their domains.
        path = self._directory / f"{name}.xml"
        path.write_text(host_file(TEST_HOST_CPUS, TEST_HOST_MEMORY_KIB))
        return {"uri": f"test://{path}", "workers": 2}


def _host_name(index: int) -> str:
    return f"host{index + 1}"


@contextlib.asynccontextmanager
async def cluster(options: Options) -> AsyncGenerator[AllInOne]:
    """A running cluster, stopped and removed at the end.

    Raises:
        InvalidRequest, OSError, SnoozeError: it cannot be built; nothing is left of it.
    """
    options.check()
    directory = Path(tempfile.mkdtemp(prefix="snooze-up-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        uris, kvm = options.uris, False
        if options.hypervisor == "qemu":
            kvm = await asyncio.to_thread(kvm_works)
        if options.hypervisor == "qemu" and not uris:
            uris = await asyncio.to_thread(_qemu_hosts, options.hosts, stack)
        running = AllInOne(options, directory, uris, kvm=kvm)
        try:
            await running.start()
            yield running
        finally:
            await running.close()


def _qemu_hosts(count: int, stack: contextlib.ExitStack) -> tuple[str, ...]:
    """Real hosts on this machine, switched on; their libvirt URIs."""
    from snooze.lab.hosts import LabNet

    net = stack.enter_context(LabNet(uplink=True))
    hosts = [net.host(f"host{index + 1}") for index in range(count)]
    for host in hosts:
        host.power_on()
    return tuple(host.uri for host in hosts)


def run(
    *,
    managers: int,
    hosts: int,
    hypervisor: str,
    port: int,
    images: tuple[str, ...] = (),
    sleep: bool = False,
) -> int:
    """Keep a cluster in the foreground until Ctrl-C; the exit code.

    Raises:
        InvalidRequest: such a cluster cannot be built.
    """
    options = Options(managers, hosts, hypervisor, port, images=images, sleep=sleep)
    options.check()
    configure_logging(LogSettings(level="warning"), "", "up")
    return uvloop.run(_keep(options))


async def _keep(options: Options) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        async with cluster(options) as running:
            leader = next(m.identity for m in running.managers if m.leading is not None)
            sys.stdout.write(
                f"Snooze is up at {running.url}: leader {leader.hostname} ({leader.control}), "
                f"{options.managers} group managers, {options.hosts} hosts "
                f"({options.hypervisor}). Ctrl-C stops it.\n"
            )
            sys.stdout.flush()
            await stopping.wait()
    except OSError as error:
        sys.stderr.write(f"snooze up: {error}; is a cluster running already? Try --port\n")
        return 1
    return 0

"""Two real hosts, real qemu, and a guest with a pulse."""

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snooze.common.resources import Capacity
from snooze.common.template_policy import TemplatePolicy
from snooze.common.vms import VmSpec
from snooze.lab.guests import MEMORY_KIB, assemble, make_disk, micro_guest_xml
from snooze.lab.hosts import LabHost, LabNet
from snooze.lab.ssh import LabSsh
from snooze.lab.tls import LabCa, serve_tls
from snooze.localcontroller.domain_xml import AdaptOptions
from snooze.localcontroller.hypervisor.libvirt_driver import LibvirtHypervisor
from snooze.localcontroller.hypervisor.libvirt_options import LibvirtOptions
from snooze.localcontroller.hypervisor.port import ConnectionChange, VmChange
from snooze.localcontroller.images import ImageOptions

LOCAL = "/var/lib/libvirt/images"
"""On each host its own."""

LOCAL_URI = "qemu:///system"

MOST_WAITING_S = 30.0


@dataclass
class Ears:
    """What one driver told, and a way to wait for it."""

    changes: list[VmChange] = field(default_factory=list[VmChange])
    connections: list[ConnectionChange] = field(default_factory=list[ConnectionChange])
    more: asyncio.Event = field(default_factory=asyncio.Event)

    def hear_change(self, change: VmChange) -> None:
        self.changes.append(change)
        self.more.set()

    def hear_connection(self, change: ConnectionChange) -> None:
        self.connections.append(change)
        self.more.set()

    async def wait_for_connection(self, connected: bool) -> None:
        async with asyncio.timeout(MOST_WAITING_S):
            while not (self.connections and self.connections[-1].connected is connected):
                self.more.clear()
                await self.more.wait()

    async def wait_for_change(self, kind: str) -> VmChange:
        async with asyncio.timeout(MOST_WAITING_S):
            while True:
                for change in self.changes:
                    if change.kind == kind:
                        return change
                self.more.clear()
                await self.more.wait()


class Lab:
    """Two hosts with libvirtd; ``shared`` is a folder that both see, and we.

    Their libvirts listen with TLS, too; ``ssh.start`` makes them listen with ssh.
    """

    def __init__(self, net: LabNet) -> None:
        self.net = net
        self.one, self.two = net.host("one"), net.host("two")
        self.ca = LabCa(net.folder / "lab-ca")
        self.ssh = LabSsh(net.folder / "ssh")
        for host in (self.one, self.two):
            serve_tls(host, self.ca)
        self.sector = assemble(net.folder)
        self.shared = net.folder / "shared"
        self.shared.mkdir()
        self.ears: dict[str, Ears] = {}
        self.stack = AsyncExitStack()

    def local(self, host: LabHost) -> Path:
        """Where we see a host's own image folder."""
        return host.folder / LOCAL.lstrip("/")

    def make_driver(
        self,
        host: LabHost,
        uri: str = LOCAL_URI,
        domain_type: str = "qemu",
        connect_timeout_s: float = 10.0,
    ) -> LibvirtHypervisor:
        """On the host itself; by any other address, from elsewhere on the network."""
        is_local = uri == LOCAL_URI
        directories = (LOCAL, str(self.shared))
        options = LibvirtOptions(
            uri=uri,
            peer_uri=host.uri if is_local else "",
            data_uri="" if is_local else f"tcp://{host.name}",
            connect_timeout_s=connect_timeout_s,
            keepalive_interval_s=1,
            keepalive_count=2,
            adapt=AdaptOptions(
                image_directory=LOCAL, domain_type=domain_type, bridges={"*": "br0"}
            ),
            policy=TemplatePolicy(image_directories=directories),
            images=ImageOptions(directories, f"{LOCAL}/disks"),
        )
        enter = host.enter_thread if is_local else self.net.enter_thread
        driver = LibvirtHypervisor(options, thread_initializer=enter)
        ears = self.ears[host.name] = Ears()
        driver.on_change(ears.hear_change)
        driver.on_connection(ears.hear_connection)
        return driver

    async def driver(
        self, host: LabHost, uri: str = LOCAL_URI, domain_type: str = "qemu"
    ) -> LibvirtHypervisor:
        """An open driver; closed when the test ends."""
        driver = self.make_driver(host, uri, domain_type)
        await driver.open()
        self.stack.push_async_callback(driver.close)
        return driver

    def make_spec(self, disk: Path, as_seen: str, size_bytes: int = 1024 * 1024) -> VmSpec:
        """A guest on a disk of that size, which the hosts see as ``as_seen``."""
        fill = b"not zero" * 64 if size_bytes > 1024 * 1024 else b""
        make_disk(disk, self.sector, size_bytes, fill=fill)
        name = f"vm-{uuid.uuid4().hex[:8]}"
        return VmSpec(
            uuid.uuid4().hex,
            name,
            Capacity(1.0, float(MEMORY_KIB)),
            libvirt_xml=micro_guest_xml(name, Path(as_seen)),
        )

    def clean(self) -> None:
        """Both hosts on, plugged in, hearing each other, and without any domain or image."""
        for host in (self.one, self.two):
            host.power_on()
            host.plug()
            host.heal()
            host.wait_for_libvirtd()
            for line in host.exec(["virsh", "list", "--all", "--name"]).stdout.decode().split():
                host.exec(["virsh", "destroy", line])
                host.exec(["virsh", "undefine", line])
            shutil.rmtree(self.local(host), ignore_errors=True)
            self.local(host).mkdir()
        for path in self.shared.iterdir():
            path.unlink()


@pytest.fixture
def ears() -> Ears:
    return Ears()


@pytest.fixture(scope="session")
def hosts() -> Iterator[Lab]:
    with LabNet() as net:
        yield Lab(net)


@pytest.fixture
async def lab(hosts: Lab) -> AsyncIterator[Lab]:
    hosts.clean()
    hosts.stack = AsyncExitStack()
    async with hosts.stack:
        yield hosts

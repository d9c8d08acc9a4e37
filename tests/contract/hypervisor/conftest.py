"""The drivers under one contract: each gives a bench of two hosts."""

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snooze.common.domain_template import compose
from snooze.common.resources import Capacity
from snooze.common.template_policy import TemplatePolicy
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import LooseDisk, VmSpec
from snooze.lab.guests import MEMORY_KIB, assemble, make_disk, micro_guest_xml
from snooze.lab.hosts import LabHost, LabNet
from snooze.lab.libvirtd import LabLibvirtd
from snooze.localcontroller.domain_xml import AdaptOptions
from snooze.localcontroller.hypervisor.libvirt_driver import LibvirtHypervisor
from snooze.localcontroller.hypervisor.libvirt_options import LibvirtOptions, host_file
from snooze.localcontroller.hypervisor.port import ChangeKind, Feature, Hypervisor, VmChange
from snooze.localcontroller.hypervisor.simulated import SimulatedHypervisor
from snooze.localcontroller.hypervisor.simulated_world import SimulatedVm, SimulatedWorld
from snooze.localcontroller.images import ImageOptions

MOST_WAITING_S = 30.0


class Ear:
    """Hears the changes of one hypervisor, and lets a test wait for one."""

    def __init__(self) -> None:
        self.heard: list[VmChange] = []
        self._more = asyncio.Event()

    def hear(self, change: VmChange) -> None:
        self.heard.append(change)
        self._more.set()

    async def wait_for(self, vm_id: str, kind: ChangeKind) -> VmChange:
        """The first change of this kind, past or to come."""
        async with asyncio.timeout(MOST_WAITING_S):
            while True:
                for change in self.heard:
                    if (change.vm_id, change.kind) == (vm_id, kind):
                        return change
                self._more.clear()
                await self._more.wait()

    def kinds(self, vm_id: str) -> list[ChangeKind]:
        return [change.kind for change in self.heard if change.vm_id == vm_id]


SpecMaker = Callable[..., VmSpec]


@dataclass
class Bench:
    """Two hosts of one driver.

    Attributes:
        make_spec: a VM that starts; takes ``name`` and ``generation``.
        make_again: another driver object for the first host.
        add_unmanaged: a domain on the first host that is not ours; its vm_id.
        pull_plug: switches a guest off, by name; None where guests obey a shutdown.
        image: of which disks can be made; empty: it makes none.
        leave_unborn: makes what a start leaves that dies after it made the disk.
        disk_is_there: whether the first host has a disk of this VM.
        many: VMs that may be started at once on this bench.
    """

    kind: str
    first: Hypervisor
    second: Hypervisor
    make_spec: SpecMaker
    make_again: Callable[[], Hypervisor]
    add_unmanaged: Callable[[], Awaitable[str]]
    features: frozenset[Feature]
    many: int = 20
    pull_plug: Callable[[str], Awaitable[None]] | None = None
    image: str = ""
    leave_unborn: Callable[[VmSpec], None] | None = None
    disk_is_there: Callable[[str], bool] | None = None
    ear: Ear = field(default_factory=Ear)
    second_ear: Ear = field(default_factory=Ear)

    @property
    def makes_disks(self) -> bool:
        return bool(self.image)

    async def leave_unborn_disk(self, spec: VmSpec) -> None:
        assert self.leave_unborn is not None
        await asyncio.to_thread(self.leave_unborn, spec)
        assert self.has_disk(spec.vm_id)

    def has_disk(self, vm_id: str) -> bool:
        assert self.disk_is_there is not None
        return self.disk_is_there(vm_id)

    def has(self, feature: Feature) -> bool:
        return feature in self.features

    async def state(self, vm_id: str) -> VmState | None:
        """On the first host, by its inventory."""
        for report in await self.first.inventory():
            if report.vm_id == vm_id:
                return report.state
        return None


def plain_spec(name: str = "", generation: int = 1, vm_id: str = "") -> VmSpec:
    """A VM of 2 to 4 vCPUs for drivers without real guests."""
    name = name or f"vm-{uuid.uuid4().hex[:8]}"
    xml = compose(name, 4, 262144).replace("<vcpu>4<", '<vcpu current="2">4<')
    return VmSpec(
        vm_id or uuid.uuid4().hex,
        name,
        Capacity(2.0, 262144.0, 100.0, 200.0),
        generation,
        libvirt_xml=xml,
        ip_address="10.0.0.9",
        mac_address="54:56:0a:00:00:09",
    )


def _simulated() -> Bench:
    world = SimulatedWorld(seed=1)
    first = SimulatedHypervisor(world, "one")
    second = SimulatedHypervisor(world, "two")

    async def add_unmanaged() -> str:
        spec = plain_spec()
        first.host.put(SimulatedVm(spec, VmState.RUNNING, "<domain/>", 0.0, managed=False))
        return spec.vm_id

    def leave_unborn(spec: VmSpec) -> None:
        disk = LooseDisk(spec.vm_id, spec.generation, "one", 0, 0, used=False)
        first.host.disks[spec.vm_id] = disk

    return Bench(
        "simulated",
        first,
        second,
        plain_spec,
        lambda: SimulatedHypervisor(world, "one"),
        add_unmanaged,
        frozenset({Feature.LIVE_MIGRATION, Feature.MEASURED_USAGE, Feature.SHARED_STATE}),
        image="master.raw",
        leave_unborn=leave_unborn,
        disk_is_there=lambda vm_id: vm_id in first.host.disks,
    )


def _test_driver_bench(kind: str, first_uri: str, second_uri: str) -> Bench:
    def make(uri: str) -> LibvirtHypervisor:
        return LibvirtHypervisor(LibvirtOptions(uri=uri))

    first = make(first_uri)

    async def add_unmanaged() -> str:
        # the file has a domain that is not ours, and so has every test:///default
        [stranger] = [report for report in await first.inventory() if not report.managed]
        return stranger.vm_id

    return Bench(
        kind,
        first,
        make(second_uri),
        plain_spec,
        lambda: make(first_uri),
        add_unmanaged,
        frozenset({Feature.SHARED_STATE}) if "+" in first_uri else frozenset(),
    )


_STRANGER = "<domain type='test'><name>stranger</name><uuid>{uuid}</uuid><memory>65536</memory>\
<os><type>hvm</type></os></domain>"


def _test_file(folder: Path) -> Bench:
    domain = _STRANGER.format(uuid=uuid.uuid4())
    first, second = folder / "first.xml", folder / "second.xml"
    first.write_text(host_file(16, 2**25).replace("</node>", f"{domain}</node>"))
    second.write_text(host_file(16, 2**25))
    return _test_driver_bench("test file", f"test://{first}", f"test://{second}")


@pytest.fixture(scope="session")
def libvirtds() -> Iterator[tuple[LabLibvirtd, LabLibvirtd]]:
    with LabLibvirtd() as first, LabLibvirtd() as second:
        yield first, second


@dataclass
class Lab:
    net: LabNet
    hosts: tuple[LabHost, LabHost]
    sector: bytes
    storage: Path


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with LabNet() as net:
        hosts = (net.host("one"), net.host("two"))
        storage = net.folder / "storage"
        storage.mkdir()
        for host in hosts:
            host.power_on()
        for host in hosts:
            host.wait_for_libvirtd()
        yield Lab(net, hosts, assemble(net.folder), storage)


def _qemu(lab: Lab) -> Bench:
    def make(host: LabHost) -> LibvirtHypervisor:
        directory = str(lab.storage)
        options = LibvirtOptions(
            peer_uri=host.uri,
            adapt=AdaptOptions(image_directory=directory, domain_type="qemu"),
            policy=TemplatePolicy(image_directories=(directory,)),
            images=ImageOptions((directory,), directory),
        )
        return LibvirtHypervisor(options, thread_initializer=host.enter_thread)

    def make_spec(name: str = "", generation: int = 1, vm_id: str = "") -> VmSpec:
        name = name or f"vm-{uuid.uuid4().hex[:8]}"
        disk = lab.storage / f"{name}.raw"
        if not disk.exists():
            make_disk(disk, lab.sector)
        xml = micro_guest_xml(name, Path(disk.name), vcpus=1, max_vcpus=2, bridge="br0")
        return VmSpec(
            vm_id or uuid.uuid4().hex,
            name,
            Capacity(1.0, float(MEMORY_KIB), 100.0, 200.0),
            generation,
            libvirt_xml=xml,
            ip_address="10.0.0.9",
            mac_address="54:56:0a:00:00:09",
        )

    first = make(lab.hosts[0])

    async def add_unmanaged() -> str:
        stranger = uuid.uuid4()
        xml = _STRANGER.format(uuid=stranger).replace("'test'", "'qemu'")
        path = lab.storage / "stranger.xml"
        path.write_text(xml)
        done = lab.hosts[0].exec(["virsh", "define", str(path)])
        assert done.returncode == 0, done.stderr
        return stranger.hex

    async def pull_plug(name: str) -> None:
        done = lab.hosts[0].exec(["virsh", "destroy", name])
        assert done.returncode == 0, done.stderr

    def leave_unborn(spec: VmSpec) -> None:
        path = Path(first.images.create_disk(spec.vm_id, spec.image, spec.generation))
        os.utime(path, (0, 0))

    make_disk(lab.storage / "master.raw", lab.sector)
    return Bench(
        "qemu",
        first,
        make(lab.hosts[1]),
        make_spec,
        lambda: make(lab.hosts[0]),
        add_unmanaged,
        frozenset(Feature),
        many=4,
        pull_plug=pull_plug,
        image="master.raw",
        leave_unborn=leave_unborn,
        disk_is_there=first.images.has_disk,
    )


@pytest.fixture(params=["simulated", "test file", "test+tcp", "qemu"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    match request.param:
        case "simulated":
            bench = _simulated()
        case "test file":
            bench = _test_file(tmp_path)
        case "test+tcp":
            one, two = request.getfixturevalue("libvirtds")
            bench = _test_driver_bench("test+tcp", one.test_uri, two.test_uri)
        case _:
            bench = _qemu(request.getfixturevalue("lab"))
    bench.first.on_change(bench.ear.hear)
    bench.second.on_change(bench.second_ear.hear)
    await bench.first.open()
    await bench.second.open()
    try:
        yield bench
    finally:
        for host in (bench.first, bench.second):
            await host.open()
            for report in await host.inventory():
                if report.managed:
                    await host.destroy(report.vm_id)
            await host.close()
        if request.param == "qemu":
            _clean_lab(request.getfixturevalue("lab"))


def _clean_lab(lab: Lab) -> None:
    lab.hosts[0].exec(["virsh", "undefine", "stranger"])
    shutil.rmtree(lab.storage)
    lab.storage.mkdir()

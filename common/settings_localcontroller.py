"""Settings of a local controller, the agent on each host."""

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from snooze.common.settings import (
    HeartbeatSettings,
    HttpSettings,
    LogSettings,
    NetworkSettings,
    NodeSettings,
    bad_host_ports,
)
from snooze.common.settings_lease import LeaseSettings
from snooze.common.settings_power import PowerDownSettings, WakeupSettings
from snooze.common.settings_schema import Complaint, Doc, Section
from snooze.common.settings_templates import TemplateSettings, bad_directories

INTERFACE_NAME = re.compile(r"[^/\s:]{1,15}")


class LocalControllerNetworkSettings(NetworkSettings, frozen=True, kw_only=True):
    """Where this local controller listens and how others reach it."""

    control_port: Annotated[
        int,
        Meta(ge=0, le=65535),
        Doc("TCP port of the HTTP calls; 0 takes any free one."),
    ] = 5002


class JoinSettings(Section, frozen=True, kw_only=True):
    """How a local controller finds its group manager."""

    bootstrap_nodes: Annotated[
        tuple[str, ...],
        Meta(min_length=1, max_length=64),
        Doc("The bootstrap nodes, each host:port; any one that answers will do."),
    ] = ("127.0.0.1:5000",)
    retry_min_s: Annotated[
        float,
        Meta(ge=0.01, le=60),
        Doc("First pause after an attempt that failed; it doubles."),
    ] = 0.2
    retry_max_s: Annotated[float, Meta(ge=0.01, le=600), Doc("The longest such pause.")] = 5.0

    def complaints(self) -> Iterator[Complaint]:
        """Nodes must be reachable names; pauses must grow."""
        yield from bad_host_ports("bootstrap_nodes", self.bootstrap_nodes)
        if self.retry_max_s < self.retry_min_s:
            yield Complaint(
                "retry_max_s",
                f"is shorter ({self.retry_max_s:g}) than join.retry_min_s ({self.retry_min_s:g})",
                because_of=("retry_min_s",),
            )


class SimulatedHypervisorSettings(Section, frozen=True, kw_only=True):
    """The host that driver = "simulated" pretends to be."""

    cpus: Annotated[int, Meta(ge=1, le=8192), Doc("Its cores.")] = 16
    memory_kib: Annotated[int, Meta(ge=1024, le=64 * 1024 * 1024 * 1024), Doc("Its memory.")] = (
        64 * 1024 * 1024
    )
    start_latency_s: Annotated[float, Meta(ge=0, le=3600), Doc("A start takes this long.")] = 0.0
    command_latency_s: Annotated[
        float,
        Meta(ge=0, le=3600),
        Doc("Suspend, resume, reboot, shutdown, destroy, resize take this."),
    ] = 0.0
    migration_kib_s: Annotated[
        float,
        Meta(gt=0, le=1 << 40),
        Doc("A live migration takes the VM's memory divided by this."),
    ] = 10485760.0


class HypervisorSettings(Section, frozen=True, kw_only=True):
    """The hypervisor of this host."""

    driver: Annotated[
        Literal["libvirt", "simulated"],
        Doc("simulated runs no VM at all: for trying out and for measuring."),
    ] = "libvirt"
    uri: Annotated[
        str,
        Meta(pattern=r"^[a-z0-9]+(\+[a-z0-9]+)?://", max_length=1024),
        Doc(
            "libvirt's address: qemu:///system, qemu+tcp://host/system, qemu+tls:, qemu+ssh:, "
            "test:///default. What certificates and keys each needs: localcontroller/README.md.",
            form="a libvirt address",
        ),
    ] = "qemu:///system"
    migration_uri: Annotated[
        str,
        Meta(pattern=r"^([a-z0-9]+(\+[a-z0-9]+)?://.*)?\Z", max_length=1024),
        Doc(
            "How the other hosts reach this hypervisor, as qemu+tcp://{address}/system, where "
            "{address} stands for network.advertised_address. Empty: uri if that names a host, "
            "else qemu+tcp and this host's name.",
            form="a libvirt address",
        ),
    ] = ""
    migration_data_uri: Annotated[
        str,
        Meta(pattern=r"^(tcp://.+)?\Z", max_length=1024),
        Doc(
            "Where the memory of arriving guests is sent, as tcp://{address} or that of a network "
            "of its own. Empty: as migration_host in qemu.conf says, else this host's name.",
            form="tcp:// and an address, or empty",
        ),
    ] = ""
    workers: Annotated[
        int, Meta(ge=1, le=256), Doc("Hypervisor calls that run at the same time.")
    ] = 8
    call_timeout_s: Annotated[
        float,
        Meta(gt=0, le=3600),
        Doc("A call (not a migration) longer than this counts as failed."),
    ] = 30.0
    start_timeout_s: Annotated[
        float,
        Meta(gt=0, le=3600),
        Doc("Likewise for calls that start a guest or make its disks."),
    ] = 120.0
    keepalive_interval_s: Annotated[
        int,
        Meta(ge=1, le=60),
        Doc("libvirt's keepalive; without one a dead peer hangs its callers."),
    ] = 1
    keepalive_count: Annotated[
        int, Meta(ge=1, le=100), Doc("Unanswered keepalives until a connection is dead.")
    ] = 3
    simulated: SimulatedHypervisorSettings = SimulatedHypervisorSettings()

    def complaints(self) -> Iterator[Complaint]:
        """Nothing but {address} is filled in."""
        for key in ("migration_uri", "migration_data_uri"):
            text: str = getattr(self, key)
            for name in re.findall(r"\{([^}]*)\}", text):
                if name != "address":
                    yield Complaint(key, f"{{{name}}} stands for nothing; {{address}} does")


class CapacitySettings(Section, frozen=True, kw_only=True):
    """What this host offers to VMs; cores and memory come from the hypervisor."""

    rx_kib_s: Annotated[
        float, Meta(ge=0, le=1 << 30), Doc("Network bandwidth received; 131072 is 1 Gbit/s.")
    ] = 131072.0
    tx_kib_s: Annotated[float, Meta(ge=0, le=1 << 30), Doc("Network bandwidth sent.")] = 131072.0
    reserved_cpu_cores: Annotated[
        float, Meta(ge=0, le=8192), Doc("Cores kept for the host itself.")
    ] = 0.0
    reserved_memory_kib: Annotated[
        float, Meta(ge=0, le=64 * 1024 * 1024 * 1024), Doc("Memory kept for the host itself.")
    ] = 524288.0


class ImageSettings(Section, frozen=True, kw_only=True):
    """Where disk images may lie."""

    directories: Annotated[
        tuple[str, ...],
        Meta(min_length=1, max_length=64),
        Doc("A template's disks must lie under one of these; a relative path lies in the first."),
    ] = ("/var/lib/libvirt/images",)
    disk_directory: Annotated[
        str,
        Meta(pattern=r"^(/.*)?\Z"),
        Doc(
            "Where disks of VMs are made, one of the directories or below. Empty: the first.",
            form="an absolute path",
        ),
    ] = ""

    def complaints(self) -> Iterator[Complaint]:
        """Directories must be absolute and plain."""
        yield from bad_directories("directories", self.directories)
        below = Path(self.disk_directory)
        if self.disk_directory and (
            ".." in below.parts or not any(below.is_relative_to(each) for each in self.directories)
        ):
            yield Complaint(
                "disk_directory",
                f'"{self.disk_directory}" lies in none of images.directories',
                because_of=("directories",),
            )


class LocalControllerTemplateSettings(TemplateSettings, frozen=True, kw_only=True):
    """What a VM's template may contain, and how it is adapted to this host."""

    domain_type: Annotated[
        Literal["", "kvm", "qemu"],
        Doc(
            "What guests run by, whatever their template says: kvm, or qemu for software "
            "emulation, where /dev/kvm exists and yet boots nothing. Empty: the template's word "
            "if it works here, else the best that does."
        ),
    ] = ""
    bridges: Annotated[
        dict[str, str],
        Doc(
            "Bridges that templates name and what they are on this host: "
            '{br0 = "virbr0"}; "*" stands for any other.'
        ),
    ] = msgspec.field(default_factory=dict[str, str])
    graphics_listen: Annotated[
        str,
        Meta(max_length=64),
        Doc(
            "Address on which consoles (VNC, SPICE) listen, whatever their template says; whoever "
            "reaches it needs no password unless the template sets one. Empty: the template's "
            "word, else qemu.conf's.",
            form="an IP address",
        ),
    ] = "127.0.0.1"

    def complaints(self) -> Iterator[Complaint]:
        """Bridges must be names of interfaces, and consoles listen on an address."""
        yield from super().complaints()
        if self.graphics_listen:
            try:
                ipaddress.ip_address(self.graphics_listen)
            except ValueError:
                yield Complaint("graphics_listen", f'"{self.graphics_listen}" is no IP address')
        for name, bridge in self.bridges.items():
            if not INTERFACE_NAME.fullmatch(bridge):
                yield Complaint(f"bridges.{name}", f'"{bridge}" is no name of a network interface')


class MonitoringSettings(Section, frozen=True, kw_only=True):
    """What is measured of VMs and of the host."""

    interval_s: Annotated[float, Meta(ge=0.1, le=3600), Doc("Time between two samples.")] = 3.0


class MigrationSettings(Section, frozen=True, kw_only=True):
    """Live migration away from this host."""

    method: Annotated[
        Literal["auto", "live", "nosharedfull", "nosharedincremental", "forceunsafe"],
        Doc(
            "auto: disks are copied if the destination is proven not to share them. live: disks "
            "on shared storage. nosharedfull: disks are copied whole. nosharedincremental: only "
            "what differs from the backing image is copied. forceunsafe: as live, without "
            "libvirt's check that caches are safe."
        ),
    ] = "auto"
    timeout_s: Annotated[
        float,
        Meta(ge=1, le=86400),
        Doc("A migration not done after this is given up; the guest stays where it is."),
    ] = 60.0
    bandwidth_mib_s: Annotated[
        int, Meta(ge=0, le=1_000_000), Doc("Upper bound for one migration; 0 is none.")
    ] = 0
    max_downtime_ms: Annotated[
        int,
        Meta(ge=0, le=600_000),
        Doc("The longest pause of the guest at the end; 0 leaves it to the hypervisor."),
    ] = 0
    auto_converge: Annotated[
        bool,
        Doc("Slow a guest down that changes its memory faster than it can be copied."),
    ] = True
    max_concurrent: Annotated[
        int, Meta(ge=1, le=64), Doc("Migrations away from this host at the same time.")
    ] = 2


class LocalControllerSettings(Section, frozen=True, kw_only=True):
    """A local controller: the agent on each host."""

    role: Annotated[Literal["localcontroller"], Doc("Which daemon this file is for.")] = (
        "localcontroller"
    )
    node: NodeSettings = NodeSettings()
    network: LocalControllerNetworkSettings = LocalControllerNetworkSettings()
    http: HttpSettings = HttpSettings()
    join: JoinSettings = JoinSettings()
    heartbeat: HeartbeatSettings = HeartbeatSettings()
    hypervisor: HypervisorSettings = HypervisorSettings()
    capacity: CapacitySettings = CapacitySettings()
    images: ImageSettings = ImageSettings()
    templates: LocalControllerTemplateSettings = LocalControllerTemplateSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    lease: LeaseSettings = LeaseSettings()
    migration: MigrationSettings = MigrationSettings()
    wakeup: WakeupSettings = WakeupSettings()
    power: PowerDownSettings = PowerDownSettings()
    log: LogSettings = LogSettings()

"""Settings of a group manager, which may be elected leader."""

import ipaddress
from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from snooze.common.resources import Capacity
from snooze.common.settings import (
    CoordinationSettings,
    HeartbeatSettings,
    HttpSettings,
    LogSettings,
    NetworkSettings,
    NodeSettings,
)
from snooze.common.settings_autonomy import (
    AutonomySettings,
    ConsolidationSettings,
    DecisionSettings,
    RelocationSettings,
)
from snooze.common.settings_energy import EnergySettings
from snooze.common.settings_power import PowerControlSettings
from snooze.common.settings_recovery import RecoverySettings
from snooze.common.settings_schema import Complaint, Doc, Section
from snooze.common.settings_templates import TemplateSettings, bad_directories


class GroupManagerNetworkSettings(NetworkSettings, frozen=True, kw_only=True):
    """Where this group manager listens and how others reach it."""

    control_port: Annotated[
        int,
        Meta(ge=0, le=65535),
        Doc("TCP port of the HTTP calls; 0 takes any free one."),
    ] = 5001
    monitoring_port: Annotated[
        int,
        Meta(ge=0, le=65535),
        Doc("TCP port that local controllers stream their monitoring to; 0 takes any free one."),
    ] = 6000

    def complaints(self) -> Iterator[Complaint]:
        """Two listeners cannot share a port."""
        yield from super().complaints()
        if self.control_port and self.control_port == self.monitoring_port:
            yield Complaint(
                "monitoring_port",
                f"is the control_port too ({self.control_port})",
                because_of=("control_port",),
            )


class LeaderSettings(Section, frozen=True, kw_only=True):
    """What this group manager does while it is the leader."""

    assignment_policy: Annotated[
        Literal["least_loaded", "round_robin", "random"],
        Doc("How a joining host is given a group manager."),
    ] = "least_loaded"
    dispatching_policy: Annotated[
        Literal["best_fit", "first_fit", "round_robin"],
        Doc("How VMs are spread over group managers."),
    ] = "best_fit"
    manages_hosts: Annotated[
        Literal["alone", "never"],
        Doc(
            "alone: a leader manages hosts itself while it is the only group manager. never: the "
            "original's rule, by which the smallest cluster has two group managers."
        ),
    ] = "alone"


class AddressSettings(Section, frozen=True, kw_only=True):
    """The IP addresses that the leader leases to VMs."""

    subnets: Annotated[
        tuple[str, ...],
        Meta(max_length=256),
        Doc("IPv4 subnets to lease from, as 192.168.122.0/24. None: VMs start without an address."),
    ] = ()
    mac_encoding: Annotated[
        Literal["snooze", "none"],
        Doc(
            "snooze: the VM's MAC is 54:56 and the four bytes of its address, so that a guest can "
            "read its address from it. none: the template's MAC, or the hypervisor's choice."
        ),
    ] = "snooze"
    quarantine_s: Annotated[
        float,
        Meta(ge=0, le=86400),
        Doc(
            "An address rests this long after its VM is proven gone, until switches and guests "
            "have forgotten it."
        ),
    ] = 30.0

    def complaints(self) -> Iterator[Complaint]:
        """Subnets must be subnets, with room in them, and apart from each other."""
        seen: list[ipaddress.IPv4Network] = []
        for index, text in enumerate(self.subnets):
            key = f"subnets[{index}]"
            try:
                network = ipaddress.IPv4Network(text)
            except ValueError as error:
                yield Complaint(key, f'"{text}" is no IPv4 subnet: {error}')
                continue
            if network.prefixlen < 12:
                yield Complaint(
                    key, f"{text} has {network.num_addresses} addresses; /12 is the widest"
                )
            elif network.prefixlen > 30:
                yield Complaint(key, f"{text} leaves no address for a VM; /30 is the narrowest")
            for other in seen:
                if network.overlaps(other):
                    yield Complaint(key, f"{text} overlaps {other}")
            seen.append(network)


class SubmissionSettings(Section, frozen=True, kw_only=True):
    """Bounds of submissions."""

    max_vms: Annotated[
        int, Meta(ge=1, le=100_000), Doc("VMs in one request; more are refused.")
    ] = 1000
    max_pending_tasks: Annotated[
        int,
        Meta(ge=1, le=100_000),
        Doc("Submissions not finished yet; the next one is refused (503)."),
    ] = 1000
    task_retention_s: Annotated[
        float,
        Meta(ge=60, le=31_536_000),
        Doc("How long the outcome of a submission stays readable."),
    ] = 86400.0
    start_timeout_s: Annotated[
        float,
        Meta(ge=1, le=86400),
        Doc("A VM that does not run after this has failed to start; image copies count."),
    ] = 300.0


class OvercommitSettings(Section, frozen=True, kw_only=True):
    """What may be promised to VMs, as a multiple of what a host has."""

    cpu: Annotated[float, Meta(ge=0.1, le=64), Doc("Virtual cores per real core.")] = 1.0
    memory: Annotated[float, Meta(ge=0.1, le=8), Doc("Promised per real memory.")] = 1.0
    network: Annotated[float, Meta(ge=0.1, le=64), Doc("Promised per real bandwidth.")] = 1.0

    def factors(self) -> Capacity:
        """By axis, what a host's capacity is multiplied by."""
        return Capacity(self.cpu, self.memory, self.network, self.network)


class HeadroomSettings(Section, frozen=True, kw_only=True):
    """The part of each host that placement leaves free, as a fraction of its capacity."""

    cpu: Annotated[float, Meta(ge=0, le=0.9), Doc("0.1 leaves a tenth of the cores free.")] = 0.0
    memory: Annotated[float, Meta(ge=0, le=0.9), Doc("Likewise for memory.")] = 0.0
    network: Annotated[float, Meta(ge=0, le=0.9), Doc("Likewise for bandwidth.")] = 0.0

    def factors(self) -> Capacity:
        """By axis, the part of a host's capacity that may be used."""
        return Capacity(1 - self.cpu, 1 - self.memory, 1 - self.network, 1 - self.network)


class PlacementSettings(Section, frozen=True, kw_only=True):
    """How a group manager puts VMs on its hosts."""

    policy: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.:-]{0,127}\Z"),
        Doc(
            "The placement policy, by name: first_fit and first_fit_decreasing (the largest VM "
            "first) fill hosts in turn, best_fit and best_fit_decreasing take the tightest host, "
            "worst_fit the emptiest, round_robin goes round, optimised searches for the fewest "
            "hosts; more are in snooze.scheduling.policies.",
            form="the name of a policy",
        ),
    ] = "first_fit"
    overcommit: OvercommitSettings = OvercommitSettings()
    headroom: HeadroomSettings = HeadroomSettings()


class GroupManagerTemplateSettings(TemplateSettings, frozen=True, kw_only=True):
    """What a VM's template may contain, as the leader judges at submission; its host judges again.

    So what one host alone allows must be allowed here too.
    """

    image_directories: Annotated[
        tuple[str, ...],
        Meta(min_length=1, max_length=64),
        Doc("Where the disks that a template names may lie: the image directories of all hosts."),
    ] = ("/var/lib/libvirt/images",)

    def complaints(self) -> Iterator[Complaint]:
        """Directories must be absolute and plain."""
        yield from super().complaints()
        yield from bad_directories("image_directories", self.image_directories)


class GroupManagerMonitoringSettings(Section, frozen=True, kw_only=True):
    """What this group manager keeps of what its hosts measure."""

    interval_s: Annotated[
        float,
        Meta(ge=0.1, le=3600),
        Doc(
            "Time between two samples, as monitoring.interval_s of the local controllers. Hosts "
            "that measure more often are averaged."
        ),
    ] = 3.0


class GroupManagerSettings(Section, frozen=True, kw_only=True):
    """A group manager, which may be elected leader."""

    role: Annotated[Literal["groupmanager"], Doc("Which daemon this file is for.")] = "groupmanager"
    node: NodeSettings = NodeSettings()
    network: GroupManagerNetworkSettings = GroupManagerNetworkSettings()
    http: HttpSettings = HttpSettings()
    coordination: CoordinationSettings = CoordinationSettings()
    heartbeat: HeartbeatSettings = HeartbeatSettings()
    leader: LeaderSettings = LeaderSettings()
    addresses: AddressSettings = AddressSettings()
    submission: SubmissionSettings = SubmissionSettings()
    templates: GroupManagerTemplateSettings = GroupManagerTemplateSettings()
    placement: PlacementSettings = PlacementSettings()
    energy: EnergySettings = EnergySettings()
    recovery: RecoverySettings = RecoverySettings()
    monitoring: GroupManagerMonitoringSettings = GroupManagerMonitoringSettings()
    power: PowerControlSettings = PowerControlSettings()
    autonomy: AutonomySettings = AutonomySettings()
    relocation: RelocationSettings = RelocationSettings()
    consolidation: ConsolidationSettings = ConsolidationSettings()
    decisions: DecisionSettings = DecisionSettings()
    log: LogSettings = LogSettings()

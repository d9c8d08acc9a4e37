"""From the settings to a hypervisor's driver."""

from dataclasses import replace
from urllib.parse import urlsplit

from snooze.common.identity import advertised_address
from snooze.common.power_options import shown_options
from snooze.common.resources import Capacity
from snooze.common.settings_localcontroller import LocalControllerSettings
from snooze.common.settings_power import WakeupSettings
from snooze.common.template_settings import template_policy
from snooze.common.wire import HypervisorSummary, PowerDescription
from snooze.localcontroller.domain_xml import AdaptOptions
from snooze.localcontroller.hypervisor.libvirt_driver import LibvirtHypervisor
from snooze.localcontroller.hypervisor.libvirt_options import LibvirtOptions
from snooze.localcontroller.hypervisor.port import (
    Hypervisor,
    HypervisorDescription,
    MigrationMethod,
    MigrationOptions,
)
from snooze.localcontroller.hypervisor.simulated import SimulatedHypervisor
from snooze.localcontroller.hypervisor.simulated_world import (
    Latency,
    SimulatedSettings,
    SimulatedWorld,
)
from snooze.localcontroller.images import ImageOptions

DEFAULT_LIBVIRT_PORT = 16509


def make_hypervisor(
    settings: LocalControllerSettings,
    hostname: str,
    world: SimulatedWorld | None = None,
    host_id: str = "",
) -> Hypervisor:
    """The driver that the settings name; ``world`` is shared by simulated hosts of one process.

    ``host_id``: what notes beside disks call this host.
    """
    if settings.hypervisor.driver == "simulated":
        return _simulated(settings, hostname, world, host_id)
    options = libvirt_options(settings)
    images = replace(options.images, host_id=host_id or hostname)
    return LibvirtHypervisor(replace(options, images=images))


def _simulated(
    settings: LocalControllerSettings, hostname: str, world: SimulatedWorld | None, host_id: str
) -> SimulatedHypervisor:
    wanted = settings.hypervisor.simulated
    capacity = Capacity(float(wanted.cpus), float(wanted.memory_kib))
    command = Latency(wanted.command_latency_s, wanted.command_latency_s)
    latencies = {
        "start": Latency(wanted.start_latency_s, wanted.start_latency_s),
        **dict.fromkeys(
            ("start_again", "suspend", "resume", "shutdown", "reboot", "destroy", "resize"),
            command,
        ),
    }
    if world is None:
        world = SimulatedWorld(
            settings=SimulatedSettings(
                capacity=capacity, latencies=latencies, migration_kib_s=wanted.migration_kib_s
            )
        )
    return SimulatedHypervisor(
        world,
        hostname,
        capacity,
        template_policy(settings.templates, settings.images.directories),
        host_id,
    )


def libvirt_options(settings: LocalControllerSettings) -> LibvirtOptions:
    """How to treat this host's libvirt."""
    hypervisor, images = settings.hypervisor, settings.images
    address = advertised_address(settings.network)
    return LibvirtOptions(
        uri=hypervisor.uri,
        peer_uri=hypervisor.migration_uri.replace("{address}", address),
        data_uri=hypervisor.migration_data_uri.replace("{address}", address),
        call_timeout_s=hypervisor.call_timeout_s,
        start_timeout_s=hypervisor.start_timeout_s,
        keepalive_interval_s=hypervisor.keepalive_interval_s,
        keepalive_count=hypervisor.keepalive_count,
        workers=hypervisor.workers,
        max_migrations=settings.migration.max_concurrent,
        adapt=AdaptOptions(
            image_directory=images.directories[0],
            domain_type=settings.templates.domain_type,
            bridges=dict(settings.templates.bridges),
            graphics_listen=settings.templates.graphics_listen,
        ),
        policy=template_policy(settings.templates, settings.images.directories),
        images=ImageOptions(
            directories=images.directories,
            disk_directory=images.disk_directory or images.directories[0],
        ),
    )


def migration_options(settings: LocalControllerSettings) -> MigrationOptions:
    """How VMs leave this host."""
    migration = settings.migration
    return MigrationOptions(
        method=MigrationMethod(migration.method),
        timeout_s=migration.timeout_s,
        bandwidth_mib_s=migration.bandwidth_mib_s,
        max_downtime_ms=migration.max_downtime_ms,
        auto_converge=migration.auto_converge,
    )


def hypervisor_summary(
    settings: LocalControllerSettings, description: HypervisorDescription
) -> HypervisorSummary:
    """What Snooze's clients are told of the hypervisor."""
    parts = urlsplit(settings.hypervisor.uri)
    scheme, _, transport = parts.scheme.partition("+")
    driver = "test" if settings.hypervisor.driver == "simulated" else scheme
    return HypervisorSummary(
        driver=driver,
        transport=transport or "tcp",
        port=parts.port or DEFAULT_LIBVIRT_PORT,
        method=settings.migration.method if settings.migration.method != "auto" else "live",
        timeout_s=round(settings.migration.timeout_s),
        description=f"{description.kind} {description.version}".strip(),
    )


def power_description(
    settings: LocalControllerSettings, actions: tuple[str, ...]
) -> PowerDescription:
    """How the host is switched from outside, with its passwords, and the ways it goes down."""
    wakeup, power = settings.wakeup, settings.power
    told = bool(wakeup.options) or wakeup.driver == "test"
    return PowerDescription(
        driver=wakeup.driver if told else "",
        options=wakeup.options,
        actions=actions,
        idle_w=power.idle_w,
        full_w=power.full_w,
        asleep_w=power.asleep_w,
    )


def fences_itself(settings: LocalControllerSettings) -> bool:
    """Whether this host takes part in leases (``lease.enabled``)."""
    match settings.lease.enabled:
        case "always":
            return True
        case "never":
            return False
        case "auto":
            return not _can_be_proven_off(settings.wakeup)


def _can_be_proven_off(wakeup: WakeupSettings) -> bool:
    """Whether a power controller of this host can switch it off, and read that back."""
    match wakeup.driver:
        case "IPMI" | "REDFISH":
            return bool(wakeup.options)
        case "COMMAND":
            return "--status" in wakeup.options and "--off" in wakeup.options
        case "test":
            return True
        case _:
            return False


def guard_uri(settings: LocalControllerSettings) -> str:
    """Where a guard beside the agent finds the guests; empty where no other process can."""
    hypervisor = settings.hypervisor
    is_real = hypervisor.driver == "libvirt" and hypervisor.uri.startswith(("qemu", "xen", "lxc"))
    return hypervisor.uri if is_real else ""


def wakeup_options(settings: LocalControllerSettings) -> str:
    """How the host is woken, without its passwords."""
    return shown_options(settings.wakeup.driver, settings.wakeup.options)

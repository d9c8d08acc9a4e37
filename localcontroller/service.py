"""The local controller daemon: one per KVM host."""

import asyncio
import logging
from collections.abc import Callable

import msgspec

from snooze.common import daemon
from snooze.common.api import HealthView, ImageView
from snooze.common.assembly import http_limits
from snooze.common.clock import SYSTEM_CLOCK, Clock
from snooze.common.config import load
from snooze.common.errors import RemoteError, SnoozeError
from snooze.common.identity import advertised_address, node_hostname, node_identity
from snooze.common.metrics import add_metrics
from snooze.common.resources import Capacity
from snooze.common.settings_localcontroller import LocalControllerSettings
from snooze.common.snooze_api import NetworkAddress
from snooze.common.transport.http_client import HttpClient
from snooze.common.transport.http_server import HttpServer
from snooze.common.transport.link import LinkLimits
from snooze.common.usage import HostUsage
from snooze.common.wire import Address, HostDescription, HostNotice
from snooze.localcontroller import drivers
from snooze.localcontroller.agent import Agent
from snooze.localcontroller.http_api import HostApi
from snooze.localcontroller.hypervisor.libvirt_driver import LibvirtHypervisor
from snooze.localcontroller.hypervisor.port import (
    ConnectionChange,
    Hypervisor,
    HypervisorDescription,
)
from snooze.localcontroller.hypervisor.simulated_world import SimulatedWorld
from snooze.localcontroller.lease import HostLease, StartGuard, guard_starter, lease_file
from snooze.localcontroller.lease_file import LeaseFile
from snooze.localcontroller.metrics import host_metrics
from snooze.localcontroller.orders import Orders
from snooze.localcontroller.power import HostPowerDown, PowerAction, make_power
from snooze.localcontroller.power_meter import RaplMeter

logger = logging.getLogger(__name__)

OPEN_RETRY_MIN_S = 0.2
OPEN_RETRY_MAX_S = 5.0
CLOSE_ORDERS_S = 2.0


class LocalController:
    """One host's agent; its VMs outlive it."""

    def __init__(
        self,
        settings: LocalControllerSettings,
        node_id: str,
        *,
        clock: Clock = SYSTEM_CLOCK,
        world: SimulatedWorld | None = None,
        hypervisor: Hypervisor | None = None,
        fall: Callable[[PowerAction], None] | None = None,
        lease: LeaseFile | None = None,
        start_guard: StartGuard | None = None,
    ) -> None:
        """``world`` is shared by the simulated hosts of one process.

        ``fall``: what power.driver = "test" does instead of ending the daemon. ``lease``,
        ``start_guard``: instead of the file in the state directory, and of a real guard.
        """
        self.settings = settings
        self.node_id = node_id
        self.hostname = node_hostname(settings.node)
        self.hypervisor = hypervisor or drivers.make_hypervisor(
            settings, self.hostname, world, node_id
        )
        self.orders = Orders(
            self.hypervisor,
            drivers.migration_options(settings),
            settings.migration.max_concurrent,
            self._tell,
        )
        self._power = HostPowerDown(make_power(settings.power, fall), settings.power.actions)
        self._meter = RaplMeter()
        self._clock = clock
        self._client = HttpClient()
        self._description: HypervisorDescription | None = None
        self._connected = False
        self._opening: asyncio.Task[None] | None = None
        beat = settings.heartbeat
        self.agent = Agent(
            self._describe,
            self.orders,
            self._usage,
            settings.join,
            settings.monitoring.interval_s,
            LinkLimits(ping_interval_s=beat.interval_s, silence_timeout_s=beat.timeout_s),
            self._client,
            clock,
            self._power,
        )
        lease_notes = lease or lease_file(settings.node.state_directory)
        uri = drivers.guard_uri(settings) if hypervisor is None else ""
        if uri and start_guard is None:
            start_guard = guard_starter(lease_notes, uri, settings.lease.watchdog_device)
        self.lease = HostLease(
            settings.lease,
            enabled=drivers.fences_itself(settings),
            file=lease_notes,
            hypervisor=self.hypervisor,
            clock=clock,
            link=lambda: self.agent.link,
            fenced=self.agent.look_soon,
            start_guard=start_guard,
        )
        self.orders.lease = self.lease
        api = HostApi(self.orders, self.health, self._where, self.agent.manager)
        app = api.application()
        add_metrics(
            app,
            self.health,
            lambda: host_metrics(self.agent, self.orders.names(), self.orders.under_way),
        )
        self._http = HttpServer(
            app,
            settings.network.listen_address,
            settings.network.control_port,
            limits=http_limits(settings.http),
        )
        self.hypervisor.on_change(self.orders.on_change)
        self.hypervisor.on_connection(self._on_connection)

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Listen, and join the cluster as soon as the hypervisor is open.

        Raises:
            OSError: the port is taken.
        """
        await self._client.start()
        await self._http.start()
        self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        """Open the hypervisor, however long it takes to come up."""
        pause_s = OPEN_RETRY_MIN_S
        while True:
            try:
                await self.hypervisor.open()
                self._description = await self.hypervisor.describe()
            except RemoteError as error:
                logger.warning("the hypervisor cannot be opened yet: %s", error.message)
                await asyncio.sleep(pause_s)
                pause_s = min(OPEN_RETRY_MAX_S, pause_s * 2)
            except SnoozeError as error:
                logger.error("the hypervisor cannot be used: %s", error.message)
                await asyncio.sleep(OPEN_RETRY_MAX_S)
            except Exception:  # a defect: said, and tried again
                logger.exception("the hypervisor cannot be used")
                await asyncio.sleep(OPEN_RETRY_MAX_S)
            else:
                break
        self._connected = True
        self.lease.start()
        self.agent.start()

    async def close(self) -> None:
        """Leave the cluster; VMs keep running."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        await self.lease.close()
        await self.agent.close()
        await self.orders.close(CLOSE_ORDERS_S)
        await self._http.stop()
        await self._client.close()
        await self.hypervisor.close()

    # ------------------------------------------------------------ the host

    async def _describe(self) -> HostDescription:
        """The host as it is now.

        Raises:
            RemoteError: the hypervisor does not answer.
        """
        settings = self.settings
        machine = await self.hypervisor.capacity()
        if self._description is None:
            self._description = await self.hypervisor.describe()
        offered = settings.capacity
        return HostDescription(
            host_id=self.node_id,
            hostname=self.hostname,
            control=self._address(),
            capacity=Capacity(
                max(0.0, machine.cpu_cores - offered.reserved_cpu_cores),
                max(0.0, machine.memory_kib - offered.reserved_memory_kib),
                offered.rx_kib_s,
                offered.tx_kib_s,
            ),
            hypervisor=drivers.hypervisor_summary(settings, self._description),
            images=await self._images(),
            lists_images=isinstance(self.hypervisor, LibvirtHypervisor),
            wakeup_driver=settings.wakeup.driver,
            wakeup_options=drivers.wakeup_options(settings),
            power=drivers.power_description(settings, self._power.actions()),
            lease_s=self.lease.lease_s,
        )

    async def _usage(self) -> HostUsage:
        """What VMs and the host use, and what the host draws where that is counted.

        Raises:
            SnoozeError: as the hypervisor says.
        """
        usage = await self.hypervisor.usage()
        if usage.machine is None or not self._meter.is_there:
            return usage
        power_w = self._meter.power_w(self._clock.monotonic_s())
        machine = msgspec.structs.replace(usage.machine, power_w=power_w)
        return msgspec.structs.replace(usage, machine=machine)

    async def _images(self) -> tuple[ImageView, ...]:
        """The images of this host; none for a host without real disks."""
        hypervisor = self.hypervisor
        if not isinstance(hypervisor, LibvirtHypervisor):
            return ()
        try:
            found = await hypervisor.list_images()
        except (SnoozeError, OSError) as error:
            logger.warning("images cannot be listed: %s", error)
            return ()
        return tuple(
            ImageView(image.name, image.format, image.virtual_size_bytes, image.actual_size_bytes)
            for image in found
        )

    def _address(self) -> Address:
        return Address(advertised_address(self.settings.network), self._http.port)

    def _where(self) -> tuple[str, NetworkAddress]:
        address = self._address()
        return self.node_id, NetworkAddress(address.host, address.port)

    def _tell(self, notice: HostNotice) -> None:
        self.agent.tell(notice)

    def _on_connection(self, change: ConnectionChange) -> None:
        self._connected = change.connected
        if change.connected:
            logger.info("the hypervisor is back")
            self.agent.look_soon()
        else:
            logger.warning("the hypervisor is lost: %s", change.reason)

    def health(self) -> HealthView:
        """Whether this host serves, and why not."""
        reasons: list[str] = []
        if not self._connected:
            reasons.append("the hypervisor is not connected")
        if not self.agent.joined:
            reasons.append("not joined to a group manager")
        status = "unready" if reasons else "ready"
        return HealthView(status, "localcontroller", self.node_id, reasons)


def run(path: str) -> int:
    """Run a local controller with the settings in a file; the exit code."""
    settings = load(path, LocalControllerSettings)
    node_id = node_identity(settings)
    return daemon.run(
        lambda: LocalController(settings, node_id), settings.log, node_id, "localcontroller"
    )

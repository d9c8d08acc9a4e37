"""The HTTP calls of a local controller: health, and Snooze's own for one host.

Commands given here act on the hypervisor at once; the group manager hears of what changed as of any
other change, and reading here takes nothing from what it has yet to hear. Whoever reaches this port
commands this host: keep it on the management network.
"""

from collections.abc import Awaitable, Callable

from aiohttp import web

from snooze.common.api import HealthView
from snooze.common.errors import Conflict, NotFound
from snooze.common.snooze_api import (
    NetworkAddress,
    VirtualMachineImage,
    VirtualMachineLocation,
    VirtualMachineMetaData,
    VirtualMachineStatus,
)
from snooze.common.transport.health import add_health
from snooze.common.transport.legacy import (
    LegacyResource,
    ResultKind,
    get,
    post_int,
    post_text,
)
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.vms import VmReport
from snooze.common.wire import CommandVm, ManagerDescription
from snooze.localcontroller.orders import Orders

_STATUS = {
    VmState.RUNNING: VirtualMachineStatus.RUNNING,
    VmState.PAUSED: VirtualMachineStatus.PAUSED,
    VmState.STOPPED: VirtualMachineStatus.OFFLINE,
    VmState.FAILED: VirtualMachineStatus.ERROR,
    VmState.STOPPING: VirtualMachineStatus.SHUTDOWN_PENDING,
}

_COMMANDS = {
    "suspendVirtualMachineOnRequest": VmCommand.SUSPEND,
    "suspendVirtualMachineOnMigration": VmCommand.SUSPEND,
    "resumeVirtualMachine": VmCommand.RESUME,
    "shutdownVirtualMachine": VmCommand.SHUTDOWN,
    "rebootVirtualMachine": VmCommand.REBOOT,
    "destroyVirtualMachine": VmCommand.DESTROY,
}


class HostApi:
    """The application of one local controller."""

    def __init__(
        self,
        orders: Orders,
        health: Callable[[], HealthView],
        where: Callable[[], tuple[str, NetworkAddress]],
        manager: Callable[[], ManagerDescription | None],
    ) -> None:
        """``where`` gives the host's id and address; ``manager`` the one it has joined."""
        self._orders = orders
        self._health = health
        self._where = where
        self._manager = manager

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application()
        add_health(app, self._health)
        boolean = ResultKind.BOOLEAN
        commands = [
            post_text(name, boolean, self._command(command)) for name, command in _COMMANDS.items()
        ]
        power = [
            get(name, boolean, _not_by_anybody)
            for name in ("suspendNodeToRam", "suspendNodeToDisk", "suspendNodeToBoth")
        ]
        LegacyResource(
            "/localcontroller",
            [
                *commands,
                *power,
                get("shutdownNode", boolean, _not_by_anybody),
                post_int("getVirtualMachines", ResultKind.MESSAGE, self._list),
            ],
        ).add_to(app)
        return app

    async def _find(self, name: str) -> VmReport:
        reports = await self._orders.listed()
        for report in reports:
            if report.managed and name in {report.name, report.vm_id}:
                return report
        raise NotFound(f"no VM {name!r} of Snooze on this host")

    def _command(self, command: VmCommand) -> Callable[[str], Awaitable[bool]]:
        async def carry_out(name: str) -> bool:
            report = await self._find(name)
            await self._orders.carry_out(CommandVm(0, "http", report.vm_id, command))
            await self._orders.reconcile_vm(report.vm_id)
            return True

        return carry_out

    async def _list(self, _entries: int) -> list[VirtualMachineMetaData]:
        host_id, address = self._where()
        manager = self._manager()
        return [
            VirtualMachineMetaData(
                ip_address=report.ip_address or "UNKNOWN",
                xml_representation=report.xml or "UNKNOWN",
                status=_STATUS.get(report.state, VirtualMachineStatus.UNKNOWN),
                is_assigned=manager is not None,
                virtual_machine_location=VirtualMachineLocation(
                    report.name,
                    host_id,
                    address,
                    manager.manager_id if manager is not None else "UNKNOWN",
                    NetworkAddress(manager.control.host, manager.control.port)
                    if manager is not None
                    else NetworkAddress(),
                ),
                image=VirtualMachineImage(name=report.image or "UNKNOWN"),
                requested_capacity=report.demand.as_list(),
            )
            for report in await self._orders.listed()
        ]


async def _not_by_anybody() -> bool:
    """Power is the cluster's to decide, not of whoever reaches this port."""
    raise Conflict("the power of a host is not switched by an unauthenticated call")

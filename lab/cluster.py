"""A whole cluster of machines on this one: what ``snooze lab up`` builds.

Every machine is a ``LabHost`` with a power switch and a cable: hosts (``h1``, ...) with a libvirtd,
a BMC and a local controller that starts whenever the host does; managers (``gm1``, ...) with a
front door and a group manager each; and a ZooKeeper ensemble (``zk1``, ...). Disks lie in a folder
that all hosts share, like network storage.
"""

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

import msgspec

from snooze.common.errors import ExecutionError, InvalidRequest, NotFound, PreconditionError
from snooze.lab.bmc import BmcRack, require_ipmi
from snooze.lab.daemons import Daemon, DaemonCluster, Tables
from snooze.lab.guests import assemble, kvm_works, make_disk, micro_guest_xml
from snooze.lab.hosts import LabHost, LabNet
from snooze.lab.linux_guest import LinuxGuest, linux_guest
from snooze.lab.wake import WakeListener
from snooze.lab.zookeeper import ZooKeeperEnsemble, ensemble_at_boot, require_zookeeper

MAX_HOSTS: Final = 16
MAX_MANAGERS: Final = 8
MAX_ZOOKEEPERS: Final = 7
READY_GUESTS: Final = 8
LINUX_GUESTS: Final = 4
FORM_S: Final = 120.0
"""Four hosts, two managers and three servers take 7 s on an idle machine of two cores."""
CYCLE_S: Final = 1.0
_POLL_S: Final = 0.1

Say = Callable[[str], None]
PowerAction = Literal["on", "off", "cycle", "soft", "suspend", "hibernate"]


@dataclass(frozen=True, slots=True)
class LabPlan:
    """What a lab is made of.

    Attributes:
        settings: for all daemons; a role without a section does not get it.
        manager_settings: for group managers.
        host_settings: for local controllers.
        linux: whether there are Linux guests to be submitted, too.
        suspend: whether hosts go to sleep by suspending to RAM, and not by switching off.
        hibernate: likewise, to disk.
        wake_on_lan: whether the cluster wakes them so, knowing nothing of their BMCs.
        quick: whether the settings are those of ``snooze.lab.quick``, to be said to people.
    """

    hosts: int = 4
    managers: int = 2
    zookeepers: int = 3
    settings: Tables = field(default_factory=dict[str, dict[str, object]])
    manager_settings: Tables = field(default_factory=dict[str, dict[str, object]])
    host_settings: Tables = field(default_factory=dict[str, dict[str, object]])
    linux: bool = False
    suspend: bool = False
    hibernate: bool = False
    wake_on_lan: bool = False
    quick: bool = False

    def check(self) -> None:
        """Refuse what cannot be built.

        Raises:
            InvalidRequest: says what is wrong.
        """
        for option, value, most in (
            ("--hosts", self.hosts, MAX_HOSTS),
            ("--managers", self.managers, MAX_MANAGERS),
            ("--zookeepers", self.zookeepers, MAX_ZOOKEEPERS),
        ):
            if not 1 <= value <= most:
                raise InvalidRequest(f"{option} has to be from 1 to {most}")


class MachineView(msgspec.Struct, frozen=True):
    """One machine of a lab, as it is.

    ``power``: ``on``, ``off``, ``suspended`` or ``hibernated``. ``service``: ``ready``, or why not,
    in the words of what it runs. ``bmc`` and ``bmc_state`` are empty for machines without one.
    ``guests``: the names of the domains that run there.
    """

    name: str
    role: str
    address: str
    power: str
    cable: str
    service: str
    bmc: str = ""
    bmc_state: str = ""
    mac: str = ""
    guests: tuple[str, ...] = ()


class LabView(msgspec.Struct, frozen=True):
    """A lab, as it is."""

    name: str
    url: str
    folder: str
    images: str
    templates: str
    guests_run_by: str
    machines: tuple[MachineView, ...]
    linux: bool = False
    quick: bool = False


def require_tools() -> None:
    """Raises: PreconditionError, naming what to install, when something of a lab is missing."""
    tools = {
        "ip": "iproute2",
        "nsenter": "util-linux",
        "libvirtd": "libvirt-daemon-system",
        "virsh": "libvirt-clients",
        "qemu-system-x86_64": "qemu-system-x86",
        "as": "binutils",
    }
    missing = sorted({package for tool, package in tools.items() if shutil.which(tool) is None})
    if missing:
        raise PreconditionError(
            f"a lab needs more: apt-get install --no-install-recommends {' '.join(missing)}"
        )
    require_ipmi()
    require_zookeeper()


class LabCluster:
    """A running lab; a context manager, or call ``close``.

    Attributes:
        images: the folder of disks that all hosts share.
        templates: libvirt templates of guests that are ready to be submitted.
    """

    def __init__(self, plan: LabPlan, name: str = "lab", say: Say = lambda _: None) -> None:
        """Build it and switch everything on; ``wait_ready`` waits until it has formed.

        Raises:
            InvalidRequest, PreconditionError: it cannot be built here; says what to do.
            OSError, RuntimeError: it could not be built; nothing is left of it.
        """
        plan.check()
        require_tools()
        self.name = name
        self.plan = plan
        self._say = say
        self.kvm = False
        self.net = LabNet(uplink=True)
        self.images = self.net.folder / "images"
        self.templates = self.net.folder / "templates"
        self.closing = threading.Event()
        try:
            self.rack = BmcRack(self.net)
            self.wake = WakeListener(self.net)
            with ThreadPoolExecutor(2) as aside:
                linux = aside.submit(linux_guest) if plan.linux else None
                self._build(aside.submit(kvm_works), linux)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------ what it is

    @property
    def url(self) -> str:
        """Its front doors, for ``SNOOZE_URL``."""
        return ",".join(door.url for door in self.daemons.bootstraps)

    @property
    def hosts(self) -> list[LabHost]:
        """Those that run guests."""
        return [host for host in self.net.hosts.values() if host.runs_libvirtd]

    def machine(self, name: str) -> LabHost:
        """One of its machines.

        Raises:
            NotFound: names those that there are.
        """
        if name not in self.net.hosts:
            known = ", ".join(self.net.hosts)
            raise NotFound(f"the lab has no machine {name!r}; there are: {known}")
        return self.net.hosts[name]

    def view(self) -> LabView:
        """All of it, asked of each machine now."""
        return LabView(
            self.name,
            self.url,
            str(self.net.folder),
            str(self.images),
            str(self.templates),
            "KVM" if self.kvm else "software emulation (KVM does not boot a guest here)",
            tuple(self._view(host) for host in self.net.hosts.values()),
            self.plan.linux,
            self.plan.quick,
        )

    def host_of(self, guest: str) -> LabHost:
        """The host on which a guest runs, whatever the cluster knows of it.

        Raises:
            NotFound: none does.
        """
        for host in self.hosts:
            if guest in _guests(host):
                return host
        raise NotFound(f"no host of the lab runs a guest {guest!r}")

    def disk_of(self, guest: str) -> Path:
        """Of a guest of one sector, whether it runs or not.

        Raises:
            NotFound: names those that there are.
        """
        known = {disk.stem: disk for disk in sorted(self.images.glob("*.raw"))}
        if guest not in known:
            raise NotFound(f"{guest!r} is no guest that burns; there are: {', '.join(known)}")
        return known[guest]

    # ------------------------------------------------------------ what can be done to it

    def power(self, name: str, action: PowerAction, *, with_bmc: bool = False) -> None:
        """Switch a machine, at once and without asking it, but for ``soft``; ``on`` wakes it, too.

        Args:
            with_bmc: its BMC loses power too, and gets it back with ``on``.
        """
        host, bmc = self.machine(name), self.rack.bmcs.get(name)
        if action in {"off", "cycle"}:
            if bmc is not None:
                self.rack.lose_power(name, with_host=with_bmc)
            host.lose_power()
        if action == "cycle":
            time.sleep(CYCLE_S)
        if action in {"on", "cycle"}:
            if bmc is not None:
                bmc.start()
            host.power_on()
        if action == "soft":
            host.shut_down()
        if action in {"suspend", "hibernate"}:
            host.suspend(to_disk=action == "hibernate")

    def cable(self, name: str, *, plugged: bool, bmc: bool = False) -> None:
        """Pull a machine's cable, or its BMC's, or put it back."""
        host: LabHost = self.machine(name)
        port = self.rack.bmcs.get(name) if bmc else host
        if port is None:
            raise NotFound(f"{name} has no BMC")
        if plugged:
            port.plug()
        else:
            port.cut()

    def wait_ready(self, timeout_s: float = FORM_S) -> None:
        """Block until every service says that it is ready, which hosts are once they have joined.

        Raises:
            ExecutionError: not in time; with what each one lacks.
        """
        deadline_s = time.monotonic() + timeout_s
        for what, lacking in (
            ("ZooKeeper serves", self._silent_stores),
            ("the group managers have elected a leader", lambda: self._lacking(self._upper())),
            ("all hosts have joined", lambda: self._lacking(self.daemons.hosts)),
        ):
            while missing := lacking():
                if time.monotonic() > deadline_s or self.closing.is_set():
                    raise ExecutionError(
                        f"the cluster has not formed in {timeout_s:g} s: {'; '.join(missing)} "
                        f"(logs: {self.net.folder}/*/*/log)"
                    )
                time.sleep(_POLL_S)
            self._say(what)

    def close(self) -> None:
        """Take everything down; may be called again."""
        self.closing.set()
        for part in ("wake", "rack"):
            if (built := getattr(self, part, None)) is not None:
                built.close()
                delattr(self, part)
        self.net.close()

    def __enter__(self) -> "LabCluster":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------ building

    def _build(self, kvm: "Future[bool]", linux: "Future[LinuxGuest] | None") -> None:
        plan, net = self.plan, self.net
        self._say(f"a switch, {net.subnet}.0/24, joined to this machine at {net.gateway}")
        self.images.mkdir()
        hosts = [net.host(f"h{number}") for number in range(1, plan.hosts + 1)]
        managers = [net.host(f"gm{n}", libvirtd=False) for n in range(1, plan.managers + 1)]
        stores = [net.host(f"zk{n}", libvirtd=False) for n in range(1, plan.zookeepers + 1)]
        self.ensemble: ZooKeeperEnsemble = ensemble_at_boot(net.folder / "zookeeper", stores)
        self.daemons = DaemonCluster(
            net.folder / "daemons", self.ensemble.hosts, defaults=plan.settings
        )
        for number, machine in enumerate(managers, 1):
            self.daemons.bootstrap(f"front{number}", _port(5000), on=machine).install()
            self.daemons.manager(machine.name, self._manager_settings(), on=machine).install()
        for machine in (*stores, *managers):
            machine.power_on()
        self._say(f"on: {_names([*stores, *managers])}")
        for host in hosts:
            self.rack.add(host)
        self.kvm = kvm.result()
        self._make_guests()
        if linux is not None:
            self._make_linux_guests(linux.result())
        for host in hosts:
            self.daemons.host(host.name, self._host_settings(host), on=host).install()
            host.power_on()
        self._say(f"on: {_names(hosts)}, each with its libvirtd and a BMC")

    def _manager_settings(self) -> Tables:
        own: Tables = {
            "network": {"control_port": 5001, "monitoring_port": 6000},
            "addresses": {"subnets": (f"{self.net.subnet}.192/26",)},
            "templates": {
                "image_directories": (str(self.images),),
                "allowed_dangers": ("network-disks", "direct-boot", "host-channels"),
            },
            # tiny guests, so that many of them may share the cores of a small machine
            "placement": {"overcommit": {"cpu": 16.0}},
        }
        return merged(own, self.plan.manager_settings)

    def _host_settings(self, host: LabHost) -> Tables:
        wakeup: dict[str, object] = {
            "driver": "IPMI",
            "options": self.rack.bmcs[host.name].options,
        }
        if self.plan.wake_on_lan:
            wakeup = {"driver": "WOL", "options": f"{host.mac} -i {self.net.subnet}.255"}
        actions: tuple[str, ...] = ("shutdown",)
        if self.plan.suspend or self.plan.hibernate:
            to_disk = self.plan.hibernate
            actions = ("suspend_to_disk" if to_disk else "suspend_to_ram", *actions)
        own: Tables = {
            "network": {"control_port": 5002},
            "hypervisor": {"migration_uri": "qemu+tcp://{address}/system"},
            "capacity": {"reserved_memory_kib": 0.0},
            "images": {
                "directories": (str(self.images),),
                "disk_directory": str(self.images / "disks"),
            },
            "templates": {
                "domain_type": "kvm" if self.kvm else "qemu",
                "bridges": {"*": "br0"},
                "allowed_dangers": ("network-disks", "direct-boot", "host-channels"),
            },
            "power": {"driver": "systemd", "actions": actions},
            "wakeup": wakeup,
        }
        return merged(own, self.plan.host_settings)

    def _make_guests(self) -> None:
        self.templates.mkdir()
        (self.images / "disks").mkdir()
        self.sector = assemble(self.net.folder)
        for number in range(1, READY_GUESTS + 1):
            self.make_guest(f"guest{number}")

    def _make_linux_guests(self, made: LinuxGuest) -> None:
        shared = made.copy(self.images / "linux")
        for number in range(1, LINUX_GUESTS + 1):
            name = f"linux{number}"
            xml = shared.template(name, "kvm" if self.kvm else "qemu")
            (self.templates / f"{name}.xml").write_text(xml)

    def make_guest(self, name: str) -> Path:
        """A micro guest on a disk of its own, ready to be submitted; its template."""
        disk = self.images / f"{name}.raw"
        make_disk(disk, self.sector)
        template = self.templates / f"{name}.xml"
        kind = "kvm" if self.kvm else "qemu"
        xml = micro_guest_xml(name, disk, domain_type=kind, shareable=True)
        template.write_text(xml)
        return template

    # ------------------------------------------------------------ looking

    def _upper(self) -> Sequence[Daemon]:
        return [*self.daemons.bootstraps, *self.daemons.managers]

    def _silent_stores(self) -> list[str]:
        modes = asyncio.run(_modes(self.ensemble))
        return [f"ZooKeeper {name}: {mode}" for name, mode in modes.items() if not mode]

    @staticmethod
    def _lacking(daemons: Sequence[Daemon]) -> list[str]:
        states = {daemon.name: service_state(daemon) for daemon in daemons}
        return [f"{name}: {state}" for name, state in states.items() if state != "ready"]

    def _view(self, host: LabHost) -> MachineView:
        bmc = self.rack.bmcs.get(host.name)
        daemons = [daemon for daemon in self.daemons if daemon.on is host]
        if not host.is_on or host.is_suspended:
            service = ""
        elif daemons:
            states = [service_state(daemon) for daemon in daemons]
            service = next((state for state in states if state != "ready"), "ready")
        else:
            mode = asyncio.run(_modes(self.ensemble)).get(host.name, "")
            service = f"ready ({mode})" if mode else "silent"
        return MachineView(
            name=host.name,
            role="host" if host.runs_libvirtd else "manager" if daemons else "zookeeper",
            address=host.address,
            power=_power_of(host),
            cable="in" if host.plugged else "cut",
            service=service,
            bmc=bmc.address if bmc else "",
            bmc_state="" if bmc is None else _bmc_state(on=bmc.is_on, plugged=bmc.plugged),
            mac=host.mac,
            guests=_guests(host) if host.runs_libvirtd else (),
        )


def merged(own: Tables, more: Tables) -> Tables:
    """Settings over settings, section by section."""
    return {
        section: {**own.get(section, {}), **more.get(section, {})} for section in {**own, **more}
    }


def service_state(daemon: Daemon) -> str:
    """``ready``, ``silent`` or what it lacks, in its own words."""
    health = daemon.health()
    if health is None:
        return "silent"
    return health.status if health.status == "ready" else "; ".join(health.reasons)


def _power_of(host: LabHost) -> str:
    if host.is_suspended:
        return "hibernated" if host.is_hibernated else "suspended"
    return "on" if host.is_on else "off"


def _bmc_state(*, on: bool, plugged: bool) -> str:
    return "off" if not on else "on" if plugged else "cut"


def _port(number: int) -> Tables:
    return {"network": {"control_port": number}}


def _names(hosts: Sequence[LabHost]) -> str:
    return ", ".join(host.name for host in hosts)


def _guests(host: LabHost) -> tuple[str, ...]:
    """Those that run; of a suspended host none can be asked for."""
    if not host.is_on or host.is_suspended:
        return ()
    listed = host.exec(["virsh", "-q", "list", "--name"], timeout_s=20)
    return tuple(sorted(listed.stdout.decode(errors="replace").split()))


async def _modes(ensemble: ZooKeeperEnsemble) -> dict[str, str]:
    """What each server is, at once; empty while it does not serve."""
    modes = await asyncio.gather(*(server.mode() for server in ensemble.servers))
    names = [server.on.name if server.on else server.hosts for server in ensemble.servers]
    return {name: mode or "" for name, mode in zip(names, modes, strict=True)}

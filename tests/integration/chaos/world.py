"""The world in which chaos reigns: every daemon and every ZooKeeper server on a host of its own.

A host is a set of namespaces with a cable to one switch (``snooze.lab.hosts``). VMs are domains of
libvirt's test driver, in a libvirtd of each host: they outlive the local controller, as guests do,
and are looked at through a socket file, whatever the network does. What runs where is asked of
these, never of Snooze.
"""

import asyncio
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt

from snooze.common.errors import SnoozeError
from snooze.lab.daemons import Daemon, DaemonCluster
from snooze.lab.hosts import LabHost, LabNet
from snooze.lab.zookeeper import ZooKeeperEnsemble, ZooKeeperServer, zookeeper_ensemble

SESSION_S = 1.5
PATIENCE_S = 180.0
"""More than anything here takes on a busy machine; what takes longer does not converge."""
_SOCKET = "libvirt/libvirt-sock"
_POLL_S = 0.1

QUICK: dict[str, dict[str, object]] = {
    "coordination": {"session_timeout_s": SESSION_S},
    "heartbeat": {"interval_s": 0.3, "timeout_s": 1.5},
    "join": {"retry_min_s": 0.05, "retry_max_s": 0.5},
    "monitoring": {"interval_s": 1.0},
    "addresses": {"subnets": ("192.168.128.0/20",), "quarantine_s": 0.0},
    "capacity": {"reserved_memory_kib": 0.0},
    "placement": {"overcommit": {"cpu": 16.0}},
}


@dataclass(frozen=True)
class Domain:
    """One domain of a hypervisor. ``definition`` is what a disk would keep of it."""

    name: str
    host: str
    running: bool
    definition: str


class World:
    """The cluster and everything that can be done to it. Made by ``build``; close it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="snooze-chaos-"))
        self._stack = AsyncExitStack()
        self.net = LabNet()
        self._stack.callback(self.net.close)
        self.ensemble: ZooKeeperEnsemble
        self.cluster: DaemonCluster
        self.places: dict[str, LabHost] = {}
        self._hypervisors: dict[str, libvirt.virConnect] = {}

    async def build(self, *, managers: int = 3, hosts: int = 4, fronts: int = 2) -> None:
        """Switch everything on and wait until the hierarchy is whole.

        The calling thread, and those that it starts from then on, are on the switch for good.
        """
        self.net.enter_thread()
        stores = [self._place(f"zk{n}") for n in range(1, 4)]
        self.ensemble = await self._stack.enter_async_context(
            zookeeper_ensemble(tick_ms=500, on=stores)
        )
        self.cluster = DaemonCluster(self.folder, self.ensemble.hosts, defaults=QUICK)
        self._stack.callback(self.cluster.close)
        for number in range(1, fronts + 1):
            self.cluster.bootstrap(f"front{number}", on=self._place(f"front{number}"))
        for number in range(1, managers + 1):
            self.cluster.manager(f"gm{number}", on=self._place(f"gm{number}"))
        for number in range(1, hosts + 1):
            name = f"host{number}"
            place = self._place(name, libvirtd=True)
            uri = f"test+unix:///default?socket=/run/{_SOCKET}"
            settings: dict[str, dict[str, object]] = {"hypervisor": {"uri": uri}}
            self.cluster.host(name, settings, on=place)
            await asyncio.to_thread(self.boot, name, [])
        for daemon in self.cluster:
            daemon.start()
        await self.wait_whole()

    async def close(self, *, keep: bool = False) -> None:
        """Switch everything off; ``keep`` the daemons' logs."""
        for connection in self._hypervisors.values():
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()
        await self._stack.aclose()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, name: str, *, libvirtd: bool = False) -> LabHost:
        place = self.places[name] = self.net.host(name, libvirtd=libvirtd)
        if not libvirtd:
            place.power_on()
        return place

    # ------------------------------------------------------------ hypervisors

    def boot(self, name: str, definitions: list[str]) -> None:
        """Switch a host on, its domains defined and off as its disk has kept them."""
        place = self.places[name]
        place.power_on()
        place.plug()  # A pulled cable stays pulled while a host is off.
        uri = f"test+unix:///default?socket={place.folder}/run/{_SOCKET}"
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                connection = libvirt.open(uri)  # Kept: the driver forgets all with the last one.
                break
            except libvirt.libvirtError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_POLL_S)
        for domain in connection.listAllDomains():
            domain.destroy()
            domain.undefine()
        for definition in definitions:
            connection.defineXML(definition)
        self._hypervisors[name] = connection

    def lose_power(self, name: str) -> list[str]:
        """Cable first, then all of the host; what is left on its disk."""
        # Who was told that a VM is gone was told before the cable was cut, and the disk knows it.
        self.places[name].cut()
        self.daemon(name).pause()
        kept = [domain.definition for domain in self.domains_of(name)]
        self.places[name].kill()
        self.daemon(name).kill()
        self.places[name].power_off()
        with contextlib.suppress(libvirt.libvirtError):
            self._hypervisors.pop(name).close()
        return kept

    def domains_of(self, name: str) -> list[Domain]:
        """What a host's hypervisor has, seen past the network."""
        found: list[Domain] = []
        for domain in self._hypervisors[name].listAllDomains():
            try:
                definition = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
                running = bool(domain.isActive())
            except libvirt.libvirtError:
                continue  # Gone meanwhile.
            label = ElementTree.fromstring(definition).findtext("name") or ""
            found.append(Domain(label, name, running, definition))
        return found

    def domains(self) -> list[Domain]:
        """What all hypervisors have."""
        return [domain for name in self._hypervisors for domain in self.domains_of(name)]

    # ------------------------------------------------------------ daemons

    def daemon(self, name: str) -> Daemon:
        return next(daemon for daemon in self.cluster if daemon.name == name)

    def get(self, daemon: Daemon, path: str, *, itself: bool = False) -> Any:
        """The JSON that a daemon answers, None if it does not; ``itself``: not passed on."""
        host, port = daemon.address.split(":")
        connection = HTTPConnection(host, int(port), timeout=2)
        try:
            connection.request("GET", path, headers={"X-Snooze-Hops": "1"} if itself else {})
            response = connection.getresponse()
            body = response.read()
            return json.loads(body) if response.status == 200 else None
        except (OSError, HTTPException, ValueError):
            return None
        finally:
            connection.close()

    def leaders(self) -> dict[str, int]:
        """The managers that serve as the leader, and in which epoch."""
        found: dict[str, int] = {}
        for manager in self.cluster.managers:
            view = self.get(manager, "/v1/cluster", itself=True) if manager.runs else None
            if view is not None:
                found[manager.name] = view["epoch"]
        return found

    def server(self, name: str) -> ZooKeeperServer:
        """The ZooKeeper server on a host."""
        return next(s for s in self.ensemble.servers if s.on is self.places[name])

    def name_of(self, server: ZooKeeperServer) -> str:
        """The host that a ZooKeeper server is on."""
        return next(name for name, place in self.places.items() if place is server.on)

    async def zookeeper(self, role: str) -> ZooKeeperServer:
        """A server that leads or follows."""
        for _ in range(600):
            for server in self.ensemble.servers:
                if await server.mode() == role:
                    return server
            await asyncio.sleep(_POLL_S)
        raise AssertionError(f"no ZooKeeper server is {role}")

    async def wait_whole(self) -> None:
        """Every daemon ready, one leader, every host joined below a manager."""
        await self.until(self._is_whole, "the hierarchy is whole")

    async def until(self, condition: Callable[[], str], what: str) -> None:
        """Wait until ``condition`` returns "" instead of what is missing."""
        deadline_s = time.monotonic() + PATIENCE_S
        while missing := await asyncio.to_thread(condition):
            if time.monotonic() > deadline_s:
                raise AssertionError(f"{what}: not in {PATIENCE_S:g} s: {missing}")
            await asyncio.sleep(_POLL_S)

    def _is_whole(self) -> str:
        for daemon in self.cluster:
            if not daemon.is_ready:
                return f"{daemon.name} is not ready: {daemon.health()}"
        leaders = self.leaders()
        if len(leaders) != 1:
            return f"leaders: {leaders}"
        hosts: list[dict[str, str]] = self.get(self.cluster.bootstraps[0], "/v1/hosts") or []
        active = sorted(host["hostname"] for host in hosts if host["status"] == "active")
        if active != sorted(self._hypervisors):
            return f"only {active} joined"
        return ""

    def story(self, told: str) -> str:
        """What the leader says has happened to those that a text names, and to daemons."""
        lines: list[str] = []
        front, seq = self.cluster.bootstraps[0], 0
        while events := self.get(front, f"/v1/events?limit=1000&after={seq}"):
            seq = events[-1]["seq"]
            lines += [
                f"{event['at_ms']} {event['kind']} {event['subject']}: {event['message']}"
                for event in events
                if event["subject"] in told or not event["kind"].startswith(("vm.", "command."))
            ]
        return "\n".join(lines[-200:])

    def logs(self) -> str:
        """The end of every daemon's log."""
        with contextlib.suppress(SnoozeError):
            return "\n".join(f"---- {name}\n{text}" for name, text in self.cluster.logs())
        return ""

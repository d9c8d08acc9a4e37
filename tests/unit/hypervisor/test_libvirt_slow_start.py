# pyright: reportPrivateUsage=false
"""Starts of which nobody knows how they end: what may be on is never said to have failed."""

import asyncio
import threading
from typing import cast

import libvirt
import pytest

from snooze.common.errors import RemoteTimeout, TooBusy
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmReport, VmSpec
from snooze.localcontroller.hypervisor import libvirt_domains
from snooze.localcontroller.hypervisor.libvirt_domains import Workshop
from snooze.localcontroller.hypervisor.libvirt_driver import LibvirtHypervisor
from snooze.localcontroller.hypervisor.libvirt_options import LibvirtOptions
from snooze.localcontroller.hypervisor.port import ChangeKind

VM = "a" * 32
WAIT_S = 30.0


async def test_it_is_told_of_as_long_as_it_may_come_up(monkeypatch: pytest.MonkeyPatch) -> None:
    go, real = threading.Event(), libvirt_domains.start

    def slow(connection: libvirt.virConnect, workshop: Workshop, spec: VmSpec) -> VmReport:
        assert go.wait(WAIT_S)
        return real(connection, workshop, spec)

    monkeypatch.setattr(libvirt_domains, "start", slow)
    hypervisor = LibvirtHypervisor(LibvirtOptions("test:///default", start_timeout_s=0.05))
    await hypervisor.open()
    spec = VmSpec(VM, "slow", Capacity(1.0, 65536.0), generation=2)

    async def found() -> VmReport | None:
        return next((r for r in await hypervisor.inventory() if r.vm_id == VM), None)

    with pytest.raises(RemoteTimeout, match="may have happened"):
        await hypervisor.start(spec)
    with pytest.raises(TooBusy, match="still under way"):
        await hypervisor.start(spec)
    pending = await found()
    assert pending is not None
    assert (pending.state, pending.generation) == (VmState.STARTING, 2)
    up = asyncio.Event()
    hypervisor.on_change(lambda change: up.set() if change.kind is ChangeKind.STARTED else None)
    go.set()
    await asyncio.wait_for(up.wait(), WAIT_S)
    present = await found()
    assert present is not None
    assert present.state is VmState.RUNNING
    await hypervisor.destroy(VM)
    assert await found() is None
    await hypervisor.close()


class Broken:
    """A domain whose connection breaks as it is started: libvirt may have got to it, or not."""

    def name(self) -> str:
        return "broken"

    def __getattr__(self, name: str) -> object:
        def broken(*args: object) -> object:
            return libvirt.open("test+tcp://127.0.0.1:1/default")  # libvirt's own error

        return broken


class Mute(Broken):
    """One that is on, and of which libvirt says nothing more: it waits for its monitor."""

    def create(self) -> int:
        return 0

    def isActive(self) -> int:
        return 1


class Connection:
    """A connection on which one domain is defined; before, libvirt's own has none."""

    def __init__(self, domain: Broken) -> None:
        self.domain = domain
        self.is_defined = False
        self.real = libvirt.open("test:///default")

    def lookupByUUIDString(self, text: str) -> object:
        return self.domain if self.is_defined else self.real.lookupByUUIDString(text)

    def lookupByName(self, name: str) -> object:
        return self.real.lookupByName(name)

    def defineXML(self, xml: str) -> object:
        self.is_defined = True
        return self.domain


@pytest.mark.parametrize("domain", [Broken(), Mute()])
async def test_what_may_be_on_has_not_failed_to_start(domain: Broken) -> None:
    hypervisor = LibvirtHypervisor(LibvirtOptions("test:///default"))
    await hypervisor.open()
    workshop = await hypervisor._make_workshop()
    spec = VmSpec(VM, "broken", Capacity(1.0, 65536.0))
    connection = cast("libvirt.virConnect", Connection(domain))
    with pytest.raises(RemoteTimeout, match="may be on"):
        hypervisor._start(connection, workshop, spec)
    await hypervisor.close()

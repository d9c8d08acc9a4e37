"""Guests whose definitions are as long as a template may be: their host is told of nevertheless."""

import asyncio
from pathlib import Path

import msgspec

from snooze.common.domain_template import DEFAULT_LIMITS
from snooze.common.resources import Capacity
from snooze.common.transport.codec import ENCODER
from snooze.common.transport.link import LinkLimits
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmReport, without_long_xml
from snooze.common.wire import Inventory, TakeInventory
from snooze.localcontroller.hypervisor.simulated import SimulatedHypervisor
from tests.unit.agent.test_going_down import Host, Manager, spec

GUESTS = 70


def report(number: int, xml: str) -> VmReport:
    return VmReport(f"{number:032x}", f"v{number}", VmState.RUNNING, Capacity(1.0, 1024.0), xml=xml)


def test_the_longest_go_first_and_only_as_many_as_have_to() -> None:
    reports = [
        report(1, "<a/>"),
        report(2, "x" * 60),
        report(3, "x" * 40),
        report(4, "\u00e9" * 10),
    ]
    assert without_long_xml(reports, 124) == reports
    shown = without_long_xml(reports, 123)
    assert [len(each.xml) for each in shown] == [4, 0, 40, 10]
    assert [each.vm_id for each in shown] == [each.vm_id for each in reports]
    assert without_long_xml([], 0) == []
    most = [report(number, "x" * DEFAULT_LIMITS.max_bytes) for number in range(GUESTS)]
    assert len(ENCODER.encode(without_long_xml(most))) < LinkLimits().max_frame_bytes / 2


async def test_a_host_joins_with_them_and_tells_what_it_has(tmp_path: Path) -> None:
    manager = Manager()
    runner = await manager.start()
    host = Host(manager, tmp_path, {})
    hypervisor = host.daemon.hypervisor
    assert isinstance(hypervisor, SimulatedHypervisor)
    long = "x" * (DEFAULT_LIMITS.max_bytes - 1000)
    await hypervisor.open()
    for number in range(GUESTS):
        wanted = msgspec.structs.replace(spec(), vm_id=f"{number:032x}", name=f"v{number}")
        wanted = msgspec.structs.replace(wanted, demand=Capacity(0.01, 1024.0))
        await hypervisor.start(wanted)
        hypervisor.host.vms[wanted.vm_id].xml = f"<domain>{long}</domain>"
    await host.daemon.start()
    try:
        link = await manager.next_link()
        assert len(manager.hellos[0].vms) == GUESTS
        async with asyncio.timeout(10):
            told = await link.request(TakeInventory(1, "c"), Inventory, 10)
        assert len(told.vms) == GUESTS
        assert 0 < sum(bool(vm.xml) for vm in told.vms) < GUESTS
    finally:
        await host.daemon.close()
        await manager.server.close()
        await runner.cleanup()

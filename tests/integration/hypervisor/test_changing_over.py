"""The instant in which a guest changes over: two libvirts that lose each other in it.

No lock on the disk prevents a second start (``<shareable/>``), as on block devices and network
disks. The witness looks at the disk and knows nothing of hypervisors.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import msgspec
import pytest

from snooze.common.errors import Conflict, ExecutionError, RemoteError, TooBusy
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import MigrationTicket, VmSpec
from snooze.lab.guests import read_beat, wait_for_beat
from snooze.lab.witness import Witness
from snooze.localcontroller.hypervisor.libvirt_driver import LibvirtHypervisor
from snooze.localcontroller.hypervisor.port import MigrationOptions

if TYPE_CHECKING:
    from tests.integration.hypervisor.conftest import Lab

TRIES = 3
"""The instant is missed now and then: then the destination never had the whole guest."""
THROTTLED = MigrationOptions(progress_period_s=0.05, bandwidth_mib_s=1, auto_converge=False)


def shareable(spec: VmSpec) -> VmSpec:
    xml = spec.libvirt_xml.replace("</disk>", "<shareable/></disk>")
    return msgspec.structs.replace(spec, libvirt_xml=xml)


@contextlib.asynccontextmanager
async def moving(
    lab: "Lab", spec: VmSpec, one: LibvirtHypervisor, two: LibvirtHypervisor
) -> AsyncGenerator[tuple[MigrationTicket, "asyncio.Task[None]"]]:
    """A migration that is under way and as slow as can be, until it is let go."""
    ticket = await two.prepare_incoming(await one.offer(spec.vm_id, THROTTLED))
    began = asyncio.Event()
    migration = asyncio.create_task(
        one.migrate_out(spec.vm_id, ticket, THROTTLED, lambda _: began.set())
    )
    while not (began.is_set() or migration.done()):
        await asyncio.to_thread(throttle, lab, spec.name, 1024)
    assert not migration.done()
    await asyncio.to_thread(throttle, lab, spec.name, 1024)
    yield ticket, migration


def throttle(lab: "Lab", name: str, bytes_s: int, times: int = 20) -> None:
    command = f"qemu-monitor-command --hmp {name} 'migrate_set_parameter max-bandwidth {bytes_s}B'"
    lab.one.exec(["virsh", "; ".join([command] * times)])


async def test_a_guest_whose_disk_has_no_lock_waits_for_its_sources_word(lab: "Lab") -> None:
    one, two = await lab.driver(lab.one), await lab.driver(lab.two)
    disk = lab.shared / "disk.raw"
    spec = shareable(lab.make_spec(disk, str(disk)))
    await one.start(spec)
    before = await asyncio.to_thread(wait_for_beat, disk)
    ticket = await two.prepare_incoming(await one.offer(spec.vm_id, MigrationOptions()))
    assert ticket.hold
    await one.migrate_out(spec.vm_id, ticket, MigrationOptions(), lambda _: None)
    [report] = await two.inventory()
    assert (report.state, report.halted) == (VmState.PAUSED, True)
    with pytest.raises(Conflict, match="waits"):
        await two.abort_incoming(spec.vm_id, ticket)
    for _ in range(2):
        assert (await two.finish_incoming(spec.vm_id, ticket)).state is VmState.RUNNING
    after = await asyncio.to_thread(wait_for_beat, disk, before.count + 1)
    assert after.boot == before.boot
    await two.suspend(spec.vm_id)
    paused = await two.finish_incoming(spec.vm_id, ticket)
    assert (paused.state, paused.halted) == (VmState.PAUSED, False), "by a person"


async def test_a_lock_or_a_paused_guest_needs_no_waiting(lab: "Lab") -> None:
    one, two = await lab.driver(lab.one), await lab.driver(lab.two)
    disk = lab.shared / "disk.raw"
    spec = lab.make_spec(disk, str(disk))
    await one.start(spec)
    assert not (await two.prepare_incoming(await one.offer(spec.vm_id, THROTTLED))).hold
    await one.destroy(spec.vm_id)
    spec = shareable(lab.make_spec(disk, str(disk)))
    await one.start(spec)
    await one.suspend(spec.vm_id)
    ticket = await two.prepare_incoming(await one.offer(spec.vm_id, THROTTLED))
    assert not ticket.hold
    await one.migrate_out(spec.vm_id, ticket, MigrationOptions(), lambda _: None)
    assert (await two.finish_incoming(spec.vm_id, ticket)).state is VmState.PAUSED


async def test_a_destination_that_freezes_as_the_guest_changes_over_never_runs_it(
    lab: "Lab",
) -> None:
    """Without the wait libvirt runs it on both: the source at once, the other when it goes on."""
    one, two = await lab.driver(lab.one), await lab.driver(lab.two)
    disk = lab.shared / "disk.raw"
    spec = shareable(lab.make_spec(disk, str(disk)))
    await one.start(spec)
    await asyncio.to_thread(wait_for_beat, disk)
    with Witness({"guest": disk}) as witness:
        for _ in range(TRIES):
            async with moving(lab, spec, one, two) as (ticket, migration):
                frozen = lab.two.libvirtd_pid()
                os.kill(frozen, signal.SIGSTOP)
                try:
                    await asyncio.to_thread(throttle, lab, spec.name, 1 << 30, 1)
                    with pytest.raises(ExecutionError, match="still runs here"):
                        await migration
                finally:
                    os.kill(frozen, signal.SIGCONT)
            assert [r.state for r in await one.inventory()] == [VmState.RUNNING]
            arrived = await settled(two, ticket)
            goes_on = read_beat(disk)
            assert goes_on is not None
            await asyncio.to_thread(wait_for_beat, disk, goes_on.count + 2)
            assert witness.violations() == []
            assert len(witness.boots("guest")) == 1
            assert "held" not in (await one.inventory())[0].xml, "it waits for nothing"
            assert await two.discard(spec.vm_id, spec.generation) is None
            if arrived:
                break


async def settled(two: LibvirtHypervisor, ticket: MigrationTicket) -> bool:
    """Until the destination has made up its mind; whether it has the guest, which is paused."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(RemoteError, TooBusy, Conflict):
                reports = await two.inventory()
                state = reports[0].state if reports else VmState.DESTROYED
                assert state is not VmState.RUNNING, "it runs twice"
                if state in {VmState.PAUSED, VmState.STOPPED}:
                    return state is VmState.PAUSED
                if not reports:
                    await two.abort_incoming(ticket.vm_id, ticket)
                    return False
            await asyncio.sleep(0.2)

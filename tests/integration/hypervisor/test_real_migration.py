"""Live migrations of a running guest between two real hosts, and what can go wrong."""

import asyncio
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from snooze.common.errors import Conflict, ExecutionError
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import (
    MigrationProgress,
    MigrationTicket,
    SlowMigration,
    VmPolicy,
    VmSpec,
)
from snooze.lab.guests import (
    Beat,
    read_beat,
    wait_for_beat,
)
from snooze.localcontroller.hypervisor.libvirt_driver import LibvirtHypervisor
from snooze.localcontroller.hypervisor.port import MigrationMethod, MigrationOptions

if TYPE_CHECKING:
    from tests.integration.hypervisor.conftest import Lab

LOCAL = "/var/lib/libvirt/images"
QUICK = MigrationOptions(progress_period_s=0.05)
SLOW = MigrationOptions(progress_period_s=0.05, bandwidth_mib_s=4)
LARGE_DISK_BYTES = 48 * 1024 * 1024
SMALL_DISK_BYTES = 4 * 1024 * 1024
MIGRATION_PORTS = "49152:49215"


async def test_the_guest_lives_through_a_migration_on_shared_storage(lab: "Lab") -> None:
    one, two = await lab.driver(lab.one), await lab.driver(lab.two)
    disk = lab.shared / "disk.raw"
    spec = lab.make_spec(disk, str(disk))
    await one.start(spec)
    before = await asyncio.to_thread(wait_for_beat, disk)
    watching = asyncio.create_task(_watch(disk))
    ticket = await two.prepare_incoming(await one.offer(spec.vm_id, QUICK))
    assert ticket.live
    assert not ticket.copy_storage, "the proof file shows that the storage is shared"
    await one.migrate_out(spec.vm_id, ticket, QUICK, lambda progress: None)
    await two.finish_incoming(spec.vm_id, ticket)
    after = await asyncio.to_thread(wait_for_beat, disk, before.count + 2)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert after.boot == before.boot, "the same guest, not one started anew"
    assert disk.exists()
    assert not list(lab.shared.glob(".snooze*")), "the proof is taken away again"
    assert [r.state for r in await two.inventory()] == [VmState.RUNNING]
    assert await one.inventory() == []


async def test_the_guest_takes_its_disk_along(lab: "Lab") -> None:
    one, two = await lab.driver(lab.one), await lab.driver(lab.two)
    here, there = lab.local(lab.one) / "disk.raw", lab.local(lab.two) / "disk.raw"
    spec = lab.make_spec(here, "disk.raw")
    await one.start(spec)
    before = await asyncio.to_thread(wait_for_beat, here)
    ticket = await _migrate(one, two, spec, QUICK)
    assert ticket.copy_storage
    arrived = read_beat(there)
    assert arrived is not None
    assert arrived.boot == before.boot
    assert arrived.count >= before.count
    after = await asyncio.to_thread(wait_for_beat, there, arrived.count)
    assert after.boot == before.boot
    assert not here.exists(), "what moved is not left behind to be mistaken for the VM's disk"
    assert not list(there.parent.glob("*.snooze-incoming"))
    back = await _migrate(two, one, spec, QUICK)
    assert back.copy_storage
    assert (await asyncio.to_thread(wait_for_beat, here, after.count)).boot == before.boot


async def test_a_disk_on_a_shared_master_travels_without_it(lab: "Lab") -> None:
    one, two = await lab.driver(lab.one), await lab.driver(lab.two)
    master = lab.shared / "master.raw"
    spec = lab.make_spec(master, "master.raw")
    # with another cache qemu keeps the map of a qcow2 to itself until the guest flushes
    xml = spec.libvirt_xml.replace("cache='none'", "cache='directsync'")
    spec = VmSpec(spec.vm_id, spec.name, spec.demand, libvirt_xml=xml, image="master.raw")
    sealed = master.read_bytes()
    await one.start(spec)
    own = f"disks/snooze-{spec.vm_id}.qcow2"
    before = await _wait_for_beat_in_qcow2(lab.local(lab.one) / own)
    ticket = await _migrate(one, two, spec, QUICK)
    assert ticket.incremental
    after = await _wait_for_beat_in_qcow2(lab.local(lab.two) / own, before.count)
    assert after.boot == before.boot
    assert not (lab.local(lab.one) / own).exists()
    assert master.read_bytes() == sealed, "nobody writes to a master"
    await two.destroy(spec.vm_id)
    assert not (lab.local(lab.two) / own).exists()
    assert master.exists()


async def test_a_dying_destination_leaves_the_guest_at_its_source(lab: "Lab") -> None:
    one, two = await lab.driver(lab.one), await lab.driver(lab.two)
    here = lab.local(lab.one) / "disk.raw"
    spec = lab.make_spec(here, "disk.raw", LARGE_DISK_BYTES)
    await one.start(spec)
    before = await asyncio.to_thread(wait_for_beat, here)
    migration = await _under_way(one, two, spec, SLOW)
    assert [r.state for r in await one.inventory()] == [VmState.MIGRATING]
    assert await two.inventory() == []
    await two.close()
    lab.two.power_off()
    with pytest.raises(ExecutionError, match="still runs here"):
        await migration
    assert [r.state for r in await one.inventory()] == [VmState.RUNNING]
    now = read_beat(here)
    assert now is not None
    after = await asyncio.to_thread(wait_for_beat, here, now.count)
    assert after.boot == before.boot
    assert heard_on(lab, "one").isdisjoint({"stopped", "crashed", "migrated away"})

    lab.two.power_on()
    lab.two.wait_for_libvirtd()
    two = await lab.driver(lab.two)
    assert await two.inventory() == []
    await _migrate(one, two, spec, QUICK)
    there = lab.local(lab.two) / "disk.raw"
    assert (await asyncio.to_thread(wait_for_beat, there, after.count)).boot == before.boot


async def test_a_destination_that_dies_owing_an_answer_does_not_hold_the_guest(lab: "Lab") -> None:
    """All that it was sent is acknowledged: TCP never ends the wait for the answer."""
    one, two = await lab.driver(lab.one), await lab.driver(lab.two)
    here = lab.local(lab.one) / "disk.raw"
    spec = lab.make_spec(here, "disk.raw", SMALL_DISK_BYTES)
    await one.start(spec)
    before = await asyncio.to_thread(wait_for_beat, here)
    options = MigrationOptions(progress_period_s=0.05, bandwidth_mib_s=1, timeout_s=12.0)
    migration = await _under_way(one, two, spec, options)
    lab.two.exec(["pkill", "-STOP", "qemu"]).check_returncode()
    await asyncio.sleep(4.0)  # the whole disk is on its way by then, or with the other kernel
    await two.close()
    lab.two.power_off()
    with pytest.raises(ExecutionError, match="still runs here"):
        await migration
    assert [r.state for r in await one.inventory()] == [VmState.RUNNING]
    now = read_beat(here)
    assert now is not None
    assert (await asyncio.to_thread(wait_for_beat, here, now.count)).boot == before.boot
    lab.two.power_on()
    lab.two.wait_for_libvirtd()
    two = await lab.driver(lab.two)
    await _migrate(one, two, spec, QUICK)


@pytest.mark.parametrize("how", ["time-out", "cancel"])
async def test_an_aborted_migration_changes_nothing(lab: "Lab", how: str) -> None:
    one, two = await lab.driver(lab.one), await lab.driver(lab.two)
    here = lab.local(lab.one) / "disk.raw"
    spec = lab.make_spec(here, "disk.raw", LARGE_DISK_BYTES)
    await one.start(spec)
    before = await asyncio.to_thread(wait_for_beat, here)
    ticket = await two.prepare_incoming(await one.offer(spec.vm_id, SLOW))
    under_way = asyncio.Event()
    limit_s = 1.5 if how == "time-out" else 60.0
    options = MigrationOptions(timeout_s=limit_s, bandwidth_mib_s=4, progress_period_s=0.05)
    migration = asyncio.create_task(
        one.migrate_out(
            spec.vm_id, ticket, options, lambda progress: _set_if_moving(progress, under_way)
        )
    )
    if how == "time-out":
        with pytest.raises(ExecutionError, match="aborted"):
            await migration
    else:
        await asyncio.wait_for(under_way.wait(), 30)
        migration.cancel()
        with pytest.raises(asyncio.CancelledError):
            await migration
    assert [r.state for r in await one.inventory()] == [VmState.RUNNING]
    assert await two.inventory() == []
    await _until_settled(two, spec, ticket)
    assert list(lab.local(lab.two).iterdir()) == [], "the room is given back"
    assert (await asyncio.to_thread(wait_for_beat, here, before.count)).boot == before.boot


@pytest.mark.parametrize(
    "slow", [SlowMigration.POSTCOPY, SlowMigration.PAUSE, SlowMigration.GIVE_UP]
)
async def test_a_migration_that_does_not_end_is_treated_as_its_vm_wishes(
    lab: "Lab", slow: SlowMigration
) -> None:
    """The stream is a trickle until the policy has acted, or the time is up."""
    one, two = await lab.driver(lab.one), await lab.driver(lab.two)
    disk = lab.shared / "disk.raw"
    spec = lab.make_spec(disk, str(disk))
    await one.start(spec)
    before = await asyncio.to_thread(wait_for_beat, disk)
    host = MigrationOptions(timeout_s=10.0, progress_period_s=0.1)
    options = host.for_vm(VmPolicy(slow_migration=slow))
    ticket = await two.prepare_incoming(await one.offer(spec.vm_id, options))
    acted = asyncio.Event()

    def on_progress(progress: MigrationProgress) -> None:
        if progress.note:
            acted.set()

    _slow_down(lab)
    migration = asyncio.create_task(one.migrate_out(spec.vm_id, ticket, options, on_progress))
    if slow is SlowMigration.GIVE_UP:
        with pytest.raises(ExecutionError, match="still runs here"):
            await migration
        assert not acted.is_set()
        lab.one.heal()
        assert [r.state for r in await one.inventory()] == [VmState.RUNNING]
    else:
        await asyncio.wait_for(acted.wait(), 30)
        assert not migration.done()
        lab.one.heal()
        await migration
        assert (await two.finish_incoming(spec.vm_id, ticket)).state is VmState.RUNNING
        assert await one.inventory() == []
    now = read_beat(disk)
    assert now is not None
    after = await asyncio.to_thread(wait_for_beat, disk, now.count)
    assert after.boot == before.boot


def _slow_down(lab: "Lab") -> None:
    """Let next to no memory of a guest leave the first host, until it is healed.

    libvirt takes MiB/s, and this guest's memory is gone before one can say less to its qemu. What
    is dropped comes again, so a trickle has to get through for the connections to be kept.
    """
    rule = (
        "iptables --wait --append OUTPUT --out-interface br0 --protocol tcp"
        f" --match multiport --dports {MIGRATION_PORTS} --match hashlimit --hashlimit-name trickle"
        " --hashlimit-above 4kb/s --hashlimit-burst 4kb --jump DROP"
    )
    lab.one.exec(rule.split()).check_returncode()


async def test_a_file_in_the_way_is_never_overwritten(lab: "Lab") -> None:
    one, two = await lab.driver(lab.one), await lab.driver(lab.two)
    spec = lab.make_spec(lab.local(lab.one) / "disk.raw", "disk.raw")
    precious = lab.local(lab.two) / "disk.raw"
    precious.write_text("somebody's only copy")
    await one.start(spec)
    with pytest.raises(Conflict, match=r"disk\.raw already exists"):
        await two.prepare_incoming(await one.offer(spec.vm_id, QUICK))
    assert precious.read_text() == "somebody's only copy"


async def test_shared_disks_are_not_copied_onto_themselves(lab: "Lab") -> None:
    one, two = await lab.driver(lab.one), await lab.driver(lab.two)
    disk = lab.shared / "disk.raw"
    spec = lab.make_spec(disk, str(disk))
    await one.start(spec)
    options = MigrationOptions(MigrationMethod.NO_SHARED_FULL)
    with pytest.raises(Conflict, match="shared"):
        await two.prepare_incoming(await one.offer(spec.vm_id, options))


async def test_a_host_does_not_migrate_to_itself(lab: "Lab") -> None:
    one = await lab.driver(lab.one)
    disk = lab.shared / "disk.raw"
    spec = lab.make_spec(disk, str(disk))
    await one.start(spec)
    with pytest.raises(Conflict, match="already on"):
        await one.prepare_incoming(await one.offer(spec.vm_id, QUICK))


def heard_on(lab: "Lab", host: str) -> set[str]:
    return {change.kind.value for change in lab.ears[host].changes}


def _set_if_moving(progress: MigrationProgress, event: asyncio.Event) -> None:
    if progress.processed_bytes > 0:
        event.set()


async def _migrate(
    source: LibvirtHypervisor, target: LibvirtHypervisor, spec: VmSpec, options: MigrationOptions
) -> MigrationTicket:
    ticket = await target.prepare_incoming(await source.offer(spec.vm_id, options))
    await source.migrate_out(spec.vm_id, ticket, options, lambda progress: None)
    assert (await target.finish_incoming(spec.vm_id, ticket)).state is VmState.RUNNING
    return ticket


async def _under_way(
    source: LibvirtHypervisor, target: LibvirtHypervisor, spec: VmSpec, options: MigrationOptions
) -> asyncio.Task[None]:
    """Begin a migration, and return when something has moved."""
    ticket = await target.prepare_incoming(await source.offer(spec.vm_id, options))
    moves = asyncio.Event()
    migration = asyncio.create_task(
        source.migrate_out(
            spec.vm_id, ticket, options, lambda progress: _set_if_moving(progress, moves)
        )
    )
    await asyncio.wait_for(moves.wait(), 30)
    return migration


async def _watch(disk: Path) -> None:
    """The pulse goes on: never back, never another boot."""
    last = read_beat(disk)
    while True:
        now = read_beat(disk)
        if now is not None and last is not None:
            assert now.boot == last.boot
            assert now.count - last.count in (0, 1)
        last = now
        await asyncio.sleep(0.02)


async def _until_settled(target: LibvirtHypervisor, spec: VmSpec, ticket: MigrationTicket) -> None:
    """Give the room back, once the destination has noticed that nobody comes."""
    async with asyncio.timeout(30):
        while True:
            try:
                await target.abort_incoming(spec.vm_id, ticket)
            except Conflict:
                await asyncio.sleep(0.1)
            else:
                return


async def _wait_for_beat_in_qcow2(disk: Path, after: int = 0) -> Beat:
    """As ``wait_for_beat``, for a format in which sectors lie anywhere."""
    raw = disk.with_suffix(".look")
    command = ["qemu-img", "dd", "-U", "-O", "raw", "bs=512", "count=2", f"if={disk}", f"of={raw}"]
    async with asyncio.timeout(30):
        while True:
            await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
            beat = read_beat(raw)
            raw.unlink()
            if beat is not None and beat.count > after:
                return beat
            await asyncio.sleep(0.1)

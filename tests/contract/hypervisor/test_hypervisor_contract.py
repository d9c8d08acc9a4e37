"""What the port promises, asked of every driver."""

import asyncio
import uuid
from typing import TYPE_CHECKING

import msgspec
import pytest

from snooze.common.errors import (
    Conflict,
    ExecutionError,
    InvalidRequest,
    NotFound,
    RemoteError,
)
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import MigrationProgress, VmReport, VmSpec
from snooze.localcontroller.hypervisor.port import (
    ChangeKind,
    Feature,
    Hypervisor,
    MigrationOptions,
)

if TYPE_CHECKING:
    from tests.contract.hypervisor.conftest import Bench

QUICK = MigrationOptions(progress_period_s=0.05)


async def test_describes_itself_and_its_capacity(bench: "Bench") -> None:
    description = await bench.first.describe()
    assert description.features == bench.features
    assert description.guests
    assert description.guests[0].domain_types
    assert description.hostname
    capacity = await bench.first.capacity()
    assert capacity.cpu_cores >= 1
    assert capacity.memory_kib > 1024 * 1024


async def test_a_started_vm_is_reported_as_asked_for(bench: "Bench") -> None:
    spec = bench.make_spec()
    report = await bench.first.start(spec)
    assert report.vm_id == spec.vm_id
    assert report.name == spec.name
    assert report.state is VmState.RUNNING
    assert report.demand == spec.demand
    assert report.managed
    assert report.ip_address == spec.ip_address
    assert report.mac_address == spec.mac_address
    assert spec.name in report.xml
    assert report in await bench.first.inventory()
    heard = await bench.ear.wait_for(spec.vm_id, ChangeKind.STARTED)
    assert heard.managed
    assert heard.state is VmState.RUNNING


async def test_a_start_given_twice_starts_once(bench: "Bench") -> None:
    spec = bench.make_spec()
    both = await asyncio.gather(bench.first.start(spec), bench.first.start(spec))
    assert both[0].vm_id == both[1].vm_id
    assert (await bench.first.start(spec)).state is VmState.RUNNING
    assert [r.name for r in await bench.first.inventory()].count(spec.name) == 1


async def test_a_name_belongs_to_one_vm(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    other = bench.make_spec(name=spec.name)
    with pytest.raises(Conflict, match=spec.name):
        await bench.first.start(other)
    assert await bench.state(other.vm_id) is None
    assert await bench.state(spec.vm_id) is VmState.RUNNING


async def test_the_higher_generation_is_right(bench: "Bench") -> None:
    spec = bench.make_spec(generation=3)
    await bench.first.start(spec)
    older, newer = (bench.make_spec(spec.name, g, spec.vm_id) for g in (2, 4))
    with pytest.raises(Conflict, match="generation"):
        await bench.first.start(older)
    with pytest.raises(Conflict, match="generation"):
        await bench.first.start(newer)
    await _switch_off(bench, spec)
    with pytest.raises(Conflict, match="generation"):
        await bench.first.start(older)
    report = await bench.first.start(newer)
    assert report.generation == 4
    assert report.state is VmState.RUNNING


async def test_a_half_done_start_is_completed(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    await _switch_off(bench, spec)  # defined, tagged, and off: as if we had died before starting
    assert (await bench.first.start(spec)).state is VmState.RUNNING


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<domain", "<nonsense"),
        ("</devices>", "<hostdev mode='subsystem' type='pci'/></devices>"),
        ("<devices>", "<devices><disk type='file'><source file='/etc/shadow'/></disk>"),
        ("<domain", "<!DOCTYPE d [<!ENTITY e 'x'>]><domain"),
    ],
)
async def test_a_template_that_may_not_run_leaves_nothing(
    bench: "Bench", old: str, new: str
) -> None:
    spec = bench.make_spec()
    bad = msgspec.structs.replace(spec, libvirt_xml=spec.libvirt_xml.replace(old, new, 1))
    with pytest.raises(InvalidRequest):
        await bench.first.start(bad)
    assert await bench.state(spec.vm_id) is None
    assert (await bench.first.start(spec)).state is VmState.RUNNING


async def test_an_impossible_specification_is_refused(bench: "Bench") -> None:
    spec = bench.make_spec()
    for bad in (
        msgspec.structs.replace(spec, vm_id="../../etc"),
        msgspec.structs.replace(spec, name="a/b"),
        msgspec.structs.replace(spec, demand=msgspec.structs.replace(spec.demand, memory_kib=-1)),
    ):
        with pytest.raises(InvalidRequest):
            await bench.first.start(bad)


async def test_orders_on_an_unknown_vm_say_so(bench: "Bench") -> None:
    nobody, host = uuid.uuid4().hex, bench.first
    for order in (host.start_again, host.suspend, host.resume, host.shutdown, host.reboot):
        with pytest.raises(NotFound):
            await order(nobody)
    with pytest.raises(NotFound):
        await host.resize(nobody, Capacity(1.0, 1024.0))
    with pytest.raises(NotFound):
        await host.offer(nobody, QUICK)
    await host.destroy(nobody)


async def test_suspend_and_resume_can_be_repeated(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    for _ in range(2):
        assert (await bench.first.suspend(spec.vm_id)).state is VmState.PAUSED
    assert await bench.state(spec.vm_id) is VmState.PAUSED
    for _ in range(2):
        assert (await bench.first.resume(spec.vm_id)).state is VmState.RUNNING
    await bench.ear.wait_for(spec.vm_id, ChangeKind.RESUMED)
    kinds = bench.ear.kinds(spec.vm_id)
    assert kinds.count(ChangeKind.PAUSED) == 1
    assert ChangeKind.RESUMED in kinds[kinds.index(ChangeKind.PAUSED) :]


async def test_shutdown_asks_the_guest(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    await bench.first.shutdown(spec.vm_id)
    if bench.pull_plug is None:
        heard = await bench.ear.wait_for(spec.vm_id, ChangeKind.STOPPED)
        assert heard.state is VmState.STOPPED
        assert await bench.state(spec.vm_id) is VmState.STOPPED
        assert (await bench.first.shutdown(spec.vm_id)).state is VmState.STOPPED
    else:
        assert await bench.state(spec.vm_id) in (VmState.RUNNING, VmState.STOPPING)


async def test_a_stopped_vm_starts_again(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    await _switch_off(bench, spec)
    for order in (bench.first.suspend, bench.first.resume, bench.first.reboot):
        with pytest.raises(Conflict):
            await order(spec.vm_id)
    await bench.first.start_again(spec.vm_id)
    report = await bench.first.start_again(spec.vm_id)
    assert report.state is VmState.RUNNING
    assert report.demand == spec.demand


async def test_a_rebooted_vm_runs(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    assert (await bench.first.reboot(spec.vm_id)).state is VmState.RUNNING
    assert await bench.state(spec.vm_id) is VmState.RUNNING


async def test_a_destroyed_vm_is_gone_and_its_name_free(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    for _ in range(2):
        await bench.first.destroy(spec.vm_id)
    assert await bench.state(spec.vm_id) is None
    await bench.ear.wait_for(spec.vm_id, ChangeKind.GONE)
    assert bench.ear.kinds(spec.vm_id)[-2:] == [ChangeKind.STOPPED, ChangeKind.GONE]
    again = bench.make_spec(name=spec.name)
    assert (await bench.first.start(again)).state is VmState.RUNNING


async def test_resize_changes_what_a_vm_has_and_holds(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    less, more = spec.memory_kib // 2, spec.vcpus * 2
    size = Capacity(float(more), float(less), 7.0, 8.0)
    await bench.first.resize(spec.vm_id, size)
    report = await bench.first.resize(spec.vm_id, size)
    assert report.demand == size
    for vcpus, memory_kib in ((more + 1, less), (more, spec.memory_kib * 2), (0, less), (1, 0)):
        with pytest.raises(InvalidRequest):
            await bench.first.resize(spec.vm_id, Capacity(float(vcpus), float(memory_kib)))
    [present] = [r for r in await bench.first.inventory() if r.vm_id == spec.vm_id]
    assert present.demand == report.demand


async def test_usage_is_in_cores_and_kib(bench: "Bench") -> None:
    spec, paused = bench.make_spec(), bench.make_spec()
    await bench.first.start(spec)
    await bench.first.start(paused)
    await bench.first.suspend(paused.vm_id)
    await bench.first.usage()
    await asyncio.sleep(0.2)  # rates need time to pass
    measured = await bench.first.usage()
    assert all(sample.rated for sample in measured.vms)
    used = {sample.vm_id: sample.used for sample in measured.vms}
    assert 0 <= used[spec.vm_id].cpu_cores <= spec.vcpus + 1
    assert used[paused.vm_id].cpu_cores < 0.2
    assert 1024 <= used[spec.vm_id].memory_kib <= 1024 * 1024
    await bench.first.destroy(paused.vm_id)
    assert paused.vm_id not in {sample.vm_id for sample in (await bench.first.usage()).vms}


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.PAUSED])
async def test_a_vm_migrates_step_by_step_each_repeatable(bench: "Bench", state: VmState) -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    if state is VmState.PAUSED:
        await bench.first.suspend(spec.vm_id)
    offer = await bench.first.offer(spec.vm_id, QUICK)
    await bench.second.prepare_incoming(offer)
    ticket = await bench.second.prepare_incoming(offer)
    assert ticket.live is bench.has(Feature.LIVE_MIGRATION)
    assert await _find(bench.second, spec) is None, "it has not arrived yet"
    assert await bench.state(spec.vm_id) is state
    seen: list[MigrationProgress] = []
    for _ in range(2):
        await bench.first.migrate_out(spec.vm_id, ticket, QUICK, seen.append)
    assert await bench.state(spec.vm_id) is None
    await bench.second.finish_incoming(spec.vm_id, ticket)
    report = await bench.second.finish_incoming(spec.vm_id, ticket)
    assert report.state is state
    assert report.demand == spec.demand
    assert report.generation == spec.generation
    assert await _find(bench.second, spec) == report
    assert seen
    arrival = await bench.second.arrival(spec.vm_id)
    if bench.has(Feature.LIVE_MIGRATION):
        assert arrival is not None
        # of a guest that was paused already none is lost, or less than is counted
        assert arrival.downtime_ms > 0 or state is VmState.PAUSED
    else:
        assert "no migration" in seen[0].note
    await bench.ear.wait_for(spec.vm_id, ChangeKind.MIGRATED_AWAY)
    assert ChangeKind.STOPPED not in bench.ear.kinds(spec.vm_id)
    if state is VmState.RUNNING:
        await bench.second_ear.wait_for(spec.vm_id, ChangeKind.STARTED)
    await bench.second.abort_incoming(spec.vm_id, ticket)
    assert await _find(bench.second, spec) == report, "an arrived guest is not touched"


async def test_a_vm_migrates_there_and_back(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    for source, target in ((bench.first, bench.second), (bench.second, bench.first)):
        ticket = await target.prepare_incoming(await source.offer(spec.vm_id, QUICK))
        await source.migrate_out(spec.vm_id, ticket, QUICK, lambda progress: None)
        assert (await target.finish_incoming(spec.vm_id, ticket)).state is VmState.RUNNING
    assert await bench.state(spec.vm_id) is VmState.RUNNING


async def test_room_that_is_not_needed_is_given_back(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    ticket = await bench.second.prepare_incoming(await bench.first.offer(spec.vm_id, QUICK))
    for _ in range(2):
        await bench.second.abort_incoming(spec.vm_id, ticket)
    assert await bench.state(spec.vm_id) is VmState.RUNNING
    with pytest.raises(ExecutionError, match="not arrived"):
        await bench.second.finish_incoming(spec.vm_id, ticket)
    other = bench.make_spec(name=spec.name)
    if not bench.has(Feature.REAL_DISKS):  # there the name also names the disk, which is in use
        assert (await bench.second.start(other)).state is VmState.RUNNING


async def test_no_room_where_the_name_is_taken(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.second.start(bench.make_spec(name=spec.name))
    with_own_disk = bench.make_spec()
    await bench.first.start(with_own_disk)
    offer = await bench.first.offer(with_own_disk.vm_id, QUICK)
    taken = msgspec.structs.replace(
        offer, report=msgspec.structs.replace(offer.report, name=spec.name)
    )
    with pytest.raises(Conflict, match=spec.name):
        await bench.second.prepare_incoming(taken)
    assert await bench.state(with_own_disk.vm_id) is VmState.RUNNING


async def test_a_foreign_domain_is_shown_and_not_touched(bench: "Bench") -> None:
    stranger = await bench.add_unmanaged()
    [report] = [r for r in await bench.first.inventory() if r.vm_id == stranger]
    assert not report.managed
    assert report.demand.memory_kib > 0
    host = bench.first
    for order in (host.suspend, host.resume, host.shutdown, host.reboot, host.start_again):
        with pytest.raises(Conflict, match="not managed"):
            await order(stranger)
    with pytest.raises(Conflict, match="not managed"):
        await host.destroy(stranger)
    assert report in await bench.first.inventory()


async def test_many_start_at_once(bench: "Bench") -> None:
    specs = [bench.make_spec() for _ in range(bench.many)]
    reports = await asyncio.gather(*(bench.first.start(spec) for spec in specs))
    assert {r.vm_id for r in reports} == {s.vm_id for s in specs}
    running = {r.vm_id for r in await bench.first.inventory() if r.state is VmState.RUNNING}
    assert running >= {s.vm_id for s in specs}


async def test_a_new_driver_finds_what_runs(bench: "Bench") -> None:
    spec = bench.make_spec()
    report = await bench.first.start(spec)
    again = bench.make_again()
    await again.open()
    try:
        found = await _find(again, spec)
        if bench.has(Feature.SHARED_STATE):
            assert found == report
            assert (await again.start(spec)) == report
        else:
            assert found is None
    finally:
        await again.close()
    assert await bench.state(spec.vm_id) is VmState.RUNNING, "closing a driver leaves VMs running"


async def test_a_closed_driver_refuses_and_opens_again(bench: "Bench") -> None:
    await bench.first.close()
    await bench.first.close()
    with pytest.raises(RemoteError):
        await bench.first.inventory()
    with pytest.raises(RemoteError):
        await bench.first.start(bench.make_spec())
    await bench.first.open()
    assert (await bench.first.start(bench.make_spec())).state is VmState.RUNNING


async def _switch_off(bench: "Bench", spec: VmSpec) -> None:
    """Off and still defined: by the guest's own will, or by pulling its plug."""
    if bench.pull_plug is None:
        await bench.first.shutdown(spec.vm_id)
    else:
        await bench.pull_plug(spec.name)
    assert await bench.state(spec.vm_id) is VmState.STOPPED


async def _find(host: Hypervisor, spec: VmSpec) -> VmReport | None:
    for report in await host.inventory():
        if report.vm_id == spec.vm_id:
            return report
    return None

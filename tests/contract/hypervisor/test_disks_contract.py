"""Disks that lie without their VM, asked of every driver that makes disks."""

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from snooze.common.errors import Conflict
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import LooseDisk, VmSpec

if TYPE_CHECKING:
    from tests.contract.hypervisor.conftest import Bench


def spec_with_disk(bench: "Bench", generation: int = 1) -> VmSpec:
    if not bench.makes_disks:
        pytest.skip("this driver makes no disks")
    spec = bench.make_spec(generation=generation)
    return msgspec.structs.replace(spec, image=bench.image)


async def loose(bench: "Bench", spec: VmSpec) -> LooseDisk | None:
    found = [disk for disk in await bench.first.loose_disks() if disk.vm_id == spec.vm_id]
    return found[0] if found else None


async def test_a_disk_is_loose_once_its_domain_is_gone_and_no_sooner(bench: "Bench") -> None:
    spec = spec_with_disk(bench, generation=3)
    await bench.first.start(spec)
    assert await loose(bench, spec) is None
    await bench.first.power_off(spec.vm_id)
    assert await loose(bench, spec) is None, "it is defined"
    await bench.first.discard(spec.vm_id, 3)
    disk = await loose(bench, spec)
    assert disk is not None
    assert (disk.generation, disk.used) == (3, True)
    with pytest.raises(Conflict):
        await bench.first.drop_disk(disk, 3600.0)  # it was written a moment ago
    stale = msgspec.structs.replace(disk, generation=2)
    with pytest.raises(Conflict):
        await bench.first.drop_disk(stale, 0.0)
    assert await loose(bench, spec) == disk, "what is refused changes nothing"
    await bench.first.drop_disk(disk, 0.0)
    assert await loose(bench, spec) is None
    await bench.first.drop_disk(disk, 0.0)  # already gone


async def test_a_vm_that_starts_again_keeps_its_disk(bench: "Bench") -> None:
    spec = spec_with_disk(bench)
    await bench.first.start(spec)
    await bench.first.discard(spec.vm_id, 1)
    disk = await loose(bench, spec)
    assert disk is not None
    again = msgspec.structs.replace(spec, generation=2)
    assert (await bench.first.start(again)).state is VmState.RUNNING
    assert await loose(bench, spec) is None
    with pytest.raises(Conflict):
        await bench.first.drop_disk(disk, 0.0)
    await bench.first.power_off(spec.vm_id)
    assert (await bench.first.start_again(spec.vm_id)).state is VmState.RUNNING
    await bench.first.destroy(spec.vm_id)
    assert await loose(bench, spec) is None, "destroying removes it"


async def test_what_a_start_that_died_left_goes_by_itself(bench: "Bench") -> None:
    """Between making the disk and defining the domain."""
    spec = spec_with_disk(bench)
    await bench.leave_unborn_disk(spec)
    assert await loose(bench, spec) is None
    assert not bench.has_disk(spec.vm_id)
    await bench.first.start(spec)
    await asyncio.sleep(0)
    assert bench.has_disk(spec.vm_id)

"""Stale copies and fencing, asked of every driver: what the port promises of both."""

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from snooze.common.errors import NotFound
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import FailureAction, VmPolicy
from snooze.localcontroller.hypervisor.port import ChangeKind

if TYPE_CHECKING:
    from tests.contract.hypervisor.conftest import Bench


async def test_a_policy_is_kept_with_the_domain(bench: "Bench") -> None:
    policy = VmPolicy(FailureAction.ASK, priority=7, start_order=-2, movable=False)
    spec = msgspec.structs.replace(bench.make_spec(), policy=policy)
    assert (await bench.first.start(spec)).policy == policy
    (found,) = [r for r in await bench.first.inventory() if r.vm_id == spec.vm_id]
    assert found.policy == policy


async def test_a_vm_that_is_switched_off_stays_defined(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    report = await bench.first.power_off(spec.vm_id)
    assert report.state is VmState.STOPPED
    assert not report.interrupted, "it was asked for"
    assert (await bench.first.power_off(spec.vm_id)).state is VmState.STOPPED
    await bench.ear.wait_for(spec.vm_id, ChangeKind.STOPPED)
    assert (await bench.first.start_again(spec.vm_id)).state is VmState.RUNNING


async def test_a_paused_vm_is_switched_off_too(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    await bench.first.suspend(spec.vm_id)
    assert (await bench.first.power_off(spec.vm_id)).state is VmState.STOPPED


async def test_an_unknown_vm_cannot_be_switched_off(bench: "Bench") -> None:
    with pytest.raises(NotFound):
        await bench.first.power_off("0" * 32)


async def test_a_stale_copy_is_discarded_even_if_it_runs(bench: "Bench") -> None:
    spec = bench.make_spec(generation=3)
    await bench.first.start(spec)
    left = await bench.first.discard(spec.vm_id, 2)
    assert left is not None
    assert (left.generation, left.state) == (3, VmState.RUNNING), "a higher one is left alone"
    assert await bench.first.discard(spec.vm_id, 3) is None
    assert await bench.state(spec.vm_id) is None
    assert await bench.first.discard(spec.vm_id, 3) is None, "it is gone already"


async def test_a_copy_that_runs_is_left_if_only_one_that_is_off_may_go(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    left = await bench.first.discard(spec.vm_id, spec.generation, only_off=True)
    assert left is not None
    assert left.state is VmState.RUNNING
    await bench.first.power_off(spec.vm_id)
    assert await bench.first.discard(spec.vm_id, spec.generation, only_off=True) is None
    assert await bench.state(spec.vm_id) is None


async def test_a_discarded_vm_can_be_started_anew(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    await bench.first.discard(spec.vm_id, spec.generation)
    again = msgspec.structs.replace(spec, generation=spec.generation + 1)
    report = await bench.first.start(again)
    assert (report.state, report.generation) == (VmState.RUNNING, 2), "its disks were left"


async def test_discarding_twice_at_once_is_one(bench: "Bench") -> None:
    spec = bench.make_spec()
    await bench.first.start(spec)
    both = await asyncio.gather(
        bench.first.discard(spec.vm_id, 1), bench.first.discard(spec.vm_id, 1)
    )
    assert list(both) == [None, None]

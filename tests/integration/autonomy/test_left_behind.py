"""What those leave behind that die half-way, through real daemons: disks, and guests that wait."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from snooze.client.allinone import Options, cluster
from snooze.client.async_sdk import AsyncSnooze
from snooze.common.api import ClusterRequest, VmRequest
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import LooseDisk
from snooze.groupmanager.leader import orphan_disks_core
from snooze.localcontroller import agent

PATIENCE_S = 60.0


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await holds():  # noqa: ASYNC110 - it is asked over HTTP
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"{what}: not within {PATIENCE_S:g} s")


async def test_a_disk_goes_when_its_vm_is_proven_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "RECONCILE_INTERVAL_S", 0.5)
    monkeypatch.setattr(orphan_disks_core, "LOOK_S", 0.5)
    options = Options(
        managers=2,
        hosts=2,
        hypervisor="simulated",
        port=0,
        overrides={"recovery": {"orphan_disk_s": 1.0}},
    )
    async with cluster(options) as running, AsyncSnooze(running.url) as client:
        vm = VmRequest("web", 1, 65536, image="master.raw", host="host1")
        await client.wait(await client.submit(ClusterRequest([vm])), check=True)
        vm_id = (await client.vm("web")).vm_id
        left = running.world.hosts["host1"].disks[vm_id]
        await client.wait(await client.migrate("web", "host2"), check=True)
        assert vm_id in running.world.hosts["host2"].disks, "it has moved"
        # what a source leaves that died before it removed what it had copied
        disks = running.world.hosts["host1"].disks
        disks[vm_id] = LooseDisk(vm_id, 1, left.host_id, 0, 8 << 20)
        stranger = "f" * 32
        disks[stranger] = LooseDisk(stranger, 1, left.host_id, 0, 8 << 20)

        async def shown() -> dict[str, str]:
            view = await client.host("host1")
            return {disk.vm_id: disk.verdict for disk in view.loose_disks}

        async def all_shown() -> bool:
            return await shown() == {
                vm_id: "its VM may use it",
                stranger: "nothing is known of its VM",
            }

        await until(all_shown, "both are shown")
        await asyncio.sleep(1.5)
        assert vm_id in disks, "a look of the leader later"
        await client.wait(await client.destroy("web"), check=True)

        async def gone() -> bool:
            return vm_id not in disks

        await until(gone, "it is removed")
        assert stranger in disks

        async def told() -> bool:
            events = await client.events()
            kinds = {(event.kind, event.subject) for event in events}
            wanted = {("disk.orphan", stranger), ("disk.removed", vm_id)}
            return wanted <= kinds and await shown() == {stranger: "nothing is known of its VM"}

        await until(told, "people are told")


async def test_a_guest_that_a_migration_left_paused_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its manager sees to no migration of it: that one has died. One that a person paused stays."""
    monkeypatch.setattr(agent, "RECONCILE_INTERVAL_S", 0.5)
    options = Options(managers=1, hosts=2, hypervisor="simulated", port=0)
    async with cluster(options) as running, AsyncSnooze(running.url) as client:
        vms = [
            VmRequest(name, 1, 65536, image="master.raw", host="host1")
            for name in ("left", "wished")
        ]
        await client.wait(await client.submit(ClusterRequest(vms)), check=True)
        await client.wait(await client.suspend("wished"), check=True)
        ids = {vm.name: vm.vm_id for vm in await client.vms()}
        guest = running.world.hosts["host1"].vms[ids["left"]]
        guest.state, guest.halted = VmState.PAUSED, True

        async def seen() -> bool:
            return (await client.vm("left")).state is VmState.PAUSED

        async def goes_on() -> bool:
            return (await client.vm("left")).state is VmState.RUNNING

        await until(seen, "it is seen")
        await until(goes_on, "it goes on")
        assert guest.state is VmState.RUNNING
        assert (await client.vm("wished")).state is VmState.PAUSED

"""A client that has a leader die under it, and notices only that it took a little longer."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from snooze.client.allinone import AllInOne, Options, cluster
from snooze.client.async_sdk import AsyncSnooze
from snooze.common.api import TaskState, VmRequest

TIMEOUT_S = 60
DOMAIN = (
    "<domain type='kvm'><name>{name}</name><memory unit='KiB'>131072</memory><vcpu>1</vcpu>"
    "<os><type arch='x86_64'>hvm</type></os></domain>"
)


@pytest.fixture
async def running() -> AsyncIterator[AllInOne]:
    async with cluster(Options(managers=3, hosts=2, hypervisor="simulated", port=0)) as up:
        yield up


async def test_events_and_orders_outlive_a_leader(running: AllInOne) -> None:
    async with AsyncSnooze(running.url) as client, asyncio.timeout(TIMEOUT_S):
        before = (await client.cluster()).epoch
        known = await client.all_events()
        events = client.follow(after=known[-1].seq)
        await client.wait(await client.submit([VmRequest(libvirt_xml=DOMAIN.format(name="a"))]))
        assert " a " in (await anext(events)).message

        await running.kill_leader()
        task = await client.submit([VmRequest(libvirt_xml=DOMAIN.format(name="b"))])
        assert (await client.wait(task)).state is TaskState.DONE
        assert (await client.cluster()).epoch > before

        # The stream goes on with the new leader's own events, from its first.
        kinds: list[str] = []
        while "leader.elected" not in kinds:
            kinds.append((await anext(events)).kind)
        while " b " not in (await anext(events)).message:
            pass
        await events.aclose()

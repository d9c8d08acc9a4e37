"""The HTTP calls of a local controller: who reads there takes no news from the manager."""

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from snooze.common.api import HealthView
from snooze.common.snooze_api import NetworkAddress
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmSpec
from snooze.localcontroller.http_api import HostApi
from snooze.localcontroller.hypervisor.simulated_world import SimulatedVm
from tests.unit.agent.rig import SMALL, A, B, Rig

Client = TestClient[web.Request, web.Application]


def served(rig: Rig) -> Client:
    """The calls of the rig's host, on loopback."""
    where = ("host-id", NetworkAddress("127.0.0.1", 1))
    api = HostApi(rig.orders, lambda: HealthView("ok", "host", "id"), lambda: where, lambda: None)
    return TestClient(TestServer(api.application()))


async def listed(client: Client) -> list[str]:
    """What a client of 2013 sees, by status."""
    answer = await client.post("/localcontroller?getVirtualMachines", data="5")
    assert answer.status == 200
    body = await answer.json()
    return sorted(each["status"] for each in body)


async def test_who_lists_the_vms_takes_no_news_from_the_manager(rig: Rig) -> None:
    """A change whose event was missed, seen first by a client over HTTP."""
    await rig.start(A)
    await rig.start(B)
    rig.hypervisor.host.vms[A].state = VmState.PAUSED
    rig.hypervisor.host.drop(B)
    rig.hypervisor.host.put(SimulatedVm(VmSpec("x", "x", SMALL), VmState.RUNNING, "<domain/>", 0.0))
    async with served(rig) as client:
        assert await listed(client) == ["PAUSED", "RUNNING"]
    await rig.orders.reconcile()
    assert sorted(rig.changes) == [
        (A, VmState.PAUSED, False),
        (B, VmState.RUNNING, True),
        ("x", VmState.RUNNING, False),
    ]

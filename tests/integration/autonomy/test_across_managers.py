"""Half-empty hosts of several managers: packed by the leader, as far as the HA reserve lets."""

from collections.abc import AsyncIterator

import pytest_asyncio

from snooze.client.allinone import Options, cluster
from snooze.client.async_sdk import AsyncSnooze
from tests.integration.autonomy.test_load_moves import Bench

QUICK: dict[str, object] = {
    "monitoring": {"interval_s": 0.5},
    "autonomy": {"interval_s": 0.5, "cool_down_s": 1.0},
    "relocation": {"idle_s": 2.0, "forecast_s": 5.0, "samples": 4, "only_sleepable": False},
}


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    """Four managers, one of which leads; each of the others has one host."""
    options = Options(
        managers=4,
        hosts=3,
        hypervisor="simulated",
        port=0,
        overrides=QUICK,
        host_overrides={"monitoring": {"interval_s": 0.5}},
    )
    async with cluster(options) as running, AsyncSnooze(running.url) as client:
        yield Bench(running, client)


async def test_the_last_half_empty_host_of_each_manager(bench: Bench) -> None:
    bench.loads.update(a=0.2, b=0.1, c=0.4, d=0.4)
    await bench.guests("host1", a=1, b=1)
    await bench.guests("host2", c=2)
    await bench.guests("host3", d=4)

    async def spread() -> bool:
        return len({host.manager_id for host in await bench.client.hosts()}) == 3

    await bench.until(spread, "each manager has a host")

    async def emptied() -> bool:
        return any(view.state == "done" for view in await bench.decisions(kind="underload"))

    await bench.until(emptied, "the host that is used least is emptied")
    [view] = await bench.decisions(kind="underload")
    assert "host1 is hardly used" in view.reason
    assert view.outcome == "2 moved; host1 is empty"
    assert await bench.where() == {"a": "host3", "b": "host3", "c": "host2", "d": "host3"}

"""Half-empty hosts of several managers: packed by the leader, and every host says why it stays."""

import json
from collections.abc import AsyncIterator

import pytest_asyncio

from tests.integration.autonomy.test_load_moves import Bench, bench_of, command

QUICK: dict[str, object] = {
    "monitoring": {"interval_s": 0.5},
    "autonomy": {"interval_s": 0.5, "cool_down_s": 1.0},
    "relocation": {"idle_s": 2.0, "forecast_s": 5.0, "samples": 4, "only_sleepable": False},
}


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    """Four managers, one of which leads; each of the others has one host."""
    async with bench_of(4, 3, QUICK) as made:
        yield made


async def test_the_last_half_empty_host_of_each_manager(bench: Bench) -> None:
    bench.loads.update(a=0.2, b=0.1, c=0.4, d=0.4)
    await bench.guests("host1", a=1, b=1)
    await bench.guests("host2", c=2)
    await bench.guests("host3", d=4)

    async def spread() -> bool:
        return len({host.manager_id for host in await bench.client.hosts()}) == 3

    await bench.until(spread, "each manager has a host")

    async def packed() -> bool:
        return set((await bench.where()).values()) == {"host3"}

    await bench.until(packed, "everything is on the host that is used most")

    async def ended() -> bool:
        return len(await bench.decisions(kind="underload", state="done")) == 2

    await bench.until(ended, "two hosts were emptied")
    second, first = await bench.decisions(kind="underload")
    assert "host1 is hardly used" in first.reason, "the one that is used least comes first"
    assert first.outcome == "2 moved; host1 is empty"
    assert first.actions[-1] == "host1 is empty then"
    assert second.outcome == "1 moved; host2 is empty"
    code, shown = await command(bench.running.url, "decisions", "replay", first.id)
    assert code == 0, shown

    url = bench.running.url
    code, shown = await command(url, "host", "why", "host3", "--output", "json")
    assert code == 0, shown
    view = json.loads(shown)
    assert view["hostname"] == "host3"
    held = [each for each in view["obstacles"] if each["code"] == "held"]
    assert {"VM a moved a moment ago", "VM c moved a moment ago"} <= {e["message"] for e in held}
    assert all(each["until_ms"] > 0 for each in held), "its manager knows, though it moved none"
    code, shown = await command(url, "host", "why", "host1")
    assert code == 0, shown
    assert "nothing is on it" in shown
    code, shown = await command(url, "host", "why", "nowhere")
    assert code != 0
    assert "no host is called 'nowhere'" in shown

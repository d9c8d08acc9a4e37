"""Half-empty hosts of several managers: packed by the leader, and every host says why it stays."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from snooze.client.async_sdk import decode
from snooze.common.api import HostWhyView
from snooze.common.errors import NotFound
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
    """The hosts are offered in any order: which of them stays is not fixed, that one does is."""

    async def spread() -> bool:
        return len({host.manager_id for host in await bench.client.hosts()}) == 3

    await bench.until(spread, "each manager has a host")
    await bench.say(paused=True, kinds=("underload",))
    bench.loads.update(a=0.2, b=0.1, c=0.4, d=0.4)
    await bench.guests("host1", a=1, b=1)
    await bench.guests("host2", c=2)
    await bench.guests("host3", d=4)
    before = await bench.where()
    await bench.say(paused=False, kinds=("underload",))

    async def packed() -> bool:
        done = await bench.decisions(kind="underload", state="done")
        return len(done) >= 2 and len(set((await bench.where()).values())) == 1

    await bench.until(packed, "everything is on one host")
    [last] = set((await bench.where()).values())
    second, first = await bench.decisions(kind="underload", state="done")
    for decision, what in ((first, "first"), (second, "second")):
        emptied = decision.reason.split()[0]
        assert emptied != last
        moved = sum(line.startswith("migrate ") for line in decision.actions)
        assert decision.outcome == f"{moved} moved; {emptied} is empty", what
        assert decision.actions[-1] == f"{emptied} is empty then"
    assert first.reason.split()[0] in {"host1", "host2"}, "what is used most stays to the last"
    code, shown = await command(bench.running.url, "decisions", "replay", first.id)
    assert code == 0, shown

    view = decode(await bench.client.fetch(f"/hosts/{last}/why"), HostWhyView)
    assert view.hostname == last
    held = [each for each in view.obstacles if each.code == "held"]
    came = {name for name, host in before.items() if host != last}
    assert {f"VM {name} moved a moment ago" for name in came} <= {each.message for each in held}
    assert all(each.until_ms > 0 for each in held), "its manager knows, though it moved none"
    code, shown = await command(bench.running.url, "host", "why", first.reason.split()[0])
    assert code == 0, shown
    assert "nothing is on it" in shown
    with pytest.raises(NotFound, match="no host is called 'nowhere'"):
        await bench.client.fetch("/hosts/nowhere/why")

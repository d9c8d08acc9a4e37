"""A consolidation plug-in from a directory decides in a real manager, in its planning process."""

import textwrap
from pathlib import Path

from tests.integration.autonomy.test_load_moves import bench_of, command

PLUGIN = """
    from snooze.scheduling.plugins import Decider, DeciderKind

    def on_the_last(snapshot, properties):
        return snapshot.placement * 0 + snapshot.host_ids.index(max(snapshot.host_ids))

    SNOOZE_PLUGINS = [Decider(DeciderKind.CONSOLIDATION, "on_the_last", on_the_last)]
"""


async def test_it_decides_and_its_decision_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(textwrap.dedent(PLUGIN))
    overrides: dict[str, object] = {
        "monitoring": {"interval_s": 0.5},
        "autonomy": {"interval_s": 0.5, "underload": "off", "plugins_directory": str(tmp_path)},
        "consolidation": {"method": "on_the_last"},
    }
    async with bench_of(1, 3, overrides) as bench:
        client, running = bench.client, bench.running
        for number in (1, 2, 3):
            await bench.guests(f"host{number}", **{f"v{number}": 2})
        hosts = {host.id: host.hostname for host in await client.hosts()}
        last = hosts[max(hosts)]
        [manager] = await client.managers()

        async def consolidated() -> bool:
            await command(running.url, "autonomy", "consolidate", manager.id)
            found = await bench.decisions(kind="consolidation")
            return any("moves empty" in view.reason for view in found)

        async def moved() -> bool:
            return set((await bench.where()).values()) == {last}

        await bench.until(consolidated, "samples are there, and the plug-in has planned")
        await bench.until(moved, "all are where the plug-in wants them")
        found = await bench.decisions(kind="consolidation")
        assert any("2 moves empty 2 of 3 hosts" in view.reason for view in found), found
        assert not any("failed" in line for view in found for line in view.alternatives)

"""What the daemons tell Prometheus: read back by Prometheus' own parser."""

import asyncio
from collections.abc import Iterable

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from snooze.common.api import HealthView
from snooze.common.metrics import add_metrics, counters, gauge, links, resources
from snooze.common.resources import Capacity
from snooze.common.transport.channel import LinkStats
from snooze.common.usage import HostUsage, MachineUsage, Pressure, VmUsage
from snooze.localcontroller.agent import Agent
from snooze.localcontroller.metrics import host_metrics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples_of(families: Iterable[Metric]) -> Samples:
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, "each series once"
            found[key] = sample.value
    return found


async def scraped(app: web.Application) -> Samples:
    async with TestServer(app) as server, ClientSession() as session:
        answer = await session.get(server.make_url("/metrics"))
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        return samples_of(text_string_to_metric_families(await answer.text()))


async def test_a_scrape_has_health_process_and_sources() -> None:
    app = web.Application()
    reasons: list[str] = []

    def health() -> HealthView:
        return HealthView("ready", "bootstrap", 'b"\n1', reasons)

    numbers = iter((1.0, 2.0))
    add_metrics(
        app,
        health,
        lambda: [gauge("snooze_x", "X.", next(numbers))],
        lambda: [counters("snooze_y", "Y.", "kind", {"a": 1, 'b"\n\\': 2})],
    )
    found = await scraped(app)
    assert found["snooze_ready", ()] == 1
    assert found["snooze_x", ()] == 1
    assert found["snooze_y_total", (("kind", 'b"\n\\'),)] == 2
    assert found["process_cpu_seconds_total", ()] > 0
    [info] = [dict(labels) for name, labels in found if name == "snooze_node_info"]
    assert (info["role"], info["id"]) == ("bootstrap", 'b"\n1')


def test_capacities_are_in_base_units() -> None:
    found = samples_of(resources("p", "of it", Capacity(1.5, 2.0, 3.0, 4.0)))
    assert found == {
        ("p_cpu_cores", ()): 1.5,
        ("p_memory_bytes", ()): 2048.0,
        ("p_network_receive_bytes_per_second", ()): 3072.0,
        ("p_network_transmit_bytes_per_second", ()): 4096.0,
    }


def test_links_add_up() -> None:
    stats = [LinkStats(bytes_in=1, bytes_out=2, round_trip_s=0.5), LinkStats(bytes_in=10)]
    found = samples_of(links("host", stats, 7))
    assert found["snooze_host_links", ()] == 2
    assert found["snooze_host_links_bytes", (("direction", "received"),)] == 11
    assert found["snooze_host_links_buffered_bytes", ()] == 7
    assert found["snooze_host_links_round_trip_seconds", ()] == 0.5
    assert ("snooze_host_links_round_trip_seconds", ()) not in samples_of(links("host", [], 0))


class Measured(Agent):
    """An agent that has measured once."""

    def __init__(self, usage: HostUsage | None) -> None:
        self.usage = usage
        self.measured, self.not_measured, self.measuring_s = 1, 0, 0.25
        self._link = None


def test_a_host_tells_of_its_vms_and_itself() -> None:
    vms = [
        VmUsage("id1", 0, Capacity(0.5, 1024.0, 1.0, 2.0), True, 1024.0, 512.0, 3.0, 4.0),
        VmUsage("id2", 0, Capacity(memory_kib=1.0), rated=False, resident_kib=1.0),
    ]
    machine = MachineUsage(Capacity(2.0), cores=8, memory_kib=4, pressure=Pressure(0.5, 0, 0.25))
    found = samples_of(host_metrics(Measured(HostUsage(vms, machine)), {"id1": "web"}, 3))
    one = (("name", "web"), ("vm_id", "id1"))
    two = (("name", ""), ("vm_id", "id2"))
    assert found["snooze_vm_used_cpu_cores", one] == 0.5
    assert ("snooze_vm_used_cpu_cores", two) not in found, "no rate, no series"
    assert found["snooze_vm_memory_resident_bytes", two] == 1024
    assert found["snooze_vm_memory_balloon_bytes", one] == 512 * 1024
    assert found["snooze_vm_disk_write_bytes_per_second", one] == 4
    assert found["snooze_host_vms_used_cpu_cores", ()] == 0.5
    assert found["snooze_host_used_cpu_cores", ()] == 2
    assert found["snooze_host_cpu_cores", ()] == 8
    assert found["snooze_host_pressure_ratio", (("resource", "io"),)] == 0.25
    assert found["snooze_host_orders", ()] == 3
    nothing = samples_of(host_metrics(Measured(None), {}, 0))
    assert not any(name.startswith("snooze_vm_") for name, _ in nothing)


@pytest.mark.parametrize("times", [2])
async def test_scrapes_do_not_wear_out(times: int) -> None:
    app = web.Application()
    add_metrics(app, lambda: HealthView("unready", "x", "y", ["why"]))
    async with TestServer(app) as server, ClientSession() as session:
        answers = [session.get(server.make_url("/metrics")) for _ in range(times)]
        texts = [await answer.text() for answer in await asyncio.gather(*answers)]
    assert all("snooze_ready 0.0" in text for text in texts)

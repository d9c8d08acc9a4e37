"""``GET /metrics``: what a daemon measures, in Prometheus' text format.

Names follow https://prometheus.io/docs/practices/naming/: base units (seconds, bytes, ratios from 0
to 1; processors are counted in cores), the unit last, ``_total`` for what only grows. What has a
series for each VM is served by the VM's host only, so that no scrape grows with the cluster.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from snooze.common.api import HealthView
from snooze.common.resources import Capacity
from snooze.common.transport.channel import LinkStats
from snooze.common.version import VERSION

PATH: Final = "/metrics"
BYTES_PER_KIB: Final = 1024.0

Labels = Mapping[str, str]
Source = Callable[[], Iterable[Metric]]


def gauge(name: str, text: str, value: float) -> Metric:
    """One number that goes up and down."""
    return GaugeMetricFamily(name, text, value=value)


def counter(name: str, text: str, value: float) -> Metric:
    """One number that only grows; ``_total`` is added to its name."""
    return CounterMetricFamily(name, text, value=value)


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """A number for each value of one label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """A number that only grows for each value of one label."""
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def resources(prefix: str, text: str, capacity: Capacity) -> Iterator[Metric]:
    """The four axes of a capacity vector in base units."""
    yield gauge(f"{prefix}_cpu_cores", f"Processors {text}.", capacity.cpu_cores)
    yield gauge(f"{prefix}_memory_bytes", f"Memory {text}.", capacity.memory_kib * BYTES_PER_KIB)
    for axis, kib_s in (("receive", capacity.rx_kib_s), ("transmit", capacity.tx_kib_s)):
        yield gauge(
            f"{prefix}_network_{axis}_bytes_per_second",
            f"Network ({axis}) {text}.",
            kib_s * BYTES_PER_KIB,
        )


def links(kind: str, open_links: Iterable[LinkStats], buffered_bytes: int) -> Iterator[Metric]:
    """All links of one kind together; counters are of those that stand now."""
    stats = list(open_links)
    sums = {
        "received": float(sum(each.bytes_in for each in stats)),
        "sent": float(sum(each.bytes_out for each in stats)),
    }
    label = f"{kind} links"
    yield gauge(f"snooze_{kind}_links", f"Open {label}.", len(stats))
    yield gauge(f"snooze_{kind}_links_buffered_bytes", f"Bytes waiting on {label}.", buffered_bytes)
    yield gauges(f"snooze_{kind}_links_bytes", f"Bytes on open {label}.", "direction", sums)
    yield gauge(
        f"snooze_{kind}_links_dropped_messages",
        f"Droppable messages not sent on open {label}.",
        sum(each.dropped for each in stats),
    )
    trips = [each.round_trip_s for each in stats if each.round_trip_s is not None]
    if trips:
        yield gauge(
            f"snooze_{kind}_links_round_trip_seconds", f"Slowest ping on {label}.", max(trips)
        )


class _Sources(Collector):
    """One daemon's sources as a collector."""

    def __init__(self, sources: Iterable[Source], health: Callable[[], HealthView]) -> None:
        self._sources = tuple(sources)
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """Everything, as it is now."""
        view = self._health()
        info = GaugeMetricFamily(
            "snooze_node_info", "This daemon.", labels=["role", "id", "version"]
        )
        info.add_metric([view.role, view.node_id, VERSION], 1)
        yield info
        yield gauge("snooze_ready", "Whether this daemon can serve.", not view.reasons)
        for source in self._sources:
            yield from source()


def add_metrics(app: web.Application, health: Callable[[], HealthView], *sources: Source) -> None:
    """Serve ``GET /metrics``: the process, the daemon's health, and what ``sources`` tell.

    No two sources may use one name.
    """
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Sources(sources, health))

    async def answer(_request: web.Request) -> web.Response:
        body = generate_latest(registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get(PATH, answer)

"""What VMs use, from libvirt's counters.

One bulk call tells the counters of all running domains; a rate is the difference of two readings by
the monotonic time between them. A counter belongs to one run of a domain (its libvirt id): after a
restart the first reading is only a base line.
"""

from dataclasses import dataclass
from typing import Final

import libvirt

from snooze.common.clock import Clock
from snooze.common.resources import Capacity
from snooze.common.usage import VmUsage
from snooze.common.vm_lifecycle import VmState
from snooze.localcontroller.hypervisor.libvirt_connection import is_code
from snooze.localcontroller.hypervisor.libvirt_domains import report

_NS_PER_S: Final = 1e9
_BYTES_PER_KIB: Final = 1024.0


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading of a domain's counters.

    Attributes:
        run: libvirt's id of this run of the domain.
        at_s: monotonic time of the reading.
        cpu_ns: processor time used since the run began.
        memory_kib: resident now.
    """

    run: int
    at_s: float
    cpu_ns: int
    memory_kib: float
    rx_bytes: int
    tx_bytes: int


class UsageMeter:
    """Makes rates of readings; one per connection, used by one call at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._before: dict[str, Counters] = {}

    def measure(self, connection: libvirt.virConnect) -> list[VmUsage]:
        """One sample of each running domain (blocking)."""
        stats = connection.getAllDomainStats(
            libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
            | libvirt.VIR_DOMAIN_STATS_BALLOON
            | libvirt.VIR_DOMAIN_STATS_INTERFACE,
            libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE,
        )
        now_s, taken_ms = self._clock.monotonic_s(), self._clock.wall_ms()
        readings = {
            domain.UUIDString().replace("-", ""): _read(domain.ID(), now_s, values)
            for domain, values in stats
        }
        return self.rates(readings, taken_ms)

    def rates(self, readings: dict[str, Counters], taken_ms: int) -> list[VmUsage]:
        """Samples from readings by vm_id; remembers them, and forgets all others."""
        samples = [
            VmUsage(vm_id, taken_ms, rate(self._before.get(vm_id), now))
            for vm_id, now in readings.items()
        ]
        self._before = readings
        return samples


def rate(before: Counters | None, now: Counters) -> Capacity:
    """Cores, KiB and KiB/s between two readings of one run; only memory without a base line."""
    if before is None or before.run != now.run or now.at_s <= before.at_s:
        return Capacity(memory_kib=now.memory_kib)
    seconds = now.at_s - before.at_s
    return Capacity(
        cpu_cores=max(0, now.cpu_ns - before.cpu_ns) / _NS_PER_S / seconds,
        memory_kib=now.memory_kib,
        rx_kib_s=max(0, now.rx_bytes - before.rx_bytes) / _BYTES_PER_KIB / seconds,
        tx_kib_s=max(0, now.tx_bytes - before.tx_bytes) / _BYTES_PER_KIB / seconds,
    )


def _read(run: int, at_s: float, values: dict[str, int | str]) -> Counters:
    def number(key: str) -> int:
        value = values.get(key, 0)
        return value if isinstance(value, int) else 0

    interfaces = range(number("net.count"))
    return Counters(
        run=run,
        at_s=at_s,
        cpu_ns=number("cpu.time"),
        memory_kib=float(number("balloon.rss") or number("balloon.current")),
        rx_bytes=sum(number(f"net.{index}.rx.bytes") for index in interfaces),
        tx_bytes=sum(number(f"net.{index}.tx.bytes") for index in interfaces),
    )


def modelled(connection: libvirt.virConnect, cpu_share: float, taken_ms: int) -> list[VmUsage]:
    """A plain model where libvirt does not measure: the test driver's guests do not exist.

    A running VM uses ``cpu_share`` of its vCPUs and of the network it asked for; a paused one uses
    no processor; both hold all of their memory. (The driver's own ``cpuTime`` is the wall clock.)
    """
    samples: list[VmUsage] = []
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        try:
            found = report(domain)
        except libvirt.libvirtError as error:
            if is_code(error, libvirt.VIR_ERR_NO_DOMAIN):
                continue
            raise
        if found is not None:
            share = cpu_share if found.state is VmState.RUNNING else 0.0
            used = found.demand.scaled((share, 1.0, share, share))
            samples.append(VmUsage(found.vm_id, taken_ms, used))
    return samples

"""What VMs use, from libvirt's counters.

One bulk call tells the counters of all running domains; a rate is the difference of two readings by
the monotonic time between them. A counter belongs to one run of a domain (its libvirt id, which a
migration changes too), and it never goes down: the first reading of a run is only a base line, and
its sample is not rated.

The bulk call reads one domain after the other and may take seconds on a busy host, so a reading's
time is taken to be its share of the way through the call.
"""

from dataclasses import dataclass, replace
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

MIN_SPAN_S: Final = 0.05
"""Readings closer than this make no rate: the kernel counts processor time in ticks of 10 ms."""


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading of a domain's counters.

    Attributes:
        run: libvirt's id of this run of the domain.
        at_s: monotonic time of the reading.
        cpu_ns: processor time that its process has used.
        resident_kib, balloon_kib: now; 0 where libvirt does not say.
        rx_bytes, tx_bytes: of all its interfaces.
        read_bytes, write_bytes: of all its disks; -1 where libvirt did not say this time.
        disks_at_s: when those two were read.
    """

    run: int
    at_s: float
    cpu_ns: int
    resident_kib: float = 0.0
    balloon_kib: float = 0.0
    rx_bytes: int = 0
    tx_bytes: int = 0
    read_bytes: int = -1
    write_bytes: int = -1
    disks_at_s: float = 0.0

    def counts(self) -> tuple[int, ...]:
        """What only grows within a run."""
        return (self.cpu_ns, self.rx_bytes, self.tx_bytes, self.read_bytes, self.write_bytes)


class UsageMeter:
    """Makes rates of readings; one per connection, used by one call at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._before: dict[str, Counters] = {}

    def measure(
        self, connection: libvirt.virConnect, arriving: frozenset[str] = frozenset()
    ) -> list[VmUsage]:
        """One sample of each running domain (blocking), except of those ``arriving``.

        It does not wait for a domain whose monitor is busy: then its disks, and perhaps its
        memory, are not told this time.
        """
        started_s = self._clock.monotonic_s()
        stats = connection.getAllDomainStats(
            libvirt.VIR_DOMAIN_STATS_STATE
            | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
            | libvirt.VIR_DOMAIN_STATS_BALLOON
            | libvirt.VIR_DOMAIN_STATS_INTERFACE
            | libvirt.VIR_DOMAIN_STATS_BLOCK,
            libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
            | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT,
        )
        now_s, taken_ms = self._clock.monotonic_s(), self._clock.wall_ms()
        step_s = (now_s - started_s) / max(1, len(stats))
        readings: dict[str, Counters] = {}
        for place, (domain, values) in enumerate(stats):
            vm_id = domain.UUIDString().replace("-", "")
            if vm_id not in arriving and not _is_between_hosts(values):
                at_s = started_s + (place + 0.5) * step_s
                readings[vm_id] = counters(domain.ID(), at_s, values)
        return self.rates(readings, taken_ms)

    def rates(self, readings: dict[str, Counters], taken_ms: int) -> list[VmUsage]:
        """Samples from readings by vm_id; remembers them, and forgets all others."""
        samples: list[VmUsage] = []
        kept: dict[str, Counters] = {}
        for vm_id, now in readings.items():
            before = self._before.get(vm_id)
            sample, kept[vm_id] = rate(vm_id, before, now, taken_ms)
            samples.append(sample)
        self._before = kept
        return samples


def rate(
    vm_id: str, before: Counters | None, now: Counters, taken_ms: int
) -> tuple[VmUsage, Counters]:
    """The sample between two readings of one run, and the base line of the next.

    Cores, KiB and KiB/s. Not rated, with memory only, where there is no base line.
    """
    resident_kib = now.resident_kib or (before.resident_kib if before is not None else 0.0)
    memory_kib = resident_kib or now.balloon_kib
    if before is None or not _is_same_run(before, now):
        used = Capacity(memory_kib=memory_kib)
        return VmUsage(vm_id, taken_ms, used, False, resident_kib, now.balloon_kib), now
    seconds = now.at_s - before.at_s
    if seconds < MIN_SPAN_S:
        used = Capacity(memory_kib=memory_kib)
        return VmUsage(vm_id, taken_ms, used, False, resident_kib, now.balloon_kib), before
    used = Capacity(
        cpu_cores=(now.cpu_ns - before.cpu_ns) / _NS_PER_S / seconds,
        memory_kib=memory_kib,
        rx_kib_s=(now.rx_bytes - before.rx_bytes) / _BYTES_PER_KIB / seconds,
        tx_kib_s=(now.tx_bytes - before.tx_bytes) / _BYTES_PER_KIB / seconds,
    )
    read_bytes_s = write_bytes_s = 0.0
    if now.read_bytes < 0:
        now = _with_disks_of(now, before)
    elif before.read_bytes >= 0:
        disk_s = now.disks_at_s - before.disks_at_s
        read_bytes_s = (now.read_bytes - before.read_bytes) / disk_s
        write_bytes_s = (now.write_bytes - before.write_bytes) / disk_s
    sample = VmUsage(
        vm_id, taken_ms, used, True, resident_kib, now.balloon_kib, read_bytes_s, write_bytes_s
    )
    return sample, now


def _is_same_run(before: Counters, now: Counters) -> bool:
    """Whether rates can be made: an id may be used again after a restart of libvirt's host."""
    went_back = any(
        late < early for early, late in zip(before.counts(), now.counts(), strict=True) if late >= 0
    )
    return before.run == now.run and now.at_s > before.at_s and not went_back


def _with_disks_of(now: Counters, before: Counters) -> Counters:
    return replace(
        now,
        read_bytes=before.read_bytes,
        write_bytes=before.write_bytes,
        disks_at_s=before.disks_at_s,
    )


def _is_between_hosts(values: dict[str, int | str]) -> bool:
    """Whether a domain is paused because a migration brings it, or takes it away."""
    return (
        values.get("state.state") == libvirt.VIR_DOMAIN_PAUSED
        and values.get("state.reason") == libvirt.VIR_DOMAIN_PAUSED_MIGRATION
    )


def counters(run: int, at_s: float, values: dict[str, int | str]) -> Counters:
    """A reading from libvirt's names of things.

    Of a domain whose monitor is busy it names the disks, without what they read and wrote (seen
    with libvirt 9.0).
    """

    def number(key: str) -> int:
        value = values.get(key, 0)
        return value if isinstance(value, int) else 0

    interfaces, disks = range(number("net.count")), range(number("block.count"))
    told = "block.count" in values and (
        not disks or any(f"block.{index}.rd.bytes" in values for index in disks)
    )
    return Counters(
        run=run,
        at_s=at_s,
        cpu_ns=number("cpu.time"),
        resident_kib=float(number("balloon.rss")),
        balloon_kib=float(number("balloon.current")),
        rx_bytes=sum(number(f"net.{index}.rx.bytes") for index in interfaces),
        tx_bytes=sum(number(f"net.{index}.tx.bytes") for index in interfaces),
        read_bytes=sum(number(f"block.{index}.rd.bytes") for index in disks) if told else -1,
        write_bytes=sum(number(f"block.{index}.wr.bytes") for index in disks) if told else -1,
        disks_at_s=at_s,
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

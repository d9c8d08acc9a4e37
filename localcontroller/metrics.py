"""A local controller's metrics: its host, its VMs, its link, and what measuring costs."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric

from snooze.common.metrics import BYTES_PER_KIB, counter, gauge, gauges, links, resources
from snooze.common.usage import HostUsage, MachineUsage, VmUsage
from snooze.localcontroller.agent import Agent


def host_metrics(agent: Agent, names: Mapping[str, str], orders: int) -> Iterator[Metric]:
    """All of one host.

    Args:
        names: of VMs, by id.
        orders: under way.
    """
    link = agent.link
    yield from links("manager", [link.stats] if link is not None else [], agent.buffered_bytes)
    yield gauge("snooze_host_orders", "Orders that are being carried out.", orders)
    yield counter("snooze_host_measurements", "Times the host was measured.", agent.measured)
    yield counter(
        "snooze_host_measurement_failures", "Times it could not be measured.", agent.not_measured
    )
    yield gauge(
        "snooze_host_measurement_duration_seconds", "Of the last measurement.", agent.measuring_s
    )
    usage = agent.usage
    if usage is not None:
        yield gauge("snooze_host_vms", "VMs that run or are paused.", len(usage.vms))
        yield from resources("snooze_host_vms_used", "used by all VMs together", usage.total())
        if usage.machine is not None:
            yield from _machine(usage.machine)
        yield from _vms(usage, names)


def _machine(machine: MachineUsage) -> Iterator[Metric]:
    yield gauge("snooze_host_cpu_cores", "Processors of the host.", machine.cores)
    yield gauge("snooze_host_memory_bytes", "Memory.", machine.memory_kib * BYTES_PER_KIB)
    yield from resources("snooze_host_used", "used by all that runs on the host", machine.used)
    pressure = machine.pressure
    if pressure is not None:
        yield gauges(
            "snooze_host_pressure_ratio",
            "Share of the last 10 s in which some task waited for the resource.",
            "resource",
            {"cpu": pressure.cpu, "memory": pressure.memory, "io": pressure.io},
        )


def _vms(usage: HostUsage, names: Mapping[str, str]) -> Iterator[Metric]:
    """One series a VM; those of which no rate is known yet have none."""
    rated = [vm for vm in usage.vms if vm.rated]

    def family(name: str, text: str, values: Iterable[tuple[VmUsage, float]]) -> Metric:
        made = GaugeMetricFamily(f"snooze_vm_{name}", text, labels=["vm_id", "name"])
        for vm, value in values:
            made.add_metric([vm.vm_id, names.get(vm.vm_id, "")], value)
        return made

    def kib(value: float) -> float:
        return value * BYTES_PER_KIB

    yield family("used_cpu_cores", "Processors used.", ((v, v.used.cpu_cores) for v in rated))
    yield family(
        "memory_resident_bytes",
        "Memory of the host that the VM's process holds.",
        ((v, kib(v.resident_kib)) for v in usage.vms if v.resident_kib),
    )
    yield family(
        "memory_balloon_bytes",
        "Memory that the guest may use now.",
        ((v, kib(v.balloon_kib)) for v in usage.vms if v.balloon_kib),
    )
    yield family(
        "network_receive_bytes_per_second",
        "Received by the guest.",
        ((v, kib(v.used.rx_kib_s)) for v in rated),
    )
    yield family(
        "network_transmit_bytes_per_second",
        "Sent by the guest.",
        ((v, kib(v.used.tx_kib_s)) for v in rated),
    )
    yield family("disk_read_bytes_per_second", "Read.", ((v, v.read_bytes_s) for v in rated))
    yield family("disk_write_bytes_per_second", "Written.", ((v, v.write_bytes_s) for v in rated))

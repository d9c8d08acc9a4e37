"""What the host itself uses: from its kernel where that is ours, else from libvirt.

Rules:

1. Cores in use are those that are neither idle, waiting for a disk, nor stolen. Memory in use is
   what could not be had at once (``MemTotal`` less ``MemAvailable``).
2. Network is counted at the edge of the machine: at interfaces with hardware behind them; where
   none has (in a network namespace), at all but loopback, bridges and the taps of VMs. Anything
   else would count a guest's traffic two or three times.
3. Rates are made as those of VMs: a reading without an earlier one, or with a counter that went
   back, is not rated.
4. What the kernel does not tell (pressure-stall information before Linux 4.20) is None. libvirt
   tells neither network nor pressure of another machine: network is 0 there.

Source: Linux, Documentation/filesystems/proc.rst and accounting/psi.rst.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import libvirt

from snooze.common.clock import Clock
from snooze.common.resources import Capacity
from snooze.common.usage import MachineUsage, Pressure
from snooze.localcontroller.hypervisor.libvirt_connection import is_code

PROC: Final = Path("/proc")
NETWORK_CLASSES: Final = Path("/sys/class/net")
_TICKS_PER_S: Final = float(os.sysconf("SC_CLK_TCK"))
_NS_PER_S: Final = 1e9
_BYTES_PER_KIB: Final = 1024.0
_MIN_SPAN_S: Final = 0.05
_INNER: Final = re.compile(r"lo$|vnet|virbr|br-|br\d|tap|ifb|docker|veth")
"""Names of interfaces within a machine, by the habits of Linux, libvirt and container runtimes."""


@dataclass(frozen=True, slots=True)
class MachineReading:
    """Counters of a machine at one moment; processor time in core seconds."""

    at_s: float
    busy_s: float
    cores: float
    memory_kib: float
    memory_used_kib: float
    rx_bytes: int = 0
    tx_bytes: int = 0
    pressure: Pressure | None = None


class MachineMeter:
    """Makes rates of readings of one machine; used by one call at a time."""

    def __init__(self, clock: Clock, *, is_local: bool) -> None:
        self._clock = clock
        self._is_local = is_local
        self._before: MachineReading | None = None

    def measure(self, connection: libvirt.virConnect) -> MachineUsage | None:
        """One sample (blocking); None where nothing can be read."""
        now_s = self._clock.monotonic_s()
        now = read_kernel(now_s) if self._is_local else read_libvirt(connection, now_s)
        return self.rate(now) if now is not None else None

    def rate(self, now: MachineReading) -> MachineUsage:
        """The sample since the reading before; remembers this one."""
        before = self._before
        if before is None:
            self._before = now
            return machine_rate(None, now)
        if now.at_s - before.at_s >= _MIN_SPAN_S:
            self._before = now
            return machine_rate(before, now)
        return machine_rate(None, now)


def machine_rate(before: MachineReading | None, now: MachineReading) -> MachineUsage:
    """What was used between two readings; not rated where a counter went back."""
    if (
        before is None
        or now.at_s <= before.at_s
        or now.busy_s < before.busy_s
        or now.rx_bytes < before.rx_bytes
        or now.tx_bytes < before.tx_bytes
    ):
        used = Capacity(memory_kib=now.memory_used_kib)
        return MachineUsage(used, False, now.cores, now.memory_kib, now.pressure)
    seconds = now.at_s - before.at_s
    used = Capacity(
        cpu_cores=min(now.cores, (now.busy_s - before.busy_s) / seconds),
        memory_kib=now.memory_used_kib,
        rx_kib_s=(now.rx_bytes - before.rx_bytes) / _BYTES_PER_KIB / seconds,
        tx_kib_s=(now.tx_bytes - before.tx_bytes) / _BYTES_PER_KIB / seconds,
    )
    return MachineUsage(used, True, now.cores, now.memory_kib, now.pressure)


def read_kernel(
    at_s: float, proc: Path = PROC, classes: Path = NETWORK_CLASSES
) -> MachineReading | None:
    """A reading of this machine; None if its kernel tells nothing of the kind."""
    try:
        busy_s, cores = _processors((proc / "stat").read_text())
        memory = _memory((proc / "meminfo").read_text())
        total, available = memory["MemTotal"], memory["MemAvailable"]
    except (OSError, ValueError, IndexError, KeyError):
        return None
    rx_bytes, tx_bytes = _network(proc, classes)
    return MachineReading(
        at_s,
        busy_s,
        float(cores),
        total,
        max(0.0, total - available),
        rx_bytes,
        tx_bytes,
        _pressure(proc / "pressure"),
    )


def read_libvirt(connection: libvirt.virConnect, at_s: float) -> MachineReading | None:
    """A reading of another machine, through its libvirt; None where that has none.

    Raises:
        libvirtError: any other trouble than the lack of support.
    """
    try:
        cpu = connection.getCPUStats(libvirt.VIR_NODE_CPU_STATS_ALL_CPUS)
        memory = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    except libvirt.libvirtError as error:
        if is_code(error, libvirt.VIR_ERR_NO_SUPPORT):
            return None
        raise
    free_kib = sum(memory.get(key, 0) for key in ("free", "buffers", "cached"))
    total_kib = float(memory.get("total", 0))
    return MachineReading(
        at_s,
        (cpu.get("user", 0) + cpu.get("kernel", 0)) / _NS_PER_S,
        float(connection.getInfo()[2]),
        total_kib,
        max(0.0, total_kib - free_kib),
    )


def _processors(stat: str) -> tuple[float, int]:
    """Core seconds in use since the boot, and how many cores are online.

    Guests' time is part of ``user`` and ``nice``.
    """
    lines = stat.splitlines()
    user, nice, system, _idle, _iowait, irq, softirq = (int(n) for n in lines[0].split()[1:8])
    cores = sum(1 for line in lines[1:] if re.match(r"cpu\d", line))
    return (user + nice + system + irq + softirq) / _TICKS_PER_S, cores


def _memory(meminfo: str) -> dict[str, float]:
    fields = (line.split() for line in meminfo.splitlines())
    return {words[0].rstrip(":"): float(words[1]) for words in fields if len(words) > 1}


def _network(proc: Path, classes: Path) -> tuple[int, int]:
    """Bytes received and sent at the edge of this thread's network namespace."""
    try:
        lines = (proc / "thread-self" / "net" / "dev").read_text().splitlines()[2:]
    except OSError:
        return 0, 0
    counted: dict[str, tuple[int, int]] = {}
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) > 8 and words[0].isdigit() and words[8].isdigit():
            counted[name.strip()] = int(words[0]), int(words[8])
    edge = [name for name in counted if (classes / name / "device").exists()]
    if not edge:
        edge = [
            name
            for name in counted
            if not _INNER.match(name) and not (classes / name / "bridge").exists()
        ]
    return sum(counted[name][0] for name in edge), sum(counted[name][1] for name in edge)


def _pressure(folder: Path) -> Pressure | None:
    """What part of the last ten seconds some task waited for each resource; None if not told."""
    shares: list[float] = []
    for name in ("cpu", "memory", "io"):
        try:
            first = (folder / name).read_text().splitlines()[0]
            found = re.search(r"^some avg10=([\d.]+)", first)
        except (OSError, IndexError):
            return None
        if found is None:
            return None
        shares.append(min(1.0, float(found[1]) / 100))
    return Pressure(*shares)

"""What a host measured of its VMs and of itself in one monitoring interval, and how it says so."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from snooze.common.resources import ZERO, Capacity, FloatArray, R

BoolArray = NDArray[np.bool_]


class VmUsage(msgspec.Struct, frozen=True, array_like=True):
    """One sample of what a VM used.

    Attributes:
        taken_ms: wall clock of the host.
        used: cores consumed, KiB of the host's memory held (resident), KiB/s received and sent by
            all its NICs together: means since the sample before.
        rated: whether there was a sample before, of the same run of the VM. If not, only memory
            is known and all rates are 0: the first sample after a start, a restart, a migration,
            or a reconnection.
        resident_kib: of the hypervisor's process for this VM; 0 if unknown.
        balloon_kib: what the guest may use now; 0 if unknown.
        read_bytes_s, write_bytes_s: of all its disks together.
    """

    vm_id: str
    taken_ms: int
    used: Capacity
    rated: bool = True
    resident_kib: float = 0.0
    balloon_kib: float = 0.0
    read_bytes_s: float = 0.0
    write_bytes_s: float = 0.0


class Pressure(msgspec.Struct, frozen=True, array_like=True):
    """Pressure-stall information: the share of the last 10 s in which *some* task waited, 0 to 1.

    Source: Linux, Documentation/accounting/psi.rst (``some avg10`` over 100).
    """

    cpu: float = 0.0
    memory: float = 0.0
    io: float = 0.0


class MachineUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the host itself uses: its VMs, its own processes, and whatever else runs there.

    Attributes:
        used: cores, KiB that are neither free nor reclaimable, KiB/s over all physical interfaces.
        rated: as in ``VmUsage``.
        cores: of the machine.
        memory_kib: of the machine.
        pressure: None where the kernel does not tell, or the hypervisor is another machine's.
        power_w: what its processors and memory draw, where RAPL counts it; a lower bound.
    """

    used: Capacity = ZERO
    rated: bool = True
    cores: float = 0.0
    memory_kib: float = 0.0
    pressure: Pressure | None = None
    power_w: float | None = None


class HostUsage(msgspec.Struct, frozen=True):
    """All of one interval; ``machine`` is None where the driver does not measure it."""

    vms: list[VmUsage]
    machine: MachineUsage | None = None

    def total(self) -> Capacity:
        """What the VMs use together."""
        result = ZERO
        for vm in self.vms:
            result = result.plus(vm.used)
        return result


class HostSamples(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """One monitoring interval: what each VM and the host itself used.

    Attributes:
        taken_ms: wall clock of the host.
        used: packed ``float64[V, R]`` in the order of ``vm_ids``.
        host_used: what the VMs use together.
        interval_ms: time between messages that the host means to keep; 0: it does not say.
        rated: a byte for each VM, 0 where ``used`` has no rates yet (``VmUsage.rated``); empty: all
            have them.
        details: packed ``float64[V, 4]``: KiB resident, KiB of the balloon, bytes read and written
            a second; empty: unknown.
        machine: the host itself.
    """

    taken_ms: int
    vm_ids: list[str]
    used: bytes
    host_used: Capacity
    interval_ms: int = 0
    rated: bytes = b""
    details: bytes = b""
    machine: MachineUsage | None = None

    @classmethod
    def of(cls, taken_ms: int, usage: HostUsage, interval_ms: int = 0) -> "HostSamples":
        """Pack ``usage``."""
        vms = usage.vms
        details = [
            (vm.resident_kib, vm.balloon_kib, vm.read_bytes_s, vm.write_bytes_s) for vm in vms
        ]
        return cls(
            taken_ms,
            [vm.vm_id for vm in vms],
            np.array([vm.used.as_tuple() for vm in vms], dtype="<f8").tobytes(),
            usage.total(),
            interval_ms,
            b"" if all(vm.rated for vm in vms) else bytes(vm.rated for vm in vms),
            np.array(details, dtype="<f8").tobytes() if any(map(any, details)) else b"",
            usage.machine,
        )

    def rows(self) -> FloatArray:
        """The samples as ``float64[V, R]``.

        Raises:
            ValueError: if the bytes do not fit the number of VMs, or hold what is no number.
        """
        return _unpacked(self.used, len(self.vm_ids), R)

    def has_rates(self) -> BoolArray:
        """``bool[V]``: whose rates are known.

        Raises:
            ValueError: if there is not one flag for each VM.
        """
        if not self.rated:
            return np.ones(len(self.vm_ids), dtype=np.bool_)
        flags = np.frombuffer(self.rated, dtype=np.uint8).reshape(len(self.vm_ids))
        return flags.astype(np.bool_)

    def detail_rows(self) -> FloatArray:
        """``details`` as ``float64[V, 4]``; zeros where unknown.

        Raises:
            ValueError: as ``rows``.
        """
        if not self.details:
            return np.zeros((len(self.vm_ids), DETAILS))
        return _unpacked(self.details, len(self.vm_ids), DETAILS)


DETAILS = 4
"""Columns of ``HostSamples.details``."""


def _unpacked(packed: bytes, rows: int, columns: int) -> FloatArray:
    array = np.frombuffer(packed, dtype="<f8").reshape(rows, columns)
    if not np.isfinite(array).all():
        raise ValueError("a sample holds a value that is not a finite number")
    return array

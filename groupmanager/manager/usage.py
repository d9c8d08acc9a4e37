"""What VMs used lately: ring buffers of samples, one per host.

Monitoring is not record: it lives here, as long as the host's link stands.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from snooze.common.resources import ZERO, Capacity, FloatArray
from snooze.common.wire import HostSamples, UsageSample

KEPT = 30
"""Samples kept per host. Source: Snooze's database.numberOfEntriesPerVirtualMachine."""


@dataclass(slots=True)
class HostUsage:
    """The latest samples of one host, oldest first."""

    samples: deque[tuple[int, dict[str, int], FloatArray]] = field(
        default_factory=lambda: deque(maxlen=KEPT)
    )
    host_used: Capacity = ZERO

    def add(self, message: HostSamples) -> None:
        """Take a message in.

        Raises:
            ValueError: if its arrays do not fit together or hold what is no number.
        """
        rows = message.rows()
        index = {vm_id: row for row, vm_id in enumerate(message.vm_ids)}
        self.samples.append((message.taken_ms, index, rows))
        self.host_used = message.host_used

    def of_vm(self, vm_id: str, entries: int) -> list[UsageSample]:
        """Up to ``entries`` samples of one VM, newest first."""
        found: list[UsageSample] = []
        for taken_ms, index, rows in reversed(self.samples):
            if len(found) >= entries:
                break
            row = index.get(vm_id)
            if row is not None:
                found.append(UsageSample(taken_ms, Capacity.of(rows[row])))
        return found


def total(usages: Iterable[HostUsage]) -> Capacity:
    """What all hosts use together."""
    result = ZERO
    for usage in usages:
        result = result.plus(usage.host_used)
    return result

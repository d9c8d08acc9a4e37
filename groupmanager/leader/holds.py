"""What managers are not to forget: who took part in relieving an overload, who could not be moved.

It is in the records of hosts and VMs, and every manager is told with the directive of a host
(``recovery_core.py``): no manager's end, and no move to another manager, makes anybody restless.
"""

from collections.abc import Callable, Iterable

from snooze.common.clock import Clock
from snooze.common.coordination.port import Operation
from snooze.common.wire import Held
from snooze.groupmanager.leader.record_writes import updates
from snooze.groupmanager.leader.registry import Registry
from snooze.groupmanager.leader.submission_events import UpdateRecords
from snooze.groupmanager.leader.vm_views import record_of


class Holds:
    """Writes it down, for one leader."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        write: Callable[[list[Operation]], None],
        record_host: Callable[[str], None],
        direct: Callable[[str], None],
    ) -> None:
        """``direct`` has a host's manager told what is true of it."""
        self._registry = registry
        self._clock = clock
        self._write = write
        self._record_host = record_host
        self._direct = direct
        self._unwritten: set[str] = set()

    def noted(self, told: Held) -> None:
        """A manager says what has just happened; it knows already."""
        self._relieved(told.hosts)
        for vm_id in told.vms:
            vm = self._registry.vms.get(vm_id)
            if vm is not None and vm.managed:
                vm.stuck_ms = self._clock.wall_ms()
                self._unwritten.add(vm_id)
        self.tick()

    def stuck(self, vm_id: str) -> None:
        """The leader could not have a VM moved: its manager is to know."""
        self.noted(Held(vms=(vm_id,)))
        vm = self._registry.vms.get(vm_id)
        if vm is not None and vm.host_id:
            self._direct(vm.host_id)

    def relieved(self, host_ids: Iterable[str]) -> None:
        """The leader has relieved hosts: their managers are to know."""
        for host_id in self._relieved(host_ids):
            self._direct(host_id)

    def _relieved(self, host_ids: Iterable[str]) -> list[str]:
        known = [host_id for host_id in host_ids if host_id in self._registry.hosts]
        for host_id in known:
            self._registry.hosts[host_id].relieved_ms = self._clock.wall_ms()
            self._record_host(host_id)
        return known

    def tick(self) -> None:
        """Write what can be written: a VM whose record is as old as what we know of it."""
        for vm_id in list(self._unwritten):
            vm = self._registry.vms.get(vm_id)
            if vm is not None and vm.recorded != (vm.state, vm.host_id, vm.generation):
                continue  # it is written with what becomes of it
            self._unwritten.discard(vm_id)
            if vm is not None:
                self._write(updates(UpdateRecords(vms=[record_of(vm)])))

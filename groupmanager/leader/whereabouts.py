"""Which hosts may have a VM although nobody said so.

A host that is joined says what it has. One that is not may have every VM that was on its way to
some host while a start could be ordered on it: ``elsewhere_s <= reachable_s``.

A manager moves VMs among its hosts without asking, and says so. From when it is not heard any more
until its hosts have spoken, what is on one of them may be on any other of them (``lose_with``).
"""

from collections.abc import Iterator, Sequence
from typing import Final

from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import VmStatus
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry

_MOVABLE: Final = frozenset({VmState.RUNNING, VmState.PAUSED, VmState.STOPPING})
"""One that was just being started has not run for long enough to be moved unheard."""


def lose_with(registry: Registry, host: HostEntry, now_s: float) -> None:
    """A host is away because its manager is: nobody says what that does with its VMs."""
    host.leave(now_s)
    for vm in registry.vms_of_host(host.description.host_id):
        if vm.managed and vm.state in _MOVABLE:
            vm.elsewhere_s = min(vm.elsewhere_s, now_s)


def away(registry: Registry) -> list[HostEntry]:
    """The hosts that do not say what they have and may have more, the latest reachable first."""
    return sorted(
        registry.hosts.suspects.values(),
        key=lambda host: (-host.reachable_s, host.description.host_id),
    )


def may_be_on(vm: VmEntry, hosts: Sequence[HostEntry]) -> bool:
    """Whether the VM may run on one of ``hosts``, which are as ``away`` gives them."""
    return next(_possible(vm, hosts), None) is not None


def suspect(vm: VmEntry, hosts: Sequence[HostEntry]) -> HostEntry | None:
    """The first host given up that may run the VM."""
    return next((host for host in _possible(vm, hosts) if host.given_up), None)


def may_be_defined_on(vm: VmEntry, hosts: Sequence[HostEntry]) -> bool:
    """Whether a host that is proven down may still have the VM's definition."""
    return any(host.is_off_for(vm) and host.reachable_s >= vm.elsewhere_s for host in hosts)


def _possible(vm: VmEntry, hosts: Sequence[HostEntry]) -> Iterator[HostEntry]:
    for host in hosts:
        if host.reachable_s < vm.elsewhere_s:
            return
        if not host.is_off_for(vm):
            yield host


def acquit(registry: Registry, now_s: float) -> None:
    """Mark the hosts given up that cannot have any VM but those that are recorded on them.

    The next leader does not look for any other on such a host. One that is thought to be there, and
    recorded elsewhere, would be restarted beside itself (seed 820132).
    """
    given_up = [
        host
        for host in registry.hosts.unsettled.values()
        if host.given_up and not host.acquitted and host.reachable_s < now_s
    ]
    if not given_up:
        return
    unsure = registry.vms.unsure.values()
    for host in given_up:
        host_id = host.description.host_id
        host.acquitted = all(
            _is_recorded_on(vm, host_id) or vm.elsewhere_s > host.reachable_s for vm in unsure
        )


def _is_recorded_on(vm: VmEntry, host_id: str) -> bool:
    return vm.host_id == host_id and vm.recorded is not None and vm.recorded[1] == host_id


def is_news(registry: Registry, status: VmStatus) -> bool:
    """Whether a manager that joins says more of a VM than that it is where, and as, it was."""
    vm = registry.entry_of(status)
    return (
        vm is None
        or vm.host_id != status.host_id
        or vm.generation != status.generation
        or vm.state is not status.state
        or vm.moving
        or bool(vm.doubt)
    )

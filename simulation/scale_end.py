"""Whether a large cluster is whole: every host has a manager, every VM runs and is known.

Two things are no fault of the cluster, and are counted, not forgotten:

* a host that is off and stays so: nobody reboots one on which there was nothing to bring back. It
  is *marked*: the leader has given it up, and did not fence it (then it would be switched on).
* a VM that a client has ordered to be destroyed and that is not gone, because its host was off when
  it was to be done. It is *reported*: as off, or with a reason; and its guest does not run.

Everything else is lost or wrong: an old VM, or one of a submission that was carried out, must run
and be known where it is, unless its client wanted it gone.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

from snooze.common.records import HostPower
from snooze.common.vm_lifecycle import VmState
from snooze.groupmanager.leader.registry import Registry, VmEntry
from snooze.simulation.fleet import Fleet

SHOWN = 3
"""How many of what is wrong are named."""

_KEPT = frozenset({VmState.STOPPED, VmState.FAILED, VmState.UNREACHABLE})
"""How a VM whose removal failed is told of; ``DESTROYING`` is one under way."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What is not as it has to be (empty: all is whole), and what is excused."""

    left: str = ""
    dark_hosts: int = 0
    kept_vms: int = 0


def ending(
    fleet: Fleet, registry: Registry, wanted: Collection[str], condemned: Collection[str]
) -> Ending:
    """Compare the leader with the world.

    Args:
        fleet: the hosts and guests as they are.
        registry: what the leader knows of them.
        wanted: the names of VMs that must run.
        condemned: the names of VMs that somebody has ordered to be destroyed.
    """
    dark = [host_id for host_id, host in fleet.hosts.items() if not host.is_on]
    hosts = list(_wrong_hosts(fleet, registry))
    if hosts:
        return Ending(_told(hosts, "hosts are wrong"))
    kept = [vm for vm in registry.vms.values() if _is_kept(fleet, vm, condemned)]
    wrong = list(_wrong_vms(fleet, registry, wanted, condemned, {vm.key for vm in kept}))
    return Ending(_told(wrong, "VMs are wrong") if wrong else "", len(dark), len(kept))


def _told(wrong: list[str], what: str) -> str:
    return f"{len(wrong)} {what}: {'; '.join(islice(wrong, SHOWN))}"


def _wrong_hosts(fleet: Fleet, registry: Registry) -> Iterator[str]:
    for host_id, host in fleet.hosts.items():
        entry = registry.hosts.get(host_id)
        if entry is None:
            yield f"{host_id} is not known to the leader"
        elif host.is_on and not entry.joined:
            yield f"{host_id} is on and has no manager"
        elif not host.is_on and entry.joined:
            yield f"{host_id} is off, and the leader calls it joined"
        elif not host.is_on and not entry.given_up:
            yield f"{host_id} is off, and the leader has not given it up"
        elif not host.is_on and entry.state is not HostPower.ACTIVE:
            yield f"{host_id} is {entry.state.value}, and was not switched on again"


def _is_kept(fleet: Fleet, vm: VmEntry, condemned: Collection[str]) -> bool:
    return (
        vm.managed
        and vm.name in condemned
        and vm.state in _KEPT
        and (vm.state is VmState.STOPPED or bool(vm.reason))
        and vm.vm_id not in fleet.alive
    )


def _wrong_vms(
    fleet: Fleet,
    registry: Registry,
    wanted: Collection[str],
    condemned: Collection[str],
    kept: Collection[str],
) -> Iterator[str]:
    yield from fleet.differences(registry)
    for vm in registry.vms.values():
        if vm.managed and vm.state is not VmState.RUNNING and vm.key not in kept:
            yield f"{vm.name} is {vm.state.value} on {vm.host_id or 'no host'} ({vm.reason})"
    for name in wanted:
        if name not in registry.names and name not in condemned:
            yield f"{name} is gone, and nobody wanted that"

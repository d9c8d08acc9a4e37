"""From a client's submission to a task and its VMs, or to the reasons why not.

Every VM is judged beside what exists (names, pins, addresses) before anything of the submission is
accepted. Unless it is ``partial``, one wrong VM refuses all of it, and nothing has changed.
"""

from collections.abc import Iterable, Sequence

from snooze.common.errors import ErrorReport, NoCapacity, Problem
from snooze.common.records import TaskVmRecord
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmErrorCode
from snooze.groupmanager.leader.address_leases import AddressLeases, mac_of
from snooze.groupmanager.leader.registry import Registry, VmEntry
from snooze.groupmanager.leader.submission_events import Candidate, Submitted
from snooze.groupmanager.leader.tasks import SUBMIT, Task, failed_vm


def accept(
    event: Submitted,
    registry: Registry,
    leases: AddressLeases,
    encode_mac: bool,
    now_s: float,
) -> tuple[Task, list[VmEntry]] | ErrorReport:
    """The task and the VMs that were put into the registry, each with its address; or why not."""
    problems = problems_of(registry, event.candidates)
    if any(problems) and not event.partial:
        listed = tuple(problem for found in problems for problem in found)
        return ErrorReport(
            "invalid_request",
            f"{sum(1 for found in problems if found)} of {len(problems)} VMs cannot be "
            "started; nothing was",
            listed,
        )
    task = Task(
        event.task_id,
        SUBMIT,
        event.now_ms,
        {},
        key=event.key,
        virtual_cluster=event.virtual_cluster,
    )
    accepted: list[VmEntry] = []
    for candidate, found in zip(event.candidates, problems, strict=True):
        if found:
            first = found[0]
            error = ErrorReport(first.code, first.message, tuple(found))
            task.settle(failed_vm(candidate.vm_id, candidate.name, error))
            continue
        address = leases.lease(candidate.vm_id, now_s) if leases.active else ""
        if address is None:
            error = ErrorReport(VmErrorCode.NO_ADDRESS, "every address of the subnets is leased")
            if not event.partial:
                withdraw(accepted, registry, leases)
                return ErrorReport(NoCapacity.code, error.message)
            task.settle(failed_vm(candidate.vm_id, candidate.name, error))
            continue
        vm = _entry(candidate, event, registry, address, encode_mac, now_s)
        accepted.append(vm)
        registry.add_vm(vm)
        task.vms[vm.vm_id] = TaskVmRecord(vm.vm_id, vm.name, VmState.PENDING, "", vm.ip_address)
        task.open_vms.add(vm.vm_id)
    return task, accepted


def withdraw(vms: Iterable[VmEntry], registry: Registry, leases: AddressLeases) -> None:
    """Undo the acceptance of VMs that were never recorded."""
    for vm in vms:
        registry.remove_vm(vm)
        leases.withdraw(vm.vm_id)


def _entry(
    candidate: Candidate,
    event: Submitted,
    registry: Registry,
    address: str,
    encode_mac: bool,
    now_s: float,
) -> VmEntry:
    pin_host, pin_manager = pin_of(registry, candidate.host) or ("", "")
    return VmEntry(
        vm_id=candidate.vm_id,
        name=candidate.name,
        demand=candidate.demand,
        state=VmState.PENDING,
        task_id=event.task_id,
        virtual_cluster=event.virtual_cluster,
        image=candidate.image,
        template=candidate.template,
        ip_address=address,
        mac_address=mac_of(address) if address and encode_mac else "",
        pin_host=pin_host,
        pin_manager=pin_manager,
        waits_s=now_s,
        policy=candidate.policy,
    )


def problems_of(registry: Registry, candidates: Sequence[Candidate]) -> list[list[Problem]]:
    """What is wrong with each VM, by itself and beside what exists."""
    seen: dict[str, int] = {}
    result: list[list[Problem]] = []
    for index, candidate in enumerate(candidates):
        found = list(candidate.problems)
        where = f"vms[{index}]"
        if candidate.name:
            if candidate.name in seen:
                first = seen[candidate.name]
                found.append(
                    Problem(
                        f"{where}.name",
                        f"{candidate.name!r} is also the name of vms[{first}]",
                        VmErrorCode.NAME_TAKEN,
                    )
                )
            elif candidate.name in registry.names:
                found.append(
                    Problem(
                        f"{where}.name",
                        f"a VM named {candidate.name!r} exists; destroy it or take another",
                        VmErrorCode.NAME_TAKEN,
                    )
                )
            seen.setdefault(candidate.name, index)
        if candidate.host and pin_of(registry, candidate.host) is None:
            found.append(
                Problem(
                    f"{where}.host",
                    f"no host or group manager is called {candidate.host!r}",
                    VmErrorCode.INVALID_HOST,
                )
            )
        if candidate.image and not found and _is_nowhere(registry, candidate.image):
            found.append(
                Problem(
                    f"{where}.image",
                    f"no host has an image called {candidate.image!r}",
                    VmErrorCode.INVALID_TEMPLATE,
                )
            )
        result.append(found)
    return result


def _is_nowhere(registry: Registry, image: str) -> bool:
    """Whether no host has the image; a host that may yet join could have it."""
    if any(not host.given_up for host in registry.hosts.unsettled.values()):
        return False
    return not registry.has_image(image)


def pin_of(registry: Registry, host: str) -> tuple[str, str] | None:
    """``(host_id, manager_id)`` of a pin, one of them empty; None if there is no such."""
    if not host:
        return ("", "")
    entry = registry.find_host(host)
    if entry is not None:
        return (entry.description.host_id, "")
    return ("", host) if host in registry.managers else None

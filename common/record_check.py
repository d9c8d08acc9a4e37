"""Does the record fit together? Pure: values in, findings out.

Nothing here is mended: a finding says what a person may do. Things that only last for a moment in a
living cluster (a task that is recorded just after its VM) cannot be seen, as both are one
transaction.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from snooze.common import records
from snooze.common.api import TASK_ENDED
from snooze.common.autonomy import AutonomyRecord
from snooze.common.energy_records import ENERGY, EnergyRecord
from snooze.common.errors import ExecutionError
from snooze.common.record_layout import host_path, task_path, vm_path
from snooze.common.records import HostRecord, LeaseRecord, TaskRecord, VmRecord
from snooze.common.vm_lifecycle import VmState

LARGE_BYTES: Final = 100_000
"""A value above this is unusual: a template of some hundred kilobytes even when compressed."""

_KINDS: Final[dict[str, type[msgspec.Struct]]] = {
    records.HOSTS: HostRecord,
    records.VMS: VmRecord,
    records.TASKS: TaskRecord,
}
_OTHERS: Final[dict[str, type[msgspec.Struct]]] = {
    ENERGY: EnergyRecord,
    records.AUTONOMY: AutonomyRecord,
    records.LEASE: LeaseRecord,
}

UNREADABLE_ADVICE: Final = (
    "until it is gone no leader can take over: restore a backup, or export the record and import "
    "it with --replace --leave-out-unreadable"
)


class Finding(msgspec.Struct, frozen=True):
    """Something that is not as it should be: where, what, and what to do about it."""

    path: str
    what: str
    advice: str


class Totals(msgspec.Struct, frozen=True):
    """How much there is of one kind; bytes are those of the values."""

    kind: str
    count: int
    bytes: int
    largest_bytes: int


class Report(msgspec.Struct, frozen=True):
    """What a check found."""

    findings: list[Finding]
    totals: list[Totals]


def check(values: Mapping[str, bytes], managers: Iterable[str]) -> Report:
    """Check all values: that each can be read, and that hosts, VMs and tasks fit together.

    Args:
        values: by path; those of kinds that are not known are left out.
        managers: ids of the group managers that are up; none: nobody is asked about them.
    """
    findings: list[Finding] = []
    decoded: dict[str, dict[str, msgspec.Struct]] = {kind: {} for kind in _KINDS}
    sizes: dict[str, list[int]] = {kind: [] for kind in _KINDS}
    for path, data in values.items():
        kind = kind_of(path)
        record = readable(path, data)
        if isinstance(record, str):
            advice = UNREADABLE_ADVICE
            if "upgrade" in record:
                advice = "run the version that wrote it, or a later one"
            findings.append(Finding(path, record, advice))
        if kind not in _KINDS:
            continue
        sizes[kind].append(len(data))
        if isinstance(record, msgspec.Struct):
            decoded[kind][path] = record
        if len(data) > LARGE_BYTES:
            what = f"{len(data)} bytes are unusually many"
            findings.append(Finding(path, what, "see what its template or task has so much of"))
    hosts = {p: r for p, r in decoded[records.HOSTS].items() if isinstance(r, HostRecord)}
    vms = {p: r for p, r in decoded[records.VMS].items() if isinstance(r, VmRecord)}
    tasks = {p: r for p, r in decoded[records.TASKS].items() if isinstance(r, TaskRecord)}
    findings += _misplaced(hosts, vms, tasks)
    findings += _about_hosts(hosts, set(managers))
    findings += _about_vms(vms, hosts, tasks)
    findings += _about_tasks(tasks, vms)
    totals = [
        Totals(kind.strip("/"), len(found), sum(found), max(found, default=0))
        for kind, found in sizes.items()
    ]
    return Report(findings, totals)


def kind_of(path: str) -> str:
    """The first part of a path: ``/vms``."""
    return "/" + path.split("/")[1]


def readable(path: str, data: bytes) -> msgspec.Struct | str | None:
    """The record that a value is, or why it cannot be read; None if its kind is not known."""
    kind = kind_of(path)
    record = _KINDS.get(kind) or _OTHERS.get(kind)
    if record is None:
        return None
    try:
        return records.decode(data, record)
    except ExecutionError as error:
        return error.message


def _misplaced(
    hosts: Mapping[str, HostRecord], vms: Mapping[str, VmRecord], tasks: Mapping[str, TaskRecord]
) -> list[Finding]:
    right = {path: host_path(host.host_id) for path, host in hosts.items()}
    right |= {path: vm_path(vm.vm_id) for path, vm in vms.items()}
    right |= {path: task_path(task.task_id) for path, task in tasks.items()}
    return [
        Finding(path, f"it belongs to {target}", "it was put there by hand: move it, or delete it")
        for path, target in right.items()
        if path != target
    ]


def _about_hosts(hosts: Mapping[str, HostRecord], managers: set[str]) -> list[Finding]:
    findings = _shared(
        {path: host.hostname for path, host in hosts.items()},
        "hostname",
        "give each host a name of its own; one that is gone for good can be forgotten",
    )
    for path, host in hosts.items():
        if managers and host.manager_id not in managers and not host.away:
            findings.append(
                Finding(
                    path,
                    f"its group manager {host.manager_id} is not up",
                    f"nothing if host {host.hostname} is off or about to join another; "
                    "else look at its local controller",
                )
            )
    return findings


def _about_vms(
    vms: Mapping[str, VmRecord], hosts: Mapping[str, HostRecord], tasks: Mapping[str, TaskRecord]
) -> list[Finding]:
    # a record of a VM that is gone only tells its copies from VMs: its name is free
    named = {path: vm.name for path, vm in vms.items() if vm.state is not VmState.DESTROYED}
    leased = {path: vm.ip_address for path, vm in vms.items()}
    findings = _shared(named, "name", "destroy one of them by its id")
    findings += _shared(leased, "address", "destroy or readdress one of them by its id")
    known_hosts = {host.host_id for host in hosts.values()}
    known_tasks = {task.task_id for task in tasks.values()}
    for path, vm in vms.items():
        if vm.host_id and vm.host_id not in known_hosts:
            advice = f"start that host, or destroy {vm.name}"
            findings.append(Finding(path, f"its host {vm.host_id} is not in the record", advice))
        if vm.state is VmState.PENDING and vm.task_id not in known_tasks:
            what = f"it waits for a host, and its task {vm.task_id} is not in the record"
            findings.append(Finding(path, what, f"submit {vm.name} again"))
    return findings


def _about_tasks(tasks: Mapping[str, TaskRecord], vms: Mapping[str, VmRecord]) -> list[Finding]:
    known = {vm.vm_id for vm in vms.values()}
    return [
        Finding(
            path,
            f"it has not ended, and its VM {vm.name} ({vm.vm_id}) is not in the record",
            "nothing: the leader ends it, and says that the VM was lost",
        )
        for path, task in tasks.items()
        if task.state not in TASK_ENDED
        for vm in task.vms
        if vm.error is None and vm.vm_id not in known
    ]


def _shared(values: Mapping[str, str], what: str, advice: str) -> list[Finding]:
    """Those that have the same value, the first of them left out."""
    owners: dict[str, list[str]] = defaultdict(list)
    for path, value in values.items():
        if value:
            owners[value].append(path)
    return [
        Finding(path, f"{what} {value} is also that of {first}", advice)
        for value, (first, *others) in owners.items()
        for path in others
    ]

"""The cluster as a drain sees it, and its plan in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from snooze.common.api import DrainMove, DrainStay, DrainView
from snooze.common.decisions import DecisionKind, DecisionState
from snooze.common.errors import ErrorReport
from snooze.common.records import HostPower, TaskVmRecord
from snooze.common.resources import FloatArray, R
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmState
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.groupmanager.leader.submission_events import Decided
from snooze.scheduling.drain import Drain
from snooze.scheduling.explain import other_targets
from snooze.scheduling.plans import Reason, ReasonCode
from snooze.scheduling.snapshot import HostState, Snapshot

MAX_LINES: Final = 50
COMES: Final = "no host takes it yet; a host is woken for it"


def to_leave(registry: Registry, host_ids: Sequence[str]) -> list[VmEntry]:
    """The VMs on these hosts that a hypervisor runs, in the order of their names."""
    wanted = set(host_ids)
    found = [
        vm
        for vm in registry.vms.values()
        if vm.managed and vm.host_id in wanted and vm.state in HOLDS_CAPACITY
    ]
    return sorted(found, key=lambda vm: (vm.name, vm.vm_id))


def snapshot_of(
    registry: Registry, draining: Sequence[str], overcommit: FloatArray, headroom: FloatArray
) -> Snapshot:
    """All hosts in reach and what is on them, as the leader knows it.

    VMs of other hosts make room only if the cluster may move them by itself.
    """
    hosts = sorted(h for h, entry in registry.hosts.items() if entry.joined)
    rows = {host_id: row for row, host_id in enumerate(hosts)}
    vms = sorted(
        (vm for vm in registry.vms.values() if vm.host_id in rows and vm.state in HOLDS_CAPACITY),
        key=lambda vm: vm.key,
    )
    drained = set(draining)
    capacity = [registry.hosts[i].description.capacity.as_tuple() for i in hosts]
    return Snapshot.of(
        hosts,
        np.array(capacity).reshape(len(hosts), R),
        host_state=[int(_state_of(registry.hosts[i], i in drained)) for i in hosts],
        vm_ids=[vm.key for vm in vms],
        demand=np.array([vm.demand.as_tuple() for vm in vms]).reshape(len(vms), R),
        placement=[rows[vm.host_id] for vm in vms],
        overcommit=overcommit,
        headroom=headroom,
        movable=[
            vm.managed
            and vm.state is VmState.RUNNING
            and (vm.policy.movable or vm.host_id in drained)
            for vm in vms
        ],
    )


def drain_view(
    registry: Registry,
    snapshot: Snapshot,
    answer: Drain,
    host_ids: Sequence[str],
    can_wake: Callable[[VmEntry], bool],
) -> DrainView:
    """A plan in names, for people."""

    def host(row: int) -> str:
        return hostname(registry, snapshot.host_ids[row])

    def vm(row: int) -> str:
        entry = registry.vms.get(snapshot.vm_ids[row])
        return entry.name if entry is not None else snapshot.vm_ids[row]

    stays: list[DrainStay] = []
    for reason in answer.plan.reasons:
        entry = registry.vms.get(snapshot.vm_ids[reason.vm])
        why = why_it_stays(entry, reason, can_wake) if entry is not None else reason.message
        stays.append(DrainStay(vm(reason.vm), why))
    return DrainView(
        hosts=sorted(hostname(registry, host_id) for host_id in set(host_ids)),
        moves=[
            DrainMove(vm(move.vm), host(move.source), host(move.target), move.batch)
            for move in answer.plan.moves
        ],
        stays=stays,
        emptied=sorted(host(row) for row in answer.emptied),
        seconds=round(answer.cost_s, 3),
    )


def drain_decision(
    registry: Registry,
    snapshot: Snapshot,
    answer: Drain,
    host_ids: Sequence[str],
    task_id: str,
    inputs: bytes,
    can_wake: Callable[[VmEntry], bool],
) -> tuple[DrainView, Decided]:
    """The decision that a drain is, as its first plan says; and that plan for people."""
    view = drain_view(registry, snapshot, answer, host_ids, can_wake)

    def host(row: int) -> str:
        return hostname(registry, snapshot.host_ids[row])

    moves = [
        f"migrate {move.vm} from {move.source} to {move.target}" for move in view.moves[:MAX_LINES]
    ]
    if len(view.moves) > MAX_LINES:
        moves.append(f"and {len(view.moves) - MAX_LINES} more moves")
    others = [f"{stay.vm} stays: {stay.reason}" for stay in view.stays]
    for move, named in zip(answer.plan.moves[:5], view.moves, strict=False):
        others += other_targets(snapshot, move, named.vm, host)
    decided = Decided(
        f"drain:{task_id}",
        DecisionKind.DRAIN,
        DecisionState.RUNNING,
        tuple(sorted(set(host_ids))),
        f"a person wants {', '.join(view.hosts)} empty; whole-cluster plan of {len(view.moves)} "
        f"moves, about {view.seconds:.0f} s",
        tuple(moves) or ("nothing can move" if view.stays else "nothing has to move",),
        tuple(dict.fromkeys(others))[:MAX_LINES],
        inputs=inputs,
    )
    return view, decided


def drain_outcome(
    decided: Decided, moved: int, left: Sequence[VmEntry], stays: Mapping[str, str], why: str
) -> Decided:
    """What became of a drain; ``why`` it ended before all had left."""
    text = f"{moved} of {moved + len(left)} VMs moved away"
    text += "".join(
        f"; {vm.name} stays: {stays.get(vm.vm_id) or why or 'it did not move'}" for vm in left[:10]
    )
    if len(left) > 10:
        text += f"; and {len(left) - 10} more"
    state = DecisionState.DONE
    if left:
        state = DecisionState.PARTLY if moved else DecisionState.FAILED
    return replace(decided, state=state, outcome=text, inputs=b"")


def hostname(registry: Registry, host_id: str) -> str:
    """A host's name; its id if it is not known."""
    host = registry.hosts.get(host_id)
    return host.description.hostname if host is not None else host_id


def _state_of(host: HostEntry, draining: bool) -> HostState:
    if draining:
        return HostState.DRAINING
    takes = host.state is HostPower.ACTIVE and not host.maintenance
    return HostState.ACTIVE if takes else HostState.MAINTENANCE


def why_it_stays(vm: VmEntry, reason: Reason, can_wake: Callable[[VmEntry], bool]) -> str:
    """Why a VM cannot leave, in words a person can act on; ``COMES``: it can soon."""
    if not vm.managed:
        return "it was not started by Snooze: move or stop it by hand"
    if vm.state is not VmState.RUNNING:
        return f"it is {vm.state.value}: only a running VM migrates"
    lacks_room = reason.code in {ReasonCode.NO_HOST_FITS, ReasonCode.NO_HOSTS}
    return COMES if lacks_room and can_wake(vm) else reason.message


def task_entry(vm: VmEntry, error: ErrorReport | None = None) -> TaskVmRecord:
    """How a VM is, for the task that moves it."""
    return TaskVmRecord(vm.vm_id, vm.name, vm.state, vm.host_id, vm.ip_address, error)


def cannot(_vm: VmEntry) -> bool:
    """No sleeper could take the VM."""
    return False

"""Which manager is asked for which VM: ``scheduling.dispatching`` on what the leader knows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snooze.common.vms import VmErrorCode
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.registry import Plan, Registry, VmEntry
from snooze.scheduling import dispatching, rulings
from snooze.scheduling.dispatch_question import (
    DispatchQuestion,
    ManagerRoom,
    Wanted,
    choose_managers,
)
from snooze.scheduling.energy_question import amounts


@dataclass(frozen=True, slots=True)
class NoManager:
    """A VM that no manager can be asked for, and why."""

    vm: VmEntry
    code: VmErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The managers to ask; ``cursor`` is for the next choice.

    ``inputs``: what makes the same choice again, if a VM is restarted.
    """

    asked: Sequence[tuple[VmEntry, str]]
    left: Sequence[NoManager]
    cursor: int
    inputs: bytes = b""


def choose(
    registry: Registry,
    vms: Sequence[VmEntry],
    policy: dispatching.DispatchPolicy,
    cursor: int,
) -> Choice:
    """Choose a manager for VMs that the same managers have refused.

    What is sent to a manager is taken out of the leader's view of it, until its next summary. That
    is of all its hosts, and may be older than its having the host that was asked for: there the
    manager says itself whether there is room.
    """
    tried = vms[0].tried
    members = sorted(registry.managers.values(), key=lambda m: m.manager_id)
    managers = [m for m in members if m.view is not None and m.manager_id not in tried]
    index = {m.manager_id: i for i, m in enumerate(managers)}
    pins = [_pin(registry, vm, index) for vm in vms]
    plan = dispatching.plan(
        [m.view for m in managers if m.view is not None],
        np.array([vm.demand.as_tuple() for vm in vms]),
        np.array(pins, dtype=np.int64),
        policy,
        cursor,
    )
    restarts = any(vm.plan is not Plan.NONE for vm in vms)
    inputs = _inputs(managers, vms, pins, policy, cursor) if restarts else b""
    why = {reason.vm: reason.message for reason in plan.reasons}
    asked: list[tuple[VmEntry, str]] = []
    left: list[NoManager] = []
    for i, vm in enumerate(vms):
        if plan.manager[i] < 0 and vm.pin_host and not restarts and 0 <= pins[i] < len(managers):
            asked.append((vm, managers[pins[i]].manager_id))
            continue
        if plan.manager[i] < 0:
            left.append(_no_manager(registry, vm, why.get(i, ""), managers))
            continue
        manager = managers[int(plan.manager[i])]
        if manager.view is not None:
            manager.view = dispatching.without(manager.view, vm.demand.as_array())
        asked.append((vm, manager.manager_id))
    return Choice(asked, left, plan.cursor, inputs)


def _inputs(
    managers: Sequence[ManagerEntry],
    vms: Sequence[VmEntry],
    pins: Sequence[int],
    policy: dispatching.DispatchPolicy,
    cursor: int,
) -> bytes:
    """The choice as a question, with its answer."""
    question = DispatchQuestion(
        tuple(
            ManagerRoom(
                m.manager_id,
                m.description.hostname,
                tuple(amounts(row) for row in m.view.room),
                tuple(m.view.count.tolist()),
            )
            for m in managers
            if m.view is not None
        ),
        tuple(
            Wanted(vm.vm_id, vm.name, vm.demand.as_tuple(), pin)
            for vm, pin in zip(vms, pins, strict=True)
        ),
        policy.value,
        cursor,
    )
    return rulings.pack(rulings.DISPATCH, question, choose_managers(question))


def _pinned_to(registry: Registry, vm: VmEntry) -> str | None:
    """The manager that alone may have the VM; None: any; empty: it is not known."""
    if vm.pin_host:
        host = registry.hosts.get(vm.pin_host)
        return host.manager_id if host is not None and host.joined else ""
    return vm.pin_manager or None


def _pin(registry: Registry, vm: VmEntry, index: dict[str, int]) -> int:
    """Index of the only manager that may have it, -1 for any, a large one for "is away"."""
    pinned = _pinned_to(registry, vm)
    return -1 if pinned is None else index.get(pinned, len(index))


def _no_manager(
    registry: Registry, vm: VmEntry, why: str, managers: Sequence[ManagerEntry]
) -> NoManager:
    pinned = _pinned_to(registry, vm)
    if vm.tried:
        return NoManager(vm, VmErrorCode.NO_CAPACITY, vm.reason or why)
    if pinned is not None and pinned not in registry.managers:
        what = "host" if vm.pin_host else "group manager"
        return NoManager(vm, VmErrorCode.NO_CAPACITY, f"the {what} it is pinned to is out of reach")
    if managers:
        return NoManager(vm, VmErrorCode.NO_CAPACITY, why)
    return NoManager(vm, VmErrorCode.NO_MANAGER, "no group manager with hosts has joined")

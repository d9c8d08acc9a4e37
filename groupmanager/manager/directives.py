"""What the leader says of a manager's hosts: stale copies go before a host takes anything."""

from typing import Final

import msgspec

from snooze.common.errors import ErrorReport
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmState
from snooze.common.wire import DiscardVm, HostDirective, OrderDone, StaleCopy, VmsChanged
from snooze.groupmanager.manager.host_table import HostEntry, HostTable, VmEntry
from snooze.groupmanager.manager.manager_events import (
    CloseHost,
    ManagerEffect,
    TellLeader,
)
from snooze.groupmanager.manager.ordering import GiveOrder, Outcome

MAX_TRIES: Final = 5
"""How often a copy is ordered off a host, before the host is asked to join again."""


class Directives:
    """Carries directives out."""

    def __init__(self, table: HostTable, order: GiveOrder) -> None:
        self._table = table
        self._order = order

    def directed(self, directives: list[HostDirective]) -> list[ManagerEffect]:
        """Take in what holds of some hosts; those that joined anew since are left alone."""
        effects: list[ManagerEffect] = []
        for directive in directives:
            host = self._table.hosts.get(directive.host_id)
            if host is None or host.epoch != directive.host_epoch:
                continue
            known = set(host.stale)
            self._table.set_directive(host, directive)
            for copy in directive.stale:
                if copy.vm_id not in known:
                    effects += self._discard(host, copy, 1)
        return effects

    def _discard(self, host: HostEntry, copy: StaleCopy, tries: int) -> list[ManagerEffect]:
        host_id = host.host_id

        def done(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if self._table.hosts.get(host_id) is not host or copy.vm_id not in host.stale:
                return []
            if isinstance(outcome, ErrorReport):
                if tries < MAX_TRIES:
                    return self._discard(host, copy, tries + 1)
                why = f"its stale copy of VM {copy.vm_id} does not go: {outcome.message}"
                return [CloseHost(host_id, why)]
            left = outcome.report if isinstance(outcome, OrderDone) else None
            return self._discarded(host, copy, gone=left is None)

        return self._order(
            host_id,
            lambda epoch: DiscardVm(epoch, "recovery", copy.vm_id, copy.generation, copy.only_off),
            done,
        )

    def _discarded(self, host: HostEntry, copy: StaleCopy, *, gone: bool) -> list[ManagerEffect]:
        """The copy is gone, or is none any more: forget it, and let the leader know."""
        vm = host.copies.get(copy.vm_id) or self._table.vms.get(copy.vm_id)
        self._table.discarded(host, copy.vm_id)
        if vm is None or vm.host_id != host.host_id or not gone:
            return []
        effects: list[ManagerEffect] = []
        if self._table.vms.get(copy.vm_id) is vm:
            self._table.remove_vm(vm)
            effects += self.promote(copy.vm_id)
        return [*self._tell(vm), *effects]

    def promote(self, key: str) -> list[ManagerEffect]:
        """The domain that was taken for the VM is gone: the best copy is the VM from now on."""
        return promote(self._table, key)

    def _tell(self, vm: VmEntry) -> list[ManagerEffect]:
        vm.state = VmState.DESTROYED
        return [TellLeader(VmsChanged([msgspec.structs.replace(vm.status(), discarded=True)]))]


def promote(table: HostTable, key: str, arrived: int = 0) -> list[ManagerEffect]:
    """Take the best copy for the VM; it has ``arrived`` if it is on, with that generation.

    One that is being discarded is none, if it is off: it would be gone before it could be started.
    """
    found = [
        host.copies[key]
        for host in table.hosts.values()
        if key in host.copies
        and (key not in host.stale or host.copies[key].state in HOLDS_CAPACITY)
    ]
    best = max(found, key=_rank, default=None)
    if best is None or (arrived and _rank(best) < (True, arrived)):
        return []
    del table.hosts[best.host_id].copies[key]
    table.put_vm(best)
    return [TellLeader(VmsChanged([best.status()]))]


def put_report(table: HostTable, host: HostEntry, vm: VmEntry) -> None:
    """Put what a joining host says of a VM into the table, beside what other hosts have.

    Of two domains of one VM the one whose guest is on is the VM until the leader says otherwise;
    else the one with the higher generation. The other is a copy that the leader is told of.
    """
    known = table.vms.get(vm.key)
    if known is None or not vm.report.managed or known.host_id == host.host_id:
        table.put_vm(vm)
        return
    if _rank(known) >= _rank(vm):
        host.copies[vm.key] = vm
        return
    table.set_aside(known)
    table.put_vm(vm)


def _rank(vm: VmEntry) -> tuple[bool, int]:
    return vm.state in HOLDS_CAPACITY, vm.report.generation

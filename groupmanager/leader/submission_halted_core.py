"""VMs that a migration left paused, and nobody sees to any more: they go on where they are.

Rules:

1. A host calls a VM *halted* that is paused by a migration and by nobody's wish: its source after a
   migration that stopped half-way, or its destination while it waits for the word that its source
   has let it go. As long as a manager sees to the migration (``moving``), it does that.
2. It goes on once nobody else can have it: no copy of it is known, and every other host is in
   reach, asleep, or proven down. Until then it stays paused; a person may resume it.
3. It has been so for ``HALT_S``: what hosts and managers say of one move comes one after the other.
   What failed is tried again after ``AGAIN_S``.

Invariant: no VM is resumed of which a host out of reach may have another domain.
"""

from dataclasses import dataclass, field
from typing import Final

from snooze.common.records import HostPower
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import VmStatus
from snooze.groupmanager.leader.registry import Plan, VmEntry
from snooze.groupmanager.leader.submission_events import StartThere, SubmissionEffect
from snooze.groupmanager.leader.submission_state_core import SubmissionState

HALT_S: Final = 5.0
AGAIN_S: Final = 30.0


@dataclass(slots=True)
class Halted(SubmissionState):
    """The part of the submission core that lets halted VMs go on; ``halted``: not before when."""

    halted: dict[str, float] = field(default_factory=dict[str, float])

    def note_halted(self, vm: VmEntry, status: VmStatus, now_s: float) -> None:
        """A host says how a VM is."""
        if vm.managed and status.halted and vm.state is VmState.PAUSED:
            self.halted.setdefault(vm.vm_id, now_s + HALT_S)
        else:
            self.halted.pop(vm.vm_id, None)

    def let_go_on(self, now_s: float) -> list[SubmissionEffect]:
        """Time went by (rules 2 and 3)."""
        effects: list[SubmissionEffect] = []
        for vm_id, not_before_s in sorted(self.halted.items()):
            vm = self.registry.vms.get(vm_id)
            if vm is None or vm.state is not VmState.PAUSED:
                del self.halted[vm_id]
                continue
            host = self.registry.hosts.get(vm.host_id)
            if now_s < not_before_s or host is None or not host.joined:
                continue
            if vm.moving or vm.plan is not Plan.NONE or not self._is_alone(vm):
                continue
            self.halted[vm_id] = now_s + AGAIN_S
            effects.append(StartThere(host.manager_id, vm_id, vm.host_id, resume=True))
        return effects

    def _is_alone(self, vm: VmEntry) -> bool:
        if any(vm.vm_id in copies for copies in self.registry.copies.values()):
            return False
        hosts_away = self.registry.hosts.away(but={HostPower.ASLEEP})
        return all(host.is_off_for(vm) for host in hosts_away)

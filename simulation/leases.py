"""What keeps a host's lease in a world: its notes on the machine's disk, and the guard.

The lease itself is the product's (``localcontroller/lease.py``, ``common/lease_core.py``), and so
is what the guard decides by (``fence_guard.Guard``). Here are the file that the two share, and what
the guard does to guests: libvirt switches them off, or, if it hangs for ``LIBVIRT_S``, their
processes are killed and libvirt finds out later.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from snooze.common.vm_lifecycle import VmState
from snooze.localcontroller.fence_guard import LIBVIRT_S, POLL_S, Guard, Note
from snooze.localcontroller.hypervisor.simulated_world import SimulatedHost, SimulatedVm
from snooze.localcontroller.lease import GuardRuns, StartGuard
from snooze.localcontroller.lease_file import LeaseFile, LeaseState
from snooze.simulation.loop import Process
from snooze.simulation.network import Machine

ON = frozenset({VmState.RUNNING, VmState.PAUSED, VmState.STOPPING, VmState.MIGRATING})
"""What libvirt, or a signal, ends at once."""
BEGUN = ON | {VmState.STARTING}
"""What libvirt ends: a start under way, too, which fails then (docs/never-twice.md, step 3). A
signal does not: a start that a hanging libvirt has begun is looked at again."""


class Notes(LeaseFile):
    """The lease file of a machine: it outlives processes, and of a reboot only what was fenced."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(Path(f"/{machine.name}/lease.json"))
        self._machine = machine
        self._state = LeaseState()

    @property
    def _boot(self) -> str:
        return str(self._machine.boots)

    def read(self) -> LeaseState:
        """See ``LeaseFile``."""
        if self._state.boot_id != self._boot:
            return LeaseState(self._boot, fenced=self._state.fenced)
        return self._state

    def write(self, state: LeaseState) -> None:
        """See ``LeaseFile``."""
        self._state = msgspec.structs.replace(state, boot_id=self._boot)


class GuardProcess:
    """The guard of one machine."""

    def __init__(
        self, process: Process, notes: Notes, host: SimulatedHost, tell: Callable[[str], None]
    ) -> None:
        self._process = process
        self._host = host
        self._tell = tell
        self._hangs_since_s: float | None = None
        self._guard = Guard(notes, self._fence, process)
        process.spawn(self._run())

    async def _run(self) -> None:
        while True:
            self._guard.look()
            await asyncio.sleep(POLL_S)

    def _fence(self, note: Note) -> bool:
        """See ``fence_guard.fence``: whether nothing is on any more that has to be off."""
        hypervisor = self._process.machine.processes.get("hypervisor")
        ends = ON if hypervisor is not None and hypervisor.paused else BEGUN
        doomed = [
            vm
            for vm in self._host.vms.values()
            if vm.managed and vm.spec.policy.is_highly_available and vm.state in ends
        ]
        now_s = self._process.boottime_s()
        if not doomed or hypervisor is None or not hypervisor.paused:
            self._hangs_since_s = None
        elif self._hangs_since_s is None:
            self._hangs_since_s = now_s
        if not doomed:
            return True
        if self._hangs_since_s is not None and now_s - self._hangs_since_s < LIBVIRT_S:
            return False
        note({vm.spec.vm_id: vm.spec.generation for vm in doomed})
        self._tell(f"no lease: its guard switches {', '.join(vm.spec.name for vm in doomed)} off")
        for vm in doomed:
            self._end(vm, hypervisor)
        return self._hangs_since_s is None

    def _end(self, vm: SimulatedVm, hypervisor: Process | None) -> None:
        """The guest is off at once; its hypervisor says so when it can."""
        killed = self._hangs_since_s is not None
        vm.state = VmState.FAILED if killed else VmState.STOPPED
        vm.reason = "crashed" if killed else "destroyed"
        vm.interrupted, vm.halted = False, False

        def heard() -> None:
            if self._host.vms.get(vm.spec.vm_id) is not vm:
                return
            for listener in tuple(self._host.listeners):
                if vm.state is VmState.FAILED:
                    listener.vm_crashed(vm)
                elif vm.state is VmState.STOPPED:
                    listener.vm_stopped(vm)

        if hypervisor is not None:
            hypervisor.run(heard)


def guard_starter(
    machine: Machine,
    notes: Notes,
    host: SimulatedHost,
    fork: Callable[[], Process],
    tell: Callable[[str], None],
) -> StartGuard:
    """How the agent of a machine starts its guard, in the process that ``fork`` makes."""

    def start() -> GuardRuns:
        if "guard" in machine.processes:
            return lambda: False  # one is there, and the second ends at once
        process = fork()
        GuardProcess(process, notes, host, tell)
        return lambda: process.alive

    return start

"""VMs whose start is under way: until it has ended, a manager keeps their room."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from typing import Final

import msgspec

from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmReport, VmSpec, being_started
from snooze.localcontroller.touched import Touched

_OFF = frozenset({VmState.STOPPED, VmState.FAILED})
LATELY_S: Final = 30.0
"""No event is so late; hosts look at everything as often."""


class Starts:
    """The starts that are under way on this host.

    Attributes:
        new: VMs that have no domain yet, as they are told of meanwhile.
    """

    def __init__(self) -> None:
        self.new: dict[str, VmReport] = {}
        self._orders: Counter[str] = Counter()
        self._again: set[str] = set()
        self._ended_s: dict[str, float] = {}
        self._ending = Touched()

    def ending(self) -> AbstractContextManager[set[str]]:
        """The VMs whose start ends, however, while somebody looks."""
        return self._ending.during(())

    @contextlib.contextmanager
    def noting(self, spec: VmSpec) -> Generator[VmReport]:
        """Have the VM known as starting; the same may be ordered again meanwhile."""
        vm_id = spec.vm_id
        pending = self.new[vm_id] = being_started(spec)
        self._orders[vm_id] += 1
        try:
            yield pending
        finally:
            self._note_end(vm_id)
            self._orders[vm_id] -= 1
            if not self._orders[vm_id]:
                del self._orders[vm_id], self.new[vm_id]

    @contextlib.contextmanager
    def noting_again(self, vm_id: str) -> Generator[None]:
        """Have a VM that is off known as starting: it is not to run beside what took its room."""
        self._again.add(vm_id)
        try:
            yield
        finally:
            self._note_end(vm_id)
            self._again.discard(vm_id)

    def _note_end(self, vm_id: str) -> None:
        self._ending.note(vm_id)
        now_s = asyncio.get_running_loop().time()
        self._ended_s.pop(vm_id, None)
        self._ended_s[vm_id] = now_s
        while now_s - next(iter(self._ended_s.values())) > LATELY_S:
            del self._ended_s[next(iter(self._ended_s))]

    def ended_lately(self, vm_id: str) -> bool:
        """Whether an event may be about what the VM was before it was started here."""
        ended_s = self._ended_s.get(vm_id)
        return ended_s is not None and asyncio.get_running_loop().time() - ended_s <= LATELY_S

    def marked(self, reports: Sequence[VmReport]) -> list[VmReport]:
        """What the hypervisor says; what it has as off and is being started is starting."""
        return [
            msgspec.structs.replace(report, state=VmState.STARTING, reason="")
            if report.state in _OFF and self._is_under_way(report)
            else report
            for report in reports
        ]

    def _is_under_way(self, report: VmReport) -> bool:
        new = self.new.get(report.vm_id)
        is_new = new is not None and new.generation == report.generation
        return is_new or report.vm_id in self._again

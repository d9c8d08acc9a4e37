"""Decisions in words: why, what, and what else was weighed. For people; nothing is decided here."""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from snooze.common.resources import AXIS_NAMES, KIB_PER_MIB, Axis, FloatArray, R
from snooze.groupmanager.manager.cluster_view import View
from snooze.groupmanager.manager.host_table import HostTable
from snooze.groupmanager.manager.plan_work import Step
from snooze.scheduling.detection import LIMITS, Detection, Detector
from snooze.scheduling.explain import other_targets
from snooze.scheduling.plans import Plan
from snooze.scheduling.plugged import CODE
from snooze.scheduling.relocation import Outcome
from snooze.scheduling.relocation_cost import MigrationCost

MAX_LINES: Final = 50
FIXED: Final = LIMITS["thresholds"]


class Story:
    """Words for one view of a manager's hosts."""

    def __init__(self, table: HostTable, view: View) -> None:
        self._table = table
        self._view = view
        self._use = view.use

    def host(self, row: int) -> str:
        """A host's name."""
        host_id = self._view.snapshot.host_ids[row]
        return self._table.hosts[host_id].description.hostname or host_id

    def vm(self, row: int) -> str:
        """A VM's name."""
        key = self._view.snapshot.vm_ids[row]
        return self._table.vms[key].report.name or key

    def steps(self, plan: Plan) -> list[Step]:
        """The plan's moves by names."""
        snapshot = self._view.snapshot
        return [
            Step(
                snapshot.vm_ids[move.vm],
                self.vm(move.vm),
                snapshot.host_ids[move.source],
                snapshot.host_ids[move.target],
                move.batch,
            )
            for move in plan.moves
        ]

    def overload(self, rows: Iterable[int], seen: Detection, detector: Detector) -> str:
        """Why hosts count as overloaded: what they used in the time that decides about it."""
        said: list[str] = []
        mean, highest, limit = seen.stretch.mean, seen.stretch.highest, seen.stretch.limit
        above = np.divide(highest, limit, out=np.full_like(highest, np.inf), where=limit > 0)
        above[highest <= 0] = 0.0
        for row in rows:
            axis = int(np.argmax(above[row]))
            by = f" by {detector.name}" if detector.name != FIXED.name else ""
            said.append(
                f"{self.host(row)} is overloaded{by}: {AXIS_NAMES[axis]} {mean[row, axis]:.0%} on "
                f"average and up to {highest[row, axis]:.0%} in the last {detector.sustain_s:g} s; "
                f"its limit is {limit[row, axis]:.0%}"
            )
        return _joined(said)

    def underload(self, rows: Iterable[int], seen: Detection, idle_s: float) -> str:
        """Why hosts count as underloaded."""
        return _joined(
            f"{self.host(row)} is hardly used: cpu {seen.mean[row, Axis.CPU]:.0%}, memory "
            f"{seen.mean[row, Axis.MEMORY]:.0%} on average, for {idle_s:g} s or more"
            for row in rows
        )

    def actions(self, plan: Plan, cost: MigrationCost) -> tuple[str, ...]:
        """What is to be done, a line a move, with what the hosts will use then."""
        after = self._after(plan)
        lines: list[str] = []
        for move in plan.moves[:MAX_LINES]:
            use = self._view.snapshot.demand[move.vm]
            lines.append(
                f"migrate {self.vm(move.vm)} ({use[Axis.CPU]:.2f} cores, "
                f"{use[Axis.MEMORY] / KIB_PER_MIB:.0f} MiB in use) from {self.host(move.source)} "
                f"to {self.host(move.target)}, about {cost.duration_s[move.vm]:.1f} s; cpu "
                f"{self._use[move.source, 0]:.0%} -> {after[move.source, 0]:.0%} and "
                f"{self._use[move.target, 0]:.0%} -> {after[move.target, 0]:.0%}"
            )
        if len(plan.moves) > MAX_LINES:
            lines.append(f"and {len(plan.moves) - MAX_LINES} more moves")
        lines += [f"{self.host(row)} is empty then" for row in plan.sleeps[:MAX_LINES]]
        return tuple(lines)

    def alternatives(
        self, plan: Plan, outcomes: Sequence[Outcome], cost: MigrationCost
    ) -> tuple[str, ...]:
        """What was not done, and why."""
        moved = {move.vm for move in plan.moves}
        lines = [
            f"{problem.where} was asked first, and failed: {problem.message}"
            for problem in plan.problems
            if problem.code == CODE
        ]
        lines += [
            f"{self.vm(reason.vm)} stays: {reason.message}"
            for reason in plan.reasons
            if reason.vm not in moved
        ]
        told = {reason.vm for reason in plan.reasons}
        lines += [f"{self.host(each.host)}: {each.message}" for each in outcomes if not each.moves]
        for move in plan.moves[:5]:
            lines += self._other_vms(move.vm, move.source, moved | told, cost)
            lines += other_targets(self._view.snapshot, move, self.vm(move.vm), self.host)
        return tuple(dict.fromkeys(lines))[:MAX_LINES]

    def _other_vms(
        self, vm: int, source: int, named: set[int], cost: MigrationCost
    ) -> Iterable[str]:
        snapshot = self._view.snapshot
        others = [
            row for row in np.flatnonzero(snapshot.placement == source).tolist() if row not in named
        ]
        for row in others[:5]:
            if not snapshot.movable[row]:
                yield f"{self.vm(row)} instead of {self.vm(vm)}: it must not be migrated"
                continue
            yield (
                f"{self.vm(row)} instead of {self.vm(vm)}: frees {snapshot.demand[row, 0]:.2f} "
                f"cores instead of {snapshot.demand[vm, 0]:.2f}, takes about "
                f"{cost.duration_s[row]:.1f} s instead of {cost.duration_s[vm]:.1f}"
            )

    def _after(self, plan: Plan) -> FloatArray:
        """``float64[H, R]``: use by estimate once the plan is carried out."""
        use = self._use * self._view.snapshot.capacity[:, :R]
        for move in plan.moves:
            need = self._view.snapshot.demand[move.vm, :R]
            use[move.source] = np.maximum(use[move.source] - need, 0.0)
            use[move.target] += need
        capacity = self._view.snapshot.capacity[:, :R]
        share: FloatArray = np.divide(use, capacity, out=np.zeros_like(use), where=capacity > 0)
        return share


def _joined(lines: Iterable[str]) -> str:
    every = list(lines)
    more = f"; and {len(every) - 5} more" if len(every) > 5 else ""
    return "; ".join(every[:5]) + more

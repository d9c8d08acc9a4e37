"""Why a host is not emptied now: everything that stands against it, for people and programs.

The same control, view, detector, memory and policy are asked as when a manager decides
(``autonomy_core.py``); nothing is changed by asking.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from snooze.common.api import ObstacleView
from snooze.common.autonomy import Scope
from snooze.common.decisions import DecisionKind, DecisionMode
from snooze.common.resources import AXIS_NAMES, FloatArray, R
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmState
from snooze.groupmanager.manager.cluster_view import View
from snooze.groupmanager.manager.deciding_core import Deciding, among
from snooze.groupmanager.manager.decision_story import Story
from snooze.groupmanager.manager.host_table import VmEntry
from snooze.scheduling.detection import Detection, axis_values
from snooze.scheduling.plans import Plan
from snooze.scheduling.relocation import Hold, OutcomeKind, Situation
from snooze.scheduling.reserve import stranded_hosts
from snooze.scheduling.snapshot import HostState, Snapshot, accepting

UNDERLOAD: Final = DecisionKind.UNDERLOAD
MAX_LINES: Final = 50
MAX_HOSTS: Final = 20
"""Hosts of which it is told why a VM does not fit there."""


class Explaining(Deciding):
    """The part of ``Autonomy`` that says why a host is not emptied; see the module."""

    def obstacles(
        self, host_id: str, view: View, seen: Detection | None, row: int
    ) -> tuple[ObstacleView, ...]:
        """What stands against emptying a host; nothing: it is emptied at the next look.

        Args:
            view: of all hosts, with what its VMs are expected to use.
            seen: what was found at the last look; ``row``: the host's in it, -1 if it was not seen.
        """
        here = view.snapshot.host_ids.index(host_id)
        found = [*self._said(host_id), *self._now(host_id, view, here)]
        if not view.empty[here]:
            found += self._use(host_id, view, seen, row)
            found += self._memories(host_id)
            stuck = list(self._stuck(host_id))
            found += stuck
            if not stuck and view.takes_part[here]:
                found += self._room(view, here)
        found += self._pauses()
        found += self._told(host_id)
        return tuple(found[:MAX_LINES])

    # ------------------------------------------------------------ what people said

    def _said(self, host_id: str) -> Iterator[ObstacleView]:
        control, now_ms = self.control, self._wall_ms
        why_off = control.why_off(UNDERLOAD, now_ms, self.manager_id)
        if why_off:
            yield ObstacleView("switched_off", f"underload is {why_off}")
        elif (mode := self.mode(UNDERLOAD)) is not DecisionMode.AUTO:
            yield ObstacleView("mode", f"underload is on {mode.value}")
        mode = control.restriction(UNDERLOAD, now_ms, Scope.HOST, host_id)
        if mode is DecisionMode.OFF:
            yield ObstacleView("switched_off", "underload is paused or off for this host")
        elif mode is not DecisionMode.AUTO:
            yield ObstacleView("mode", f"underload is on {mode.value} for this host")

    # ------------------------------------------------------------ the host

    def _now(self, host_id: str, view: View, row: int) -> Iterator[ObstacleView]:
        host = self._table.hosts[host_id]
        if view.empty[row]:
            yield ObstacleView("empty", "nothing is on it: whether it sleeps is for energy saving")
        state = self._table.states([host_id])[0]
        if state != HostState.ACTIVE:
            name = HostState(int(state)).name.lower()
            yield ObstacleView("takes_no_part", f"it takes no VMs: {name}")
        elif view.unknown[row]:
            yield ObstacleView(
                "samples", "its samples, or those of a VM on it, are late or missing"
            )
        if self.policy.only_sleepable and not host.description.power.actions:
            text = "it cannot be put to sleep (relocation.only_sleepable)"
            yield ObstacleView("not_sleepable", text)
        if host_id in self._hot:
            yield ObstacleView("overloaded", "it is overloaded")

    def _use(
        self, host_id: str, view: View, seen: Detection | None, row: int
    ) -> Iterator[ObstacleView]:
        """Whether it is used little enough, and for long enough."""
        if seen is None or row < 0:
            yield ObstacleView("not_judged", "it has not been looked at yet")
            return
        if seen.underloaded[row]:
            return
        detector = self.policy.relocator.detector
        minimum = axis_values(detector.thresholds.minimum, R)
        busy = [axis for axis in range(R) if seen.mean[row, axis] >= minimum[axis]]
        if detector.verdicts is not None:
            yield ObstacleView("in_use", f"{detector.name} does not call it underloaded")
        elif busy:
            uses = ", ".join(
                f"{AXIS_NAMES[axis]} {seen.mean[row, axis]:.0%} (MIN is {minimum[axis]:.0%})"
                for axis in busy
            )
            yield ObstacleView("in_use", f"it is used too much: {uses}, on average")
        else:
            idle_s = int(seen.watch.towards_underload[row]) * self.policy.interval_s
            text = f"it is hardly used, for {idle_s:g} s of {self.policy.idle_s:g} s"
            until = self._until(self._now_s + max(0.0, self.policy.idle_s - idle_s))
            yield ObstacleView("not_long_enough", text, until)

    # ------------------------------------------------------------ memory, plans and pauses

    def _memories(self, host_id: str) -> Iterator[ObstacleView]:
        hold = self.memory.hold
        until_s = hold.hosts.get(host_id, 0.0)
        if until_s > self._now_s:
            yield ObstacleView("held", "it took part in an overload", self._until(until_s))
        for vm in self._table.vms_on(host_id):
            moved = hold.vms.get(vm.key)
            if moved is not None and moved.until_s > self._now_s:
                text = f"VM {vm.report.name} moved a moment ago"
                yield ObstacleView("held", text, self._until(moved.until_s))

    def _pauses(self) -> Iterator[ObstacleView]:
        for work in self.works.values():
            text = f"a plan is carried out: decision {work.decision.decision_id}"
            yield ObstacleView("plan_under_way", text)
        for work in self.proposals.values():
            text = f"decision {work.decision.decision_id} waits for a person"
            yield ObstacleView("proposed", text)
        until_s = self._quiet_until_s.get(UNDERLOAD, 0.0)
        if until_s > self._now_s:
            text = "there is a pause after the last plan, or after none was found"
            yield ObstacleView("cool_down", text, self._until(until_s))

    def _told(self, host_id: str) -> Iterator[ObstacleView]:
        until_s = self._told_until_s.get((UNDERLOAD, host_id), 0.0)
        if until_s > self._now_s:
            text = "that was written down, or rejected, and is not said again so soon"
            yield ObstacleView("said", text, self._until(until_s))

    def _until(self, until_s: float) -> int:
        return self._wall_ms + round(max(0.0, until_s - self._now_s) * 1000)

    # ------------------------------------------------------------ its VMs

    def _stuck(self, host_id: str) -> Iterator[ObstacleView]:
        """VMs that may not be moved now."""
        _, off_vms = self._off(UNDERLOAD)
        failed = self.memory.stuck(self._now_s)
        for vm in self._table.vms_on(host_id):
            why = self._why_stuck(vm)
            if not why and vm.key in off_vms:
                why = "a person said that it stays"
            if not why and vm.key in failed:
                why = "it could not be moved a moment ago"
            if why:
                yield ObstacleView("vm_stays", f"VM {vm.report.name or vm.key}: {why}")

    def _why_stuck(self, vm: VmEntry) -> str:
        if not vm.report.managed:
            return "it was not started by Snooze"
        if vm.state not in HOLDS_CAPACITY:
            return f"it is {vm.state.value}, and its definition is here"
        if not vm.report.policy.movable:
            return "its owner said that it stays (movable: false)"
        if self._migrations.moves(vm.key):
            return "it is being migrated"
        if vm.state is not VmState.RUNNING:
            return f"it is {vm.state.value}"
        return "an order to it is under way" if vm.ordered else ""

    # ------------------------------------------------------------ room elsewhere

    def _room(self, view: View, host: int) -> Iterator[ObstacleView]:
        """What the policy says of it, were nothing else in the way."""
        view = self._for(UNDERLOAD, view, among(view.snapshot.host_ids, self._hot))
        snapshot = view.snapshot
        nobody = np.zeros(snapshot.hosts, dtype=np.bool_)
        alone = nobody.copy()
        alone[host] = True
        asked = Situation(
            snapshot,
            self._now_s,
            overloaded=nobody,
            underloaded=alone & accepting(snapshot),
            forecast=view.foreseen,
            hold=Hold(),
            load_axes=R,
        )
        if plugged := self.policy.plugged_relocation:
            text = f"the plug-in {plugged} decides; of room, the built-in policy tells"
            yield ObstacleView("plugin", text)
        answer = self.policy.relocator.policy.plan(asked)
        story = Story(self._table, view)
        for outcome in answer.outcomes:
            if outcome.kind is OutcomeKind.EMPTIED:
                yield from self._strands(snapshot, answer.plan, story)
            elif outcome.kind is OutcomeKind.NO_ROOM:
                for reason in answer.plan.reasons[:1]:
                    text = f"its manager has no room elsewhere for VM {story.vm(reason.vm)}"
                    yield ObstacleView("no_room", text)
                    yield from self._why_nowhere(view, reason.vm, host, story)
            else:
                yield ObstacleView(outcome.kind.value, outcome.message)

    def _strands(self, snapshot: Snapshot, plan: Plan, story: Story) -> Iterator[ObstacleView]:
        if not self.policy.keep_room:
            return
        after = snapshot.moved(plan.placement)
        worse = np.flatnonzero(stranded_hosts(after) & ~stranded_hosts(snapshot)).tolist()
        for row in worse[:1]:
            text = f"highly available VMs would find no room if {story.host(row)} failed"
            yield ObstacleView("ha_reserve", text)

    def _why_nowhere(
        self, view: View, vm: int, source: int, story: Story
    ) -> Iterator[ObstacleView]:
        """Of each other host, why the VM does not go there."""
        snapshot = view.snapshot
        need = snapshot.demand[vm]
        rows = [row for row in range(snapshot.hosts) if row != source]
        for row in rows[:MAX_HOSTS]:
            lacks = _lacks(snapshot, row, need)
            if not view.takes_part[row]:
                why = "it takes no part"
            elif view.empty[row]:
                why = "nothing is on it, and no empty host is put to use"
            else:
                why = lacks or "no room for what is foreseen, beside what else would go there"
            yield ObstacleView("no_room", f"{story.host(row)} for {story.vm(vm)}: {why}")
        if len(rows) > MAX_HOSTS:
            yield ObstacleView("no_room", f"and {len(rows) - MAX_HOSTS} more hosts")


def _lacks(snapshot: Snapshot, host: int, need: FloatArray) -> str:
    """What a host has too little of for a demand; shares are of what it may be filled with."""
    load = snapshot.used[host] + snapshot.demand[snapshot.placement == host].sum(axis=0)
    limit = snapshot.ceiling[host]
    over = np.flatnonzero((load + need > limit) & (need > 0)).tolist()
    said: list[str] = []
    for axis in over[:3]:
        what = f"{AXIS_NAMES[axis % R]} {'in use' if axis < R else 'promised'}"
        if limit[axis] <= 0:
            said.append(f"it has no {what}")
            continue
        share = (load[axis] + need[axis]) / limit[axis]
        said.append(f"{what} would be {share:.0%} of what it may be filled with")
    return ", ".join(said)

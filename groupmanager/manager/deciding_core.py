"""What a manager's decisions have in common: how each is made, carried out, judged and ended.

Rules 2 to 7 of ``autonomy_core.py``, whose other part looks at the hosts and has plans made.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import numpy as np

from snooze.common.autonomy import AutonomyRecord, Control, Scope, strictest
from snooze.common.decisions import Decision, DecisionKind, DecisionMode, DecisionState
from snooze.common.errors import Conflict, ErrorReport, NotFound
from snooze.common.wire import DecisionMade, Held, HostDirective
from snooze.groupmanager.manager.autonomy_events import DecisionJudged
from snooze.groupmanager.manager.autonomy_policy import AutonomyPolicy
from snooze.groupmanager.manager.cluster_view import Samples, View, look
from snooze.groupmanager.manager.decision_book import DecisionBook, without_inputs
from snooze.groupmanager.manager.decision_story import Story
from snooze.groupmanager.manager.host_table import HostTable
from snooze.groupmanager.manager.manager_events import AnswerLeader, ManagerEffect, TellLeader
from snooze.groupmanager.manager.migration_core import Migrations
from snooze.groupmanager.manager.move_memory import MoveMemory
from snooze.groupmanager.manager.plan_work import Step, Work, Worker
from snooze.scheduling.dump import Prepared
from snooze.scheduling.relocation_cost import MigrationCost, MigrationModel
from snooze.scheduling.snapshot import BoolArray, HostState
from snooze.scheduling.units import number

_OFF: Final = DecisionMode.OFF
BESIDE: Final = "VMs are being moved for another reason"


@dataclass(frozen=True, slots=True)
class Realm:
    """What a manager's decisions are about, and how they are made."""

    manager_id: str
    policy: AutonomyPolicy
    control: Control
    table: HostTable
    migrations: Migrations
    samples: Samples


class Deciding:
    """The part of ``Autonomy`` that has decisions; see there."""

    def __init__(self, realm: Realm) -> None:
        manager_id, policy, migrations = realm.manager_id, realm.policy, realm.migrations
        self.manager_id = manager_id
        self.policy = policy
        self.control = realm.control
        self._table = realm.table
        self._migrations = migrations
        self._samples = realm.samples
        self._worker = Worker(
            realm.table, migrations, policy.bounds, self._view, self._begun, self._move_ended
        )
        self.works: dict[DecisionKind, Work] = {}
        self.proposals: dict[DecisionKind, Work] = {}
        self.book = DecisionBook(manager_id)
        self.memory = MoveMemory(policy.hold_s, number(policy.relocation, "cooldown_s"))
        self._hot: frozenset[str] = frozenset()
        self._quiet_until_s: dict[DecisionKind, float] = {}
        self._told_until_s: dict[tuple[DecisionKind, str], float] = {}
        self._now_s = 0.0
        self._wall_ms = 0
        self._changed = False
        self._held: list[ManagerEffect] = []
        self._offers = False
        migrations.on_moved = self._moved

    def settle(self, now_s: float) -> list[ManagerEffect]:
        """After any event: end plans that have ended, begin what has become possible."""
        self._now_s = now_s
        effects: list[ManagerEffect] = []
        if self._changed:
            self._changed = False
            effects = self._advance()
        effects += self._held
        self._held = []
        return effects

    # ------------------------------------------------------------ what is seen

    def _view(self, kind: DecisionKind | None = None, only: Sequence[str] | None = None) -> View:
        """The state of this moment, of all hosts or ``only`` some.

        Without what is switched off for a kind.
        """
        off_hosts, off_vms = self._off(kind) if kind is not None else (set[str](), set[str]())
        return look(
            self._table,
            self._migrations,
            self._samples,
            self.policy.looking,
            self._now_s,
            off_hosts,
            self.memory.stuck(self._now_s) | off_vms,
            only,
        )

    def _off(self, kind: DecisionKind) -> tuple[set[str], set[str]]:
        """The hosts and the VMs that are switched off for a kind."""
        off: dict[Scope, set[str]] = {Scope.HOST: set(), Scope.VM: set()}
        for rule in self.control.record.rules:
            names = off.get(rule.scope)
            if names is not None and (
                self.control.restriction(kind, self._wall_ms, rule.scope, rule.target) is _OFF
            ):
                names.add(rule.target)
        return off[Scope.HOST], off[Scope.VM]

    def _for(self, kind: DecisionKind, view: View, without: BoolArray) -> View:
        """The same with these hosts, and all that is switched off for a kind, left as it is."""
        off_hosts, off_vms = self._off(kind)
        snapshot = view.snapshot
        if not without.any() and not off_hosts and not off_vms:
            return view
        without = without | among(snapshot.host_ids, off_hosts)
        stays = among(snapshot.vm_ids, off_vms)
        if not without.any() and not stays.any():
            return view
        state = snapshot.host_state.copy()
        state[without & (state == HostState.ACTIVE)] = HostState.DRAINING
        changed = snapshot.changed(host_state=state, movable=snapshot.movable & ~stays)
        return replace(view, snapshot=changed, takes_part=view.takes_part & ~without)

    def mode(self, kind: DecisionKind) -> DecisionMode:
        """What may be done of a kind at this moment."""
        return self.control.mode(kind, self._wall_ms, self.manager_id)

    def _mode_of(self, work: Work) -> DecisionMode:
        """The strictest of a kind and of all that take part in a plan."""
        hosts = {host_id for step in work.steps for host_id in (step.source, step.target)}
        vms = [step.vm_key for step in work.steps]
        taking_part = self.control.mode(work.kind, self._wall_ms, self.manager_id, hosts, vms)
        return strictest(self.mode(work.kind), taking_part)

    def _is_quiet(self, kind: DecisionKind) -> bool:
        return (
            self.mode(kind) is _OFF
            or kind in self.works
            or kind in self.proposals
            or self._now_s < self._quiet_until_s.get(kind, 0.0)
        )

    def _cost(self, view: View) -> MigrationCost:
        bandwidth = number(self.policy.relocation, "bandwidth_kib_s")
        return MigrationModel(bandwidth_kib_s=bandwidth).cost(view.snapshot)

    # ------------------------------------------------------------ decisions

    def _new(self, kind: DecisionKind, mode: DecisionMode, reason: str) -> Decision:
        return self.book.new(kind, mode, reason, self._wall_ms, self._now_s)

    def _decide(
        self,
        kind: DecisionKind,
        view: View,
        story: Story,
        made: Prepared,
        reason: str,
    ) -> list[ManagerEffect]:
        """Make the decision that carries out a plan, as far as its mode lets."""
        plan = made.plan
        steps = story.steps(plan)
        cost = self._cost(view)
        sources = sorted({step.source for step in steps})
        decision = msgspec.structs.replace(
            self._new(kind, DecisionMode.AUTO, reason),
            subjects=tuple([*sources, *dict.fromkeys(step.vm_key for step in steps)][:1000]),
            actions=story.actions(plan, cost),
            alternatives=story.alternatives(plan, made.outcomes, cost),
            inputs=made.inputs,
        )
        emptied = frozenset[str]() if kind is DecisionKind.OVERLOAD else frozenset(sources)
        work = Work(decision, kind, steps, self._now_s, emptied)
        mode = self._mode_of(work)
        work.decision = decision = msgspec.structs.replace(decision, mode=mode)
        self._quiet(kind, self.policy.cool_down_s)
        refused = f"the plan breaks a rule: {made.broken}" if made.broken else ""
        if not refused and emptied and self.policy.keep_room and made.strands:
            name = story.host(made.strands[0])
            refused = f"highly available VMs would find no room if {name} failed"
        if refused or mode is _OFF:
            return self._end(work, DecisionState.REFUSED, refused or "switched off")
        match mode:
            case DecisionMode.AUTO:
                return self._run(work)
            case DecisionMode.ADVISE:
                self.proposals[kind] = work
                return self.book.tell(
                    msgspec.structs.replace(decision, state=DecisionState.PROPOSED)
                )
            case _:
                self._say_no_more(work)
                return self._end(work, DecisionState.DRY_RUN, "not carried out: dry run")

    def _run(self, work: Work) -> list[ManagerEffect]:
        if work.kind is DecisionKind.OVERLOAD:
            for other in self.works.values():
                other.stop("an overloaded host goes first")
        work.decision = msgspec.structs.replace(work.decision, state=DecisionState.RUNNING)
        self.works[work.kind] = work
        return self.book.tell(work.decision) + self._advance()

    def _advance(self) -> list[ManagerEffect]:
        effects: list[ManagerEffect] = []
        for kind in (DecisionKind.OVERLOAD, DecisionKind.UNDERLOAD, DecisionKind.CONSOLIDATION):
            work = self.works.get(kind)
            if work is None:
                continue
            why_off = self.control.why_off(kind, self._wall_ms, self.manager_id)
            if why_off:
                work.stop(why_off)
            effects += self._worker.advance(work, self._now_s)
            if work.ended:
                del self.works[kind]
                effects += self._end(work, *work.outcome())
        return effects

    def _end(self, work: Work, state: DecisionState, outcome: str) -> list[ManagerEffect]:
        self._quiet(work.kind, self.policy.cool_down_s)
        if work.kind is DecisionKind.CONSOLIDATION and state is DecisionState.DONE:
            self._offers = True
        return self.book.tell(
            msgspec.structs.replace(
                work.decision, state=state, outcome=outcome, ended_ms=self._wall_ms
            )
        )

    def _quiet(self, kind: DecisionKind, span_s: float) -> None:
        until_s = self._now_s + span_s
        self._quiet_until_s[kind] = max(until_s, self._quiet_until_s.get(kind, 0.0))

    def _say_no_more(self, work: Work) -> None:
        """What was written down, or rejected, is not said of these hosts again for a while."""
        until_s = self._now_s + self.policy.bounds.expire_s
        for step in work.steps:
            self._told_until_s[work.kind, step.source] = until_s
            if work.kind is not DecisionKind.OVERLOAD:
                self._told_until_s[work.kind, step.target] = until_s

    def _unsaid(self, kind: DecisionKind, host_ids: Sequence[str]) -> BoolArray:
        """``bool[len(host_ids)]``: of which hosts something may be said again."""
        if not self._told_until_s:
            return np.ones(len(host_ids), dtype=np.bool_)
        self._told_until_s = {k: s for k, s in self._told_until_s.items() if s > self._now_s}
        return np.array([(kind, each) not in self._told_until_s for each in host_ids], np.bool_)

    # ------------------------------------------------------------ people

    def controlled(self, record: AutonomyRecord) -> None:
        """People changed what may be done: what was said before under other rules is open again."""
        if record != self.control.record:
            self._told_until_s.clear()
        self.control.set(record)

    def _judged(self, event: DecisionJudged) -> list[ManagerEffect]:
        work = next(
            (
                each
                for each in self.proposals.values()
                if each.decision.decision_id == event.decision_id
            ),
            None,
        )
        if work is None:
            known = self.book.get(event.decision_id)
            error = (
                NotFound(f"no decision {event.decision_id!r} waits here")
                if known is None
                else Conflict(f"that decision is {known.state.value}: {known.outcome}")
            )
            return [AnswerLeader(event.request_id, ErrorReport.of(error))]
        del self.proposals[work.kind]
        who = event.who or "a person"
        if not event.approved:
            effects = self._end(work, DecisionState.REFUSED, f"rejected by {who}")
            self._say_no_more(work)
        elif why_not := self._why_stale(work):
            self._quiet_until_s.pop(work.kind, None)
            effects = self._end(work, DecisionState.EXPIRED, f"approved by {who}, but {why_not}")
        else:
            work.made_s = self._now_s
            work.decision = msgspec.structs.replace(work.decision, outcome=f"approved by {who}")
            effects = self._run(work)
        answer = DecisionMade(without_inputs(self.book.decisions[work.decision.decision_id]))
        return [*effects, AnswerLeader(event.request_id, answer)]

    def _why_stale(self, work: Work) -> str:
        """Why what was proposed should not be done any more; empty if it may."""
        if work.kind is DecisionKind.OVERLOAD and not any(
            step.source in self._hot for step in work.steps
        ):
            return "the overload is over"
        if work.kind is not DecisionKind.OVERLOAD and self.works:
            return BESIDE
        return self._worker.why_not_all(work)

    def _expire(self) -> list[ManagerEffect]:
        effects: list[ManagerEffect] = []
        for kind, work in list(self.proposals.items()):
            why = ""
            mode = self._mode_of(work)
            if self._now_s - work.made_s > self.policy.bounds.expire_s:
                why = f"nobody approved it within {self.policy.bounds.expire_s:g} s"
            elif mode is not DecisionMode.ADVISE:
                why = self.control.why_off(kind, self._wall_ms, self.manager_id)
                why = why or f"the mode of {kind.value} is {mode.value} now"
            if why:
                del self.proposals[kind]
                effects += self._end(work, DecisionState.EXPIRED, why)
                if mode is not DecisionMode.ADVISE:
                    self._quiet_until_s.pop(kind, None)
        return effects

    # ------------------------------------------------------------ moves

    def remember(self, directives: Sequence[HostDirective], now_s: float) -> None:
        """The leader knows of what happened under another manager, or before a restart."""
        for directive in directives:
            for moved in directive.moved:
                self.memory.told(moved.vm_id, moved.left, now_s - moved.ago_s, now_s)
            for stuck in directive.stuck:
                self.memory.failed(stuck.vm_id, now_s - stuck.ago_s, now_s)
            if directive.relieved_ago_s is not None:
                at_s = now_s - directive.relieved_ago_s
                self.memory.told_relieved(directive.host_id, at_s, now_s)

    def _begun(self, work: Work, step: Step) -> None:
        if work.kind is DecisionKind.OVERLOAD:
            self.memory.relieved(step.source, step.target, self._now_s)
            self._held.append(TellLeader(Held(hosts=(step.source, step.target))))

    def _move_ended(self, work: Work, step: Step, done: bool) -> None:
        self._changed = True
        if not done:
            self.memory.failed(step.vm_key, self._now_s, self._now_s)
            self._held.append(TellLeader(Held(vms=(step.vm_key,))))

    def _moved(self, key: str, source: str, cause: str) -> None:
        """A VM moved, by our will or a person's."""
        self.memory.moved(key, source, self._now_s)


def among(names: Sequence[str], chosen: Collection[str]) -> BoolArray:
    """``bool[len(names)]``: which of the names are chosen."""
    return np.array([name in chosen for name in names], dtype=np.bool_)

"""What a manager does by itself about the load of its hosts: relieve, empty, consolidate.

Rules:

1. A round every ``interval_s`` judges every host that takes part (``cluster_view.py``), by samples
   that are complete and in time. Overload comes first, then underload, then consolidation, if its
   hour has come or somebody asks.
2. At most one plan of each kind is open. Underload and consolidation do not begin beside another
   plan; an overload stops their moves that have not begun. After a plan has ended, or found nothing
   to do, no other of its kind is made for ``cool_down_s``.
3. What may be done is asked of the ``Control`` before every decision: ``ADVISE`` proposes, and
   waits for a person at most ``expire_s``; ``DRY_RUN`` only writes down; neither is said again for
   that time. A decision has the strictest mode of all hosts and VMs that take part.
4. An approved plan is proved again on the state of that moment; one that breaks a rule, or whose
   overload is over, expires with the reason.
5. A VM that moved is not moved for energy's sake for ``hold_s``, and not back to where it came from
   at all; one that could not be moved stays for as long. Hosts that took part in an overload are
   not emptied for the policy's ``cooldown_s`` (relocation.relieved_hold_s).
6. Emptying hosts must not strand VMs: where the highly available VMs of every host would find room
   elsewhere before, they do afterwards.
7. Every decision is told when it is made and whenever its state changes. A host that cannot be
   helped is told once, until the reason changes.

Invariant: of each kind at most one decision is ``RUNNING`` and at most one is ``PROPOSED``.

::

    (made)    auto: RUNNING     advise: PROPOSED     dry-run: DRY_RUN
    PROPOSED  approved and still sound: RUNNING; rejected: REFUSED; else EXPIRED
    RUNNING   all its moves ended: DONE, PARTLY or FAILED
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

import msgspec
import numpy as np

from snooze.common.autonomy import Control, Scope, strictest
from snooze.common.decisions import (
    Decision,
    DecisionKind,
    DecisionMode,
    DecisionState,
)
from snooze.common.errors import Conflict, ErrorReport, NotFound
from snooze.common.wire import DecisionMade
from snooze.groupmanager.manager.autonomy_events import (
    AutonomyEvent,
    AutonomySet,
    AutonomyTicked,
    ConsolidateAsked,
    ConsolidationPlanned,
    DecisionJudged,
    PlanConsolidation,
)
from snooze.groupmanager.manager.autonomy_policy import AutonomyPolicy
from snooze.groupmanager.manager.cluster_view import Samples, View, look
from snooze.groupmanager.manager.decision_book import DecisionBook, without_inputs
from snooze.groupmanager.manager.decision_story import Story
from snooze.groupmanager.manager.host_table import HostTable
from snooze.groupmanager.manager.manager_events import AnswerLeader, ManagerEffect
from snooze.groupmanager.manager.migration_core import Migrations
from snooze.groupmanager.manager.move_memory import MoveMemory
from snooze.groupmanager.manager.plan_work import Step, Work, Worker
from snooze.scheduling import dump
from snooze.scheduling.check import check_plan
from snooze.scheduling.consolidation import Consolidation, Verdict
from snooze.scheduling.deciding import DecisionKind as Recorded
from snooze.scheduling.deciding import consolidation_policy
from snooze.scheduling.detection import Detection, Watch
from snooze.scheduling.plans import Plan
from snooze.scheduling.relocation import Outcome
from snooze.scheduling.relocation_cost import MigrationCost, MigrationModel
from snooze.scheduling.reserve import stranded_hosts
from snooze.scheduling.snapshot import BoolArray, HostState
from snooze.scheduling.units import Properties, number

_OFF: Final = DecisionMode.OFF


@dataclass(slots=True)
class _Asked:
    """A consolidation that is being planned aside."""

    view: View
    options: Properties
    who: str
    request_ids: list[int] = field(default_factory=list[int])


class Autonomy:
    """What one manager does by itself; see the module's rules."""

    def __init__(
        self,
        manager_id: str,
        policy: AutonomyPolicy,
        control: Control,
        table: HostTable,
        migrations: Migrations,
        samples: Samples,
    ) -> None:
        self.manager_id = manager_id
        self.policy = policy
        self.control = control
        self._table = table
        self._migrations = migrations
        self._samples = samples
        self._worker = Worker(
            table, migrations, policy.bounds, self._view, self._begun, self._move_ended
        )
        self.works: dict[DecisionKind, Work] = {}
        self.proposals: dict[DecisionKind, Work] = {}
        self.book = DecisionBook(manager_id)
        self.memory = MoveMemory(policy.hold_s, number(policy.relocation, "cooldown_s"))
        self._watch = Watch.fresh(0)
        self._watched: tuple[str, ...] = ()
        self._hot: frozenset[str] = frozenset()
        self._quiet_until_s: dict[DecisionKind, float] = {}
        self._helpless: dict[str, str] = {}
        self._next_round_s = 0.0
        self._next_cron_ms = 0
        self._asked: dict[int, _Asked] = {}
        self._count = 0
        self._now_s = 0.0
        self._wall_ms = 0
        self._changed = False
        migrations.on_moved = self._moved

    # ------------------------------------------------------------ events

    def handle(self, event: AutonomyEvent, now_s: float) -> list[ManagerEffect]:
        """Take in one event."""
        self._now_s = now_s
        match event:
            case AutonomyTicked():
                self._wall_ms = event.wall_ms
                return self._tick()
            case AutonomySet():
                self.control.set(event.record)
                self._next_round_s = 0.0
                return []
            case ConsolidateAsked():
                self._wall_ms = event.wall_ms
                return self._consolidate(event.who or "a person", event.request_id)
            case DecisionJudged():
                self._wall_ms = event.wall_ms
                return self._judged(event)
            case ConsolidationPlanned():
                self._wall_ms = event.wall_ms
                return self._planned(event)
            case _:
                assert_never(event)

    def settle(self, now_s: float) -> list[ManagerEffect]:
        """After any event: end plans that have ended, begin what has become possible."""
        self._now_s = now_s
        if not self._changed:
            return []
        self._changed = False
        return self._advance()

    def _tick(self) -> list[ManagerEffect]:
        effects = self._expire() + self._advance()
        if self._now_s >= self._next_round_s:
            self._next_round_s = self._now_s + self.policy.interval_s
            effects += self._round()
        if self._cron_is_due():
            effects += self._consolidate("its calendar", None)
        return effects

    def _cron_is_due(self) -> bool:
        cron = self.policy.cron
        if cron is None or self._wall_ms < self._next_cron_ms:
            return False
        due = self._next_cron_ms > 0
        self._next_cron_ms = cron.next_ms(self._wall_ms)
        return due

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
        without = without | _among(snapshot.host_ids, off_hosts)
        stays = _among(snapshot.vm_ids, off_vms)
        if not without.any() and not stays.any():
            return view
        state = snapshot.host_state.copy()
        state[without & (state == HostState.ACTIVE)] = HostState.DRAINING
        changed = snapshot.changed(host_state=state, movable=snapshot.movable & ~stays)
        return replace(view, snapshot=changed, takes_part=view.takes_part & ~without)

    def mode(self, kind: DecisionKind) -> DecisionMode:
        """What may be done of a kind at this moment."""
        return self.control.mode(kind, self._wall_ms, self.manager_id)

    # ------------------------------------------------------------ rounds

    def _round(self) -> list[ManagerEffect]:
        kinds = (DecisionKind.OVERLOAD, DecisionKind.UNDERLOAD)
        if all(self.mode(kind) is _OFF for kind in kinds) and not self.works:
            self._watched = ()
            return []
        view = self._view()
        seen = self.policy.relocator.judge(
            view.snapshot,
            view.window,
            self._watch.followed(self._watched, view.snapshot.host_ids),
            self.policy.interval_s,
        )
        self._watch, self._watched = seen.watch, view.snapshot.host_ids
        hot = seen.overloaded & view.takes_part
        self._hot = frozenset(self._names(view, hot))
        for host_id in [each for each in self._helpless if each not in self._hot]:
            del self._helpless[host_id]
        effects = self._relieve(view, seen, hot)
        return effects + self._empty(view, seen, seen.underloaded & view.takes_part)

    def _names(self, view: View, hosts: BoolArray) -> list[str]:
        return [view.snapshot.host_ids[row] for row in np.flatnonzero(hosts).tolist()]

    def _is_quiet(self, kind: DecisionKind) -> bool:
        return (
            self.mode(kind) is _OFF
            or kind in self.works
            or kind in self.proposals
            or self._now_s < self._quiet_until_s.get(kind, 0.0)
        )

    def _relieve(self, view: View, seen: Detection, hot: BoolArray) -> list[ManagerEffect]:
        kind = DecisionKind.OVERLOAD
        view = self._for(kind, view, np.zeros_like(hot))
        hot = hot & view.takes_part
        if not hot.any() or self._is_quiet(kind):
            return []
        plan, outcomes, recorded = self._plan(view, seen, hot, np.zeros_like(hot))
        story = Story(self._table, view)
        if not plan.moves:
            return self._cannot_help(view, story, seen, outcomes, recorded, plan)
        rows = sorted({move.source for move in plan.moves})
        effects: list[ManagerEffect] = []
        for other in (DecisionKind.UNDERLOAD, DecisionKind.CONSOLIDATION):
            if other in self.works and self.mode(kind) is DecisionMode.AUTO:
                self.works[other].stop("an overloaded host goes first")
                effects += self._advance()
        reason = story.overload(rows, seen, self.policy.sustain_s)
        return effects + self._decide(kind, view, story, plan, reason, outcomes, recorded)

    def _cannot_help(
        self,
        view: View,
        story: Story,
        seen: Detection,
        outcomes: Sequence[Outcome],
        recorded: dump.Decision,
        plan: Plan,
    ) -> list[ManagerEffect]:
        """Nothing that can be done makes it better: said once for each host and reason."""
        kind = DecisionKind.OVERLOAD
        host_ids = view.snapshot.host_ids
        new = [o for o in outcomes if self._helpless.get(host_ids[o.host]) != o.kind.value]
        if not new:
            return []
        self._helpless.update({host_ids[o.host]: o.kind.value for o in new})
        reason = story.overload([o.host for o in new], seen, self.policy.sustain_s)
        cost = self._cost(view)
        decision = msgspec.structs.replace(
            self._new(kind, self.mode(kind), reason),
            subjects=tuple(host_ids[o.host] for o in new),
            alternatives=story.alternatives(plan, outcomes, cost),
            inputs=dump.pack(recorded, plan),
            state=DecisionState.REFUSED,
            outcome="nothing is moved: "
            + "; ".join(f"{story.host(o.host)}: {o.message}" for o in new[:5]),
            ended_ms=self._wall_ms,
        )
        return self.book.tell(decision)

    def _empty(self, view: View, seen: Detection, idle: BoolArray) -> list[ManagerEffect]:
        kind = DecisionKind.UNDERLOAD
        view = self._for(kind, view, seen.overloaded)
        idle = idle & view.takes_part & ~view.empty
        if self.policy.only_sleepable:
            idle = idle & np.array(
                [bool(self._table.hosts[h].description.power.actions) for h in self._table.order],
                dtype=np.bool_,
            )
        if not idle.any() or self._is_quiet(kind) or self.works or self.proposals:
            return []
        plan, outcomes, recorded = self._plan(view, seen, np.zeros_like(idle), idle)
        if not plan.moves:
            self._quiet(kind, self.policy.cool_down_s)
            return []
        story = Story(self._table, view)
        rows = sorted({move.source for move in plan.moves})
        reason = story.underload(rows, seen, self.policy.idle_s)
        return self._decide(kind, view, story, plan, reason, outcomes, recorded)

    def _plan(
        self, view: View, seen: Detection, hot: BoolArray, idle: BoolArray
    ) -> tuple[Plan, Sequence[Outcome], dump.Decision]:
        """The policy's plan for these hosts, and how to make it again."""
        chosen = Detection(
            hot, idle, seen.unknown, seen.pressure, seen.mean, seen.watch, seen.problems
        )
        situation = self.policy.relocator.situation(
            view.snapshot,
            view.window,
            view.requested,
            chosen,
            self.memory.hold,
            self._now_s,
            self._samples.period_s,
        )
        answer = self.policy.relocator.policy.plan(situation)
        recorded = dump.Decision(
            Recorded.RELOCATION,
            view.snapshot,
            options=self.policy.relocation,
            situation=situation,
        )
        return answer.plan, answer.outcomes, recorded

    def _cost(self, view: View) -> MigrationCost:
        bandwidth = number(self.policy.relocation, "bandwidth_kib_s")
        return MigrationModel(bandwidth_kib_s=bandwidth).cost(view.snapshot)

    # ------------------------------------------------------------ consolidation

    def _consolidate(self, who: str, request_id: int | None) -> list[ManagerEffect]:
        """Have one planned, or say why not."""
        kind = DecisionKind.CONSOLIDATION
        why_not = self.control.why_off(kind, self._wall_ms, self.manager_id)
        if kind in self.works or kind in self.proposals or self._asked:
            why_not = "a consolidation is under way or proposed already"
        elif not why_not and self.works:
            why_not = "VMs are being moved for another reason"
        if why_not:
            if request_id is None:
                return []
            return [AnswerLeader(request_id, ErrorReport.of(Conflict(why_not)))]
        view = self._view()
        view = self._for(kind, view, _among(view.snapshot.host_ids, self._hot))
        rests = _among(view.snapshot.vm_ids, self.memory.resting(self._now_s))
        if rests.any():
            changed = view.snapshot.changed(movable=view.snapshot.movable & ~rests)
            view = replace(view, snapshot=changed)
        self._count += 1
        asked = _Asked(view, self.policy.consolidation, who)
        if request_id is not None:
            asked.request_ids.append(request_id)
        self._asked[self._count] = asked
        policy = consolidation_policy(self.policy.consolidation)
        return [PlanConsolidation(self._count, view.snapshot, policy)]

    def _planned(self, event: ConsolidationPlanned) -> list[ManagerEffect]:
        asked = self._asked.pop(event.token, None)
        if asked is None:
            return []
        kind, answer = DecisionKind.CONSOLIDATION, event.answer
        reason = f"consolidation asked for by {asked.who}"
        if answer is None or answer.verdict is not Verdict.RELEASED or not answer.plan.moves:
            message = answer.message if answer is not None else event.error
            state = DecisionState.DONE if answer is not None else DecisionState.FAILED
            decision = msgspec.structs.replace(
                self._new(kind, self.mode(kind), reason),
                state=state,
                outcome=f"nothing is moved: {message}",
                ended_ms=self._wall_ms,
            )
            effects = self.book.tell(decision)
        else:
            story = Story(self._table, asked.view)
            reason = f"{reason}: {answer.message}{_how_good(answer)}"
            recorded = dump.Decision(
                Recorded.CONSOLIDATION, asked.view.snapshot, options=asked.options
            )
            effects = self._decide(kind, asked.view, story, answer.plan, reason, (), recorded)
            decision = next(reversed(self.book.decisions.values()))
        return effects + [
            AnswerLeader(request_id, DecisionMade(decision)) for request_id in asked.request_ids
        ]

    # ------------------------------------------------------------ decisions

    def _new(self, kind: DecisionKind, mode: DecisionMode, reason: str) -> Decision:
        return self.book.new(kind, mode, reason, self._wall_ms, self._now_s)

    def _decide(
        self,
        kind: DecisionKind,
        view: View,
        story: Story,
        plan: Plan,
        reason: str,
        outcomes: Sequence[Outcome],
        recorded: dump.Decision,
    ) -> list[ManagerEffect]:
        """Make the decision that carries out ``plan``, as far as its mode lets."""
        snapshot = view.snapshot
        steps = story.steps(plan)
        hosts = {host_id for step in steps for host_id in (step.source, step.target)}
        mode = strictest(
            self.mode(kind),
            self.control.mode(
                kind, self._wall_ms, self.manager_id, hosts, [step.vm_key for step in steps]
            ),
        )
        cost = self._cost(view)
        sources = sorted({step.source for step in steps})
        decision = msgspec.structs.replace(
            self._new(kind, mode, reason),
            subjects=tuple([*sources, *dict.fromkeys(step.vm_key for step in steps)][:1000]),
            actions=story.actions(plan, cost),
            alternatives=story.alternatives(plan, outcomes, cost),
            inputs=dump.pack(recorded, plan),
        )
        emptied = frozenset[str]() if kind is DecisionKind.OVERLOAD else frozenset(sources)
        work = Work(decision, kind, steps, self._now_s, emptied)
        self._quiet(kind, self.policy.cool_down_s)
        broken = check_plan(snapshot, plan)
        refused = f"the plan breaks a rule: {broken[0].message}" if broken else ""
        if not refused and emptied and self.policy.keep_room:
            worse = stranded_hosts(snapshot.moved(plan.placement)) & ~stranded_hosts(snapshot)
            if worse.any():
                name = story.host(int(np.flatnonzero(worse)[0]))
                refused = f"highly available VMs would find no room if {name} failed"
        if refused or mode is _OFF:
            return self._end(work, DecisionState.REFUSED, refused or "switched off")
        match mode:
            case DecisionMode.AUTO:
                return self._run(work)
            case DecisionMode.ADVISE:
                self.proposals[kind] = work
                self._quiet(kind, self.policy.bounds.expire_s)
                return self.book.tell(
                    msgspec.structs.replace(decision, state=DecisionState.PROPOSED)
                )
            case _:
                self._quiet(kind, self.policy.bounds.expire_s)
                return self._end(work, DecisionState.DRY_RUN, "not carried out: dry run")

    def _run(self, work: Work) -> list[ManagerEffect]:
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
        return self.book.tell(
            msgspec.structs.replace(
                work.decision, state=state, outcome=outcome, ended_ms=self._wall_ms
            )
        )

    def _quiet(self, kind: DecisionKind, span_s: float) -> None:
        until_s = self._now_s + span_s
        self._quiet_until_s[kind] = max(until_s, self._quiet_until_s.get(kind, 0.0))

    # ------------------------------------------------------------ people

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
            self._quiet(work.kind, self.policy.bounds.expire_s)
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
        return self._worker.why_not_all(work)

    def _expire(self) -> list[ManagerEffect]:
        effects: list[ManagerEffect] = []
        for kind, work in list(self.proposals.items()):
            why = ""
            if self._now_s - work.made_s > self.policy.bounds.expire_s:
                why = f"nobody approved it within {self.policy.bounds.expire_s:g} s"
            elif self.mode(kind) is _OFF:
                why = self.control.why_off(kind, self._wall_ms, self.manager_id)
            if why:
                del self.proposals[kind]
                effects += self._end(work, DecisionState.EXPIRED, why)
        return effects

    # ------------------------------------------------------------ moves

    def _begun(self, work: Work, step: Step) -> None:
        if work.kind is DecisionKind.OVERLOAD:
            self.memory.relieved(step.source, step.target, self._now_s)

    def _move_ended(self, work: Work, step: Step, done: bool) -> None:
        self._changed = True
        if not done:
            self.memory.failed(step.vm_key, self._now_s)

    def _moved(self, key: str, source: str, cause: str) -> None:
        """A VM moved, by our will or a person's."""
        self.memory.moved(key, source, self._now_s)


def _among(names: Sequence[str], chosen: Collection[str]) -> BoolArray:
    return np.array([name in chosen for name in names], dtype=np.bool_)


def _how_good(answer: Consolidation) -> str:
    if not answer.gap:
        return ", which is the best possible"
    return f"; no plan can use fewer than {answer.bound.count} hosts"

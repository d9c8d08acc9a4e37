"""What a manager does by itself about the load of its hosts: relieve, empty, consolidate.

Rules:

1. A round every ``interval_s`` judges every host that takes part (``cluster_view.py``), by samples
   that are complete and in time. Overload comes first, then underload, then consolidation, if its
   hour has come or somebody asks.
2. At most one plan of each kind is open. Underload and consolidation do not begin beside another
   plan; an overload stops their moves that have not begun. After a plan has ended, or found nothing
   to do, no other of its kind is made for ``cool_down_s``.
3. What may be done is asked of the ``Control`` before every decision: ``ADVISE`` proposes, and
   waits for a person at most ``expire_s``; ``DRY_RUN`` only writes down. That, and what was
   rejected, is not said of the same hosts again for that time, unless people change what may be
   done. A decision has the strictest mode of all hosts and VMs that take part.
4. An approved plan is proved again on the state of that moment; one that breaks a rule, or whose
   overload is over, expires with the reason.
5. A VM that moved is not moved for energy's sake for ``hold_s``, and not back to where it came from
   at all; one that could not be moved stays for as long. Hosts that took part in an overload are
   not emptied for the policy's ``cooldown_s`` (relocation.relieved_hold_s).
6. Emptying hosts must not strand VMs: where the highly available VMs of every host would find room
   elsewhere before, they do afterwards.
7. Every decision is told when it is made and whenever its state changes. A host that cannot be
   helped is told once, until the reason changes.
8. A host for whose VMs there is no room here is told to the leader, again and again, with the VMs
   whose going would help: it finds a host of another manager, or wakes one (``relief_core.py``).
   So is one that could be emptied were there room; and after a consolidation the least used host,
   once (``emptying_core.py``).

Invariant: of each kind at most one decision is ``RUNNING`` and at most one is ``PROPOSED``.

::

    (made)    auto: RUNNING     advise: PROPOSED     dry-run: DRY_RUN
    PROPOSED  approved and still sound: RUNNING; rejected: REFUSED; else EXPIRED
    RUNNING   all its moves ended: DONE, PARTLY or FAILED
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

import msgspec
import numpy as np

from snooze.common.decisions import (
    DecisionKind,
    DecisionMode,
    DecisionState,
)
from snooze.common.errors import Conflict, ErrorReport, NotFound
from snooze.common.resources import R
from snooze.common.wire import DecisionMade, HostExplained, HostOverloaded, HostToEmpty
from snooze.groupmanager.manager.autonomy_events import (
    AutonomyEvent,
    AutonomySet,
    AutonomyTicked,
    ConsolidateAsked,
    ConsolidationPlanned,
    DecisionJudged,
    HostExplainAsked,
    LookedOn,
    LookOn,
    PlanConsolidation,
    PlanRelocation,
    RelocationPlanned,
)
from snooze.groupmanager.manager.cluster_view import View
from snooze.groupmanager.manager.deciding_core import BESIDE, Realm, among
from snooze.groupmanager.manager.decision_story import Story
from snooze.groupmanager.manager.look_core import Look
from snooze.groupmanager.manager.manager_events import AnswerLeader, ManagerEffect, TellLeader
from snooze.groupmanager.manager.obstacles_core import Explaining
from snooze.groupmanager.manager.offers_core import all_vms, busy_vms, least_used, without_room
from snooze.scheduling import dump
from snooze.scheduling.consolidation import Consolidation, Verdict
from snooze.scheduling.deciding import DecisionKind as Recorded
from snooze.scheduling.detection import Detection, Watch
from snooze.scheduling.dump import Prepared, relocate_and_prepare
from snooze.scheduling.relocation import Outcome, OutcomeKind
from snooze.scheduling.snapshot import BoolArray
from snooze.scheduling.units import Properties, number

_OFF: Final = DecisionMode.OFF
ASK_LEADER_S: Final = 15.0
"""Between two words to the leader of hosts that cannot be helped here."""
MAX_ASKED: Final = 10


@dataclass(slots=True)
class _Asked:
    """A consolidation that is being planned aside."""

    view: View
    options: Properties
    who: str
    request_ids: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True, eq=False)
class _Planning:
    """A relocation that is being planned, aside if the cluster is large."""

    kind: DecisionKind
    view: View
    seen: Detection


class Autonomy(Explaining):
    """What one manager does by itself; see the module's rules."""

    def __init__(self, realm: Realm) -> None:
        super().__init__(realm)
        self._watch = Watch.fresh(0)
        self._watched: tuple[str, ...] = ()
        self._seen: Detection | None = None
        self._unanswered: list[tuple[str, int]] = []
        self._helpless: dict[str, str] = {}
        self._next_round_s = 0.0
        self._next_cron_ms = 0
        self._ticked_ms = 0
        self._is_owed = False
        """By the calendar, as soon as no other plan is carried out."""
        self._asked: dict[int, _Asked] = {}
        self._wanted: list[tuple[str, int | None]] = []
        self._look: Look | None = None
        self._planning: dict[int, _Planning] = {}
        self._count = 0
        self._asks_again_s = 0.0

    # ------------------------------------------------------------ events

    def handle(self, event: AutonomyEvent, now_s: float) -> list[ManagerEffect]:
        """Take in one event."""
        self._now_s = now_s
        match event:
            case AutonomyTicked():
                self._wall_ms = event.wall_ms
                return self._tick()
            case AutonomySet():
                self.controlled(event.record)
                self._next_round_s = 0.0
                return []
            case ConsolidateAsked():
                self._wall_ms = event.wall_ms
                return self._consolidate(event.who or "a person", event.request_id)
            case DecisionJudged():
                self._wall_ms = event.wall_ms
                return self._judged(event)
            case HostExplainAsked():
                self._wall_ms = event.wall_ms
                return self._explain(event.host_id, event.request_id)
            case ConsolidationPlanned():
                self._wall_ms = event.wall_ms
                return self._planned(event)
            case RelocationPlanned():
                self._wall_ms = event.wall_ms
                return self._relocated(event)
            case LookedOn():
                self._wall_ms = event.wall_ms
                return self._look_on()
            case _:
                assert_never(event)

    def _tick(self) -> list[ManagerEffect]:
        effects = self._expire() + self._advance()
        if self._look is not None:
            return effects + self._look_on()
        if self._now_s >= self._next_round_s:
            self._next_round_s = self._now_s + self.policy.interval_s
            effects += self._round()
        if self._cron_is_due() or self._is_owed:
            effects += self._consolidate("its calendar", None)
        return effects

    def _cron_is_due(self) -> bool:
        cron = self.policy.cron
        before_ms, self._ticked_ms = self._ticked_ms, self._wall_ms
        if cron is None:
            return False
        if self._wall_ms < before_ms:  # the clock was set back
            self._next_cron_ms = cron.next_ms(self._wall_ms)
        if self._wall_ms < self._next_cron_ms:
            return False
        due = self._next_cron_ms > 0
        self._next_cron_ms = cron.next_ms(self._wall_ms)
        return due

    # ------------------------------------------------------------ what is seen

    def _is_quiet(self, kind: DecisionKind) -> bool:
        planned = any(each.kind is kind for each in self._planning.values())
        return planned or super()._is_quiet(kind)

    # ------------------------------------------------------------ rounds

    def _begin_look(self, *, judge: bool) -> list[ManagerEffect]:
        """Look at all hosts (``look_core.py``); what follows is decided when that is done."""
        order = tuple(self._table.order)
        watch = self._watch.followed(self._watched, order) if judge else None
        self._look = Look(
            order,
            watch,
            self.policy.relocator,
            self.policy.interval_s,
            self._samples.period_s,
            foresees=bool(self._unanswered),
        )
        return self._look_on()

    def _look_on(self) -> list[ManagerEffect]:
        look = self._look
        if look is None:
            return []
        if not look.step(self._table, lambda hosts: self._view(None, hosts)):
            self._look = None
            self._next_round_s = self._now_s
            return self._no_look()
        if not look.is_done:
            return [LookOn()]
        self._look = None
        effects = self._judge(look) if look.watch is not None and look.seen else []
        wanted, self._wanted = self._wanted, []
        if self._unanswered and (look.foresees or look.watch is not None):
            effects += self._answer_explains(look.view(self._table))
        if wanted:
            view = look.view(self._table)
            for who, request_id in wanted:
                effects += self._plan_consolidation(who, request_id, view)
        return effects + (self._begin_look(judge=False) if self._unanswered else [])

    def _no_look(self) -> list[ManagerEffect]:
        """A host left in the middle of it: who waits for it gets another."""
        waits = self._wanted or self._unanswered
        return self._begin_look(judge=False) if waits and self._table.order else []

    def _explain(self, host_id: str, request_id: int) -> list[ManagerEffect]:
        """A person asks why a host is not emptied: that takes a look at all of them."""
        self._unanswered.append((host_id, request_id))
        return [] if self._look is not None else self._begin_look(judge=False)

    def _answer_explains(self, view: View | None) -> list[ManagerEffect]:
        asked, self._unanswered = self._unanswered, []
        effects: list[ManagerEffect] = []
        for host_id, request_id in asked:
            if view is None or host_id not in view.snapshot.host_ids:
                gone = NotFound(f"host {host_id} is not here any more; ask again")
                effects.append(AnswerLeader(request_id, ErrorReport.of(gone)))
                continue
            row = self._watched.index(host_id) if host_id in self._watched else -1
            found = self.obstacles(host_id, view, self._seen, row)
            effects.append(AnswerLeader(request_id, HostExplained(found)))
        return effects

    def _round(self) -> list[ManagerEffect]:
        kinds = (DecisionKind.OVERLOAD, DecisionKind.UNDERLOAD)
        if all(self.mode(kind) is _OFF for kind in kinds) and not self.works and not self._offers:
            self._watched = ()
            return []
        return self._begin_look(judge=True)

    def _judge(self, look: Look) -> list[ManagerEffect]:
        """What was seen, and what is to be done about it."""
        seen, takes_part = look.detection(), look.takes_part()
        self._watch, self._watched, self._seen = seen.watch, look.order, seen
        hot = seen.overloaded & takes_part
        self._hot = frozenset(look.order[row] for row in np.flatnonzero(hot).tolist())
        for host_id in [each for each in self._helpless if each not in self._hot]:
            del self._helpless[host_id]
        idle = seen.underloaded & takes_part & ~look.empty()
        idle &= self._unsaid(DecisionKind.UNDERLOAD, look.order)
        unhelped = hot & self._unsaid(DecisionKind.OVERLOAD, look.order)
        relieves = bool(unhelped.any()) and not self._is_quiet(DecisionKind.OVERLOAD)
        empties = bool(idle.any()) and not self._is_quiet(DecisionKind.UNDERLOAD)
        empties = empties and not self.works and not self.proposals
        if not relieves and not empties and not self._offers:
            return []
        view = look.view(self._table)
        if view is None:
            return []
        aside = not look.is_whole
        effects = self._relieve(view, seen, unhelped, aside=aside) if relieves else []
        if self._offers:
            effects += self._offer_least(view, hot)
        return effects + (self._empty(view, seen, idle, aside=aside) if empties else [])

    def _relieve(
        self, view: View, seen: Detection, hot: BoolArray, *, aside: bool
    ) -> list[ManagerEffect]:
        kind = DecisionKind.OVERLOAD
        view = self._for(kind, view, np.zeros_like(hot))
        hot = hot & view.takes_part
        if not hot.any():
            return []
        return self._plan(kind, view, seen, hot, np.zeros_like(hot), aside=aside)

    def _relieved(self, view: View, seen: Detection, made: Prepared) -> list[ManagerEffect]:
        kind, plan = DecisionKind.OVERLOAD, made.plan
        story = Story(self._table, view)
        if not plan.moves:
            return self._cannot_help(view, story, seen, made)
        rows = sorted({move.source for move in plan.moves})
        reason = story.overload(rows, seen, self.policy.relocator.detector)
        return self._decide(kind, view, story, made, reason)

    def _cannot_help(
        self, view: View, story: Story, seen: Detection, made: Prepared
    ) -> list[ManagerEffect]:
        """Nothing that can be done makes it better: said once for each host and reason."""
        kind, outcomes = DecisionKind.OVERLOAD, made.outcomes
        host_ids = view.snapshot.host_ids
        effects = self._ask_leader(view, story, seen, outcomes)
        new = [o for o in outcomes if self._helpless.get(host_ids[o.host]) != o.kind.value]
        if not new:
            return effects
        self._helpless.update({host_ids[o.host]: o.kind.value for o in new})
        reason = story.overload([o.host for o in new], seen, self.policy.relocator.detector)
        decision = msgspec.structs.replace(
            self._new(kind, self.mode(kind), reason),
            subjects=tuple(host_ids[o.host] for o in new),
            alternatives=story.alternatives(made.plan, outcomes, self._cost(view)),
            inputs=made.inputs,
            state=DecisionState.REFUSED,
            outcome="nothing is moved: "
            + "; ".join(f"{story.host(o.host)}: {o.message}" for o in new[:5]),
            ended_ms=self._wall_ms,
        )
        return effects + self.book.tell(decision)

    def _ask_leader(
        self, view: View, story: Story, seen: Detection, outcomes: Sequence[Outcome]
    ) -> list[ManagerEffect]:
        """Rule 8: who finds no room here may find it elsewhere."""
        if self._now_s < self._asks_again_s:
            return []
        self._asks_again_s = self._now_s + ASK_LEADER_S
        asked: list[ManagerEffect] = []
        for outcome in [each for each in outcomes if each.kind is OutcomeKind.NO_ROOM][:MAX_ASKED]:
            reason = story.overload([outcome.host], seen, self.policy.relocator.detector)
            host_id = view.snapshot.host_ids[outcome.host]
            vms = busy_vms(view, outcome.host, self.memory.resting(self._now_s))
            if vms:
                asked.append(TellLeader(HostOverloaded(host_id, reason, vms)))
        return asked

    def _empty(
        self, view: View, seen: Detection, idle: BoolArray, *, aside: bool
    ) -> list[ManagerEffect]:
        kind = DecisionKind.UNDERLOAD
        if self.works or any(each.kind is not kind for each in self._planning.values()):
            return []
        view = self._for(kind, view, seen.overloaded)
        idle = idle & view.takes_part
        if self.policy.only_sleepable:
            hosts = [self._table.hosts[host_id] for host_id in view.snapshot.host_ids]
            idle = idle & np.array([bool(h.description.power.actions) for h in hosts], dtype=bool)
        if not idle.any():
            return []
        return self._plan(kind, view, seen, np.zeros_like(idle), idle, aside=aside)

    def _emptied(self, view: View, seen: Detection, made: Prepared) -> list[ManagerEffect]:
        kind = DecisionKind.UNDERLOAD
        story = Story(self._table, view)
        if not made.plan.moves:
            self._quiet(kind, self.policy.cool_down_s)
            rows = without_room(made.outcomes)
            words = [story.underload([row], seen, self.policy.idle_s) for row in rows]
            return self._offer(kind, view, list(zip(rows, words, strict=True)))
        rows = sorted({move.source for move in made.plan.moves})
        reason = story.underload(rows, seen, self.policy.idle_s)
        return self._decide(kind, view, story, made, reason)

    def _offer(
        self, kind: DecisionKind, view: View, hosts: Sequence[tuple[int, str]]
    ) -> list[ManagerEffect]:
        """Rule 8: tell the leader of hosts that it may empty, each with the reason."""
        told: list[ManagerEffect] = []
        for row, reason in hosts:
            vms = all_vms(view, row)
            if vms:
                host_id = view.snapshot.host_ids[row]
                told.append(TellLeader(HostToEmpty(host_id, kind, reason, vms)))
        return told

    def _offer_least(self, view: View, hot: BoolArray) -> list[ManagerEffect]:
        """Rule 8, after a consolidation."""
        self._offers = False
        kind = DecisionKind.CONSOLIDATION
        if self.mode(kind) is _OFF or self.works:
            return []
        view = self._for(kind, view, hot)
        row = least_used(
            view,
            hot,
            self.memory.hold,
            self.memory.resting(self._now_s) | self.memory.stuck(self._now_s),
            self._cost(view),
            number(self.policy.consolidation, "host_worth_s"),
        )
        if row is None:
            return []
        reason = f"{Story(self._table, view).host(row)} is used least after a consolidation"
        return self._offer(kind, view, [(row, reason)])

    def _plan(
        self,
        kind: DecisionKind,
        view: View,
        seen: Detection,
        hot: BoolArray,
        idle: BoolArray,
        *,
        aside: bool,
    ) -> list[ManagerEffect]:
        """Have the policy plan for these hosts: here, or aside if that takes long."""
        chosen = replace(seen, overloaded=hot, underloaded=idle)
        situation = self.policy.relocator.situation(
            view.snapshot, view.foreseen, R, chosen, self.memory.hold, self._now_s
        )
        if not aside and not self.policy.plugged_relocation:
            made = relocate_and_prepare(situation, self.policy.relocation)
            return self._made(_Planning(kind, view, seen), made)
        self._count += 1
        self._planning[self._count] = _Planning(kind, view, seen)
        return [PlanRelocation(self._count, situation, self.policy.relocation)]

    def _relocated(self, event: RelocationPlanned) -> list[ManagerEffect]:
        planning = self._planning.pop(event.token, None)
        if planning is None or event.answer is None:
            return []
        kind = planning.kind
        if self._is_quiet(kind) or (kind is DecisionKind.UNDERLOAD and self.works):
            return []
        known = self._table.hosts
        if not all(host_id in known for host_id in planning.view.snapshot.host_ids):
            return []
        return self._made(planning, event.answer)

    def _made(self, planning: "_Planning", made: Prepared) -> list[ManagerEffect]:
        done = self._relieved if planning.kind is DecisionKind.OVERLOAD else self._emptied
        return done(planning.view, planning.seen, made)

    # ------------------------------------------------------------ consolidation

    def _consolidate(self, who: str, request_id: int | None) -> list[ManagerEffect]:
        """Have one planned, or say why not."""
        kind = DecisionKind.CONSOLIDATION
        why_not = self.control.why_off(kind, self._wall_ms, self.manager_id)
        if kind in self.works or kind in self.proposals or self._asked or self._wanted:
            why_not = "a consolidation is under way or proposed already"
        elif not why_not and self.works:
            why_not = BESIDE
        if request_id is None:
            self._is_owed = why_not == BESIDE
        if why_not:
            if request_id is None:
                return []
            return [AnswerLeader(request_id, ErrorReport.of(Conflict(why_not)))]
        self._wanted.append((who, request_id))
        return [] if self._look is not None else self._begin_look(judge=False)

    def _plan_consolidation(
        self, who: str, request_id: int | None, view: View | None
    ) -> list[ManagerEffect]:
        """There is a view of all hosts: have it planned."""
        kind = DecisionKind.CONSOLIDATION
        if view is None or self._asked:
            if request_id is None:
                self._is_owed = not self._asked
                return []
            why_not = "hosts came or went meanwhile; ask again"
            return [AnswerLeader(request_id, ErrorReport.of(Conflict(why_not)))]
        view = self._for(kind, view, among(view.snapshot.host_ids, self._hot))
        rests = among(view.snapshot.vm_ids, self.memory.resting(self._now_s))
        if rests.any():
            changed = view.snapshot.changed(movable=view.snapshot.movable & ~rests)
            view = replace(view, snapshot=changed)
        self._count += 1
        asked = _Asked(view, self.policy.consolidation, who)
        if request_id is not None:
            asked.request_ids.append(request_id)
        self._asked[self._count] = asked
        return [PlanConsolidation(self._count, view.snapshot, self.policy.consolidation)]

    def _planned(self, event: ConsolidationPlanned) -> list[ManagerEffect]:
        asked = self._asked.pop(event.token, None)
        if asked is None:
            return []
        kind, answer = DecisionKind.CONSOLIDATION, event.answer
        reason = f"consolidation asked for by {asked.who}"
        known = self._table.hosts
        if not all(host_id in known for host_id in asked.view.snapshot.host_ids):
            event = replace(event, answer=None, error="hosts went meanwhile; ask again")
            answer = None
        made = event.prepared
        if made is None and answer is not None:
            recorded = dump.Decision(
                Recorded.CONSOLIDATION, asked.view.snapshot, options=asked.options
            )
            made = dump.prepare(recorded, answer.plan)
        if (
            made is None
            or answer is None
            or not answer.plan.moves
            or (answer.verdict is not Verdict.RELEASED)
            or self.works  # begun while it was planned
        ):
            message = answer.message if answer is not None else event.error
            state = DecisionState.DONE if answer is not None else DecisionState.FAILED
            if self.works:
                state, message = DecisionState.REFUSED, BESIDE
                self._is_owed = not asked.request_ids
            self._offers = answer is not None
            decision = msgspec.structs.replace(
                self._new(kind, self.mode(kind), reason),
                state=state,
                outcome=f"nothing is moved: {message}",
                inputs=made.inputs if made is not None else event.inputs,
                ended_ms=self._wall_ms,
            )
            effects = self.book.tell(decision)
        else:
            story = Story(self._table, asked.view)
            reason = f"{reason}: {answer.message}{_how_good(answer)}"
            effects = self._decide(kind, asked.view, story, made, reason)
            decision = next(reversed(self.book.decisions.values()))
        return effects + [
            AnswerLeader(request_id, DecisionMade(decision)) for request_id in asked.request_ids
        ]


def _how_good(answer: Consolidation) -> str:
    if not answer.gap:
        return ", which is the best possible"
    return f"; no plan can do with fewer hosts than {answer.bound.count}"

"""The latest decisions of the cluster: what its cores decided, and what managers told."""

import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable

import msgspec

from snooze.common.clock import Clock
from snooze.common.decisions import (
    DECISION_ENDED,
    Decision,
    DecisionKind,
    DecisionState,
)
from snooze.groupmanager.leader.events import EventLog
from snooze.groupmanager.leader.submission_events import Decided
from snooze.scheduling import steps

MAX_DECISIONS = 10_000
"""The oldest are forgotten beyond this."""
MAX_INPUT_BYTES = 64 * 1024 * 1024
"""The oldest lose their inputs beyond this."""

LEADER_GONE = "the leader changed"
MANAGER_GONE = "its group manager left"
NOT_APPROVED = "before it was approved"
NOT_KNOWN = (
    "before it had ended: what became of the rest is not known; what goes on is a decision of its "
    "own"
)

Sink = Callable[[Decision], None]


class DecisionLog:
    """Decisions by id, the oldest first; each change is an event of kind ``decision.KIND``."""

    def __init__(
        self, clock: Clock, events: EventLog, decider: str, sink: Sink | None = None
    ) -> None:
        """``sink`` is given every decision each time it changes (to keep it in a file)."""
        self._clock = clock
        self._events = events
        self.decider = decider
        self._sink = sink
        self._decisions: OrderedDict[str, Decision] = OrderedDict()
        self._by_key: dict[str, str] = {}
        self._recalled: set[str] = set()
        self._copy: Sink = lambda decision: None
        self._input_bytes = 0

    def copy_to(self, sink: Sink) -> None:
        """``sink`` is given every decision that no group manager would tell a new leader."""
        self._copy = sink

    def add(self, decision: Decision) -> None:
        """A new decision, or one known already as it stands now."""
        known = self._decisions.get(decision.decision_id)
        if (
            known is not None
            and known.state in DECISION_ENDED
            and known == _as_known(decision, known)
        ):
            return
        if known is not None and not decision.inputs:
            decision = msgspec.structs.replace(decision, inputs=known.inputs)
        self._keep(decision)
        if known is None or (known.state, known.outcome) != (decision.state, decision.outcome):
            text = decision.outcome or decision.reason
            self._events.add(
                f"decision.{decision.kind.value}",
                next(iter(decision.subjects), ""),
                f"{decision.state.value}: {text}",
                decision.decision_id,
            )
        if self._sink is not None:
            self._sink(decision)

    def own(self, decision: Decision) -> None:
        """A decision of one of the leader's cores, new or as it stands now."""
        self.add(decision)
        self._copy(decision)

    def load(self, decisions: Iterable[Decision]) -> None:
        """What a former leader wrote down; nobody is told.

        What had not ended has, with what was said of it last, and is written down so: what goes on
        is decided anew, or told again by its manager.
        """
        for decision in decisions:
            self._take_over(decision, is_written=True)

    def recall(self, decision: Decision) -> None:
        """What a group manager kept of a former leader's: as ``load``, of what is not known yet.

        Of several copies one with its end is right.
        """
        known = self._decisions.get(decision.decision_id)
        if known is None or (
            known.decision_id in self._recalled and decision.state in DECISION_ENDED
        ):
            self._take_over(decision, is_written=False)
            self._copy(self._decisions[decision.decision_id])

    def _take_over(self, decision: Decision, *, is_written: bool) -> None:
        """``is_written``: the files have it as it is."""
        kept = decision
        if decision.state in DECISION_ENDED:
            self._recalled.discard(decision.decision_id)
        else:
            kept = _closed(decision, LEADER_GONE, self._clock.wall_ms())
            self._recalled.add(decision.decision_id)
        self._keep(kept)
        if self._sink is not None and not (is_written and kept is decision):
            self._sink(kept)

    def decider_gone(self, manager_id: str) -> None:
        """A group manager left: what it had not ended has, unless it comes back and tells of it."""
        left = [
            each
            for each in self._decisions.values()
            if each.decider == manager_id and each.state not in DECISION_ENDED
        ]
        for decision in left if manager_id != self.decider else ():
            self.own(_closed(decision, MANAGER_GONE, self._clock.wall_ms()))

    def _keep(self, decision: Decision) -> None:
        """Of too many, the oldest go; of too many bytes, the oldest lose their inputs."""
        former = self._decisions.get(decision.decision_id)
        self._input_bytes += len(decision.inputs) - (len(former.inputs) if former else 0)
        self._decisions[decision.decision_id] = decision
        while len(self._decisions) > MAX_DECISIONS:
            oldest, gone = self._decisions.popitem(last=False)
            self._input_bytes -= len(gone.inputs)
            self._recalled.discard(oldest)
        if self._input_bytes > MAX_INPUT_BYTES:
            for key, each in self._decisions.items():
                if each.inputs and each is not decision:
                    self._input_bytes -= len(each.inputs)
                    self._decisions[key] = msgspec.structs.replace(each, inputs=b"")
                    if self._input_bytes <= MAX_INPUT_BYTES:
                        break

    def note(self, decided: Decided) -> Decision:
        """What one of the leader's own cores decided; the same key again is what became of it.

        A key whose decision has ended begins a new one. Inputs of further steps are added.
        """
        former = self._decisions.get(self._by_key.get(decided.key, ""))
        now_ms = self._clock.wall_ms()
        if former is None or former.state in DECISION_ENDED:
            former = Decision(
                uuid.uuid4().hex,
                now_ms,
                decided.kind,
                decided.mode,
                self.decider,
                decided.reason,
                decided.subjects,
                decided.actions,
                decided.alternatives,
                decided.inputs,
            )
            self._by_key[decided.key] = former.decision_id
        ended = decided.state in DECISION_ENDED
        decision = msgspec.structs.replace(
            former,
            inputs=steps.join(former.inputs, decided.more),
            reason=former.reason or decided.reason,
            state=decided.state,
            outcome=decided.outcome or former.outcome,
            ended_ms=now_ms if ended else 0,
        )
        if ended:
            self._by_key.pop(decided.key, None)
        self.own(decision)
        return decision

    def get(self, decision_id: str) -> Decision | None:
        """A decision by its id."""
        return self._decisions.get(decision_id)

    def latest(
        self,
        limit: int,
        kind: DecisionKind | None = None,
        state: DecisionState | None = None,
        subjects: Collection[str] = (),
        after_ms: int = -1,
    ) -> list[Decision]:
        """Up to ``limit`` decisions, newest first; about all of ``subjects``, made after then."""
        found: list[Decision] = []
        # What was told by those who outlived a leader came in the order in which they joined.
        in_order = sorted(self._decisions.values(), key=_made)
        for decision in reversed(in_order):
            if (
                (kind is None or decision.kind is kind)
                and (state is None or decision.state is state)
                and decision.at_ms > after_ms
                and set(subjects) <= set(decision.subjects)
            ):
                found.append(decision)
                if len(found) == limit:
                    break
        return found


def _made(decision: Decision) -> int:
    return decision.at_ms


def _closed(decision: Decision, what: str, now_ms: int) -> Decision:
    """A decision that was left open, because of ``what`` happened."""
    state, why = DecisionState.EXPIRED, NOT_APPROVED
    if decision.state is not DecisionState.PROPOSED:
        state, why = DecisionState.INTERRUPTED, NOT_KNOWN
    outcome = "; ".join(filter(None, (decision.outcome, f"{what} {why}")))
    return msgspec.structs.replace(decision, state=state, outcome=outcome, ended_ms=now_ms)


def _as_known(decision: Decision, known: Decision) -> Decision:
    """The same with the inputs that were told before: a manager tells an old decision again."""
    return decision if decision.inputs else msgspec.structs.replace(decision, inputs=known.inputs)

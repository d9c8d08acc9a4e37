"""Who leads: one candidate's part in the election.

Rules:

1. A candidate keeps one ephemeral sequential entry. The lowest of all candidates leads.
2. Before it leads it takes an epoch: one transaction checks its own candidate entry, counts up
   ``/epoch`` by version, and replaces the leader's record. Whoever fails in that does not lead.
3. A leader stops deciding the moment its session is suspended. It goes on, in the same epoch, only
   when the same session is back and the store still shows its entry lowest and its record there.
4. A leader whose session is lost steps down and stands again with a new entry. Whatever it was
   about to write in the old session is void.
5. What was answered by silence is looked up, never assumed: after every write whose outcome is
   unknown comes a look, and the next step follows from what is seen. Entries of a candidate carry
   its token, so that it knows its own again: superfluous ones are removed, and a record that it
   wrote without being told is replaced under a new epoch, in which it leads.
6. A candidate that is stopped removes its entry and record, so that the next one leads at once.
7. At most one order to the store is under way. A look is acted upon only if nothing has happened
   since it was ordered, so it does not matter how often or when watches fire; a write counts only
   if the session has not changed since.

Invariant: between ``Lead`` or ``Resume`` and the following ``StopDeciding`` or ``StepDown``, the
core's phase is ``LEADING``, and epochs handed out by ``Lead`` grow.

Phases and what leads from one to another (checked at every step, drawn in the documentation):

================  ==================================================================================
IDLE              started -> CANDIDATE, or OFFLINE without a session
OFFLINE           connected -> CANDIDATE
CANDIDATE         epoch taken -> LEADING; suspended, lost -> OFFLINE
LEADING           suspended -> SUSPENDED_LEADER; lost -> OFFLINE; deposed -> CANDIDATE
SUSPENDED_LEADER  confirmed in the same session -> LEADING; deposed, new session -> CANDIDATE;
                  lost -> OFFLINE
any of these      stopped -> STOPPING to remove what is ours, or STOPPED if there is no session
STOPPING          removed, session gone, tried ``MAX_LEAVE_ATTEMPTS`` times -> STOPPED
================  ==================================================================================
"""

import enum
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from snooze.common.coordination.leadership import LeaderRecord
from snooze.common.coordination.port import Session, SessionState
from snooze.common.errors import Conflict

MAX_LEAVE_ATTEMPTS: Final = 3
FIRST_RETRY_S: Final = 0.05
LAST_RETRY_S: Final = 1.0
_STORY_LENGTH: Final = 20


class Phase(enum.Enum):
    """Where a candidate stands."""

    IDLE = "idle"
    OFFLINE = "offline"
    CANDIDATE = "candidate"
    LEADING = "leading"
    SUSPENDED_LEADER = "suspended leader"
    STOPPING = "stopping"
    STOPPED = "stopped"


TRANSITIONS: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.IDLE: frozenset({Phase.OFFLINE, Phase.CANDIDATE, Phase.STOPPED}),
    Phase.OFFLINE: frozenset({Phase.CANDIDATE, Phase.STOPPED}),
    Phase.CANDIDATE: frozenset({Phase.LEADING, Phase.OFFLINE, Phase.STOPPING, Phase.STOPPED}),
    Phase.LEADING: frozenset(
        {Phase.SUSPENDED_LEADER, Phase.OFFLINE, Phase.CANDIDATE, Phase.STOPPING, Phase.STOPPED}
    ),
    Phase.SUSPENDED_LEADER: frozenset(
        {Phase.LEADING, Phase.OFFLINE, Phase.CANDIDATE, Phase.STOPPING, Phase.STOPPED}
    ),
    Phase.STOPPING: frozenset({Phase.STOPPED}),
    Phase.STOPPED: frozenset(),
}
"""Every change of phase there can be."""


class InvalidTransition(Conflict):
    """An event that cannot happen in the present phase; nothing changed. Tells the story."""


@dataclass(frozen=True, slots=True)
class SeenRecord:
    """The entry at ``/leader``: its version, and what it says unless that is unreadable."""

    version: int
    record: LeaderRecord | None


@dataclass(frozen=True, slots=True)
class View:
    """What a look found. ``epoch_version`` is None before the first leader ever."""

    candidates: Sequence[str]
    epoch_version: int | None
    leader: SeenRecord | None


@dataclass(frozen=True, slots=True)
class Started:
    """Take part from now on."""

    session: Session
    cause: str


@dataclass(frozen=True, slots=True)
class SessionChanged:
    """The session with the store is now this."""

    session: Session
    cause: str


@dataclass(frozen=True, slots=True)
class Poked:
    """Something may have changed in the store, or it is time to try again."""

    cause: str


@dataclass(frozen=True, slots=True)
class Looked:
    """The outcome of ``Look``."""

    order: int
    view: View
    cause: str


@dataclass(frozen=True, slots=True)
class Done:
    """A write was applied."""

    order: int
    cause: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A write's conditions did not hold: nothing was changed."""

    order: int
    cause: str


@dataclass(frozen=True, slots=True)
class TimedOut:
    """A write was sent and not answered: perhaps applied."""

    order: int
    cause: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """An order was not sent, or a look not answered: nothing was changed."""

    order: int
    cause: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Take part no longer."""

    cause: str


WriteOutcome = Done | Refused | TimedOut | Unreachable
Outcome = Looked | WriteOutcome
ElectionEvent = Started | SessionChanged | Poked | Outcome | StopRequested


@dataclass(frozen=True, slots=True)
class Look:
    """Read the candidates, then the epoch, then the leader's record."""

    order: int
    cause: str


@dataclass(frozen=True, slots=True)
class Join:
    """Make a candidate entry named ``token`` and a sequence number."""

    order: int
    token: str
    cause: str


@dataclass(frozen=True, slots=True)
class Tidy:
    """Remove superfluous candidate entries."""

    order: int
    candidates: Sequence[str]
    cause: str


@dataclass(frozen=True, slots=True)
class Take:
    """In one transaction: check the candidate entry, count the epoch up, put our record there."""

    order: int
    candidate: str
    token: str
    epoch: int
    epoch_version: int | None
    leader_version: int | None
    cause: str


@dataclass(frozen=True, slots=True)
class Leave:
    """In one transaction: remove the candidate entries, and the leader's record if it is ours."""

    order: int
    candidates: Sequence[str]
    leader_version: int | None
    cause: str


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Poke the core after a while."""

    delay_s: float
    cause: str


@dataclass(frozen=True, slots=True)
class Lead:
    """Begin to decide, in this new epoch."""

    epoch: int
    cause: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on deciding in the epoch from before the suspension."""

    epoch: int
    cause: str


@dataclass(frozen=True, slots=True)
class StopDeciding:
    """Who leads is not known for now; a leader stops deciding but forgets nothing."""

    cause: str


@dataclass(frozen=True, slots=True)
class StepDown:
    """The epoch is over for us: stop deciding for good."""

    epoch: int
    cause: str


@dataclass(frozen=True, slots=True)
class Follow:
    """Another one leads, or nobody as yet."""

    leader: LeaderRecord | None
    cause: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing of ours is left to be done; the core takes part no longer."""

    cause: str


Order = Look | Join | Tidy | Take | Leave
ElectionEffect = Order | RetryLater | Lead | Resume | StopDeciding | StepDown | Follow | Finished


def sequence_of(candidate: str) -> int | None:
    """The sequence number of a candidate entry's name; None for a name that is none of ours."""
    digits = candidate[-10:]
    is_ours = len(candidate) > 11 and candidate[-11] == "-" and digits.isdecimal()
    return int(digits) if is_ours else None


class ElectionCore:
    """One candidate. ``incarnation`` must differ between any two that ever stand at a time."""

    def __init__(self, incarnation: str) -> None:
        self.phase = Phase.IDLE
        self.epoch: int | None = None
        self._incarnation = incarnation
        self._session = Session(SessionState.CLOSED, 0)
        self._orders = 0
        self._under_way: Order | None = None
        self._was_poked = False  # Since the order under way was given; so in the next line.
        self._session_moved = False
        self._failures = 0
        self._leave_attempts = 0
        self._followed: LeaderRecord | None = None
        self._follows = False
        self._story: deque[str] = deque(maxlen=_STORY_LENGTH)

    @property
    def token(self) -> str:
        """What our entries of this session are known by."""
        return f"{self._incarnation}.{self._session.number}"

    def handle(self, event: ElectionEvent, now_s: float) -> list[ElectionEffect]:
        """Take in one event. Raises: InvalidTransition."""
        effects = self._handle(event)
        self._story.append(f"{now_s:.3f} {type(event).__name__} -> {self.phase.value}")
        return effects

    def _handle(self, event: ElectionEvent) -> list[ElectionEffect]:
        match event:
            case Started():
                return self._started(event)
            case SessionChanged():
                return self._session_changed(event)
            case Poked():
                return self._look(event.cause)
            case StopRequested():
                return self._stop(event.cause)
            case Looked() | Done() | Refused() | TimedOut() | Unreachable():
                return self._outcome(event)
            case _:
                assert_never(event)

    def _started(self, event: Started) -> list[ElectionEffect]:
        if self.phase is not Phase.IDLE:
            raise self._invalid(event)
        self._session = event.session
        if not self._is_connected:
            self._move(Phase.OFFLINE)
            return []
        self._move(Phase.CANDIDATE)
        return self._look(event.cause)

    def _session_changed(self, event: SessionChanged) -> list[ElectionEffect]:
        if self.phase is Phase.IDLE:
            raise self._invalid(event)
        is_same = event.session.number == self._session.number
        self._session = event.session
        self._session_moved = True
        self._failures = 0
        if self.phase is Phase.STOPPED:
            return []
        if self.phase is Phase.STOPPING:
            return [] if self._is_connected and is_same else self._finish(event.cause)
        match event.session.state:
            case SessionState.SUSPENDED:
                return self._suspended(event.cause)
            case SessionState.LOST | SessionState.CLOSED:
                return self._lost(event.cause)
            case SessionState.CONNECTED:
                return self._connected(is_same, event.cause)

    def _suspended(self, cause: str) -> list[ElectionEffect]:
        if self.phase is Phase.LEADING:
            self._move(Phase.SUSPENDED_LEADER)
            return [StopDeciding(cause)]
        if self.phase is Phase.CANDIDATE:
            self._move(Phase.OFFLINE)
            self._follows = False
            return [StopDeciding(cause)]
        return []

    def _lost(self, cause: str) -> list[ElectionEffect]:
        effects = self._suspended(cause) if self.phase is Phase.CANDIDATE else []
        effects += self._step_down(Phase.OFFLINE, cause)
        return effects

    def _connected(self, is_same: bool, cause: str) -> list[ElectionEffect]:
        effects: list[ElectionEffect] = []
        if self.phase is Phase.OFFLINE:
            self._move(Phase.CANDIDATE)
        elif not is_same:
            effects += self._step_down(Phase.CANDIDATE, cause)
        elif self.phase is Phase.LEADING:  # It was suspended meanwhile, unheard.
            effects += self._suspended(cause)
        return effects + self._look(cause)

    def _stop(self, cause: str) -> list[ElectionEffect]:
        if self.phase in {Phase.STOPPING, Phase.STOPPED}:
            return []
        effects: list[ElectionEffect] = []
        if self.epoch is not None:
            effects.append(StepDown(self.epoch, cause))
            self.epoch = None
        if self.phase in {Phase.IDLE, Phase.OFFLINE} or not self._is_connected:
            return effects + self._finish(cause)
        self._move(Phase.STOPPING)
        return effects + self._look(cause)

    def _outcome(self, event: Outcome) -> list[ElectionEffect]:
        order = self._under_way
        answers = Looked | Unreachable if isinstance(order, Look) else WriteOutcome
        if order is None or order.order != event.order or not isinstance(event, answers):
            raise self._invalid(event)
        self._under_way = None
        if not self._is_connected or self.phase in {Phase.OFFLINE, Phase.STOPPED}:
            return []
        if self._session_moved:
            return self._look(event.cause)
        if isinstance(event, Refused | TimedOut | Unreachable):
            return self._failed(event)
        self._failures = 0
        if isinstance(event, Looked) and not self._was_poked:
            return self._decide(event.view, event.cause)
        if isinstance(order, Leave):
            return self._finish(event.cause)
        if isinstance(order, Take) and self.phase is Phase.CANDIDATE:
            self._move(Phase.LEADING)
            self.epoch = order.epoch
            self._follows = False
            lead = Lead(order.epoch, event.cause)
            return [lead, *(self._look(event.cause) if self._was_poked else [])]
        return self._look(event.cause)

    def _failed(self, event: Refused | TimedOut | Unreachable) -> list[ElectionEffect]:
        """Look again: at once after a first refusal, else a little later each time."""
        self._failures += 1
        if self.phase is Phase.STOPPING and self._failures > MAX_LEAVE_ATTEMPTS:
            return self._finish(event.cause)
        if isinstance(event, Refused) and self._failures == 1:
            return self._look(event.cause)
        delay_s = min(FIRST_RETRY_S * 2 ** min(self._failures - 1, 10), LAST_RETRY_S)
        return [RetryLater(delay_s, event.cause)]

    def _look(self, cause: str) -> list[ElectionEffect]:
        if not self._is_connected or self.phase in {Phase.IDLE, Phase.OFFLINE, Phase.STOPPED}:
            return []
        if self._under_way is not None:
            self._was_poked = True
            return []
        return [self._order(Look(self._next(), cause))]

    def _decide(self, view: View, cause: str) -> list[ElectionEffect]:
        """The step that follows from what was seen."""
        lines: list[tuple[int, str]] = []
        for name in view.candidates:
            sequence = sequence_of(name)
            if sequence is not None:
                lines.append((sequence, name))
        lines.sort()
        own = [name for _, name in lines if name[:-11] == self.token]
        if self.phase is Phase.STOPPING:
            return self._leave(own, view, cause)
        if not own:
            return [
                *self._step_down(Phase.CANDIDATE, cause),
                self._order(Join(self._next(), self.token, cause)),
            ]
        if len(own) > 1:
            return [self._order(Tidy(self._next(), tuple(own[1:]), cause))]
        if lines[0][1] != own[0]:
            return [*self._step_down(Phase.CANDIDATE, cause), *self._follow(view, cause)]
        if self.epoch is not None and self._holds(view):
            if self.phase is Phase.LEADING:
                return []
            self._move(Phase.LEADING)
            return [Resume(self.epoch, cause)]
        return [*self._step_down(Phase.CANDIDATE, cause), self._take(own[0], view, cause)]

    def _holds(self, view: View) -> bool:
        """Whether the store shows us as the leader of our epoch."""
        record = None if view.leader is None else view.leader.record
        return (
            record is not None
            and record.token == self.token
            and record.epoch == self.epoch
            and view.epoch_version == record.epoch - 1
        )

    def _take(self, candidate: str, view: View, cause: str) -> ElectionEffect:
        epoch = 1 if view.epoch_version is None else view.epoch_version + 2
        leader_version = None if view.leader is None else view.leader.version
        return self._order(
            Take(
                order=self._next(),
                candidate=candidate,
                token=self.token,
                epoch=epoch,
                epoch_version=view.epoch_version,
                leader_version=leader_version,
                cause=cause,
            )
        )

    def _follow(self, view: View, cause: str) -> list[ElectionEffect]:
        leader = None if view.leader is None else view.leader.record
        if leader is not None and leader.token == self.token:
            leader = None  # Ours from before we were deposed; its successor will replace it.
        if self._follows and leader == self._followed:
            return []
        self._follows, self._followed = True, leader
        return [Follow(leader, cause)]

    def _leave(self, own: Sequence[str], view: View, cause: str) -> list[ElectionEffect]:
        record = None if view.leader is None else view.leader.record
        is_leader = record is not None and record.token == self.token
        self._leave_attempts += 1
        if not (own or is_leader) or self._leave_attempts > MAX_LEAVE_ATTEMPTS:
            return self._finish(cause)
        version = view.leader.version if view.leader is not None and is_leader else None
        return [self._order(Leave(self._next(), tuple(own), version, cause))]

    def _step_down(self, phase: Phase, cause: str) -> list[ElectionEffect]:
        """Give the epoch up if we have one, and go to ``phase``."""
        if self.epoch is None:
            return []
        epoch, self.epoch = self.epoch, None
        self._move(phase)
        return [StepDown(epoch, cause)]

    def _finish(self, cause: str) -> list[ElectionEffect]:
        self._move(Phase.STOPPED)
        return [Finished(cause)]

    @property
    def _is_connected(self) -> bool:
        return self._session.state is SessionState.CONNECTED

    def _next(self) -> int:
        self._orders += 1
        return self._orders

    def _order(self, order: Order) -> Order:
        self._under_way = order
        self._was_poked = self._session_moved = False
        return order

    def _move(self, phase: Phase) -> None:
        if phase not in TRANSITIONS[self.phase]:
            raise InvalidTransition(
                f"no way from {self.phase.value} to {phase.value}; {self._tell()}"
            )
        self.phase = phase

    def _invalid(self, event: ElectionEvent) -> InvalidTransition:
        return InvalidTransition(f"{event} while {self.phase.value}; {self._tell()}")

    def _tell(self) -> str:
        return f"before that: {'; '.join(self._story) or 'nothing'}"

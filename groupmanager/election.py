"""Taking part in the election of the leader: the shell around ``election_core``.

election = Election(coordinator, identity="gm-1", payload=addresses, clock=SYSTEM_CLOCK)
await election.start()
async for leadership in election.changes():
    ...
"""

import asyncio
import itertools
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from snooze.common.clock import Clock
from snooze.common.coordination.callbacks import Callbacks
from snooze.common.coordination.leadership import (
    CANDIDATES,
    EPOCH,
    LEADER,
    LeaderRecord,
    decode_record,
    encode_record,
    epoch_guard,
)
from snooze.common.coordination.port import (
    Cancel,
    Check,
    CommitConflict,
    Coordinator,
    Create,
    Delete,
    Entry,
    Operation,
    OutcomeUnknown,
    Put,
    Session,
    SessionState,
    Unavailable,
)
from snooze.common.core_runner import CoreRunner
from snooze.common.errors import InvalidRequest
from snooze.common.task_set import TaskSet
from snooze.groupmanager.challenge import QUESTION, Question, answer, ask, read_question
from snooze.groupmanager.election_core import (
    Done,
    ElectionCore,
    ElectionEffect,
    ElectionEvent,
    Finished,
    Follow,
    Join,
    Lead,
    Leave,
    Look,
    Looked,
    Order,
    Outcome,
    Poked,
    Refused,
    Resume,
    RetryLater,
    SeenRecord,
    SessionChanged,
    Started,
    StepDown,
    StopDeciding,
    StopRequested,
    Take,
    Tidy,
    TimedOut,
    Unreachable,
    View,
)

CLOSE_TIMEOUT_S = 5.0
MAX_PAYLOAD_BYTES = 32_768

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Leading:
    """We lead, in this epoch. Every transaction of ours begins with ``guard``."""

    epoch: int

    @property
    def guard(self) -> Check:
        """Lets a transaction fail unless the epoch is still ours."""
        return epoch_guard(self.epoch)


@dataclass(frozen=True, slots=True)
class Following:
    """We do not lead; None while nobody is known to."""

    leader: LeaderRecord | None


@dataclass(frozen=True, slots=True)
class Suspended:
    """The store is out of reach. ``epoch`` is the one in which we led, and perhaps will again."""

    epoch: int | None


Leadership = Leading | Following | Suspended


class Election:
    """One group manager's part in the election.

    ``identity`` and ``payload`` are what others read in the ``LeaderRecord`` when we lead; together
    at most ``MAX_PAYLOAD_BYTES``. The coordinator is the caller's: started, and closed after this.
    """

    def __init__(
        self, coordinator: Coordinator, identity: str, payload: bytes, clock: Clock
    ) -> None:
        if len(identity.encode()) + len(payload) > MAX_PAYLOAD_BYTES:
            raise InvalidRequest(f"identity and payload exceed {MAX_PAYLOAD_BYTES} bytes")
        self._coordinator = coordinator
        self._identity = identity
        self._payload = payload
        self._clock = clock
        self._core = ElectionCore(uuid.uuid4().hex)
        self._runner: CoreRunner[ElectionEvent, ElectionEffect] = CoreRunner(
            self._core, self._perform, clock
        )
        self._leadership: Leadership = Suspended(None)
        self._callbacks: Callbacks[Leadership] = Callbacks()
        self._iterators: set[asyncio.Event] = set()
        self._confirmed_epoch: int | None = None
        self._causes = itertools.count(1)
        self._cancels: list[Cancel] = []
        self._order: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._question: Entry | None = None
        self._listens = False
        self._answers = TaskSet()
        self._finished = asyncio.Event()

    @property
    def leadership(self) -> Leadership:
        """Who leads, as far as we know."""
        return self._leadership

    def is_leader(self, epoch: int) -> bool:
        """Whether we may decide in ``epoch`` at this very moment.

        False from the moment the session is suspended, and also in a process that was frozen for so
        long that another may lead by now, before it has heard of anything.
        """
        return (
            self._confirmed_epoch == epoch
            and self._coordinator.session.state is SessionState.CONNECTED
            and self._clock.monotonic_s() < self._coordinator.live_until_s
        )

    def on_leadership(self, callback: Callable[[Leadership], None]) -> Cancel:
        """Call back at every change of ``leadership``, in order; not with the present one."""
        return self._callbacks.add(callback)

    async def changes(self) -> AsyncGenerator[Leadership, None]:
        """The present leadership and then each new one; what changes meanwhile is not queued.

        Ends when the election is closed.
        """
        news = asyncio.Event()
        self._iterators.add(news)
        try:
            seen: Leadership | None = None
            while True:
                if seen != self._leadership:
                    seen = self._leadership
                    yield seen
                elif self._finished.is_set():
                    return
                else:
                    await news.wait()
                    news.clear()
        finally:
            self._iterators.discard(news)

    async def start(self) -> None:
        """Stand as a candidate as soon as there is a session. To be called once."""
        self._feed(Started(self._coordinator.session, self._cause("start")))
        self._cancels = [
            self._coordinator.on_session(self._session_changed),
            self._coordinator.watch_children(CANDIDATES, lambda _names: self._poke("candidates")),
            self._coordinator.watch(EPOCH, lambda _entry: self._poke("epoch")),
            self._coordinator.watch(LEADER, lambda _entry: self._poke("leader")),
        ]

    async def close(self) -> None:
        """Step down and withdraw, so that the next one leads at once; in bounded time."""
        self._feed(StopRequested(self._cause("close")))
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._finished.wait()
        except TimeoutError:
            _log.warning("candidacy left to the session's time-out", extra={"id": self._identity})
        self._finished.set()
        for cancel in self._cancels:
            cancel()
        if self._retry is not None:
            self._retry.cancel()
        if self._order is not None:
            self._order.cancel()
        await self._answers.close()
        self._announce(Following(None))
        self._wake_iterators()

    async def evict(self, identity: str) -> bool:
        """Remove a leader whose process is known to be gone, before its session ends.

        Its record and its candidacy go in one transaction, if it leads still; then the next one
        leads as ever. Should it be alive after all, it is deposed and stands again: two never
        lead, as each takes an epoch of its own. Returns whether it was removed.
        """
        return await self._remove(identity, patience_s=None)

    async def doubt(self, identity: str, patience_s: float) -> bool:
        """Remove a leader that is not heard, if it does not say through the store that it is there.

        It has ``patience_s`` for that (see ``challenge``). Returns whether it was removed.
        """
        return await self._remove(identity, patience_s)

    async def _remove(self, identity: str, patience_s: float | None) -> bool:
        try:
            entry = await self._coordinator.read(LEADER)
            record = None if entry is None else decode_record(entry.data)
            if entry is None or record is None or record.id != identity:
                return False
            conditions = [epoch_guard(record.epoch)]
            if patience_s is not None:
                conditions.append(await ask(self._coordinator, record.epoch))
                await asyncio.sleep(patience_s)
            names = await self._coordinator.children(CANDIDATES)
            own = [f"{CANDIDATES}/{name}" for name in names if name.startswith(f"{record.token}-")]
            removals = [Delete(LEADER, entry.version), *(Delete(path) for path in own)]
            await self._coordinator.commit([*conditions, *removals])
        except (CommitConflict, OutcomeUnknown, Unavailable) as error:
            _log.info("not evicted: %s", error.message, extra={"id": self._identity})
            return False
        _log.warning("evicted %s, epoch %d", identity, record.epoch, extra={"id": self._identity})
        return True

    def _listen(self) -> None:
        """Whoever leads, or has led, sees the questions; one that stands is answered at once."""
        if not self._listens:
            self._listens = True
            self._cancels.append(self._coordinator.watch(QUESTION, self._asked))
        self._answer()

    def _asked(self, entry: Entry | None) -> None:
        self._question = entry
        self._answer()

    def _answer(self) -> None:
        """Say that we are there, if that is the question and we lead."""
        entry, epoch = self._question, self._confirmed_epoch
        if entry is not None and epoch is not None and read_question(entry) == Question(epoch):
            self._answers.spawn(self._say_so(epoch, entry))

    async def _say_so(self, epoch: int, entry: Entry) -> None:
        try:
            await answer(self._coordinator, epoch, entry)
        except (CommitConflict, OutcomeUnknown, Unavailable) as error:
            _log.info("the doubt was not answered: %s", error.message)
        else:
            _log.warning("doubted by a group manager that does not hear us; we are here")

    def _session_changed(self, session: Session) -> None:
        if session.state is not SessionState.CONNECTED:
            self._confirmed_epoch = None
        cause = self._cause(f"session-{session.number}-{session.state.value}")
        self._feed(SessionChanged(session, cause))

    def _poke(self, what: str) -> None:
        self._feed(Poked(self._cause(what)))

    def _cause(self, what: str) -> str:
        return f"{what}#{next(self._causes)}"

    def _feed(self, event: ElectionEvent) -> None:
        self._runner.feed(event)

    def _perform(self, effect: ElectionEffect) -> None:
        _log.debug("election", extra={"id": self._identity, "effect": repr(effect)})
        match effect:
            case Look() | Join() | Tidy() | Take() | Leave():
                number = self._coordinator.session.number
                carry_out = self._carry_out(effect, number)
                self._order = asyncio.get_running_loop().create_task(carry_out)
            case RetryLater(delay_s=delay_s):
                loop = asyncio.get_running_loop()
                self._retry = loop.call_later(delay_s, lambda: self._poke("retry"))
            case Lead(epoch=epoch) | Resume(epoch=epoch):
                self._confirmed_epoch = epoch
                self._announce(Leading(epoch))
                self._listen()
            case StopDeciding():
                self._confirmed_epoch = None
                self._announce(Suspended(self._core.epoch))
            case StepDown():
                self._confirmed_epoch = None
                self._announce(Following(None))
            case Follow(leader=leader):
                self._announce(Following(leader))
            case Finished():
                self._finished.set()
            case _:
                assert_never(effect)

    def _announce(self, leadership: Leadership) -> None:
        if leadership != self._leadership:
            self._leadership = leadership
            _log.info("%s", leadership, extra={"id": self._identity})
            self._callbacks.call(leadership)
            self._wake_iterators()

    def _wake_iterators(self) -> None:
        for news in self._iterators:
            news.set()

    async def _carry_out(self, order: Order, session_number: int) -> None:
        self._feed(await self._outcome(order, session_number))

    async def _outcome(self, order: Order, session_number: int) -> Outcome:
        """Carry out an order, in the session in which it was given; one of its outcomes follows."""
        if self._coordinator.session.number != session_number:
            return Unreachable(order.order, order.cause)
        try:
            if isinstance(order, Look):
                return Looked(order.order, await self._view(), order.cause)
            await self._coordinator.commit(operations_of(order, self._identity, self._payload))
            return Done(order.order, order.cause)
        except CommitConflict:
            return Refused(order.order, order.cause)
        except OutcomeUnknown:
            return TimedOut(order.order, order.cause)
        except Unavailable:
            return Unreachable(order.order, order.cause)

    async def _view(self) -> View:
        """Read in this order, a leader gone from the candidates is gone from its record as well."""
        candidates = await self._coordinator.children(CANDIDATES)
        epoch = await self._coordinator.read(EPOCH)
        leader = await self._coordinator.read(LEADER)
        return View(
            candidates=tuple(candidates),
            epoch_version=None if epoch is None else epoch.version,
            leader=None
            if leader is None
            else SeenRecord(leader.version, decode_record(leader.data)),
        )


def operations_of(
    order: Join | Tidy | Take | Leave, identity: str, payload: bytes
) -> Sequence[Operation]:
    """The transaction by which the store carries out an order."""
    match order:
        case Join(token=token):
            data = identity.encode()
            return [Create(f"{CANDIDATES}/{token}-", data, ephemeral=True, sequence=True)]
        case Tidy(candidates=candidates):
            return [Delete(f"{CANDIDATES}/{name}") for name in candidates]
        case Take():
            record = LeaderRecord(identity, order.epoch, payload, order.token)
            operations: list[Operation] = [Check(f"{CANDIDATES}/{order.candidate}")]
            if order.epoch_version is None:
                operations.append(Create(EPOCH))
            else:
                operations.append(Put(EPOCH, b"", order.epoch_version))
            if order.leader_version is not None:
                operations.append(Delete(LEADER, order.leader_version))
            operations.append(Create(LEADER, encode_record(record), ephemeral=True))
            return operations
        case Leave():
            removals: list[Operation] = [Delete(f"{CANDIDATES}/{n}") for n in order.candidates]
            if order.leader_version is not None:
                removals.append(Delete(LEADER, order.leader_version))
            return removals

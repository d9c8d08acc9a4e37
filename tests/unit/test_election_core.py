"""The election's core: every interrupted prefix of coming to lead; seeded worlds of candidates."""

import random  # noqa: TID253 - seeds
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from snooze.common.coordination.leadership import (
    CANDIDATES,
    EPOCH,
    LEADER,
    LeaderRecord,
    decode_record,
)
from snooze.common.coordination.memory import MemoryStore
from snooze.common.coordination.port import (
    CommitConflict,
    Create,
    Delete,
    Put,
    Session,
    SessionState,
)
from snooze.groupmanager.election import operations_of
from snooze.groupmanager.election_core import (
    TRANSITIONS,
    Done,
    ElectionCore,
    ElectionEffect,
    ElectionEvent,
    Finished,
    Follow,
    InvalidTransition,
    Join,
    Lead,
    Leave,
    Look,
    Looked,
    Order,
    Phase,
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
    sequence_of,
)

CONNECTED, SUSPENDED = SessionState.CONNECTED, SessionState.SUSPENDED
LOST = SessionState.LOST


@dataclass
class Member:
    """A core, its session with a shared store, and the order it has under way, step by step."""

    name: str
    store: MemoryStore
    core: ElectionCore = field(init=False)
    owner: int = 0
    ordered_by: int = 0  # The session in which the order was given; void in any other.
    number: int = 0
    is_connected: bool = False
    order: Order | None = None
    steps: Iterator[ElectionEvent | None] | None = None
    poked: bool = False
    effects: list[ElectionEffect] = field(default_factory=list[ElectionEffect])

    def __post_init__(self) -> None:
        self.core = ElectionCore(self.name)

    def feed(self, event: ElectionEvent) -> None:
        for effect in self.core.handle(event, 0.0):
            self.effects.append(effect)
            match effect:
                case Look() | Join() | Tidy() | Take() | Leave():
                    assert self.order is None, "two orders under way"
                    self.order, self.steps, self.ordered_by = effect, None, self.owner
                case RetryLater():
                    self.poked = True
                case _:
                    pass

    def start(self) -> None:
        self.connect()
        self.feed(Started(Session(CONNECTED, self.number), "test"))

    def connect(self) -> None:
        """Open a session, or come back to the one that still lives."""
        if not self.store.is_live(self.owner):
            self.owner = self.store.open_session()
            self.number += 1
        self.is_connected = True

    def suspend(self) -> None:
        self.is_connected = False
        self.feed(SessionChanged(Session(SUSPENDED, self.number), "test"))

    def resume(self) -> None:
        if not self.store.is_live(self.owner):
            self.feed(SessionChanged(Session(LOST, self.number), "test"))
        self.connect()
        self.feed(SessionChanged(Session(CONNECTED, self.number), "test"))

    def poke(self) -> None:
        self.poked = False
        self.feed(Poked("test"))

    def step(self, fault: str = "") -> None:
        """Take the order under way one step further; its last step delivers the outcome."""
        assert self.order is not None
        if self.steps is None:
            self.steps = self._carry_out(self.order, fault)
        event = next(self.steps)
        if event is not None:
            self.order = self.steps = None
            self.feed(event)

    def finish_order(self, fault: str = "") -> None:
        order = self.order
        while self.order is order:
            self.step(fault)

    def _carry_out(self, order: Order, fault: str) -> Iterator[ElectionEvent | None]:
        number = order.order
        owner = self.owner
        if fault == "unreachable" or not self.is_connected or owner != self.ordered_by:
            yield Unreachable(number, "test")
        elif isinstance(order, Look):
            names = self.store.children(CANDIDATES)[0]
            yield None
            epoch = self.store.read(EPOCH, owner)
            yield None
            entry = self.store.read(LEADER, owner)
            yield None  # The answer may be on its way while the session breaks.
            leader = None if entry is None else SeenRecord(entry.version, decode_record(entry.data))
            view = View(names, None if epoch is None else epoch.version, leader)
            yield Looked(number, view, "test")
        elif fault == "lost request" or not self.store.is_live(owner):
            yield TimedOut(number, "test")
        else:
            try:
                self.store.commit(operations_of(order, self.name, b""), owner)
            except CommitConflict:
                yield Refused(number, "test")
                return
            yield None  # As above.
            yield TimedOut(number, "test") if fault == "lost reply" else Done(number, "test")

    def settle(self) -> None:
        for _ in range(200):
            if self.order is not None:
                self.finish_order()
            elif self.poked:
                self.poke()
            else:
                return
        raise AssertionError(f"{self.name} does not settle: {self.effects[-20:]}")

    def own_entries(self) -> list[str]:
        return [
            name
            for name in self.store.children(CANDIDATES)[0]
            if name.startswith(f"{self.core.token}-")
        ]

    def decided(self) -> list[ElectionEffect]:
        kinds = Lead | Resume | StopDeciding | StepDown | Follow | Finished
        return [effect for effect in self.effects if isinstance(effect, kinds)]


def record_in(store: MemoryStore) -> LeaderRecord | None:
    entry = store.read(LEADER, 0)
    return None if entry is None else decode_record(entry.data)


def epoch_in(store: MemoryStore) -> int | None:
    entry = store.read(EPOCH, 0)
    return None if entry is None else entry.version + 1


def assert_leads(member: Member) -> None:
    assert member.core.phase is Phase.LEADING
    record = record_in(member.store)
    assert record is not None
    assert record.token == member.core.token
    assert record.epoch == member.core.epoch == epoch_in(member.store)
    assert len(member.own_entries()) == 1


def leader(store: MemoryStore) -> Member:
    member = Member("first", store)
    member.start()
    member.settle()
    assert_leads(member)
    return member


def test_a_lone_candidate_leads_in_epoch_1() -> None:
    member = leader(MemoryStore())
    assert member.decided() == [Lead(1, "test")]
    kinds = [type(effect) for effect in member.effects]
    assert kinds == [Look, Join, Look, Take, Lead]


def test_the_next_in_line_follows_and_leads_when_the_first_stops() -> None:
    store = MemoryStore()
    first, second = leader(store), Member("second", store)
    second.start()
    second.settle()
    assert second.decided() == [Follow(record_in(store), "test")]

    first.feed(StopRequested("test"))
    first.settle()
    assert first.decided()[-2:] == [StepDown(1, "test"), Finished("test")]
    assert first.own_entries() == []
    assert record_in(store) is None

    second.poke()
    second.settle()
    assert second.decided()[-1] == Lead(2, "test")
    assert_leads(second)


@pytest.mark.parametrize("fault", ["unreachable", "lost request", "lost reply"])
@pytest.mark.parametrize("interrupted", range(6))
def test_any_order_may_fail_on_the_way_to_lead(fault: str, interrupted: int) -> None:
    store = MemoryStore()
    member = Member("only", store)
    member.start()
    for _ in range(interrupted):
        if member.order is not None:
            member.finish_order()
    if member.order is not None:
        member.finish_order(fault)
    member.settle()
    assert_leads(member)


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("steps", range(20))
def test_the_session_may_break_at_any_step(is_lost: bool, early: bool, steps: int) -> None:
    """``early``: the session is back before the order that it interrupted has its outcome."""
    store = MemoryStore()
    member = Member("only", store)
    member.start()
    for _ in range(steps):
        if member.order is not None:
            member.step()
    was_leading = member.core.phase is Phase.LEADING
    member.suspend()
    assert member.core.phase in {Phase.OFFLINE, Phase.SUSPENDED_LEADER}
    if is_lost:
        store.end_session(member.owner)
    if not early and member.order is not None:
        member.finish_order()
    member.resume()
    member.settle()
    assert_leads(member)
    decided = member.decided()
    if was_leading and is_lost:
        assert decided[1:] == [StopDeciding("test"), StepDown(1, "test"), Lead(2, "test")]
    elif was_leading:
        assert decided[1:] == [StopDeciding("test"), Resume(1, "test")]


def test_a_join_whose_reply_was_lost_leaves_one_entry() -> None:
    member = Member("only", MemoryStore())
    member.start()
    member.finish_order()
    assert isinstance(member.order, Join)
    member.finish_order("lost reply")
    member.settle()
    assert sum(isinstance(effect, Join) for effect in member.effects) == 1
    assert_leads(member)


def test_superfluous_entries_are_removed() -> None:
    store = MemoryStore()
    member = Member("only", store)
    member.start()
    for _ in range(3):
        path = f"{CANDIDATES}/{member.core.token}-"
        store.commit([Create(path, ephemeral=True, sequence=True)], member.owner)
    member.settle()
    assert member.own_entries() == [f"{member.core.token}-0000000000"]
    assert_leads(member)


def test_a_take_whose_reply_was_lost_is_done_again_in_a_new_epoch() -> None:
    member = Member("only", MemoryStore())
    member.start()
    while not isinstance(member.order, Take):
        member.finish_order()
    member.finish_order("lost reply")
    assert member.core.phase is Phase.CANDIDATE
    member.settle()
    assert member.decided() == [Lead(2, "test")]
    assert_leads(member)


def test_a_suspended_leader_does_not_resume_before_it_has_looked() -> None:
    member = leader(MemoryStore())
    member.suspend()
    member.resume()
    assert member.decided()[-1] == StopDeciding("test")
    assert isinstance(member.order, Look)
    member.settle()
    assert member.decided()[-1] == Resume(1, "test")


def test_a_leader_whose_record_was_replaced_steps_down_and_takes_a_new_epoch() -> None:
    store = MemoryStore()
    member = leader(store)
    other = store.open_session()
    store.commit([Delete(LEADER), Create(LEADER, b"nonsense", ephemeral=True)], other)
    member.poke()
    member.settle()
    assert member.decided()[1:] == [StepDown(1, "test"), Lead(2, "test")]
    assert_leads(member)


def test_a_leader_whose_entry_was_removed_steps_down_and_stands_again() -> None:
    store = MemoryStore()
    first, second = leader(store), Member("second", store)
    second.start()
    second.settle()
    (entry,) = first.own_entries()
    store.commit([Delete(f"{CANDIDATES}/{entry}")], store.open_session())
    for member in (second, first, second):
        member.poke()
        member.settle()
    assert_leads(second)
    assert StepDown(1, "test") in first.effects
    assert first.decided()[-1] == Follow(record_in(store), "test")


def test_an_epoch_counted_up_by_another_hand_is_given_up() -> None:
    """For no transaction guarded by it would pass any more."""
    store = MemoryStore()
    member = leader(store)
    store.commit([Put(EPOCH, b"")], store.open_session())
    member.poke()
    member.settle()
    assert member.decided()[1:] == [StepDown(1, "test"), Lead(3, "test")]
    assert_leads(member)


@pytest.mark.parametrize("meddle", ["epoch", "entry", "record"])
def test_an_epoch_is_only_taken_from_what_was_seen(meddle: str) -> None:
    store = MemoryStore()
    store.end_session(leader(store).owner)
    member = Member("second", store)
    member.start()
    while not isinstance(member.order, Take):
        member.finish_order()
    other = store.open_session()
    match meddle:
        case "epoch":
            store.commit([Put(EPOCH, b"")], other)
        case "entry":
            store.commit([Delete(f"{CANDIDATES}/{member.own_entries()[0]}")], other)
        case _:
            store.commit([Create(LEADER, b"nonsense", ephemeral=True)], other)
    member.finish_order()
    assert member.decided() == []
    member.settle()
    assert member.decided() == [Lead(3 if meddle == "epoch" else 2, "test")]
    assert_leads(member)


def test_what_was_written_in_a_lost_session_does_not_make_a_leader() -> None:
    """The reply arrives when the session in which it was asked is already another."""
    member = Member("only", MemoryStore())
    member.start()
    while not isinstance(member.order, Take):
        member.finish_order()
    member.step()  # Applied.
    member.store.end_session(member.owner)
    member.suspend()
    member.resume()
    member.step()  # Told.
    assert member.decided() == [StopDeciding("test")]
    member.settle()
    assert member.decided()[1:] == [Lead(2, "test")]
    assert_leads(member)


def test_pokes_while_the_epoch_is_taken_do_not_take_another() -> None:
    member = Member("only", MemoryStore())
    member.start()
    while not isinstance(member.order, Take):
        member.finish_order()
    member.poke()  # The watch tells of our own record before the reply does.
    member.settle()
    assert member.decided() == [Lead(1, "test")]


def test_foreign_names_among_the_candidates_are_ignored() -> None:
    store = MemoryStore()
    session = store.open_session()
    for name in ("0000000000", "-0000000000", "x-123", "x-00000000zz", "README"):
        store.commit([Create(f"{CANDIDATES}/{name}")], session)
        assert sequence_of(name) is None
    assert_leads(leader(store))


def test_failures_are_retried_ever_more_slowly_within_a_bound() -> None:
    member = Member("only", MemoryStore())
    member.start()
    for _ in range(50):
        member.finish_order("unreachable")
        member.poke()
    delays = [effect.delay_s for effect in member.effects if isinstance(effect, RetryLater)]
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == (0.05, 1.0)


@pytest.mark.parametrize("fault", ["unreachable", "lost request", "lost reply"])
def test_stopping_ends_whatever_fails(fault: str) -> None:
    member = leader(MemoryStore())
    member.feed(StopRequested("test"))
    for _ in range(20):
        if member.order is not None:
            member.finish_order(fault)
        elif member.poked:
            member.poke()
    assert member.core.phase is Phase.STOPPED
    assert member.decided()[-1] == Finished("test")


@pytest.mark.parametrize("steps", range(15))
def test_stopping_at_any_step_leaves_nothing(steps: int) -> None:
    store = MemoryStore()
    member = Member("only", store)
    member.start()
    for _ in range(steps):
        if member.order is not None:
            member.step()
    member.feed(StopRequested("test"))
    member.settle()
    assert member.core.phase is Phase.STOPPED
    assert member.own_entries() == []
    assert record_in(store) is None


def test_illegal_events_tell_their_story_and_change_nothing() -> None:
    member = leader(MemoryStore())
    for event in (
        Started(Session(CONNECTED, 1), "again"),
        Done(99, "unasked"),
        Looked(1, View((), None, None), "late"),
    ):
        with pytest.raises(InvalidTransition, match=r"before that: .*Done -> leading"):
            member.core.handle(event, 0.0)
        assert_leads(member)


def test_every_phase_can_be_reached_and_stopped_is_final() -> None:
    reached = {Phase.IDLE}.union(*TRANSITIONS.values())
    assert reached == set(Phase) == set(TRANSITIONS)
    assert TRANSITIONS[Phase.STOPPED] == frozenset()


FAULTS = ("", "", "", "unreachable", "lost request", "lost reply")


def churn(members: Sequence[Member], dice: random.Random) -> None:
    """One random thing happens to one of them."""
    member = dice.choice(members)
    match dice.randrange(12):
        case 0 if member.is_connected:
            member.suspend()
        case 1 | 2 if not member.is_connected:
            member.resume()
        case 3 if dice.random() < 0.3:
            member.store.end_session(member.owner)  # Unnoticed until it calls or comes back.
        case 4 if not member.store.is_live(member.owner) and member.is_connected:
            member.suspend()
            member.resume()
        case 5:
            member.poke()
        case _ if member.order is not None:
            member.step(dice.choice(FAULTS))
        case _:
            pass


@pytest.mark.parametrize("seed", range(200))
def test_under_faults_epochs_grow_and_healed_there_is_one_leader(seed: int) -> None:
    dice = random.Random(seed)
    store = MemoryStore()
    members = [Member(name, store) for name in "abc"]
    for member in members:
        member.start()
    last_epoch = 0
    for _ in range(300):
        heard = [len(member.effects) for member in members]
        churn(members, dice)
        for member, count in zip(members, heard, strict=True):
            for effect in member.effects[count:]:
                if isinstance(effect, Lead):
                    assert effect.epoch > last_epoch, "an epoch was handed out twice"
                    last_epoch = effect.epoch

    for member in members:
        if member.is_connected and not store.is_live(member.owner):
            member.suspend()
        if not member.is_connected:
            member.resume()
    for _ in range(4):
        for member in members:
            member.settle()
            member.poke()
    for member in members:
        member.settle()
    leading = [member for member in members if member.core.phase is Phase.LEADING]
    assert len(leading) == 1
    assert_leads(leading[0])
    for member in members:
        assert len(member.own_entries()) == 1
        if member is not leading[0]:
            assert member.decided()[-1] == Follow(record_in(store), "test")

"""How a host finds its manager: every row of the table, and every event that comes too late."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snooze.common.errors import StaleEpoch
from snooze.common.wire import Address, Assignment, ManagerDescription
from snooze.localcontroller.agent_core import (
    MAX_FAILED,
    AgentCore,
    AgentEffect,
    AgentEvent,
    AgentState,
    AskAssignment,
    Assigned,
    CloseLink,
    ConnectTo,
    GoingDown,
    Joined,
    LinkClosed,
    NotAssigned,
    Note,
    NotJoined,
    SentElsewhere,
    Started,
    Stopped,
    WakeIn,
    Woken,
    WokenEarly,
)


def assignment_of(epoch: int, manager_id: str = "gm1") -> Assignment:
    where = Address(manager_id, 1)
    return Assignment(ManagerDescription(manager_id, manager_id, where, where), epoch)


def agent(*events: AgentEvent) -> AgentCore:
    core = AgentCore(retry_min_s=0.5, retry_max_s=4.0)
    for event in events:
        core.handle(event, 0.0)
    return core


def feed(core: AgentCore, event: AgentEvent) -> list[AgentEffect]:
    """What it orders, besides notes."""
    return [effect for effect in core.handle(event, 0.0) if not isinstance(effect, Note)]


SEEKING = (Started(),)
WAITING = (*SEEKING, NotAssigned("no leader"))
JOINING = (*SEEKING, Assigned(assignment_of(5)))
JOINED = (*JOINING, Joined())
RESTING = (*JOINED, GoingDown("it goes down", 60.0))


@pytest.mark.parametrize(
    ("before", "event", "after", "effects"),
    [
        ((), Started(), AgentState.SEEKING, [AskAssignment("", ())]),
        (SEEKING, Assigned(assignment_of(5)), AgentState.JOINING, [ConnectTo(assignment_of(5))]),
        (SEEKING, NotAssigned("x"), AgentState.WAITING, [WakeIn(0.5, 1)]),
        (WAITING, Woken(1), AgentState.SEEKING, [AskAssignment("", ())]),
        (JOINING, Joined(), AgentState.JOINED, []),
        (JOINING, NotJoined("x"), AgentState.WAITING, [WakeIn(0.5, 1)]),
        (JOINED, LinkClosed("x"), AgentState.SEEKING, [AskAssignment("gm1", ())]),
        (
            JOINED,
            LinkClosed("x", silent=True),
            AgentState.SEEKING,
            [AskAssignment("gm1", ("gm1",))],
        ),
        (
            JOINED,
            SentElsewhere(assignment_of(6, "gm2")),
            AgentState.JOINING,
            [CloseLink("given to another group manager"), ConnectTo(assignment_of(6, "gm2"))],
        ),
        (JOINED, GoingDown("x", 9.0), AgentState.WAITING, [CloseLink("x"), WakeIn(9.0, 1)]),
        (SEEKING, GoingDown("x", 9.0), AgentState.WAITING, [CloseLink("x"), WakeIn(9.0, 1)]),
        (JOINING, GoingDown("x", 9.0), AgentState.WAITING, [CloseLink("x"), WakeIn(9.0, 1)]),
        (WAITING, GoingDown("x", 9.0), AgentState.WAITING, [CloseLink("x"), WakeIn(9.0, 2)]),
        (RESTING, Woken(1), AgentState.SEEKING, [AskAssignment("gm1", ())]),
        (RESTING, WokenEarly(), AgentState.SEEKING, [AskAssignment("gm1", ())]),
        (JOINED, Stopped(), AgentState.STOPPED, [CloseLink("shutting down")]),
        (SEEKING, Stopped(), AgentState.STOPPED, [CloseLink("shutting down")]),
    ],
)
def test_the_table(
    before: tuple[AgentEvent, ...],
    event: AgentEvent,
    after: AgentState,
    effects: list[AgentEffect],
) -> None:
    core = agent(*before)
    assert feed(core, event) == effects
    assert core.state is after


@pytest.mark.parametrize(
    ("before", "event"),
    [
        (JOINED, Started()),
        ((), Assigned(assignment_of(5))),
        (JOINED, Assigned(assignment_of(6))),
        (JOINED, NotAssigned("x")),
        (JOINED, Joined()),
        (WAITING, Joined()),
        (JOINED, NotJoined("x")),
        (SEEKING, LinkClosed("x")),
        (JOINING, LinkClosed("x")),
        (WAITING, Woken(7)),
        (JOINED, Woken(1)),
        (JOINING, SentElsewhere(assignment_of(6))),
        ((), GoingDown("x", 9.0)),
        (RESTING, LinkClosed("x")),
        (RESTING, Assigned(assignment_of(6))),
        (JOINED, WokenEarly()),
        ((*RESTING, WokenEarly()), Woken(1)),
        ((*JOINED, Stopped()), Started()),
        ((*JOINED, Stopped()), LinkClosed("x")),
    ],
)
def test_what_comes_too_late_changes_nothing(
    before: tuple[AgentEvent, ...], event: AgentEvent
) -> None:
    core = agent(*before)
    state = core.state
    assert core.handle(event, 0.0) == []
    assert core.state is state


# ---------------------------------------------------------------- rule 1: whose orders


@pytest.mark.parametrize("epoch", [5, 6])
def test_orders_of_the_present_assignment_are_taken(epoch: int) -> None:
    agent(*JOINED).admit(epoch)


@pytest.mark.parametrize(
    ("events", "epoch"), [(JOINED, 4), (JOINED, 0), (JOINING, 5), ((*JOINED, LinkClosed("x")), 5)]
)
def test_all_others_are_refused(events: tuple[AgentEvent, ...], epoch: int) -> None:
    with pytest.raises(StaleEpoch):
        agent(*events).admit(epoch)


def test_after_a_move_the_former_managers_orders_are_refused() -> None:
    core = agent(*JOINED, SentElsewhere(assignment_of(9, "gm2")), Joined())
    core.admit(9)
    with pytest.raises(StaleEpoch):
        core.admit(5)


# ---------------------------------------------------------------- rule 2: deposed leaders


@pytest.mark.parametrize("epoch", [4, 5])
def test_an_assignment_not_newer_than_the_last_is_refused(epoch: int) -> None:
    core = agent(*JOINED, LinkClosed("x"))
    assert feed(core, Assigned(assignment_of(epoch, "gm2"))) == [WakeIn(0.5, 1)]
    assert (core.manager_id, core.epoch) == ("gm1", 5)
    assert feed(agent(*JOINED), SentElsewhere(assignment_of(epoch, "gm2"))) == []


# ---------------------------------------------------------------- looking for a manager


def test_pauses_double_up_to_a_bound_and_begin_anew_after_joining() -> None:
    core = agent(Started())
    pauses: list[float] = []
    for number in range(1, 7):
        wake = feed(core, NotAssigned("no leader"))[0]
        assert isinstance(wake, WakeIn)
        assert wake.number == number
        pauses.append(wake.pause_s)
        feed(core, Woken(number))
    assert pauses == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    for event in (Assigned(assignment_of(5)), Joined(), LinkClosed("x")):
        core.handle(event, 0.0)
    assert feed(core, NotAssigned("no leader")) == [WakeIn(0.5, 7)]


def test_managers_out_of_reach_are_named_the_latest_last_until_one_is_joined() -> None:
    core = agent(Started())
    effects: list[AgentEffect] = []
    for number, manager_id in enumerate(("gm1", "gm2", "gm1"), start=1):
        core.handle(Assigned(assignment_of(number, manager_id)), 0.0)
        core.handle(NotJoined("refused"), 0.0)
        effects = feed(core, Woken(number))
    assert effects == [AskAssignment("gm1", ("gm2", "gm1"))]
    core.handle(Assigned(assignment_of(9, "gm3")), 0.0)
    core.handle(Joined(), 0.0)
    assert feed(core, LinkClosed("x")) == [AskAssignment("gm3", ())]


def test_only_so_many_failures_are_remembered() -> None:
    core = agent(Started())
    for number in range(1, 40):
        core.handle(Assigned(assignment_of(number, f"gm{number}")), 0.0)
        core.handle(NotJoined("refused"), 0.0)
        core.handle(Woken(number), 0.0)
    assert core.failed == tuple(f"gm{n}" for n in range(40 - MAX_FAILED, 40))


def test_the_same_reason_is_logged_once() -> None:
    core = agent(Started())
    notes = 0
    for number in range(1, 5):
        effects = core.handle(NotAssigned("no leader"), 0.0)
        notes += sum(isinstance(effect, Note) for effect in effects)
        core.handle(Woken(number), 0.0)
    assert notes == 1
    assert any(isinstance(effect, Note) for effect in core.handle(NotAssigned("other"), 0.0))


# ---------------------------------------------------------------- the invariant

events = st.one_of(
    st.just(Started()),
    st.builds(Assigned, st.builds(assignment_of, st.integers(1, 9), st.sampled_from(["a", "b"]))),
    st.builds(
        SentElsewhere, st.builds(assignment_of, st.integers(1, 9), st.sampled_from(["a", "b"]))
    ),
    st.just(NotAssigned("x")),
    st.just(Joined()),
    st.just(NotJoined("x")),
    st.just(LinkClosed("x")),
    st.builds(Woken, st.integers(1, 5)),
)


@given(st.lists(events, max_size=40))
def test_at_most_one_link_is_open_or_being_opened_and_epochs_only_rise(
    story: list[AgentEvent],
) -> None:
    core = agent()
    links, epoch = 0, 0
    for event in story:
        state = core.state
        if state is AgentState.JOINING and isinstance(event, NotJoined):
            links -= 1
        if state is AgentState.JOINED and isinstance(event, LinkClosed):
            links -= 1
        for effect in core.handle(event, 0.0):
            links += isinstance(effect, ConnectTo)
            links -= isinstance(effect, CloseLink)
        assert links == (core.state in {AgentState.JOINING, AgentState.JOINED})
        assert core.epoch >= epoch
        epoch = core.epoch

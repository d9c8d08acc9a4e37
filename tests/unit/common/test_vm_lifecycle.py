"""The table of a VM's life: complete, consistent with the commands, and drawn as it is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snooze.common.errors import Conflict
from snooze.common.vm_lifecycle import (
    ALLOWED_FROM,
    ALREADY_DONE,
    FINAL,
    HOLDS_CAPACITY,
    SETTLED,
    STATE_MEANINGS,
    TRANSITIONS,
    InvalidTransition,
    VmCommand,
    VmEvent,
    VmState,
    after,
    as_markdown,
    as_mermaid,
    check_command,
)

PAGE = Path(__file__).parents[3] / "docs" / "vm-lifecycle.md"

ASKS = {
    VmCommand.START: VmEvent.PLACED,
    VmCommand.SUSPEND: VmEvent.SUSPENDED,
    VmCommand.RESUME: VmEvent.RESUMED,
    VmCommand.DESTROY: VmEvent.DESTROY_ASKED,
    VmCommand.MIGRATE: VmEvent.MIGRATION_STARTED,
}
"""What each command that changes a state does in the table."""

SEEN = {
    VmEvent.SEEN_RUNNING: VmState.RUNNING,
    VmEvent.SEEN_PAUSED: VmState.PAUSED,
    VmEvent.SEEN_STOPPED: VmState.STOPPED,
    VmEvent.SEEN_GONE: VmState.DESTROYED,
}


def test_the_page_is_what_the_module_draws() -> None:
    assert PAGE.read_text() == as_markdown(), "python -m snooze.common.vm_lifecycle > docs/..."


def test_every_state_is_explained_and_drawn() -> None:
    assert STATE_MEANINGS.keys() == set(VmState)
    figure = as_mermaid()
    for state in VmState:
        assert f" {state.value}" in figure


def test_every_state_can_be_reached() -> None:
    reached = {VmState.PENDING}
    while True:
        more = {target for (state, _), target in TRANSITIONS.items() if state in reached}
        if more <= reached:
            break
        reached |= more
    assert reached == set(VmState)


def test_every_event_happens_somewhere() -> None:
    assert {event for _, event in TRANSITIONS} == set(VmEvent)


@pytest.mark.parametrize("state", list(VmState))
def test_only_the_end_has_no_way_out(state: VmState) -> None:
    ways = [target for (origin, _), target in TRANSITIONS.items() if origin is state]
    assert bool(ways) is (state not in FINAL)


@pytest.mark.parametrize("state", [state for state in VmState if state not in FINAL])
def test_every_life_can_end(state: VmState) -> None:
    reached = {state}
    for _ in VmState:
        reached |= {target for (origin, _), target in TRANSITIONS.items() if origin in reached}
    assert VmState.DESTROYED in reached


def test_what_a_host_says_settles_every_doubt() -> None:
    for state in set(VmState) - {VmState.DESTROYED, VmState.DESTROYING, VmState.PENDING}:
        for event, seen in SEEN.items():
            expected = seen
            if (state, event) == (VmState.STOPPING, VmEvent.SEEN_RUNNING):
                expected = VmState.STOPPING
            assert after(state, event) is expected
    assert (VmState.PENDING, VmEvent.SEEN_GONE) not in TRANSITIONS


def test_what_the_table_does_not_know_raises_with_its_story() -> None:
    for state in VmState:
        for event in VmEvent:
            if (state, event) in TRANSITIONS:
                assert after(state, event) is TRANSITIONS[state, event]
            else:
                with pytest.raises(InvalidTransition, match="VM web"):
                    after(state, event, "VM web")


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("command", list(VmCommand))
def test_a_command_has_work_to_do_or_is_done_never_both(command: VmCommand) -> None:
    assert ALLOWED_FROM[command]
    assert not ALLOWED_FROM[command] & ALREADY_DONE[command]


@pytest.mark.parametrize("command", list(ASKS))
def test_where_a_command_is_allowed_the_table_knows_what_follows(command: VmCommand) -> None:
    for state in ALLOWED_FROM[command]:
        assert (state, ASKS[command]) in TRANSITIONS, state


def test_a_shutdown_asked_twice_is_asked_once() -> None:
    allowed = ALLOWED_FROM[VmCommand.SHUTDOWN]
    known = {state for state, event in TRANSITIONS if event is VmEvent.SHUTDOWN_ASKED}
    assert allowed - known == {VmState.STOPPING}


@pytest.mark.parametrize("command", list(ASKS))
def test_a_command_leads_where_it_is_already_done(command: VmCommand) -> None:
    """So that a client that repeats it is told that it is done."""
    for state in ALLOWED_FROM[command]:
        target = TRANSITIONS[state, ASKS[command]]
        if command is not VmCommand.MIGRATE:
            assert target in ALREADY_DONE[command]


@given(st.sampled_from(VmCommand), st.sampled_from(VmState))
def test_commands_are_checked_by_the_sets(command: VmCommand, state: VmState) -> None:
    if state in ALLOWED_FROM[command] | ALREADY_DONE[command]:
        assert check_command(command, state, "web") is (state in ALLOWED_FROM[command])
    else:
        with pytest.raises(Conflict, match="it has to be"):
            check_command(command, state, "web")


def test_nothing_is_under_way_where_it_is_settled() -> None:
    moving = {
        VmState.PENDING,
        VmState.STARTING,
        VmState.STOPPING,
        VmState.MIGRATING,
        VmState.DESTROYING,
        VmState.UNREACHABLE,
    }
    assert set(VmState) - moving == SETTLED
    assert (moving | {VmState.RUNNING, VmState.PAUSED}) - {VmState.PENDING} == HOLDS_CAPACITY

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from snooze.scheduling.assignment import AssignmentPolicy, assign, rebalance


def test_least_loaded_takes_the_first_of_equals() -> None:
    assert assign([3, 1, 1]).manager == 1
    assert assign([np.nan, 5]).manager == 1
    assert assign([]).manager == -1
    assert assign([np.nan]).manager == -1
    assert assign("junk").manager == -1


def test_round_robin_turns() -> None:
    cursor, chosen = 0, list[int]()
    for _ in range(5):
        answer = assign([9, 0, 5], AssignmentPolicy.ROUND_ROBIN, cursor)
        chosen.append(answer.manager)
        cursor = answer.cursor
    assert chosen == [0, 1, 2, 0, 1]


def test_random_is_repeatable_and_spread() -> None:
    rng = np.random.default_rng(1)
    drawn = [assign([0, 0, 0], "random", 0, rng).manager for _ in range(300)]
    assert min(np.bincount(drawn)) > 60
    assert assign([0] * 9, "random", 4) == assign([0] * 9, "random", 4)


@given(
    st.lists(st.integers(-1, 4), max_size=60),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_rebalancing_moves_no_more_than_it_must(
    owners: list[int], managers: int, seed: int
) -> None:
    weight = np.random.default_rng(seed).choice([1.0, 4.0, 64.0], size=len(owners))
    handovers = rebalance(owners, managers, weight=weight)
    known = [owner for owner in owners if 0 <= owner < managers]
    before = np.bincount(known, minlength=managers) if known else np.zeros(managers, dtype=int)
    after = before.copy()
    for move in handovers:
        assert owners[move.host] == move.source != move.target
        after[move.source] -= 1
        after[move.target] += 1
    assert len({move.host for move in handovers}) == len(handovers)
    assert after.max() - after.min() <= 1
    if before.max() - before.min() <= 1:
        assert handovers == []
    # Whoever has more than the ceiling must give that much, whoever has less than the floor take.
    average = before.sum() / managers
    least = max(
        np.maximum(before - np.ceil(average), 0).sum(),
        np.maximum(np.floor(average) - before, 0).sum(),
    )
    assert len(handovers) == least
    assert rebalance(owners, managers, weight=weight) == handovers


def test_a_new_manager_gets_its_share_and_peace_follows() -> None:
    owners = [0] * 6 + [1] * 6
    handovers = rebalance(owners, 3)
    assert len(handovers) == 4
    for move in handovers:
        owners[move.host] = move.target
    assert rebalance(owners, 3) == []


def test_weights_choose_which_hosts_change_hands() -> None:
    handovers = rebalance([0, 0, 0, 0], 2, weight=[100, 1, 1, 100])
    assert {sum([100, 1, 1, 100][move.host] for move in handovers)} == {101}


def test_hosts_that_cannot_move_stay() -> None:
    handovers = rebalance([0, 0, 0, 0], 2, movable=[False, False, False, True])
    assert [move.host for move in handovers] == [3]
    assert rebalance([0, 0, 0, 0], 2, movable=[False] * 4) == []


def test_bad_input_moves_nothing() -> None:
    assert rebalance([], 3) == []
    assert rebalance([0, 0, 0], 0) == []
    assert rebalance("junk", 2) == []
    assert rebalance([0, 0, np.nan, 0], 2, weight=[1, 2]) != []

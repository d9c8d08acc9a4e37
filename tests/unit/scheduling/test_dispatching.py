import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snooze.scheduling.dispatching import (
    MAX_BUCKETS,
    DispatchCode,
    DispatchPolicy,
    ManagerView,
    histogram,
    plan,
    without,
)


def view(name: str, *hosts: list[float]) -> ManagerView:
    return ManagerView(name, *histogram(hosts))


@given(st.integers(0, 200), st.integers(1, 4), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_histogram_never_promises_more_than_there_is(
    hosts: int, axes: int, buckets: int, seed: int
) -> None:
    """Any set of VMs, one per promised host, fits on real hosts: buckets match hosts one to one."""
    rng = np.random.default_rng(seed)
    free = rng.choice([0.0, 0.5, 1.0, 3.0, 7.5], size=(hosts, axes))
    room, count = histogram(free, buckets)
    assert len(room) == len(count) <= buckets
    assert count.sum() == free.any(axis=1).sum()
    # At least as many hosts dominate a promise as promises dominate it, for every promise.
    for promised in room:
        real = (free >= promised).all(axis=1).sum()
        told = count[(room >= promised).all(axis=1)].sum()
        assert told <= real


def test_a_histogram_of_few_kinds_is_exact() -> None:
    room, count = histogram(np.array([[4, 8], [1, 1], [4, 8], [0, 0], [np.nan, 1], [-1, 2]]))
    assert room.tolist() == [[4.0, 8.0], [1.0, 1.0], [0.0, 2.0]]
    assert count.tolist() == [2, 1, 1]


def test_a_histogram_of_nothing() -> None:
    for nothing in (np.zeros((0, 2)), np.zeros(3), "junk", [[0.0, 0.0]]):
        room, count = histogram(nothing)
        assert len(room) == len(count) == 0


def test_fits_means_that_a_host_exists() -> None:
    """A sum of free capacity, as in Snooze, would promise what no single host can take."""
    small = view("small", *[[1.0, 4.0]] * 8)
    answer = plan([small], [[2.0, 1.0]])
    assert answer.manager.tolist() == [-1]
    assert answer.reasons[0].code is DispatchCode.NO_ROOM


GIB = 1024.0 * 1024.0


@pytest.mark.parametrize(
    ("need", "pin", "told"),
    [
        (
            [64.0, GIB, 0.0, 0.0],
            -1,
            "no host has room for it: "
            "it needs 64 cores, and the most that is free on one is 8 cores",
        ),
        (
            [64.0, 100.0 * GIB, 0.0, 9e6],
            -1,
            "no host has room for it: it needs 64 cores, 100.0 GiB, 8.6 GiB/s tx, "
            "and the most that is free on one is 8 cores, 32.0 GiB, 0 B/s tx",
        ),
        (
            [8.0, 32.0 * GIB, 0.0, 0.0],
            -1,
            "no host has room for it: it needs 8 cores, 32.0 GiB; none has all of that",
        ),
        (
            [8.0, GIB, 0.0, 0.0],
            1,
            "no host of the manager asked for has room: "
            "it needs 8 cores, and the most that is free on one is 1 core",
        ),
        ([1.0, 0.0, 0.0, 0.0], 2, "no host of the manager asked for has room: none has any"),
    ],
    ids=["one axis", "several", "no one has all", "pinned", "no room at all"],
)
def test_what_lacks_is_said(need: list[float], pin: int, told: str) -> None:
    views = [
        view("a", [8.0, 4.0 * GIB, 0.0, 0.0]),
        view("b", [1.0, 32.0 * GIB, 0.0, 0.0]),
        view("c"),
    ]
    [reason] = plan(views, [need], [pin]).reasons
    assert reason.message == told


def test_best_fit_keeps_large_hosts_for_large_vms() -> None:
    views = [view("large", [16.0, 64.0]), view("tight", [2.0, 4.0])]
    answer = plan(views, [[2.0, 4.0], [16.0, 64.0]])
    assert answer.manager.tolist() == [1, 0]
    assert answer.fallbacks == ((0,), ())


def test_vms_of_one_request_see_one_another() -> None:
    views = [view("a", [4.0, 4.0]), view("b", [4.0, 4.0])]
    answer = plan(views, [[4.0, 4.0]] * 3, policy=DispatchPolicy.FIRST_FIT)
    assert answer.manager.tolist() == [0, 1, -1]
    halves = plan(views, [[2.0, 2.0]] * 5, policy=DispatchPolicy.FIRST_FIT)
    assert halves.manager.tolist() == [0, 0, 1, 1, -1]


def test_round_robin_goes_on_where_it_stopped() -> None:
    views = [view(name, *[[8.0, 8.0]] * 4) for name in "abc"]
    first = plan(views, [[1.0, 1.0]] * 4, policy="round_robin")
    assert first.manager.tolist() == [0, 1, 2, 0]
    second = plan(views, [[1.0, 1.0]] * 2, policy="round_robin", cursor=first.cursor)
    assert second.manager.tolist() == [1, 2]
    assert first.fallbacks[1] == (2, 0)


def test_pinned_vms_go_to_their_manager_or_nowhere() -> None:
    views = [view("a", [8.0, 8.0]), view("b", [1.0, 1.0])]
    answer = plan(views, [[1.0, 1.0], [2.0, 2.0], [1.0, 1.0]], [1, 1, 7])
    assert answer.manager.tolist() == [1, -1, -1]
    assert [reason.code for reason in answer.reasons] == [
        DispatchCode.NO_ROOM,
        DispatchCode.NO_SUCH_MANAGER,
    ]
    assert answer.fallbacks[0] == ()


def test_bad_input_is_said_not_raised() -> None:
    good = view("good", [4.0, 4.0])
    bad = ManagerView("bad", np.full((2, 3), np.nan), np.array([1, 1]))
    answer = plan([bad, good], [[np.nan, 1.0], [-1.0, 1.0], [1.0, 1.0]], policy="no such")
    assert answer.manager.tolist() == [-1, -1, 1]
    assert {problem.where for problem in answer.problems} == {"policy", "views[0]"}
    assert plan([], [[1.0, 1.0]]).reasons[0].code is DispatchCode.NO_MANAGERS
    assert plan([good], "junk").manager.tolist() == []
    assert plan([good], [[1.0, 1.0]], "junk").manager.tolist() == [-1]


def test_without_takes_the_tightest_host() -> None:
    before = view("a", [8.0, 8.0], [2.0, 2.0])
    after = without(before, np.array([2.0, 1.0]))
    assert sorted(after.room.tolist()) == [[0.0, 1.0], [8.0, 8.0]]
    assert without(after, np.array([9.0, 9.0])) is after


def test_the_bound_on_buckets_is_kept() -> None:
    rng = np.random.default_rng(1)
    room, count = histogram(rng.random((3000, 4)))
    assert len(room) == MAX_BUCKETS
    assert count.sum() == 3000


@pytest.mark.parametrize("policy", list(DispatchPolicy))
def test_dispatching_is_repeatable(policy: DispatchPolicy) -> None:
    rng = np.random.default_rng(2)
    views = [view(str(i), *rng.random((20, 4)).tolist()) for i in range(5)]
    demand = rng.random((40, 4)) * 0.7
    one, other = plan(views, demand, policy=policy), plan(views, demand, policy=policy)
    assert one.manager.tolist() == other.manager.tolist()
    assert (one.manager >= 0).any()
    for vm, manager in enumerate(one.manager.tolist()):
        for tried in {manager, *one.fallbacks[vm]} - {-1}:
            assert (views[tried].room >= demand[vm]).all(axis=1).any()

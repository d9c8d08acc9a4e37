"""Draining by example, and the order of migrations."""

import numpy as np
import pytest

from snooze.scheduling.check import Rule, check_plan
from snooze.scheduling.drain import DrainPolicy, drain
from snooze.scheduling.migration_plan import Parallelism, order_moves
from snooze.scheduling.plans import Plan, ReasonCode
from snooze.scheduling.snapshot import Affinity, AffinityRule, BoolArray, HostState, Snapshot


def cluster(
    demand: list[float], placement: list[int], capacity: list[float], **columns: object
) -> Snapshot:
    """One resource; hosts h0, h1, ...; VMs v0, v1, ..."""
    return Snapshot.of(
        [f"h{i}" for i in range(len(capacity))],
        np.array(capacity).reshape(-1, 1),
        vm_ids=[f"v{i}" for i in range(len(demand))],
        demand=np.array(demand).reshape(-1, 1),
        placement=placement,
        **columns,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    )


def only(host: int, hosts: int) -> BoolArray:
    return np.asarray(np.arange(hosts) == host)


def test_a_drained_host_ends_empty_and_receives_nothing() -> None:
    snapshot = cluster([3.0, 4.0, 5.0], [0, 0, 1], [10.0, 10.0, 10.0])
    answer = drain(snapshot, only(0, 3))
    assert (answer.emptied, answer.remaining, answer.pushed) == ((0,), (), 0)
    assert check_plan(snapshot, answer.plan) == []


@pytest.mark.parametrize(
    ("column", "word"),
    [
        ({"movable": [False]}, "must not"),
        ({"pin": [0]}, "pinned"),
        ({"host_state": [HostState.FAILED, HostState.ACTIVE]}, "out of reach"),
    ],
)
def test_a_vm_that_cannot_leave_is_named_with_its_reason(
    column: dict[str, object], word: str
) -> None:
    answer = drain(cluster([3.0], [0], [10.0, 10.0], **column), only(0, 2))
    assert answer.remaining == (0,)
    reason = answer.plan.reason_for(0)
    assert reason is not None
    assert reason.code is ReasonCode.NOT_MOVABLE
    assert word in reason.message


def test_the_reason_counts_what_refused_a_vm() -> None:
    snapshot = cluster(
        [5.0, 5.0, 1.0],
        [0, 1, 2],
        [10.0, 8.0, 10.0, 10.0],
        rules=[
            AffinityRule(Affinity.APART, (0, 2)),
            AffinityRule(Affinity.OFF_HOSTS, (0,), (3,)),
        ],
        movable=[True, False, False],
    )
    reason = drain(snapshot, only(0, 4)).plan.reason_for(0)
    assert reason is not None
    assert reason.code is ReasonCode.NO_HOST_FITS
    assert dict(reason.refused) == {"rules and labels": 1, "capacity": 1, "apart": 1}


def test_others_make_way_when_there_is_no_other_room() -> None:
    snapshot = cluster([6.0, 3.0, 8.0], [0, 1, 2], [10.0, 7.0, 11.0])
    answer = drain(snapshot, only(0, 3))
    assert answer.emptied == (0,)
    assert answer.pushed == 1
    assert check_plan(snapshot, answer.plan) == []
    assert drain(snapshot, only(0, 3), DrainPolicy(pushed_most=0)).remaining == (0,)


def test_a_sleeping_host_is_woken_only_if_it_must() -> None:
    asleep = [HostState.ACTIVE, HostState.ACTIVE, HostState.ASLEEP]
    roomy = cluster([6.0], [0], [10.0, 10.0, 10.0], host_state=asleep)
    assert drain(roomy, only(0, 3)).plan.wakes == ()
    tight = cluster([6.0, 6.0], [0, 1], [10.0, 10.0, 10.0], host_state=asleep)
    answer = drain(tight, only(0, 3))
    assert answer.plan.wakes == (2,)
    assert answer.emptied == (0,)
    assert check_plan(tight, answer.plan) == []
    assert drain(tight, only(0, 3), DrainPolicy(wake=False)).remaining == (0,)


def test_an_overfull_host_loses_just_what_brings_it_under_its_limit() -> None:
    snapshot = cluster(
        [5.0, 4.0, 2.0], [0, 0, 0], [10.0, 10.0], memory_kib=[1e6, 1e6, 1e6], headroom=[0.9]
    )
    answer = drain(snapshot, np.zeros(2, dtype=np.bool_), DrainPolicy(relieve=True))
    assert [move.vm for move in answer.plan.moves] == [2]
    assert answer.overfull == ()


def test_a_group_leaves_together_for_where_the_rest_of_it_is() -> None:
    rule = AffinityRule(Affinity.TOGETHER, (0, 1, 2))
    snapshot = cluster([2.0, 2.0, 1.0], [0, 0, 2], [10.0, 10.0, 10.0], rules=[rule])
    answer = drain(snapshot, only(0, 3))
    assert answer.plan.placement.tolist() == [2, 2, 2]


def test_flags_of_a_wrong_shape_drain_nothing_and_say_so() -> None:
    answer = drain(cluster([1.0], [0], [10.0, 10.0]), np.ones(5, dtype=np.bool_))
    assert answer.plan.moves == ()
    assert answer.plan.problems


def test_a_move_waits_for_the_room_another_frees() -> None:
    snapshot = cluster([6.0, 6.0], [0, 1], [10.0, 10.0, 10.0])
    ordered = order_moves(snapshot, np.array([1, 2]), cost=np.array([9.0, 1.0]))
    assert [(move.vm, move.batch) for move in ordered.moves] == [(1, 0), (0, 1)]


def test_an_exchange_goes_by_way_of_a_third_host() -> None:
    snapshot = cluster([6.0, 7.0], [0, 1], [10.0, 10.0, 10.0])
    target = np.array([1, 0])
    assert order_moves(snapshot, target, cost=np.ones(2)).moves == ()
    anywhere = np.ones(3, dtype=np.bool_)
    ordered = order_moves(snapshot, target, cost=np.ones(2), aside=anywhere)
    assert ordered.placement.tolist() == [1, 0]
    assert len(ordered.moves) == 3
    assert check_plan(snapshot, Plan(ordered.placement, moves=ordered.moves)) == []


def test_an_exchange_without_a_third_host_is_left_out_and_named() -> None:
    snapshot = cluster([6.0, 7.0], [0, 1], [10.0, 10.0])
    ordered = order_moves(
        snapshot, np.array([1, 0]), cost=np.ones(2), aside=np.ones(2, dtype=np.bool_)
    )
    assert ordered.moves == ()
    assert [reason.vm for reason in ordered.stuck] == [0, 1]


def test_vms_kept_apart_do_not_meet_on_the_way() -> None:
    """Both fit, but v0 must leave h1's place before v1 comes there."""
    rule = AffinityRule(Affinity.APART, (0, 1))
    snapshot = cluster([1.0, 1.0], [1, 0], [10.0, 10.0, 10.0], rules=[rule])
    ordered = order_moves(snapshot, np.array([2, 1]), cost=np.ones(2))
    assert [(move.vm, move.batch) for move in ordered.moves] == [(0, 0), (1, 1)]


def test_hosts_bound_how_many_move_at_a_time() -> None:
    snapshot = cluster([1.0] * 6, [0] * 6, [10.0, 10.0])
    for per_host, batches in ((1, 6), (2, 3), (6, 1)):
        ordered = order_moves(
            snapshot,
            np.ones(6, dtype=np.int64),
            cost=np.ones(6),
            parallelism=Parallelism(per_host=per_host),
        )
        assert len({move.batch for move in ordered.moves}) == batches


def test_the_most_moves_bound_the_plan_and_the_rest_is_named() -> None:
    snapshot = cluster([1.0] * 6, [0] * 6, [10.0, 10.0])
    ordered = order_moves(
        snapshot,
        np.ones(6, dtype=np.int64),
        cost=np.ones(6),
        parallelism=Parallelism(moves_most=4),
    )
    assert len(ordered.moves) == 4
    assert {reason.code for reason in ordered.stuck} == {ReasonCode.LIMIT_REACHED}


def test_the_checker_sees_a_batch_that_needs_room_twice() -> None:
    """The order matters: the same moves in one batch are refused by the checker."""
    snapshot = cluster([6.0, 6.0], [0, 1], [10.0, 10.0, 10.0])
    ordered = order_moves(snapshot, np.array([1, 2]), cost=np.ones(2))
    moves = tuple(
        type(move)(move.vm, move.source, move.target, 0)
        for move in sorted(ordered.moves, key=lambda move: move.vm)
    )
    found = check_plan(snapshot, Plan(ordered.placement, moves=moves))
    assert {violation.rule for violation in found} == {Rule.CAPACITY}

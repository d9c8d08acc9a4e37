"""The checker finds each kind of mistake, and finds nothing in a sound plan."""

import numpy as np
import pytest

from snooze.scheduling.check import Rule, check_moves, check_plan
from snooze.scheduling.plans import Move, Plan
from snooze.scheduling.snapshot import Affinity, AffinityRule, HostState, Labels, Snapshot


def cluster(**changes: object) -> Snapshot:
    """Four hosts of 4 cores, 8 memory; VMs a, b on h0, c on h1, d nowhere; each 2 and 2."""
    base = Snapshot.of(
        ["h0", "h1", "h2", "h3"],
        [[4.0, 8.0]] * 4,
        vm_ids=["a", "b", "c", "d"],
        demand=[[2.0, 2.0]] * 4,
        placement=[0, 0, 1, -1],
    )
    changed = base.changed(load=None, memory_kib=None, **changes)
    assert changed.problems == ()
    return changed


def broken(snapshot: Snapshot, placement: list[int], **parts: tuple[int, ...]) -> set[Rule]:
    plan = Plan(placement=np.array(placement), **parts)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return {violation.rule for violation in check_plan(snapshot, plan)}


def test_sound_plans_pass() -> None:
    assert broken(cluster(), [0, 0, 1, -1]) == set()
    assert broken(cluster(), [0, 0, 1, 1]) == set()
    assert broken(cluster(), [0, 2, 3, 1]) == set()


@pytest.mark.parametrize(
    ("changes", "placement", "rule"),
    [
        ({}, [0, 0, 1], Rule.SHAPE),
        ({}, [0, 0, 1, 4], Rule.SHAPE),
        ({}, [0, 0, 1, -2], Rule.SHAPE),
        ({}, [0, 0, 1, 0], Rule.CAPACITY),
        ({"used": [[0, 0], [0, 7], [0, 0], [0, 0]]}, [0, 0, 1, 1], Rule.CAPACITY),
        ({"headroom": [0.9, 1.0]}, [0, 0, 1, 1], Rule.CAPACITY),
        ({"max_vms": [-1, 1, -1, -1]}, [0, 0, 1, 1], Rule.MAX_VMS),
        ({"vm_count": [0, 1, 0, 0], "max_vms": [-1, 2, -1, -1]}, [0, 0, 1, 1], Rule.MAX_VMS),
        ({"pin": [-1, -1, -1, 2]}, [0, 0, 1, 1], Rule.PIN),
        ({"pin": [-1, -1, 1, -1]}, [0, 0, 2, -1], Rule.PIN),
        ({"movable": [1, 1, 0, 1]}, [0, 0, 2, -1], Rule.NOT_MOVABLE),
        ({}, [0, -1, 1, -1], Rule.LOST),
        ({"host_state": [0, 0, HostState.DRAINING, 0]}, [0, 0, 1, 2], Rule.HOST_STATE),
        ({"host_state": [0, 0, HostState.ASLEEP, 0]}, [0, 0, 1, 2], Rule.HOST_STATE),
        ({"host_state": [0, 0, HostState.FAILED, 0]}, [0, 0, 1, 2], Rule.HOST_STATE),
        (
            {"tags": Labels.of([{"ssd"}, set(), {"ssd"}, set()], [set(), set(), set(), {"ssd"}])},
            [0, 0, 1, 1],
            Rule.TAGS,
        ),
        (
            {"networks": Labels.of([{"n"}, set(), {"n"}, set()], [set(), set(), set(), {"n"}])},
            [0, 0, 1, 3],
            Rule.NETWORKS,
        ),
        ({"rules": [AffinityRule(Affinity.APART, (2, 3))]}, [0, 0, 1, 1], Rule.AFFINITY),
        ({"rules": [AffinityRule(Affinity.TOGETHER, (2, 3))]}, [0, 0, 1, 2], Rule.AFFINITY),
        ({"rules": [AffinityRule(Affinity.ON_HOSTS, (3,), (2,))]}, [0, 0, 1, 1], Rule.AFFINITY),
        ({"rules": [AffinityRule(Affinity.OFF_HOSTS, (3,), (1,))]}, [0, 0, 1, 1], Rule.AFFINITY),
    ],
)
def test_each_broken_rule_is_found(
    changes: dict[str, object], placement: list[int], rule: Rule
) -> None:
    assert broken(cluster(**changes), placement) == {rule}


def test_a_plan_is_charged_only_with_what_it_does() -> None:
    full = cluster(used=[[3.0, 0.0]] + [[0.0, 0.0]] * 3)  # h0 is overcommitted already
    apart = AffinityRule(Affinity.APART, (0, 1))
    assert broken(full.changed(rules=[apart]), [0, 0, 1, 1]) == set()
    assert broken(full, [0, 0, 1, 0]) == {Rule.CAPACITY}


def test_soft_rules_may_be_broken() -> None:
    soft = AffinityRule(Affinity.APART, (2, 3), hard=False)
    assert broken(cluster(rules=[soft]), [0, 0, 1, 1]) == set()


def test_waking_and_sleeping_hosts() -> None:
    states = [0, 0, HostState.ASLEEP, 0]
    assert broken(cluster(host_state=states), [0, 0, 1, 2], wakes=(2,)) == set()
    assert broken(cluster(), [0, 0, 1, -1], wakes=(2,)) == {Rule.WAKES}
    assert broken(cluster(), [0, 0, 1, -1], sleeps=(2, 3)) == set()
    assert broken(cluster(), [0, 0, 1, 2], sleeps=(2,)) == {Rule.SLEEPS}
    assert broken(cluster(vm_count=[0, 0, 1, 0]), [0, 0, 1, -1], sleeps=(2,)) == {Rule.SLEEPS}
    assert broken(cluster(used=[[0, 0]] * 2 + [[1, 0]] * 2), [0, 0, 1, -1], sleeps=(2,)) == {
        Rule.SLEEPS
    }


def test_a_wrong_row_takes_no_part() -> None:
    spoilt = cluster().changed(demand=[[2.0, 2.0]] * 3 + [[np.nan, 2.0]], memory_kib=None)
    assert broken(spoilt, [0, 0, 1, 1]) == {Rule.INVALID_VM}
    spoilt = cluster().changed(capacity=[[4.0, 8.0]] * 3 + [[-1.0, 8.0]])
    assert Rule.INVALID_HOST in broken(spoilt, [0, 0, 1, 3])


def rules_of(snapshot: Snapshot, moves: list[Move]) -> set[Rule]:
    return {violation.rule for violation in check_moves(snapshot, moves)}


def test_every_step_of_a_migration_has_room() -> None:
    snapshot = cluster(placement=[0, 0, 1, 1])  # h0 and h1 are full
    swap = [Move(0, 0, 1), Move(2, 1, 0)]
    assert rules_of(snapshot, swap) == {Rule.CAPACITY}  # the end is sound, the way is not
    one_after_the_other = [Move(0, 0, 1, 0), Move(2, 1, 0, 1)]
    assert rules_of(snapshot, one_after_the_other) == {Rule.CAPACITY}
    by_way_of_a_third = [Move(0, 0, 2, 0), Move(2, 1, 0, 1), Move(0, 2, 1, 2)]
    assert rules_of(snapshot, by_way_of_a_third) == set()
    too_early = [Move(0, 0, 2, 0), Move(2, 1, 0, 0), Move(0, 2, 1, 1)]
    assert rules_of(snapshot, too_early) == {Rule.CAPACITY}


def test_moves_must_add_up() -> None:
    snapshot = cluster()
    assert rules_of(snapshot, [Move(0, 1, 2)]) == {Rule.MOVES}  # it is not there
    assert rules_of(snapshot, [Move(0, 0, 2), Move(0, 2, 3)]) == {Rule.MOVES}  # twice in a batch
    assert rules_of(snapshot, [Move(0, 0, 9)]) == {Rule.SHAPE}
    assert rules_of(snapshot, [Move(9, 0, 2)]) == {Rule.MOVES}
    assert rules_of(snapshot, [Move(0, 0, 2, 1), Move(2, 1, 3, 0)]) == {Rule.MOVES}  # order
    assert Rule.MOVES in rules_of(snapshot, [Move(3, -1, 2)])  # it runs nowhere
    plan = Plan(placement=np.array([2, 2, 1, -1]), moves=(Move(0, 0, 2),))
    assert {each.rule for each in check_plan(snapshot, plan)} == {Rule.MOVES}  # b has no move


def test_apart_holds_while_vms_move() -> None:
    snapshot = cluster(placement=[0, 1, 2, 3], rules=[AffinityRule(Affinity.APART, (0, 1))])
    chain = [Move(1, 1, 2), Move(0, 0, 1)]  # a arrives where b still is
    assert rules_of(snapshot, chain) == {Rule.AFFINITY}
    assert rules_of(snapshot, [Move(1, 1, 2, 0), Move(0, 0, 1, 1)]) == set()

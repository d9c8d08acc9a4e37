"""Consolidation by example: what each method does, and what none of them may do."""

from collections.abc import Sequence

import numpy as np
import pytest

from snooze.scheduling.check import check_plan
from snooze.scheduling.consolidation import ConsolidationPolicy, Verdict, consolidate
from snooze.scheduling.consolidation_methods import Method
from snooze.scheduling.packing_effort import Effort
from snooze.scheduling.relocation_cost import MigrationModel
from snooze.scheduling.snapshot import Affinity, AffinityRule, Snapshot

METHODS = list(Method)


def cluster(
    sizes: Sequence[Sequence[float]], capacity: Sequence[float] | None = None, /, **columns: object
) -> Snapshot:
    """One host for each list of VM sizes; two resources, both of that size."""
    demand = [[size, size] for host in sizes for size in host]
    placement = [host for host, vms in enumerate(sizes) for _ in vms]
    rooms = [[room, room] for room in (capacity or [10.0] * len(sizes))]
    arguments: dict[str, object] = {
        "vm_ids": [f"v{i}" for i in range(len(demand))],
        "demand": np.array(demand).reshape(-1, 2),
        "placement": placement,
        "memory_kib": np.full(len(demand), 62_500.0),
        **columns,
    }
    hosts = [f"h{i}" for i in range(len(sizes))]
    return Snapshot.of(hosts, rooms, **arguments)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def policy(method: Method = Method.OPTIMISER, **changes: object) -> ConsolidationPolicy:
    return ConsolidationPolicy(method=method, effort=Effort(steps=20_000), **changes)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("method", METHODS)
def test_the_least_loaded_host_is_emptied(method: Method) -> None:
    snapshot = cluster([[6.0], [2.0], [3.0, 3.0]])
    answer = consolidate(snapshot, policy(method))
    assert answer.verdict is Verdict.RELEASED
    assert answer.plan.sleeps == (1,)
    assert (answer.hosts_before, answer.hosts_after, answer.bound.count) == (3, 2, 2)
    assert answer.gap == 0
    assert answer.cost_s == pytest.approx(1.0)
    assert check_plan(snapshot, answer.plan) == []


@pytest.mark.parametrize("method", METHODS)
def test_nothing_moves_when_no_host_can_be_spared(method: Method) -> None:
    answer = consolidate(cluster([[6.0], [6.0]]), policy(method))
    assert answer.verdict is Verdict.OPTIMAL
    assert answer.plan.moves == ()


@pytest.mark.parametrize("method", METHODS)
def test_moves_that_cost_more_than_they_save_are_not_made(method: Method) -> None:
    snapshot = cluster([[6.0], [2.0]])
    assert consolidate(snapshot, policy(method, host_worth_s=1.5)).plan.moves
    answer = consolidate(snapshot, policy(method, host_worth_s=0.5))
    assert answer.verdict in (Verdict.NO_BENEFIT, Verdict.NO_PLAN)
    assert answer.plan.moves == ()


@pytest.mark.parametrize("method", METHODS)
def test_the_cap_on_moves_is_kept(method: Method) -> None:
    snapshot = cluster([[5.0], [1.0, 1.0], [1.0]])
    assert len(consolidate(snapshot, policy(method, moves_most=1)).plan.moves) <= 1
    assert 2 <= len(consolidate(snapshot, policy(method, moves_most=3)).plan.moves) <= 3


@pytest.mark.parametrize("method", METHODS)
def test_a_vm_that_writes_faster_than_the_network_copies_stays(method: Method) -> None:
    slow = MigrationModel(bandwidth_kib_s=1_000.0)
    snapshot = cluster([[6.0], [2.0]], dirty_rate_kib_s=[0.0, 2_000.0])
    answer = consolidate(snapshot, policy(method, migration=slow, host_worth_s=1e9))
    assert all(move.vm != 1 for move in answer.plan.moves)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("column", [{"vm_count": [0, 1, 0]}, {"used": [[0, 0], [1, 0], [0, 0]]}])
def test_a_host_with_something_unlisted_is_never_emptied(
    method: Method, column: dict[str, object]
) -> None:
    answer = consolidate(cluster([[6.0], [1.0], [1.5]], **column), policy(method))
    assert 1 not in answer.plan.sleeps
    assert answer.verdict is Verdict.RELEASED


@pytest.mark.parametrize("method", METHODS)
def test_headroom_is_kept(method: Method) -> None:
    answer = consolidate(cluster([[6.0], [2.0]], headroom=[0.7, 0.7]), policy(method))
    assert answer.plan.moves == ()


@pytest.mark.parametrize("method", METHODS)
def test_vms_that_must_stay_together_move_together(method: Method) -> None:
    rule = AffinityRule(Affinity.TOGETHER, (2, 3))
    snapshot = cluster([[7.0], [9.0], [1.0, 2.0], [9.0]], rules=[rule])
    answer = consolidate(snapshot, policy(method))
    assert answer.verdict is Verdict.RELEASED
    assert answer.plan.placement[2] == answer.plan.placement[3]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("hard", [True, False])
def test_vms_kept_apart_stay_apart(method: Method, hard: bool) -> None:
    rule = AffinityRule(Affinity.APART, (0, 1), hard=hard)
    answer = consolidate(cluster([[6.0], [2.0]], rules=[rule]), policy(method))
    assert answer.plan.moves == ()


def test_sercon_moves_nothing_twice_and_tries_the_next_host() -> None:
    """Snooze's Sercon gave a VM up when the first host with room was empty."""
    snapshot = cluster([[], [7.0], [2.0], [1.0], [8.0]])
    answer = consolidate(snapshot, policy(Method.SERCON))
    assert set(answer.plan.sleeps) == {2, 3}
    assert len({move.vm for move in answer.plan.moves}) == len(answer.plan.moves)
    assert all(move.target != 0 for move in answer.plan.moves)


def test_sercon_compares_loads_after_normalising() -> None:
    """By raw numbers the big host is fuller; by share of its capacity it is the one to empty."""
    snapshot = cluster([[6.0, 6.0], [8.0], [30.0]], [100.0, 10.0, 43.0])
    answer = consolidate(snapshot, policy(Method.SERCON))
    assert answer.plan.sleeps == (0,)


def test_the_optimiser_pushes_others_on_where_sercon_gives_up() -> None:
    """5 finds no hole of 5, but 2 can make way for it."""
    snapshot = cluster([[5.0], [5.0, 2.0], [8.0]], movable=[True, False, True, True])
    assert consolidate(snapshot, policy(Method.SERCON)).plan.moves == ()
    answer = consolidate(snapshot, policy(Method.OPTIMISER))
    assert answer.plan.sleeps == (0,)
    assert check_plan(snapshot, answer.plan) == []
    assert [move.batch for move in answer.plan.moves] == [0, 1]


def test_the_optimiser_prefers_the_cheaper_host() -> None:
    snapshot = cluster([[6.0], [3.0], [3.0]], memory_kib=[1e7, 6e6, 6e4])
    answer = consolidate(snapshot, policy(Method.OPTIMISER))
    assert answer.plan.sleeps == (2,)


def test_a_snapshot_that_makes_no_sense_gives_an_answer() -> None:
    answer = consolidate(Snapshot.of(["a"], [[float("nan")] * 4], vm_ids=["v"], demand="rubbish"))
    assert answer.verdict is Verdict.INVALID
    assert answer.plan.problems


def test_an_empty_cluster_gives_an_answer() -> None:
    assert consolidate(Snapshot.of([], [])).verdict is Verdict.NOTHING_TO_DO

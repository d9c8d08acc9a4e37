"""Consolidation and draining on clusters of every sort, against the independent checker."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snooze.scheduling.check import check_plan
from snooze.scheduling.consolidation import ConsolidationPolicy, Verdict, consolidate
from snooze.scheduling.consolidation_methods import Method
from snooze.scheduling.drain import DrainPolicy, drain
from snooze.scheduling.migration_plan import Parallelism, order_moves
from snooze.scheduling.packing_effort import Effort
from snooze.scheduling.plans import Plan
from snooze.scheduling.snapshot import Affinity, AffinityRule, HostState, Labels, Snapshot

RELAXED = settings(max_examples=80, deadline=None, derandomize=True)
ACTIVE_MOSTLY = [HostState.ACTIVE] * 6 + list(HostState)


@st.composite
def clusters(draw: st.DrawFn) -> Snapshot:
    """A few hosts and VMs with rules, pins, labels and states; some hosts too full."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hosts, vms = draw(st.integers(1, 10)), draw(st.integers(0, 30))
    axes = draw(st.integers(1, 4))
    sizes = [50.0, 100.0] if draw(st.booleans()) else [100.0]
    capacity = rng.choice(sizes, (hosts, 1)) * np.ones((1, axes))
    demand = rng.integers(0, draw(st.integers(2, 45)), (vms, axes)).astype(float)
    placement = np.full(vms, -1)
    room = capacity.copy()
    for vm in range(vms):
        for host in rng.permutation(hosts):
            if (room[host] >= demand[vm]).all():
                placement[vm] = host
                room[host] -= demand[vm]
                break
    return Snapshot.of(
        [f"h{i}" for i in range(hosts)],
        capacity,
        host_state=rng.choice([int(state) for state in ACTIVE_MOSTLY], hosts),
        vm_ids=[f"v{i}" for i in range(vms)],
        demand=demand,
        placement=placement,
        headroom=np.full(axes, draw(st.sampled_from([1.0, 0.9, 0.6]))),
        pin=np.where(rng.random(vms) < 0.1, placement, -1),
        movable=rng.random(vms) > 0.1,
        max_vms=np.where(rng.random(hosts) < 0.3, rng.integers(3, 9, hosts), -1),
        vm_count=(rng.random(hosts) < 0.1).astype(int),
        memory_kib=rng.integers(1, 10**6, vms).astype(float),
        dirty_rate_kib_s=rng.choice([0.0, 1e3, 6e4, 1e5], vms),
        rules=[rule for _ in range(draw(st.integers(0, 5))) if (rule := a_rule(rng, hosts, vms))],
        tags=some_labels(rng, hosts, vms) if draw(st.booleans()) else None,
    )


def a_rule(rng: np.random.Generator, hosts: int, vms: int) -> AffinityRule | None:
    if vms < 2:
        return None
    kind = list(Affinity)[rng.integers(len(Affinity))]
    members = tuple(rng.choice(vms, rng.integers(1, min(vms, 5) + 1), replace=False).tolist())
    at: tuple[int, ...] = ()
    if kind in (Affinity.ON_HOSTS, Affinity.OFF_HOSTS):
        at = tuple(rng.choice(hosts, rng.integers(1, hosts + 1), replace=False).tolist())
    return AffinityRule(kind, members, at, hard=bool(rng.integers(2)))


def some_labels(rng: np.random.Generator, hosts: int, vms: int) -> Labels:
    names = ["gpu", "ssd"]
    offers = [{name for name in names if rng.random() < 0.7} for _ in range(hosts)]
    needs = [{name for name in names if rng.random() < 0.1} for _ in range(vms)]
    return Labels.of(offers, needs)


def assert_sound(snapshot: Snapshot, plan: Plan, parallelism: Parallelism) -> None:
    """The plan breaks no rule, and no batch does more at a time than allowed."""
    assert check_plan(snapshot, plan) == []
    for batch in {move.batch for move in plan.moves}:
        moves = [move for move in plan.moves if move.batch == batch]
        touched = Counter(host for move in moves for host in (move.source, move.target))
        assert max(touched.values()) <= parallelism.per_host
        assert len(moves) <= parallelism.at_once
    assert len(plan.moves) <= parallelism.moves_most


@RELAXED
@pytest.mark.parametrize("method", list(Method))
@given(clusters(), st.integers(1, 40), st.sampled_from([20.0, 1e9]), st.integers(1, 3))
def test_consolidation_is_sound_worth_it_and_bounded(
    method: Method, snapshot: Snapshot, moves_most: int, worth_s: float, per_host: int
) -> None:
    parallelism = Parallelism(per_host=per_host, at_once=5, moves_most=moves_most)
    policy = ConsolidationPolicy(
        method=method,
        moves_most=moves_most,
        host_worth_s=worth_s,
        parallelism=parallelism,
        effort=Effort(steps=2_000),
    )
    answer = consolidate(snapshot, policy)
    assert_sound(snapshot, answer.plan, parallelism)
    released = len(answer.plan.sleeps)
    assert answer.hosts_after == answer.hosts_before - released
    assert answer.hosts_after >= answer.bound.count
    assert (answer.verdict is Verdict.RELEASED) == bool(released) == bool(answer.plan.moves)
    assert answer.cost_s <= worth_s * released
    for number, rule in enumerate(snapshot.rules):
        if not rule.hard and keeps(snapshot, number, snapshot.placement.tolist()):
            assert keeps(snapshot, number, answer.plan.placement.tolist())
    assert consolidate(snapshot, policy).plan.moves == answer.plan.moves


def keeps(snapshot: Snapshot, number: int, placement: list[int]) -> bool:
    """Whether a rule holds."""
    rule = snapshot.rules[number]
    where = [placement[vm] for vm in rule.vms if placement[vm] >= 0]
    return {
        Affinity.TOGETHER: len(set(where)) <= 1,
        Affinity.APART: len(set(where)) == len(where),
        Affinity.ON_HOSTS: set(where) <= set(rule.hosts),
        Affinity.OFF_HOSTS: not set(where) & set(rule.hosts),
    }[rule.kind]


@RELAXED
@given(clusters())
def test_the_optimiser_releases_no_fewer_hosts_than_sercon(snapshot: Snapshot) -> None:
    counts = {
        method: consolidate(
            snapshot,
            ConsolidationPolicy(method=method, host_worth_s=1e12, effort=Effort(steps=2_000)),
        ).hosts_after
        for method in (Method.SERCON, Method.OPTIMISER)
    }
    assert counts[Method.OPTIMISER] <= counts[Method.SERCON]


@RELAXED
@given(clusters(), st.integers(0, 2**32 - 1), st.booleans(), st.booleans(), st.integers(0, 30))
def test_drains_are_sound_and_name_who_stays(
    snapshot: Snapshot, seed: int, relieve: bool, wake: bool, pushed_most: int
) -> None:
    hosts = np.random.default_rng(seed).random(snapshot.hosts) < 0.4
    policy = DrainPolicy(
        relieve=relieve, wake=wake, pushed_most=pushed_most, effort=Effort(steps=3_000)
    )
    answer = drain(snapshot, hosts, policy)
    assert_sound(snapshot, answer.plan, policy.parallelism)
    assert answer.pushed <= pushed_most
    assert wake or not answer.plan.wakes
    assert sorted(answer.emptied + answer.remaining) == np.flatnonzero(hosts).tolist()
    for vm, host in enumerate(answer.plan.placement.tolist()):
        assert host not in answer.emptied
        if host >= 0 and hosts[host]:
            assert answer.plan.reason_for(vm) is not None
    assert not {move.target for move in answer.plan.moves} & set(np.flatnonzero(hosts).tolist())
    assert drain(snapshot, hosts, policy).plan.moves == answer.plan.moves


@RELAXED
@given(clusters(), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_any_target_that_keeps_the_rules_is_ordered_soundly(
    snapshot: Snapshot, seed: int, per_host: int
) -> None:
    """Shuffle VMs among hosts that take them; what comes out is a sound plan of its own."""
    rng = np.random.default_rng(seed)
    parallelism = Parallelism(per_host=per_host)
    target = snapshot.placement.copy()
    for vm in rng.permutation(snapshot.vms):
        trial = target.copy()
        trial[vm] = rng.integers(snapshot.hosts)
        if target[vm] >= 0 and not check_plan(snapshot, Plan(trial)):
            target = trial
    free_hosts = np.asarray(snapshot.host_ok & (snapshot.host_state == HostState.ACTIVE))
    ordered = order_moves(
        snapshot, target, cost=np.ones(snapshot.vms), parallelism=parallelism, aside=free_hosts
    )
    plan = Plan(ordered.placement, moves=ordered.moves)
    assert_sound(snapshot, plan, parallelism)
    stuck = {reason.vm for reason in ordered.stuck}
    for vm in range(snapshot.vms):
        assert vm in stuck or ordered.placement[vm] == target[vm]

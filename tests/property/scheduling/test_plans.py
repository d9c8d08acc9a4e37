"""Every policy's plan against the naive checker, on clusters that hypothesis makes up."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snooze.scheduling import balancing, dump, explain, placement
from snooze.scheduling.check import check_plan
from snooze.scheduling.deciding import DecisionKind
from snooze.scheduling.dump import Decision
from snooze.scheduling.inventory import Inventory
from snooze.scheduling.plans import Plan, ReasonCode
from snooze.scheduling.policies import BUILT_IN, policy_named
from snooze.scheduling.snapshot import Affinity, AffinityRule, HostState, Labels, Snapshot

SIZES = [0.0, 0.1, 0.5, 1.0, 2.0, 3.0]
RELAXED = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def vectors(rows: int, axes: int, values: list[float]) -> st.SearchStrategy[list[list[float]]]:
    row = st.lists(st.sampled_from(values), min_size=axes, max_size=axes)
    return st.lists(row, min_size=rows, max_size=rows)


@st.composite
def labels(draw: st.DrawFn, hosts: int, vms: int) -> Labels | None:
    if not draw(st.booleans()):
        return None
    offered = st.frozensets(st.sampled_from("abc"), min_size=1)
    needed = st.frozensets(st.sampled_from("abc"), max_size=1)
    return Labels.of(
        draw(st.lists(offered, min_size=hosts, max_size=hosts)),
        draw(st.lists(needed, min_size=vms, max_size=vms)),
    )


@st.composite
def rules(draw: st.DrawFn, hosts: int, vms: int) -> list[AffinityRule]:
    if not vms or not hosts:
        return []
    members = st.lists(st.integers(0, vms - 1), min_size=1, max_size=4)
    places = st.lists(st.integers(0, hosts - 1), max_size=3)
    rule = st.builds(
        AffinityRule,
        st.sampled_from(Affinity),
        members.map(tuple),
        places.map(tuple),
        st.booleans(),
        st.sampled_from([0.0, 1.0, 5.0]),
    )
    return draw(st.lists(rule, max_size=4))


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    hosts, vms, axes = (
        draw(st.integers(0, 7)),
        draw(st.integers(0, 12)),
        draw(st.sampled_from([2, 4])),
    )
    host_index = st.integers(-1, hosts - 1)
    mostly_free = st.one_of(st.just(-1), st.just(-1), host_index)
    vm_column = st.lists(mostly_free, min_size=vms, max_size=vms)
    state = st.one_of(st.just(HostState.ACTIVE), st.sampled_from(HostState))
    return Snapshot.of(
        [f"h{i}" for i in range(hosts)],
        np.array(draw(vectors(hosts, axes, [0.0, 2.0, 4.0, 7.0]))).reshape(hosts, axes),
        used=np.array(draw(vectors(hosts, axes, [0.0, 0.0, 1.0]))).reshape(hosts, axes),
        host_state=draw(st.lists(state, min_size=hosts, max_size=hosts)),
        vm_ids=[f"v{i}" for i in range(vms)],
        demand=np.array(draw(vectors(vms, axes, SIZES))).reshape(vms, axes),
        placement=draw(vm_column),
        overcommit=draw(st.sampled_from([[1.0] * axes, [2.0] + [1.0] * (axes - 1)])),
        headroom=draw(st.sampled_from([[1.0] * axes, [0.9] * axes])),
        pin=draw(vm_column),
        max_vms=draw(st.lists(st.sampled_from([-1, -1, 0, 2]), min_size=hosts, max_size=hosts)),
        vm_count=draw(st.lists(st.integers(0, 1), min_size=hosts, max_size=hosts)),
        priority=draw(st.lists(st.integers(0, 2), min_size=vms, max_size=vms)),
        movable=draw(st.lists(st.booleans(), min_size=vms, max_size=vms)),
        highly_available=draw(st.lists(st.booleans(), min_size=vms, max_size=vms)),
        overload_s=draw(st.lists(st.sampled_from([0.0, 900.0]), min_size=hosts, max_size=hosts)),
        rules=draw(rules(hosts, vms)),
        tags=draw(labels(hosts, vms)),
        networks=draw(labels(hosts, vms)),
        images=draw(labels(hosts, vms)),
    )


def crowd(seed: int) -> Snapshot:
    """A running cluster, some hosts crowded and some nearly empty, few rules: much to balance."""
    rng = np.random.default_rng(seed)
    hosts, vms = int(rng.integers(3, 12)), int(rng.integers(5, 60))
    sizes = rng.choice([[1.0, 2.0], [2.0, 4.0], [4.0, 4.0]], size=vms)
    crowded = rng.integers(0, hosts, size=2)
    placement = np.where(
        rng.random(vms) < 0.6, crowded[rng.integers(0, 2, vms)], rng.integers(0, hosts, vms)
    )
    placement[rng.random(vms) < 0.1] = -1
    kinds = [Affinity.APART, Affinity.TOGETHER]
    rules = [
        AffinityRule(kinds[i % 2], tuple(rng.choice(vms, 3, replace=False).tolist()))
        for i in range(int(rng.integers(0, 4)))
    ]
    return Snapshot.of(
        [f"h{i}" for i in range(hosts)],
        rng.choice([[16.0, 64.0], [32.0, 64.0]], size=hosts),
        host_state=rng.choice([0, 0, 0, 0, 0, 2, 3], size=hosts),
        vm_ids=[f"v{i}" for i in range(vms)],
        demand=sizes,
        placement=placement,
        overload_s=rng.choice([0.0, 900.0], size=hosts, p=[0.2, 0.8]),
        movable=rng.random(vms) < 0.9,
        rules=rules,
    )


SEEDS = st.integers(0, 2**32 - 1)
CLUSTERS = st.one_of(snapshots(), SEEDS.map(crowd), SEEDS.map(crowd))


def same(one: Plan, other: Plan) -> bool:
    return (
        one.placement.tolist() == other.placement.tolist()
        and one.reasons == other.reasons
        and one.moves == other.moves
        and (one.wakes, one.sleeps, one.cursor) == (other.wakes, other.sleeps, other.cursor)
    )


@pytest.mark.parametrize("name", sorted(BUILT_IN.policies))
@RELAXED
@given(snapshot=CLUSTERS, cursor=st.integers(0, 9))
def test_placement_breaks_no_rule_and_is_repeatable(
    name: str, snapshot: Snapshot, cursor: int
) -> None:
    policy = policy_named(name)
    plan = placement.plan(snapshot, policy, cursor=cursor)
    assert check_plan(snapshot, plan) == []
    assert same(plan, placement.plan(snapshot, policy, cursor=cursor))
    stays = snapshot.placement >= 0
    assert (plan.placement == snapshot.placement)[stays].all()
    without_host = set(np.flatnonzero(plan.placement < 0).tolist())
    assert {reason.vm for reason in plan.reasons} == without_host


@pytest.mark.parametrize("name", ["first_fit", "round_robin", "best_fit", "l2", "random_k", "none"])
@RELAXED
@given(snapshot=snapshots())
def test_what_was_refused_fits_nowhere(name: str, snapshot: Snapshot) -> None:
    """Completeness, by the checker: putting a refused VM on any host would break a rule."""
    plan = placement.plan(snapshot, policy_named(name))
    tied = {
        vm
        for rule in snapshot.rules
        if rule.hard and rule.kind is Affinity.TOGETHER
        for vm in rule.vms
    }
    asleep = tuple(np.flatnonzero(snapshot.host_state == HostState.ASLEEP).tolist())
    for reason in plan.reasons:
        if reason.vm in tied:
            continue
        for host in range(snapshot.hosts):
            attempt = plan.placement.copy()
            attempt[reason.vm] = host
            wanted = replace(plan, placement=attempt, wakes=asleep)
            assert any(
                violation.vm == reason.vm or violation.host == host
                for violation in check_plan(snapshot, wanted)
            ), (reason, host)


@pytest.mark.parametrize(
    "name", ["evenly_distributed", "power_saving", "vm_evenly_distributed", "first_fit"]
)
@RELAXED
@given(snapshot=CLUSTERS, low=st.sampled_from([0, 20, 50]), count=st.sampled_from([0, 2]))
def test_balancing_breaks_no_rule(name: str, snapshot: Snapshot, low: int, count: int) -> None:
    properties: Mapping[str, object] = {
        "power_saving": {"LowUtilization": low, "HostsInReserve": 1},
        "vm_evenly_distributed": {"HighVmCount": count, "MigrationThreshold": 1},
    }.get(name, {})
    policy = policy_named(name, properties)
    plan = balancing.plan(snapshot, policy)
    assert check_plan(snapshot, plan) == []
    assert same(plan, balancing.plan(snapshot, policy))
    moved = {move.vm for move in plan.moves}
    assert len(moved) == len(plan.moves)


@pytest.mark.parametrize("name", ["power_saving", "vm_evenly_distributed", "evenly_distributed"])
@RELAXED
@given(snapshot=CLUSTERS)
def test_balancing_comes_to_rest(name: str, snapshot: Snapshot) -> None:
    """Applied again and again, with load following the VMs, no VM is moved for ever."""
    policy = policy_named(name, {"HighVmCount": 1, "MigrationThreshold": 1} if "vm" in name else {})
    for _ in range(30):
        plan = balancing.plan(snapshot, policy)
        if not plan.moves:
            return
        before = snapshot.placement
        load = snapshot.load.copy()
        np.subtract.at(load, before[before >= 0], snapshot.demand[before >= 0])
        after = plan.placement
        np.add.at(load, after[after >= 0], snapshot.demand[after >= 0])
        snapshot = snapshot.changed(placement=after, load=np.maximum(load, 0.0))
    pytest.fail("still moving VMs after 30 rounds")


@RELAXED
@given(snapshot=snapshots(), name=st.sampled_from(sorted(BUILT_IN.policies)))
def test_a_dump_decides_the_same(snapshot: Snapshot, name: str) -> None:
    policy = policy_named(name)
    plan = placement.plan(snapshot, policy, cursor=3)
    text = dump.dump(Decision(DecisionKind.PLACEMENT, snapshot, policy, 3), plan)
    read = dump.load(text)
    again = placement.plan(read.snapshot, read.policy, cursor=read.cursor)
    assert read.placement is not None
    assert read.placement.tolist() == plan.placement.tolist()
    assert same(plan, again)
    assert (
        dump.dump(Decision(DecisionKind.PLACEMENT, read.snapshot, read.policy, read.cursor), plan)
        == text
    )


@RELAXED
@given(snapshot=snapshots(), name=st.sampled_from(sorted(BUILT_IN.policies)))
def test_explanations_agree_with_the_plan(snapshot: Snapshot, name: str) -> None:
    policy = policy_named(name)
    plan = placement.plan(snapshot, policy)
    for each in explain.explain(snapshot, policy):
        assert {each.chosen} == {int(plan.placement[vm]) for vm in each.vms}
        assert explain.text(snapshot, each)
        passed = [verdict for verdict in each.hosts if verdict.place >= 0]
        if each.chosen < 0:
            assert name == "optimised" or not passed or not snapshot.vm_ok[list(each.vms)].all()
            continue
        if policy.strategy in (placement.Strategy.WEIGHTS, placement.Strategy.FIRST_FIT):
            assert each.hosts[each.chosen].place == 0
        if policy.strategy is placement.Strategy.WEIGHTS:
            for verdict in passed:
                products = [part.product for part in verdict.parts]
                assert verdict.total == pytest.approx(sum(products))


@pytest.mark.parametrize("name", ["evenly_distributed", "power_saving", "vm_evenly_distributed"])
def test_crowds_are_balanced_at_all(name: str) -> None:
    """The properties above would hold for a balancer that never moves anything."""
    policy = policy_named(name, {"LowUtilization": 50} if name == "power_saving" else {})
    assert sum(len(balancing.plan(crowd(seed), policy).moves) for seed in range(20)) > 10


JUNK = st.one_of(
    st.none(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.floats(), max_size=4),
    st.lists(st.lists(st.one_of(st.floats(), st.integers()), max_size=3), max_size=4),
    st.lists(st.lists(st.text(max_size=2), max_size=2), max_size=2),
    st.just(1 + 2j),
    st.just([[10**400]]),
)


@RELAXED
@given(
    st.lists(st.text(max_size=2), max_size=3),
    JUNK,
    st.dictionaries(
        st.sampled_from(
            ["used", "host_state", "demand", "placement", "overcommit", "headroom", "pin", "load",
             "vm_count", "max_vms", "host_preference", "priority", "movable", "memory_kib"]
        ),
        JUNK,
    ),
    st.lists(st.text(max_size=2), max_size=3),
)  # fmt: skip
def test_junk_is_an_answer_not_an_exception(
    host_ids: list[str], capacity: object, columns: dict[str, object], vm_ids: list[str]
) -> None:
    snapshot = Snapshot.of(host_ids, capacity, vm_ids=vm_ids, **columns)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for name in ("first_fit", "best_fit", "evenly_distributed", "power_saving", "l2"):
        plan = placement.plan(snapshot, policy_named(name))
        assert check_plan(snapshot, plan) == []
        assert len(plan.placement) == len(vm_ids)
        assert check_plan(snapshot, balancing.plan(snapshot, policy_named(name))) == []
    if not snapshot.hosts and snapshot.problems:
        codes = {reason.code for reason in plan.reasons}
        assert codes <= {ReasonCode.INVALID_SNAPSHOT}


@RELAXED
@given(
    snapshot=snapshots(),
    numbers=st.lists(st.sampled_from([np.nan, np.inf, -1.0, 1e300]), min_size=3, max_size=3),
    rows=st.lists(st.integers(0, 11), min_size=3, max_size=3),
)
def test_a_wrong_row_spoils_only_itself(
    snapshot: Snapshot, numbers: list[float], rows: list[int]
) -> None:
    demand, capacity = snapshot.demand.copy(), snapshot.capacity.copy()
    bad_vms = {row for row in rows[:2] if row < snapshot.vms}
    bad_hosts = {row for row in rows[2:] if row < snapshot.hosts}
    for vm, value in zip(sorted(bad_vms), numbers, strict=False):
        demand[vm, 0] = value
    for host in bad_hosts:
        capacity[host, -1] = numbers[-1]
    spoilt = snapshot.changed(demand=demand, capacity=capacity, load=None)
    assert (len(spoilt.problems) > 0) == bool(bad_vms or bad_hosts)
    assert np.isfinite(spoilt.demand).all()
    assert np.isfinite(spoilt.capacity).all()
    plan = placement.plan(spoilt, policy_named("best_fit"))
    assert check_plan(spoilt, plan) == []
    for vm in bad_vms:
        assert plan.placement[vm] == spoilt.placement[vm]
    for host in bad_hosts:
        arrived = (plan.placement == host) & (spoilt.placement != host)
        assert not arrived.any()


@RELAXED
@given(st.data())
def test_inventory_agrees_with_placement(data: st.DataObject) -> None:
    """The index against the plain scan: same first fit, equally good best fit, same room."""
    hosts = data.draw(st.integers(1, 150))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    capacity = rng.choice([0.0, 4.0, 8.0], size=(hosts, 2), p=[0.1, 0.4, 0.5])
    state = rng.choice([0, 0, 0, 1, 4], size=hosts)
    snapshot = Snapshot.of([f"h{i}" for i in range(hosts)], capacity, host_state=state)
    inventory = Inventory(snapshot)
    held: list[str] = []
    for step in range(data.draw(st.integers(1, 200))):
        if held and rng.random() < 0.3:
            assert inventory.release(held.pop(int(rng.integers(len(held)))))
            continue
        if rng.random() < 0.1:
            host = int(rng.integers(hosts))
            inventory.set_state(host, HostState(int(rng.choice([0, 1, 2]))))
        need = rng.choice([0.0, 0.1, 1.0, 2.5], size=2)
        now = inventory.snapshot([f"v{step}"], [need.tolist()])
        wake_nobody = {"wake": False}
        first = placement.plan(now, policy_named("first_fit", wake_nobody)).placement[0]
        assert inventory.first_fit(need) == first
        best = placement.plan(now, policy_named("best_fit", wake_nobody)).placement[0]
        chosen = inventory.best_fit(need)
        if chosen != best:  # a tie, but for the last digit
            shares = ((inventory.free - need) / np.maximum(snapshot.limit, 1e-9)).sum(axis=1)
            assert shares[chosen] == pytest.approx(shares[best])
        if chosen >= 0:
            if rng.random() < 0.5:
                assert inventory.reserve(f"v{step}", chosen, need)
            else:
                assert inventory.place(f"v{step}", need, best=True) == chosen
            assert inventory.place(f"v{step}", need) == -1  # it holds something already
            held.append(f"v{step}")
    assert len(inventory) == len(held)
    for vm in held:
        inventory.release(vm)
    assert inventory.free.tolist() == Inventory(snapshot).free.tolist()

"""Filters, weights, factors and named policies, by the examples they are made after."""

import numpy as np
import pytest

from snooze.scheduling import explain, placement
from snooze.scheduling.filters import HARD, OPTIONAL
from snooze.scheduling.policies import BUILT_IN, PolicyError, Strategy, document_of, policy_named
from snooze.scheduling.snapshot import Affinity, AffinityRule, HostState, Labels, Snapshot
from snooze.scheduling.units import MAX_WEIGHT, Property, PropertyKind, Weight, read_properties


def hosts(count: int, vms: int = 1, **columns: object) -> Snapshot:
    """Hosts of 16 cores and 64 memory, VMs of 4 and 8."""
    base = Snapshot.of(
        [f"host {i + 1}" for i in range(count)],
        [[16.0, 64.0]] * count,
        vm_ids=[f"vm {i + 1}" for i in range(vms)],
        demand=[[4.0, 8.0]] * vms,
    )
    return base.changed(load=None, memory_kib=None, **columns)


def test_the_published_table_of_weights_and_factors() -> None:
    """Host 2: 10*5 + 2*2 = 54; host 4: 3*5 + 12*2 = 39: host 4 wins.

    Source: Ourfali, "Scripting and integration with oVirt", CloudOpen Europe 2013.
    """
    first = Weight("func 1", lambda scene, _: np.array([0.0, 10.0, 0.0, 3.0]))
    second = Weight("func 2", lambda scene, _: np.array([0.0, 2.0, 0.0, 12.0]))
    catalogue = BUILT_IN.extended([first, second])
    policy = catalogue.compose({"name": "table", "weights": {"func 1": 5, "func 2": 2}})
    snapshot = hosts(4, host_state=[HostState.MAINTENANCE, 0, HostState.FAILED, 0])
    assert placement.plan(snapshot, policy).placement.tolist() == [3]
    (told,) = explain.explain(snapshot, policy)
    assert [verdict.total for verdict in told.hosts if verdict.place >= 0] == [54.0, 39.0]
    assert [verdict.refused_by for verdict in told.hosts] == ["state", "", "state", ""]
    assert [part.product for part in told.hosts[3].parts] == [15.0, 24.0]
    text = explain.text(snapshot, told)
    assert "* 1. host 4: func 1 3*5 + func 2 12*2 = 39" in text
    assert "host 1: the host is maintenance" in text


def test_rank_selection_forgets_units() -> None:
    large = Weight("large", lambda scene, _: np.array([0.0, 1e6, 2e6]))
    small = Weight("small", lambda scene, _: np.array([2e-6, 1e-6, 0.0]))
    catalogue = BUILT_IN.extended([large, small])
    document = {"name": "r", "weights": {"large": 1, "small": 1.5}}
    by_sum = catalogue.compose(document)
    by_rank = catalogue.compose({**document, "properties": {"selection": "rank"}})
    assert placement.plan(hosts(3), by_sum).placement.tolist() == [0]
    assert placement.plan(hosts(3), by_rank).placement.tolist() == [2]


def test_three_graphics_cards() -> None:
    """Four workstations with three cards each take twelve VMs, and no thirteenth."""
    policy = BUILT_IN.compose({"name": "cards", "base": "none", "filters": ["max_vms_per_host"]})
    plan = placement.plan(hosts(4, 13), policy)
    assert np.bincount(plan.placement[:12]).tolist() == [3, 3, 3, 3]
    (reason,) = plan.reasons
    assert reason.refused == (("max_vms_per_host", 4),)
    bounded = placement.plan(hosts(4, 13, max_vms=[3] * 4), policy_named("first_fit"))
    assert (bounded.placement < 0).sum() == 1


def test_power_saving_prefers_the_busiest_and_fears_the_empty() -> None:
    used = [[0.0, 0.0], [4.0, 8.0], [8.0, 8.0]]
    snapshot = hosts(3, used=used, vm_count=[0, 1, 2])
    policy = policy_named("power_saving")
    (told,) = explain.explain(snapshot, policy)
    scores = [verdict.parts[0].score for verdict in told.hosts]
    assert scores == [MAX_WEIGHT, MAX_WEIGHT - 500.0, MAX_WEIGHT - 750.0]
    assert told.chosen == 2
    assert placement.plan(snapshot, policy_named("evenly_distributed")).placement.tolist() == [0]


def test_running_hosts_before_waking_before_sleeping() -> None:
    states = [HostState.ASLEEP, HostState.WAKING, 0]
    snapshot = hosts(3, 9, host_state=states)
    plan = placement.plan(snapshot, policy_named("worst_fit"))
    assert plan.placement.tolist() == [2] * 4 + [1] * 4 + [0]
    assert plan.wakes == (0,)
    stays = placement.plan(snapshot, policy_named("worst_fit", {"wake": False}))
    assert stays.placement.tolist() == [2] * 4 + [1] * 4 + [-1]
    assert stays.wakes == ()


def test_round_robin_goes_on_where_it_stopped() -> None:
    policy = policy_named("round_robin")
    first = placement.plan(hosts(3, 4), policy)
    assert first.placement.tolist() == [0, 1, 2, 0]
    assert placement.plan(hosts(3, 2), policy, cursor=first.cursor).placement.tolist() == [1, 2]


def test_priority_then_pins_then_order() -> None:
    snapshot = hosts(1, 5, priority=[0, 0, 0, 0, 7], pin=[-1, -1, -1, 0, -1])
    plan = placement.plan(snapshot, policy_named("first_fit"))
    assert plan.placement.tolist() == [0, 0, -1, 0, 0]


def test_decreasing_order_packs_what_given_order_does_not() -> None:
    demand = [[6.0, 1.0], [6.0, 1.0], [10.0, 1.0], [10.0, 1.0]]
    snapshot = hosts(2, 4).changed(demand=demand, memory_kib=None)
    assert (placement.plan(snapshot, policy_named("first_fit")).placement < 0).any()
    fit = placement.plan(snapshot, policy_named("first_fit_decreasing"))
    assert fit.placement.tolist() == [0, 1, 0, 1]


def test_host_order_of_snooze() -> None:
    snapshot = hosts(3, used=[[0, 0], [8, 8], [4, 8]])
    packed = policy_named("first_fit", {"host_order": "most_used"})
    spread = policy_named("first_fit", {"host_order": "least_used"})
    assert placement.plan(snapshot, packed).placement.tolist() == [1]
    assert placement.plan(snapshot, spread).placement.tolist() == [0]


def test_optimised_needs_fewer_hosts_than_first_fit() -> None:
    sizes = [[6.0, 1.0]] * 4 + [[10.0, 1.0]] * 4 + [[5.0, 1.0]] * 3 + [[11.0, 1.0]] * 3
    snapshot = hosts(14, 14, host_state=[0] * 7 + [HostState.ASLEEP] * 7)
    snapshot = snapshot.changed(demand=sizes, memory_kib=None)
    plan = placement.plan(snapshot, policy_named("optimised"))
    assert len(np.unique(plan.placement)) == 7
    assert plan.wakes == ()
    assert len(placement.plan(snapshot, policy_named("first_fit")).wakes) > 0


def test_vms_that_go_together_go_together_or_not_at_all() -> None:
    together = AffinityRule(Affinity.TOGETHER, (0, 1, 2, 3, 4))
    tight = placement.plan(hosts(2, 5, rules=[together]), policy_named("first_fit"))
    assert tight.placement.tolist() == [-1] * 5
    chain = [AffinityRule(Affinity.TOGETHER, (0, 1)), AffinityRule(Affinity.TOGETHER, (1, 2))]
    used = [[8.0, 0.0], [0.0, 0.0]]
    loose = placement.plan(hosts(2, 3, rules=chain, used=used), policy_named("first_fit"))
    assert loose.placement.tolist() == [1, 1, 1]
    joining = hosts(2, 3, rules=chain, placement=[1, -1, -1])
    assert placement.plan(joining, policy_named("first_fit")).placement.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("rules", "pin", "word"),
    [
        ([(Affinity.TOGETHER, (0, 1), ()), (Affinity.APART, (0, 1), ())], [-1, -1], "apart from"),
        ([(Affinity.ON_HOSTS, (0,), (0,)), (Affinity.OFF_HOSTS, (0,), (0,))], [-1, -1], "no host"),
        ([(Affinity.ON_HOSTS, (0,), (0,))], [1, -1], "no host"),
        ([(Affinity.TOGETHER, (0, 1), ())], [0, 1], "different hosts"),
    ],
)
def test_contradictions_are_named(
    rules: list[tuple[Affinity, tuple[int, ...], tuple[int, ...]]], pin: list[int], word: str
) -> None:
    made = [AffinityRule(*rule) for rule in rules]
    plan = placement.plan(hosts(2, 2, rules=made, pin=pin), policy_named("best_fit"))
    reason = plan.reason_for(0)
    assert reason is not None
    assert reason.code == "contradiction"
    assert word in reason.message


def test_soft_rules_and_images_are_preferences() -> None:
    soft = [AffinityRule(Affinity.APART, (0, 1), hard=False)]
    policy = policy_named("none")
    assert placement.plan(hosts(2, 2, rules=soft), policy).placement.tolist() == [0, 1]
    assert placement.plan(hosts(1, 2, rules=soft), policy).placement.tolist() == [0, 0]
    images = Labels.of([set(), {"debian"}], [{"debian"}])
    assert placement.plan(hosts(2, images=images), policy).placement.tolist() == [1]
    strict = BUILT_IN.compose({"name": "x", "base": "none", "filters": ["image_locality"]})
    nowhere = hosts(1, images=Labels.of([set()], [{"debian"}]))
    assert placement.plan(nowhere, strict).reasons[0].refused == (("image_locality", 1),)
    liked = hosts(3, host_preference=[0.0, 5.0, 2.0])
    assert placement.plan(liked, policy).placement.tolist() == [1]


def test_maintenance_starts_only_what_is_highly_available() -> None:
    snapshot = hosts(1, 2, highly_available=[False, True])
    plan = placement.plan(snapshot, policy_named("cluster_maintenance"))
    assert plan.placement.tolist() == [-1, 0]


def test_ha_reserve_keeps_room_for_a_restart() -> None:
    """Two hosts of four VMs: protected ones may fill half the cluster, no more."""
    policy = BUILT_IN.compose({"name": "ha", "base": "worst_fit", "filters": ["ha_reserve"]})
    plan = placement.plan(hosts(2, 8, highly_available=[True] * 8), policy)
    assert sorted(plan.placement.tolist()) == [-1, -1, -1, -1, 0, 0, 1, 1]
    unprotected = placement.plan(hosts(2, 8), policy)
    assert (unprotected.placement >= 0).all()


def test_hosts_in_reserve_stay_empty() -> None:
    policy = BUILT_IN.compose(
        {
            "name": "spare",
            "base": "first_fit",
            "filters": ["hosts_in_reserve"],
            "properties": {"HostsInReserve": 1},
        }
    )
    plan = placement.plan(hosts(3, 12), policy)
    assert sorted(set(plan.placement.tolist())) == [-1, 0, 1]


def test_overcommit_and_headroom() -> None:
    twice = placement.plan(hosts(1, 9, overcommit=[2.0, 1.0]), policy_named("first_fit"))
    assert (twice.placement >= 0).sum() == 8
    less = placement.plan(hosts(1, 9, headroom=[0.75, 1.0]), policy_named("first_fit"))
    assert (less.placement >= 0).sum() == 3


def test_random_k_draws_by_seed() -> None:
    snapshot = hosts(50, 20)
    one = placement.plan(snapshot, policy_named("random_k", {"seed": 1}))
    assert (
        one.placement.tolist()
        == placement.plan(snapshot, policy_named("random_k", {"seed": 1})).placement.tolist()
    )
    other = placement.plan(snapshot, policy_named("random_k"), rng=np.random.default_rng(2))
    assert one.placement.tolist() != other.placement.tolist()


def test_every_policy_survives_its_own_document() -> None:
    for name, policy in BUILT_IN.policies.items():
        again = BUILT_IN.compose(document_of(policy))
        assert document_of(again) == document_of(policy), name
        assert again.strategy in Strategy
    names = [each.name for each in (*HARD, *OPTIONAL)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ({"name": "x", "base": "nope"}, "base"),
        ({"weights": {"best_fit": 1}}, "name"),
        ({"name": "x", "filters": ["nope"]}, "filters"),
        ({"name": "x", "filters": "memory"}, "filters"),
        ({"name": "x", "weights": {"nope": 1}}, "weights.nope"),
        ({"name": "x", "weights": {"best_fit": -1}}, "weights.best_fit"),
        ({"name": "x", "weights": {"best_fit": "much"}}, "weights.best_fit"),
        ({"name": "x", "balancer": "nope"}, "balancer"),
        ({"name": "x", "strategy": "nope"}, "strategy"),
        ({"name": "x", "properties": {"Nope": 1}}, "Nope"),
        ({"name": "x", "properties": {"selection": "best"}}, "selection"),
        ({"name": "x", "properties": 3}, "properties"),
        ({"name": "x", "colour": "red"}, "colour"),
        (
            {"name": "x", "base": "power_saving", "properties": {"HighUtilization": 101}},
            "HighUtilization",
        ),
        (
            {"name": "x", "base": "power_saving", "properties": {"LowUtilization": 85}},
            "LowUtilization",
        ),
        ({"name": "x", "base": "random_k", "properties": {"k": 1.5}}, "k"),
    ],
)
def test_wrong_policies_name_what_is_wrong(document: dict[str, object], where: str) -> None:
    with pytest.raises(PolicyError) as caught:
        BUILT_IN.compose(document)
    assert {problem.where for problem in caught.value.problems} == {where}


def test_unknown_policies_list_the_known() -> None:
    with pytest.raises(ValueError, match="first_fit"):
        policy_named("fastest")


def test_properties_read_text_too() -> None:
    specified = [
        Property("n", 1.0, low=0, high=9),
        Property("w", 1, PropertyKind.WHOLE),
        Property("f", True, PropertyKind.FLAG),
    ]
    values, problems = read_properties(specified, {"n": "2.5", "w": "3", "f": "false"})
    assert (values, problems) == ({"n": 2.5, "w": 3, "f": False}, [])
    for wrong in ({"n": "nan"}, {"n": True}, {"n": [1]}, {"w": 1.5}, {"f": 1}, {"n": 10}):
        assert len(read_properties(specified, wrong)[1]) == 1

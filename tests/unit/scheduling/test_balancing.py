"""Balancers: who is relieved, who is emptied, who sleeps and wakes, and what stays put."""

import numpy as np
import pytest

from snooze.scheduling import balancing
from snooze.scheduling.check import check_plan
from snooze.scheduling.plans import Plan, ReasonCode
from snooze.scheduling.policies import policy_named
from snooze.scheduling.snapshot import Affinity, AffinityRule, HostState, Snapshot

LONG_S = 600.0


def running(load: list[float], placement: list[int], **columns: object) -> Snapshot:
    """Hosts of 10 cores with a measured CPU load; VMs of 2 cores, 4 memory."""
    hosts = len(load)
    base = Snapshot.of(
        [f"h{i}" for i in range(hosts)],
        [[10.0, 100.0]] * hosts,
        vm_ids=[f"v{i}" for i in range(len(placement))],
        demand=[[2.0, 4.0]] * len(placement),
        placement=placement,
        overload_s=[LONG_S] * hosts,
    )
    return base.changed(load=[[cpu, 20.0] for cpu in load], memory_kib=None, **columns)


def moves(plan: Plan) -> list[tuple[int, int]]:
    return [(move.vm, move.target) for move in plan.moves]


def balanced(snapshot: Snapshot, name: str, **properties: object) -> Plan:
    plan = balancing.plan(snapshot, policy_named(name, properties))
    assert check_plan(snapshot, plan) == []
    return plan


def test_an_overloaded_host_gives_one_vm_to_the_calmest() -> None:
    snapshot = running([9.0, 5.0, 2.0], [0, 0, 0, 0, 1, 1, 2])
    assert moves(balanced(snapshot, "evenly_distributed")) == [(0, 2)]


def test_a_short_peak_is_no_reason_to_migrate() -> None:
    snapshot = running([9.0, 2.0], [0, 0, 0, 0, 1], overload_s=[60.0, 0.0])
    assert moves(balanced(snapshot, "evenly_distributed")) == []
    impatient = balanced(snapshot, "evenly_distributed", CpuOverCommitDurationMinutes=1)
    assert moves(impatient) == [(0, 1)]


def test_no_move_that_only_carries_the_trouble_elsewhere() -> None:
    snapshot = running([9.0, 7.0], [0, 0, 0, 0, 1, 1, 1])
    plan = balanced(snapshot, "evenly_distributed")
    assert moves(plan) == []
    assert {reason.code for reason in plan.reasons} == {ReasonCode.NO_BENEFIT}
    assert "overloaded: 90 %" in plan.reasons[0].message


def test_the_cheapest_vm_that_ends_the_overload_goes_first() -> None:
    snapshot = running([9.0, 1.0], [0, 0, 0]).changed(
        demand=[[0.5, 1.0], [2.0, 8.0], [2.0, 4.0]], memory_kib=None
    )
    assert moves(balanced(snapshot, "evenly_distributed")) == [(2, 1)]


@pytest.mark.parametrize("column", ["movable", "pin"])
def test_what_may_not_move_stays(column: str) -> None:
    values = {"movable": [False] * 4 + [True], "pin": [0] * 4 + [-1]}
    snapshot = running([9.0, 2.0], [0, 0, 0, 0, 1], **{column: values[column]})
    assert moves(balanced(snapshot, "evenly_distributed")) == []


def test_short_of_memory_counts_as_overload() -> None:
    snapshot = running([1.0, 1.0], [0, 1]).changed(
        capacity=[[10.0, 3e6]] * 2, load=[[1.0, 2.9e6], [1.0, 1e6]]
    )
    plan = balanced(snapshot, "evenly_distributed", MaxFreeMemoryForOverUtilized=500)
    assert moves(plan) == [(0, 1)]


def test_power_saving_empties_the_quietest_onto_the_busier() -> None:
    snapshot = running([5.0, 1.0, 1.5], [0, 0, 1, 2])
    plan = balanced(snapshot, "power_saving")
    assert moves(plan) == [(2, 0)]
    assert plan.sleeps == (1,)
    assert moves(balanced(snapshot, "power_saving", LowUtilization=5)) == []


def test_power_saving_empties_all_or_nothing() -> None:
    crowded = running([7.0, 1.0], [0, 0, 0, 1, 1]).changed(used=[[2.5, 0.0], [0.0, 0.0]])
    plan = balanced(crowded, "power_saving")
    assert moves(plan) == []
    assert plan.sleeps == ()
    foreign = running([5.0, 1.0], [0, 1], vm_count=[0, 1])  # a VM we were not told of
    assert moves(balanced(foreign, "power_saving")) == []


def test_power_saving_never_uses_an_empty_host_as_target() -> None:
    assert moves(balanced(running([0.0, 1.0], [1]), "power_saving")) == []


def test_the_reserve_sleeps_and_wakes() -> None:
    snapshot = running([5.0, 0.0, 0.0, 0.0], [0, 0])
    assert balanced(snapshot, "power_saving").sleeps == (1, 2, 3)
    assert balanced(snapshot, "power_saving", HostsInReserve=2).sleeps == (3,)
    off = balanced(snapshot, "power_saving", EnableAutomaticHostPowerManagement=False)
    assert (off.sleeps, off.wakes) == ((), ())
    asleep = snapshot.changed(host_state=[0, 0, HostState.ASLEEP, HostState.ASLEEP])
    assert balanced(asleep, "power_saving", HostsInReserve=2).wakes == (2,)
    waking = snapshot.changed(host_state=[0, 0, HostState.WAKING, HostState.ASLEEP])
    assert balanced(waking, "power_saving", HostsInReserve=2).wakes == ()
    reserved = snapshot.changed(used=[[0, 0], [1, 0], [0, 0], [0, 0]])
    assert balanced(reserved, "power_saving").sleeps == (2, 3)


def test_an_overload_nobody_can_take_wakes_a_host() -> None:
    snapshot = running([9.0, 8.0, 0.0], [0, 0, 0, 1, 1]).changed(
        host_state=[0, 0, HostState.ASLEEP]
    )
    plan = balanced(snapshot, "power_saving", HighUtilization=85)
    assert moves(plan) == []
    assert plan.wakes == (2,)


def test_vm_counts_are_evened_out_up_to_the_threshold() -> None:
    snapshot = running([1.0, 1.0], [0] * 5 + [1])
    plan = balanced(snapshot, "vm_evenly_distributed", HighVmCount=2, MigrationThreshold=2)
    assert len(plan.moves) == 2
    assert np.bincount(plan.placement).tolist() == [3, 3]
    assert moves(balanced(snapshot, "vm_evenly_distributed", HighVmCount=5)) == []
    even = running([1.0, 1.0], [0, 0, 0, 1, 1])
    still = balanced(even, "vm_evenly_distributed", HighVmCount=0, MigrationThreshold=1)
    assert moves(still) == []


def test_moves_are_bounded() -> None:
    snapshot = running([1.0, 1.0], [0] * 5)
    policy = policy_named("vm_evenly_distributed", {"HighVmCount": 0, "MigrationThreshold": 1})
    plan = balancing.plan(snapshot, policy, max_moves=1)
    assert len(plan.moves) == 1


def test_groups_move_together() -> None:
    rules = [AffinityRule(Affinity.TOGETHER, (0, 1))]
    snapshot = running([9.0, 1.0], [0, 0, 0], rules=rules, movable=[True, True, False])
    plan = balanced(snapshot, "evenly_distributed")
    assert moves(plan) == [(0, 1), (1, 1)]
    apart = [AffinityRule(Affinity.APART, (0, 3)), AffinityRule(Affinity.APART, (1, 3))]
    kept = running([9.0, 1.0], [0, 0, 0, 1], rules=apart, movable=[True, True, False, True])
    assert moves(balanced(kept, "evenly_distributed")) == []


def test_policies_without_a_balancer_move_nothing() -> None:
    snapshot = running([9.0, 1.0], [0, 0, 0])
    assert moves(balanced(snapshot, "none")) == []
    assert moves(balanced(snapshot, "first_fit")) == []

import numpy as np
import pytest

from snooze.scheduling import placement
from snooze.scheduling.norms import Norm, length, normalised
from snooze.scheduling.policies import policy_named
from snooze.scheduling.snapshot import (
    Affinity,
    AffinityRule,
    HostState,
    Labels,
    Snapshot,
    accepting,
    count_vms,
    free,
    reserved,
)
from snooze.scheduling.validation import MAX_PROBLEMS


def small(**columns: object) -> Snapshot:
    given: dict[str, object] = {
        "vm_ids": ["x", "y"],
        "demand": [[1.0, 2.0], [3.0, 4.0]],
        "placement": [1, -1],
    }
    return Snapshot.of(["a", "b"], [[8.0, 8.0], [4.0, 16.0]], **(given | columns))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_callers_give_only_what_they_know() -> None:
    snapshot = small()
    assert snapshot.problems == ()
    assert reserved(snapshot).tolist() == [[0, 0], [1, 2]]
    assert free(snapshot) == pytest.approx(np.array([[8.0, 8.0], [3.0, 14.0]]))
    assert count_vms(snapshot).tolist() == [0, 1]
    assert accepting(snapshot).tolist() == [True, True]
    assert snapshot.load.tolist() == [[0, 0], [1, 2]]
    assert snapshot.memory_kib.tolist() == [2, 4]
    assert snapshot.axes == ("resource 0", "resource 1")


def test_limits_are_capacity_times_overcommit_times_headroom() -> None:
    snapshot = small(overcommit=[4.0, 1.0], headroom=[0.5, 0.75])
    assert snapshot.limit.tolist() == [[16.0, 6.0], [8.0, 12.0]]


def test_arrays_cannot_be_changed() -> None:
    snapshot = small()
    for array in (snapshot.capacity, snapshot.demand, snapshot.placement, snapshot.vm_ok):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize(
    ("columns", "where"),
    [
        ({"demand": [[1.0, 2.0], [np.nan, 4.0]]}, "demand[1]"),
        ({"demand": [[-1.0, 2.0], [3.0, 4.0]]}, "demand[0]"),
        ({"demand": [[1e300, 2.0], [3.0, 4.0]]}, "demand[0]"),
        ({"placement": [7, -1]}, "placement[0]"),
        ({"pin": [-1, 2]}, "pin[1]"),
        ({"used": [[0.0, np.inf], [0.0, 0.0]]}, "used[0]"),
        ({"max_vms": [-5, 1]}, "max_vms[0]"),
        ({"host_state": [0, 17]}, "host_state[1]"),
        ({"memory_kib": [-1, 1]}, "memory_kib[0]"),
    ],
)
def test_a_wrong_row_is_named(columns: dict[str, object], where: str) -> None:
    snapshot = small(**columns)
    assert [problem.where for problem in snapshot.problems] == [where]
    assert snapshot.hosts == 2
    assert not (snapshot.vm_ok.all() and snapshot.host_ok.all())


def test_the_host_of_a_vm_nobody_can_size_takes_nothing() -> None:
    snapshot = small(demand=[[np.nan, 2.0], [3.0, 4.0]])
    assert snapshot.host_ok.tolist() == [True, False]
    plan = placement.plan(snapshot, policy_named("worst_fit"))
    assert plan.placement.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("columns", "where"),
    [
        ({"demand": [[1.0, 2.0]]}, "demand"),
        ({"demand": None}, "demand"),
        ({"demand": "junk"}, "demand"),
        ({"vm_ids": ["x", "x"]}, "vm_ids"),
        ({"overcommit": [0.0, 1.0]}, "overcommit[0]"),
        ({"headroom": [1.0, 1.5]}, "headroom[1]"),
        ({"axes": ["cpu"]}, "axes"),
        ({"rules": [AffinityRule(Affinity.APART, (0, 9))]}, "rules[0]"),
        ({"rules": [AffinityRule(Affinity.ON_HOSTS, (0,), (5,))]}, "rules[0]"),
        ({"rules": [AffinityRule(Affinity.APART, (0, 1), weight=np.nan)]}, "rules[0]"),
        ({"tags": Labels.of([set()], [set(), set()])}, "tags"),
        ({"load": [[1.0]]}, "load"),
    ],
)
def test_what_makes_no_sense_as_a_whole_has_no_hosts(
    columns: dict[str, object], where: str
) -> None:
    snapshot = small(**columns)
    assert where in [problem.where for problem in snapshot.problems]
    assert snapshot.hosts == 0
    plan = placement.plan(snapshot, policy_named("first_fit"))
    assert plan.placement.tolist() == [-1, -1]
    assert {reason.code for reason in plan.reasons} == {"invalid_snapshot"}
    assert plan.problems == snapshot.problems


def test_problems_are_bounded() -> None:
    count = 10 * MAX_PROBLEMS
    names = [str(i) for i in range(count)]
    snapshot = Snapshot.of(names, np.full((count, 2), np.nan))
    assert len(snapshot.problems) == MAX_PROBLEMS + 1
    assert snapshot.problems[-1].code == "truncated"
    assert not snapshot.host_ok.any()


def test_no_hosts_and_no_vms_are_fine() -> None:
    assert Snapshot.of([], np.zeros((0, 4))).problems == ()
    assert Snapshot.of(["a"], [[1.0, 1.0]]).problems == ()
    alone = Snapshot.of([], np.zeros((0, 2)), vm_ids=["x"], demand=[[1.0, 1.0]])
    plan = placement.plan(alone, policy_named("best_fit"))
    assert plan.reasons[0].code == "no_hosts"


def test_hosts_without_capacity_take_only_vms_without_demand() -> None:
    snapshot = Snapshot.of(["a"], [[0.0, 0.0]], vm_ids=["x", "y"], demand=[[0.0, 0.0], [0.0, 0.1]])
    for name in ("first_fit", "best_fit", "l2", "dot_product", "evenly_distributed"):
        plan = placement.plan(snapshot, policy_named(name))
        assert plan.placement.tolist()[1] == -1
    assert placement.plan(snapshot, policy_named("first_fit")).placement.tolist() == [0, -1]


def test_other_vms_on_the_same_hosts() -> None:
    base = small(used=[[1.0, 1.0], [0.0, 0.0]], host_state=[0, HostState.DRAINING])
    other = base.with_vms(["z"], [[2.0, 2.0]], pin=[0])
    assert other.capacity is base.capacity
    assert placement.plan(other, policy_named("first_fit")).placement.tolist() == [0]
    assert [problem.where for problem in base.with_vms(["z"], [[np.nan, 1.0]]).problems] == [
        "demand[0]"
    ]
    assert base.with_vms(["z"], [[1.0]]).hosts == 0


def test_norms_are_of_shares_not_of_units() -> None:
    """Two cores of four outweigh a GiB of sixteen, whatever the units."""
    scale = np.array([4.0, 16.0 * 2**20])
    shares = normalised(np.array([[2.0, 0.0], [0.0, 1.0 * 2**20], [2.0, 4.0 * 2**20]]), scale)
    assert length(shares).tolist() == [0.5, 0.0625, 0.75]
    assert length(shares, Norm.MAX).tolist() == [0.5, 0.0625, 0.5]
    assert length(shares, Norm.EUCLID)[2] == pytest.approx(np.hypot(0.5, 0.25))
    assert normalised(np.array([3.0, 1.0]), np.array([0.0, 2.0])).tolist() == [0.0, 0.5]
    assert length(np.zeros((3, 0))).tolist() == [0, 0, 0]

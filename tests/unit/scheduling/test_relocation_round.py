"""From samples to moves, round after round, as a group manager goes about it."""

import numpy as np
import pytest

from snooze.scheduling.check import check_plan
from snooze.scheduling.estimation import SampleRing, Window
from snooze.scheduling.power_model import PowerModel
from snooze.scheduling.relocation_round import RELOCATIONS, Memory, Relocator, Round
from snooze.scheduling.snapshot import HostState, Snapshot

PERIOD_S = 300.0
REQUESTED = np.array([[8.0], [8.0], [2.0], [2.0]])


def cluster(placement: list[int], use: list[float], names: str = "abc") -> Snapshot:
    """Three hosts of 10 cores; those without VMs sleep."""
    return Snapshot.of(
        list(names),
        [[10.0]] * 3,
        host_state=[0 if host in placement else HostState.ASLEEP for host in range(3)],
        vm_ids=["v0", "v1", "v2", "v3"],
        demand=[[value] for value in use],
        placement=placement,
        headroom=[0.9],
        memory_kib=[1024.0 * 1024] * 4,
        axes=("cpu",),
    )


def rounds(relocator: Relocator, history: list[list[float]], placement: list[int]) -> list[Round]:
    """One round per row of ``history``; moves are carried out at once."""
    ring = SampleRing(4, 12, 1)
    memory = Memory()
    done: list[Round] = []
    for count, use in enumerate(history):
        ring.push(np.arange(4), np.array(use)[:, None])
        snapshot = cluster(placement, use)
        found = relocator.relocate(
            snapshot,
            ring.window(),
            REQUESTED,
            memory,
            PERIOD_S * count,
            PERIOD_S,
            PowerModel.linear([100.0] * 3, [200.0] * 3),
        )
        assert check_plan(snapshot, found.relocation.plan) == []
        placement = found.relocation.plan.placement.tolist()
        memory = found.memory
        done.append(found)
    return done


@pytest.mark.parametrize("name", sorted(RELOCATIONS))
def test_every_policy_runs_a_quiet_cluster_without_a_move_too_many(name: str) -> None:
    calm = [[4.0, 4.0, 0.5, 0.5]] * 6
    found = rounds(Relocator(policy=RELOCATIONS[name]), calm, [0, 1, 1, 2])
    assert sum(len(each.relocation.plan.moves) for each in found) <= 2
    assert not found[-1].relocation.plan.moves


def test_an_overload_wakes_a_host_and_the_load_does_not_come_back_at_once() -> None:
    busy, calm = [7.0, 6.5, 0.5, 0.5], [2.0, 2.0, 0.5, 0.5]
    found = rounds(Relocator(), [busy, busy, calm, calm, calm], [0, 0, 1, 1])
    first = found[0].relocation
    assert found[0].detection.overloaded.tolist() == [True, False, False]
    assert first.plan.moves
    for each in found[1:]:
        assert not {move.vm for move in each.relocation.plan.moves} & {0, 1}
        assert not set(each.relocation.plan.sleeps) & {0, 2}, "they cool down"


def test_quiet_hosts_are_emptied_once_it_is_certain() -> None:
    calm = [2.0, 2.0, 0.5, 0.5]
    found = rounds(Relocator(), [calm] * 4, [0, 1, 2, 2])
    sleeps = [each.relocation.plan.sleeps for each in found]
    assert sleeps[0], "one sample of 300 s is long enough"
    assert sum(len(each.relocation.plan.moves) for each in found) <= 3


def test_hosts_that_come_and_go_do_not_confuse_the_watch() -> None:
    relocator = Relocator()
    window = Window.of(np.full((4, 1, 1), 6.0))
    before = cluster([0, 0, 1, 1], [6.0] * 4, "abc")
    first = relocator.relocate(before, window, REQUESTED, Memory(), 0.0, 15.0)
    after = cluster([2, 2, 1, 1], [6.0] * 4, "xba")
    second = relocator.relocate(after, window, REQUESTED, first.memory, 15.0, 15.0)
    assert first.detection.overloaded.tolist() == [False, False, False]
    assert second.detection.overloaded.tolist() == [False, True, True]


@pytest.mark.parametrize(
    "window",
    [
        Window.of("nothing"),
        Window.of(np.zeros((4, 0, 1))),
        Window.of(np.zeros((9, 3, 1))),
        Window.of(np.full((4, 3, 2), 1.0)),
        Window.of(np.full((4, 3, 1), np.nan)),
    ],
)
@pytest.mark.parametrize("period_s", [0.0, -1.0, 300.0, float("inf"), float("nan")])
def test_nonsense_is_named_and_moves_nothing(window: Window, period_s: float) -> None:
    snapshot = cluster([0, 0, 1, 1], [6.0] * 4)
    for policy in RELOCATIONS.values():
        found = Relocator(policy=policy).relocate(
            snapshot, window, REQUESTED, Memory(), 0.0, period_s
        )
        assert check_plan(snapshot, found.relocation.plan) == []
        assert not found.detection.overloaded.any()
    empty = Snapshot.of([], np.zeros((0, 1)), axes=("cpu",))
    found = Relocator().relocate(empty, window, np.zeros((0, 1)), Memory(), 0.0, period_s)
    assert not found.relocation.plan.moves

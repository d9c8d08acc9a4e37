"""Seeded clusters in trouble: first safety after every step, then heal and demand progress.

One integer reproduces a run: ``World(seed)``. What must hold after every step is in the world's
``check``; what must hold once everything heals is below.
"""

import pytest

from snooze.common.vm_lifecycle import VmState
from tests.property.cluster.world import World

STEPS = 600


def live(world: World, steps: int = STEPS) -> None:
    world.is_rough = False
    world.settle(5.0)
    world.is_rough = True
    for _ in range(steps):
        world.step()
        if world.random.random() < 0.15:
            world.trouble()
    world.heal()


@pytest.mark.parametrize("seed", range(50))
def test_a_cluster_in_trouble_is_safe_and_heals(seed: int) -> None:
    world = World(seed)
    live(world)
    leader = world.leader
    assert leader is not None
    for task_id in world.acked:
        task = leader.core.tasks[task_id]
        assert task.ended, "a task never ended"
        for vm in task.vms.values():
            assert vm.error is not None or vm.state is not VmState.PENDING
            assert vm.error is None or vm.error.message
    in_world = {
        vm_id: (host_id, domain.state, domain.spec.demand)
        for host_id, host in world.hosts.items()
        for vm_id, domain in host.domains.items()
    }
    registry = {
        vm_id: (vm.host_id, vm.state, vm.demand) for vm_id, vm in leader.registry.vms.items()
    }
    assert registry == in_world, "the leader knows what runs"
    by_managers = {
        key: (vm.host_id, vm.state, vm.demand)
        for manager in world.managers.values()
        for key, vm in manager.core.table.vms.items()
    }
    assert by_managers == in_world, "the managers know what runs"
    for vm_id in in_world:
        assert leader.core.leases.holder(leader.registry.vms[vm_id].ip_address) == vm_id
    assert world.store.vms.keys() == in_world.keys(), "the record knows what runs"
    counts = sorted(
        len(entry.hosts)
        for manager_id, entry in leader.registry.managers.items()
        if manager_id != leader.home
    )
    assert sum(counts) == len(world.hosts), "every host has a manager that does not lead"
    assert counts[-1] - counts[0] <= 1, "the managers are balanced"

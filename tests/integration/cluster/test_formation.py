"""How a cluster forms, whoever comes first, and again from its record after everything died."""

from typing import TYPE_CHECKING

import pytest

from snooze.client.sdk import TaskState, VmState

if TYPE_CHECKING:
    from snooze.lab.daemons import Daemon
    from tests.integration.cluster.conftest import Rig


@pytest.mark.parametrize("order", ["hosts first, ZooKeeper last", "as in a book"])
def test_it_forms_in_any_order(bare_rig: "Rig", order: str) -> None:
    rig = bare_rig
    for daemon in reversed(list(rig.cluster)):
        if daemon.runs:
            daemon.stop()
    rig.zookeeper.end()
    if order == "as in a book":
        rig.start_zookeeper()
        rig.start_all([*rig.fronts, *rig.managers, *rig.hosts])
    else:
        for daemon in (*rig.hosts, *reversed(rig.managers), *rig.fronts):
            daemon.start()
            rig.until(daemon.health, f"{daemon.name} listens")
        for daemon in rig.cluster:
            health = daemon.health()
            assert health is not None
            assert health.status == "unready", daemon.name
            assert health.reasons, "an unready daemon says what it waits for"
        rig.start_zookeeper()
    leader = rig.wait_whole()
    tree = rig.client.hierarchy()
    assert tree.leader_id == leader.node_id
    hosts_of = {branch.manager.hostname: len(branch.hosts) for branch in tree.managers}
    assert hosts_of.pop(leader.name) == 0, "a leader among others manages no hosts"
    assert sorted(hosts_of.values()) == [1, 2], "the least loaded manager gets the next host"


def test_every_daemon_answers_for_the_leader(rig: "Rig") -> None:
    seen = {rig.call(daemon, "GET", "/v1/cluster").text for daemon in (*rig.fronts, *rig.managers)}
    assert len(seen) == 1
    view = rig.client.cluster()
    assert (view.managers, view.hosts, view.vms) == (3, 3, 0)
    assert view.capacity.cpu_cores == 3 * rig.HOST_CPUS
    assert view.capacity.memory_kib == 3 * rig.HOST_MEMORY_KIB


def test_a_power_cut_of_everything_but_the_hypervisors_loses_nothing(rig: "Rig") -> None:
    prefix = rig.fresh("cut")
    task = rig.submit(rig.vms(prefix, 6))
    rig.client.wait(rig.client.suspend(f"{prefix}-0"), check=True)
    before = {vm.name: vm for vm in rig.living()}
    domains = rig.domains()
    ids = {daemon.name: daemon.node_id for daemon in rig.cluster}
    for daemon in rig.cluster:
        daemon.kill()
    rig.zookeeper.end()

    everything: list[Daemon] = [*rig.hosts, *rig.fronts, *rig.managers]
    rig.start_all(everything)
    rig.start_zookeeper()
    rig.wait_whole()
    rig.until(rig.agrees, "Snooze tells of what runs")
    assert rig.domains() == domains, "nothing was started anew or twice"
    assert {daemon.name: daemon.node_id for daemon in rig.cluster} == ids
    for name, vm in before.items():
        now = rig.client.vm(name)
        assert (now.vm_id, now.ip_address, now.host_id, now.state, now.generation) == (
            vm.vm_id,
            vm.ip_address,
            vm.host_id,
            vm.state,
            vm.generation,
        )
    assert rig.client.task(task.id).state is TaskState.DONE
    rig.client.wait(rig.client.resume(f"{prefix}-0"), check=True)
    again = rig.submit(rig.vms(rig.fresh("cut"), 6))
    taken = {vm.ip_address for vm in before.values()}
    assert not taken & {vm.ip_address for vm in again.vms}, "leases are remembered"
    assert {vm.state for vm in rig.living()} == {VmState.RUNNING}

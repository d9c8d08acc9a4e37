"""Daemons that stop, die or freeze: one leader, a whole hierarchy, VMs that notice nothing.

What holds after each fault is checked by ``Watched``: the hypervisors have the very domains that
they had (virsh's number of a domain changes with each start), Snooze tells of exactly these, and
every VM can still be commanded.
"""

import threading
import time
from typing import TYPE_CHECKING

import pytest

from snooze.client.sdk import Snooze, TaskState, TaskView, VmState
from snooze.common.errors import SnoozeError

if TYPE_CHECKING:
    from snooze.lab.daemons import Daemon
    from tests.integration.cluster.conftest import Rig

VMS = 6
HANDOVER_S = 10.0
"""Generous; a clean handover takes a fraction of a second, a lost session here at least 1.5 s."""


class Watched:
    """VMs that must not notice what is done to the daemons."""

    def __init__(self, rig: "Rig") -> None:
        self.rig = rig
        self.prefix = rig.fresh("watched")
        rig.submit(rig.vms(self.prefix, VMS))
        rig.client.wait(rig.client.suspend(f"{self.prefix}-0"), check=True)
        rig.until(rig.agrees, "Snooze tells of what runs")
        self.domains = rig.domains()
        self.views = {vm.name: vm for vm in rig.living()}
        self.epoch = rig.client.cluster().epoch

    def check(self) -> None:
        """All is as before; every VM obeys."""
        rig = self.rig
        leader = rig.wait_whole()
        assert [leader] == rig.leaders()
        rig.until(rig.agrees, "Snooze tells of what runs")
        assert rig.domains() == self.domains
        for vm in rig.living():
            was = self.views[vm.name]
            assert (vm.vm_id, vm.host_id, vm.ip_address, vm.state, vm.generation, vm.managed) == (
                was.vm_id,
                was.host_id,
                was.ip_address,
                was.state,
                was.generation,
                was.managed,
            )
        first, *others = self.views
        rig.client.wait(rig.client.resume(first), check=True)
        rig.client.wait(rig.client.suspend(first), check=True)
        tasks = [rig.client.suspend(name) for name in others]
        tasks = [rig.client.wait(task, check=True) for task in tasks]
        assert {vm.state for vm in rig.living()} == {VmState.PAUSED}
        rig.submit(rig.vms(rig.fresh("after"), 1))


@pytest.fixture
def watched(rig: "Rig") -> Watched:
    return Watched(rig)


def host_with_vms(rig: "Rig") -> "Daemon":
    return rig.named(next(iter(rig.living())).host_id)


def manager_with_vms(rig: "Rig") -> "Daemon":
    return rig.named(next(iter(rig.living())).manager_id)


# ---------------------------------------------------------------- the leader


def test_a_leader_that_is_stopped_hands_over_at_once(rig: "Rig", watched: Watched) -> None:
    [leader] = rig.leaders()
    leader.stop()
    stopped_s = time.monotonic()
    successor = rig.until(lambda: next(iter(rig.leaders()), None), "another leads")
    assert successor is not leader
    assert time.monotonic() - stopped_s < HANDOVER_S
    assert rig.client.cluster().epoch > watched.epoch
    [vm] = rig.submit(rig.vms("between", 1)).vms
    rig.client.wait(rig.client.destroy(vm.name), check=True)
    leader.start()
    watched.check()
    assert rig.client.cluster().leader_id == successor.node_id, "who comes back, follows"


def test_a_leader_that_is_killed_is_replaced(rig: "Rig", watched: Watched) -> None:
    [leader] = rig.leaders()
    leader.kill()
    [vm] = rig.submit(rig.vms("between", 1)).vms  # the SDK waits it out
    rig.client.wait(rig.client.destroy(vm.name), check=True)
    assert rig.client.cluster().epoch > watched.epoch
    leader.start()
    watched.check()


def test_a_frozen_leader_is_deposed_and_knows_it(rig: "Rig", watched: Watched) -> None:
    [leader] = rig.leaders()
    leader.pause()
    try:
        successor = rig.until(
            lambda: next((m for m in rig.managers if m is not leader and rig.epoch_of(m)), None),
            "another leads",
        )
    finally:
        leader.resume()
    # Straight to the one that just woke up: refused, or passed on, but never answered by itself.
    deadline_s = time.monotonic() + 3.0
    while time.monotonic() < deadline_s:
        serving = rig.leaders()
        assert serving in ([], [successor]), "two leaders serve"
        answer = rig.call(leader, "GET", "/v1/cluster")
        if answer.status == 200:
            assert answer.json["leader_id"] == successor.node_id
    watched.check()


def test_submissions_during_a_change_of_leaders_are_neither_lost_nor_doubled(rig: "Rig") -> None:
    prefix = rig.fresh("storm")
    [leader] = rig.leaders()
    outcomes: dict[int, TaskView | SnoozeError] = {}
    under_way = threading.Event()

    def submit(number: int) -> None:
        name = f"{prefix}-{number}"
        with Snooze([front.url for front in rig.fronts], timeout_s=60) as client:
            try:
                task = client.submit(rig.vms(name, 2), idempotency_key=name)
                under_way.set()
                outcomes[number] = client.wait(task, check=True)
            except SnoozeError as error:
                outcomes[number] = error

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads[:4]:
        thread.start()
    assert under_way.wait(30)
    leader.kill()
    for thread in threads[4:]:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert len(outcomes) == 8
    for outcome in outcomes.values():
        assert isinstance(outcome, TaskView), outcome
        assert outcome.state is TaskState.DONE
    leader.start()
    rig.wait_whole()
    rig.until(rig.agrees, "Snooze tells of what runs")
    names = [each.name for each in rig.domains()]
    assert names == sorted(f"{prefix}-{n}-{i}" for n in range(8) for i in range(2))
    assert len({vm.ip_address for vm in rig.living()}) == 16
    again = rig.client.submit(rig.vms(f"{prefix}-0", 2), idempotency_key=f"{prefix}-0")
    assert isinstance(outcomes[0], TaskView)
    assert again.id == outcomes[0].id, "the key is remembered beyond the leader"


# ---------------------------------------------------------------- managers and hosts


@pytest.mark.parametrize("way", ["stopped", "killed"])
def test_a_manager_that_goes_gives_its_hosts_back(rig: "Rig", watched: Watched, way: str) -> None:
    manager = manager_with_vms(rig)
    had = {host.id for host in rig.client.hosts() if host.manager_id == manager.node_id}
    if way == "stopped":
        manager.stop()
    else:
        manager.kill()

    def rehomed() -> bool:
        hosts = [host for host in rig.client.hosts() if host.id in had]
        return all(h.status == "active" and h.manager_id != manager.node_id for h in hosts)

    rig.until(rehomed, "its hosts have another manager")
    assert rig.client.cluster().epoch == watched.epoch, "that is no business of the election"
    for name in watched.views:
        assert rig.client.vm(name).manager_id != manager.node_id
    manager.start()
    watched.check()


@pytest.mark.parametrize("way", ["stopped", "killed"])
def test_a_local_controller_that_goes_leaves_its_vms_running(
    rig: "Rig", watched: Watched, way: str
) -> None:
    host = host_with_vms(rig)
    if way == "stopped":
        host.stop()
    else:
        host.kill()
    rig.until(lambda: rig.client.host(host.name).status == "unreachable", "it is missed")
    assert rig.domains() == watched.domains
    here = [vm for vm in watched.views.values() if vm.host_id == host.node_id]
    with pytest.raises(SnoozeError):
        rig.client.wait(rig.client.suspend(here[-1].name), check=True)
    # Meanwhile somebody pulls the plug of one VM and starts another by hand.
    uri = rig.hypervisors[host.name].test_uri
    running = next(vm for vm in here if vm.state is VmState.RUNNING)
    rig.virsh(uri, "destroy", running.name)
    host.start()
    rig.until(lambda: rig.client.vm(running.name).state is VmState.STOPPED, "it is noticed")
    rig.client.wait(rig.client.start(running.name), check=True)
    watched.domains = rig.domains()
    watched.check()


def test_a_front_door_that_is_killed_leaves_the_other(rig: "Rig", watched: Watched) -> None:
    rig.fronts[0].kill()
    rig.submit(rig.vms("other-door", 1))
    rig.client.wait(rig.client.destroy("other-door-0"), check=True)
    rig.fronts[0].start()
    watched.check()


# ---------------------------------------------------------------- ZooKeeper


@pytest.mark.parametrize("way", ["a moment", "longer than every session"])
def test_zookeeper_dies_and_comes_back(rig: "Rig", watched: Watched, way: str) -> None:
    rig.zookeeper.end()
    if way == "longer than every session":
        rig.until(lambda: not rig.leaders(), "the leader stops deciding")
        until_s = time.monotonic() + 2 * rig.SESSION_S
        while time.monotonic() < until_s:
            assert rig.leaders() == [], "nobody leads without a record"
            time.sleep(0.1)
        with pytest.raises(SnoozeError), Snooze(rig.fronts[0].url, timeout_s=3) as hasty:
            hasty.submit(rig.vms("no-record", 1))
        assert rig.domains() == watched.domains
    rig.start_zookeeper()
    watched.check()
    assert not [vm for vm in rig.living() if vm.name.startswith("no-record")]

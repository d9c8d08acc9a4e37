"""The end of a run with a large cluster: what is lost, what is wrong, and what is neither."""

import pytest

from snooze.common.records import HostPower
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import VmStatus
from snooze.groupmanager.leader.registry import HostEntry, Registry
from snooze.groupmanager.leader.vm_views import adopted
from snooze.simulation.fleet import Fleet
from snooze.simulation.scale_end import Ending, ending
from snooze.simulation.world import Shape, World

DEMAND = Capacity(1.0, 1024.0)
VMS = ("old-0", "old-1", "old-2", "old-3")


class House:
    """Two hosts with two VMs each, and a leader that knows them."""

    def __init__(self) -> None:
        self.world = World(Shape(hosts=0, managers=1), 1)
        self.fleet = Fleet(self.world, 2, 1)
        self.fleet.fill(len(VMS), DEMAND)
        self.registry = Registry()
        for host_id, host in self.fleet.hosts.items():
            self.registry.hosts[host_id] = HostEntry(host.description, "gm0", 1, True, 0.0)
            for report in host.vms.values():
                vm = adopted(
                    VmStatus(report.vm_id, report.name, report.state, DEMAND, host_id), 0.0
                )
                vm.state = VmState.RUNNING
                self.registry.add_vm(vm)

    def lose(self, host_id: str) -> None:
        """It loses power, its leader has given it up, and does not know what is with its VMs."""
        self.fleet.cut_power(host_id)
        self.registry.hosts[host_id].leave(1.0, silent=True)
        self.registry.hosts[host_id].given_up = True
        for vm in self.registry.vms_of_host(host_id):
            vm.state, vm.reason = VmState.UNREACHABLE, "its host does not answer"

    def empty(self, host_id: str) -> None:
        """All that is on a host is destroyed."""
        for vm in list(self.registry.vms_of_host(host_id)):
            self.registry.remove_vm(vm)
        for vm_id in list(self.fleet.hosts[host_id].vms):
            self.fleet.drop(self.fleet.hosts[host_id], vm_id)

    def ending(self, *condemned: str) -> Ending:
        return ending(self.fleet, self.registry, VMS, condemned)


@pytest.fixture
def house() -> House:
    return House()


def test_all_is_whole(house: House) -> None:
    assert house.ending() == Ending()


def test_an_empty_host_that_stays_off_is_counted_and_no_fault(house: House) -> None:
    house.empty("node0")
    house.lose("node0")
    assert house.ending("old-0", "old-2") == Ending(dark_hosts=1)


def test_a_host_that_is_off_has_to_be_marked(house: House) -> None:
    house.empty("node0")
    house.lose("node0")
    entry = house.registry.hosts["node0"]
    entry.given_up = False
    assert "has not given it up" in house.ending("old-0", "old-2").left
    entry.join(entry.description, "gm0", 2, 2.0)
    assert "calls it joined" in house.ending("old-0", "old-2").left


def test_a_host_that_was_fenced_has_to_be_switched_on_again(house: House) -> None:
    house.empty("node0")
    house.lose("node0")
    house.registry.hosts["node0"].state = HostPower.FENCED
    assert "was not switched on again" in house.ending("old-0", "old-2").left


def test_a_host_that_is_on_needs_a_manager(house: House) -> None:
    house.registry.hosts["node1"].leave(1.0)
    assert "node1 is on and has no manager" in house.ending().left


def test_a_vm_whose_removal_failed_with_its_host_is_counted(house: House) -> None:
    house.lose("node0")
    assert house.ending("old-0", "old-2") == Ending(dark_hosts=1, kept_vms=2)


def test_a_vm_that_nobody_wanted_gone_is_missed(house: House) -> None:
    house.lose("node0")
    ended = house.ending("old-0")
    assert ended.left.startswith("1 VMs are wrong: old-2 is unreachable on node0")
    house.empty("node0")
    assert "old-2 is gone, and nobody wanted that" in house.ending("old-0").left


def test_a_vm_that_is_told_of_without_a_reason_is_not_reported(house: House) -> None:
    house.lose("node0")
    for vm in house.registry.vms_of_host("node0"):
        vm.reason = ""
    assert "2 VMs are wrong" in house.ending("old-0", "old-2").left


def test_a_removal_that_is_under_way_has_not_ended(house: House) -> None:
    house.registry.vms["0" * 32].state = VmState.DESTROYING
    assert "old-0 is destroying" in house.ending("old-0").left


def test_a_condemned_vm_that_runs_must_be_known_to_run(house: House) -> None:
    vm = house.registry.vms["0" * 32]
    vm.state, vm.reason = VmState.UNREACHABLE, "its host does not answer"
    assert "old-0 is unreachable" in house.ending("old-0").left
    house.registry.remove_vm(vm)
    assert "the leader does not know it" in house.ending("old-0").left

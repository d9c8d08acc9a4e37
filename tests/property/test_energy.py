"""Random lives of a few hosts: no VM loses its host to sleep, the reserve holds, it converges."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from snooze.common.records import HostPower
from snooze.common.resources import Capacity, R
from snooze.common.vm_lifecycle import VmState
from snooze.groupmanager.leader.energy_events import OrderSleep
from snooze.groupmanager.leader.energy_rules import fleet_of, reserve_of
from tests.unit.leader.energy_house import House, power_host, with_policy

HOSTS = 4
LIMIT = np.ones(R)
TROUBLES = ("deaf", "silent", "lost", "refusing", "stubborn")

actions = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([1, 7, 40, 130])),
    st.tuples(st.just("want"), st.integers(1, 4)),
    st.tuples(st.just("end"), st.integers(0, 7)),
    st.tuples(
        st.sampled_from(["deaf", "silent", "lost", "refusing", "stubborn"]), st.integers(1, HOSTS)
    ),
    st.tuples(st.sampled_from(["mark", "press", "leader", "heal"]), st.integers(1, HOSTS)),
    st.tuples(st.just("expect"), st.integers(0, 8)),
)


class Cluster(House):
    """A house whose VMs are placed as soon as there is room, as the submission core does."""

    serial = 0

    def place(self) -> None:
        fleet = fleet_of(self.registry, LIMIT)
        for vm in list(self.registry.vms.values()):
            if vm.state is not VmState.PENDING:
                continue
            vm.lacks_room = True
            for row, host in enumerate(fleet.hosts):
                if host.joined and bool((vm.demand.as_array() <= fleet.free[row]).all()):
                    fleet.free[row] -= vm.demand.as_array()
                    vm.state, vm.host_id = VmState.RUNNING, host.description.host_id
                    vm.lacks_room, vm.waits_for = False, ""
                    break

    def act(self, what: str, number: int) -> None:
        host_id = f"h{number}"
        match what:
            case "wait":
                for _ in range(number):
                    self.run(1)
                    self.place()
                    self.check()
            case "want":
                Cluster.serial += 1
                self.want(f"vm{Cluster.serial}", cores=float(number))
                self.place()
            case "end":
                vms = sorted(self.registry.vms.values(), key=lambda vm: vm.vm_id)
                if number < len(vms):
                    self.registry.remove_vm(vms[number])
            case "mark":
                self.host(host_id).maintenance = not self.host(host_id).maintenance
            case "press":
                self.switch_on(host_id)
            case "leader":
                self.new_leader()
            case "heal":
                self.heal()
            case "expect":
                self.expected = Capacity(float(number), 0.0)
            case _:
                getattr(self, what).symmetric_difference_update({host_id})

    def heal(self) -> None:
        for trouble in TROUBLES:
            getattr(self, trouble).clear()
        for host in self.registry.hosts.values():
            host.maintenance = False

    def check(self) -> None:
        """What always holds."""
        for vm in self.registry.vms.values():
            if vm.host_id:
                assert self.machines[vm.host_id], f"{vm.host_id} is off with {vm.name} on it"
                assert self.state(vm.host_id) in {HostPower.ACTIVE, HostPower.GOING_DOWN}
        for host_id, host in self.registry.hosts.items():
            steps = self.core.power.steps
            if host.state in {HostPower.ACTIVE, HostPower.ASLEEP, HostPower.FAILED}:
                assert host_id not in steps, "a step of a state that the host does not have"

    def _sleep(self, order: OrderSleep) -> None:
        step = self.core.power.steps[order.host_id]
        if step.orders == 1 and not step.decision.reason.startswith("goes on"):
            fleet = fleet_of(self.registry, LIMIT)
            reserve = reserve_of(self.policy, fleet.up(), self.expected.as_array())
            assert not reserve.why_not(np.zeros(R))
            assert len(fleet.hosts) >= self.policy.reserved_hosts
            assert not self.host(order.host_id).maintenance
        super()._sleep(order)


@settings(max_examples=60, deadline=None)
@given(st.lists(actions, min_size=3, max_size=25), st.booleans())
def test_whatever_happens_no_vm_loses_its_host_and_it_converges(
    story: list[tuple[str, int]], with_reserve: bool
) -> None:
    share = Capacity(0.2, 0.2) if with_reserve else Capacity()
    cluster = Cluster(policy=with_policy(reserve_share=share))
    cluster.add(*(power_host(f"h{number}") for number in range(1, HOSTS + 1)))
    for what, number in story:
        cluster.act(what, number)
        cluster.check()
    cluster.heal()
    cluster.expected = Capacity()
    for _ in range(200):
        cluster.run(5, 5)
        cluster.place()
        cluster.check()
    states = set(cluster.states().values())
    assert not states & {HostPower.GOING_DOWN, HostPower.WAKING}, cluster.states()
    waiting = [vm for vm in cluster.registry.vms.values() if vm.state is VmState.PENDING]
    if waiting:
        assert HostPower.ASLEEP not in states, "a VM waits while a host sleeps"
    fleet = fleet_of(cluster.registry, LIMIT)
    if reserve_of(cluster.policy, fleet.up(), np.zeros(R)).why_not(np.zeros(R)):
        assert HostPower.ASLEEP not in states, "the reserve lacks while a host sleeps"

"""What hosts carry is what a look at all VMs would say, whatever changed and in which order."""

from random import Random

import numpy as np

from snooze.common.records import HostPower
from snooze.common.resources import Capacity, FloatArray, R
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmState
from snooze.common.vms import FailureAction, VmPolicy
from snooze.groupmanager.leader.energy_rules import fleet_of
from snooze.groupmanager.leader.ha_reserve import shortfall
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.groupmanager.leader.registry_loads import loads_of, moves, takes_vms
from tests.unit.leader.energy_house import power_host

LEFT = VmPolicy(on_host_failure=FailureAction.LEAVE)
ONES: FloatArray = np.ones(R)


def change(registry: Registry, random: Random) -> None:
    host_id, vm_id = f"h{random.randrange(6)}", f"vm{random.randrange(20)}"
    host, vm = registry.hosts.get(host_id), registry.vms.get(vm_id)
    match random.randrange(7):
        case 0:
            registry.hosts[host_id] = HostEntry(power_host(host_id), "gm1", 1, True, 0.0)
        case 1 if host is not None:
            host.joined = random.random() < 0.7
            host.state = random.choice([HostPower.ACTIVE, HostPower.ACTIVE, HostPower.ASLEEP])
        case 2 if host is not None:
            host.maintenance = random.random() < 0.3
        case 3 if vm is None:
            demand = Capacity(random.choice([0.1, 1.0]), random.choice([0.3, 512.0]))
            policy = random.choice([LEFT, VmPolicy()])
            new = VmEntry(vm_id, vm_id, demand, VmState.RUNNING, host_id=host_id, policy=policy)
            registry.add_vm(new)
        case 4 if vm is not None:
            registry.remove_vm(vm)
        case 5 if vm is not None:
            vm.host_id = random.choice(["", host_id])
        case 6 if vm is not None:
            vm.state = random.choice([VmState.RUNNING, VmState.STOPPED, VmState.MIGRATING])
            vm.demand = Capacity(random.choice([0.1, 2.0]), 256.0)
        case _:
            pass


def test_loads_are_what_a_look_at_everything_would_say() -> None:
    registry, random = Registry(), Random(3)
    for _ in range(600):
        for _ in range(random.randrange(6)):
            change(registry, random)
        loads = loads_of(registry)
        for row, host_id in enumerate(loads.ids):
            vms = [vm for vm in registry.vms.values() if vm.host_id == host_id]
            held = [vm for vm in vms if vm.state in HOLDS_CAPACITY]
            for told, of in ((loads.held, held), (loads.moving, [v for v in held if moves(v)])):
                expected = sum((vm.demand.as_array() for vm in of), np.zeros(R))
                assert np.allclose(told[row], expected, rtol=0, atol=1e-9)
            host = registry.hosts.get(host_id)
            assert loads.takes[row] == (host is not None and takes_vms(host))
        fleet = fleet_of(registry, ONES)
        up = [
            host_id
            for host_id, host in sorted(registry.hosts.items())
            if host.state is HostPower.ACTIVE and not host.maintenance
        ]
        assert [host.description.host_id for host in fleet.hosts] == up


def test_the_reserve_is_missing_when_nowhere_is_room() -> None:
    registry = Registry()
    for host_id in ("h1", "h2", "h3"):
        registry.hosts[host_id] = HostEntry(power_host(host_id), "gm1", 1, True, 0.0)
    for number in range(4):
        vm = VmEntry(f"a{number}", f"a{number}", Capacity(1.0, 1024.0), VmState.RUNNING)
        vm.host_id = "h1"
        registry.add_vm(vm)
    assert shortfall(registry, ONES) is None
    assert shortfall(registry, ONES, frozenset({"h2", "h3"})) is not None
    for host_id in ("h2", "h3"):
        registry.add_vm(
            VmEntry(host_id, host_id, Capacity(3.0, 1.0), VmState.RUNNING, host_id=host_id)
        )
    found = shortfall(registry, ONES)
    assert found is not None
    assert found.host_id == "h1"
    assert len(found.vms) == 2
    registry.vms["a3"].policy = registry.vms["a2"].policy = LEFT
    found = shortfall(registry, ONES)
    assert found is not None
    assert found.host_id == "h2", "3 cores go nowhere"
    assert list(found.vms) == ["h2"]


def test_the_reserve_as_if_vms_were_elsewhere() -> None:
    registry = Registry()
    for host_id in ("h1", "h2", "h3"):
        registry.hosts[host_id] = HostEntry(power_host(host_id), "gm1", 1, True, 0.0)
        vm = VmEntry(host_id, host_id, Capacity(2.0, 1.0), VmState.RUNNING, host_id=host_id)
        registry.add_vm(vm)
    gone = frozenset({"h1"})
    assert shortfall(registry, ONES, gone) is None
    found = shortfall(registry, ONES, gone, {"h1": "h2"})
    assert found is not None
    assert (found.host_id, list(found.vms)) == ("h2", ["h2"]), "h3 takes one of two"
    registry.vms["h1"].policy = LEFT
    for full, lost in (("h2", "h3"), ("h3", "h2")):
        found = shortfall(registry, ONES, gone, {"h1": full})
        assert found is not None
        assert (found.host_id, list(found.vms)) == (lost, [lost]), "the other host is full"

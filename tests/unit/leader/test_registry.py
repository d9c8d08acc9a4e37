"""The registry: finding VMs, hosts and images by what people call them."""

import math
from random import Random

import pytest
from msgspec.structs import replace

from snooze.common.api import ImageView
from snooze.common.records import HostPower
from snooze.common.vm_lifecycle import VmState
from snooze.groupmanager.leader.registry import HostEntry, Hosts, Registry, VmEntry
from tests.unit.leader.builders import SMALL, host_of

VM_ID = "0123456789abcdef0123456789abcdef"
UUID = "01234567-89ab-cdef-0123-456789abcdef"


def vm_of(vm_id: str, name: str, *, managed: bool = True, host_id: str = "h1") -> VmEntry:
    return VmEntry(vm_id, name, SMALL, VmState.RUNNING, managed=managed, host_id=host_id)


def registry_of(*vms: VmEntry) -> Registry:
    registry = Registry()
    for vm in vms:
        registry.add_vm(vm)
    return registry


@pytest.mark.parametrize("called", ["web", VM_ID, UUID])
def test_a_vm_is_found_by_name_id_and_uuid(called: str) -> None:
    vm = vm_of(VM_ID, "web")
    assert registry_of(vm).find_vm(called) is vm
    assert registry_of(vm).find_vm("other") is None


@pytest.mark.parametrize("called", ["theirs", VM_ID, f"{VM_ID}@h1"])
def test_so_is_a_domain_of_others(called: str) -> None:
    vm = vm_of(VM_ID, "theirs", managed=False)
    assert registry_of(vm).find_vm(called) is vm


def test_ours_come_first() -> None:
    ours = vm_of("1", "web")
    assert registry_of(vm_of("2", "web", managed=False), ours).find_vm("web") is ours


def test_a_name_belongs_to_who_took_it_last() -> None:
    old, new = vm_of("1", "web"), vm_of("2", "web")
    registry = registry_of(old, new)
    registry.remove_vm(old)
    assert registry.find_vm("web") is new
    registry.remove_vm(new)
    registry.remove_vm(new)
    assert not registry.names


def test_a_hostname_that_two_share_finds_none() -> None:
    registry = Registry()
    for host_id in ("h1", "h2"):
        description = replace(host_of(host_id), hostname="same")
        registry.hosts[host_id] = HostEntry(description, "gm1", 1, True, 0.0)
    assert registry.find_host("same") is None
    found = registry.find_host("h2")
    assert found is not None
    assert found.description.host_id == "h2"


@pytest.mark.parametrize(
    ("lists", "joined", "name", "has"),
    [
        (True, True, "debian.qcow2", True),
        (True, True, "debian", True),
        (True, True, "fedora", False),
        (False, True, "fedora", True),
        (True, False, "fedora", True),
    ],
)
def test_an_image_is_missing_only_if_every_host_in_reach_says_so(
    lists: bool, joined: bool, name: str, has: bool
) -> None:
    image = ImageView("debian.qcow2", "qcow2")
    description = replace(host_of("h1"), images=(image,), lists_images=lists)
    registry = Registry(hosts=Hosts({"h1": HostEntry(description, "gm1", 1, joined, 0.0)}))
    assert registry.has_image(name) is has


def test_indexes_say_what_a_look_at_everything_would_say() -> None:
    random = Random(5)
    registry = Registry()
    ids = [f"h{number}" for number in range(6)]
    for _ in range(3000):
        host_id, vm_id = random.choice(ids), f"vm{random.randrange(12)}"
        vm, host = registry.vms.get(vm_id), registry.hosts.get(host_id)
        match random.randrange(6):
            case 0:
                joined = random.random() < 0.5
                registry.hosts[host_id] = HostEntry(host_of(host_id), "gm1", 1, joined, 0.0)
            case 1 if host is not None:
                host.join(host_of(host_id), "gm2", 2, 1.0)
            case 2 if host is not None:
                host.leave(2.0)
            case 3 if host is not None:
                host.state = random.choice(list(HostPower))
                host.maintenance = random.random() < 0.3
                host.given_up, host.acquitted = random.random() < 0.5, random.random() < 0.5
                host.in_record = random.random() < 0.5
                host.reachable_s = random.choice([-math.inf, 3.0])
            case 4 if vm is None:
                registry.add_vm(VmEntry(vm_id, vm_id, SMALL, VmState.RUNNING, host_id=host_id))
            case 4 if vm is not None:
                registry.remove_vm(vm)
            case 5 if vm is not None:
                vm.host_id = random.choice(["", *ids])
                vm.doubt, vm.moving = random.choice(["", "gm1"]), random.random() < 0.3
                vm.lacks_room = random.random() < 0.5
                vm.elsewhere_s = random.choice([1.0, math.inf])
            case _:
                pass
        under_way = {key for key, vm in registry.vms.items() if vm.doubt or vm.moving}
        assert registry.vms.open.keys() == under_way
        lacking = {key for key, vm in registry.vms.items() if vm.lacks_room}
        assert registry.vms.lacking.keys() == lacking
        unsure = {key for key, vm in registry.vms.items() if vm.elsewhere_s < math.inf}
        assert registry.vms.unsure.keys() == unsure
        for each in ["", *ids]:
            expected = {vm.vm_id for vm in registry.vms.values() if vm.host_id == each}
            assert {vm.vm_id for vm in registry.vms_of_host(each)} == expected
        away = {h for h, entry in registry.hosts.items() if not entry.joined}
        assert {entry.description.host_id for entry in registry.hosts.away()} == away
        states = {HostPower.ASLEEP, HostPower.WAKING}
        asleep = {h for h, entry in registry.hosts.items() if entry.state in states}
        assert {e.description.host_id for e in registry.hosts.in_state(states)} == asleep
        assert registry.hosts.count_in(states) == len(asleep)
        awake = {e.description.host_id for e in registry.hosts.away(but=states)}
        assert awake == away - asleep
        check_where_hosts_are_looked_for(registry.hosts)


def check_where_hosts_are_looked_for(hosts: Hosts) -> None:
    away = {host_id: host for host_id, host in hosts.items() if not host.joined}
    known = {h for h, e in away.items() if e.given_up and e.acquitted and not e.in_record}
    assert hosts.unsettled.keys() == away.keys() - known
    assert hosts.suspects.keys() == {h for h, e in away.items() if e.reachable_s > -math.inf}
    odd = {h for h, e in hosts.items() if e.state is not HostPower.ACTIVE or e.maintenance}
    assert hosts.reached.keys() == odd - away.keys()
    assert hosts.odd.keys() == odd | away.keys()
    assert hosts.lately.keys() == hosts.keys(), "nobody has taken one out"


def test_the_index_of_images_follows_hosts() -> None:
    random, registry = Random(9), Registry()
    names = ["a.qcow2", "b", "c"]
    for _ in range(500):
        host_id = f"h{random.randrange(4)}"
        images = tuple(ImageView(name, "raw") for name in names if random.random() < 0.3)
        lists = random.random() < 0.9
        description = replace(host_of(host_id), images=images, lists_images=lists)
        host = registry.hosts.get(host_id)
        if host is None:
            registry.hosts[host_id] = HostEntry(description, "gm1", 1, joined=True, seen_s=0.0)
        elif random.random() < 0.5:
            host.join(description, "gm1", 2, 1.0)
        else:
            host.leave(1.0)
        joined = [h.description for h in registry.hosts.values() if h.joined]
        for name in ("a", "b", "c"):
            found = any(i.name in {name, f"{name}.qcow2"} for h in joined for i in h.images)
            unknown = not joined or any(not h.lists_images for h in joined)
            assert registry.has_image(name) is (found or unknown)


def test_an_unmanaged_vm_stays_with_its_host_in_the_index() -> None:
    registry = Registry()
    for host_id in ("h1", "h2"):
        registry.add_vm(VmEntry("a", "a", SMALL, VmState.RUNNING, managed=False, host_id=host_id))
    assert [vm.host_id for vm in registry.vms_of_host("h1")] == ["h1"]
    registry.remove_vm(registry.vms["a@h1"])
    assert list(registry.vms_of_host("h1")) == []
    assert [vm.host_id for vm in registry.vms_of_host("h2")] == ["h2"]

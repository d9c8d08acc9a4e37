"""The registry: finding VMs, hosts and images by what people call them."""

import pytest
from msgspec.structs import replace

from snooze.common.api import ImageView
from snooze.common.vm_lifecycle import VmState
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
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
    registry = Registry(hosts={"h1": HostEntry(description, "gm1", 1, joined, 0.0)})
    assert registry.has_image(name) is has

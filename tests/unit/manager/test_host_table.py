"""The table of hosts: rows that stay in step, and reservations that add up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmState
from snooze.groupmanager.manager.host_table import HostEntry, HostTable, VmEntry
from tests.unit.manager.builders import SMALL, assignment_of, host_of, report_of

ALL = np.ones(4)


def table_of(*host_ids: str) -> HostTable:
    table = HostTable()
    for host_id in host_ids:
        table.add_host(HostEntry(host_of(host_id), 1, directed=True, schedulable=True))
    return table


def vm_of(
    vm_id: str, host_id: str, state: VmState = VmState.RUNNING, demand: Capacity = SMALL
) -> VmEntry:
    return VmEntry(report_of(vm_id, state, demand), host_id, state, demand)


def test_rows_follow_the_order_of_joining() -> None:
    table = table_of("b", "a", "c")
    table.put_vm(vm_of("x", "c"))
    assert table.order == ["b", "a", "c"]
    gone = table.remove_host("a")
    assert gone == []
    assert table.order == ["b", "c"]
    assert table.capacity.shape == table.reserved.shape == (2, 4)
    assert table.reserved[:, 0].tolist() == [0.0, 1.0]
    assert table.row_of("c") == 1
    assert table.row_of("a") is None


def test_a_host_takes_its_vms_along() -> None:
    table = table_of("a", "b")
    for name in ("y", "x"):
        table.put_vm(vm_of(name, "a"))
    table.put_vm(vm_of("z", "b"))
    assert [vm.key for vm in table.remove_host("a")] == ["x", "y"]
    assert table.vms.keys() == {"z"}
    assert table.remove_host("a") == []


def test_the_version_changes_with_hosts_and_not_with_vms() -> None:
    table = table_of("a")
    before = table.version
    table.put_vm(vm_of("x", "a"))
    assert table.version == before
    table.set_leaving(table.hosts["a"], assignment_of())
    assert table.version != before


def test_a_vm_put_again_replaces_itself_wherever_it_was() -> None:
    table = table_of("a", "b")
    table.put_vm(vm_of("x", "a"))
    table.put_vm(vm_of("x", "b"))
    assert table.reserved[:, 0].tolist() == [0.0, 1.0]
    assert table.hosts["a"].vms == set()
    table.remove_vm(table.vms["x"])
    assert table.reserved.sum() == 0.0


def test_removing_what_is_not_there_changes_nothing() -> None:
    table = table_of("a")
    table.remove_vm(vm_of("x", "a"))
    assert table.reserved.sum() == 0.0


def test_unmanaged_domains_of_two_hosts_may_share_a_uuid() -> None:
    table = table_of("a", "b")
    for host_id in "ab":
        report = report_of("x", managed=False)
        table.put_vm(VmEntry(report, host_id, report.state, report.demand))
    assert table.vms.keys() == {"x@a", "x@b"}
    assert table.reserved[:, 0].tolist() == [1.0, 1.0]


def test_room_is_what_the_limit_leaves() -> None:
    table = table_of("a")
    table.put_vm(vm_of("x", "a", demand=Capacity(3.0, 1024.0)))
    assert table.fits("a", Capacity(1.0), ALL)
    assert not table.fits("a", Capacity(1.001), ALL)
    assert table.fits("a", Capacity(5.0), np.array([2.0, 1.0, 1.0, 1.0]))
    assert not table.fits("a", Capacity(1.0), np.array([0.9, 1.0, 1.0, 1.0]))
    assert table.free(ALL)[0].tolist() == [1.0, 64512.0, 100.0, 100.0]


def test_hosts_that_leave_have_nothing_to_offer_and_free_is_never_negative() -> None:
    table = table_of("a", "b")
    table.put_vm(vm_of("x", "a", demand=Capacity(9.0, 1.0)))
    table.set_leaving(table.hosts["b"], assignment_of())
    assert table.free(ALL).shape == (1, 4)
    assert table.free(ALL).min() == 0.0
    assert HostTable().free(ALL).shape == (0, 4)


@pytest.mark.parametrize("called", ["0a" * 16, "0a0a0a0a-0a0a-0a0a-0a0a-0a0a0a0a0a0a", "web"])
def test_a_vm_is_found_by_id_uuid_and_name(called: str) -> None:
    table = table_of("a")
    vm = vm_of("0a" * 16, "a")
    vm.report = report_of("0a" * 16)
    table.put_vm(vm)
    assert table.find("name-" + "0a" * 16 if called == "web" else called) is vm
    assert table.find("nobody") is None


def test_the_state_of_a_host_is_complete() -> None:
    table = table_of("a")
    table.put_vm(vm_of("y", "a", VmState.PAUSED))
    table.put_vm(vm_of("x", "a"))
    state = table.state_of("a")
    assert state.epoch == 1
    assert [(vm.vm_id, vm.state, vm.host_id) for vm in state.vms] == [
        ("x", VmState.RUNNING, "a"),
        ("y", VmState.PAUSED, "a"),
    ]


def test_what_a_host_has_lost_since_it_was_told_of() -> None:
    table = table_of("a")
    table.put_vm(vm_of("x", "a"))
    theirs = report_of("y", managed=False)
    table.put_vm(VmEntry(theirs, "a", theirs.state, theirs.demand))
    told = table.state_of("a")
    table.put_vm(vm_of("z", "a"))
    assert not table.is_outdated(told, "a"), "what is new is told by itself"
    assert table.is_outdated(None, "a")
    table.remove_vm(table.vms["y@a"])
    assert table.is_outdated(told, "a")
    again = table.state_of("a")
    table.hosts["a"].epoch += 1
    assert table.is_outdated(again, "a"), "it has joined anew"


deeds = st.lists(
    st.tuples(
        st.sampled_from(["put", "remove", "state", "demand", "host"]),
        st.sampled_from("xyz"),
        st.sampled_from("abc"),
        st.sampled_from(list(VmState)),
        st.sampled_from([1.0, 2.0, 3.0]),
    ),
    max_size=40,
)


@given(deeds)
def test_reservations_are_always_the_sum_of_what_holds_room(
    steps: list[tuple[str, str, str, VmState, float]],
) -> None:
    table = table_of("a", "b", "c")
    for deed, vm_id, host_id, state, cores in steps:
        vm = table.vms.get(vm_id)
        if deed == "host":
            table.remove_host(host_id)
            table.add_host(HostEntry(host_of(host_id), 1, directed=True, schedulable=True))
        elif deed == "put":
            table.put_vm(vm_of(vm_id, host_id, state, Capacity(cores, 100.0 * cores)))
        elif vm is None:
            continue
        elif deed == "remove":
            table.remove_vm(vm)
        elif deed == "state":
            table.set_state(vm, state)
        else:
            table.set_demand(vm, Capacity(cores, 100.0 * cores))
        for name in table.order:
            held = [v.demand.cpu_cores for v in table.vms_on(name) if v.state in HOLDS_CAPACITY]
            assert table.reserved_on(name).cpu_cores == sum(held)
        assert set(table.vms) == {key for host in table.hosts.values() for key in host.vms}

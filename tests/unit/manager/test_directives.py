"""What the leader says of hosts: nothing is placed before it, stale copies go first."""

import msgspec
import pytest

from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmReport
from snooze.common.wire import DiscardVm, HostHello, OrderDone, StaleCopy
from snooze.groupmanager.manager.manager_events import CloseHost, HostJoined, OrderHost
from tests.unit.manager.builders import REFUSED, Desk, host_of, only, report_of, spec_of, told


def old(vm_id: str, state: VmState = VmState.STOPPED, generation: int = 1) -> VmReport:
    return msgspec.structs.replace(report_of(vm_id, state), generation=generation)


def test_a_host_takes_nothing_before_the_leader_has_spoken_of_it() -> None:
    desk = Desk(hosts=0)
    desk.feed(HostJoined(HostHello(host_of("h1"), [], 10)))
    placed, orders = desk.place(spec_of("a"))
    assert (placed[0].host_id, orders) == ("", [])
    assert not len(desk.table.free(desk.core.limit))
    desk.direct("h1", epoch=9)
    assert desk.place(spec_of("a"))[1] == [], "that was of an earlier joining"
    desk.direct("h1")
    assert len(desk.place(spec_of("a"))[1]) == 1


def test_a_stale_copy_is_discarded_before_the_host_takes_anything() -> None:
    desk = Desk(hosts=0)
    desk.join("h1", old("a"))
    order = only(OrderHost, desk.direct("h1", StaleCopy("a", 1)))
    assert isinstance(order.order, DiscardVm)
    assert (order.order.vm_id, order.order.generation) == ("a", 1)
    assert desk.place(spec_of("b"))[1] == []
    (status,) = told(desk.answer(order, OrderDone()))
    assert (status.host_id, status.state, status.generation) == ("h1", VmState.DESTROYED, 1)
    assert "a" not in desk.table.vms
    assert len(desk.place(spec_of("b"))[1]) == 1


def test_a_copy_that_does_not_go_is_ordered_off_again_and_then_the_host_has_to_join_anew() -> None:
    desk = Desk(hosts=0)
    desk.join("h1", old("a"))
    effects = desk.direct("h1", StaleCopy("a", 1))
    for _ in range(5):
        effects = desk.answer(only(OrderHost, effects), REFUSED)
    assert only(CloseHost, effects).host_id == "h1"


def test_a_directive_that_is_repeated_orders_nothing_twice() -> None:
    desk = Desk(hosts=0)
    desk.join("h1", old("a"))
    assert only(OrderHost, desk.direct("h1", StaleCopy("a", 1)))
    assert desk.direct("h1", StaleCopy("a", 1)) == []


def test_of_two_domains_of_one_vm_the_one_that_runs_is_the_vm_until_the_leader_speaks() -> None:
    desk = Desk()
    desk.run("a")
    desk.join("h3", old("a", VmState.STOPPED, 3))
    assert (desk.vm("a").host_id, desk.vm("a").report.generation) == ("h1", 1)
    assert [s.generation for s in desk.table.state_of("h3").vms] == [3], "the leader hears of both"
    order = only(OrderHost, desk.direct("h1", StaleCopy("a", 1)))
    desk.answer(order, OrderDone())
    assert (desk.vm("a").host_id, desk.vm("a").report.generation) == ("h3", 3)


def test_of_two_that_are_off_the_higher_generation_is_the_vm() -> None:
    desk = Desk(hosts=0)
    desk.join("h1", old("a", VmState.STOPPED, 1))
    desk.join("h2", old("a", VmState.STOPPED, 2))
    assert (desk.vm("a").host_id, desk.table.hosts["h1"].copies["a"].report.generation) == ("h2", 1)


@pytest.mark.parametrize("state", [VmState.STOPPED, VmState.RUNNING])
def test_a_copy_that_is_being_discarded_does_not_take_over_unless_it_runs(state: VmState) -> None:
    """It was told as the VM, and was gone the next moment (seed 820102)."""
    desk = Desk()
    desk.run("a", "h1")
    desk.join("h2", old("a", state, 0), epoch=11)
    order = only(OrderHost, desk.direct("h2", StaleCopy("a", 0), epoch=11))
    desk.answer(only(OrderHost, desk.direct("h1", StaleCopy("a", 1))), OrderDone())
    assert ("a" in desk.table.vms) is (state is VmState.RUNNING)
    (status,) = told(desk.answer(order, OrderDone()))
    assert (status.host_id, status.state, status.discarded) == ("h2", VmState.DESTROYED, True)


def test_a_lower_generation_is_a_copy_and_does_not_hide_the_vm() -> None:
    desk = Desk()
    desk.join("h1", old("a", VmState.RUNNING, 2), epoch=11)
    desk.join("h2", old("a", VmState.STOPPED, 1), epoch=11)
    assert (desk.vm("a").host_id, desk.state("a")) == ("h1", VmState.RUNNING)
    order = only(OrderHost, desk.direct("h2", StaleCopy("a", 1), epoch=11))
    desk.answer(order, OrderDone())
    assert (desk.vm("a").host_id, desk.state("a")) == ("h1", VmState.RUNNING)


def test_a_restart_is_no_repeat_of_the_life_before() -> None:
    desk = Desk(hosts=0)
    desk.join("h1", old("a"))
    desk.join("h2")
    again = msgspec.structs.replace(spec_of("a"), generation=2)
    placed, orders = desk.place(again)
    assert placed[0].host_id in {"h1", "h2"}
    assert len(orders) == 1
    assert desk.vm("a").report.generation == 2


def test_a_host_in_maintenance_takes_nothing() -> None:
    desk = Desk(hosts=1)
    desk.direct("h1", schedulable=False)
    assert desk.place(spec_of("a"))[1] == []

"""What managers ask their leader: which of the VMs that they await will not come any more."""

import msgspec

from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import AskMoving, ManagerRequest, ManagerWelcome
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.manager_links import ManagerLinks
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from tests.unit.leader.builders import SMALL, host_of, manager_of


async def unasked(_request: ManagerRequest) -> msgspec.Struct:
    raise AssertionError


def test_what_a_host_in_reach_has_and_does_not_move_is_not_on_its_way() -> None:
    registry = Registry()
    registry.managers["gm"] = ManagerEntry(manager_of("gm"), 0.0)
    for name, joined in (("here", True), ("away", False)):
        registry.hosts[name] = HostEntry(host_of(name), "gm", 1, joined, 0.0)

    def add(vm_id: str, state: VmState, host_id: str, *, moving: bool = False) -> None:
        vm = VmEntry(vm_id, vm_id, SMALL, state, host_id=host_id, was=state)
        vm.moving = moving
        registry.add_vm(vm)

    add("runs", VmState.RUNNING, "here")
    add("halted", VmState.PAUSED, "here")
    add("moves", VmState.MIGRATING, "here", moving=True)
    add("lost", VmState.UNREACHABLE, "")
    add("away", VmState.RUNNING, "away")

    links = ManagerLinks(
        registry,
        ManagerWelcome("gl", 1),
        answer=unasked,
        joined=lambda _hello: None,
        noticed=lambda _manager, _notice: None,
        left=lambda _manager, _reason: None,
    )
    asked = ["runs", "halted", "moves", "lost", "away", "gone"]
    assert links.not_moving(AskMoving(asked)).vm_ids == ["runs", "halted", "gone"]

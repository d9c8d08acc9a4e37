"""Who took part in an overload and who could not be moved: in the records, and told to managers."""

from snooze.common import records
from snooze.common.clock import SystemClock
from snooze.common.coordination.port import Operation, Put
from snooze.common.records import VmRecord
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import Held
from snooze.groupmanager.leader.holds import Holds
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.recovery_core import RecoveryCore
from snooze.groupmanager.leader.recovery_events import Direct, HostHeard
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from tests.unit.leader.builders import SMALL, host_of, manager_of


class Desk:
    """``h1`` of ``gm1`` with a VM; what is written and who is told."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.clock = SystemClock()
        self.registry.managers["gm1"] = ManagerEntry(manager_of("gm1"), 0.0)
        self.registry.hosts["h1"] = HostEntry(host_of("h1"), "gm1", 1, True, 0.0)
        self.vm = VmEntry("a", "a", SMALL, VmState.RUNNING, host_id="h1")
        self.vm.recorded = (VmState.RUNNING, "h1", 1)
        self.registry.add_vm(self.vm)
        self.written: list[Operation] = []
        self.hosts: list[str] = []
        self.told: list[str] = []
        self.holds = Holds(
            self.registry,
            self.clock,
            self.written.extend,
            self.hosts.append,
            self.told.append,
        )


def test_a_vm_that_could_not_be_moved_is_written_once_its_state_is_settled() -> None:
    desk = Desk()
    desk.vm.state = VmState.MIGRATING
    desk.holds.noted(Held(vms=("a", "unknown")))
    assert desk.written == [], "the record says where it was before"
    desk.vm.state = VmState.RUNNING
    desk.holds.tick()
    desk.holds.tick()
    [put] = desk.written
    assert isinstance(put, Put)
    assert records.decode(put.data, VmRecord).stuck_ms == desk.vm.stuck_ms > 0
    desk.holds.stuck("a")
    assert desk.told == ["h1"], "its manager does not know yet"


def test_hosts_of_an_overload_are_recorded_and_the_next_manager_hears_of_all() -> None:
    desk = Desk()
    desk.holds.noted(Held(hosts=("h1", "unknown"), vms=("a",)))
    assert (desk.hosts, desk.told) == (["h1"], [])
    assert desk.registry.hosts["h1"].record().relieved_ms > 0
    desk.holds.relieved(("h1",))
    assert desk.told == ["h1"]
    core = RecoveryCore(
        desk.registry,
        0.0,
        lease_s=30.0,
        margin_s=10.0,
        fence_after_s=1.0,
        patience_s=30.0,
        storm_share=0.5,
        reboot_fenced=True,
        is_controllable=lambda host: False,
    )
    effects = core.handle(HostHeard("gm1", ["h1"], desk.clock.wall_ms() + 5000), 1.0)
    [direct] = [each for each in effects if isinstance(each, Direct)]
    [directive] = direct.directives
    assert directive.relieved_ago_s is not None
    assert 4.9 < directive.relieved_ago_s < 60.0
    [stuck] = directive.stuck
    assert (stuck.vm_id, round(stuck.ago_s) >= 5) == ("a", True)


def test_a_host_that_took_part_long_ago_and_one_that_never_did() -> None:
    desk = Desk()
    assert desk.registry.hosts["h1"].record().relieved_ms == 0
    entry = HostEntry.of_record(desk.registry.hosts["h1"].record(), 0.0, 0.0)
    assert entry.relieved_ms == 0

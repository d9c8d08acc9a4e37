"""VMs that a migration left paused, and whose manager died: they go on if nobody else has them."""

import msgspec
import pytest

from snooze.common.records import HostPower
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import StaleCopy, VmStatus
from snooze.groupmanager.leader.recovery_core import RecoveryCore
from snooze.groupmanager.leader.recovery_events import Direct, HostHeard
from snooze.groupmanager.leader.registry import Down
from snooze.groupmanager.leader.submission_events import StartThere, SubmissionEffect
from snooze.groupmanager.leader.submission_halted_core import AGAIN_S, HALT_S
from tests.unit.leader.builders import Desk, status_of


def halted(host_id: str = "gm1-host", *, by_migration: bool = True) -> VmStatus:
    status = status_of("a", VmState.PAUSED, host_id)
    return msgspec.structs.replace(status, halted=by_migration)


class Ward(Desk):
    """A VM that ran on the first of two managers' hosts."""

    def __init__(self) -> None:
        super().__init__("gm1", "gm2")
        self.run("a")
        self.vm = self.registry.vms["a"]

    def resumed(self, seconds: float) -> list[SubmissionEffect]:
        return [e for e in self.tick(seconds) if isinstance(e, StartThere)]


GOES_ON = StartThere("gm1", "a", "gm1-host", resume=True)


def test_it_goes_on_where_it_is_and_is_asked_again_if_it_does_not() -> None:
    ward = Ward()
    ward.reported("gm1", halted())
    assert ward.resumed(HALT_S - 0.1) == []
    assert ward.tick(1.0, settled=False) == [], "managers have not all joined yet"
    assert ward.resumed(0.0) == [GOES_ON]
    assert ward.resumed(AGAIN_S - 0.1) == []
    assert ward.resumed(0.2) == [GOES_ON]
    ward.reported("gm1", status_of("a", VmState.RUNNING, "gm1-host"))
    assert ward.resumed(10 * AGAIN_S) == []


def test_one_that_a_person_paused_stays_so() -> None:
    ward = Ward()
    ward.reported("gm1", halted(by_migration=False))
    assert ward.resumed(HALT_S) == []
    ward.reported("gm1", halted())
    ward.reported("gm1", halted(by_migration=False))
    assert ward.resumed(HALT_S) == [], "it was, and then a person said so"


def test_while_its_manager_sees_to_it_it_waits() -> None:
    ward = Ward()
    ward.reported("gm1", halted())
    ward.vm.moving = True
    assert ward.resumed(HALT_S) == []
    ward.vm.moving = False
    assert ward.resumed(0.0) == [GOES_ON]


@pytest.mark.parametrize("proof", ["none", "lease", "everything", "asleep", "back"])
def test_a_host_out_of_reach_may_have_it_unless_that_is_disproven(proof: str) -> None:
    ward = Ward()
    other = ward.registry.hosts["gm2-host"]
    ward.lose_host("gm2-host")
    ward.reported("gm1", halted())
    assert ward.resumed(HALT_S) == []
    match proof:
        case "lease":
            other.down = Down.FENCED  # the VM is highly available by default
        case "everything":
            other.down = Down.EVERYTHING
        case "asleep":
            other.state = HostPower.ASLEEP
        case "back":
            ward.rejoin_host("gm2-host", "gm2")
        case _:
            pass
    assert bool(ward.resumed(0.0)) is (proof != "none")


def test_of_two_that_wait_one_goes_and_the_other_goes_on() -> None:
    """Both sides paused: each is the whole guest, of the same instant."""
    ward = Ward()
    ward.reported("gm1", halted())
    ward.reported("gm2", halted("gm2-host"))
    vm_host = ward.vm.host_id
    copy_host = "gm2-host" if vm_host == "gm1-host" else "gm1-host"
    assert ward.registry.copies[copy_host].keys() == {"a"}
    assert ward.resumed(HALT_S) == []
    recovery = RecoveryCore(ward.registry, 0.0)
    manager_id = copy_host.removesuffix("-host")
    (direct,) = recovery.handle(HostHeard(manager_id, (copy_host,), 0), 0.0)
    assert isinstance(direct, Direct)
    assert direct.directives[0].stale == (StaleCopy("a", 1, only_off=False),)
    ward.reported(manager_id, status_of("a", VmState.DESTROYED, copy_host))
    assert ward.registry.copies == {}
    [resumed] = ward.resumed(0.0)
    assert isinstance(resumed, StartThere)
    assert (resumed.host_id, resumed.resume) == (vm_host, True)


def test_one_that_is_gone_is_forgotten() -> None:
    ward = Ward()
    ward.reported("gm1", halted())
    ward.reported("gm1", status_of("a", VmState.DESTROYED, "gm1-host"))
    assert ward.resumed(HALT_S) == []
    assert ward.core.halted == {}

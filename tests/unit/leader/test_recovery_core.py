"""Lost hosts rule by rule: suspects, proofs, fencing, what a host that is back is told."""

from typing import TypeVar

import msgspec
import pytest

from snooze.common.decisions import DecisionState
from snooze.common.records import HostPower
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import FailureAction, VmPolicy
from snooze.common.wire import PowerDescription, StaleCopy, VmStatus
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.membership_core import RecordHost
from snooze.groupmanager.leader.recovery_core import SWITCHED_ON, RecoveryCore
from snooze.groupmanager.leader.recovery_events import (
    AnswerPerson,
    AskPower,
    ConfirmDead,
    Direct,
    DirectiveLost,
    HostHeard,
    HostProven,
    PowerAnswered,
    PowerOutcome,
    RecoveryEffect,
    RecoveryEvent,
    Redirect,
    SwitchOn,
    Ticked,
)
from snooze.groupmanager.leader.registry import Down, HostEntry, Registry, VmEntry
from snooze.groupmanager.leader.submission_events import Decided
from tests.unit.leader.builders import SMALL, host_of, manager_of, must_replay

E = TypeVar("E")
BMC = PowerDescription("IPMI", "-H 10.0.0.9")


class House:
    """A recovery core with hosts ``h1`` to ``h4``, a VM on each."""

    def __init__(self, *, power: bool = True, lease_s: float = 0.0, hosts: int = 4) -> None:
        self.now_s = 1000.0
        self.registry = Registry()
        self.registry.managers["gm"] = ManagerEntry(manager_of("gm"), 0.0)
        for number in range(1, hosts + 1):
            description = msgspec.structs.replace(
                host_of(f"h{number}"), power=BMC if power else PowerDescription(), lease_s=lease_s
            )
            self.registry.hosts[f"h{number}"] = HostEntry(description, "gm", 1, True, 0.0)
            self.vm(f"vm{number}", f"h{number}")
        self.core = RecoveryCore(
            self.registry, 1000.0, lease_s=30.0, margin_s=10.0, fence_after_s=1.0, patience_s=30.0
        )
        self.attempts: dict[str, int] = {}

    def vm(self, vm_id: str, host_id: str, policy: VmPolicy | None = None) -> VmEntry:
        vm = VmEntry(vm_id, vm_id, SMALL, VmState.RUNNING, host_id=host_id, was=VmState.RUNNING)
        vm.policy = policy or vm.policy
        self.registry.add_vm(vm)
        return vm

    def feed(self, event: RecoveryEvent) -> list[RecoveryEffect]:
        effects = self.core.handle(event, self.now_s)
        must_replay(effects)
        for effect in effects:
            if isinstance(effect, AskPower):
                self.attempts[effect.host_id] = effect.attempt
        return effects

    def wait(self, seconds: float) -> list[RecoveryEffect]:
        self.now_s += seconds
        return self.feed(Ticked(round(self.now_s * 1000)))

    def lose(self, host_id: str, *, silent: bool = True) -> None:
        self.registry.hosts[host_id].leave(self.now_s, silent=silent)

    def answer(self, host_id: str, outcome: PowerOutcome, said: str = "") -> list[RecoveryEffect]:
        return self.feed(PowerAnswered(host_id, self.attempts[host_id], outcome, said, 1))

    def host(self, host_id: str) -> HostEntry:
        return self.registry.hosts[host_id]

    def waits_for(self, host_id: str) -> str:
        return self.core.waits_for(self.host(host_id), self.now_s)


def of(kind: type[E], effects: list[RecoveryEffect]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def test_a_host_in_reach_is_left_alone() -> None:
    assert House().wait(1000.0) == []


def test_a_silent_host_is_switched_off_and_proven_by_what_is_read_back() -> None:
    house = House()
    house.lose("h1")
    assert of(AskPower, house.wait(0.5)) == []
    (ask,) = of(AskPower, house.wait(0.6))
    assert (ask.host_id, ask.off) == ("h1", True)
    assert house.host("h1").fencing, "it gets no manager meanwhile"
    effects = house.answer("h1", PowerOutcome.OFF)
    assert of(HostProven, effects) == [HostProven("h1", "bmc")]
    assert of(SwitchOn, effects) == [SwitchOn("h1")]
    host = house.host("h1")
    assert (host.down, host.state, host.fencing) == (Down.EVERYTHING, HostPower.FENCED, False)
    assert of(Decided, effects)[-1].state is DecisionState.DONE
    assert of(AskPower, house.wait(100.0)) == [], "nothing is left to prove"


def test_a_host_whose_link_was_closed_is_asked_at_once_and_switched_off_late() -> None:
    house = House()
    house.lose("h1", silent=False)
    (ask,) = of(AskPower, house.wait(1.1))
    assert not ask.off, "its machine may be well"
    assert not house.host("h1").fencing
    house.answer("h1", PowerOutcome.ON)
    assert of(AskPower, house.wait(10.0)) == []
    (ask,) = of(AskPower, house.wait(19.0))
    assert ask.off


def test_already_off_counts() -> None:
    house = House()
    house.lose("h1", silent=False)
    house.wait(1.1)
    assert of(HostProven, house.answer("h1", PowerOutcome.OFF))


@pytest.mark.parametrize("outcome", [PowerOutcome.SILENT, PowerOutcome.REFUSED, PowerOutcome.ON])
def test_anything_but_off_proves_nothing_and_is_tried_again_with_growing_pauses(
    outcome: PowerOutcome,
) -> None:
    house = House()
    house.lose("h1")
    house.wait(1.1)
    pauses: list[float] = []
    for _ in range(4):
        assert of(HostProven, house.answer("h1", outcome)) == []
        assert not house.host("h1").fencing
        waited_s = 0.0
        while not of(AskPower, house.wait(0.5)):
            waited_s += 0.5
            assert waited_s < 100.0
        pauses.append(waited_s)
    assert house.host("h1").down is None
    assert pauses == sorted(pauses)
    assert pauses[-1] > pauses[0]


def test_an_answer_is_not_heard_once_the_host_has_shown_life() -> None:
    house = House()
    house.lose("h1")
    house.wait(1.1)
    house.host("h1").seen_s = house.now_s  # it asks for a manager
    assert of(HostProven, house.answer("h1", PowerOutcome.OFF)) == []
    assert house.host("h1").down is None


def test_an_answer_for_a_host_that_is_back_only_ends_the_fencing() -> None:
    house = House()
    house.lose("h1")
    house.wait(1.1)
    host = house.host("h1")
    host.join(host.description, "gm", 2, house.now_s)
    house.wait(0.1)
    assert of(HostProven, house.answer("h1", PowerOutcome.OFF)) == []
    assert not host.fencing


def test_a_lease_is_proof_for_highly_available_vms_only_and_not_early() -> None:
    house = House(power=False, lease_s=2.0)
    house.lose("h1")
    assert of(HostProven, house.wait(41.9)) == []
    assert of(HostProven, house.wait(0.2)) == [HostProven("h1", "lease")]
    assert house.host("h1").down is Down.FENCED
    ha, other = house.registry.vms["vm1"], house.vm("x", "h1", VmPolicy(FailureAction.ASK))
    assert house.host("h1").is_off_for(ha)
    assert not house.host("h1").is_off_for(other)


def test_without_a_lease_and_a_controller_nothing_is_ever_proven() -> None:
    house = House(power=False)
    house.lose("h1")
    assert of(HostProven, house.wait(1e6)) == []
    assert house.waits_for("h1").endswith(
        "no power controller to ask; its VMs wait for a person: snooze host confirm-dead name-h1"
    )


def test_what_the_vms_of_a_lost_host_wait_for_is_said() -> None:
    house = House(lease_s=30.0)
    assert house.waits_for("h1") == ""
    house.lose("h1")
    house.wait(1.1)
    house.answer("h1", PowerOutcome.SILENT, "no answer")
    house.wait(8.9)
    assert house.waits_for("h1") == (
        "host name-h1 has a power controller that does not answer: that proves nothing (no answer)"
        "; its VMs wait for its power controller to read off, or its lease to run out (60 s), or a "
        "person: snooze host confirm-dead name-h1"
    )
    house.wait(61.0)
    assert "lease" not in house.waits_for("h1"), "it did, for highly available VMs"
    house.answer("h1", PowerOutcome.OFF)
    assert house.waits_for("h1") == ""


def test_a_new_leader_counts_from_its_own_beginning() -> None:
    house = House(power=False, lease_s=2.0)
    house.lose("h1")
    house.core.started_s = house.now_s + 5.0
    assert of(HostProven, house.wait(42.1)) == []
    assert of(HostProven, house.wait(5.0))


def test_a_person_is_believed_of_a_host_that_is_away_only() -> None:
    house = House(power=False)
    (refused,) = of(AnswerPerson, house.feed(ConfirmDead(1, "h1", 1)))
    assert refused.error is not None
    house.lose("h1")
    effects = house.feed(ConfirmDead(2, "h1", 1))
    assert of(HostProven, effects) == [HostProven("h1", "person")]
    assert of(AnswerPerson, effects)[0].error is None
    assert of(SwitchOn, effects) == []
    assert of(RecordHost, effects)


def test_hosts_without_a_vm_to_bring_back_are_not_switched_off() -> None:
    house = House()
    house.registry.vms["vm1"].policy = VmPolicy(FailureAction.LEAVE)
    house.registry.vms["vm2"].was = VmState.STOPPED
    house.lose("h1")
    house.lose("h2")
    assert of(AskPower, house.wait(100.0)) == []


def test_sleeping_hosts_are_not_watched() -> None:
    house = House()
    house.host("h1").state = HostPower.ASLEEP
    house.lose("h1")
    assert of(AskPower, house.wait(100.0)) == []


def test_in_a_storm_no_host_is_switched_off_but_all_are_asked() -> None:
    house = House()
    for host_id in ("h1", "h2", "h3"):
        house.lose(host_id)
    asked = of(AskPower, house.wait(1.1))
    assert [ask.off for ask in asked] == [False] * 3
    assert of(HostProven, house.answer("h1", PowerOutcome.OFF)), "what is off is off"
    house.answer("h2", PowerOutcome.ON)
    house.answer("h3", PowerOutcome.ON)
    again = of(AskPower, house.wait(5.0))
    assert {ask.host_id for ask in again if ask.off} == {"h2", "h3"}, "two of four are no storm"


@pytest.mark.parametrize("state", [HostPower.FAILED, HostPower.FENCED])
def test_hosts_that_failed_to_wake_or_were_fenced_make_no_storm(state: HostPower) -> None:
    """A new leader, too, finds them away, and knows of no proof but their state."""
    house = House(hosts=6)
    for host_id in ("h4", "h5", "h6"):
        house.lose(host_id)
        house.host(host_id).state = state
        house.registry.vms.pop(f"vm{host_id[1:]}")
    house.lose("h1")
    house.wait(1.1)
    house.answer("h1", PowerOutcome.ON)
    assert [ask.off for ask in of(AskPower, house.wait(5.0))] == [True]


def test_a_fenced_host_that_is_fenced_as_it_boots_is_switched_on_again_a_few_times() -> None:
    """Found in virtual time, seed 20995: it stayed off, and nobody was told to see to it."""
    house = House()
    house.lose("h1")
    house.wait(1.1)
    for _ in range(SWITCHED_ON):
        assert of(SwitchOn, house.answer("h1", PowerOutcome.OFF))
        house.host("h1").down = None  # a new leader does not take the record for a proof
        house.wait(2.0)
    assert of(SwitchOn, house.answer("h1", PowerOutcome.OFF)) == []


def test_a_host_that_joins_is_told_its_stale_copies_before_anything_else() -> None:
    house = House()
    vm = house.registry.vms["vm1"]
    vm.generation, vm.host_id = 2, "h2"
    house.registry.copies["h1"] = {
        "vm1": VmStatus("vm1", "vm1", VmState.STOPPED, Capacity(), "h1", generation=1)
    }
    (told,) = of(Direct, house.feed(HostHeard("gm", ["h1", "h2"], 1)))
    assert told.manager_id == "gm"
    stale = {directive.host_id: directive.stale for directive in told.directives}
    assert stale == {"h1": (StaleCopy("vm1", 1),), "h2": ()}


def test_a_copy_whose_vm_is_nowhere_is_left_and_told_of_once_it_is_somewhere() -> None:
    house = House()
    vm = house.registry.vms["vm1"]
    vm.generation, vm.host_id, vm.state = 2, "", VmState.PENDING
    house.registry.copies["h1"] = {
        "vm1": VmStatus("vm1", "vm1", VmState.STOPPED, Capacity(), "h1", generation=1)
    }
    (told,) = of(Direct, house.feed(HostHeard("gm", ["h1"], 1)))
    assert told.directives[0].stale == ()
    vm.doubt = "gm"  # under way to somewhere
    (told,) = of(Direct, house.wait(0.3))
    assert told.directives[0].stale == (StaleCopy("vm1", 1),)
    assert of(Direct, house.wait(0.3)) == []


def test_the_copy_of_a_vm_that_is_gone_is_stale() -> None:
    house = House()
    house.registry.remove_vm(house.registry.vms["vm1"])
    house.registry.graves["vm1"] = 2
    house.registry.copies["h1"] = {
        "vm1": VmStatus("vm1", "vm1", VmState.STOPPED, Capacity(), "h1", generation=2)
    }
    (told,) = of(Direct, house.feed(HostHeard("gm", ["h1"], 1)))
    assert told.directives[0].stale == (StaleCopy("vm1", 2),)


def test_a_directive_that_was_lost_is_given_again() -> None:
    house = House()
    house.feed(HostHeard("gm", ["h1"], 1))
    house.feed(DirectiveLost(["h1"]))
    assert of(Direct, house.wait(0.3))
    assert of(Direct, house.wait(0.3)) == []


def test_maintenance_is_told_at_once() -> None:
    house = House()
    house.host("h1").maintenance = True
    (told,) = of(Direct, house.feed(Redirect("h1")))
    assert not told.directives[0].schedulable


def test_a_fenced_host_that_is_back_is_active_in_the_record() -> None:
    house = House()
    host = house.host("h1")
    host.state, host.tries, host.note = HostPower.FENCED, 1, "was off"
    (record,) = of(RecordHost, house.feed(HostHeard("gm", ["h1"], 7)))
    assert (record.record.state, record.record.tries, record.record.note) == (
        HostPower.ACTIVE,
        0,
        "",
    )

"""Which loose disks are ordered away, and which never."""

import pytest

from snooze.common.errors import Conflict, ErrorReport
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import LooseDisk
from snooze.groupmanager.leader.membership_core import Announce
from snooze.groupmanager.leader.orphan_disks_core import (
    LOOK_S,
    MAX_UNDER_WAY,
    RETRY_S,
    Drop,
    Dropped,
    OrphanDiskCore,
    OrphanEffect,
    Ticked,
    Told,
    Verdict,
)
from snooze.groupmanager.leader.registry import HostEntry, Plan, Registry, VmEntry
from tests.unit.leader.builders import SMALL, host_of

GRACE_S = 100.0
NOW_MS = 1_000_000_000
OLD_MS = NOW_MS - int(GRACE_S * 1000)


class Desk:
    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.registry = Registry()
        for host_id in ("a", "b"):
            host = HostEntry(host_of(host_id), "m", 1, joined=True, seen_s=0.0)
            self.registry.hosts[host_id] = host
        self.core = OrphanDiskCore(self.registry, grace_s)
        self.now_s = 0.0

    def vm(self, vm_id: str, host_id: str, generation: int, **more: object) -> VmEntry:
        state = more.pop("state", VmState.RUNNING)
        entry = VmEntry(vm_id, vm_id, SMALL, state, generation=generation, host_id=host_id, **more)  # type: ignore[arg-type]
        self.registry.add_vm(entry)
        return entry

    def tell(self, *disks: LooseDisk, host_id: str = "a") -> None:
        assert self.core.handle(Told(host_id, disks), self.now_s) == []

    def tick(self, *, settled: bool = True, now_ms: int = NOW_MS) -> list[OrphanEffect]:
        self.now_s += LOOK_S
        return self.core.handle(Ticked(now_ms, settled), self.now_s)

    def let_grace_pass(self) -> None:
        """All that is told by now has been an orphan for long enough."""
        self.tick()
        self.now_s += GRACE_S

    def drops(self) -> list[str]:
        return [effect.disk.vm_id for effect in self.tick() if isinstance(effect, Drop)]


def disk(vm_id: str, generation: int = 1, host_id: str = "a", changed: int = OLD_MS) -> LooseDisk:
    return LooseDisk(vm_id, generation, host_id, changed, 4096)


def test_verdicts() -> None:
    desk = Desk()
    desk.registry.graves.update(gone=2)
    desk.vm("moved-on", "b", 2)
    desk.vm("same", "b", 1)
    desk.vm("off", "b", 2, state=VmState.STOPPED)
    desk.vm("lost", "b", 2, state=VmState.UNREACHABLE)
    desk.vm("moving", "b", 2, moving=True)
    desk.vm("planned", "b", 2, plan=Plan.WANTED)
    desk.vm("here", "a", 2)
    verdicts = {
        "gone": Verdict.GONE,
        "moved-on": Verdict.ELSEWHERE,
        "stranger": Verdict.UNKNOWN,
        **dict.fromkeys(
            ("same", "off", "lost", "moving", "planned", "here"),
            Verdict.NEEDED,
        ),
    }
    for vm_id, verdict in verdicts.items():
        assert desk.core.verdict("a", disk(vm_id)) is verdict, vm_id
    assert desk.core.verdict("a", disk("gone", generation=3)) is Verdict.UNKNOWN
    assert desk.core.verdict("a", disk("gone", generation=0)) is Verdict.UNKNOWN, "no note"
    assert desk.core.verdict("b", disk("gone")) is Verdict.GONE, "whoever sees it"
    assert desk.core.verdict("b", disk("moved-on")) is Verdict.NEEDED, "its own host may say so"
    desk.registry.hosts["b"].joined = False
    assert desk.core.verdict("a", disk("moved-on")) is Verdict.NEEDED, "not seen there now"


def test_only_what_is_proven_goes_and_after_its_grace() -> None:
    desk = Desk()
    desk.registry.graves.update(gone=1, fresh=1)
    desk.vm("same", "b", 1)
    fresh = disk("fresh", changed=OLD_MS + 1)
    desk.tell(disk("gone"), fresh, disk("stranger"), disk("same"))
    assert desk.tick(settled=False) == []
    effects = desk.tick()
    told = [e.subject for e in effects if isinstance(e, Announce)]
    assert told == ["gone", "fresh", "stranger"], "what is needed is no news"
    assert len(effects) == 3, "it was old when it was found: that is no grace"
    desk.now_s += GRACE_S
    assert desk.drops() == ["gone"]
    assert desk.tick() == [], "it is under way, and all is said"
    [removed] = desk.core.handle(Dropped("a", disk("gone")), desk.now_s)
    assert isinstance(removed, Announce)
    assert removed.kind == "disk.removed"
    assert desk.core.removed == 1
    desk.tell(fresh)
    desk.tick(now_ms=NOW_MS + 1)
    assert desk.core.under_way == {"fresh"}


def test_nothing_goes_without_a_grace_time() -> None:
    desk = Desk(grace_s=0.0)
    desk.registry.graves.update(gone=1)
    desk.tell(disk("gone"))
    assert not [e for e in desk.tick() if isinstance(e, Drop)]


def test_one_that_many_hosts_see_is_ordered_away_once() -> None:
    desk = Desk()
    desk.registry.graves.update(gone=1)
    desk.tell(disk("gone", host_id="dead"))
    desk.tell(disk("gone", host_id="dead"), host_id="b")
    desk.let_grace_pass()
    assert desk.drops() == ["gone"]


def test_a_refusal_is_asked_again_later() -> None:
    desk = Desk()
    desk.registry.graves.update(gone=1)
    desk.tell(disk("gone"))
    desk.let_grace_pass()
    assert desk.drops() == ["gone"]
    refused = ErrorReport.of(Conflict("it changed"))
    assert desk.core.handle(Dropped("a", disk("gone"), refused), desk.now_s) == []
    assert desk.drops() == []
    desk.now_s += RETRY_S
    assert desk.drops() == ["gone"]


def test_the_grace_begins_anew_when_its_vm_may_use_it_again() -> None:
    desk = Desk()
    vm = desk.vm("vm", "b", 2)
    desk.tell(disk("vm"))
    desk.let_grace_pass()
    vm.state = VmState.UNREACHABLE
    assert desk.drops() == []
    vm.state = VmState.RUNNING
    assert desk.drops() == []
    desk.now_s += GRACE_S
    assert desk.drops() == ["vm"]


def test_a_host_that_is_away_is_asked_nothing() -> None:
    desk = Desk()
    desk.registry.graves.update(gone=1)
    desk.tell(disk("gone"))
    desk.let_grace_pass()
    desk.registry.hosts["a"].joined = False
    assert desk.drops() == []


@pytest.mark.parametrize("many", [MAX_UNDER_WAY + 5])
def test_few_at_a_time(many: int) -> None:
    desk = Desk()
    names = [f"vm{number:02}" for number in range(many)]
    desk.registry.graves.update(dict.fromkeys(names, 1))
    desk.tell(*map(disk, names))
    desk.let_grace_pass()
    assert desk.drops() == names[:MAX_UNDER_WAY]

"""Disks that lie on hosts without their VM: which of them nobody needs any more.

Rules:

1. A host reports the disks that we made and whose VM has no domain there (``LooseDisk``). Whether
   one is needed is read from what is recorded, and only what is *proven* counts:

   =============  ==================================================================================
   verdict        when
   =============  ==================================================================================
   ``GONE``       its VM has a tombstone of at least the disk's generation: ids are never used again
   ``ELSEWHERE``  its VM runs on another host in reach, with a higher generation than the disk's.
                  Each start notes its generation beside the disk that it uses, before it does: the
                  VM started on another disk. Only the host that the note names may say so
   ``NEEDED``     its VM is known, and neither is so: it is off, lost, moving, or on shared storage
   ``UNKNOWN``    nothing is known of its VM, or no note lies beside it
   =============  ==================================================================================

2. ``GONE`` and ``ELSEWHERE`` are removed, once they have been so for ``grace_s`` under this leader,
   and have not been written for as long: a host that comes back after a month may have the only
   copy of something. One order at a time for each VM, with what was reported, so that the host
   refuses if it changed. A refusal is no harm: it is asked again later. Without grace nothing is
   removed.
3. ``UNKNOWN`` is never touched: a person has to. All but ``NEEDED`` are told of once.

Invariant: no disk is ordered away of whose VM the record says that it may have it.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, assert_never

from snooze.common.errors import ErrorReport
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import LooseDisk
from snooze.groupmanager.leader.membership_core import Announce
from snooze.groupmanager.leader.registry import Plan, Registry

LOOK_S: Final = 5.0
RETRY_S: Final = 600.0
"""After a host refused to remove one."""
MAX_UNDER_WAY: Final = 8
MAX_TOLD: Final = 10_000


class Verdict(StrEnum):
    """Whether a loose disk is needed, in words for people."""

    GONE = "its VM is gone"
    ELSEWHERE = "its VM was started anew elsewhere"
    NEEDED = "its VM may use it"
    UNKNOWN = "nothing is known of its VM"


ORPHANED: Final = frozenset({Verdict.GONE, Verdict.ELSEWHERE})


@dataclass(frozen=True, slots=True)
class Told:
    """A host says which disks are loose on it."""

    host_id: str
    disks: tuple[LooseDisk, ...]


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went by; ``settled``: managers and hosts have had time to join this leader."""

    now_ms: int
    settled: bool


@dataclass(frozen=True, slots=True)
class Dropped:
    """A host has removed a disk, or why not."""

    host_id: str
    disk: LooseDisk
    error: ErrorReport | None = None


OrphanEvent = Told | Ticked | Dropped


@dataclass(frozen=True, slots=True)
class Drop:
    """Have a host remove a disk, if it is as it was reported."""

    host_id: str
    disk: LooseDisk


OrphanEffect = Drop | Announce


@dataclass(slots=True)
class OrphanDiskCore:
    """Settles loose disks; see the module's rules. ``grace_s``: 0 removes nothing."""

    registry: Registry
    grace_s: float
    by_host: dict[str, tuple[LooseDisk, ...]] = field(
        default_factory=dict[str, tuple[LooseDisk, ...]]
    )
    under_way: set[str] = field(default_factory=set[str])
    not_before_s: dict[str, float] = field(default_factory=dict[str, float])
    told: dict[str, Verdict] = field(default_factory=dict[str, Verdict])
    since_s: dict[str, float] = field(default_factory=dict[str, float])
    removed: int = 0
    looked_s: float = -LOOK_S

    def handle(self, event: OrphanEvent, now_s: float) -> list[OrphanEffect]:
        """Take in one event."""
        match event:
            case Told():
                if event.disks:
                    self.by_host[event.host_id] = event.disks
                else:
                    self.by_host.pop(event.host_id, None)
                return []
            case Ticked():
                if not event.settled or now_s - self.looked_s < LOOK_S:
                    return []
                self.looked_s = now_s
                return self._look(event.now_ms, now_s)
            case Dropped():
                return self._dropped(event, now_s)
            case _:
                assert_never(event)

    def verdict(self, host_id: str, disk: LooseDisk) -> Verdict:
        """Whether a disk that is loose on this host is needed (rule 1)."""
        if not disk.generation:
            return Verdict.UNKNOWN
        vm = self.registry.vms.get(disk.vm_id)
        if vm is None:
            buried = self.registry.graves.get(disk.vm_id, 0)
            return Verdict.GONE if buried >= disk.generation else Verdict.UNKNOWN
        home = self.registry.hosts.get(vm.host_id)
        elsewhere = (
            vm.generation > disk.generation
            and vm.state is VmState.RUNNING
            and vm.plan is Plan.NONE
            and not vm.moving
            and home is not None
            and home.joined
            and vm.host_id != host_id == disk.host_id
        )
        return Verdict.ELSEWHERE if elsewhere else Verdict.NEEDED

    def of_host(self, host_id: str) -> list[tuple[LooseDisk, Verdict]]:
        """The disks that are loose on a host, and whether they are needed."""
        return [(disk, self.verdict(host_id, disk)) for disk in self.by_host.get(host_id, ())]

    def _look(self, now_ms: int, now_s: float) -> list[OrphanEffect]:
        effects: list[OrphanEffect] = []
        orphaned: set[str] = set()
        self.not_before_s = {k: until for k, until in self.not_before_s.items() if until > now_s}
        for host_id in sorted(self.by_host):
            host = self.registry.hosts.get(host_id)
            if host is None:
                del self.by_host[host_id]
                continue
            if not host.joined:
                continue
            for disk, verdict in self.of_host(host_id):
                effects += self._tell(host.description.hostname, disk, verdict)
                if verdict not in ORPHANED:
                    continue
                orphaned.add(disk.vm_id)
                since_s = self.since_s.setdefault(disk.vm_id, now_s)
                if now_s - since_s >= self.grace_s and self._is_due(disk, now_ms):
                    self.under_way.add(disk.vm_id)
                    effects.append(Drop(host_id, disk))
        self.since_s = {k: since for k, since in self.since_s.items() if k in orphaned}
        return effects

    def _is_due(self, disk: LooseDisk, now_ms: int) -> bool:
        return (
            self.grace_s > 0
            and now_ms - disk.changed_ms >= self.grace_s * 1000
            and disk.vm_id not in self.under_way
            and disk.vm_id not in self.not_before_s
            and len(self.under_way) < MAX_UNDER_WAY
        )

    def _tell(self, hostname: str, disk: LooseDisk, verdict: Verdict) -> list[OrphanEffect]:
        """Once, until the verdict changes; on shared storage many hosts see the same disk."""
        if verdict is Verdict.NEEDED or self.told.get(disk.vm_id) is verdict:
            return []
        self.told[disk.vm_id] = verdict
        if len(self.told) > MAX_TOLD:
            del self.told[next(iter(self.told))]
        message = f"host {hostname} has a disk of VM {disk.vm_id}: {verdict.value}"
        return [Announce("disk.orphan", disk.vm_id, message)]

    def _dropped(self, event: Dropped, now_s: float) -> list[OrphanEffect]:
        vm_id = event.disk.vm_id
        self.under_way.discard(vm_id)
        if event.error is not None:
            self.not_before_s[vm_id] = now_s + RETRY_S
            return []
        self.removed += 1
        self.told.pop(vm_id, None)
        left = tuple(d for d in self.by_host.get(event.host_id, ()) if d.vm_id != vm_id)
        self.by_host[event.host_id] = left
        host = self.registry.hosts.get(event.host_id)
        name = event.host_id if host is None else host.description.hostname
        message = f"host {name} removed the disk of VM {vm_id}, which nobody needs any more"
        return [Announce("disk.removed", vm_id, message)]

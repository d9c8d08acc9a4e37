"""Which managers there are, and which host belongs to which manager.

Rules:

1. A manager is a member as long as its link to the leader stands.
2. A host asks for a manager whenever it has none. It gets back the one it had, if that is a member
   and has not just failed it; else the policy chooses.
3. Each answer carries a new assignment epoch. When two managers claim a host, the higher epoch is
   right and the other manager is told to forget the host. A host asks only when it has no link, so
   a claim older than its last answer is wrong too.
4. While other managers are members, the leader's own manager has no hosts (``manages_hosts =
   "alone"``), or never any (``"never"``).
5. Once membership has been quiet for ``SETTLE_S``, hosts are handed over until no two managers
   differ by more than one; a handover never touches a VM.
6. A host that is being switched off (``recovery_core.py``) gets no manager.
7. A host is in the record, as one that may have VMs, before it is told of a manager. It is recorded
   as away once it was given up and no VM can have been started on it of which we do not know.

Invariant: every host has at most one manager with which it is ``joined``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

import msgspec
import numpy as np

from snooze.common.errors import ErrorReport
from snooze.common.records import HostRecord
from snooze.common.wire import (
    Assignment,
    AssignmentRequest,
    HostGone,
    HostImages,
    HostState,
    ManagerDescription,
    ManagerSummary,
    assignment_epoch,
)
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.registry import HostEntry, Registry
from snooze.groupmanager.leader.whereabouts import lose_with
from snooze.scheduling.assignment import AssignmentPolicy, assign, rebalance

SETTLE_S: Final = 0.5
"""Membership has to be quiet this long before hosts are handed over."""
JOINING_S: Final = 60.0
"""Longer than a host takes from its answer to its manager, and that manager's word to the leader
may be under way until the silence of its link is noticed."""
HANDOVER_TIMEOUT_S: Final = 15.0
"""A handover that takes longer is forgotten and may be tried again."""


@dataclass(frozen=True, slots=True)
class ManagerJoined:
    """A manager's link to the leader stands; these are its hosts."""

    manager: ManagerDescription
    hosts: Sequence[HostState]


@dataclass(frozen=True, slots=True)
class ManagerLeft:
    """A manager's link is closed."""

    manager_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class HostAsked:
    """A host wants a manager."""

    request_id: int
    request: AssignmentRequest


@dataclass(frozen=True, slots=True)
class HostRecorded:
    """A host's record, written before its question was answered, is safe."""

    host_id: str


@dataclass(frozen=True, slots=True)
class HostReported:
    """A manager says that a host joined it."""

    manager_id: str
    state: HostState


@dataclass(frozen=True, slots=True)
class HostLeft:
    """A manager says that a host's link is closed."""

    manager_id: str
    notice: HostGone


@dataclass(frozen=True, slots=True)
class ImagesArrived:
    """A manager says which images a host has now."""

    manager_id: str
    notice: HostImages


@dataclass(frozen=True, slots=True)
class SummaryArrived:
    """A manager says what it has."""

    manager_id: str
    summary: ManagerSummary


@dataclass(frozen=True, slots=True)
class RecordsLoaded:
    """The hosts that the record knows, read when the leader took over."""

    hosts: Sequence[HostRecord]


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went by."""


MembershipEvent = (
    ManagerJoined
    | ManagerLeft
    | HostAsked
    | HostRecorded
    | HostReported
    | HostLeft
    | ImagesArrived
    | SummaryArrived
    | RecordsLoaded
    | Ticked
)


@dataclass(frozen=True, slots=True)
class AnswerHost:
    """Answer a host's question; with a ``record``, once that is written (``HostRecorded``)."""

    request_id: int
    answer: Assignment | ErrorReport
    record: HostRecord | None = None


@dataclass(frozen=True, slots=True)
class HandOver:
    """Tell a manager to send a host elsewhere."""

    manager_id: str
    host_id: str
    assignment: Assignment


@dataclass(frozen=True, slots=True)
class TellForget:
    """Tell a manager that a host is no longer its."""

    manager_id: str
    host_id: str


@dataclass(frozen=True, slots=True)
class RecordHost:
    """Keep who manages a host."""

    record: HostRecord


@dataclass(frozen=True, slots=True)
class Announce:
    """Something for the list of events."""

    kind: str
    subject: str
    message: str
    cause: str = ""


MembershipEffect = AnswerHost | HandOver | TellForget | RecordHost | Announce


@dataclass(slots=True)
class MembershipCore:
    """Decides about managers and hosts; see the module's rules."""

    registry: Registry
    self_id: str
    leader_epoch: int
    policy: AssignmentPolicy = AssignmentPolicy.LEAST_LOADED
    manages_alone: bool = True
    count: int = 0
    cursor: int = 0
    changed_s: float = 0.0
    balanced: tuple[int, float] | None = None
    moving: dict[str, float] = field(default_factory=dict[str, float])
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def handle(self, event: MembershipEvent, now_s: float) -> list[MembershipEffect]:
        """Take in one event."""
        match event:
            case ManagerJoined():
                return self._manager_joined(event, now_s)
            case ManagerLeft():
                return self._manager_left(event, now_s)
            case HostAsked():
                return self._host_asked(event, now_s)
            case HostRecorded():
                host = self.registry.hosts.get(event.host_id)
                if host is not None:
                    host.in_record = True
                return []
            case HostReported():
                return self._host_reported(event.manager_id, event.state, now_s)
            case HostLeft():
                return self._host_left(event, now_s)
            case ImagesArrived():
                host = self.registry.hosts.get(event.notice.host_id)
                if host is not None and host.manager_id == event.manager_id:
                    host.description = msgspec.structs.replace(
                        host.description, images=event.notice.images
                    )
                return []
            case SummaryArrived():
                entry = self.registry.managers.get(event.manager_id)
                if entry is not None:
                    entry.take_summary(event.summary, now_s)
                return []
            case RecordsLoaded():
                return self._records_loaded(event, now_s)
            case Ticked():
                return self._record_away() + self._rebalance(now_s)
            case _:
                assert_never(event)

    def _manager_joined(self, event: ManagerJoined, now_s: float) -> list[MembershipEffect]:
        manager = event.manager
        effects: list[MembershipEffect] = []
        if manager.manager_id in self.registry.managers:
            effects += self._manager_left(ManagerLeft(manager.manager_id, "it joined again"), now_s)
        self.registry.managers[manager.manager_id] = ManagerEntry(manager, now_s)
        self.changed_s = now_s
        effects.append(
            Announce(
                "manager.joined",
                manager.manager_id,
                f"group manager {manager.hostname} ({manager.control}) joined",
            )
        )
        for state in event.hosts:
            effects += self._host_reported(manager.manager_id, state, now_s)
        return effects

    def _manager_left(self, event: ManagerLeft, now_s: float) -> list[MembershipEffect]:
        entry = self.registry.managers.pop(event.manager_id, None)
        if entry is None:
            return []
        self.changed_s = now_s
        for host_id in entry.hosts:
            lose_with(self.registry, self.registry.hosts[host_id], now_s)
            self.moving.pop(host_id, None)
        return [
            Announce(
                "manager.left",
                event.manager_id,
                f"group manager {entry.description.hostname} left: {event.reason}; "
                f"{len(entry.hosts)} hosts look for another",
            )
        ]

    def _host_asked(self, event: HostAsked, now_s: float) -> list[MembershipEffect]:
        request = event.request
        host_id = request.host.host_id
        known = self.registry.hosts.get(host_id)
        if known is not None and known.fencing and not known.joined:
            busy = ErrorReport("too_busy", "this host is just being switched off", (), 2.0)
            return [AnswerHost(event.request_id, busy)]
        eligible = self._eligible()
        choice = [m for m in eligible if m.manager_id not in request.failed_managers] or eligible
        if not choice:
            busy = ErrorReport("too_busy", "no group manager has joined yet", (), 0.2)
            return [AnswerHost(event.request_id, busy)]
        previous = request.previous_manager or (known.manager_id if known else "")
        manager = next((m for m in choice if m.manager_id == previous), None)
        if manager is None:
            loads = [float(self._load(m)) for m in choice]
            chosen = assign(loads, self.policy, self.cursor, self.rng)
            self.cursor = chosen.cursor
            manager = choice[chosen.manager]
        assignment = Assignment(manager.description, self._next_epoch())
        if known is None:
            known = self.registry.hosts[host_id] = HostEntry(
                request.host, manager.manager_id, assignment.epoch, joined=False, seen_s=now_s
            )
        if not known.joined:
            known.description, known.seen_s = request.host, now_s
            known.reachable_s = now_s + JOINING_S
            known.given_up = known.acquitted = known.silent = False
            known.manager_id, known.epoch = manager.manager_id, assignment.epoch
        self._promise(host_id, manager)
        if known.in_record:
            return [AnswerHost(event.request_id, assignment)]
        known.away = False
        return [AnswerHost(event.request_id, assignment, known.record())]

    def _host_reported(
        self, manager_id: str, state: HostState, now_s: float
    ) -> list[MembershipEffect]:
        host_id = state.host.host_id
        manager = self.registry.managers.get(manager_id)
        if manager is None:
            return []
        known = self.registry.hosts.get(host_id)
        effects: list[MembershipEffect] = []
        if known is not None and known.manager_id != manager_id:
            if known.epoch > state.epoch:
                return [TellForget(manager_id, host_id)]
            former = self.registry.managers.get(known.manager_id)
            if former is not None:
                former.hosts.discard(host_id)
                effects.append(TellForget(known.manager_id, host_id))
        if known is None:
            known = HostEntry(state.host, manager_id, state.epoch, joined=True, seen_s=now_s)
            self.registry.hosts[host_id] = known
        known.join(state.host, manager_id, state.epoch, now_s)
        manager.hosts.add(host_id)
        manager.untold = True
        self._promise(host_id, None)
        self.moving.pop(host_id, None)
        self.changed_s = now_s
        announcement = Announce(
            "host.joined",
            host_id,
            f"host {state.host.hostname} joined group manager {manager.description.hostname}",
        )
        return [*effects, RecordHost(known.record()), announcement]

    def _host_left(self, event: HostLeft, now_s: float) -> list[MembershipEffect]:
        host = self.registry.hosts.get(event.notice.host_id)
        manager = self.registry.managers.get(event.manager_id)
        if host is None or not host.joined or host.manager_id != event.manager_id:
            return []
        if host.epoch > event.notice.epoch:
            return []
        host.leave(now_s, silent=event.notice.silent)
        if manager is not None:
            manager.hosts.discard(event.notice.host_id)
        if event.notice.left:
            return []
        return [
            Announce(
                "host.left",
                event.notice.host_id,
                f"host {host.description.hostname} is out of reach: {event.notice.reason}",
            )
        ]

    def _records_loaded(self, event: RecordsLoaded, now_s: float) -> list[MembershipEffect]:
        for record in event.hosts:
            if record.host_id not in self.registry.hosts:
                self.registry.hosts[record.host_id] = HostEntry.of_record(
                    record, now_s, reachable_s=now_s + JOINING_S
                )
        return []

    def _record_away(self) -> list[MembershipEffect]:
        """Let the record say of which hosts nothing was heard for long."""
        effects: list[MembershipEffect] = []
        for host in list(self.registry.hosts.unsettled.values()):
            if host.acquitted and host.in_record:
                host.in_record, host.away = False, True
                effects.append(RecordHost(host.record()))
        return effects

    def _eligible(self) -> list[ManagerEntry]:
        """The managers that may have hosts, in order of their ids."""
        members = sorted(self.registry.managers.values(), key=lambda m: m.manager_id)
        others = [m for m in members if m.manager_id != self.self_id]
        return others or (members if self.manages_alone else [])

    def _load(self, manager: ManagerEntry) -> int:
        """Hosts that the manager has or was promised."""
        return len(manager.hosts) + len(manager.promised - manager.hosts)

    def _promise(self, host_id: str, manager: ManagerEntry | None) -> None:
        """Count the host as on its way to ``manager``, and to no other."""
        for member in self.registry.managers.values():
            member.promised.discard(host_id)
        if manager is not None:
            manager.promised.add(host_id)

    def _rebalance(self, now_s: float) -> list[MembershipEffect]:
        self.moving = {
            host: since for host, since in self.moving.items() if now_s - since < HANDOVER_TIMEOUT_S
        }
        if now_s - self.changed_s < SETTLE_S or self.moving:
            return []
        seen = (self.registry.hosts.version, self.changed_s)
        if seen == self.balanced:
            return []
        eligible = self._eligible()
        if not eligible:
            return []
        index = {m.manager_id: i for i, m in enumerate(eligible)}
        sizes = [len(manager.hosts) for manager in eligible]
        outside = any(m.hosts for m in self.registry.managers.values() if m.manager_id not in index)
        if not outside and max(sizes) - min(sizes) <= 1:
            self.balanced = seen
            return []
        hosts = [h for h in sorted(self.registry.hosts.items()) if h[1].joined]
        owner = [index.get(h.manager_id, -1) for _, h in hosts]
        targets: dict[int, int] = {}
        counts = [owner.count(i) for i in range(len(eligible))]
        for i, current in enumerate(owner):
            if current == -1:
                least = min(range(len(eligible)), key=lambda m: counts[m])
                targets[i] = owner[i] = least
                counts[least] += 1
        cores = [h.description.capacity.cpu_cores for _, h in hosts]
        for handover in rebalance(owner, len(eligible), weight=cores):
            targets[handover.host] = handover.target
        effects: list[MembershipEffect] = []
        for i, target in sorted(targets.items()):
            host_id, host = hosts[i]
            self.moving[host_id] = now_s
            assignment = Assignment(eligible[target].description, self._next_epoch())
            effects.append(HandOver(host.manager_id, host_id, assignment))
        if not effects:
            self.balanced = seen
        return effects

    def _next_epoch(self) -> int:
        self.count += 1
        return assignment_epoch(self.leader_epoch, self.count)

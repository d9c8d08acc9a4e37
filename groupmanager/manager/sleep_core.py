"""A manager sends one of its hosts to sleep, if nothing is on it.

Rules:

1. A host on which there is anything is refused: a domain of any kind, an order, a migration or
   what is left of one that failed, a handover to another manager.
2. It takes no VM from the moment it is asked for, until it is refused or has left; nor is it
   handed to another manager meanwhile, which would be told of a host that is up.
3. It is answered when its link closed after it obeyed. A host that does not leave within
   ``LEAVE_S`` serves on; that it may still go is said (an unknown outcome).
4. A repeat while it is under way is answered together with the first.

Invariant: a host is ``sleeping`` exactly while it is asked for here.
"""

from dataclasses import dataclass, field
from typing import Final

from snooze.common.errors import Conflict, ErrorReport, NotFound, RemoteError, RemoteTimeout
from snooze.common.wire import Accepted, PowerDown
from snooze.groupmanager.manager.host_table import HostEntry, HostTable
from snooze.groupmanager.manager.manager_events import AnswerLeader, ManagerEffect, SleepAsked
from snooze.groupmanager.manager.migration_core import Migrations
from snooze.groupmanager.manager.ordering import GiveOrder, Outcome

LEAVE_S: Final = 60.0
"""From the host's word that it goes until its link closes: it answers before it begins."""


@dataclass(slots=True)
class Going:
    """A host that is sent to sleep, and who waits for it."""

    host: HostEntry
    requests: list[int]
    obeyed_s: float | None = None
    obeyed: bool = False


@dataclass(slots=True)
class Sleeping:
    """The hosts of one manager that are sent to sleep, and those that could be."""

    table: HostTable
    give: GiveOrder
    migrations: Migrations
    going: dict[str, Going] = field(default_factory=dict[str, Going])
    quiet_since_s: dict[str, float] = field(default_factory=dict[str, float])

    def asked(self, event: SleepAsked) -> list[ManagerEffect]:
        """The leader wants a host asleep."""
        host_id, order = event.message.host_id, event.message
        host = self.table.hosts.get(host_id)
        if host is None:
            return _refused(event.request_id, NotFound(f"host {host_id} is not here"))
        going = self.going.get(host_id)
        if going is not None:
            going.requests.append(event.request_id)
            return []
        why = self._hindrance(host)
        if why:
            return _refused(event.request_id, Conflict(f"it is needed: {why}"))
        going = self.going[host_id] = Going(host, [event.request_id])
        self.table.set_sleeping(host, sleeping=True)

        def answered(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if self.going.get(host_id) is not going:
                return []
            if not isinstance(outcome, ErrorReport):
                going.obeyed = True
                return []
            if self.table.hosts.get(host_id) is host:
                return self._stays(host_id, outcome)
            return self._end(host_id, outcome)

        return self.give(
            host_id, lambda epoch: PowerDown(epoch, order.cause, order.action), answered
        )

    def lost(self, host_id: str) -> bool:
        """The host's link is about to be forgotten; whether it was to go."""
        self.quiet_since_s.pop(host_id, None)
        going = self.going.get(host_id)
        return going is not None and going.obeyed

    def left(self, host_id: str) -> list[ManagerEffect]:
        """The host's link closed."""
        going = self.going.get(host_id)
        if going is None:
            return []
        if going.obeyed:
            return self._end(host_id, None)
        why = RemoteError("the host's link closed before it said whether it goes to sleep")
        return self._end(host_id, ErrorReport.of(why))

    def expire(self, now_s: float) -> list[ManagerEffect]:
        """A host that said it goes and does not."""
        effects: list[ManagerEffect] = []
        for host_id, going in list(self.going.items()):
            if not going.obeyed:
                continue
            if going.obeyed_s is None:
                going.obeyed_s = now_s
            elif now_s - going.obeyed_s > LEAVE_S:
                why = RemoteTimeout(f"it said it goes, and has not gone for {LEAVE_S:g} s")
                effects += self._stays(host_id, ErrorReport.of(why))
        return effects

    def idle(self, now_s: float) -> dict[str, float]:
        """For how long each host has had nothing on it, in seconds; only those that have not."""
        result: dict[str, float] = {}
        for host_id in self.table.empty:
            if host_id not in self.going and not self._hindrance(self.table.hosts[host_id]):
                since_s = self.quiet_since_s.get(host_id, now_s)
                result[host_id] = round(now_s - since_s, 1)
        self.quiet_since_s = {host_id: self.quiet_since_s.get(host_id, now_s) for host_id in result}
        return result

    def _hindrance(self, host: HostEntry) -> str:
        """What keeps the host up; empty: nothing."""
        vm = next(iter(sorted(host.vms)), None)
        if vm is not None:
            found = self.table.vms[vm]
            return f"VM {found.report.name} is on it ({found.state.value})"
        if host.copies or host.stale:
            return "a stale copy of a VM is on it"
        if host.orders:
            return "an order is under way on it"
        if self.migrations.touch(host.host_id):
            return "a migration concerns it"
        if host.leaving is not None:
            return "it is given to another group manager"
        return ""

    def _stays(self, host_id: str, error: ErrorReport) -> list[ManagerEffect]:
        self.table.set_sleeping(self.going[host_id].host, sleeping=False)
        return self._end(host_id, error)

    def _end(self, host_id: str, error: ErrorReport | None) -> list[ManagerEffect]:
        going = self.going.pop(host_id)
        return [AnswerLeader(request, error or Accepted()) for request in going.requests]


def _refused(request_id: int, error: NotFound | Conflict) -> list[ManagerEffect]:
    return [AnswerLeader(request_id, ErrorReport.of(error))]

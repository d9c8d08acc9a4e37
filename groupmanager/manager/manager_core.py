"""A manager's decisions about its hosts and their VMs.

Rules:

1. A host is here as long as its link stands. What it reports when it joins is the truth; when the
   link closes, the host and its VMs are forgotten here, and the leader remembers them.
2. Room is reserved before an order is sent and given back when the order is refused. A VM holds
   room on its host in the states of ``HOLDS_CAPACITY``; a migrating one holds it on both hosts.
3. No plan is carried out that the independent checker refutes.
4. Every order is idempotent. A start that was not answered is ordered again, at most
   ``MAX_TRIES`` times, while the host's link stands; then the link is closed, so that the host
   joins again and says what it has. After any other order that may have happened or not, the host
   is asked what it has.
5. An order of the leader is checked against the VM's state first; one that has nothing to do is
   answered as done.
6. A host takes no VM, nor a lease, before the leader has said what holds of it (``directives.py``).
7. A host that is to go to another manager gets no new VM, and goes when no order and no migration
   concerns it.

Invariant: ``reserved`` of a host is the sum of the demands of what holds room on it.
Placement is in ``placing.py``, commands are in ``vm_commands.py``, migrations in
``migration_core.py``; ``ordering.py`` keeps the orders under way; hosts are sent to sleep by
``sleep_core.py``. What the manager does by itself about load is in ``autonomy_core.py``.
"""

from typing import Final, assert_never

import msgspec

from snooze.common.autonomy import Control
from snooze.common.errors import Conflict, ErrorReport
from snooze.common.resources import Capacity, FloatArray
from snooze.common.vm_lifecycle import TRANSITIONS, VmEvent, VmState
from snooze.common.wire import (
    DropDisk,
    HostImages,
    MoveToManager,
    RelayedAnswer,
)
from snooze.common.wire import HostGone as HostGoneNotice
from snooze.common.wire import HostJoined as HostJoinedNotice
from snooze.groupmanager.manager.autonomy_core import Autonomy
from snooze.groupmanager.manager.autonomy_events import (
    AutonomySet,
    AutonomyTicked,
    ConsolidateAsked,
    ConsolidationPlanned,
    DecisionJudged,
    HostExplainAsked,
    LookedOn,
    RelocationPlanned,
)
from snooze.groupmanager.manager.autonomy_policy import AutonomyPolicy
from snooze.groupmanager.manager.cluster_view import Samples
from snooze.groupmanager.manager.deciding_core import Realm
from snooze.groupmanager.manager.directives import Directives, promote, put_report
from snooze.groupmanager.manager.host_table import HostEntry, HostTable, VmEntry
from snooze.groupmanager.manager.manager_events import (
    AnswerLeader,
    ArrivalsEnded,
    CloseHost,
    Directed,
    HostAnswered,
    HostJoined,
    HostLost,
    ImagesNoticed,
    ManagerEffect,
    ManagerEvent,
    OrderAsked,
    PlaceAsked,
    RelayAsked,
    ReleaseAsked,
    SleepAsked,
    TellLeader,
    VmNoticed,
)
from snooze.groupmanager.manager.migration_core import Migrations
from snooze.groupmanager.manager.ordering import HostOrders, Outcome
from snooze.groupmanager.manager.placing import Placing
from snooze.groupmanager.manager.sleep_core import Sleeping
from snooze.groupmanager.manager.vm_changes import VmChanges
from snooze.groupmanager.manager.vm_commands import VmCommands
from snooze.scheduling import placement

_SEEN: Final[dict[VmState, VmEvent]] = {
    VmState.RUNNING: VmEvent.SEEN_RUNNING,
    VmState.PAUSED: VmEvent.SEEN_PAUSED,
    VmState.STOPPED: VmEvent.SEEN_STOPPED,
    VmState.FAILED: VmEvent.CRASHED,
}


class ManagerCore:
    """Decides for one manager; see the module's rules."""

    def __init__(
        self, policy: placement.PlacementPolicy, overcommit: Capacity, headroom: Capacity
    ) -> None:
        """``overcommit`` and ``headroom`` multiply a host's capacity by axis."""
        self.table = table = HostTable()
        self.overcommit: FloatArray = overcommit.as_array()
        self.headroom: FloatArray = headroom.as_array()
        self.limit: FloatArray = self.overcommit * self.headroom
        self.orders = HostOrders(table)
        self.changes = VmChanges(table)
        self._leaving: set[str] = set()
        self.migrations = Migrations(table, self.limit, self.orders.give, self.changes.report)
        self.sleeping = Sleeping(table, self.orders.give, self.migrations)
        give, changes = self.orders.give, self.changes
        self._commands = VmCommands(table, self.limit, give, changes, self.migrations)
        self._placing = Placing(
            table, policy, self.overcommit, self.headroom, give, changes, self._commands.look
        )
        self._directives = Directives(table, self.orders.give)
        self.autonomy: Autonomy | None = None

    def decide_alone(
        self, manager_id: str, policy: AutonomyPolicy, control: Control, samples: Samples
    ) -> Autonomy:
        """From now on overload, underload and consolidation are looked after; see ``Autonomy``."""
        realm = Realm(manager_id, policy, control, self.table, self.migrations, samples)
        self.autonomy = Autonomy(realm)
        return self.autonomy

    def handle(self, event: ManagerEvent, now_s: float) -> list[ManagerEffect]:
        """Take in one event."""
        effects = self._decide(event, now_s) + self.migrations.expire(now_s)
        effects += self.sleeping.expire(now_s) + self._commands.expire(now_s)
        for host_id in sorted(self._leaving):
            effects += self._leave_if_quiet(host_id)
        if self.autonomy is not None:
            effects += self.autonomy.settle(now_s)
        return effects

    def _decide(self, event: ManagerEvent, now_s: float) -> list[ManagerEffect]:
        match event:
            case HostJoined():
                return self._host_joined(event, now_s)
            case HostLost():
                return self._host_lost(event)
            case Directed():
                if self.autonomy is not None:
                    self.autonomy.remember(event.directives, now_s)
                return self._directives.directed(event.directives)
            case PlaceAsked():
                return self._placing.place(event)
            case OrderAsked():
                return self._commands.asked(event)
            case RelayAsked():
                order = event.message.order
                if isinstance(order, DropDisk):
                    return self._drop_disk(event, order)
                return self.migrations.arrivals.relayed(event, now_s)
            case ArrivalsEnded():
                return self.migrations.arrivals.ended(event.vm_ids)
            case ReleaseAsked():
                return self._release(event)
            case SleepAsked():
                return self.sleeping.asked(event)
            case HostAnswered():
                return self.orders.answered(event)
            case VmNoticed():
                return self._noticed(event)
            case ImagesNoticed():
                return self._images_noticed(event)
            case (
                AutonomyTicked()
                | AutonomySet()
                | ConsolidateAsked()
                | HostExplainAsked()
                | DecisionJudged()
                | ConsolidationPlanned()
                | RelocationPlanned()
                | LookedOn()
            ):
                return [] if self.autonomy is None else self.autonomy.handle(event, now_s)
            case _:
                assert_never(event)

    # ------------------------------------------------------------ hosts

    def _host_joined(self, event: HostJoined, now_s: float) -> list[ManagerEffect]:
        hello = event.hello
        host_id = hello.host.host_id
        effects: list[ManagerEffect] = []
        if host_id in self.table.hosts:
            effects += self._drop_host(host_id, "it joined again")
            effects += self.sleeping.left(host_id)
        host = HostEntry(hello.host, hello.epoch)
        self.table.add_host(host)
        for report in hello.vms:
            vm = VmEntry(report, host_id, report.state, report.demand, reason=report.reason)
            put_report(self.table, host, vm)
            self.migrations.rejoined(vm)
        self.migrations.expect(host_id, hello.arriving, now_s)
        effects.append(TellLeader(HostJoinedNotice(self.table.state_of(host_id))))
        return effects

    def _host_lost(self, event: HostLost) -> list[ManagerEffect]:
        host = self.table.hosts.get(event.host_id)
        if host is None or host.epoch != event.epoch:
            return []
        left = event.left or self.sleeping.lost(event.host_id)
        had = [(vm.key, vm.report.generation) for vm in self.table.vms_on(event.host_id)]
        effects = self._drop_host(event.host_id, event.reason)
        effects += self.sleeping.left(event.host_id)
        for key, generation in had:  # it may have moved, and be told of there already
            effects += promote(self.table, key, generation)
        notice = HostGoneNotice(event.host_id, event.epoch, event.reason, left, event.silent)
        return [TellLeader(notice), *effects]

    def _drop_host(self, host_id: str, reason: str) -> list[ManagerEffect]:
        """Forget a host; what was ordered of it has an unknown outcome."""
        open_orders = self.orders.of_host(host_id)
        self.table.remove_host(host_id)
        self._leaving.discard(host_id)
        self.migrations.arrivals.host_dropped(host_id)
        return self.orders.lose(open_orders, host_id, reason)

    def _release(self, event: ReleaseAsked) -> list[ManagerEffect]:
        host = self.table.hosts.get(event.host_id)
        if host is not None:
            self.table.set_leaving(host, event.assignment)
            self._leaving.add(event.host_id)
        return []

    def _leave_if_quiet(self, host_id: str) -> list[ManagerEffect]:
        """Send a host on its way once nothing is under way on it."""
        host = self.table.hosts[host_id]
        if host.leaving is None or host.orders or self.migrations.touch(host_id):
            return []
        if host.sleeping:  # it may have said already that it goes down
            return []
        assignment = host.leaving

        def gone(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            if self.table.hosts.get(host_id) is not host:
                return []
            if isinstance(outcome, ErrorReport) and not unknown:
                self.table.set_leaving(host, None)
                self._leaving.discard(host_id)
                return []
            return [CloseHost(host_id, f"given to group manager {assignment.manager.manager_id}")]

        return self.orders.give(host_id, lambda e: MoveToManager(e, "rebalance", assignment), gone)

    # ------------------------------------------------------------ what hosts say by themselves

    def _noticed(self, event: VmNoticed) -> list[ManagerEffect]:
        report = event.notice.report
        if event.host_id not in self.table.hosts:
            return []
        if not event.notice.gone and self.migrations.arrivals.arrived(event.host_id, report.vm_id):
            return self._new_vm(event)
        key = report.vm_id if report.managed else f"{report.vm_id}@{event.host_id}"
        vm = self.table.vms.get(key)
        if self.migrations.moves(key) and not self._is_its_source(event, vm):
            if not (event.notice.gone and report.state is VmState.MIGRATING):
                state = VmState.DESTROYED if event.notice.gone else report.state
                self.migrations.heard(event.host_id, key, state)
            return []
        if vm is None:
            return self._new_vm(event)
        if vm.host_id != event.host_id:
            return self._copy_noticed(event)
        if vm.ordered:
            vm.overheard = VmState.DESTROYED if event.notice.gone else report.state
            return []
        if vm.state is VmState.DESTROYING and not event.notice.gone:
            return []
        if event.notice.gone:
            if vm.state is VmState.STARTING:
                why = "it did not start while its manager changed"
                failed = self.changes.start_failed(vm, why, "")
                return [*failed, *self._directives.promote(vm.key)]
            vm.reason = report.reason
            if report.state is VmState.MIGRATING:
                return self.migrations.left(vm)
            cause = vm.cause if vm.state is VmState.DESTROYING else ""
            return [*self.changes.vanished(vm, cause), *self._directives.promote(vm.key)]
        seen = _SEEN.get(report.state)
        target = TRANSITIONS.get((vm.state, seen)) if seen is not None else None
        if target is None:
            return []
        is_same = report.demand == vm.demand and report.halted == vm.report.halted
        if target is vm.state and is_same:
            vm.report = report
            return []
        self.table.set_state(vm, target)
        if report.demand != vm.demand:
            self.table.set_demand(vm, report.demand)
        vm.report, vm.reason = report, report.reason
        return self.changes.report(vm, "")

    def _is_its_source(self, event: VmNoticed, vm: VmEntry | None) -> bool:
        """Whether a VM that is awaited on another host of ours is told of by its source.

        That came to us from the manager that sees to the migration, which may be gone: what became
        of it is told to us only (seeds 30710 and 31542).
        """
        if vm is None or vm.host_id != event.host_id or self.migrations.sees_to(vm.key):
            return False
        return not event.notice.gone or event.notice.report.state is VmState.MIGRATING

    def _copy_noticed(self, event: VmNoticed) -> list[ManagerEffect]:
        """A host speaks of a VM that another host of ours has."""
        host, report = self.table.hosts[event.host_id], event.notice.report
        copy = host.copies.get(report.vm_id)
        if event.notice.gone:
            if copy is None:
                return []
            self.table.discarded(host, report.vm_id)
            copy.state = VmState.DESTROYED
            return self.changes.report(copy, "")
        return self._new_vm(event)

    def _images_noticed(self, event: ImagesNoticed) -> list[ManagerEffect]:
        host = self.table.hosts.get(event.host_id)
        if host is None:
            return []
        host.description = msgspec.structs.replace(host.description, images=event.images)
        return [TellLeader(HostImages(event.host_id, event.images))]

    def _drop_disk(self, event: RelayAsked, order: DropDisk) -> list[ManagerEffect]:
        """The leader wants a disk gone that lies on a host without its VM."""
        host_id, request_id = event.message.host_id, event.request_id
        host = self.table.hosts.get(host_id)
        vm = self.table.vms.get(order.disk.vm_id)
        if host is None or (vm is not None and vm.host_id == host_id):
            error = Conflict(f"host {host_id} is not here, or has that VM")
            return [AnswerLeader(request_id, ErrorReport.of(error))]

        def done(outcome: Outcome, unknown: bool) -> list[ManagerEffect]:
            answer = outcome if isinstance(outcome, ErrorReport) else RelayedAnswer(outcome)
            return [AnswerLeader(request_id, answer)]

        return self.orders.give(
            host_id, lambda epoch: DropDisk(epoch, order.cause, order.disk, order.idle_s), done
        )

    def _new_vm(self, event: VmNoticed) -> list[ManagerEffect]:
        """Somebody made a domain on the host."""
        if event.notice.gone:
            return []
        report = event.notice.report
        vm = VmEntry(report, event.host_id, report.state, report.demand, reason=report.reason)
        put_report(self.table, self.table.hosts[event.host_id], vm)
        return self.changes.report(vm, "")

"""The leader: the real cores in a shell without sockets, and what it has recorded."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from snooze.common.errors import (
    ErrorReport,
    NotFound,
    NotLeader,
    TooBusy,
)
from snooze.common.records import HostRecord, TaskRecord, VmRecord
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmCommand
from snooze.common.wire import (
    AssignmentRequest,
    DirectHosts,
    ForgetHost,
    HostDirective,
    HostGone,
    HostJoined,
    ManagerHello,
    ManagerSummary,
    ManagerWelcome,
    PlacementAnswer,
    PlaceVms,
    RelayedOrder,
    RelayToHost,
    ReleaseHost,
    VmOrder,
    VmOrderDone,
    VmsChanged,
)
from snooze.groupmanager.leader import membership_core as membership
from snooze.groupmanager.leader import recovery_events as recovery
from snooze.groupmanager.leader import submission_events as submissions
from snooze.groupmanager.leader.address_leases import AddressLeases
from snooze.groupmanager.leader.recovery_core import RecoveryCore
from snooze.groupmanager.leader.registry import Registry
from snooze.groupmanager.leader.submission_core import SubmissionCore
from tests.property.cluster.hosts import Host
from tests.property.cluster.links import Link, Outcome, Peer

if TYPE_CHECKING:
    from tests.property.cluster.world import World

QUARANTINE_S = 30.0


@dataclass
class Store:
    """What is recorded."""

    hosts: dict[str, HostRecord] = field(default_factory=dict[str, HostRecord])
    vms: dict[str, VmRecord] = field(default_factory=dict[str, VmRecord])
    tasks: dict[str, TaskRecord] = field(default_factory=dict[str, TaskRecord])
    epoch: int = 0


class Leader(Peer):
    """``groupmanager.leader.service`` without sockets; ``home`` is the manager that leads."""

    def __init__(self, world: "World", home: str) -> None:
        self.world = world
        self.home = home
        store = world.store
        store.epoch += 1
        self.epoch = store.epoch
        self.registry = Registry()
        self.core = SubmissionCore(
            self.registry,
            AddressLeases(["10.0.0.0/27"], QUARANTINE_S),
            start_timeout_s=60.0,
            unreachable_after_s=10.0,
        )
        self.membership = membership.MembershipCore(self.registry, home, self.epoch)
        self.recovery = RecoveryCore(self.registry, world.now_s)
        self.links: dict[str, Link] = {}
        self.started_s = world.now_s
        self.writes: deque[Callable[[], None]] = deque()
        self.asking: dict[int, Host] = {}
        self.acked: dict[int, str] = {}
        self.queue: deque[submissions.SubmissionEvent] = deque()
        self.is_busy = False
        self._members(membership.RecordsLoaded(list(store.hosts.values())))
        tasks = sorted(store.tasks.values(), key=lambda task: (task.ended_ms, task.task_id))
        self.feed(submissions.StateLoaded(tasks, list(store.vms.values()), self.now_ms))

    @property
    def now_ms(self) -> int:
        return round(self.world.now_s * 1000)

    @property
    def is_in_office(self) -> bool:
        return self.world.leader is self

    def tick(self) -> None:
        self._members(membership.Ticked())
        self._recover(recovery.Ticked(self.now_ms))
        self.feed(submissions.Ticked(self.now_ms, self.world.now_s - self.started_s > 3.0))

    # -------------------------------- events and effects

    def feed(self, event: submissions.SubmissionEvent) -> None:
        self.queue.append(event)
        if self.is_busy:
            return
        self.is_busy = True
        while self.queue:
            for effect in self.core.handle(self.queue.popleft(), self.world.now_s):
                self._perform(effect)
        self.is_busy = False

    def _perform(self, effect: submissions.SubmissionEffect) -> None:
        match effect:
            case submissions.AnswerSubmission():
                if effect.task_id:
                    self.world.acked.add(effect.task_id)
            case submissions.RecordTask():
                self.writes.append(lambda: self._record(effect))
            case submissions.UpdateRecords():
                self.writes.append(lambda: self._update(effect))
            case submissions.AskManager():
                self._place(effect)
            case submissions.RejoinManager():
                if effect.manager_id in self.links:
                    self.links[effect.manager_id].close(self)
            case submissions.RecordRestarts():
                self.writes.append(lambda: self._record_restarts(effect))
            case submissions.StartThere():
                raise AssertionError(effect)
            case submissions.TaskMoved() | submissions.Decided() | membership.Announce():
                pass

    def _record_restarts(self, effect: submissions.RecordRestarts) -> None:
        self.world.store.vms.update({vm.vm_id: vm for vm in effect.vms})
        self.feed(submissions.RestartsWritten([vm.vm_id for vm in effect.vms], self.now_ms))

    def _recover(self, event: recovery.RecoveryEvent) -> None:
        """No host here has a power controller or a lease: none is ever proven down."""
        for effect in self.recovery.handle(event, self.world.now_s):
            if isinstance(effect, recovery.Direct):
                self._direct(effect.manager_id, list(effect.directives))
            else:
                assert isinstance(effect, membership.Announce), effect

    def _direct(self, manager_id: str, directives: list[HostDirective]) -> None:
        def answered(outcome: Outcome, unknown: bool) -> None:
            if self.is_in_office and isinstance(outcome, ErrorReport):
                host_ids = [directive.host_id for directive in directives]
                self._recover(recovery.DirectiveLost(host_ids))

        link = self.links.get(manager_id)
        if link is None:
            self.world.soon.append(lambda: answered(ErrorReport("too_busy", "gone"), False))
        else:
            link.request(self, DirectHosts(self.epoch, directives), answered)

    def _heard(self, manager_id: str, *host_ids: str) -> None:
        self._recover(recovery.HostHeard(manager_id, host_ids, self.now_ms))

    def _record(self, effect: submissions.RecordTask) -> None:
        task_id = effect.task.task_id
        if self.world.fails():
            error = ErrorReport.of(TooBusy("no space"))
            self.feed(submissions.RecordFailed(task_id, error))
            return
        self.world.store.tasks[task_id] = effect.task
        self.world.store.vms.update({vm.vm_id: vm for vm in effect.vms})
        self.feed(submissions.RecordWritten(task_id, self.now_ms))

    def _update(self, effect: submissions.UpdateRecords) -> None:
        store = self.world.store
        store.vms.update({vm.vm_id: vm for vm in effect.vms})
        store.tasks.update({task.task_id: task for task in effect.tasks})
        for vm_id in effect.removed_vms:
            store.vms.pop(vm_id, None)
        for task_id in effect.removed_tasks:
            store.tasks.pop(task_id, None)

    def _members(self, event: membership.MembershipEvent) -> None:
        for effect in self.membership.handle(event, self.world.now_s):
            match effect:
                case membership.AnswerHost():
                    self._answer_host(effect)
                case membership.HandOver():
                    release = ReleaseHost(self.epoch, "", effect.host_id, effect.assignment)
                    self._tell(effect.manager_id, release)
                case membership.TellForget():
                    self._tell(effect.manager_id, ForgetHost(self.epoch, effect.host_id))
                case membership.RecordHost():
                    self.writes.append(partial(self._record_host, effect.record))
                case membership.Announce():
                    pass
        self.world.check_membership(self)

    def _answer_host(self, effect: membership.AnswerHost) -> None:
        host, record = self.asking[effect.request_id], effect.record
        if record is None:
            del self.asking[effect.request_id]
            host.assigned(effect.answer)
            return

        def written() -> None:
            self.world.store.hosts[record.host_id] = record
            self._members(membership.HostRecorded(record.host_id))
            del self.asking[effect.request_id]
            host.assigned(effect.answer)

        self.writes.append(written)

    def _record_host(self, record: HostRecord) -> None:
        self.world.store.hosts[record.host_id] = record

    def _tell(self, manager_id: str, message: msgspec.Struct) -> None:
        if manager_id in self.links:
            self.links[manager_id].request(self, message, lambda outcome, unknown: None)

    def _place(self, effect: submissions.AskManager) -> None:
        ids = [request.spec.vm_id for request in effect.vms]

        def answered(outcome: Outcome, unknown: bool) -> None:
            if not self.is_in_office:
                return
            manager = effect.manager_id
            if isinstance(outcome, PlacementAnswer):
                self.feed(submissions.PlacementAnswered(manager, outcome, self.now_ms))
                return
            assert isinstance(outcome, ErrorReport)
            self.feed(submissions.PlacementFailed(manager, ids, unknown, outcome, self.now_ms))

        link = self.links.get(effect.manager_id)
        if link is None:
            gone = ErrorReport.of(TooBusy("just left"))
            self.world.soon.append(lambda: answered(gone, False))
        else:
            link.request(self, PlaceVms(self.epoch, effect.task_id, list(effect.vms)), answered)

    # -------------------------------- managers

    def on_request(self, link: Link, ident: int, message: msgspec.Struct) -> None:
        if isinstance(message, ManagerHello):
            self._accept(link, ident, message)
            return
        assert isinstance(message, RelayToHost)
        host = self.registry.hosts.get(message.host_id)
        target = self.links.get(host.manager_id) if host is not None and host.joined else None
        if target is None:
            link.reply(self, ident, ErrorReport.of(NotFound("not in reach")))
            return

        def relayed(outcome: Outcome, unknown: bool) -> None:
            link.reply(self, ident, outcome)

        order = RelayedOrder(self.epoch, message.cause, message.host_id, message.order)
        target.request(self, order, relayed)

    def _accept(self, link: Link, ident: int, hello: ManagerHello) -> None:
        if not self.is_in_office:
            link.reply(self, ident, ErrorReport.of(TooBusy("I do not lead")))
            return
        link.reply(self, ident, ManagerWelcome(self.home, self.epoch))
        manager_id = hello.manager.manager_id
        former = self.links.pop(manager_id, None)
        if former is not None:
            former.close(self)
            self._members(membership.ManagerLeft(manager_id, "it joined again"))
        self.links[manager_id] = link
        self._members(membership.ManagerJoined(hello.manager, hello.hosts))
        for state in hello.hosts:
            host_id = state.host.host_id
            self.feed(submissions.VmsReported(manager_id, state.vms, self.now_ms, host_id))
        self.feed(submissions.ManagerHeard(manager_id, self.now_ms, frozenset(hello.moving)))
        self._heard(manager_id, *(state.host.host_id for state in hello.hosts))

    def _manager_of(self, link: Link) -> str | None:
        return next((m for m, known in self.links.items() if known is link), None)

    def on_notice(self, link: Link, message: msgspec.Struct) -> None:
        manager_id = self._manager_of(link)
        if manager_id is None or not self.is_in_office:
            return
        match message:
            case VmsChanged():
                self.feed(submissions.VmsReported(manager_id, message.vms, self.now_ms))
            case HostJoined():
                self._members(membership.HostReported(manager_id, message.state))
                state = message.state
                host_id = state.host.host_id
                self.feed(submissions.VmsReported(manager_id, state.vms, self.now_ms, host_id))
                self._heard(manager_id, host_id)
            case HostGone():
                self._members(membership.HostLeft(manager_id, message))
            case ManagerSummary():
                self._members(membership.SummaryArrived(manager_id, message))
            case _:
                raise AssertionError(message)

    def on_closed(self, link: Link) -> None:
        manager_id = self._manager_of(link)
        if manager_id is not None:
            del self.links[manager_id]
            if self.is_in_office:
                self._members(membership.ManagerLeft(manager_id, "closed"))

    def assign(self, request: AssignmentRequest, host: Host) -> None:
        number = self.world.next_number()
        self.asking[number] = host
        self._members(membership.HostAsked(number, request))

    # -------------------------------- clients

    def submit(self, demands: list[Capacity], partial: bool) -> None:
        number = self.world.next_number()
        candidates = [
            submissions.Candidate(f"{number:016x}{i:016x}", f"vm-{number}-{i}", demand)
            for i, demand in enumerate(demands)
        ]
        task_id = f"task-{number:06d}"
        self.feed(submissions.Submitted(number, task_id, candidates, self.now_ms, partial=partial))

    def command(self, vm_id: str, command: VmCommand, demand: Capacity, target: str) -> None:
        vm = self.registry.vms[vm_id]
        if not vm.host_id:
            if command is VmCommand.DESTROY:
                self.feed(submissions.Destroyed(vm_id, self.now_ms))
            return
        host = self.registry.hosts.get(vm.host_id)
        if host is None or not host.joined or host.manager_id not in self.links:
            return
        manager_id = host.manager_id

        def answered(outcome: Outcome, unknown: bool) -> None:
            if isinstance(outcome, VmOrderDone) and self.is_in_office:
                self.feed(submissions.VmsReported(manager_id, [outcome.status], self.now_ms))

        order = VmOrder(self.epoch, "", vm_id, command, demand, target)
        self.links[manager_id].request(self, order, answered)

    def resign(self) -> None:
        """Lose office: some of the writes under way still happen, and what was sent arrives."""
        self.world.leader = None
        for _ in range(self.world.random.randint(0, len(self.writes))):
            self.writes.popleft()()
        for host in self.asking.values():
            host.assigned(ErrorReport.of(NotLeader("somebody else leads")))

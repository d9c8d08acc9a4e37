"""The leader's shell: links to managers, the journal, timers; it decides nothing itself.

One ``LeaderService`` lives from an election to its end. It serves once it has read the record;
``settled`` once the managers have had time to join it.
"""

import asyncio
import logging
from collections.abc import Callable

import msgspec

from snooze.common import record_layout, records
from snooze.common.api import TASK_ENDED, CommandRequest, TaskState
from snooze.common.clock import Clock
from snooze.common.coordination.port import Check, Coordinator, Create, Put
from snooze.common.core_runner import CoreRunner
from snooze.common.errors import (
    ErrorReport,
    NotFound,
    NotLeader,
    TooBusy,
)
from snooze.common.logging_setup import caused_by
from snooze.common.questions import Questions
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.task_set import TaskSet, every
from snooze.common.transport.link_server import Accepted as LinkAccepted
from snooze.common.vm_lifecycle import VmCommand
from snooze.common.vms import MigrationProgress
from snooze.common.wire import (
    Accepted,
    AskMoving,
    Assignment,
    AssignmentRequest,
    DecisionMade,
    ForgetHost,
    Happened,
    Held,
    HostDisks,
    HostGone,
    HostImages,
    HostJoined,
    HostOverloaded,
    HostToEmpty,
    LeaseGranted,
    ManagerDescription,
    ManagerHello,
    ManagerNotice,
    ManagerRequest,
    ManagerSummary,
    ManagerWelcome,
    PauseEnergy,
    RelayToHost,
    ReleaseHost,
    RenewLease,
    TellDecisions,
    VmMigrationMoved,
    VmOrder,
    VmOrderDone,
    VmsChanged,
    VmStatus,
)
from snooze.groupmanager.leader import membership_core as membership
from snooze.groupmanager.leader import submission_events as submissions
from snooze.groupmanager.leader import takeover
from snooze.groupmanager.leader.across import Across
from snooze.groupmanager.leader.address_leases import AddressLeases
from snooze.groupmanager.leader.authority import Authority
from snooze.groupmanager.leader.autonomy import LeaderAutonomy
from snooze.groupmanager.leader.commands import Commands
from snooze.groupmanager.leader.decision_files import DecisionFiles
from snooze.groupmanager.leader.decision_log import DecisionLog
from snooze.groupmanager.leader.drain import Drains
from snooze.groupmanager.leader.energy import Energy
from snooze.groupmanager.leader.events import EventLog
from snooze.groupmanager.leader.following import begin, catch_up
from snooze.groupmanager.leader.journal import Done, Journal
from snooze.groupmanager.leader.manager_links import ManagerLinks
from snooze.groupmanager.leader.orphan_disks import OrphanDisks
from snooze.groupmanager.leader.record_writes import updates
from snooze.groupmanager.leader.recovery import Recovery
from snooze.groupmanager.leader.registry import Registry
from snooze.groupmanager.leader.registry_loads import LoadsFollower
from snooze.groupmanager.leader.submission_core import SubmissionCore
from snooze.groupmanager.leader.submission_effects import SubmissionEffects
from snooze.groupmanager.leader.task_waiters import TaskWaiters
from snooze.groupmanager.leader.tasks import Task
from snooze.groupmanager.leader.whereabouts import is_news
from snooze.groupmanager.planner import Planner
from snooze.groupmanager.power.factory import PowerDrivers
from snooze.scheduling.assignment import AssignmentPolicy
from snooze.scheduling.dispatching import DispatchPolicy

logger = logging.getLogger(__name__)

TICK_S = 0.25
SETTLE_S = 3.0
"""After an election, time for managers and hosts to join before lost work is taken up again."""
COMMAND_TIMEOUT_S = 900.0
MIGRATION_TIMEOUT_S = 86_400.0
"""A manager gives up much earlier: by its hosts' own limits."""
FLUSH_S = 0.4
MAX_COMMAND_KEYS = 10_000


class LeaderService:
    """What the elected group leader does."""

    def __init__(
        self,
        settings: GroupManagerSettings,
        identity: ManagerDescription,
        epoch: int,
        coordinator: Coordinator,
        fence: Check,
        clock: Clock,
        is_leader: Callable[[], bool],
        step_down: Callable[[], None],
        power: PowerDrivers | None = None,
    ) -> None:
        """``power`` makes the controllers of hosts, and outlives this leader."""
        self.identity = identity
        self.epoch = epoch
        self._clock = clock
        self._coordinator = coordinator
        self._fence = fence
        self._is_leader = is_leader
        self._started_s = clock.monotonic_s()
        self.registry = Registry()
        self.events = EventLog(clock)
        self.journal = Journal(coordinator, fence, step_down)
        leases = AddressLeases(settings.addresses.subnets, settings.addresses.quarantine_s)
        self.tasks = SubmissionCore(
            self.registry,
            leases,
            dispatch_policy=DispatchPolicy(settings.leader.dispatching_policy),
            encode_mac=settings.addresses.mac_encoding == "snooze",
            max_pending_tasks=settings.submission.max_pending_tasks,
            retention_ms=int(settings.submission.task_retention_s * 1000),
            start_timeout_s=settings.submission.start_timeout_s,
            restart_window_ms=int(settings.recovery.restart_window_s * 1000),
        )
        self._membership = CoreRunner(
            membership.MembershipCore(
                self.registry,
                identity.manager_id,
                epoch,
                AssignmentPolicy(settings.leader.assignment_policy),
                manages_alone=settings.leader.manages_hosts == "alone",
            ),
            self._perform_membership,
            clock,
        )
        self._submissions = CoreRunner(self.tasks, self._perform_submission, clock)
        self.commands = Commands(
            self.registry,
            clock,
            epoch,
            self._ask_command,
            self._task_started,
            self._task_moved,
            lambda vm_id: self._submissions.feed(submissions.Destroyed(vm_id, clock.wall_ms())),
            self._restart_asked,
            self.journal.written,
        )
        self.planner = Planner()
        self._decision_files = DecisionFiles(settings.decisions)
        self.decisions = DecisionLog(
            clock, self.events, identity.manager_id, self._decision_files.add
        )
        self._authority = Authority(coordinator, fence, settings.recovery, clock, step_down)
        self.drains = Drains(
            self.registry,
            settings.placement.overcommit.factors(),
            settings.placement.headroom.factors(),
            epoch,
            clock,
            self.planner,
            ask=self._ask_command,
            record_host=self.record_host,
            direct=self._direct,
            announce=self._announce,
            decided=self.decisions.note,
            task_started=self._task_started,
            task_moved=self._task_moved,
        )
        self.links = ManagerLinks(
            self.registry,
            ManagerWelcome(identity.manager_id, epoch),
            self._answer_manager,
            self._manager_joined,
            self._on_notice,
            self._manager_left,
        )
        placement, drivers = settings.placement, power or PowerDrivers()
        self.energy = Energy(
            self.registry,
            settings,
            placement.overcommit.factors().as_array() * placement.headroom.factors().as_array(),
            epoch,
            identity.manager_id,
            clock,
            self.links,
            drivers,
            self.journal,
            record_host=self.record_host,
            announce=self._announce,
            decided=self.decisions.own,
            ha_lacks=self._ha_lacks,
        )
        self.autonomy = LeaderAutonomy(
            settings,
            epoch,
            self.registry,
            clock,
            self.journal,
            self.links,
            self.decisions,
            self.events.add,
            self.energy.judge,
        )
        self.energy.mode_of = self.autonomy.host_mode
        self.tasks.limit = self.energy.core.limit
        self.drains.join(self.energy)
        self.recovery = Recovery(
            self.registry,
            settings.recovery,
            epoch,
            clock,
            self.links,
            drivers,
            self.decisions,
            self.energy.core.limit,
            term_s=lambda: self._authority.term_s,
            is_leader=is_leader,
            record_host=self.record_host,
            proven=lambda host_id, proof: self._submissions.feed(
                submissions.HostDown(host_id, proof, clock.wall_ms())
            ),
            announce=self._announce,
        )
        self.disks = OrphanDisks(
            self.registry, settings.recovery, epoch, clock, self.links, self._announce
        )
        self.across = Across(settings, clock, self, self._ask_command)
        self.recovery.core.may_fence = self.autonomy.may_fence
        self.tasks.may_restart = self.autonomy.may_restart
        self._effects = SubmissionEffects(
            epoch, clock, self.journal, self.links, self._ask_command, self._submissions.feed
        )
        self._followers = begin(LoadsFollower(self.registry), *self.energy.followers())
        self._questions = Questions[object]()
        self._waiters = TaskWaiters(clock)
        self._tasks = TaskSet()
        self._recorded_hosts: set[str] = set()
        self.commands_by_key: dict[str, str] = {}
        self.ready = False

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Read the record and begin to serve.

        Raises:
            RemoteError: the store does not answer.
            ExecutionError: the record cannot be read.
        """
        loaded = await takeover.read_record(self._coordinator, self._fence)
        await self._authority.load()
        await self.energy.load(self._coordinator)
        await self.autonomy.load(self._coordinator)
        self.decisions.load(await asyncio.to_thread(self._decision_files.read))
        self.journal.start()
        self._recorded_hosts = {host.host_id for host in loaded.hosts}
        feed = self._membership.feed, self._submissions.feed
        await takeover.tell(loaded, *feed, self.now_ms())
        self.events.add(
            "leader.elected",
            self.identity.manager_id,
            f"group manager {self.identity.hostname} ({self.identity.control}) leads, "
            f"epoch {self.epoch}",
        )
        self.energy.start()
        self._tasks.spawn(every(TICK_S, self._tick))
        self._tasks.spawn(self._authority.keep())
        self._started_s = self._clock.monotonic_s()
        self.ready = True

    async def close(self, *, flush: bool) -> None:
        """Stop leading; with ``flush`` (a clean stop), queued records are written first."""
        self.ready = False
        closing = (self.commands, self.drains, self.across, self.energy, self.disks)
        for part in (*closing, self.planner, self.recovery, self.autonomy.keepers):
            await part.close()
        await self.journal.close(FLUSH_S if flush else 0.0)
        self._membership.stop()  # that all managers are gone is nothing to decide upon
        self._submissions.stop()
        self.links.close("this group manager no longer leads")
        await self._tasks.close()
        gone = NotLeader("this group manager stopped leading; ask again", retry_after_s=0.5)
        self._questions.close(gone)
        self._waiters.close()
        self.events.close()
        await asyncio.to_thread(self._decision_files.close)

    def require(self) -> None:
        """Refuse to serve while not leading.

        Raises:
            NotLeader: the session is suspended or lost, or the record not yet read.
        """
        if not self.ready or not self._is_leader():
            raise NotLeader("there is no leader at this moment; try again", retry_after_s=0.5)

    @property
    def settled(self) -> bool:
        """Whether managers and hosts have had time to join this leader."""
        return self._clock.monotonic_s() - self._started_s > SETTLE_S

    def now_ms(self) -> int:
        """The time on the wall."""
        return self._clock.wall_ms()

    async def _tick(self) -> None:
        if self.settled:
            await catch_up(self._followers)
        if self.ready and self._is_leader():
            self._membership.feed(membership.Ticked())
            self._submissions.feed(submissions.Ticked(self._clock.wall_ms(), self.settled))
            self.recovery.tick()
            for part in (self.drains, self.across, self.energy, self.disks):
                part.tick(settled=self.settled)

    # ------------------------------------------------------------ managers

    def accept(self, hello: ManagerHello) -> LinkAccepted:
        """Let a manager in.

        Raises:
            NotLeader: we do not lead.
        """
        self.require()
        return self.links.accept(hello)

    def _manager_joined(self, hello: ManagerHello) -> None:
        manager_id = hello.manager.manager_id
        self._membership.feed(membership.ManagerJoined(hello.manager, hello.hosts))
        now_ms, moving = self._clock.wall_ms(), frozenset(hello.moving)
        # What is anywhere comes first: a VM that moved while nothing was heard of this manager is
        # with one host of it and missing on another, whichever is told first.
        moved = [vm for state in hello.hosts for vm in state.vms if is_news(self.registry, vm)]
        self._submissions.feed(submissions.VmsReported(manager_id, moved, now_ms))
        for state in hello.hosts:
            host_id = state.host.host_id
            reported = submissions.VmsReported(manager_id, state.vms, now_ms, host_id, moving)
            self._submissions.feed(reported)
            self.energy.host_seen(host_id)
        self._submissions.feed(submissions.ManagerHeard(manager_id, now_ms, moving))
        self.recovery.heard(manager_id, [state.host.host_id for state in hello.hosts])
        self._tasks.spawn(self.autonomy.joined(manager_id))

    def _manager_left(self, manager_id: str, reason: str) -> None:
        self._membership.feed(membership.ManagerLeft(manager_id, reason))
        if self.ready:
            self.autonomy.left(manager_id)

    def _on_notice(self, manager_id: str, notice: ManagerNotice) -> None:
        now_ms = self._clock.wall_ms()
        match notice:
            case VmsChanged():
                self._submissions.feed(submissions.VmsReported(manager_id, notice.vms, now_ms))
            case HostJoined():
                self._membership.feed(membership.HostReported(manager_id, notice.state))
                vms, host_id = notice.state.vms, notice.state.host.host_id
                self._submissions.feed(submissions.VmsReported(manager_id, vms, now_ms, host_id))
                self.energy.host_seen(host_id)
                self.recovery.heard(manager_id, [host_id])
            case HostGone():
                self._membership.feed(membership.HostLeft(manager_id, notice))
                self.energy.host_went(notice.host_id)
            case HostDisks():
                self.disks.told(notice)
            case HostImages():
                self._membership.feed(membership.ImagesArrived(manager_id, notice))
            case ManagerSummary():
                self._membership.feed(membership.SummaryArrived(manager_id, notice))
            case Happened():
                self.events.add(
                    notice.kind, notice.subject, notice.message, notice.cause, notice.at_ms
                )
            case VmMigrationMoved():
                self._migration_moved(notice.cause, notice.progress)
            case DecisionMade():
                self.decisions.add(notice.decision)
            case HostOverloaded() | HostToEmpty() | Held():
                self.across.told(manager_id, notice)

    def _migration_moved(self, task_id: str, progress: MigrationProgress) -> None:
        task = self.tasks.tasks.get(task_id)
        if task is not None and not task.ended:
            task.progress = progress
            self._waiters.wake(task_id)

    async def _answer_manager(self, message: ManagerRequest) -> msgspec.Struct:
        match message:
            case RelayToHost():
                self.require()
                return await self.links.relay_for(self.epoch, message)
            case AskMoving():
                return self.links.not_moving(message)
            case PauseEnergy():
                self.require()
                await self.autonomy.pause_sleep(message.manager_id, paused=message.paused)
                return Accepted()
            case TellDecisions():
                self.autonomy.keepers.recall(message.decisions)
                return Accepted()
            case RenewLease():
                return LeaseGranted(self._authority.left_s() if self._is_leader() else 0.0)

    async def _ask_command(self, manager_id: str, order: VmOrder) -> VmStatus:
        # The answer is not taken as news of the VM: what the manager noticed later may already be
        # here, and every change comes as a notice anyway.
        migrates = order.command is VmCommand.MIGRATE
        timeout_s = MIGRATION_TIMEOUT_S if migrates else COMMAND_TIMEOUT_S
        answer = await self.links.require(manager_id).request(order, VmOrderDone, timeout_s)
        return answer.status

    # ------------------------------------------------------------ hosts

    async def assign(self, request: AssignmentRequest) -> Assignment:
        """Give a host a manager.

        Raises:
            NotLeader: we do not lead.
            TooBusy: no manager has joined yet.
        """
        self.require()
        answer = await self._questions.ask(
            lambda request_id: self._membership.feed(membership.HostAsked(request_id, request))
        )
        if isinstance(answer, Assignment):
            return answer
        if isinstance(answer, ErrorReport):
            raise answer.as_error()
        raise NotLeader("the leader changed; ask again")

    # ------------------------------------------------------------ submissions and tasks

    async def submit(self, event: Callable[[int], submissions.Submitted]) -> str:
        """Take a submission in; its task's id once it is recorded.

        Raises:
            InvalidRequest, TooBusy, NotLeader: it was not accepted; nothing changed.
        """
        self.require()
        answer = await self._questions.ask(
            lambda request_id: self._submissions.feed(event(request_id))
        )
        if isinstance(answer, submissions.AnswerSubmission):
            if answer.error is not None:
                raise answer.error.as_error()
            return answer.task_id
        raise NotLeader("the leader changed; ask again with the same idempotency key")

    def task(self, task_id: str) -> Task:
        """A task by its id.

        Raises:
            NotFound: no such, or its retention is over.
        """
        self.require()
        task = self.tasks.tasks.get(task_id)
        if task is None or task_id in self.tasks.waiting:
            raise NotFound(f"no task {task_id!r}; it may be too old")
        return task

    def command(self, name: str, command: VmCommand, request: CommandRequest) -> Task:
        """Set a command on a VM going. Raises: see ``Commands.start``."""
        self.require()
        return self.commands.start(name, command, request)

    def remember_key(self, key: str, task_id: str) -> None:
        """Note under which idempotency key a command came; the oldest are forgotten."""
        while len(self.commands_by_key) >= MAX_COMMAND_KEYS:
            del self.commands_by_key[next(iter(self.commands_by_key))]
        self.commands_by_key[key] = task_id

    async def wait(self, task: Task, wait_s: float) -> Task:
        """Wait until the task has ended, at most ``wait_s``."""
        return await self._waiters.wait(task, wait_s)

    def _task_started(self, task: Task) -> None:
        self.tasks.tasks[task.task_id] = task

    def _task_moved(self, task: Task) -> None:
        if task.state in TASK_ENDED:
            self.tasks.note_ended(task)
            error = f": {task.error.message}" if task.error is not None else ""
            name = next((vm.name for vm in task.vms.values()), "")
            outcome = "failed" if task.state is TaskState.FAILED else "done"
            words = f"{task.kind} {name}".rstrip()
            self.events.add(f"command.{outcome}", name, f"{words}: {outcome}{error}", task.task_id)
        self._waiters.wake(task.task_id)

    # ------------------------------------------------------------ effects

    def _perform_membership(self, effect: membership.MembershipEffect) -> None:
        match effect:
            case membership.AnswerHost():
                self._answer_host(effect)
            case membership.HandOver():
                release = ReleaseHost(self.epoch, "rebalance", effect.host_id, effect.assignment)
                self._tasks.spawn(self.links.tell(effect.manager_id, release))
            case membership.TellForget():
                forget = ForgetHost(self.epoch, effect.host_id)
                self._tasks.spawn(self.links.tell(effect.manager_id, forget))
            case membership.RecordHost():
                self.record_host(effect.record.host_id)
            case membership.Announce():
                self._announce(effect)

    def _answer_host(self, effect: membership.AnswerHost) -> None:
        """Answer a host's question, after its record is written if there is one to write."""
        record = effect.record
        if record is None:
            self._questions.answer(effect.request_id, effect.answer)
            return

        def done(error: ErrorReport | None) -> None:
            if error is None:
                self._membership.feed(membership.HostRecorded(record.host_id))
            self._questions.answer(effect.request_id, error or effect.answer)

        try:
            self.record_host(record.host_id, done)
        except TooBusy as busy:
            done(ErrorReport.of(busy))

    def record_host(self, host_id: str, done: Done | None = None) -> None:
        """Have the record say of a host what the registry says now.

        Not what it said when a core ordered it: another may have changed the entry since.

        Raises:
            TooBusy: too much waits to be written, and ``done`` was given.
        """
        path = record_layout.host_path(host_id)
        data = records.encode(self.registry.hosts[host_id].record())
        known = host_id in self._recorded_hosts
        self.journal.write([Put(path, data) if known else Create(path, data)], done)
        self._recorded_hosts.add(host_id)

    def _ha_lacks(self, gone: frozenset[str]) -> str:
        return self.recovery.lacks(gone)

    def _direct(self, host_id: str) -> None:
        self.recovery.direct(host_id)

    def _announce(self, effect: membership.Announce) -> None:
        self.events.add(effect.kind, effect.subject, effect.message, effect.cause)

    def _perform_submission(self, effect: submissions.SubmissionEffect) -> None:
        match effect:
            case submissions.AnswerSubmission():
                self._questions.answer(effect.request_id, effect)
            case submissions.RecordTask():
                self._effects.record_task(effect)
            case submissions.UpdateRecords():
                self.journal.write(updates(effect))
            case submissions.AskManager():
                with caused_by(effect.cause):
                    self._tasks.spawn(self._effects.place(effect))
            case submissions.RejoinManager():
                self.links.close_one(effect.manager_id, effect.reason)
            case submissions.TaskMoved():
                self._waiters.wake(effect.task_id)
            case submissions.RecordRestarts():
                self._effects.record_restarts(effect)
            case submissions.StartThere():
                self._tasks.spawn(self._effects.start_there(effect))
            case submissions.Crossed():
                self._direct(effect.host_id)
            case submissions.Decided():
                self.decisions.note(effect)
            case membership.Announce():
                self._announce(effect)

    def _restart_asked(self, vm_id: str) -> str:
        """A person wants a VM that is nowhere in reach started elsewhere; why not, or nothing."""
        why_not = self.tasks.why_not(self.registry.vms[vm_id])
        if not why_not:
            self._submissions.feed(submissions.RestartAsked(vm_id, self._clock.wall_ms()))
        return why_not

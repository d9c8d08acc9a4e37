"""A manager's shell: links to its hosts and to the leader; the core decides.

The manager serves as long as its session with the store of record lives: suspended, it takes no new
orders; lost, it lets its hosts go, so that they find another manager.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import assert_never

import msgspec

from snooze.common.clock import Clock
from snooze.common.core_runner import CoreRunner
from snooze.common.errors import (
    Conflict,
    ErrorReport,
    NotFound,
    NotLeader,
    Problem,
    RemoteError,
    SettingsError,
    SnoozeError,
    StaleEpoch,
    TooBusy,
)
from snooze.common.logging_setup import caused_by
from snooze.common.resources import Capacity
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.task_set import TaskSet
from snooze.common.transport.channel import CloseCause, CloseReason, LinkStats
from snooze.common.transport.link import Link, LinkLimits, Service, was_sent
from snooze.common.transport.link_server import Accepted as LinkAccepted
from snooze.common.vm_lifecycle import HOLDS_CAPACITY
from snooze.common.wire import (
    PROTOCOL,
    Accepted,
    AskMoving,
    DecisionMade,
    DescribeHosts,
    DirectHosts,
    DisksSeen,
    ExplainHost,
    ForgetHost,
    HostAnswer,
    HostDetail,
    HostDetails,
    HostDisks,
    HostHello,
    HostNotice,
    HostOrder,
    HostRequest,
    HostSamples,
    HostWelcome,
    ImagesChanged,
    JudgeDecision,
    KeepDecisions,
    LeaderOrder,
    ManagerDescription,
    MigrateOut,
    MigrationMoved,
    NotMoving,
    PlaceVms,
    Reconfigure,
    RelayedAnswer,
    RelayedOrder,
    RelayToHost,
    ReleaseHost,
    SetAutonomy,
    SleepHost,
    StartVm,
    TellDecisions,
    VmChanged,
    VmMigrationMoved,
    VmOrder,
    VmOrderDone,
)
from snooze.groupmanager.decision_copies import batches
from snooze.groupmanager.manager import manager_events as events
from snooze.groupmanager.manager.autonomy import ManagerAutonomy
from snooze.groupmanager.manager.autonomy_events import LookOn, PlanConsolidation, PlanRelocation
from snooze.groupmanager.manager.host_views import describe
from snooze.groupmanager.manager.leader_link import LeaderLink, LeaderNews
from snooze.groupmanager.manager.leases import Leases
from snooze.groupmanager.manager.manager_core import ManagerCore
from snooze.groupmanager.manager.monitoring import Monitoring
from snooze.groupmanager.manager.summaries import Summaries
from snooze.scheduling import placement

logger = logging.getLogger(__name__)

ORDER_TIMEOUT_S = 60.0
MIGRATION_MARGIN_S = 60.0
RELAY_TIMEOUT_S = 3600.0
ASK_MOVING_S = 10.0
TELL_COPIES_S = 10.0


class ManagerService:
    """What every group manager does for its hosts."""

    def __init__(
        self,
        settings: GroupManagerSettings,
        identity: ManagerDescription,
        clock: Clock,
        limits: LinkLimits,
        is_serving: Callable[[], bool],
        leader_news: LeaderNews,
    ) -> None:
        """Nothing starts yet.

        Args:
            is_serving: false while the session with the store is not alive.
            leader_news: see ``LeaderLink``.
        """
        self._is_serving = is_serving
        self._start_timeout_s = settings.submission.start_timeout_s
        overcommit, headroom = settings.placement.overcommit, settings.placement.headroom
        self.core = ManagerCore(
            _policy_named(settings.placement.policy),
            Capacity(overcommit.cpu, overcommit.memory, overcommit.network, overcommit.network),
            Capacity(
                1 - headroom.cpu, 1 - headroom.memory, 1 - headroom.network, 1 - headroom.network
            ),
        )
        self._runner = CoreRunner(self.core, self._perform, clock)
        self._links: dict[str, Link] = {}
        self._left: set[Link] = set()
        self._clock = clock
        self.monitoring = Monitoring(settings.monitoring.interval_s)
        self.leader = LeaderLink(
            identity,
            self.core.table,
            limits,
            self._answer_leader,
            self._leader_sought,
            self._leader_joined,
            leader_news,
            clock,
            lambda: self.core.migrations.moving,
        )
        self.leases = Leases(self.core.table, self.leader, clock, settings.recovery.lease_s)
        self.summaries = Summaries(
            self.core.table,
            self.core.limit,
            self.monitoring,
            self.leader,
            clock,
            settings.heartbeat.interval_s,
            self.core.sleeping.idle,
        )
        self.load = ManagerAutonomy(
            settings, identity.manager_id, self.core, self.monitoring, self._runner, clock
        )
        self._requests = itertools.count(1)
        self._answers: dict[int, asyncio.Future[msgspec.Struct]] = {}
        self._tasks = TaskSet()

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to look for the leader."""
        self._tasks.spawn(self.leader.keep())
        self._tasks.spawn(self.summaries.keep())
        self._tasks.spawn(self.leases.keep())
        self._tasks.spawn(self._ask_about_arrivals())
        self._tasks.spawn(
            self.load.keep(lambda: self._is_serving() and self.leader.link is not None)
        )

    async def _ask_about_arrivals(self) -> None:
        """Whether the VMs that hosts have awaited for long are still on their way."""
        while True:
            await asyncio.sleep(ASK_MOVING_S)
            vm_ids = self.core.migrations.arrivals.old(self._clock.monotonic_s())
            link = self.leader.link
            if not vm_ids or link is None:
                continue
            try:
                answer = await link.request(AskMoving(vm_ids), NotMoving, ASK_MOVING_S)
            except SnoozeError as error:
                logger.debug("the leader does not say what moves", extra={"error": error.message})
            else:
                self._runner.feed(events.ArrivalsEnded(answer.vm_ids))

    async def close(self) -> None:
        """Let hosts and leader go; VMs keep running."""
        await self._tasks.close()
        await self.load.close()
        self.leader.close("this group manager stops")
        self.release_all("this group manager stops")
        gone = NotLeader("this group manager stops", retry_after_s=0.5)
        for future in self._answers.values():
            if not future.done():
                future.set_exception(gone)

    def _is_joined(self) -> bool:
        return self._is_serving() and self.leader.link is not None

    def _leader_sought(self) -> None:
        self.load.forbid()

    def _leader_joined(self) -> None:
        for decision in self.load.decisions():
            self.leader.tell(DecisionMade(decision))
        self._tasks.spawn(self._tell_copies())
        self.summaries.now()

    async def _tell_copies(self) -> None:
        """A leader that knows them already makes nothing of it."""
        link = self.leader.link
        for batch in batches(self.load.copies):
            try:
                if link is not None:
                    await link.request(TellDecisions(batch), Accepted, TELL_COPIES_S)
            except SnoozeError as error:
                # Other keepers have them, too; and the next leader is told again.
                logger.info("copies of decisions are not told", extra={"error": error.message})
                return

    def release_all(self, reason: str) -> None:
        """Let all hosts go; they find another manager by themselves."""
        for link in list(self._links.values()):
            link.close(reason)

    # ------------------------------------------------------------ for metrics

    @property
    def now_s(self) -> float:
        """Of our clock."""
        return self._clock.monotonic_s()

    @property
    def runner(self) -> CoreRunner[events.ManagerEvent, events.ManagerEffect]:
        """What feeds the core."""
        return self._runner

    def link_stats(self) -> tuple[list[LinkStats], int]:
        """Of the links to hosts, and the bytes that wait on them."""
        links = self._links.values()
        return [link.stats for link in links], sum(link.buffered_bytes for link in links)

    # ------------------------------------------------------------ hosts

    def accept(self, hello: HostHello) -> LinkAccepted:
        """Let a host in.

        Raises:
            TooBusy: our session with the store is not alive.
            StaleEpoch: the host is here already with a newer assignment.
        """
        if not self._is_serving():
            raise TooBusy("this group manager has no session with the store", retry_after_s=0.5)
        if hello.protocol != PROTOCOL:
            raise StaleEpoch(
                f"this group manager speaks protocol {PROTOCOL}, not {hello.protocol}: upgrade"
            )
        host_id = hello.host.host_id
        known = self.core.table.hosts.get(host_id)
        if known is not None and known.epoch > hello.epoch:
            raise StaleEpoch(f"host {host_id} has joined with a newer assignment")

        def opened(link: Link) -> None:
            former = self._links.pop(host_id, None)
            if former is not None:
                former.close("the host joined again")
            self._links[host_id] = link
            self._runner.feed(events.HostJoined(hello))
            self.summaries.soon()
            link.closed.add_done_callback(
                lambda closed: (
                    self._host_gone(hello, link, closed.result())
                    if not closed.cancelled()
                    else None
                )
            )

        service = Service(
            requests=HostRequest,
            answer=lambda request: self.leases.grant(host_id, hello.epoch),
            notifications=HostNotice,
            on_notification=lambda notice: self._on_notice(host_id, notice),
        )
        return LinkAccepted(HostWelcome(self.leader.identity), service, opened)

    def _host_gone(self, hello: HostHello, link: Link, reason: CloseReason) -> None:
        left = link in self._left
        self._left.discard(link)
        if self._links.get(hello.host.host_id) is not link:
            return
        del self._links[hello.host.host_id]
        self.monitoring.remove_host(hello.host.host_id, self._clock.monotonic_s())
        silent = reason.cause is CloseCause.SILENT
        self._runner.feed(
            events.HostLost(hello.host.host_id, hello.epoch, str(reason), left, silent)
        )
        self.summaries.soon()

    def _on_notice(self, host_id: str, notice: HostNotice) -> None:
        match notice:
            case VmChanged():
                self._runner.feed(events.VmNoticed(host_id, notice))
            case HostSamples():
                if host_id not in self._links:
                    return
                try:
                    self.monitoring.push(host_id, notice, self._clock.monotonic_s())
                except ValueError as error:
                    logger.warning("samples refused", extra={"host": host_id, "error": str(error)})
            case ImagesChanged():
                self._runner.feed(events.ImagesNoticed(host_id, notice.images))
            case DisksSeen():
                self.leader.tell(HostDisks(host_id, notice.disks), droppable=True)
            case MigrationMoved():
                self.leader.tell(VmMigrationMoved(notice.cause, notice.progress), droppable=True)

    async def _order(self, effect: events.OrderHost) -> None:
        """Send an order; its outcome is an event."""
        try:
            if effect.relayed:
                leader = self.leader.link
                if leader is None:
                    raise TooBusy("there is no leader to reach the other group manager by")
                message = RelayToHost(effect.order.cause, effect.host_id, effect.order)
                relayed = await leader.request(message, RelayedAnswer, RELAY_TIMEOUT_S)
                answer: HostAnswer = relayed.answer
            else:
                link = self._links.get(effect.host_id)
                if link is None:
                    raise TooBusy(f"host {effect.host_id} has just left")
                answer = await link.request(
                    effect.order, _HOST_ANSWER, self._timeout_of(effect.host_id, effect.order)
                )
        except SnoozeError as error:
            unknown = isinstance(error, RemoteError) and was_sent(error)
            logger.log(
                logging.WARNING if unknown else logging.INFO,
                "what came of an order is not known" if unknown else "an order was not carried out",
                extra={
                    "host": effect.host_id,
                    "order": type(effect.order).__name__,
                    "error": error.message,
                },
            )
            self._runner.feed(events.HostAnswered(effect.order_id, ErrorReport.of(error), unknown))
        else:
            self._runner.feed(events.HostAnswered(effect.order_id, answer))
        self.summaries.soon()

    def _timeout_of(self, host_id: str, order: HostOrder) -> float:
        match order:
            case StartVm():
                return self._start_timeout_s
            case MigrateOut():
                host = self.core.table.hosts.get(host_id)
                limit = host.description.hypervisor.timeout_s if host is not None else 0
                return limit + MIGRATION_MARGIN_S
            case _:
                return ORDER_TIMEOUT_S

    async def _answer_leader(self, message: LeaderOrder) -> msgspec.Struct:
        """The leader's orders.

        Raises:
            StaleEpoch: from a leader older than one we have joined.
            TooBusy: our session with the store is not alive.
        """
        if isinstance(message, DescribeHosts):
            return HostDetails(self.describe(message))
        if message.epoch < self.leader.epoch:
            raise StaleEpoch(f"a leader of epoch {self.leader.epoch} was heard of")
        if not self._is_serving():
            raise TooBusy("this group manager has no session with the store", retry_after_s=0.5)
        match message:
            case PlaceVms():
                return await self._ask(lambda i: events.PlaceAsked(i, message))
            case VmOrder():
                return await self._ask(lambda i: events.OrderAsked(i, message))
            case RelayedOrder():
                return await self._ask(lambda i: events.RelayAsked(i, message))
            case ReleaseHost():
                self._runner.feed(events.ReleaseAsked(message.host_id, message.assignment))
                return Accepted()
            case ForgetHost():
                self._close_host(message.host_id, "the host has joined another group manager")
                return Accepted()
            case SleepHost():
                return await self._ask(lambda i: events.SleepAsked(i, message))
            case DirectHosts():
                self._runner.feed(events.Directed(message.directives))
                self.leases.directed()
                self.summaries.soon()
                return Accepted()
            case SetAutonomy():
                self.load.set(message)
                return Accepted()
            case KeepDecisions():
                self.load.copies.keep(message.decisions)
                return Accepted()
            case JudgeDecision():
                return await self._ask(lambda i: self.load.judged(i, message))
            case ExplainHost():
                if message.host_id not in self.core.table.hosts:
                    raise NotFound(f"host {message.host_id} is not here")
                return await self._ask(lambda i: self.load.explain_asked(i, message.host_id))
            case Reconfigure():
                return await self.consolidate(message.who)
            case _:
                assert_never(message)

    async def consolidate(self, who: str) -> DecisionMade:
        """Consolidate now.

        Raises:
            Conflict: not now, and why.
        """
        answer = await self._ask(lambda i: self.load.consolidate_asked(i, who))
        if isinstance(answer, DecisionMade):
            return answer
        raise Conflict("this group manager does not decide by itself")

    async def _ask(self, event: Callable[[int], events.ManagerEvent]) -> msgspec.Struct:
        request_id = next(self._requests)
        future: asyncio.Future[msgspec.Struct] = asyncio.get_running_loop().create_future()
        self._answers[request_id] = future
        try:
            self._runner.feed(event(request_id))
            return await future
        finally:
            self._answers.pop(request_id, None)

    # ------------------------------------------------------------ effects

    def _perform(self, effect: events.ManagerEffect) -> None:
        match effect:
            case events.OrderHost():
                with caused_by(effect.order.cause):
                    self._tasks.spawn(self._order(effect))
            case events.AnswerLeader():
                self._resolve(effect)
            case events.TellLeader():
                self.leader.tell(effect.notice)
            case PlanConsolidation() | PlanRelocation() | LookOn():
                self.load.perform(effect)
            case events.CloseHost():
                self._close_host(effect.host_id, effect.reason)
            case _:
                assert_never(effect)

    def _resolve(self, effect: events.AnswerLeader) -> None:
        future = self._answers.get(effect.request_id)
        if future is None or future.done():
            return
        if isinstance(effect.answer, ErrorReport):
            future.set_exception(effect.answer.as_error())
            return
        if (
            isinstance(effect.answer, VmOrderDone)
            and effect.answer.status.state not in HOLDS_CAPACITY
        ):
            self.summaries.answer_after(future, effect.answer)
            return
        future.set_result(effect.answer)

    def _close_host(self, host_id: str, reason: str) -> None:
        link = self._links.get(host_id)
        if link is not None:
            self._left.add(link)
            link.close(reason)

    def describe(self, request: DescribeHosts) -> list[HostDetail]:
        """All about our hosts, or those asked for."""
        return describe(self.core.table, self.monitoring, request)


def _policy_named(name: str) -> placement.PlacementPolicy:
    try:
        return placement.policy_named(name)
    except ValueError as error:
        problem = Problem("placement.policy", str(error))
        raise SettingsError(f"placement.policy: {error}", problems=[problem]) from None


_HOST_ANSWER: type[HostAnswer] = HostAnswer  # type: ignore[assignment]  # a union is a type form

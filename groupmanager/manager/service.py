"""A manager's shell: links to its hosts and to the leader; the core decides.

The manager serves as long as its session with the store of record lives: suspended, it takes no new
orders; lost, it lets its hosts go, so that they find another manager.
"""

import asyncio
import itertools
import logging
import math
from collections.abc import Callable
from typing import assert_never

import msgspec

from snooze.common.clock import Clock
from snooze.common.core_runner import CoreRunner
from snooze.common.errors import (
    Conflict,
    ErrorReport,
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
from snooze.common.transport.link import Link, LinkLimits, Service, connect, was_sent
from snooze.common.transport.link_server import Accepted as LinkAccepted
from snooze.common.vm_lifecycle import HOLDS_CAPACITY
from snooze.common.wire import (
    PROTOCOL,
    Accepted,
    DescribeHosts,
    DirectHosts,
    ForgetHost,
    HostAnswer,
    HostDetail,
    HostDetails,
    HostGone,
    HostHello,
    HostJoined,
    HostNotice,
    HostOrder,
    HostSamples,
    HostWelcome,
    ImagesChanged,
    LeaderOrder,
    ManagerDescription,
    ManagerHello,
    ManagerNotice,
    ManagerSummary,
    ManagerWelcome,
    MigrateOut,
    MigrationMoved,
    PlaceVms,
    RelayedAnswer,
    RelayedOrder,
    RelayToHost,
    ReleaseHost,
    SetAutonomy,
    SleepHost,
    StartVm,
    VmChanged,
    VmDetail,
    VmMigrationMoved,
    VmOrder,
    VmOrderDone,
    VmsChanged,
    VmStatus,
)
from snooze.groupmanager.manager import manager_events as events
from snooze.groupmanager.manager.host_table import VmEntry
from snooze.groupmanager.manager.manager_core import ManagerCore
from snooze.groupmanager.manager.usage import HostUsage, total
from snooze.scheduling import dispatching, placement

logger = logging.getLogger(__name__)

ORDER_TIMEOUT_S = 60.0
MIGRATION_MARGIN_S = 60.0
RELAY_TIMEOUT_S = 3600.0
RETRY_MIN_S = 0.05
RETRY_MAX_S = 1.0
SUMMARY_DELAY_S = 0.02
"""Changes within this time go up in one summary, at least."""
SUMMARY_SHARE = 0.05
"""Summaries take at most this part of the manager's time: many unlike hosts take longer."""


class ManagerService:
    """What every group manager does for its hosts."""

    def __init__(
        self,
        settings: GroupManagerSettings,
        identity: ManagerDescription,
        clock: Clock,
        limits: LinkLimits,
        is_serving: Callable[[], bool],
    ) -> None:
        """``is_serving`` is false while the session with the store is not alive."""
        self.identity = identity
        self._clock = clock
        self._limits = limits
        self._is_serving = is_serving
        self._start_timeout_s = settings.submission.start_timeout_s
        self._summary_interval_s = settings.heartbeat.interval_s
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
        self.usage: dict[str, HostUsage] = {}
        self._leader: Link | None = None
        self.leader_epoch = 0
        self._leader_wanted: ManagerDescription | None = None
        self._leader_changed = asyncio.Event()
        self._statuses: dict[str, VmStatus] = {}
        self._flushing = False
        self._summary_due = False
        self._summary_cost_s = 0.0
        self._summary_sent_s = -math.inf
        self._after_summary: list[tuple[asyncio.Future[msgspec.Struct], msgspec.Struct]] = []
        self._requests = itertools.count(1)
        self._answers: dict[int, asyncio.Future[msgspec.Struct]] = {}
        self._tasks = TaskSet()

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to look for the leader."""
        self._tasks.spawn(self._keep_leader())
        self._tasks.spawn(self._summaries())

    async def close(self) -> None:
        """Let hosts and leader go; VMs keep running."""
        await self._tasks.close()
        if self._leader is not None:
            self._leader.close("this group manager stops")
        self.release_all("this group manager stops")
        gone = NotLeader("this group manager stops", retry_after_s=0.5)
        for future in self._answers.values():
            if not future.done():
                future.set_exception(gone)

    def release_all(self, reason: str) -> None:
        """Let all hosts go; they find another manager by themselves."""
        for link in list(self._links.values()):
            link.close(reason)

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
            self.usage[host_id] = HostUsage()
            self._runner.feed(events.HostJoined(hello))
            self._send_summary_soon()
            link.closed.add_done_callback(
                lambda closed: (
                    self._host_gone(hello, link, str(closed.result()))
                    if not closed.cancelled()
                    else None
                )
            )

        service = Service(
            notifications=HostNotice,
            on_notification=lambda notice: self._on_notice(host_id, notice),
        )
        return LinkAccepted(HostWelcome(self.identity), service, opened)

    def _host_gone(self, hello: HostHello, link: Link, reason: str) -> None:
        left = link in self._left
        self._left.discard(link)
        if self._links.get(hello.host.host_id) is not link:
            return
        del self._links[hello.host.host_id]
        self.usage.pop(hello.host.host_id, None)
        self._runner.feed(events.HostLost(hello.host.host_id, hello.epoch, reason, left))
        self._send_summary_soon()

    def _on_notice(self, host_id: str, notice: HostNotice) -> None:
        match notice:
            case VmChanged():
                self._runner.feed(events.VmNoticed(host_id, notice))
            case HostSamples():
                usage = self.usage.get(host_id)
                if usage is not None:
                    try:
                        usage.add(notice)
                    except ValueError as error:
                        logger.warning(
                            "samples refused", extra={"host": host_id, "error": str(error)}
                        )
            case ImagesChanged():
                self._runner.feed(events.ImagesNoticed(host_id, notice.images))
            case MigrationMoved():
                self._tell_leader(VmMigrationMoved(notice.cause, notice.progress), droppable=True)

    async def _order(self, effect: events.OrderHost) -> None:
        """Send an order; its outcome is an event."""
        try:
            if effect.relayed:
                leader = self._leader
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
            self._runner.feed(events.HostAnswered(effect.order_id, ErrorReport.of(error), unknown))
        else:
            self._runner.feed(events.HostAnswered(effect.order_id, answer))
        self._send_summary_soon()

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

    # ------------------------------------------------------------ the leader

    def follow(self, leader: ManagerDescription | None) -> None:
        """The election's word: who leads, ourselves perhaps."""
        if leader == self._leader_wanted:
            return
        self._leader_wanted = leader
        if self._leader is not None:
            self._leader.close("another group manager leads")
        self._leader_changed.set()

    @property
    def joined_leader(self) -> bool:
        """Whether the link to the leader stands."""
        return self._leader is not None

    async def _keep_leader(self) -> None:
        """Keep a link to whoever leads."""
        pause_s = RETRY_MIN_S
        while True:
            wanted = self._leader_wanted
            if wanted is None:
                self._leader_changed.clear()
                await self._leader_changed.wait()
                continue
            hello = self._hello()
            try:
                link, welcome = await connect(
                    wanted.monitoring.host,
                    wanted.monitoring.port,
                    hello,
                    ManagerWelcome,
                    Service(requests=LeaderOrder, answer=self._answer_leader),
                    limits=self._limits,
                )
            except SnoozeError as error:
                logger.debug("the leader is not reached", extra={"error": error.message})
                self._leader_changed.clear()
                await _wait(self._leader_changed, pause_s)
                pause_s = min(RETRY_MAX_S, pause_s * 2)
                continue
            pause_s = RETRY_MIN_S
            if welcome.epoch < self.leader_epoch:
                link.close("deposed: a later leader was heard of")
                await asyncio.sleep(RETRY_MIN_S)
                continue
            await self._stay(link, hello, welcome)

    def _hello(self) -> ManagerHello:
        table = self.core.table
        return ManagerHello(self.identity, [table.state_of(host_id) for host_id in table.order])

    async def _stay(self, link: Link, hello: ManagerHello, welcome: ManagerWelcome) -> None:
        """Be with a leader until the link ends.

        What changed between the making of the hello and the welcome is told again, whole.
        """
        self._leader, self.leader_epoch = link, welcome.epoch
        logger.info("joined leader %s, epoch %d", welcome.leader_id, welcome.epoch)
        table = self.core.table
        told = {state.host.host_id: state for state in hello.hosts}
        for host_id, state in told.items():
            if host_id not in table.hosts:
                link.notify(HostGone(host_id, state.epoch, "it left"))
        for host_id in table.order:
            if table.is_outdated(told.get(host_id), host_id):
                link.notify(HostJoined(table.state_of(host_id)))
        statuses = [vm.status() for vm in table.vms.values()]
        if statuses:
            link.notify(VmsChanged(statuses))
        self._send_summary()
        try:
            reason = await link.closed
            logger.info("the link to the leader closed: %s", reason)
        finally:
            self._leader = None

    async def _answer_leader(self, message: LeaderOrder) -> msgspec.Struct:
        """The leader's orders.

        Raises:
            StaleEpoch: from a leader older than one we have joined.
            TooBusy: our session with the store is not alive.
        """
        if isinstance(message, DescribeHosts):
            return HostDetails(self.describe(message))
        if message.epoch < self.leader_epoch:
            raise StaleEpoch(f"a leader of epoch {self.leader_epoch} was heard of")
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
            case DirectHosts() | SleepHost() | SetAutonomy():
                raise Conflict("this group manager cannot do that yet")
            case _:
                assert_never(message)

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
                self._tell_leader(effect.notice)
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
            # Whoever hears that a VM is gone may rely on its room being free.
            self._after_summary.append((future, effect.answer))
            if self._clock.monotonic_s() - self._summary_sent_s > self._summary_pause_s:
                self._send_summary()
            else:
                self._send_summary_soon()
            return
        future.set_result(effect.answer)

    def _close_host(self, host_id: str, reason: str) -> None:
        link = self._links.get(host_id)
        if link is not None:
            self._left.add(link)
            link.close(reason)

    def _tell_leader(self, notice: ManagerNotice, *, droppable: bool = False) -> None:
        """Notices while no leader is joined are not sent: the next hello has it all.

        Changes of VMs within one turn of the loop go in one message, the last of each VM.
        """
        if isinstance(notice, VmsChanged):
            for status in notice.vms:
                key = f"{status.vm_id}@{status.host_id}" if not status.managed else status.vm_id
                self._statuses.pop(key, None)
                self._statuses[key] = status
            if not self._flushing:
                self._flushing = True
                asyncio.get_running_loop().call_soon(self._flush)
            return
        self._flush()
        if self._leader is not None:
            self._leader.notify(notice, droppable=droppable)

    def _flush(self) -> None:
        self._flushing = False
        statuses, self._statuses = list(self._statuses.values()), {}
        if statuses and self._leader is not None:
            self._leader.notify(VmsChanged(statuses))

    # ------------------------------------------------------------ what is free

    async def _summaries(self) -> None:
        while True:
            await asyncio.sleep(self._summary_interval_s)
            self._send_summary()

    def _send_summary_soon(self) -> None:
        if not self._summary_due:
            self._summary_due = True
            asyncio.get_running_loop().call_later(self._summary_pause_s, self._send_summary)

    @property
    def _summary_pause_s(self) -> float:
        return max(SUMMARY_DELAY_S, self._summary_cost_s / SUMMARY_SHARE)

    def _send_summary(self) -> None:
        self._summary_due = False
        self._summary_sent_s = self._clock.monotonic_s()
        self._tell_what_is_free()
        waiting, self._after_summary = self._after_summary, []
        for future, answer in waiting:
            if not future.done():
                future.set_result(answer)

    def _tell_what_is_free(self) -> None:
        if self._leader is None:
            return
        table = self.core.table
        started_s = self._clock.monotonic_s()
        room, count = dispatching.histogram(table.free(self.core.limit))
        self._summary_cost_s = self._clock.monotonic_s() - started_s
        self._leader.notify(
            ManagerSummary(
                taken_ms=self._clock.wall_ms(),
                capacity=Capacity.of(table.capacity.sum(axis=0)),
                reserved=Capacity.of(table.reserved.sum(axis=0).clip(min=0.0)),
                used=total(self.usage.values()),
                room=room.astype("<f8").tobytes(),
                count=[int(number) for number in count],
                hosts=len(table.order),
                vms=len(table.vms),
            ),
            droppable=True,
        )

    # ------------------------------------------------------------ views

    def describe(self, request: DescribeHosts) -> list[HostDetail]:
        """All about our hosts, or those asked for."""
        table = self.core.table
        if request.vm_keys:
            vms = [table.vms[key] for key in request.vm_keys if key in table.vms]
            by_host: dict[str, list[VmEntry]] = {}
            for vm in vms:
                by_host.setdefault(vm.host_id, []).append(vm)
            return [self._host_detail(host_id, request, by_host[host_id]) for host_id in by_host]
        wanted = request.host_ids or table.order
        return [
            self._host_detail(
                host_id, request, list(table.vms_on(host_id)) if request.with_vms else []
            )
            for host_id in wanted
            if host_id in table.hosts
        ]

    def _host_detail(self, host_id: str, request: DescribeHosts, vms: list[VmEntry]) -> HostDetail:
        table = self.core.table
        host, usage = table.hosts[host_id], self.usage.get(host_id, HostUsage())
        details: list[VmDetail] = []
        for vm in vms:
            report = msgspec.structs.replace(
                vm.report,
                state=vm.state,
                demand=vm.demand,
                reason=vm.reason,
                xml=vm.report.xml if request.with_xml else "",
            )
            details.append(VmDetail(report, host_id, usage.of_vm(report.vm_id, request.entries)))
        return HostDetail(
            host=host.description,
            status="leaving" if host.leaving is not None else "active",
            reserved=table.reserved_on(host_id),
            used=usage.host_used,
            vms=details,
            vm_count=len(host.vms),
        )


def _policy_named(name: str) -> placement.PlacementPolicy:
    try:
        return placement.policy_named(name)
    except ValueError as error:
        problem = Problem("placement.policy", str(error))
        raise SettingsError(f"placement.policy: {error}", problems=[problem]) from None


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass


_HOST_ANSWER: type[HostAnswer] = HostAnswer  # type: ignore[assignment]  # a union is a type form

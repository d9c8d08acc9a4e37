"""The agent's shell: finding the leader, the link to the manager, samples; the core decides."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import assert_never

import msgspec

from snooze.common.addresses import parse_host_port
from snooze.common.api import ImageView
from snooze.common.clock import Clock
from snooze.common.core_runner import CoreRunner
from snooze.common.errors import Conflict, RemoteError, SnoozeError
from snooze.common.settings_localcontroller import JoinSettings
from snooze.common.task_set import TaskSet
from snooze.common.transport.channel import CloseCause, CloseReason
from snooze.common.transport.http_client import MESSAGEPACK, HttpClient
from snooze.common.transport.link import Link, LinkLimits, Service, connect
from snooze.common.usage import HostUsage
from snooze.common.vms import without_long_xml
from snooze.common.wire import (
    Assignment,
    AssignmentRequest,
    HostDescription,
    HostHello,
    HostNotice,
    HostOrder,
    HostSamples,
    HostWelcome,
    ImagesChanged,
    ManagerDescription,
    MigrationMoved,
    MoveToManager,
    OrderDone,
    PowerDown,
)
from snooze.localcontroller import agent_core as core
from snooze.localcontroller.orders import Orders
from snooze.localcontroller.power import HostPowerDown, PowerAction

logger = logging.getLogger(__name__)

ASSIGNMENT_PATH = "/internal/assignment"
ASSIGNMENT_TIMEOUT_S = 8.0
RECONCILE_INTERVAL_S = 30.0
IMAGES_INTERVAL_S = 5.0
LEAVE_PAUSE_S = 0.02
REST_S = 120.0
"""After an order to shut down; a host that is still there then asks for a manager again."""
SUSPEND_REST_S = 15.0
"""Likewise, after an order to suspend: systemd lets nobody delay that for longer than 5 s."""
SLEEP_LOOK_S = 0.5
SLEPT_S = 1.0
STOOD_STILL_S = 3.0
"""More than a command to go down, and a look, take: a process that did not run for so long was
frozen, as those of a virtual machine are that sleeps."""


class Agent:
    """Keeps a host with a group manager and carries out its orders."""

    def __init__(
        self,
        describe: Callable[[], Awaitable[HostDescription]],
        orders: Orders,
        usage: Callable[[], Awaitable[HostUsage]],
        join: JoinSettings,
        monitoring_interval_s: float,
        limits: LinkLimits,
        http: HttpClient,
        clock: Clock,
        power: HostPowerDown,
    ) -> None:
        self.core = core.AgentCore(join.retry_min_s, join.retry_max_s)
        self._runner = CoreRunner(self.core, self._perform, clock)
        self._describe = describe
        self._orders = orders
        self._measure = usage
        self._nodes = itertools.cycle(join.bootstrap_nodes)
        self._node_count = len(join.bootstrap_nodes)
        self._interval_s = monitoring_interval_s
        self._limits = limits
        self._http = http
        self._clock = clock
        self._power = power
        self._link: Link | None = None
        self._manager: ManagerDescription | None = None
        self._images: tuple[ImageView, ...] = ()
        self._lists_images = False
        self._sent_to: Assignment | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._tasks = TaskSet()
        self.usage: HostUsage | None = None
        self.measured = self.not_measured = 0
        self.measuring_s = 0.0

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to look for a manager."""
        self._tasks.spawn(self._monitor())
        self._tasks.spawn(self._watch_images())
        self._tasks.spawn(self._reconcile())
        self._runner.feed(core.Started())

    async def close(self) -> None:
        """Leave the manager; VMs keep running."""
        self._runner.feed(core.Stopped())
        await self._tasks.close()
        if self._link is not None:
            await self._link.wait_closed()

    @property
    def joined(self) -> bool:
        """Whether a manager has this host."""
        return self.core.state is core.AgentState.JOINED

    def manager(self) -> ManagerDescription | None:
        """The manager it has joined."""
        return self._manager if self.joined else None

    @property
    def link(self) -> Link | None:
        """To the manager."""
        return self._link

    @property
    def buffered_bytes(self) -> int:
        """What waits to be sent to the manager."""
        return 0 if self._link is None else self._link.buffered_bytes

    # ------------------------------------------------------------ effects

    def _perform(self, effect: core.AgentEffect) -> None:
        match effect:
            case core.AskAssignment():
                self._tasks.spawn(self._ask(effect))
            case core.ConnectTo():
                self._connecting = self._tasks.spawn(self._connect(effect.assignment))
            case core.CloseLink():
                self._close_link(effect.reason)
            case core.WakeIn():
                woken = core.Woken(effect.number)
                asyncio.get_running_loop().call_later(
                    effect.pause_s, lambda: self._runner.feed(woken)
                )
            case core.Note():
                logger.info(effect.message)
            case _:
                assert_never(effect)

    def _close_link(self, reason: str) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        link, self._link = self._link, None
        if link is not None:
            link.close(reason)

    async def _ask(self, effect: core.AskAssignment) -> None:
        """Ask one bootstrap node after the other for the leader's word."""
        reason = "no bootstrap node is configured"
        try:
            description = await self._describe()
        except SnoozeError as error:
            self._runner.feed(core.NotAssigned(f"the hypervisor: {error.message}"))
            return
        except Exception as error:  # a defect; the host looks for a manager all the same
            logger.exception("this host was not described")
            self._runner.feed(core.NotAssigned(f"the hypervisor: {error!r}"))
            return
        request = AssignmentRequest(description, effect.previous_manager, effect.failed_managers)
        for _ in range(self._node_count):
            host, port = parse_host_port(next(self._nodes))
            url = f"http://{_bracketed(host)}:{port}{ASSIGNMENT_PATH}"
            try:
                assignment = await self._http.post(
                    url,
                    request,
                    Assignment,
                    timeout_s=ASSIGNMENT_TIMEOUT_S,
                    encoding=MESSAGEPACK,
                )
            except SnoozeError as error:
                reason = error.message
            else:
                self._runner.feed(core.Assigned(assignment))
                return
        self._runner.feed(core.NotAssigned(reason))

    async def _connect(self, assignment: Assignment) -> None:
        address = assignment.manager.monitoring
        try:
            description = await self._describe()
            vms = without_long_xml(await self._orders.inventory())
            arriving = without_long_xml(self._orders.arriving)
            hello = HostHello(description, vms, assignment.epoch, arriving=arriving)
            link, _ = await connect(
                address.host,
                address.port,
                hello,
                HostWelcome,
                Service(requests=HostOrder, answer=self._answer),
                limits=self._limits,
            )
        except SnoozeError as error:
            self._runner.feed(core.NotJoined(error.message))
            return
        except Exception as error:  # likewise
            logger.exception("this host was not introduced")
            self._runner.feed(core.NotJoined(repr(error)))
            return
        self._connecting = None
        self._orders.stay_up()
        self._link, self._orders.epoch = link, assignment.epoch
        self._manager = assignment.manager
        self._images, self._lists_images = description.images, description.lists_images
        self._runner.feed(core.Joined())
        self.look_soon()
        link.closed.add_done_callback(
            lambda closed: (
                self._link_closed(link, closed.result()) if not closed.cancelled() else None
            )
        )

    def _link_closed(self, link: Link, reason: CloseReason) -> None:
        if self._link is not link:
            return
        self._link = None
        if self._sent_to is not None:  # a manager that gave us away may hang up before we do
            self._leave()
        else:
            silent = reason.cause is CloseCause.SILENT
            self._runner.feed(core.LinkClosed(str(reason), silent))

    def _leave(self) -> None:
        assignment, self._sent_to = self._sent_to, None
        if assignment is not None:
            self._runner.feed(core.SentElsewhere(assignment))

    # ------------------------------------------------------------ orders and notices

    async def _answer(self, order: HostOrder) -> msgspec.Struct:
        """Take an order in.

        Raises:
            StaleEpoch: it is from a manager that is no longer ours.
            SnoozeError: as the order's outcome is.
        """
        self.core.admit(order.epoch)
        if isinstance(order, MoveToManager):
            if self._orders.goes_down:
                raise Conflict("this host is going down")
            self._sent_to = order.assignment
            # The answer has to be out before the link is closed.
            asyncio.get_running_loop().call_later(LEAVE_PAUSE_S, self._leave)
            return OrderDone()
        if isinstance(order, PowerDown):
            action = self._power.check(order.action)
            await self._orders.prepare_to_go_down()
            asyncio.get_running_loop().call_later(
                LEAVE_PAUSE_S, lambda: self._tasks.spawn(self._go_down(action, order.epoch))
            )
            return OrderDone()
        return await self._orders.carry_out(order)

    async def _go_down(self, action: PowerAction, epoch: int) -> None:
        """Go down; who orders it learns from the link's end, and its reason, what became of it.

        Not if this host has been assigned anew meanwhile: the next manager was told that it is up.
        """
        if epoch != self.core.epoch:
            logger.warning("not going down: this host was assigned anew")
            self._orders.stay_up()
            return
        logger.warning("going down", extra={"action": action.value})
        before = SleepWatch(self._clock)  # it may sleep before the command has told that it will
        try:
            await self._power.go_down(action)
        except SnoozeError as error:
            logger.error("this host cannot go down: %s", error.message)
            self._runner.feed(core.GoingDown(f"it cannot {action}: {error.message}", 0.0))
            return
        rest_s = REST_S if action is PowerAction.SHUTDOWN else SUSPEND_REST_S
        self._runner.feed(core.GoingDown(f"it goes down ({action})", rest_s))
        for _ in range(round(rest_s / SLEEP_LOOK_S)):
            if before.slept():
                logger.info("this host is awake again")
                self._runner.feed(core.WokenEarly())
                return
            await asyncio.sleep(SLEEP_LOOK_S)

    def tell(self, notice: HostNotice) -> None:
        """Tell the manager; without one, the next hello has it all."""
        if self._link is not None:
            self._link.notify(notice, droppable=isinstance(notice, HostSamples | MigrationMoved))

    # ------------------------------------------------------------ monitoring

    async def _monitor(self) -> None:
        """Send what VMs use, once per interval."""
        while True:
            started_s = self._clock.monotonic_s()
            if self._link is not None:
                await self._tell_usage(self._link)
            elapsed_s = self._clock.monotonic_s() - started_s
            await asyncio.sleep(max(0.05, self._interval_s - elapsed_s))

    async def _tell_usage(self, link: Link) -> None:
        """Measure, and tell the manager while it is still the same."""
        started_s = self._clock.monotonic_s()
        try:
            self.usage = await self._measure()
        except SnoozeError as error:
            self.usage = None
            self.not_measured += 1
            level = logging.WARNING if isinstance(error, RemoteError) else logging.ERROR
            logger.log(level, "no samples: %s", error.message)
            return
        except Exception:  # likewise: the next one may be told
            self.usage = None
            self.not_measured += 1
            logger.exception("no samples")
            return
        self.measured += 1
        self.measuring_s = self._clock.monotonic_s() - started_s
        if self._link is link:
            interval_ms = round(self._interval_s * 1000)
            self.tell(HostSamples.of(self._clock.wall_ms(), self.usage, interval_ms))

    async def _watch_images(self) -> None:
        """Tell of images that come and go."""
        while True:
            await asyncio.sleep(IMAGES_INTERVAL_S)
            if self._link is None or not self._lists_images:
                continue
            try:
                images = (await self._describe()).images
            except SnoozeError as error:
                logger.debug("images were not listed: %s", error.message)
                continue
            except Exception:
                logger.exception("images were not listed")
                continue
            if images != self._images:
                self._images = images
                self.tell(ImagesChanged(images))

    async def _reconcile(self) -> None:
        """Look at the hypervisor now and then: an event may have been missed."""
        while True:
            await asyncio.sleep(RECONCILE_INTERVAL_S)
            if self._link is not None:
                await self.look()
                await self._look_at_disks()

    async def _look_at_disks(self) -> None:
        try:
            await self._orders.look_at_disks()
        except SnoozeError as error:
            logger.warning("disks were not looked at: %s", error.message)
        except Exception:
            logger.exception("disks were not looked at")

    def look_soon(self) -> None:
        """Look at the hypervisor as soon as possible."""
        self._tasks.spawn(self.look())

    async def look(self) -> None:
        """Tell the manager of every difference to what it was told."""
        try:
            await self._orders.reconcile()
        except SnoozeError as error:
            logger.warning("the hypervisor was not read: %s", error.message)
        except Exception:
            logger.exception("the hypervisor was not read")


class SleepWatch:
    """Tells when the machine has slept: timers stood still meanwhile, or this process did."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._suspended_s = self._suspended()
        self._looked_s = clock.boottime_s()

    def slept(self) -> bool:
        """Whether it has: altogether, or since it was looked last."""
        now_s = self._clock.boottime_s()
        away_s, self._looked_s = now_s - self._looked_s, now_s
        return self._suspended() - self._suspended_s > SLEPT_S or away_s > STOOD_STILL_S

    def _suspended(self) -> float:
        """How long the machine has been suspended since its start."""
        return self._clock.boottime_s() - self._clock.monotonic_s()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

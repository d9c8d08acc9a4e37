"""The group manager daemon: election, the manager's role always, the leader's role when elected."""

import asyncio
import logging
import math

import msgspec

from snooze.common import daemon
from snooze.common.admission import Admission
from snooze.common.api import HealthView
from snooze.common.assembly import http_limits, leader_description, make_coordinator
from snooze.common.clock import SYSTEM_CLOCK, Clock
from snooze.common.config import load
from snooze.common.coordination.leadership import LeaderRecord
from snooze.common.coordination.port import (
    Coordinator,
    Create,
    Delete,
    Operation,
    Session,
    SessionState,
)
from snooze.common.errors import NotLeader, SnoozeError
from snooze.common.identity import advertised_address, node_hostname, node_identity
from snooze.common.leader_proxy import LeaderProxy
from snooze.common.metrics import add_metrics
from snooze.common.records import MANAGERS, encode
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.task_set import TaskSet
from snooze.common.template_settings import template_policy
from snooze.common.transport.http_server import HttpServer
from snooze.common.transport.link import LinkLimits
from snooze.common.transport.link_server import Accepted as LinkAccepted
from snooze.common.transport.link_server import LinkServer
from snooze.common.transport.proxy import Proxy
from snooze.common.version import VERSION
from snooze.common.vms import FailureAction, VmPolicy
from snooze.common.wire import Address, HostHello, ManagerDescription, ManagerHello
from snooze.groupmanager.election import Election, Following, Leading, Suspended
from snooze.groupmanager.front import Front
from snooze.groupmanager.leader.intake import Intake
from snooze.groupmanager.leader.service import LeaderService
from snooze.groupmanager.legacy_manager import LegacyManager
from snooze.groupmanager.manager.service import ManagerService
from snooze.groupmanager.metrics import leader_metrics, manager_metrics
from snooze.groupmanager.power.factory import PowerDrivers

logger = logging.getLogger(__name__)

REGISTER_RETRY_S = 0.5
EVICT_INTERVAL_S = 10.0
DOUBT_INTERVAL_S = 5.0
MIN_ANSWER_S = 0.5
"""A leader that is doubted has one heartbeat for its answer, and at least this long."""


class GroupManager:
    """One group manager: ``start`` listens and stands for election, ``close`` hands over."""

    def __init__(
        self,
        settings: GroupManagerSettings,
        coordinator: Coordinator,
        node_id: str,
        clock: Clock = SYSTEM_CLOCK,
        power: PowerDrivers | None = None,
    ) -> None:
        """``power`` is given by whoever simulates the machines; else it is as the settings say."""
        self.settings = settings
        self.node_id = node_id
        self._coordinator = coordinator
        self._clock = clock
        self._leading: LeaderService | None = None
        self._leader_address: Address | None = None
        self._election: Election | None = None
        self._evicted_s = self._doubted_s = -math.inf
        self._tasks = TaskSet()
        self._session_changed = asyncio.Event()
        self._proxy = Proxy()
        self._power = power or PowerDrivers.of(settings.power)
        network, beat = settings.network, settings.heartbeat
        limits = LinkLimits(ping_interval_s=beat.interval_s, silence_timeout_s=beat.timeout_s)
        nowhere = Address("", 0)
        self.identity = ManagerDescription(node_id, "", nowhere, nowhere)
        self.manager = ManagerService(
            settings, self.identity, clock, limits, self._has_session, self
        )
        front = Front(
            lambda: self._leading,
            self.health,
            LegacyManager(self.manager),
            Intake(
                template_policy(settings.templates, settings.templates.image_directories),
                settings.submission.max_vms,
                VmPolicy(
                    FailureAction(settings.recovery.on_host_failure),
                    max_restarts=settings.recovery.max_restarts,
                ),
                Admission("submissions", clock=clock),
            ),
            LeaderProxy(self._proxy, lambda: self._leader_address, clock),
            VERSION,
        )
        self._links = LinkServer(
            network.listen_address,
            network.monitoring_port,
            HostHello | ManagerHello,
            self._on_hello,
            limits=limits,
        )
        app = front.application()
        add_metrics(
            app,
            self.health,
            lambda: manager_metrics(self.manager),
            lambda: leader_metrics(self._leading),
        )
        self._http = HttpServer(
            app,
            network.listen_address,
            network.control_port,
            limits=http_limits(settings.http),
        )

    async def start(self) -> None:
        """Listen, then take part.

        Raises:
            OSError: a port is taken.
        """
        network = self.settings.network
        await self._proxy.start()
        await self._links.start()
        await self._http.start()
        address = advertised_address(network)
        self.identity = ManagerDescription(
            self.node_id,
            node_hostname(self.settings.node),
            Address(address, self._http.port),
            Address(address, self._links.port),
        )
        self.manager.leader.identity = self.identity
        self._coordinator.on_session(self._on_session)
        await self._coordinator.start()
        self._election = Election(
            self._coordinator, self.node_id, msgspec.msgpack.encode(self.identity), self._clock
        )
        self._tasks.spawn(self._register())
        self._tasks.spawn(self._follow_election(self._election))
        self.manager.start()
        await self._election.start()

    async def close(self) -> None:
        """Stop: a leader writes what is queued and hands over, hosts are given back."""
        await self._end_leader(flush=True)
        if self._election is not None:
            await self._election.close()
        await self._close_rest()

    async def abandon(self) -> None:
        """Vanish without handing over, as a killed process does (demonstration, tests)."""
        await self._end_leader(flush=False)
        await self._close_rest()

    async def _close_rest(self) -> None:
        await self._tasks.close()
        await self.manager.close()
        await self._links.close("this group manager stops")
        await self._coordinator.close()
        await self._http.stop()
        await self._proxy.close()
        await self._power.close()

    # ------------------------------------------------------------ session and election

    def _has_session(self) -> bool:
        return self._coordinator.session.state is SessionState.CONNECTED

    def _on_session(self, session: Session) -> None:
        self._session_changed.set()
        if session.state is SessionState.LOST:
            self.manager.release_all("this group manager lost its session")

    async def _register(self) -> None:
        """Keep our entry among the managers, anew in each session."""
        registered = 0
        path = f"{MANAGERS}/{self.node_id}"
        while True:
            session = self._coordinator.session
            if session.state is SessionState.CONNECTED and session.number != registered:
                try:
                    entry = await self._coordinator.read(path)
                    stale: list[Operation] = []
                    if entry is not None and not entry.mine:
                        stale = [Delete(path, entry.version)]
                    if entry is None or not entry.mine:
                        create = Create(path, encode(self.identity), ephemeral=True)
                        await self._coordinator.commit([*stale, create])
                    registered = session.number
                except SnoozeError as error:
                    logger.info("not registered yet: %s", error.message)
                    await asyncio.sleep(REGISTER_RETRY_S)
                continue
            self._session_changed.clear()
            await self._session_changed.wait()

    async def _follow_election(self, election: Election) -> None:
        async for leadership in election.changes():
            match leadership:
                case Leading():
                    await self._lead(election, leadership)
                case Following():
                    await self._step_down()
                    self._note_leader(leadership.leader)
                case Suspended():
                    pass

    async def _lead(self, election: Election, leading: Leading) -> None:
        """Begin to lead, or go on in the same epoch."""
        epoch = leading.epoch
        if self._leading is not None and self._leading.epoch == epoch:
            return
        await self._step_down()
        leader = LeaderService(
            self.settings,
            self.identity,
            epoch,
            self._coordinator,
            leading.guard,
            self._clock,
            is_leader=lambda: election.is_leader(epoch),
            power=self._power,
            step_down=lambda: logger.warning("deposed: epoch %d is over", epoch),
        )
        while election.leadership == leading:
            try:
                await leader.start()
            except SnoozeError as error:
                logger.error("cannot take over: %s", error.message)
                await asyncio.sleep(REGISTER_RETRY_S)
            except Exception:  # a defect: who is elected and gives up would keep others from it
                logger.exception("cannot take over")
                await asyncio.sleep(REGISTER_RETRY_S)
            else:
                logger.info("leading, epoch %d", epoch)
                self._leading = leader
                self._leader_address = self.identity.control
                self.manager.leader.follow(self.identity)
                return

    async def _step_down(self) -> None:
        if self._leading is not None:
            logger.info("no longer leading, epoch %d", self._leading.epoch)
        await self._end_leader(flush=False)

    async def _end_leader(self, *, flush: bool) -> None:
        """Stop leading, if we do; whatever goes wrong then, the election goes on."""
        leader, self._leading = self._leading, None
        if leader is not None:
            try:
                await leader.close(flush=flush)
            except Exception:
                logger.exception("not stopped cleanly")

    def leader_died(self, leader: ManagerDescription) -> None:
        """Its process is gone: spare everyone the wait for the end of its session.

        At most once in a while: should we be wrong about every leader, it does no harm.
        """
        now_s = self._clock.monotonic_s()
        if self._election is not None and now_s >= self._evicted_s + EVICT_INTERVAL_S:
            self._evicted_s = now_s
            logger.warning("the process of leader %s is gone", leader.hostname)
            self._tasks.spawn(self._evict(self._election, leader.manager_id))

    def leader_unheard(self, leader: ManagerDescription) -> None:
        """It, its machine or the network to it is gone: ask it through the store."""
        now_s = self._clock.monotonic_s()
        if self._election is not None and now_s >= self._doubted_s + DOUBT_INTERVAL_S:
            self._doubted_s = now_s
            logger.warning("leader %s is not heard", leader.hostname)
            patience_s = max(MIN_ANSWER_S, self.settings.heartbeat.interval_s)
            self._tasks.spawn(self._doubt(self._election, leader, patience_s))

    async def _evict(self, election: Election, manager_id: str) -> None:
        await election.evict(manager_id)

    async def _doubt(
        self, election: Election, leader: ManagerDescription, patience_s: float
    ) -> None:
        await election.doubt(leader.manager_id, patience_s)

    def _note_leader(self, record: LeaderRecord | None) -> None:
        description = leader_description(record)
        self._leader_address = None if description is None else description.control
        self.manager.leader.follow(description)

    @property
    def leading(self) -> LeaderService | None:
        """The leader's service, while this group manager leads."""
        return self._leading

    # ------------------------------------------------------------ links and health

    async def _on_hello(self, hello: HostHello | ManagerHello, peer: str) -> LinkAccepted:
        if isinstance(hello, HostHello):
            return self.manager.accept(hello)
        if self._leading is None:
            raise NotLeader("this group manager does not lead")
        return self._leading.accept(hello)

    def health(self) -> HealthView:
        """Whether this daemon can serve, and why not."""
        reasons: list[str] = []
        if not self._has_session():
            reasons.append("no session with the store of record")
        if self.manager.leader.link is None:
            reasons.append("not joined to a leader")
        status = "unready" if reasons else "ready"
        return HealthView(status, "groupmanager", self.node_id, reasons)


def run(path: str) -> int:
    """Run a group manager with the settings in a file; the exit code."""
    settings = load(path, GroupManagerSettings)
    coordinator = make_coordinator(settings.coordination)
    node_id = node_identity(settings)
    return daemon.run(
        lambda: GroupManager(settings, coordinator, node_id), settings.log, node_id, "groupmanager"
    )

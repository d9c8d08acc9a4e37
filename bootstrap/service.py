"""The bootstrap daemon: the front door, by which every client call reaches whoever answers it.

It keeps nothing. It follows the leader's record in the store and passes calls on to the leader; of
Snooze's own calls it answers ``getGroupLeaderDescription`` itself. Any number may run.

=====================  ======================================================================
path                   answered by
=====================  ======================================================================
``/health, /ready``    itself
``/bootstrap``         itself (who leads) and the leader (all else)
``/groupmanager``      the leader, so that one address is enough for every client
``/v1/...``            the leader
``/internal/...``      the leader (hosts that look for their group manager)
=====================  ======================================================================
"""

import logging

from aiohttp import web

from snooze.common import daemon
from snooze.common.api import HealthView
from snooze.common.assembly import http_limits, leader_description, make_coordinator
from snooze.common.clock import SYSTEM_CLOCK, Clock
from snooze.common.config import load
from snooze.common.coordination.leadership import LeaderWatch
from snooze.common.coordination.port import Coordinator, SessionState
from snooze.common.identity import node_identity
from snooze.common.leader_proxy import LeaderProxy
from snooze.common.metrics import add_metrics
from snooze.common.settings import BootstrapSettings
from snooze.common.snooze_api import GroupManagerDescription, ListenSettings, NetworkAddress
from snooze.common.transport.health import add_health
from snooze.common.transport.http_server import HttpServer
from snooze.common.transport.legacy import LegacyResource, ResultKind, get
from snooze.common.transport.proxy import Proxy
from snooze.common.wire import Address, ManagerDescription

logger = logging.getLogger(__name__)

OWN_METHOD = "getGroupLeaderDescription"


class Bootstrap:
    """One bootstrap node."""

    def __init__(
        self,
        settings: BootstrapSettings,
        coordinator: Coordinator,
        node_id: str,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.settings = settings
        self.node_id = node_id
        self._coordinator = coordinator
        self._watch = LeaderWatch(coordinator)
        self._proxy = Proxy()
        self._to_leader = LeaderProxy(self._proxy, self._leader_address, clock)
        self._own = LegacyResource(
            "/bootstrap", [get(OWN_METHOD, ResultKind.MESSAGE, self._describe_leader)]
        )
        self._http = HttpServer(
            self._application(),
            settings.network.listen_address,
            settings.network.control_port,
            limits=http_limits(settings.http),
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._http.port

    async def start(self) -> None:
        """Listen, and begin to follow the leader.

        Raises:
            OSError: the port is taken.
        """
        await self._proxy.start()
        await self._http.start()
        await self._coordinator.start()
        self._watch.start()

    async def close(self) -> None:
        """Stop."""
        self._watch.close()
        await self._http.stop()
        await self._proxy.close()
        await self._coordinator.close()

    def _application(self) -> web.Application:
        app = web.Application()
        add_health(app, self.health)
        add_metrics(app, self.health)
        app.router.add_route("*", "/bootstrap", self._answer_bootstrap)
        for path in ("/groupmanager", "/v1/{path:.*}", "/internal/{path:.*}"):
            app.router.add_route("*", path, self._to_leader.pass_on)
        return app

    # ------------------------------------------------------------ the leader

    def _leader(self) -> ManagerDescription | None:
        return leader_description(self._watch.leader)

    def _leader_address(self) -> Address | None:
        leader = self._leader()
        return None if leader is None else leader.control

    async def _describe_leader(self) -> GroupManagerDescription | None:
        """What is known of the leader without asking it: its id and addresses."""
        leader = self._leader()
        if leader is None:
            return None
        return GroupManagerDescription(
            id=leader.manager_id,
            hostname=leader.hostname,
            is_assigned=True,
            listen_settings=ListenSettings(
                NetworkAddress(leader.control.host, leader.control.port),
                NetworkAddress(leader.monitoring.host, leader.monitoring.port),
            ),
        )

    async def _answer_bootstrap(self, request: web.Request) -> web.StreamResponse:
        names = [part.partition("=")[0] for part in request.rel_url.raw_query_string.split("&")]
        if OWN_METHOD in names:
            return await self._own.handle(request)
        return await self._to_leader.pass_on(request)

    # ------------------------------------------------------------ health

    def health(self) -> HealthView:
        """Whether calls can be answered, and why not."""
        reasons: list[str] = []
        if self._coordinator.session.state is not SessionState.CONNECTED:
            reasons.append("no session with the store of record")
        if self._watch.leader is None:
            reasons.append("no group leader is known")
        status = "unready" if reasons else "ready"
        return HealthView(status, "bootstrap", self.node_id, reasons)


def run(path: str) -> int:
    """Run a bootstrap node with the settings in a file; the exit code."""
    settings = load(path, BootstrapSettings)
    coordinator = make_coordinator(settings.coordination)
    node_id = node_identity(settings)
    return daemon.run(
        lambda: Bootstrap(settings, coordinator, node_id), settings.log, node_id, "bootstrap"
    )

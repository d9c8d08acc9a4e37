"""Every HTTP call of a group manager: answered here, or passed on to the leader.

=================  =====================================================================
path               answered by
=================  =====================================================================
``/health``        every group manager
``/ready``         every group manager
``/groupmanager``  calls about its own hosts by every group manager, the rest by the leader
``/bootstrap``     the leader (a bootstrap node passes its calls on to here)
``/v1/...``        the leader
``/internal/...``  the leader
=================  =====================================================================
"""

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from snooze.common.api import HealthView
from snooze.common.errors import InvalidRequest, NotLeader
from snooze.common.leader_proxy import NOT_LEADING_HEADER, LeaderProxy
from snooze.common.snooze_api import (
    ClientMigrationRequestSimple,
    GroupManagerDescription,
    HostListRequest,
    MetaDataRequest,
    MigrationRequest,
    NetworkAddress,
    ResizeRequest,
    VirtualClusterSubmissionRequest,
    VirtualMachineLocation,
)
from snooze.common.transport.codec import MalformedMessage, decode
from snooze.common.transport.health import add_health
from snooze.common.transport.http_server import error_response
from snooze.common.transport.legacy import (
    LegacyMethod,
    LegacyResource,
    ResultKind,
    get,
    post,
    post_int,
    post_message,
    post_text,
)
from snooze.common.transport.proxy import HOPS_HEADER
from snooze.common.vm_lifecycle import VmCommand
from snooze.common.wire import AssignmentRequest
from snooze.groupmanager import legacy_views, v1_decisions
from snooze.groupmanager.leader.intake import Intake
from snooze.groupmanager.leader.service import LeaderService
from snooze.groupmanager.legacy_leader import LegacyLeader
from snooze.groupmanager.legacy_manager import LegacyManager
from snooze.groupmanager.v1_api import Handler, V1Api

ASSIGNMENT_PATH = "/internal/assignment"

_COMMANDS = {
    "destroyVirtualMachine": VmCommand.DESTROY,
    "suspendVirtualMachine": VmCommand.SUSPEND,
    "resumeVirtualMachine": VmCommand.RESUME,
    "shutdownVirtualMachine": VmCommand.SHUTDOWN,
    "rebootVirtualMachine": VmCommand.REBOOT,
}
PlainHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_MESSAGE, _TEXT, _BOOLEAN = ResultKind.MESSAGE, ResultKind.TEXT, ResultKind.BOOLEAN


class Front:
    """The HTTP application of a group manager."""

    def __init__(
        self,
        leading: Callable[[], LeaderService | None],
        health: Callable[[], HealthView],
        legacy_manager: LegacyManager,
        intake: Intake,
        proxy: LeaderProxy,
        version: str,
    ) -> None:
        """``leading`` gives the leader's service while this group manager leads."""
        self._leading = leading
        self._health = health
        self._own = legacy_manager
        self._intake = intake
        self._proxy = proxy
        own_methods = self._own_methods()
        self._own_names = {(method.verb, method.name) for method in own_methods}
        leader_methods = self._leader_methods()
        self._groupmanager = LegacyResource("/groupmanager", [*own_methods, *leader_methods])
        self._bootstrap = LegacyResource("/bootstrap", self._bootstrap_methods())
        self._v1 = V1Api(intake, version)

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application()
        add_health(app, self._health)
        app.router.add_route("*", "/groupmanager", self._answer_groupmanager)
        app.router.add_route("*", "/bootstrap", self._by_leader(self._bootstrap.handle))
        app.router.add_post(ASSIGNMENT_PATH, self._with_leader(self._assign))
        for verb, path, handler in [*self._v1.routes(), *v1_decisions.routes()]:
            app.router.add_route(verb, path, self._with_leader(handler))
        return app

    # ------------------------------------------------------------ who answers

    def _with_leader(
        self, handler: Handler
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            leader = self._leading()
            if leader is None:
                return await self._pass_on(request)
            return await handler(request, leader)

        return handle

    def _by_leader(self, handler: PlainHandler) -> PlainHandler:
        async def handle(request: web.Request) -> web.StreamResponse:
            if self._leading() is None:
                return await self._pass_on(request)
            return await handler(request)

        return handle

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        """Ask the leader; a call that was passed on to us already is given back at once."""
        if HOPS_HEADER in request.headers:
            response = error_response(NotLeader("this group manager does not lead"))
            response.headers[NOT_LEADING_HEADER] = "1"
            return response
        return await self._proxy.pass_on(request)

    def _leader(self) -> LegacyLeader:
        leader = self._leading()
        if leader is None:
            raise NotLeader("this group manager does not lead any more; try again")
        leader.require()
        return LegacyLeader(leader, self._intake)

    # ------------------------------------------------------------ joining

    async def _assign(self, request: web.Request, leader: LeaderService) -> web.Response:
        try:
            message = decode(AssignmentRequest, await request.read())
        except (InvalidRequest, MalformedMessage) as error:
            raise InvalidRequest(f"no request for an assignment: {error}") from None
        assignment = await leader.assign(message)
        return web.Response(
            body=msgspec.msgpack.encode(assignment), content_type="application/msgpack"
        )

    # ------------------------------------------------------------ Snooze's own calls

    async def _answer_groupmanager(self, request: web.Request) -> web.StreamResponse:
        names = {
            (request.method, part.partition("=")[0])
            for part in request.rel_url.raw_query_string.split("&")
        }
        if self._leading() is not None or names & self._own_names:
            return await self._groupmanager.handle(request)
        return await self._pass_on(request)

    def _own_methods(self) -> list[LegacyMethod]:
        own = self._own
        return [
            post_int("getGroupManagerRepositoryInformation", _MESSAGE, own.repository),
            post_text("getLocalControllerDescription", _MESSAGE, own.host),
            post_text("searchVirtualMachine", _TEXT, own.search_vm),
            post_message("hasVirtualMachine", VirtualMachineLocation, _BOOLEAN, own.has_vm),
            post_message("hasLocalController", NetworkAddress, _TEXT, own.has_host),
            get("suspendEnergySaver", _BOOLEAN, lambda: own.pause_energy(paused=True)),
            get("resumeEnergySaver", _BOOLEAN, lambda: own.pause_energy(paused=False)),
            post("startReconfiguration", _BOOLEAN, own.start_reconfiguration),
        ]

    def _leader_methods(self) -> list[LegacyMethod]:
        methods = [
            *self._submission_methods(),
            post_message(
                "migrateVirtualMachine",
                MigrationRequest,
                _BOOLEAN,
                lambda body: self._leader().migrate(body),
            ),
            post_message(
                "resizeVirtualMachine",
                ResizeRequest,
                _MESSAGE,
                lambda body: self._leader().resize(body),
            ),
            post_message(
                "getVirtualMachineMetaData",
                MetaDataRequest,
                _MESSAGE,
                lambda body: self._leader().metadata(body),
                unlabelled=True,
            ),
            post_text(
                "discoverVirtualMachine", _MESSAGE, lambda body: self._leader().discover(body)
            ),
            post_int(
                "getGroupLeaderRepositoryInformation",
                _MESSAGE,
                lambda body: self._leader().repository(body),
            ),
            post_text(
                "getGroupManagerDescription", _MESSAGE, lambda body: self._leader().manager(body)
            ),
            get(
                "getLocalControllerList",
                _MESSAGE,
                lambda: self._leader().local_controller_list(),
            ),
        ]
        methods += [
            post_message(name, VirtualMachineLocation, _BOOLEAN, self._command_at(command))
            for name, command in _COMMANDS.items()
        ]
        return methods

    def _command_at(
        self, command: VmCommand
    ) -> Callable[[VirtualMachineLocation], Awaitable[bool]]:
        return lambda body: self._leader().command_at(body, command)

    def _command(self, command: VmCommand) -> Callable[[str], Awaitable[bool]]:
        return lambda body: self._leader().command(body, command)

    def _submission_methods(self) -> list[LegacyMethod]:
        return [
            post_message(
                "startVirtualCluster",
                VirtualClusterSubmissionRequest,
                _TEXT,
                lambda body: self._leader().start_virtual_cluster(body),
            ),
            post_text(
                "getVirtualClusterResponse",
                _MESSAGE,
                lambda body: self._leader().virtual_cluster_response(body),
            ),
        ]

    def _bootstrap_methods(self) -> list[LegacyMethod]:
        methods = [
            *self._submission_methods(),
            get("getGroupLeaderDescription", _MESSAGE, self._own_description),
            get("getCompleteHierarchy", _MESSAGE, lambda: self._leader().hierarchy()),
            get(
                "getLocalControllerList",
                _MESSAGE,
                lambda: self._leader().local_controller_list(),
            ),
            post_message(
                "migrateVirtualMachine",
                ClientMigrationRequestSimple,
                _BOOLEAN,
                lambda body: self._leader().migrate_to(body),
            ),
            post_text(
                "startReconfiguration",
                _BOOLEAN,
                lambda body: self._leader().start_reconfiguration(body),
            ),
            post_message(
                "getGroupManagerDescriptions",
                HostListRequest,
                _MESSAGE,
                lambda body: self._leader().managers(body),
            ),
            post_message(
                "getLocalControllerDescriptions",
                HostListRequest,
                _MESSAGE,
                lambda body: self._leader().local_controllers(body),
            ),
            post_message(
                "getVirtualMachineDescriptions",
                HostListRequest,
                _MESSAGE,
                lambda body: self._leader().virtual_machines(body),
            ),
        ]
        methods += [
            post_text(name, _BOOLEAN, self._command(command)) for name, command in _COMMANDS.items()
        ]
        return methods

    async def _own_description(self) -> GroupManagerDescription | None:
        leader = self._leading()
        return None if leader is None else legacy_views.manager_description(leader.identity)

"""Our own API over HTTP (``common/api.py``), served by the leader.

Handlers only translate; whether this daemon leads is decided by ``Front`` (``front.py``), which
passes the call on otherwise.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from aiohttp import web

from snooze.common.api import (
    API_PREFIX,
    MAX_WAIT_S,
    ClusterRequest,
    CommandRequest,
    DrainRequest,
    PowerAnswer,
    PowerRequest,
)
from snooze.common.errors import InvalidRequest, NotFound, TooBusy
from snooze.common.vm_lifecycle import VmCommand
from snooze.groupmanager.leader.events import MAX_FOLLOWERS
from snooze.groupmanager.leader.intake import Intake
from snooze.groupmanager.leader.queries import Queries
from snooze.groupmanager.leader.service import LeaderService
from snooze.groupmanager.leader.submit import submit
from snooze.groupmanager.leader.tasks import Task

T = TypeVar("T")
Handler = Callable[[web.Request, LeaderService], Awaitable[web.StreamResponse]]

MAX_EVENTS_PER_CALL = 1000
MAX_TASKS_PER_CALL = 1000
KEEPALIVE_S = 15.0
MAX_KEY_CHARS = 200
MAX_OBJECTS = 200_000
"""In a body: twice as many as the most VMs that settings allow; millions would take seconds."""


class V1Api:
    """The handlers, for a daemon that leads."""

    def __init__(self, intake: Intake, version: str) -> None:
        self._intake = intake
        self._version = version

    def routes(self) -> list[tuple[str, str, Handler]]:
        """``(verb, path, handler)`` of every call."""
        return [
            ("GET", f"{API_PREFIX}/cluster", self._cluster),
            ("POST", f"{API_PREFIX}/virtual-clusters", self._submit),
            ("GET", f"{API_PREFIX}/tasks", self._tasks),
            ("GET", f"{API_PREFIX}/tasks/{{id}}", self._task),
            ("GET", f"{API_PREFIX}/vms", self._vms),
            ("GET", f"{API_PREFIX}/vms/{{name}}", self._vm),
            ("POST", f"{API_PREFIX}/vms/{{name}}/{{command}}", self._command),
            ("GET", f"{API_PREFIX}/hosts", self._hosts),
            ("GET", f"{API_PREFIX}/hosts/{{id}}", self._host),
            ("POST", f"{API_PREFIX}/hosts/drain", self._drain),
            ("POST", f"{API_PREFIX}/hosts/undrain", self._undrain),
            ("POST", f"{API_PREFIX}/hosts/{{id}}/sleep", self._sleep),
            ("POST", f"{API_PREFIX}/hosts/{{id}}/wake", self._wake),
            ("GET", f"{API_PREFIX}/energy", self._energy),
            ("POST", f"{API_PREFIX}/hosts/{{id}}/confirm-dead", self._confirm_dead),
            ("GET", f"{API_PREFIX}/managers", self._managers),
            ("GET", f"{API_PREFIX}/hierarchy", self._hierarchy),
            ("GET", f"{API_PREFIX}/images", self._images),
            ("GET", f"{API_PREFIX}/events", self._events),
        ]

    async def _cluster(self, request: web.Request, leader: LeaderService) -> web.Response:
        return answer(Queries(leader).cluster(self._version))

    async def _submit(self, request: web.Request, leader: LeaderService) -> web.Response:
        wait_s = wait_of(request)
        cluster = await body_of(request, ClusterRequest)
        key = key_of(request)
        with self._intake.admission.admit():
            candidates = await self._intake.read(cluster.vms)
            task = await submit(
                leader, candidates, key=key, virtual_cluster=cluster.name, partial=cluster.partial
            )
        return await _answer_task(leader, task, wait_s)

    async def _tasks(self, request: web.Request, leader: LeaderService) -> web.Response:
        limit = number_of(request, "limit", 100, 1, MAX_TASKS_PER_CALL)
        return answer(Queries(leader).tasks(limit))

    async def _task(self, request: web.Request, leader: LeaderService) -> web.Response:
        task = await leader.wait(leader.task(request.match_info["id"]), wait_of(request))
        return answer(Queries(leader).task_view(task))

    async def _vms(self, request: web.Request, leader: LeaderService) -> web.Response:
        return answer(await Queries(leader).vms())

    async def _vm(self, request: web.Request, leader: LeaderService) -> web.Response:
        return answer(await Queries(leader).vm(request.match_info["name"]))

    async def _command(self, request: web.Request, leader: LeaderService) -> web.Response:
        wait_s = wait_of(request)
        try:
            command = VmCommand(request.match_info["command"])
        except ValueError:
            known = ", ".join(command.value for command in VmCommand)
            raise NotFound(
                f"no command {request.match_info['command']!r}; there are: {known}"
            ) from None
        arguments = (
            await body_of(request, CommandRequest) if request.body_exists else CommandRequest()
        )
        key = key_of(request)
        if key and (known_task := leader.commands_by_key.get(key)) is not None:
            return await _answer_task(leader, leader.task(known_task), wait_s)
        task = leader.command(request.match_info["name"], command, arguments)
        if key:
            leader.remember_key(key, task.task_id)
        return await _answer_task(leader, task, wait_s)

    async def _hosts(self, request: web.Request, leader: LeaderService) -> web.Response:
        return answer(await Queries(leader).hosts())

    async def _host(self, request: web.Request, leader: LeaderService) -> web.Response:
        return answer(await Queries(leader).host(request.match_info["id"]))

    async def _drain(self, request: web.Request, leader: LeaderService) -> web.Response:
        leader.require()
        view = await leader.drains.drain(await body_of(request, DrainRequest))
        return answer(view, 202 if view.task_id else 200)

    async def _sleep(self, request: web.Request, leader: LeaderService) -> web.Response:
        leader.require()
        asked = await body_of(request, PowerRequest) if request.body_exists else PowerRequest()
        message = await leader.energy.sleep(request.match_info["id"], force=asked.force)
        return answer(PowerAnswer(message), 202)

    async def _wake(self, request: web.Request, leader: LeaderService) -> web.Response:
        leader.require()
        return answer(PowerAnswer(await leader.energy.wake(request.match_info["id"])), 202)

    async def _energy(self, request: web.Request, leader: LeaderService) -> web.Response:
        leader.require()
        return answer(leader.energy.view())

    async def _undrain(self, request: web.Request, leader: LeaderService) -> web.Response:
        leader.require()
        return answer(await leader.drains.undrain(await body_of(request, DrainRequest)), 202)

    async def _confirm_dead(self, request: web.Request, leader: LeaderService) -> web.Response:
        leader.require()
        host = await leader.recovery.confirm_dead(request.match_info["id"])
        return answer(await Queries(leader).host(host.description.host_id))

    async def _managers(self, request: web.Request, leader: LeaderService) -> web.Response:
        return answer(Queries(leader).managers())

    async def _hierarchy(self, request: web.Request, leader: LeaderService) -> web.Response:
        return answer(await Queries(leader).hierarchy())

    async def _images(self, request: web.Request, leader: LeaderService) -> web.Response:
        return answer(Queries(leader).images())

    async def _events(self, request: web.Request, leader: LeaderService) -> web.StreamResponse:
        leader.require()
        after = number_of(request, "after", 0, 0, 2**53)
        if "text/event-stream" not in request.headers.get("Accept", ""):
            limit = number_of(request, "limit", 100, 1, MAX_EVENTS_PER_CALL)
            return answer(leader.events.after(after, limit))
        if leader.events.followers >= MAX_FOLLOWERS:
            raise TooBusy(f"{MAX_FOLLOWERS} clients follow the events already", retry_after_s=5.0)
        return await follow(request, leader, after)


async def follow(request: web.Request, leader: LeaderService, after: int) -> web.StreamResponse:
    """Server-sent events until the client goes, or the leader does."""
    if "Last-Event-ID" in request.headers:
        with_id = request.headers["Last-Event-ID"]
        is_number = with_id.isascii() and with_id.isdigit() and len(with_id) < 20
        after = int(with_id) if is_number else after
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    await response.prepare(request)
    await response.write(b": following\n\n")
    async for event in leader.events.follow(after, KEEPALIVE_S):
        if event is None:
            await response.write(b": alive\n\n")
            continue
        data = msgspec.json.encode(event).decode()
        await response.write(f"id: {event.seq}\nevent: {event.kind}\ndata: {data}\n\n".encode())
    return response


def answer(view: object, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(
        body=msgspec.json.encode(view), status=status, content_type="application/json"
    )


async def _answer_task(leader: LeaderService, task: Task, wait_s: float) -> web.Response:
    if wait_s > 0:
        task = await leader.wait(task, wait_s)
    response = answer(Queries(leader).task_view(task), 200 if task.ended else 202)
    response.headers["Location"] = f"{API_PREFIX}/tasks/{task.task_id}"
    return response


async def body_of(request: web.Request, kind: type[T]) -> T:
    """The request's JSON body.

    Raises:
        InvalidRequest: it is none, or not of this kind; says where.
    """
    body = await request.read()
    if body.count(b"{") > MAX_OBJECTS:
        raise InvalidRequest(f"more than {MAX_OBJECTS} objects in one body")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not what {request.path} takes: {error}") from None


def number_of(request: web.Request, name: str, default: int, least: int, most: int) -> int:
    """An integer from the query.

    Raises:
        InvalidRequest: it is none, or out of bounds.
    """
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise InvalidRequest(f"{name} has to be a number from {least} to {most}")
    return int(text)


def wait_of(request: web.Request) -> float:
    """``wait_s`` from the query.

    Raises:
        InvalidRequest: it is no number from 0 to ``MAX_WAIT_S``.
    """
    text = request.query.get("wait_s", "0")
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise InvalidRequest(f"wait_s has to be a number from 0 to {MAX_WAIT_S:g}")
    return wait_s


def key_of(request: web.Request) -> str:
    """The idempotency key.

    Raises:
        InvalidRequest: longer than a key may be.
    """
    key = request.headers.get("Idempotency-Key", "")
    if len(key) > MAX_KEY_CHARS:
        raise InvalidRequest(f"an Idempotency-Key has at most {MAX_KEY_CHARS} characters")
    return key

"""A cluster of canned state that speaks ``/v1`` and fails to order.

For tests of programs that use the SDK, and of the SDK and the command themselves: a real HTTP
server on a loopback port, on a thread of its own. It keeps the rules of ``common/api.py`` and of
``common/vm_lifecycle.py`` (idempotency keys, states that a command needs), but places nothing and
runs nothing. A task moves on by one step each time it is looked at, and so does a host's power, so
no test has to sleep.

::

    with FakeCluster() as fake:
        fake.fail_next(Failure.LOSE_ANSWER)
        Snooze(fake.url).submit([VmRequest(name="web", vcpus=1, memory_kib=1024, image="tiny")])
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec
from aiohttp import web

from snooze.common.api import (
    TASK_ENDED,
    ClusterRequest,
    ClusterView,
    CommandRequest,
    DecisionView,
    ErrorBody,
    EventView,
    HierarchyHost,
    HierarchyManager,
    HierarchyView,
    HostView,
    ImageView,
    ManagerView,
    PowerAnswer,
    TaskState,
    TaskView,
    TaskVm,
    VmRequest,
    VmView,
)
from snooze.common.errors import (
    Conflict,
    ErrorReport,
    InvalidRequest,
    NotFound,
    NotLeader,
    Problem,
    RemoteError,
    SnoozeError,
    TooBusy,
)
from snooze.common.resources import KIB_PER_GIB, Capacity
from snooze.common.vm_lifecycle import VmCommand, VmState, check_command
from snooze.common.vms import DEFAULT_POLICY, MigrationProgress

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FIRST_MS: Final = 1_700_000_000_000
MIGRATION_STEPS: Final = 4
MIGRATION_BYTES: Final = 512 * 1024 * 1024
_HANG_S: Final = 30.0


class Failure(Enum):
    """What can be ordered to go wrong with one request."""

    HANG = auto()
    """Take it, do nothing, answer nothing."""
    DROP = auto()
    """Close the connection before anything is done."""
    LOSE_ANSWER = auto()
    """Do it, then close the connection instead of answering."""
    BUSY = auto()
    """503 with Retry-After: 1 and a ``too_busy`` report."""
    NO_LEADER = auto()
    """503 with a ``not_leader`` report that says to come back in 0.05 s."""
    BAD_GATEWAY = auto()
    """502 with a ``remote_failed`` report."""
    NONSENSE = auto()
    """200 with a body that is not JSON."""
    FOREIGN = auto()
    """404 with a page of HTML, as something that is not Snooze answers."""


@dataclass
class _Planned:
    failure: Failure
    left: int
    path: str


_COMMAND_RESULT: Final[dict[VmCommand, VmState]] = {
    VmCommand.START: VmState.RUNNING,
    VmCommand.SUSPEND: VmState.PAUSED,
    VmCommand.RESUME: VmState.RUNNING,
    VmCommand.SHUTDOWN: VmState.STOPPED,
    VmCommand.REBOOT: VmState.RUNNING,
    VmCommand.DESTROY: VmState.DESTROYED,
    VmCommand.RESIZE: VmState.RUNNING,
    VmCommand.MIGRATE: VmState.RUNNING,
}


class FakeCluster:
    """Two group managers, three hosts, and the VMs that a client asks for.

    Change ``vms``, ``hosts``, ``images``, ``epoch`` and ``capacity_vms`` as a test needs it; while
    it is ``stuck`` no task moves on.
    ``requests`` holds ``(method, path, idempotency key)`` of everything asked.
    """

    def __init__(self) -> None:
        self.epoch = 3
        self.capacity_vms = 1000
        self.stuck = False
        self.managers = [
            ManagerView(f"gm-{n}", f"manager-{n}", f"127.0.0.1:{5000 + n}", leader=n == 1, hosts=h)
            for n, h in ((1, 2), (2, 1))
        ]
        self.hosts = [
            HostView(
                id=f"lc-{n}",
                hostname=f"host-{n}",
                address=f"127.0.0.1:{6000 + n}",
                status="active" if n < 3 else "asleep",
                capacity=Capacity(16, 64 * KIB_PER_GIB, 131072, 131072),
                reserved=Capacity(),
                used=Capacity(),
                manager_id="gm-1" if n < 3 else "gm-2",
                hypervisor="simulated",
            )
            for n in (1, 2, 3)
        ]
        self.power_steps: dict[str, deque[HostView]] = {}
        self.decisions: dict[str, DecisionView] = {}
        self.images = [ImageView("tiny.qcow2", "qcow2", 2 << 30, 300 << 20, 3)]
        self.vms: dict[str, VmView] = {}
        self.tasks: dict[str, TaskView] = {}
        self.events: list[EventView] = []
        self.requests: list[tuple[str, str, str]] = []
        self.url = ""
        self._outcomes: dict[str, TaskView] = {}
        self._keys: dict[str, str] = {}
        self._planned: deque[_Planned] = deque()
        self._asked = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-cluster")

    # For the test -----------------------------------------------------------------------------

    def fail_next(self, failure: Failure, *, times: int = 1, path: str = "/v1/") -> None:
        """Let the next ``times`` requests whose path contains ``path`` end in ``failure``."""
        self._planned.append(_Planned(failure, times, path))

    def add_vm(self, name: str, state: VmState = VmState.RUNNING, **changes: object) -> VmView:
        """Put a VM on the first host, as if it had been submitted earlier."""
        vm = VmView(
            vm_id=f"{len(self.vms):032x}",
            name=name,
            state=state,
            demand=Capacity(2, 2 * KIB_PER_GIB, 12800, 12800),
            host_id="lc-1",
            hostname="host-1",
            manager_id="gm-1",
            ip_address=f"192.168.122.{10 + len(self.vms)}",
            image="tiny.qcow2",
            xml=f"<domain type='test'><name>{len(self.vms)}</name></domain>",
        )
        self.vms[name] = vm = msgspec.structs.replace(vm, **changes)
        return vm

    def emit(self, kind: str, subject: str, message: str, cause: str = "") -> None:
        """Let an event happen; followers get it at once."""
        seq = self.events[-1].seq + 1 if self.events else 1
        at_ms = FIRST_MS + 1000 * seq
        self.events.append(EventView(seq, at_ms, kind, subject, message, cause))
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._changed.set)

    def wait_until_asked(self, path: str, *, timeout_s: float = 20.0) -> None:
        """Block until a request whose path and query contain ``path`` has come in.

        Raises:
            TimeoutError: if none does.
        """
        with self._asked:
            if not self._asked.wait_for(
                lambda: any(path in asked for _, asked, _ in self.requests), timeout_s
            ):
                raise TimeoutError(f"nobody asked for {path} within {timeout_s:g} s")

    def change_leader(self) -> None:
        """A new leader: the epoch rises, events are counted anew, streams end."""
        self.epoch += 1
        self.events = []
        self.emit("leader.elected", "gm-2", f"gm-2 leads epoch {self.epoch}")

    def will_be(self, hostname: str, *steps: tuple[str, str, str]) -> None:
        """What a host's power, status and note are at the next looks at it, one after the other."""
        host = self._find_host(hostname)
        self.power_steps[host.id] = deque(
            msgspec.structs.replace(host, power=power, status=status, note=note)
            for power, status, note in steps
        )

    # The server -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._failing])
        app.add_routes(
            [
                web.get("/v1/cluster", self._cluster),
                web.post("/v1/virtual-clusters", self._submit),
                web.get("/v1/tasks", self._list_tasks),
                web.get("/v1/tasks/{id}", self._task),
                web.get("/v1/vms", self._list_vms),
                web.get("/v1/vms/{name}", self._vm),
                web.post("/v1/vms/{name}/{command}", self._command),
                web.get("/v1/hosts", self._list_hosts),
                web.get("/v1/hosts/{id}", self._host),
                web.post("/v1/hosts/{id}/{command:sleep|wake}", self._power),
                web.get("/v1/decisions", self._decisions),
                web.get("/v1/decisions/{id}", self._decision),
                web.get("/v1/managers", self._list_managers),
                web.get("/v1/hierarchy", self._hierarchy),
                web.get("/v1/images", self._list_images),
                web.get("/v1/events", self._events),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def _take_failure(self, path: str) -> Failure | None:
        for planned in self._planned:
            if planned.path in path:
                planned.left -= 1
                if planned.left == 0:
                    self._planned.remove(planned)
                return planned.failure
        return None

    @web.middleware
    async def _failing(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = request.headers.get("Idempotency-Key", "")
        with self._asked:
            self.requests.append((request.method, request.path_qs, key))
            self._asked.notify_all()
        failure = self._take_failure(request.path)
        match failure:
            case Failure.HANG:
                await asyncio.sleep(_HANG_S)
            case Failure.DROP:
                return _hang_up(request)
            case Failure.BUSY:
                busy = _error(TooBusy("1000 tasks are pending already"))
                busy.headers["Retry-After"] = "1"
                return busy
            case Failure.NO_LEADER:
                return _error(NotLeader("an election is under way", retry_after_s=0.05))
            case Failure.BAD_GATEWAY:
                return _error(RemoteError("the leader broke the connection"))
            case Failure.NONSENSE:
                return web.Response(text="<html>", content_type="application/json")
            case Failure.FOREIGN:
                return web.Response(status=404, text="<h1>Not Found</h1>", content_type="text/html")
            case Failure.LOSE_ANSWER | None:
                pass
        try:
            answer = await handler(request)
        except SnoozeError as error:
            answer = _error(error)
        return _hang_up(request) if failure is Failure.LOSE_ANSWER else answer

    # What there is ----------------------------------------------------------------------------

    async def _cluster(self, request: web.Request) -> web.Response:
        return _json(
            ClusterView(
                leader_id="gm-1",
                leader_address=self.managers[0].address,
                epoch=self.epoch,
                managers=len(self.managers),
                hosts=len(self.hosts),
                vms=len(self.vms),
                version="0.1.0",
            )
        )

    async def _list_vms(self, request: web.Request) -> web.Response:
        return _json([msgspec.structs.replace(vm, xml="") for vm in self.vms.values()])

    async def _vm(self, request: web.Request) -> web.Response:
        return _json(self._find(request.match_info["name"]))

    async def _list_hosts(self, request: web.Request) -> web.Response:
        return _json([self._with_vms(host) for host in self.hosts])

    async def _host(self, request: web.Request) -> web.Response:
        host = self._find_host(request.match_info["id"])
        coming = self.power_steps.get(host.id)
        if coming:
            self.hosts[self.hosts.index(host)] = host = coming.popleft()
        return _json(self._with_vms(host))

    async def _power(self, request: web.Request) -> web.Response:
        self._find_host(request.match_info["id"])
        waking = request.match_info["command"] == "wake"
        answer = PowerAnswer("it is being woken" if waking else "it is sent to sleep")
        return _json(answer, 202)

    async def _decisions(self, _request: web.Request) -> web.Response:
        return _json(list(self.decisions.values()))

    async def _decision(self, request: web.Request) -> web.Response:
        found = self.decisions.get(request.match_info["id"])
        if found is None:
            raise NotFound("no such decision is known")
        return _json(found)

    async def _list_managers(self, request: web.Request) -> web.Response:
        return _json(self.managers)

    async def _hierarchy(self, request: web.Request) -> web.Response:
        managers = [
            HierarchyManager(
                manager,
                [
                    HierarchyHost(
                        self._with_vms(host),
                        [vm for vm in self.vms.values() if vm.host_id == host.id],
                    )
                    for host in self.hosts
                    if host.manager_id == manager.id
                ],
            )
            for manager in self.managers
        ]
        unplaced = [vm for vm in self.vms.values() if not vm.host_id]
        return _json(HierarchyView("gm-1", self.epoch, managers, unplaced))

    async def _list_images(self, request: web.Request) -> web.Response:
        return _json(self.images)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        after = int(request.query.get("after", "0"))
        if request.headers.get("Accept") != "text/event-stream":
            limit = int(request.query.get("limit", "100"))
            return _json([event for event in self.events if event.seq > after][:limit])
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        epoch = self.epoch
        while self.epoch == epoch:
            self._changed.clear()
            for event in [event for event in self.events if event.seq > after]:
                after = event.seq
                data = msgspec.json.encode(event)
                await stream.write(b": beat\n\nid: %d\ndata: %s\n\n" % (after, data))
                if self._take_failure("stream"):
                    return _hang_up(request)
            await self._changed.wait()
        return stream

    # What to do -------------------------------------------------------------------------------

    async def _submit(self, request: web.Request) -> web.Response:
        known = self._repeated(request)
        if known is not None:
            return _json(known, 202)
        order = _body(await request.read(), ClusterRequest)
        problems = [p for n, vm in enumerate(order.vms) for p in self._problems(f"vms[{n}]", vm)]
        if problems and not order.partial:
            raise InvalidRequest("the submission is wrong; nothing was started", problems=problems)
        full = ErrorReport("no_capacity", "no host has room for 2 cores and 2 GiB")
        done: list[TaskVm] = []
        for n, vm in enumerate(order.vms):
            name = vm.name or f"template-{n}"
            if any(problem.where.startswith(f"vms[{n}]") for problem in problems):
                report = ErrorReport("invalid_request", "it is wrong")
                done.append(TaskVm(name, state=VmState.FAILED, error=report))
            elif len(self.vms) >= self.capacity_vms:
                self.add_vm(name, VmState.FAILED, host_id="", hostname="", reason=full.message)
                done.append(TaskVm(name, state=VmState.FAILED, error=full))
            else:
                policy = vm.policy.over(DEFAULT_POLICY)
                made = self.add_vm(name, virtual_cluster=order.name, policy=policy)
                done.append(
                    TaskVm(
                        name, made.vm_id, made.state, made.host_id, made.hostname, made.ip_address
                    )
                )
        failed = sum(vm.error is not None for vm in done)
        state = TaskState.DONE
        if failed:
            state = TaskState.FAILED if failed == len(done) else TaskState.PARTIAL
        return _json(self._new_task(request, "submit", done, state), 202)

    async def _command(self, request: web.Request) -> web.Response:
        known = self._repeated(request)
        if known is not None:
            return _json(known, 202)
        try:
            command = VmCommand(request.match_info["command"])
        except ValueError as error:
            raise NotFound(f"no such command: {request.match_info['command']}") from error
        vm = self._find(request.match_info["name"])
        content = await request.read()
        order = _body(content, CommandRequest) if content else CommandRequest()
        if check_command(command, vm.state, vm.name):
            vm = self._carry_out(command, vm, order)
        done = [TaskVm(vm.name, vm.vm_id, vm.state, vm.host_id, vm.hostname, vm.ip_address)]
        return _json(self._new_task(request, command.value, done, TaskState.DONE), 202)

    def _carry_out(self, command: VmCommand, vm: VmView, order: CommandRequest) -> VmView:
        changes: dict[str, object] = {"state": _COMMAND_RESULT[command]}
        if command is VmCommand.MIGRATE:
            host = self._find_host(order.host)
            if host.id == vm.host_id:
                raise Conflict(f"VM {vm.name!r} is on {host.hostname} already")
            changes |= {"host_id": host.id, "hostname": host.hostname}
        elif command is VmCommand.RESIZE:
            given = (order.vcpus, order.memory_kib, order.rx_kib_s, order.tx_kib_s)
            now = vm.demand.as_tuple()
            changes["demand"] = Capacity(
                *(old if new is None else new for new, old in zip(given, now, strict=True))
            )
        vm = msgspec.structs.replace(vm, **changes)
        if command is VmCommand.DESTROY:
            del self.vms[vm.name]
        else:
            self.vms[vm.name] = vm
        return vm

    async def _list_tasks(self, request: web.Request) -> web.Response:
        return _json(list(self.tasks.values()))

    async def _task(self, request: web.Request) -> web.Response:
        task = self.tasks.get(request.match_info["id"])
        if task is None:
            raise NotFound(f"no task {request.match_info['id']!r}")
        if task.state not in TASK_ENDED and not self.stuck:
            task = self.tasks[task.id] = self._step(task)
        return _json(task, 200 if task.state in TASK_ENDED else 202)

    def _new_task(
        self, request: web.Request, kind: str, vms: list[TaskVm], end: TaskState
    ) -> TaskView:
        task_id = f"{len(self.tasks) + 1:032x}"
        created_ms = FIRST_MS + 1000 * len(self.tasks)
        waiting = [TaskVm(vm.name, vm.vm_id) for vm in vms]
        task = TaskView(task_id, kind, TaskState.PENDING, created_ms, vms=waiting)
        self.tasks[task_id] = task
        self._outcomes[task_id] = TaskView(
            task_id, kind, end, created_ms, ended_ms=created_ms + 250, vms=vms
        )
        key = request.headers.get("Idempotency-Key", "")
        if key:
            self._keys[key] = task_id
        return task

    def _step(self, task: TaskView) -> TaskView:
        """The task one step further."""
        outcome = self._outcomes[task.id]
        if task.kind == "migrate":
            done = (task.progress.iteration if task.progress else 0) + 1
            moved = MIGRATION_BYTES * done // MIGRATION_STEPS
            progress = MigrationProgress(
                vm_id=task.vms[0].vm_id,
                elapsed_ms=50 * done,
                total_bytes=MIGRATION_BYTES,
                processed_bytes=moved,
                remaining_bytes=MIGRATION_BYTES - moved,
                dirty_kib_s=64.0,
                iteration=done,
            )
            if done < MIGRATION_STEPS:
                return msgspec.structs.replace(task, state=TaskState.RUNNING, progress=progress)
            return msgspec.structs.replace(outcome, progress=progress)
        if task.state is TaskState.PENDING:
            # Half of the VMs are settled at the first look.
            half = len(outcome.vms) // 2
            vms = outcome.vms[:half] + task.vms[half:]
            return msgspec.structs.replace(task, state=TaskState.RUNNING, vms=vms)
        return outcome

    def _repeated(self, request: web.Request) -> TaskView | None:
        task_id = self._keys.get(request.headers.get("Idempotency-Key", ""))
        return None if task_id is None else self.tasks[task_id]

    def _problems(self, where: str, vm: VmRequest) -> list[Problem]:
        problems: list[Problem] = []
        if vm.name in self.vms:
            problems.append(Problem(f"{where}.name", f"{vm.name!r} is taken", "duplicate"))
        if vm.memory_kib is not None and vm.memory_kib <= 0:
            problems.append(Problem(f"{where}.memory_kib", "has to be positive", "range"))
        if vm.image and vm.image not in {image.name for image in self.images}:
            problems.append(Problem(f"{where}.image", f"no image {vm.image!r}", "not_found"))
        return problems

    def _find(self, name: str) -> VmView:
        for vm in self.vms.values():
            if name in (vm.name, vm.vm_id):
                return vm
        raise NotFound(f"no VM is called {name!r}")

    def _find_host(self, wanted: str) -> HostView:
        for host in self.hosts:
            if wanted in (host.id, host.hostname):
                return host
        raise NotFound(f"no host is called {wanted!r}")

    def _with_vms(self, host: HostView) -> HostView:
        vms = [vm for vm in self.vms.values() if vm.host_id == host.id]
        reserved = Capacity()
        for vm in vms:
            reserved = reserved.plus(vm.demand)
        return msgspec.structs.replace(host, reserved=reserved, vms=len(vms))


def _body(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(str(error)) from error


def _json(value: object, status: int = 200) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(status=status, body=body, content_type="application/json")


def _error(error: SnoozeError) -> web.Response:
    return _json(ErrorBody(ErrorReport.of(error)), error.http_status)


def _hang_up(request: web.Request) -> web.StreamResponse:
    """Close the connection under the request, as a process that dies does."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)

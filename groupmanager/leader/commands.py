"""Commands of clients on one VM: from the call to the manager's answer, as a task.

Commands are not recorded: they are idempotent, and a client whose leader died asks again.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from snooze.common.api import CommandRequest, TaskState
from snooze.common.clock import Clock
from snooze.common.errors import (
    Conflict,
    ErrorReport,
    InvalidRequest,
    NotFound,
    RemoteTimeout,
    SnoozeError,
)
from snooze.common.records import TaskVmRecord
from snooze.common.resources import Capacity
from snooze.common.task_set import TaskSet
from snooze.common.vm_lifecycle import VmCommand, VmState, check_command
from snooze.common.wire import VmOrder, VmStatus
from snooze.groupmanager.leader.registry import Registry, VmEntry
from snooze.groupmanager.leader.tasks import Task

logger = logging.getLogger(__name__)

AskManager = Callable[[str, VmOrder], Awaitable[VmStatus]]
"""Passes an order to a manager and brings back the VM as it is when it was carried out."""

GONE_S: Final = 60.0
"""How long a command waits for the end of a VM that is being destroyed already."""
FIRST_LOOK_S: Final = 0.005
LOOK_S: Final = 0.1

_NOT_GOING: Final = frozenset({VmState.FAILED, VmState.STOPPED, VmState.PENDING})
"""What a VM that was being destroyed is again if that failed."""


class Commands:
    """Turns commands into tasks and orders."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        epoch: int,
        ask: AskManager,
        started: Callable[[Task], None],
        moved: Callable[[Task], None],
        destroy_unplaced: Callable[[str], None],
        restart: Callable[[str], str],
        written: Callable[[], Awaitable[None]],
    ) -> None:
        """``restart`` has a VM that no host in reach has started on any; or says why not.

        ``written`` returns when all that was to be recorded by now is.
        """
        self._registry = registry
        self._clock = clock
        self._epoch = epoch
        self._ask = ask
        self._started = started
        self._moved = moved
        self._destroy_unplaced = destroy_unplaced
        self._restart = restart
        self._written = written
        self._tasks = TaskSet()

    def start(self, name: str, command: VmCommand, request: CommandRequest) -> Task:
        """Check a command and set it going.

        Raises:
            NotFound, Conflict, InvalidRequest: as the VM and the request are; nothing was done.
        """
        vm = self._registry.find_vm(name)
        if vm is None:
            raise NotFound(f"no VM is called {name!r}")
        if not vm.managed:
            raise Conflict(
                f"{vm.name!r} was not started by Snooze: it is shown and counted, not touched"
            )
        order = self._order(vm, command, request)
        task = Task(
            uuid.uuid4().hex,
            command.value,
            self._clock.wall_ms(),
            {vm.vm_id: _outcome(vm)},
            state=TaskState.RUNNING,
            open_vms={vm.vm_id},
        )
        if command is VmCommand.START and self._is_out_of_reach(vm):
            why_not = self._restart(vm.vm_id)
            if why_not:
                raise Conflict(f"cannot start VM {vm.name!r}: {why_not}")
            self._started(task)
            self._end(task, _outcome(vm))
            return task
        has_work = check_command(command, vm.state, vm.name)
        if has_work and command is VmCommand.DESTROY and not vm.host_id:
            self._destroy_unplaced(vm.vm_id)
            if vm.state is not VmState.DESTROYED:
                raise Conflict(f"{vm.name!r} is just being given to a host; try again")
        self._started(task)
        if vm.state in {VmState.DESTROYING, VmState.DESTROYED}:
            self._tasks.spawn(self._forget(task, vm))
        elif not has_work:
            self._end(task, _outcome(vm))
        else:
            self._tasks.spawn(self._carry_out(task, vm, order))
        return task

    def _is_out_of_reach(self, vm: VmEntry) -> bool:
        return vm.state is VmState.UNREACHABLE or (vm.state is VmState.FAILED and not vm.host_id)

    def _order(self, vm: VmEntry, command: VmCommand, request: CommandRequest) -> VmOrder:
        match command:
            case VmCommand.RESIZE:
                return VmOrder(
                    self._epoch, "", vm.vm_id, command, demand=_resized(vm.demand, request)
                )
            case VmCommand.MIGRATE:
                return VmOrder(
                    self._epoch, "", vm.vm_id, command, destination=self._target(vm, request)
                )
            case _:
                if request != CommandRequest():
                    raise InvalidRequest(f"{command.value} takes nothing but the VM's name")
                return VmOrder(self._epoch, "", vm.vm_id, command)

    def _target(self, vm: VmEntry, request: CommandRequest) -> str:
        if not request.host:
            raise InvalidRequest("a migration needs the host to go to (its id or hostname)")
        host = self._registry.find_host(request.host)
        if host is None:
            raise NotFound(f"no host is called {request.host!r}")
        host_id = host.description.host_id
        if host_id == vm.host_id:
            raise Conflict(f"VM {vm.name!r} is on {host.description.hostname} already")
        if not host.joined:
            raise Conflict(f"host {host.description.hostname} is {host.absence} at present")
        return host_id

    async def _carry_out(self, task: Task, vm: VmEntry, order: VmOrder) -> None:
        order = VmOrder(
            order.epoch, task.task_id, order.vm_id, order.command, order.demand, order.destination
        )
        host = self._registry.hosts.get(vm.host_id)
        try:
            if host is None or not host.joined:
                raise Conflict(
                    f"the host of {vm.name!r} is out of reach; try again when it is back"
                )
            status = await self._ask(host.manager_id, order)
            if status.state is VmState.DESTROYED:
                await self._forgotten(vm)
        except SnoozeError as error:
            self._end(task, _outcome(vm), ErrorReport.of(error))
        except asyncio.CancelledError:
            self._end(
                task, _outcome(vm), ErrorReport("not_leader", "the leader changed; ask again")
            )
            raise
        else:
            self._end(
                task,
                TaskVmRecord(vm.vm_id, vm.name, status.state, status.host_id, vm.ip_address),
            )

    async def _forget(self, task: Task, vm: VmEntry) -> None:
        """A VM that was on no host, or is being destroyed, is gone once the record knows."""
        error: ErrorReport | None = None
        try:
            await self._forgotten(vm, _NOT_GOING)
        except SnoozeError as failure:
            error = ErrorReport.of(failure)
        except asyncio.CancelledError:
            error = ErrorReport("not_leader", "the leader changed; ask again")
            raise
        finally:
            self._end(task, _outcome(vm), error)

    async def _forgotten(self, vm: VmEntry, back: Collection[VmState] = ()) -> None:
        """Return when neither we nor the record know a VM: a later leader must not bring it back.

        That it is gone is told by its manager, and recorded then, with a tombstone where a copy
        may be somewhere.

        Raises:
            Conflict: it is in one of the states ``back``, so it is not being destroyed any more.
            RemoteTimeout: we still know it after ``GONE_S``.
        """
        deadline_s, pause_s = self._clock.monotonic_s() + GONE_S, FIRST_LOOK_S
        while self._registry.vms.get(vm.vm_id) is vm:
            if vm.state in back:
                raise Conflict(f"{vm.name!r} is {vm.state.value} again: {vm.reason or 'ask again'}")
            if self._clock.monotonic_s() > deadline_s:
                raise RemoteTimeout(f"{vm.name!r} is still being destroyed; ask again")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOK_S)
        await self._written()

    def _end(self, task: Task, outcome: TaskVmRecord, error: ErrorReport | None = None) -> None:
        task.error = error
        task.settle(
            TaskVmRecord(
                outcome.vm_id,
                outcome.name,
                outcome.state,
                outcome.host_id,
                outcome.ip_address,
                error,
            )
        )
        task.end_if_settled(self._clock.wall_ms())
        self._moved(task)

    async def close(self) -> None:
        """End every command under way; what managers were asked may still happen."""
        await self._tasks.close()


def _outcome(vm: VmEntry) -> TaskVmRecord:
    return TaskVmRecord(vm.vm_id, vm.name, vm.state, vm.host_id, vm.ip_address)


def _resized(demand: Capacity, request: CommandRequest) -> Capacity:
    """The new size: what is not given stays.

    Raises:
        InvalidRequest: nothing is given, or it is no size a VM can have.
    """
    if request.host:
        raise InvalidRequest("a resize takes no host")
    given = (request.vcpus, request.memory_kib, request.rx_kib_s, request.tx_kib_s)
    if all(value is None for value in given):
        raise InvalidRequest("a resize needs at least one of vcpus, memory_kib, rx_kib_s, tx_kib_s")
    size = Capacity.of(
        have if value is None else float(value)
        for have, value in zip(demand.as_tuple(), given, strict=True)
    )
    problems = size.problems()
    if size.cpu_cores < 1:
        problems.append("vcpus must be at least 1")
    if size.memory_kib < 1024:
        problems.append("memory_kib must be at least 1024")
    if problems:
        raise InvalidRequest("not a size a VM can have: " + "; ".join(problems))
    return size

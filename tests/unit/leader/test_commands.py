"""Commands of clients: checked, passed on, and their outcome told in a task."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from snooze.common.api import CommandRequest, TaskState
from snooze.common.clock import ManualClock
from snooze.common.errors import (
    Conflict,
    InvalidRequest,
    NoCapacity,
    NotFound,
    NotLeader,
    SnoozeError,
)
from snooze.common.records import HostPower
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmCommand, VmState
from snooze.common.wire import VmOrder, VmStatus
from snooze.groupmanager.leader.commands import Commands
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.groupmanager.leader.tasks import Task
from tests.unit.leader.builders import SMALL, host_of, status_of

NOTHING = CommandRequest()


@dataclass
class Rig:
    """Commands with a manager that answers as the test says."""

    registry: Registry = field(default_factory=Registry)
    asked: list[tuple[str, VmOrder]] = field(default_factory=list[tuple[str, VmOrder]])
    answer: "asyncio.Future[VmStatus]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    started: list[Task] = field(default_factory=list[Task])
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    destroys: bool = True
    restarted: list[str] = field(default_factory=list[str])
    why_not: str = ""
    waits: asyncio.Event = field(default_factory=asyncio.Event)
    record: asyncio.Event = field(default_factory=asyncio.Event)
    commands: Commands = field(init=False)

    def __post_init__(self) -> None:
        self.commands = Commands(
            self.registry,
            ManualClock(),
            7,
            self._ask,
            self.started.append,
            self._moved,
            self._destroy_unplaced,
            self._restart,
            self._written,
        )
        self.record.set()
        for host_id in ("h1", "h2"):
            self.registry.hosts[host_id] = HostEntry(host_of(host_id), "gm1", 1, True, 0.0)
        self.vm = VmEntry("a", "vm-a", SMALL, VmState.RUNNING, manager_id="gm1", host_id="h1")
        self.registry.add_vm(self.vm)

    async def _ask(self, manager_id: str, order: VmOrder) -> VmStatus:
        self.asked.append((manager_id, order))
        return await self.answer

    def _moved(self, task: Task) -> None:
        assert task.ended
        self.ended.set()

    async def _written(self) -> None:
        self.waits.set()
        await self.record.wait()
        if self.why_not:
            raise NotLeader(self.why_not)

    def _restart(self, vm_id: str) -> str:
        self.restarted.append(vm_id)
        return self.why_not

    def _destroy_unplaced(self, vm_id: str) -> None:
        if self.destroys:
            vm = self.registry.vms[vm_id]
            vm.state = VmState.DESTROYED
            self.registry.remove_vm(vm)

    async def run(self, command: VmCommand, request: CommandRequest = NOTHING) -> Task:
        task = self.commands.start("vm-a", command, request)
        async with asyncio.timeout(5):
            await self.ended.wait()
        return task


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.commands.close()


async def test_a_command_is_passed_to_the_hosts_manager_and_its_outcome_told(rig: Rig) -> None:
    rig.answer.set_result(status_of("a", VmState.PAUSED, "h1"))
    task = await rig.run(VmCommand.SUSPEND)
    manager_id, order = rig.asked[0]
    assert manager_id == "gm1"
    assert (order.epoch, order.cause, order.vm_id) == (7, task.task_id, "a")
    assert rig.started == [task]
    assert (task.kind, task.state) == ("suspend", TaskState.DONE)
    assert task.vms["a"].state is VmState.PAUSED


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.STOPPED])
async def test_destroyed_is_said_once_the_record_knows(rig: Rig, state: VmState) -> None:
    """A later leader must not bring it back."""
    rig.vm.state = state
    rig.record.clear()
    rig.answer.set_result(status_of("a", VmState.DESTROYED, "h1"))
    rig.commands.start("vm-a", VmCommand.DESTROY, NOTHING)
    await asyncio.sleep(0.02)
    assert not rig.waits.is_set(), "its manager has not told yet"
    rig.registry.remove_vm(rig.vm)
    async with asyncio.timeout(5):
        await rig.waits.wait()
    assert not rig.ended.is_set()
    rig.record.set()
    async with asyncio.timeout(5):
        await rig.ended.wait()
    assert rig.started[0].state is TaskState.DONE


async def test_a_second_destroy_ends_with_the_first(rig: Rig) -> None:
    rig.vm.state = VmState.DESTROYING
    rig.commands.start("vm-a", VmCommand.DESTROY, NOTHING)
    await asyncio.sleep(0.01)
    assert not rig.ended.is_set()
    rig.registry.remove_vm(rig.vm)
    rig.vm.state = VmState.DESTROYED
    async with asyncio.timeout(5):
        await rig.ended.wait()
    assert rig.started[0].state is TaskState.DONE
    assert not rig.asked


async def test_a_second_destroy_tells_that_the_first_failed(rig: Rig) -> None:
    rig.vm.state = VmState.DESTROYING
    rig.commands.start("vm-a", VmCommand.DESTROY, NOTHING)
    rig.vm.state, rig.vm.reason = VmState.FAILED, "the hypervisor refused"
    async with asyncio.timeout(5):
        await rig.ended.wait()
    error = rig.started[0].error
    assert error is not None
    assert error.code == "conflict"
    assert not rig.waits.is_set()
    assert "the hypervisor refused" in error.message


@pytest.mark.parametrize("host_id", ["h1", ""])
async def test_destroyed_is_not_said_if_the_record_could_not_be_written(
    rig: Rig, host_id: str
) -> None:
    rig.vm.host_id = host_id
    rig.why_not = "the store of record does not answer"
    task = rig.commands.start("vm-a", VmCommand.DESTROY, NOTHING)
    if host_id:
        rig.registry.remove_vm(rig.vm)
    rig.answer.set_result(status_of("a", VmState.DESTROYED, "h1"))
    async with asyncio.timeout(5):
        await rig.ended.wait()
    assert task.state is TaskState.FAILED
    assert task.error is not None
    assert task.error.code == "not_leader"


async def test_a_refusal_is_the_tasks_error(rig: Rig) -> None:
    rig.answer.set_exception(NoCapacity("no room for that much"))
    task = await rig.run(VmCommand.RESIZE, CommandRequest(vcpus=4))
    assert task.state is TaskState.FAILED
    assert task.error is not None
    assert task.error.code == "no_capacity"
    assert task.vms["a"].error == task.error


@pytest.mark.parametrize(
    ("command", "state"),
    [
        (VmCommand.SUSPEND, VmState.PAUSED),
        (VmCommand.RESUME, VmState.RUNNING),
        (VmCommand.SHUTDOWN, VmState.STOPPED),
        (VmCommand.START, VmState.RUNNING),
    ],
)
async def test_what_is_done_already_succeeds_unasked(
    rig: Rig, command: VmCommand, state: VmState
) -> None:
    rig.vm.state = state
    assert (await rig.run(command)).state is TaskState.DONE
    assert not rig.asked


async def test_a_state_that_forbids_it_is_a_conflict_and_no_task(rig: Rig) -> None:
    rig.vm.state = VmState.STOPPED
    with pytest.raises(Conflict, match="has to be running"):
        rig.commands.start("vm-a", VmCommand.SUSPEND, NOTHING)
    assert not rig.started


async def test_the_unknown_and_the_unmanaged(rig: Rig) -> None:
    with pytest.raises(NotFound):
        rig.commands.start("nobody", VmCommand.DESTROY, NOTHING)
    rig.registry.add_vm(VmEntry("b", "other", SMALL, VmState.RUNNING, managed=False, host_id="h1"))
    with pytest.raises(Conflict, match="not started by Snooze"):
        rig.commands.start("other", VmCommand.DESTROY, NOTHING)


@pytest.mark.parametrize(
    ("host", "error"),
    [("", InvalidRequest), ("mars", NotFound), ("h1", Conflict), ("name-h1", Conflict)],
)
async def test_a_migration_needs_another_host(
    rig: Rig, host: str, error: type[SnoozeError]
) -> None:
    with pytest.raises(error):
        rig.commands.start("vm-a", VmCommand.MIGRATE, CommandRequest(host=host))


async def test_a_migration_to_a_host_out_of_reach_is_a_conflict(rig: Rig) -> None:
    rig.registry.hosts["h2"].joined = False
    with pytest.raises(Conflict, match="h2 is out of reach at present"):
        rig.commands.start("vm-a", VmCommand.MIGRATE, CommandRequest(host="h2"))
    rig.registry.hosts["h2"].state = HostPower.ASLEEP
    with pytest.raises(Conflict, match="h2 is asleep at present"):
        rig.commands.start("vm-a", VmCommand.MIGRATE, CommandRequest(host="h2"))


async def test_a_host_is_named_by_its_hostname_too(rig: Rig) -> None:
    rig.answer.set_result(status_of("a", VmState.RUNNING, "h2"))
    task = await rig.run(VmCommand.MIGRATE, CommandRequest(host="name-h2"))
    assert rig.asked[0][1].destination == "h2"
    assert task.vms["a"].host_id == "h2"


@pytest.mark.parametrize(
    ("request_", "demand"),
    [
        (CommandRequest(vcpus=2), Capacity(2.0, 1024.0)),
        (CommandRequest(memory_kib=2048, rx_kib_s=5.0), Capacity(1.0, 2048.0, 5.0)),
        (CommandRequest(tx_kib_s=0.0), SMALL),
    ],
)
async def test_a_resize_keeps_what_is_not_given(
    rig: Rig, request_: CommandRequest, demand: Capacity
) -> None:
    rig.answer.set_result(status_of("a", VmState.RUNNING, "h1"))
    await rig.run(VmCommand.RESIZE, request_)
    assert rig.asked[0][1].demand == demand


@pytest.mark.parametrize(
    "request_",
    [
        NOTHING,
        CommandRequest(host="h2", vcpus=1),
        CommandRequest(vcpus=0),
        CommandRequest(memory_kib=1023),
        CommandRequest(vcpus=10_000_000),
        CommandRequest(rx_kib_s=float("nan")),
        CommandRequest(rx_kib_s=-1.0),
    ],
)
async def test_sizes_that_no_vm_can_have(rig: Rig, request_: CommandRequest) -> None:
    with pytest.raises(InvalidRequest):
        rig.commands.start("vm-a", VmCommand.RESIZE, request_)


async def test_other_commands_take_nothing(rig: Rig) -> None:
    with pytest.raises(InvalidRequest):
        rig.commands.start("vm-a", VmCommand.REBOOT, CommandRequest(vcpus=1))


async def test_a_host_out_of_reach_fails_the_task(rig: Rig) -> None:
    rig.registry.hosts["h1"].joined = False
    task = await rig.run(VmCommand.SUSPEND)
    assert task.error is not None
    assert "out of reach" in task.error.message


async def test_a_waiting_vm_is_destroyed_without_a_host(rig: Rig) -> None:
    rig.vm.state, rig.vm.host_id = VmState.PENDING, ""
    task = await rig.run(VmCommand.DESTROY)
    assert task.vms["a"].state is VmState.DESTROYED
    assert not rig.asked


async def test_a_vm_that_is_being_placed_is_not_destroyed_and_no_task_says_so(rig: Rig) -> None:
    rig.vm.state, rig.vm.host_id, rig.destroys = VmState.PENDING, "", False
    with pytest.raises(Conflict, match="try again"):
        rig.commands.start("vm-a", VmCommand.DESTROY, NOTHING)
    assert not rig.started


async def test_a_leader_that_stops_ends_its_commands(rig: Rig) -> None:
    task = rig.commands.start("vm-a", VmCommand.SUSPEND, NOTHING)
    await asyncio.sleep(0)
    await rig.commands.close()
    assert task.state is TaskState.FAILED
    assert task.error is not None
    assert task.error.code == "not_leader"

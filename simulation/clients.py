"""The clients of a world: the Python SDK, and what it was told."""

from dataclasses import dataclass, field

from snooze.client.async_sdk import AsyncSnooze
from snooze.common.api import TASK_ENDED, ClusterRequest, TaskView, VmRequest
from snooze.common.errors import SnoozeError
from snooze.common.resources import KIB_PER_MIB
from snooze.common.vm_lifecycle import VmCommand
from snooze.simulation.world import World

MEMORY_KIB = 512 * KIB_PER_MIB


@dataclass
class Submission:
    """One submission as its client sees it."""

    number: int
    names: list[str]
    task_id: str = ""
    refused: str = ""
    view: TaskView | None = None

    @property
    def is_over(self) -> bool:
        """Whether its client has been told what became of it."""
        return self.view is not None and self.view.state in TASK_ENDED

    @property
    def served(self) -> list[str]:
        """The names of the VMs that its client was told run."""
        if self.view is None or not self.is_over:
            return []
        return [vm.name for vm in self.view.vms if vm.error is None]


@dataclass
class Clients:
    """All clients of one world, in one process of their own."""

    world: World
    submissions: list[Submission] = field(default_factory=list[Submission])
    acked: dict[str, Submission] = field(default_factory=dict[str, Submission])
    condemned: set[str] = field(default_factory=set[str])
    """The names of the VMs that a client has ordered to be destroyed."""
    commands: int = 0
    commands_done: int = 0

    def __post_init__(self) -> None:
        self.process = self.world.process(self.world.client_machine, "client")
        self.sdk: AsyncSnooze | None = None

    def _open(self) -> AsyncSnooze:
        if self.sdk is None:
            self.sdk = AsyncSnooze(self.world.front_doors, timeout_s=20.0, clock=self.process)
        return self.sdk

    def submit(self, count: int, cores: float, *, partial: bool, host: str = "") -> None:
        """Submit VMs, to start on the host named if one is, and wait for what becomes of them."""
        number = len(self.submissions)
        submission = Submission(number, [f"vm{number}-{i}" for i in range(max(1, count))])
        self.submissions.append(submission)
        requests = [
            VmRequest(
                name=name,
                vcpus=max(1, round(cores)),
                memory_kib=MEMORY_KIB,
                image="debian.qcow2",
                host=host,
            )
            for name in submission.names
        ]
        self.process.spawn(self._submit(submission, requests, partial))

    async def _submit(
        self, submission: Submission, requests: list[VmRequest], partial: bool
    ) -> None:
        try:
            task = await self._open().submit(ClusterRequest(requests, partial=partial))
        except SnoozeError as error:
            submission.refused = error.message
            return
        submission.task_id = task.id
        self.acked[task.id] = submission
        self.world.tell("client", f"accepted: {', '.join(submission.names)} (task {task.id[:8]})")
        await self._follow(submission)

    async def _follow(self, submission: Submission) -> None:
        """Look at the task until it has ended; whatever happens to the cluster meanwhile."""
        import asyncio

        while True:
            try:
                view = await self._open().task(submission.task_id, wait_s=20.0)
            except SnoozeError as error:
                self.world.tell("client", f"task {submission.task_id[:8]}: {error.message}")
                await asyncio.sleep(1.0)
                continue
            submission.view = view
            if submission.is_over:
                told = ", ".join(
                    f"{vm.name} {vm.error.code if vm.error else vm.state.value}" for vm in view.vms
                )
                self.world.tell("client", f"task {view.id[:8]} {view.state.value}: {told}")
                return

    def command(self, verb: str, number: int, host: str, cores: float) -> None:
        """Order something of a VM: the ``number``-th of those that were ever accepted."""
        names = [name for s in self.submissions if s.task_id for name in s.names]
        if not names:
            return
        name = names[number % len(names)]
        if verb == "destroy":
            self.condemned.add(name)
        self.commands += 1
        self.process.spawn(self._command(VmCommand(verb), name, host, cores))

    async def _command(self, command: VmCommand, name: str, host: str, cores: float) -> None:
        sdk = self._open()
        try:
            if command is VmCommand.MIGRATE:
                task = await sdk.migrate(name, host)
            elif command is VmCommand.RESIZE:
                task = await sdk.resize(name, vcpus=max(1, round(cores)))
            else:
                task = await sdk.command(name, command)
        except SnoozeError as error:
            self.world.tell("client", f"{command.value} {name}: refused: {error.message}")
        else:
            self.world.tell("client", f"{command.value} {name}: task {task.id[:8]}")
        self.commands_done += 1

    def power(self, verb: str, host: str, *, force: bool) -> None:
        """A person sends a host to sleep, with ``force`` whatever the reserve says, or wakes it."""
        self.process.spawn(self._power(verb, host, force))

    async def _power(self, verb: str, host: str, force: bool) -> None:
        sdk = self._open()
        try:
            answer = await (
                sdk.wake_host(host) if verb == "wake" else sdk.sleep_host(host, force=force)
            )
        except SnoozeError as error:
            self.world.tell("client", f"{verb} {host}: refused: {error.message}")
        else:
            self.world.tell("client", f"{verb} {host}: {answer.message}")

    def close(self) -> None:
        """Let go of the connections."""
        if self.sdk is not None:
            self.process.spawn(self.sdk.close())

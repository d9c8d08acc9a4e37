"""A client that remembers all that it was told, and what must be true of it in the end.

It submits and destroys without pause, whatever happens, as a careful program does: each submission
has a key, and one that was not answered is repeated with the same key until it is.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from snooze.client.async_sdk import AsyncSnooze
from snooze.client.sdk import TaskState, TaskView, VmRequest, VmState, VmView
from snooze.common.api import TASK_ENDED
from snooze.common.errors import NotFound, RemoteError, SnoozeError, TooBusy
from tests.integration.chaos.world import Domain, World

CLIENTS = 2
KEPT_VMS = 24
"""Above so many running VMs, the oldest are destroyed."""
SLOW_S = 15.0
"""What the client still waits for then is told."""
TASK_S = 240.0
"""A task that has not ended by then, with everything healed, never will."""

DOMAIN = (
    "<domain type='test'><name>{name}</name><memory unit='KiB'>32768</memory>"
    "<vcpu>1</vcpu><os><type>hvm</type></os></domain>"
)


@dataclass
class Asked:
    """One submission and what the client knows of it."""

    key: str
    names: tuple[str, ...]
    asked_s: float
    attempts: int = 0
    acknowledged_s: float = 0.0
    task_id: str = ""
    refused: str = ""
    task: TaskView | None = None
    destroyed: set[str] = field(default_factory=set[str])
    """Names of which the destruction was asked."""
    gone: set[str] = field(default_factory=set[str])
    """Names of which the destruction was acknowledged as done."""


class History:
    """Clients at work, and their memory."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._chance = random.Random(seed)
        self._numbers = itertools.count()
        self._workers: list[asyncio.Task[None]] = []
        self._followers: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.asked: list[Asked] = []
        self.slow: list[str] = []
        """What was still under way, or not yet true, after ``SLOW_S``."""

    def _client(self) -> AsyncSnooze:
        return AsyncSnooze([front.url for front in self._world.cluster.bootstraps], timeout_s=10.0)

    def start(self) -> None:
        """Begin to submit."""
        self._stopping = False
        self._workers = [asyncio.create_task(self._work()) for _ in range(CLIENTS)]

    async def stop(self) -> None:
        """Submit nothing more, and wait for the answers to all that was asked."""
        self._stopping = True
        pending = [*self._workers, *self._followers]
        if pending:
            _, late = await asyncio.wait(pending, timeout=SLOW_S)
            self.slow = [task.get_name() for task in late]
        if pending:
            _, late = await asyncio.wait(pending, timeout=TASK_S)
            if late:
                names = ", ".join(sorted(task.get_name() for task in late))
                raise AssertionError(f"calls of the client that never ended: {names}")
        for task in pending:
            task.result()

    async def _work(self) -> None:
        async with self._client() as client:
            while not self._stopping:
                await self._submit(client)
                await asyncio.sleep(self._chance.uniform(0.1, 0.8))

    async def _submit(self, client: AsyncSnooze) -> None:
        number = next(self._numbers)
        names = tuple(f"v{number}-{n}" for n in range(self._chance.randint(1, 3)))
        asked = Asked(f"key-{number}", names, time.monotonic())
        self.asked.append(asked)
        requests = [VmRequest(libvirt_xml=DOMAIN.format(name=name)) for name in names]
        while not asked.task_id and not asked.refused:
            asked.attempts += 1
            try:
                task = await client.submit(requests, idempotency_key=asked.key)
                asked.task_id, asked.acknowledged_s = task.id, time.monotonic()
            except (RemoteError, TooBusy) as error:
                if time.monotonic() - asked.asked_s > TASK_S:
                    raise AssertionError(f"{asked.key} was never answered: {error}") from error
                await asyncio.sleep(0.1)
            except SnoozeError as error:
                if error.http_status == TooBusy.http_status:
                    await asyncio.sleep(0.1)
                    continue
                asked.refused = f"{error.code}: {error.message}"
        if asked.task_id:
            follower = asyncio.create_task(self._follow(asked))
            self._followers.add(follower)
            follower.add_done_callback(self._followers.discard)

    async def _follow(self, asked: Asked) -> None:
        """See a submission's task end, and destroy old VMs where there are many."""
        async with self._client() as client:
            started_s = time.monotonic()
            _calls(f"task {asked.task_id} of {asked.key}")
            while asked.task is None or asked.task.state not in TASK_ENDED:
                try:
                    asked.task = await client.task(asked.task_id, wait_s=5.0)
                except NotFound as error:
                    raise AssertionError(f"the cluster forgot task {asked.task_id}") from error
                except SnoozeError:
                    await asyncio.sleep(0.2)
                if time.monotonic() - started_s > TASK_S:
                    raise AssertionError(f"{asked.key}: its task does not end: {asked.task}")
            await self._tidy(client)

    async def _tidy(self, client: AsyncSnooze) -> None:
        living = [
            (each, name)
            for each in self.asked
            if each.task is not None and each.task.state in TASK_ENDED
            for name in each.names
            if name not in each.destroyed
        ]
        for each, name in living[: max(0, len(living) - KEPT_VMS)]:
            if name not in each.destroyed:
                each.destroyed.add(name)
                await self._destroy(client, each, name)

    async def _destroy(self, client: AsyncSnooze, asked: Asked, name: str) -> None:
        """Once; what becomes of it if that is not answered is checked in the end.

        A new leader does not know a command of its predecessor: then nothing is known.
        """
        _calls(f"destroy of {name}")
        try:
            task = await client.destroy(name)
        except NotFound:
            asked.gone.add(name)
            return
        except SnoozeError:
            return
        _calls(f"destroy of {name}, task {task.id}, since {time.time():.1f}")
        with contextlib.suppress(SnoozeError):
            if (await client.wait(task, timeout_s=TASK_S)).state is TaskState.DONE:
                asked.gone.add(name)

    # ------------------------------------------------------------ the end

    async def check(self) -> None:
        """Everything is healed and nobody asks: what must be true becomes true, and stays so."""
        faults: list[str] = ["never looked"]

        def looks_wrong() -> str:
            return "; ".join(faults[:10])

        async with self._client() as client:
            self.slow = []
            begun_s = time.monotonic()
            deadline = begun_s + TASK_S / 2
            while faults:
                try:
                    views = [vm for vm in await client.vms() if vm.state is not VmState.DESTROYED]
                except SnoozeError as error:
                    faults = [f"the cluster does not answer: {error}"]
                else:
                    domains = await asyncio.to_thread(self._world.domains)
                    faults = self.faults(views, domains)
                if faults and not self.slow and time.monotonic() - begun_s > SLOW_S:
                    self.slow = [f"{fault}, at {time.strftime('%X')}" for fault in faults]
                if faults and time.monotonic() > deadline:
                    raise AssertionError(looks_wrong())
                await asyncio.sleep(0.2 if faults else 0.0)

    def faults(self, views: list[VmView], domains: list[Domain]) -> list[str]:
        """What is not as it must be."""
        found: list[str] = []
        told = {view.name: view for view in views}
        if len(told) != len(views):
            found.append("two VMs have one name")
        addresses = Counter(view.ip_address for view in views if view.ip_address)
        found += [f"address {a} is leased {n} times" for a, n in addresses.items() if n > 1]
        copies: dict[str, list[Domain]] = {}
        for domain in domains:
            copies.setdefault(domain.name, []).append(domain)
        for name, those in copies.items():
            places = [f"{d.host}{'' if d.running else ' (off)'}" for d in those]
            if len(those) > 1:
                found.append(f"{name} is on {' and '.join(places)}")
            if name not in told:
                found.append(f"{name} is on {places[0]} and the cluster does not know it")
        for asked in self.asked:
            for name in asked.names:
                wrong = self._wrong(asked, name, told.get(name), copies.get(name, []))
                if wrong:
                    found.append(f"{name} ({asked.key}, task {asked.task_id}): {wrong}")
        return found

    @staticmethod
    def _wrong(asked: Asked, name: str, view: VmView | None, those: list[Domain]) -> str:
        runs = [domain.host for domain in those if domain.running]
        if view is None:
            if asked.refused or name in asked.destroyed:
                return ""
            task = asked.task
            outcome = next((vm for vm in task.vms if vm.name == name), None) if task else None
            if outcome is not None and outcome.error is not None and outcome.error.message:
                return ""
            return "acknowledged, and the cluster knows nothing of it"
        if asked.refused:
            return f"refused ({asked.refused}), and is there"
        if name in asked.gone:
            there = [f"{d.host}{'' if d.running else ' (off)'}" for d in those]
            return f"destroyed, and is {view.state} on {view.hostname}; domains: {there}"
        if view.state is VmState.RUNNING:
            return "" if runs == [view.hostname] else f"told to run on {view.hostname}: {runs}"
        if runs:
            return f"runs on {runs} and is told to be {view.state}"
        if view.state is VmState.STOPPED:
            return "" if those else "told to be stopped, and is nowhere"
        if view.state is VmState.FAILED:
            return "" if view.reason else "failed without a reason"
        return f"with everything healed it is {view.state} ({view.reason})"

    def reasons(self) -> "Counter[str]":
        """Why VMs were reported as failed, and how many."""
        return Counter(
            f"{vm.error.code}: {vm.error.message}"
            for asked in self.asked
            if asked.task
            for vm in asked.task.vms
            if vm.error is not None
        )

    def summary(self, now: Callable[[], float] = time.monotonic) -> dict[str, float]:
        """Figures of what was asked."""
        answered = [a for a in self.asked if a.task_id]
        waits = sorted(a.acknowledged_s - a.asked_s for a in answered)
        failed = [vm for a in answered if a.task for vm in a.task.vms if vm.error is not None]
        return {
            "submissions": len(self.asked),
            "acknowledged": len(answered),
            "refused": sum(1 for a in self.asked if a.refused),
            "vms": sum(len(a.names) for a in answered),
            "reported_failed": len(failed),
            "destroyed": sum(len(a.gone) for a in answered),
            "longest_answer_s": waits[-1] if waits else 0.0,
            "at_s": now(),
        }


def _calls(what: str) -> None:
    """What the running task is about to ask, for the story of a round that takes long."""
    task = asyncio.current_task()
    if task is not None:
        task.set_name(what)

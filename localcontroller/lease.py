"""A host's lease: asked for, persisted, and what is done when it is lost."""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, assert_never

import msgspec

from snooze.common.clock import Clock
from snooze.common.errors import Conflict, ExecutionError, SnoozeError
from snooze.common.lease_core import (
    NEVER,
    Ask,
    Extended,
    Fence,
    Granted,
    LeaseCore,
    LeaseEvent,
    LinkClosed,
    LinkOpened,
    NotGranted,
    Ticked,
)
from snooze.common.settings_lease import LeaseSettings
from snooze.common.task_set import TaskSet
from snooze.common.transport.link import Link
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmReport
from snooze.common.wire import LeaseGranted, RenewLease
from snooze.localcontroller.hypervisor.port import Hypervisor
from snooze.localcontroller.lease_file import LeaseFile, LeaseState

logger = logging.getLogger(__name__)

TICK_S: Final = 0.1
ASK_TIMEOUT_S: Final = 10.0
START_WAIT_S: Final = 5.0
FENCE_S: Final = 10.0
"""No guest is on for so long after it was noted as fenced, unless it was started again."""
"""A start that is ordered before the first lease is here waits so long for it."""
GUARD_EVERY_S: Final = 2.0

_OFF: Final = frozenset({VmState.STOPPED, VmState.FAILED})
"""How a guest ends that is fenced: by libvirt, or by a signal while libvirt hung."""

GuardRuns = Callable[[], bool]
"""Whether a guard that was started still runs."""
StartGuard = Callable[[], GuardRuns]

ACTIVE: Final = frozenset(
    {VmState.RUNNING, VmState.PAUSED, VmState.STARTING, VmState.STOPPING, VmState.MIGRATING}
)


class HostLease:
    """Keeps a lease while the host is with a manager, and fences when it holds none.

    Without ``enabled`` all of it is idle: nothing is asked, and nothing refused.
    """

    def __init__(
        self,
        settings: LeaseSettings,
        *,
        enabled: bool,
        file: LeaseFile,
        hypervisor: Hypervisor,
        clock: Clock,
        link: Callable[[], Link | None],
        fenced: Callable[[], None],
        start_guard: StartGuard | None = None,
    ) -> None:
        """What it serves.

        Args:
            link: the link to the manager, if it stands.
            fenced: told when guests were switched off.
            start_guard: starts a guard beside this process; None: there is none.
        """
        state = file.read()
        if state.until_s > NEVER and not enabled:
            # A lease is a promise to the leader, and the guard keeps it: no setting takes it back.
            logger.warning(
                "this host has held a lease: lease.enabled takes effect at its next boot"
            )
            enabled = True
        self.enabled = enabled
        self._settings = settings
        self._file = file
        self._hypervisor = hypervisor
        self._clock = clock
        self._link_now = link
        self._told = fenced
        self._start_guard = start_guard
        self._state = state
        # Until a new lease is granted the guard and the leader still go by the former grace.
        self._former_s = state.grace_s if state.until_s > NEVER else settings.grace_s
        grace_s = min(self._former_s, settings.grace_s)
        self._core = LeaseCore(grace_s, fences=enabled, until_s=state.until_s)
        self._link: Link | None = None
        self._granted = asyncio.Event()
        self._fencing = False
        self._ending: set[str] = set()
        self._unnoted: dict[str, int] = {}
        self._noted_s: dict[str, float] = {}
        self._guard_s = -1e18
        self._guard: GuardRuns = lambda: False
        self._tasks = TaskSet()

    @property
    def lease_s(self) -> float:
        """For the host's description: how long after its lease ended it fences; 0: never."""
        return max(self._former_s, self._settings.grace_s) if self.enabled else 0.0

    def start(self) -> None:
        """Begin to watch the lease."""
        if self.enabled:
            self._tasks.spawn(self._keep())

    async def close(self) -> None:
        """Stop watching: from here on the guard alone does."""
        await self._tasks.close()

    async def require(self) -> None:
        """Let a highly available VM be started here.

        Raises:
            Conflict: this host holds no lease: whoever ordered it may have been replaced.
        """
        if not self.enabled:
            return
        deadline_s = self._clock.boottime_s() + START_WAIT_S
        while self._core.left_s(self._clock.boottime_s()) <= 0:
            left_s = deadline_s - self._clock.boottime_s()
            if left_s <= 0:
                raise Conflict("this host holds no lease, so it starts no highly available VM")
            self._granted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._granted.wait()

    def noted(self) -> frozenset[str]:
        """The VMs that were fenced a while ago: if they are on from now on, it is another life."""
        if not self.enabled:
            return frozenset()
        self._state = state = self._file.read()
        now_s = self._clock.boottime_s()
        noted_s = {i: self._noted_s.get(i, now_s) for i in (*state.fenced, *self._unnoted)}
        self._noted_s = noted_s
        return frozenset(i for i, s in noted_s.items() if now_s - s >= FENCE_S) - self._ending

    def mark(self, reports: list[VmReport], noted: frozenset[str] | None = None) -> list[VmReport]:
        """The reports, saying which VMs are off because they were fenced.

        ``noted``: as of before they were asked for; what was on then may have been fenced
        meanwhile. None: they are of now.
        """
        if not self.enabled:
            return reports
        noted = self.noted() if noted is None else noted
        self._state = state = self._file.read()
        fenced = {**state.fenced, **self._unnoted}
        on = {
            report.vm_id
            for report in reports
            if report.vm_id in fenced.keys() & noted and report.state in ACTIVE
        }
        if on:  # they were started again since
            self._unnoted = {i: g for i, g in self._unnoted.items() if i not in on}
            self._noted_s = {i: s for i, s in self._noted_s.items() if i not in on}
            try:
                self._state = self._file.change(lambda state: _without_fenced(state, on))
            except ExecutionError as error:
                logger.error("what was started again stays noted: %s", error.message)
        return [
            msgspec.structs.replace(report, fenced=True)
            if report.state in _OFF and fenced.get(report.vm_id) == report.generation
            else report
            for report in reports
        ]

    # ------------------------------------------------------------ the core

    def _feed(self, event: LeaseEvent) -> None:
        for effect in self._core.handle(event, self._clock.boottime_s()):
            match effect:
                case Ask():
                    self._tasks.spawn(self._ask(effect.number, self._link))
                case Extended():
                    self._extend(effect.until_s)
                case Fence():
                    if not self._fencing:
                        self._fencing = True
                        self._tasks.spawn(self._fence(effect.overdue_s))
                case _:
                    assert_never(effect)

    def _extend(self, until_s: float) -> None:
        """A lease is held once the guard and the next agent know of it."""
        grace_s = self._settings.grace_s
        try:
            self._state = self._file.change(
                lambda state: msgspec.structs.replace(state, until_s=until_s, grace_s=grace_s)
            )
        except ExecutionError as error:
            logger.error("a lease that cannot be noted is none: %s", error.message)
            self._core.forgo(self._file.read().until_s)
            return
        self._core.grace_s = self._former_s = grace_s
        self._granted.set()

    async def _ask(self, number: int, link: Link | None) -> None:
        try:
            if link is None:
                raise TimeoutError
            granted = await link.request(RenewLease(), LeaseGranted, ASK_TIMEOUT_S)
        except (SnoozeError, TimeoutError):
            self._feed(NotGranted(number))
        else:
            self._feed(Granted(number, granted.valid_s))

    async def _keep(self) -> None:
        while True:
            now_s = self._clock.monotonic_s()
            if self._start_guard is not None and now_s - self._guard_s >= GUARD_EVERY_S:
                self._guard_s = now_s
                if not self._guard():
                    self._guard = self._start_guard()
            link = self._link_now()
            if link is not self._link:
                self._link = link
                self._feed(LinkClosed() if link is None else LinkOpened())
            self._feed(Ticked())
            await asyncio.sleep(TICK_S)

    # ------------------------------------------------------------ fencing

    async def _fence(self, overdue_s: float) -> None:
        """Switch off every highly available VM that is on."""
        try:
            reports = await self._hypervisor.inventory()
            doomed = [
                r
                for r in reports
                if r.managed and r.policy.is_highly_available and r.state in ACTIVE
            ]
            if not doomed or self._core.left_s(self._clock.boottime_s()) > 0:
                return  # whoever granted the lease has said first what may run here
            logger.error(
                "no lease for %.1f s more than it may be: %d highly available VMs are switched off",
                overdue_s,
                len(doomed),
            )
            await asyncio.gather(*(self._switch_off(report) for report in doomed))
            self._told()
        except SnoozeError as error:
            logger.error("guests are not switched off yet: %s", error.message)
        finally:
            self._fencing = False

    async def _switch_off(self, report: VmReport) -> None:
        # Noted first: a guest that is off and not noted would not be started again.
        self._noted_s[report.vm_id] = self._clock.boottime_s()
        try:
            self._state = self._file.add_fenced({report.vm_id: report.generation})
        except ExecutionError as error:
            logger.error("noted in memory only: %s", error.message)
            self._unnoted[report.vm_id] = report.generation
        self._ending.add(report.vm_id)
        try:
            await self._hypervisor.power_off(report.vm_id)
        finally:
            self._ending.discard(report.vm_id)


def _without_fenced(state: LeaseState, vm_ids: set[str]) -> LeaseState:
    left = {vm_id: g for vm_id, g in state.fenced.items() if vm_id not in vm_ids}
    return msgspec.structs.replace(state, fenced=left)


def guard_starter(file: LeaseFile, uri: str, watchdog_device: str) -> StartGuard:
    """How a guard is started: another process, which fences when this one hangs or is gone."""
    command = [sys.executable, "-m", "snooze.localcontroller.fence_guard", str(file.path), uri]
    if watchdog_device:
        command.append(watchdog_device)

    def start() -> GuardRuns:
        try:
            guard = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=dict(os.environ),
                cwd="/",
            )
        except OSError as error:
            logger.error("the fencing guard cannot be started: %s", error)
            return lambda: False
        return lambda: guard.poll() is None

    return start


def lease_file(state_directory: str) -> LeaseFile:
    """Where the lease is persisted."""
    return LeaseFile(Path(state_directory) / "lease.json")

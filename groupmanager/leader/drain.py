"""The drain core's shell: a person's calls, records, and migrations as any client would order."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import assert_never

from snooze.common.api import DrainRequest, DrainView
from snooze.common.clock import Clock
from snooze.common.core_runner import CoreRunner
from snooze.common.errors import ErrorReport, InvalidRequest, NotFound, NotLeader, SnoozeError
from snooze.common.questions import Questions
from snooze.common.resources import Capacity
from snooze.common.task_set import TaskSet
from snooze.common.vm_lifecycle import VmCommand
from snooze.common.wire import VmOrder, VmStatus
from snooze.groupmanager.leader import drain_events as events
from snooze.groupmanager.leader.drain_core import DrainCore
from snooze.groupmanager.leader.energy import Energy
from snooze.groupmanager.leader.energy_events import WantRoom
from snooze.groupmanager.leader.journal import Done
from snooze.groupmanager.leader.membership_core import Announce
from snooze.groupmanager.leader.registry import Registry
from snooze.groupmanager.leader.submission_events import Decided
from snooze.groupmanager.leader.tasks import Task
from snooze.groupmanager.planner import Planner
from snooze.scheduling.drain import Drain
from snooze.scheduling.dump import drain_and_pack

MAX_DEADLINE_S = 7 * 86_400.0


class Drains:
    """Empties hosts and gives them back, for one leader from its election to its end."""

    def __init__(
        self,
        registry: Registry,
        overcommit: Capacity,
        headroom: Capacity,
        epoch: int,
        clock: Clock,
        planner: Planner,
        *,
        ask: Callable[[str, VmOrder], Awaitable[VmStatus]],
        record_host: Callable[[str, Done], None],
        direct: Callable[[str], None],
        announce: Callable[[Announce], None],
        decided: Callable[[Decided], object],
        task_started: Callable[[Task], None],
        task_moved: Callable[[Task], None],
    ) -> None:
        """``ask`` has a manager carry an order out; ``direct`` tells it if a host takes VMs."""
        self._registry = registry
        self._epoch = epoch
        self._clock = clock
        self._planner = planner
        self._ask = ask
        self._record_host = record_host
        self._direct = direct
        self._announce = announce
        self._decided = decided
        self._task_started = task_started
        self._task_moved = task_moved
        self._core = DrainCore(registry, overcommit.as_array(), headroom.as_array())
        self._runner = CoreRunner(self._core, self._perform, clock)
        self._questions = Questions[DrainView]()
        self._shown: set[str] = set()
        self._tasks = TaskSet()

    def join(self, energy: Energy) -> None:
        """Who wakes hosts for what finds no room."""
        self._core.can_wake = energy.can_wake_for
        self._want = energy.want_room

    async def drain(self, request: DrainRequest) -> DrainView:
        """Empty hosts, or only show how.

        Raises:
            InvalidRequest, NotFound, Conflict, TooBusy: nothing changed.
        """
        if not 0 <= request.deadline_s <= MAX_DEADLINE_S:
            raise InvalidRequest(f"deadline_s has to be from 0 (none) to {MAX_DEADLINE_S:g}")
        if request.bring_back:
            raise InvalidRequest("bring_back is for giving a host back (undrain)")
        hosts = self._hosts(request.hosts)
        return await self._asked(
            lambda number: events.DrainAsked(
                number,
                uuid.uuid4().hex,
                hosts,
                request.deadline_s,
                request.plan_only,
                self._clock.wall_ms(),
            )
        )

    async def undrain(self, request: DrainRequest) -> DrainView:
        """Give hosts back.

        Raises:
            InvalidRequest, NotFound, Conflict, TooBusy: nothing changed.
        """
        if request.deadline_s or request.plan_only:
            raise InvalidRequest("giving a host back takes nothing but its name and bring_back")
        hosts = self._hosts(request.hosts)
        return await self._asked(
            lambda number: events.UndrainAsked(
                number, uuid.uuid4().hex, hosts, request.bring_back, self._clock.wall_ms()
            )
        )

    def are_under_way(self) -> bool:
        """Whether a host is being emptied, or given its VMs back."""
        return self._core.is_at_work()

    def tick(self, *, settled: bool) -> None:
        """Time went by."""
        self._runner.feed(events.DrainTicked(self._clock.wall_ms(), settled))

    async def close(self) -> None:
        """Stop; migrations under way end by themselves, and the next leader goes on."""
        await self._tasks.close()
        self._questions.close(NotLeader("the leader changed; ask again", retry_after_s=0.5))

    def _hosts(self, names: Sequence[str]) -> list[str]:
        """The ids of hosts.

        Raises:
            NotFound: one is not known, or its name is another's, too.
        """
        found: list[str] = []
        for name in names:
            host = self._registry.find_host(name)
            if host is None:
                raise NotFound(f"no host is called {name!r}; `snooze hosts` lists them")
            found.append(host.description.host_id)
        return found

    async def _asked(self, event: Callable[[int], events.DrainEvent]) -> DrainView:
        return await self._questions.ask(lambda number: self._runner.feed(event(number)))

    def _perform(self, effect: events.DrainEffect) -> None:
        match effect:
            case events.AnswerDrain():
                self._answer(effect)
            case events.MakePlan():
                self._tasks.spawn(self._plan(effect))
            case events.RecordMaintenance():
                self._tasks.spawn(self._record(effect.host_ids))
            case events.DirectHost():
                self._direct(effect.host_id)
            case events.OrderMove():
                self._tasks.spawn(self._move(effect))
            case events.DrainMoved():
                self._show(effect.task_id)
            case WantRoom():
                self._want(effect.name, effect.demand, effect.span_s)
            case Decided():
                self._decided(effect)
            case Announce():
                self._announce(effect)
            case _:
                assert_never(effect)

    def _answer(self, effect: events.AnswerDrain) -> None:
        if effect.view is not None and effect.view.task_id:
            self._show(effect.view.task_id)
        if effect.error is not None:
            self._questions.refuse(effect.request_id, effect.error)
        elif effect.view is not None:
            self._questions.answer(effect.request_id, effect.view)

    def _show(self, task_id: str) -> None:
        """Let the task be seen, from its first sign of life."""
        task = self._core.tasks.get(task_id)
        if task is None:
            return  # its end was shown already
        if task_id not in self._shown:
            self._shown.add(task_id)
            self._task_started(task)
        self._task_moved(task)
        if task.ended:
            self._shown.discard(task_id)
            del self._core.tasks[task_id]

    async def _plan(self, effect: events.MakePlan) -> None:
        """Have the plan made in the planner's process."""
        answer: Drain | None = None
        error: ErrorReport | None = None
        inputs = b""
        try:
            answer, inputs = await self._planner.call(
                drain_and_pack, effect.snapshot, effect.hosts, effect.policy
            )
        except SnoozeError as failure:
            error = ErrorReport.of(failure)
        now_ms = self._clock.wall_ms()
        self._runner.feed(events.PlanMade(effect.number, answer, now_ms, error, inputs))

    async def _record(self, host_ids: Sequence[str]) -> None:
        """Write every host's record; the outcome is one event."""
        loop = asyncio.get_running_loop()
        written = [loop.create_future() for _ in host_ids]

        def done_of(future: "asyncio.Future[ErrorReport | None]") -> Done:
            return lambda error: None if future.done() else future.set_result(error)

        try:
            for host_id, future in zip(host_ids, written, strict=True):
                self._record_host(host_id, done_of(future))
            errors = await asyncio.gather(*written)
        except SnoozeError as error:
            errors = [ErrorReport.of(error)]
        wrong = next((error for error in errors if error is not None), None)
        now_ms = self._clock.wall_ms()
        if wrong is None:
            self._runner.feed(events.MaintenanceWritten(tuple(host_ids), now_ms))
        else:
            self._runner.feed(events.MaintenanceFailed(tuple(host_ids), wrong, now_ms))

    async def _move(self, effect: events.OrderMove) -> None:
        """Have a VM migrated by the manager that has it; its end is an event."""
        error: ErrorReport | None = None
        vm = self._registry.vms.get(effect.vm_id)
        host = self._registry.hosts.get(vm.host_id) if vm is not None else None
        if vm is None or host is None or not host.joined:
            error = ErrorReport("conflict", "its host is out of reach")
        else:
            order = VmOrder(
                self._epoch,
                effect.cause,
                effect.vm_id,
                VmCommand.MIGRATE,
                destination=effect.destination,
            )
            try:
                await self._ask(host.manager_id, order)
            except SnoozeError as failure:
                error = ErrorReport.of(failure)
        self._runner.feed(events.MoveEnded(effect.order_id, error, self._clock.wall_ms()))

"""The shell of a manager's autonomy: ticks, consolidations planned aside, the leader's word.

Nothing is decided before the leader has said what may be, nor while no leader is joined.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import assert_never

import msgspec

from snooze.common.autonomy import AutonomyRecord
from snooze.common.clock import Clock
from snooze.common.core_runner import CoreRunner
from snooze.common.decisions import Decision
from snooze.common.errors import InvalidRequest, SnoozeError
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.task_set import TaskSet
from snooze.common.wire import JudgeDecision, SetAutonomy
from snooze.groupmanager.control import control_of
from snooze.groupmanager.decision_copies import CopyRing
from snooze.groupmanager.manager import autonomy_events as events
from snooze.groupmanager.manager.autonomy_setup import autonomy_policy
from snooze.groupmanager.manager.manager_core import ManagerCore
from snooze.groupmanager.manager.manager_events import ManagerEffect, ManagerEvent
from snooze.groupmanager.manager.monitoring import Monitoring
from snooze.groupmanager.planner import Planner
from snooze.scheduling import dump
from snooze.scheduling.deciding import DecisionKind
from snooze.scheduling.dump import consolidate_and_prepare, relocate_and_prepare
from snooze.scheduling.plans import Plan
from snooze.scheduling.plugged import CODE

logger = logging.getLogger(__name__)

LOOK_PAUSE_S = 0.005
"""Between two steps of a look: about as long as one step takes."""
MAX_FAILURES = 100
"""Different failures of plug-ins that are logged."""
TICK_S = 1.0
"""At most; approvals expire and moves begin within it."""


class FailureLog:
    """Logs plug-ins that failed, each failure once; the built-in policy decided."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()

    def note(self, plan: Plan) -> None:
        """A plan was made; its problems name the plug-ins that were asked first."""
        for problem in plan.problems:
            key = (problem.where, problem.message)
            if problem.code != CODE or key in self._known or len(self._known) >= MAX_FAILURES:
                continue
            self._known.add(key)
            logger.warning(
                "a plug-in failed; the built-in policy decides",
                extra={"plugin": problem.where, "why": problem.message},
            )


class ManagerAutonomy:
    """What a manager needs around ``Autonomy``."""

    def __init__(
        self,
        settings: GroupManagerSettings,
        manager_id: str,
        core: ManagerCore,
        monitoring: Monitoring,
        runner: CoreRunner[ManagerEvent, ManagerEffect],
        clock: Clock,
    ) -> None:
        """Raises: SettingsError: a detector or estimator is not there."""
        policy = autonomy_policy(settings, core.overcommit, core.headroom)
        self._core = core.decide_alone(
            manager_id, policy, control_of(settings.autonomy), monitoring
        )
        self._runner = runner
        self.copies = CopyRing()
        """Of what leaders decided, for the next one."""
        self._clock = clock
        self._tick_s = min(TICK_S, settings.autonomy.interval_s)
        self._directory = settings.autonomy.plugins_directory
        self._failures = FailureLog()
        self._allowed = False
        self._planner = Planner()
        self._tasks = TaskSet()

    async def close(self) -> None:
        """End the process that plans."""
        await self._tasks.close()
        await self._planner.close()

    async def keep(self, is_joined: Callable[[], bool]) -> None:
        """Tick for ever, while a leader is joined that said what may be done."""
        while True:
            await asyncio.sleep(self._tick_s)
            if self._allowed and is_joined():
                self._runner.feed(events.AutonomyTicked(self._clock.wall_ms()))

    def forbid(self) -> None:
        """A leader is about to be joined: it says anew what may be done."""
        self._allowed = False

    def set(self, message: SetAutonomy) -> None:
        """The leader's word.

        Raises:
            InvalidRequest: it cannot be read; what was said before holds.
        """
        try:
            record = msgspec.msgpack.decode(message.control, type=AutonomyRecord)
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"no record of autonomy: {error}") from None
        self._runner.feed(events.AutonomySet(record))
        self._allowed = True

    def judged(self, request_id: int, message: JudgeDecision) -> events.DecisionJudged:
        """A person's word on what was proposed."""
        return events.DecisionJudged(
            request_id,
            self._clock.wall_ms(),
            message.decision_id,
            message.approved,
            message.who,
        )

    def consolidate_asked(self, request_id: int, who: str) -> events.ConsolidateAsked:
        """A person wants a consolidation now."""
        return events.ConsolidateAsked(request_id, self._clock.wall_ms(), who)

    def explain_asked(self, request_id: int, host_id: str) -> events.HostExplainAsked:
        """A person asks why a host is not emptied."""
        return events.HostExplainAsked(request_id, self._clock.wall_ms(), host_id)

    def decisions(self) -> list[Decision]:
        """The latest, to be told to another leader."""
        return list(self._core.book.decisions.values())

    def perform(self, effect: events.AutonomyEffect) -> None:
        """Carry out what the core asks of its shell."""
        match effect:
            case events.LookOn():
                # After whatever waits now, and what it wakes.
                asyncio.get_running_loop().call_later(LOOK_PAUSE_S, self._look_on)
            case events.PlanConsolidation():
                self._tasks.spawn(self._consolidate(effect))
            case events.PlanRelocation():
                self._tasks.spawn(self._relocate(effect))
            case _:
                assert_never(effect)

    def _look_on(self) -> None:
        self._runner.feed(events.LookedOn(self._clock.wall_ms()))

    async def _consolidate(self, effect: events.PlanConsolidation) -> None:
        """Plan a consolidation in a process of its own; the answer is an event."""
        planned = await plan_consolidation(self._planner, effect, self._directory, self._clock)
        if planned.answer is not None:
            self._failures.note(planned.answer.plan)
        self._runner.feed(planned)

    async def _relocate(self, effect: events.PlanRelocation) -> None:
        answer, error = None, ""
        try:
            answer = await self._planner.call(
                relocate_and_prepare, effect.situation, dict(effect.options), self._directory
            )
            self._failures.note(answer.plan)
        except SnoozeError as failure:
            error = _not_planned(failure)
        now_ms = self._clock.wall_ms()
        self._runner.feed(events.RelocationPlanned(effect.token, now_ms, answer, error))


async def plan_consolidation(
    planner: Planner, effect: events.PlanConsolidation, directory: str, clock: Clock
) -> events.ConsolidationPlanned:
    """Have ``planner`` make it; of one that cannot be made, what it was to be made from."""
    token, snapshot, options = effect.token, effect.snapshot, effect.options
    try:
        answer, prepared = await planner.call(
            consolidate_and_prepare, snapshot, dict(options), directory
        )
    except SnoozeError as failure:
        error = _not_planned(failure)
        asked = dump.Decision(DecisionKind.CONSOLIDATION, snapshot, options=options)
        # Of a large cluster it takes a while, and the process that plans may be the trouble.
        inputs = await asyncio.to_thread(dump.pack, asked)
        return events.ConsolidationPlanned(token, clock.wall_ms(), None, error, inputs=inputs)
    return events.ConsolidationPlanned(token, clock.wall_ms(), answer, prepared=prepared)


def _not_planned(failure: SnoozeError) -> str:
    logger.warning("a plan was not made", extra={"why": failure.message})
    return failure.message

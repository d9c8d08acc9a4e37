"""The shell of ``relief_core``: migrations as a client orders them, and room that is wanted."""

from collections.abc import Awaitable, Callable
from typing import assert_never

from snooze.common.clock import Clock
from snooze.common.errors import ErrorReport, SnoozeError
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.task_set import TaskSet
from snooze.common.vm_lifecycle import VmCommand
from snooze.common.wire import HostOverloaded, VmOrder, VmStatus
from snooze.groupmanager.leader.autonomy import LeaderAutonomy
from snooze.groupmanager.leader.decision_log import DecisionLog
from snooze.groupmanager.leader.energy import Energy
from snooze.groupmanager.leader.energy_events import WantRoom
from snooze.groupmanager.leader.registry import Registry
from snooze.groupmanager.leader.relief_core import MoveAway, ReliefCore, ReliefEffect
from snooze.groupmanager.leader.submission_events import Decided


class Reliefs:
    """Helps overloaded hosts across managers, for one leader."""

    def __init__(
        self,
        settings: GroupManagerSettings,
        epoch: int,
        clock: Clock,
        registry: Registry,
        ask: Callable[[str, VmOrder], Awaitable[VmStatus]],
    ) -> None:
        """``ask`` has a manager carry an order out."""
        placement = settings.placement
        self.core = ReliefCore(
            registry,
            placement.overcommit.factors().as_array() * placement.headroom.factors().as_array(),
            settings.relocation.thresholds.cpu[1],
            settings.autonomy.hold_s,
        )
        self._registry = registry
        self._epoch = epoch
        self._clock = clock
        self._ask = ask
        self._keys: dict[str, str] = {}
        self._tasks = TaskSet()

    def join(self, autonomy: LeaderAutonomy, energy: Energy, decisions: DecisionLog) -> None:
        """Who says what may be done, who wakes hosts, who keeps what was decided."""
        self.core.mode_of = autonomy.overload_mode
        autonomy.approvers.append(self.approve)
        self._want = energy.want_room
        self._note = decisions.note

    def overloaded(self, manager_id: str, told: HostOverloaded) -> None:
        """A manager cannot help one of its hosts."""
        now_s, now_ms = self._clock.monotonic_s(), self._clock.wall_ms()
        self._perform(self.core.overloaded(manager_id, told, now_s, now_ms))

    def approve(self, decision_id: str) -> None:
        """A person approves of a decision; of another's nothing comes."""
        key = self._keys.pop(decision_id, "")
        now_s, now_ms = self._clock.monotonic_s(), self._clock.wall_ms()
        self._perform(self.core.approved(key, now_s, now_ms))

    def tick(self) -> None:
        """Time went by."""
        self._perform(self.core.tick(self._clock.monotonic_s()))

    async def close(self) -> None:
        """Stop; migrations under way end by themselves."""
        await self._tasks.close()

    def _perform(self, effects: list[ReliefEffect]) -> None:
        cause = ""
        for effect in effects:
            match effect:
                case Decided():
                    decision = self._note(effect)
                    cause = decision.decision_id
                    if effect.key in self.core.proposed:
                        self._keys = {cause: effect.key} | self._keys
                case MoveAway():
                    self._tasks.spawn(self._move(effect, cause))
                case WantRoom():
                    self._want(effect.name, effect.demand, effect.span_s)
                case _:
                    assert_never(effect)

    async def _move(self, effect: MoveAway, cause: str) -> None:
        error: ErrorReport | None = None
        host = self._registry.hosts[effect.host_id]
        order = VmOrder(
            self._epoch, cause, effect.vm_id, VmCommand.MIGRATE, destination=effect.target
        )
        try:
            await self._ask(host.manager_id, order)
        except SnoozeError as failure:
            error = ErrorReport.of(failure)
        now_s = self._clock.monotonic_s()
        self._perform(self.core.ended(effect.host_id, effect.vm_id, effect.target, error, now_s))

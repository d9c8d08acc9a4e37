"""The shell of ``relief_core`` and ``emptying_core``: migrations as a client orders them.

And of ``holds``: what managers are not to forget.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, assert_never

from snooze.common.api import HostWhyView, ObstacleView
from snooze.common.clock import Clock
from snooze.common.errors import (
    Conflict,
    ErrorReport,
    NotFound,
    NotLeader,
    SnoozeError,
    StaleEpoch,
    TooBusy,
)
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.task_set import TaskSet
from snooze.common.vm_lifecycle import VmCommand
from snooze.common.wire import (
    ExplainHost,
    Held,
    HostExplained,
    HostOverloaded,
    HostToEmpty,
    VmOrder,
    VmStatus,
)
from snooze.groupmanager.leader.autonomy import LeaderAutonomy
from snooze.groupmanager.leader.decision_log import DecisionLog
from snooze.groupmanager.leader.drain import Drains
from snooze.groupmanager.leader.emptying_core import EmptyingCore
from snooze.groupmanager.leader.energy import Energy
from snooze.groupmanager.leader.energy_events import WantRoom
from snooze.groupmanager.leader.holds import Holds
from snooze.groupmanager.leader.journal import Journal
from snooze.groupmanager.leader.manager_links import ManagerLinks
from snooze.groupmanager.leader.recovery import Recovery
from snooze.groupmanager.leader.registry import Registry
from snooze.groupmanager.leader.relief_core import (
    MoveAway,
    ReliefCore,
    ReliefEffect,
)
from snooze.groupmanager.leader.submission_events import Decided

EXPLAIN_TIMEOUT_S = 30.0
OVERLOADS_LAST_S = 30.0
"""Twice as long as a manager takes to tell of an overloaded host again."""
NOT_TRIED = frozenset({Conflict.code, NotLeader.code, StaleEpoch.code, TooBusy.code})
"""Nothing was tried: the VM is not one that could not be moved."""


class Leader(Protocol):
    """The parts of the leader that moves across managers need."""

    epoch: int
    registry: Registry
    journal: Journal
    decisions: DecisionLog
    autonomy: LeaderAutonomy
    energy: Energy
    drains: Drains
    recovery: Recovery
    links: ManagerLinks

    def record_host(self, host_id: str) -> None:
        """Have the record say of a host what the registry says."""
        ...


class Across:
    """Moves VMs across managers, for one leader: off hot hosts, and off hosts hardly used."""

    def __init__(
        self,
        settings: GroupManagerSettings,
        clock: Clock,
        leader: Leader,
        ask: Callable[[str, VmOrder], Awaitable[VmStatus]],
    ) -> None:
        """``ask`` has a manager carry an order out; the leader's other parts are there already."""
        registry, limit = leader.registry, leader.energy.core.limit
        mode_of = leader.autonomy.moving_mode
        middle, autonomy = settings.relocation.thresholds.cpu[1], settings.autonomy
        rest_s = autonomy.cool_down_s
        self.holds = Holds(
            registry, clock, leader.journal.write, leader.record_host, leader.recovery.direct
        )
        expire_s = settings.decisions.expire_s
        self.relief = ReliefCore(registry, limit, middle, autonomy.hold_s, mode_of, expire_s)
        self.emptying = EmptyingCore(
            registry,
            limit,
            middle,
            autonomy.hold_s,
            settings.relocation.relieved_hold_s,
            rest_s,
            gather_s=rest_s + autonomy.interval_s,
            keep_s=3 * (rest_s + autonomy.interval_s),
            most=autonomy.max_per_host,
            mode_of=mode_of,
            expire_s=expire_s,
            is_calm=self._is_calm,
        )
        if autonomy.keep_room:
            self.emptying.ha_lacks = self._ha_lacks
        self._leader = leader
        self._registry = registry
        self._clock = clock
        self._ask = ask
        self._overload_s = float("-inf")
        self._keys: dict[str, str] = {}
        self._tasks = TaskSet()
        leader.autonomy.deciders.append(self.judge)

    def told(self, manager_id: str, notice: HostOverloaded | HostToEmpty | Held) -> None:
        """A manager cannot help a host by itself, or tells what is not to be forgotten."""
        now_s, now_ms = self._clock.monotonic_s(), self._clock.wall_ms()
        match notice:
            case HostOverloaded():
                self._overload_s = now_s
                self._perform(self.relief.overloaded(manager_id, notice, now_s, now_ms))
            case HostToEmpty():
                self.emptying.heard(manager_id, notice, now_s)
            case Held():
                self.holds.noted(notice)
            case _:
                assert_never(notice)

    def judge(self, decision_id: str, approved: bool, who: str) -> bool:
        """A person approves of a decision, or rejects it; whether it is one of ours."""
        key = self._keys.pop(decision_id, "")
        if not key:
            return False
        now_s, now_ms = self._clock.monotonic_s(), self._clock.wall_ms()
        if approved:
            self._perform(self.relief.approved(key, who, now_s, now_ms))
            self._perform(self.emptying.approved(key, who, now_s, now_ms))
        else:
            self._perform(self.relief.rejected(key, who, now_s))
            self._perform(self.emptying.rejected(key, who, now_s))
        return True

    def tick(self, *, settled: bool) -> None:
        """Time went by."""
        now_s, now_ms = self._clock.monotonic_s(), self._clock.wall_ms()
        self._perform(self.relief.tick(now_s))
        if settled:
            self._perform(self.emptying.tick(now_s, now_ms))
        self.holds.tick()

    async def why(self, id_or_name: str) -> HostWhyView:
        """Why a host is not emptied now.

        Raises:
            NotFound: there is none of that name.
            RemoteError, TooBusy: its manager does not answer.
        """
        host = self._registry.find_host(id_or_name)
        if host is None:
            raise NotFound(f"no host is called {id_or_name!r}")
        host_id, name = host.description.host_id, host.description.hostname
        if not host.joined:
            return HostWhyView(host_id, name, (ObstacleView("away", f"it is {host.absence}"),))
        found: list[ObstacleView] = []
        if host.maintenance:
            found.append(ObstacleView("maintenance", "it is drained, or in maintenance"))
        order = ExplainHost(self._leader.epoch, host_id)
        link = self._leader.links.require(host.manager_id)
        found += (await link.request(order, HostExplained, EXPLAIN_TIMEOUT_S)).obstacles
        plan = self.emptying.plan
        if plan is not None and plan.told.host_id == host_id:
            found.append(ObstacleView("plan_under_way", "it is being emptied across managers"))
        lines = self.emptying.why.get(host_id, ())
        found += [ObstacleView("across", f"across managers: {line}") for line in lines]
        return HostWhyView(host_id, name, tuple(found))

    async def close(self) -> None:
        """Stop; migrations under way end by themselves."""
        await self._tasks.close()

    def _is_calm(self) -> str:
        """Why no host is emptied across managers now; empty: nothing speaks against it."""
        if self.relief.open or self._clock.monotonic_s() - self._overload_s < OVERLOADS_LAST_S:
            return "an overloaded host goes first"
        if self._leader.drains.are_under_way():
            return "a host is being drained"
        return "VMs wait for room" if self._registry.vms.lacking else ""

    def _ha_lacks(self, host_id: str, moved: Mapping[str, str]) -> str:
        return self._leader.recovery.lacks(frozenset({host_id}), moved)

    def _perform(self, effects: Sequence[ReliefEffect]) -> None:
        cause = ""
        for effect in effects:
            match effect:
                case Decided():
                    decision = self._leader.decisions.note(effect)
                    cause = decision.decision_id
                    waiting = self.relief.proposed.keys() | self.emptying.proposed.keys()
                    known = self._keys | {cause: effect.key}
                    self._keys = {each: key for each, key in known.items() if key in waiting}
                case MoveAway():
                    self._tasks.spawn(self._move(effect, cause))
                case WantRoom():
                    self._leader.energy.want_room(effect.name, effect.demand, effect.span_s)
                case _:
                    assert_never(effect)

    async def _move(self, effect: MoveAway, cause: str) -> None:
        """Have a VM migrated by the manager that has it; then go on."""
        error: ErrorReport | None = None
        host = self._registry.hosts[effect.host_id]
        relieves = self.relief.open.get(effect.host_id) == effect.vm_id
        if relieves:
            self.holds.relieved((effect.host_id, effect.target))
        order = VmOrder(
            self._leader.epoch, cause, effect.vm_id, VmCommand.MIGRATE, destination=effect.target
        )
        try:
            await self._ask(host.manager_id, order)
        except SnoozeError as failure:
            error = ErrorReport.of(failure)
            if error.code not in NOT_TRIED:
                self.holds.stuck(effect.vm_id)
        now_s = self._clock.monotonic_s()
        if relieves:
            ended = self.relief.ended(effect.host_id, effect.vm_id, effect.target, error, now_s)
            self._perform(ended)
            return
        effects = self.emptying.ended(effect.vm_id, error, now_s)
        for each in effects:
            if isinstance(each, MoveAway):
                self._tasks.spawn(self._move(each, cause))
        self._perform([each for each in effects if isinstance(each, Decided)])

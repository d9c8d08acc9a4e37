"""The leader's side of autonomy: what people said, recorded and told to managers; their approvals.

A change is recorded first; only then do the leader's own cores and the managers hear of it. A
manager decides nothing before it has heard (``manager/autonomy.py``).
"""

import asyncio
import functools
from collections.abc import Callable, Collection
from typing import TypeVar

import msgspec

from snooze.common import records
from snooze.common.api import (
    NO_INPUTS,
    AutonomyChange,
    AutonomyRuleView,
    AutonomyView,
    AutonomyWindowView,
    DecisionView,
)
from snooze.common.autonomy import (
    MAX_RULES,
    MAX_WINDOWS,
    AutonomyRecord,
    AutonomyRule,
    AutonomyWindow,
    Scope,
    strictest,
)
from snooze.common.clock import Clock
from snooze.common.coordination.port import Coordinator, Create, Put
from snooze.common.decisions import Decision, DecisionKind, DecisionMode, DecisionState
from snooze.common.errors import (
    Conflict,
    ExecutionError,
    InvalidRequest,
    NotFound,
    TooBusy,
)
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.time_plans import Window, zone_of
from snooze.common.wire import DecisionMade, JudgeDecision, Reconfigure, SetAutonomy
from snooze.groupmanager.control import control_of, disabled_of
from snooze.groupmanager.leader.decision_keepers import DecisionKeepers
from snooze.groupmanager.leader.decision_log import DecisionLog
from snooze.groupmanager.leader.journal import Journal
from snooze.groupmanager.leader.manager_links import ManagerLinks
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.scheduling import steps

E = TypeVar("E", DecisionKind, DecisionMode, Scope)

MAX_SHOWN_BYTES = 64 * 1024 * 1024
"""Inputs that unpack to more are not shown."""
JUDGE_TIMEOUT_S = 10.0
PLAN_TIMEOUT_S = 90.0
"""Longer than a manager waits for a plan."""
MAX_TEXT = 500

OF_MANAGERS = frozenset({DecisionKind.OVERLOAD, DecisionKind.UNDERLOAD, DecisionKind.CONSOLIDATION})


class LeaderAutonomy:
    """What may be done, for one leader."""

    def __init__(
        self,
        settings: GroupManagerSettings,
        epoch: int,
        registry: Registry,
        clock: Clock,
        journal: Journal,
        links: ManagerLinks,
        decisions: DecisionLog,
        announce: Callable[[str, str, str], None],
        judge_own: Callable[[str, bool, str], bool],
    ) -> None:
        """``judge_own``: a decision of the leader's own cores is approved, or not, by whom.

        It says whether the decision is one of its own that waits: the leader may be a group
        manager as well, and has the same name as one.
        """
        self.control = control_of(settings.autonomy)
        self._disabled = disabled_of(settings)
        self._epoch = epoch
        self._registry = registry
        self._clock = clock
        self._journal = journal
        self._links = links
        self._decisions = decisions
        self._announce = announce
        self.deciders = [judge_own]
        self.keepers = DecisionKeepers(links, decisions, epoch)
        self._recorded = False
        self._changing = asyncio.Lock()

    async def load(self, coordinator: Coordinator) -> None:
        """Read what a former leader recorded.

        Raises:
            RemoteError: the store does not answer.
            ExecutionError: the record cannot be read.
        """
        entry = await coordinator.read(records.AUTONOMY)
        self._recorded = entry is not None
        if entry is not None:
            self.control.set(records.decode(entry.data, AutonomyRecord))

    def may_fence(self, host: HostEntry) -> bool:
        """Whether a host may be switched off by itself."""
        return self.host_mode(DecisionKind.FENCE, host) is DecisionMode.AUTO

    def host_mode(self, kind: DecisionKind, host: HostEntry) -> DecisionMode:
        """What may be done of a kind about a host."""
        host_ids = (host.description.host_id,)
        return self.control.mode(kind, self._clock.wall_ms(), host.manager_id, host_ids)

    def moving_mode(
        self, kind: DecisionKind, host_ids: Collection[str], vm_ids: Collection[str]
    ) -> DecisionMode:
        """What may be done of a kind if these take part, whichever managers' the hosts are."""
        now_ms, hosts = self._clock.wall_ms(), self._registry.hosts
        managers = sorted({hosts[host_id].manager_id for host_id in host_ids if host_id in hosts})
        modes = [self.control.mode(kind, now_ms, m, host_ids, vm_ids) for m in managers]
        return functools.reduce(strictest, modes, DecisionMode.AUTO)

    def may_restart(self, vm: VmEntry) -> bool:
        """Whether a VM of a dead host may be started elsewhere by itself; else people are asked."""
        kind, now_ms = DecisionKind.RESTART, self._clock.wall_ms()
        return self.control.mode(kind, now_ms, vm_ids=(vm.key,)) is DecisionMode.AUTO

    def order(self) -> SetAutonomy:
        """What every manager is told when it joins."""
        return SetAutonomy(self._epoch, msgspec.msgpack.encode(self.control.record))

    async def joined(self, manager_id: str) -> None:
        """A manager joined: it hears what it may do, and may keep copies of decisions."""
        self.keepers.joined(manager_id)
        await self._links.tell(manager_id, self.order())

    def left(self, manager_id: str) -> None:
        """A manager left, with the copies that it kept, and with what it was in the middle of."""
        self.keepers.left(manager_id)
        self._decisions.decider_gone(manager_id)

    # ------------------------------------------------------------ people

    async def change(self, change: AutonomyChange) -> AutonomyView:
        """Record what a person says, then tell everybody.

        Raises:
            InvalidRequest, NotFound: it makes no sense; nothing changed.
            NotLeader, TooBusy: it was not recorded.
        """
        async with self._changing:
            now_ms = self._clock.wall_ms()
            record = self._changed(change, self.control.record.without_old(now_ms), now_ms)
            if len(record.rules) > MAX_RULES or len(record.windows) > MAX_WINDOWS:
                raise TooBusy("there are too many rules of autonomy; resume some")
            await self._write(record)
            self.control.set(record)
        self._announce("autonomy.changed", change.target, _words(change))
        order = self.order()
        await asyncio.gather(
            *(self._links.tell(manager_id, order) for manager_id in list(self._registry.managers))
        )
        return self.view()

    async def pause_sleep(self, manager_id: str, *, paused: bool) -> None:
        """A manager's hosts stay up, or may sleep again. Raises: see ``change``."""
        await self.change(
            AutonomyChange(
                Scope.MANAGER.value,
                manager_id,
                (DecisionKind.SLEEP.value,),
                paused=paused,
                who="suspendEnergySaver",
            )
        )

    def _changed(
        self, change: AutonomyChange, record: AutonomyRecord, now_ms: int
    ) -> AutonomyRecord:
        scope = _member(Scope, change.scope, "scope")
        kinds: list[DecisionKind | None] = [
            _member(DecisionKind, kind, "kind") for kind in change.kinds
        ]
        if DecisionKind.DRAIN in kinds:
            raise InvalidRequest("hosts are drained by people only: snooze host undrain ends it")
        if max(len(change.who), len(change.why), len(change.target)) > MAX_TEXT:
            raise InvalidRequest(f"a text has more than {MAX_TEXT} characters")
        if not 0 <= change.for_s <= 1e9:
            raise InvalidRequest("for_s has to be a number of seconds from 0 to 1e9")
        if change.windows is not None:
            if scope is not Scope.CLUSTER:
                raise InvalidRequest("windows are of the whole cluster")
            record = self._with_windows(change, record, kinds or [None], now_ms)
        if change.paused is None and change.mode is None:
            if change.windows is None:
                raise InvalidRequest("nothing is to change: name paused, mode or windows")
            return record
        target = self._target(scope, change.target)
        if not kinds:
            kinds = [None]
            if change.paused is False:
                said = [r.kind for r in record.rules if (r.scope, r.target) == (scope, target)]
                kinds = list(dict.fromkeys([None, *said]))
        for kind in kinds:
            rule = AutonomyRule(
                scope,
                target,
                kind,
                who=change.who,
                why=change.why,
                at_ms=now_ms,
                until_ms=now_ms + round(change.for_s * 1000) if change.for_s else 0,
            )
            if change.mode is not None:
                record = record.without_rule(rule, paused=False)
                mode = _member(DecisionMode, change.mode, "mode") if change.mode else None
                record = record.with_rule(msgspec.structs.replace(rule, mode=mode))
            if change.paused is not None:
                record = record.without_rule(rule, paused=True)
                record = record.with_rule(msgspec.structs.replace(rule, paused=change.paused))
        return record

    def _with_windows(
        self,
        change: AutonomyChange,
        record: AutonomyRecord,
        kinds: list[DecisionKind | None],
        now_ms: int,
    ) -> AutonomyRecord:
        try:
            zone = zone_of(change.zone)
            for window in change.windows or ():
                Window.of(window, zone)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        for kind in kinds:
            windows = [
                AutonomyWindow(window, kind, change.zone, change.who, change.why, now_ms)
                for window in change.windows or ()
            ]
            record = record.with_windows(kind, windows)
        return record

    def _target(self, scope: Scope, name: str) -> str:
        """The id of what is named."""
        if scope is Scope.CLUSTER:
            if name:
                raise InvalidRequest("the cluster has no target")
            return ""
        if scope is Scope.HOST:
            host = self._registry.find_host(name)
            found = host.description.host_id if host is not None else ""
        elif scope is Scope.VM:
            vm = self._registry.find_vm(name)
            found = vm.key if vm is not None else ""
        else:
            found = self.manager_id(name)
        if not found:
            # What was said of something that is gone can still be taken back by its id.
            if any(r.scope is scope and r.target == name for r in self.control.record.rules):
                return name
            raise NotFound(f"no {scope.value} is called {name!r}")
        return found

    def manager_id(self, name: str) -> str:
        """The id of a manager, by id or host name; empty if there is none."""
        for manager_id, manager in self._registry.managers.items():
            if name in (manager_id, manager.description.hostname):
                return manager_id
        return ""

    async def _write(self, record: AutonomyRecord) -> None:
        data = records.encode(record)
        make = Put if self._recorded else Create
        await self._journal.written([make(records.AUTONOMY, data)])
        self._recorded = True

    # ------------------------------------------------------------ decisions

    def decision(self, decision_id: str) -> Decision:
        """A decision. Raises: NotFound."""
        found = self._decisions.get(decision_id)
        if found is None:
            raise NotFound(f"no decision {decision_id[:64]!r} is known; the oldest are forgotten")
        return found

    async def judge(self, decision_id: str, *, approved: bool, who: str) -> DecisionView:
        """Approve or reject what was proposed.

        Raises:
            NotFound, Conflict: it does not wait for anybody.
            RemoteError, TooBusy: its decider is not in reach.
        """
        decision = self.decision(decision_id)
        if decision.state is not DecisionState.PROPOSED:
            raise Conflict(f"that decision is {decision.state.value}: {decision.outcome}")
        by = who[:MAX_TEXT] or "a person"
        if any(judged(decision_id, approved, by) for judged in self.deciders):
            pass
        elif decision.kind in OF_MANAGERS and decision.decider in self._registry.managers:
            link = self._links.require(decision.decider)
            order = JudgeDecision(self._epoch, decision_id, approved, who[:MAX_TEXT])
            answer = await link.request(order, DecisionMade, JUDGE_TIMEOUT_S)
            self._decisions.add(answer.decision)
        else:
            raise Conflict("who proposed that is gone; it expires")
        return view_of(self.decision(decision_id))

    async def reconfigure(self, manager: str, who: str) -> DecisionView:
        """Have a manager consolidate now.

        Raises:
            NotFound: there is none of that name.
            Conflict: it does not, and why.
        """
        manager_id = self.manager_id(manager)
        if not manager_id:
            raise NotFound(f"no group manager is called {manager!r}")
        order = Reconfigure(self._epoch, who[:MAX_TEXT])
        link = self._links.require(manager_id)
        answer = await link.request(order, DecisionMade, PLAN_TIMEOUT_S)
        self._decisions.add(answer.decision)
        return view_of(answer.decision)

    # ------------------------------------------------------------ views

    def view(self) -> AutonomyView:
        """What may be done at this moment."""
        record, now_ms = self.control.record, self._clock.wall_ms()
        rules = [
            AutonomyRuleView(
                rule.scope.value,
                rule.target,
                self._name(rule.scope, rule.target),
                rule.kind.value if rule.kind else "",
                rule.mode.value if rule.mode else "",
                rule.paused,
                rule.who,
                rule.why,
                rule.at_ms,
                rule.until_ms,
            )
            for rule in record.without_old(now_ms).rules
        ]
        windows = [
            AutonomyWindowView(
                each.window, each.zone, each.kind.value if each.kind else "", each.who, each.why
            )
            for each in record.windows
        ]
        kinds = [kind for kind in DecisionKind if kind is not DecisionKind.DRAIN]
        modes = {kind.value: self.control.mode(kind, now_ms).value for kind in kinds}
        why_off: dict[str, str] = {}
        for kind in kinds:
            reasons = [self._disabled.get(kind, ""), self.control.why_off(kind, now_ms)]
            if any(reasons):
                why_off[kind.value] = "; ".join(filter(None, reasons))
        modes |= {kind.value: DecisionMode.OFF.value for kind in self._disabled}
        return AutonomyView(record.revision, modes, why_off, rules, windows)

    def _name(self, scope: Scope, target: str) -> str:
        if scope is Scope.HOST and (host := self._registry.hosts.get(target)) is not None:
            return host.description.hostname
        if scope is Scope.VM and (vm := self._registry.find_vm(target)) is not None:
            return vm.name
        if scope is Scope.MANAGER and (manager := self._registry.managers.get(target)) is not None:
            return manager.description.hostname
        return ""


def view_of(decision: Decision, *, with_inputs: bool = False) -> DecisionView:
    """A decision for people and programs."""
    inputs = unpacked(decision.inputs) if with_inputs and decision.inputs else b""
    return DecisionView(
        decision.decision_id,
        decision.at_ms,
        decision.kind.value,
        decision.mode.value,
        decision.state.value,
        decision.decider,
        decision.reason,
        decision.subjects,
        decision.actions,
        decision.alternatives,
        decision.outcome,
        decision.ended_ms,
        bool(decision.inputs),
        msgspec.Raw(inputs) if inputs else NO_INPUTS,
    )


def unpacked(inputs: bytes) -> bytes:
    """The JSON that replay reads.

    Raises:
        ExecutionError: it is none, or unpacks to more than is shown.
    """
    try:
        return steps.unpack(inputs, MAX_SHOWN_BYTES)
    except ValueError as error:
        raise ExecutionError(f"the inputs of this decision cannot be read: {error}") from error


def _member(kind: type[E], text: str, what: str) -> E:
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(each.value for each in kind)
        raise InvalidRequest(f"there is no {what} {text[:64]!r}; there are: {known}") from None


def _words(change: AutonomyChange) -> str:
    what: list[str] = []
    if change.paused is not None:
        what.append("paused" if change.paused else "resumed")
    if change.mode is not None:
        what.append(f"mode {change.mode or 'of the settings'}")
    if change.windows is not None:
        what.append(f"windows {', '.join(change.windows) or 'none'}")
    kinds = ", ".join(change.kinds) or "all kinds"
    where = f"{change.scope} {change.target}".strip()
    by = f" by {change.who}" if change.who else ""
    return f"{' and '.join(what)}: {kinds}, {where}{by}" + (f": {change.why}" if change.why else "")

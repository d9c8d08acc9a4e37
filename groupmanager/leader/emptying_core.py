"""Hosts that are hardly used and that their own manager cannot empty: onto hosts of all managers.

Rules:

1. A manager tells of such a host (``HostToEmpty``), again while it is one: everything there may
   move, would be worth moving, and finds no room among the manager's own hosts. What is told is
   looked at once every manager has had its say (``gather_s``), the least used host first; what was
   not told again for ``keep_s`` is forgotten. A host goes onto one that is used less than itself
   only once it has been told for twice as long: that one may be told late (its samples were), and
   what is emptied onto the fullest moves least.
2. Where everything goes is ``scheduling.emptying_question``'s answer, on what the leader knows:
   what is promised, and what each host said that it uses. The manager that has the host migrates,
   at most ``most`` VMs at a time, as for a person; hosts prove their room again.
3. Nothing begins beside a relief, a drain or VMs that wait for room (``is_calm``), nor within
   ``rest_s`` of another plan; an overload elsewhere ends a plan before its next move.
4. Left alone are hosts that took part in an overload within ``relieved_hold_s``, and VMs that moved
   or could not be moved within ``hold_s``. A plan after which the loss of a host could not be
   absorbed (``ha_lacks``) is not made.
5. A move that fails, or that has become impossible, and a VM that comes to the host end the plan:
   the host will not be empty. Nothing more begins then; what is under way goes on, and is counted.
6. The mode of the told kind for all hosts and VMs decides: ``ADVISE`` proposes, ``DRY_RUN`` writes
   down, each at most once in ``expire_s`` while the mode is the same. An approved plan is made
   again, from what is true then.
7. After each move it is told how many of them were done: that is what is known of a plan whose
   leader dies. The next leader goes on with none; it is told again of what is there then.

Invariant: at most one plan is carried out, and it has at most ``most`` moves under way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from snooze.common.decisions import DecisionKind, DecisionMode, DecisionState
from snooze.common.errors import ErrorReport
from snooze.common.records import HostPower
from snooze.common.resources import FloatArray, R
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import HostToEmpty
from snooze.groupmanager.leader.energy_rules import free_on
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.groupmanager.leader.relief_core import ModeOf, MoveAway, always
from snooze.groupmanager.leader.submission_events import Decided
from snooze.scheduling import rulings
from snooze.scheduling.emptying_question import Emptying, EmptyingQuestion, choose_emptying
from snooze.scheduling.energy_question import SLACK, amounts
from snooze.scheduling.relief_question import Burden, Target

LOOK_S: Final = 5.0
"""Between two looks at what was told."""
MAX_TARGETS: Final = 64
"""Hosts that are looked at as targets, the fullest ones below MID."""

EmptyingEffect = Decided | MoveAway


def _calm() -> str:
    return ""


def _enough(host_id: str, moved: Mapping[str, str]) -> str:
    return ""


@dataclass(slots=True)
class Candidate:
    """A host that could be emptied. ``first_s``, ``heard_s``: when that was told."""

    told: HostToEmpty
    first_s: float
    heard_s: float


@dataclass(slots=True)
class _Plan:
    """A plan that is carried out.

    ``moves`` have still to begin, ``moving`` (VM to target) are under way; ``why`` no more begin.
    """

    key: str
    told: HostToEmpty
    moves: list[tuple[str, str]]
    moving: dict[str, str] = field(default_factory=dict[str, str])
    done: int = 0
    why: str = ""


@dataclass(slots=True)
class EmptyingCore:
    """See the module. ``limit[R]`` scales what hosts may be promised; ``middle``: MID of cores.

    ``most``: moves at a time (autonomy.max_per_host).
    ``expire_s``: of what is proposed (decisions.expire_s).
    ``why``: of each host that was told and is not emptied, why; for people.
    """

    registry: Registry
    limit: FloatArray
    middle: float
    hold_s: float
    relieved_hold_s: float
    rest_s: float
    gather_s: float
    keep_s: float
    most: int
    mode_of: ModeOf = always
    expire_s: float = 900.0
    is_calm: Callable[[], str] = _calm
    ha_lacks: Callable[[str, Mapping[str, str]], str] = _enough
    told: dict[str, Candidate] = field(default_factory=dict[str, Candidate])
    plan: _Plan | None = None
    quiet_until_s: float = 0.0
    said: dict[str, tuple[DecisionKind, DecisionMode, float]] = field(
        default_factory=dict[str, tuple[DecisionKind, DecisionMode, float]]
    )
    proposed: dict[str, HostToEmpty] = field(default_factory=dict[str, HostToEmpty])
    why: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    next_look_s: float = 0.0

    def heard(self, manager_id: str, told: HostToEmpty, now_s: float) -> None:
        """A manager cannot empty one of its hosts by itself."""
        host = self.registry.hosts.get(told.host_id)
        if host is None or not host.joined or host.manager_id != manager_id or not told.vms:
            return
        known = self.told.get(told.host_id)
        first_s = now_s if known is None or known.told.kind is not told.kind else known.first_s
        self.told[told.host_id] = Candidate(told, first_s, now_s)

    def tick(self, now_s: float, now_ms: int) -> list[EmptyingEffect]:
        """Time went by."""
        effects: list[EmptyingEffect] = []
        self.said = {h: s for h, s in self.said.items() if self._was_said(h, now_s)}
        for key, told in list(self.proposed.items()):
            if told.host_id not in self.said:
                del self.proposed[key]
                why = "nobody approved, or what may be done has changed"
                effects.append(_told(key, told, DecisionState.EXPIRED, why))
        if now_s < self.next_look_s:
            return effects
        self.next_look_s = now_s + LOOK_S
        for host_id in [h for h, c in self.told.items() if now_s - c.heard_s > self.keep_s]:
            del self.told[host_id]
        self.why = {host_id: why for host_id, why in self.why.items() if host_id in self.told}
        if self.plan is not None:
            return effects
        return effects + self._look(now_s, now_ms)

    def rejected(self, key: str, who: str, now_s: float) -> list[EmptyingEffect]:
        """A person rejects what was proposed under this key."""
        told = self.proposed.pop(key, None)
        if told is None:
            return []
        self._say_no_more(told, now_s)
        return [_told(key, told, DecisionState.REFUSED, f"rejected by {who}")]

    def approved(self, key: str, who: str, now_s: float, now_ms: int) -> list[EmptyingEffect]:
        """A person approves of what was proposed under this key."""
        told = self.proposed.pop(key, None)
        if told is None:
            return []
        made, lines = self._made(told, now_ms, downhill=True)
        if made is None or self.plan is not None:
            why = "another plan is carried out" if self.plan is not None else "; ".join(lines)
            return [_told(key, told, DecisionState.EXPIRED, why)]
        begun = _told(key, told, DecisionState.RUNNING, f"approved by {who}")
        return [begun, *self._begin(key, told, made[1], now_s)]

    def ended(self, vm_id: str, error: ErrorReport | None, now_s: float) -> list[EmptyingEffect]:
        """A move under way has ended."""
        plan = self.plan
        if plan is None or plan.moving.pop(vm_id, None) is None:
            return []
        if error is None:
            plan.done += 1
        else:
            plan.why = plan.why or f"{self._name(vm_id)} stayed: {error.message}"
        effects = self._next(plan, now_s)
        if self.plan is not plan:
            return effects
        done = f"{plan.done} of {plan.done + len(plan.moving) + len(plan.moves)} moved"
        return [_told(plan.key, plan.told, DecisionState.RUNNING, done), *effects]

    # ------------------------------------------------------------ looking

    def _look(self, now_s: float, now_ms: int) -> list[EmptyingEffect]:
        ready = [each for each in self.told.values() if now_s - each.first_s >= self.gather_s]
        ready.sort(key=lambda each: (_uses(each.told), each.told.host_id))
        if not ready:
            return []
        wait = "a plan was carried out a moment ago" if now_s < self.quiet_until_s else ""
        wait = wait or self.is_calm()
        for candidate in ready:
            told = candidate.told
            if told.host_id in self.said:
                continue
            if wait:
                self.why[told.host_id] = (wait,)
                continue
            downhill = now_s - candidate.first_s >= 2 * self.gather_s
            made, lines = self._made(told, now_ms, downhill=downhill)
            self.why[told.host_id] = lines
            if made is None:
                continue
            effects = self._decide(told, *made, now_s)
            if effects:
                return effects
        return []

    def _made(
        self, told: HostToEmpty, now_ms: int, *, downhill: bool
    ) -> tuple[tuple[EmptyingQuestion, Emptying] | None, tuple[str, ...]]:
        """A plan for a host as it is now; or why there is none.

        ``downhill``: also onto hosts that are used less than it.
        """
        host = self.registry.hosts.get(told.host_id)
        if host is None or not host.joined or host.maintenance:
            return None, ("it takes no part any more",)
        held_ms = round(self.relieved_hold_s * 1000)
        if host.relieved_ms and now_ms - host.relieved_ms < held_ms:
            return None, ("it took part in an overload a moment ago",)
        vms, why = self._burdens(told, now_ms)
        if why:
            return None, (why,)
        targets = self._targets(told.host_id, 0.0 if downhill else self._share(host))
        question = EmptyingQuestion(host.description.hostname, vms, targets, self.middle)
        answer = choose_emptying(question)
        if not answer.moves:
            nowhere = f"no host of any manager has room for {answer.stuck}"
            later = () if downhill else ("hosts that are used less than it are looked at later",)
            return None, (nowhere, *answer.others, *later)
        lacks = self.ha_lacks(told.host_id, dict(answer.moves))
        if lacks:
            return None, (f"once it is empty, {lacks}",)
        return (question, answer), ()

    def _burdens(self, told: HostToEmpty, now_ms: int) -> tuple[tuple[Burden, ...], str]:
        """All that is on a host, if all of it may leave; or why not."""
        uses = {vm.vm_id: vm.uses_cores for vm in told.vms}
        found = list(self.registry.vms_of_host(told.host_id))
        since_ms = now_ms - round(self.hold_s * 1000)
        for vm in found:
            if vm.vm_id not in uses or not vm.managed or len(found) != len(uses):
                return (), "what is on it has changed; its manager will tell"
            if vm.state is not VmState.RUNNING or vm.moving or not vm.policy.movable:
                return (), f"VM {vm.name} may not be moved now"
            if vm.moved_ms > since_ms or vm.stuck_ms > since_ms:
                return (), f"VM {vm.name} moved, or could not be moved, a moment ago"
        return tuple(
            Burden(vm.vm_id, vm.name, uses[vm.vm_id], vm.demand.as_tuple())
            for vm in sorted(found, key=lambda vm: vm.vm_id)
        ), ""

    def _targets(self, source: str, least: float) -> tuple[Target, ...]:
        """Hosts in use of all managers, of whose cores this share is used, the fullest first."""
        known: list[tuple[float, str, HostEntry]] = []
        for host_id, host in self.registry.hosts.items():
            share = self._share(host)
            if host_id == source or share < 0 or not _takes(host):
                continue
            if least - SLACK <= share <= self.middle:
                known.append((share, host_id, host))
        known.sort(key=lambda each: (-each[0], each[1]))
        targets: list[Target] = []
        for _, host_id, host in known:
            there = list(self.registry.vms_of_host(host_id))
            if not there or any(vm.moving for vm in there):
                continue
            free = amounts(free_on(self.registry, host, self.limit))
            cores = host.description.capacity.cpu_cores
            used = self.registry.cores_used(host)
            targets.append(Target(host_id, host.description.hostname, free, cores, used))
            if len(targets) == MAX_TARGETS:
                break
        return tuple(targets)

    def _share(self, host: HostEntry) -> float:
        """Of its cores, the share that is used; below 0: not known."""
        return self.registry.cores_used(host) / max(host.description.capacity.cpu_cores, SLACK)

    # ------------------------------------------------------------ doing

    def _decide(
        self, told: HostToEmpty, question: EmptyingQuestion, answer: Emptying, now_s: float
    ) -> list[EmptyingEffect]:
        hosts = {told.host_id, *(target for _, target in answer.moves)}
        vms = [vm for vm, _ in answer.moves]
        mode = self.mode_of(told.kind, hosts, vms)
        if mode is DecisionMode.OFF:
            self.why[told.host_id] = (f"{told.kind.value} is switched off for what takes part",)
            return []
        key, name = f"emptying:{told.host_id}", question.host
        state = {
            DecisionMode.AUTO: DecisionState.RUNNING,
            DecisionMode.ADVISE: DecisionState.PROPOSED,
        }.get(mode, DecisionState.DRY_RUN)
        decided = Decided(
            key,
            told.kind,
            state,
            (told.host_id, *vms),
            f"{told.reason}; not all of it has room among its manager's hosts",
            (*(self._line(vm, name, to) for vm, to in answer.moves), f"{name} is empty then"),
            answer.others,
            "" if mode is not DecisionMode.DRY_RUN else "not carried out: dry run",
            rulings.pack(rulings.EMPTYING, question, answer),
            mode,
        )
        if mode is DecisionMode.AUTO:
            return [decided, *self._begin(key, told, answer, now_s)]
        self._say_no_more(told, now_s)
        self.why[told.host_id] = (f"that is a decision: {state.value}",)
        if mode is DecisionMode.ADVISE:
            self.proposed[key] = told
        return [decided]

    def _say_no_more(self, told: HostToEmpty, now_s: float) -> None:
        mode = self.mode_of(told.kind, (told.host_id,), ())
        self.said[told.host_id] = (told.kind, mode, now_s + self.expire_s)

    def _was_said(self, host_id: str, now_s: float) -> bool:
        """Whether something about a host was said a while ago, under what holds still."""
        kind, mode, until_s = self.said[host_id]
        return until_s > now_s and self.mode_of(kind, (host_id,), ()) is mode

    def _line(self, vm_id: str, source: str, target: str) -> str:
        return f"migrate {self._name(vm_id)} from {source} to {self._hostname(target)}"

    def _begin(
        self, key: str, told: HostToEmpty, answer: Emptying, now_s: float
    ) -> list[EmptyingEffect]:
        self.plan = _Plan(key, told, list(answer.moves))
        self.told.pop(told.host_id, None)
        return self._next(self.plan, now_s)

    def _next(self, plan: _Plan, now_s: float) -> list[EmptyingEffect]:
        """Begin what may begin; or the plan has ended."""
        effects: list[EmptyingEffect] = []
        plan.why = plan.why or self._came(plan.told)
        while plan.moves and not plan.why and len(plan.moving) < self.most:
            vm_id, target = plan.moves[0]
            plan.why = self._why_stale(plan, vm_id, target)
            if not plan.why:
                plan.moving[vm_id] = target
                del plan.moves[0]
                effects.append(MoveAway(plan.told.host_id, vm_id, target))
        return effects if plan.moving else self._end(plan, now_s)

    def _came(self, told: HostToEmpty) -> str:
        """What came to the host since it was told, so that it will not be empty."""
        known = {vm.vm_id for vm in told.vms}
        for vm in self.registry.vms_of_host(told.host_id):
            if vm.vm_id not in known:
                return f"VM {vm.name} came meanwhile"
        return ""

    def _why_stale(self, plan: _Plan, vm_id: str, target: str) -> str:
        """Why the next move is not to begin, on what is true now; empty if it may."""
        vm, host = self.registry.vms.get(vm_id), self.registry.hosts.get(target)
        if vm is None or vm.host_id != plan.told.host_id or vm.state is not VmState.RUNNING:
            return f"{self._name(vm_id)} is not there any more"
        if host is None or not _takes(host):
            return f"{self._hostname(target)} takes no VMs any more"
        free = free_on(self.registry, host, self.limit)
        coming = (self.registry.vms.get(each) for each, to in plan.moving.items() if to == target)
        taken = [each.demand.as_array() for each in coming if each is not None]
        if not _has_room(vm, free - sum(taken, np.zeros(R))):
            return f"{self._hostname(target)} has no room for {vm.name} any more"
        if (plan.done or plan.moving) and (why := self.is_calm()):
            return why
        mode = self.mode_of(plan.told.kind, (plan.told.host_id, target), (vm_id,))
        return "" if mode is not DecisionMode.OFF else f"{plan.told.kind.value} is switched off"

    def _end(self, plan: _Plan, now_s: float) -> list[EmptyingEffect]:
        self.plan = None
        self.quiet_until_s = now_s + self.rest_s
        name = self._hostname(plan.told.host_id)
        if not plan.why:
            text = f"{plan.done} moved; {name} is empty"
            return [_told(plan.key, plan.told, DecisionState.DONE, text)]
        state = DecisionState.PARTLY if plan.done else DecisionState.FAILED
        text = f"{plan.done} moved; {name} is not empty: {plan.why}"
        return [_told(plan.key, plan.told, state, text)]

    def _name(self, vm_id: str) -> str:
        vm = self.registry.vms.get(vm_id)
        return vm.name if vm is not None else vm_id

    def _hostname(self, host_id: str) -> str:
        host = self.registry.hosts.get(host_id)
        return host.description.hostname if host is not None else host_id


def _takes(host: HostEntry) -> bool:
    return host.joined and host.state is HostPower.ACTIVE and not host.maintenance


def _has_room(vm: VmEntry, free: FloatArray) -> bool:
    return bool((vm.demand.as_array() <= free + SLACK * (1.0 + free)).all())


def _uses(told: HostToEmpty) -> float:
    return sum(vm.uses_cores for vm in told.vms)


def _told(key: str, told: HostToEmpty, state: DecisionState, outcome: str) -> Decided:
    return Decided(key, told.kind, state, (), outcome=outcome)

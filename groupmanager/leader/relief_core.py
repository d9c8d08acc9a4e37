"""Overloaded hosts that their own manager cannot help: a host of another manager, or a sleeper.

Rules:

1. A manager tells of such a host again and again while it is one (``HostOverloaded``). One move
   of it is open at a time; ``REST_S`` after a move nothing is done, so that samples can follow.
   Until they do, what a VM uses counts at the host it goes to.
2. Which VM goes where is ``scheduling.relief_question``'s answer, on what the leader knows: what is
   promised, and what each host said that it uses. The manager that has the host migrates, as for a
   person; hosts prove their room again.
3. If there is no target, room for the first VM is wanted of the energy core for ``WANT_S``, which
   wakes a sleeper that could hold it, if there is one; that decision is the energy core's.
4. The mode of ``OVERLOAD`` for host, VM and target decides: ``ADVISE`` proposes, ``DRY_RUN`` writes
   down, each at most once in ``expire_s`` while the mode is the same. An approved move is looked
   at once more.

Invariant: at most one move of a host is open.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from snooze.common.decisions import DecisionKind, DecisionMode, DecisionState
from snooze.common.errors import ErrorReport
from snooze.common.records import HostPower
from snooze.common.resources import FloatArray
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import HostOverloaded
from snooze.groupmanager.leader.energy_events import WantRoom
from snooze.groupmanager.leader.energy_rules import fleet_of
from snooze.groupmanager.leader.registry import HostEntry, Registry
from snooze.groupmanager.leader.submission_events import Decided
from snooze.scheduling import rulings
from snooze.scheduling.energy_question import amounts
from snooze.scheduling.relief_question import (
    Burden,
    Relief,
    ReliefQuestion,
    Target,
    choose_relief,
)

REST_S: Final = 60.0
WANT_S: Final = 90.0
"""Longer than a manager takes to tell of the host again."""


@dataclass(frozen=True, slots=True)
class MoveAway:
    """Migrate a VM; ``ReliefCore.ended`` is told of the end."""

    host_id: str
    vm_id: str
    target: str


ReliefEffect = Decided | MoveAway | WantRoom

ModeOf = Callable[[DecisionKind, Collection[str], Collection[str]], DecisionMode]
"""What may be done of a kind, if these hosts and VMs take part."""


def always(kind: DecisionKind, hosts: Collection[str], vms: Collection[str]) -> DecisionMode:
    """Anything may be done."""
    return DecisionMode.AUTO


@dataclass(frozen=True, slots=True)
class _Coming:
    """A VM that goes to a host, and what it uses; ``until_s``: samples have it then."""

    host_id: str
    uses_cores: float
    until_s: float = math.inf


@dataclass(slots=True)
class ReliefCore:
    """See the module.

    ``limit[R]`` scales what hosts may be promised; ``middle``: MID of cores; ``expire_s``: of what
    is proposed (decisions.expire_s).
    """

    registry: Registry
    limit: FloatArray
    middle: float
    hold_s: float
    mode_of: ModeOf = always
    expire_s: float = 900.0
    open: dict[str, str] = field(default_factory=dict[str, str])
    coming: dict[str, _Coming] = field(default_factory=dict[str, _Coming])
    rests_until_s: dict[str, float] = field(default_factory=dict[str, float])
    said: dict[str, tuple[DecisionMode, float]] = field(
        default_factory=dict[str, tuple[DecisionMode, float]]
    )
    proposed: dict[str, tuple[HostOverloaded, Relief, float]] = field(
        default_factory=dict[str, tuple[HostOverloaded, Relief, float]]
    )

    def overloaded(
        self, manager_id: str, told: HostOverloaded, now_s: float, now_ms: int
    ) -> list[ReliefEffect]:
        """A manager cannot help one of its hosts."""
        host = self.registry.hosts.get(told.host_id)
        self.rests_until_s = {h: s for h, s in self.rests_until_s.items() if s > now_s}
        self.coming = {vm: each for vm, each in self.coming.items() if each.until_s > now_s}
        if (
            host is None
            or not host.joined
            or host.manager_id != manager_id
            or told.host_id in self.open
            or told.host_id in self.rests_until_s
        ):
            return []
        question = self._question(host, told, now_ms)
        answer = choose_relief(question)
        if not answer.vm:
            return self._want(host, question)
        mode = self.mode_of(DecisionKind.OVERLOAD, (told.host_id, answer.target), (answer.vm,))
        said, until_s = self.said.get(told.host_id, (mode, 0.0))
        if mode is DecisionMode.OFF or (said is mode and until_s > now_s):
            return []
        decided = self._decided(host, told, question, answer, mode)
        if mode is DecisionMode.AUTO:
            return [decided, self._move(told, answer)]
        self.said[told.host_id] = (mode, now_s + self.expire_s)
        if mode is DecisionMode.ADVISE:
            self.proposed[decided.key] = (told, answer, now_s + self.expire_s)
        return [decided]

    def rejected(self, key: str, who: str, now_s: float) -> list[ReliefEffect]:
        """A person rejects what was proposed under this key."""
        found = self.proposed.pop(key, None)
        if found is None:
            return []
        self.said[found[0].host_id] = (DecisionMode.ADVISE, now_s + self.expire_s)
        return [self._ended(key, DecisionState.REFUSED, f"rejected by {who}")]

    def approved(self, key: str, who: str, now_s: float, now_ms: int) -> list[ReliefEffect]:
        """A person approves of what was proposed under this key."""
        found = self.proposed.pop(key, None)
        if found is None:
            return []
        told, answer, until_s = found
        host = self.registry.hosts.get(told.host_id)
        again = Relief()
        if host is not None and host.joined and until_s > now_s and told.host_id not in self.open:
            question = self._question(host, told, now_ms)
            only = tuple(host for host in question.targets if host.id == answer.target)
            burden = tuple(vm for vm in question.vms if vm.id == answer.vm)
            again = choose_relief(ReliefQuestion(question.host, burden, only, self.middle))
        if not again.vm:
            why = "; ".join(again.others) or "it is not possible any more"
            return [self._ended(key, DecisionState.EXPIRED, why)]
        running = self._ended(key, DecisionState.RUNNING, f"approved by {who}")
        return [running, self._move(told, again)]

    def tick(self, now_s: float) -> list[ReliefEffect]:
        """Proposals that nobody approved expire, and those that may not wait for a person now."""
        effects: list[ReliefEffect] = []
        self.said = {host_id: said for host_id, said in self.said.items() if said[1] > now_s}
        for key, (told, answer, until_s) in list(self.proposed.items()):
            kind = DecisionKind.OVERLOAD
            mode = self.mode_of(kind, (told.host_id, answer.target), (answer.vm,))
            why = "nobody approved" if until_s <= now_s else ""
            if mode is not DecisionMode.ADVISE:
                why = f"the mode of {kind.value} is {mode.value} now"
            if why:
                del self.proposed[key]
                effects.append(self._ended(key, DecisionState.EXPIRED, why))
        return effects

    def ended(
        self, host_id: str, vm_id: str, target: str, error: ErrorReport | None, now_s: float
    ) -> list[ReliefEffect]:
        """A move has ended."""
        if self.open.pop(host_id, None) is None:
            return []
        self.rests_until_s[host_id] = now_s + REST_S
        coming = self.coming.pop(vm_id, None)
        if coming is not None and error is None:
            self.coming[vm_id] = replace(coming, until_s=now_s + REST_S)
        if error is not None:
            return [self._ended(_key(host_id), DecisionState.FAILED, error.message)]
        name = self.registry.hosts[target].description.hostname
        vm = self.registry.vms.get(vm_id)
        what = f"{vm.name if vm is not None else vm_id} is on {name}"
        return [self._ended(_key(host_id), DecisionState.DONE, what)]

    # ------------------------------------------------------------ parts

    def _move(self, told: HostOverloaded, answer: Relief) -> MoveAway:
        self.open[told.host_id] = answer.vm
        uses = next((vm.uses_cores for vm in told.vms if vm.vm_id == answer.vm), 0.0)
        self.coming[answer.vm] = _Coming(answer.target, uses)
        return MoveAway(told.host_id, answer.vm, answer.target)

    def _uses(self, host: HostEntry) -> float:
        """The cores that a host uses, with what is coming; below 0: not known."""
        known, host_id = self.registry.cores_used(host), host.description.host_id
        if known < 0:
            return known
        return known + sum(e.uses_cores for e in self.coming.values() if e.host_id == host_id)

    def _question(self, host: HostEntry, told: HostOverloaded, now_ms: int) -> ReliefQuestion:
        fleet = fleet_of(self.registry, self.limit)
        targets = tuple(
            Target(
                other.description.host_id,
                other.description.hostname,
                amounts(fleet.free[row]),
                other.description.capacity.cpu_cores,
                self._uses(other),
            )
            for row, other in enumerate(fleet.hosts)
            if other.joined and other.manager_id != host.manager_id
        )
        since_ms = now_ms - round(self.hold_s * 1000)
        vms: list[Burden] = []
        for wish in told.vms:
            vm = self.registry.vms.get(wish.vm_id)
            if vm is None or vm.host_id != told.host_id or vm.state is not VmState.RUNNING:
                continue
            if vm.moving or not vm.policy.movable:
                continue
            left = vm.left if vm.moved_ms > since_ms else ""
            vms.append(Burden(vm.vm_id, vm.name, wish.uses_cores, vm.demand.as_tuple(), left))
        return ReliefQuestion(host.description.hostname, tuple(vms), targets, self.middle)

    def _want(self, host: HostEntry, question: ReliefQuestion) -> list[ReliefEffect]:
        """Rule 3."""
        sleeps = self.registry.hosts.count_in({HostPower.ASLEEP}) > 0
        if not question.vms or not sleeps:
            return []
        host_id = host.description.host_id
        if self.mode_of(DecisionKind.OVERLOAD, (host_id,), ()) is not DecisionMode.AUTO:
            return []
        demand: FloatArray = np.array(question.vms[0].asked)
        name = f"the load of {host.description.hostname} ({question.vms[0].name})"
        return [WantRoom(name, demand, WANT_S)]

    def _decided(
        self,
        host: HostEntry,
        told: HostOverloaded,
        question: ReliefQuestion,
        answer: Relief,
        mode: DecisionMode,
    ) -> Decided:
        target = self.registry.hosts[answer.target].description.hostname
        vm = self.registry.vms[answer.vm]
        state = {
            DecisionMode.AUTO: DecisionState.RUNNING,
            DecisionMode.ADVISE: DecisionState.PROPOSED,
        }.get(mode, DecisionState.DRY_RUN)
        return Decided(
            _key(told.host_id),
            DecisionKind.OVERLOAD,
            state,
            (told.host_id, answer.vm),
            f"{told.reason}; none of its manager's hosts can take a VM of it",
            (f"migrate {vm.name} from {host.description.hostname} to {target}, another manager's",),
            answer.others,
            "" if mode is not DecisionMode.DRY_RUN else "not carried out: dry run",
            rulings.pack(rulings.RELIEF, question, answer),
            mode,
        )

    @staticmethod
    def _ended(key: str, state: DecisionState, why: str) -> Decided:
        return Decided(key, DecisionKind.OVERLOAD, state, (), outcome=why)


def _key(host_id: str) -> str:
    return f"relief:{host_id}"

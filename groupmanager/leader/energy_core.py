"""Which host sleeps, which is woken: one state machine a host, and why each of its steps is taken.

Rules:

1. A state is in the record before what it announces is ordered. A new leader goes on from there:
   a host that is ``GOING_DOWN`` and still joined is ordered again, one that left is looked at; a
   ``WAKING`` one is woken again (every order is idempotent).
2. Nothing goes to sleep but as ``energy_rules`` allow, and by itself only: with energy saving on,
   idle for ``idle_s``, up for ``min_on_s``, while the reserve holds without it, what anticipation
   expects and what HA needs included, and no VM waits that it could hold. Its manager is the
   last to judge; a host that stays is left alone for a while.
3. A host is ``ASLEEP`` when its link closed after the order and nothing says that it is still on:
   one that shuts down or hibernates is looked at until its BMC calls it off, if it has one that
   can tell.
4. VMs that no host in reach can hold wake hosts: those on their way first, then as few watts as
   possible. A missing reserve does too, but not a host that went to sleep a moment ago.
5. A host that does not join in ``wake_timeout_s`` is woken again; after ``wake_tries`` it is
   ``FAILED``, its VMs wait for the next one, and only a person wakes it again. An order that was
   never sent, because too much is to be sent, is no try, for as long as one may take. One to a host
   that may still be going down (nothing has called it off) is repeated until it cannot be.
6. A host that joins is ``ACTIVE``, whatever it was (``FENCED`` is the recovery's).
7. Each begun sleep and wake is one ``Decision``; its mode says whether it is carried out.

Invariant: a step is under way for at most one state of a host, the one that its entry has.

=============  ==========================================================================
state          next
=============  ==========================================================================
``ACTIVE``     ``GOING_DOWN`` when it may sleep
``GOING_DOWN`` ``ACTIVE`` refused, or it joined again; ``ASLEEP``; ``FAILED`` still on
``ASLEEP``     ``WAKING`` when it is needed; ``ACTIVE`` when somebody switched it on
``WAKING``     ``ACTIVE`` joined; ``FAILED`` after the last try
``FAILED``     ``ACTIVE`` joined; ``WAKING`` when a person asks
=============  ==========================================================================
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, assert_never

import msgspec
import numpy as np

from snooze.common.decisions import Decision, DecisionKind, DecisionMode, DecisionState
from snooze.common.errors import ErrorReport
from snooze.common.records import HostPower
from snooze.common.resources import FloatArray, R
from snooze.groupmanager.leader.energy_choice import (
    Chosen,
    Look,
    Room,
    choose_asked,
    choose_sleepers,
    choose_wakers,
    wake_asked,
)
from snooze.groupmanager.leader.energy_events import (
    AnswerPerson,
    EnergyEffect,
    EnergyEvent,
    HostSeen,
    HostWent,
    Judged,
    PowerSeen,
    RoomWanted,
    SleepAnswered,
    SleepAsked,
    StepRecorded,
    TellDecision,
    Ticked,
    WakeAnswered,
    WakeAsked,
)
from snooze.groupmanager.leader.energy_rules import (
    SLEEPERS,
    EnergyPolicy,
    forbids_sleep,
    is_wakeable,
    lately,
    up_of,
)
from snooze.groupmanager.leader.energy_steps_core import PowerSteps, Why, ended, words
from snooze.groupmanager.leader.energy_table import EnergyTable
from snooze.groupmanager.leader.registry import HostEntry, Registry

EVALUATE_S: Final = 1.0
"""How often is looked for hosts to wake or to put to sleep."""
HA_EVERY_S: Final = 10.0
"""Between two looks at the HA reserve that found it lacking; one takes long in a large cluster."""


@dataclass(slots=True)
class Proposal:
    """A decision that waits for a person, was rejected, or was only written down."""

    decision: Decision
    host_id: str
    until_s: float


def _always(kind: DecisionKind, host_id: str) -> DecisionMode:
    return DecisionMode.AUTO


def _nothing(now_ms: int) -> FloatArray:
    return np.zeros(R)


def _holds(gone: frozenset[str]) -> str:
    return ""


@dataclass(slots=True)
class EnergyCore:
    """Decides about the power of hosts; see the module's rules.

    ``mode_of`` says how a kind of decision about a host is treated; ``expected`` how much demand is
    about to come (``[R]``); ``ha_lacks`` why the hosts that are up could not, without these, take
    in the VMs of one that dies (empty: they could). All three are plain functions of what the
    leader knows.
    ``expire_s``: how long a proposal waits for its approval, and a dry run is not repeated.
    """

    registry: Registry
    decider: str
    epoch: int
    limit: FloatArray
    policy: EnergyPolicy
    expire_s: float = 900.0
    mode_of: Callable[[DecisionKind, str], DecisionMode] = _always
    expected: Callable[[int], FloatArray] = _nothing
    ha_lacks: Callable[[frozenset[str]], str] = _holds
    proposals: dict[str, Proposal] = field(default_factory=dict[str, Proposal])
    evaluated_s: float = -math.inf
    ha_refused_s: float = -math.inf
    ha_looked_s: float = -math.inf
    ha_seen: str = ""
    wanted: dict[str, Room] = field(default_factory=dict[str, Room])
    power: PowerSteps = field(init=False)
    table: EnergyTable = field(init=False)

    def __post_init__(self) -> None:
        self.power = PowerSteps(self.registry, self.decider, self.epoch, self.policy)
        self.table = EnergyTable(self.registry, self.policy, self.power.wake_times_s)

    def handle(self, event: EnergyEvent, now_s: float) -> list[EnergyEffect]:
        """Take in one event."""
        match event:
            case Ticked():
                return self._ticked(event, now_s)
            case HostSeen():
                return self.power.seen(event.host_id, now_s, event.now_ms)
            case HostWent():
                self.power.went(event, now_s)
                return []
            case StepRecorded():
                return self.power.recorded(event, now_s)
            case SleepAnswered():
                return self.power.sleep_answered(event, now_s)
            case WakeAnswered():
                return self.power.wake_answered(event, now_s)
            case PowerSeen():
                return self.power.power_seen(event, now_s)
            case SleepAsked():
                return self._sleep_asked(event, now_s)
            case WakeAsked():
                return self._wake_asked(event, now_s)
            case Judged():
                return self._judged(event, now_s)
            case RoomWanted():
                self._room_wanted(event, now_s)
                return []
            case _:
                assert_never(event)

    # ------------------------------------------------------------ time

    def _ticked(self, event: Ticked, now_s: float) -> list[EnergyEffect]:
        if not event.settled:
            return []
        effects = self.power.continue_states(now_s, event.now_ms)
        for host_id, step in sorted(self.power.steps.items()):
            effects += self.power.time_step(host_id, step, now_s, event.now_ms)
        if now_s - self.evaluated_s >= EVALUATE_S:
            self.evaluated_s = now_s
            effects += self._expire(now_s, event.now_ms)
            lately(self.registry, now_s, event.now_ms)
            if not self.policy.enabled and not self.registry.hosts.count_in(SLEEPERS):
                return effects
            look = self._look(now_s, event.now_ms)
            effects += self._wake_some(look)
            effects += self._let_sleep(look)
        return effects

    def _expire(self, now_s: float, now_ms: int) -> list[EnergyEffect]:
        effects: list[EnergyEffect] = []
        for decision_id, proposal in sorted(self.proposals.items()):
            decision = proposal.decision
            mode = self.mode_of(decision.kind, proposal.host_id)
            if mode is not decision.mode:
                why = f"the mode of {decision.kind.value} is {mode.value} now"
            elif proposal.until_s <= now_s:
                why = "nobody approved"
            else:
                continue
            del self.proposals[decision_id]
            if decision.state is DecisionState.PROPOSED:
                effects += ended(decision, DecisionState.EXPIRED, why, now_ms)
        self.power.forget_old(now_s)
        return effects

    # ------------------------------------------------------------ sleep

    def _look(self, now_s: float, now_ms: int) -> Look:
        self.table.refresh()
        return Look(
            self.registry,
            self.policy,
            self.limit,
            self.table,
            up_of(self.registry, self.limit),
            self.expected(now_ms),
            self.power.wake_times_s,
            now_s,
            now_ms,
        )

    def _let_sleep(self, look: Look) -> list[EnergyEffect]:
        """Put to sleep what is not needed (rule 2)."""
        if not self.policy.enabled or look.now_s - self.ha_refused_s < HA_EVERY_S:
            return []
        busy = self.power.left_alone.keys() | self.power.steps.keys() | self._awaited(look.now_s)

        def is_willing(host_id: str) -> bool:
            return self.mode_of(DecisionKind.SLEEP, host_id) is not DecisionMode.OFF

        chosen = choose_sleepers(look, self.ha_lacks, is_willing, busy, self._proposed())
        effects: list[EnergyEffect] = []
        if not chosen.hosts and chosen.ha_refused:
            self.ha_refused_s = look.now_s
        for host, reason in chosen.hosts:
            effects += self._decide(DecisionKind.SLEEP, host, reason, look, chosen)
        return effects

    def _awaited(self, now_s: float) -> set[str]:
        """Hosts that came for something that is wanted still, and may not be on them yet."""
        return {room.host_id for room in self.wanted.values() if room.until_s > now_s}

    def _proposed(self) -> set[str]:
        return {proposal.host_id for proposal in self.proposals.values()}

    # ------------------------------------------------------------ waking

    def _ha_of(self, now_s: float) -> str:
        """What HA lacks with the hosts that are up, looked at now and then."""
        if not self.policy.enabled:
            return ""
        if now_s - self.ha_looked_s >= HA_EVERY_S:
            self.ha_looked_s, self.ha_seen = now_s, self.ha_lacks(frozenset())
        return self.ha_seen

    def _wake_some(self, look: Look) -> list[EnergyEffect]:
        """Wake what VMs wait for, and what the reserve lacks (rule 4)."""
        hosts = self.registry.hosts
        if not hosts.count_in(SLEEPERS):
            return []

        def is_willing(host_id: str) -> bool:
            host = hosts[host_id]
            return (
                is_wakeable(self.registry, host)
                and not host.maintenance
                and self.mode_of(DecisionKind.WAKE, host_id) is not DecisionMode.OFF
            )

        coming = {host.description.host_id for host in hosts.in_state({HostPower.WAKING})}
        coming |= {host_id for host_id in self.power.wake_after if hosts[host_id].state in SLEEPERS}
        coming = {host_id for host_id in coming if not hosts[host_id].maintenance}
        ha = "" if coming else self._ha_of(look.now_s)
        chosen = choose_wakers(look, ha, is_willing, coming, self._rooms(look.now_s))
        effects: list[EnergyEffect] = []
        proposed = self._proposed()
        for host, reason in chosen.hosts:
            host_id = host.description.host_id
            if host.state is HostPower.GOING_DOWN:
                if self.mode_of(DecisionKind.WAKE, host_id) is DecisionMode.AUTO:
                    self.power.wake_after[host_id] = Why(reason, chosen.alternatives, chosen.inputs)
            elif host.state is HostPower.ASLEEP and host_id not in proposed:
                effects += self._decide(DecisionKind.WAKE, host, reason, look, chosen)
        return effects

    def _rooms(self, now_s: float) -> list[Room]:
        """What is wanted besides, as long as it is; not once the host that came for it is up."""
        self.wanted = {name: room for name, room in self.wanted.items() if room.until_s > now_s}
        rooms: list[Room] = []
        for _, room in sorted(self.wanted.items()):
            host = self.registry.hosts.get(room.host_id)
            if host is None or host.state is not HostPower.ACTIVE:
                rooms.append(room)
        return rooms

    def _room_wanted(self, event: RoomWanted, now_s: float) -> None:
        """The same again prolongs it; one for which a host has come is served for a while."""
        known = self.wanted.get(event.name)
        host = self.registry.hosts.get(known.host_id) if known is not None else None
        if known is None or host is None or host.state is not HostPower.ACTIVE:
            host_id = known.host_id if known is not None else ""
            self.wanted[event.name] = Room(event.name, event.demand, event.until_s, host_id)

    # ------------------------------------------------------------ people

    def _sleep_asked(self, event: SleepAsked, now_s: float) -> list[EnergyEffect]:
        host = self.registry.hosts[event.host_id]
        if host.state in {HostPower.GOING_DOWN, HostPower.ASLEEP}:
            return [AnswerPerson(event.request_id, f"it is {words(host.state)} already")]
        why = forbids_sleep(self.registry, self.policy, host)
        chosen = Chosen(())
        if not why:
            chosen = self._asked_to_sleep(host, now_s, event.now_ms, force=event.force)
            if not chosen.hosts:
                why = f"{chosen.alternatives[0]} (--force puts it to sleep nevertheless)"
        if why:
            error = ErrorReport("conflict", f"{host.description.hostname} stays up: {why}")
            return [AnswerPerson(event.request_id, error=error)]
        decision = self._decision(DecisionKind.SLEEP, host, chosen, event.now_ms)
        begun = self.power.begin_sleep(host, decision, now_s, event.now_ms)
        return [*begun, AnswerPerson(event.request_id, "it is sent to sleep")]

    def _wake_asked(self, event: WakeAsked, now_s: float) -> list[EnergyEffect]:
        host = self.registry.hosts[event.host_id]
        match host.state:
            case HostPower.ACTIVE:
                said = "it is up" if host.joined else "it is not asleep, it is out of reach"
                return [AnswerPerson(event.request_id, said)]
            case HostPower.WAKING:
                return [AnswerPerson(event.request_id, "it is being woken already")]
            case HostPower.FENCED:
                error = ErrorReport("conflict", "it was fenced; recovery sees to it")
                return [AnswerPerson(event.request_id, error=error)]
            case HostPower.GOING_DOWN:
                chosen = wake_asked(self._look(now_s, event.now_ms), host)
                [(_, reason)] = chosen.hosts
                why = Why(reason, chosen.alternatives, chosen.inputs)
                self.power.wake_after[event.host_id] = why
                return [AnswerPerson(event.request_id, "it is woken as soon as it is down")]
            case HostPower.ASLEEP | HostPower.FAILED:
                if not is_wakeable(self.registry, host):
                    error = ErrorReport(
                        "conflict",
                        "nothing can wake it: no power driver that can, and may, is named for it",
                    )
                    return [AnswerPerson(event.request_id, error=error)]
                chosen = wake_asked(self._look(now_s, event.now_ms), host)
                decision = self._decision(DecisionKind.WAKE, host, chosen, event.now_ms)
                begun = self.power.begin_wake(host, decision, now_s, event.now_ms)
                return [*begun, AnswerPerson(event.request_id, "it is being woken")]
            case _:
                assert_never(host.state)

    def _judged(self, event: Judged, now_s: float) -> list[EnergyEffect]:
        proposal = self.proposals.get(event.decision_id)
        if proposal is None or proposal.decision.state is not DecisionState.PROPOSED:
            return []
        if not event.approved:
            effects = ended(
                proposal.decision, DecisionState.REFUSED, f"rejected by {event.who}", event.now_ms
            )
            proposal.decision = msgspec.structs.replace(
                proposal.decision, state=DecisionState.REFUSED
            )
            proposal.until_s = now_s + self.expire_s
            return effects
        del self.proposals[event.decision_id]
        host = self.registry.hosts.get(proposal.host_id)
        decision = msgspec.structs.replace(
            proposal.decision, state=DecisionState.RUNNING, outcome=f"approved by {event.who}"
        )
        if host is None:
            return ended(decision, DecisionState.EXPIRED, "the host is gone", event.now_ms)
        if decision.kind is DecisionKind.WAKE:
            if host.state is HostPower.ASLEEP:
                return self.power.begin_wake(host, decision, now_s, event.now_ms)
            why = f"it is {words(host.state)} by now"
        else:
            why = forbids_sleep(self.registry, self.policy, host)
            if not why:
                chosen = self._asked_to_sleep(host, now_s, event.now_ms)
                why = "" if chosen.hosts else chosen.alternatives[0]
            if not why:
                return self.power.begin_sleep(host, decision, now_s, event.now_ms)
        return ended(decision, DecisionState.EXPIRED, why, event.now_ms)

    def _asked_to_sleep(
        self, host: HostEntry, now_s: float, now_ms: int, *, force: bool = False
    ) -> Chosen:
        """Whether a host on which there is nothing may sleep, for a person."""
        look = self._look(now_s, now_ms)
        return choose_asked(look, self.ha_lacks, host, self._proposed(), force=force)

    def _decision(
        self, kind: DecisionKind, host: HostEntry, chosen: Chosen, now_ms: int
    ) -> Decision:
        """What a person has decided."""
        [(_, reason)] = chosen.hosts
        return self.power.decision(
            kind, host, reason, now_ms, alternatives=chosen.alternatives, inputs=chosen.inputs
        )

    # ------------------------------------------------------------ what all share

    def _decide(
        self,
        kind: DecisionKind,
        host: HostEntry,
        reason: str,
        look: Look,
        chosen: Chosen,
    ) -> list[EnergyEffect]:
        """Carry out a decision, propose it, write it down or leave it (rule 7)."""
        now_s, now_ms = look.now_s, look.now_ms
        host_id = host.description.host_id
        mode = self.mode_of(kind, host_id)
        decision = self.power.decision(
            kind, host, reason, now_ms, mode, chosen.alternatives, chosen.inputs
        )
        match mode:
            case DecisionMode.AUTO:
                sleep = kind is DecisionKind.SLEEP
                begin = self.power.begin_sleep if sleep else self.power.begin_wake
                return begin(host, decision, now_s, now_ms)
            case DecisionMode.ADVISE | DecisionMode.DRY_RUN:
                advise = mode is DecisionMode.ADVISE
                state = DecisionState.PROPOSED if advise else DecisionState.DRY_RUN
                ended_ms = 0 if advise else now_ms
                decision = msgspec.structs.replace(decision, state=state, ended_ms=ended_ms)
                self.proposals[decision.decision_id] = Proposal(
                    decision, host_id, now_s + self.expire_s
                )
                return [TellDecision(decision)]
            case DecisionMode.OFF:
                return []
            case _:
                assert_never(mode)

"""How a host is sent to sleep and woken: the steps, their order, what follows each answer.

Rules 1, 3, 5 and 6 of ``energy_core``; what is decided there begins here.
"""

import hashlib
import math
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, assert_never

import msgspec

from snooze.common.decisions import Decision, DecisionKind, DecisionMode, DecisionState
from snooze.common.errors import TooBusy
from snooze.common.records import HostPower
from snooze.groupmanager.leader.energy_events import (
    EnergyEffect,
    HostWent,
    LookAtPower,
    OrderSleep,
    OrderWake,
    PowerSeen,
    RecordStep,
    SleepAnswered,
    StepRecorded,
    TellDecision,
    WakeAnswered,
)
from snooze.groupmanager.leader.energy_rules import EnergyPolicy, action_for
from snooze.groupmanager.leader.energy_table import WakeTimes
from snooze.groupmanager.leader.membership_core import Announce
from snooze.groupmanager.leader.registry import HostEntry, Registry
from snooze.scheduling import rulings
from snooze.scheduling.takeover_question import PowerTakeover, continue_power

LOOK_S: Final = 2.0
"""Between two looks at a host that shuts down, one at a time."""
REPEAT_S: Final = 10.0
"""Between two orders to wake a host that left a moment ago and that nothing has called off since:
it may still be going down, and deaf."""
RETRY_S: Final = 5.0
"""After a power controller refused to wake a host."""
UNSURE_S: Final = 10.0
"""After an order to sleep that was not answered, until a host still there is asked again."""
MAX_SLEEP_ORDERS: Final = 3
MAX_WAKE_S: Final = 7200.0
"""All tries to wake a host take no longer (settings see to that): who says more had his clock set.
One such figure would keep every host up, as none sleeps that does not pay for waking again."""
POWERS_OFF: Final = frozenset({"shutdown", "suspend_to_disk"})
"""Ways down at whose end a BMC says off. Who is woken before that hears nothing of it: the machine
is still writing its memory to disk, say, and counts as on."""
LEFT_ALONE_S: Final = 300.0
"""A host that did not go to sleep is not asked again by itself before this."""


class Phase(Enum):
    """How far a step is."""

    RECORDING = auto()
    ORDERED = auto()
    UNSURE = auto()
    GONE = auto()
    COMING = auto()
    RETRYING = auto()


@dataclass(slots=True)
class Step:
    """What is under way with a host; made anew from its entry by a new leader."""

    step_id: int
    decision: Decision
    phase: Phase
    since_s: float
    action: str = ""
    orders: int = 0
    looked_s: float = -math.inf
    is_looking: bool = False
    seen_on: bool = False
    seen_off: bool = False
    obeyed: bool = False
    last_error: str = ""
    put_off_s: float | None = None
    """Since when orders to wake it are not even sent: there is too much to do."""
    repeats_until_s: float = -math.inf
    """Until then the order to wake it is repeated."""
    ordered_s: float = -math.inf


@dataclass(frozen=True, slots=True)
class Why:
    """Why a host that still goes down is woken at once."""

    reason: str
    alternatives: tuple[str, ...] = ()
    inputs: bytes = b""


@dataclass(slots=True)
class PowerSteps:
    """What is under way with which host."""

    registry: Registry
    decider: str
    epoch: int
    policy: EnergyPolicy
    steps: dict[str, Step] = field(default_factory=dict[str, Step])
    left_alone: dict[str, float] = field(default_factory=dict[str, float])
    wake_after: dict[str, Why] = field(default_factory=dict[str, Why])
    unproven: dict[str, float] = field(default_factory=dict[str, float])
    """Sleepers that nothing has called off, and until when they may still be going down."""
    wake_times_s: WakeTimes = field(default_factory=WakeTimes)
    count: int = 0

    def continue_states(self, now_s: float, now_ms: int) -> list[EnergyEffect]:
        """What a former leader had begun and recorded (rule 1)."""
        effects: list[EnergyEffect] = []
        hosts = self.registry.hosts
        begun = hosts.in_state({HostPower.GOING_DOWN, HostPower.WAKING})
        looked_at = {host.description.host_id: host for host in begun} | hosts.reached
        for host_id, host in sorted(looked_at.items()):
            if host_id in self.steps:
                continue
            if host.joined and host.state in {
                HostPower.ASLEEP,
                HostPower.WAKING,
                HostPower.FAILED,
            }:
                effects += self.seen(host_id, now_s, now_ms)
            elif host.state in {HostPower.GOING_DOWN, HostPower.WAKING}:
                effects += self._go_on(host, now_s, now_ms)
        return effects

    def _go_on(self, host: HostEntry, now_s: float, now_ms: int) -> list[EnergyEffect]:
        host_id = host.description.host_id
        sleeps = host.state is HostPower.GOING_DOWN
        action = (action_for(self.policy, host) or "shutdown") if sleeps else ""
        question = PowerTakeover(
            host_id,
            host.description.hostname,
            "going_down" if sleeps else "waking",
            host.joined,
            host.note,
            action,
            (now_ms - host.state_since_ms) / 1000,
        )
        answer = continue_power(question)
        decision = self.decision(
            DecisionKind.SLEEP if sleeps else DecisionKind.WAKE,
            host,
            answer.why,
            now_ms,
            alternatives=answer.others,
            inputs=rulings.pack(rulings.TAKEOVER, question, answer),
        )
        phase = Phase.ORDERED if answer.verdict == "wake" else Phase.GONE
        step = self.steps[host_id] = Step(self._next(), decision, phase, now_s, action)
        match answer.verdict:
            case "wake":
                return [TellDecision(decision), OrderWake(host_id, step.step_id)]
            case "order down":
                return [TellDecision(decision), *self._order_sleep(host, step, now_s)]
            case "look":
                return [TellDecision(decision)]
            case _:
                assert_never(answer.verdict)

    def time_step(self, host_id: str, step: Step, now_s: float, now_ms: int) -> list[EnergyEffect]:
        """What the time that went by means for one host."""
        host = self.registry.hosts[host_id]
        waited_s = now_s - step.since_s
        match step.phase:
            case Phase.RECORDING | Phase.ORDERED:
                return []
            case Phase.UNSURE:
                if not host.joined:
                    step.phase, step.since_s = Phase.GONE, now_s
                    return []
                if waited_s < UNSURE_S:
                    return []
                if step.orders >= MAX_SLEEP_ORDERS:
                    return self._stays_up(host, step, "it does not say", now_s, now_ms)
                return self._order_sleep(host, step, now_s)
            case Phase.GONE:
                if step.action not in POWERS_OFF:
                    return self._asleep(host, step, now_s, now_ms)
                if waited_s >= self.policy.down_timeout_s:
                    if step.seen_on:
                        why = f"its controller calls it on {waited_s:.0f} s after it left"
                        return self._failed(host, step, why, now_s, now_ms)
                    return self._asleep(host, step, now_s, now_ms)
                if step.is_looking or now_s - step.looked_s < LOOK_S:
                    return []
                step.looked_s, step.is_looking = now_s, True
                return [LookAtPower(host_id, step.step_id)]
            case Phase.COMING:
                if now_s < step.repeats_until_s and now_s - step.ordered_s >= REPEAT_S:
                    step.ordered_s = now_s
                    return [OrderWake(host_id, step.step_id)]
                if waited_s < self.policy.wake_timeout_s:
                    return []
                step.last_error = f"it did not join within {waited_s:.0f} s"
                return self._try_again(host, step, now_s, now_ms)
            case Phase.RETRYING:
                if waited_s < RETRY_S:
                    return []
                since_s = step.put_off_s
                if since_s is not None and now_s - since_s < self.policy.wake_timeout_s:
                    return self._record_try(host, step, now_s)
                return self._try_again(host, step, now_s, now_ms)
            case _:
                assert_never(step.phase)

    # ------------------------------------------------------------ sleep

    def begin_sleep(
        self, host: HostEntry, decision: Decision, now_s: float, now_ms: int
    ) -> list[EnergyEffect]:
        """Have the record say that it goes down; the order follows."""
        host_id = host.description.host_id
        action = action_for(self.policy, host)
        step = Step(self._next(), decision, Phase.RECORDING, now_s, action)
        self.steps[host_id] = step
        self._enter(host, HostPower.GOING_DOWN, decision.reason, now_ms)
        return [TellDecision(decision), RecordStep(host_id, step.step_id)]

    def _order_sleep(self, host: HostEntry, step: Step, now_s: float) -> list[EnergyEffect]:
        step.phase, step.since_s = Phase.ORDERED, now_s
        step.orders += 1
        host_id, cause = host.description.host_id, step.decision.decision_id
        return [OrderSleep(host_id, step.step_id, host.manager_id, step.action, cause)]

    def sleep_answered(self, event: SleepAnswered, now_s: float) -> list[EnergyEffect]:
        """Its manager says what came of the order to sleep."""
        step = self._step(event.host_id, event.step_id, Phase.ORDERED)
        if step is None:
            return []
        host = self.registry.hosts[event.host_id]
        if event.error is None:
            step.phase, step.since_s, step.obeyed = Phase.GONE, now_s, True
            return self.time_step(event.host_id, step, now_s, event.now_ms)
        if event.unknown:
            step.phase, step.since_s = Phase.UNSURE, now_s
            return []
        return self._stays_up(host, step, event.error.message, now_s, event.now_ms)

    def _stays_up(
        self, host: HostEntry, step: Step, why: str, now_s: float, now_ms: int
    ) -> list[EnergyEffect]:
        """It did not go, and serves on."""
        host_id = host.description.host_id
        del self.steps[host_id]
        self.left_alone[host_id] = now_s + LEFT_ALONE_S
        self.wake_after.pop(host_id, None)
        self._enter(host, HostPower.ACTIVE, f"stays up: {why}", now_ms)
        return [
            RecordStep(host_id),
            *ended(step.decision, DecisionState.REFUSED, f"it stays up: {why}", now_ms),
            self._announce("host.stays", host, f"stays up: {why}", step),
        ]

    def power_seen(self, event: PowerSeen, now_s: float) -> list[EnergyEffect]:
        """Its power controller says whether it is off."""
        step = self._step(event.host_id, event.step_id, Phase.GONE)
        if step is None:
            return []
        host = self.registry.hosts[event.host_id]
        step.is_looking = False
        step.obeyed = step.obeyed or event.is_off is True
        if event.is_off or (event.is_off is None and not event.silent):
            step.seen_off = event.is_off is True
            return self._asleep(host, step, now_s, event.now_ms)
        step.seen_on = event.is_off is False
        return []

    def _asleep(self, host: HostEntry, step: Step, now_s: float, now_ms: int) -> list[EnergyEffect]:
        host_id = host.description.host_id
        del self.steps[host_id]
        if not step.seen_off:
            self.unproven[host_id] = step.since_s + self.policy.down_timeout_s
        if step.obeyed:
            # Nothing was on it, and nothing can have come since: the next leader is to know, too.
            host.reachable_s, host.in_record, host.away = -math.inf, False, True
        self._enter(host, HostPower.ASLEEP, step.decision.reason, now_ms)
        effects: list[EnergyEffect] = [
            RecordStep(host_id),
            *ended(
                step.decision,
                DecisionState.DONE,
                f"{host.description.hostname} is asleep ({step.action})",
                now_ms,
            ),
            self._announce("host.asleep", host, f"sleeps ({step.action})", step),
        ]
        if host_id in self.wake_after:
            why = self.wake_after.pop(host_id)
            wake = self.decision(
                DecisionKind.WAKE,
                host,
                why.reason,
                now_ms,
                alternatives=why.alternatives,
                inputs=why.inputs,
            )
            effects += self.begin_wake(host, wake, now_s, now_ms)
        return effects

    # ------------------------------------------------------------ waking

    def begin_wake(
        self, host: HostEntry, decision: Decision, now_s: float, now_ms: int
    ) -> list[EnergyEffect]:
        """Have the record say that it is woken; the order follows."""
        host_id = host.description.host_id
        step = Step(self._next(), decision, Phase.RECORDING, now_s)
        self.steps[host_id] = step
        step.repeats_until_s = self.unproven.pop(host_id, -math.inf)
        self._enter(host, HostPower.WAKING, decision.reason, now_ms)
        return [
            TellDecision(decision),
            RecordStep(host_id, step.step_id),
            self._announce("host.waking", host, f"is woken: {decision.reason}", step),
        ]

    def wake_answered(self, event: WakeAnswered, now_s: float) -> list[EnergyEffect]:
        """Its power controller took the order to wake, or did not."""
        step = self._step(event.host_id, event.step_id, Phase.ORDERED)
        if step is None:
            return []
        step.since_s = now_s
        error = event.error
        if error is None or error.code != TooBusy.code:
            step.put_off_s = None
        elif step.put_off_s is None:
            step.put_off_s = now_s
        if error is None:
            step.phase = Phase.COMING
        else:
            step.phase, step.last_error = Phase.RETRYING, error.message
        return []

    def _try_again(
        self, host: HostEntry, step: Step, now_s: float, now_ms: int
    ) -> list[EnergyEffect]:
        host.tries += 1
        if host.tries >= self.policy.wake_tries:
            return self._failed(host, step, step.last_error, now_s, now_ms)
        step.put_off_s = None
        return self._record_try(host, step, now_s)

    def _record_try(self, host: HostEntry, step: Step, now_s: float) -> list[EnergyEffect]:
        step.phase, step.since_s = Phase.RECORDING, now_s
        host.note = f"try {host.tries + 1}: {step.last_error}"
        return [RecordStep(host.description.host_id, step.step_id)]

    def _failed(
        self, host: HostEntry, step: Step, why: str, now_s: float, now_ms: int
    ) -> list[EnergyEffect]:
        """It neither sleeps nor wakes as it is told: a person has to see to it."""
        host_id = host.description.host_id
        del self.steps[host_id]
        self.wake_after.pop(host_id, None)
        tries = host.tries
        self._enter(host, HostPower.FAILED, why, now_ms)
        host.tries = tries
        for vm in self.registry.vms.lacking.values():
            if vm.waits_for == host_id:
                vm.waits_for, vm.wake_failed = None, True
        return [
            RecordStep(host_id),
            *ended(step.decision, DecisionState.FAILED, why, now_ms),
            self._announce("host.power_failed", host, f"failed: {why}", step),
        ]

    def went(self, event: HostWent, now_s: float) -> None:
        """A host's link closed: one that did not answer the order to sleep has obeyed it."""
        step = self.steps.get(event.host_id)
        if step is not None and step.phase is Phase.UNSURE:
            step.phase, step.since_s = Phase.GONE, now_s

    def seen(self, host_id: str, now_s: float, now_ms: int) -> list[EnergyEffect]:
        """A host joined (rule 6)."""
        host = self.registry.hosts.get(host_id)
        if host is None:
            return []
        step = self.steps.get(host_id)
        match host.state:
            case HostPower.ACTIVE | HostPower.FENCED:
                return []
            case HostPower.GOING_DOWN:
                if step is None or step.phase is not Phase.GONE:
                    return []
                return self._stays_up(host, step, "it joined again", now_s, now_ms)
            case HostPower.WAKING | HostPower.ASLEEP | HostPower.FAILED:
                was = host.state
                self.steps.pop(host_id, None)
                took_s = max(0.0, (now_ms - host.state_since_ms) / 1000)
                note = "" if was is HostPower.WAKING else "switched on by hand"
                self._enter(host, HostPower.ACTIVE, note, now_ms)
                effects: list[EnergyEffect] = [RecordStep(host_id)]
                if step is not None:
                    if 0 < took_s <= MAX_WAKE_S:
                        self.wake_times_s[host_id] = took_s
                    outcome = f"it joined after {took_s:.1f} s"
                    done = f"{host.description.hostname}: {outcome}"
                    effects += ended(step.decision, DecisionState.DONE, done, now_ms)
                    effects.append(self._announce("host.awake", host, f"is up: {outcome}", step))
                return effects
            case _:
                assert_never(host.state)

    def recorded(self, event: StepRecorded, now_s: float) -> list[EnergyEffect]:
        """The record says so: now it is ordered."""
        step = self._step(event.host_id, event.step_id, Phase.RECORDING)
        if step is None:
            return []
        host = self.registry.hosts[event.host_id]
        going_down = host.state is HostPower.GOING_DOWN
        if event.error is not None:
            del self.steps[event.host_id]
            before = HostPower.ACTIVE if going_down else HostPower.ASLEEP
            why = f"not recorded: {event.error.message}"
            self._enter(host, before, why, event.now_ms)
            return ended(step.decision, DecisionState.FAILED, why, event.now_ms)
        if not going_down:
            step.phase, step.since_s, step.ordered_s = Phase.ORDERED, now_s, now_s
            return [OrderWake(event.host_id, step.step_id)]
        why = "" if host.joined else "it left before it was asked to"
        vm = next(self.registry.vms_of_host(event.host_id), None)
        if vm is not None:
            why = f"VM {vm.name} came"
        if why:
            return self._stays_up(host, step, why, now_s, event.now_ms)
        return self._order_sleep(host, step, now_s)

    # ------------------------------------------------------------ what all share

    def decision(
        self,
        kind: DecisionKind,
        host: HostEntry,
        reason: str,
        now_ms: int,
        mode: DecisionMode = DecisionMode.AUTO,
        alternatives: tuple[str, ...] = (),
        inputs: bytes = b"",
    ) -> Decision:
        """A decision about a host, told under an id of its own.

        The id is a digest, so that its first digits tell it from others.
        """
        self.count += 1
        text = f"{self.decider}:{self.epoch}:{now_ms}:{self.count}"
        name = host.description.hostname
        verb = f"{action_for(self.policy, host)}" if kind is DecisionKind.SLEEP else "wake"
        return Decision(
            decision_id=hashlib.sha256(text.encode()).hexdigest()[:32],
            at_ms=now_ms,
            kind=kind,
            mode=mode,
            decider=self.decider,
            reason=reason,
            subjects=(host.description.host_id,),
            actions=(f"{verb.replace('_', ' ')} {name}",),
            alternatives=alternatives,
            inputs=inputs,
        )

    def forget_old(self, now_s: float) -> None:
        """Hosts that were left alone for long enough may be asked again."""
        self.left_alone = {h: until for h, until in self.left_alone.items() if until > now_s}

    def _next(self) -> int:
        self.count += 1
        return self.count

    def _step(self, host_id: str, step_id: int, phase: Phase) -> Step | None:
        """The step that an answer belongs to; None if it is over, or further than that."""
        step = self.steps.get(host_id)
        if step is None or step.step_id != step_id or step.phase is not phase:
            return None
        return step

    def _enter(self, host: HostEntry, state: HostPower, note: str, now_ms: int) -> None:
        host.state, host.state_since_ms, host.tries, host.note = state, now_ms, 0, note

    def _announce(self, kind: str, host: HostEntry, what: str, step: Step) -> Announce:
        message = f"host {host.description.hostname} {what}"
        return Announce(kind, host.description.host_id, message, step.decision.decision_id)


def ended(
    decision: Decision, state: DecisionState, outcome: str, now_ms: int
) -> list[EnergyEffect]:
    """Tell how a decision ended."""
    done = msgspec.structs.replace(decision, state=state, outcome=outcome, ended_ms=now_ms)
    return [TellDecision(done)]


def words(state: HostPower) -> str:
    """The state for people."""
    return state.value.replace("_", " ")

"""Which lost hosts are proven down, and what a host that comes back must do first.

Rules:

1. A host that is away is *suspect* once it has been silent for ``fence_after_s``; or for
   ``patience_s`` if its link was closed rather than silent (its machine is alive: an agent or a
   manager went), or if a new leader has not heard of it yet. Hosts that were sent to sleep are not
   watched, nor are hosts without a VM to bring back.
2. It is *proven down* by one of three:

   * ``bmc``: its power controller, asked after it was lost, read as off. It is asked at
     ``fence_after_s``; a suspect that is on is ordered off and read again. Already off counts. A
     controller that is silent or refuses proves nothing: it is asked again, after pauses that
     double. An answer to a question that is older than the host's last sign of life is not heard.
   * ``lease``: it fences its highly available VMs by itself (``lease_s`` > 0), and nobody below
     this leader can have renewed its lease for ``lease_s + its own lease_s + margin_s``. That is
     proof for highly available VMs only.
   * ``person``: somebody said so.

3. While a host is being switched off it gets no manager (``fencing``).
4. If more than ``storm_share`` of the hosts are away at once, at least ``STORM_HOSTS``, it is more
   likely that we are cut off: none is switched off, only asked, until fewer are. Hosts that were
   proven off, or that failed to wake, went before and for a reason: they are no sign of it.
5. A host that was proven off by its controller is ``FENCED``; that is recorded, and then it is
   switched on again, once. One that is switched off while it boots, a new leader has not seen it
   yet, is switched on again after that; at most ``SWITCHED_ON`` times until it has joined.
6. A host that joins is told, before it may take a VM or hold a lease, which domains are stale:
   those whose VM is known on another host, or under way to one, or gone; and again when that
   changes.

Invariant: ``down`` of a host is set only while it is away, and only by a proof of rule 2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

import msgspec

from snooze.common.decisions import DecisionKind, DecisionState
from snooze.common.errors import ErrorReport
from snooze.common.records import HostPower
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import FailureAction
from snooze.common.wire import HostDirective, StaleCopy, VmMoved, VmStuck
from snooze.groupmanager.leader.membership_core import Announce, RecordHost
from snooze.groupmanager.leader.recovery_events import (
    AnswerPerson,
    AskPower,
    ConfirmDead,
    Direct,
    DirectiveLost,
    HostHeard,
    HostProven,
    PowerAnswered,
    PowerOutcome,
    RecoveryEffect,
    RecoveryEvent,
    Redirect,
    SwitchOn,
    Ticked,
)
from snooze.groupmanager.leader.registry import Down, HostEntry, Registry, VmEntry
from snooze.groupmanager.leader.submission_events import Decided
from snooze.scheduling import rulings
from snooze.scheduling.recovery_question import FenceQuestion, Ruling, is_storm, judge_fence

MOVED_S: Final = 86_400.0
"""A move longer ago than this says nothing to anybody."""
LOOK_S: Final = 1.0
"""How often it is looked anew which lost hosts have VMs to bring back."""
PAUSE_MIN_S: Final = 2.0
PAUSE_MAX_S: Final = 60.0
"""Pauses between two questions to a power controller that did not help."""

_ASLEEP = frozenset({HostPower.GOING_DOWN, HostPower.ASLEEP, HostPower.WAKING})
_OUT_OF_USE = _ASLEEP | {HostPower.FAILED}
_GONE_BEFORE = frozenset({HostPower.FAILED, HostPower.FENCED})
_OFF = frozenset({VmState.STOPPED, VmState.FAILED, VmState.STOPPING, VmState.DESTROYING})


@dataclass(slots=True)
class Watch:
    """A lost host under watch.

    ``attempt`` numbers the questions to its controller; ``open``: the one under way has not been
    answered; ``off``: that one orders it off. ``seen_s``: the host's last sign of life when asked.
    """

    attempt: int = 0
    open: bool = False
    off: bool = False
    seen_s: float = 0.0
    tries: int = 0
    next_s: float = 0.0
    told: str = ""


SWITCHED_ON: Final = 3
"""Who fails to join after that many times has to be looked at by a person."""


def _describes_power(host: HostEntry) -> bool:
    return bool(host.description.power.driver)


@dataclass(slots=True)
class RecoveryCore:
    """Decides about lost hosts and those that come back; see the module's rules.

    ``is_controllable``: whether there is a power controller to ask about a host; ``may_fence``:
    whether a host may be ordered off by itself now. One that may not is still asked about.
    """

    registry: Registry
    started_s: float
    lease_s: float = 30.0
    margin_s: float = 10.0
    fence_after_s: float = 1.0
    patience_s: float = 30.0
    storm_share: float = 0.5
    reboot_fenced: bool = True
    is_controllable: Callable[[HostEntry], bool] = _describes_power
    may_fence: Callable[[HostEntry], bool] = lambda host: True
    watches: dict[str, Watch] = field(default_factory=dict[str, Watch])
    directed: dict[str, HostDirective] = field(default_factory=dict[str, HostDirective])
    untold: set[str] = field(default_factory=set[str])
    needy: frozenset[str] = frozenset()
    looked_s: float = -1e18
    holds: bool = False
    away: int = 0
    hosts: int = 0
    now_ms: int = 0

    def handle(self, event: RecoveryEvent, now_s: float) -> list[RecoveryEffect]:
        """Take in one event."""
        match event:
            case Ticked():
                return self._ticked(event, now_s)
            case PowerAnswered():
                return self._power_answered(event, now_s)
            case ConfirmDead():
                return self._confirmed(event, now_s)
            case HostHeard():
                return self._heard(event)
            case DirectiveLost():
                self.untold |= set(event.host_ids)
                return []
            case Redirect():
                return self._direct([event.host_id])
            case _:
                assert_never(event)

    # ------------------------------------------------------------ suspects

    def _ticked(self, event: Ticked, now_s: float) -> list[RecoveryEffect]:
        self.now_ms = event.now_ms
        hosts = self.registry.hosts
        lost = [host for host in hosts.away(but=_ASLEEP) if host.down is not Down.EVERYTHING]
        for host_id in [i for i in self.watches if i not in hosts or hosts[i].joined]:
            del self.watches[host_id]
        effects = self._redirect()
        if not lost:
            self.holds = False
            return effects
        if now_s - self.looked_s >= LOOK_S:
            self.looked_s = now_s
            self.needy = self._look({host.description.host_id for host in lost})
        effects += self._hold_in_storm(sum(host.state not in _GONE_BEFORE for host in lost))
        for host in lost:
            if host.description.host_id in self.needy:
                effects += self._watch(host, event.now_ms, now_s)
        return effects

    def _look(self, host_ids: set[str]) -> frozenset[str]:
        """Which of these hosts have a VM that is to be brought back."""
        return frozenset(
            host_id
            for host_id in host_ids
            if any(vm.managed and self._is_wanted(vm) for vm in self.registry.vms_of_host(host_id))
        )

    def _is_wanted(self, vm: VmEntry) -> bool:
        if vm.was in _OFF:
            return False
        if vm.was in {VmState.PENDING, VmState.STARTING}:
            return True
        match vm.policy.on_host_failure:
            case FailureAction.RESTART:
                return True
            case FailureAction.ASK:
                return self.registry.hosts[vm.host_id].state is not HostPower.FENCED
            case FailureAction.LEAVE:
                return False

    def _hold_in_storm(self, lost: int) -> list[RecoveryEffect]:
        total = len(self.registry.hosts) - self.registry.hosts.count_in(_OUT_OF_USE)
        self.away, self.hosts = lost, total
        holds = is_storm(lost, total, self.storm_share)
        changed, self.holds = holds is not self.holds, holds
        if not changed or not holds:
            return []
        return [
            Announce(
                "recovery.held",
                "hosts",
                f"{lost} of {total} hosts are away at once: none is switched off until fewer are "
                "(recovery.storm_share)",
            )
        ]

    def _watch(self, host: HostEntry, now_ms: int, now_s: float) -> list[RecoveryEffect]:
        host_id = host.description.host_id
        watch = self.watches.setdefault(host_id, Watch())
        effects: list[RecoveryEffect] = []
        question = self._question(host, watch, now_s)
        ruling = judge_fence(question)
        if ruling.verdict == "down":
            effects += self._prove(host, Down.FENCED, question, ruling, now_ms)
            question = msgspec.structs.replace(question, fenced=True)
            ruling = judge_fence(question)
        if watch.open or now_s < watch.next_s or ruling.verdict == "wait":
            return effects
        off = ruling.verdict == "off"
        watch.attempt += 1
        watch.open, watch.off, watch.seen_s = True, off, host.seen_s
        host.fencing = off
        if off:
            effects.append(
                Decided(
                    _key(host),
                    DecisionKind.FENCE,
                    DecisionState.RUNNING,
                    (host_id,),
                    ruling.why,
                    (f"switch {host.description.hostname} off and read its state back",),
                    ruling.others,
                    inputs=rulings.pack(rulings.FENCE, question, ruling),
                )
            )
        return [*effects, AskPower(host_id, watch.attempt, off)]

    def _question(self, host: HostEntry, watch: Watch, now_s: float) -> FenceQuestion:
        """What there is to say about a lost host (rules 1 to 4)."""
        return FenceQuestion(
            host.description.hostname,
            now_s - max(host.seen_s, self.started_s),
            host.silent,
            self.away,
            self.hosts,
            self.fence_after_s,
            self.patience_s,
            self.storm_share,
            self.lease_s,
            self.margin_s,
            host.description.lease_s,
            self.may_fence(host),
            self.is_controllable(host),
            watch.tries,
            fenced=host.down is not None,
        )

    def waits_for(self, host: HostEntry, now_s: float) -> str:
        """What is known of a lost host and would prove it down; empty if it is not watched."""
        watch = self.watches.get(host.description.host_id)
        if watch is None or host.joined or host.down is Down.EVERYTHING:
            return ""
        question = self._question(host, watch, now_s)
        proofs: list[str] = []
        if question.controlled:
            proofs.append("its power controller to read off")
        if question.own_lease_s > 0 and not question.fenced:
            due_s = question.lease_s + question.own_lease_s + question.margin_s - question.away_s
            proofs.append(f"its lease to run out ({max(0.0, due_s):.0f} s)")
        proofs.append(f"a person: snooze host confirm-dead {question.host}")
        known = watch.told or judge_fence(question).why
        return f"{known}; its VMs wait for {', or '.join(proofs)}"

    def _power_answered(self, event: PowerAnswered, now_s: float) -> list[RecoveryEffect]:
        host, watch = self.registry.hosts.get(event.host_id), self.watches.get(event.host_id)
        if host is None or watch is None or watch.attempt != event.attempt or not watch.open:
            if host is not None and watch is None:
                host.fencing = False
            return []
        watch.open, host.fencing = False, False
        if host.joined or host.seen_s != watch.seen_s:
            return []  # it has shown life since it was asked about
        if event.outcome is PowerOutcome.OFF:
            question = msgspec.structs.replace(self._question(host, watch, now_s), reads_off=True)
            return self._prove(host, Down.EVERYTHING, question, judge_fence(question), event.now_ms)
        watch.tries += 1
        first = event.outcome is PowerOutcome.ON and not watch.off
        pause_s = 0.0 if first else min(PAUSE_MAX_S, PAUSE_MIN_S * 2.0 ** min(watch.tries - 1, 10))
        watch.next_s = now_s + pause_s
        if not watch.off and event.outcome is not PowerOutcome.ON:
            watch.tries = 0  # it is asked again until it says something
        name = host.description.hostname
        said = {
            PowerOutcome.ON: "is on",
            PowerOutcome.REFUSED: "cannot be switched off",
            PowerOutcome.SILENT: "has a power controller that does not answer: that proves nothing",
            PowerOutcome.OFF: "is off",
        }[event.outcome]
        note = f"host {name} {said}" + (f" ({event.message})" if event.message else "")
        if note == watch.told:
            return []
        watch.told = note
        effects: list[RecoveryEffect] = [Announce("host.suspect", event.host_id, note)]
        if watch.off:
            effects.append(
                Decided(
                    _key(host),
                    DecisionKind.FENCE,
                    DecisionState.RUNNING,
                    (event.host_id,),
                    outcome=note,
                )
            )
        return effects

    def _confirmed(self, event: ConfirmDead, now_s: float) -> list[RecoveryEffect]:
        host = self.registry.hosts.get(event.host_id)
        if host is None or host.joined:
            name = host.description.hostname if host is not None else event.host_id
            error = ErrorReport("conflict", f"host {name} is in reach: it is not dead")
            return [AnswerPerson(event.request_id, error)]
        watch = self.watches.get(event.host_id, Watch())
        question = msgspec.structs.replace(self._question(host, watch, now_s), confirmed=True)
        effects = self._prove(host, Down.EVERYTHING, question, judge_fence(question), event.now_ms)
        return [*effects, AnswerPerson(event.request_id)]

    def _prove(
        self,
        host: HostEntry,
        down: Down,
        question: FenceQuestion,
        ruling: Ruling,
        now_ms: int,
    ) -> list[RecoveryEffect]:
        """Rule 2 holds: whatever was there may be started elsewhere."""
        host_id, name = host.description.host_id, host.description.hostname
        why, proof = ruling.why, ruling.proof
        host.down, host.fencing = down, False
        effects: list[RecoveryEffect] = []
        if down is Down.EVERYTHING:
            watch = self.watches.get(host_id)
            first = host.state is not HostPower.FENCED
            again = watch is not None and watch.off and host.tries < SWITCHED_ON
            host.state, host.state_since_ms, host.note = HostPower.FENCED, now_ms, why
            if proof == "bmc" and (first or again) and self.reboot_fenced:
                host.tries = 1 if first else host.tries + 1
                effects.append(SwitchOn(host_id))
            else:
                effects.append(RecordHost(host.record()))
        effects.append(Announce("host.down", host_id, f"host {name} is down: {why}"))
        effects.append(
            Decided(
                _key(host),
                DecisionKind.FENCE,
                DecisionState.DONE,
                (host_id,),
                f"host {name} is lost",
                (f"take {name} for down, so that its VMs may be started elsewhere",),
                ruling.others,
                f"proven down: {why}",
                more=rulings.pack(rulings.FENCE, question, ruling),
            )
        )
        return [*effects, HostProven(host_id, proof)]

    # ------------------------------------------------------------ hosts that come back

    def _heard(self, event: HostHeard) -> list[RecoveryEffect]:
        """Hosts joined a manager, and what they have was reported: tell each what is true of it."""
        self.now_ms = event.now_ms
        effects: list[RecoveryEffect] = []
        for host_id in event.host_ids:
            host = self.registry.hosts.get(host_id)
            if host is None or not host.joined or host.manager_id != event.manager_id:
                continue
            if host.state is HostPower.FENCED:
                host.state, host.state_since_ms = HostPower.ACTIVE, event.now_ms
                host.tries, host.note = 0, ""
                effects.append(RecordHost(host.record()))
        return effects + self._direct(event.host_ids)

    def _redirect(self) -> list[RecoveryEffect]:
        """Directives that were lost, and those that changed."""
        changed = self.untold
        self.untold = set()
        for host_id in self.registry.copies:
            told = self.directed.get(host_id)
            if told is not None and told.stale != self._stale(host_id):
                changed.add(host_id)
        return self._direct(sorted(changed)) if changed else []

    def _direct(self, host_ids: Sequence[str]) -> list[RecoveryEffect]:
        by_manager: dict[str, list[HostDirective]] = {}
        for host_id in host_ids:
            host = self.registry.hosts.get(host_id)
            if host is None or not host.joined or host.manager_id not in self.registry.managers:
                continue
            directive = HostDirective(
                host_id,
                host.epoch,
                self._stale(host_id),
                not host.maintenance,
                self._moved(host_id),
                self._stuck(host_id),
                (self.now_ms - host.relieved_ms) / 1000 if host.relieved_ms else None,
            )
            self.directed[host_id] = directive
            by_manager.setdefault(host.manager_id, []).append(directive)
        return [Direct(manager, directives) for manager, directives in by_manager.items()]

    def _moved(self, host_id: str) -> tuple[VmMoved, ...]:
        """The VMs of a host that moved to it of late, for a manager that may not have seen it."""
        since_ms = self.now_ms - round(MOVED_S * 1000)
        return tuple(
            VmMoved(vm.vm_id, vm.left, max(0.0, (self.now_ms - vm.moved_ms) / 1000))
            for vm in self.registry.vms_of_host(host_id)
            if vm.left and vm.moved_ms > since_ms
        )

    def _stuck(self, host_id: str) -> tuple[VmStuck, ...]:
        """The VMs of a host that could not be moved of late."""
        since_ms = self.now_ms - round(MOVED_S * 1000)
        return tuple(
            VmStuck(vm.vm_id, max(0.0, (self.now_ms - vm.stuck_ms) / 1000))
            for vm in self.registry.vms_of_host(host_id)
            if vm.stuck_ms > since_ms
        )

    def _stale(self, host_id: str) -> tuple[StaleCopy, ...]:
        """The copies on this host that must go."""
        found: list[StaleCopy] = []
        for vm_id, status in sorted(self.registry.copies.get(host_id, {}).items()):
            vm = self.registry.vms.get(vm_id)
            if vm is None and status.generation <= self.registry.graves.get(vm_id, 0):
                found.append(StaleCopy(vm_id, status.generation))
            if vm is None or (vm.host_id in {"", host_id} and not vm.doubt):
                continue
            # Of one generation one guest runs at most: if this one does, what we know is old.
            # Of two that a migration left paused either is the whole guest.
            same = status.generation == vm.generation
            home = self.registry.hosts.get(vm.host_id)
            runs = vm.heard and vm.state is VmState.RUNNING
            waits = vm.state is VmState.PAUSED and home is not None and home.joined
            only_off = same and not (
                status.state is VmState.PAUSED and (runs or (waits and vm.heard))
            )
            found.append(StaleCopy(vm_id, status.generation, only_off))
        return tuple(found)


def _key(host: HostEntry) -> str:
    return f"fence:{host.description.host_id}"

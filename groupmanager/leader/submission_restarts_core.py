"""VMs whose host is proven down: restarted elsewhere, or kept for a person, as their policy says.

::

    plan        what is true                                   next
    none        the VM is somewhere, or waits for its host     wanted
    wanted      its host is down; somebody else may have it    recording, once nobody can have it
    recording   its next generation is being written           placing; wanted, if that failed
    placing     a manager is asked, or none has room           none, once it runs; wanted, if its
                                                               start failed or is not known

Rules:

1. Nothing is done before ``HostDown``: the proof is ``recovery_core.py``'s. A VM whose migration
   was under way waits besides until its manager has said where it is, or no longer sees to it and
   every host has looked twice; and until no other host that is away may run it.
2. The next generation is above any recorded one. It is recorded, with no host, before any manager
   is asked; what died in between is taken up by the next leader. The host or manager that its
   submission named is where a VM starts first: one that has run is restarted on any host.
3. ``RESTART``: at most ``max_restarts`` within the window, then a person has to ask. ``ASK``: a
   person has to ask. ``LEAVE``: it waits for its host. A VM that was off stays so. One that its
   submission still waits for is placed anew, whatever its policy.
4. Highest priority first, then lowest start order; a VM waits until those of its virtual cluster
   with a lower order run, at most ``ORDER_WAIT_S``.
5. A VM for which there is no room waits, says why, and is tried again with pauses that double.
6. A VM that its host brings back switched off, by its host's end or fence and nobody's wish, is
   started where it is, unless its policy is ``ASK``. The record says meanwhile that it runs.

Invariant: a VM with a plan from ``recording`` on is on no host that anybody knows of.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from snooze.common.decisions import DecisionKind, DecisionState
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmState
from snooze.common.vms import VmErrorCode
from snooze.common.wire import VmStatus
from snooze.groupmanager.leader.registry import HostEntry, Plan, VmEntry
from snooze.groupmanager.leader.submission_events import (
    Decided,
    HostDown,
    RecordRestarts,
    RestartAsked,
    RestartsNotWritten,
    RestartsWritten,
    StartEnded,
    StartThere,
    SubmissionEffect,
    UpdateRecords,
)
from snooze.groupmanager.leader.submission_halted_core import Halted
from snooze.groupmanager.leader.submission_state_core import (
    LONG_AGO,
    LOST_AFTER_S,
    announce,
)
from snooze.groupmanager.leader.vm_views import record_of
from snooze.groupmanager.leader.whereabouts import away, may_be_on, suspect
from snooze.scheduling import rulings
from snooze.scheduling.recovery_question import RestartQuestion, judge_restart

ORDER_WAIT_S: Final = 60.0
"""How long a VM waits for those of its virtual cluster that come first."""
PAUSE_MIN_S: Final = 1.0
PAUSE_MAX_S: Final = 30.0
"""Pauses between two tries to place or start a VM again."""
MAX_KEPT: Final = 16
"""Times of restarts that are kept of one VM."""

_OFF = frozenset({VmState.STOPPED, VmState.FAILED, VmState.STOPPING, VmState.DESTROYING})
"""A VM in these states was off, or about to be by somebody's wish, when its host was lost."""


@dataclass(slots=True)
class Restarts(Halted):
    """The part of the submission core that brings VMs back."""

    restart_window_ms: int = 3_600_000
    may_restart: Callable[[VmEntry], bool] = lambda vm: True
    restarting: set[str] = field(default_factory=set[str])
    pauses: dict[str, float] = field(default_factory=dict[str, float])
    blocked_s: dict[str, float] = field(default_factory=dict[str, float])

    # ------------------------------------------------------------ a host is down

    def _host_down(self, event: HostDown, now_s: float) -> list[SubmissionEffect]:
        host = self.registry.hosts.get(event.host_id)
        if host is None or host.joined:
            return []
        effects: list[SubmissionEffect] = []
        for vm in list(self.registry.vms_of_host(event.host_id)):
            if not vm.managed or not host.is_off_for(vm):
                continue
            if vm.plan is Plan.NONE:
                effects += self._lost(vm, host, event, now_s)
            elif vm.plan is Plan.PLACING:  # it was being started on just this host
                vm.plan, vm.retry_s = Plan.WANTED, now_s
        return effects + self._restart_due(now_s, event.now_ms)

    def _lost(
        self, vm: VmEntry, host: HostEntry, event: HostDown, now_s: float
    ) -> list[SubmissionEffect]:
        """Decide what becomes of a VM that was on the host."""
        question = msgspec.structs.replace(
            self._about(vm, event.now_ms),
            host=host.description.hostname,
            proof=event.proof,
            awaited=self.is_awaited(vm),
            was_off=vm.was in _OFF,
            may_restart=self.may_restart(vm),
        )
        ruling = judge_restart(question)
        if ruling.verdict == "restart":
            return self._want(vm, question, now_s)
        vm.asks = vm.asks or ruling.verdict == "ask"
        return self._keep(vm, ruling.why)

    def _about(
        self,
        vm: VmEntry,
        now_ms: int,
        *,
        asked: bool = False,
        begun: bool = False,
        suspect: bool = False,
    ) -> RestartQuestion:
        """What there is to say about a VM, wherever it is."""
        host = self.registry.hosts.get(vm.host_id)
        return RestartQuestion(
            vm.name,
            host.description.hostname if host is not None else vm.host_id,
            "",
            vm.policy.on_host_failure.value,
            len(self._recent(vm, now_ms)),
            vm.policy.max_restarts,
            asked=asked,
            begun=begun,
            suspect=suspect,
        )

    def _recent(self, vm: VmEntry, now_ms: int) -> tuple[int, ...]:
        return tuple(at for at in vm.restarts_ms if now_ms - at < self.restart_window_ms)

    def _want(self, vm: VmEntry, question: RestartQuestion, now_s: float) -> list[SubmissionEffect]:
        """Have a VM restarted, which is what is answered to the question."""
        ruling = judge_restart(question)
        vm.plan, vm.retry_s, vm.reason = Plan.WANTED, now_s, ruling.why
        vm.asks = vm.revives = False
        self.restarting.add(vm.vm_id)
        self.pauses.pop(vm.vm_id, None)
        decided = Decided(
            _key(vm),
            DecisionKind.RESTART,
            DecisionState.RUNNING,
            (vm.vm_id,),
            f"{vm.name}: {ruling.why}",
            (f"start {vm.name} on another host",),
            ruling.others,
            inputs=rulings.pack(rulings.RESTART, question, ruling),
        )
        return [decided]

    def take_up(self, vm: VmEntry) -> None:
        """What a former leader's record says of a restart that was ordered.

        A VM is recorded out of sight only on a host that was never heard to have it (rule 7 of
        ``submission_core.py``): should it not be there, its restart goes on. One that is recorded
        as failed and nowhere was given up, when nobody could have it.
        """
        if not vm.restarts_ms:
            return
        if vm.state is VmState.UNREACHABLE:
            vm.plan, vm.was = Plan.PLACING, VmState.RUNNING
            self.restarting.add(vm.vm_id)
        elif vm.state is VmState.FAILED and not vm.host_id:
            vm.error_code, vm.asks, vm.elsewhere_s = VmErrorCode.START_FAILED, True, math.inf
            vm.reason = "its restart on another host failed too often: start it yourself"

    def placed_again(self, vm: VmEntry, inputs: bytes) -> list[SubmissionEffect]:
        """A manager starts the VM: how it and the host were chosen is a part of the decision."""
        dispatched = self.dispatched.pop(vm.vm_id, b"")
        if vm.plan is Plan.NONE:
            return []
        kind, state, more = DecisionKind.RESTART, DecisionState.RUNNING, dispatched + inputs
        return [Decided(_key(vm), kind, state, (vm.vm_id,), more=more)]

    def _keep(self, vm: VmEntry, reason: str) -> list[SubmissionEffect]:
        """Leave a VM as it is: out of sight, on the host it was on; and say why."""
        changed = vm.reason != reason
        vm.reason, vm.state = reason, VmState.UNREACHABLE
        return [announce(self.registry, vm, "")] if changed else []

    def _restart_asked(self, event: RestartAsked, now_s: float) -> list[SubmissionEffect]:
        vm = self.registry.vms.get(event.vm_id)
        if vm is None or vm.plan is not Plan.NONE or self.why_not(vm):
            return []
        question = self._about(vm, event.now_ms, asked=True)
        vm.restarts_ms = ()
        if not self.settled:  # a host that has not spoken yet may have a copy
            vm.elsewhere_s = LONG_AGO
        effects = self._want(vm, question, now_s)
        return effects + self._restart_due(now_s, event.now_ms)

    def why_not(self, vm: VmEntry) -> str:
        """Why a person cannot have this VM started on another host; empty if it is possible."""
        if vm.plan is not Plan.NONE:
            return ""
        if vm.state is VmState.FAILED and not vm.host_id and not vm.doubt:
            return ""
        host = self.registry.hosts.get(vm.host_id)
        if vm.state is not VmState.UNREACHABLE or host is None:
            return f"it is {vm.state.value}"
        if host.is_off_for(vm):
            return ""
        return (
            f"its host {host.description.hostname} does not answer and is not proven to be down: "
            "it may well run there. Once you have switched that host off yourself, say so: "
            f"snooze host confirm-dead {host.description.hostname}"
        )

    # ------------------------------------------------------------ going on

    def _restart_due(self, now_s: float, now_ms: int) -> list[SubmissionEffect]:
        """Let every plan get on as far as it can."""
        if not self.restarting:
            return []
        hosts_away = away(self.registry)
        ready: list[VmEntry] = []
        placing: list[VmEntry] = []
        effects: list[SubmissionEffect] = []
        for vm_id in sorted(self.restarting):
            vm = self.registry.vms.get(vm_id)
            if vm is None or (vm.plan is Plan.NONE and not vm.revives):
                self._forget(vm_id)
            elif now_s < vm.retry_s:
                continue
            elif vm.revives:
                effects += self._revive(vm, now_s)
            elif vm.plan is Plan.WANTED:
                if self._may_be_somewhere(vm, hosts_away, now_s):
                    continue
                running = self._running_copy(vm)
                if running is not None:
                    effects += self.adopt(vm, running, now_s, now_ms)
                else:
                    ready.append(vm)
            elif vm.plan is Plan.PLACING and vm.state is VmState.PENDING:
                if vm.doubt in self.registry.managers:
                    continue
                if vm.elsewhere_s < math.inf or self._running_copy(vm) is not None:
                    vm.plan = Plan.WANTED  # whoever was asked is gone, or has forgotten it
                else:
                    placing.append(vm)
        if ready:
            effects += self._record(_in_turn(ready), now_ms)
        turn = [vm for vm in _in_turn(placing) if not self._is_blocked(vm, now_s)]
        return effects + self.dispatch(turn, now_s, now_ms)

    def _running_copy(self, vm: VmEntry) -> VmStatus | None:
        """A copy on a host in reach whose guest is on: nothing may be started beside it."""
        found = [
            copies[vm.vm_id]
            for host_id, copies in sorted(self.registry.copies.items())
            if vm.vm_id in copies and self.registry.hosts[host_id].joined
        ]
        running = [status for status in found if status.state in HOLDS_CAPACITY]
        return max(running, key=lambda status: status.generation, default=None)

    def _copy_away(self, vm: VmEntry) -> HostEntry | None:
        """A host out of reach that had a copy whose guest was on, and may have it yet."""
        for host_id, copies in sorted(self.registry.copies.items()):
            host = self.registry.hosts[host_id]
            status = copies.get(vm.vm_id)
            if status is None or status.state not in HOLDS_CAPACITY or host.joined:
                continue
            if not host.is_off_for(vm):
                return host
        return None

    def adopt(
        self, vm: VmEntry, status: VmStatus, now_s: float, now_ms: int
    ) -> list[SubmissionEffect]:
        """Take a copy for the VM."""
        raise NotImplementedError

    def _forget(self, vm_id: str) -> None:
        self.restarting.discard(vm_id)
        self.dispatched.pop(vm_id, None)
        self.pauses.pop(vm_id, None)
        self.blocked_s.pop(vm_id, None)

    def _may_be_somewhere(self, vm: VmEntry, hosts_away: Sequence[HostEntry], now_s: float) -> bool:
        """Whether somebody may run the VM; then the first suspect is made its host."""
        if vm.doubt in self.registry.managers:
            return True
        if vm.elsewhere_s == LONG_AGO and not self.settled:
            return True
        if vm.moving:
            if vm.manager_id in self.registry.managers:
                return True
            vm.moving, vm.waits_s = False, now_s
        if vm.host_id:
            host = self.registry.hosts.get(vm.host_id)
            if host is not None and (host.joined or not host.is_off_for(vm)):
                return True
        told = self._copy_away(vm)
        if told is not None or may_be_on(vm, hosts_away):
            host = suspect(vm, hosts_away) if told is None else told
            if host is not None and host.given_up:
                vm.host_id, vm.manager_id = host.description.host_id, host.manager_id
                vm.state, vm.reason = VmState.UNREACHABLE, "it may be on this host, which is away"
            return True
        unsure = vm.elsewhere_s not in {math.inf, LONG_AGO}
        return unsure and vm.was is VmState.MIGRATING and now_s - vm.waits_s < LOST_AFTER_S

    def _record(self, vms: Sequence[VmEntry], now_ms: int) -> list[SubmissionEffect]:
        """Rule 2: first the record."""
        effects: list[SubmissionEffect] = []
        for vm in vms:
            vm.generation = vm.highest = max(vm.generation, vm.highest) + 1
            vm.restarts_ms = (*self._recent(vm, now_ms), now_ms)[-MAX_KEPT:]
            vm.plan, vm.state = Plan.RECORDING, VmState.PENDING
            vm.host_id = vm.manager_id = vm.doubt = ""
            vm.elsewhere_s, vm.recorded, vm.was = math.inf, None, VmState.RUNNING
            if not self.is_awaited(vm):
                vm.pin_host = vm.pin_manager = ""
            vm.tried.clear()
            self.strays.discard(vm.vm_id)
            effects.append(announce(self.registry, vm, ""))
        return [*effects, RecordRestarts([record_of(vm) for vm in vms])]

    def _restarts_written(self, event: RestartsWritten, now_s: float) -> list[SubmissionEffect]:
        for vm_id in event.vm_ids:
            vm = self.registry.vms.get(vm_id)
            if vm is not None and vm.plan is Plan.RECORDING:
                vm.plan, vm.retry_s = Plan.PLACING, now_s
        return self._restart_due(now_s, event.now_ms)

    def _restarts_not_written(
        self, event: RestartsNotWritten, now_s: float
    ) -> list[SubmissionEffect]:
        for vm_id in event.vm_ids:
            vm = self.registry.vms.get(vm_id)
            if vm is not None and vm.plan is Plan.RECORDING:
                vm.plan, vm.reason = Plan.WANTED, f"not recorded: {event.reason}"
                self._pause(vm, now_s)
        return []

    def _is_blocked(self, vm: VmEntry, now_s: float) -> bool:
        """Rule 4: whether another VM of its virtual cluster has to run first."""
        if not vm.virtual_cluster:
            return False
        first = [
            other
            for other_id in self.restarting
            if (other := self.registry.vms.get(other_id)) is not None
            and other.virtual_cluster == vm.virtual_cluster
            and other.policy.start_order < vm.policy.start_order
        ]
        if not first:
            self.blocked_s.pop(vm.vm_id, None)
            return False
        since_s = self.blocked_s.setdefault(vm.vm_id, now_s)
        vm.reason = f"it starts after {first[0].name}, as their start order says"
        return now_s - since_s < ORDER_WAIT_S

    def _pause(self, vm: VmEntry, now_s: float) -> None:
        pause_s = min(PAUSE_MAX_S, 2 * self.pauses.get(vm.vm_id, PAUSE_MIN_S / 2))
        self.pauses[vm.vm_id] = pause_s
        vm.retry_s = now_s + pause_s

    # ------------------------------------------------------------ what comes of it

    def no_room(self, vm: VmEntry, message: str, now_s: float) -> list[SubmissionEffect]:
        """Rule 5: no manager takes the VM now."""
        vm.tried.clear()
        vm.doubt, vm.elsewhere_s = "", math.inf
        reason = f"it waits for room on another host: {message}"
        changed = vm.reason != reason
        vm.reason = reason
        self._pause(vm, now_s)
        return [announce(self.registry, vm, "")] if changed else []

    def restart_failed(
        self, vm: VmEntry, code: VmErrorCode, message: str, now_s: float, now_ms: int
    ) -> list[SubmissionEffect]:
        """The start on another host failed: it counts, and is tried again while it may be."""
        vm.doubt, vm.host_id, vm.manager_id, vm.elsewhere_s = "", "", "", math.inf
        tries = self._recent(vm, now_ms)
        if len(tries) < max(1, vm.policy.max_restarts):
            vm.plan, vm.reason, vm.state = Plan.WANTED, message, VmState.PENDING
            self._pause(vm, now_s)
            return [announce(self.registry, vm, "")]
        vm.plan, vm.state, vm.error_code, vm.asks = Plan.NONE, VmState.FAILED, code, True
        vm.reason = f"{message}; tried {len(tries)} times: start it yourself once that is mended"
        vm.recorded = (vm.state, vm.host_id, vm.generation)
        ended = Decided(
            _key(vm),
            DecisionKind.RESTART,
            DecisionState.FAILED,
            (vm.vm_id,),
            outcome=vm.reason,
        )
        record = UpdateRecords(vms=[record_of(vm)])
        return [announce(self.registry, vm, ""), record, ended]

    def restart_ended(self, vm: VmEntry) -> list[SubmissionEffect]:
        """A host tells of the VM: whatever was planned is over."""
        if vm.plan is Plan.NONE:
            return []
        vm.plan, vm.asks = Plan.NONE, False
        host = self.registry.hosts.get(vm.host_id)
        where = host.description.hostname if host is not None else vm.host_id
        return [
            Decided(
                _key(vm),
                DecisionKind.RESTART,
                DecisionState.DONE,
                (vm.vm_id,),
                outcome=f"{vm.name} is {vm.state.value} on {where}",
            )
        ]

    # ------------------------------------------------------------ where it is, again

    def comes_back(self, vm: VmEntry, now_s: float, now_ms: int) -> list[SubmissionEffect]:
        """Rule 6: its host brought the VM back, off, and nobody had switched it off."""
        question = msgspec.structs.replace(
            self._about(vm, now_ms), proof="it brought the VM back", back=True
        )
        ruling = judge_restart(question)
        if ruling.verdict == "ask":
            vm.asks, vm.reason = True, ruling.why
            return [announce(self.registry, vm, "")]
        if vm.revives:
            return []
        vm.revives, vm.retry_s = True, now_s
        vm.reason = ruling.why
        self.restarting.add(vm.vm_id)
        self.pauses.pop(vm.vm_id, None)
        return [
            announce(self.registry, vm, ""),
            Decided(
                _key(vm),
                DecisionKind.RESTART,
                DecisionState.RUNNING,
                (vm.vm_id,),
                f"{vm.name}: {vm.reason}",
                (f"start {vm.name} where it is",),
                ruling.others,
                inputs=rulings.pack(rulings.RESTART, question, ruling),
            ),
        ]

    def was_started(self, vm: VmEntry) -> bool:
        """Whether the VM is to run: its submission waits for it, or it ran and is to go on."""
        return self.is_awaited(vm) or (
            vm.was not in {VmState.STOPPED, VmState.FAILED, VmState.PENDING}
            and vm.policy.is_highly_available
        )

    def restart_discarded(self, vm: VmEntry, now_s: float, now_ms: int) -> list[SubmissionEffect]:
        """The copy that was taken for the VM was being discarded already (seed 820102)."""
        question = msgspec.structs.replace(self._about(vm, now_ms), discarded=True)
        effects = self.revived(vm)
        vm.host_id = vm.manager_id = vm.doubt = ""
        vm.state, vm.elsewhere_s = VmState.UNREACHABLE, math.inf
        return [*effects, *self._want(vm, question, now_s), *self._restart_due(now_s, now_ms)]

    def _revive(self, vm: VmEntry, now_s: float) -> list[SubmissionEffect]:
        host = self.registry.hosts.get(vm.host_id)
        if vm.state not in {VmState.STOPPED, VmState.FAILED} or host is None:
            vm.revives = False
            return []
        if not host.joined or host.manager_id not in self.registry.managers:
            return []
        if self._is_blocked(vm, now_s):
            return []
        self._pause(vm, now_s)
        vm.retry_s += ORDER_WAIT_S  # until it is answered
        return [StartThere(host.manager_id, vm.vm_id, vm.host_id)]

    def _start_ended(self, event: StartEnded, now_s: float) -> list[SubmissionEffect]:
        vm = self.registry.vms.get(event.vm_id)
        if vm is None or not vm.revives:
            return []
        if not event.error and vm.state not in {VmState.STOPPED, VmState.FAILED}:
            return self.revived(vm)
        self._pause(vm, now_s)
        if not event.error:  # it was fenced again at once, or its manager will tell that it runs
            return []
        vm.reason = f"not started again yet: {event.error}"
        return [announce(self.registry, vm, "")]

    def revived(self, vm: VmEntry) -> list[SubmissionEffect]:
        """The VM is on again, or was dealt with otherwise."""
        if not vm.revives:
            return []
        vm.revives, vm.asks = False, False
        return [
            Decided(
                _key(vm),
                DecisionKind.RESTART,
                DecisionState.DONE,
                (vm.vm_id,),
                outcome=f"{vm.name} is {vm.state.value}",
            )
        ]


def _key(vm: VmEntry) -> str:
    return f"restart:{vm.vm_id}"


def _in_turn(vms: Sequence[VmEntry]) -> list[VmEntry]:
    return sorted(vms, key=lambda vm: (-vm.policy.priority, vm.policy.start_order, vm.vm_id))

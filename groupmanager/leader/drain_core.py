"""Emptying hosts for a person, by one plan for the whole cluster, and giving them back.

Rules:

1. A host in maintenance is marked in the record before anything moves, so that it takes no VM and
   a later leader goes on with the drain. It stays marked, whatever becomes of the drain, until a
   person gives it back.
2. The plan is scheduling's (``drain``): ordered, every step feasible, checked. A wave is the first
   batch of a plan; when it has ended the rest is planned anew, from what is true then. A person
   sees the first plan.
3. At most ``PER_HOST`` moves touch one host, at most ``AT_ONCE`` run. A move that failed is tried
   ``MAX_TRIES`` times, each time by a new plan, ``REPLAN_S`` later; it holds up nothing but itself.
4. A VM that cannot leave is named with its reason and is looked at again as long as the deadline
   lets. After the deadline no move is begun; those under way end by themselves.
5. What is drained is what a hypervisor runs: a VM that is off stays defined where it is.
6. A drain by a person moves VMs that the cluster does not move by itself (``movable``), too, but
   none of another host. The host that a submission named binds nobody after the start.
7. What no host takes waits, at most ``WAKES_S``, for a sleeper that could, and has it woken.
8. A host that is given back gets the VMs back that left it, if asked for, as far as they fit.

Invariant: a VM has at most one move under way.

    state       event                    next
    (none)      drain asked              PLANNING
    PLANNING    planned                  RECORDING; a plan alone changes nothing
    RECORDING   written                  MOVING; not written: (none), and the person is told
    MOVING      nothing left to move     DONE
    MOVING      deadline, no move open   DONE, partly
    any         given back               (none), or RETURNING
    RETURNING   all back, or tried       (none)
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

import msgspec
import numpy as np

from snooze.common.api import DrainView, TaskState
from snooze.common.errors import Conflict, ErrorReport, NotFound, SnoozeError
from snooze.common.resources import FloatArray
from snooze.common.vm_lifecycle import VmState
from snooze.groupmanager.leader.drain_events import (
    AnswerDrain,
    DirectHost,
    DrainAsked,
    DrainEffect,
    DrainEvent,
    DrainMoved,
    DrainTicked,
    MaintenanceFailed,
    MaintenanceWritten,
    MakePlan,
    MoveEnded,
    OrderMove,
    PlanMade,
    RecordMaintenance,
    UndrainAsked,
)
from snooze.groupmanager.leader.drain_planning import (
    COMES,
    cannot,
    drain_decision,
    drain_outcome,
    hostname,
    snapshot_of,
    task_entry,
    to_leave,
    why_it_stays,
)
from snooze.groupmanager.leader.energy_events import WantRoom
from snooze.groupmanager.leader.membership_core import Announce
from snooze.groupmanager.leader.registry import Registry, VmEntry
from snooze.groupmanager.leader.submission_events import Decided
from snooze.groupmanager.leader.tasks import Task
from snooze.scheduling.check import check_plan
from snooze.scheduling.drain import Drain, DrainPolicy
from snooze.scheduling.migration_plan import Parallelism
from snooze.scheduling.packing_effort import Effort
from snooze.scheduling.snapshot import Snapshot

PER_HOST: Final = 2
AT_ONCE: Final = 16
MAX_TRIES: Final = 3
REPLAN_S: Final = 5.0
"""Between two looks at VMs that could not leave."""
WANT_S: Final = 60.0
"""Longer than until the next look at a VM for which room is wanted."""
WAKES_S: Final = 1800.0
"""Longer than a host or two may take to wake."""
MAX_EVACUATED: Final = 1000
"""VMs remembered per host that left it by a drain, the latest."""
POLICY: Final = DrainPolicy(
    wake=False,
    parallelism=Parallelism(per_host=PER_HOST, at_once=AT_ONCE),
    effort=Effort(steps=20_000),
)
DRAIN: Final = "drain"
RETURN: Final = "undrain"


@dataclass(frozen=True, slots=True)
class _Open:
    """A move under way."""

    vm_id: str
    source: str
    destination: str


@dataclass(slots=True)
class Job:
    """One drain, or one return, under way.

    ``tries`` counts failed moves by VM; ``wave``: the VMs that are to go next, and where to;
    ``open``: the VM of each order under way; ``stays``: why a VM is still there.
    ``decided``: the decision that it is, once its first plan is there.
    ``planning``: number of the plan that is being made; ``replan_s``: not looked at before then,
    unless a move ends; ``rests_until_s``: after a failed move, no plan is made before then.
    ``wakes_until_s``: so long hosts may be woken for it.
    """

    task: Task
    host_ids: tuple[str, ...]
    until_s: float
    returning: tuple[str, ...] = ()
    tries: Counter[str] = field(default_factory=Counter[str])
    wave: deque[tuple[str, str]] = field(default_factory=deque[tuple[str, str]])
    open: dict[int, _Open] = field(default_factory=dict[int, _Open])
    planning: int = 0
    replan_s: float = 0.0
    rests_until_s: float = 0.0
    wakes_until_s: float = 0.0
    stays: dict[str, str] = field(default_factory=dict[str, str])
    decided: Decided | None = None


@dataclass(frozen=True, slots=True)
class _Planning:
    """A plan that is being made: for a person's question, or for the next wave of a job."""

    snapshot: Snapshot
    asked: DrainAsked | None = None
    job: Job | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A drain whose hosts are being recorded."""

    request_id: int
    job: Job
    view: DrainView


class DrainCore:
    """Decides about maintenance; see the module's rules."""

    def __init__(self, registry: Registry, overcommit: FloatArray, headroom: FloatArray) -> None:
        """``overcommit`` and ``headroom`` (``float64[R]``) are those of placement."""
        self.registry = registry
        self.tasks: dict[str, Task] = {}
        self.can_wake: Callable[[VmEntry], bool] = cannot
        """Whether there is a sleeper that could take a VM."""
        self._overcommit = overcommit
        self._headroom = headroom
        self._recording: dict[tuple[str, ...], _Asked] = {}
        self._planning: dict[int, _Planning] = {}
        self._jobs: dict[str, Job] = {}
        self._orders = itertools.count(1)

    def handle(self, event: DrainEvent, now_s: float) -> list[DrainEffect]:
        """Take in one event."""
        match event:
            case DrainAsked():
                return self._answered(event.request_id, lambda: self._asked(event))
            case UndrainAsked():
                return self._answered(event.request_id, lambda: self._undrain(event, now_s))
            case MaintenanceWritten():
                return self._written(event, now_s)
            case MaintenanceFailed():
                return self._not_written(event)
            case MoveEnded():
                return self._ended(event, now_s)
            case PlanMade():
                return self._planned(event, now_s)
            case DrainTicked():
                return self._ticked(event, now_s)
            case _:
                assert_never(event)

    def is_busy(self, host_id: str) -> bool:
        """Whether a drain or a return concerns the host."""
        return any(host_id in job.host_ids for job in self._jobs.values())

    def is_at_work(self) -> bool:
        """Whether any drain or return is under way."""
        return bool(self._jobs)

    @staticmethod
    def _answered(request_id: int, step: Callable[[], list[DrainEffect]]) -> list[DrainEffect]:
        try:
            return step()
        except SnoozeError as error:
            return [AnswerDrain(request_id, error=ErrorReport.of(error))]

    # ------------------------------------------------------------ asked

    def _asked(self, event: DrainAsked) -> list[DrainEffect]:
        host_ids = self._drainable(event)
        return self._make_plan(host_ids, asked=event)

    def _drainable(self, event: DrainAsked) -> tuple[str, ...]:
        """The hosts of a question.

        Raises:
            NotFound, Conflict: they cannot be drained.
        """
        host_ids = self._known(event.host_ids)
        hosts = [self.registry.hosts[host_id] for host_id in host_ids]
        away = [f"{h.description.hostname} is {h.absence}" for h in hosts if not h.joined]
        if away:
            raise Conflict(f"{', '.join(away)}: only a host that is up can be drained")
        if not event.plan_only and any(self.is_busy(host_id) for host_id in host_ids):
            raise Conflict("a drain of one of these hosts is under way; see `snooze tasks`")
        return host_ids

    def _make_plan(
        self, host_ids: Sequence[str], asked: DrainAsked | None = None, job: Job | None = None
    ) -> list[DrainEffect]:
        snapshot = snapshot_of(self.registry, host_ids, self._overcommit, self._headroom)
        number = next(self._orders)
        self._planning[number] = _Planning(snapshot, asked, job)
        if job is not None:
            job.planning = number
        wanted = set(host_ids)
        hosts = np.array([host_id in wanted for host_id in snapshot.host_ids], dtype=np.bool_)
        return [MakePlan(number, snapshot, hosts, POLICY)]

    def _planned(self, event: PlanMade, now_s: float) -> list[DrainEffect]:
        planning = self._planning.pop(event.number, None)
        if planning is None:
            return []
        answer, error = event.answer, event.error
        if answer is not None:
            violations = check_plan(planning.snapshot, answer.plan)
            if violations:
                answer = None
                error = ErrorReport("execution_failed", f"the plan is invalid: {violations[0]}")
        failed = error or ErrorReport("execution_failed", "no plan was made")
        if planning.asked is not None:
            asked = planning.asked
            if answer is None:
                return [AnswerDrain(asked.request_id, error=failed)]
            view, decided = drain_decision(
                self.registry,
                planning.snapshot,
                answer,
                asked.host_ids,
                asked.task_id,
                event.inputs,
                self.can_wake,
            )
            return self._answered(
                asked.request_id, lambda: self._begin(asked, view, decided, now_s)
            )
        job = planning.job
        if job is None or job.planning != event.number:
            return []
        job.planning = 0
        effects: list[DrainEffect] = []
        if answer is None:
            job.stays.update({vm.vm_id: failed.message for vm in self._waiting(job)})
        else:
            if job.decided is None:
                _, job.decided = drain_decision(
                    self.registry,
                    planning.snapshot,
                    answer,
                    job.host_ids,
                    job.task.task_id,
                    event.inputs,
                    self.can_wake,
                )
                effects.append(job.decided)
            effects += self._fill_wave(job, planning.snapshot, answer, now_s)
        return effects + self._advance(job, event.now_ms, now_s, planned=True)

    def _begin(
        self, event: DrainAsked, view: DrainView, decided: Decided, now_s: float
    ) -> list[DrainEffect]:
        """The plan is there: show it, and unless that was all, record and go."""
        if event.plan_only:
            return [AnswerDrain(event.request_id, view)]
        host_ids = self._drainable(event)
        if any(set(host_ids) & set(recording) for recording in self._recording):
            raise Conflict("a drain of one of these hosts is about to begin; see `snooze tasks`")
        until_s = now_s + event.deadline_s if event.deadline_s > 0 else float("inf")
        until_ms = event.now_ms + round(event.deadline_s * 1000) if event.deadline_s > 0 else -1
        vms = to_leave(self.registry, host_ids)
        job = self._job(DRAIN, event.task_id, host_ids, vms, until_s, event)
        job.decided = decided
        for host_id in host_ids:
            self.registry.hosts[host_id].maintenance = True
            self.registry.hosts[host_id].drain_until_ms = until_ms
        self._recording[host_ids] = _Asked(event.request_id, job, view)
        return [RecordMaintenance(host_ids)]

    def _undrain(self, event: UndrainAsked, now_s: float) -> list[DrainEffect]:
        host_ids = self._known(event.host_ids)
        marked = [i for i in host_ids if self.registry.hosts[i].maintenance]
        if not marked:
            raise Conflict("none of these hosts is in maintenance")
        effects: list[DrainEffect] = []
        for task_id in [t for t, job in self._jobs.items() if set(job.host_ids) & set(host_ids)]:
            effects += self._close(task_id, event.now_ms, "given back before it was empty")
        back: list[VmEntry] = []
        for host_id in marked:
            host = self.registry.hosts[host_id]
            host.maintenance, host.drain_until_ms = False, 0
            found = (self.registry.vms.get(vm_id) for vm_id in host.evacuated)
            back += [vm for vm in found if vm is not None and vm.host_id != host_id]
            if not event.bring_back:
                host.evacuated = ()
        job = self._job(
            RETURN, event.task_id, tuple(marked), back if event.bring_back else [], now_s, event
        )
        job.until_s = float("inf")
        job.returning = tuple(vm.vm_id for vm in back) if event.bring_back else ()
        view = DrainView(hosts=[self.registry.hosts[i].description.hostname for i in marked])
        self._recording[tuple(marked)] = _Asked(event.request_id, job, view)
        return [*effects, RecordMaintenance(marked)]

    def _job(
        self,
        kind: str,
        task_id: str,
        host_ids: tuple[str, ...],
        vms: Iterable[VmEntry],
        until_s: float,
        event: DrainAsked | UndrainAsked,
    ) -> Job:
        entries = {vm.vm_id: task_entry(vm) for vm in vms}
        task = Task(task_id, kind, event.now_ms, entries, open_vms=set(entries))
        return Job(task, host_ids, until_s)

    def _known(self, host_ids: Sequence[str]) -> tuple[str, ...]:
        unknown = [host_id for host_id in host_ids if host_id not in self.registry.hosts]
        if unknown:
            raise NotFound(f"no host {', '.join(unknown)}; `snooze hosts` lists them")
        if not host_ids:
            raise NotFound("name at least one host")
        return tuple(sorted(set(host_ids)))

    def _written(self, event: MaintenanceWritten, now_s: float) -> list[DrainEffect]:
        asked = self._recording.pop(tuple(event.host_ids), None)
        effects: list[DrainEffect] = [DirectHost(host_id) for host_id in event.host_ids]
        if asked is None:
            return effects
        job = asked.job
        job.task.state = TaskState.RUNNING
        self.tasks[job.task.task_id] = job.task
        self._jobs[job.task.task_id] = job
        view = msgspec.structs.replace(asked.view, task_id=job.task.task_id)
        effects.append(AnswerDrain(asked.request_id, view))
        if job.decided is not None:
            effects.append(job.decided)
        effects += [self._announce(job, host_id, "began") for host_id in job.host_ids]
        return effects + self._advance(job, event.now_ms, now_s)

    def _not_written(self, event: MaintenanceFailed) -> list[DrainEffect]:
        asked = self._recording.pop(tuple(event.host_ids), None)
        if asked is None:
            return []
        for host_id in event.host_ids:
            host = self.registry.hosts[host_id]
            host.maintenance = asked.job.task.kind == RETURN
        return [AnswerDrain(asked.request_id, error=event.error)]

    # ------------------------------------------------------------ moving

    def _ended(self, event: MoveEnded, now_s: float) -> list[DrainEffect]:
        job = next((job for job in self._jobs.values() if event.order_id in job.open), None)
        if job is None:
            return []
        vm_id = job.open.pop(event.order_id).vm_id
        vm = self.registry.vms.get(vm_id)
        if event.error is not None:
            job.tries[vm_id] += 1
            job.rests_until_s = job.replan_s = now_s + REPLAN_S
            job.stays[vm_id] = event.error.message
        elif vm is not None:
            job.stays.pop(vm_id, None)
            self._remember(job, vm)
            job.task.settle(task_entry(vm))
        return [DrainMoved(job.task.task_id), *self._advance(job, event.now_ms, now_s)]

    def _remember(self, job: Job, vm: VmEntry) -> None:
        """Which VMs left a host, so that they can come back; or that they have."""
        for host_id in job.host_ids:
            host = self.registry.hosts.get(host_id)
            if host is None:
                continue
            others = tuple(vm_id for vm_id in host.evacuated if vm_id != vm.vm_id)
            left = vm.vm_id in job.task.vms and job.task.vms[vm.vm_id].host_id == host_id
            is_drain = job.task.kind == DRAIN
            host.evacuated = (*others, vm.vm_id)[-MAX_EVACUATED:] if is_drain and left else others

    def _ticked(self, event: DrainTicked, now_s: float) -> list[DrainEffect]:
        effects: list[DrainEffect] = []
        if event.settled:
            self._take_up(event.now_ms, now_s)
        for job in list(self._jobs.values()):
            if now_s >= job.replan_s:
                effects += self._advance(job, event.now_ms, now_s)
        return effects

    def _take_up(self, now_ms: int, now_s: float) -> None:
        """Go on with the drains of an earlier leader."""
        for host_id, host in list(self.registry.hosts.reached.items()):
            waiting = host.maintenance and host.drain_until_ms
            if not waiting or self.is_busy(host_id) or (host_id,) in self._recording:
                continue
            left_s = (host.drain_until_ms - now_ms) / 1000 if host.drain_until_ms > 0 else 1e18
            task_id = f"drain-{host_id}"
            event = DrainAsked(0, task_id, (host_id,), left_s, False, now_ms)
            vms = to_leave(self.registry, (host_id,))
            job = self._job(DRAIN, task_id, (host_id,), vms, now_s + left_s, event)
            job.task.state = TaskState.RUNNING
            self.tasks[task_id] = job.task
            self._jobs[task_id] = job

    def _advance(
        self, job: Job, now_ms: int, now_s: float, *, planned: bool = False
    ) -> list[DrainEffect]:
        """Begin what can begin; end the job when there is nothing left to do.

        ``planned``: a plan has just been made, so that an empty wave means that nothing can move.
        """
        if job.planning:
            return []
        is_late = now_s >= job.until_s
        waiting = [] if is_late else self._waiting(job)
        if waiting and not job.wave and not job.open and not planned:
            if now_s < job.rests_until_s:
                return []
            if job.task.kind == DRAIN:
                return self._make_plan(job.host_ids, job=job)
            job.wave.extend((vm.vm_id, home) for vm, home in self._returns(job))
        effects = self._order_wave(job) if waiting else []
        if job.open or (waiting and not self._is_hopeless(job, waiting)):
            job.replan_s = now_s + REPLAN_S
            return effects
        why = "the deadline is over" if is_late else ""
        return effects + self._close(job.task.task_id, now_ms, why)

    def _is_hopeless(self, job: Job, waiting: Collection[VmEntry]) -> bool:
        """Whether each VM that waits was tried as often as may be."""
        limited = job.task.kind == RETURN or job.until_s == float("inf")
        return all(job.tries[vm.vm_id] >= MAX_TRIES for vm in waiting) or (
            limited and all(job.stays.get(vm.vm_id, COMES) != COMES for vm in waiting)
        )

    def _waiting(self, job: Job) -> list[VmEntry]:
        """VMs that have still to move, and may be ordered to."""
        moving = {order.vm_id for order in job.open.values()}
        if job.task.kind == DRAIN:
            return [vm for vm in to_leave(self.registry, job.host_ids) if vm.vm_id not in moving]
        found = (self.registry.vms.get(vm_id) for vm_id in job.returning)
        return [
            vm
            for vm in found
            if vm is not None
            and vm.state is VmState.RUNNING
            and vm.host_id not in job.host_ids
            and vm.vm_id not in moving
        ]

    def _order_wave(self, job: Job) -> list[DrainEffect]:
        """Order what the wave has, as far as the limits allow."""
        busy = Counter(
            end
            for other in self._jobs.values()
            for order in other.open.values()
            for end in (order.source, order.destination)
        )
        effects: list[DrainEffect] = []
        for _ in range(len(job.wave)):
            vm_id, destination = job.wave.popleft()
            vm = self.registry.vms.get(vm_id)
            if vm is None or vm.state is not VmState.RUNNING or vm.host_id == destination:
                continue
            ends = (vm.host_id, destination)
            if len(job.open) >= AT_ONCE or any(busy[end] >= PER_HOST for end in ends):
                job.wave.append((vm_id, destination))
                continue
            busy.update(ends)
            order_id = next(self._orders)
            job.open[order_id] = _Open(vm_id, *ends)
            if vm_id not in job.task.vms:
                job.task.vms[vm_id] = task_entry(vm)
                job.task.open_vms.add(vm_id)
            effects.append(OrderMove(order_id, vm_id, destination, job.task.task_id))
        return effects

    def _fill_wave(
        self, job: Job, snapshot: Snapshot, answer: Drain, now_s: float
    ) -> list[DrainEffect]:
        """What the first batch of a plan moves is the next wave; room is wanted for the others."""
        effects: list[DrainEffect] = []
        job.wakes_until_s = job.wakes_until_s or now_s + WAKES_S
        can_wake = self.can_wake if now_s < job.wakes_until_s else cannot
        for reason in answer.plan.reasons:
            vm = self.registry.vms.get(snapshot.vm_ids[reason.vm])
            if vm is None:
                continue
            why = job.stays[vm.vm_id] = why_it_stays(vm, reason, can_wake)
            if why == COMES:
                effects.append(WantRoom(f"VM {vm.name}", vm.demand.as_array(), WANT_S))
        for move in answer.plan.moves:
            vm_id = snapshot.vm_ids[move.vm]
            if move.batch == 0 and job.tries[vm_id] < MAX_TRIES:
                job.wave.append((vm_id, snapshot.host_ids[move.target]))
        return effects

    def _returns(self, job: Job) -> Iterator[tuple[VmEntry, str]]:
        """Each VM to the host that it left, if it fits there now."""
        snapshot = snapshot_of(self.registry, (), self._overcommit, self._headroom)
        rows = {host_id: row for row, host_id in enumerate(snapshot.host_ids)}
        free = snapshot.ceiling.copy()
        placed = snapshot.placement >= 0
        np.subtract.at(free, snapshot.placement[placed], snapshot.demand[placed])
        for vm in self._waiting(job):
            if job.tries[vm.vm_id] >= MAX_TRIES:
                continue
            home = next(
                (
                    host_id
                    for host_id in job.host_ids
                    if vm.vm_id in self.registry.hosts[host_id].evacuated
                ),
                "",
            )
            row = rows.get(home)
            need = vm.demand.as_array()
            if row is None or (need > free[row]).any():
                job.stays[vm.vm_id] = "its former host has no room for it"
                continue
            free[row] -= need
            yield vm, home

    # ------------------------------------------------------------ the end

    def _close(self, task_id: str, now_ms: int, why: str) -> list[DrainEffect]:
        job = self._jobs.pop(task_id)
        for vm_id in sorted(job.task.open_vms):
            vm = self.registry.vms.get(vm_id)
            if vm is None or (job.task.kind == DRAIN and vm.host_id not in job.host_ids):
                job.task.settle(job.task.vms[vm_id] if vm is None else task_entry(vm))
                continue
            reason = job.stays.get(vm_id) or why or "it did not move"
            job.task.settle(task_entry(vm, ErrorReport("conflict", reason)))
        job.task.end_if_settled(now_ms)
        effects: list[DrainEffect] = []
        for host_id in job.host_ids:
            host = self.registry.hosts.get(host_id)
            if host is not None:
                host.drain_until_ms = 0
                if job.task.kind == RETURN:
                    host.evacuated = ()
            if job.task.kind == DRAIN or job.returning:
                effects.append(self._announce(job, host_id, "ended"))
        if job.decided is not None:
            left = to_leave(self.registry, job.host_ids)
            moved = len(job.task.vms) - sum(vm.vm_id in job.task.vms for vm in left)
            effects.append(drain_outcome(job.decided, moved, left, job.stays, why))
        return [*effects, RecordMaintenance(job.host_ids), DrainMoved(task_id)]

    def _announce(self, job: Job, host_id: str, what: str) -> Announce:
        name = hostname(self.registry, host_id)
        left = len(to_leave(self.registry, (host_id,)))
        if job.task.kind == RETURN and what == "ended" and job.returning:
            text = f"host {name} has got its VMs back, as far as they fit"
        elif job.task.kind == RETURN:
            text = f"host {name} is in service again"
        elif what == "began":
            text = f"host {name} is being drained: {left} VMs have to leave"
        elif left:
            text = f"host {name} is not empty: {left} VMs are still there"
        else:
            text = f"host {name} is empty and in maintenance"
        return Announce(f"host.{job.task.kind}.{what}", host_id, text, job.task.task_id)

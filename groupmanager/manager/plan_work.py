"""A plan being carried out: which move may begin now, and what became of each.

Rules:

1. A move begins when what it waits for has ended: moves of earlier batches that leave its target,
   or move the same VM. A move that failed stops those of the same VM, and where a host is to be
   emptied, those of its host that have not begun: it will not be empty. Nothing else waits, and
   nothing else stops.
2. At the moment it begins a move is proved again by the checker, on hosts and VMs as they are then.
   One that breaks a rule now has failed, with the rule. While samples of its hosts are late or not
   complete (a VM has just arrived) it waits.
3. At most ``per_host`` migrations touch a host and ``at_once`` run, those of others counted.
4. A move that has not begun ``expire_s`` after the plan was made does not begin.

::

    state      event                                next
    waiting    may begin (rules 1 to 4)             running
    waiting    stopped, or it would break a rule    failed
    running    the migration ended                  done or failed
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from snooze.common.decisions import Decision, DecisionKind, DecisionState
from snooze.common.errors import ErrorReport, SnoozeError
from snooze.common.wire import VmOrderDone
from snooze.groupmanager.manager.cluster_view import View
from snooze.groupmanager.manager.host_table import HostTable
from snooze.groupmanager.manager.manager_events import ManagerEffect
from snooze.groupmanager.manager.migration_core import Migrations
from snooze.scheduling.check import check_moves
from snooze.scheduling.plans import Move


class StepState(StrEnum):
    """How far a move is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True)
class Step:
    """One move, by names: rows change while a plan is carried out."""

    vm_key: str
    name: str
    source: str
    target: str
    batch: int = 0
    state: StepState = StepState.WAITING
    note: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in (StepState.DONE, StepState.FAILED)


@dataclass(slots=True)
class Work:
    """A decision and its moves.

    Attributes:
        emptied: hosts that are to be empty afterwards.
        made_s: when the plan was made.
    """

    decision: Decision
    kind: DecisionKind
    steps: list[Step]
    made_s: float
    emptied: frozenset[str] = field(default_factory=frozenset[str])

    @property
    def ended(self) -> bool:
        """Whether every move has ended."""
        return all(step.ended for step in self.steps)

    def stop(self, why: str) -> None:
        """No further move begins."""
        for step in self.steps:
            if step.state is StepState.WAITING:
                step.state, step.note = StepState.FAILED, why

    def outcome(self) -> tuple[DecisionState, str]:
        """What became of it, once it has ended."""
        done = [step for step in self.steps if step.state is StepState.DONE]
        failed = [step for step in self.steps if step.state is StepState.FAILED]
        text = f"{len(done)} of {len(self.steps)} moved"
        text += "".join(f"; {step.name} stayed: {step.note}" for step in failed[:10])
        if len(failed) > 10:
            text += f"; and {len(failed) - 10} more"
        if not failed:
            return DecisionState.DONE, text
        return DecisionState.PARTLY if done else DecisionState.FAILED, text


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may happen at a time; see the rules."""

    at_once: int
    per_host: int
    expire_s: float


Begun = Callable[[Work, Step], None]
Ended = Callable[[Work, Step, bool], None]


class Worker:
    """Carries plans out by a manager's migrations."""

    def __init__(
        self,
        table: HostTable,
        migrations: Migrations,
        bounds: Bounds,
        look: Callable[[DecisionKind, Sequence[str]], View],
        begun: Begun,
        ended: Ended,
    ) -> None:
        """``look``: some hosts at this moment, for a kind; the others are told of each move."""
        self._table = table
        self._migrations = migrations
        self._bounds = bounds
        self._look = look
        self._begun = begun
        self._ended = ended

    def advance(self, work: Work, now_s: float) -> list[ManagerEffect]:
        """Begin what may begin now."""
        if now_s - work.made_s > self._bounds.expire_s:
            work.stop(f"it could not begin within {self._bounds.expire_s:g} s")
        effects: list[ManagerEffect] = []
        for step in work.steps:
            if step.state is not StepState.WAITING or self._stopped(work, step):
                continue
            if self._waits(work, step):
                continue
            why_not = self._why_not(work.kind, step)
            if why_not is None:
                continue
            if why_not:
                self._fail(work, step, why_not)
            else:
                effects += self._begin(work, step)
        return effects

    def _stopped(self, work: Work, step: Step) -> bool:
        """Rule 1: whether a move that failed stops this one."""
        for other in work.steps:
            if other.state is not StepState.FAILED:
                continue
            if other.vm_key == step.vm_key:
                self._fail(work, step, "its move before this one failed")
                return True
            if other.source == step.source and step.source in work.emptied:
                self._fail(work, step, f"its host cannot be emptied: {other.name} stays")
                return True
        return False

    def _waits(self, work: Work, step: Step) -> bool:
        bounds, migrations = self._bounds, self._migrations
        if migrations.count() >= bounds.at_once:
            return True
        if any(migrations.count(host) >= bounds.per_host for host in (step.source, step.target)):
            return True
        return any(
            not other.ended
            and other.batch < step.batch
            and (other.source == step.target or other.vm_key == step.vm_key)
            for other in work.steps
        )

    def _why_not(self, kind: DecisionKind, step: Step) -> str | None:
        """Why the move cannot begin any more; empty if it may begin; None: not known yet."""
        vm = self._table.vms.get(step.vm_key)
        if vm is None or vm.host_id != step.source:
            return "it is not on that host any more"
        if step.target not in self._table.hosts:
            return "the host it was to go to is not here any more"
        view = self._look(kind, (step.source, step.target))
        row = view.row_of_vm(step.vm_key)
        if row is None:
            return f"it is {vm.state.value}"
        if view.unknown.any():
            return None
        if not view.takes_part.all():
            return "one of its hosts takes no part any more"
        broken = check_moves(view.snapshot, [Move(row, 0, 1)])
        return f"{broken[0].rule.value}: {broken[0].message}" if broken else ""

    def why_not_all(self, work: Work) -> str:
        """Why a plan as a whole would break a rule now; empty if it would not."""
        hosts = list(dict.fromkeys(h for step in work.steps for h in (step.source, step.target)))
        if not all(host_id in self._table.hosts for host_id in hosts):
            return "one of its hosts is not here any more"
        view = self._look(work.kind, hosts)
        moves: list[Move] = []
        for step in work.steps:
            row = view.row_of_vm(step.vm_key)
            if row is None:
                return f"{step.name} is not there any more"
            source, target = hosts.index(step.source), hosts.index(step.target)
            moves.append(Move(row, source, target, step.batch))
        broken = check_moves(view.snapshot, moves)
        return f"it would break a rule now: {broken[0].message}" if broken else ""

    def _begin(self, work: Work, step: Step) -> list[ManagerEffect]:
        vm = self._table.vms[step.vm_key]

        def done(answer: VmOrderDone | ErrorReport) -> list[ManagerEffect]:
            if isinstance(answer, ErrorReport):
                self._fail(work, step, answer.message)
            else:
                step.state = StepState.DONE
                self._ended(work, step, True)
            return []

        step.state = StepState.RUNNING
        try:
            effects = self._migrations.begin(vm, step.target, work.decision.decision_id, done)
        except SnoozeError as error:
            self._fail(work, step, error.message)
            return []
        self._begun(work, step)
        return effects

    def _fail(self, work: Work, step: Step, why: str) -> None:
        began = step.state is StepState.RUNNING
        step.state, step.note = StepState.FAILED, why
        if began:
            self._ended(work, step, False)

"""A manager with autonomy, hosts that measure, guests whose load is set by hand, virtual time.

Migrations take as long as they are told to; the invariants of ``Desk`` and those of autonomy are
checked after every event.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable

from snooze.common.autonomy import AutonomyRecord, AutonomyRule, Control
from snooze.common.decisions import Decision, DecisionKind, DecisionMode, DecisionState
from snooze.common.errors import ErrorReport
from snooze.common.resources import Capacity
from snooze.common.settings_autonomy import (
    AutonomySettings,
    ConsolidationSettings,
    RelocationSettings,
)
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.usage import HostSamples, HostUsage, VmUsage
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmState
from snooze.common.vms import MigrationTicket, VmPolicy, VmReport
from snooze.common.wire import (
    AbortIncoming,
    DecisionMade,
    FinishIncoming,
    HostAnswer,
    Inventory,
    MigrateOut,
    OfferIssued,
    OfferVm,
    OrderDone,
    PrepareIncoming,
    TakeInventory,
    TicketIssued,
)
from snooze.groupmanager.control import control_of
from snooze.groupmanager.manager.autonomy_core import Autonomy
from snooze.groupmanager.manager.autonomy_events import (
    AutonomySet,
    AutonomyTicked,
    ConsolidateAsked,
    ConsolidationPlanned,
    DecisionJudged,
    LookedOn,
    LookOn,
    PlanConsolidation,
    PlanRelocation,
    RelocationPlanned,
)
from snooze.groupmanager.manager.autonomy_setup import autonomy_policy
from snooze.groupmanager.manager.manager_events import (
    AnswerLeader,
    ManagerEffect,
    ManagerEvent,
    OrderHost,
    TellLeader,
)
from snooze.groupmanager.manager.monitoring import Monitoring
from snooze.groupmanager.manager.plan_work import Step, Work
from snooze.scheduling.dump import consolidate_and_prepare, relocate_and_prepare
from tests.unit.manager.builders import REFUSED, Desk

PERIOD_S = 3.0
MEMORY_KIB = 1024.0
MONDAY_MS = 1767571200000  # 2026-01-05T00:00Z

OVERLOAD, UNDERLOAD, CONSOLIDATION = (
    DecisionKind.OVERLOAD,
    DecisionKind.UNDERLOAD,
    DecisionKind.CONSOLIDATION,
)


def settings_of(
    autonomy: AutonomySettings | None = None,
    relocation: RelocationSettings | None = None,
    consolidation: ConsolidationSettings | None = None,
) -> GroupManagerSettings:
    """Settings with a look every period, and nothing left out for lack of a power driver."""
    return GroupManagerSettings(
        autonomy=autonomy or AutonomySettings(interval_s=PERIOD_S),
        relocation=relocation or RelocationSettings(only_sleepable=False),
        consolidation=consolidation or ConsolidationSettings(),
    )


class LoadDesk(Desk):
    """See the module. ``load``: cores that each VM uses; ``silent``: hosts that send nothing."""

    def __init__(
        self,
        hosts: int = 3,
        settings: GroupManagerSettings | None = None,
        move_s: float = 6.0,
        cores: float = 4.0,
    ) -> None:
        self.autonomy: Autonomy | None = None
        super().__init__(0)
        self.now_s: float = 100.0
        self.settings = settings or settings_of()
        self.samples = Monitoring(PERIOD_S)
        self.control: Control = control_of(self.settings.autonomy)
        self.load: dict[str, float] = defaultdict(float)
        self.silent: set[str] = set()
        self._measured: dict[str, set[str]] = defaultdict(set)
        self.failing: set[str] = set()
        self.slow: dict[str, float] = {}
        self.move_s = move_s
        self.moves: list[tuple[float, str, str, str]] = []
        self.told: dict[str, Decision] = {}
        self.answers: dict[int, object] = {}
        self.unplanned: list[PlanConsolidation] = []
        self.plans_fail = False
        self._due: list[tuple[float, OrderHost, HostAnswer | ErrorReport]] = []
        policy = autonomy_policy(self.settings, self.core.overcommit, self.core.headroom)
        self.autonomy = self.core.decide_alone("gm1", policy, self.control, self.samples)
        for number in range(1, hosts + 1):
            self.join(f"h{number}", cores=cores)

    # -------------------------------- the world

    def guest(
        self,
        name: str,
        host_id: str,
        use: float = 0.1,
        asked: float = 1.0,
        policy: VmPolicy | None = None,
    ) -> None:
        """A VM that runs on a host and uses so many cores."""
        self.load[name] = use
        self.run(name, host_id, Capacity(asked, MEMORY_KIB))
        if policy is not None:
            vm = self.vm(name)
            report = vm.report
            vm.report = VmReport(
                report.vm_id, report.name, report.state, report.demand, policy=policy
            )

    def where(self, name: str) -> str:
        return self.vm(name).host_id

    def on(self, host_id: str) -> set[str]:
        return set(self.table.hosts[host_id].vms)

    def pass_time(self, span_s: float) -> None:
        """Let time go by: hosts measure, the manager ticks, migrations end."""
        until_s = self.now_s + span_s
        while self.now_s < until_s - 1e-9:
            self.now_s += PERIOD_S
            self._measure()
            self._end_moves()
            self.carry_out(self.feed(AutonomyTicked(self.wall_ms)))

    @property
    def wall_ms(self) -> int:
        return MONDAY_MS + round(self.now_s * 1000)

    def _measure(self) -> None:
        for host_id in self.table.order:
            if host_id in self.silent:
                continue
            usages = [
                VmUsage(
                    vm.report.vm_id,
                    self.wall_ms,
                    Capacity(self.load[vm.report.vm_id], vm.demand.memory_kib),
                    # As on a real host: the first sample after an arrival has no rates.
                    rated=vm.report.vm_id in self._measured[host_id],
                )
                for vm in self.table.vms_on(host_id)
                if vm.state in HOLDS_CAPACITY
            ]
            self._measured[host_id] = {usage.vm_id for usage in usages}
            message = HostSamples.of(self.wall_ms, HostUsage(usages), round(PERIOD_S * 1000))
            self.samples.push(host_id, message, self.now_s)

    def carry_out(self, effects: Iterable[ManagerEffect]) -> None:
        """Do what the core orders."""
        for effect in effects:
            match effect:
                case OrderHost():
                    self._obey(effect)
                case TellLeader(DecisionMade(decision)):
                    known = self.told.get(decision.decision_id)
                    if known is not None and not decision.inputs:
                        decision = _with_inputs(decision, known.inputs)
                    self.told[decision.decision_id] = decision
                case LookOn():
                    self.tell(LookedOn(self.wall_ms))
                case PlanRelocation():
                    directory = self.settings.autonomy.plugins_directory
                    made = relocate_and_prepare(effect.situation, effect.options, directory)
                    self.tell(RelocationPlanned(effect.token, self.wall_ms, made))
                case PlanConsolidation() if self.plans_fail:
                    self.unplanned.append(effect)
                case PlanConsolidation():
                    directory = self.settings.autonomy.plugins_directory
                    answer, prepared = consolidate_and_prepare(
                        effect.snapshot, effect.options, directory
                    )
                    self.tell(
                        ConsolidationPlanned(effect.token, self.wall_ms, answer, "", prepared)
                    )
                case AnswerLeader():
                    self.answers[effect.request_id] = effect.answer
                case _:
                    pass

    def tell(self, event: ManagerEvent) -> None:
        self.carry_out(self.feed(event))

    def _obey(self, effect: OrderHost) -> None:
        order = effect.order
        answer: HostAnswer | ErrorReport
        match order:
            case OfferVm():
                answer = OfferIssued(self._report(order.vm_id), b"offer")
            case PrepareIncoming():
                answer = TicketIssued(MigrationTicket(order.report.vm_id, "there"))
            case MigrateOut():
                vm = self.vm(order.vm_id)
                migration = next(
                    m for m in self.core.migrations.under_way() if m.vm.key == order.vm_id
                )
                self.moves.append((self.now_s, order.vm_id, vm.host_id, migration.destination))
                done = REFUSED if order.vm_id in self.failing else OrderDone()
                span_s = self.slow.get(order.vm_id, self.move_s)
                self._due.append((self.now_s + span_s, effect, done))
                return
            case FinishIncoming():
                answer = OrderDone(self._report(order.vm_id))
            case AbortIncoming():
                answer = OrderDone()
            case TakeInventory():
                answer = Inventory([self._report(order.vm_id)])
            case _:
                raise AssertionError(order)
        self.carry_out(self.answer(effect, answer))

    def _report(self, vm_id: str) -> VmReport:
        vm = self.vm(vm_id)
        return VmReport(vm_id, vm.report.name, VmState.RUNNING, vm.demand, policy=vm.report.policy)

    def _end_moves(self) -> None:
        due = [entry for entry in self._due if entry[0] <= self.now_s]
        self._due = [entry for entry in self._due if entry[0] > self.now_s]
        for _, effect, answer in due:
            self.carry_out(self.answer(effect, answer))

    # -------------------------------- people

    def say(self, *rules: AutonomyRule) -> None:
        record = AutonomyRecord()
        for rule in rules:
            record = record.with_rule(rule)
        self.tell(AutonomySet(record))

    def consolidate_now(self, request_id: int = 7) -> object:
        self.tell(ConsolidateAsked(request_id, self.wall_ms, "ann"))
        return self.answers.get(request_id)

    def carry_out_plan(self, steps: list[Step]) -> Work:
        """Have a plan of our own carried out."""
        assert self.autonomy is not None
        kind = DecisionKind.CONSOLIDATION
        decision = self.autonomy.book.new(kind, DecisionMode.AUTO, "", self.wall_ms, self.now_s)
        work = Work(decision, kind, steps, self.now_s)
        self.autonomy.works[kind] = work
        return work

    def judge(self, decision: Decision, *, approved: bool, request_id: int = 8) -> object:
        self.tell(DecisionJudged(request_id, self.wall_ms, decision.decision_id, approved, "ann"))
        return self.answers.get(request_id)

    # -------------------------------- what was decided

    def decisions(self, kind: DecisionKind, state: DecisionState | None = None) -> list[Decision]:
        return [
            each
            for each in self.told.values()
            if each.kind is kind and (state is None or each.state is state)
        ]

    def check(self) -> None:
        """The invariants of ``Desk``, and those of autonomy."""
        super().check()
        if self.autonomy is None:
            return
        bounds = self.autonomy.policy.bounds
        migrations = self.core.migrations
        assert migrations.count() <= bounds.at_once
        assert all(migrations.count(host) <= bounds.per_host for host in self.table.order)
        states = [each.state for each in self.autonomy.book.decisions.values()]
        for state in (DecisionState.RUNNING, DecisionState.PROPOSED):
            assert states.count(state) <= 3

    def returns(self) -> list[str]:
        """VMs that went back to a host which they left less than an hour before."""
        found: list[str] = []
        for index, (at_s, vm_id, _, target) in enumerate(self.moves):
            if any(
                other == vm_id and source == target and at_s - before_s < 3600
                for before_s, other, source, _ in self.moves[:index]
            ):
                found.append(vm_id)
        return found


def _with_inputs(decision: Decision, inputs: bytes) -> Decision:
    return Decision(
        **{
            name: getattr(decision, name) for name in decision.__struct_fields__ if name != "inputs"
        },
        inputs=inputs,
    )


def inputs_of(decision: Decision) -> str:
    return zlib.decompress(decision.inputs).decode()


def hot_desk(**autonomy: object) -> LoadDesk:
    """``h1`` runs four guests, one of which begins to burn; ``h2`` and ``h3`` have room."""
    settings = AutonomySettings(interval_s=PERIOD_S, underload="off", **autonomy)  # type: ignore[arg-type]
    desk = LoadDesk(3, settings_of(settings))
    for name, use in {"web": 0.9, "db": 0.9, "log": 0.6, "burner": 0.1}.items():
        desk.guest(name, "h1", use)
    desk.guest("calm", "h2", 0.5)
    desk.pass_time(120)
    return desk


def burn_too(desk: LoadDesk, host_id: str) -> None:
    """Another host becomes too hot as well."""
    for number in range(4):
        desk.guest(f"too-{number}", host_id, 0.95)


def idle_desk(**relocation: object) -> LoadDesk:
    values = {"only_sleepable": False, "idle_s": 60.0, **relocation}
    thresholds = RelocationSettings(**values)  # type: ignore[arg-type]
    desk = LoadDesk(3, settings_of(relocation=thresholds))
    desk.guest("a", "h1", 0.9)
    desk.guest("b", "h1", 0.9)
    desk.guest("c", "h2", 0.1)
    desk.guest("d", "h2", 0.1)
    return desk

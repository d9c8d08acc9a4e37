"""A month in virtual time: the cores of manager and leader over hosts that only draw power.

Rules of the world:

1. Guests ask for what the traces say, a value for each 300 s. A host serves what is asked up to its
   cores; what is beyond is *unserved*. A migrating guest loses ``MIGRATION_SHARE`` of its demand.
2. A migration lasts the guest's memory over ``MIGRATION_KIB_S``. A host joins ``WAKE_S`` after
   it is woken, drawing its highest power meanwhile.
3. Hosts fail by a seeded draw: their guests are gone, and are placed again ``FENCE_S`` later by the
   manager's own placement; the host joins again after ``REPAIR_S``.
4. Everything else is decided by the cores: ``ManagerCore`` with its autonomy on the samples of
   ``Monitoring``, and ``EnergyCore``. What a shell would do (links, records, BMCs) happens at once.

Power is a table of watts at 0, 10, .. 100 % load, linear between, ``asleep_w`` asleep.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from benchmarks._month_fleet import (
    FAILED,
    MIGRATION_SHARE,
    OFF,
    ON,
    PERIOD_S,
    WAKE_S,
    WAKING,
    Fleet,
    Floats,
    History,
    Ints,
    Meters,
    Moved,
)
from snooze.common.decisions import Decision
from snooze.common.errors import ErrorReport
from snooze.common.resources import Capacity, R
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.usage import HostSamples, HostUsage, VmUsage
from snooze.common.vm_lifecycle import HOLDS_CAPACITY, VmState
from snooze.common.vms import MigrationTicket, VmReport, VmSpec
from snooze.common.wire import (
    AbortIncoming,
    Address,
    DecisionMade,
    FinishIncoming,
    HostAnswer,
    HostDescription,
    HostDirective,
    HostHello,
    Inventory,
    ManagerDescription,
    MigrateOut,
    OfferIssued,
    OfferVm,
    OrderDone,
    PlacementAnswer,
    PlacementRequest,
    PlaceVms,
    PowerDescription,
    PowerDown,
    PrepareIncoming,
    SleepHost,
    StartVm,
    TakeInventory,
    TicketIssued,
    VmChanged,
)
from snooze.groupmanager.control import control_of
from snooze.groupmanager.leader import energy_events as energy
from snooze.groupmanager.leader.energy import policy_of
from snooze.groupmanager.leader.energy_core import EnergyCore
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.groupmanager.manager import manager_events as events
from snooze.groupmanager.manager.autonomy_events import (
    AutonomyTicked,
    ConsolidationPlanned,
    LookedOn,
    LookOn,
    PlanConsolidation,
    PlanRelocation,
    RelocationPlanned,
)
from snooze.groupmanager.manager.autonomy_setup import autonomy_policy
from snooze.groupmanager.manager.manager_core import ManagerCore
from snooze.groupmanager.manager.monitoring import Monitoring
from snooze.scheduling import placement
from snooze.scheduling.anticipation import DayHistory
from snooze.scheduling.consolidation import consolidate
from snooze.scheduling.deciding import consolidation_policy
from snooze.scheduling.dump import relocate_and_prepare

TICK_S: Final = 100.0
MIGRATION_KIB_S: Final = 62_500.0
FENCE_S: Final = 15.0
START_S: Final = 5.0
REPAIR_S: Final = 3600.0
RETRY_S: Final = 30.0
MANAGER: Final = "manager"
EPOCH_MS: Final = 1_767_571_200_000
"""2026-01-05, a Monday, at midnight UTC."""


@dataclass
class Month:
    """One run; ``run`` it, then read ``meters``, ``moves``, ``decisions``, ``history``.

    ``wanted``: how many guests are to run in each period, the first so many of all; None: all.
    ``waits_s``: how long each guest that was submitted later waited until it ran.
    """

    fleet: Fleet
    settings: GroupManagerSettings
    start: Ints
    failures_per_day: float
    seed: int
    wanted: Ints | None = None
    meters: Meters = field(default_factory=Meters)
    moves: list[Moved] = field(default_factory=list[Moved])
    decisions: dict[str, Decision] = field(default_factory=dict[str, Decision])
    now_s: float = 0.0

    def __post_init__(self) -> None:
        fleet, settings = self.fleet, self.settings
        hosts, vms, periods = fleet.cores.size, fleet.asked.size, fleet.periods
        self.history = History(
            np.full((periods, vms), -1, dtype=np.int16),
            np.full((periods, hosts), OFF, dtype=np.int8),
            np.zeros(periods),
            np.zeros(periods),
            np.zeros(periods),
            np.zeros(periods),
        )
        self.host_ids = [f"host{i:03}" for i in range(hosts)]
        self.vm_ids = [f"vm{i:04}" for i in range(vms)]
        self._host_row = {name: row for row, name in enumerate(self.host_ids)}
        self._vm_row = {name: row for row, name in enumerate(self.vm_ids)}
        self.state = np.full(hosts, ON, dtype=np.int8)
        self.where = np.full(vms, -1, dtype=np.int64)
        self.epoch = np.ones(hosts, dtype=np.int64)
        self.migrating: dict[int, tuple[int, int]] = {}
        self._generator = np.random.default_rng(self.seed)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._requests = itertools.count(1)
        self._sleeping: dict[int, tuple[str, int]] = {}
        self._placing: dict[int, list[str]] = {}
        self._lost: dict[str, VmSpec] = {}
        self._starting: set[str] = set()
        self.slept: list[list[float]] = []
        self.waits_s: list[float] = []
        self._alive = vms if self.wanted is None else int(self.wanted[0])
        self._submitted: dict[str, float] = {}
        self._accounted_s = 0.0
        self._use = fleet.use[:, 0].copy()
        overcommit, headroom = settings.placement.overcommit, settings.placement.headroom
        self.manager = ManagerCore(
            placement.policy_named("best_fit"),
            Capacity(overcommit.cpu, overcommit.memory, overcommit.network, overcommit.network),
            Capacity(
                1 - headroom.cpu, 1 - headroom.memory, 1 - headroom.network, 1 - headroom.network
            ),
        )
        self.samples = Monitoring(settings.monitoring.interval_s)
        policy = autonomy_policy(settings, self.manager.overcommit, self.manager.headroom)
        self.manager.decide_alone(MANAGER, policy, control_of(settings.autonomy), self.samples)
        self.registry = Registry()
        nowhere = Address("", 0)
        self.registry.managers[MANAGER] = ManagerEntry(
            ManagerDescription(MANAGER, MANAGER, nowhere, nowhere), 0.0
        )
        self.demand = DayHistory()
        self._expected = np.zeros(R)
        self.energy = EnergyCore(
            self.registry,
            MANAGER,
            1,
            self.manager.limit,
            policy_of(settings.energy),
            expected=lambda _: self._expected,
        )

    # ------------------------------------------------------------ time

    @property
    def wall_ms(self) -> int:
        return EPOCH_MS + round(self.now_s * 1000)

    def at(self, after_s: float, work: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._heap, (self.now_s + after_s, next(self._numbers), work))

    def run(self) -> None:
        """From the first period to the last."""
        self.where[: self._alive] = self.start[: self._alive]
        for row in range(len(self.host_ids)):
            self._join(row, [self._report(v) for v in np.flatnonzero(self.where == row).tolist()])
        for vm, vm_id in enumerate(self.vm_ids[: self._alive]):
            host_id = self.host_ids[int(self.start[vm])]
            self.registry.add_vm(
                VmEntry(
                    vm_id,
                    vm_id,
                    self._size(vm),
                    VmState.RUNNING,
                    manager_id=MANAGER,
                    host_id=host_id,
                )
            )
        periods = self.fleet.periods
        self._plan_failures(periods * PERIOD_S)
        for period in range(periods):
            self._until(period * PERIOD_S)
            self._account()
            self._use = self.fleet.use[:, period]
            if self.wanted is not None:
                self._churn(int(self.wanted[period]))
            if self.settings.energy.enabled:
                self._sample(period)
                for tick in range(round(PERIOD_S / TICK_S)):
                    self._until(period * PERIOD_S + tick * TICK_S)
                    self._tick()
            self._note(period)
        self._until(periods * PERIOD_S)
        self._account()

    def _until(self, until_s: float) -> None:
        while self._heap and self._heap[0][0] <= until_s:
            at_s, _, work = heapq.heappop(self._heap)
            self.now_s = max(self.now_s, at_s)
            self._account()
            work()
        self.now_s = max(self.now_s, until_s)

    def _tick(self) -> None:
        self._feed(AutonomyTicked(self.wall_ms))
        entry = self.registry.managers[MANAGER]
        idle_s = self.manager.sleeping.idle(self.now_s)
        entry.idle = {host_id: self.now_s - each for host_id, each in idle_s.items()}
        table = self.manager.table
        entry.reserved = Capacity.of(np.maximum(table.reserved.sum(axis=0), 0.0))
        self._lead(energy.Ticked(self.wall_ms, True))

    def _churn(self, wanted: int) -> None:
        """Submit guests, or destroy the last ones."""
        for vm in range(self._alive, wanted):
            name = self.vm_ids[vm]
            entry = VmEntry(name, name, self._size(vm), VmState.PENDING, waits_s=self.now_s)
            self.registry.add_vm(entry)
            self._lost[name] = VmSpec(name, name, self._size(vm))
            self._submitted[name] = self.now_s
            self._alive = vm + 1
        while self._alive > wanted and self._destroy(self._alive - 1):
            self._alive -= 1
        self._place_lost()

    def _destroy(self, vm: int) -> bool:
        """Whether it could be: not while it starts or moves."""
        name = self.vm_ids[vm]
        if name in self._starting or vm in self.migrating:
            return False
        self._lost.pop(name, None)
        self._submitted.pop(name, None)
        self.registry.remove_vm(self.registry.vms[name])
        row, self.where[vm] = int(self.where[vm]), -1
        if row >= 0:
            gone = VmChanged(self._report(vm), gone=True)
            self._feed(events.VmNoticed(self.host_ids[row], gone))
        return True

    # ------------------------------------------------------------ measuring

    def _sample(self, period: int) -> None:
        """Every host that is up tells what its guests used in the period before."""
        use = self.fleet.use[:, max(0, period - 1)]
        for host_id in self.manager.table.order:
            row = self._host_row[host_id]
            found = np.flatnonzero(self.where == row).tolist()
            vms = [
                VmUsage(
                    self.vm_ids[vm],
                    self.wall_ms,
                    Capacity(float(use[vm]), float(self.fleet.memory_kib[vm])),
                )
                for vm in found
            ]
            message = HostSamples.of(self.wall_ms, HostUsage(vms), round(PERIOD_S * 1000))
            self.samples.push(host_id, message, self.now_s)
        if self.settings.energy.anticipation:
            promised = np.zeros(R)
            for vm in self.registry.vms.values():
                promised += vm.demand.as_array() if vm.state in HOLDS_CAPACITY else 0.0
            self.demand.observe(self.wall_ms / 1000, promised)
            self._expected = self.demand.anticipate(self.settings.energy.anticipation_s).rise

    def _load(self) -> Floats:
        load = np.zeros(self.fleet.cores.size)
        placed = self.where >= 0
        np.add.at(load, self.where[placed], self._use[placed])
        return load

    def _account(self) -> None:
        span_s = self.now_s - self._accounted_s
        if span_s <= 0:
            return
        self._accounted_s = self.now_s
        fleet, meters, load = self.fleet, self.meters, self._load()
        up = np.flatnonzero(self.state == ON)
        watts = float(fleet.watts(up, load[up]).sum())
        watts += float(fleet.power_w[self.state == WAKING, -1].sum())
        watts += float((self.state == OFF).sum()) * fleet.asleep_w
        over = np.maximum(load[up] - fleet.cores[up], 0.0)
        moving = list(self.migrating)
        lost = float(self._use[moving].sum()) * MIGRATION_SHARE if moving else 0.0
        stopped = float(self._use[: self._alive][self.where[: self._alive] < 0].sum())
        meters.energy_j += watts * span_s
        meters.asked += float(self._use[: self._alive].sum()) * span_s
        meters.unserved += float(over.sum()) * span_s
        meters.lost_to_migration += lost * span_s
        meters.stopped += stopped * span_s
        busy = load[up] > 0
        meters.active_s += float(busy.sum()) * span_s
        meters.hot_s += float((over > 1e-9).sum()) * span_s
        meters.waited_s += len(self._lost) * span_s

    def _note(self, period: int) -> None:
        history, load = self.history, self._load()
        up = np.flatnonzero(self.state == ON)
        history.place[period] = self.where
        history.state[period] = self.state
        history.energy_w[period] = float(self.fleet.watts(up, load[up]).sum())
        history.energy_w[period] += float(self.fleet.power_w[self.state == WAKING, -1].sum())
        history.unserved[period] = float(np.maximum(load[up] - self.fleet.cores[up], 0).sum())
        history.load[period] = float(load.sum())
        history.up[period] = float(self.fleet.cores[up].sum())

    # ------------------------------------------------------------ hosts

    def _size(self, vm: int) -> Capacity:
        return Capacity(float(self.fleet.asked[vm]), float(self.fleet.memory_kib[vm]))

    def _report(self, vm: int) -> VmReport:
        name = self.vm_ids[vm]
        return VmReport(name, name, VmState.RUNNING, self._size(vm))

    def _describe(self, row: int) -> HostDescription:
        fleet, name = self.fleet, self.host_ids[row]
        power = PowerDescription(
            "test",
            actions=("suspend",),
            idle_w=float(fleet.power_w[row, 0]),
            full_w=float(fleet.power_w[row, -1]),
        )
        capacity = Capacity(float(fleet.cores[row]), fleet.host_memory_kib, 131072.0, 131072.0)
        return HostDescription(name, name, Address(name, 1), capacity, power=power)

    def _join(self, row: int, vms: list[VmReport]) -> None:
        host_id = self.host_ids[row]
        self.state[row] = ON
        self.epoch[row] += 1
        described, epoch = self._describe(row), int(self.epoch[row])
        entry = self.registry.hosts.get(host_id)
        if entry is None:
            entry = HostEntry(described, MANAGER, epoch, joined=False, seen_s=self.now_s)
            self.registry.hosts[host_id] = entry
        entry.join(described, MANAGER, epoch, self.now_s)
        self._feed(events.HostJoined(HostHello(described, vms, epoch)))
        self._feed(events.Directed([HostDirective(host_id, epoch)]))
        self._lead(energy.HostSeen(host_id, self.wall_ms))
        if self._lost:
            self._place_lost()

    def _part(self, row: int, reason: str, *, left: bool) -> None:
        """A host's link closes."""
        host_id = self.host_ids[row]
        self.samples.remove_host(host_id, self.now_s)
        self._feed(events.HostLost(host_id, int(self.epoch[row]), reason, left))
        self.registry.hosts[host_id].leave(self.now_s)
        self._lead(energy.HostWent(host_id, self.wall_ms))

    def _plan_failures(self, span_s: float) -> None:
        count = self._generator.poisson(self.failures_per_day * span_s / 86_400)
        for at_s in np.sort(self._generator.uniform(0, span_s, count)).tolist():
            row = int(self._generator.integers(len(self.host_ids)))
            self.at(at_s, partial(self._fail, row))

    def _fail(self, row: int) -> None:
        """A host that is on loses its power."""
        if self.state[row] != ON:
            return
        self.meters.failures += 1
        self.state[row] = FAILED
        gone = np.flatnonzero(self.where == row).tolist()
        self.where[gone] = -1
        self.migrating = {vm: way for vm, way in self.migrating.items() if row not in way}
        self._part(row, "power lost", left=False)
        for vm in gone:
            name = self.vm_ids[vm]
            entry = self.registry.vms[name]
            entry.generation += 1
            entry.state, entry.host_id, entry.waits_s = VmState.PENDING, "", self.now_s
            self._lost[name] = VmSpec(name, name, self._size(vm), entry.generation)
        if gone:
            self.at(FENCE_S, self._place_lost)
        self.at(REPAIR_S, lambda: self._join(row, []))

    def _place_lost(self) -> None:
        """Ask the manager to place what a dead host had; again while there is no room."""
        asked = {name for names in self._placing.values() for name in names} | self._starting
        waiting = [spec for name, spec in self._lost.items() if name not in asked]
        if not waiting:
            return
        request = next(self._requests)
        self._placing[request] = [spec.vm_id for spec in waiting]
        message = PlaceVms(1, "restart", [PlacementRequest(spec) for spec in waiting])
        self._feed(events.PlaceAsked(request, message))
        if self._lost:
            self.at(RETRY_S, self._place_lost)

    # ------------------------------------------------------------ what the manager orders

    def _feed(self, event: events.ManagerEvent) -> None:
        self._carry_out(self.manager.handle(event, self.now_s))

    def _carry_out(self, effects: Iterable[events.ManagerEffect]) -> None:
        for effect in effects:
            match effect:
                case events.OrderHost():
                    self._obey(effect)
                case events.TellLeader(DecisionMade(decision)):
                    self.decisions[decision.decision_id] = decision
                case events.AnswerLeader():
                    self._answered(effect)
                case LookOn():
                    self._feed(LookedOn(self.wall_ms))
                case PlanRelocation():
                    made = relocate_and_prepare(effect.situation, effect.options)
                    self._feed(RelocationPlanned(effect.token, self.wall_ms, made))
                case PlanConsolidation():
                    answer = consolidate(effect.snapshot, consolidation_policy(effect.options))
                    self._feed(ConsolidationPlanned(effect.token, self.wall_ms, answer))
                case _:
                    pass

    def _obey(self, effect: events.OrderHost) -> None:
        order, host_id = effect.order, effect.host_id

        def answer(what: HostAnswer) -> None:
            self._feed(events.HostAnswered(effect.order_id, what))

        match order:
            case OfferVm():
                answer(OfferIssued(self._report(self._vm_row[order.vm_id]), b"offer"))
            case PrepareIncoming():
                answer(TicketIssued(MigrationTicket(order.report.vm_id, host_id)))
            case MigrateOut():
                self._migrate(effect, order)
            case FinishIncoming():
                answer(OrderDone(self._report(self._vm_row[order.vm_id])))
            case AbortIncoming():
                answer(OrderDone())
            case TakeInventory():
                found = np.flatnonzero(self.where == self._host_row[host_id]).tolist()
                answer(Inventory([self._report(vm) for vm in found]))
            case StartVm():
                self.at(START_S, lambda: self._started(effect, order))
            case PowerDown():
                answer(OrderDone())
                row = self._host_row[host_id]
                self.at(0.0, lambda: self._went_down(row))
            case _:
                raise AssertionError(order)

    def _migrate(self, effect: events.OrderHost, order: MigrateOut) -> None:
        vm, began_s = self._vm_row[order.vm_id], self.now_s
        source, target = self._host_row[effect.host_id], self._host_row[order.ticket.uri]
        self.migrating[vm] = (source, target)

        def arrived() -> None:
            if self.migrating.pop(vm, None) is None or self.where[vm] != source:
                return  # one of the two hosts died; whoever waits was told
            self.where[vm] = target
            self.moves.append(Moved(order.cause, vm, source, target, began_s, self.now_s))
            self.registry.vms[order.vm_id].host_id = self.host_ids[target]
            self._feed(events.HostAnswered(effect.order_id, OrderDone()))

        self.at(float(self.fleet.memory_kib[vm]) / MIGRATION_KIB_S, arrived)

    def _started(self, effect: events.OrderHost, order: StartVm) -> None:
        row, name = self._host_row[effect.host_id], order.spec.vm_id
        self._starting.discard(name)
        if self.state[row] != ON:
            return  # it died meanwhile; it is placed again
        self.where[self._vm_row[name]] = row
        entry = self.registry.vms[name]
        entry.state, entry.host_id, entry.lacks_room = VmState.RUNNING, effect.host_id, False
        entry.waits_for = ""
        self._lost.pop(name, None)
        asked_s = self._submitted.pop(name, None)
        if asked_s is None:
            self.meters.restarts += 1
        else:
            self.waits_s.append(self.now_s - asked_s)
        done = OrderDone(self._report(self._vm_row[name]))
        self._feed(events.HostAnswered(effect.order_id, done))

    def _answered(self, effect: events.AnswerLeader) -> None:
        names = self._placing.pop(effect.request_id, None)
        if names is not None:
            placed = effect.answer.vms if isinstance(effect.answer, PlacementAnswer) else []
            for each in placed:
                self.registry.vms[each.vm_id].lacks_room = not each.host_id
                if each.host_id:
                    self._starting.add(each.vm_id)
        asked = self._sleeping.pop(effect.request_id, None)
        if asked is not None:
            host_id, step = asked
            error = effect.answer if isinstance(effect.answer, ErrorReport) else None
            self._lead(energy.SleepAnswered(host_id, step, self.wall_ms, error))

    # ------------------------------------------------------------ what the leader orders

    def _lead(self, event: energy.EnergyEvent) -> None:
        for effect in self.energy.handle(event, self.now_s):
            match effect:
                case energy.RecordStep():
                    if effect.step_id:
                        self._lead(
                            energy.StepRecorded(effect.host_id, effect.step_id, self.wall_ms)
                        )
                case energy.OrderSleep():
                    request = next(self._requests)
                    self._sleeping[request] = effect.host_id, effect.step_id
                    order = SleepHost(1, effect.cause, effect.host_id, effect.action)
                    self._feed(events.SleepAsked(request, order))
                case energy.OrderWake():
                    self._wake(self._host_row[effect.host_id])
                    self._lead(energy.WakeAnswered(effect.host_id, effect.step_id, self.wall_ms))
                case energy.LookAtPower():
                    is_off = self.state[self._host_row[effect.host_id]] == OFF
                    self._lead(
                        energy.PowerSeen(effect.host_id, effect.step_id, self.wall_ms, bool(is_off))
                    )
                case energy.TellDecision():
                    self.decisions[effect.decision.decision_id] = effect.decision
                case _:
                    pass

    def _went_down(self, row: int) -> None:
        """It obeyed: its link closes, then its power."""
        if self.state[row] != ON:
            return
        if (self.where == row).any():
            raise AssertionError(f"{self.host_ids[row]} sleeps with guests on it")
        self._part(row, "it goes to sleep", left=True)
        self.state[row] = OFF
        self.meters.sleeps += 1
        self.slept.append([row, self.now_s, np.inf])

    def _wake(self, row: int) -> None:
        if self.state[row] != OFF:
            return
        self.state[row] = WAKING
        self.meters.wakes += 1
        next(nap for nap in reversed(self.slept) if nap[0] == row)[2] = self.now_s
        self.at(WAKE_S, lambda: self._join(row, []))

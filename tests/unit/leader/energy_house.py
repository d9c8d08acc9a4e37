"""A few hosts with power, by hand: what the tests of the energy core are made of."""

import heapq
import zlib
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec
import numpy as np

from snooze.common.decisions import Decision, DecisionKind, DecisionMode
from snooze.common.errors import ErrorReport, TooBusy
from snooze.common.records import HostPower, HostRecord
from snooze.common.resources import ZERO, Capacity, FloatArray, R
from snooze.common.vm_lifecycle import VmState
from snooze.common.wire import Address, HostDescription, ManagerDescription, PowerDescription
from snooze.groupmanager.leader.energy_core import EnergyCore
from snooze.groupmanager.leader.energy_events import (
    AnswerPerson,
    EnergyEffect,
    EnergyEvent,
    HostSeen,
    HostWent,
    LookAtPower,
    OrderSleep,
    OrderWake,
    PowerSeen,
    RecordStep,
    SleepAnswered,
    StepRecorded,
    TellDecision,
    Ticked,
    WakeAnswered,
    WakeAsked,
)
from snooze.groupmanager.leader.energy_rules import EnergyPolicy
from snooze.groupmanager.leader.manager_entry import ManagerEntry
from snooze.groupmanager.leader.registry import HostEntry, Hosts, Registry, VmEntry
from snooze.scheduling import rulings
from snooze.scheduling.energy_question import Choice
from snooze.scheduling.takeover_question import Continuation

E = TypeVar("E")

POLICY = EnergyPolicy(
    enabled=True,
    idle_s=60.0,
    min_on_s=100.0,
    min_off_s=50.0,
    reserved_hosts=1,
    down_timeout_s=60.0,
    wake_timeout_s=120.0,
    wake_tries=2,
)
MANAGER = "gm1"
START_S = 10_000.0


def wall_ms(now_s: float) -> int:
    return int((1_700_000_000 + now_s) * 1000)


def power_host(
    host_id: str, cores: float = 4.0, *, driver: str = "test", full_w: float = 200.0
) -> HostDescription:
    capacity = Capacity(cores, cores * 1024.0, 1000.0, 1000.0)
    power = PowerDescription(driver, "", ("shutdown", "suspend_to_ram"), full_w / 2, full_w, 5.0)
    return HostDescription(host_id, f"name-{host_id}", Address(host_id, 1), capacity, power=power)


@dataclass
class House:
    """A leader's registry and energy core; answers orders as ``answers`` and ``machines`` say.

    ``machines``: whether each has power. ``wake_s``: from power on to joining; ``deaf``: do not
    wake. ``busy_s``: until then no order to wake is sent. ``silent``: BMCs that do not answer.
    Orders are kept in ``orders`` as they are given.
    """

    policy: EnergyPolicy = POLICY
    now_s: float = START_S
    registry: Registry = field(default_factory=Registry)
    orders: list[EnergyEffect] = field(default_factory=list[EnergyEffect])
    decisions: dict[str, Decision] = field(default_factory=dict[str, Decision])
    machines: dict[str, bool] = field(default_factory=dict[str, bool])
    records: dict[str, HostRecord] = field(default_factory=dict[str, HostRecord])
    answers: dict[int, AnswerPerson] = field(default_factory=dict[int, AnswerPerson])
    modes: dict[DecisionKind, DecisionMode] = field(
        default_factory=dict[DecisionKind, DecisionMode]
    )
    expected: Capacity = ZERO
    ha_lacks: str = ""
    wake_s: float = 30.0
    busy_s: float = 0.0
    deaf: set[str] = field(default_factory=set[str])
    stubborn: set[str] = field(default_factory=set[str])
    silent: set[str] = field(default_factory=set[str])
    refusing: set[str] = field(default_factory=set[str])
    lost: set[str] = field(default_factory=set[str])
    idle_since_s: dict[str, float] = field(default_factory=dict[str, float])
    booting: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    requests: int = 0

    def __post_init__(self) -> None:
        manager = ManagerDescription(MANAGER, MANAGER, Address("m", 1), Address("m", 2))
        self.registry.managers[MANAGER] = ManagerEntry(manager, self.now_s)
        self.core = self.new_core(epoch=1)

    def new_core(self, epoch: int) -> EnergyCore:
        return EnergyCore(
            self.registry,
            "leader",
            epoch,
            np.ones(R),
            self.policy,
            mode_of=lambda kind, host_id: self.modes.get(kind, DecisionMode.AUTO),
            expected=lambda now_ms: self._expected(),
            ha_lacks=lambda gone: self.ha_lacks,
        )

    def _expected(self) -> FloatArray:
        return self.expected.as_array()

    # ------------------------------------------------------------ hosts and VMs

    def add(self, *descriptions: HostDescription) -> None:
        """Hosts that have been up and idle for long."""
        for description in descriptions:
            host = HostEntry(description, MANAGER, 1, joined=True, seen_s=self.now_s - 5000)
            self.registry.hosts[description.host_id] = host
            self.machines[description.host_id] = True
            self.idle_since_s[description.host_id] = self.now_s - 5000

    def put(self, host_id: str, name: str, cores: float = 1.0) -> VmEntry:
        """A VM that runs."""
        vm = VmEntry(name, name, Capacity(cores, cores * 1024), VmState.RUNNING, host_id=host_id)
        vm.manager_id = MANAGER
        self.registry.add_vm(vm)
        return vm

    def want(self, name: str, cores: float = 1.0, *, pin: str = "") -> VmEntry:
        """A VM that waits for room, as the submission core has found."""
        vm = VmEntry(name, name, Capacity(cores, cores * 1024), VmState.PENDING, pin_host=pin)
        vm.lacks_room = True
        self.registry.add_vm(vm)
        return vm

    def host(self, host_id: str) -> HostEntry:
        return self.registry.hosts[host_id]

    def state(self, host_id: str) -> HostPower:
        return self.host(host_id).state

    def states(self) -> dict[str, HostPower]:
        return {host_id: host.state for host_id, host in sorted(self.registry.hosts.items())}

    # ------------------------------------------------------------ time and events

    def feed(self, event: EnergyEvent) -> list[EnergyEffect]:
        """One event and all that follows from it."""
        effects = self.core.handle(event, self.now_s)
        for effect in effects:
            self.perform(effect)
        return effects

    def tick(self, settled: bool = True) -> None:
        self.tell_idle()
        self.feed(Ticked(wall_ms(self.now_s), settled))

    def run(self, seconds: float, step_s: float = 1.0) -> None:
        """Let time go by."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + step_s)
            while self.booting and self.booting[0][0] <= self.now_s:
                self.join(heapq.heappop(self.booting)[1])
            self.tick()

    def tell_idle(self) -> None:
        busy = {vm.host_id for vm in self.registry.vms.values()}
        for host_id, host in self.registry.hosts.items():
            if host_id in busy or not host.joined:
                self.idle_since_s.pop(host_id, None)
            else:
                self.idle_since_s.setdefault(host_id, self.now_s)
        self.registry.managers[MANAGER].idle = dict(self.idle_since_s)

    def join(self, host_id: str) -> None:
        """It has booted and joined."""
        host = self.host(host_id)
        if not self.machines[host_id] or host.joined:
            return
        host.join(host.description, MANAGER, host.epoch + 1, self.now_s)
        self.feed(HostSeen(host_id, wall_ms(self.now_s)))

    def leave(self, host_id: str) -> None:
        host = self.host(host_id)
        if host.joined:
            host.leave(self.now_s)
            self.feed(HostWent(host_id, wall_ms(self.now_s)))

    def switch_on(self, host_id: str) -> None:
        if not self.machines[host_id]:
            self.machines[host_id] = True
            heapq.heappush(self.booting, (self.now_s + self.wake_s, host_id))

    # ------------------------------------------------------------ the world's answers

    def perform(self, effect: EnergyEffect) -> None:
        now_ms = wall_ms(self.now_s)
        match effect:
            case RecordStep(host_id, step_id):
                self.records[host_id] = self.host(host_id).record()
                if step_id:
                    self.feed(StepRecorded(host_id, step_id, now_ms))
            case TellDecision(decision):
                must_replay(decision)
                self.decisions[decision.decision_id] = decision
            case AnswerPerson():
                self.answers[effect.request_id] = effect
            case OrderSleep():
                self.orders.append(effect)
                assert self.records[effect.host_id].state is HostPower.GOING_DOWN
                self._sleep(effect)
            case OrderWake(host_id, step_id):
                self.orders.append(effect)
                assert self.records[host_id].state is HostPower.WAKING
                error = None
                if self.now_s < self.busy_s:
                    error = ErrorReport.of(TooBusy("too many BMCs are silent"))
                elif host_id in self.silent:
                    error = ErrorReport("remote", "the BMC does not answer")
                elif host_id not in self.deaf:
                    self.switch_on(host_id)
                self.feed(WakeAnswered(host_id, step_id, now_ms, error))
            case LookAtPower(host_id, step_id):
                silent = host_id in self.silent
                off = None if silent else not self.machines[host_id]
                self.feed(PowerSeen(host_id, step_id, now_ms, off, silent))
            case _:
                pass

    def _sleep(self, order: OrderSleep) -> None:
        host_id, now_ms = order.host_id, wall_ms(self.now_s)
        if host_id in self.refusing:
            busy = ErrorReport("conflict", "a VM is being started on it")
            self.feed(SleepAnswered(host_id, order.step_id, now_ms, busy))
        elif host_id in self.lost:
            lost = ErrorReport("remote", "no answer")
            self.feed(SleepAnswered(host_id, order.step_id, now_ms, lost, unknown=True))
        else:
            assert not list(self.registry.vms_of_host(host_id)), "a host with a VM was sent off"
            self.machines[host_id] = host_id in self.stubborn
            self.leave(host_id)
            self.feed(SleepAnswered(host_id, order.step_id, now_ms))

    # ------------------------------------------------------------ a new leader

    def new_leader(self) -> None:
        """Another leader reads the record; hosts that are up join it."""
        former = self.registry.hosts
        self.registry.hosts = Hosts()
        for host_id, host in former.items():
            record = self.records.get(host_id) or host.record()
            entry = HostEntry.of_record(record, self.now_s, self.now_s + 60)
            self.registry.hosts[host_id] = entry
        self.core = self.new_core(self.core.epoch + 1)
        for host_id, host in former.items():
            if host.joined:
                entry = self.host(host_id)
                entry.join(host.description, MANAGER, host.epoch, self.now_s)
                self.feed(HostSeen(host_id, wall_ms(self.now_s)))

    def ordered(self, kind: type[E]) -> list[str]:
        """The hosts of which something was ordered, in order."""
        return [
            effect.host_id
            for effect in self.orders
            if isinstance(effect, kind) and isinstance(effect, OrderSleep | OrderWake)
        ]


def must_replay(decision: Decision) -> None:
    """What was decided is decided again from its inputs, and names this host."""
    replayed = rulings.replay(zlib.decompress(decision.inputs).decode())
    assert replayed is not None
    assert replayed.is_same, (replayed.answer, replayed.recorded)
    assert decision.alternatives == replayed.answer.others or len(decision.alternatives) > len(
        replayed.answer.others
    )
    if isinstance(replayed.answer, Continuation):
        assert replayed.answer.why == decision.reason
        return
    assert isinstance(replayed.answer, Choice)
    assert (*decision.subjects, decision.reason) in replayed.answer.hosts


def with_policy(**changes: object) -> EnergyPolicy:
    return replace(POLICY, **changes)  # type: ignore[arg-type]  # the fields are the caller's


def without_driver(description: HostDescription) -> HostDescription:
    return msgspec.structs.replace(description, power=PowerDescription())


def house_of(count: int, **policy: object) -> House:
    """So many hosts of four cores, all up."""
    house = House(policy=with_policy(**policy))
    house.add(*(power_host(f"h{index}") for index in range(1, count + 1)))
    return house


def asleep(house: House) -> list[str]:
    """Which hosts sleep."""
    return [host_id for host_id, state in house.states().items() if state is HostPower.ASLEEP]


def sleeping_house(count: int, **policy: object) -> House:
    house = house_of(count, **policy)
    house.tick()
    assert len(asleep(house)) == count - house.policy.reserved_hosts
    house.run(200)
    return house


def ask_wake(house: House, host_id: str) -> str:
    house.requests += 1
    house.feed(WakeAsked(house.requests, host_id, wall_ms(house.now_s)))
    answer = house.answers[house.requests]
    return answer.error.message if answer.error else answer.message

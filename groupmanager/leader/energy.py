"""The energy core's shell: power controllers, orders to managers, records, metering.

What if the leader dies between two steps: the state is in the record before each order, and the
next leader goes on from it. What if an order timed out and happened: the core asks again or looks.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import assert_never

import numpy as np

from snooze.common import energy_records, records
from snooze.common.api import EnergyHostView, EnergySlotView, EnergyView
from snooze.common.clock import Clock
from snooze.common.coordination.port import Coordinator, Create, Operation, Put
from snooze.common.core_runner import CoreRunner
from snooze.common.decisions import Decision, DecisionKind, DecisionMode
from snooze.common.energy_records import EnergyRecord
from snooze.common.errors import (
    ErrorReport,
    ExecutionError,
    NotFound,
    NotLeader,
    RemoteError,
    SnoozeError,
    TooBusy,
)
from snooze.common.questions import Questions
from snooze.common.resources import Capacity, FloatArray, R
from snooze.common.settings_energy import EnergySettings
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.task_set import TaskSet
from snooze.common.transport.link import was_sent
from snooze.common.wire import Accepted, PowerDescription, SleepHost
from snooze.groupmanager.leader import energy_events as events
from snooze.groupmanager.leader.energy_core import EnergyCore
from snooze.groupmanager.leader.energy_meter_core import FRESH_S, EnergyMeter, join, same, split
from snooze.groupmanager.leader.energy_rules import EnergyPolicy, could_be_woken_for
from snooze.groupmanager.leader.energy_steps_core import MAX_WAKE_S
from snooze.groupmanager.leader.following import Follower
from snooze.groupmanager.leader.journal import Done, Journal
from snooze.groupmanager.leader.manager_links import ManagerLinks
from snooze.groupmanager.leader.membership_core import Announce
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.groupmanager.power.factory import PowerDrivers
from snooze.groupmanager.power.port import PowerController, PowerState

logger = logging.getLogger(__name__)

SLEEP_TIMEOUT_S = 150.0
"""A manager waits 60 s for its host's answer and 60 s for its link to close."""
METER_S = 1.0
METER_HOSTS_PER_S = 1000.0
"""With very many hosts they are metered less often, as often as managers tell how busy they are."""
READ_S = 30.0
"""Between two readings of one BMC, at least."""
READINGS_PER_S = 20.0
"""Of more BMCs than are read at this rate in ``READ_S`` each is read less often, in turn: the
leader's work does not grow with hosts. In between the host's model follows its load."""
MAX_READINGS = 16
"""BMCs that are asked at the same time."""
FRESH_ROUNDS = 3.0
"""A measurement counts for so many rounds of readings, and ``FRESH_S`` at least."""
EXPECT_S = 60.0
HOSTS_EACH = 1000
SLOTS_EACH = 288
"""Records of about 60 kB each; a transaction holds 400 kB."""
RECORDS_EACH = 2
"""Records of hosts that are written at a time, in turn: with more than two thousand hosts each is
written less often, so that what is written a second does not grow."""
J_PER_KWH = 3.6e6


def _nobody_said(kind: DecisionKind, host: HostEntry) -> DecisionMode:
    return DecisionMode.OFF


class Energy:
    """Puts hosts to sleep and wakes them, for one leader from its election to its end."""

    def __init__(
        self,
        registry: Registry,
        settings: GroupManagerSettings,
        limit: FloatArray,
        epoch: int,
        decider: str,
        clock: Clock,
        links: ManagerLinks,
        power: PowerDrivers,
        journal: Journal,
        *,
        record_host: Callable[[str, Done | None], None],
        announce: Callable[[Announce], None],
        decided: Callable[[Decision], None],
        ha_lacks: Callable[[frozenset[str]], str],
    ) -> None:
        """``limit[R]`` scales a host's capacity. Nothing is done before ``mode_of`` is set.

        ``ha_lacks``: why the others could not take in the VMs of one that fails; or nothing.
        """
        self._registry = registry
        self._settings = settings.energy
        self._epoch = epoch
        self._clock = clock
        self._links = links
        self._power = power
        self._journal = journal
        self._record_host = record_host
        self._announce = announce
        self._decided = decided
        self.mode_of: Callable[[DecisionKind, HostEntry], DecisionMode] = _nobody_said
        registry.can_wake = power.can_wake
        registry.wakes_by = power.overrides_version
        self.core = EnergyCore(
            registry,
            decider,
            epoch,
            limit,
            policy_of(settings.energy),
            expire_s=settings.decisions.expire_s,
            mode_of=self._mode,
            expected=self._expected,
            ha_lacks=ha_lacks,
        )
        self._runner = CoreRunner(self.core, self._perform, clock)
        self.meter = EnergyMeter(registry, settings.energy.power_curve)
        self._written: dict[str, EnergyRecord] = {}
        self._next_part = 0
        self._questions = Questions[str]()
        self._expects: FloatArray = np.zeros(R)
        self._expected_s = -EXPECT_S
        self._metered_s = 0.0
        self._recorded_s = clock.monotonic_s()
        self._settled = asyncio.Event()
        self._tasks = TaskSet()

    # ------------------------------------------------------------ life

    async def load(self, coordinator: Coordinator) -> None:
        """Read what the last leader metered. Raises: RemoteError, ExecutionError."""
        entries = await coordinator.read_children(energy_records.ENERGY)
        self._written = {
            name.rpartition("/")[2]: records.decode(entry.data, EnergyRecord)
            for name, entry in entries.items()
        }
        record = join(list(self._written.values()))
        self.meter.load(record)
        for host_id, energy in record.hosts.items():
            if 0 < energy.wake_s <= MAX_WAKE_S:
                self.core.power.wake_times_s[host_id] = energy.wake_s

    def start(self) -> None:
        """Begin to read what BMCs measure."""
        self._tasks.spawn(self._read_meters())

    async def close(self) -> None:
        """Stop; hosts stay as they are, and the next leader goes on."""
        self.write_record()
        await self._tasks.close()
        self._questions.close(NotLeader("the leader changed; ask again", retry_after_s=0.5))

    def tick(self, *, settled: bool) -> None:
        """Time went by."""
        now_s = self._clock.monotonic_s()
        hosts = len(self._registry.hosts)
        self._runner.feed(events.Ticked(self._clock.wall_ms(), settled))
        if settled:
            self._settled.set()
        if settled and now_s - self._metered_s >= max(METER_S, hosts / METER_HOSTS_PER_S):
            self._metered_s = now_s
            self.meter.step(now_s, self._clock.wall_ms())
        if settled and now_s - self._recorded_s >= self._settings.record_s:
            self._recorded_s = now_s
            self.write_record(RECORDS_EACH)

    def followers(self) -> tuple[Follower, ...]:
        """What follows the registry host by host."""
        return self.core.table, self.meter

    def host_seen(self, host_id: str) -> None:
        """A host joined a manager."""
        self._runner.feed(events.HostSeen(host_id, self._clock.wall_ms()))

    def host_went(self, host_id: str) -> None:
        """A host's link to its manager closed."""
        self._runner.feed(events.HostWent(host_id, self._clock.wall_ms()))

    def write_record(self, most: int = 1_000_000) -> None:
        """Have the record keep what was metered; only what changed, at most so many of hosts."""
        operations: list[Operation] = []
        record = self.meter.record(self.core.power.wake_times_s)
        parts = split(record, HOSTS_EACH, SLOTS_EACH)
        hosts = sorted(name for name in parts if name.startswith("hosts-"))
        turn = self._next_part % max(1, len(hosts))
        left = {*(hosts[turn:] + hosts[:turn])[most:]}
        self._next_part = turn + most
        for name, part in parts.items():
            if name in left or same(part, self._written.get(name)):
                continue
            path, data = f"{energy_records.ENERGY}/{name}", records.encode(part)
            known = name in self._written
            operations.append(Put(path, data) if known else Create(path, data))
            self._written[name] = part
        if operations:
            self._journal.write(operations)

    # ------------------------------------------------------------ people

    async def sleep(self, name: str, *, force: bool) -> str:
        """Put a host to sleep; what is done about it, for people.

        Raises:
            NotFound, Conflict: nothing changed.
        """
        host_id, now_ms = self._host(name).description.host_id, self._clock.wall_ms()
        return await self._questions.ask(
            lambda number: self._runner.feed(events.SleepAsked(number, host_id, now_ms, force))
        )

    async def wake(self, name: str) -> str:
        """Wake a host; likewise. A repeat is harmless."""
        host_id, now_ms = self._host(name).description.host_id, self._clock.wall_ms()
        return await self._questions.ask(
            lambda number: self._runner.feed(events.WakeAsked(number, host_id, now_ms))
        )

    def judge(self, decision_id: str, approved: bool, who: str) -> bool:
        """A person approves of a proposed decision, or rejects it; whether it is one of ours."""
        if decision_id not in self.core.proposals:
            return False
        self._runner.feed(events.Judged(decision_id, approved, who, self._clock.wall_ms()))
        return True

    def want_room(self, name: str, demand: FloatArray, span_s: float) -> None:
        """Something besides VMs needs room on a sleeper, for so long."""
        until_s = self._clock.monotonic_s() + span_s
        self._runner.feed(events.RoomWanted(name, demand, until_s))

    def can_wake_for(self, vm: VmEntry) -> bool:
        """Whether there is a sleeper that could take a VM, and may be woken."""

        def is_willing(host: HostEntry) -> bool:
            return self.mode_of(DecisionKind.WAKE, host) is not DecisionMode.OFF

        now_s, limit = self._clock.monotonic_s(), self.core.limit
        return could_be_woken_for(self._registry, vm, limit, now_s, is_willing) is not None

    def view(self) -> EnergyView:
        """What was used and saved."""
        hosts: list[EnergyHostView] = []
        for host_id, meter in self.meter.hosts.items():
            host = self._registry.hosts.get(host_id)
            hosts.append(
                EnergyHostView(
                    id=host_id,
                    hostname=host.description.hostname if host else "",
                    power="" if host is None else host.state.value,
                    watts=round(meter.watts if host else 0.0, 1),
                    source=meter.source.value,
                    used_kwh=meter.used_j / J_PER_KWH,
                    saved_kwh=meter.saved_j / J_PER_KWH,
                    up_s=round(meter.up_s),
                    asleep_s=round(meter.asleep_s),
                    dead_s=round(meter.dead_s),
                )
            )
        hosts.sort(key=lambda view: (view.hostname, view.id))
        return EnergyView(
            enabled=self._settings.enabled,
            began_ms=self.meter.began_ms,
            watts=round(sum(view.watts for view in hosts), 1),
            used_kwh=sum(view.used_kwh for view in hosts),
            saved_kwh=sum(view.saved_kwh for view in hosts),
            hosts=hosts,
            past=[
                EnergySlotView(
                    slot.at_ms,
                    round(slot.watts, 1),
                    round(slot.watts + slot.saved_w, 1),
                    round(slot.up, 2),
                    round(slot.asleep, 2),
                )
                for slot in self.meter.past()
            ],
        )

    def _host(self, name: str) -> HostEntry:
        host = self._registry.find_host(name)
        if host is None:
            raise NotFound(f"no host is called {name!r}; `snooze hosts` lists them")
        return host

    # ------------------------------------------------------------ what the core asks

    def _mode(self, kind: DecisionKind, host_id: str) -> DecisionMode:
        """What people said of autonomy."""
        return self.mode_of(kind, self._registry.hosts[host_id])

    def _expected(self, _now_ms: int) -> FloatArray:
        """The rise of demand that the past days had after this hour."""
        if not self._settings.anticipation:
            return self._expects
        now_s = self._clock.monotonic_s()
        if now_s - self._expected_s >= EXPECT_S:
            self._expected_s = now_s
            ahead_s = self._settings.anticipation_s
            self._expects = self.meter.demand.anticipate(ahead_s).rise
        return self._expects

    # ------------------------------------------------------------ effects

    def _perform(self, effect: events.EnergyEffect) -> None:
        match effect:
            case events.RecordStep():
                self._record(effect)
            case events.OrderSleep():
                self._tasks.spawn(self._order_sleep(effect))
            case events.OrderWake():
                self._tasks.spawn(self._order_wake(effect))
            case events.LookAtPower():
                self._tasks.spawn(self._look(effect))
            case events.TellDecision():
                self._decided(effect.decision)
            case events.AnswerPerson():
                self._answer(effect)
            case Announce():
                self._announce(effect)
            case _:
                assert_never(effect)

    def _record(self, effect: events.RecordStep) -> None:
        if not effect.step_id:
            self._record_host(effect.host_id, None)
            return

        def done(error: ErrorReport | None) -> None:
            self._runner.feed(
                events.StepRecorded(effect.host_id, effect.step_id, self._clock.wall_ms(), error)
            )

        try:
            self._record_host(effect.host_id, done)
        except TooBusy as busy:
            done(ErrorReport.of(busy))

    async def _order_sleep(self, effect: events.OrderSleep) -> None:
        order = SleepHost(self._epoch, effect.cause, effect.host_id, effect.action)
        error, unknown = None, False
        try:
            link = self._links.require(effect.manager_id)
            await link.request(order, Accepted, SLEEP_TIMEOUT_S)
        except SnoozeError as failure:
            error = ErrorReport.of(failure)
            unknown = isinstance(failure, RemoteError) and was_sent(failure)
        now_ms = self._clock.wall_ms()
        self._runner.feed(
            events.SleepAnswered(effect.host_id, effect.step_id, now_ms, error, unknown)
        )

    async def _order_wake(self, effect: events.OrderWake) -> None:
        error = await self._tried(effect.host_id, lambda controller: controller.on())
        now_ms = self._clock.wall_ms()
        self._runner.feed(events.WakeAnswered(effect.host_id, effect.step_id, now_ms, error))

    async def _look(self, effect: events.LookAtPower) -> None:
        seen: list[PowerState] = []

        async def look(controller: PowerController) -> None:
            seen.append(await controller.state())

        await self._tried(effect.host_id, look)
        state = seen[0] if seen else None
        is_off = None if state in {None, PowerState.UNKNOWN} else state is PowerState.OFF
        self._runner.feed(
            events.PowerSeen(
                effect.host_id, effect.step_id, self._clock.wall_ms(), is_off, state is None
            )
        )

    async def _tried(
        self, host_id: str, do: Callable[[PowerController], Awaitable[None]]
    ) -> ErrorReport | None:
        """Do something with a host's power controller; why it failed, or None.

        Whatever goes wrong is an answer: a step whose answer never comes would stay as it is.
        """
        try:
            await do(self._power.controller(self._registry.hosts[host_id].description))
        except SnoozeError as error:
            logger.info(
                "a power controller failed", extra={"host": host_id, "error": error.message}
            )
            return ErrorReport.of(error)
        except Exception as error:
            logger.exception("a power controller has a defect", extra={"host": host_id})
            name = type(error).__name__
            return ErrorReport(ExecutionError.code, f"its power driver broke off ({name})")
        return None

    def _answer(self, effect: events.AnswerPerson) -> None:
        if effect.error is not None:
            self._questions.refuse(effect.request_id, effect.error)
        else:
            self._questions.answer(effect.request_id, effect.message)

    # ------------------------------------------------------------ metering

    async def _read_meters(self) -> None:
        """Ask every BMC for watts in turn; one that measures none is not asked again.

        Not before the meter knows the hosts: the first word would have it look at all at once.
        """
        await self._settled.wait()
        silent: dict[str, PowerDescription] = {}
        next_s = 0.0

        async def read(turns: Iterator[HostEntry]) -> None:
            nonlocal next_s
            for host in turns:
                now_s = self._clock.monotonic_s()
                next_s = max(now_s, next_s) + 1.0 / READINGS_PER_S
                await asyncio.sleep(next_s - now_s)
                await self._read_meter(host, silent)

        while True:
            began_s = self._clock.monotonic_s()
            hosts = [
                host
                for host_id, host in self._registry.hosts.items()
                if self._registry.can_wake(host.description)
                and silent.get(host_id) != host.description.power
            ]
            round_s = max(READ_S, len(hosts) / READINGS_PER_S)
            self.meter.fresh_s = max(FRESH_S, FRESH_ROUNDS * round_s)
            turns = iter(hosts)
            await asyncio.gather(*(read(turns) for _ in hosts[:MAX_READINGS]))
            await asyncio.sleep(max(1.0, began_s + READ_S - self._clock.monotonic_s()))

    async def _read_meter(self, host: HostEntry, silent: dict[str, PowerDescription]) -> None:
        """Ask one BMC for watts; ``silent``: those that measure none."""
        description = host.description
        watts: list[float | None] = []

        async def ask(controller: PowerController) -> None:
            watts.append(await controller.power_w())

        await self._tried(description.host_id, ask)
        if watts and watts[0] is not None:
            now_s = self._clock.monotonic_s()
            self.meter.measured(description.host_id, watts[0], now_s)
        elif watts:
            silent[description.host_id] = description.power


def policy_of(settings: EnergySettings) -> EnergyPolicy:
    """The settings as the core needs them."""
    return EnergyPolicy(
        enabled=settings.enabled,
        action=settings.action,
        idle_s=settings.idle_s,
        wake_s=settings.wake_s,
        min_on_s=settings.min_on_s,
        min_off_s=settings.min_off_s,
        reserved_hosts=settings.reserved_hosts,
        reserve_share=Capacity(settings.reserve_cpu, settings.reserve_memory),
        reserve_least=Capacity(settings.reserve_cpu_cores, settings.reserve_memory_kib),
        down_timeout_s=settings.down_timeout_s,
        wake_timeout_s=settings.wake_timeout_s,
        wake_tries=settings.wake_tries,
        power_curve=settings.power_curve,
    )

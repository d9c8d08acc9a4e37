"""Which hosts to put to sleep and which to wake: what the registry knows, as questions.

``scheduling.energy_question`` answers them. A question holds all that the answer depends on, and is
kept with the decisions that come of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from snooze.common.records import HostPower
from snooze.common.resources import FloatArray
from snooze.common.vm_lifecycle import VmState
from snooze.groupmanager.leader.energy_rules import (
    SLEEPERS,
    EnergyPolicy,
    Up,
    fits,
    is_up,
    may_be_on,
    reserve_of,
    room_of,
    waiting_vms,
)
from snooze.groupmanager.leader.energy_table import EnergyTable, IsWilling, WakeTimes, pays_s
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.scheduling import rulings
from snooze.scheduling.energy_question import (
    LEAST_IDLE_S,
    MAX_LINES,
    SLACK,
    Choice,
    HaLacks,
    IdleHost,
    Reserve,
    Sleeper,
    SleepQuestion,
    Waiting,
    WakeQuestion,
    amounts,
    choose_sleep,
    choose_wake,
)
from snooze.scheduling.power_curves import model_of
from snooze.scheduling.power_model import PowerModel

MAX_WAITING: Final = 256
"""VMs that one evaluation finds hosts for; the others' turn is the next."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What there is to say when hosts are chosen.

    Attributes:
        limit: ``[R]``, scales what hosts may be promised.
        table: which hosts could sleep or be woken.
        up: what is up.
        expected: ``[R]``, demand that is about to come.
        wake_times_s: how long hosts took to wake, as far as that was measured.
    """

    registry: Registry
    policy: EnergyPolicy
    limit: FloatArray
    table: EnergyTable
    up: Up
    expected: FloatArray
    wake_times_s: WakeTimes
    now_s: float
    now_ms: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """Hosts with the reason for each, in order; what else was weighed; and what replays it.

    ``ha_refused``: some host stays up for the HA reserve.
    """

    hosts: tuple[tuple[HostEntry, str], ...]
    alternatives: tuple[str, ...] = ()
    ha_refused: bool = False
    inputs: bytes = b""


@dataclass(slots=True)
class Room:
    """Something that needs room on a host that sleeps, and is no VM: a load that finds no target.

    ``until_s``: how long it is looked for; ``host_id``: the host that is to come for it.
    """

    name: str
    demand: FloatArray
    until_s: float
    host_id: str = ""


@dataclass(slots=True)
class _Ears:
    """Listens to what HA answers, so that it can be written down."""

    ask: HaLacks
    heard: list[str] = field(default_factory=list[str])

    def __call__(self, gone: frozenset[str]) -> str:
        self.heard.append(self.ask(gone))
        return self.heard[-1]


def choose_sleepers(
    look: Look, ha_lacks: HaLacks, is_willing: IsWilling, barred: set[str], proposed: set[str]
) -> Chosen:
    """Hosts that nobody needs: idle and up for long enough, the reserve held without them.

    ``is_willing``: whether a host may be sent to sleep; ``barred`` are left alone; ``proposed``
    too, and the reserve is to hold without them already. ``ha_lacks`` is told which hosts would be
    gone. Of hosts of one kind those that have been idle longest are looked at: if the reserve needs
    one of them, it needs all.
    """
    registry = look.registry
    left_alone = barred | proposed
    ripe, unripe = look.table.ripe(
        left_alone, is_willing, LEAST_IDLE_S, MAX_LINES, look.now_s, look.now_ms
    )
    if not ripe:
        return Chosen(())
    waiting = [vm for vm in registry.vms.on("") if vm.state is VmState.PENDING]
    hosts: list[HostEntry] = []
    others: list[str] = []
    for host in (registry.hosts[host_id] for host_id in (*ripe, *unripe)):
        wanted = None
        if waiting:
            [room] = room_of([host], look.limit)
            wanted = next((vm for vm in waiting if may_be_on(vm, host) and fits(vm, room)), None)
        if wanted is not None:
            others.append(f"{host.description.hostname}: VM {wanted.name} waits, and it has room")
        else:
            hosts.append(host)
    if not hosts:
        return Chosen(())
    question = _sleep_question(look, _idle_hosts(look, hosts), proposed)
    return _answered(look, question, ha_lacks, others)


def choose_asked(
    look: Look, ha_lacks: HaLacks, host: HostEntry, proposed: set[str], *, force: bool
) -> Chosen:
    """Whether a host on which there is nothing goes to sleep because a person wants it to."""
    idle = _idle_hosts(look, [host])
    question = msgspec.structs.replace(
        _sleep_question(look, idle, proposed - {_id(host)}),
        asked=_id(host),
        force=force,
        maintenance=host.maintenance,
    )
    return _answered(look, question, ha_lacks)


def _idle_hosts(look: Look, hosts: Sequence[HostEntry]) -> tuple[IdleHost, ...]:
    """Hosts as a question tells of them."""
    model, room = _model(hosts, look.policy), room_of(hosts, look.limit)
    saves, pays = model.idle_saving_w(), _pays_s(look, model, hosts)
    idle: list[IdleHost] = []
    for row, host in enumerate(hosts):
        up_s = look.now_s - host.seen_s
        if host.state_since_ms:
            up_s = (look.now_ms - host.state_since_ms) / 1000
        manager = look.registry.managers.get(host.manager_id)
        since_s = look.now_s if manager is None else manager.idle.get(_id(host), look.now_s)
        idle.append(
            IdleHost(
                _id(host),
                host.description.hostname,
                amounts(room[row]),
                round(look.now_s - since_s, 3),
                round(up_s, 3),
                float(saves[row]),
                float(pays[row]),
            )
        )
    return tuple(idle)


def _sleep_question(look: Look, idle: tuple[IdleHost, ...], proposed: set[str]) -> SleepQuestion:
    policy, hosts = look.policy, look.registry.hosts
    leaving = [host_id for host_id in sorted(proposed) if is_up(hosts[host_id])]
    gone: FloatArray = room_of([hosts[host_id] for host_id in leaving], look.limit).sum(axis=0)
    return SleepQuestion(
        idle,
        reserve_of(policy, look.up, look.expected),
        policy.idle_s,
        policy.min_on_s,
        tuple(leaving),
        amounts(gone),
    )


def _answered(
    look: Look, question: SleepQuestion, ha_lacks: HaLacks, others: Iterable[str] = ()
) -> Chosen:
    """The answer to a question, with what HA said to it."""
    ears = _Ears(ha_lacks)
    choice = choose_sleep(question, ears)
    question = msgspec.structs.replace(question, ha=tuple(ears.heard))
    return _chosen(look.registry, rulings.SLEEP, question, choice, others)


def _id(host: HostEntry) -> str:
    return host.description.host_id


def _chosen(
    registry: Registry,
    kind: str,
    question: SleepQuestion | WakeQuestion,
    choice: Choice,
    others: Iterable[str] = (),
) -> Chosen:
    return Chosen(
        tuple((registry.hosts[host_id], reason) for host_id, reason in choice.hosts),
        (*choice.others, *list(others)[: max(0, MAX_LINES - len(choice.others))]),
        choice.ha_refused,
        rulings.pack(kind, question, choice) if choice.hosts else b"",
    )


def choose_wakers(
    look: Look, ha: str, is_willing: IsWilling, coming: set[str], wanted: Sequence[Room]
) -> Chosen:
    """Hosts that VMs wait for (each is told which), and those that the reserve lacks.

    A VM whose host is on its way keeps it. ``ha``: what HA lacks of the hosts that are up; empty:
    nothing. ``is_willing``: whether a host may be woken; ``coming``: those on their way;
    ``wanted``: room besides. Of hosts of one kind those that have slept longest are looked at, as
    many as can be needed at once.
    """
    registry, policy = look.registry, look.policy
    waiting = waiting_vms(registry, look.now_s, look.now_ms)
    served = [vm for vm in waiting if vm.waits_for in coming]
    vms = [vm for vm in waiting if vm.waits_for not in coming][:MAX_WAITING]
    promised = _promised(served)
    reserve = reserve_of(policy, look.up, look.expected) if policy.enabled else None
    if not vms and not wanted and not ha and _is_kept(look, reserve, coming, promised):
        return Chosen(())
    hosts = _wakeable(look, is_willing, coming, vms)
    if not hosts:
        for vm in vms:
            vm.waits_for = ""
        return Chosen(())
    needs = [_waiting(vm, hosts) for vm in vms]
    needs += [Waiting(each.name, amounts(each.demand)) for each in wanted]
    sleepers = _sleepers(look, hosts, _room_left(look, hosts, promised), coming)
    question = WakeQuestion(sleepers, tuple(needs), policy.min_off_s, reserve, ha)
    choice = choose_wake(question)
    for vm, host_id in zip(vms, choice.waits, strict=False):
        vm.waits_for = host_id
    for each, host_id in zip(wanted, choice.waits[len(vms) :], strict=True):
        each.host_id = host_id
    return _chosen(registry, rulings.WAKE, question, choice)


def _promised(served: Iterable[VmEntry]) -> dict[str, FloatArray]:
    """``[R]`` of each host that is on its way: what the VMs that wait for it take."""
    promised: dict[str, FloatArray] = {}
    for vm in served:
        host_id, need = vm.waits_for or "", vm.demand.as_array()
        promised[host_id] = promised[host_id] + need if host_id in promised else need
    return promised


def _room_left(
    look: Look, hosts: Sequence[HostEntry], promised: Mapping[str, FloatArray]
) -> FloatArray:
    """``[H, R]``, what each host can take besides what VMs wait for it with."""
    room = room_of(hosts, look.limit)
    for row, host in enumerate(hosts):
        if (taken := promised.get(_id(host))) is not None:
            room[row] = np.maximum(room[row] - taken, 0.0)
    return room


def _is_kept(
    look: Look, reserve: Reserve | None, coming: set[str], promised: Mapping[str, FloatArray]
) -> bool:
    """Whether the reserve holds, with what is on its way."""
    if reserve is None:
        return True
    hosts = [look.registry.hosts[host_id] for host_id in coming]
    on_way = _room_left(look, hosts, promised)
    enough = reserve.up + len(coming) >= reserve.hosts
    return enough and not (reserve.missing(on_way.sum(axis=0)) > SLACK).any()


def _wakeable(
    look: Look, is_willing: IsWilling, coming: set[str], vms: Sequence[VmEntry]
) -> list[HostEntry]:
    """The sleepers among which is chosen, by id: those asleep, and those going down or coming."""
    hosts = look.registry.hosts
    found = set(look.table.longest_asleep(MAX_WAITING, is_willing)) | coming
    on_move = (_id(host) for host in hosts.in_state(SLEEPERS - {HostPower.ASLEEP}))
    found.update(host_id for host_id in on_move if is_willing(host_id))
    pins = {vm.pin_host for vm in vms if vm.pin_host} - found
    found.update(host_id for host_id in pins if host_id in hosts and is_willing(host_id))
    managers = {vm.pin_manager for vm in vms if vm.pin_manager}
    if managers:
        asleep = hosts.in_state({HostPower.ASLEEP})
        theirs = {_id(host) for host in asleep if host.manager_id in managers} - found
        found.update(host_id for host_id in theirs if is_willing(host_id))
    return [hosts[host_id] for host_id in sorted(found) if hosts[host_id].state in SLEEPERS]


def wake_asked(look: Look, host: HostEntry) -> Chosen:
    """A host that a person wants awake."""
    sleepers = _sleepers(look, [host], room_of([host], look.limit), set())
    question = WakeQuestion(sleepers, (), look.policy.min_off_s, asked=_id(host))
    return _chosen(look.registry, rulings.WAKE, question, choose_wake(question))


def _sleepers(
    look: Look, hosts: Sequence[HostEntry], room: FloatArray, coming: set[str]
) -> tuple[Sleeper, ...]:
    """Hosts with ``room[H, R]`` as a question tells of them."""
    model = _model(hosts, look.policy)
    cost = model.curve_w[:, -1] - model.asleep_w
    pays = _pays_s(look, model, hosts)
    return tuple(
        Sleeper(
            _id(host),
            host.description.hostname,
            amounts(room[row]),
            _id(host) in coming,
            host.state is HostPower.ASLEEP,
            float(cost[row]),
            (look.now_ms - host.state_since_ms) / 1000,
            float(pays[row]),
        )
        for row, host in enumerate(hosts)
    )


def _waiting(vm: VmEntry, hosts: list[HostEntry]) -> Waiting:
    allowed = None
    if vm.pin_host or vm.pin_manager:
        allowed = tuple(_id(host) for host in hosts if may_be_on(vm, host))
    return Waiting(f"VM {vm.name}", vm.demand.as_tuple(), allowed)


def _model(hosts: Sequence[HostEntry], policy: EnergyPolicy) -> PowerModel:
    described = [(h.description.power, h.description.capacity.cpu_cores) for h in hosts]
    return model_of(described, policy.power_curve)


def _pays_s(look: Look, model: PowerModel, hosts: Sequence[HostEntry]) -> FloatArray:
    """How long each host has to sleep to pay for waking it.

    How long that takes was measured, of it or (the mean) of others; else it is a setting.
    """
    known_s = look.wake_times_s
    others_s = known_s.mean(look.policy.wake_s)
    return pays_s(model, np.array([known_s.get(_id(host), others_s) for host in hosts]))

"""Which hosts to put to sleep and which to wake: what the registry knows, as questions.

``scheduling.energy_question`` answers them. A question holds all that the answer depends on, and is
kept with the decisions that come of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    Fleet,
    action_for,
    fits,
    is_wakeable,
    may_be_on,
    occupied,
    reserve_of,
    room_of,
    waiting_vms,
)
from snooze.groupmanager.leader.registry import HostEntry, Registry, VmEntry
from snooze.scheduling import rulings
from snooze.scheduling.energy_question import (
    MAX_LINES,
    SLACK,
    Choice,
    HaLacks,
    IdleHost,
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
MIN_SAVED_W: Final = 0.1
"""A host that saves less never pays for waking it."""
MAX_PAYS_S: Final = 7 * 86_400.0


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
    registry: Registry,
    policy: EnergyPolicy,
    fleet: Fleet,
    expected: FloatArray,
    ha_lacks: Callable[[frozenset[str]], str],
    barred: set[str],
    proposed: set[str],
    wake_times_s: Mapping[str, float],
    now_s: float,
    now_ms: int,
    asked: str = "",
    force: bool = False,
) -> Chosen:
    """Hosts that nobody needs: idle and up for long enough, the reserve held without them.

    ``barred`` are left alone; ``proposed`` too, and the reserve is to hold without them already.
    ``ha_lacks`` is told which hosts would stay. ``asked``: only that host, for a person.
    """
    taken = occupied(registry)
    waiting = [vm for vm in registry.vms.values() if vm.state is VmState.PENDING and not vm.host_id]
    idle_s: dict[str, float] = {}
    for manager in registry.managers.values():
        idle_s.update(manager.idle)
    rows: list[int] = []
    others: list[str] = []
    for row, host in enumerate(fleet.hosts):
        host_id = host.description.host_id
        if asked:
            if host_id == asked:
                rows.append(row)
            continue
        if (
            host_id in barred
            or host_id in proposed
            or host_id in taken
            or not host.joined
            or host_id not in idle_s
            or not is_wakeable(registry, host)
            or not action_for(policy, host)
        ):
            continue
        wanted = next(
            (vm for vm in waiting if may_be_on(vm, host) and fits(vm, fleet.room[row])), None
        )
        if wanted is not None:
            others.append(f"{host.description.hostname}: VM {wanted.name} waits, and it has room")
            continue
        rows.append(row)
    if not rows:
        return Chosen(())
    model = _model([fleet.hosts[row] for row in rows], policy)
    saves, pays = model.idle_saving_w(), _pays_s(model, policy, fleet, rows, wake_times_s)
    idle: list[IdleHost] = []
    for index, row in enumerate(rows):
        host = fleet.hosts[row]
        host_id = host.description.host_id
        up_s = (now_ms - host.state_since_ms) / 1000 if host.state_since_ms else now_s - host.seen_s
        idle.append(
            IdleHost(
                host_id,
                host.description.hostname,
                amounts(fleet.room[row]),
                round(idle_s.get(host_id, 0.0), 3),
                round(up_s, 3),
                float(saves[index]),
                float(pays[index]),
            )
        )
    leaving = np.array([h.description.host_id in proposed for h in fleet.hosts], dtype=np.bool_)
    gone: FloatArray = fleet.room[leaving].sum(axis=0)
    question = SleepQuestion(
        tuple(idle),
        reserve_of(policy, fleet, expected),
        policy.idle_s,
        policy.min_on_s,
        tuple(sorted(host.description.host_id for host in fleet.hosts if _id(host) in proposed)),
        amounts(gone),
        asked,
        force,
    )
    up = frozenset(host.description.host_id for host in fleet.hosts)
    ears = _Ears(lambda going: ha_lacks(up - going))
    choice = choose_sleep(question, ears)
    question = msgspec.structs.replace(question, ha=tuple(ears.heard))
    return _chosen(registry, rulings.SLEEP, question, choice, others)


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
    registry: Registry,
    policy: EnergyPolicy,
    fleet: Fleet,
    expected: FloatArray,
    limit: FloatArray,
    ha: str,
    willing: set[str],
    coming: set[str],
    wanted: Sequence[Room],
    wake_times_s: Mapping[str, float],
    now_s: float,
    now_ms: int,
) -> Chosen:
    """Hosts that VMs wait for (each is told which), and those that the reserve lacks.

    ``ha``: what HA lacks of the hosts that are up; empty: nothing. ``wanted``: room besides.
    """
    hosts = [
        host
        for host_id, host in sorted(registry.hosts.items())
        if host.state in SLEEPERS and (host_id in willing or host_id in coming)
    ]
    vms = waiting_vms(registry, MAX_WAITING, now_s)
    needs = [_waiting(vm, hosts) for vm in vms]
    needs += [Waiting(each.name, amounts(each.demand)) for each in wanted]
    reserve = reserve_of(policy, fleet, expected) if policy.enabled else None
    if not hosts:
        for vm in vms:
            vm.waits_for = ""
        return Chosen(())
    room = room_of(hosts, limit)
    on_way = np.array([_id(host) in coming for host in hosts], dtype=np.bool_)
    if not needs and not ha:
        if reserve is None:
            return Chosen(())
        enough = reserve.up + int(on_way.sum()) >= reserve.hosts
        if enough and not (reserve.missing(room[on_way].sum(axis=0)) > SLACK).any():
            return Chosen(())
    model = _model(hosts, policy)
    cost = model.curve_w[:, -1] - model.asleep_w
    pays = _pays_s(model, policy, Fleet(tuple(hosts), room, room), range(len(hosts)), wake_times_s)
    question = WakeQuestion(
        tuple(
            Sleeper(
                _id(host),
                host.description.hostname,
                amounts(room[row]),
                bool(on_way[row]),
                host.state is HostPower.ASLEEP,
                float(cost[row]),
                (now_ms - host.state_since_ms) / 1000,
                float(pays[row]),
            )
            for row, host in enumerate(hosts)
        ),
        tuple(needs),
        policy.min_off_s,
        reserve,
        ha,
    )
    choice = choose_wake(question)
    for vm, host_id in zip(vms, choice.waits, strict=False):
        vm.waits_for = host_id
    for each, host_id in zip(wanted, choice.waits[len(vms) :], strict=True):
        each.host_id = host_id
    return _chosen(registry, rulings.WAKE, question, choice)


def _waiting(vm: VmEntry, hosts: list[HostEntry]) -> Waiting:
    allowed = None
    if vm.pin_host or vm.pin_manager:
        allowed = tuple(_id(host) for host in hosts if may_be_on(vm, host))
    return Waiting(f"VM {vm.name}", vm.demand.as_tuple(), allowed)


def _model(hosts: list[HostEntry], policy: EnergyPolicy) -> PowerModel:
    described = [(h.description.power, h.description.capacity.cpu_cores) for h in hosts]
    return model_of(described, policy.power_curve)


def _pays_s(
    model: PowerModel,
    policy: EnergyPolicy,
    fleet: Fleet,
    rows: Iterable[int],
    wake_times_s: Mapping[str, float],
) -> FloatArray:
    """How long each host has to sleep to save what waking it takes: full power till it serves.

    How long that is was measured, of it or (the mean) of others; else it is a setting.
    """
    others_s = sum(wake_times_s.values()) / len(wake_times_s) if wake_times_s else policy.wake_s
    wake_s = np.array([wake_times_s.get(_id(fleet.hosts[row]), others_s) for row in rows])
    saves = np.maximum(model.idle_saving_w(), MIN_SAVED_W)
    pays: FloatArray = np.minimum(model.curve_w[:, -1] * wake_s / saves, MAX_PAYS_S)
    return pays

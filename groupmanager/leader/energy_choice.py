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
    Fleet,
    action_for,
    fits,
    is_wakeable,
    may_be_on,
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


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What there is to say when hosts are chosen.

    Attributes:
        limit: ``[R]``, scales what hosts may be promised.
        fleet: what is up.
        expected: ``[R]``, demand that is about to come.
        wake_times_s: how long hosts took to wake, as far as that was measured.
    """

    registry: Registry
    policy: EnergyPolicy
    limit: FloatArray
    fleet: Fleet
    expected: FloatArray
    wake_times_s: Mapping[str, float]
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


def choose_sleepers(look: Look, ha_lacks: HaLacks, barred: set[str], proposed: set[str]) -> Chosen:
    """Hosts that nobody needs: idle and up for long enough, the reserve held without them.

    ``barred`` are left alone; ``proposed`` too, and the reserve is to hold without them already.
    ``ha_lacks`` is told which hosts would stay.
    """
    registry, policy, fleet = look.registry, look.policy, look.fleet
    waiting = [vm for vm in registry.vms.on("") if vm.state is VmState.PENDING]
    idle_s = _idle_times_s(look)
    rows: list[int] = []
    others: list[str] = []
    for row, host in enumerate(fleet.hosts):
        host_id = _id(host)
        if (
            host_id in barred
            or host_id in proposed
            or registry.vms.is_any_on(host_id)
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
    hosts = [fleet.hosts[row] for row in rows]
    room: FloatArray = fleet.room[rows]
    question = _sleep_question(look, _idle_hosts(look, hosts, room, idle_s), proposed)
    return _answered(look, question, ha_lacks, others)


def choose_asked(
    look: Look, ha_lacks: HaLacks, host: HostEntry, proposed: set[str], *, force: bool
) -> Chosen:
    """Whether a host on which there is nothing goes to sleep because a person wants it to."""
    room = room_of([host], look.limit)
    idle = _idle_hosts(look, [host], room, _idle_times_s(look))
    question = msgspec.structs.replace(
        _sleep_question(look, idle, proposed - {_id(host)}),
        asked=_id(host),
        force=force,
        maintenance=host.maintenance,
    )
    return _answered(look, question, ha_lacks)


def _idle_times_s(look: Look) -> dict[str, float]:
    idle_s: dict[str, float] = {}
    for manager in look.registry.managers.values():
        idle_s.update((host_id, look.now_s - since) for host_id, since in manager.idle.items())
    return idle_s


def _idle_hosts(
    look: Look, hosts: Sequence[HostEntry], room: FloatArray, idle_s: Mapping[str, float]
) -> tuple[IdleHost, ...]:
    """Hosts with ``room[H, R]`` as a question tells of them."""
    model = _model(hosts, look.policy)
    saves, pays = model.idle_saving_w(), _pays_s(look, model, hosts)
    idle: list[IdleHost] = []
    for row, host in enumerate(hosts):
        up_s = look.now_s - host.seen_s
        if host.state_since_ms:
            up_s = (look.now_ms - host.state_since_ms) / 1000
        idle.append(
            IdleHost(
                _id(host),
                host.description.hostname,
                amounts(room[row]),
                round(idle_s.get(_id(host), 0.0), 3),
                round(up_s, 3),
                float(saves[row]),
                float(pays[row]),
            )
        )
    return tuple(idle)


def _sleep_question(look: Look, idle: tuple[IdleHost, ...], proposed: set[str]) -> SleepQuestion:
    policy, fleet = look.policy, look.fleet
    leaving = np.array([_id(host) in proposed for host in fleet.hosts], dtype=np.bool_)
    gone: FloatArray = fleet.room[leaving].sum(axis=0)
    return SleepQuestion(
        idle,
        reserve_of(policy, fleet, look.expected),
        policy.idle_s,
        policy.min_on_s,
        tuple(sorted(_id(host) for host in fleet.hosts if _id(host) in proposed)),
        amounts(gone),
    )


def _answered(
    look: Look, question: SleepQuestion, ha_lacks: HaLacks, others: Iterable[str] = ()
) -> Chosen:
    """The answer to a question, with what HA said to it."""
    up = frozenset(_id(host) for host in look.fleet.hosts)
    ears = _Ears(lambda going: ha_lacks(up - going))
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
    look: Look, ha: str, willing: set[str], coming: set[str], wanted: Sequence[Room]
) -> Chosen:
    """Hosts that VMs wait for (each is told which), and those that the reserve lacks.

    ``ha``: what HA lacks of the hosts that are up; empty: nothing. ``wanted``: room besides.
    """
    registry, policy = look.registry, look.policy
    hosts = [
        host
        for host_id, host in sorted(registry.hosts.items())
        if host.state in SLEEPERS and (host_id in willing or host_id in coming)
    ]
    vms = waiting_vms(registry, MAX_WAITING, look.now_s, look.now_ms)
    needs = [_waiting(vm, hosts) for vm in vms]
    needs += [Waiting(each.name, amounts(each.demand)) for each in wanted]
    reserve = reserve_of(policy, look.fleet, look.expected) if policy.enabled else None
    if not hosts:
        for vm in vms:
            vm.waits_for = ""
        return Chosen(())
    room = room_of(hosts, look.limit)
    on_way = np.array([_id(host) in coming for host in hosts], dtype=np.bool_)
    if not needs and not ha:
        if reserve is None:
            return Chosen(())
        enough = reserve.up + int(on_way.sum()) >= reserve.hosts
        if enough and not (reserve.missing(room[on_way].sum(axis=0)) > SLACK).any():
            return Chosen(())
    sleepers = _sleepers(look, hosts, room, coming)
    question = WakeQuestion(sleepers, tuple(needs), policy.min_off_s, reserve, ha)
    choice = choose_wake(question)
    for vm, host_id in zip(vms, choice.waits, strict=False):
        vm.waits_for = host_id
    for each, host_id in zip(wanted, choice.waits[len(vms) :], strict=True):
        each.host_id = host_id
    return _chosen(registry, rulings.WAKE, question, choice)


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
    """How long each host has to sleep to save what waking it takes: full power till it serves.

    How long that is was measured, of it or (the mean) of others; else it is a setting.
    """
    known_s = look.wake_times_s
    others_s = sum(known_s.values()) / len(known_s) if known_s else look.policy.wake_s
    wake_s = np.array([known_s.get(_id(host), others_s) for host in hosts])
    saves = np.maximum(model.idle_saving_w(), MIN_SAVED_W)
    pays: FloatArray = np.minimum(model.curve_w[:, -1] * wake_s / saves, MAX_PAYS_S)
    return pays

"""Which idle hosts sleep and which sleepers are woken: questions that hold all they depend on.

Rules of ``choose_sleep``:

1. A host sleeps after it was idle for ``idle_s``; if that is 0, for as long as sleeping has to last
   to pay for waking it (``pays_s``), at least ``LEAST_IDLE_S``; and up for ``min_on_s``. Who waits
   as long as what he buys pays for never pays more than twice what somebody would who knows the
   future. Source: Karlin, Manasse, Rudolph, Sleator, "Competitive Snoopy Caching", 1988.
2. What stays up keeps the reserve, what is expected and what HA needs. Whoever saves most goes
   first.
3. A person who asks for one host is held up by its maintenance, the reserve and HA only; with force
   by nothing.

Rules of ``choose_wake``:

1. VMs that wait come first: hosts on their way, then as few watts more as possible; then what the
   reserve lacks, on every axis; then the number of hosts; then HA, one host at a time.
2. A host that has not slept for ``min_off_s``, or not for long enough to pay for waking it, is
   woken last, and not at all for the reserve in its first ``min_off_s``. Of equal hosts the one
   that slept longest is woken.
3. A person who asks for a host gets it, whatever else waits.

Questions can be written down and asked again (``rulings.py``). What HA answered is a part of the
question, in the order in which it was asked.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from snooze.common.resources import Axis, FloatArray, R
from snooze.scheduling.model import BoolArray
from snooze.scheduling.waking import cover, plan_wakes

SLACK: Final = 1e-9
LEAST_IDLE_S: Final = 60.0
"""A host that wakes in no time is still not sent to sleep between two VMs."""
MAX_LINES: Final = 10
"""Alternatives that are named."""
MAX_SLEEPS: Final = 8
"""Hosts that one answer puts to sleep."""
LAST_RESORT: Final = 1000.0
"""What a host that should sleep on costs, as a multiple: others are woken before it."""

Amounts = tuple[float, float, float, float]
"""``[R]``, in the units of ``common.resources``."""


def amounts(values: FloatArray) -> Amounts:
    """An array ``[R]`` as it stands in a question."""
    cpu, memory, rx, tx = values.tolist()
    return (cpu, memory, rx, tx)


class Reserve(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is up, and what of it has to stay free.

    Attributes:
        hosts: at least so many stay up.
        up: hosts that are up.
        room, free: of all of them.
        share, least: the part of what is up, or the figure, whichever is more.
        expected: demand about to come, on top.
    """

    hosts: int
    up: int
    room: Amounts
    free: Amounts
    share: Amounts
    least: Amounts
    expected: Amounts

    def missing(self, change: FloatArray) -> FloatArray:
        """``[R]``: what lacks if so much room, all of it free, comes (or goes, if negative)."""
        room, free = np.array(self.room) + change, np.array(self.free) + change
        needed = np.maximum(np.array(self.share) * room, np.array(self.least))
        short: FloatArray = needed + np.array(self.expected) - free
        short[[Axis.RX, Axis.TX]] = 0.0
        return short

    def why_not(self, gone: FloatArray) -> str:
        """What would be missing without so much room; empty: nothing."""
        short = self.missing(-gone)
        room = np.array(self.room) - gone
        for axis, name, unit in (
            (Axis.CPU, "cores", "cores"),
            (Axis.MEMORY, "memory", "KiB of memory"),
        ):
            if short[axis] > SLACK * max(1.0, float(room[axis])):
                return f"the reserve of {name} would lack {short[axis]:.6g} {unit}"
        return ""


class IdleHost(msgspec.Struct, frozen=True):
    """A host on which there is nothing.

    Attributes:
        room: what VMs may be promised there.
        saves_w: watts less when it sleeps.
        pays_s: how long it has to sleep to pay for waking it.
    """

    id: str
    name: str
    room: Amounts
    idle_s: float
    up_s: float
    saves_w: float
    pays_s: float


class SleepQuestion(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who goes to sleep?

    Attributes:
        idle: hosts that could, in any order.
        leaving: ids of hosts that are proposed to sleep: the reserve holds without them.
        gone: the room of those.
        asked: a person asks for this host, ``force``: whatever the reserve.
        maintenance: that host is in maintenance, and so no part of the reserve.
        ha: what HA said, see the module.
    """

    idle: tuple[IdleHost, ...]
    reserve: Reserve
    idle_s: float
    min_on_s: float
    leaving: tuple[str, ...] = ()
    gone: Amounts = (0.0, 0.0, 0.0, 0.0)
    asked: str = ""
    force: bool = False
    maintenance: bool = False
    ha: tuple[str, ...] = ()


class Choice(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer: hosts and why each, in order; what else was weighed.

    Attributes:
        waits: of a wake question, the host that each VM waits for; empty: none.
        ha_refused: some host stays up for HA.
    """

    hosts: tuple[tuple[str, str], ...] = ()
    others: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()
    ha_refused: bool = False


HaLacks = Callable[[frozenset[str]], str]
"""Why HA would not hold without these hosts; empty: it would."""


def choose_sleep(question: SleepQuestion, ha_lacks: HaLacks) -> Choice:
    """Who goes to sleep; asks ``ha_lacks`` about those that would be gone then."""
    if question.asked:
        return _asked(question, ha_lacks)
    others: list[str] = []
    ripe: list[IdleHost] = []
    for host in question.idle:
        least_s = question.idle_s or max(host.pays_s, LEAST_IDLE_S)
        if host.idle_s < least_s:
            why = f"idle for {host.idle_s:.0f} s of {least_s:.0f}"
            if not question.idle_s:
                why += " (waking it costs what it saves in that time)"
            others.append(f"{host.name}: {why}")
        elif host.up_s < question.min_on_s:
            others.append(f"{host.name}: up for {host.up_s:.0f} s of {question.min_on_s:.0f}")
        else:
            ripe.append(host)
    ripe.sort(key=lambda host: (-host.saves_w, -host.idle_s, host.id))
    chosen: list[IdleHost] = []
    gone: FloatArray = np.array(question.gone)
    staying = question.reserve.up - len(question.leaving)
    refused: list[str] = []
    for host in ripe:
        if len(chosen) >= MAX_SLEEPS:
            break
        without = gone + np.array(host.room)
        why = _too_few(question.reserve, staying) or question.reserve.why_not(without)
        if why:
            refused.append(f"{host.name}: {why}")
            continue
        gone, staying = without, staying - 1
        chosen.append(host)
    ha_refused = False
    # All at once, then half of them, and so on: each look at the HA reserve costs.
    while chosen:
        why = ha_lacks(frozenset(host.id for host in chosen) | frozenset(question.leaving))
        if not why:
            break
        ha_refused = True
        refused += [f"{host.name}: {why}" for host in chosen[len(chosen) // 2 :]]
        chosen = chosen[: len(chosen) // 2]
    return Choice(
        tuple((h.id, f"idle for {h.idle_s:.0f} s; saves {h.saves_w:.0f} W") for h in chosen),
        tuple((refused + others)[:MAX_LINES]),
        ha_refused=ha_refused,
    )


def _too_few(reserve: Reserve, staying: int) -> str:
    """Why none of so many hosts may go; empty: one may."""
    return f"of {reserve.up} hosts {reserve.hosts} stay up" if staying <= reserve.hosts else ""


def _asked(question: SleepQuestion, ha_lacks: HaLacks) -> Choice:
    host = next((host for host in question.idle if host.id == question.asked), None)
    if host is None:
        return Choice(others=("it is not idle",))
    if question.maintenance:
        why = "it is in maintenance"
    else:
        gone = np.array(question.gone) + np.array(host.room)
        staying = question.reserve.up - len(question.leaving)
        why = _too_few(question.reserve, staying) or question.reserve.why_not(gone)
        why = why or ha_lacks(frozenset({host.id, *question.leaving}))
    if why and not question.force:
        return Choice(others=(why,))
    reason = "a person asked, with force" if question.force else "a person asked"
    stays = f"leave {host.name} up: {why or f'it would use {host.saves_w:.0f} W more'}"
    return Choice(((host.id, reason),), (stays,))


class Sleeper(msgspec.Struct, frozen=True):
    """A host that is not up.

    Attributes:
        coming: it is on its way up.
        asleep: it may be woken for a reserve (one that still goes down may not).
        costs_w: watts more when it is up.
        slept_s, pays_s: how long it has slept; how long that has to be to pay for waking it.
    """

    id: str
    name: str
    room: Amounts
    coming: bool
    asleep: bool
    costs_w: float
    slept_s: float
    pays_s: float


class Waiting(msgspec.Struct, frozen=True, omit_defaults=True):
    """What needs room that no host in reach has; ``hosts``: ids where alone it may be."""

    name: str
    demand: Amounts
    hosts: tuple[str, ...] | None = None


class WakeQuestion(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who is woken?

    Attributes:
        reserve: None: none is kept.
        ha: why HA does not hold with what is up; empty: it does.
        asked: a person asks for this host.
    """

    sleepers: tuple[Sleeper, ...]
    waiting: tuple[Waiting, ...]
    min_off_s: float
    reserve: Reserve | None = None
    ha: str = ""
    asked: str = ""


def choose_wake(question: WakeQuestion) -> Choice:
    """Who is woken, and which host each VM waits for."""
    sleepers, waiting = question.sleepers, question.waiting
    for host in sleepers:
        if host.id == question.asked:
            return Choice(
                ((host.id, "a person asked"),),
                (f"leave {host.name} as it is: it would use {host.costs_w:.0f} W less",),
            )
    if not sleepers:
        return Choice(waits=("",) * len(waiting))
    room = np.array([host.room for host in sleepers])
    on_way = np.array([host.coming for host in sleepers], dtype=np.bool_)
    rested = np.array([host.slept_s >= question.min_off_s for host in sleepers], dtype=np.bool_)
    paid = np.array([host.slept_s >= host.pays_s for host in sleepers], dtype=np.bool_)
    cost = np.array([max(host.costs_w, 1.0) for host in sleepers])
    cost = np.where(rested & paid, cost, cost * LAST_RESORT)
    # Ties go to the first: the one that slept longest.
    order = sorted(range(len(sleepers)), key=lambda row: (-sleepers[row].slept_s, sleepers[row].id))
    left = room.copy()
    chosen: list[tuple[int, str]] = []
    waits = [""] * len(waiting)
    if waiting:
        demand = np.array([each.demand for each in waiting]).reshape(-1, R)
        allowed = np.ones((len(waiting), len(sleepers)), dtype=np.bool_)
        for index, each in enumerate(waiting):
            if each.hosts is not None:
                allowed[index] = [sleepers[row].id in each.hosts for row in order]
        plan = plan_wakes(demand, allowed, room[order], on_way[order], cost[order])
        positions: list[int] = plan.host_of.tolist()
        for index, position in enumerate(positions):
            if position >= 0:
                waits[index] = sleepers[order[position]].id
                left[order[position]] -= demand[index]
        for position in plan.wake:
            row = order[position]
            names = [
                each.name for each, at in zip(waiting, plan.host_of, strict=True) if at == position
            ]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            chosen.append((row, f"{', '.join(names[:3])}{more} waits for room"))
            on_way[row] = True
    if question.reserve is not None:
        ready = [r for r in order if not on_way[r] and rested[r] and sleepers[r].asleep]
        chosen += _for_reserve(question.reserve, left, on_way, cost, ready)
    if question.ha and not on_way.any():
        ready = [row for row in order if sleepers[row].asleep]
        if ready:
            cheapest = min(ready, key=lambda row: float(cost[row]))
            chosen.append((cheapest, question.ha))
            on_way[cheapest] = True
    others = [
        f"{host.name}: {host.costs_w:.0f} W more"
        + ("" if rested[row] and paid[row] else f", and it went to sleep {host.slept_s:.0f} s ago")
        for row, host in enumerate(sleepers)
        if not on_way[row]
    ]
    return Choice(
        tuple((sleepers[row].id, reason) for row, reason in chosen),
        tuple(others[:MAX_LINES]),
        tuple(waits),
    )


def _for_reserve(
    reserve: Reserve,
    left: FloatArray,
    on_way: BoolArray,
    cost: FloatArray,
    ready: Sequence[int],
) -> list[tuple[int, str]]:
    """Hosts that fill up the reserve, what is on its way counted in; marks them in ``on_way``."""
    if not ready:
        return []
    coming = int(on_way.sum())
    missing = reserve.missing(left[on_way].sum(axis=0))
    lacks = ", ".join(
        f"{missing[axis]:.6g} {unit}"
        for axis, unit in ((Axis.CPU, "cores"), (Axis.MEMORY, "KiB of memory"))
        if missing[axis] > SLACK
    )
    rows = list(ready)
    chosen = [
        (rows[index], f"the reserve lacks {lacks}")
        for index in cover(missing, left[rows], cost[rows])
    ]
    for row, _ in chosen:
        on_way[row] = True
    up = reserve.up + coming + len(chosen)
    for row in rows:
        if up >= reserve.hosts:
            break
        if not on_way[row]:
            chosen.append((row, f"{reserve.hosts} of the hosts are to be up"))
            on_way[row] = True
            up += 1
    return chosen

"""What puts leases on trial: the stories of hosts that fence themselves, drawn for a seed."""

from collections.abc import Sequence
from random import Random
from typing import Final

from snooze.simulation.deeds import Deed
from snooze.simulation.world import Shape

LOST: Final = 2
"""In each run with hosts that fence themselves: a host is cut off for longer than its lease."""
GUARD_S: Final = 1.5
"""For so long a guard is paused at most. With what it gives libvirt that is less than the margin:
never-twice's assumption A5 holds in every run."""
GUARD_BACK_S: Final = 6.0
"""A guard that died is there again within this, and has given a hypervisor that hangs its time."""
AGENT_UP_S: Final = 3.0
"""After an agent's end, or its hypervisor's pause, it is up again within this."""
_AGENT_STOPS: Final = frozenset({"kill", "stop", "pause", "freeze", "power_off", "unplug"})


def lease_troubles(random: Random, shape: Shape, length_s: float) -> list[Deed]:
    """What puts leases on trial: hosts that nobody hears, agents and guards that stand still."""
    deeds: list[Deed] = []
    for _ in range(LOST):
        host = f"host{random.choice(range(1, shape.hosts, 2))}"
        at_s = round(random.uniform(3.0, length_s / 2), 3)
        for_s = round(length_s - at_s - random.uniform(0.0, 2.0), 3)
        verb = random.choice(("isolate", "isolate", "pause", "kill", "unplug"))
        deeds.append(Deed(at_s, verb, (host,), for_s))
        if random.random() < 0.5:  # who leads next may have granted less than who led
            manager = f"gm{random.randrange(shape.managers)}"
            soon_s = round(at_s + random.uniform(-0.5, 1.0), 3)
            deeds.append(Deed(soon_s, "kill", (manager,), round(random.uniform(2.0, 20.0), 3)))
        if random.random() < 0.5:
            at_s = round(at_s + random.uniform(0.0, 8.0), 3)
            verb = random.choice(("pause", "freeze", "pause_guard"))
            for_s = random.uniform(0.5, GUARD_S)
            if verb != "pause_guard":
                for_s *= random.choice((1.0, 4.0))
            deeds.append(Deed(at_s, verb, (host,), round(for_s, 3)))
    return deeds


def other_terms(random: Random, shape: Shape, length_s: float) -> list[Deed]:
    """A host that holds the longest lease is cut off, and who leads next grants shorter ones.

    A host is granted what is left of its manager's lease, so the longest are held only while the
    manager with the longest term is alone: it leads, and all hosts are with it.
    """
    terms = [shape.terms_s[i % len(shape.terms_s)] for i in range(shape.managers)]
    longest = terms.index(max(terms))
    at_s, alone_s = random.uniform(1.5, 3.0), random.uniform(3.0, 5.0)
    host = _fencing(random, shape)
    deeds = [_submit_to(random, host, 0.2, at_s - 0.5)]
    deeds += [
        Deed(round(at_s, 3), "kill", (f"gm{i}",), round(alone_s, 3))
        for i in range(shape.managers)
        if i != longest
    ]
    lost_s = at_s + alone_s - random.uniform(0.0, 0.5)
    deeds.append(Deed(round(lost_s, 3), "isolate", (host,), round(length_s - lost_s, 3)))
    dies_s = at_s + alone_s + random.uniform(0.2, 1.0)
    gone_s = round(length_s - dies_s, 3)
    return [*deeds, Deed(round(dies_s, 3), "kill", (f"gm{longest}",), gone_s)]


def unheard_manager(random: Random, shape: Shape, length_s: float) -> list[Deed]:
    """A manager and the leader do not hear one another; the manager's hosts hear it well.

    Half of the time those with a power controller lose power: what they could have is proven, and
    VMs of the others, which are on as their manager sees it, start elsewhere by their lease alone.
    """
    at_s, number = random.uniform(2.0, 6.0), random.randrange(8)
    for_s = round(length_s - at_s - random.uniform(0.0, 2.0), 3)
    at_s = round(at_s, 3)
    deeds = [
        Deed(at_s, "cut", ("manager", "leader"), for_s, number),
        Deed(at_s, "cut", ("leader", "manager"), for_s, number),
    ]
    if number % 2 == 0 and shape.leases == "some":
        for i in range(0, shape.hosts, 2):
            deeds.append(Deed(at_s, "power_off", (f"host{i}",), for_s))
    hosts = range(1, shape.hosts, 2)
    return [*deeds, *(_submit_to(random, f"host{i}", 0.2, at_s - 0.5) for i in hosts)]


def late_orders(random: Random, shape: Shape, length_s: float) -> list[Deed]:
    """Agents stand still with orders to start VMs, until those were started elsewhere."""
    at_s = random.uniform(1.0, 4.0)
    for_s = min(length_s - at_s - 2.0, random.uniform(13.0, 18.0))
    deeds = [
        Deed(round(at_s, 3), "pause", (f"host{i}",), round(for_s, 3))
        for i in range(1, shape.hosts, 2)
    ]
    for _ in range(4):
        asked_s = round(at_s + random.uniform(0.05, 2.5), 3)
        deeds.append(Deed(asked_s, "submit", ("partial",), number=2, amount=1.0))
    return deeds


def _fencing(random: Random, shape: Shape) -> str:
    """One of the hosts that fence themselves in every world with leases."""
    return f"host{random.choice(range(1, shape.hosts, 2))}"


def _submit_to(random: Random, host: str, from_s: float, until_s: float) -> Deed:
    """Two small VMs, for one host."""
    at_s = round(random.uniform(from_s, until_s), 3)
    return Deed(at_s, "submit", ("partial", host), number=2, amount=1.0)


def dead_guard(random: Random, shape: Shape, length_s: float, others: Sequence[Deed]) -> list[Deed]:
    """A guard dies; the agent starts another, which has to fence when the agent stands still.

    A guard dies only while its agent and its hypervisor are well, and stay so until the next one is
    there: else nobody was left to fence, which is against never-twice's assumption A5.
    """
    host = _fencing(random, shape)
    stops = [
        (deed.at_s, deed.at_s + deed.for_s + AGENT_UP_S)
        for deed in others
        if host in deed.who and deed.verb in _AGENT_STOPS
    ]
    at_s = round(random.uniform(1.0, length_s / 3), 3)
    if any(start < at_s + GUARD_BACK_S and end > at_s for start, end in stops):
        return []
    deeds = [
        Deed(at_s, "kill_guard", (host,)),
        _submit_to(random, host, at_s, at_s + GUARD_BACK_S - 2.0),
    ]
    if random.random() < 0.7:
        lost_s = round(at_s + GUARD_BACK_S + random.uniform(0.0, 2.0), 3)
        deeds.append(Deed(lost_s, "isolate", (host,), round(length_s - lost_s, 3)))
        stops_s = round(lost_s + random.uniform(0.0, 1.5), 3)
        for_s = round(length_s - stops_s - random.uniform(0.0, 2.0), 3)
        deeds.append(Deed(stops_s, "pause", (host,), for_s))
    return deeds

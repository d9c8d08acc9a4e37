"""What puts the sleep of hosts on trial: nothing to do, then much at once, and somebody dies."""

from random import Random
from typing import Final

from snooze.simulation.deeds import Deed
from snooze.simulation.world import Shape

QUIET_S: Final = (14.0, 24.0)
"""So long nothing is asked for: hosts fall asleep."""
NEVER_S: Final = 10_000.0
"""A host that goes down later than its agent waits for, and sooner than never, is a broken one."""
BUSY_CORES: Final = 3.0
"""Of each VM that is wanted then: two fill a host."""


def sleep_troubles(random: Random, shape: Shape, length_s: float) -> list[Deed]:
    """Quiet, and then more VMs than the hosts that are up hold; mostly something breaks then."""
    deeds: list[Deed] = []
    at_s = random.uniform(*QUIET_S)
    while at_s < length_s - 5.0:
        deeds += _rush(random, shape, at_s, length_s)
        over_s = at_s + random.uniform(8.0, 25.0)
        for _ in range(random.randint(2, 8)):
            gone_s = round(over_s + random.uniform(0.0, 3.0), 3)
            deeds.append(Deed(gone_s, "destroy", number=random.randrange(64)))
        at_s = over_s + random.uniform(*QUIET_S)
    for _ in range(random.randint(1, 3)):
        deeds += _asked(random, shape, length_s)
    for _ in range(random.randint(0, 2)):
        deeds.append(_bad_sleeper(random, shape, length_s))
    return [deed for deed in deeds if deed.at_s < length_s]


def _rush(random: Random, shape: Shape, at_s: float, length_s: float) -> list[Deed]:
    deeds: list[Deed] = []
    for _ in range(random.randint(1, 4)):
        asked_s = round(at_s + random.uniform(0.0, 4.0), 3)
        more = ("partial",) if random.random() < 0.6 else ()
        number = random.randint(1, 3)
        deeds.append(Deed(asked_s, "submit", more, number=number, amount=BUSY_CORES))
    then_s = round(at_s + random.uniform(-6.0, 8.0), 3)
    left_s = length_s - then_s
    for_s = round(min(left_s, random.uniform(2.0, 20.0)), 3)
    if random.random() < 0.5:
        verb, role = random.choice(("kill", "kill", "pause", "stop")), random.choice(_ROLES)
        deeds.append(Deed(then_s, verb, (role,), for_s, random.randrange(8)))
    if random.random() < 0.4:
        verb = random.choice(("bmc_silent", "bmc_stuck", "bmc_fails", "bmc_deaf", "unplug"))
        deeds.append(Deed(then_s, verb, (_host(random, shape),), for_s))
    if random.random() < 0.4:
        verb = random.choice(("power_off", "isolate", "pause", "kill"))
        deeds.append(Deed(then_s, verb, (_host(random, shape),), for_s))
    return deeds


_ROLES: Final = ("leader", "leader", "manager")


def _asked(random: Random, shape: Shape, length_s: float) -> list[Deed]:
    """A person sends hosts to sleep, or wakes one, as VMs are placed, or as the leader dies."""
    at_s = random.uniform(1.0, random.choice((4.0, length_s - 5.0)))  # at first all are empty
    if random.random() < 0.25:
        return [Deed(round(at_s, 3), "wake", (_host(random, shape),))]
    deeds: list[Deed] = []
    if random.random() < 0.6:  # what is asked at the same time arrives in any order
        slow_s = round(random.uniform(0.1, 0.6), 2)
        deeds.append(Deed(round(at_s - 1.0, 3), "slow_net", for_s=3.0, amount=slow_s))
    for first, number in zip((True, False), random.sample(range(shape.hosts), 2), strict=True):
        host = f"host{number}"
        asked_s = round(at_s + random.uniform(0.0, 0.1), 3)
        with_force = random.randrange(2) or int(first)
        deeds.append(Deed(asked_s, "sleep", (host,), number=with_force))
        if random.random() < 0.6:
            asked_s = round(at_s + random.uniform(-0.8, 0.2), 3)
            deeds.append(Deed(asked_s, "submit", ("partial", host), number=2, amount=1.0))
    if random.random() < 0.6:
        dies_s = round(at_s + random.uniform(0.0, 1.5), 3)
        deeds.append(Deed(dies_s, "kill", ("leader",), round(random.uniform(1.0, 10.0), 3)))
    return deeds


def _bad_sleeper(random: Random, shape: Shape, length_s: float) -> Deed:
    """A host whose system does not go down as it said, or only when nobody expects it any more."""
    at_s = round(random.uniform(0.0, length_s / 2), 3)
    for_s = round(random.uniform(5.0, length_s - at_s), 3)
    if random.random() < 0.4:
        return Deed(at_s, "refuse_sleep", (_host(random, shape),), for_s)
    late_s = random.choice((3.0, 10.0, NEVER_S))
    return Deed(at_s, "slow_sleep", (_host(random, shape),), for_s, amount=late_s)


def _host(random: Random, shape: Shape) -> str:
    return f"host{random.randrange(shape.hosts)}"

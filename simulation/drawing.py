"""The script of a seed: faults and clients' wishes, drawn before its world starts."""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Final

from snooze.simulation.deeds import COMMANDS, METHODS, Deed
from snooze.simulation.lease_stories import (
    dead_guard,
    late_orders,
    lease_troubles,
    other_terms,
    unheard_manager,
)
from snooze.simulation.sleep_stories import sleep_troubles
from snooze.simulation.world import Shape

_WEIGHTS: Final[dict[str, float]] = {
    "kill": 4.0,
    "stop": 1.0,
    "pause": 2.5,
    "freeze": 0.7,
    "power_off": 2.0,
    "unplug": 1.0,
    "bmc_silent": 0.5,
    "bmc_slow": 0.3,
    "bmc_stuck": 0.3,
    "bmc_fails": 0.3,
    "bmc_deaf": 0.3,
    "isolate": 2.0,
    "cut": 1.5,
    "split": 1.0,
    "rough": 0.7,
    "slow_net": 0.7,
    "slow": 1.0,
    "fail": 1.5,
    "disk_full": 0.5,
    "store_full": 0.5,
    "expire": 1.5,
    "step_clock": 0.5,
    "guest_off": 1.0,
    "guest_crash": 0.5,
}
GHOSTS: Final = 4
"""In each run. A right product refuses them, and nothing else changes by them."""


def draw(seed: int, shape: Shape, length_s: float, trouble: float = 1.0) -> list[Deed]:
    """The script of a seed: about ``trouble`` faults in two seconds, and clients that go on."""
    random = Random(f"script:{seed}")
    leases = Random(f"terms:{seed}")
    # Stories of leases are long: in half of those worlds not much else happens.
    is_quiet = bool(shape.leases) and not shape.sleeps and leases.random() < 0.5
    faults_s, wishes_s = _pauses(shape, trouble, is_quiet=is_quiet)
    deeds: list[Deed] = []
    # A seed has its own temper: some runs are all about one kind of fault.
    weights = {verb: w * random.choice((0.0, 0.5, 1.0, 1.0, 3.0)) for verb, w in _WEIGHTS.items()}
    if not any(weights.values()):
        weights = dict(_WEIGHTS)
    now_s = 0.2 + random.random()
    while now_s < length_s:
        deeds.append(_fault(random, shape, now_s, weights, length_s))
        now_s += random.expovariate(1.0 / faults_s)
    now_s = 0.1 + 0.2 * random.random()
    while now_s < length_s:
        deeds.append(_wish(random, shape, now_s))
        now_s += random.expovariate(1.0 / wishes_s)
    ghosts = Random(f"ghosts:{seed}")  # of its own: the other deeds of a seed stay what they were
    for _ in range(GHOSTS):
        at_s = round(ghosts.uniform(0.0, length_s), 3)
        deeds.append(Deed(at_s, "ghost", number=ghosts.randrange(64)))
    if is_quiet:
        troubles: list[Callable[[Random, Shape, float], list[Deed]]]
        troubles = [unheard_manager, late_orders, partial(dead_guard, others=deeds)]
        if len(set(shape.terms_s)) > 1:
            troubles += [other_terms] * 3
        deeds += leases.choice(troubles)(leases, shape, length_s)
        return sorted(deeds, key=lambda deed: deed.at_s)
    answers = Random(f"answers:{seed}")
    if answers.random() < 0.4:
        deeds += _lost_answers(answers, shape, length_s)
    halts = Random(f"halts:{seed}")
    if halts.random() < 0.3:
        deeds += _halts(halts, shape, length_s)
    if shape.leases:
        deeds += lease_troubles(Random(f"leases:{seed}"), shape, length_s)
    if shape.sleeps:
        deeds += sleep_troubles(Random(f"sleep:{seed}"), shape, length_s)
    if shape.leases:  # last: it looks at what else befalls its host
        deeds += dead_guard(leases, shape, length_s, deeds)
    return sorted(deeds, key=lambda deed: deed.at_s)


def _pauses(shape: Shape, trouble: float, *, is_quiet: bool) -> tuple[float, float]:
    """Seconds between two faults, and between two wishes, on average.

    Hosts that fence themselves are of interest while there is room for what is restarted, and
    hosts that go to sleep while there is nothing to do.
    """
    if shape.sleeps:
        return 6.0 / trouble, 8.0
    if shape.leases:
        return 2.0 / (0.1 if is_quiet else trouble), 1.0 / (0.3 if is_quiet else 0.6)
    return 2.0 / trouble, 1.0


def _lost_answers(random: Random, shape: Shape, length_s: float) -> list[Deed]:
    """A manager is asked to place VMs, and its answer is lost; what it ordered is carried out.

    Then, mostly, that manager dies, and a host that may have the VMs stays away.
    """
    at_s = random.uniform(1.0, length_s / 2)
    number = random.randrange(shape.managers)
    gone_s = length_s - at_s - 1.0
    deeds = [Deed(round(at_s, 3), "cut", ("manager", "leader"), round(gone_s, 3), number)]
    for _ in range(random.randint(2, 4)):
        asked_s = round(at_s + random.uniform(0.05, 2.5), 3)
        deeds.append(Deed(asked_s, "submit", (), number=2, amount=1.0))
    if random.random() < 0.7:
        lost_s = round(at_s + random.uniform(0.5, 3.5), 3)
        host = f"host{random.randrange(shape.hosts)}"
        deeds.append(Deed(lost_s, "isolate", (host,), round(gone_s, 3)))
        deeds.append(Deed(round(lost_s + 0.001, 3), "kill", ("manager",), round(gone_s, 3), number))
    return deeds


def _halts(random: Random, shape: Shape, length_s: float) -> list[Deed]:
    """Migrations stop half-way, and mostly those who would see to them die."""
    at_s = random.uniform(3.0, length_s - 6.0)
    for_s = random.uniform(2.0, 5.0)
    deeds = [Deed(round(at_s, 3), "halt", for_s=round(for_s, 3))]
    for _ in range(4):
        asked_s = round(at_s + random.uniform(0.0, for_s - 0.5), 3)
        host = f"host{random.randrange(shape.hosts)}"
        deeds.append(Deed(asked_s, "migrate", (host,), number=random.randrange(64)))
        if random.random() < 0.5:
            role, number = random.choice(("leader", "manager", "manager")), random.randrange(8)
            dies_s = round(asked_s + random.uniform(0.1, 0.6), 3)
            deeds.append(Deed(dies_s, "kill", (role,), round(random.uniform(1.0, 6.0), 3), number))
    return deeds


def _span(random: Random, left_s: float) -> float:
    """How long a fault lasts: short, about a time-out, or long."""
    return round(
        min(left_s, random.choice((0.05, 0.5, 2.0, 4.0, 8.0, 15.0)) * (0.5 + random.random())), 3
    )


def _fault(
    random: Random, shape: Shape, at_s: float, weights: dict[str, float], length_s: float
) -> Deed:
    at_s = round(at_s, 3)
    verb = random.choices(list(weights), list(weights.values()))[0]
    managers = [f"gm{i}" for i in range(shape.managers)]
    hosts = [f"host{i}" for i in range(shape.hosts)]
    servers = [f"zk{i}" for i in range(shape.servers)]
    doors = [f"bs{i}" for i in range(shape.bootstraps)]
    daemons = managers * 3 + hosts * 2 + doors
    for_s = _span(random, length_s - at_s)
    match verb:
        case "kill" | "stop" | "pause":
            return Deed(at_s, verb, (random.choice(daemons),), for_s)
        case "freeze":
            return Deed(at_s, verb, (random.choice(hosts),), for_s)
        case "power_off":
            name = random.choice(hosts * 2 + managers * 2 + servers)
            return Deed(at_s, verb, (name,), for_s)
        case "unplug" | "bmc_silent" | "bmc_stuck" | "bmc_fails" | "bmc_deaf":
            return Deed(at_s, verb, (random.choice(hosts),), for_s)
        case "bmc_slow":
            name = random.choice(hosts)
            return Deed(at_s, verb, (name,), for_s, amount=round(random.uniform(0.5, 5.0), 1))
        case "isolate":
            return Deed(at_s, verb, (random.choice([*daemons, *servers]),), for_s)
        case "cut":
            one, other = random.sample([*managers, *hosts, *servers], 2)
            return Deed(at_s, verb, (one, other), for_s)
        case "split":
            everybody = [*managers, *hosts, *servers, *doors]
            some = random.sample(everybody, random.randint(1, len(everybody) - 1))
            return Deed(at_s, verb, tuple(sorted(some)), for_s)
        case "rough":
            return Deed(at_s, verb, (), for_s, amount=round(random.uniform(0.05, 0.4), 2))
        case "slow_net":
            return Deed(at_s, verb, (), for_s, amount=round(random.uniform(0.05, 1.0), 2))
        case "slow":
            method = random.choice(METHODS)
            return Deed(at_s, verb, (method,), for_s, amount=round(random.uniform(0.5, 8.0), 1))
        case "fail":
            method = random.choice(METHODS)
            return Deed(at_s, verb, (method,), for_s, amount=random.choice((0.3, 1.0)))
        case "disk_full":
            return Deed(at_s, verb, (random.choice(hosts),), for_s)
        case "store_full":
            return Deed(at_s, verb, (), for_s)
        case "expire":
            return Deed(at_s, verb, (random.choice(managers),))
        case "step_clock":
            name = random.choice([*managers, *hosts])
            return Deed(at_s, verb, (name,), amount=float(random.choice((-3600, -5, 5, 3600))))
        case _:
            return Deed(at_s, verb, number=random.randrange(64))


def _wish(random: Random, shape: Shape, at_s: float) -> Deed:
    at_s = round(at_s, 3)
    if random.random() < 0.45:
        more = ("partial",) if random.random() < 0.5 else ()
        cores = random.choice((1.0, 1.0, 2.0, 3.0))
        return Deed(at_s, "submit", more, number=random.randint(1, 3), amount=cores)
    verb = random.choice((*COMMANDS, "migrate", "migrate", "migrate", "destroy"))
    number = random.randrange(64)
    if verb == "migrate":
        return Deed(at_s, verb, (f"host{random.randrange(shape.hosts)}",), number=number)
    if verb == "resize":
        return Deed(at_s, verb, number=number, amount=float(random.randint(1, 3)))
    return Deed(at_s, verb, number=number)

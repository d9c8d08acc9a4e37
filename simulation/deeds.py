"""What is done to a world and in it: faults and clients' wishes, drawn up front from a seed.

A *script* is a list of ``Deed``. It is drawn before the world starts and does not depend on it, so
any part of it can be played again by itself: that is how a failure is made small. A scenario's
script is written by hand, in the same words.

=================  ==============================================================================
verb               what happens for ``for_s`` seconds, then is undone
=================  ==============================================================================
kill, stop         a machine's daemon: SIGKILL, or SIGTERM; then its init system starts it again
pause              SIGSTOP to the daemon
freeze             SIGSTOP to a host's hypervisor; its guests run on
pause_guard        SIGSTOP to the process that fences beside a host's agent; kill_guard: SIGKILL
power_off          a machine's power; everything on it ends, nobody is told; then it boots
unplug             as power_off, and its BMC is without power too
bmc_silent         a machine's BMC answers nothing; bmc_slow: after ``amount`` seconds; bmc_stuck:
                   it takes orders and does nothing; bmc_fails: it says that orders fail; bmc_deaf:
                   orders are carried out and no answer is heard
isolate            nothing gets to or from the machines named
cut                nothing gets from the first machine to the second (one way)
split              the machines named and all others do not hear one another
rough              of the packets of the machines named (or all), ``amount`` are lost and repeated
slow_net           packets take up to ``amount`` seconds more
slow               the hypervisors' method named takes about ``amount`` seconds more, everywhere
fail               the hypervisors' method named fails with probability ``amount``
disk_full          starts are refused by the host named for want of space
store_full         the store of record answers no write
expire             the store ends the machine's session (at once; nothing to undo)
lease_setting      the group manager's ``recovery.lease_s`` is ``amount`` from its next start on
step_clock         the machine's wall clock is set ``amount`` seconds forward (or back)
guest_off          a guest switches itself off (the ``number``-th of all VMs, counted round)
guest_crash        a guest's process dies
halt               migrations stop half-way: the guest is left paused where it was
ghost              a machine gets an order that is out of date, the ``number``-th counted round
submit             a client submits ``number`` VMs of ``amount`` cores; ``partial`` if named so, on
                   the host that is named, if one is
suspend, resume,   a client orders it of a VM, the ``number``-th counted round; ``migrate`` to the
shutdown, start,   host named, ``resize`` to ``amount`` cores
reboot, destroy,
migrate, resize
=================  ==============================================================================

In place of a machine's name ``leader`` is who leads when it is done, and ``manager`` another group
manager, the ``number``-th counted round.
"""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Final

import msgspec

from snooze.simulation.world import Shape

FAULTS: Final = (
    "kill",
    "stop",
    "pause",
    "freeze",
    "pause_guard",
    "kill_guard",
    "power_off",
    "unplug",
    "bmc_silent",
    "bmc_slow",
    "bmc_stuck",
    "bmc_fails",
    "bmc_deaf",
    "isolate",
    "cut",
    "split",
    "rough",
    "slow_net",
    "slow",
    "fail",
    "disk_full",
    "store_full",
    "expire",
    "lease_setting",
    "step_clock",
    "guest_off",
    "guest_crash",
    "ghost",
    "halt",
)
COMMANDS: Final = (
    "suspend",
    "resume",
    "shutdown",
    "start",
    "reboot",
    "destroy",
    "migrate",
    "resize",
)
WISHES: Final = ("submit", *COMMANDS)
VERBS: Final = (*FAULTS, *WISHES)
ROLES: Final = frozenset({"leader", "manager"})


class Deed(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One thing that is done; ``at_s`` counts from the moment when the cluster has formed."""

    at_s: float
    verb: str
    who: tuple[str, ...] = ()
    for_s: float = 0.0
    number: int = 0
    amount: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.at_s:8.3f}  {self.verb}"]
        if self.who:
            parts.append(" ".join(self.who))
        if self.verb in WISHES or self.verb.startswith(("guest", "ghost")):
            parts.append(f"#{self.number}")
        if self.amount:
            parts.append(f"({self.amount:g})")
        if self.for_s:
            parts.append(f"for {self.for_s:.3g} s")
        return " ".join(parts)


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
_METHODS: Final = (
    "migrate_out",
    "start",
    "prepare_incoming",
    "finish_incoming",
    "destroy",
    "inventory",
)


def draw(seed: int, shape: Shape, length_s: float, trouble: float = 1.0) -> list[Deed]:
    """The script of a seed: about ``trouble`` faults in two seconds, and clients that go on."""
    random = Random(f"script:{seed}")
    leases = Random(f"terms:{seed}")
    # Stories of leases are long: in half of those worlds not much else happens.
    is_quiet = bool(shape.leases) and leases.random() < 0.5
    deeds: list[Deed] = []
    # A seed has its own temper: some runs are all about one kind of fault.
    weights = {verb: w * random.choice((0.0, 0.5, 1.0, 1.0, 3.0)) for verb, w in _WEIGHTS.items()}
    if not any(weights.values()):
        weights = dict(_WEIGHTS)
    now_s = 0.2 + random.random()
    while now_s < length_s:
        deeds.append(_fault(random, shape, now_s, weights, length_s))
        now_s += random.expovariate((0.1 if is_quiet else trouble) / 2.0)
    now_s = 0.1 + 0.2 * random.random()
    while now_s < length_s:
        deeds.append(_wish(random, shape, now_s))
        # Hosts that fence themselves are of interest while there is room for what is restarted.
        now_s += random.expovariate((0.3 if is_quiet else 0.6) if shape.leases else 1.0)
    ghosts = Random(f"ghosts:{seed}")  # of its own: the other deeds of a seed stay what they were
    for _ in range(GHOSTS):
        at_s = round(ghosts.uniform(0.0, length_s), 3)
        deeds.append(Deed(at_s, "ghost", number=ghosts.randrange(64)))
    if is_quiet:
        troubles: list[Callable[[Random, Shape, float], list[Deed]]]
        troubles = [_unheard_manager, _late_orders, partial(_dead_guard, others=deeds)]
        if len(set(shape.terms_s)) > 1:
            troubles += [_other_terms] * 3
        deeds += leases.choice(troubles)(leases, shape, length_s)
        return sorted(deeds, key=lambda deed: deed.at_s)
    answers = Random(f"answers:{seed}")
    if answers.random() < 0.4:
        deeds += _lost_answers(answers, shape, length_s)
    halts = Random(f"halts:{seed}")
    if halts.random() < 0.3:
        deeds += _halts(halts, shape, length_s)
    if shape.leases:
        deeds += _lease_troubles(Random(f"leases:{seed}"), shape, length_s)
        deeds += _dead_guard(leases, shape, length_s, deeds)
    return sorted(deeds, key=lambda deed: deed.at_s)


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


def _lease_troubles(random: Random, shape: Shape, length_s: float) -> list[Deed]:
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


def _other_terms(random: Random, shape: Shape, length_s: float) -> list[Deed]:
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


def _unheard_manager(random: Random, shape: Shape, length_s: float) -> list[Deed]:
    """A manager and the leader do not hear one another; the manager's hosts hear it well."""
    at_s, number = random.uniform(2.0, 6.0), random.randrange(8)
    for_s = round(length_s - at_s - random.uniform(0.0, 2.0), 3)
    at_s = round(at_s, 3)
    deeds = [
        Deed(at_s, "cut", ("manager", "leader"), for_s, number),
        Deed(at_s, "cut", ("leader", "manager"), for_s, number),
    ]
    hosts = range(1, shape.hosts, 2)
    return [*deeds, *(_submit_to(random, f"host{i}", 0.2, at_s - 0.5) for i in hosts)]


def _late_orders(random: Random, shape: Shape, length_s: float) -> list[Deed]:
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


def _dead_guard(
    random: Random, shape: Shape, length_s: float, others: Sequence[Deed]
) -> list[Deed]:
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
            method = random.choice(_METHODS)
            return Deed(at_s, verb, (method,), for_s, amount=round(random.uniform(0.5, 8.0), 1))
        case "fail":
            method = random.choice(_METHODS)
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


def problems_of(deed: Deed, shape: Shape) -> list[str]:
    """What is wrong with a deed that a person wrote."""
    found: list[str] = []
    if deed.verb not in VERBS:
        return [f"no verb {deed.verb!r}; there are: {', '.join(VERBS)}"]
    machines = {
        *(f"gm{i}" for i in range(shape.managers)),
        *(f"host{i}" for i in range(shape.hosts)),
        *(f"zk{i}" for i in range(shape.servers)),
        *(f"bs{i}" for i in range(shape.bootstraps)),
        "client",
        *ROLES,
    }
    if deed.verb.startswith("bmc") or deed.verb in {
        "kill",
        "stop",
        "pause",
        "freeze",
        "pause_guard",
        "kill_guard",
        "power_off",
        "unplug",
        "isolate",
        "cut",
        "split",
        "disk_full",
        "expire",
        "lease_setting",
        "step_clock",
        "migrate",
    }:
        if not deed.who:
            found.append(f"{deed.verb} needs a machine: who = [...]")
        unknown = [name for name in deed.who if name not in machines]
        if unknown:
            found.append(f"no machine {unknown[0]!r}; there are: {', '.join(sorted(machines))}")
    if deed.verb == "cut" and len(deed.who) != 2:
        found.append("cut needs two machines: from, to")
    if deed.verb in {"slow", "fail"} and len(deed.who) != 1:
        found.append(f"{deed.verb} needs a method of the hypervisor: {', '.join(_METHODS)}")
    if deed.verb == "lease_setting" and not (
        1 <= deed.amount <= 3600 and all(name.startswith("gm") for name in deed.who)
    ):
        found.append("lease_setting is of a group manager: amount = 1 to 3600 seconds")
    if deed.at_s < 0 or deed.for_s < 0:
        found.append("times count from the start and are not negative")
    return found

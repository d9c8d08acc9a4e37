"""What is done to a world and in it: faults and clients' wishes, in words.

A *script* is a list of ``Deed``. It does not depend on the world that it is played in, so any part
of it can be played again by itself: that is how a failure is made small. A seed's script is drawn
(``drawing.py``), a scenario's is written by hand, in the same words.

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
refuse_sleep       a host's system fails to go down; slow_sleep: it takes ``amount`` s more
ghost              a machine gets an order that is out of date, the ``number``-th counted round
submit             a client submits ``number`` VMs of ``amount`` cores; ``partial`` if named so, on
                   the host that is named, if one is
suspend, resume,   a client orders it of a VM, the ``number``-th counted round; ``migrate`` to the
shutdown, start,   host named, ``resize`` to ``amount`` cores
reboot, destroy,
migrate, resize
sleep, wake        a person sends a host to sleep (insists, if ``number`` is 1), or wakes it
=================  ==============================================================================

In place of a machine's name ``leader`` is who leads when it is done, and ``manager`` another group
manager, the ``number``-th counted round.
"""

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
    "refuse_sleep",
    "slow_sleep",
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
POWER_WISHES: Final = ("sleep", "wake")
WISHES: Final = ("submit", *COMMANDS, *POWER_WISHES)
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
        if (self.verb in WISHES and self.verb not in POWER_WISHES) or self.verb.startswith(
            ("guest", "ghost")
        ):
            parts.append(f"#{self.number}")
        if self.amount:
            parts.append(f"({self.amount:g})")
        if self.for_s:
            parts.append(f"for {self.for_s:.3g} s")
        return " ".join(parts)


METHODS: Final = (
    "migrate_out",
    "start",
    "prepare_incoming",
    "finish_incoming",
    "destroy",
    "inventory",
)


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
        "refuse_sleep",
        "slow_sleep",
        *POWER_WISHES,
    }:
        if not deed.who:
            found.append(f"{deed.verb} needs a machine: who = [...]")
        unknown = [name for name in deed.who if name not in machines]
        if unknown:
            found.append(f"no machine {unknown[0]!r}; there are: {', '.join(sorted(machines))}")
    if deed.verb == "cut" and len(deed.who) != 2:
        found.append("cut needs two machines: from, to")
    if deed.verb in {"slow", "fail"} and len(deed.who) != 1:
        found.append(f"{deed.verb} needs a method of the hypervisor: {', '.join(METHODS)}")
    if deed.verb == "lease_setting" and not (
        1 <= deed.amount <= 3600 and all(name.startswith("gm") for name in deed.who)
    ):
        found.append("lease_setting is of a group manager: amount = 1 to 3600 seconds")
    if deed.at_s < 0 or deed.for_s < 0:
        found.append("times count from the start and are not negative")
    return found

"""Dead hosts: how long until their guests run again, on real hosts; and whether any ran twice.

A lab of three hosts (``snooze lab``) with two group managers and a ZooKeeper server on machines of
their own. Four guests run on one host when something happens to it (``CASES``). *noticed* is the
time until the cluster does not call the host active any more, *first* and *all* until the first and
the last of its guests shows a heart beat of a new boot on the shared disk, *back* until the host is
active again. A witness that knows nothing of the cluster looks at the disks all the time: a guest
that ran twice would have written two boots in turn. No lock on the disks hinders it.

``python -m benchmarks dead-hosts [--case power-cut,...] [--rounds 3]``
"""

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from benchmarks import _report
from snooze.client.sdk import Snooze, VmRequest, VmState
from snooze.common.errors import SnoozeError
from snooze.lab.cluster import LabCluster, LabPlan
from snooze.lab.guests import wait_for_beat
from snooze.lab.witness import Witness

T = TypeVar("T")

PATIENCE_S: Final = 180.0
POLL_S: Final = 0.1
GUESTS: Final = ("guest1", "guest2", "guest3", "guest4")
SILENT_S: Final = 12.0
"""Less than a lease (recovery.lease_s): in this time a BMC that fell silent proves nothing."""


PLAN: Final = LabPlan(
    hosts=3,
    zookeepers=1,
    manager_settings={"recovery": {"max_restarts": 1000}},
    host_settings={"lease": {"enabled": "always"}},
)
"""Guests die here more often in an hour than they may elsewhere; a silent BMC is no dead end."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One case, played once: seconds since it happened; ``proof_s``: since a proof was possible."""

    case: str
    noticed_s: float
    first_s: float
    all_s: float
    back_s: float
    proof_s: float


class Stage:
    """The lab, its cluster and its guests; a context manager."""

    def __init__(self, plan: LabPlan, say: Callable[[str], None] = lambda _: None) -> None:
        self.say = say
        self._stack = contextlib.ExitStack()
        try:
            self.lab = self._stack.enter_context(LabCluster(plan, say=say))
            self.lab.wait_ready()
            self.cluster = self._stack.enter_context(Snooze(self.lab.url))
            disks = {name: self.lab.images / f"{name}.raw" for name in GUESTS}
            for name in GUESTS:
                xml = (self.lab.templates / f"{name}.xml").read_text()
                self.cluster.wait(self.cluster.submit([VmRequest(libvirt_xml=xml)]), check=True)
                wait_for_beat(disks[name])
            self.witness = self._stack.enter_context(Witness(disks))
            self.until(lambda: all(map(self.witness.seen, GUESTS)), "the witness to see them")
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def until(self, condition: Callable[[], T | None], what: str) -> T:
        """The first true answer; errors of the cluster count as not yet.

        Raises:
            TimeoutError: none in time; with the last error.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        last = ""
        while True:
            try:
                if answer := condition():
                    return answer
            except SnoozeError as error:
                last = f" ({error})"
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"waited {PATIENCE_S:g} s for {what}{last}")
            time.sleep(POLL_S)

    def gather(self) -> str:
        """All guests on one host by live migration, everything on and plugged in; the host."""
        for machine in self.lab.net.hosts.values():
            machine.plug()
            if machine.name in self.lab.rack.bmcs:
                self.lab.rack.bmcs[machine.name].plug()
                self.lab.rack.restore_power(machine.name)
            machine.power_on()
        self.lab.wait_ready()
        names = [host.name for host in self.lab.hosts]
        self.until(lambda: all(self.active(name) for name in names), "all hosts")
        self.until(self.settled, "all guests to run")
        target = self.cluster.vm(GUESTS[0]).hostname
        for name in GUESTS[1:]:
            if self.cluster.vm(name).hostname != target:
                self.cluster.wait(self.cluster.migrate(name, target), check=True)
        return target

    def active(self, host: str) -> bool:
        """Whether the cluster calls it so."""
        return self.cluster.host(host).status == "active"

    def settled(self) -> bool:
        """Whether cluster and hosts agree that every guest runs, once, and nothing else is left."""
        places = {
            name: [host.name for host in self.lab.hosts if name in self.domains(host.name)]
            for name in GUESTS
        }
        views = {view.name: view for view in self.cluster.vms() if view.managed}
        return all(
            places[name] == [views[name].hostname] and views[name].state is VmState.RUNNING
            for name in GUESTS
        )

    def domains(self, host: str) -> list[str]:
        """Those that a host has, running or not, whatever the cluster knows."""
        machine = self.lab.machine(host)
        if not machine.is_on:
            return []
        return machine.exec(["virsh", "-q", "list", "--all", "--name"]).stdout.decode().split()

    # ------------------------------------------------------------ a case

    def play(self, case: str) -> Measured:
        """Play a case and wait until all is well again.

        Raises:
            TimeoutError: it did not become so.
            RuntimeError: a guest ran twice.
        """
        victim = self.gather()
        self.say(f"{case}: {victim} has {len(GUESTS)} guests")
        since_s = time.monotonic()
        proof_s = CASES[case](self, victim) or since_s
        if case not in {"back-in-the-middle", "power-cycle"}:  # too short, or waited for already
            self.until(lambda: not self.active(victim), "the cluster to notice")
        noticed_s = time.monotonic() - since_s
        began = [self.until(self._began(name, since_s), f"{name} to run again") for name in GUESTS]
        self.lab.machine(victim).plug()
        if not self.lab.rack.bmcs[victim].is_on:
            self.lab.power(victim, "on")
        self.until(lambda: self.lab.machine(victim).is_on, f"{victim} to be switched on again")
        self.until(lambda: self.active(victim), f"{victim} to join again")
        back_s = time.monotonic() - since_s
        self.until(self.settled, "one place for every guest")
        if violations := self.witness.violations():
            raise RuntimeError("; ".join(violations))
        return Measured(
            case,
            noticed_s,
            min(began) - since_s,
            max(began) - since_s,
            back_s,
            max(began) - proof_s,
        )

    def _began(self, name: str, since_s: float) -> Callable[[], float | None]:
        return lambda: self.witness.first_boot_after_s(name, since_s)


def power_cut(stage: Stage, victim: str) -> None:
    """Power is cut; the BMC, fed by another line, tells so."""
    stage.lab.power(victim, "off")


def cable_cut(stage: Stage, victim: str) -> None:
    """The cable is cut; the guests run on, and can write to their disks."""
    stage.lab.cable(victim, plugged=False)


def bmc_gone(stage: Stage, victim: str) -> None:
    """Host and BMC lose power together, and stay dead: what proves the host off is its lease."""
    since_s = time.monotonic()
    stage.lab.power(victim, "off", with_bmc=True)
    time.sleep(SILENT_S)
    for name in GUESTS:
        if stage.witness.first_boot_after_s(name, since_s) is not None:
            raise RuntimeError(f"{name} was restarted without any proof")


def managers_gone(stage: Stage, victim: str) -> float:
    """Power of the host and of both group managers fails at once; the managers' comes back."""
    managers = [daemon.name for daemon in stage.lab.daemons.managers]
    for name in managers:
        stage.lab.machine(name).kill()
    stage.lab.power(victim, "off")
    for name in managers:
        stage.lab.power(name, "cycle")
    return time.monotonic()


def back_in_the_middle(stage: Stage, victim: str) -> None:
    """Power is cut; the host is switched on again as soon as the cluster has noticed."""
    stage.lab.power(victim, "off")
    stage.until(lambda: not stage.active(victim), "the cluster to notice")
    stage.lab.power(victim, "on")


def power_cycle(stage: Stage, victim: str) -> None:
    """Power fails for a second: the host boots again, perhaps before anybody has missed it."""
    stage.lab.power(victim, "cycle")


CASES: Final[dict[str, Callable[[Stage, str], float | None]]] = {
    "power-cut": power_cut,
    "cable-cut": cable_cut,
    "bmc-gone": bmc_gone,
    "managers-gone": managers_gone,
    "back-in-the-middle": back_in_the_middle,
    "power-cycle": power_cycle,
}


def main(arguments: list[str]) -> int:
    """Play the cases and print what was measured."""
    parser = argparse.ArgumentParser(prog="benchmarks dead-hosts", description=__doc__)
    parser.add_argument("--case", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="write the figures as JSON to this file")
    options = parser.parse_args(arguments)
    cases = options.case.split(",")
    if unknown := sorted(set(cases) - set(CASES)):
        parser.error(f"no case {', '.join(unknown)}; there are: {', '.join(CASES)}")
    measured: list[Measured] = []
    with Stage(PLAN, lambda line: print(line, file=sys.stderr)) as stage:
        for number in range(options.rounds):
            for case in cases:
                try:
                    one = stage.play(case)
                except (TimeoutError, RuntimeError):
                    for name, log in stage.lab.daemons.logs():
                        print(f"--- {name}\n{log}", file=sys.stderr)
                    raise
                measured.append(one)
                print(f"  round {number + 1}: {one}", file=sys.stderr)
    columns = ("case", "noticed", "first", "all", "all since proof", "back")
    rows = [
        (
            case,
            *(
                _spread([getattr(one, field) for one in measured if one.case == case])
                for field in ("noticed_s", "first_s", "all_s", "proof_s", "back_s")
            ),
        )
        for case in cases
    ]
    print(_report.table(columns, rows))
    print(f"{options.rounds} rounds, {len(GUESTS)} guests; seconds; no guest ran twice")
    _report.write(options.output, {"measured": [dataclasses.asdict(one) for one in measured]})
    return 0


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"

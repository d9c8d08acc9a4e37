"""What one look of a manager's autonomy costs: how long the manager's event loop is held.

Hosts of 20 VMs each, all samples there; looks that find nothing, then some that find two overloaded
hosts until one decides. Time is that of the process: of a whole look (medians), of its longest turn
on the event loop, of the longest when a plan was made, and of the plan, which a process of its own
makes; sending the question there counts as a turn.

``python -m benchmarks look [--hosts 1000] [--vms 20] [--rounds 15]``
"""

import argparse
import pickle
import time
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks import _report
from snooze.common.resources import Capacity
from snooze.common.settings_autonomy import AutonomySettings, RelocationSettings
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.usage import HostSamples, HostUsage, VmUsage
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmReport
from snooze.common.wire import Address, HostDescription, HostDirective, HostHello
from snooze.groupmanager.control import control_of
from snooze.groupmanager.manager.autonomy_events import (
    AutonomyTicked,
    LookedOn,
    LookOn,
    PlanRelocation,
    RelocationPlanned,
)
from snooze.groupmanager.manager.autonomy_setup import autonomy_policy
from snooze.groupmanager.manager.manager_core import ManagerCore
from snooze.groupmanager.manager.manager_events import Directed, HostJoined, ManagerEvent
from snooze.groupmanager.manager.monitoring import Monitoring
from snooze.scheduling import placement
from snooze.scheduling.dump import relocate_and_prepare

PERIOD_S: Final = 3.0
CORES: Final = 16.0
GIB: Final = 1024.0 * 1024.0
START_MS: Final = 1_767_571_200_000


class Cluster:
    """A manager's core with hosts and VMs that measure."""

    def __init__(self, hosts: int, vms: int, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        settings = GroupManagerSettings(
            autonomy=AutonomySettings(interval_s=PERIOD_S, underload="off"),
            relocation=RelocationSettings(),
        )
        one = Capacity(1.0, 1.0, 1.0, 1.0)
        self.samples = Monitoring(PERIOD_S)
        self.core = ManagerCore(placement.policy_named("first_fit"), one, one)
        policy = autonomy_policy(settings, self.core.overcommit, self.core.headroom)
        control = control_of(settings.autonomy)
        self.autonomy = self.core.decide_alone("gm", policy, control, self.samples)
        self.now_s = 100.0
        self.names = [[f"{host:04x}{vm:028x}" for vm in range(vms)] for host in range(hosts)]
        self.cores = self.generator.uniform(0.1, 0.6, (hosts, vms))
        demand = Capacity(0.7, 4 * GIB, 1024.0, 1024.0)
        for host, names in enumerate(self.names):
            host_id = f"h{host:04}"
            described = HostDescription(
                host_id, host_id, Address(host_id, 1), Capacity(CORES, 128 * GIB, 1.2e5, 1.2e5)
            )
            found = [VmReport(name, name, VmState.RUNNING, demand) for name in names]
            self.core.handle(HostJoined(HostHello(described, found, 1)), self.now_s)
            self.core.handle(Directed([HostDirective(host_id, 1)]), self.now_s)

    def step(self, hot: int = 0) -> None:
        """A period goes by: all hosts tell what they use; the first ``hot`` use all they have."""
        self.now_s += PERIOD_S
        wall_ms = self.wall_ms
        for host, names in enumerate(self.names):
            cores = self.cores[host] * self.generator.uniform(0.9, 1.1, len(names))
            if host < hot:
                cores *= CORES / cores.sum()
            usages = [
                VmUsage(name, wall_ms, Capacity(float(use), 2 * GIB, 10.0, 10.0))
                for name, use in zip(names, cores, strict=True)
            ]
            message = HostSamples.of(wall_ms, HostUsage(usages), round(PERIOD_S * 1000))
            self.samples.push(f"h{host:04}", message, self.now_s)

    @property
    def wall_ms(self) -> int:
        """The wall clock that the core is told."""
        return START_MS + round(self.now_s * 1000)

    def look(self) -> tuple[list[float], list[float]]:
        """One look: milliseconds of each turn on the event loop, and of each plan made aside."""
        turns: list[float] = []
        plans: list[float] = []
        todo: list[ManagerEvent] = [AutonomyTicked(self.wall_ms)]
        while todo:
            began_s = time.process_time()
            effects = self.core.handle(todo.pop(0), self.now_s)
            turns.append(1000 * (time.process_time() - began_s))
            for effect in effects:
                if isinstance(effect, LookOn):
                    todo.append(LookedOn(self.wall_ms))
                elif isinstance(effect, PlanRelocation):
                    began_s = time.process_time()
                    sent = pickle.loads(pickle.dumps((effect.situation, dict(effect.options))))
                    turns.append(1000 * (time.process_time() - began_s))
                    made = relocate_and_prepare(*sent)
                    plans.append(1000 * (time.process_time() - began_s) - turns[-1])
                    todo.append(RelocationPlanned(effect.token, self.wall_ms, made))
        return turns, plans


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks look", description=__doc__)
    parser.add_argument("--hosts", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--vms", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output")
    options = parser.parse_args(arguments)
    rows: list[list[object]] = []
    result: dict[str, Any] = {"seed": options.seed}
    for hosts in options.hosts:
        cluster = Cluster(hosts, options.vms, options.seed)
        quiet: list[float] = []
        total: list[float] = []
        for _ in range(options.rounds):
            cluster.step()
            turns, _ = cluster.look()
            quiet.append(max(turns))
            total.append(sum(turns))
        hot: list[float] = []
        aside: list[float] = []
        for _ in range(14):
            cluster.step(hot=2)
            turns, plans = cluster.look()
            hot.append(max(turns))
            aside += plans
        decided = len(cluster.autonomy.book.decisions)
        figures = [median(total), median(quiet), max(hot), max(aside, default=0.0)]
        rows.append([hosts, hosts * options.vms, *figures, decided])
        result[str(hosts)] = {
            "look_ms": total,
            "longest_turn_ms": quiet,
            "longest_turn_of_deciding_ms": hot,
            "aside_ms": aside,
            "decisions": decided,
        }
    columns = ["hosts", "VMs", "a look, ms", "longest turn", "when deciding", "aside", "decided"]
    print(f"seed {options.seed}; {_report.machine()}")
    print(_report.table(columns, rows))
    _report.write(options.output, result)
    return 0

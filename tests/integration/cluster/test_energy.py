"""Idle hosts go to sleep and are woken by commands, as separate daemons over a real ZooKeeper.

A host "sleeps" by ending its local controller (``power.driver = "test"``) and is "switched on" by
the command of its power driver, run by the leader: a script that leaves a note for the board that
starts the daemon again. Its state is read by a command, too.
"""

import asyncio
import threading
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from snooze.client.sdk import ClusterRequest, Snooze, TaskState, VmRequest
from snooze.common.errors import Conflict, SnoozeError
from snooze.common.snooze_api import VirtualMachineErrorCode
from snooze.groupmanager.legacy_views import error_code
from snooze.lab.daemons import Daemon, DaemonCluster
from snooze.lab.zookeeper import zookeeper_server

T = TypeVar("T")

PATIENCE_S = 90.0
HOSTS = ("host1", "host2", "host3")

DOMAIN = (
    "<domain type='kvm'><name>{name}</name><memory unit='KiB'>65536</memory>"
    "<vcpu>{vcpus}</vcpu><os><type>hvm</type></os></domain>"
)

QUICK: dict[str, dict[str, object]] = {
    "coordination": {"session_timeout_s": 1.5},
    "heartbeat": {"interval_s": 0.3, "timeout_s": 1.5},
    "join": {"retry_min_s": 0.05, "retry_max_s": 0.5},
    "monitoring": {"interval_s": 0.5},
    "recovery": {"reserve": "none"},
    "energy": {
        "enabled": True,
        "idle_s": 1.0,
        "min_on_s": 1.0,
        "min_off_s": 1.0,
        "reserve_cpu": 0.0,
        "reserve_memory": 0.0,
        "wake_timeout_s": 20.0,
        "wake_tries": 1,
        "record_s": 1.0,
    },
}


class Board:
    """The machines: each is on while its daemon runs; ``on`` notes start them again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dead: set[str] = set()
        self.daemons: dict[str, Daemon] = {}
        self.woken: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Board":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def options(self, name: str) -> str:
        """The options of the driver COMMAND."""
        on, state = self.folder / f"{name}.on", self.folder / f"{name}.state"
        return f'--on "/usr/bin/touch {on}" --status "/bin/cat {state}"'

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            for name, daemon in list(self.daemons.items()):
                note = self.folder / f"{name}.on"
                if note.exists():
                    note.unlink()
                    self.woken.append(name)
                    if name not in self.dead:
                        daemon.start()
                state = self.folder / f"{name}.new"
                state.write_text("on\n" if daemon.runs else "off\n")
                state.rename(self.folder / f"{name}.state")


class Rig:
    """The cluster, its board and a client."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        runner = stack.enter_context(asyncio.Runner())
        server = zookeeper_server(tick_ms=500)
        zookeeper = runner.run(server.__aenter__())
        stack.callback(lambda: runner.run(server.__aexit__(None, None, None)))
        board_folder = folder / "board"
        board_folder.mkdir()
        self.board = stack.enter_context(Board(board_folder))
        self.cluster = stack.enter_context(
            DaemonCluster(folder / "daemons", zookeeper.hosts, defaults=QUICK)
        )
        self.front = self.cluster.bootstrap("front")
        runs = {"power": {"run_commands_of_hosts": True}}
        self.managers = [self.cluster.manager(name, runs) for name in ("gm1", "gm2")]
        for name in HOSTS:
            self.board.daemons[name] = self.cluster.host(
                name,
                {
                    "hypervisor": {
                        "driver": "simulated",
                        "simulated": {"cpus": 4, "memory_kib": 8 * 1024 * 1024},
                    },
                    "capacity": {"reserved_memory_kib": 0.0},
                    "wakeup": {"driver": "COMMAND", "options": self.board.options(name)},
                    "power": {"driver": "test", "idle_w": 100.0, "full_w": 200.0, "asleep_w": 5.0},
                },
            )
        for daemon in self.cluster:
            daemon.start()
        for daemon in self.cluster:
            daemon.wait_ready(PATIENCE_S)
        self.client = stack.enter_context(Snooze([self.front.url]))

    def until(self, condition: Callable[[], T | None], what: str) -> T:
        """The first true answer; errors of the cluster count as not yet."""
        deadline_s = time.monotonic() + PATIENCE_S
        last: object = None
        while True:
            try:
                if answer := condition():
                    return answer
            except SnoozeError as error:
                last = error
            if time.monotonic() > deadline_s:
                logs = "\n".join(f"== {name}\n{log[-3000:]}" for name, log in self.cluster.logs())
                raise AssertionError(
                    f"{what}: not in {PATIENCE_S:g} s; {last!r}\n{self.power()}\n{logs}"
                )
            time.sleep(0.05)

    def power(self) -> dict[str, str]:
        """The power state of each host."""
        return {host.hostname: host.power for host in self.client.hosts()}

    def metered(self) -> dict[str, float]:
        """What the leader tells of energy; empty until both sleepers are metered as such."""
        for manager in self.managers:
            with urllib.request.urlopen(f"{manager.url}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
            found = {name: float(value) for name, _, value in pairs}
            asleep = [name for name in HOSTS if found.get(_watts_of(name)) == 5.0]
            if len(asleep) == 2:
                return found
        return {}

    def asleep(self) -> list[str]:
        return sorted(name for name, power in self.power().items() if power == "asleep")

    def submit(self, name: str, cores: int, host: str = "") -> str:
        request = VmRequest(libvirt_xml=DOMAIN.format(name=name, vcpus=cores), host=host)
        return self.client.submit(ClusterRequest(vms=[request])).id


def _watts_of(host: str) -> str:
    return f'snooze_host_watts{{host="{host}"}}'


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Generator[Rig]:
    with ExitStack() as stack:
        yield Rig(tmp_path_factory.mktemp("energy"), stack)


def test_idle_hosts_sleep_and_a_submission_wakes_one(rig: Rig) -> None:
    rig.until(lambda: len(rig.asleep()) == 2, "two of three hosts sleep")
    for name in rig.asleep():
        assert not rig.board.daemons[name].runs, "its daemon has ended"
    told = rig.until(rig.metered, "the metrics say that they sleep")
    assert told['snooze_cluster_hosts{state="asleep"}'] == 2
    assert told["snooze_cluster_saved_kwh"] > 0
    watts = [told[_watts_of(name)] for name in HOSTS]
    assert told["snooze_cluster_watts"] == pytest.approx(sum(watts), abs=0.1)
    first = rig.submit("fills", 4)
    assert rig.until(lambda: rig.client.task(first).state is TaskState.DONE, "the first VM runs")
    second = rig.submit("needs-more", 4)
    seen: set[str] = set()

    def ended() -> bool:
        task = rig.client.task(second)
        seen.update(vm.note for vm in task.vms)
        return task.state is TaskState.DONE

    rig.until(ended, "the VM that waited runs")
    assert any(note.startswith("waits for host host") for note in seen), seen
    assert len(rig.board.woken) == 1
    vm = rig.client.vm("needs-more")
    assert vm.hostname == rig.board.woken[0]
    kinds = [event.kind for event in rig.client.events()]
    assert "host.waking" in kinds
    assert "host.awake" in kinds


def test_people_wake_and_put_to_sleep_but_never_with_a_vm(rig: Rig) -> None:
    target = rig.until(rig.asleep, "one sleeps")[0]
    rig.client.wake_host(target)
    rig.until(lambda: rig.power()[target] == "active", "it is up")
    busy = rig.client.vm("fills").hostname
    with pytest.raises(Conflict, match="VM fills is on it"):
        rig.client.sleep_host(busy, force=True)
    rig.until(lambda: target in rig.asleep(), "it goes to sleep again by itself")


def test_a_pinned_vm_wakes_its_host_under_a_new_leader(rig: Rig) -> None:
    target = rig.until(rig.asleep, "one sleeps")[0]
    rig.until(lambda: rig.client.energy().saved_kwh > 0, "sleeping has saved more than waking cost")
    before = rig.client.energy()
    leader = rig.client.cluster().leader_id
    former = next(daemon for daemon in rig.managers if daemon.node_id == leader)
    former.kill()
    rig.until(lambda: rig.client.cluster().leader_id != leader, "another leads")
    assert rig.until(rig.power, "hosts are known")[target] == "asleep"
    after = rig.until(rig.client.energy, "energy is metered")
    assert after.saved_kwh >= before.saved_kwh * 0.5, "what was metered is not lost"
    task = rig.submit("pinned", 1, host=target)
    rig.until(lambda: rig.client.task(task).state is TaskState.DONE, "the pinned VM runs")
    assert rig.client.vm("pinned").hostname == target
    former.start()
    former.wait_ready(PATIENCE_S)


def test_a_host_that_does_not_wake_is_marked_and_the_vm_is_told(rig: Rig) -> None:
    for name in ("pinned", "needs-more"):
        rig.client.destroy(name)
    rig.until(lambda: len(rig.asleep()) == 2, "two sleep again")
    rig.board.dead = set(HOSTS)
    target = rig.asleep()[0]
    task = rig.submit("in-vain", 1, host=target)
    rig.until(lambda: rig.client.task(task).state is TaskState.FAILED, "it is given up")
    (vm,) = rig.client.task(task).vms
    assert vm.error is not None
    assert vm.error.code == "wakeup_failed"
    wanted = VirtualMachineErrorCode.LOCAL_CONTROLLER_WAKEUP_FAILED
    assert error_code(vm.error.code) is wanted, "as clients of 2013 know it"
    assert rig.power()[target] == "failed"
    rig.board.dead = set()
    rig.client.wake_host(target)
    rig.until(lambda: rig.power()[target] == "active", "a person's wake revives it")

"""Our daemons as processes of their own, as they run in production: real settings files, signals.

    cluster = DaemonCluster(folder, server.hosts)
    front = cluster.bootstrap("front")
    cluster.manager("gm1"), cluster.manager("gm2")
    cluster.host("host1", hypervisor={"uri": "test:///default"})
    for daemon in cluster:
        daemon.start()
    for daemon in cluster:
        daemon.wait_ready()

Each daemon has a folder below the cluster's, with its settings, its state and its log; they stay
for whoever wants to read them. A daemon keeps its port and its state over restarts. Daemons are
ended when the cluster is closed, when the interpreter exits, and by the kernel should the
interpreter be killed.
"""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType

import msgspec

from snooze.common.api import HealthView
from snooze.common.config import Settings, parse
from snooze.common.config_text import toml_text
from snooze.common.errors import ExecutionError, PreconditionError
from snooze.common.settings import BootstrapSettings
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.settings_localcontroller import LocalControllerSettings
from snooze.common.settings_schema import fields_of
from snooze.lab.hosts import LabHost
from snooze.lab.ports import take_port

READY_S = 60.0  # 1.5 s on an idle machine.
STOP_S = 30.0
ANSWER_S = 2.0
_POLL_S = 0.02
_TAIL_LINES = 60

Tables = Mapping[str, Mapping[str, object]]
"""Settings by section, over the cluster's own."""

_TYPINGS = Path(__file__).resolve().parents[1] / "typings"
"""In a checkout: the links by which a child process finds this very checkout as ``snooze``."""

_running: set["Daemon"] = set()


def child_environment() -> dict[str, str]:
    """Of our own programs as processes: this very code, and no settings by variables."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SNOOZE_")}
    if _TYPINGS.is_dir():
        environment["PYTHONPATH"] = str(_TYPINGS)
    return environment


@atexit.register
def _end_all() -> None:
    for daemon in list(_running):
        daemon.kill()


class Daemon:
    """One daemon process; made by ``DaemonCluster``, switched off at first.

    Attributes:
        address: its HTTP ``host:port``.
        folder: its settings, state and log.
    """

    def __init__(self, folder: Path, settings: Settings, on: LabHost | None = None) -> None:
        """``on``: the lab host that it runs on, which must have power when it is started."""
        network = settings.network
        self.name = settings.node.hostname
        self.role = settings.role
        self.folder = folder
        self.address = f"{network.advertised_address}:{network.control_port}"
        self._connection = (network.advertised_address, network.control_port)
        self.on = on
        self._process: subprocess.Popen[bytes] | None = None
        self._installed = False
        folder.mkdir(parents=True)
        self._settings = folder / "settings.toml"
        self._settings.write_text(toml_text(settings))
        self._log = folder / "log"

    @property
    def url(self) -> str:
        """Where its HTTP calls go."""
        return f"http://{self.address}"

    @property
    def runs(self) -> bool:
        """Whether its process is there; a frozen one is."""
        return self._process is not None and self._process.poll() is None

    @property
    def node_id(self) -> str:
        """Its id in the cluster, kept in its state; empty before its first start."""
        path = self.folder / "state" / f"{self.role}.id"
        return path.read_text().strip() if path.exists() else ""

    # ------------------------------------------------------------ its process

    def start(self) -> None:
        """Start the process; it is ready a little later. Running: nothing happens."""
        if self.runs:
            return
        command, environment = self._command(), child_environment()
        with self._log.open("ab") as log:
            if self.on is not None:
                self._process = self.on.popen(command, log, environment)
            else:
                self._process = subprocess.Popen(
                    [*_die_with_parent(), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
        _running.add(self)

    def install(self) -> None:
        """Let it start whenever its lab host is switched on; no process of ours, it dies there."""
        assert self.on is not None
        self._installed = True
        self.on.at_boot(self.role, self._command(), self._log, child_environment())

    def _command(self) -> list[str]:
        own = ["-c", str(self._settings)]
        return [sys.executable, "-m", "snooze.client.command", self.role, *own]

    def stop(self, timeout_s: float = STOP_S) -> float:
        """Ask it to stop (SIGTERM), as ``systemctl stop`` does; the seconds that it took.

        Raises:
            ExecutionError: it did not stop in time (it was killed), or not with exit code 0.
        """
        process = self._the_process()
        started_s = time.monotonic()
        self.signal(signal.SIGTERM)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ExecutionError(
                f"{self.name} did not stop in {timeout_s:g} s:\n{self.log_tail()}"
            ) from None
        self._forget()
        if code != 0:
            raise ExecutionError(f"{self.name} ended with code {code}:\n{self.log_tail()}")
        return time.monotonic() - started_s

    def kill(self) -> None:
        """Kill it (SIGKILL), frozen or not. Not running: nothing happens."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            self.signal(signal.SIGKILL)
            if self.on is None:
                process.kill()
        process.wait()
        self._forget()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): its connections stay open and nothing answers."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Thaw it (SIGCONT)."""
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal.

        Raises:
            PreconditionError: it does not run.
        """
        process = self._the_process()
        if self.on is not None:
            self.on.signal(process, number)
        else:
            process.send_signal(number)

    @property
    def pid(self) -> int:
        """Of its process, as this machine numbers it.

        Raises:
            PreconditionError: it does not run.
        """
        return self._the_process().pid

    def _the_process(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise PreconditionError(f"{self.name} does not run")
        return self._process

    def _forget(self) -> None:
        self._process = None
        _running.discard(self)

    # ------------------------------------------------------------ what it says

    def health(self) -> HealthView | None:
        """What it answers to ``/ready``; None if it does not answer."""
        connection = HTTPConnection(*self._connection, timeout=ANSWER_S)
        try:
            connection.request("GET", "/ready")
            return msgspec.json.decode(connection.getresponse().read(), type=HealthView)
        except (OSError, HTTPException, msgspec.MsgspecError):
            return None
        finally:
            connection.close()

    @property
    def is_ready(self) -> bool:
        """Whether it says so."""
        health = self.health()
        return health is not None and health.status == "ready"

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Block until it is ready.

        Raises:
            ExecutionError: it ended, or is not ready in time; with the end of its log.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            health = self.health()
            if health is not None and health.status == "ready":
                return
            if not self.runs and not self._installed:
                raise ExecutionError(f"{self.name} ended:\n{self.log_tail()}")
            if time.monotonic() > deadline_s:
                reasons = "it does not answer" if health is None else "; ".join(health.reasons)
                raise ExecutionError(
                    f"{self.name} is not ready after {timeout_s:g} s: {reasons}\n{self.log_tail()}"
                )
            time.sleep(_POLL_S)

    def log(self) -> str:
        """All that it has logged, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def log_tail(self) -> str:
        """The end of its log."""
        return "\n".join(self.log().splitlines()[-_TAIL_LINES:]) or "(its log is empty)"


class DaemonCluster:
    """The daemons of one cluster, in the order in which they were made; a context manager."""

    def __init__(
        self,
        folder: Path,
        zookeeper_hosts: str,
        *,
        address: str = "127.0.0.1",
        defaults: Tables | None = None,
    ) -> None:
        """A cluster without daemons.

        Args:
            folder: where the daemons have their folders.
            zookeeper_hosts: of the store of record, as ``host:port``, separated by commas.
            address: where group managers and bootstrap nodes listen.
            defaults: for every daemon; what its role does not have is left out for it.
        """
        self._folder = folder
        self._address = address
        store: Tables = {"coordination": {"hosts": tuple(zookeeper_hosts.split(","))}}
        self._defaults = (store, defaults or {})
        self.bootstraps: list[Daemon] = []
        self.managers: list[Daemon] = []
        self.hosts: list[Daemon] = []

    def bootstrap(
        self, name: str, settings: Tables | None = None, *, on: LabHost | None = None
    ) -> Daemon:
        """One more front door."""
        daemon = self._make(name, BootstrapSettings, {}, settings, on)
        self.bootstraps.append(daemon)
        return daemon

    def manager(
        self, name: str, settings: Tables | None = None, *, on: LabHost | None = None
    ) -> Daemon:
        """One more group manager."""
        monitoring = {"network": {"monitoring_port": take_port()}}
        daemon = self._make(name, GroupManagerSettings, monitoring, settings, on)
        self.managers.append(daemon)
        return daemon

    def host(
        self, name: str, settings: Tables | None = None, *, on: LabHost | None = None
    ) -> Daemon:
        """One more local controller, of the bootstrap nodes made before it."""
        own: dict[str, Mapping[str, object]] = {
            "join": {"bootstrap_nodes": tuple(node.address for node in self.bootstraps)}
        }
        daemon = self._make(name, LocalControllerSettings, own, settings, on)
        self.hosts.append(daemon)
        return daemon

    def _make(
        self,
        name: str,
        kind: type[Settings],
        own: Tables,
        settings: Tables | None,
        on: LabHost | None = None,
    ) -> Daemon:
        folder = self._folder / name
        known = {
            info.key: {below.key for below in fields_of(info.section)}
            for info in fields_of(kind)
            if info.section is not None
        }
        address = self._address if on is None else on.address
        merged: dict[str, dict[str, object]] = {
            "node": {"hostname": name, "state_directory": str(folder / "state")},
            "network": {
                "listen_address": address,
                "advertised_address": address,
                "control_port": take_port(),
            },
        }
        for tables in self._defaults:
            for section in known.keys() & tables.keys():
                own_keys = {k: v for k, v in tables[section].items() if k in known[section]}
                merged.setdefault(section, {}).update(own_keys)
        for tables in (own, settings or {}):
            for section, values in tables.items():
                merged.setdefault(section, {}).update(values)
        return Daemon(folder, parse("", kind, overrides=dict(merged)), on)

    def __iter__(self) -> Iterator[Daemon]:
        yield from (*self.bootstraps, *self.managers, *self.hosts)

    def logs(self) -> Iterator[tuple[str, str]]:
        """The end of each daemon's log, by its name."""
        for daemon in self:
            yield daemon.name, daemon.log_tail()

    def close(self) -> None:
        """End all daemons; their folders stay."""
        for daemon in self:
            daemon.kill()

    def __enter__(self) -> "DaemonCluster":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _die_with_parent() -> list[str]:
    setpriv = shutil.which("setpriv")
    return [] if setpriv is None else [setpriv, "--pdeathsig", "KILL"]

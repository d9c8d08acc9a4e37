"""Real ZooKeeper servers on this machine's loopback, for tests, benchmarks and the all-in-one lab.

    async with zookeeper_server(tick_ms=500) as server:
        ZooKeeperCoordinator(server.hosts, session_timeout_s=1.0)

    async with zookeeper_ensemble(3) as ensemble:
        leader = await ensemble.leader()
        await leader.kill()

Each server is a process of its own with its own temporary directory: no systemd, no privileges,
no fixed ports. Servers are ended by their process id when the context ends, when the interpreter
exits, and by the kernel should the interpreter be killed.
"""

import asyncio
import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from snooze.common.errors import ExecutionError, PreconditionError
from snooze.lab.hosts import LabHost
from snooze.lab.ports import take_port

_JAR = Path("/usr/share/java/zookeeper.jar")  # Its manifest names the other jars it needs.
_LOG_BINDING = Path("/usr/share/java/slf4j-simple.jar")  # Without one, the servers log nothing.
_READY_TIMEOUT_S = 60.0  # 0.6 s on an idle machine, 2.4 s on a busy one; an ensemble thrice that.
_STOP_TIMEOUT_S = 5.0
_POLL_S = 0.02

HEAP_MIB = 64
"""Of a server's Java: room for some ten thousand records. ZooKeeper's own default is 1000."""

_running: set["ZooKeeperServer"] = set()


@atexit.register
def _end_all() -> None:
    for server in list(_running):
        server.end()


def require_zookeeper() -> None:
    """Raises: PreconditionError, naming what to install, when there is no Java or no ZooKeeper."""
    missing: list[str] = []
    if shutil.which("java") is None:
        missing.append("default-jre-headless")
    if not _JAR.exists():
        missing.append("libzookeeper-java")
    if missing:
        raise PreconditionError(
            f"cannot run ZooKeeper servers: apt-get install --no-install-recommends "
            f"{' '.join(missing)}"
        )


class ZooKeeperServer:
    """One server process that can be killed, restarted on its data, frozen and thawed."""

    def __init__(
        self,
        directory: Path,
        client_port: int,
        settings: Sequence[str],
        heap_mib: int = HEAP_MIB,
        on: LabHost | None = None,
    ) -> None:
        """``on``: the lab host that it runs on, which must have power when it is launched."""
        self.port = client_port
        self.address = "127.0.0.1" if on is None else on.address
        self.on = on
        self._heap_mib = heap_mib
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._is_member = any(line.startswith("server.") for line in settings)
        lines = [f"dataDir={directory / 'data'}", f"clientPort={client_port}", *settings]
        lines.append(f"clientPortAddress={self.address}")
        (directory / "data").mkdir(parents=True)
        (directory / "zoo.cfg").write_text("\n".join(lines) + "\n")

    @property
    def hosts(self) -> str:
        """The connection string of this server alone."""
        return f"{self.address}:{self.port}"

    @property
    def pid(self) -> int:
        """Its process id. Raises: PreconditionError when it is down."""
        if self._process is None:
            raise PreconditionError(f"ZooKeeper server {self.hosts} is down")
        return self._process.pid

    def launch(self) -> None:
        """Start the process; it serves a little later (``wait_ready``)."""
        if self._process is not None:
            raise PreconditionError(f"ZooKeeper server {self.hosts} is up already")
        command = self._command()
        with (self._directory / "log").open("ab") as log:
            if self.on is not None:
                self._process = self.on.popen(command, log)
            else:
                self._process = subprocess.Popen(
                    [*_die_with_parent(), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._directory,
                )
        _running.add(self)

    def install(self) -> None:
        """Let it start whenever its lab host is switched on."""
        assert self.on is not None
        self.on.at_boot("zookeeper", self._command(), self._directory / "log")

    def _command(self) -> list[str]:
        main = "quorum.QuorumPeerMain" if self._is_member else "ZooKeeperServerMain"
        class_path = ":".join(str(jar) for jar in (_JAR, _LOG_BINDING) if jar.exists())
        return [
            *("java", f"-Xmx{self._heap_mib}m"),
            *("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"),
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            *("-cp", class_path),
            f"org.apache.zookeeper.server.{main}",
            str(self._directory / "zoo.cfg"),
        ]

    async def start(self) -> None:
        """Start it and wait until it serves. Raises: ExecutionError with the end of its log."""
        self.launch()
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Wait until it serves clients, which in an ensemble takes a quorum."""
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        while await self.mode() is None:
            if self._process is None or self._process.poll() is not None:
                raise ExecutionError(f"ZooKeeper server {self.hosts} ended:\n{self._log_tail()}")
            if time.monotonic() > deadline_s:
                raise ExecutionError(
                    f"ZooKeeper server {self.hosts} does not serve after "
                    f"{_READY_TIMEOUT_S:g} s:\n{self._log_tail()}"
                )
            await asyncio.sleep(_POLL_S)

    async def mode(self) -> str | None:
        """``standalone``, ``leader`` or ``follower``; None while it does not serve."""
        answer = await self.ask("srvr")
        for line in answer.splitlines():
            key, _, value = line.partition(": ")
            if key == "Mode":
                return value.strip()
        return None

    async def ask(self, word: str, timeout_s: float = 1.0) -> str:
        """Its answer to a four-letter word; empty when it does not answer."""
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(self.address, self.port)
                try:
                    writer.write(word.encode())
                    return (await reader.read(65_536)).decode()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return ""

    async def stop(self) -> None:
        """End it gently, or by force if it does not hurry; its data stay for a later ``start``."""
        process = self._process
        if process is None:
            return
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        for _ in range(round(_STOP_TIMEOUT_S / _POLL_S)):
            if process.poll() is not None:
                break
            await asyncio.sleep(_POLL_S)
        self.end()

    async def kill(self) -> None:
        """End it as a power cut would; its data stay for a later ``start``."""
        self.end()

    def end(self) -> None:
        """Kill it and wait for its end. Harmless when it is down."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            if self.on is None:
                self._process.kill()
            self._process.wait()
            self._process = None
        _running.discard(self)

    def pause(self) -> None:
        """Freeze it (SIGSTOP): its connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Thaw it (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.on is not None and self._process is not None:
            self.on.signal(self._process, number)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _log_tail(self) -> str:
        lines = (self._directory / "log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-20:]) or "(its log is empty)"


class ZooKeeperEnsemble:
    """Servers that form one ensemble, in the order of their ids."""

    def __init__(self, servers: Sequence[ZooKeeperServer]) -> None:
        self.servers = tuple(servers)

    @property
    def hosts(self) -> str:
        """The connection string of all of them."""
        return ",".join(server.hosts for server in self.servers)

    async def leader(self) -> ZooKeeperServer:
        """The server that leads the ensemble, once there is one. Raises: ExecutionError."""
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            for server in self.servers:
                if await server.mode() == "leader":
                    return server
            await asyncio.sleep(_POLL_S)
        raise ExecutionError(f"the ensemble {self.hosts} has no leader")

    async def followers(self) -> list[ZooKeeperServer]:
        """The servers that follow it just now."""
        return [server for server in self.servers if await server.mode() == "follower"]


@asynccontextmanager
async def zookeeper_server(
    *, tick_ms: int = 500, fsync: bool = False, heap_mib: int = HEAP_MIB
) -> AsyncGenerator[ZooKeeperServer, None]:
    """One server, serving. Sessions may last from 2 to 120 ticks.

    ``fsync=False`` spares the disk: after a power cut of the machine, not of the server, commits
    may be missing.
    """
    require_zookeeper()
    with tempfile.TemporaryDirectory(prefix="snooze-zookeeper-") as directory:
        settings = _settings(tick_ms, fsync)
        server = ZooKeeperServer(Path(directory) / "1", take_port(), settings, heap_mib)
        try:
            await server.start()
            yield server
        finally:
            server.end()


@asynccontextmanager
async def zookeeper_ensemble(
    count: int = 3,
    *,
    tick_ms: int = 500,
    fsync: bool = False,
    heap_mib: int = HEAP_MIB,
    on: Sequence[LabHost] = (),
) -> AsyncGenerator[ZooKeeperEnsemble, None]:
    """An ensemble of ``count`` servers, all serving. Sessions as with ``zookeeper_server``.

    ``on``: the lab hosts that they run on, switched on, one for each; else this machine.
    """
    require_zookeeper()
    places: list[LabHost | None] = list(on) or [None] * count
    addresses = ["127.0.0.1" if place is None else place.address for place in places]
    members = [
        f"server.{number}={address}:{take_port()}:{take_port()}"
        for number, address in enumerate(addresses, 1)
    ]
    settings = [*_settings(tick_ms, fsync), "initLimit=20", "syncLimit=4", *members]
    with tempfile.TemporaryDirectory(prefix="snooze-zookeeper-") as directory:
        servers: list[ZooKeeperServer] = []
        try:
            for number, place in enumerate(places, 1):
                folder = Path(directory) / str(number)
                server = ZooKeeperServer(folder, take_port(), settings, heap_mib, place)
                servers.append(server)
                _set_id(Path(directory) / str(number), number)
                server.launch()
            for server in servers:
                await server.wait_ready()
            yield ZooKeeperEnsemble(servers)
        finally:
            for server in servers:
                server.end()


def ensemble_at_boot(
    directory: Path, on: Sequence[LabHost], *, tick_ms: int = 500
) -> ZooKeeperEnsemble:
    """One server on each of these lab hosts, started whenever its host is switched on.

    They listen on ZooKeeper's usual ports; their data stay in ``directory``.
    """
    require_zookeeper()
    members = [f"server.{number}={host.address}:2888:3888" for number, host in enumerate(on, 1)]
    settings = [*_settings(tick_ms, fsync=False), "initLimit=20", "syncLimit=4"]
    if len(on) > 1:
        settings += members
    servers: list[ZooKeeperServer] = []
    for number, host in enumerate(on, 1):
        folder = directory / host.name
        server = ZooKeeperServer(folder, 2181, settings, on=host)
        _set_id(folder, number)
        server.install()
        servers.append(server)
    return ZooKeeperEnsemble(servers)


def _settings(tick_ms: int, fsync: bool) -> list[str]:
    return [
        f"tickTime={tick_ms}",
        f"minSessionTimeout={2 * tick_ms}",
        f"maxSessionTimeout={120 * tick_ms}",
        "maxClientCnxns=0",
        "admin.enableServer=false",
        "4lw.commands.whitelist=*",
        f"forceSync={'yes' if fsync else 'no'}",
        "preAllocSize=64",
    ]


def _set_id(directory: Path, number: int) -> None:
    (directory / "data" / "myid").write_text(f"{number}\n")


def _die_with_parent() -> list[str]:
    setpriv = shutil.which("setpriv")
    return [] if setpriv is None else [setpriv, "--pdeathsig", "KILL"]

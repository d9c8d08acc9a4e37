"""Several real hosts on one machine.

A ``LabNet`` is a switch: a network namespace with a bridge. A ``LabHost`` is a set of namespaces
(network, mounts, host name, IPC, processes) with its own libvirtd, its own ``/etc/libvirt`` and
``/var/lib/libvirt``, plugged into the switch. Its guests are real qemu processes. Power can fail
and cables can be pulled: a host that loses power is cut from the switch *first*, so that its peers
hear silence and not the closing of sockets.

Nothing is put into the machine's own network namespace but, if asked for, one cable (``uplink``).
All names carry a tag of their own, so that labs run side by side; what a lab that was killed left
behind is swept by the next one. Root is needed.
"""

import atexit
import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final

_PREFIX: Final = "snooze-lab-"
_INIT: Final = Path(__file__).with_name("host_init.sh")
_CLONE_FS, _CLONE_NEWNET, _CLONE_NEWNS = 0x200, 0x40000000, 0x20000
_MARK: Final = "SNOOZE_LAB"
_START_S: Final = 20.0
_CAPABILITIES: Final = "var/cache/libvirt/qemu/capabilities"
_LIBVIRT: Final = "etc/libvirt", "var/lib/libvirt", "var/cache/libvirt", "var/log/libvirt"

LIBVIRTD_CONF: Final = """\
listen_tls = 0
listen_tcp = 1
listen_addr = "0.0.0.0"
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "{uuid}"
keepalive_interval = 1
keepalive_count = 3
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""

QEMU_CONF: Final = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
keepalive_interval = 1
keepalive_count = 3
migration_address = "0.0.0.0"
migration_host = "{address}"
"""


class LabNet:
    """A switch, and the hosts plugged into it.

    Use as a context manager, or call ``close``; both take everything down by process id.

    Args:
        uplink: join the switch to the machine's own network, at ``gateway``.
    """

    def __init__(self, *, uplink: bool = False) -> None:
        self.tag, self.folder = new_folder()
        self.name = f"{_PREFIX}{self.tag}-net"
        self.subnet = f"10.{64 + secrets.randbelow(64)}.{secrets.randbelow(256)}"
        self.gateway = f"{self.subnet}.1"
        self.hosts: dict[str, LabHost] = {}
        self._uplink = f"snz{secrets.token_hex(5)}" if uplink else ""
        self._closed = False
        atexit.register(self.close)
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def host(self, name: str, *, libvirtd: bool = True) -> "LabHost":
        """A new host, switched off; the n-th has address ``SUBNET.(10 + n)``.

        Args:
            libvirtd: whether it runs one.
        """
        host = LabHost(self, name, len(self.hosts) + 1, libvirtd=libvirtd)
        self.hosts[name] = host
        self._write_names()
        return host

    def popen(
        self,
        command: Sequence[str],
        output: int | IO[bytes] = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Start a command on the switch: it reaches all hosts and is none of them."""
        return _popen((f"--net=/run/netns/{self.name}",), command, output, env)

    def enter_thread(self) -> None:
        """Move the calling thread, for good, into the switch's network."""
        _enter(f"/run/netns/{self.name}", _CLONE_NEWNET)

    def close(self) -> None:
        """Take all down; may be called again."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        for host in self.hosts.values():
            host.kill()
        for host in self.hosts.values():
            host.power_off()
        if self._uplink:
            _run("ip", "link", "del", self._uplink, check=False)
        _run("ip", "netns", "del", self.name, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "LabNet":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _build(self) -> None:
        _run("ip", "netns", "add", self.name)
        inside = ("ip", "-n", self.name)
        _run(*inside, "link", "set", "lo", "up")
        # a fixed address: a bridge that takes the least of its ports' changes it with every port
        _run(*inside, "link", "add", "sw0", "address", "52:54:00:5a:00:01", "type", "bridge")
        _run(*inside, "addr", "add", f"{self.subnet}.254/24", "dev", "sw0")
        _run(*inside, "link", "set", "sw0", "up")
        if self._uplink:
            _run(
                "ip", "link", "add", self._uplink, "type", "veth", "peer", "up0", "netns", self.name
            )
            _run(*inside, "link", "set", "up0", "master", "sw0", "up")
            _run("ip", "addr", "add", f"{self.gateway}/24", "dev", self._uplink)
            _run("ip", "link", "set", self._uplink, "up")

    def _write_names(self) -> None:
        """Every host knows every other by name: libvirt's peers go by host name."""
        lines = ["127.0.0.1 localhost"]
        lines += [f"{host.address} {host.name}" for host in self.hosts.values()]
        for host in self.hosts.values():
            (host.folder / "etc/hosts").write_text("\n".join(lines) + "\n")


class LabHost:
    """One host: on or off, plugged in or cut.

    Attributes:
        address: in the lab's network.
        folder: what it keeps while it is off; ``folder / "var/lib/libvirt"`` is its
            ``/var/lib/libvirt``. Folders elsewhere are the machine's own, and hence shared by all
            hosts, like network storage.
    """

    def __init__(self, net: LabNet, name: str, number: int, *, libvirtd: bool) -> None:
        self.net = net
        self.name = name
        self.address = f"{net.subnet}.{10 + number}"
        self.uuid = str(uuid.uuid4())
        self.folder = net.folder / name
        self._number = number
        self._namespace = f"{_PREFIX}{net.tag}-{name}"
        self._cable = f"port{number}"
        self._outer: subprocess.Popen[bytes] | None = None
        self._pid = 0
        for path in (*_LIBVIRT, "etc", "run"):
            (self.folder / path).mkdir(parents=True, exist_ok=True)
        if not libvirtd:
            (self.folder / "no-libvirtd").touch()
        (self.folder / "etc/machine-id").write_text(self.uuid.replace("-", "") + "\n")
        self.configure(LIBVIRTD_CONF.format(uuid=self.uuid), QEMU_CONF.format(address=self.address))

    @property
    def uri(self) -> str:
        """By which the other hosts, and whoever is on the switch, reach its libvirt."""
        return f"qemu+tcp://{self.address}/system"

    @property
    def is_on(self) -> bool:
        """Whether it has power."""
        return self._pid != 0 and Path(f"/proc/{self._pid}").exists()

    @property
    def pid(self) -> int:
        """Of its first process, as the machine counts; 0 when off."""
        return self._pid

    def configure(self, libvirtd_conf: str, qemu_conf: str) -> None:
        """Write libvirt's settings; they count from the next ``power_on``."""
        (self.folder / "etc/libvirt/libvirtd.conf").write_text(libvirtd_conf)
        (self.folder / "etc/libvirt/qemu.conf").write_text(qemu_conf)

    def power_on(self) -> None:
        """Boot; returns when the host's first process runs. On already: nothing happens.

        Raises:
            TimeoutError: if it does not come up.
        """
        if self.is_on:
            return
        shutil.rmtree(self.folder / "run", ignore_errors=True)  # /run does not outlive a boot
        (self.folder / "run").mkdir()
        (self.folder / "state").unlink(missing_ok=True)
        _reuse_capabilities(self.folder / _CAPABILITIES)
        self._plug_into_switch()
        with (self.folder / "console.log").open("ab") as console:
            self._outer = subprocess.Popen(
                (
                    *("ip", "netns", "exec", self._namespace, "unshare", "--mount", "--uts"),
                    *("--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("--propagation", "private", "bash", str(_INIT), self.name, str(self.folder)),
                ),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=marked_environment(self.net.tag),
                start_new_session=True,
            )
        _wait_for((self.folder / "state").exists, f"host {self.name} to come up")
        self._pid = _first_process(self._outer.pid)
        (self.folder / "pid").write_text(str(self._pid))

    def wait_for_libvirtd(self) -> None:
        """Block until its libvirt answers.

        Raises:
            TimeoutError: if it does not.
        """
        command = ("virsh", "-q", "-c", "qemu:///system", "version")
        _wait_for(lambda: self.exec(command).returncode == 0, f"libvirtd of {self.name}")
        _keep_capabilities(self.folder / _CAPABILITIES)

    def kill(self) -> None:
        """Lose power: cut from the switch, then dead, all of it; ``power_off`` waits for that."""
        _run("ip", "-n", self.net.name, "link", "del", self._cable, check=False)
        for pid in (self._pid, self._outer.pid if self._outer else 0):
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def power_off(self) -> None:
        """Lose power, and block until nothing of it runs. Off already: nothing happens."""
        self.kill()
        if self._outer is not None:
            self._outer.wait()
            self._outer = None
        if self._pid:
            pid = self._pid
            _wait_for(lambda: not Path(f"/proc/{pid}").exists(), f"host {self.name} to die")
            self._pid = 0
        (self.folder / "pid").unlink(missing_ok=True)
        _run("ip", "netns", "del", self._namespace, check=False)

    def cut(self) -> None:
        """Pull its network cable."""
        _run("ip", "-n", self.net.name, "link", "set", self._cable, "down")

    def plug(self) -> None:
        """Put its network cable back."""
        _run("ip", "-n", self.net.name, "link", "set", self._cable, "up")

    def deafen(self, *addresses: str) -> None:
        """Let nothing from these addresses in, and still send to them; from anywhere if none."""
        self._drop("INPUT", "--in-interface", "--source", addresses)

    def mute(self, *addresses: str) -> None:
        """Let nothing out to these addresses, and still hear them; to anywhere if none."""
        self._drop("OUTPUT", "--out-interface", "--destination", addresses)

    def heal(self) -> None:
        """Undo ``deafen`` and ``mute``."""
        _run(*self._inside(("iptables", "--wait", "--flush")))

    def exec(
        self, command: Sequence[str], *, timeout_s: float = 60.0
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a command on the host and wait for it."""
        return subprocess.run(
            self._inside(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )

    def popen(
        self,
        command: Sequence[str],
        output: int | IO[bytes] = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Start a command on the host; it dies with the host.

        The process returned is a messenger outside, which ends when the command does; a signal to
        it does not reach the command: use ``signal``.
        """
        return _popen(self._namespaces(), command, output, env)

    def signal(self, process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
        """Send a signal to a command started by ``popen``, if it still runs."""
        for pid in _children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if number in {signal.SIGCONT, signal.SIGKILL}:
            # The messenger stops itself when the command is stopped, and no one wakes it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)

    def enter_thread(self) -> None:
        """Move the calling thread, for good, into the host's network and mounts."""
        ctypes.CDLL(None, use_errno=True).unshare(_CLONE_FS)  # else mounts can not be changed
        _enter(f"/proc/{self._pid}/ns/net", _CLONE_NEWNET)
        _enter(f"/proc/{self._pid}/ns/mnt", _CLONE_NEWNS)

    def libvirtd_pid(self) -> int:
        """Of its libvirtd, as the machine counts.

        Raises:
            ProcessLookupError: if it runs none.
        """
        for pid in _descendants(self._pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "libvirtd":
                    return pid
        raise ProcessLookupError(f"host {self.name} runs no libvirtd")

    def _drop(self, chain: str, through: str, peer: str, addresses: Sequence[str]) -> None:
        rule = ("iptables", "--wait", "--append", chain, through, "br0")
        for match in [(peer, address) for address in addresses] or [(peer, "0.0.0.0/0")]:
            _run(*self._inside((*rule, "--jump", "DROP", *match)))

    def _plug_into_switch(self) -> None:
        switch, name, number = self.net.name, self._namespace, f"{self._number:02x}"
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "set", "lo", "up")
        cable = ("ip", "-n", switch, "link", "add", self._cable, "type", "veth")
        _run(*cable, "peer", "name", "eth0", "netns", name)
        _run("ip", "-n", switch, "link", "set", self._cable, "master", "sw0", "up")
        bridge = ("ip", "-n", name, "link", "add", "br0")
        _run(*bridge, "address", f"52:54:00:5b:00:{number}", "type", "bridge")
        _run("ip", "-n", name, "link", "set", "eth0", "master", "br0", "up")
        _run("ip", "-n", name, "link", "set", "br0", "up")
        _run("ip", "-n", name, "addr", "add", f"{self.address}/24", "dev", "br0")
        # qemu copies disks over plain TCP: with the kernel's default of 15 it takes a quarter of an
        # hour to give a silent peer up, and libvirt can not stop that migration before
        _run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv4.tcp_retries2=4")

    def _namespaces(self) -> tuple[str, ...]:
        return ("--target", str(self._pid), "--mount", "--uts", "--ipc", "--net", "--pid")

    def _inside(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", *self._namespaces(), "--", *command]


def _kept_capabilities() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "snooze-lab", "qemu-capabilities")


def _reuse_capabilities(own: Path) -> None:
    """Spare a new host the seconds in which libvirt asks every qemu what it can do.

    libvirt itself checks that what it kept still fits qemu, kernel and its own version.
    """
    if not own.exists():
        # another lab may be replacing it at this moment: then this host asks for itself
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(_kept_capabilities(), own)


def _keep_capabilities(own: Path) -> None:
    """Keep what a host's libvirt learned for the hosts to come, if it is news."""
    kept = _kept_capabilities()
    if _newest(own) <= _newest(kept):
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=kept.parent))
    shutil.copytree(own, fresh, dirs_exist_ok=True)
    shutil.rmtree(kept, ignore_errors=True)
    try:
        fresh.rename(kept)
    except OSError:
        shutil.rmtree(fresh)  # another lab was quicker


def _newest(folder: Path) -> int:
    """When the youngest file below was written (ns); 0 if there is none."""
    return max((path.stat().st_mtime_ns for path in folder.rglob("*.xml")), default=0)


def new_folder() -> tuple[str, Path]:
    """A tag and a folder for something that ``sweep`` will find should we be killed.

    A process that is to be swept runs in a ``marked_environment`` and has its id in a file
    ``FOLDER/ANYTHING/pid``.
    """
    sweep()
    tag = f"{os.getpid()}-{secrets.token_hex(3)}"
    return tag, Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{tag}-"))


def marked_environment(tag: str) -> dict[str, str]:
    """Our environment, with the mark by which ``sweep`` knows a process again."""
    return {**os.environ, _MARK: tag}


def sweep() -> None:
    """Take down what labs of processes that are gone have left behind."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        tag = "-".join(folder.name.removeprefix(_PREFIX).split("-")[:2])
        owner = tag.partition("-")[0]
        if not owner.isdigit() or Path(f"/proc/{owner}").exists():
            continue
        for pid_file in folder.glob("*/pid"):
            _kill_if_marked(pid_file, tag)
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        for path in Path("/run/netns").iterdir():
            owner = path.name.removeprefix(_PREFIX).partition("-")[0]
            stale = owner.isdigit() and not Path(f"/proc/{owner}").exists()
            if path.name.startswith(_PREFIX) and stale:
                _run("ip", "netns", "del", path.name, check=False)


def _kill_if_marked(pid_file: Path, tag: str) -> None:
    """Kill a stale process, if the number is still its own."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        if f"{_MARK}={tag}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGKILL)


def _popen(
    namespaces: Sequence[str],
    command: Sequence[str],
    output: int | IO[bytes],
    env: Mapping[str, str] | None,
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        ("nsenter", *namespaces, "--", *command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=env,
    )


def _run(*command: str, check: bool = True) -> None:
    """Run a tool of the machine.

    Raises:
        RuntimeError: with what it said, if it failed and ``check`` is set.
    """
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
    )
    if check and done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"{' '.join(command)}: {said}")


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + _START_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {_START_S:g} s for {what}")
        time.sleep(0.02)


def _first_process(outer: int) -> int:
    """The process that is number 1 in its own namespace, among the descendants of ``outer``."""
    for pid in _descendants(outer):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                numbers = line.split()
                if numbers[:1] == ["NSpid:"] and len(numbers) > 2 and numbers[-1] == "1":
                    return pid
    raise RuntimeError("the host has no first process")


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = _children(waiting.pop())
        found += children
        waiting += children
    return found


def _enter(path: str, kind: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(path, os.O_RDONLY)
    try:
        if libc.setns(namespace, kind):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(namespace)

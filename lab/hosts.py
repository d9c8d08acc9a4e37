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
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from snooze.lab.host_files import (
    CAPABILITIES,
    LIBVIRTD_CONF,
    QEMU_CONF,
    keep_capabilities,
    reuse_capabilities,
)
from snooze.lab.processes import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    PREFIX,
    children,
    descendants,
    enter,
    first_process,
    marked_environment,
    new_folder,
    popen_in,
    run,
    unshare_files,
    wait_for,
)
from snooze.lab.sleeping import Freezer, best_freezer, free_messengers, namespace_processes

_INIT: Final = Path(__file__).with_name("host_init.sh")
_LIBVIRT: Final = "etc/libvirt", "var/lib/libvirt", "var/cache/libvirt", "var/log/libvirt"
_POWER_OFF_SIGNAL: Final = signal.SIGRTMIN + 4
"""By which a first process is told to shut its machine down, as systemd is."""
_RESTART_S: Final = 2
_NO_RESTART: Final = 3
"""A service that ends with this code has wrong settings; as in our systemd units."""


class LabNet:
    """A switch, and the hosts plugged into it.

    Use as a context manager, or call ``close``; both take everything down by process id.

    Args:
        uplink: join the switch to the machine's own network, at ``gateway``.
    """

    def __init__(self, *, uplink: bool = False) -> None:
        self.tag, self.folder = new_folder()
        self.name = f"{PREFIX}{self.tag}-net"
        self.subnet = f"10.{64 + secrets.randbelow(64)}.{secrets.randbelow(256)}"
        self.gateway = f"{self.subnet}.1"
        self.hosts: dict[str, LabHost] = {}
        self.switch_address = f"{self.subnet}.2"
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
        return popen_in((f"--net=/run/netns/{self.name}",), command, output, env)

    def enter_thread(self) -> None:
        """Move the calling thread, for good, into the switch's network."""
        enter(f"/run/netns/{self.name}", CLONE_NEWNET)

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
            run("ip", "link", "del", self._uplink, check=False)
        run("ip", "netns", "del", self.name, check=False)
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
        run("ip", "netns", "add", self.name)
        inside = ("ip", "-n", self.name)
        run(*inside, "link", "set", "lo", "up")
        # a fixed address: a bridge that takes the least of its ports' changes it with every port
        run(*inside, "link", "add", "sw0", "address", "52:54:00:5a:00:01", "type", "bridge")
        run(*inside, "addr", "add", f"{self.switch_address}/24", "dev", "sw0")
        run(*inside, "link", "set", "sw0", "up")
        if self._uplink:
            run(
                "ip", "link", "add", self._uplink, "type", "veth", "peer", "up0", "netns", self.name
            )
            run(*inside, "link", "set", "up0", "master", "sw0", "up")
            run("ip", "addr", "add", f"{self.gateway}/24", "dev", self._uplink)
            run("ip", "link", "set", self._uplink, "up")

    def _write_names(self) -> None:
        """Every host knows every other by name: libvirt's peers go by host name."""
        lines = ["127.0.0.1 localhost"]
        lines += [f"{host.address} {host.name}" for host in self.hosts.values()]
        for host in self.hosts.values():
            (host.folder / "etc/hosts").write_text("\n".join(lines) + "\n")


class LabHost:
    """One host: on or off, plugged in or cut.

    May be asked by several threads: its owner's, its BMC's, the one that listens for wake-up calls.

    Attributes:
        address: in the lab's network.
        mac: of its network card, by which it is woken.
        folder: what it keeps while it is off; ``folder / "var/lib/libvirt"`` is its
            ``/var/lib/libvirt``. Folders elsewhere are the machine's own, and hence shared by all
            hosts, like network storage.
        number: the first host of a lab is 1.
        plugged: whether its cable is in; it may be put in and pulled while the host is off, too.
        freezer: how it is suspended.
        is_suspended: whether it is suspended, to RAM or to disk.
        is_hibernated: whether it is suspended to disk: it draws no power then, and loses nothing
            with it.
    """

    def __init__(self, net: LabNet, name: str, number: int, *, libvirtd: bool) -> None:
        self.net = net
        self.name = name
        self.number = number
        self.address = f"{net.subnet}.{10 + number}"
        self.mac = f"52:54:00:5c:00:{number:02x}"
        self.uuid = str(uuid.uuid4())
        self.folder = net.folder / name
        self.plugged = True
        self.runs_libvirtd = libvirtd
        self._namespace = f"{PREFIX}{net.tag}-{name}"
        self._cable = f"port{number}"
        self._outer: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._switching = threading.RLock()
        self.freezer: Freezer = best_freezer(self._namespace)
        self.is_suspended = self.is_hibernated = False
        for path in (*_LIBVIRT, "etc", "run", "boot", "bin"):
            (self.folder / path).mkdir(parents=True, exist_ok=True)
        if not libvirtd:
            (self.folder / "no-libvirtd").touch()
        (self.folder / "sleep-states").write_text("mem disk\n")
        (self.folder / "etc/machine-id").write_text(self.uuid.replace("-", "") + "\n")
        self.configure(LIBVIRTD_CONF.format(uuid=self.uuid), QEMU_CONF.format(address=self.address))

    @property
    def uri(self) -> str:
        """By which the other hosts, and whoever is on the switch, reach its libvirt."""
        return f"qemu+tcp://{self.address}/system"

    @property
    def is_on(self) -> bool:
        """Whether it has power."""
        return self._outer is not None and self._outer.poll() is None

    @property
    def pid(self) -> int:
        """Of its first process, as the machine counts; 0 when off."""
        return self._pid

    def configure(self, libvirtd_conf: str, qemu_conf: str) -> None:
        """Write libvirt's settings; they count from the next ``power_on``."""
        (self.folder / "etc/libvirt/libvirtd.conf").write_text(libvirtd_conf)
        (self.folder / "etc/libvirt/qemu.conf").write_text(qemu_conf)

    def at_boot(
        self,
        service: str,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start a service with every ``power_on`` to come, and again two seconds after it failed.

        Args:
            env: all of its environment; ours, unless it is given.
        """
        variables = self._environment(env)
        line = shlex.join(["env", "-i", *(f"{k}={v}" for k, v in variables.items()), *command])
        script = (
            f"#!/bin/bash\n# {service} of {self.name}, as systemd would run it\n"
            f"while :; do\n    {line} </dev/null >>{shlex.quote(str(log))} 2>&1\n"
            f"    case $? in 0|{_NO_RESTART}) exit ;; esac\n    sleep {_RESTART_S}\ndone\n"
        )
        path = self.folder / "boot" / service
        path.write_text(script)
        path.chmod(0o700)  # what it starts may have secrets among its variables

    def power_on(self) -> None:
        """Boot; returns when the host's first process runs. On already: nothing happens.

        A suspended host is woken instead, as by its power button.

        Raises:
            TimeoutError: if it does not come up.
        """
        with self._switching:
            if self.is_on:
                self.wake()
                return
            self._bury()
            shutil.rmtree(self.folder / "run", ignore_errors=True)  # does not outlive a boot
            (self.folder / "run/lock").mkdir(parents=True)  # libvirt locks consoles there
            (self.folder / "run/systemd/system").mkdir(parents=True)  # systemd has booted it
            (self.folder / "state").unlink(missing_ok=True)
            reuse_capabilities(self.folder / CAPABILITIES)
            self._plug_into_switch()
            with (self.folder / "console.log").open("ab") as console:
                outer = self._outer = subprocess.Popen(
                    (
                        *("ip", "netns", "exec", self._namespace, "unshare", "--mount", "--uts"),
                        *("--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"),
                        *("--propagation", "private", "bash", str(_INIT)),
                        *(self.name, str(self.folder)),
                    ),
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    env=marked_environment(self.net.tag),
                    start_new_session=True,
                )
            wait_for((self.folder / "state").exists, f"host {self.name} to come up")
            self._pid = first_process(outer.pid)
        watch = threading.Thread(target=self._watch, args=(outer,), name=f"power-{self.name}")
        watch.daemon = True
        watch.start()

    def shut_down(self) -> None:
        """Ask its first process to go down, as the power button of a BMC does; it goes by itself.

        From inside, ``kill -s RTMIN+4 1`` does the same. Off already: nothing happens. A suspended
        host wakes at the button, and stays up.
        """
        with self._switching:
            if self.is_suspended:
                self.wake()
            elif self.is_on:
                os.kill(self._pid, _POWER_OFF_SIGNAL)

    @property
    def draws_power(self) -> bool:
        """What its BMC says of its power."""
        return self.is_on and not self.is_hibernated

    def suspend(self, *, to_disk: bool = False) -> None:
        """Suspend it: all that runs on it stands still, and its network is silent.

        From inside, ``systemctl suspend`` and ``hibernate`` do the same. Off, or suspended: nothing
        happens.

        Raises:
            TimeoutError: something on it does not stand still; it runs on.
        """
        with self._switching:
            if not self.is_on or self.is_suspended:
                return
            try:
                self.freezer.freeze(self._pid)
            except TimeoutError:
                self.freezer.thaw()
                raise
            self.is_suspended, self.is_hibernated = True, to_disk
            self._connect()

    def wake(self) -> None:
        """Let it go on where it stood. Not suspended: nothing happens."""
        with self._switching:
            if self.is_suspended:
                self.is_suspended = self.is_hibernated = False
                self._connect()
                self.freezer.thaw()

    def lose_power(self) -> None:
        """As ``power_off``; one that is suspended to disk loses nothing and sleeps on."""
        with self._switching:
            if not self.is_hibernated:
                self.power_off()

    def kill(self) -> None:
        """Lose power: cut from the switch, then dead, all of it; ``power_off`` waits for that."""
        with self._switching:
            run("ip", "-n", self.net.name, "link", "del", self._cable, check=False)
            if self.is_on:
                doomed = namespace_processes(self._pid) if self._pid else []
                for pid in (self._pid, self._outer.pid if self._outer else 0):
                    if pid:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                free_messengers(doomed)
            self.is_suspended = self.is_hibernated = False  # what it held is lost

    def power_off(self) -> None:
        """Lose power, and block until nothing of it runs. Off already: nothing happens."""
        with self._switching:
            self.kill()
            self._bury()

    def cut(self) -> None:
        """Pull its network cable."""
        self._set_cable(plugged=False)

    def plug(self) -> None:
        """Put its network cable back."""
        self._set_cable(plugged=True)

    def wait_for_libvirtd(self) -> None:
        """Block until its libvirt answers.

        Raises:
            TimeoutError: if it does not.
        """
        command = ("virsh", "-q", "-c", "qemu:///system", "version")
        wait_for(lambda: self.exec(command).returncode == 0, f"libvirtd of {self.name}")
        keep_capabilities(self.folder / CAPABILITIES)

    def deafen(self, *addresses: str) -> None:
        """Let nothing from these addresses in, and still send to them; from anywhere if none."""
        self._drop("INPUT", "--in-interface", "--source", addresses)

    def mute(self, *addresses: str) -> None:
        """Let nothing out to these addresses, and still hear them; to anywhere if none."""
        self._drop("OUTPUT", "--out-interface", "--destination", addresses)

    def heal(self) -> None:
        """Undo ``deafen`` and ``mute``."""
        run(*self._inside(("iptables", "--wait", "--flush")))

    def exec(
        self, command: Sequence[str], *, timeout_s: float = 60.0
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a command on the host and wait for it.

        Raises:
            RuntimeError: it is suspended.
        """
        self._check_awake()
        return subprocess.run(
            self._inside(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=self._environment(None),
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

        Raises:
            RuntimeError: it is suspended.
        """
        self._check_awake()
        return popen_in(self._namespaces(), command, output, self._environment(env))

    def signal(self, process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
        """Send a signal to a command started by ``popen``, if it still runs."""
        for pid in children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if number in {signal.SIGCONT, signal.SIGKILL}:
            # The messenger stops itself when the command is stopped, and no one wakes it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)

    def enter_thread(self) -> None:
        """Move the calling thread, for good, into the host's network and mounts."""
        unshare_files()  # else mounts can not be changed
        enter(f"/proc/{self._pid}/ns/net", CLONE_NEWNET)
        enter(f"/proc/{self._pid}/ns/mnt", CLONE_NEWNS)

    def libvirtd_pid(self) -> int:
        """Of its libvirtd, as the machine counts.

        Raises:
            ProcessLookupError: if it runs none.
        """
        for pid in descendants(self._pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "libvirtd":
                    return pid
        raise ProcessLookupError(f"host {self.name} runs no libvirtd")

    def _drop(self, chain: str, through: str, peer: str, addresses: Sequence[str]) -> None:
        rule = ("iptables", "--wait", "--append", chain, through, "br0")
        for match in [(peer, address) for address in addresses] or [(peer, "0.0.0.0/0")]:
            run(*self._inside((*rule, "--jump", "DROP", *match)))

    def _set_cable(self, *, plugged: bool) -> None:
        with self._switching:
            self.plugged = plugged
            self._connect()

    def _connect(self) -> None:
        """Let its port be as it has to be."""
        if self.is_on:
            state = "up" if self.plugged and not self.is_suspended else "down"
            run("ip", "-n", self.net.name, "link", "set", self._cable, state)

    def _check_awake(self) -> None:
        if self.is_suspended:
            raise RuntimeError(f"host {self.name} is suspended: nothing runs on it")

    def _environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        """Variables of a command on the host: it has commands of its own, as ``systemctl``."""
        variables = dict(os.environ if env is None else env)
        usual = variables.get("PATH", os.defpath)
        return {**variables, "PATH": f"{self.folder / 'bin'}:{usual}"}

    def _watch(self, outer: "subprocess.Popen[bytes]") -> None:
        """Clean up after a host that went down by itself: nothing answers in its name any more."""
        outer.wait()
        with self._switching:
            if self._outer is outer:
                self._bury()

    def _bury(self) -> None:
        """Wait for the end of all that ran, and take its network away."""
        if self._outer is not None:
            self._outer.wait()
            self._outer = None
        if self._pid:
            pid = self._pid
            wait_for(lambda: not Path(f"/proc/{pid}").exists(), f"host {self.name} to die")
        self.freezer.forget()
        run("ip", "-n", self.net.name, "link", "del", self._cable, check=False)
        run("ip", "netns", "del", self._namespace, check=False)
        self._pid = 0

    def _plug_into_switch(self) -> None:
        switch, name, number = self.net.name, self._namespace, f"{self.number:02x}"
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        cable = ("ip", "-n", switch, "link", "add", self._cable, "type", "veth")
        run(*cable, "peer", "name", "eth0", "address", self.mac, "netns", name)
        state = "up" if self.plugged else "down"
        run("ip", "-n", switch, "link", "set", self._cable, "master", "sw0", state)
        bridge = ("ip", "-n", name, "link", "add", "br0")
        run(*bridge, "address", f"52:54:00:5b:00:{number}", "type", "bridge")
        run("ip", "-n", name, "link", "set", "eth0", "master", "br0", "up")
        run("ip", "-n", name, "link", "set", "br0", "up")
        run("ip", "-n", name, "addr", "add", f"{self.address}/24", "dev", "br0")
        # qemu copies disks over plain TCP: with the kernel's default of 15 it takes a quarter of an
        # hour to give a silent peer up, and libvirt can not stop that migration before
        retries = "echo 4 > /proc/sys/net/ipv4/tcp_retries2"
        run("ip", "netns", "exec", name, "sh", "-c", retries)

    def _namespaces(self) -> tuple[str, ...]:
        return ("--target", str(self._pid), "--mount", "--uts", "--ipc", "--net", "--pid")

    def _inside(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", *self._namespaces(), "--", *command]

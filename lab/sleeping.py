"""Suspend to RAM or to disk: what runs on a lab host stands still, and goes on where it stood.

A suspended host keeps its memory: no process of it runs, its own or a guest's, until it is woken.
They are frozen by a cgroup (version 2) where the machine has one, which no process can notice or
refuse; else by SIGSTOP, the host's first process before all others, so that nothing is born behind.
Either way SIGKILL ends them: a power cut while a host is suspended to RAM loses what it held. To
disk is the same here, but for what a BMC says (off), and a power cut loses nothing.

What differs from a real machine: its kernel is this machine's, so CLOCK_MONOTONIC goes on while it
is suspended, and its connections may be given up meanwhile.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

from snooze.lab.processes import cgroup_root, children, process_state, wait_for

CHASSIS: Final = Path(__file__).with_name("chassis.py")

_SYSTEMCTL: Final = """\
#!/bin/bash
# What a lab host has of systemd: its ways to go down.
case $1 in
poweroff) kill -s RTMIN+4 1 ;;  # the shell's own: there may be no other
suspend | hibernate) exec {ask} set $1 1 ;;
*) echo "systemctl of a lab host knows poweroff, suspend and hibernate" >&2 && exit 1 ;;
esac
"""
_STOPPED: Final = frozenset("tTZX")


def systemctl_script(socket: Path, host: str) -> str:
    """The command by which a host suspends itself: it asks its hardware, which the lab plays."""
    python = f"{sys.executable} -I -S {CHASSIS}"
    return _SYSTEMCTL.format(ask=f"{python} {socket} {host}")


class Freezer(Protocol):
    """Lets the processes of a host stand still."""

    def freeze(self, first: int) -> None:
        """All processes in the namespace of the host's first process; blocks until they stand.

        Raises:
            TimeoutError: they do not.
        """
        ...

    def thaw(self) -> None:
        """Let them go on."""
        ...

    def forget(self) -> None:
        """They are gone; may be called again."""
        ...


class CgroupFreezer:
    """By a cgroup of its own, which processes are moved into when they are first frozen."""

    def __init__(self, root: Path, name: str) -> None:
        self._folder = root / name

    def freeze(self, first: int) -> None:
        """See the port."""
        self._folder.mkdir(exist_ok=True)
        (self._folder / "cgroup.freeze").write_text("1")
        moved: set[int] = set()
        while fresh := [pid for pid in namespace_processes(first) if pid not in moved]:
            for pid in fresh:
                with contextlib.suppress(OSError):  # it ended
                    (self._folder / "cgroup.procs").write_text(str(pid))
            moved.update(fresh)
        events = self._folder / "cgroup.events"
        wait_for(lambda: "frozen 1" in events.read_text(), "a host to stand still")

    def thaw(self) -> None:
        """See the port."""
        (self._folder / "cgroup.freeze").write_text("0")

    def forget(self) -> None:
        """See the port."""
        if self._folder.exists():
            wait_for(self._removed, f"{self._folder.name} to be empty")

    def _removed(self) -> bool:
        """A cgroup is busy until the last of its processes is buried."""
        try:
            self._folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


class SignalFreezer:
    """By SIGSTOP; those that stood still already are left as they are."""

    def __init__(self) -> None:
        self._stopped: list[int] = []

    def freeze(self, first: int) -> None:
        """See the port."""
        own = {pid for pid in namespace_processes(first) if process_state(pid) in {"t", "T"}}

        def stands() -> bool:
            running = [
                pid for pid in namespace_processes(first) if process_state(pid) not in _STOPPED
            ]
            for pid in running:
                _signal(pid, signal.SIGSTOP)
            return not running

        wait_for(stands, "a host to stand still")
        self._stopped = [pid for pid in namespace_processes(first) if pid not in own]

    def thaw(self) -> None:
        """See the port; the messengers of ``nsenter`` stop with those that they wait for."""
        stopped, self._stopped = self._stopped, []
        free_messengers(stopped)
        for pid in stopped:
            _signal(pid, signal.SIGCONT)

    def forget(self) -> None:
        """See the port."""
        self._stopped = []


def best_freezer(name: str) -> Freezer:
    """The best that this machine has, for the host of this name."""
    root = cgroup_root()
    return CgroupFreezer(root, name) if root is not None else SignalFreezer()


def namespace_processes(first: int) -> list[int]:
    """The processes in the namespace of a host's first one: that one first, its own numbers last.

    Those that were put in from outside are among them.
    """
    try:
        namespace = os.readlink(f"/proc/{first}/ns/pid")
    except OSError:
        return []
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended, or is not ours to look at
                if os.readlink(entry / "ns/pid") == namespace:
                    found.append(int(entry.name))
    return sorted(found, key=lambda pid: (pid != first, pid))


def free_messengers(pids: Iterable[int]) -> None:
    """Let stopped processes outside go on that wait for one of these: else none is ever buried."""
    wanted = set(pids)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in wanted:
            pid = int(entry.name)
            if process_state(pid) == "T" and wanted.intersection(children(pid)):
                _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

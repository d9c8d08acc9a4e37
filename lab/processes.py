"""Starting, marking, finding and sweeping the processes of labs; tools of the machine."""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

PREFIX: Final = "snooze-lab-"
CLONE_NEWNET: Final = 0x40000000
CLONE_NEWNS: Final = 0x20000
_CLONE_FS: Final = 0x200
_MARK: Final = "SNOOZE_LAB"
START_S: Final = 20.0
"""More than anything of a lab takes to come up or to die."""


def new_folder() -> tuple[str, Path]:
    """A tag and a folder for something that ``sweep`` will find should we be killed.

    A process that is to be swept runs in a ``marked_environment``.
    """
    with contextlib.suppress(TimeoutError):  # what does not die is nobody's hindrance
        sweep()
    pid = os.getpid()
    tag = f"{pid}.{_started(pid)}-{secrets.token_hex(3)}"
    return tag, Path(tempfile.mkdtemp(prefix=f"{PREFIX}{tag}-"))


def marked_environment(tag: str) -> dict[str, str]:
    """Our environment, with the mark by which ``sweep`` knows a process again."""
    return {**os.environ, _MARK: tag}


def sweep() -> None:
    """Take down what labs of processes that are gone have left behind, and wait until it is gone.

    Safe while others build, sweep or take down theirs.

    Raises:
        TimeoutError: something that was killed does not die.
    """
    stale = {pid for pid, tag in marked().items() if not _is_owned(tag)}
    doomed = stale.union(*(descendants(pid) for pid in stale))
    for pid in stale:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, doomed)), "processes of a lab that was killed to end")
    with contextlib.suppress(FileNotFoundError):
        for path in Path("/run/netns").iterdir():
            if path.name.startswith(PREFIX) and not _is_owned(path.name.removeprefix(PREFIX)):
                run("ip", "netns", "del", path.name, check=False)
    root = cgroup_root()
    for group in root.glob(f"{PREFIX}*") if root is not None else ():
        if not _is_owned(group.name.removeprefix(PREFIX)):
            with contextlib.suppress(OSError):
                group.rmdir()
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not _is_owned(folder.name.removeprefix(PREFIX)):
            shutil.rmtree(folder, ignore_errors=True)


def cgroup_root() -> Path | None:
    """Where groups of processes (cgroups, version 2) can be made, to freeze them; None: nowhere."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(",") and os.access(where, os.W_OK):
            return Path(where)
    return None


def marked() -> dict[int, str]:
    """Of every process of a lab that has a mark, the tag."""
    found: dict[int, str] = {}
    start = f"{_MARK}=".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended, or is not ours to read
            for variable in path.read_bytes().split(b"\0"):
                if variable.startswith(start):
                    found[int(path.parent.name)] = variable.removeprefix(start).decode()
    return found


def _is_owned(tag: str) -> bool:
    """Whether the process that made the tag lives, and no later one of its number.

    Tags of before 2027 do not say when it was started.
    """
    owner, _, started = tag.partition("-")[0].partition(".")
    if not owner.isdigit():
        return True  # none of ours
    return is_alive(int(owner)) and started in {"", str(_started(int(owner)))}


def is_alive(pid: int) -> bool:
    """Whether a process can still do something: one that is dying or waits to be buried cannot."""
    return _stat(pid)[:1] not in ([], ["Z"], ["X"]) and bool(_read(pid, "cmdline"))


def process_state(pid: int) -> str:
    """One letter, as ``ps`` shows it: ``R``, ``S``, ``T`` (stopped), ``Z``; empty if it is gone."""
    return "".join(_stat(pid)[:1])


def _started(pid: int) -> int:
    """When a process was started, in clock ticks since the machine was; 0: there is none."""
    return int((_stat(pid)[19:20] or ["0"])[0])


def _stat(pid: int) -> list[str]:
    """From its state on: the name before it may have spaces and brackets."""
    return _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def popen_in(
    namespaces: Sequence[str],
    command: Sequence[str],
    output: int | IO[bytes],
    env: Mapping[str, str] | None,
) -> "subprocess.Popen[bytes]":
    """Start a command in namespaces, named as ``nsenter`` names them."""
    return subprocess.Popen(
        ("nsenter", *namespaces, "--", *command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=env,
    )


def run(*command: str, check: bool = True) -> None:
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


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Block until the condition holds.

    Raises:
        TimeoutError: it does not in ``START_S``; names ``what`` was waited for.
    """
    deadline_s = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {START_S:g} s for {what}")
        time.sleep(0.02)


def first_process(outer: int) -> int:
    """The process that is number 1 in its own namespace, among the descendants of ``outer``."""
    for pid in descendants(outer):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                numbers = line.split()
                if numbers[:1] == ["NSpid:"] and len(numbers) > 2 and numbers[-1] == "1":
                    return pid
    raise RuntimeError("the host has no first process")


def children(pid: int) -> list[int]:
    """Of a process, just now."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """Children and theirs, just now."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        those = children(waiting.pop())
        found += those
        waiting += those
    return found


def enter(path: str, kind: int) -> None:
    """Move the calling thread, for good, into a namespace.

    Raises:
        OSError: it cannot be.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(path, os.O_RDONLY)
    try:
        if libc.setns(namespace, kind):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(namespace)


def unshare_files() -> None:
    """Let the calling thread have mounts and a working folder of its own from now on."""
    ctypes.CDLL(None, use_errno=True).unshare(_CLONE_FS)

"""The guard beside an agent: it fences when the agent hangs, or is gone, and the lease is over.

    python -m snooze.localcontroller.fence_guard LEASE-FILE LIBVIRT-URI [WATCHDOG]

It shares nothing with the agent but the file in which the lease is persisted: a process of its own
with a connection of its own. Once the lease has been over for its grace it switches off every
domain of ours that is highly available; if libvirt does not do that within ``LIBVIRT_S``, it kills
their qemu processes, which it finds in libvirt's own notes. It repeats that until the lease is
extended. It survives its agent, and ends when there has been nothing to guard for ``IDLE_S``.

With a watchdog device the machine is reset if the guard dies or hangs, or fails to switch off what
has to be off for longer than the watchdog waits. It is kept quiet only while the lease holds, or
nothing is on that should not be.
"""

import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import libvirt
from lxml import etree

from snooze.common.clock import SYSTEM_CLOCK, Clock
from snooze.common.errors import ExecutionError
from snooze.common.lease_core import NEVER
from snooze.localcontroller.domain_xml import VmTag, read_domain
from snooze.localcontroller.lease_file import LeaseFile

logger = logging.getLogger("snooze.localcontroller.fence_guard")

POLL_S: Final = 0.25
LIBVIRT_S: Final = 3.0
"""What libvirt is given to switch guests off; recovery.margin_s has to be longer."""
MAX_ASKED: Final = 8
"""Calls that a hanging libvirt has not answered, beyond which it is not asked once more."""
IDLE_S: Final = 60.0
NOTES: Final = (Path("/run/libvirt/qemu"), Path("/var/run/libvirt/qemu"))

Doomed = dict[str, int]
"""Generation by VM."""
Note = Callable[[Doomed], bool]
"""Notes who is switched off next; False: they may run by now."""


class Guard:
    """Watches one lease file; ``fence`` switches off and returns what it found on."""

    def __init__(
        self,
        file: LeaseFile,
        fence: Callable[[Note], bool],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._file = file
        self._fence = fence
        self._clock = clock
        self.clean = True
        self.idle_since_s = clock.boottime_s()

    def look(self) -> None:
        """Fence if the lease is over; ``clean`` says whether all is off that has to be."""
        if not self._is_over():
            self.clean, self.idle_since_s = True, self._clock.boottime_s()
            return
        self.clean = self._fence(self._note)

    def _is_over(self) -> bool:
        state = self._file.read()
        over_s = state.until_s + state.grace_s
        return state.until_s > NEVER and self._clock.boottime_s() >= over_s

    def _note(self, doomed: Doomed) -> bool:
        """Noted before it happens, so that the leader hears why they are off.

        False: a lease is held again by now (a libvirt that hung says late what is on).
        """
        if not self._is_over():
            return False
        try:
            self._file.add_fenced(doomed)
        except ExecutionError as error:
            logger.error("%s", error.message)
        return True

    @property
    def idle_s(self) -> float:
        """For how long there has been no lease to guard."""
        return self._clock.boottime_s() - self.idle_since_s


_asked: list[threading.Thread] = []


def fence(uri: str, note: Note) -> bool:
    """Switch off every highly available domain of ours; whether none is on (any more)."""
    ended: list[bool] = []
    _asked[:] = [each for each in _asked if each.is_alive()]
    if len(_asked) >= MAX_ASKED:
        return _by_signal(note)

    def work() -> None:
        try:
            ended.append(_by_libvirt(uri, note))
        except libvirt.libvirtError as error:
            logger.error("libvirt does not switch guests off: %s", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    _asked.append(thread)
    thread.join(LIBVIRT_S)
    if ended:
        return ended[0]
    return _by_signal(note)


def _by_libvirt(uri: str, note: Note) -> bool:
    connection = libvirt.open(uri)
    try:
        doomed: list[tuple[libvirt.virDomain, VmTag]] = []
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            tag = read_domain(domain.XMLDesc()).tag
            if tag is not None and tag.policy.is_highly_available:
                doomed.append((domain, tag))
        if not doomed:
            return True
        if not note({tag.vm_id: tag.generation for _, tag in doomed}):
            return True
        logger.error("no lease: %d highly available VMs are switched off", len(doomed))
        for domain, _ in doomed:
            domain.destroy()
        return True
    finally:
        connection.close()


def _by_signal(note: Note) -> bool:
    """Kill the processes of such domains, as libvirt's notes of what runs name them."""
    clean = True
    for path in {p.resolve() for folder in NOTES for p in folder.glob("*.xml")}:
        try:
            root = etree.parse(str(path)).getroot()
            domain = root.find("domain")
            pid = int(root.get("pid", "0"))
            if domain is None or pid <= 1 or not _is_qemu(pid):
                continue
            tag = read_domain(etree.tostring(domain, encoding="unicode")).tag
        except (OSError, ValueError, etree.XMLSyntaxError) as error:
            logger.error("%s cannot be read: %s", path, error)
            clean = False
            continue
        if tag is None or not tag.policy.is_highly_available:
            continue
        if not note({tag.vm_id: tag.generation}):
            return True
        logger.error("no lease, and libvirt does not answer: process %d is killed", pid)
        clean = False  # until it is seen to be gone
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except OSError as error:
            logger.error("process %d cannot be killed: %s", pid, error)
    return clean


def _is_qemu(pid: int) -> bool:
    try:
        return b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def main(arguments: list[str]) -> int:
    """Guard until there is nothing to guard; 0, or 2 for wrong arguments."""
    if len(arguments) not in {2, 3}:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    path = Path(arguments[0])
    lock = path.with_suffix(".guard").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return 0  # another guard is here
    watchdog = open(arguments[2], "wb", buffering=0) if len(arguments) == 3 else None  # noqa: SIM115
    guard = Guard(LeaseFile(path), lambda note: fence(arguments[1], note))
    pause = threading.Event()
    while guard.idle_s < IDLE_S or os.getppid() > 1:
        guard.look()
        if watchdog is not None and guard.clean:
            watchdog.write(b"1")
        pause.wait(POLL_S if guard.clean else POLL_S / 2)
    if watchdog is not None:
        watchdog.write(b"V")  # the magic close: nothing is left to guard
        watchdog.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

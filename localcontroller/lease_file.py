"""What a host has to remember of its lease, for its next agent and for the guard beside it.

Written whole and moved into place; it need not survive a reboot, after which no guest runs. On a
disk that is full it is written in its place, which takes no room: else the guard would not hear
that the lease goes on, and switch healthy guests off.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

import msgspec

from snooze.common.errors import ExecutionError
from snooze.common.lease_core import NEVER

MAX_FENCED: Final = 10_000
_IN_PLACE_BYTES: Final = 4096
"""One page, which every file has whole that is not empty, and which is written at once."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
LOCK_TRIES: Final = 50
"""A millisecond each. The other one needs less, but may be a process that stands still."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class LeaseState(msgspec.Struct, frozen=True, omit_defaults=True):
    """As of one boot of the machine.

    Attributes:
        until_s: when the lease ends, by CLOCK_BOOTTIME.
        fenced: generation by VM of those that were switched off for want of a lease.
    """

    boot_id: str = ""
    until_s: float = NEVER
    grace_s: float = 0.0
    fenced: dict[str, int] = {}


def boot_id() -> str:
    """The id of the machine's present boot; empty where the kernel does not tell."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


class LeaseFile:
    """The file, read and written whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._boot_id = boot_id()
        self._last: LeaseState | None = None

    def read(self) -> LeaseState:
        """What was written last. The lease of another boot has ended; what was fenced stays so."""
        try:
            state = msgspec.json.decode(self.path.read_bytes(), type=LeaseState)
        except FileNotFoundError:
            return LeaseState(self._boot_id)
        except (OSError, msgspec.MsgspecError):
            # A file that cannot be read ends no lease: what was known of it goes on.
            return self._last or LeaseState(self._boot_id)
        if state.boot_id != self._boot_id:
            state = LeaseState(self._boot_id, fenced=state.fenced)
        self._last = state
        return state

    def write(self, state: LeaseState) -> None:
        """Replace it.

        Raises:
            ExecutionError: it cannot be written.
        """
        fenced = dict(list(state.fenced.items())[-MAX_FENCED:])
        state = msgspec.structs.replace(state, boot_id=self._boot_id, fenced=fenced)
        data = msgspec.json.encode(state)
        try:
            try:
                self._replace(data)
            except OSError as error:
                if error.errno not in _FULL or len(data) > _IN_PLACE_BYTES:
                    raise
                self._overwrite(data)
        except OSError as error:
            raise ExecutionError(f"{self.path} cannot be written: {error}") from error
        self._last = state

    def _replace(self, data: bytes) -> None:
        fresh = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh.write_bytes(data)
            fresh.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise

    def _overwrite(self, data: bytes) -> None:
        """In one piece; white space takes the place of what was longer."""
        with self.path.open("r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if not 0 < size <= _IN_PLACE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.pwrite(file.fileno(), data.ljust(size), 0)

    def change(self, edit: Callable[[LeaseState], LeaseState]) -> LeaseState:
        """Read it and write what ``edit`` makes of it; what was written.

        Agent and guard do not overwrite each other's word: a lease that goes on, a guest fenced.

        Raises:
            ExecutionError: it cannot be written.
        """
        with self._alone():
            state = edit(self.read())
            self.write(state)
        return state

    def add_fenced(self, vms: dict[str, int]) -> LeaseState:
        """Note VMs that are about to be switched off; the state with them. Raises: ``change``."""
        return self.change(
            lambda state: msgspec.structs.replace(state, fenced={**state.fenced, **vms})
        )

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        """While nobody else changes the file, if that is to be had in ``LOCK_TRIES``."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            number = os.open(self.path.with_suffix(".lock"), flags, 0o600)
        except OSError:  # a full disk, say: better without than not at all
            yield
            return
        try:
            for _ in range(LOCK_TRIES):
                if _locks(number):
                    break
                time.sleep(0.001)
            yield
        finally:
            os.close(number)


def _locks(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

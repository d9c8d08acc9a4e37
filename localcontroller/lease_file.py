"""What a host has to remember of its lease, for its next agent and for the guard beside it.

Written whole and moved into place; it need not survive a reboot, after which no guest runs.
"""

import os
from pathlib import Path
from typing import Final

import msgspec

from snooze.common.errors import ExecutionError
from snooze.common.lease_core import NEVER

MAX_FENCED: Final = 10_000
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

    def read(self) -> LeaseState:
        """What was written last. The lease of another boot has ended; what was fenced stays so."""
        try:
            state = msgspec.json.decode(self.path.read_bytes(), type=LeaseState)
        except (OSError, msgspec.MsgspecError):
            return LeaseState(self._boot_id)
        if state.boot_id != self._boot_id:
            return LeaseState(self._boot_id, fenced=state.fenced)
        return state

    def write(self, state: LeaseState) -> None:
        """Replace it.

        Raises:
            ExecutionError: it cannot be written.
        """
        fenced = dict(list(state.fenced.items())[-MAX_FENCED:])
        state = msgspec.structs.replace(state, boot_id=self._boot_id, fenced=fenced)
        fresh = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh.write_bytes(msgspec.json.encode(state))
            fresh.replace(self.path)
        except OSError as error:
            raise ExecutionError(f"{self.path} cannot be written: {error}") from error

    def add_fenced(self, vms: dict[str, int]) -> LeaseState:
        """Note VMs that are about to be switched off; the state with them."""
        state = self.read()
        state = msgspec.structs.replace(state, fenced={**state.fenced, **vms})
        self.write(state)
        return state

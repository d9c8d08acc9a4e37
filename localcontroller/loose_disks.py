"""Disks made here for VMs that are not here: whose they are, and how one goes that nobody needs.

Beside every disk that we make lies a *note*: for which generation of its VM, on which host, and
whether a guest was ever started on it. It is written before the disk is made, before each start,
and by the host to which a VM has moved. A disk is *loose* on a host that has no domain of its VM.

Rules:

1. Only what has our name and our note is ever removed; what has not is reported at most.
2. A host removes by itself only a disk on which no guest was ever started: a start died there.
   What else is loose it reports; who knows the record orders it removed (``drop``).
3. What is removed is moved aside first; then the note is read again. Who starts a VM writes the
   note first and opens the disk then: so on storage that two hosts share one of them sees the
   other. A disk that a guest has open (qemu's lock), or wrote to of late, stays.

All functions block: call them in a worker thread.
"""

import contextlib
import logging
import os
import re
import stat
from collections.abc import Callable, Container
from pathlib import Path
from typing import Final

import msgspec

from snooze.common.clock import Clock
from snooze.common.errors import Conflict, SnoozeError
from snooze.common.vms import LooseDisk

log = logging.getLogger(__name__)

DISK_PREFIX: Final = "snooze-"
"""Begins the file name of every disk made here."""

MAX_LOOSE: Final = 200
"""Disks in one report: a host's own first, then those that were not written for longest."""
FOREIGN_S: Final = 3600.0
"""On shared storage every host sees all disks: another's is reported if unchanged for so long."""
UNBORN_S: Final = 60.0
_INCOMING_S: Final = 3600.0
_NAME: Final = re.compile(rf"{DISK_PREFIX}([0-9a-f]{{32}})\.qcow2")
_ASIDE: Final = re.compile(rf"\.({DISK_PREFIX}[0-9a-f]{{32}}\.qcow2)\.removed")
_MAX_NOTE_BYTES: Final = 4096
INCOMING_SUFFIX: Final = ".snooze-incoming"
"""Ends the name of the mark beside an image whose content a migration has still to bring."""


class Note(msgspec.Struct, frozen=True):
    """What lies beside a disk; ``used``: a guest was, or may have been, started on it."""

    vm_id: str
    generation: int
    host_id: str
    used: bool


class DiskNotes:
    """The notes of one folder of disks, as one host writes them."""

    def __init__(self, folder: str, host_id: str, clock: Clock) -> None:
        self._folder = Path(folder)
        self._host_id = host_id
        self._clock = clock

    # ------------------------------------------------------------ notes

    def claim(self, vm_id: str, generation: int, *, used: bool) -> None:
        """Note that this host is about to make the disk of a VM, or to start it.

        Raises:
            OSError: it cannot be written: then the disk must not be used.
        """
        known = self.read(vm_id)
        note = Note(vm_id, generation, self._host_id, used or (known is not None and known.used))
        if note == known:
            return
        path = self._note(vm_id)
        fresh = path.with_name(f"{path.name}.{self._host_id}")
        fresh.write_bytes(msgspec.json.encode(note))
        fresh.replace(path)

    def adopt(self, vm_id: str, generation: int, *, is_on: bool) -> None:
        """A domain of this VM is here: its disk is ours, unless a later life of it has it.

        Of a disk without a note, from before there were any, or that came by a migration, too.
        """
        if not self._disk(vm_id).exists():
            return
        note = self.read(vm_id)
        newer = note is None or note.generation < generation
        moved = note is not None and note.generation == generation and is_on
        if newer or moved:
            with contextlib.suppress(OSError):  # the next look tries again
                self.claim(vm_id, generation, used=True)

    def read(self, vm_id: str) -> Note | None:
        """The note of a VM's disk; None if there is none that says anything."""
        try:
            with self._note(vm_id).open("rb") as file:
                note = msgspec.json.decode(file.read(_MAX_NOTE_BYTES), type=Note)
        except (OSError, msgspec.MsgspecError):
            return None
        return note if note.vm_id == vm_id else None

    def forget(self, vm_id: str) -> None:
        """Its disk is gone."""
        self._note(vm_id).unlink(missing_ok=True)

    # ------------------------------------------------------------ what is loose

    def loose(self, here: Container[str], in_use: Container[str]) -> list[LooseDisk]:
        """The disks of VMs that are not ``here``; paths ``in_use`` (real ones) are left out."""
        now_ms = self._clock.wall_ms()
        own: list[LooseDisk] = []
        others: list[LooseDisk] = []
        try:
            entries = sorted(os.scandir(self._folder), key=lambda entry: entry.name)
        except OSError:
            return []
        for entry in entries:
            if match := _ASIDE.fullmatch(entry.name):
                self._rescue(Path(entry.path), self._folder / match[1])
            match = _NAME.fullmatch(entry.name)
            if match is None or match[1] in here or os.path.realpath(entry.path) in in_use:
                continue
            disk = self._look(match[1])
            if disk is None:
                continue
            if disk.host_id == self._host_id:
                own.append(disk)
            elif now_ms - disk.changed_ms >= FOREIGN_S * 1000:
                others.append(disk)
        others.sort(key=lambda disk: disk.changed_ms)
        return (own + others)[:MAX_LOOSE]

    def _look(self, vm_id: str) -> LooseDisk | None:
        try:
            found = self._disk(vm_id).lstat()
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        note = self.read(vm_id)
        if note is None:
            note = Note(vm_id, 0, "", used=True)
        changed_ms = found.st_mtime_ns // 1_000_000
        return LooseDisk(
            vm_id, note.generation, note.host_id, changed_ms, found.st_blocks * 512, note.used
        )

    def is_unborn(self, disk: LooseDisk) -> bool:
        """Whether a start, or a move to here, died before there was anything on it."""
        age_s = (self._clock.wall_ms() - disk.changed_ms) / 1000
        if incoming_mark(self._disk(disk.vm_id)).exists():
            return age_s >= _INCOMING_S
        return disk.host_id == self._host_id and not disk.used and age_s >= UNBORN_S

    # ------------------------------------------------------------ removing

    def drop(self, disk: LooseDisk, idle_s: float, check_free: Callable[[str], None]) -> None:
        """Remove a loose disk that is still as it was reported.

        Args:
            idle_s: it was not written for so long.
            check_free: refuses a path that a guest has open.

        Raises:
            Conflict: it is not as reported, was written of late, or is in use; it is left.
            OSError, SnoozeError: it cannot be removed; it is left.
        """
        path = self._disk(disk.vm_id)
        present, note = self._look(disk.vm_id), self.read(disk.vm_id)
        if present is None:
            return  # somebody was quicker
        if _identity(present) != _identity(disk):
            raise Conflict(f"{path} is not what it was")
        if note is None and not incoming_mark(path).exists():
            raise Conflict(f"{path} has no note beside it")
        if self._clock.wall_ms() - present.changed_ms < idle_s * 1000:
            raise Conflict(f"{path} was written less than {idle_s:g} s ago")
        check_free(str(path))
        aside = path.with_name(f".{path.name}.removed")
        path.rename(aside)
        try:
            if self.read(disk.vm_id) != note:
                raise Conflict(f"{path} was claimed while it was removed")
            check_free(str(aside))
        except (SnoozeError, OSError):
            self._put_back(aside, path)
            raise
        self.forget(disk.vm_id)
        incoming_mark(path).unlink(missing_ok=True)
        aside.unlink()
        log.warning("a disk that nobody needs was removed", extra={"path": str(path)})

    def _rescue(self, aside: Path, path: Path) -> None:
        """Put back what somebody moved aside who has died since."""
        with contextlib.suppress(OSError):
            age_s = self._clock.wall_ms() / 1000 - aside.lstat().st_ctime
            if age_s > UNBORN_S:
                self._put_back(aside, path)

    def _put_back(self, aside: Path, path: Path) -> None:
        """Never over another."""
        try:
            os.link(aside, path)
        except FileExistsError:
            pass  # a disk was made anew meanwhile: the one aside had been found to be nobody's
        except OSError as error:
            log.error("a disk is not where it was", extra={"path": str(aside), "why": str(error)})
            return
        aside.unlink(missing_ok=True)

    def _disk(self, vm_id: str) -> Path:
        return self._folder / f"{DISK_PREFIX}{vm_id}.qcow2"

    def _note(self, vm_id: str) -> Path:
        return self._folder / f".{DISK_PREFIX}{vm_id}.note"


def incoming_mark(path: Path) -> Path:
    """Lies beside an image that a migration has still to fill."""
    return path.with_name(path.name + INCOMING_SUFFIX)


def _identity(disk: LooseDisk) -> tuple[int, str, int, bool]:
    return disk.generation, disk.host_id, disk.changed_ms, disk.used

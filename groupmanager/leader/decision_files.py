"""Decisions in files: lines of JSON, numbered files, the oldest removed.

Every change of a decision is a line; the last one of an id is right. A leader that starts reads
what the files hold, so decisions outlive a change of leader where the directory is shared, and a
restart where it is not. A line that was cut off by a crash is skipped.

Writing is done by one thread of its own, in order; what it cannot write is logged, and lost.
"""

import logging
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from snooze.common.decisions import Decision
from snooze.common.settings_autonomy import DecisionSettings

logger = logging.getLogger(__name__)

PATTERN: Final = "decisions-*.jsonl"
MAX_READ: Final = 10_000
MAX_WAITING: Final = 10_000


class DecisionFiles:
    """The files of one directory."""

    def __init__(self, settings: DecisionSettings) -> None:
        self._directory = Path(settings.directory) if settings.directory else None
        self._file_bytes = settings.file_bytes
        self._files = settings.files
        self._encoder = msgspec.json.Encoder()
        self._thread = ThreadPoolExecutor(1, "decisions")
        self._waiting = 0
        self._number: int | None = None

    def read(self) -> list[Decision]:
        """What the files hold, oldest first, the latest state of each; at most ``MAX_READ``."""
        found: OrderedDict[str, Decision] = OrderedDict()
        decoder = msgspec.json.Decoder(Decision)
        for path in self._paths():
            try:
                with path.open("rb") as file:
                    for line in file:
                        try:
                            decision = decoder.decode(line)
                        except (msgspec.MsgspecError, UnicodeDecodeError):
                            continue
                        known = found.get(decision.decision_id)
                        if known is not None and not decision.inputs:
                            decision = msgspec.structs.replace(decision, inputs=known.inputs)
                        found[decision.decision_id] = decision
                        if len(found) > MAX_READ:
                            found.popitem(last=False)
            except OSError as error:
                logger.warning("decisions are not read", extra={"why": str(error)})
        return list(found.values())

    def add(self, decision: Decision) -> None:
        """Write a decision as it is now, soon."""
        if self._directory is None or self._waiting >= MAX_WAITING:
            return
        self._waiting += 1
        self._thread.submit(self._write, self._encoder.encode(decision) + b"\n")

    def close(self) -> None:
        """Write what waits, then end."""
        self._thread.shutdown()

    def _paths(self) -> list[Path]:
        if self._directory is None:
            return []
        try:
            return sorted(self._directory.glob(PATTERN))
        except OSError:
            return []

    def _write(self, line: bytes) -> None:
        self._waiting -= 1
        try:
            with self._current().open("a+b") as file:
                if file.tell() and not _ends_whole(file):
                    file.write(b"\n")
                file.write(line)
        except OSError as error:
            logger.warning("a decision is not written", extra={"why": str(error)})

    def _current(self) -> Path:
        """The file to write to: the last one, or the next if that is full."""
        directory = self._directory
        assert directory is not None
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        paths = self._paths()
        if self._number is None:
            numbers = [_number_of(path) for path in paths]
            self._number = max(numbers, default=0)
        path = directory / f"decisions-{self._number:08d}.jsonl"
        if path.exists() and path.stat().st_size >= self._file_bytes:
            self._number += 1
            path = directory / f"decisions-{self._number:08d}.jsonl"
            for old in paths[: max(0, len(paths) + 1 - self._files)]:
                old.unlink(missing_ok=True)
        return path


def _ends_whole(file: BinaryIO) -> bool:
    """Whether the last line was written to its end."""
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _number_of(path: Path) -> int:
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isascii() and digits.isdigit() else 0

"""A witness of guests' heart beats: whether one ever ran twice, and when it ran again.

It looks at the disks, many times between two beats, and knows nothing of any cluster. A guest that
runs in two places writes two names of boots in turn, or one count behind the other; a guest that
was started anew writes another name, and never the old one again.
"""

import itertools
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snooze.lab.guests import Beat, read_beat

LOOK_S: Final = 0.05
"""A twentieth of a beat."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A beat, and when it was first seen, by the monotonic clock."""

    at_s: float
    beat: Beat


class Witness:
    """Looks in a thread of its own; a context manager, or call ``close``."""

    def __init__(self, disks: Mapping[str, Path]) -> None:
        """``disks``: of each guest, by its name; raw, and of micro guests."""
        self._disks = dict(disks)
        self._stories: dict[str, list[Seen]] = {name: [] for name in disks}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look, name="witness", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        self._thread.join()

    def __enter__(self) -> "Witness":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def seen(self, name: str) -> list[Seen]:
        """All that a guest wrote, in order."""
        return list(self._stories[name])

    def boots(self, name: str) -> list[str]:
        """The names of a guest's boots, in order; one that comes again ran beside the other."""
        return [boot for boot, _ in itertools.groupby(seen.beat.boot for seen in self.seen(name))]

    def last_s(self, name: str) -> float:
        """When a guest last showed a beat; 0 if it never did."""
        seen = self.seen(name)
        return seen[-1].at_s if seen else 0.0

    def first_boot_after_s(self, name: str, after_s: float) -> float | None:
        """When a boot that was not seen before ``after_s`` showed its first beat."""
        seen = self.seen(name)
        known = {one.beat.boot for one in seen if one.at_s <= after_s}
        return next((one.at_s for one in seen if one.beat.boot not in known), None)

    def violations(self) -> list[str]:
        """What only a guest that ran twice, or lost its disk, can have written."""
        found: list[str] = []
        for name in self._stories:
            boots = self.boots(name)
            if len(set(boots)) < len(boots):
                found.append(f"{name} ran twice: it wrote as {', '.join(boots)} in turn")
            for before, after in itertools.pairwise(self.seen(name)):
                same = before.beat.boot == after.beat.boot
                if same and after.beat.count < before.beat.count:
                    found.append(f"{name} counted backwards: {before.beat} and then {after.beat}")
        return found

    def _look(self) -> None:
        while not self._closing.wait(LOOK_S):
            for name, disk in self._disks.items():
                try:
                    beat = read_beat(disk)
                except OSError:
                    continue  # not there yet
                seen = self._stories[name]
                if beat is not None and (not seen or seen[-1].beat != beat):
                    seen.append(Seen(time.monotonic(), beat))

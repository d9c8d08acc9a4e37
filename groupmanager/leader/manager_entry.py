"""What the leader knows of one manager."""

from dataclasses import dataclass, field

import numpy as np

from snooze.common.resources import ZERO, Capacity, R
from snooze.common.wire import ManagerDescription, ManagerSummary
from snooze.scheduling.dispatching import ManagerView


@dataclass(slots=True)
class ManagerEntry:
    """A group manager; it is in the registry as long as its link to the leader stands.

    ``view``: what is free on its hosts; ``untold``: a host has joined it since, of which that does
    not say yet. ``idle``: its hosts without VM or order, and since when; ``cores``: how many each
    of them uses; ``watts``: what their RAPL counts.
    """

    description: ManagerDescription
    joined_s: float
    hosts: set[str] = field(default_factory=set[str])
    promised: set[str] = field(default_factory=set[str])
    capacity: Capacity = ZERO
    reserved: Capacity = ZERO
    used: Capacity = ZERO
    view: ManagerView | None = None
    untold: bool = False
    idle: dict[str, float] = field(default_factory=dict[str, float])
    cores: dict[str, float] = field(default_factory=dict[str, float])
    watts: dict[str, float] = field(default_factory=dict[str, float])
    _stirred: dict[str, None] = field(default_factory=dict[str, None])
    _whole: object = None
    _idled: dict[str, None] = field(default_factory=dict[str, None])
    _whole_idle: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def manager_id(self) -> str:
        """Its id."""
        return self.description.manager_id

    def take_summary(self, summary: ManagerSummary, now_s: float) -> None:
        """Note what it has and what is free.

        Raises:
            ValueError: if the arrays do not fit together.
        """
        room = np.frombuffer(summary.room, dtype="<f8").reshape(len(summary.count), R)
        self.capacity, self.reserved, self.used = summary.capacity, summary.reserved, summary.used
        if not summary.partial:
            self.idle = {host_id: now_s - idle_s for host_id, idle_s in summary.idle.items()}
        else:
            for host_id, idle_s in summary.idle.items():
                _note(self.idle, host_id, idle_s, now_s - idle_s)
                self._idled[host_id] = None
        if summary.cores:
            self.cores, self.watts = summary.cores, summary.watts
        for host_id, cores in summary.stirred.items():
            self.cores[host_id] = cores
            self._stirred[host_id] = None
        for host_id, watts in summary.stirred_watts.items():
            _note(self.watts, host_id, watts, watts)
            self._stirred[host_id] = None
        self.untold = False
        self.view = ManagerView(self.manager_id, room, np.array(summary.count, dtype=np.int64))

    def take_stirred(self) -> list[str]:
        """The hosts of which it said since the last call how busy they are."""
        if self._whole is self.cores and not self._stirred:
            return []
        stirred = self._stirred
        if self._whole is not self.cores:
            stirred = dict.fromkeys((*self.cores, *self.watts))
        self._whole, self._stirred = self.cores, {}
        return list(stirred)

    def take_idled(self) -> list[str]:
        """The hosts of which it said since the last call for how long they have been idle."""
        if self._whole_idle is self.idle and not self._idled:
            return []
        idled = self._idled
        if self._whole_idle is not self.idle:
            idled = dict.fromkeys((*self._whole_idle, *self.idle, *idled))
        self._whole_idle, self._idled = self.idle, {}
        return list(idled)


def _note(known: dict[str, float], host_id: str, told: float, value: float) -> None:
    """What is told below 0 is no longer so."""
    if told < 0:
        known.pop(host_id, None)
    else:
        known[host_id] = value

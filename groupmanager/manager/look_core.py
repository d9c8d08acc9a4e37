"""One look at all hosts of a manager, some at a time, so that nothing else waits for it.

Rules:

1. A step takes hosts in the table's order until they have ``STEP_VMS`` VMs between them. A small
   cluster is looked at in one step, at one moment; a large one while time goes on. What is decided
   on it is proved again on the moment when each move begins.
2. Each host is judged with its step (``Relocator.judge``), the forecast of its VMs is made with it;
   samples are not kept.
3. The parts are put together only when something is to be decided. A VM that went elsewhere
   meanwhile is left out. If a host that was looked at has gone, the look is of no use.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from snooze.groupmanager.manager.cluster_view import AXES, View
from snooze.groupmanager.manager.host_table import HostTable
from snooze.scheduling.detection import Detection, Stretch, Watch
from snooze.scheduling.estimation import Forecast
from snooze.scheduling.relocation_round import Relocator
from snooze.scheduling.snapshot import BoolArray, Snapshot

STEP_VMS: Final = 500
"""VMs looked at in one step: 5 to 10 ms."""


@dataclass(slots=True)
class Look:
    """A look under way.

    Attributes:
        order: the hosts, as in the table when it began.
        watch: what the detector knows of them; None: nobody is judged.
        at: the next host.
        foresees: what VMs are expected to use is wanted though nobody is judged.
    """

    order: tuple[str, ...]
    watch: Watch | None
    relocator: Relocator
    interval_s: float
    period_s: float
    at: int = 0
    foresees: bool = False
    views: list[View] = field(default_factory=list[View])
    seen: list[Detection] = field(default_factory=list[Detection])

    @property
    def is_done(self) -> bool:
        """Whether every host was looked at."""
        return self.at >= len(self.order)

    @property
    def is_whole(self) -> bool:
        """Whether it was done in one step."""
        return len(self.views) <= 1

    def step(self, table: HostTable, view_of: Callable[[Sequence[str]], View]) -> bool:
        """Look at the next hosts; False if one is not there any more."""
        begun, vms = self.at, 0
        while self.at < len(self.order) and (vms < STEP_VMS or self.at == begun):
            host = table.hosts.get(self.order[self.at])
            if host is None:
                return False
            vms += len(host.vms)
            self.at += 1
        view = view_of(self.order[begun : self.at])
        if self.watch is not None:
            self.seen.append(
                self.relocator.judge(
                    view.snapshot, view.window, _part(self.watch, begun, self.at), self.interval_s
                )
            )
        if self.watch is not None or self.foresees:
            foreseen = self.relocator.foresee(
                view.snapshot, view.window, view.requested, self.period_s
            )
            view = replace(view, foreseen=foreseen)
        self.views.append(replace(view, window=view.window.nothing()))
        return True

    def detection(self) -> Detection:
        """What was found on all hosts, in the order of ``order``."""
        seen = self.seen
        if len(seen) == 1:
            return seen[0]
        watches = [each.watch for each in seen]
        return Detection(
            _flags([each.overloaded for each in seen]),
            _flags([each.underloaded for each in seen]),
            _flags([each.unknown for each in seen]),
            np.vstack([each.pressure for each in seen]),
            np.vstack([each.mean for each in seen]),
            Stretch.together([each.stretch for each in seen]),
            Watch(
                _flags([each.overloaded for each in watches]),
                _flags([each.underloaded for each in watches]),
                np.concatenate([each.towards_overload for each in watches]),
                np.concatenate([each.towards_underload for each in watches]),
            ),
            tuple(problem for each in seen for problem in each.problems),
        )

    def takes_part(self) -> BoolArray:
        """``bool[H]``."""
        return _flags([view.takes_part for view in self.views])

    def empty(self) -> BoolArray:
        """``bool[H]``: nothing is on the host."""
        return _flags([view.empty for view in self.views])

    def view(self, table: HostTable) -> View | None:
        """All hosts as one; None if one of them has gone."""
        if self.is_whole:
            return self.views[0]
        if not all(host_id in table.hosts for host_id in self.order):
            return None
        snapshots = [view.snapshot for view in self.views]
        starts = np.cumsum([0, *(snapshot.hosts for snapshot in snapshots)])
        placement = np.concatenate(
            [part.placement + start for part, start in zip(snapshots, starts, strict=False)]
        )
        keys = [key for part in snapshots for key in part.vm_ids]
        still = np.array(
            [
                (vm := table.vms.get(key)) is not None and vm.host_id == self.order[row]
                for key, row in zip(keys, placement.tolist(), strict=True)
            ],
            dtype=np.bool_,
        )

        first = snapshots[0]
        snapshot = Snapshot.of(
            self.order,
            np.vstack([part.capacity for part in snapshots]),
            used=np.vstack([part.used for part in snapshots]),
            host_state=np.concatenate([part.host_state for part in snapshots]),
            vm_ids=[key for key, stays in zip(keys, still.tolist(), strict=True) if stays],
            demand=np.concatenate([part.demand for part in snapshots])[still],
            placement=placement[still],
            overcommit=first.overcommit,
            headroom=first.headroom,
            vm_count=np.concatenate([part.vm_count for part in snapshots]),
            movable=np.concatenate([part.movable for part in snapshots])[still],
            highly_available=np.concatenate([part.highly_available for part in snapshots])[still],
            axes=AXES,
        )
        foreseen = [view.foreseen for view in self.views if view.foreseen is not None]
        whole = None
        if len(foreseen) == len(self.views):
            whole = Forecast(
                np.vstack([each.expected for each in foreseen])[still],
                np.vstack([each.deviation for each in foreseen])[still],
                tuple(problem for each in foreseen for problem in each.problems),
            )
        return View(
            snapshot,
            self.views[0].window.nothing(),
            np.vstack([view.requested for view in self.views])[still],
            self.takes_part(),
            _flags([view.unknown for view in self.views]),
            self.empty(),
            np.vstack([view.use for view in self.views]),
            whole,
        )


def _flags(parts: Sequence[BoolArray]) -> BoolArray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.bool_)


def _part(watch: Watch, begin: int, end: int) -> Watch:
    return Watch(
        watch.overloaded[begin:end],
        watch.underloaded[begin:end],
        watch.towards_overload[begin:end],
        watch.towards_underload[begin:end],
    )

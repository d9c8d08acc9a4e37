"""How a manager decides by itself, as settings say."""

from dataclasses import dataclass

from snooze.common.time_plans import Cron
from snooze.groupmanager.manager.cluster_view import Looking
from snooze.groupmanager.manager.plan_work import Bounds
from snooze.scheduling.plugged import is_plugged
from snooze.scheduling.plugins import DeciderKind
from snooze.scheduling.relocation_round import Relocator
from snooze.scheduling.units import Properties


@dataclass(frozen=True, slots=True)
class AutonomyPolicy:
    """How a manager decides by itself, as settings say.

    Attributes:
        relocator, relocation: detector and policy; the policy's options, to be recorded.
        consolidation: options of consolidations; see ``scheduling.deciding``.
        looking: how hosts and VMs are seen.
        bounds: of what runs at a time.
        cron: when to consolidate; None: only when asked.
        only_sleepable: underloaded hosts are emptied only if they can be put to sleep.
        keep_room: rule 6 holds.
        plugins_directory: where plug-ins are besides those of installed packages; empty: nowhere.
    """

    relocator: Relocator
    relocation: Properties
    consolidation: Properties
    looking: Looking
    bounds: Bounds
    interval_s: float
    idle_s: float
    hold_s: float
    cool_down_s: float
    cron: Cron | None
    only_sleepable: bool
    keep_room: bool
    plugins_directory: str = ""

    @property
    def plugged_relocation(self) -> str:
        """The plug-in that relocates; empty: a built-in policy does."""
        name = str(self.relocation["policy"])
        return name if is_plugged(DeciderKind.RELOCATION, name) else ""

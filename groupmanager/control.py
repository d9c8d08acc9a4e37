"""What a group manager's settings say may be done by itself; the record is added at run time."""

from snooze.common.autonomy import Control
from snooze.common.decisions import DecisionKind, DecisionMode
from snooze.common.settings_autonomy import AutonomySettings
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.time_plans import Window, zone_of


def control_of(settings: AutonomySettings) -> Control:
    """The modes and windows of the settings."""
    modes = {
        DecisionKind.OVERLOAD: DecisionMode(settings.overload),
        DecisionKind.UNDERLOAD: DecisionMode(settings.underload),
        DecisionKind.CONSOLIDATION: DecisionMode(settings.consolidation),
        DecisionKind.SLEEP: DecisionMode(settings.sleep),
        DecisionKind.WAKE: DecisionMode(settings.wake),
        DecisionKind.FENCE: DecisionMode(settings.fence),
        DecisionKind.RESTART: DecisionMode(settings.restart),
    }
    zone = zone_of(settings.time_zone)
    return Control(modes, [Window.of(text, zone) for text in settings.windows])


def disabled_of(settings: GroupManagerSettings) -> dict[DecisionKind, str]:
    """The kinds that are switched off by other settings than their mode, and why, for people."""
    if settings.energy.enabled:
        return {}
    return {DecisionKind.SLEEP: "energy saving is off in the leader's settings (energy.enabled)"}

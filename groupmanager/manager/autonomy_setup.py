"""From settings to how a manager decides by itself; plug-ins are loaded here."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from snooze.common.errors import Problem, SettingsError
from snooze.common.resources import FloatArray
from snooze.common.settings_autonomy import RelocationSettings
from snooze.common.settings_groupmanager import GroupManagerSettings
from snooze.common.time_plans import Cron, zone_of
from snooze.groupmanager.manager.autonomy_policy import AutonomyPolicy
from snooze.groupmanager.manager.cluster_view import Looking
from snooze.groupmanager.manager.plan_work import Bounds
from snooze.scheduling import plugged, plugins
from snooze.scheduling.deciding import DecisionKind as Recorded
from snooze.scheduling.deciding import options_of
from snooze.scheduling.detection import LIMITS, Detector, Thresholds
from snooze.scheduling.estimation import ESTIMATORS, Average, Estimator
from snooze.scheduling.plugin_choices import Choices, choices
from snooze.scheduling.plugins import DeciderKind
from snooze.scheduling.relocation_round import Relocator
from snooze.scheduling.situations import relocation_policy


def autonomy_policy(
    settings: GroupManagerSettings, overcommit: FloatArray, headroom: FloatArray
) -> AutonomyPolicy:
    """How a manager decides, by its settings.

    Args:
        settings: of the group manager.
        overcommit, headroom: ``float64[R]``, as placement multiplies capacities.

    Raises:
        SettingsError: there is no detector, estimator, policy or method of that name.
    """
    autonomy, relocation = settings.autonomy, settings.relocation
    directory = autonomy.plugins_directory
    found = _plug_ins(settings)
    known = choices(found)
    _must_be_there(DeciderKind.RELOCATION, relocation.policy, "relocation.policy", found)
    method = settings.consolidation.method
    _must_be_there(DeciderKind.CONSOLIDATION, method, "consolidation.method", found)
    limits = relocation.thresholds
    each = zip(limits.cpu, limits.memory, limits.network, limits.network, strict=True)
    rows = [cast("tuple[float, ...]", row) for row in each]
    thresholds = Thresholds(*rows)
    options = options_of(
        Recorded.RELOCATION,
        {
            "policy": relocation.policy,
            "hold_s": autonomy.hold_s,
            "cooldown_s": relocation.relieved_hold_s,
            "margin": relocation.margin,
            "passing": relocation.passing,
            "max_moves": relocation.max_moves,
            "bandwidth_kib_s": relocation.bandwidth_kib_s,
        },
    )
    consolidation = settings.consolidation
    packing = options_of(
        Recorded.CONSOLIDATION,
        {
            "method": consolidation.method,
            "moves_most": consolidation.max_moves,
            "host_worth_s": consolidation.host_worth_s,
        },
    )
    period_s = settings.monitoring.interval_s
    zone = zone_of(autonomy.time_zone)
    return AutonomyPolicy(
        relocator=Relocator(
            _detector(relocation, thresholds, known),
            relocation_policy(options),
            relocation.forecast_s,
        ),
        relocation=options,
        consolidation=packing,
        looking=Looking(
            _estimator(relocation, known),
            thresholds,
            max(1, round(relocation.sustained_s / period_s)),
            overcommit,
            headroom,
        ),
        bounds=Bounds(autonomy.max_concurrent, autonomy.max_per_host, settings.decisions.expire_s),
        interval_s=autonomy.interval_s,
        idle_s=relocation.idle_s,
        hold_s=autonomy.hold_s,
        cool_down_s=autonomy.cool_down_s,
        cron=Cron.of(consolidation.cron, zone) if consolidation.cron else None,
        only_sleepable=relocation.only_sleepable,
        keep_room=autonomy.keep_room,
        plugins_directory=directory,
    )


def _plug_ins(settings: GroupManagerSettings) -> plugins.Plugins | None:
    """Those of the directory; of installed packages too, if a name is no built-in one."""
    relocation, directory = settings.relocation, settings.autonomy.plugins_directory
    installed = (
        plugged.is_plugged(DeciderKind.RELOCATION, relocation.policy)
        or plugged.is_plugged(DeciderKind.CONSOLIDATION, settings.consolidation.method)
        or relocation.detector not in LIMITS
        or relocation.estimator not in ESTIMATORS
    )
    if not installed and not directory:
        return None
    return plugins.load(Path(directory) if directory else None, entry_points=installed)


def _detector(settings: RelocationSettings, thresholds: Thresholds, known: Choices) -> Detector:
    try:
        return known.detector(
            settings.detector,
            thresholds,
            sustain_s=settings.sustained_s,
            idle_s=settings.idle_s,
            hysteresis=settings.hysteresis,
        )
    except ValueError as error:
        raise _not_there("relocation.detector", error, known.plugins) from None


def _estimator(settings: RelocationSettings, known: Choices) -> Estimator:
    try:
        found = known.estimator(settings.estimator)
    except ValueError as error:
        raise _not_there("relocation.estimator", error, known.plugins) from None
    return replace(found, samples=settings.samples) if isinstance(found, Average) else found


def _must_be_there(kind: DeciderKind, name: str, key: str, found: plugins.Plugins | None) -> None:
    """Raises: SettingsError: there is no policy of that name; says which there are, and more."""
    there = plugged.known(kind, found)
    if name not in there:
        text = f"there is no {kind.value} policy {name!r}; there are: {', '.join(there)}"
        raise _not_there(key, ValueError(text), found)


def _not_there(key: str, error: ValueError, found: plugins.Plugins | None) -> SettingsError:
    """There is none of that name: says which there are, and which plug-ins could not be loaded."""
    problems = found.problems[:5] if found is not None else ()
    lost = "".join(f"; not loaded: {each.where}: {each.message}" for each in problems)
    text = f"{error} (plug-ins: of installed packages, and in autonomy.plugins_directory){lost}"
    return SettingsError(f"{key}: {text}", problems=[Problem(key, text)])

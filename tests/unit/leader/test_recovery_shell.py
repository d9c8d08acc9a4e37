# pyright: reportPrivateUsage=false
"""What the leader asks of a host's power controller always has an outcome."""

from collections.abc import Callable
from typing import cast

import numpy as np

from snooze.common.clock import ManualClock
from snooze.common.settings_recovery import RecoverySettings
from snooze.groupmanager.leader import recovery_events as events
from snooze.groupmanager.leader.decision_log import DecisionLog
from snooze.groupmanager.leader.events import EventLog
from snooze.groupmanager.leader.manager_links import ManagerLinks
from snooze.groupmanager.leader.recovery import Recovery
from snooze.groupmanager.leader.recovery_core import Watch
from snooze.groupmanager.leader.registry import HostEntry, Registry
from snooze.groupmanager.power.factory import PowerDrivers, PoweredHost
from snooze.groupmanager.power.port import PowerController
from tests.unit.leader.builders import host_of


class Broken(PowerDrivers):
    """Its drivers have a defect."""

    def controller(self, host: PoweredHost) -> PowerController:
        raise KeyError("a defect")


def nothing(*_: object) -> None:
    """Nobody hears it."""


async def test_a_driver_with_a_defect_is_one_that_said_nothing() -> None:
    """Else the host would never be asked about again, and its VMs never be restarted."""
    clock = ManualClock()
    registry = Registry()
    registry.hosts["h"] = HostEntry(host_of("h"), "gm", 1, False, 0.0)
    recovery = Recovery(
        registry,
        RecoverySettings(),
        1,
        clock,
        cast(ManagerLinks, None),
        Broken(),
        DecisionLog(clock, EventLog(clock), "gm"),
        np.ones(4),
        term_s=lambda: 1.0,
        is_leader=lambda: True,
        record_host=nothing,
        proven=nothing,
        announce=cast("Callable[[object], None]", nothing),
    )
    watch = recovery.core.watches["h"] = Watch(attempt=1, open=True, off=True)
    watch.seen_s = registry.hosts["h"].seen_s
    await recovery._ask_power(events.AskPower("h", 1, off=True))
    assert (watch.open, watch.tries) == (False, 1)
    assert "KeyError" in watch.told
    await recovery.close()

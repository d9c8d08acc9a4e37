"""What clients of 2013 see of a host's power."""

import pytest

from snooze.common.records import HostPower
from snooze.common.resources import ZERO
from snooze.common.snooze_api.enumerations import LocalControllerStatus
from snooze.common.wire import HostDetail
from snooze.groupmanager.legacy_views import host_description
from tests.unit.leader.builders import host_of, manager_of


@pytest.mark.parametrize(
    ("status", "seen"),
    [
        ("active", LocalControllerStatus.ACTIVE),
        ("leaving", LocalControllerStatus.ACTIVE),
        (HostPower.GOING_DOWN.value, LocalControllerStatus.PASSIVE),
        (HostPower.ASLEEP.value, LocalControllerStatus.PASSIVE),
        (HostPower.WAKING.value, LocalControllerStatus.WOKENUP),
        (HostPower.FAILED.value, LocalControllerStatus.UNKNOWN),
        (HostPower.FENCED.value, LocalControllerStatus.UNKNOWN),
    ],
)
def test_a_sleeping_host_is_passive_and_one_that_wakes_woken_up(
    status: str, seen: LocalControllerStatus
) -> None:
    detail = HostDetail(host_of("h1"), status, ZERO, ZERO)
    assert host_description(detail, manager_of("gm"), with_vms=False).status is seen

"""Counters to rates, and libvirt's events to changes of VMs."""

import libvirt
import pytest

from snooze.common.clock import ManualClock
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.localcontroller.hypervisor.libvirt_events import as_change
from snooze.localcontroller.hypervisor.libvirt_usage import Counters, UsageMeter, rate
from snooze.localcontroller.hypervisor.port import ChangeKind


def test_rates_are_in_cores_and_kib_per_second() -> None:
    before = Counters(1, 10.0, 5_000_000_000, 1000.0, 0, 1024)
    now = Counters(1, 12.0, 8_000_000_000, 1500.0, 4096, 1024)
    assert rate(before, now) == Capacity(1.5, 1500.0, 2.0, 0.0)


@pytest.mark.parametrize(
    "before",
    [
        None,
        Counters(2, 10.0, 0, 0.0, 0, 0),
        Counters(1, 12.0, 0, 0.0, 0, 0),
    ],
    ids=["first reading", "another run of the domain", "no time between"],
)
def test_without_a_base_line_there_is_only_memory(before: Counters | None) -> None:
    now = Counters(1, 12.0, 8_000_000_000, 1500.0, 4096, 1024)
    assert rate(before, now) == Capacity(memory_kib=1500.0)


def test_a_counter_that_went_back_is_no_negative_rate() -> None:
    before = Counters(1, 10.0, 9, 0.0, 9999, 9999)
    assert rate(before, Counters(1, 11.0, 0, 0.0, 0, 0)) == Capacity()


def test_a_vm_that_went_is_forgotten() -> None:
    meter = UsageMeter(ManualClock())
    old, new = Counters(1, 1.0, 0, 0.0, 0, 0), Counters(1, 2.0, 10**9, 0.0, 0, 0)
    meter.rates({"a": old}, 0)
    assert meter.rates({"b": new}, 0)[0].used == Capacity()
    assert meter.rates({"a": new}, 0)[0].used == Capacity(), "its base line is gone with it"


STATES = {
    ("STARTED", 0): (ChangeKind.STARTED, VmState.RUNNING),
    ("STARTED", 1): None,
    ("SUSPENDED", 0): (ChangeKind.PAUSED, VmState.PAUSED),
    ("SUSPENDED", 1): None,
    ("SUSPENDED", 2): (ChangeKind.PAUSED, VmState.PAUSED),
    ("RESUMED", 0): (ChangeKind.RESUMED, VmState.RUNNING),
    ("RESUMED", 1): (ChangeKind.STARTED, VmState.RUNNING),
    ("STOPPED", 0): (ChangeKind.STOPPED, VmState.STOPPED),
    ("STOPPED", 1): (ChangeKind.STOPPED, VmState.STOPPED),
    ("STOPPED", 2): (ChangeKind.CRASHED, VmState.FAILED),
    ("STOPPED", 3): (ChangeKind.MIGRATED_AWAY, VmState.DESTROYED),
    ("STOPPED", 5): (ChangeKind.CRASHED, VmState.FAILED),
    ("UNDEFINED", 0): (ChangeKind.GONE, VmState.DESTROYED),
    ("CRASHED", 0): (ChangeKind.CRASHED, VmState.FAILED),
    ("PMSUSPENDED", 0): (ChangeKind.PAUSED, VmState.PAUSED),
    ("DEFINED", 0): None,
    ("SHUTDOWN", 0): None,
}


@pytest.mark.parametrize(("event", "detail"), STATES)
def test_events_tell_of_changes(event: str, detail: int) -> None:
    number = int(getattr(libvirt, f"VIR_DOMAIN_EVENT_{event}"))
    change = as_change("id", "name", number, detail, managed=True)
    expected = STATES[event, detail]
    assert (None if change is None else (change.kind, change.state)) == expected


def test_unknown_details_are_named_by_number() -> None:
    change = as_change("id", "name", libvirt.VIR_DOMAIN_EVENT_STOPPED, 99, managed=False)
    assert change is not None
    assert (change.reason, change.managed) == ("detail 99", False)
    assert as_change("id", "name", 99, 0, managed=True) is None

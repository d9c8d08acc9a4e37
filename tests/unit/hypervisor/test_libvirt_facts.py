"""Counters to rates, and libvirt's events to changes of VMs."""

import libvirt
import pytest

from snooze.common.clock import ManualClock
from snooze.common.resources import Capacity
from snooze.common.usage import VmUsage
from snooze.common.vm_lifecycle import VmState
from snooze.localcontroller.hypervisor.libvirt_events import as_change
from snooze.localcontroller.hypervisor.libvirt_usage import Counters, UsageMeter, counters, rate
from snooze.localcontroller.hypervisor.port import ChangeKind


def sample(before: Counters | None, now: Counters) -> VmUsage:
    return rate("vm", before, now, 0)[0]


def test_rates_are_in_cores_and_kib_per_second() -> None:
    before = Counters(1, 10.0, 5 * 10**9, 1000.0, 2000.0, 0, 1024, 100, 300, 10.0)
    now = Counters(1, 12.0, 8 * 10**9, 1500.0, 2000.0, 4096, 1024, 1100, 300, 12.0)
    assert sample(before, now) == VmUsage(
        "vm", 0, Capacity(1.5, 1500.0, 2.0, 0.0), True, 1500.0, 2000.0, 500.0, 0.0
    )


@pytest.mark.parametrize(
    "before",
    [
        None,
        Counters(2, 10.0, 0),
        Counters(1, 12.0, 0),
        Counters(1, 12.5, 0),
        Counters(1, 10.0, 9 * 10**9),
        Counters(1, 10.0, 0, rx_bytes=5000),
        Counters(1, 10.0, 0, tx_bytes=5000),
        Counters(1, 10.0, 0, read_bytes=101, write_bytes=0),
    ],
    ids=[
        "first reading",
        "another run of the domain",
        "no time between",
        "time that went back",
        *(f"{name} that went back" for name in ("cpu", "rx", "tx", "disk")),
    ],
)
def test_without_a_base_line_there_is_only_memory(before: Counters | None) -> None:
    now = Counters(1, 12.0, 8 * 10**9, 1500.0, 0, 4096, 1024, 100, 100, 12.0)
    found = sample(before, now)
    assert found == VmUsage("vm", 0, Capacity(memory_kib=1500.0), False, 1500.0)


def test_a_run_that_began_anew_is_rated_from_its_second_reading() -> None:
    meter = UsageMeter(ManualClock())
    readings = (
        Counters(1, 1.0, 50 * 10**9),
        Counters(1, 2.0, 51 * 10**9),
        Counters(2, 3.0, 10**9),
        Counters(2, 4.0, 3 * 10**9),
        Counters(2, 4.01, 4 * 10**9),
        Counters(2, 5.0, 4 * 10**9),
    )
    samples = [meter.rates({"a": reading}, 0)[0] for reading in readings]
    rated = [(s.rated, round(s.used.cpu_cores, 3)) for s in samples]
    assert rated == [(False, 0), (True, 1), (False, 0), (True, 2), (False, 0), (True, 1)]


def test_disks_that_are_not_told_once_lose_nothing() -> None:
    meter = UsageMeter(ManualClock())
    told = Counters(1, 1.0, 0, 64.0, 128.0, 0, 0, 1000, 0, 1.0)
    untold = Counters(1, 2.0, 0)
    later = Counters(1, 3.0, 0, 64.0, 128.0, 0, 0, 5000, 200, 3.0)
    meter.rates({"a": told}, 0)
    [missing] = meter.rates({"a": untold}, 0)
    assert (missing.rated, missing.read_bytes_s, missing.resident_kib) == (True, 0.0, 64.0)
    [found] = meter.rates({"a": later}, 0)
    assert (found.read_bytes_s, found.write_bytes_s) == (2000.0, 100.0)


def test_a_vm_that_went_is_forgotten() -> None:
    meter = UsageMeter(ManualClock())
    old, new = Counters(1, 1.0, 0), Counters(1, 2.0, 10**9)
    meter.rates({"a": old}, 0)
    assert not meter.rates({"b": new}, 0)[0].rated
    assert not meter.rates({"a": new}, 0)[0].rated, "its base line is gone with it"


def test_all_interfaces_and_disks_count() -> None:
    values: dict[str, int | str] = {
        "cpu.time": 7,
        "balloon.rss": 9,
        "balloon.current": 8,
        "net.count": 2,
        "net.0.rx.bytes": 1,
        "net.1.rx.bytes": 2,
        "net.0.tx.bytes": 3,
        "net.1.tx.bytes": 4,
        "block.count": 2,
        "block.0.rd.bytes": 10,
        "block.1.rd.bytes": 20,
        "block.1.wr.bytes": 5,
    }
    assert counters(3, 1.5, values) == Counters(3, 1.5, 7, 9.0, 8.0, 3, 7, 30, 5, 1.5)
    assert counters(3, 1.5, {"block.count": 0}).counts() == (0, 0, 0, 0, 0)
    assert counters(3, 1.5, {"cpu.time": "?"}).counts() == (0, 0, 0, -1, -1)


def test_disks_that_are_not_told_of_keep_their_base_line() -> None:
    """A domain whose monitor is busy is rated all the same, and has not read all it ever read."""

    def told(cpu_ns: int, read_bytes: int) -> dict[str, int | str]:
        return {
            "cpu.time": cpu_ns,
            "block.count": 1,
            "block.0.rd.bytes": read_bytes,
            "block.0.wr.bytes": 0,
        }

    busy: dict[str, int | str] = {"cpu.time": 2 * 10**9, "block.count": 1, "block.0.name": "vda"}
    first = counters(1, 1.0, told(10**9, 10**12))
    sample, kept = rate("a", first, counters(1, 2.0, busy), 0)
    assert (sample.rated, sample.used.cpu_cores, sample.read_bytes_s) == (True, 1.0, 0.0)
    sample, _ = rate("a", kept, counters(1, 3.0, told(3 * 10**9, 10**12 + 4096)), 0)
    assert (sample.rated, sample.used.cpu_cores, sample.read_bytes_s) == (True, 1.0, 2048.0)


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

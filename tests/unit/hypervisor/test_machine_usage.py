"""What the kernel's files say of a machine."""

from pathlib import Path

import pytest

from snooze.common.clock import ManualClock
from snooze.common.resources import Capacity
from snooze.common.usage import MachineUsage, Pressure
from snooze.localcontroller.hypervisor.libvirt_uri import is_local
from snooze.localcontroller.hypervisor.machine_usage import (
    MachineMeter,
    MachineReading,
    machine_rate,
    read_kernel,
)

STAT = """cpu  100 20 30 5000 60 7 8 9 50 0
cpu0 50 10 15 2500 30 3 4 4 25 0
cpu1 50 10 15 2500 30 4 4 5 25 0
intr 1 2 3
"""
MEMINFO = """MemTotal:        1000 kB
MemFree:          100 kB
MemAvailable:     400 kB
HugePages_Total:       0
"""
DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs
    lo:    9    1    0    0    0     0          0         0    9    1    0    0    0     0       0
  eth0: 1000    1    0    0    0     0          0         0 2000    1    0    0    0     0       0
   br0:    7    1    0    0    0     0          0         0    7    1    0    0    0     0       0
 vnet3:    5    1    0    0    0     0          0         0    5    1    0    0    0     0       0
   eno1:  10    1    0    0    0     0          0         0   20    1    0    0    0     0       0
broken
"""


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "thread-self" / "net").mkdir(parents=True)
    (folder / "pressure").mkdir()
    (folder / "stat").write_text(STAT)
    (folder / "meminfo").write_text(MEMINFO)
    (folder / "thread-self" / "net" / "dev").write_text(DEV)
    for name, share in (("cpu", "50.00"), ("memory", "0.00"), ("io", "12.50")):
        (folder / "pressure" / name).write_text(f"some avg10={share} avg60=1.00 total=5\nfull x\n")
    return folder


def test_the_kernel_is_read(proc: Path, tmp_path: Path) -> None:
    classes = tmp_path / "class"
    reading = read_kernel(5.0, proc, classes)
    assert reading == MachineReading(
        5.0, 1.65, 2.0, 1000.0, 600.0, 1010, 2020, Pressure(0.5, 0.0, 0.125)
    )
    (classes / "eno1" / "device").mkdir(parents=True)
    with_hardware = read_kernel(5.0, proc, classes)
    assert with_hardware is not None
    assert (with_hardware.rx_bytes, with_hardware.tx_bytes) == (10, 20), "only where hardware is"


@pytest.mark.parametrize("broken", ["", "nothing of the kind\n", "some avg10=x\n"])
def test_without_pressure_there_is_none(proc: Path, tmp_path: Path, broken: str) -> None:
    (proc / "pressure" / "io").write_text(broken)
    reading = read_kernel(0.0, proc, tmp_path)
    assert reading is not None
    assert reading.pressure is None


@pytest.mark.parametrize(
    ("name", "text"),
    [("stat", ""), ("stat", "cpu x"), ("meminfo", "a b"), ("meminfo", "MemTotal: 1000 kB")],
)
def test_a_kernel_of_another_kind_tells_nothing(
    proc: Path, tmp_path: Path, name: str, text: str
) -> None:
    (proc / name).write_text(text)
    assert read_kernel(0.0, proc, tmp_path) is None


def test_rates_and_what_has_none() -> None:
    before = MachineReading(10.0, 100.0, 4.0, 1000.0, 500.0, 0, 1024)
    now = MachineReading(12.0, 103.0, 4.0, 1000.0, 600.0, 4096, 1024, Pressure())
    assert machine_rate(before, now) == MachineUsage(
        Capacity(1.5, 600.0, 2.0, 0.0), True, 4.0, 1000.0, Pressure()
    )
    unrated = MachineUsage(Capacity(memory_kib=500.0), False, 4.0, 1000.0)
    assert machine_rate(None, before) == machine_rate(now, before) == unrated
    meter = MachineMeter(ManualClock(), is_local=True)
    assert [meter.rate(reading).rated for reading in (before, before, now)] == [False, False, True]


def test_this_very_machine() -> None:
    reading = read_kernel(0.0)
    assert reading is not None
    assert reading.cores >= 1
    assert 0 < reading.memory_used_kib < reading.memory_kib


def test_whose_kernel_it_is() -> None:
    assert is_local("qemu:///system")
    assert is_local("qemu+tcp://127.0.0.1/system")
    assert not is_local("qemu+tcp://10.0.0.1/system")

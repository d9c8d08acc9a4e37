"""What is measured of real guests, against what they really do: ratios, on any busy machine."""

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from snooze.common.resources import Capacity
from snooze.common.usage import MachineUsage, VmUsage
from snooze.common.vms import VmSpec
from snooze.lab.guests import MEMORY_KIB, SECTOR, micro_guest_xml, wait_for_beat
from snooze.localcontroller.hypervisor.libvirt_driver import LibvirtHypervisor
from snooze.localcontroller.hypervisor.port import MigrationOptions

if TYPE_CHECKING:
    from tests.integration.hypervisor.conftest import Lab

SPAN_S = 2.0
QUICK = MigrationOptions(progress_period_s=0.05)
FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\x99" + b"\x88\xb5" + bytes(986)
"""A broadcast of 1000 bytes with the ethertype for experiments."""
FRAMES = 2000

SEND = f"""
import socket, sys, time
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("br0", 0))
for number in range({FRAMES}):
    link.send(bytes.fromhex("{FRAME.hex()}"))
    time.sleep(0.0005)
"""

SPINNING = b"\xeb\xfe".ljust(SECTOR - 2, b"\0") + b"\x55\xaa"
"""``1: jmp 1b``"""

WRITING = """
.code16
  ljmp $0, $start
start:
  xorw %ax, %ax
  movw %ax, %ds
  movw %ax, %ss
  movw $0x7c00, %sp
  movb %dl, drive
  movl $0, 0x600
again:
  incl 0x600
  movw $0x4300, %ax
  movb drive, %dl
  movw $packet, %si
  int $0x13
  jmp again
drive: .byte 0
packet:
  .byte 16, 0
  .word 1, 0x600, 0
  .quad 1
.org 510
.word 0xaa55
"""
"""Writes sector 1 over and over; its first four bytes say how often."""


def make_spec(lab: "Lab", sector: bytes, *, bridge: str = "") -> VmSpec:
    spec = lab.make_spec(lab.shared / "disk.raw", str(lab.shared / "disk.raw"))
    disk = lab.shared / "disk.raw"
    with disk.open("r+b") as file:
        file.write(sector)
    xml = micro_guest_xml(spec.name, disk, bridge=bridge)
    return VmSpec(spec.vm_id, spec.name, Capacity(1.0, float(MEMORY_KIB)), libvirt_xml=xml)


def assemble_source(source: str, folder: Path) -> bytes:
    text, compiled, linked = folder / "guest.S", folder / "guest.o", folder / "guest.bin"
    text.write_text(source)
    flat = ("-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary")
    for command in (
        ("as", "--32", "-o", str(compiled), str(text)),
        ("ld", *flat, "-o", str(linked), str(compiled)),
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    return linked.read_bytes()


def process_of(spec: VmSpec) -> int:
    """The pid of a guest's qemu, as we see it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if words.startswith(b"/usr/bin/qemu") and f"guest={spec.name},".encode() in words:
                return int(entry.name)
    raise LookupError(f"no qemu runs {spec.name}")


def processor_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    [found] = [int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line]
    return found


def wait_for(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


async def measured(driver: LibvirtHypervisor, spec: VmSpec) -> VmUsage:
    [found] = [vm for vm in (await driver.usage()).vms if vm.vm_id == spec.vm_id]
    return found


async def settled(driver: LibvirtHypervisor, spec: VmSpec) -> None:
    """The first sample of a run has no rates, and says so."""
    first = await measured(driver, spec)
    assert not first.rated
    assert first.used.cpu_cores == first.write_bytes_s == 0


async def test_a_spinning_guest_uses_what_its_process_uses(lab: "Lab") -> None:
    driver = await lab.driver(lab.one)
    spec = make_spec(lab, SPINNING)
    await driver.start(spec)
    pid = process_of(spec)
    await settled(driver, spec)
    began_s, used_s = time.monotonic(), processor_s(pid)
    await asyncio.sleep(SPAN_S)
    usage = await driver.usage()
    span_s, used_s = time.monotonic() - began_s, processor_s(pid) - used_s
    [found] = usage.vms
    assert found.rated
    assert found.used.cpu_cores == pytest.approx(used_s / span_s, rel=0.15)
    assert found.used.cpu_cores > 0.1, "it spins, however busy the machine"
    assert_machine(usage.machine, found)


def assert_machine(machine: MachineUsage | None, busiest: VmUsage) -> None:
    """The host has its guest in it."""
    assert machine is not None
    assert machine.rated
    assert busiest.used.cpu_cores * 0.85 < machine.used.cpu_cores <= machine.cores
    assert busiest.resident_kib < machine.used.memory_kib < machine.memory_kib
    assert (machine.pressure is not None) == Path("/proc/pressure/cpu").exists()


async def test_an_idle_guest_uses_next_to_nothing_and_holds_its_memory(lab: "Lab") -> None:
    driver = await lab.driver(lab.one)
    spec = make_spec(lab, lab.sector)
    await driver.start(spec)
    await asyncio.to_thread(wait_for_beat, lab.shared / "disk.raw")
    await settled(driver, spec)
    await asyncio.sleep(SPAN_S)
    found = await measured(driver, spec)
    assert 0 <= found.used.cpu_cores < 0.2
    assert found.resident_kib == pytest.approx(resident_kib(process_of(spec)), rel=0.15)
    assert found.used.memory_kib == found.resident_kib
    assert found.balloon_kib == MEMORY_KIB


async def test_bytes_written_are_those_the_guest_wrote(lab: "Lab", tmp_path: Path) -> None:
    driver = await lab.driver(lab.one)
    disk = lab.shared / "disk.raw"
    spec = make_spec(lab, assemble_source(WRITING, tmp_path))

    def written() -> int:
        with disk.open("rb") as file:
            file.seek(SECTOR)
            return int.from_bytes(file.read(4), "little") * SECTOR

    await driver.start(spec)
    await asyncio.to_thread(wait_for, written)
    await driver.suspend(spec.vm_id)
    before = written()
    await settled(driver, spec)
    began_s = time.monotonic()
    await driver.resume(spec.vm_id)
    await asyncio.sleep(SPAN_S)
    await driver.suspend(spec.vm_id)
    found = await measured(driver, spec)
    span_s = time.monotonic() - began_s
    assert found.write_bytes_s * span_s == pytest.approx(written() - before, rel=0.15)
    assert written() - before > 10 * SECTOR
    assert found.read_bytes_s * span_s < 10 * SECTOR


async def test_network_is_what_was_sent_to_the_guest(lab: "Lab") -> None:
    driver = await lab.driver(lab.one)
    spec = make_spec(lab, lab.sector, bridge="br0")
    await driver.start(spec)
    await asyncio.to_thread(wait_for_beat, lab.shared / "disk.raw", 1)
    await settled(driver, spec)
    began_s = time.monotonic()
    await asyncio.to_thread(lab.one.exec, ["python3", "-c", SEND])
    await asyncio.sleep(0.2)
    found = await measured(driver, spec)
    span_s = time.monotonic() - began_s
    sent_kib = FRAMES * len(FRAME) / 1024
    assert found.used.rx_kib_s * span_s == pytest.approx(sent_kib, rel=0.15)
    assert found.used.tx_kib_s < found.used.rx_kib_s / 10, "the guest is silent"


async def test_a_migration_and_a_restart_are_no_spike(lab: "Lab") -> None:
    one, two = await lab.driver(lab.one), await lab.driver(lab.two)
    spec = make_spec(lab, SPINNING)
    await one.start(spec)
    await settled(one, spec)
    await asyncio.sleep(0.5)
    samples: list[VmUsage] = [await measured(one, spec)]
    await two.usage()
    ticket = await two.prepare_incoming(await one.offer(spec.vm_id, QUICK))
    moving = asyncio.create_task(one.migrate_out(spec.vm_id, ticket, QUICK, lambda _: None))
    while not moving.done():
        samples += (await one.usage()).vms + (await two.usage()).vms
        await asyncio.sleep(0.1)
    await moving
    await two.finish_incoming(spec.vm_id, ticket)
    assert (await one.usage()).vms == []
    arrived: list[VmUsage] = []
    for _ in range(4):
        arrived.append(await measured(two, spec))
        await asyncio.sleep(0.3)
    assert arrived[-1].rated
    await two.destroy(spec.vm_id)
    await two.start(spec)
    await settled(two, spec)
    await asyncio.sleep(0.5)
    restarted = await measured(two, spec)
    assert restarted.rated
    cores = os.cpu_count() or 1
    for sample in (*samples, *arrived, restarted):
        assert 0 <= sample.used.cpu_cores <= cores * 1.2
        assert 0 <= sample.used.rx_kib_s < 1024
        assert 0 <= sample.write_bytes_s < 1024 * 1024
        if not sample.rated:
            assert sample.used.as_tuple() == (0.0, sample.used.memory_kib, 0.0, 0.0)

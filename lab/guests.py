"""A real guest that boots in a fifth of a second on any machine: 512 bytes, no kernel, no download.

Its counter (see micro_guest.S) proves what happened to it: contiguous and of the same boot, it
moved alive; another boot, it was started anew; standing still, it is off or paused. Its disk tells
it how long to burn its processor and how much memory to change (``set_load``).
"""

import contextlib
import errno
import mmap
import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import quoteattr

SOURCE: Final = Path(__file__).with_name("micro_guest.S")
SECTOR: Final = 512
DISK_BYTES: Final = 1024 * 1024
MEMORY_KIB: Final = 4096
"""SeaBIOS and one sector need no more."""

TICKS: Final = 18
"""Of the PC's clock, in a beat."""
MAX_DIRTY_PARTS: Final = 8
DIRTY_PART_KIB: Final = 64
_WISH: Final = 4096
"""Where on its disk the guest reads what is wished of it: a page apart from its counter's."""

_LINE: Final = re.compile(rb"beat ([0-9]{10}) boot ([0-9a-f]{8})\n")


@dataclass(frozen=True, slots=True)
class Beat:
    """How often a guest's heart has beaten since which boot."""

    count: int
    boot: str


def assemble(folder: Path) -> bytes:
    """The boot sector, made with binutils; ``folder`` keeps the intermediate files.

    Raises:
        RuntimeError: if the result is no boot sector.
        subprocess.CalledProcessError: if ``as`` or ``ld`` fails.
    """
    compiled, linked = folder / "micro_guest.o", folder / "micro_guest.bin"
    flat = ("-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary")
    for command in (
        ("as", "--32", "-o", str(compiled), str(SOURCE)),
        ("ld", *flat, "-o", str(linked), str(compiled)),
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    sector = linked.read_bytes()
    if len(sector) != SECTOR or not sector.endswith(b"\x55\xaa"):
        raise RuntimeError(f"{SOURCE} makes {len(sector)} bytes, not a boot sector")
    return sector


def make_disk(
    path: Path, sector: bytes, size_bytes: int = DISK_BYTES, *, fill: bytes = b""
) -> None:
    """A raw disk that boots the guest.

    Args:
        size_bytes: at least 8 KiB.
        fill: a block repeated over the rest of the disk, so that a copy has something to carry.
    """
    with path.open("wb") as disk:
        disk.write(sector + bytes(2 * _WISH - SECTOR))
        while fill and disk.tell() < size_bytes:
            disk.write(fill)
        disk.truncate(size_bytes)


def read_beat(disk: Path) -> Beat | None:
    """What the guest last wrote to its raw disk; None before its first beat."""
    with disk.open("rb") as file:
        file.seek(SECTOR)
        match = _LINE.match(file.read(64))
    return Beat(int(match[1]), match[2].decode()) if match else None


def wait_for_beat(disk: Path, after: int = 0, timeout_s: float = 30.0) -> Beat:
    """Block until the guest has beaten more than ``after`` times.

    Raises:
        TimeoutError: if it does not in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        beat = read_beat(disk)
        if beat is not None and beat.count > after:
            return beat
        time.sleep(0.05)
    raise TimeoutError(f"the guest on {disk} did not beat more than {after} times")


def set_load(disk: Path, busy: float, *, dirty_kib: int = 0) -> None:
    """Wish of a guest that it be busy; heeded from its next beat, a second at most.

    Written beside the page cache, as the guest writes: the two never undo each other's writes.

    Args:
        disk: its raw disk, as a file; the guest may run on any host that shares it.
        busy: the part of each second in which it burns its processor, from 0 to 1.
        dirty_kib: memory that it changes all the while, up to 512 KiB, in parts of 64.
    """
    ticks = round(min(max(busy, 0.0), 1.0) * TICKS)
    parts = min(max(dirty_kib // DIRTY_PART_KIB, 0), MAX_DIRTY_PARTS)
    with mmap.mmap(-1, _WISH) as page:  # aligned, as direct writing wants it
        page[:2] = bytes((ticks, parts))
        try:
            file = os.open(disk, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            file = os.open(disk, os.O_WRONLY | os.O_DSYNC)  # a file system without it
        with contextlib.closing(os.fdopen(file, "wb", buffering=0)) as opened:
            os.pwrite(opened.fileno(), page, _WISH)


def read_load(disk: Path) -> float:
    """How busy a guest is wished to be, from 0 to 1."""
    with disk.open("rb") as file:
        file.seek(_WISH)
        return (file.read(1) or b"\0")[0] / TICKS


def micro_guest_xml(
    name: str,
    disk: Path,
    *,
    domain_type: str = "qemu",
    memory_kib: int = MEMORY_KIB,
    vcpus: int = 1,
    max_vcpus: int | None = None,
    bridge: str = "",
    shareable: bool = False,
) -> str:
    """A template for the guest on a raw disk.

    Args:
        shareable: no lock is taken on the disk, as most storage for clusters takes none: only then
            could a guest run twice, and show it.
    """
    nic = f"<interface type='bridge'><source bridge={quoteattr(bridge)}/></interface>"
    return f"""<domain type='{domain_type}'>
  <name>{name}</name>
  <memory unit='KiB'>{memory_kib}</memory>
  <vcpu current='{vcpus}'>{max_vcpus or vcpus}</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file={quoteattr(str(disk))}/>
      <target dev='hda' bus='ide'/>{"<shareable/>" if shareable else ""}
    </disk>
    {nic if bridge else ""}
    <serial type='pty'/>
  </devices>
</domain>"""


def kvm_works(limit_s: float = 3.0) -> bool:
    """Whether KVM really runs guests here: by booting one.

    ``/dev/kvm`` may exist and open, and yet be a paravirtual or nested one that boots nothing.
    """
    if not Path("/dev/kvm").exists():
        return False
    with tempfile.TemporaryDirectory(prefix="snooze-kvm-") as folder:
        disk = Path(folder, "disk.raw")
        make_disk(disk, assemble(Path(folder)))
        machine = ("-machine", "pc,accel=kvm", "-m", "4", "-nodefaults", "-display", "none")
        qemu = subprocess.Popen(
            ("qemu-system-x86_64", *machine, "-drive", f"file={disk},format=raw,if=ide"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for_beat(disk, timeout_s=limit_s)
        except TimeoutError:
            return False
        finally:
            qemu.kill()
            qemu.wait()
    return True

"""The guard switches real guests off, by libvirt and, where that hangs, by their processes."""

import asyncio
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.lease_core import NEVER
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import FailureAction, VmPolicy
from snooze.lab.guests import wait_for_beat
from snooze.localcontroller.fence_guard import Guard
from snooze.localcontroller.hypervisor.libvirt_driver import LibvirtHypervisor
from snooze.localcontroller.lease_file import LeaseFile, LeaseState

if TYPE_CHECKING:
    from tests.integration.hypervisor.conftest import Lab

ROOT = Path(__file__).parents[3]
TYPINGS = ROOT / "typings"
NOBODY = 65534
PATIENCE_S = 60.0


def test_it_fences_once_the_lease_is_over_for_its_grace(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path / "lease.json")
    fenced: list[int] = []

    def fence(note: object) -> bool:
        fenced.append(1)
        return True

    guard = Guard(file, fence)
    guard.look()
    assert fenced == [], "no lease was ever held"
    now_s = SYSTEM_CLOCK.boottime_s()
    file.write(LeaseState(until_s=now_s - 1.0, grace_s=60.0))
    guard.look()
    assert fenced == []
    file.write(LeaseState(until_s=now_s - 61.0, grace_s=60.0))
    guard.look()
    assert fenced == [1]
    assert guard.clean


def test_what_was_fenced_outlives_a_boot_and_a_lease_does_not(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path / "lease.json")
    file.write(LeaseState(until_s=1e12))
    file.add_fenced({"a": 3})
    text = file.path.read_text()
    file.path.write_text(text.replace(file.read().boot_id, "another boot"))
    assert (file.read().fenced, file.read().until_s) == ({"a": 3}, NEVER)


def test_a_file_that_is_torn_is_as_none(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    path.write_text('{"until_s": 12')
    assert LeaseFile(path).read().until_s == NEVER


@pytest.mark.parametrize("libvirtd", ["answers", "is frozen"])
async def test_real_guests_are_switched_off_without_an_agent(lab: "Lab", libvirtd: str) -> None:
    driver = await lab.driver(lab.one)
    ha = lab.make_spec(lab.shared / "ha.raw", str(lab.shared / "ha.raw"))
    plain = lab.make_spec(lab.shared / "plain.raw", str(lab.shared / "plain.raw"))
    other = msgspec.structs.replace(plain, policy=VmPolicy(FailureAction.LEAVE))
    await driver.start(ha)
    await driver.start(other)
    for disk in ("ha.raw", "plain.raw"):
        await asyncio.to_thread(wait_for_beat, lab.shared / disk, 1)
    folder = lab.net.folder / f"state-{libvirtd}"
    folder.mkdir()
    file = LeaseFile(folder / "lease.json")
    file.write(LeaseState(until_s=SYSTEM_CLOCK.boottime_s() - 10.0, grace_s=1.0))
    daemon = lab.one.libvirtd_pid()
    command = [sys.executable, "-m", "snooze.localcontroller.fence_guard", str(file.path)]
    if libvirtd == "is frozen":
        os.kill(daemon, signal.SIGSTOP)
        for path in (folder, file.path):
            shutil.chown(path, NOBODY, NOBODY)
        command = [*as_the_unit_runs_it(), *command]
    environment = os.environ | {"PYTHONPATH": str(TYPINGS)}
    log = folder / "log"
    with log.open("wb") as output:
        guard = lab.one.popen([*command, "qemu:///system"], output, env=environment)
    try:
        await asyncio.to_thread(_wait_off, ha.name, log)
        assert _runs(other.name), "only highly available guests are"
    finally:
        os.kill(daemon, signal.SIGCONT)
        lab.one.signal(guard, signal.SIGKILL)
        guard.wait()
    assert file.read().fenced == {ha.vm_id: 1}
    if libvirtd == "answers":
        expected = {ha.vm_id: VmState.STOPPED, other.vm_id: VmState.RUNNING}
        async with asyncio.timeout(PATIENCE_S):
            await _become(driver, expected)


async def _become(driver: LibvirtHypervisor, expected: dict[str, VmState]) -> None:
    """Wait for states; libvirt says ``stopping`` for a moment after it has let the process die."""
    while True:
        reports = await driver.inventory()
        if {report.vm_id: report.state for report in reports} == expected:
            return
        await asyncio.sleep(0.1)


def as_the_unit_runs_it() -> list[str]:
    """No root: another user, with the rights that the shipped unit gives."""
    unit = (ROOT / "configs/snooze-localcontroller.service").read_text()
    [given] = [line for line in unit.splitlines() if line.startswith("AmbientCapabilities=")]
    words = given.partition("=")[2].lower().split()
    rights = ",".join(f"+{word.removeprefix('cap_')}" for word in words)
    sets = [f"--{kind}-caps=-all,{rights}" for kind in ("inh", "ambient")]
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    return ["setpriv", *user, *sets]


def _wait_off(name: str, log: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while _runs(name):
        assert time.monotonic() < deadline_s, f"it is not switched off: {log.read_text()}"
        time.sleep(0.05)


def _runs(name: str) -> bool:
    """Whether a qemu of this guest runs on this machine."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = process.read_bytes()
        except OSError:
            continue
        if b"qemu-system" in arguments and f"guest={name},".encode() in arguments:
            return True
    return False

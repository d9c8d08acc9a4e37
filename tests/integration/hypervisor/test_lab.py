"""The lab itself: hosts that are apart, lose power, and leave nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snooze.lab.hosts import LabNet, sweep


@pytest.fixture
def net() -> Iterator[LabNet]:
    with LabNet(uplink=True) as net:
        for name in ("one", "two"):
            net.host(name, libvirtd=False).power_on()
        yield net


def reaches(command: list[str], address: str) -> bool:
    ping = [*command, "ping", "-q", "-c", "1", "-W", "1", address]
    return subprocess.run(ping, capture_output=True, check=False).returncode == 0


def test_hosts_are_apart_and_know_each_other(net: LabNet) -> None:
    one, two = net.hosts["one"], net.hosts["two"]
    assert one.exec(["hostname"]).stdout == b"one\n"
    assert (
        one.exec(["cat", "/etc/machine-id"]).stdout != two.exec(["cat", "/etc/machine-id"]).stdout
    )
    assert one.exec(["ping", "-q", "-c", "1", "-W", "5", "two"]).returncode == 0
    assert reaches([], two.address), "by the uplink"
    one.exec(["touch", "/var/lib/libvirt/mark", "/run/mark"])
    assert two.exec(["ls", "/var/lib/libvirt/mark", "/run/mark"]).stdout == b""
    assert not Path("/var/lib/libvirt/mark").exists()
    assert len(one.exec(["ls", "/proc"]).stdout.split()) < len(os.listdir("/proc"))


def test_cable_and_power(net: LabNet) -> None:
    one = net.hosts["one"]
    one.cut()
    assert not reaches([], one.address)
    one.plug()
    assert reaches([], one.address)
    one.exec(["touch", "/var/lib/libvirt/kept", "/run/lost"])
    running = one.popen(["sleep", "1000"])
    one.power_off()
    assert not one.is_on
    assert running.wait(10) != 0
    one.power_on()
    kept = one.exec(["ls", "/var/lib/libvirt/kept", "/run/lost"]).stdout
    assert kept == b"/var/lib/libvirt/kept\n"


def test_a_command_is_sent_signals_through_its_host(net: LabNet) -> None:
    process = net.hosts["one"].popen(
        ["bash", "-c", "trap 'echo told; exit 7' TERM; echo ready; while :; do sleep 0.1; done"],
        output=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    net.hosts["one"].signal(process, signal.SIGTERM)
    assert process.stdout.readline() == b"told\n"
    assert process.wait(10) == 7
    process.stdout.close()


def test_what_a_killed_lab_left_is_swept() -> None:
    code = (
        "from snooze.lab.hosts import LabNet; net = LabNet(); h = net.host('one', libvirtd=False)\n\
h.power_on(); print(net.tag, h.pid, net.folder, flush=True); import time; time.sleep(1000)"
    )
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root / "typings")},
    )
    assert process.stdout is not None
    tag, pid, folder = process.stdout.readline().decode().split()
    process.stdout.close()
    sweep()
    assert Path(f"/proc/{pid}").exists(), "a lab that is in use is left alone"
    process.kill()
    process.wait()
    sweep()
    deadline = 200
    while Path(f"/proc/{pid}").exists() and deadline:
        deadline -= 1
        subprocess.run(["sleep", "0.05"], check=True)
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(folder).exists()
    assert not [path for path in Path("/run/netns").iterdir() if tag in path.name]

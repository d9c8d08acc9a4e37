"""The lab itself: hosts that are apart, lose power, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snooze.lab.hosts import LabNet
from snooze.lab.processes import sweep, wait_for


@pytest.fixture
def net() -> Iterator[LabNet]:
    with LabNet(uplink=True) as net:
        for name in ("one", "two"):
            net.host(name, libvirtd=False).power_on()
        yield net


def reaches(address: str, *, within_s: int = 10) -> bool:
    """A switch's port may take a second to notice its cable."""
    ping = ["ping", "-q", "-c", "1", "-w", str(within_s), address]
    return subprocess.run(ping, capture_output=True, check=False).returncode == 0


def test_hosts_are_apart_and_know_each_other(net: LabNet) -> None:
    one, two = net.hosts["one"], net.hosts["two"]
    assert one.exec(["hostname"]).stdout == b"one\n"
    assert (
        one.exec(["cat", "/etc/machine-id"]).stdout != two.exec(["cat", "/etc/machine-id"]).stdout
    )
    assert one.exec(["ping", "-q", "-c", "1", "-W", "5", "two"]).returncode == 0
    assert reaches(two.address), "by the uplink"
    one.exec(["touch", "/var/lib/libvirt/mark", "/run/mark"])
    assert two.exec(["ls", "/var/lib/libvirt/mark", "/run/mark"]).stdout == b""
    assert not Path("/var/lib/libvirt/mark").exists()
    assert len(one.exec(["ls", "/proc"]).stdout.split()) < len(os.listdir("/proc"))


def test_cable_and_power(net: LabNet) -> None:
    one = net.hosts["one"]
    one.cut()
    assert not reaches(one.address, within_s=1)
    one.plug()
    assert reaches(one.address)
    one.exec(["touch", "/var/lib/libvirt/kept", "/run/lost"])
    running = one.popen(["sleep", "1000"])
    one.power_off()
    assert not one.is_on
    assert running.wait(10) != 0
    one.cut()
    one.power_on()
    assert not reaches(one.address, within_s=1), "a pulled cable stays pulled"
    one.plug()
    assert reaches(one.address)
    kept = one.exec(["ls", "/var/lib/libvirt/kept", "/run/lost"]).stdout
    assert kept == b"/var/lib/libvirt/kept\n"


def test_a_host_that_goes_down_by_itself_is_silent_at_once(net: LabNet) -> None:
    one = net.hosts["one"]
    one.exec(["bash", "-c", "kill -s RTMIN+4 1"])
    wait_for(lambda: not one.is_on and one.pid == 0, "it to go down")
    assert not reaches(one.address, within_s=1)
    one.power_on()
    assert reaches(one.address)
    one.shut_down()
    wait_for(lambda: not one.is_on and one.pid == 0, "it to go down")


def test_services_start_with_their_host_and_again_when_they_fail(net: LabNet) -> None:
    one = net.hosts["one"]
    log = one.folder / "service.log"
    one.at_boot("count", ["bash", "-c", "echo $WORD by $$; exit 1"], log, {"WORD": "it's up"})
    assert not log.exists()
    one.power_off()
    one.power_on()
    wait_for(lambda: log.exists() and log.read_text().count("it's up by") >= 2, "two starts")
    one.power_off()
    told = log.read_text()
    time.sleep(2.5)
    assert log.read_text() == told, "it died with its host"


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

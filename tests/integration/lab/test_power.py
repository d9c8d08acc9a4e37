"""Power in the lab: real IPMI clients, wake-up calls, BMCs that are cut or lose power."""

import importlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snooze.lab.bmc import PASSWORD, USER, BmcRack, LabBmc
from snooze.lab.guests import (
    assemble,
    make_disk,
    micro_guest_xml,
    set_load,
    wait_for_beat,
)
from snooze.lab.hosts import LabHost, LabNet
from snooze.lab.processes import marked, wait_for
from snooze.lab.storage import NbdExport
from snooze.lab.wake import WakeListener, wanted_mac

BURNT_S = 0.5
MANY_BEATS = 40
"""In so many even a busy machine lets a guest burn as much."""


@pytest.fixture(scope="module")
def net() -> Iterator[LabNet]:
    with LabNet(uplink=True) as net:
        for name in ("h1", "h2"):
            net.host(name, libvirtd=False)
        yield net


@pytest.fixture(scope="module")
def rack(net: LabNet) -> Iterator[BmcRack]:
    with BmcRack(net) as rack:
        for host in net.hosts.values():
            rack.add(host)
        yield rack


@pytest.fixture
def bmc(rack: BmcRack) -> LabBmc:
    """Of a host that is on; all cables are in."""
    bmc = rack.bmcs["h1"]
    bmc.start()
    bmc.plug()
    bmc.host.plug()
    bmc.host.power_on()
    return bmc


def ipmitool(bmc: LabBmc, *words: str, password: str = PASSWORD) -> str:
    """What it said; its complaint if it failed."""
    options = [*bmc.options.split()[:-1], password, "-N", "1", "-R", "2"]
    done = subprocess.run(
        ["ipmitool", *options, *words], capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout.strip() if done.returncode == 0 else f"failed: {done.stderr}"


def status(bmc: LabBmc) -> str:
    return ipmitool(bmc, "chassis", "power", "status").removeprefix("Chassis Power is ")


def test_ipmitool_switches_a_host(bmc: LabBmc) -> None:
    assert status(bmc) == "on"
    for _ in range(2):
        ipmitool(bmc, "chassis", "power", "off")
        assert not bmc.host.is_on
        assert status(bmc) == "off"
    for _ in range(2):
        ipmitool(bmc, "chassis", "power", "on")
        assert bmc.host.is_on
        assert status(bmc) == "on"
    before = bmc.host.pid
    ipmitool(bmc, "chassis", "power", "reset")
    wait_for(lambda: bmc.host.pid not in (0, before), "another boot")
    ipmitool(bmc, "chassis", "power", "soft")
    wait_for(lambda: status(bmc) == "off", "the host to go down by itself")


def test_what_happens_to_a_host_is_read_back(bmc: LabBmc) -> None:
    bmc.host.power_off()
    assert status(bmc) == "off"
    bmc.host.power_on()
    bmc.host.exec(["bash", "-c", "kill -s RTMIN+4 1"])
    wait_for(lambda: status(bmc) == "off", "the truth")
    bmc.host.power_on()
    bmc.host.cut()
    assert status(bmc) == "on", "its network is not its power"


def test_pyghmi_switches_a_host(bmc: LabBmc) -> None:
    # as bytes: with text, a second session to a BMC hangs (pyghmi 1.6.19)
    command: Any = importlib.import_module("pyghmi.ipmi.command")
    client = command.Command(bmc=bmc.address, userid=USER.encode(), password=PASSWORD.encode())
    for _ in range(2):
        assert client.set_power("off", wait=10) == {"powerstate": "off"}
        assert not bmc.host.is_on
        assert client.set_power("on", wait=10) == {"powerstate": "on"}
        assert bmc.host.is_on
    client.ipmi_session.logout()


def test_a_wrong_password_switches_nothing(bmc: LabBmc) -> None:
    said = ipmitool(bmc, "chassis", "power", "off", password="wrong")
    assert said.startswith("failed")
    assert bmc.host.is_on


def test_a_silent_bmc_says_nothing_and_its_host_runs_on(bmc: LabBmc, rack: BmcRack) -> None:
    bmc.cut()
    assert ipmitool(bmc, "chassis", "power", "off").startswith("failed")
    assert bmc.host.is_on
    bmc.plug()
    wait_for(lambda: status(bmc) == "on", "the BMC to be heard again")
    rack.lose_power("h1", with_host=True)
    assert not bmc.host.is_on
    assert ipmitool(bmc, "chassis", "power", "status").startswith("failed")
    rack.restore_power("h1")
    wait_for(lambda: status(bmc) == "off", "the BMC, whose host waits to be switched on")


def test_magic_packets_wake_the_host_they_name(net: LabNet, rack: BmcRack) -> None:
    one, two = net.hosts["h1"], net.hosts["h2"]
    with WakeListener(net) as listener:
        for kind in ("frame", "datagram"):
            one.power_off()
            two.power_off()
            wake(net, one, kind)
            wait_for(lambda: one.is_on, f"the host woken by a {kind}")
            assert not two.is_on
        one.power_off()
        one.cut()
        wake(net, one, "frame")
        wake(net, two, "datagram")
        wait_for(lambda: two.is_on, "the other host")
        assert not one.is_on, "no cable, no call"
        one.plug()
    assert listener.heard == ["h1", "h1", "h2"]


def wake(net: LabNet, host: LabHost, kind: str) -> None:
    magic = "ff" * 6 + host.mac.replace(":", "") * 16
    datagram = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM);"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1);"
        f"s.sendto(bytes.fromhex('{magic}'), ('{net.subnet}.255', 9))"
    )
    caller = net.hosts.get("caller") or net.host("caller", libvirtd=False)
    caller.power_on()
    command = (
        ["etherwake", "-i", "br0", host.mac] if kind == "frame" else ["python3", "-c", datagram]
    )
    done = caller.exec(command)
    assert done.returncode == 0, done.stderr


def test_only_magic_packets_are() -> None:
    mac = bytes.fromhex("5254005c0001")
    magic = b"\xff" * 6 + mac * 16
    assert wanted_mac(b"header" + magic) == "52:54:00:5c:00:01"
    assert wanted_mac(b"\xff" * 9 + magic) == "52:54:00:5c:00:01"
    assert wanted_mac(magic[:-1]) == ""
    assert wanted_mac(b"\xff" * 200) == "ff:ff:ff:ff:ff:ff"
    assert wanted_mac(b"") == ""


def test_guests_heed_their_disks_wherever_they_lie(net: LabNet) -> None:
    """What is written to the file reaches a running guest, by NBD and by a shared folder."""
    host = net.host("worker")
    host.power_on()
    host.wait_for_libvirtd()
    disks = {name: net.folder / f"{name}.raw" for name in ("filed", "exported")}
    for disk in disks.values():
        make_disk(disk, assemble(net.folder))
    with NbdExport(net, disks["exported"]) as export:
        for name, disk in disks.items():
            xml = micro_guest_xml(name, disk, shareable=True)
            if name == "exported":
                start, end = xml.index("<disk "), xml.index("</disk>") + len("</disk>")
                xml = xml[:start] + export.disk_xml() + xml[end:]
            template = net.folder / f"{name}.xml"
            template.write_text(xml)
            created = host.exec(["virsh", "-q", "create", str(template)])
            assert created.returncode == 0, created.stderr
        took: dict[str, int] = {}
        burnt: dict[str, float] = {}
        for busy in (0.8, 0.0):
            for disk in disks.values():
                set_load(disk, busy, dirty_kib=128)
            for disk in disks.values():
                wait_for_beat(disk, wait_for_beat(disk).count + 1)
            began = {name: (processor_s(host, name), beats(disk)) for name, disk in disks.items()}
            for name, disk in disks.items():
                used_s, first = began[name]
                last = first + took.get(name, MANY_BEATS)
                while beats(disk) < last:
                    wait_for_beat(disk, beats(disk))
                    if busy and processor_s(host, name) - used_s >= BURNT_S:
                        took[name] = (last := beats(disk)) - first
                used_s = processor_s(host, name) - used_s
                if busy:
                    assert used_s >= BURNT_S, f"{name} burnt {used_s} s"
                    burnt[name] = used_s
                assert busy or used_s <= burnt[name] / 2, f"{name}: {used_s} of {burnt} s"
        host.power_off()


def beats(disk: Path) -> int:
    return wait_for_beat(disk).count


def processor_s(host: LabHost, name: str) -> float:
    """What a guest has used of its processor."""
    listed = host.exec(["virsh", "domstats", "--cpu-total", name]).stdout.decode()
    [line] = [line for line in listed.splitlines() if "cpu.time" in line]
    return float(line.partition("=")[2]) / 1e9


def test_the_folder_of_a_closed_lab_is_gone() -> None:
    with LabNet() as net, BmcRack(net) as rack:
        bmc = rack.add(net.host("only", libvirtd=False))
        folder, tag = net.folder, net.tag
        bmc.host.power_on()
    assert not folder.exists()
    assert not [path for path in Path("/run/netns").iterdir() if tag in path.name]
    assert tag not in marked().values()

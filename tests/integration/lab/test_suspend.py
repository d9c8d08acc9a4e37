"""Suspend to RAM: what runs on a host stands still, and goes on where it stood.

Seen from everywhere: the host's own command, its guests' disks, its BMC, the network, the cluster.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from snooze.client.sdk import Snooze, VmRequest
from snooze.common.errors import SnoozeError
from snooze.lab.bmc import BmcRack, LabBmc
from snooze.lab.cluster import LabCluster, LabPlan
from snooze.lab.guests import (
    Beat,
    assemble,
    make_disk,
    micro_guest_xml,
    read_beat,
    wait_for_beat,
)
from snooze.lab.hosts import LabHost, LabNet
from snooze.lab.processes import children, process_state, wait_for
from snooze.lab.sleeping import SignalFreezer, namespace_processes
from snooze.lab.wake import WakeListener
from tests.contract.redfish_bmc import lab_emulator

T = TypeVar("T")

PATIENCE_S = 90.0
STILL_S = 1.5
"""In which a guest would have counted."""
NAP_S = 3.5
"""A shorter one is not noticed by an agent whose clocks go on; it joins again after 15 s."""


def ipmitool(bmc: LabBmc, *words: str) -> str:
    command = ["ipmitool", *bmc.options.split(), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def answers_ping(host: LabHost) -> bool:
    ping = ["ping", "-q", "-c", "1", "-W", "1", host.address]
    return subprocess.run(ping, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def net() -> Iterator[LabNet]:
    with LabNet(uplink=True) as net:
        yield net


def test_a_host_that_sleeps_keeps_its_guests(net: LabNet) -> None:
    with BmcRack(net) as rack, WakeListener(net) as listener:
        host = net.host("h1")
        bmc = rack.add(host)
        host.power_on()
        host.wait_for_libvirtd()
        disk, template = net.folder / "guest.raw", net.folder / "guest.xml"
        make_disk(disk, assemble(net.folder))
        template.write_text(micro_guest_xml("guest", disk))
        assert host.exec(["virsh", "-q", "create", str(template)]).returncode == 0
        first = wait_for_beat(disk)

        assert host.exec(["systemctl", "suspend"]).returncode == 0
        wait_for(lambda: host.is_suspended, "it to suspend itself")
        assert host.is_on
        assert "is on" in ipmitool(bmc, "chassis", "power", "status")
        assert not answers_ping(host)
        with pytest.raises(RuntimeError, match="suspended"):
            host.exec(["true"])
        stood = read_beat(disk)
        time.sleep(STILL_S)
        assert read_beat(disk) == stood, "its guest stands still"

        ipmitool(bmc, "chassis", "power", "on")
        assert not host.is_suspended
        beats = [first, *goes_on(disk)]
        wait_for(lambda: answers_ping(host), "its network")

        host.suspend()
        packet = bytes.fromhex("ff" * 6 + host.mac.replace(":", "") * 16).hex()
        send = f"sendto(bytes.fromhex('{packet}'), ('{net.switch_address}', 9))"
        code = f"import socket; socket.socket(type=socket.SOCK_DGRAM).{send}"
        assert net.popen(["python3", "-c", code]).wait() == 0
        wait_for(lambda: not host.is_suspended, "the magic packet to wake it")
        assert listener.heard == ["h1"]
        beats += goes_on(disk)
        host.suspend()
        host.shut_down()
        assert host.is_on, "the button wakes it"
        beats += goes_on(disk)

        assert host.exec(["systemctl", "hibernate"]).returncode == 0
        wait_for(lambda: host.is_suspended, "it to suspend itself to disk")
        assert "is off" in ipmitool(bmc, "chassis", "power", "status")
        ipmitool(bmc, "chassis", "power", "off")
        ipmitool(bmc, "chassis", "power", "on")
        wait_for(lambda: not host.is_suspended, "its BMC to wake it")
        assert "is on" in ipmitool(bmc, "chassis", "power", "status")
        beats += goes_on(disk)
        counts = [beat.count for beat in beats]
        assert counts == sorted(counts)
        assert {beat.boot for beat in beats} == {first.boot}

        host.suspend()
        host.power_off()
        assert "is off" in ipmitool(bmc, "chassis", "power", "status")
        host.power_on()
        host.wait_for_libvirtd()
        listed = host.exec(["virsh", "-q", "list", "--name"]).stdout.split()
        assert listed == [], "a power cut loses what was in memory"


def test_where_there_are_no_cgroups_signals_suspend(net: LabNet) -> None:
    """Processes of every kind: of its own, put in from outside, born in this moment, stopped."""
    host = net.host("h2", libvirtd=False)
    host.freezer = SignalFreezer()
    host.power_on()
    log = host.folder / "log"
    busy = host.popen(["bash", "-c", f"while :; do date +%N >> {log}; sleep 0.01; done"])
    paused = host.popen(["sleep", "1000"])
    wait_for(lambda: bool(children(paused.pid)), "the process")
    host.signal(paused, signal.SIGSTOP)
    wait_for(log.exists, "the first line")
    host.suspend()
    assert {process_state(pid) for pid in namespace_processes(host.pid)} <= set("TZ")
    stood = log.stat().st_size
    time.sleep(0.3)
    assert log.stat().st_size == stood
    host.wake()
    wait_for(lambda: log.stat().st_size > stood, "it to go on")
    [stopped] = children(paused.pid)
    assert process_state(stopped) == "T", "that one had been stopped before"
    host.suspend()
    host.power_off()
    assert busy.wait(PATIENCE_S) != 0
    assert paused.wait(PATIENCE_S) != 0


def goes_on(disk: Path) -> list[Beat]:
    """Its next beat."""
    stood = read_beat(disk)
    assert stood is not None
    return [wait_for_beat(disk, stood.count)]


ENERGY: dict[str, dict[str, object]] = {
    "monitoring": {"interval_s": 1.0},
    "autonomy": {"interval_s": 1.0},
    "recovery": {"reserve": "none"},
    "energy": {
        "enabled": True,
        "idle_s": 1.0,
        "min_on_s": 1.0,
        "min_off_s": 0.0,
        "reserve_cpu": 0.0,
        "reserve_memory": 0.0,
    },
}


@pytest.mark.parametrize("to_disk", [False, True], ids=["RAM", "disk"])
def test_the_cluster_suspends_idle_hosts_and_wakes_them(tmp_path: Path, to_disk: bool) -> None:
    """By IPMI, Wake-on-LAN, Redfish; they never boot, so their processes are the same."""
    overrides = tmp_path / "overrides.toml"
    overrides.touch(0o600)
    plan = LabPlan(
        hosts=2,
        managers=1,
        zookeepers=1,
        suspend=not to_disk,
        hibernate=to_disk,
        manager_settings={**ENERGY, "power": {"overrides_file": str(overrides)}},
        host_settings={"monitoring": {"interval_s": 1.0}},
    )
    with ExitStack() as stack:
        lab = stack.enter_context(LabCluster(plan))
        cluster = stack.enter_context(Snooze(lab.url))
        lab.wait_ready()
        redfish = stack.enter_context(lab_emulator(tmp_path, lab.hosts))
        boots = {host.name: host.pid for host in lab.hosts}
        woken_by: dict[str, str] = {}
        for number, driver in enumerate(("IPMI", "WOL", "REDFISH"), 1):
            sleeper = until(lambda: [h for h in lab.hosts if h.is_suspended], "one to sleep")[0]
            until(partial(is_asleep, cluster, sleeper.name), "the cluster to see it")
            assert sleeper.is_hibernated == to_disk
            time.sleep(NAP_S)
            options = {
                "WOL": f"{sleeper.mac} -i {lab.net.subnet}.255",
                "REDFISH": f"{redfish.options()} --system {sleeper.uuid}",
            }
            if driver in options:
                own = f'driver = "{driver}"\noptions = "{options[driver]}"\n'
                overrides.write_text(f"[hosts.{sleeper.name}]\n{own}")
            xml = (lab.templates / f"guest{number}.xml").read_text()
            task = cluster.submit([VmRequest(libvirt_xml=xml, host=sleeper.name)])
            cluster.wait(task, check=True)
            assert wait_for_beat(lab.images / f"guest{number}.raw").count >= 1
            assert not sleeper.is_suspended
            assert sleeper.pid == boots[sleeper.name], "it has not booted anew"
            woken_by[driver] = sleeper.name
            assert lab.wake.heard == [name for by, name in woken_by.items() if by == "WOL"]
            ordered = f"{sleeper.name} On" in redfish.log.read_text()
            assert ordered == (driver == "REDFISH")
            cluster.wait(cluster.destroy(f"guest{number}"), check=True)


def is_asleep(cluster: Snooze, name: str) -> bool:
    return cluster.host(name).status == "asleep"


def until(condition: Callable[[], T | None], what: str) -> T:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            if answer := condition():
                return answer
        except SnoozeError:
            pass
        assert time.monotonic() < deadline_s, what
        time.sleep(0.1)

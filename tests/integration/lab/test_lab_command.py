"""``snooze lab``, as people use it: a cluster of real hosts, and what happens to it."""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snooze.client.sdk import Snooze, VmRequest, VmState
from snooze.common.api import PolicyRequest
from snooze.common.errors import SnoozeError
from snooze.common.vms import FailureAction
from snooze.lab.bmc import PASSWORD, USER
from snooze.lab.control import ask
from snooze.lab.daemons import child_environment
from snooze.lab.guests import Beat, read_beat, read_load, wait_for_beat
from snooze.lab.owner import STATE
from snooze.lab.processes import marked

PATIENCE_S = 90.0
NAME = f"test-{os.getpid()}"


def snooze(*words: str, url: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snooze.client.command", *words],
        capture_output=True,
        text=True,
        env={**child_environment(), "SNOOZE_URL": url, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_S * 2,
        check=False,
    )


def until(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(SnoozeError):
            if condition():
                return
        assert time.monotonic() < deadline_s, what
        time.sleep(0.2)


class Lab:
    """A lab by its command, and the client of its cluster."""

    def __init__(self, name: str, *options: str) -> None:
        self.name = name
        up = snooze("lab", "up", "--name", name, *options)
        assert up.returncode == 0, up.stderr
        self.said, self.progress = up.stdout, up.stderr
        self.pid = int((STATE / name / "pid").read_text())
        self.view = self.status()
        self.folder = Path(self.view["folder"])
        self.images = Path(self.view["images"])
        self.url: str = self.view["url"]

    def order(self, *words: str) -> subprocess.CompletedProcess[str]:
        return snooze("lab", *words, "--name", self.name)

    def status(self) -> dict[str, Any]:
        done = self.order("status", "-o", "json")
        assert done.returncode == 0, done.stderr
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def machine(self, name: str) -> dict[str, Any]:
        """As ``status`` tells it, asked without a process of its own: tests ask often."""
        status = ask(STATE / self.name / "socket", {"order": "status"})
        return next(machine for machine in status["machines"] if machine["name"] == name)


def left_of(name: str, folder: Path) -> list[str]:
    """What is on this machine of a lab that had this folder."""
    tag = "-".join(folder.name.split("-")[2:4])
    left = [path.name for path in Path("/run/netns").iterdir() if tag in path.name]
    left += [str(path) for path in (folder, STATE / name) if path.exists()]
    return left + [describe(pid) for pid, owner in marked().items() if owner == tag]


def describe(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/status").read_text() + Path(f"/proc/{pid}/cmdline").read_text()
    return f"{pid}, just gone"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab(NAME, "--hosts", "3", "--zookeepers", "1", "--linux")
    yield lab
    down = lab.order("down")
    assert down.returncode == 0, down.stderr
    assert left_of(NAME, lab.folder) == []
    gateway = f"{lab.view['machines'][0]['address'].rpartition('.')[0]}.1/"
    assert gateway not in subprocess.check_output(["ip", "-o", "addr"], text=True)


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[Snooze]:
    with Snooze(lab.url) as cluster:
        yield cluster


def ipmitool(machine: dict[str, Any], *words: str) -> str:
    login = ["-I", "lanplus", "-C", "3", "-H", machine["bmc"], "-U", USER, "-P", PASSWORD]
    done = subprocess.run(
        ["ipmitool", *login, *words], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_it_says_what_to_do(lab: Lab) -> None:
    assert "all hosts have joined" in lab.progress
    assert f"export SNOOZE_URL={lab.url}" in lab.said
    again = snooze("lab", "up", "--name", lab.name)
    assert again.returncode != 0
    assert "up already" in again.stderr
    wrong = lab.order("power", "off", "h9")
    assert wrong.returncode == 2
    assert "there are: h1, h2, h3, gm1" in wrong.stderr
    nowhere = snooze("lab", "status", "--name", "nowhere")
    assert "snooze lab up" in nowhere.stderr
    table = lab.order("status").stdout
    assert "MACHINE" in table
    assert table.count(" ready") == 6
    assert "takes a terminal" in lab.order("console", "guest1").stderr


def test_a_newcomer_submits_a_guest_and_moves_it(lab: Lab, cluster: Snooze) -> None:
    done = snooze("submit", f"{STATE / NAME}/templates/guest1.xml", "--host", "h1", url=lab.url)
    assert done.returncode == 0, done.stderr
    disk = lab.images / "guest1.raw"
    beats = [wait_for_beat(disk)]
    assert lab.machine("h1")["guests"] == ["guest1"]
    task = cluster.migrate("guest1", "h2")
    cluster.wait(task, on_progress=lambda _: note(beats, read_beat(disk)), check=True)
    for _ in range(2):
        note(beats, wait_for_beat(disk, beats[-1].count))
    assert len({beat.boot for beat in beats}) == 1, "it never booted anew"
    assert lab.machine("h2")["guests"] == ["guest1"]
    assert lab.machine("h1")["guests"] == []
    ask(STATE / lab.name / "socket", {"order": "burn", "guests": ["guest1"], "share": 0.5})
    assert read_load(disk) == 0.5
    wrong = lab.order("burn", "guest1", "../guest2", "--share", "0")
    assert "there are: guest1, guest2" in wrong.stderr
    assert read_load(disk) == 0.5, "nothing was changed"
    ask(STATE / lab.name / "socket", {"order": "burn", "guests": ["guest1"], "share": 0.0})


def note(beats: list[Beat], beat: Beat | None) -> None:
    if beat is not None and beat != beats[-1]:
        beats.append(beat)


def test_its_console_is_the_guests(lab: Lab) -> None:
    """In a terminal of its own, as a person sees it."""
    pid, terminal = pty.fork()
    if not pid:
        command = ["lab", "console", "guest1", "--name", lab.name]
        os.execve(
            sys.executable,
            [sys.executable, "-m", "snooze.client.command", *command],
            child_environment(),
        )
    seen = b""
    deadline_s = time.monotonic() + PATIENCE_S
    with contextlib.suppress(OSError):  # it ended
        while b"boot " not in seen and time.monotonic() < deadline_s:
            seen += os.read(terminal, 4096)
    os.write(terminal, b"\x1d")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(terminal)
    assert b"guest1 runs on h2" in seen
    assert b"beat 00" in seen


def test_a_linux_guest_has_its_address_its_agent_and_a_power_button(
    lab: Lab, cluster: Snooze
) -> None:
    xml = (STATE / NAME / "templates" / "linux1.xml").read_text()
    cluster.wait(cluster.submit([VmRequest(libvirt_xml=xml, host="h2")]), check=True)
    address = cluster.vm("linux1").ip_address
    assert address.startswith(lab.machine("h2")["address"].rpartition(".")[0] + ".")
    until(lambda: answers_ping(address), "it answers at the address that Snooze leased")
    where = ask(STATE / NAME / "socket", {"order": "where", "guest": "linux1"})
    assert where["host"] == "h2"

    def agent(command: str) -> Any:
        order = json.dumps({"execute": command})
        virsh = ["virsh", "-c", where["uri"], "qemu-agent-command", "linux1", order]
        said = subprocess.run(virsh, capture_output=True, text=True, check=False).stdout
        return json.loads(said)["return"] if said.strip() else None

    until(lambda: agent("guest-info"), "its agent answers")
    cards = agent("guest-network-get-interfaces")
    told = [ip["ip-address"] for card in cards for ip in card.get("ip-addresses", ())]
    assert address in told
    known = {one["name"]: one["enabled"] for one in agent("guest-info")["supported_commands"]}
    assert not known["guest-shutdown"], "so nothing but its power button switches it off"
    done = snooze("shutdown", "linux1", url=lab.url)
    assert done.returncode == 0, done.stderr
    until(lambda: lab.machine("h2")["guests"] == ["guest1"], "it goes down by itself")
    until(lambda: cluster.vm("linux1").state is VmState.STOPPED, "the cluster sees that")


def answers_ping(address: str) -> bool:
    ping = ["ping", "-q", "-c", "1", "-W", "2", address]
    return subprocess.run(ping, capture_output=True, check=False).returncode == 0


def test_ipmi_switches_a_host_off_and_back_into_the_cluster(lab: Lab, cluster: Snooze) -> None:
    h3 = lab.machine("h3")
    ipmitool(h3, "chassis", "power", "off")
    assert lab.machine("h3")["power"] == "off"
    until(lambda: cluster.host("h3").status != "active", "the cluster sees that it is gone")
    ipmitool(h3, "chassis", "power", "on")
    until(lambda: cluster.host("h3").status == "active", "it is back")
    until(lambda: lab.machine("h3")["service"] == "ready", "it is back")
    disk = lab.images / "guest2.raw"
    xml = (STATE / NAME / "templates" / "guest2.xml").read_text()
    request = VmRequest(libvirt_xml=xml, host="h3")
    cluster.wait(cluster.submit([request]), check=True)
    assert wait_for_beat(disk).count >= 1, "and takes work"


def test_a_magic_packet_wakes_a_host(lab: Lab, cluster: Snooze) -> None:
    lab.order("power", "soft", "h1")
    until(lambda: lab.machine("h1")["power"] == "off", "it goes down by itself")
    mac = bytes.fromhex(lab.machine("h1")["mac"].replace(":", ""))
    subnet = lab.machine("h1")["address"].rpartition(".")[0]
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.sendto(b"\xff" * 6 + mac * 16, (f"{subnet}.255", 9))
    until(lambda: lab.machine("h1")["power"] == "on", "the call is heard")
    until(lambda: cluster.host("h1").status == "active", "it joins by itself")


def test_a_cut_host_is_away_until_it_is_plugged_in(lab: Lab, cluster: Snooze) -> None:
    """With fencing paused, so that its guests can be seen to run on for as long as it takes."""
    assert snooze("autonomy", "pause", "--kind", "fence", url=lab.url).returncode == 0
    xml = (STATE / NAME / "templates" / "guest3.xml").read_text()
    leave = PolicyRequest(on_host_failure=FailureAction.LEAVE)
    request = VmRequest(libvirt_xml=xml, host="h2", policy=leave)
    cluster.wait(cluster.submit([request]), check=True)
    disk = lab.images / "guest3.raw"
    beat = wait_for_beat(disk)
    lab.order("cut", "h2")
    h2 = lab.machine("h2")
    assert (h2["power"], h2["cable"], h2["service"]) == ("on", "cut", "silent")
    until(lambda: cluster.host("h2").status != "active", "the cluster sees that it is away")
    assert "guest3" in lab.machine("h2")["guests"], "what runs there runs on"
    now = read_beat(disk)
    assert now is not None
    assert wait_for_beat(disk, now.count).boot == beat.boot
    lab.order("plug", "h2")
    until(lambda: cluster.host("h2").status == "active", "it is back")
    until(lambda: cluster.vm("guest3").state is VmState.RUNNING, "so is its guest")
    assert wait_for_beat(disk, now.count).boot == beat.boot
    assert snooze("autonomy", "resume", "--kind", "fence", url=lab.url).returncode == 0


def test_what_a_killed_owner_left_is_taken_down() -> None:
    """Killed in the middle of its work: all machines are on, and their daemons start."""
    name = f"{NAME}-b"
    lab = ["lab", "up", "--name", name, "--hosts", "1", "--managers", "1", "--zookeepers", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "snooze.client.command", *lab],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=child_environment(),
        text=True,
    ) as up:
        assert up.stderr is not None
        for line in up.stderr:
            if "ZooKeeper serves" in line:
                break
        folder = (STATE / name / "templates").readlink().parent
        pid = int((STATE / name / "pid").read_text())
        assert len(left_of(name, folder)) > 5
        os.kill(pid, signal.SIGKILL)
    until(lambda: "has died" in snooze("lab", "status", "--name", name).stderr, "it says so")
    down = snooze("lab", "down", "--name", name)
    assert down.returncode == 0, down.stderr
    assert left_of(name, folder) == []

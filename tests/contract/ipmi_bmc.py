"""A machine that is on while there is a file, and its BMC: OpenIPMI's ``ipmi_sim``."""

import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MOST_WAITING_S = 30.0

CHASSIS = """#!/bin/sh
# ipmi_sim calls: HOST get power | HOST set power|shutdown|reset VALUE
cd "$(dirname "$0")" || exit 1
[ -e slow ] && sleep "$(cat slow)"
operation=$2
shift 2
case $operation in
get) if [ -e on ]; then echo power:1; else echo power:0; fi ;;
set)
    echo "$*" >>orders
    case "$*" in
    "power 1" | reset*) touch on ;;
    "power 0" | shutdown*) rm -f on ;;
    esac ;;
esac
"""


class FileMachine:
    """A machine that is on while there is a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_on(self) -> bool:
        return (self.folder / "on").exists()

    def plug(self, is_on: bool) -> None:
        if is_on:
            (self.folder / "on").touch()
        else:
            (self.folder / "on").unlink(missing_ok=True)

    def orders(self) -> int:
        return len(self.ordered())

    def ordered(self) -> list[str]:
        """What was set, in order: ``power 1``, ``power 0``, ``shutdown 1``."""
        orders = self.folder / "orders"
        return orders.read_text().splitlines() if orders.exists() else []

    def script(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)


@contextmanager
def running(command: list[str], log: Path, env: dict[str, str] | None = None) -> Generator[int]:
    """A process, ended by its id; frozen ones too."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env
        )
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


LAN_CONF = """name "h1"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456781abcdef
  endlan
  chassis_control "{chassis} h1"
  user 1 true "" "test" user 10 none md2 md5 straight
  user 2 true "admin" "geheim" admin 10 none md2 md5 straight
  user 3 true "viewer" "geheim" user 10 none md2 md5 straight
"""

BMC_EMU = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""


@dataclass
class IpmiSim:
    """A running ``ipmi_sim`` and its machine."""

    machine: FileMachine
    port: int
    pid: int

    def options(self, user: str = "admin", password: str = "geheim") -> str:
        return f"-I lanplus -H 127.0.0.1 -p {self.port} -U {user} -P {password}"


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def ipmi_sim(folder: Path) -> Generator[IpmiSim]:
    machine = FileMachine(folder)
    chassis = machine.script("chassis", CHASSIS)
    port = free_udp_port()
    (folder / "lan.conf").write_text(LAN_CONF.format(port=port, chassis=chassis))
    (folder / "bmc.emu").write_text(BMC_EMU)
    (folder / "state").mkdir()
    command = ["ipmi_sim", "-n", "-c", str(folder / "lan.conf"), "-f", str(folder / "bmc.emu")]
    with running([*command, "-s", str(folder / "state")], folder / "log") as pid:
        wait_for_udp(port)
        yield IpmiSim(machine, port, pid)


def wait_for_udp(port: int) -> None:
    """Until something is bound to the port, as the kernel tells."""
    wanted = f"0100007F:{port:04X}"
    deadline_s = time.monotonic() + MOST_WAITING_S
    while wanted not in Path("/proc/net/udp").read_text():
        assert time.monotonic() < deadline_s, "nobody listens"
        time.sleep(0.02)

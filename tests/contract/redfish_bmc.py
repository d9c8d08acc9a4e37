"""BMCs that speak Redfish: sushy-tools' emulator, on libvirt's test driver or on hosts of a lab."""

import base64
import http.client
import json
import socket
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import bcrypt

from snooze.lab.hosts import LabHost
from snooze.lab.ports import take_port
from snooze.lab.processes import wait_for
from tests.contract.ipmi_bmc import running

# The test driver's machines last as long as a connection does, and the emulator opens one a call.
EMULATOR = """
import sys
import libvirt
kept = libvirt.open("test:///default")
from sushy_tools.emulator.main import main
sys.exit(main())
"""

LAB_EMULATOR = """
import sys
from pathlib import Path
from snooze.lab.control import ask
from sushy_tools.emulator.main import main
from sushy_tools.emulator.resources.systems.fakedriver import FakeDriver

path = Path(sys.argv.pop(1))
SWITCHES = {
    "On": ("power", "1"),
    "ForceOn": ("power", "1"),
    "ForceOff": ("power", "0"),
    "GracefulShutdown": ("shutdown", "1"),
}

def chassis(host, *command):
    return ask(path, {"host": host, "command": command})

def get_power_state(self, identity):
    power = chassis(self.name(identity), "get", "power")["lines"]
    return "On" if power == ["power:1"] else "Off"

def set_power_state(self, identity, state):
    print(self.name(identity), state, flush=True)
    chassis(self.name(identity), "set", *SWITCHES[state])

FakeDriver.get_power_state = get_power_state
FakeDriver.set_power_state = set_power_state
sys.exit(main())
"""


@dataclass
class Emulator:
    """A running ``sushy-emulator``, asked by a client of its own."""

    address: str
    port: int
    pid: int
    log: Path
    system: str = ""

    def options(self, password: str = "geheim") -> str:
        return f"http://{self.address}:{self.port} --insecure -U admin -P {password}"

    def ask(self, method: str, path: str, body: object = None) -> dict[str, object]:
        connection = http.client.HTTPConnection(self.address, self.port, timeout=20)
        pair = base64.b64encode(b"admin:geheim").decode()
        headers = {"Authorization": f"Basic {pair}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            reply = connection.getresponse()
            text = reply.read()
            assert reply.status < 300, text
            found: dict[str, object] = json.loads(text) if text else {}
            return found
        finally:
            connection.close()

    def is_on(self) -> bool:
        return self.ask("GET", self.system)["PowerState"] == "On"

    def plug(self, is_on: bool) -> None:
        kind = "ForceOn" if is_on else "ForceOff"
        self.ask("POST", f"{self.system}/Actions/ComputerSystem.Reset", {"ResetType": kind})


@contextmanager
def sushy_emulator(
    folder: Path, program: list[str] | None = None, config: str = "", address: str = "127.0.0.1"
) -> Generator[Emulator]:
    secret = bcrypt.hashpw(b"geheim", bcrypt.gensalt(4)).decode()
    (folder / "users").write_text(f"admin:{secret}\n")
    (folder / "emulator.conf").write_text(
        f"SUSHY_EMULATOR_AUTH_FILE = {str(folder / 'users')!r}\n"
        f"SUSHY_EMULATOR_STATE_DIR = {str(folder)!r}\n"
        f"SUSHY_EMULATOR_LIBVIRT_URI = 'test:///default'\n{config}"
    )
    port = take_port()
    command = program or [sys.executable, "-P", "-c", EMULATOR]
    command += ["--config", str(folder / "emulator.conf"), "-i", address, "-p", str(port)]
    log = folder / "log"
    with running(command, log) as pid:
        wait_for(lambda: takes_calls(address, port), f"the emulator; see {log}")
        yield Emulator(address, port, pid, log)


@contextmanager
def lab_emulator(folder: Path, hosts: Sequence[LabHost]) -> Generator[Emulator]:
    """One whose systems are hosts of a lab, by their names; on this machine's side of the lab."""
    net = hosts[0].net
    systems = [
        {"uuid": host.uuid, "name": host.name, "power_state": "On", "nics": [{"mac": host.mac}]}
        for host in hosts
    ]
    program = [sys.executable, "-P", "-c", LAB_EMULATOR, str(net.folder / "chassis"), "--fake"]
    config = f"SUSHY_EMULATOR_FAKE_SYSTEMS = {systems!r}\n"
    with sushy_emulator(folder, program, config, f"{net.subnet}.1") as emulator:
        yield emulator


def takes_calls(address: str, port: int) -> bool:
    with suppress(OSError):
        socket.create_connection((address, port), 1).close()
        return True
    return False

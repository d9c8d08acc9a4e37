"""BMCs for lab hosts: real IPMI (ipmi_sim of Debian's openipmi) that switches them on and off.

Each BMC has an address, a cable and a namespace of its own, so that its host can be silent while it
answers, it can be silent while its host runs, and both can lose power together (``with_host``).
What it tells of the power is what is: it asks the lab each time. A host that is suspended to RAM
has power, and *power on* wakes it, as IPMI 2.0 says (28.2: *off* is S4, S5 or no mains).
ipmi_sim does not know the optional Get ACPI Power State, which would tell S3 from S0.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from snooze.common.errors import InvalidRequest, PreconditionError
from snooze.lab.control import Answer, ControlServer
from snooze.lab.hosts import LabHost, LabNet
from snooze.lab.processes import PREFIX, marked_environment, run, wait_for
from snooze.lab.sleeping import CHASSIS, systemctl_script

USER: Final = "admin"
PASSWORD: Final = "labpass"
_OFFSET: Final = 110
_FALL_S: Final = 0.05
"""From a host's order to suspend it until it stands still."""
MAX_HOSTS: Final = 80
"""With higher numbers than that, addresses of hosts and of BMCs would run into others."""

_LAN_CONF: Final = """\
name "{name}"
set_working_mc 0x20
  startlan 1
    addr {address} 623
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid {guid}
  endlan
  chassis_control "{chassis}"
  user 1 true "" "{secret}" user 10 none md2 md5 straight
  user 2 true "{user}" "{password}" admin 10 none md2 md5 straight
"""
_EMULATION: Final = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""


def require_ipmi() -> None:
    """Raises: PreconditionError, naming what to install, when there is no ipmi_sim."""
    if shutil.which("ipmi_sim") is None:
        raise PreconditionError(
            "cannot run BMCs: apt-get install --no-install-recommends openipmi ipmitool"
        )


class Chassis:
    """Where the BMCs of a lab have their commands carried out."""

    def __init__(self, net: LabNet) -> None:
        self._net = net
        self.socket = net.folder / "chassis"
        self.server = ControlServer(self.socket, self._handle)

    def close(self) -> None:
        """Carry out no more."""
        self.server.close()

    def _handle(self, request: Answer) -> Mapping[str, object]:
        host = self._net.hosts[str(request["host"])]
        kind, *words = (str(word) for word in request["command"])
        if kind == "get":
            return {"lines": [self._get(host, word) for word in words]}
        if kind == "set":
            for name, value in zip(words[::2], words[1::2], strict=True):
                self._set(host, name, value)
        elif kind != "check":
            raise InvalidRequest(f"no {kind!r}")
        return {}

    @staticmethod
    def _get(host: LabHost, name: str) -> str:
        match name:
            case "power":
                return f"power:{int(host.draws_power)}"
            case "boot":
                return "boot:default"
            case _:
                raise InvalidRequest(f"no {name!r} to get")

    @staticmethod
    def _set(host: LabHost, name: str, value: str) -> None:
        match name, value:
            case "power", "1":
                host.power_on()  # which wakes one that is suspended
            case "power", "0":
                host.lose_power()
            case "reset", _:
                host.lose_power()
                host.power_on()
            case "shutdown", _:
                host.shut_down()
            case "suspend" | "hibernate", _:  # asked from inside, which has to hear that it is done
                to_disk = {"to_disk": name == "hibernate"}
                falling = threading.Timer(_FALL_S, host.suspend, kwargs=to_disk)
                falling.daemon = True
                falling.start()
            case (("boot" | "identify"), _):
                pass
            case _:
                raise InvalidRequest(f"no {name!r} to set")


class LabBmc:
    """The BMC of one host; ``start`` gives it power.

    Attributes:
        address: on the lab's switch, UDP port 623.
        plugged: whether its cable is in.
    """

    def __init__(self, host: LabHost, chassis: Chassis) -> None:
        if host.number > MAX_HOSTS:
            raise PreconditionError(f"only the first {MAX_HOSTS} hosts of a lab can have a BMC")
        self.host = host
        self.address = f"{host.net.subnet}.{_OFFSET + host.number}"
        self.plugged = True
        self._net = host.net
        self._folder = host.net.folder / f"bmc-{host.name}"
        self._namespace = f"{PREFIX}{host.net.tag}-bmc-{host.name}"
        self._cable = f"bmc{host.number}"
        self._process: subprocess.Popen[bytes] | None = None
        self._write_settings(chassis)

    @property
    def options(self) -> str:
        """By which IPMI clients reach it, as ipmitool has them and Snooze's settings too."""
        return f"-I lanplus -C 3 -H {self.address} -U {USER} -P {PASSWORD}"

    @property
    def is_on(self) -> bool:
        """Whether it has power."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Give it power; it answers at once. On already: nothing happens.

        Raises:
            RuntimeError: it ended; with what it said.
        """
        if self.is_on:
            return
        self.kill()
        switch, name = self._net.name, self._namespace
        run("ip", "netns", "add", name)
        cable = ("ip", "-n", switch, "link", "add", self._cable, "type", "veth")
        # the same card every time: its clients keep what they know of its address
        mac = f"52:54:00:5d:00:{self.host.number:02x}"
        run(*cable, "peer", "name", "eth0", "address", mac, "netns", name)
        state = "up" if self.plugged else "down"
        run("ip", "-n", switch, "link", "set", self._cable, "master", "sw0", state)
        run("ip", "-n", name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        # not `ip netns exec`: in mounts of its own the namespaces of hosts could not be made
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                (
                    *("nsenter", f"--net=/run/netns/{name}", "--", "ipmi_sim", "-n"),
                    *("-c", str(self._folder / "lan.conf"), "-f", str(self._folder / "bmc.emu")),
                    *("-s", str(self._folder / "state")),
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=marked_environment(self._net.tag),
                start_new_session=True,
            )
        wait_for(self._listens, f"the BMC of {self.host.name}")

    def kill(self) -> None:
        """Take its power away: it is silent, and its host stays as it is. Off: nothing happens."""
        run("ip", "-n", self._net.name, "link", "del", self._cable, check=False)
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        run("ip", "netns", "del", self._namespace, check=False)

    def cut(self) -> None:
        """Pull its cable: it is silent."""
        self._set_cable(plugged=False)

    def plug(self) -> None:
        """Put its cable back."""
        self._set_cable(plugged=True)

    def _set_cable(self, *, plugged: bool) -> None:
        self.plugged = plugged
        if self.is_on:
            state = "up" if plugged else "down"
            run("ip", "-n", self._net.name, "link", "set", self._cable, state)

    def _listens(self) -> bool:
        process = self._process
        assert process is not None
        if process.poll() is not None:
            raise RuntimeError(f"ipmi_sim: {(self._folder / 'log').read_text(errors='replace')}")
        # UDP port 623 in hexadecimal, in its own network
        return ":026F " in Path(f"/proc/{process.pid}/net/udp").read_text()

    def _write_settings(self, chassis: Chassis) -> None:
        (self._folder / "state").mkdir(parents=True)
        command = f"{sys.executable} -I -S {CHASSIS} {chassis.socket} {self.host.name}"
        (self._folder / "lan.conf").write_text(
            _LAN_CONF.format(
                name=self.host.name,
                address=self.address,
                guid=self.host.uuid.replace("-", ""),
                chassis=command,
                user=USER,
                password=PASSWORD,
                secret=self.host.uuid[:16],  # of the account without a name, which nobody uses
            )
        )
        (self._folder / "bmc.emu").write_text(_EMULATION)


class BmcRack:
    """The BMCs of the hosts of a lab, with power; a context manager, or call ``close``."""

    def __init__(self, net: LabNet) -> None:
        require_ipmi()
        self.chassis = Chassis(net)
        self.bmcs: dict[str, LabBmc] = {}

    def add(self, host: LabHost) -> LabBmc:
        """A BMC for one more host, with power; and what the host's system needs to suspend it."""
        systemctl = host.folder / "bin" / "systemctl"
        systemctl.write_text(systemctl_script(self.chassis.socket, host.name))
        systemctl.chmod(0o755)
        bmc = self.bmcs[host.name] = LabBmc(host, self.chassis)
        bmc.start()
        return bmc

    def lose_power(self, name: str, *, with_host: bool) -> None:
        """Power fails: of the host, and of its BMC with it or not, as in machines with two feeds.

        Both cables are cut before anything dies.
        """
        bmc = self.bmcs[name]
        bmc.host.kill()
        if with_host:
            bmc.kill()
        bmc.host.power_off()

    def restore_power(self, name: str) -> None:
        """The BMC is fed again; its host stays off until it is switched on."""
        self.bmcs[name].start()

    def close(self) -> None:
        """Take all down; may be called again. Call it before the lab's ``close``."""
        for bmc in self.bmcs.values():
            bmc.kill()
        self.bmcs.clear()
        self.chassis.close()

    def __enter__(self) -> "BmcRack":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

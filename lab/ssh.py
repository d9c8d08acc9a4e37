"""ssh for a lab: hosts that run an sshd of their own, and ``qemu+ssh`` to them.

Keys are made when they are needed and lie in the lab's folder. Neither end looks at anybody's
``~/.ssh``: libvirt has no parameter for ``known_hosts``, but it has one for the command to run, and
that is a script of one line which names a settings file.
"""

import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import quote

from snooze.lab.hosts import LabHost

_SERVER: Final = """\
ListenAddress {address}
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
"""
# The folder sshd locks itself into; and an account of root's that is not locked, as it is where
# people work by sudo: sshd would let nobody in. Both are the host's own.
_PREPARE: Final = """\
umask 077
mkdir -p /run/sshd
[ -e /run/shadow ] && exit
sed 's/^root:[^:]*:/root:*:/' /etc/shadow >/run/shadow
mount --bind /run/shadow /etc/shadow
"""
_CLIENT: Final = """\
UserKnownHostsFile {known}
GlobalKnownHostsFile /dev/null
IdentitiesOnly yes
IdentityAgent none
UpdateHostKeys no
"""


class LabSsh:
    """Keys of hosts and of two clients, of which the hosts know one.

    Args:
        folder: where they lie; it is made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, mode=0o700)
        self.folder = folder
        for name in ("host", "client", "stranger"):
            command = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
            subprocess.run(command, check=True, capture_output=True, timeout=30)
        shutil.copy(folder / "client.pub", folder / "authorized_keys")
        (folder / "no_hosts").touch()
        for name in ("known_hosts", "no_hosts"):
            (folder / f"{name}.conf").write_text(_CLIENT.format(known=folder / name))
            script = folder / f"ssh-{name}"
            conf = shlex.quote(f"{folder / name}.conf")
            script.write_text(f'#!/bin/sh\nexec ssh -F {conf} "$@"\n')
            script.chmod(0o755)

    def start(self, host: LabHost) -> None:
        """Start the host's sshd, which dies with the host; returns when it listens.

        Raises:
            RuntimeError: if it does not; with what it said.
        """
        own = self.folder / host.name
        conf, log = own.with_suffix(".sshd_config"), own.with_suffix(".log")
        conf.write_text(_SERVER.format(address=host.address, folder=self.folder))
        self._make_known(host)
        host.exec(("bash", "-c", _PREPARE))
        # it goes into the background by itself, once it listens
        if host.exec(("/usr/sbin/sshd", "-f", str(conf), "-E", str(log))).returncode:
            raise RuntimeError(f"sshd of {host.name}: {log.read_text(errors='replace')[-2000:]}")

    def stop(self, host: LabHost) -> None:
        """Kill the host's sshd and its sessions. Stopped already: nothing happens."""
        self._signal(host, signal.SIGKILL)

    def freeze(self, host: LabHost) -> None:
        """Let the host's sshd accept connections and say nothing."""
        self._signal(host, signal.SIGSTOP)

    def thaw(self, host: LabHost) -> None:
        """Let it speak again."""
        self._signal(host, signal.SIGCONT)

    def uri(self, host: LabHost, *, key: str = "client", known: bool = True) -> str:
        """Of the host's libvirt.

        Args:
            key: ``client``, or ``stranger``, whom no host lets in.
            known: whether the client knows the host's own key.
        """
        script = self.folder / ("ssh-known_hosts" if known else "ssh-no_hosts")
        parameters = f"command={quote(str(script))}&keyfile={quote(str(self.folder / key))}"
        return f"qemu+ssh://root@{host.address}/system?{parameters}&proxy=native"

    def _make_known(self, host: LabHost) -> None:
        line = f"{host.address} {(self.folder / 'host.pub').read_text()}"
        known = self.folder / "known_hosts"
        if not known.exists() or line not in known.read_text():
            with known.open("a") as file:
                file.write(line)

    def _signal(self, host: LabHost, number: signal.Signals) -> None:
        host.exec(("pkill", f"-{number.value}", "-x", "sshd"))  # in its own namespace

"""A plain libvirtd on a loopback port, for libvirt's test driver over the wire.

``test+tcp://127.0.0.1:PORT/default`` keeps one shared state per daemon: it is a host that outlives
the clients that look at it. The daemon has a mount namespace of its own, so that it shares no file
with the machine's libvirt or with another of its kind. One that outlives a killed test is swept by
the next lab. Root is needed.
"""

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from types import TracebackType
from typing import Final

from snooze.lab.processes import marked_environment, new_folder

_START_S: Final = 20.0

_CONF: Final = """\
listen_tls = 0
listen_tcp = 1
listen_addr = "127.0.0.1"
tcp_port = "{port}"
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "{uuid}"
log_outputs = "3:file:{folder}/libvirtd.log"
"""

_SCRIPT: Final = """\
set -e
mount --bind "$1/run" /run
mount --bind "$1/etc" /etc/libvirt
for kind in lib cache log; do mount --bind "$1/$kind" "/var/$kind/libvirt"; done
exec libvirtd --listen --config "$1/libvirtd.conf" --pid-file "$1/libvirtd.pid"
"""


class LabLibvirtd:
    """A libvirtd of its own; a context manager, or call ``start`` and ``close``."""

    def __init__(self) -> None:
        self._tag, self.folder = new_folder()
        atexit.register(self.close)
        for name in ("run", "etc", "lib", "cache", "log"):
            (self.folder / name).mkdir()
        self.port = _free_port()
        self.uuid = str(uuid.uuid4())
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def test_uri(self) -> str:
        """Of the test driver in this daemon."""
        return f"test+tcp://127.0.0.1:{self.port}/default"

    @property
    def pid(self) -> int:
        """Of the daemon; 0 when it does not run."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start, and block until it answers on its port. Running: nothing happens.

        Raises:
            RuntimeError: if it ends; with what it said.
            TimeoutError: if it does not answer in time.
        """
        if self._process is not None:
            return
        conf = _CONF.format(port=self.port, uuid=self.uuid, folder=self.folder)
        (self.folder / "libvirtd.conf").write_text(conf)
        script = ("bash", "-c", _SCRIPT, "libvirtd", str(self.folder))
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                ("unshare", "--mount", "--propagation", "private", *script),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=marked_environment(self._tag),
                start_new_session=True,
            )
        deadline_s = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None:
                said = (self.folder / "output").read_text(errors="replace")[-2000:]
                self._process = None
                raise RuntimeError(f"libvirtd ended: {said}")
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"libvirtd did not answer on port {self.port}")
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: ``SIGSTOP`` makes it silent, ``SIGCONT`` lets it speak again."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Let it die at once, and its state with it. Dead already: nothing happens."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Take it down and remove its files; may be called again."""
        atexit.unregister(self.close)
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "LabLibvirtd":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

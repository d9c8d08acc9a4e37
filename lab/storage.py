"""Disks that all hosts of a lab share over the network: NBD, served by qemu-nbd on the switch.

An export takes no lock, as most storage for clusters takes none: only then could a guest run twice,
and show it. The file below it tells what was written, whichever host the guest runs on.
"""

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from snooze.lab.hosts import LabNet
from snooze.lab.processes import marked_environment, wait_for

_CLIENTS: Final = 8
_FIRST_PORT: Final = 10_809


class NbdExport:
    """One disk; a context manager, or call ``close``, which leaves the file."""

    def __init__(self, net: LabNet, disk: Path, number: int = 0) -> None:
        """Serve a raw disk on port 10809 + ``number`` of the switch's address.

        Raises:
            RuntimeError: qemu-nbd ended; with what it said.
        """
        self.address, self.port = net.switch_address, _FIRST_PORT + number
        self._folder = net.folder / f"nbd-{number}"
        self._folder.mkdir(exist_ok=True)
        with (self._folder / "log").open("wb") as log:
            self._process = net.popen(
                (
                    *("qemu-nbd", "--persistent", f"--shared={_CLIENTS}", "--format=raw"),
                    *(f"--bind={self.address}", f"--port={self.port}", "--cache=writeback"),
                    str(disk),
                ),
                log.fileno(),
                marked_environment(net.tag),
            )
        wait_for(self._listens, f"the export of {disk}")

    def disk_xml(self) -> str:
        """Of a guest's disk, for a template."""
        return (
            "<disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/>"
            f"<source protocol='nbd'><host name='{self.address}' port='{self.port}'/></source>"
            "<target dev='hda' bus='ide'/></disk>"
        )

    def close(self) -> None:
        """Serve no more; may be called again."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> "NbdExport":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listens(self) -> bool:
        if self._process.poll() is not None:
            said = (self._folder / "log").read_text(errors="replace").strip()
            raise RuntimeError(f"qemu-nbd: {said}")
        listening = f":{self.port:04X} 00000000:0000 0A"  # address and port, any peer, LISTEN
        return listening in Path(f"/proc/{self._process.pid}/net/tcp").read_text()

"""The process that owns a lab: ``snooze lab up`` starts it, the other commands speak to it.

It keeps the lab until it is told to take it down, or gets a signal. While it is there,
``/run/snooze-lab/NAME`` holds its socket, its id (``pid``) and its log. Whoever finds the folder of
an owner that is gone sweeps what it left behind.

    python -m snooze.lab.owner NAME PLAN      PLAN is JSON

writes a line for each step, then ``READY`` and the lab's ``LabView`` as JSON, then nothing more.
"""

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec

from snooze.common.errors import Conflict, InvalidRequest, PreconditionError, SnoozeError
from snooze.lab.cluster import LabCluster, LabPlan, LabView, PowerAction, Say
from snooze.lab.control import Answer, ControlServer
from snooze.lab.guests import set_load
from snooze.lab.processes import sweep

STATE: Final = Path("/run/snooze-lab")
READY: Final = "READY"


class PowerOrder(msgspec.Struct, frozen=True, tag="power", tag_field="order"):
    """Switch machines."""

    machines: tuple[str, ...]
    action: PowerAction
    with_bmc: bool = False


class CableOrder(msgspec.Struct, frozen=True, tag="cable", tag_field="order"):
    """Pull cables or put them back."""

    machines: tuple[str, ...]
    plugged: bool
    bmc: bool = False


class StatusOrder(msgspec.Struct, frozen=True, tag="status", tag_field="order"):
    """Tell all."""


class WhereOrder(msgspec.Struct, frozen=True, tag="where", tag_field="order"):
    """Where does this guest run."""

    guest: str


class BurnOrder(msgspec.Struct, frozen=True, tag="burn", tag_field="order"):
    """Have guests burn their processors for this part of each second."""

    guests: tuple[str, ...]
    share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class DownOrder(msgspec.Struct, frozen=True, tag="down", tag_field="order"):
    """Take everything down."""


LabOrder = PowerOrder | CableOrder | StatusOrder | WhereOrder | BurnOrder | DownOrder


def state_folder(name: str) -> Path:
    """Of a lab's owner."""
    return STATE / name


def owner_pid(name: str) -> int:
    """Of the process that owns a lab; 0 if none does any more."""
    try:
        pid = int((state_folder(name) / "pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return 0
    return pid if b"python" in command or b"snooze" in command else 0


def require_root() -> None:
    """Raises: PreconditionError when we are not root."""
    if os.geteuid() != 0:
        raise PreconditionError(
            "the hosts of a lab are made of namespaces, which takes root: sudo snooze lab ..."
        )


class Owner:
    """A lab, its socket, and the wish to end it."""

    def __init__(self, name: str, plan: LabPlan, say: Say) -> None:
        """Nothing is built yet: see ``run``.

        Raises:
            Conflict: there is such a lab already.
            PreconditionError: it takes root.
        """
        require_root()
        plan.check()
        if owner_pid(name):
            raise Conflict(f"lab {name!r} is up already; see `snooze lab status`")
        self._name = name
        self._plan = plan
        self._say = say
        self._folder = state_folder(name)
        self._lab: LabCluster | None = None
        self.ending = threading.Event()

    def run(self, ready: Callable[[LabView], None]) -> None:
        """Build the lab, say so to ``ready``, keep it until ``ending`` is set, take it down.

        Raises:
            SnoozeError, OSError, RuntimeError: it could not be built; nothing is left of it.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self._folder / "pid").write_text(str(os.getpid()))
        try:
            sweep()
            with LabCluster(self._plan, self._name, self._say) as lab:
                self._lab = lab
                (self._folder / "templates").symlink_to(lab.templates)
                waker = threading.Thread(target=self._end_waiting, args=(lab,), daemon=True)
                waker.start()
                server = ControlServer(self._socket(), self._handle)
                try:
                    lab.wait_ready()
                    ready(self._view(lab))
                    while not self.ending.wait(1.0):  # in bits: signals are heard in between
                        pass
                finally:
                    server.close()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _view(self, lab: LabCluster) -> LabView:
        """With a short path to the templates, for people to type."""
        return msgspec.structs.replace(lab.view(), templates=str(self._folder / "templates"))

    def end(self, *_: object) -> None:
        """Wish that it ends; a handler of signals."""
        self.ending.set()

    def _end_waiting(self, lab: LabCluster) -> None:
        self.ending.wait()
        lab.closing.set()

    def _socket(self) -> Path:
        path = self._folder / "socket"
        path.unlink(missing_ok=True)
        return path

    def _handle(self, request: Answer) -> Mapping[str, object]:
        order: LabOrder = msgspec.convert(request, LabOrder)
        lab = self._lab
        if lab is None or self.ending.is_set():
            raise Conflict("the lab is being taken down")
        match order:
            case StatusOrder():
                built: dict[str, object] = msgspec.to_builtins(self._view(lab))
                return built
            case PowerOrder(machines, action, with_bmc):
                for name in machines:
                    lab.machine(name)
                for name in machines:
                    lab.power(name, action, with_bmc=with_bmc)
            case CableOrder(machines, plugged, bmc):
                for name in machines:
                    lab.machine(name)
                for name in machines:
                    lab.cable(name, plugged=plugged, bmc=bmc)
            case WhereOrder(guest):
                host = lab.host_of(guest)
                return {"host": host.name, "uri": host.uri}
            case BurnOrder(names, share):
                for disk in [lab.disk_of(name) for name in names]:
                    set_load(disk, share)
            case DownOrder():
                self.ending.set()
        return {}


def tell_ready(view: LabView) -> None:
    """Tell whoever started us that the lab has formed, and be silent from then on."""
    sys.stdout.write(f"{READY} {msgspec.json.encode(view).decode()}\n")
    sys.stdout.flush()
    silence = os.open(os.devnull, os.O_WRONLY)  # who started us reads no more
    os.dup2(silence, sys.stdout.fileno())
    os.close(silence)


def main() -> int:
    """The background process."""
    name, encoded = sys.argv[1:]
    plan = msgspec.json.decode(encoded, type=LabPlan)

    def say(line: str) -> None:
        with contextlib.suppress(OSError):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    try:
        owner = Owner(name, plan, say)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, owner.end)
        owner.run(tell_ready)
    except (SnoozeError, OSError, RuntimeError) as error:
        say(f"failed: {error}")
        return error.exit_code if isinstance(error, SnoozeError) else 1
    return 0


def check_name(name: str) -> None:
    """Raises: InvalidRequest when a lab cannot be called so."""
    if not (name.isascii() and name.replace("-", "").isalnum() and len(name) <= 32):
        raise InvalidRequest(f"a lab cannot be called {name!r}: letters, digits and -, at most 32")


if __name__ == "__main__":
    sys.exit(main())

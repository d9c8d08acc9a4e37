"""The process that speaks IPMI, one request after the other; started by ``ipmi_workers``.

pyghmi has an event loop, threads and global state of its own, waits without an end in some of its
states, and has bugs in forgetting sessions (1.6.19: names and passwords must be ``bytes``, or the
second session to a BMC hangs). In a process of its own it can be killed. So:

1. One JSON object a line on the standard input, one on the standard output; nothing is logged.
   Passwords come this way, so that no list of processes shows them.
2. A request has ``limit_s``, watched over by a signal; a second later the kernel ends this process,
   whatever it is doing, so that a daemon that was killed leaves nothing behind that hangs. At the
   end of the input it ends.
3. Only standard chassis commands are sent, and none of pyghmi's makers' extensions is asked.
4. A session is closed after its request: BMCs have few.

Run as a plain file (``python -P FILE``): it imports nothing of ours, and so starts quickly.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Container
from typing import Any, Final

from pyghmi.exceptions import PyghmiException
from pyghmi.ipmi.command import Command

# Source: IPMI 2.0, section 28 (chassis commands): 28.2 get status, 28.3 control.
_CHASSIS: Final = 0x00
_GET_STATUS: Final = 0x01
_CONTROL: Final = 0x02
_CONTROLS: Final = {"on": 1, "off": 0, "shutdown": 5}

# Source: DCMI 1.5, 6.6.1 Get Power Reading: mode 1 is the present figures.
_GROUP_EXTENSION: Final = 0x2C
_GET_POWER_READING: Final = 0x02
_DCMI: Final = 0xDC
_MEASURES: Final = 0x40

# Source: IPMI 2.0, table 5-2 (completion codes).
_BUSY: Final = frozenset({0xC0, 0xC3})
_NOT_NOW: Final = 0xD5
_NO_RIGHTS: Final = 0xD4
_NO_ANSWER: Final = 0xFFFF  # pyghmi's own.
_ANY: Final = range(1, 0x100)

_AGAIN_S: Final = 3.0  # An order to switch off is repeated as long as the machine is on.

Request = dict[str, Any]
Reply = dict[str, Any]
Codes = Container[int]


class Failed(Exception):
    """Told instead of an answer; ``kind``: refused, unreachable, silent, nonsense or failed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class OutOfTime(BaseException):
    """The request's time is over; no ``Exception``, so that nobody catches it on the way."""


class Bmc:
    """A session with one BMC.

    Attributes:
        is_waiting: for an answer of its.
        stays_on: it said so since it was ordered off.
    """

    is_waiting = False
    stays_on = False

    def __init__(self, request: Request) -> None:
        self._poll_s: float = request["poll_s"]
        kg = request["kg"]
        if kg is not None:
            kg = bytes.fromhex(kg) if request["kg_is_hex"] else kg.encode()
        self.is_waiting = True
        try:
            self._command: Any = Command(
                bmc=request["host"],
                userid=request["user"].encode(),
                password=request["password"].encode(),
                port=request["port"],
                kg=kg,
                privlevel=request["privilege"] or None,
            )
        except OSError as error:
            raise Failed("unreachable", f"cannot be reached: {error.strerror}") from None
        except PyghmiException as error:
            raise _login_failed(str(error)) from None
        self.is_waiting = False

    def close(self) -> None:
        """End the session."""
        self._command.ipmi_session.logout()

    def is_on(self) -> bool:
        """Whether the machine has power."""
        data = self._ask(_CHASSIS, _GET_STATUS)["data"]
        if not data:
            raise Failed("nonsense", "told a chassis status without a byte in it")
        return bool(data[0] & 1)

    def on(self) -> None:
        """Order it on, also if it is on: one that is suspended to RAM may count as on."""
        if self._order("on") and not self.is_on():
            raise Failed("failed", "refuses to switch on now")

    def shutdown(self) -> None:
        """Ask its system to shut down."""
        if self.is_on() and self._order("shutdown") and self.is_on():
            raise Failed("failed", "refuses to ask for a shutdown now")

    def off(self) -> None:
        """Switch it off until it is read as off, be it for ever."""
        looks = 0
        while self.is_on():
            self.stays_on = looks > 0
            if looks % max(1, round(_AGAIN_S / self._poll_s)) == 0:
                self._order("off")
            looks += 1
            time.sleep(self._poll_s)

    def power_w(self) -> float | None:
        """What it draws, if this BMC knows DCMI and measures."""
        answer = self._ask(_GROUP_EXTENSION, _GET_POWER_READING, (_DCMI, 1, 0, 0), _ANY)
        code = answer.get("code", 0)
        data = answer.get("data", ())
        if code or len(data) < 18 or data[0] != _DCMI or not data[17] & _MEASURES:
            return None
        return float(data[1] | data[2] << 8)

    def _order(self, name: str) -> int:
        """Send a chassis control; its completion code if the machine's state does not allow it."""
        while True:
            answer = self._ask(_CHASSIS, _CONTROL, (_CONTROLS[name],), _BUSY | {_NOT_NOW})
            code: int = answer.get("code", 0)
            if code not in _BUSY:
                return code
            time.sleep(self._poll_s)

    def _ask(
        self, netfn: int, command: int, data: tuple[int, ...] = (), allowed: Codes = frozenset()
    ) -> dict[str, Any]:
        """Send one command; any completion code but 0 and those ``allowed`` is raised."""
        self.is_waiting = True
        answer: dict[str, Any] = self._command.raw_command(netfn=netfn, command=command, data=data)
        self.is_waiting = False
        code = answer.get("code", 0)
        if code == _NO_ANSWER:
            raise Failed("silent", "stopped answering")
        if code == _NO_RIGHTS:
            raise Failed("refused", "does not give this user the right to do that")
        if code and code not in allowed:
            raise Failed("failed", f"answered: {answer.get('error', '')} (0x{code:02x})")
        return answer


def _login_failed(said: str) -> Failed:
    """By the words of pyghmi, which has nothing else; unknown ones prove nothing."""
    lowered = said.lower()
    if "password" in lowered or "unauthorized" in lowered or "user" in lowered:
        return Failed("refused", "refuses the user or the password")
    if "timeout" in lowered or lowered in ("", "none"):
        return Failed("silent", "does not answer")
    return Failed("failed", f"lets nobody in: {said[:200]}")


def answer(request: Request) -> Reply:
    """Do what is asked, within its time."""
    bmc = None
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, request["limit_s"])
    reply: Reply
    try:
        bmc = Bmc(request)
        reply = _act(bmc, request["op"])
    except Failed as error:
        reply = {"error": error.kind, "message": error.message}
    except PyghmiException as error:
        reply = {"error": "failed", "message": str(error)[:200]}
    except OutOfTime:
        reply = {"error": "silent", "message": _what_was_known(bmc)}
    if bmc is not None and not bmc.is_waiting:
        try:
            bmc.close()
        except (OutOfTime, PyghmiException):
            reply["is_spent"] = True  # what was asked is done all the same
    signal.setitimer(signal.ITIMER_REAL, 0)
    # pyghmi may be in any state after a failure; a new process is not
    return {"is_spent": "error" in reply, **reply}


def _out_of_time(*_: object) -> None:
    # should pyghmi hang all the same, or closing down: the default action is to end this process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    raise OutOfTime


def _what_was_known(bmc: Bmc | None) -> str:
    """As its time ran out; whether an answer is due right then is nobody's concern."""
    if bmc is None or not bmc.stays_on:
        return "did not answer in time; it may have happened"
    return "was ordered off and still said on when it last answered: out of time"


def _act(bmc: Bmc, op: str) -> Reply:
    match op:
        case "state":
            return {"is_on": bmc.is_on()}
        case "on":
            bmc.on()
            return {}
        case "off":
            bmc.off()
            return {"is_on": False}
        case "shutdown":
            bmc.shutdown()
            return {"is_on": bmc.is_on()}
        case "power_w":
            return {"power_w": bmc.power_w()}
        case _:
            return {"error": "failed", "message": "no such order"}


def main() -> None:
    """Serve until the input ends."""
    # pyghmi prints now and then: that must not get between our lines
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request: Request = json.loads(line)
        reply = answer(request)
        output.write(json.dumps(reply) + "\n")
        output.flush()
        if reply["is_spent"]:
            break
    output.close()
    os._exit(0)


if __name__ == "__main__":
    main()

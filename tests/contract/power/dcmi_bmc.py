"""A BMC that measures watts: pyghmi's own server, told DCMI.

Run as a program: ``dcmi_bmc.py PORT MODE``. ``ipmi_sim`` knows no DCMI. MODE: ``watts``, ``idle``
(it measures nothing at the moment), ``busy`` (it answers the first orders with *node busy*).
"""

# pyright: basic

import sys
from typing import Any

from pyghmi.ipmi import bmc
from pyghmi.ipmi.private import serversession

WATTS = 0x0123

_open_session: Any = serversession.ServerSession.create_open_session_response


def _only_sha1(session: Any, request: Any) -> bytearray:
    """Refuse SHA256, which this server accepts without speaking it (pyghmi 1.6.19)."""
    answer = bytearray(_open_session(session, request))
    if request[12] == 3:
        return bytearray([request[0], 4, 0, 0]) + bytearray(request[4:8])
    return answer


class DcmiBmc(bmc.Bmc):  # type: ignore[misc]
    """One machine, on at first."""

    def __init__(self, port: int, mode: str) -> None:
        super().__init__({"admin": "geheim"}, port=port, address="127.0.0.1")
        self.mode = mode
        self.is_on = True
        self.refusals = 2

    def get_power_state(self) -> int:
        return int(self.is_on)

    def power_off(self) -> int | None:
        if self.mode == "busy" and self.refusals:
            self.refusals -= 1
            return 0xC0
        self.is_on = False
        return None

    def power_on(self) -> None:
        self.is_on = True

    def power_shutdown(self) -> None:
        self.is_on = False

    def handle_raw_request(self, request: Any, session: Any) -> None:
        if (request["netfn"], request["command"]) == (0x2C, 0x02):
            assert bytes(request["data"]) == bytes([0xDC, 1, 0, 0])
            two = WATTS.to_bytes(2, "little")
            state = 0 if self.mode == "idle" else 0x40
            data = bytes([0xDC]) + two * 4 + bytes(8) + bytes([state])
            session.send_ipmi_response(data=bytearray(data))
        else:
            super().handle_raw_request(request, session)


if __name__ == "__main__":
    setattr(serversession.ServerSession, "create_open_session_response", _only_sha1)  # noqa: B010
    server: Any = DcmiBmc(int(sys.argv[1]), sys.argv[2])
    server.listen()

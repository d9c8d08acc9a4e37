"""Waking by magic packet, which can do nothing else and proves nothing.

A packet is six bytes of 0xFF and sixteen times the card's address: by UDP to a broadcast address,
and, where an interface is named and this process may, as a raw Ethernet frame. Nobody answers.

Source: AMD, Magic Packet Technology, publication 20213; ethertype 0x0842 as etherwake and Linux
use it.
"""

import asyncio
import socket
from typing import Final

from snooze.common.errors import PreconditionError, RemoteError
from snooze.common.power_options import WolOptions
from snooze.groupmanager.power.port import PowerState

REPEATS: Final = 3
PAUSE_S: Final = 0.1
ETHERTYPE: Final = 0x0842
_BROADCAST_MAC: Final = b"\xff" * 6


def magic_packet(mac: bytes) -> bytes:
    """What wakes the card with this address (six bytes)."""
    return b"\xff" * 6 + mac * 16


class WakeOnLanController:
    """A ``PowerController`` that only wakes."""

    can_read_state = False
    can_power_off = False

    def __init__(self, options: WolOptions) -> None:
        self._options = options

    def __repr__(self) -> str:
        macs = ", ".join(mac.hex(":") for mac in self._options.macs)
        return f"WakeOnLanController({macs})"

    async def state(self) -> PowerState:
        """See the port."""
        return PowerState.UNKNOWN

    async def on(self) -> None:
        """See the port; returns when all packets are sent.

        Raises:
            RemoteError: none could be sent in either way.
        """
        for repeat in range(REPEATS):
            if repeat:
                await asyncio.sleep(PAUSE_S)
            self._send()

    async def off(self, *, hard: bool = True) -> PowerState:
        """See the port; never possible."""
        raise PreconditionError("Wake-on-LAN can only wake")

    async def power_w(self) -> float | None:
        """See the port; never known."""
        return None

    async def close(self) -> None:
        """See the port; nothing is held."""

    def _send(self) -> None:
        """Send to all cards, by both ways.

        Raises:
            RemoteError: neither worked.
        """
        failures = [failure for failure in (self._send_udp(), self._send_raw()) if failure]
        if len(failures) == 2:
            raise RemoteError(f"no magic packet could be sent: {'; '.join(failures)}")

    def _send_udp(self) -> str:
        """Why it did not work, or nothing."""
        options = self._options
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                if options.interface:
                    name = options.interface.encode()
                    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
                for mac in options.macs:
                    sender.sendto(magic_packet(mac), (options.address, options.port))
        except OSError as error:
            return f"by UDP to {options.address}: {error.strerror}"
        return ""

    def _send_raw(self) -> str:
        """Why it did not work, or nothing."""
        interface = self._options.interface
        if not interface:
            return "as a raw frame: no interface is named"
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
                sender.setblocking(False)
                sender.bind((interface, ETHERTYPE))
                own = sender.getsockname()[4]
                for mac in self._options.macs:
                    head = _BROADCAST_MAC + own + ETHERTYPE.to_bytes(2)
                    sender.send(head + magic_packet(mac))
        except OSError as error:
            return f"as a raw frame on {interface}: {error.strerror}"
        return ""

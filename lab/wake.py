"""Wake-on-LAN for lab hosts: what a network card does while its machine sleeps.

Magic packets are heard on the lab's switch, as Ethernet frames of type 0x0842 and as datagrams to
UDP port 9, and the host whose card they name is switched on, or woken if it is suspended: if it
has its cable.
"""

import contextlib
import select
import socket
import struct
import threading
from typing import Final

from snooze.lab.hosts import LabNet

ETHERTYPE: Final = 0x0842
UDP_PORT: Final = 9
# from linux/if_packet.h: hear frames to other cards, too
_SOL_PACKET: Final = 263
_PACKET_ADD_MEMBERSHIP: Final = 1
_PACKET_MR_PROMISC: Final = 1
_SYNC: Final = b"\xff" * 6
_REPEATS: Final = 16


def wanted_mac(packet: bytes) -> str:
    """The card that a magic packet names, as ``52:54:...``; empty if it is none.

    Six bytes of ones and 16 times the address, wherever in the packet.
    """
    at = packet.find(_SYNC)
    while at >= 0:
        mac = packet[at + 6 : at + 12]
        if len(mac) == 6 and packet[at + 6 : at + 6 + 6 * _REPEATS] == mac * _REPEATS:
            return mac.hex(":")
        at = packet.find(_SYNC, at + 1)
    return ""


class WakeListener:
    """Listens in a thread of its own; a context manager, or call ``close``.

    Attributes:
        heard: the names of the hosts that were woken, in order.
    """

    def __init__(self, net: LabNet) -> None:
        self._net = net
        self._sockets: list[socket.socket] = []
        self.heard: list[str] = []
        self._stop, self._stopper = socket.socketpair()
        opener = threading.Thread(target=self._open)
        opener.start()
        opener.join()
        if len(self._sockets) != 2:
            self._close_files()
            raise OSError("the lab's switch cannot be listened to")
        self._thread = threading.Thread(target=self._listen, name="wake-on-lan", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._stopper.send(b".")
        self._thread.join()
        self._close_files()

    def __enter__(self) -> "WakeListener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        """A socket belongs to the network that it was made in: the switch's."""
        self._net.enter_thread()
        frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        self._sockets.append(frames)
        frames.bind(("sw0", ETHERTYPE))
        all_cards = struct.pack("iHH8s", socket.if_nametoindex("sw0"), _PACKET_MR_PROMISC, 0, b"")
        frames.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, all_cards)
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("", UDP_PORT))
        self._sockets.append(datagrams)

    def _listen(self) -> None:
        while True:
            ready, _, _ = select.select([*self._sockets, self._stop], [], [])
            if self._stop in ready:
                return
            for heard in ready:
                self._wake(wanted_mac(heard.recv(2048)))

    def _wake(self, mac: str) -> None:
        for host in list(self._net.hosts.values()):
            sleeps = host.is_suspended or not host.is_on
            if host.mac == mac and host.plugged and sleeps:
                # one that does not come up stays off: who called it will see
                with contextlib.suppress(OSError, RuntimeError):
                    host.power_on()
                    self.heard.append(host.name)

    def _close_files(self) -> None:
        for opened in (*self._sockets, self._stop, self._stopper):
            opened.close()

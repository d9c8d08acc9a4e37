"""Tells systemd how the daemon is doing, if systemd asked.

Source: sd_notify(3); the protocol is a datagram to the socket named by ``NOTIFY_SOCKET``.
"""

import os
import socket
from collections.abc import Mapping


def notify(state: str, *, environment: Mapping[str, str] = os.environ) -> bool:
    """Send ``READY=1`` (the daemon serves), ``STOPPING=1`` (it begins to stop) or ``STATUS=...``.

    Returns:
        False if nobody asked, or nobody listens: a daemon neither fails nor waits for that.
    """
    name = environment.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return False
    address = f"\0{name[1:]}" if name.startswith("@") else name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        try:
            sender.sendto(state.encode(), address)
        except OSError:
            return False
    return True

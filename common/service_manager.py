"""Tells systemd how the daemon is doing, if systemd asked.

Source: sd_notify(3); the protocol is a datagram to the socket named by ``NOTIFY_SOCKET``.
"""

import os
import socket
from collections.abc import Mapping


def notify_ready(status: str, *, environment: Mapping[str, str] = os.environ) -> bool:
    """Say that the daemon listens and serves; ``status`` is shown by ``systemctl status``."""
    return _notify(f"READY=1\nSTATUS={_one_line(status)}\nMAINPID={os.getpid()}", environment)


def notify_status(status: str, *, environment: Mapping[str, str] = os.environ) -> bool:
    """Replace the line shown by ``systemctl status``."""
    return _notify(f"STATUS={_one_line(status)}", environment)


def notify_stopping(*, environment: Mapping[str, str] = os.environ) -> bool:
    """Say that the daemon has begun to stop."""
    return _notify("STOPPING=1", environment)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _notify(message: str, environment: Mapping[str, str]) -> bool:
    """Send; False if nobody asked or nobody listens: a daemon does not fail for that."""
    name = environment.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return False
    address = f"\0{name[1:]}" if name.startswith("@") else name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        try:
            sender.sendto(message.encode(), address)
        except OSError:
            return False
    return True

"""TCP ports for servers that are stopped and started again."""

import os
import socket

from snooze.common.errors import ExecutionError

# Below the kernel's range of ephemeral ports, so that no outgoing connection takes the port of a
# server that is down for a while.
_PORTS = range(20_001, 32_000)


class _Ports:
    """Hands out ports that nobody listens on, each once in this process."""

    def __init__(self) -> None:
        self._next = _PORTS.start + os.getpid() * 97 % len(_PORTS)

    def take(self) -> int:
        for _ in _PORTS:
            port = self._next
            self._next = port + 1 if port + 1 in _PORTS else _PORTS.start
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise ExecutionError(f"no free port on 127.0.0.1 in {_PORTS}")


_ports = _Ports()


def take_port() -> int:
    """A port of 127.0.0.1 that nobody listens on and that no other caller here was given.

    Raises:
        ExecutionError: there is none.
    """
    return _ports.take()

import logging
import socket

from kazoo.client import KazooClient
from kazoo.retry import KazooRetry

class ConnectionHandler:
    client: KazooClient
    _socket: socket.socket | None
    def __init__(
        self, client: KazooClient, retry_sleeper: KazooRetry, logger: logging.Logger | None = None
    ) -> None: ...
    def _connect(self, host: str, hostip: str, port: int) -> tuple[float, float]: ...
    def _invoke(
        self, timeout: float, request: object, xid: int | None = None
    ) -> tuple[object, int | None]: ...

import socket
from typing import Any

from kazoo.interfaces import IAsyncResult

class SequentialThreadingHandler:
    def create_connection(
        self, address: tuple[str, int], *, timeout: float, **options: object
    ) -> socket.socket: ...
    def async_result(self) -> IAsyncResult[Any]: ...

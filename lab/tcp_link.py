"""A TCP link that can be cut, frozen or made one-way, between a client and a real server.

    async with tcp_link("127.0.0.1", server.port) as link:
        client.connect(link.hosts)
        link.cut()

What a network does to a connection, done to one client and not to the others; no privileges needed.
"""

import asyncio
import enum
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

_CHUNK_BYTES = 65_536


class LinkState(enum.Enum):
    """What a link does with bytes and connections."""

    UP = "up"
    CUT = "cut"  # Connections are reset, new ones closed at once.
    FROZEN = "frozen"  # Connections stay and nothing passes until it is up again.
    DEAF = "deaf"  # As frozen, but only from the server to the client.
    GARBLED = "garbled"  # What the server says arrives as zeros.


class TcpLink:
    """A forwarding listener on a port of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._state = LinkState.UP
        self._changed = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def hosts(self) -> str:
        """Where to connect to, as ``host:port``."""
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections stand."""
        return len(self._writers) // 2

    def up(self) -> None:
        """Let everything pass, also what was held back on connections that still stand."""
        self._become(LinkState.UP)

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        self._become(LinkState.CUT)
        for writer in self._writers:
            writer.transport.abort()

    def freeze(self) -> None:
        """Hold everything back."""
        self._become(LinkState.FROZEN)

    def deafen(self) -> None:
        """Hold back what the server says; it still hears the client."""
        self._become(LinkState.DEAF)

    def garble(self) -> None:
        """Replace all that the server says by zeros."""
        self._become(LinkState.GARBLED)

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Cut it and stop listening."""
        self.cut()
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _become(self, state: LinkState) -> None:
        self._state = state
        self._changed.set()
        self._changed = asyncio.Event()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            if self._state is not LinkState.CUT:
                await self._forward(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # The connection's end, or the link's.
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers.add(far_writer)
        try:
            pumps = {
                asyncio.ensure_future(self._pump(reader, far_writer, to_client=False)),
                asyncio.ensure_future(self._pump(far_reader, writer, to_client=True)),
            }
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._writers.discard(far_writer)
            far_writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_client: bool
    ) -> None:
        passing = {LinkState.UP, LinkState.GARBLED}
        if not to_client:
            passing.add(LinkState.DEAF)
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK_BYTES):
                while self._state not in passing:
                    await self._changed.wait()
                is_noise = to_client and self._state is LinkState.GARBLED
                writer.write(bytes(len(chunk)) if is_noise else chunk)
                await writer.drain()


@asynccontextmanager
async def tcp_link(host: str, port: int) -> AsyncGenerator[TcpLink, None]:
    """A link to ``host:port`` that is up."""
    link = TcpLink(host, port)
    await link.start()
    try:
        yield link
    finally:
        await link.close()

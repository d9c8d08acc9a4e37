"""Connections between simulated machines do what Linux and asyncio do: measured on real sockets."""

import asyncio
from collections.abc import Callable

import pytest

from snooze.simulation.loop import Process
from snooze.simulation.world import Shape, World

PORT = 7000


class Heard(asyncio.Protocol):
    """What a side of a connection is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.told.append(data.decode())

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("ended" if exc is None else type(exc).__name__)


class Pair:
    """A connection between two machines; ``far`` listened."""

    def __init__(self) -> None:
        self.world = World(Shape(hosts=2, managers=0, bootstraps=0, drift=False), 1)
        self.near, self.far = Heard(), Heard()
        self.near_process, self.far_process = (
            self.world.process(machine, "test") for machine in self.world.host_machines
        )
        self.far_process.spawn(self._listen())
        self.near_process.spawn(self._connect())
        self.run()

    async def _listen(self) -> None:
        await asyncio.get_running_loop().create_server(lambda: self.far, "", PORT)

    async def _connect(self) -> None:
        await asyncio.sleep(0.1)
        host = self.far_process.machine.address
        await asyncio.get_running_loop().create_connection(lambda: self.near, host, PORT)

    def run(self) -> None:
        self.world.run_for(1.0)
        assert not self.world.defects()

    def do(self, process: Process, work: Callable[[], None]) -> None:
        """Have a side do something."""
        process.run(work)
        self.run()


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_process_that_stood_still_reads_what_came_before_the_reset(pair: Pair) -> None:
    """An order reaches an agent that was stopped, however its link has ended since."""
    pair.far_process.pause()
    pair.do(pair.near_process, lambda: pair.near.transport.write(b"order"))
    pair.near_process.pause()
    pair.far.transport.write(b"not read")  # so its end is a reset
    pair.run()
    pair.near_process.kill()
    pair.near_process.machine.end_process(pair.near_process)
    pair.run()
    assert pair.far.told == []
    pair.far_process.resume()
    pair.run()
    assert pair.far.told == ["order", "ConnectionResetError"]


def test_who_has_read_everything_resets_nothing_by_an_abort(pair: Pair) -> None:
    pair.do(pair.near_process, lambda: pair.near.transport.write(b"order"))
    pair.do(pair.near_process, pair.near.transport.abort)
    assert pair.far.told == ["order", "ended"]
    assert pair.near.told == ["ended"]

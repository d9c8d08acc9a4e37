"""Machines of one process: whatever a daemon has opened is closed, whenever its machine is."""

import asyncio
from typing import cast

import pytest

from snooze.client.machines import Machine
from snooze.groupmanager.power.simulated import SimulatedMachine
from snooze.localcontroller.service import LocalController


class Daemon:
    """A local controller whose start and end wait until they may go on."""

    node_id = "host"

    def __init__(self) -> None:
        self.starts, self.starting = asyncio.Event(), asyncio.Event()
        self.ends, self.ending = asyncio.Event(), asyncio.Event()
        self.closed = False

    async def start(self) -> None:
        self.starting.set()
        await self.starts.wait()

    async def close(self) -> None:
        self.ending.set()
        await self.ends.wait()
        self.closed = True


def machine_of(*daemons: Daemon) -> Machine:
    waiting = iter(daemons)
    return Machine(
        SimulatedMachine(), lambda _: cast(LocalController, next(waiting)), lambda: None, 0.0
    )


async def test_a_machine_that_is_closed_while_it_goes_down_ends_its_daemon() -> None:
    daemon = Daemon()
    machine = machine_of(daemon)
    daemon.starts.set()
    await machine.start()
    machine.board.switch(False)
    await daemon.ending.wait()
    closing = asyncio.ensure_future(machine.close())
    await asyncio.sleep(0)
    daemon.ends.set()
    await closing
    assert daemon.closed


async def test_a_machine_that_is_closed_while_it_boots_ends_its_daemon() -> None:
    first, second = Daemon(), Daemon()
    machine = machine_of(first, second)
    first.starts.set()
    first.ends.set()
    await machine.start()
    machine.board.switch(False)
    await first.ending.wait()
    machine.board.switch(True)
    await second.starting.wait()
    second.ends.set()
    await machine.close()
    assert first.closed
    assert second.closed


async def test_a_daemon_that_does_not_start_is_closed() -> None:
    class Failing(Daemon):
        async def start(self) -> None:
            raise OSError("its port is taken")

    daemon = Failing()
    daemon.ends.set()
    with pytest.raises(OSError, match="taken"):
        await machine_of(daemon).start()
    assert daemon.closed

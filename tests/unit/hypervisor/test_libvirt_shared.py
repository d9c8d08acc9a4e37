"""A connection that several threads use is closed when the last of them is done with it."""

import threading
from typing import cast

import libvirt
import pytest

from snooze.common.errors import RemoteError
from snooze.localcontroller.hypervisor.libvirt_shared import SharedConnection

ROUNDS = 200
TEST_URI = "test:///default"


class Recorded:
    """Stands for a ``virConnect`` and remembers when it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> int:
        self.closed += 1
        return 0

    def isAlive(self) -> int:
        return 1


@pytest.fixture
def raw() -> Recorded:
    return Recorded()


@pytest.fixture
def shared(raw: Recorded) -> SharedConnection:
    return SharedConnection(cast(libvirt.virConnect, raw))


def test_it_is_closed_at_once_if_nobody_uses_it(shared: SharedConnection, raw: Recorded) -> None:
    assert shared.is_alive()
    shared.end()
    shared.end()
    assert raw.closed == 1
    assert not shared.is_alive()
    with pytest.raises(RemoteError, match="has ended"):
        shared.use(lambda connection: None)


def test_a_call_under_way_is_waited_for(shared: SharedConnection, raw: Recorded) -> None:
    begun, over = threading.Event(), threading.Event()

    def work(_connection: libvirt.virConnect) -> int:
        begun.set()
        assert over.wait(10)
        return raw.closed

    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(shared.use(work)))
    thread.start()
    assert begun.wait(10)
    shared.end()
    assert raw.closed == 0
    over.set()
    thread.join(10)
    assert answers == [0], "it was open until the call was over"
    assert raw.closed == 1


def test_one_that_fails_lets_go_of_it(shared: SharedConnection, raw: Recorded) -> None:
    def work(_connection: libvirt.virConnect) -> None:
        shared.end()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shared.use(work)
    assert raw.closed == 1


def test_calls_and_the_end_at_the_same_time_are_harmless() -> None:
    """On the raw object this ends the process within a few rounds: libvirt reads freed memory."""

    def call(shared: SharedConnection, start: threading.Barrier) -> None:
        start.wait(10)
        try:
            for _ in range(20):
                shared.use(lambda connection: connection.listAllDomains())
        except RemoteError:
            pass

    for _ in range(ROUNDS):
        shared = SharedConnection(libvirt.open(TEST_URI))
        start = threading.Barrier(3)
        threads = [threading.Thread(target=call, args=(shared, start)) for _ in range(2)]
        for thread in threads:
            thread.start()
        start.wait(10)
        shared.end()
        for thread in threads:
            thread.join(30)
        assert not shared.is_alive()

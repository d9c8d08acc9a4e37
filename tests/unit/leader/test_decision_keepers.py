"""Copies of a leader's own decisions: who keeps them, and what the next leader makes of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
import pytest_asyncio

from snooze.common.clock import SYSTEM_CLOCK
from snooze.common.decisions import Decision, DecisionKind, DecisionMode, DecisionState
from snooze.common.errors import TooBusy
from snooze.common.transport.link import Link, Service, connect
from snooze.common.transport.link_server import Accepted as LinkAccepted
from snooze.common.transport.link_server import LinkServer
from snooze.common.wire import (
    Accepted,
    KeepDecisions,
    LeaderOrder,
    ManagerHello,
    ManagerRequest,
    ManagerWelcome,
)
from snooze.groupmanager import decision_copies
from snooze.groupmanager.decision_copies import CopyRing, batches
from snooze.groupmanager.leader import decision_keepers
from snooze.groupmanager.leader.decision_keepers import KEEPERS, DecisionKeepers
from snooze.groupmanager.leader.decision_log import LEADER_GONE, NOT_KNOWN, DecisionLog
from snooze.groupmanager.leader.events import EventLog
from snooze.groupmanager.leader.manager_links import ManagerLinks
from snooze.groupmanager.leader.registry import Registry
from snooze.groupmanager.leader.submission_events import Decided
from tests.unit.leader.builders import manager_of

OWN = "gm0"


def decision(number: int, **changes: object) -> Decision:
    made = Decision(
        f"{number:032x}",
        number,
        DecisionKind.FENCE,
        DecisionMode.AUTO,
        OWN,
        "silent",
        (f"h{number}",),
    )
    return msgspec.structs.replace(made, **changes)


def fenced(host: str, state: DecisionState = DecisionState.RUNNING, outcome: str = "") -> Decided:
    return Decided(
        f"fence:{host}",
        DecisionKind.FENCE,
        state,
        reason="silent",
        subjects=(host,),
        outcome=outcome,
        inputs=b"dump",
    )


class Leader:
    """A leader's log and its keepers, with real links to managers."""

    def __init__(self) -> None:
        self.events = EventLog(SYSTEM_CLOCK)
        self.log = DecisionLog(SYSTEM_CLOCK, self.events, OWN)
        self.links = ManagerLinks(
            Registry(), ManagerWelcome(OWN, 1), self._unasked, self._joined,
            lambda _manager, _notice: None, lambda manager, _reason: self.keepers.left(manager),
        )  # fmt: skip
        self.keepers = DecisionKeepers(self.links, self.log, 1)
        self.server = LinkServer("127.0.0.1", 0, ManagerHello, self._on_hello)

    async def _unasked(self, message: ManagerRequest) -> msgspec.Struct:
        raise AssertionError(message)

    async def _on_hello(self, hello: ManagerHello, peer: str) -> LinkAccepted:
        del peer
        return self.links.accept(hello)

    def _joined(self, hello: ManagerHello) -> None:
        self.keepers.joined(hello.manager.manager_id)


class Manager:
    """What a group manager does with copies; ``refusals``: of so many orders."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.copies = CopyRing()
        self.refusals = 0
        self.link: Link | None = None

    async def answer(self, message: LeaderOrder) -> msgspec.Struct:
        assert isinstance(message, KeepDecisions)
        if self.refusals:
            self.refusals -= 1
            raise TooBusy("not now", retry_after_s=0.1)
        self.copies.keep(message.decisions)
        return Accepted()

    async def join(self, leader: Leader) -> None:
        self.link, _ = await connect(
            "127.0.0.1",
            leader.server.port,
            ManagerHello(manager_of(self.name), []),
            ManagerWelcome,
            Service(requests=LeaderOrder, answer=self.answer),
        )


Joins = Callable[[str], Awaitable[Manager]]


@pytest_asyncio.fixture
async def leader() -> AsyncIterator[Leader]:
    made = Leader()
    await made.server.start()
    yield made
    await made.keepers.close()
    made.links.close("over")
    await made.server.close()


@pytest_asyncio.fixture
async def joins(leader: Leader) -> AsyncIterator[Joins]:
    managers: list[Manager] = []

    async def join(name: str) -> Manager:
        manager = Manager(name)
        await manager.join(leader)
        managers.append(manager)
        return manager

    yield join
    for manager in managers:
        assert manager.link is not None
        manager.link.close("over")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def states(manager: Manager) -> dict[str, DecisionState]:
    return {each.subjects[0]: each.state for each in manager.copies}


async def test_a_few_managers_keep_what_the_leader_decided(leader: Leader, joins: Joins) -> None:
    own, *others = [await joins(f"gm{number}") for number in range(KEEPERS + 2)]
    leader.log.note(fenced("h1"))
    leader.log.note(fenced("h2"))
    leader.log.note(fenced("h1", DecisionState.DONE, "it is off"))
    keepers, spare = others[:KEEPERS], others[KEEPERS]
    expected = {"h1": DecisionState.DONE, "h2": DecisionState.RUNNING}
    await until(lambda: all(states(each) == expected for each in keepers))
    assert [each.inputs for each in keepers[0].copies] == [b"dump", b"dump"]
    assert states(own) == {}
    assert states(spare) == {}

    leader.log.add(decision(7, kind=DecisionKind.OVERLOAD, decider="gm1"))
    assert keepers[0].link is not None
    keepers[0].link.close("it died")
    await until(lambda: states(spare) == expected)
    assert len(states(keepers[1])) == 2, "what a manager decided it tells by itself"


async def test_what_a_manager_did_not_take_is_told_again(
    leader: Leader, joins: Joins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_keepers, "RETRY_S", 0.01)
    manager = await joins("gm1")
    manager.refusals = 2
    leader.log.note(fenced("h1"))
    await until(lambda: manager.refusals < 2)
    leader.log.note(fenced("h1", DecisionState.DONE, "it is off"))
    await until(lambda: states(manager) == {"h1": DecisionState.DONE})


async def test_the_next_leader_takes_copies_in_and_hands_them_on(
    leader: Leader, joins: Joins
) -> None:
    manager = await joins("gm1")
    open_one, ended = decision(2, outcome="asked its BMC"), decision(1, state=DecisionState.DONE)
    leader.keepers.recall([ended, open_one])
    leader.keepers.recall([ended, msgspec.structs.replace(open_one, outcome="")])
    newest, oldest = leader.log.latest(10)
    assert oldest == ended
    assert newest.state is DecisionState.INTERRUPTED
    assert newest.outcome == f"asked its BMC; {LEADER_GONE} {NOT_KNOWN}"
    assert list(leader.events.after(0, 10)) == [], "it is no news"
    await until(lambda: len(states(manager)) == 2)

    done = msgspec.structs.replace(open_one, state=DecisionState.DONE, outcome="off", ended_ms=9)
    leader.keepers.recall([done])
    assert leader.log.latest(10)[0] == done, "another keeper heard its end"
    leader.keepers.recall([open_one])
    assert leader.log.latest(10)[0] == done


def test_what_this_leader_decided_is_not_what_an_old_copy_says() -> None:
    log = DecisionLog(SYSTEM_CLOCK, EventLog(SYSTEM_CLOCK), OWN)
    made = log.note(fenced("h1"))
    log.recall(msgspec.structs.replace(made, outcome="older"))
    assert log.get(made.decision_id) == made


def test_copies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_copies, "MAX_COPIES", 5)
    monkeypatch.setattr(decision_copies, "MAX_INPUTS", 3)
    monkeypatch.setattr(decision_copies, "MAX_INPUT_BYTES", 10)
    ring = CopyRing()
    ring.keep(decision(number, inputs=b"12345678"[:4]) for number in range(8))
    assert [each.at_ms for each in ring] == [3, 4, 5, 6, 7]
    assert [len(each.inputs) for each in ring] == [0, 0, 0, 4, 4]
    ring.put(decision(9, inputs=b"x" * 100))
    assert [len(each.inputs) for each in ring] == [0, 0, 0, 0, 100], "the latest keeps its own"

    monkeypatch.setattr(decision_copies, "BATCH_BYTES", 2500)
    many = [decision(number, reason="r" * 1000) for number in range(5)]
    huge = decision(6, reason="r" * 5000)
    sizes = [len(batch) for batch in batches([*many, huge, decision(7)])]
    assert sizes == [2, 2, 1, 1, 1]

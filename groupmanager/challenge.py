"""Asking a leader that is not heard, through the store, whether it is there.

The leader's session ends a good while after its machine has gone: time-out, tick and all. Whoever
stopped hearing it asks earlier:

1. A doubter puts a question for the leader's epoch into the store. One that stands unanswered is
   everybody's; nobody asks twice.
2. The leader of that epoch answers as soon as it sees it, and once more when it resumes its epoch.
   Every answer raises the entry's version.
3. A doubter that has waited long enough removes the leader in a transaction that checks the version
   of the question as asked. So an answer and a removal exclude each other, whoever is late.

A leader that lives and writes to the store in time is thus not removed, however few hear it: two
that do not hear each other would else depose each other for ever. One that is removed though it
lives, as its answer was late or lost, is deposed like any other: its epoch is over.
"""

from typing import Final

import msgspec

from snooze.common.coordination.leadership import epoch_guard
from snooze.common.coordination.port import (
    Check,
    CommitConflict,
    Coordinator,
    Create,
    Entry,
    Operation,
    Put,
)

QUESTION: Final = "/question"
_ATTEMPTS = 3


class Question(msgspec.Struct, frozen=True):
    """Whether the leader of ``epoch`` is there."""

    epoch: int
    answered: bool = False


def read_question(entry: Entry | None) -> Question | None:
    """The question as it stands; None for what is none."""
    if entry is None:
        return None
    try:
        return msgspec.msgpack.decode(entry.data, type=Question)
    except msgspec.MsgspecError:
        return None


async def ask(coordinator: Coordinator, epoch: int) -> Check:
    """Ask the leader of ``epoch``, unless somebody has.

    Returns: what holds as long as it has not answered.
    Raises: CommitConflict if another epoch has begun; Unavailable, OutcomeUnknown.
    """
    attempt = 1
    while True:
        entry = await coordinator.read(QUESTION)
        question = read_question(entry)
        if entry is not None and question == Question(epoch):
            return Check(QUESTION, entry.version)
        data = msgspec.msgpack.encode(Question(epoch))
        put: Operation = (
            Create(QUESTION, data) if entry is None else Put(QUESTION, data, entry.version)
        )
        try:
            _, applied = await coordinator.commit([epoch_guard(epoch), put])
        except CommitConflict as conflict:
            if conflict.index == 0 or attempt == _ATTEMPTS:
                raise
            attempt += 1  # Another asks at the same time.
        else:
            return Check(QUESTION, applied.version)


async def answer(coordinator: Coordinator, epoch: int, entry: Entry) -> None:
    """Say that the leader of ``epoch`` is there.

    Raises: CommitConflict if it is not the leader any more, or has said so already; Unavailable,
        OutcomeUnknown.
    """
    data = msgspec.msgpack.encode(Question(epoch, answered=True))
    await coordinator.commit([epoch_guard(epoch), Put(QUESTION, data, entry.version)])

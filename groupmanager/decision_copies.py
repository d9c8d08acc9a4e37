"""The latest decisions of a leader, as it keeps them itself and as others keep copies of them."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from snooze.common.decisions import Decision

MAX_COPIES: Final = 1000
MAX_INPUTS: Final = 50
"""The latest so many are kept with their inputs."""
MAX_INPUT_BYTES: Final = 8 * 1024 * 1024
BATCH_BYTES: Final = 1024 * 1024
"""What one message of decisions may have, beyond its first; far below the largest frame."""


class CopyRing:
    """Decisions by id, the latest heard of last; beyond the bounds the oldest go."""

    def __init__(self) -> None:
        self._decisions: OrderedDict[str, Decision] = OrderedDict()

    def put(self, decision: Decision) -> Decision:
        """Keep a decision as it is now, with the inputs that are known of it; as it is kept."""
        former = self._decisions.pop(decision.decision_id, None)
        if former is not None and not decision.inputs:
            decision = msgspec.structs.replace(decision, inputs=former.inputs)
        self._decisions[decision.decision_id] = decision
        while len(self._decisions) > MAX_COPIES:
            self._decisions.popitem(last=False)
        with_inputs = [each for each in self._decisions.values() if each.inputs]
        total = sum(len(each.inputs) for each in with_inputs)
        for position, each in enumerate(with_inputs[:-1]):
            if len(with_inputs) - position <= MAX_INPUTS and total <= MAX_INPUT_BYTES:
                break
            total -= len(each.inputs)
            self._decisions[each.decision_id] = msgspec.structs.replace(each, inputs=b"")
        return decision

    def keep(self, decisions: Iterable[Decision]) -> None:
        """Keep each."""
        for decision in decisions:
            self.put(decision)

    def get(self, decision_id: str) -> Decision | None:
        """A decision as it was heard of last."""
        return self._decisions.get(decision_id)

    def __iter__(self) -> Iterator[Decision]:
        return iter(list(self._decisions.values()))


def batches(decisions: Iterable[Decision]) -> Iterator[list[Decision]]:
    """The same in messages of ``BATCH_BYTES`` at most, in order; a larger decision alone."""
    batch: list[Decision] = []
    room = BATCH_BYTES
    for decision in decisions:
        size = len(msgspec.msgpack.encode(decision))
        if batch and size > room:
            yield batch
            batch, room = [], BATCH_BYTES
        batch.append(decision)
        room -= size
    if batch:
        yield batch

"""The decisions of one manager: each told when it is made and whenever it changes, the latest kept.

A new leader is told the latest again, so that they outlive the former one.
"""

import hashlib
from collections import OrderedDict
from typing import Final

import msgspec

from snooze.common.decisions import DECISION_ENDED, Decision, DecisionKind, DecisionMode
from snooze.common.wire import DecisionMade
from snooze.groupmanager.manager.manager_events import ManagerEffect, TellLeader

MAX_DECISIONS: Final = 200
MAX_INPUTS: Final = 20
"""Of the decisions kept, so many with their inputs."""


class DecisionBook:
    """What one manager decided lately."""

    def __init__(self, manager_id: str) -> None:
        self.manager_id = manager_id
        self.decisions: OrderedDict[str, Decision] = OrderedDict()
        self._count = 0

    def new(
        self, kind: DecisionKind, mode: DecisionMode, reason: str, wall_ms: int, now_s: float
    ) -> Decision:
        """A decision with a name of its own; not told yet.

        The name is a digest of the manager, both clocks and a counter: a core draws nothing.
        """
        self._count += 1
        text = f"{self.manager_id}:{wall_ms}:{now_s}:{self._count}"
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return Decision(name, wall_ms, kind, mode, self.manager_id, reason)

    def tell(self, decision: Decision) -> list[ManagerEffect]:
        """Keep it, and tell the leader; what was told with inputs is told again without."""
        known = decision.decision_id in self.decisions
        self.decisions[decision.decision_id] = decision
        with_inputs = [each for each in self.decisions.values() if each.inputs]
        for each in with_inputs[:-MAX_INPUTS]:
            self.decisions[each.decision_id] = without_inputs(each)
        ended = [i for i, each in self.decisions.items() if each.state in DECISION_ENDED]
        for decision_id in ended[: max(0, len(self.decisions) - MAX_DECISIONS)]:
            del self.decisions[decision_id]
        return [TellLeader(DecisionMade(without_inputs(decision) if known else decision))]

    def get(self, decision_id: str) -> Decision | None:
        """A decision by its id."""
        return self.decisions.get(decision_id)


def without_inputs(decision: Decision) -> Decision:
    """The same, less what replay needs."""
    return msgspec.structs.replace(decision, inputs=b"")

"""Autonomic decisions, as they are told, kept, shown and replayed.

Whatever the cluster does by itself is a ``Decision``: made once, by one core, with its reason, its
inputs and the alternatives it weighed; its state is told again as it is carried out.
"""

from enum import StrEnum

import msgspec


class DecisionKind(StrEnum):
    """What a decision is about; each kind can be paused, advised or dry-run by itself."""

    OVERLOAD = "overload"
    UNDERLOAD = "underload"
    CONSOLIDATION = "consolidation"
    DRAIN = "drain"
    SLEEP = "sleep"
    WAKE = "wake"
    FENCE = "fence"
    RESTART = "restart"


class DecisionMode(StrEnum):
    """Whether a kind of decision is carried out.

    ``ADVISE``: proposed, and carried out once a person approves; ``DRY_RUN``: written down, never
    carried out; ``OFF``: not made.
    """

    AUTO = "auto"
    ADVISE = "advise"
    DRY_RUN = "dry-run"
    OFF = "off"


class DecisionState(StrEnum):
    """How far a decision is.

    ``INTERRUPTED``: who carried it out is gone, and what became of the rest is not known.
    """

    PROPOSED = "proposed"
    RUNNING = "running"
    DONE = "done"
    PARTLY = "partly"
    FAILED = "failed"
    REFUSED = "refused"
    EXPIRED = "expired"
    INTERRUPTED = "interrupted"
    DRY_RUN = "dry-run"


DECISION_ENDED = frozenset(
    {
        DecisionState.DONE,
        DecisionState.PARTLY,
        DecisionState.FAILED,
        DecisionState.REFUSED,
        DecisionState.EXPIRED,
        DecisionState.INTERRUPTED,
        DecisionState.DRY_RUN,
    }
)


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """One decision.

    Attributes:
        decision_id: 32 hexadecimal digits, also the cause of its orders.
        at_ms: when it was made.
        decider: id of the group manager whose core made it.
        subjects: the hosts or VMs it is about.
        actions: what is to be done, one readable line each.
        alternatives: what else was weighed, and why not.
        inputs: a dump for ``python -m snooze.scheduling replay``, compressed by zlib; may be empty.
        outcome: what became of it.
    """

    decision_id: str
    at_ms: int
    kind: DecisionKind
    mode: DecisionMode
    decider: str
    reason: str
    subjects: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    inputs: bytes = b""
    state: DecisionState = DecisionState.RUNNING
    outcome: str = ""
    ended_ms: int = 0

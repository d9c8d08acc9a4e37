"""What a decision answers: where each VM goes, in what order, and why some do not."""

from dataclasses import dataclass, field
from enum import StrEnum

from snooze.scheduling.snapshot import IntArray, Problem


class ReasonCode(StrEnum):
    """Why a VM stays where it is, or without a host. Stable; meant for programs."""

    INVALID_SNAPSHOT = "invalid_snapshot"
    INVALID_VM = "invalid_vm"
    NO_HOSTS = "no_hosts"
    NO_HOST_FITS = "no_host_fits"
    CONTRADICTION = "contradiction"
    NO_BENEFIT = "no_benefit"
    NOT_MOVABLE = "not_movable"
    LIMIT_REACHED = "limit_reached"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why VM ``vm`` (an index) was not placed, or not moved.

    ``refused`` counts the hosts by the filter that refused them, in the order of the filters.
    """

    vm: int
    code: ReasonCode
    message: str
    refused: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """Migrate VM ``vm`` from host ``source`` to host ``target`` (indices).

    Moves of one ``batch`` run at the same time; a batch starts when the one before it has ended.
    While a VM moves it takes room on both hosts. A VM may move once more in a later batch (by way
    of a third host, to break a cycle), never twice in one.
    """

    vm: int
    source: int
    target: int
    batch: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The answer of a decision over one snapshot.

    Attributes:
        placement: ``int64[V]``, host index of every VM once the plan is carried out; -1: none.
        reasons: why, for each VM that has no host, or that was asked to move and does not.
        moves: migrations, ordered by batch.
        wakes: hosts, asleep now, that must be woken first.
        sleeps: hosts that carry nothing after the plan and may be put to sleep.
        cursor: where round-robin goes on; hand it to the next decision.
        policy: name of the policy that decided.
        problems: what was wrong with the snapshot or with a plug-in.
    """

    placement: IntArray
    reasons: tuple[Reason, ...] = ()
    moves: tuple[Move, ...] = ()
    wakes: tuple[int, ...] = ()
    sleeps: tuple[int, ...] = ()
    cursor: int = 0
    policy: str = ""
    problems: tuple[Problem, ...] = field(default=())

    def reason_for(self, vm: int) -> Reason | None:
        """The reason for VM ``vm``, or None if it got what was asked."""
        return next((reason for reason in self.reasons if reason.vm == vm), None)

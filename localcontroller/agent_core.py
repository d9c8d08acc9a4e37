"""How a host finds its group manager, and whose orders it takes.

::

    state     event                 next      effect
    idle      started               seeking   ask for an assignment
    seeking   assigned              joining   connect to the manager
    seeking   not assigned          waiting   ask again after a pause that doubles
    waiting   woken                 seeking   ask for an assignment
    joining   joined                joined    -
    joining   not joined            waiting   ask again, naming the manager that failed
    joined    link closed           seeking   ask for an assignment at once, naming the manager as
                                              failed if it was silent
    joined    sent elsewhere        joining   close the link, connect to the other manager
    any       going down            waiting   close the link, ask again after a rest: it may stay up
    waiting   woken early           seeking   the machine slept: ask for an assignment at once
    any       stopped               stopped   close the link

Rules:

1. An order is taken only while ``joined`` and only with an epoch that is not older than the one of
   our assignment; an older one is refused, and changes nothing.
2. An assignment older than one we already had is refused: it comes from a deposed leader.
3. VMs keep running whatever happens here.
4. An event that the table does not know for the present state came too late: it changes nothing.

Invariant: at most one link is open or being opened.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never

from snooze.common.errors import StaleEpoch
from snooze.common.wire import Assignment

MAX_FAILED: Final = 16
"""Managers that are remembered as out of reach, the latest ones."""


class AgentState(StrEnum):
    """Where the agent is; see the table."""

    IDLE = "idle"
    SEEKING = "seeking"
    WAITING = "waiting"
    JOINING = "joining"
    JOINED = "joined"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Started:
    """The hypervisor is open and the host described."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """The leader named a manager."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class NotAssigned:
    """No bootstrap node or no leader answered with a manager."""

    reason: str


@dataclass(frozen=True, slots=True)
class Joined:
    """The manager welcomed us."""


@dataclass(frozen=True, slots=True)
class NotJoined:
    """The manager refused us, or did not answer."""

    reason: str


@dataclass(frozen=True, slots=True)
class LinkClosed:
    """The link to the manager is closed; ``silent``: because nothing was heard of it any more.

    Its leader may not have noticed yet, and would send us to it again.
    """

    reason: str
    silent: bool = False


@dataclass(frozen=True, slots=True)
class SentElsewhere:
    """The manager told us to join another."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Woken:
    """A pause is over; ``number`` tells which."""

    number: int


@dataclass(frozen=True, slots=True)
class GoingDown:
    """The machine is told to go down, or could not be; it is looked again after ``rest_s``."""

    reason: str
    rest_s: float


@dataclass(frozen=True, slots=True)
class WokenEarly:
    """The machine was asleep and is no longer."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The daemon stops."""


AgentEvent = (
    Started
    | Assigned
    | NotAssigned
    | Joined
    | NotJoined
    | LinkClosed
    | SentElsewhere
    | GoingDown
    | Woken
    | WokenEarly
    | Stopped
)


@dataclass(frozen=True, slots=True)
class AskAssignment:
    """Ask the leader, by way of any bootstrap node, for a manager."""

    previous_manager: str
    failed_managers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConnectTo:
    """Open a link to this manager and introduce the host with this epoch."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class CloseLink:
    """Close the link to the manager, or give up opening it."""

    reason: str


@dataclass(frozen=True, slots=True)
class WakeIn:
    """Come back after a pause."""

    pause_s: float
    number: int


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the log."""

    message: str


AgentEffect = AskAssignment | ConnectTo | CloseLink | WakeIn | Note


@dataclass(slots=True)
class AgentCore:
    """Decides where a host belongs; see the module's table."""

    retry_min_s: float
    retry_max_s: float
    state: AgentState = AgentState.IDLE
    epoch: int = 0
    manager_id: str = ""
    manager_name: str = ""
    failed: tuple[str, ...] = ()
    pause_s: float = 0.0
    pauses: int = 0
    reason: str = ""

    def handle(self, event: AgentEvent, now_s: float) -> list[AgentEffect]:
        """Take in one event."""
        if self.state is AgentState.STOPPED:
            return []
        match event:
            case Started():
                return self._seek() if self.state is AgentState.IDLE else []
            case Assigned():
                return self._assigned(event.assignment)
            case NotAssigned():
                if self.state is not AgentState.SEEKING:
                    return []
                return self._wait(event.reason)
            case Joined():
                if self.state is not AgentState.JOINING:
                    return []
                self.state, self.pause_s, self.failed, self.reason = AgentState.JOINED, 0.0, (), ""
                return [Note(f"joined group manager {self.manager_name}")]
            case NotJoined():
                if self.state is not AgentState.JOINING:
                    return []
                self._mark_failed()
                return self._wait(event.reason)
            case LinkClosed():
                if self.state is not AgentState.JOINED:
                    return []
                if event.silent:
                    self._mark_failed()
                note = Note(f"the link to group manager {self.manager_name} closed: {event.reason}")
                return [note, *self._seek()]
            case SentElsewhere():
                return self._sent_elsewhere(event.assignment)
            case GoingDown():
                if self.state is AgentState.IDLE:
                    return []
                self.state = AgentState.WAITING
                self.pauses += 1
                return [CloseLink(event.reason), WakeIn(event.rest_s, self.pauses)]
            case WokenEarly():
                return self._seek() if self.state is AgentState.WAITING else []
            case Woken():
                if self.state is not AgentState.WAITING or event.number != self.pauses:
                    return []
                return self._seek()
            case Stopped():
                self.state = AgentState.STOPPED
                return [CloseLink("shutting down")]
            case _:
                assert_never(event)

    def admit(self, epoch: int) -> None:
        """Let an order in.

        Raises:
            StaleEpoch: it is from a manager that is no longer ours.
        """
        if self.state is not AgentState.JOINED or epoch < self.epoch:
            raise StaleEpoch(
                f"this host was assigned anew (epoch {self.epoch}); the order is of epoch {epoch}"
            )

    def _seek(self) -> list[AgentEffect]:
        self.state = AgentState.SEEKING
        return [AskAssignment(self.manager_id, self.failed)]

    def _assigned(self, assignment: Assignment) -> list[AgentEffect]:
        if self.state is not AgentState.SEEKING:
            return []
        if assignment.epoch <= self.epoch:
            return self._wait("the assignment is older than the one before: from a deposed leader")
        return self._join(assignment)

    def _join(self, assignment: Assignment) -> list[AgentEffect]:
        self.state, self.epoch = AgentState.JOINING, assignment.epoch
        self.manager_id = assignment.manager.manager_id
        self.manager_name = f"{assignment.manager.hostname} ({assignment.manager.monitoring})"
        return [ConnectTo(assignment)]

    def _sent_elsewhere(self, assignment: Assignment) -> list[AgentEffect]:
        if self.state is not AgentState.JOINED or assignment.epoch <= self.epoch:
            return []
        return [CloseLink("given to another group manager"), *self._join(assignment)]

    def _mark_failed(self) -> None:
        others = tuple(manager for manager in self.failed if manager != self.manager_id)
        self.failed = (*others, self.manager_id)[-MAX_FAILED:]

    def _wait(self, reason: str) -> list[AgentEffect]:
        self.state = AgentState.WAITING
        self.pause_s = min(self.retry_max_s, max(self.retry_min_s, self.pause_s * 2))
        self.pauses += 1
        effects: list[AgentEffect] = [WakeIn(self.pause_s, self.pauses)]
        if reason != self.reason:
            effects.append(Note(f"no group manager yet: {reason}"))
        self.reason = reason
        return effects

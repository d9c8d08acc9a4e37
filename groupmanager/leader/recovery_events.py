"""What the recovery core is told, and what it orders."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from snooze.common.errors import ErrorReport
from snooze.common.wire import HostDirective
from snooze.groupmanager.leader.membership_core import Announce, RecordHost
from snooze.groupmanager.leader.submission_events import Decided


class PowerOutcome(StrEnum):
    """What a power controller answered."""

    OFF = "off"
    """Read from it after the question was put: the proof."""
    ON = "on"
    REFUSED = "refused"
    """It cannot do it, or will not; nothing changed."""
    SILENT = "silent"
    """It did not answer: an order to it may have been carried out."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went by."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class PowerAnswered:
    """What became of an ``AskPower``."""

    host_id: str
    attempt: int
    outcome: PowerOutcome
    message: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class ConfirmDead:
    """A person says that a host is off, and will stay so until it is cleaned up."""

    request_id: int
    host_id: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class HostHeard:
    """Hosts joined a manager, and what they have was taken in by the submission core."""

    manager_id: str
    host_ids: Sequence[str]
    now_ms: int


@dataclass(frozen=True, slots=True)
class DirectiveLost:
    """A manager did not take the directives for these hosts."""

    host_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Redirect:
    """What is true of a host changed: whether it takes VMs."""

    host_id: str


RecoveryEvent = Ticked | PowerAnswered | ConfirmDead | HostHeard | DirectiveLost | Redirect


@dataclass(frozen=True, slots=True)
class AskPower:
    """Read a host's power state; with ``off``, switch it off first and read it back.

    Answered by ``PowerAnswered``.
    """

    host_id: str
    attempt: int
    off: bool


@dataclass(frozen=True, slots=True)
class SwitchOn:
    """Record the host as the registry has it, and then switch it on."""

    host_id: str


@dataclass(frozen=True, slots=True)
class HostProven:
    """Have the submission core deal with the host's VMs (``HostDown``)."""

    host_id: str
    proof: str


@dataclass(frozen=True, slots=True)
class Direct:
    """Tell a manager what is true of its hosts; ``DirectiveLost`` if it does not take it."""

    manager_id: str
    directives: Sequence[HostDirective]


@dataclass(frozen=True, slots=True)
class AnswerPerson:
    """Answer ``ConfirmDead``: done, or why not."""

    request_id: int
    error: ErrorReport | None = None


RecoveryEffect = (
    AskPower | SwitchOn | HostProven | Direct | AnswerPerson | RecordHost | Decided | Announce
)

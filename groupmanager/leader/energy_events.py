"""What the energy core is told, and what it orders."""

from dataclasses import dataclass

from snooze.common.decisions import Decision
from snooze.common.errors import ErrorReport
from snooze.common.resources import FloatArray
from snooze.groupmanager.leader.membership_core import Announce


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went by; ``settled``: hosts have had time to join this leader."""

    now_ms: int
    settled: bool


@dataclass(frozen=True, slots=True)
class HostSeen:
    """A host joined a manager."""

    host_id: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class HostWent:
    """A host's link to its manager closed."""

    host_id: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class StepRecorded:
    """The record has the host's new state; or could not be written, then ``error`` says why."""

    host_id: str
    step_id: int
    now_ms: int
    error: ErrorReport | None = None


@dataclass(frozen=True, slots=True)
class SleepAnswered:
    """The host's manager sent it down (its link closed); or why not, or (``unknown``) perhaps."""

    host_id: str
    step_id: int
    now_ms: int
    error: ErrorReport | None = None
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class WakeAnswered:
    """The order to wake was taken by the BMC or sent; or why not."""

    host_id: str
    step_id: int
    now_ms: int
    error: ErrorReport | None = None


@dataclass(frozen=True, slots=True)
class PowerSeen:
    """What the host's power controller says.

    ``is_off`` is None when it cannot say; ``silent``: it can, and did not answer.
    """

    host_id: str
    step_id: int
    now_ms: int
    is_off: bool | None
    silent: bool = False


@dataclass(frozen=True, slots=True)
class SleepAsked:
    """A person wants the host asleep; ``force`` passes over everything but VMs."""

    request_id: int
    host_id: str
    now_ms: int
    force: bool = False


@dataclass(frozen=True, slots=True)
class WakeAsked:
    """A person wants the host awake."""

    request_id: int
    host_id: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class Judged:
    """A person approves of a proposed decision, or rejects it."""

    decision_id: str
    approved: bool
    who: str
    now_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class RoomWanted:
    """There is a load of ``demand[R]`` for which no host that is up has room."""

    name: str
    demand: FloatArray
    until_s: float


@dataclass(frozen=True, slots=True, eq=False)
class WantRoom:
    """What another core orders to have a sleeper woken: ``RoomWanted`` for so long."""

    name: str
    demand: FloatArray
    span_s: float


EnergyEvent = (
    Ticked
    | HostSeen
    | HostWent
    | StepRecorded
    | SleepAnswered
    | WakeAnswered
    | PowerSeen
    | SleepAsked
    | WakeAsked
    | Judged
    | RoomWanted
)


@dataclass(frozen=True, slots=True)
class RecordStep:
    """Record the host as the registry has it; with a ``step_id``, ``StepRecorded`` follows."""

    host_id: str
    step_id: int = 0


@dataclass(frozen=True, slots=True)
class OrderSleep:
    """Have the host's manager send it to sleep; ``SleepAnswered`` follows."""

    host_id: str
    step_id: int
    manager_id: str
    action: str
    cause: str


@dataclass(frozen=True, slots=True)
class OrderWake:
    """Wake the host by its power controller; ``WakeAnswered`` follows."""

    host_id: str
    step_id: int


@dataclass(frozen=True, slots=True)
class LookAtPower:
    """Ask the host's power controller whether it is off; ``PowerSeen`` follows."""

    host_id: str
    step_id: int


@dataclass(frozen=True, slots=True)
class TellDecision:
    """A decision was made, or is further than it was."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class AnswerPerson:
    """Answer a person's request: it is under way (``message``), or refused."""

    request_id: int
    message: str = ""
    error: ErrorReport | None = None


EnergyEffect = (
    RecordStep | OrderSleep | OrderWake | LookAtPower | TellDecision | AnswerPerson | Announce
)

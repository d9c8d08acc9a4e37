"""What the manager core is told, and what it orders."""

from dataclasses import dataclass

from snooze.common.api import ImageView
from snooze.common.errors import ErrorReport
from snooze.common.wire import (
    Assignment,
    HostAnswer,
    HostDirective,
    HostHello,
    HostOrder,
    ManagerAnswer,
    ManagerNotice,
    PlaceVms,
    RelayedOrder,
    SleepHost,
    VmChanged,
    VmOrder,
)
from snooze.groupmanager.manager.autonomy_events import AutonomyEffect, AutonomyEvent


@dataclass(frozen=True, slots=True)
class HostJoined:
    """A host's link stands."""

    hello: HostHello


@dataclass(frozen=True, slots=True)
class HostLost:
    """A host's link is closed; ``left``: it was sent elsewhere; ``silent``: it was not heard."""

    host_id: str
    epoch: int
    reason: str
    left: bool = False
    silent: bool = False


@dataclass(frozen=True, slots=True)
class PlaceAsked:
    """The leader wants VMs placed."""

    request_id: int
    message: PlaceVms


@dataclass(frozen=True, slots=True)
class OrderAsked:
    """The leader passes on a client's command."""

    request_id: int
    message: VmOrder


@dataclass(frozen=True, slots=True)
class RelayAsked:
    """Another manager's migration takes a step on a host of ours."""

    request_id: int
    message: RelayedOrder


@dataclass(frozen=True, slots=True)
class ReleaseAsked:
    """The leader gives one of our hosts to another manager."""

    host_id: str
    assignment: Assignment


@dataclass(frozen=True, slots=True)
class SleepAsked:
    """The leader wants one of our hosts asleep."""

    request_id: int
    message: SleepHost


@dataclass(frozen=True, slots=True)
class HostAnswered:
    """An order was answered: carried out, refused, or (``unknown``) not answered at all."""

    order_id: int
    answer: HostAnswer | ErrorReport
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class VmNoticed:
    """A host says that a VM changed by itself."""

    host_id: str
    notice: VmChanged


@dataclass(frozen=True, slots=True)
class ImagesNoticed:
    """A host says which images it has now."""

    host_id: str
    images: tuple[ImageView, ...]


@dataclass(frozen=True, slots=True)
class Directed:
    """The leader says what holds of some hosts."""

    directives: list[HostDirective]


@dataclass(frozen=True, slots=True)
class ArrivalsEnded:
    """The leader knows that nobody moves these VMs, which hosts of ours await, any more."""

    vm_ids: list[str]


ManagerEvent = (
    Directed
    | ArrivalsEnded
    | AutonomyEvent
    | HostJoined
    | HostLost
    | PlaceAsked
    | OrderAsked
    | RelayAsked
    | ReleaseAsked
    | SleepAsked
    | HostAnswered
    | VmNoticed
    | ImagesNoticed
)


@dataclass(frozen=True, slots=True)
class OrderHost:
    """Send an order to a host; its outcome comes back as ``HostAnswered``.

    ``relayed``: the host is another manager's, and the leader passes the order on.
    """

    order_id: int
    host_id: str
    order: HostOrder
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class AnswerLeader:
    """Answer the leader's request."""

    request_id: int
    answer: ManagerAnswer | ErrorReport


@dataclass(frozen=True, slots=True)
class TellLeader:
    """Tell the leader unasked."""

    notice: ManagerNotice


@dataclass(frozen=True, slots=True)
class CloseHost:
    """Close a host's link."""

    host_id: str
    reason: str


ManagerEffect = OrderHost | AnswerLeader | TellLeader | CloseHost | AutonomyEffect

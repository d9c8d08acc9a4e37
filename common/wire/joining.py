"""Finding a manager, and the first frames of both kinds of link."""

import msgspec

from snooze.common.vms import VmReport
from snooze.common.wire.basics import (
    PROTOCOL,
    HostDescription,
    ManagerDescription,
    VmStatus,
)


class AssignmentRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host asks the leader for a manager (``POST /internal/assignment``).

    ``failed_managers``: the ones it tried since it last had one, and could not reach.
    """

    host: HostDescription
    previous_manager: str = ""
    failed_managers: tuple[str, ...] = ()


class Assignment(msgspec.Struct, frozen=True):
    """The leader's answer."""

    manager: ManagerDescription
    epoch: int


class HostHello(msgspec.Struct, frozen=True, tag="host"):
    """First frame of a host link; ``arriving``: the VMs it has made ready to receive."""

    host: HostDescription
    vms: list[VmReport]
    epoch: int
    protocol: int = PROTOCOL
    arriving: list[VmReport] = []


class HostWelcome(msgspec.Struct, frozen=True, tag="host-welcome"):
    """The manager's answer."""

    manager: ManagerDescription


class HostState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host and its VMs as its manager tells the leader."""

    host: HostDescription
    epoch: int
    vms: list[VmStatus]


class ManagerHello(msgspec.Struct, frozen=True, tag="manager"):
    """First frame of a manager link.

    ``moving``: the VMs whose migration it sees to, or that may have arrived for all it knows.
    """

    manager: ManagerDescription
    hosts: list[HostState]
    protocol: int = PROTOCOL
    moving: tuple[str, ...] = ()


class ManagerWelcome(msgspec.Struct, frozen=True, tag="manager-welcome"):
    """The leader's answer."""

    leader_id: str
    epoch: int

"""Putting a daemon together from its settings: what more than one daemon needs."""

import logging

import msgspec

from snooze.common.coordination.leadership import LeaderRecord
from snooze.common.coordination.port import Coordinator
from snooze.common.coordination.zookeeper import ZooKeeperCoordinator
from snooze.common.errors import SettingsError
from snooze.common.settings import CoordinationSettings, HttpSettings
from snooze.common.transport.http_connection import HttpLimits
from snooze.common.wire import ManagerDescription

logger = logging.getLogger(__name__)


def leader_description(record: LeaderRecord | None) -> ManagerDescription | None:
    """Where the leader is, from its record."""
    if record is None:
        return None
    try:
        return msgspec.msgpack.decode(record.payload, type=ManagerDescription)
    except msgspec.MsgspecError as error:
        logger.warning("the leader's record cannot be read: %s", error)
        return None


def http_limits(settings: HttpSettings) -> HttpLimits:
    """The bounds of the HTTP server, from the settings."""
    return HttpLimits(
        max_body_bytes=settings.max_body_bytes,
        max_connections=settings.max_connections,
        head_timeout_s=settings.request_timeout_s,
        body_timeout_s=settings.request_timeout_s,
    )


def make_coordinator(settings: CoordinationSettings) -> Coordinator:
    """The driver that the settings name.

    Raises:
        SettingsError: the memory driver, which lives within one process.
    """
    if settings.driver == "memory":
        raise SettingsError(
            'coordination.driver = "memory" lives within one process: use "zookeeper" for '
            "separate daemons, or `snooze up` for a cluster in one process"
        )
    return ZooKeeperCoordinator(
        ",".join(settings.hosts),
        root=settings.root,
        session_timeout_s=settings.session_timeout_s,
        operation_timeout_s=settings.operation_timeout_s,
    )

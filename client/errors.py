"""The one error that only clients can have."""

from snooze.common.errors import RemoteError


class NoFrontDoor(RemoteError):
    """No address of the cluster takes a connection; nothing was sent."""

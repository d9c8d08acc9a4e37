"""The errors that only clients can have."""

from snooze.common.errors import RemoteError


class NoFrontDoor(RemoteError):
    """No address of the cluster takes a connection; nothing was sent."""


class StoreSilent(RemoteError):
    """The store of record did not answer the one who works on it directly."""

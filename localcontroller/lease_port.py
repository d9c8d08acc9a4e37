"""What orders ask of a host's lease; ``lease.py`` has it."""

from typing import Protocol

from snooze.common.vms import VmReport


class Lease(Protocol):
    """What orders ask of the host's lease (``lease.py``)."""

    async def require(self) -> None:
        """Return while a lease is held. Raises: Conflict."""
        ...

    def noted(self) -> frozenset[str]:
        """The VMs that were fenced a while ago, before a look."""
        ...

    def mark(self, reports: list[VmReport], noted: frozenset[str] | None = None) -> list[VmReport]:
        """After it, say which VMs are off because they were fenced."""
        ...

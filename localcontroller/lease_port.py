"""What orders ask of a host's lease; ``lease.py`` has it."""

from typing import Protocol

from snooze.common.vms import VmReport


class Lease(Protocol):
    """What orders ask of the host's lease (``lease.py``)."""

    async def require(self) -> None:
        """Return while a lease is held. Raises: Conflict."""
        ...

    def mark(self, reports: list[VmReport]) -> list[VmReport]:
        """Say which VMs are off because they were fenced."""
        ...

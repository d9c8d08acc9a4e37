"""Leases of IP addresses: one address, one VM, and no reuse before its VM is proven gone.

Rules:

1. An address belongs to at most one VM, and a VM has at most one address.
2. Addresses never used go first, in ascending order; those given back go last, the longest free
   first, and only after a quarantine.
3. Of every subnet the first host address (the gateway by custom) and the last one are never leased.

Pure state, rebuilt from the VM records by a new leader.

Source: Snooze expands its subnets in order and never hands out index 0 nor the last; it reused an
address as soon as a stream to a host broke, which gave two living VMs one address.
"""

import ipaddress
from collections import deque
from collections.abc import Iterator, Sequence


class AddressLeases:
    """Which address belongs to which VM."""

    def __init__(self, subnets: Sequence[str], quarantine_s: float) -> None:
        """``subnets``: IPv4 networks in CIDR form, not overlapping."""
        networks = [ipaddress.IPv4Network(subnet) for subnet in subnets]
        self._ranges = [
            range(int(network.network_address) + 2, int(network.broadcast_address) - 1)
            for network in networks
        ]
        self._fresh = self._expand()
        self._unused: deque[str] = deque()
        self._resting: dict[str, float] = {}
        self._quarantine_s = quarantine_s
        self._vm_of: dict[str, str] = {}
        self._address_of: dict[str, str] = {}

    @property
    def active(self) -> bool:
        """Whether there is any subnet to lease from."""
        return bool(self._ranges)

    def _expand(self) -> Iterator[str]:
        for numbers in self._ranges:
            for number in numbers:
                yield str(ipaddress.IPv4Address(number))

    def lease(self, vm_id: str, now_s: float) -> str | None:
        """The VM's address: the one it has, else a free one, else None."""
        if vm_id in self._address_of:
            return self._address_of[vm_id]
        address = self._next_free(now_s)
        if address is not None:
            self._bind(address, vm_id)
        return address

    def claim(self, address: str, vm_id: str) -> bool:
        """Note that a VM already has this address (from the record, or as a host reports it).

        False, and nothing changed, if another VM has it, or the VM has another one.
        """
        if self._vm_of.get(address, vm_id) != vm_id:
            return False
        if self._address_of.get(vm_id, address) != address:
            return False
        self._resting.pop(address, None)
        self._bind(address, vm_id)
        return True

    def release(self, vm_id: str, now_s: float) -> None:
        """The VM is proven gone: its address rests, then it is free. Unknown VMs: nothing."""
        address = self._unbind(vm_id)
        if address is not None:
            self._resting[address] = now_s + self._quarantine_s

    def withdraw(self, vm_id: str) -> None:
        """The VM was never accepted, so nobody has used its address: it is free at once."""
        address = self._unbind(vm_id)
        if address is not None:
            self._unused.append(address)

    def holder(self, address: str) -> str | None:
        """The VM that has this address."""
        return self._vm_of.get(address)

    def _bind(self, address: str, vm_id: str) -> None:
        self._vm_of[address] = vm_id
        self._address_of[vm_id] = address

    def _unbind(self, vm_id: str) -> str | None:
        """Take the VM's address from it; None if it has none of our subnets."""
        address = self._address_of.pop(vm_id, None)
        if address is None:
            return None
        del self._vm_of[address]
        return address if self._is_ours(address) else None

    def _next_free(self, now_s: float) -> str | None:
        while self._unused:
            address = self._unused.popleft()
            if self._is_free(address):
                return address
        for address in self._fresh:
            if self._is_free(address):
                return address
        for address, free_s in self._resting.items():
            if free_s > now_s:
                return None
            del self._resting[address]
            return address
        return None

    def _is_free(self, address: str) -> bool:
        return address not in self._vm_of and address not in self._resting

    def _is_ours(self, address: str) -> bool:
        try:
            number = int(ipaddress.IPv4Address(address))
        except ValueError:
            return False
        return any(number in numbers for numbers in self._ranges)


def mac_of(address: str) -> str:
    """The MAC from which a guest reads its address: ``54:56:`` and the four bytes of it.

    Source: Snooze's encoding (192.168.122.6 is 54:56:c0:a8:7a:06), written with two digits a byte.
    """
    return "54:56:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(address).packed)

"""Leases of IP addresses: one address, one VM, and no reuse before its VM is proven gone.

Pure state, rebuilt from the VM records by a new leader. Addresses are handed out in ascending
order, those given back last of all and only after a quarantine. Of every subnet the first host
address (the gateway by custom) and the last one are never leased.

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
        self._networks = [ipaddress.IPv4Network(subnet) for subnet in subnets]
        self._fresh = self._expand()
        self._resting: deque[tuple[float, str]] = deque()
        self._quarantine_s = quarantine_s
        self._vm_of: dict[str, str] = {}
        self._address_of: dict[str, str] = {}

    @property
    def active(self) -> bool:
        """Whether there is any subnet to lease from."""
        return bool(self._networks)

    def _expand(self) -> Iterator[str]:
        for network in self._networks:
            first, last = int(network.network_address) + 2, int(network.broadcast_address) - 2
            for number in range(first, last + 1):
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

        False, and nothing changed, if another VM has it.
        """
        holder = self._vm_of.get(address)
        if holder is not None and holder != vm_id:
            return False
        self._bind(address, vm_id)
        return True

    def release(self, vm_id: str, now_s: float) -> None:
        """The VM is proven gone: its address rests, then it is free. Unknown VMs: nothing."""
        address = self._address_of.pop(vm_id, None)
        if address is None:
            return
        del self._vm_of[address]
        if self._is_ours(address):
            self._resting.append((now_s + self._quarantine_s, address))

    def holder(self, address: str) -> str | None:
        """The VM that has this address."""
        return self._vm_of.get(address)

    def _bind(self, address: str, vm_id: str) -> None:
        self._vm_of[address] = vm_id
        self._address_of[vm_id] = address

    def _next_free(self, now_s: float) -> str | None:
        for address in self._fresh:
            if address not in self._vm_of:
                return address
        while self._resting and self._resting[0][0] <= now_s:
            address = self._resting.popleft()[1]
            if address not in self._vm_of:
                return address
        return None

    def _is_ours(self, address: str) -> bool:
        parsed = ipaddress.IPv4Address(address)
        return any(parsed in network for network in self._networks)


def mac_of(address: str) -> str:
    """The MAC from which a guest reads its address: ``54:56:`` and the four bytes of it.

    Source: Snooze's encoding (192.168.122.6 is 54:56:c0:a8:7a:06), written with two digits a byte.
    """
    return "54:56:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(address).packed)

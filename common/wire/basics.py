"""Who and what daemons speak of: addresses, hosts, managers, VMs, leases."""

import msgspec

from snooze.common.api import ImageView
from snooze.common.redaction import HIDDEN, redact_options
from snooze.common.resources import Capacity
from snooze.common.vm_lifecycle import VmState
from snooze.common.vms import VmPolicy

PROTOCOL = 2
"""Raised when an older daemon could misread a newer one; a link between two is refused."""


def assignment_epoch(leader_epoch: int, count: int) -> int:
    """The ``count``-th assignment epoch of the leader with ``leader_epoch``."""
    return leader_epoch << 32 | count


class Address(msgspec.Struct, frozen=True, array_like=True):
    """Where a TCP server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class HypervisorSummary(msgspec.Struct, frozen=True, omit_defaults=True):
    """What Snooze's clients are told of a host's hypervisor (``HypervisorSettings``)."""

    driver: str = "qemu"
    transport: str = "tcp"
    port: int = 16509
    method: str = "live"
    timeout_s: int = 60
    description: str = ""


class PowerDescription(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a host is switched on and off from outside, and how it goes to sleep by itself.

    ``driver`` and ``options`` are as in the host's settings (docs/power.md). ``options`` may hold a
    password: it is sent between daemons and recorded (a dead host cannot be asked), and is never
    shown; ``repr`` hides it. ``actions``: the ways in which the host can go down by itself
    (``shutdown``, ``suspend_to_ram``, ...), the preferred one first; empty: it never sleeps.
    ``idle_w``, ``full_w``, ``asleep_w``: of the modelled power curve, watts; 0: not known.
    """

    driver: str = ""
    options: str = ""
    actions: tuple[str, ...] = ()
    idle_w: float = 0.0
    full_w: float = 0.0
    asleep_w: float = 0.0

    def __repr__(self) -> str:
        # of commands, what is a password among their words is theirs to know
        is_open = self.driver != "COMMAND" or not self.options
        options = redact_options(self.options) if is_open else HIDDEN
        return f"PowerDescription({self.driver!r}, {options!r}, actions={self.actions!r})"


class HostDescription(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host as it presents itself when it joins.

    ``capacity`` is what VMs may use: the machine less what is reserved for the host itself.
    ``lists_images``: ``images`` are all it has, so that another name is a mistake.
    ``wakeup_options`` has its secrets redacted before it leaves the host; ``power`` has not.
    ``lease_s``: the host fences its highly available VMs by itself when it has held no valid lease
    for this long (docs/never-twice.md); 0: it never does.
    """

    host_id: str
    hostname: str
    control: Address
    capacity: Capacity
    hypervisor: HypervisorSummary = HypervisorSummary()
    images: tuple[ImageView, ...] = ()
    lists_images: bool = False
    wakeup_driver: str = "test"
    wakeup_options: str = ""
    power: PowerDescription = PowerDescription()
    lease_s: float = 0.0


class ManagerDescription(msgspec.Struct, frozen=True, omit_defaults=True):
    """A group manager as it presents itself; also the payload of the leader's record."""

    manager_id: str
    hostname: str
    control: Address
    monitoring: Address


class VmStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """A VM as the leader needs to know it.

    ``failed_on``: where its start failed; it is on no host then (``host_id`` is empty).
    ``discarded``: it is destroyed as a stale copy, by the leader's own word.
    """

    vm_id: str
    name: str
    state: VmState
    demand: Capacity
    host_id: str
    generation: int = 1
    managed: bool = True
    ip_address: str = ""
    mac_address: str = ""
    image: str = ""
    reason: str = ""
    cause: str = ""
    error_code: str = ""
    policy: VmPolicy = VmPolicy()
    fenced: bool = False
    interrupted: bool = False
    halted: bool = False
    failed_on: str = ""
    discarded: bool = False


class RenewLease(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """May I go on? Asked from below on both kinds of link; answered by ``LeaseGranted``.

    The asker notes *its own* clock when it sends. What is granted counts from that moment.
    """


class LeaseGranted(msgspec.Struct, frozen=True, tag=True):
    """Go on until this long after you asked; not positive: no."""

    valid_s: float

"""libvirt's lifecycle events, as changes of VMs.

Source: libvirt-domain.h, virDomainEventType and the details of each. Events that say nothing new
about a VM's state are dropped: ``DEFINED``, ``SHUTDOWN`` (``STOPPED`` follows), and those of a
guest on its way (``STARTED`` and ``SUSPENDED`` with the detail ``MIGRATED``).
"""

from typing import Final

import libvirt

from snooze.common.vm_lifecycle import VmState
from snooze.localcontroller.hypervisor.port import ChangeKind, VmChange

_STARTED_MIGRATED: Final = 1
_SUSPENDED_MIGRATED: Final = 1
_RESUMED_MIGRATED: Final = 1
_STOPPED_MIGRATED: Final = 3
_STOPPED_FAILURES: Final = (2, 5)

_STARTED_DETAILS: Final = ("booted", "migrated", "restored", "from snapshot", "woken")
_SUSPENDED_DETAILS: Final = (
    "paused",
    "migrated",
    "I/O error",
    "watchdog",
    "restored",
    "from snapshot",
    "API error",
    "post-copy",
    "post-copy failed",
)
_RESUMED_DETAILS: Final = ("unpaused", "migrated", "from snapshot", "post-copy")
_STOPPED_DETAILS: Final = (
    "shutdown",
    "destroyed",
    "crashed",
    "migrated",
    "saved",
    "failed",
    "from snapshot",
)


def as_change(vm_id: str, name: str, event: int, detail: int, *, managed: bool) -> VmChange | None:
    """The change an event tells of, or None if it tells of none."""
    found = _read(event, detail)
    if found is None:
        return None
    kind, state, reason = found
    return VmChange(vm_id, name, kind, state, managed, reason)


def _read(event: int, detail: int) -> tuple[ChangeKind, VmState, str] | None:
    match event:
        case libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
            return ChangeKind.GONE, VmState.DESTROYED, "undefined"
        case libvirt.VIR_DOMAIN_EVENT_STARTED if detail != _STARTED_MIGRATED:
            return ChangeKind.STARTED, VmState.RUNNING, _word(_STARTED_DETAILS, detail)
        case libvirt.VIR_DOMAIN_EVENT_SUSPENDED if detail != _SUSPENDED_MIGRATED:
            return ChangeKind.PAUSED, VmState.PAUSED, _word(_SUSPENDED_DETAILS, detail)
        case libvirt.VIR_DOMAIN_EVENT_RESUMED if detail == _RESUMED_MIGRATED:
            return ChangeKind.STARTED, VmState.RUNNING, "migrated"
        case libvirt.VIR_DOMAIN_EVENT_RESUMED:
            return ChangeKind.RESUMED, VmState.RUNNING, _word(_RESUMED_DETAILS, detail)
        case libvirt.VIR_DOMAIN_EVENT_STOPPED if detail == _STOPPED_MIGRATED:
            return ChangeKind.MIGRATED_AWAY, VmState.DESTROYED, "migrated"
        case libvirt.VIR_DOMAIN_EVENT_STOPPED if detail in _STOPPED_FAILURES:
            return ChangeKind.CRASHED, VmState.FAILED, _word(_STOPPED_DETAILS, detail)
        case libvirt.VIR_DOMAIN_EVENT_STOPPED:
            return ChangeKind.STOPPED, VmState.STOPPED, _word(_STOPPED_DETAILS, detail)
        case libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED:
            return ChangeKind.PAUSED, VmState.PAUSED, "suspended by its guest"
        case libvirt.VIR_DOMAIN_EVENT_CRASHED:
            return ChangeKind.CRASHED, VmState.FAILED, "panicked"
        case _:
            return None


def _word(words: tuple[str, ...], detail: int) -> str:
    return words[detail] if 0 <= detail < len(words) else f"detail {detail}"
